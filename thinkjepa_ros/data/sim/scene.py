"""The cue-reach scene: a tabletop with cubes, trays, lamps and two hands, made of MuJoCo primitives.

Nothing is simulated dynamically: bodies are placed, kinematics are computed, an image is rendered. One `Scene` is one
`Look` (geometry and appearance of one episode), compiled anew, so that no episode can leave a trace in the next.

World: x right, y away from the person, z up, metres; the table top is z = 0. Hand frame: origin at the wrist, z along the
fingers, y out of the back of the hand, x = y cross z (toward the thumb of a right hand).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

os.environ.setdefault("MUJOCO_GL", "egl")  # off-screen; must be set before mujoco is imported
# Mesa's software renderer gains nothing from a second thread; one process per core does.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco
import numpy as np

from thinkjepa_ros.data.episode import JOINT_NAMES, SIDES
from thinkjepa_ros.values import Camera

FOVY_DEG = 62.0
CUBE_COLOURS = ("red", "green", "blue")
RGB = tuple[float, float, float]

_FINGERS = {  # x of the base on the thumb side, z of the base, phalanx lengths, extra curl; metres, hand scale 1
    "index": (0.031, 0.095, (0.042, 0.026, 0.022), 0.0),
    "middle": (0.0105, 0.098, (0.046, 0.030, 0.023), 0.03),
    "ring": (-0.0105, 0.095, (0.042, 0.027, 0.022), 0.10),
    "pinky": (-0.031, 0.088, (0.034, 0.020, 0.019), 0.16),
}
_FINGER_OPEN, _FINGER_CLOSED = np.array([0.10, 0.15, 0.10]), np.array([1.05, 0.85, 0.45])
_EXTRA = np.array([1.0, 1.0, 0.5])
_THUMB_BASE, _THUMB_LENGTHS = (0.034, -0.010, 0.020), (0.042, 0.034, 0.026)
# Direction of the thumb in the hand frame, open and closed.
_THUMB_OPEN, _THUMB_CLOSED = np.array([0.62, -0.35, 0.70]), np.array([-0.02, -0.93, 0.37])
_FINGER_RADIUS, _THUMB_RADIUS = 0.0095, 0.0105
#: How far in front of a joint the surface of its own finger, palm or sleeve may lie for the joint to count as seen, metres.
_OWN_DEPTH = {"wrist": 0.06, "palm": 0.03, "base": 0.03, "tip": 0.045}
_MARGIN = 0.012  # the same for any other surface


@dataclass(frozen=True)
class Look:
    """Geometry and appearance of one episode; colours are RGB in 0..1, lengths metres. Index 0 is left, 1 is right (as seen)."""

    hand_scale: float
    skin: RGB
    sleeve: RGB
    cube_half: float
    cube_rgb: tuple[RGB, RGB, RGB]
    tray_xy: tuple[tuple[float, float], tuple[float, float]]
    tray_half: float
    tray_rgb: tuple[RGB, RGB]
    lamp_xy: tuple[tuple[float, float], tuple[float, float]]
    lamp_height: float
    lamp_off: RGB
    table: tuple[str, RGB, RGB, float]  # pattern, two colours, repeats
    wall: tuple[str, RGB, RGB, float]
    floor: RGB
    light_xyz: tuple[float, float, float]
    light: float
    ambient: float
    shadows: bool
    ball: tuple[float, RGB] | None = None  # radius, colour
    clutter: tuple[tuple[float, float, float, float, RGB], ...] = ()  # x, y, radius, height, colour


def camera_of(width: int, height: int) -> Camera:
    """Intrinsics of the head camera at an image size: vertical field of view 62 degrees, square pixels.

    Pixel centres lie on integers, as in OpenCV and ROS, so the principal point of 128 pixels is 63.5.
    """
    focal = height / 2 / np.tan(np.radians(FOVY_DEG) / 2)
    return Camera(width, height, float(focal), float(focal), (width - 1) / 2, (height - 1) / 2)


def _f(*values: float) -> str:
    return " ".join(f"{v:.5f}" for v in values)


def _finger(side: str, name: str, scale: float) -> str:
    sign = 1 if side == "right" else -1
    x, z, lengths, _ = _FINGERS[name]
    xml = f'<site name="{side}_{name}_tip" pos="{_f(0, 0, lengths[-1] * scale)}" size=".004" group="5"/>'
    for i in (2, 1, 0):
        pos = (sign * x * scale, 0, z * scale) if i == 0 else (0, 0, lengths[i - 1] * scale)
        base = f'<site name="{side}_{name}_base" size=".004" group="5"/>' if i == 0 else ""
        spread = f' euler="0 {_f(sign * x * 2.2)} 0"' if i == 0 else ""
        xml = (
            f'<body pos="{_f(*pos)}"{spread}><joint name="{side}_{name}{i}" type="hinge" axis="1 0 0"/>{base}'
            f'<geom class="hand" fromto="0 0 0 {_f(0, 0, lengths[i] * scale)}" size="{_f(_FINGER_RADIUS * scale)}"/>{xml}</body>'
        )
    return xml


def _thumb(side: str, scale: float) -> str:
    sign = 1 if side == "right" else -1
    xml = f'<site name="{side}_thumb_tip" pos="{_f(0, 0, _THUMB_LENGTHS[-1] * scale)}" size=".004" group="5"/>'
    for i in (2, 1, 0):
        x, y, z = _THUMB_BASE
        pos = (sign * x * scale, y * scale, z * scale) if i == 0 else (0, 0, _THUMB_LENGTHS[i - 1] * scale)
        joint = 'type="ball"' if i == 0 else 'type="hinge" axis="1 0 0"'
        base = f'<site name="{side}_thumb_base" size=".004" group="5"/>' if i == 0 else ""
        xml = (
            f'<body pos="{_f(*pos)}"><joint name="{side}_thumb{i}" {joint}/>{base}'
            f'<geom class="hand" fromto="0 0 0 {_f(0, 0, _THUMB_LENGTHS[i] * scale)}" size="{_f(_THUMB_RADIUS * scale)}"/>{xml}</body>'
        )
    return xml


def _hand(side: str, s: float) -> str:
    sign = 1 if side == "right" else -1
    return (
        f'<body name="{side}_hand" mocap="true"><site name="{side}_wrist" size=".004" group="5"/>'
        f'<site name="{side}_palm" pos="{_f(0, 0, 0.052 * s)}" size=".004" group="5"/>'
        f'<geom class="hand" type="box" pos="{_f(0, 0, 0.052 * s)}" size="{_f(0.040 * s, 0.0125 * s, 0.046 * s)}"/>'
        f'<geom class="hand" fromto="{_f(sign * 0.022 * s, -0.006 * s, 0.022 * s, sign * 0.034 * s, -0.008 * s, 0.05 * s)}" size="{_f(0.014 * s)}"/>'
        + _thumb(side, s)
        + "".join(_finger(side, name, s) for name in _FINGERS)
        + f'</body><body name="{side}_arm" mocap="true"><geom class="sleeve" fromto="0 0 {_f(-0.018)} 0 0 -.75" size="{_f(0.031 * s)}"/></body>'
    )


def _tray(name: str, xy: tuple[float, float], half: float, rgb: RGB) -> str:
    wall, floor = 0.016, 0.004
    boxes = [(0.0, 0.0, floor, half, half, floor)]
    boxes += [(sx * half, 0, wall, 0.004, half + 0.004, wall) for sx in (-1, 1)]
    boxes += [(0, sy * half, wall, half + 0.004, 0.004, wall) for sy in (-1, 1)]
    geoms = "".join(f'<geom type="box" pos="{_f(*b[:3])}" size="{_f(*b[3:])}" rgba="{_f(*rgb)} 1"/>' for b in boxes)
    return f'<body name="{name}" pos="{_f(*xy, 0)}">{geoms}</body>'


def mjcf(look: Look) -> str:
    """The scene as MuJoCo XML. Quality settings matter on a CPU: the default shadow map and tessellation are 30 times slower."""
    cubes = "".join(
        f'<body name="cube_{c}" mocap="true"><geom type="box" size="{_f(*[look.cube_half] * 3)}" rgba="{_f(*rgb)} 1"/></body>'
        for c, rgb in zip(CUBE_COLOURS, look.cube_rgb, strict=True)
    )
    trays = "".join(
        _tray(f"tray_{side}", look.tray_xy[i], look.tray_half, look.tray_rgb[i])
        for i, side in enumerate(("left", "right"))
    )
    lamps = "".join(
        f'<body pos="{_f(*look.lamp_xy[i], 0)}"><geom type="cylinder" pos="0 0 {_f(look.lamp_height / 2)}"'
        f' size="{_f(0.011, look.lamp_height / 2)}" rgba=".2 .2 .2 1"/><geom name="lamp_{side}" type="sphere"'
        f' pos="0 0 {_f(look.lamp_height + 0.03)}" size=".042" material="lamp_{side}"/></body>'
        for i, side in enumerate(("left", "right"))
    )
    clutter = "".join(
        f'<geom type="cylinder" pos="{_f(x, y, h / 2)}" size="{_f(r, h / 2)}" rgba="{_f(*rgb)} 1"/>'
        for x, y, r, h, rgb in look.clutter
    )
    ball = ""
    if look.ball is not None:
        ball = f'<body name="ball" mocap="true"><geom type="sphere" size="{_f(look.ball[0])}" rgba="{_f(*look.ball[1])} 1"/></body>'
    textures = "".join(
        f'<texture name="{name}" type="2d" builtin="{p}" width="128" height="128" rgb1="{_f(*a)}" rgb2="{_f(*b)}"'
        f' mark="random" markrgb="{_f(*b)}" random=".04"/><material name="{name}" texture="{name}" texrepeat="{_f(n, n)}" specular=".1"/>'
        for name, (p, a, b, n) in (("table", look.table), ("wall", look.wall))
    )
    return f"""<mujoco><compiler angle="radian"/><option><flag contact="disable"/></option>
<visual><global offwidth="1280" offheight="1280"/><quality shadowsize="512" offsamples="0" numslices="10" numstacks="6"/>
<headlight ambient="{_f(*[look.ambient] * 3)}" diffuse=".25 .25 .25" specular="0 0 0"/><map znear=".02" zfar="20"/></visual>
<default><default class="hand"><geom type="capsule" material="skin"/></default><default class="sleeve"><geom type="capsule" material="sleeve"/></default></default>
<asset>{textures}<material name="skin" rgba="{_f(*look.skin)} 1" specular=".2" shininess=".2"/><material name="sleeve" rgba="{_f(*look.sleeve)} 1"/>
<material name="lamp_left" rgba="{_f(*look.lamp_off)} 1"/><material name="lamp_right" rgba="{_f(*look.lamp_off)} 1"/></asset>
<worldbody><light pos="{_f(*look.light_xyz)}" dir="{_f(*(np.array([0.0, 0.3, 0.0]) - look.light_xyz))}" diffuse="{_f(*[look.light] * 3)}"
 specular=".2 .2 .2" cutoff="80" castshadow="{"true" if look.shadows else "false"}"/>
<geom type="box" pos="0 .30 -.02" size=".70 .50 .02" material="table"/><geom type="plane" pos="0 1.3 .5" size="2.5 1.6 .1" euler="1.5708 0 0" material="wall"/>
<geom type="plane" pos="0 0 -.75" size="4 4 .1" rgba="{_f(*look.floor)} 1"/>
{trays}{lamps}{clutter}{cubes}{ball}{"".join(_hand(side, look.hand_scale) for side in SIDES)}
<body name="head" mocap="true"><camera name="head" fovy="{FOVY_DEG}"/></body></worldbody></mujoco>"""


def _from_z(direction: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) of the shortest rotation that turns the z axis into `direction` (any length, not -z)."""
    x, y, z = direction / np.linalg.norm(direction)
    q = np.array([1 + z, -y, x, 0.0])
    return np.asarray(q / np.linalg.norm(q))


class Scene:
    """One compiled scene with its renderer. Place things, call `update`, then read joints or render. Not thread-safe."""

    def __init__(self, look: Look, width: int, height: int) -> None:
        self.look, self.camera = look, camera_of(width, height)
        self.model = mujoco.MjModel.from_xml_string(mjcf(look))
        self.data = mujoco.MjData(self.model)
        self._renderer: mujoco.Renderer | None = None
        model = self.model
        self._mocap = {
            model.body(b).name: model.body_mocapid[b] for b in range(model.nbody) if model.body_mocapid[b] >= 0
        }
        self._sites = np.array([model.site(name).id for name in JOINT_NAMES])
        address = {model.joint(j).name: int(model.jnt_qposadr[j]) for j in range(model.njnt)}
        self._joints = {
            side: (
                np.array([[address[f"{side}_{name}{i}"] for i in range(3)] for name in _FINGERS]),
                np.array([address[f"{side}_thumb{i}"] for i in range(3)]),
            )
            for side in SIDES
        }
        self._depth = np.array([_OWN_DEPTH[name.rsplit("_", 1)[1]] for name in JOINT_NAMES])
        self._own = np.stack([self._own_geoms(name) for name in JOINT_NAMES])
        self._camera_id = model.camera("head").id

    def _own_geoms(self, joint: str) -> np.ndarray:
        """bool [geoms]: what belongs to a joint and does not hide it: its finger and palm, for the wrist also the sleeve."""
        model, (side, part) = self.model, joint.split("_", 1)
        body = model.site_bodyid[model.site(joint).id]
        own = {model.body(f"{side}_hand").id} | ({model.body(f"{side}_arm").id} if part == "wrist" else set())
        if part not in ("wrist", "palm"):
            first = model.site_bodyid[model.site(f"{side}_{part.split('_')[0]}_base").id]
            own |= {first, first + 1, first + 2}  # the three phalanges are numbered in a row
            assert body in own
        return np.isin(model.geom_bodyid, list(own))

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the renderer's memory and its GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # --- placing ---

    def place(self, body: str, position: np.ndarray, rotation: np.ndarray | None = None) -> None:
        """Put a movable body ("cube_red", "ball", "head", ...) at `position` [3] with `rotation` [3, 3] (identity if None)."""
        k = self._mocap[body]
        self.data.mocap_pos[k] = position
        mujoco.mju_mat2Quat(self.data.mocap_quat[k], (np.eye(3) if rotation is None else rotation).ravel())

    def pose_hand(self, side: str, position: np.ndarray, rotation: np.ndarray, grip: float, elbow: np.ndarray) -> None:
        """Put a hand's wrist at `position` with `rotation` (hand frame in world), close it by `grip` 0..1, aim the sleeve at `elbow`."""
        self.place(f"{side}_hand", position, rotation)
        self._curl(side, grip)
        z = (position - elbow) / np.linalg.norm(position - elbow)
        flat = float(np.hypot(z[0], z[1]))  # the sleeve is round, any frame around its axis will do
        x = np.array([-z[1], z[0], 0.0]) / flat
        y = np.array([-z[2] * x[1], z[2] * x[0], flat])
        self.place(f"{side}_arm", position, np.stack([x, y, z], 1))

    def _curl(self, side: str, grip: float) -> None:
        qpos, (fingers, thumb) = self.data.qpos, self._joints[side]
        for row, (_, _, _, extra) in zip(fingers, _FINGERS.values(), strict=True):
            qpos[row] = _FINGER_OPEN + (_FINGER_CLOSED - _FINGER_OPEN) * grip + extra * _EXTRA
        direction = _THUMB_OPEN + (_THUMB_CLOSED - _THUMB_OPEN) * grip
        qpos[thumb[0] : thumb[0] + 4] = _from_z(direction * [1.0 if side == "right" else -1.0, 1.0, 1.0])
        qpos[thumb[1:]] = -0.15 - 0.1 * grip, -0.1 - 0.2 * grip

    def lamp(self, side: str, rgb: RGB | None) -> None:
        """Light the lamp at a tray in a colour, or switch it off with None. A lit lamp shines whatever the room light is."""
        material = self.model.material(f"lamp_{side}")
        material.rgba[:3] = self.look.lamp_off if rgb is None else rgb
        material.emission[:] = 0.0 if rgb is None else 1.0

    def update(self) -> None:
        """Compute where everything is after placing."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    # --- reading ---

    def pinch(self, side: str, grip: float) -> tuple[np.ndarray, np.ndarray]:
        """Thumb tip and mean of index and middle tip in the hand frame, metres, for a hand closed by `grip`."""
        self.place(f"{side}_hand", np.zeros(3))
        self._curl(side, grip)
        self.update()
        at = {f: self.data.site(f"{side}_{f}_tip").xpos.copy() for f in ("thumb", "index", "middle")}
        return at["thumb"], (at["index"] + at["middle"]) / 2

    def grasp(self, side: str) -> tuple[float, np.ndarray, np.ndarray]:
        """How the hand holds a cube of this scene: grip, centre of the cube and direction thumb to fingers, both in the hand frame."""
        gap = 2 * self.look.cube_half + (_FINGER_RADIUS + _THUMB_RADIUS) * self.look.hand_scale
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            thumb, fingers = self.pinch(side, middle)
            low, high = (middle, high) if np.linalg.norm(fingers - thumb) > gap else (low, middle)
        thumb, fingers = self.pinch(side, low)
        return low, (thumb + fingers) / 2, (fingers - thumb) / np.linalg.norm(fingers - thumb)

    def position(self, body: str) -> np.ndarray:
        """Where a movable body is, float64 [3]."""
        return np.asarray(self.data.mocap_pos[self._mocap[body]].copy())

    def joints(self) -> np.ndarray:
        """World positions of the joints in JOINT_NAMES order, float32 [24, 3], metres."""
        return self.data.site_xpos[self._sites].astype(np.float32)

    def camera_pose(self) -> np.ndarray:
        """World from camera optical frame, float64 [4, 4]. MuJoCo cameras look along -z with y up; optical ones along z, y down."""
        pose = np.eye(4)
        pose[:3, :3] = self.data.cam_xmat[self._camera_id].reshape(3, 3) * [1.0, -1.0, -1.0]
        pose[:3, 3] = self.data.cam_xpos[self._camera_id]
        return pose

    def visible(self) -> np.ndarray:
        """bool [24]: the joint lies in the image and nothing but its own finger or palm is in front of it."""
        pose, points = self.camera_pose(), self.data.site_xpos[self._sites]
        with np.errstate(invalid="ignore"):
            pixel = self.camera.project((points - pose[:3, 3]) @ pose[:3, :3])
            inside = np.all((pixel >= -0.5) & (pixel < (self.camera.width - 0.5, self.camera.height - 0.5)), axis=-1)
        rays = points - pose[:3, 3]
        distance = np.linalg.norm(rays, axis=-1)
        geom = np.zeros(1, np.int32)
        for k in np.flatnonzero(inside):
            first = mujoco.mj_ray(self.model, self.data, pose[:3, 3], rays[k] / distance[k], None, 1, -1, geom)
            inside[k] = first > distance[k] - (self._depth[k] if self._own[k, geom[0]] else _MARGIN)
        return inside

    def render(self) -> np.ndarray:
        """The head camera's image, uint8 RGB [height, width, 3]."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, self.camera.height, self.camera.width)
        self._renderer.update_scene(self.data, "head")
        return np.asarray(self._renderer.render().copy())

    def segment(self) -> np.ndarray:
        """What each pixel shows: body name as an object array [height, width] ("world" for static things, "" for nothing)."""
        self.render()
        assert self._renderer is not None
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(self.data, "head")
        ids = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        names = np.array(
            [self.model.body(self.model.body_rootid[b]).name for b in self.model.geom_bodyid] + [""], object
        )
        return np.asarray(names[np.where(ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), ids[..., 0], -1)])
