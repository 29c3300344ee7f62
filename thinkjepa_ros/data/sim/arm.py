"""The robot of the workcell: a six-joint arm with a parallel gripper, made of primitives; its MJCF and its URDF.

`LINKS` is the one table that both are written from. With all joints at 0 every link's frame is parallel to the world's:
the upper arm stands upright, the forearm points at the camera (-y), the gripper points down. Metres, rad, kilogrammes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkjepa_ros.data.sim.mjcf import RGB, tag

XYZ = tuple[float, float, float]

#: Frame of everything that is said about the robot: the world of the scene, see mjcf.py.
BASE_FRAME = "base_link"
TOOL = "tool"  # the point between the finger tips
FINGER_TRAVEL = 0.045  # of one finger; the opening is twice that
GRIP_FORCE = 12.0  # newtons, most of one finger
#: Joint angles from which the way to any place of the workspace is short: pan, lift, elbow, roll, pitch, roll.
HOME = (0.0, -0.2, 0.9, 0.0, -0.7, 0.0)


@dataclass(frozen=True)
class Shape:
    """A capsule from `a` to `b` with radius `size[0]`, or a box with centre `a` and half edges `size`."""

    paint: str  # a field of Paint
    a: XYZ
    size: tuple[float, ...]
    b: XYZ | None = None


@dataclass(frozen=True)
class Link:
    """A link, the joint that carries it (none: fixed), and what it looks like. `origin` lies in the parent's frame."""

    name: str
    parent: str
    origin: XYZ
    joint: str = ""
    kind: str = "fixed"  # or hinge, slide
    axis: XYZ = (0.0, 0.0, 1.0)
    range: tuple[float, float] = (0.0, 0.0)
    force: float = 0.0  # most that the joint's servo gives, N m or N
    stiffness: float = 0.0  # of the servo, N m/rad or N/m
    mass: float = 0.5
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Paint:
    """Colours of the robot, RGB in 0..1."""

    cover: RGB
    joint: RGB
    hand: RGB
    finger: RGB


def _finger(side: str, sign: float) -> Link:
    body = Shape("finger", (sign * 0.010, 0.0, -0.040), (0.010, 0.016, 0.040))
    return Link(f"{side}_finger", "hand", (0.0, 0.0, -0.038), f"{side}_finger_joint", "slide", (sign, 0.0, 0.0),
                (0.0, FINGER_TRAVEL), GRIP_FORCE, 700.0, 0.08, (body,))  # fmt: skip


#: Every link after the one that carries it.
LINKS = (
    Link("arm_base", BASE_FRAME, (0.0, 0.84, 0.0), shapes=(Shape("joint", (0, 0, 0.0), (0.075,), (0, 0, 0.14)),)),
    Link("shoulder", "arm_base", (0.0, 0.0, 0.14), "shoulder_pan", "hinge", (0, 0, 1), (-2.4, 2.4), 30.0, 4000.0, 2.0,
         (Shape("cover", (0, 0, 0.02), (0.062,), (0, 0, 0.12)),
          Shape("joint", (-0.07, 0, 0.14), (0.052,), (0.07, 0, 0.14)))),
    Link("upper_arm", "shoulder", (0.0, 0.0, 0.14), "shoulder_lift", "hinge", (1, 0, 0), (-1.6, 1.9), 30.0, 4000.0, 1.0,
         (Shape("cover", (0, 0, 0), (0.042,), (0, 0, 0.40)),)),
    Link("forearm", "upper_arm", (0.0, 0.0, 0.40), "elbow", "hinge", (1, 0, 0), (-1.5, 2.6), 30.0, 4000.0, 0.5,
         (Shape("joint", (-0.045, 0, 0), (0.045,), (0.045, 0, 0)), Shape("cover", (0, 0, 0), (0.036,), (0, -0.20, 0)))),
    Link("lower_forearm", "forearm", (0.0, -0.20, 0.0), "forearm_roll", "hinge", (0, 1, 0), (-2.6, 2.6), 12.0, 1000.0,
         0.3, (Shape("cover", (0, 0, 0), (0.033,), (0, -0.20, 0)),)),
    Link("wrist", "lower_forearm", (0.0, -0.20, 0.0), "wrist_pitch", "hinge", (1, 0, 0), (-2.8, 2.2), 12.0, 1000.0, 0.2,
         (Shape("joint", (-0.02, 0, 0), (0.028,), (0.02, 0, 0)), Shape("cover", (0, 0, 0), (0.024,), (0, 0, -0.05)))),
    Link("hand", "wrist", (0.0, 0.0, -0.06), "wrist_roll", "hinge", (0, 0, 1), (-2.8, 2.8), 8.0, 600.0, 0.3,
         (Shape("hand", (0, 0, -0.02), (0.068, 0.022, 0.018)),)),
    _finger("left", -1.0),
    _finger("right", 1.0),
    Link(TOOL, "hand", (0.0, 0.0, -0.118)),
)  # fmt: skip

ARM_JOINTS = tuple(link.joint for link in LINKS if link.kind == "hinge")
FINGER_JOINTS = tuple(link.joint for link in LINKS if link.kind == "slide")

#: Points that episodes record as joints: (name, link, place in the link's frame).
KEYPOINTS: tuple[tuple[str, str, XYZ], ...] = (
    ("gripper_wrist", "wrist", (0.0, 0.0, 0.0)),
    ("gripper_palm", "hand", (0.0, 0.0, -0.02)),
    ("left_finger_base", "left_finger", (-0.010, 0.0, 0.0)),
    ("right_finger_base", "right_finger", (0.010, 0.0, 0.0)),
    ("left_finger_tip", "left_finger", (-0.010, 0.0, -0.08)),
    ("right_finger_tip", "right_finger", (0.010, 0.0, -0.08)),
)


def _children(name: str) -> list[Link]:
    return [link for link in LINKS if link.parent == name]


def _geom(shape: Shape, mass: float, paint: Paint) -> str:
    colour: RGB = getattr(paint, shape.paint)
    more: dict[str, Any] = {"pos": shape.a} if shape.b is None else {"fromto": (*shape.a, *shape.b)}
    # The robot (2) touches the world (1), and not itself. Rubber fingers, or nothing could be held.
    more |= {"contype": "2", "conaffinity": "1"}
    if shape.paint == "finger":
        more |= {"friction": (1.5, 0.02, 0.001), "condim": "4"}
    kind = "box" if shape.b is None else "capsule"
    return tag("geom", type=kind, size=shape.size, mass=mass, rgba=(*colour, 1), **more)


def _site(name: str, at: XYZ) -> str:
    return tag("site", name=name, pos=at, size=0.004, group="5")  # group 5 is not drawn


def _body(link: Link, paint: Paint) -> str:
    if link.name == TOOL:
        return _site(TOOL, link.origin)
    parts = []
    if link.joint:
        armature = 0.02 if link.kind == "hinge" else 0.05
        parts.append(tag("joint", name=link.joint, type=link.kind, axis=link.axis, range=link.range, limited="true",
                         armature=armature, damping=0.5))  # fmt: skip
    parts += [_geom(shape, link.mass / len(link.shapes), paint) for shape in link.shapes]
    parts += [_site(name, at) for name, owner, at in KEYPOINTS if owner == link.name]
    parts += [_body(child, paint) for child in _children(link.name)]
    return tag("body", *parts, name=link.name, pos=link.origin, gravcomp="1")


def arm_body(paint: Paint) -> str:
    """The arm as a body of MuJoCo's world. The servos carry its weight (gravity compensation)."""
    return _body(LINKS[0], paint)


def arm_servos() -> str:
    """Position servos of all joints, and the gear that moves both fingers alike."""
    servos = [
        tag("position", name=link.joint, joint=link.joint, kp=link.stiffness, dampratio="1",
            forcerange=(-link.force, link.force))
        for link in LINKS if link.joint
    ]  # fmt: skip
    left, right = FINGER_JOINTS
    gear = tag("joint", joint1=right, joint2=left, polycoef=(0, 1, 0, 0, 0))
    return tag("actuator", *servos) + tag("equality", gear)


def urdf(name: str = "workcell_arm") -> str:
    """The arm as URDF, kinematics and looks; its root link is BASE_FRAME, the right finger mimics the left one."""
    links, joints = [tag("link", name=BASE_FRAME)], []
    kinds = {"hinge": "revolute", "slide": "prismatic", "fixed": "fixed"}
    for link in LINKS:
        links.append(tag("link", *(_urdf_shape(shape) for shape in link.shapes), name=link.name))
        inner = [tag("parent", link=link.parent), tag("child", link=link.name), tag("origin", xyz=link.origin)]
        if link.joint:
            low, high = link.range
            inner += [tag("axis", xyz=link.axis), tag("limit", lower=low, upper=high, effort=link.force, velocity=2.0)]
        if link.joint == FINGER_JOINTS[1]:
            inner.append(tag("mimic", joint=FINGER_JOINTS[0]))
        joints.append(tag("joint", *inner, name=link.joint or f"{link.name}_fixed", type=kinds[link.kind]))
    return tag("robot", *links, *joints, name=name)


def _urdf_shape(shape: Shape) -> str:
    """URDF has no capsules: a cylinder stands for one. Those of the table lie along an axis of their link."""
    where: dict[str, Any]
    if shape.b is None:
        where = {"xyz": shape.a}
        body = tag("box", size=2 * np.array(shape.size))
    else:
        a, b = np.array(shape.a), np.array(shape.b)
        along = np.abs(b - a)
        turn = (np.pi / 2 * float(along[1] > 0), np.pi / 2 * float(along[0] > 0), 0.0)
        where = {"xyz": (a + b) / 2, "rpy": turn}
        body = tag("cylinder", radius=shape.size[0], length=float(along.sum()))
    return "".join(tag(kind, tag("origin", **where), tag("geometry", body)) for kind in ("visual", "collision"))
