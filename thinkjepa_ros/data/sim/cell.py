"""The workcell as MuJoCo XML: the table of cue-reach with an arm behind it, and contacts in place of playback."""

from __future__ import annotations

from thinkjepa_ros.data.sim.arm import Paint, arm_body, arm_servos
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, Look, furniture, head, materials, quality, room, sun, tag

TIMESTEP_S = 0.002
_CUBE_DENSITY = 500.0  # kg/m3, as wood


def cell_mjcf(look: Look, paint: Paint) -> str:
    """The scene of a task. Nothing is welded: a cube is held by the friction of two fingers, or falls."""
    table = tag("geom", type="box", pos=(0, 0.35, -0.02), size=(0.7, 0.6, 0.02), material="table")
    mass = _CUBE_DENSITY * (2 * look.cube_half) ** 3
    cubes = [
        tag(
            "body",
            tag("freejoint", name=f"cube_{name}"),
            tag("geom", type="box", size=[look.cube_half] * 3, rgba=(*rgb, 1), mass=mass, conaffinity="3", condim="4",
                friction=(0.8, 0.01, 0.001)),
            name=f"cube_{name}",
        )
        for name, rgb in zip(CUBE_COLOURS, look.cube_rgb, strict=True)
    ]  # fmt: skip
    world = tag("worldbody", sun(look), table, *room(look), *furniture(look), *cubes, arm_body(paint), head())
    option = tag("option", timestep=TIMESTEP_S, integrator="implicitfast", cone="elliptic", impratio=10.0)
    # A quarter of the usual shadow map on less than the usual field: as sharp, and a frame costs 4 ms in place of 6.
    visual = quality(look, shadow=256, shadowscale=0.35)
    return tag("mujoco", tag("compiler", angle="radian"), option, visual, materials(look), world, arm_servos())
