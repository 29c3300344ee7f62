"""The cue-reach scene as MuJoCo XML: a tabletop with cubes, trays, lamps and two hands, made of primitives alone.

World: x right, y away from the person, z up, metres; the table top is z = 0. Hand frame: origin at the wrist, z along
the fingers, y out of the back of the hand, x = y cross z (toward the thumb of a right hand).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinkjepa_ros.data.episode import SIDES

FOVY_DEG = 62.0
CUBE_COLOURS = ("red", "green", "blue")
TRAYS = ("left", "right")
RGB = tuple[float, float, float]
XY = tuple[float, float]

#: x of the base toward the thumb, z of the base and phalanx lengths; metres at hand scale 1.
FINGERS = {
    "index": (0.031, 0.095, (0.042, 0.026, 0.022)),
    "middle": (0.0105, 0.098, (0.046, 0.030, 0.023)),
    "ring": (-0.0105, 0.095, (0.042, 0.027, 0.022)),
    "pinky": (-0.031, 0.088, (0.034, 0.020, 0.019)),
}
FINGER_RADIUS, THUMB_RADIUS = 0.0095, 0.0105
_THUMB_BASE, _THUMB_LENGTHS = (0.034, -0.010, 0.020), (0.042, 0.034, 0.026)
_SPREAD = 2.2  # rad of sideways angle per metre between finger bases


@dataclass(frozen=True)
class Look:
    """Geometry and appearance of one episode: RGB in 0..1, lengths in metres; pairs are (left, right) as seen."""

    hand_scale: float
    skin: RGB
    sleeve: RGB
    cube_half: float
    cube_rgb: tuple[RGB, RGB, RGB]
    tray_xy: tuple[XY, XY]
    tray_half: float
    tray_rgb: tuple[RGB, RGB]
    lamp_xy: tuple[XY, XY]
    lamp_height: float
    lamp_off: RGB
    table: tuple[str, RGB, RGB, float]  # pattern, two colours, repeats
    wall: tuple[str, RGB, RGB, float]
    floor: RGB
    light_xyz: tuple[float, float, float]
    light: float
    ambient: float
    shadows: bool
    ball: tuple[float, RGB]  # radius, colour
    clutter: tuple[tuple[float, float, float, float, RGB], ...] = ()  # x, y, radius, height, colour


def tag(tag: str, /, *children: str, **attributes: str | float | Sequence[float] | np.ndarray) -> str:
    """One XML element; numbers and rows of numbers become text."""
    words = []
    for key, value in attributes.items():
        if not isinstance(value, str):
            value = " ".join(f"{v:.5f}" for v in np.atleast_1d(value))
        words.append(f'{key}="{value}"')
    return f"<{tag} {' '.join(words)}>{''.join(children)}</{tag}>"


def _site(name: str, z: float = 0.0) -> str:
    return tag("site", name=name, pos=(0, 0, z), size=0.004, group="5")  # group 5 is not drawn


def _bone(length: float, radius: float) -> str:
    return tag("geom", type="capsule", material="skin", fromto=(0, 0, 0, 0, 0, length), size=radius)


def _chain(
    name: str, base: Sequence[float], lengths: Sequence[float], radius: float, euler_y: float = 0.0, ball: bool = False
) -> str:
    """A finger of three phalanges; joints name0 (a ball for the thumb) to name2, sites name_base, name_tip."""
    xml = _site(f"{name}_tip", lengths[-1])
    for i in (2, 1, 0):
        kind = {"type": "ball"} if ball and i == 0 else {"type": "hinge", "axis": "1 0 0"}
        joint = tag("joint", name=f"{name}{i}", **kind)
        first = _site(f"{name}_base") if i == 0 else ""
        place = {"pos": base, "euler": (0.0, euler_y, 0.0)} if i == 0 else {"pos": (0.0, 0.0, lengths[i - 1])}
        xml = tag("body", joint, first, _bone(lengths[i], radius), xml, **place)
    return xml


def _hand(side: str, s: float) -> str:
    """Hand and sleeve of one side at scale `s`; the left one is the mirror image."""
    m = s if side == "right" else -s
    palm = tag("geom", type="box", material="skin", pos=(0, 0, 0.052 * s), size=(0.040 * s, 0.0125 * s, 0.046 * s))
    ball = (m * 0.022, -0.006 * s, 0.022 * s, m * 0.034, -0.008 * s, 0.05 * s)
    thumb_ball = tag("geom", type="capsule", material="skin", fromto=ball, size=0.014 * s)
    x, y, z = _THUMB_BASE
    lengths = [s * length for length in _THUMB_LENGTHS]
    thumb = _chain(f"{side}_thumb", (m * x, s * y, s * z), lengths, s * THUMB_RADIUS, ball=True)
    fingers = [
        _chain(f"{side}_{n}", (m * x, 0, s * z), [s * v for v in bones], s * FINGER_RADIUS, m / s * x * _SPREAD)
        for n, (x, z, bones) in FINGERS.items()
    ]
    sites = _site(f"{side}_wrist") + _site(f"{side}_palm", 0.052 * s)
    hand = tag("body", sites, palm, thumb_ball, thumb, *fingers, name=f"{side}_hand", mocap="true")
    sleeve = tag("geom", type="capsule", material="sleeve", fromto=(0, 0, -0.018, 0, 0, -0.75), size=0.031 * s)
    return hand + tag("body", sleeve, name=f"{side}_arm", mocap="true")


def _box(x: float, y: float, z: float, half: Sequence[float], rgb: RGB) -> str:
    return tag("geom", type="box", pos=(x, y, z), size=half, rgba=(*rgb, 1))


def tray(name: str, xy: XY, half: float, rgb: RGB) -> str:
    """A flat open box with a floor and four walls."""
    wall, floor = 0.016, 0.004
    boxes = [_box(0, 0, floor, (half, half, floor), rgb)]
    boxes += [_box(side * half, 0, wall, (0.004, half + 0.004, wall), rgb) for side in (-1, 1)]
    boxes += [_box(0, side * half, wall, (half + 0.004, 0.004, wall), rgb) for side in (-1, 1)]
    return tag("body", *boxes, name=name, pos=(*xy, 0))


def lamp(name: str, xy: XY, height: float) -> str:
    """A globe on a post."""
    post = tag("geom", type="cylinder", pos=(0, 0, height / 2), size=(0.011, height / 2), rgba=(0.2, 0.2, 0.2, 1))
    globe = tag("geom", name=name, type="sphere", pos=(0, 0, height + 0.03), size=0.042, material=name)
    return tag("body", post, globe, pos=(*xy, 0))


def surface(name: str, pattern: str, first: RGB, second: RGB, repeat: float) -> str:
    """A random texture and the material of the same name."""
    texture = tag("texture", name=name, type="2d", builtin=pattern, width="128", height="128", rgb1=first, rgb2=second,
                   mark="random", markrgb=second, random=0.04)  # fmt: skip
    return texture + tag("material", name=name, texture=name, texrepeat=(repeat, repeat), specular=0.1)


def _movable(name: str, **geom: str | float | Sequence[float]) -> str:
    return tag("body", tag("geom", **geom), name=name, mocap="true")


def quality(look: Look, shadow: int = 512, **map_settings: float) -> str:
    """How the picture is drawn. The settings matter: a CPU renders the default ones up to 30 times slower.

    shadow: pixels of the shadow map along an edge. map_settings: more attributes of MuJoCo's <map>.
    """
    return tag(
        "visual",
        tag("global", offwidth="1280", offheight="1280"),
        tag("quality", shadowsize=str(shadow), offsamples="0", numslices="10", numstacks="6"),
        tag("headlight", ambient=[look.ambient] * 3, diffuse=[0.25] * 3, specular=[0] * 3),
        tag("map", znear=0.02, zfar=20, **map_settings),
    )


def materials(look: Look, *others: str) -> str:
    """What table, wall and lamps are made of, and the materials `others`."""
    lamps = [tag("material", name=f"lamp_{side}", rgba=(*look.lamp_off, 1)) for side in TRAYS]
    return tag("asset", surface("table", *look.table), surface("wall", *look.wall), *others, *lamps)


def sun(look: Look) -> str:
    """The light above the table."""
    aim = np.array([0.0, 0.3, 0.0]) - look.light_xyz
    return tag("light", pos=look.light_xyz, dir=aim, diffuse=[look.light] * 3, specular=[0.2] * 3, cutoff=80,
               castshadow="true" if look.shadows else "false")  # fmt: skip


def room(look: Look) -> list[str]:
    """Wall and floor."""
    return [
        tag("geom", type="plane", pos=(0, 1.3, 0.5), size=(2.5, 1.6, 0.1), euler=(1.5708, 0, 0), material="wall"),
        tag("geom", type="plane", pos=(0, 0, -0.75), size=(4, 4, 0.1), rgba=(*look.floor, 1)),
    ]


def furniture(look: Look) -> list[str]:
    """Trays, lamps, and things that stand about."""
    trays = [tray(f"tray_{n}", look.tray_xy[i], look.tray_half, look.tray_rgb[i]) for i, n in enumerate(TRAYS)]
    lamps = [lamp(f"lamp_{n}", look.lamp_xy[i], look.lamp_height) for i, n in enumerate(TRAYS)]
    clutter = [
        tag("geom", type="cylinder", pos=(x, y, h / 2), size=(r, h / 2), rgba=(*rgb, 1))
        for x, y, r, h, rgb in look.clutter
    ]
    return [*trays, *lamps, *clutter]


def mjcf(look: Look) -> str:
    """The scene as MuJoCo XML."""
    skin = tag("material", name="skin", rgba=(*look.skin, 1), specular=0.2, shininess=0.2)
    sleeve = tag("material", name="sleeve", rgba=(*look.sleeve, 1))
    table = tag("geom", type="box", pos=(0, 0.3, -0.02), size=(0.7, 0.5, 0.02), material="table")
    cubes = [
        _movable(f"cube_{name}", type="box", size=[look.cube_half] * 3, rgba=(*rgb, 1))
        for name, rgb in zip(CUBE_COLOURS, look.cube_rgb, strict=True)
    ]
    ball = _movable("ball", type="sphere", size=look.ball[0], rgba=(*look.ball[1], 1))
    hands = [_hand(side, look.hand_scale) for side in SIDES]
    world = tag("worldbody", sun(look), table, *room(look), *furniture(look), *cubes, ball, *hands, head())
    contact = tag("option", tag("flag", contact="disable"))
    return tag("mujoco", tag("compiler", angle="radian"), contact, quality(look), materials(look, skin, sleeve), world)


def head() -> str:
    """The head camera; it is placed anew at every moment."""
    return tag("body", tag("camera", name="head", fovy=FOVY_DEG), name="head", mocap="true")
