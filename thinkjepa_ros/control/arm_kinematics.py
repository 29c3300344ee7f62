"""From the tip's velocity to the joints': differential inverse kinematics of a URDF, by MuJoCo's Jacobian.

For robots that take JointTrajectory. Damped least squares with damping near singular poses only (Nakamura and Hanafusa
1986), then scaled down as a whole to the limits of the joints, so that the tip keeps its direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from .limits import Command

_MOVING = ("revolute", "continuous", "prismatic")
_SINGULAR = 0.05  # smallest singular value of the Jacobian (m or 1 per rad) below which it is damped
_DAMPING = 0.05  # at a singular value of 0
_MISSED = 0.02  # share of the wanted twist that may be lost to damping without a word


class ArmError(ValueError):
    """The URDF cannot be used; the words say why and what to do."""


class JointReason(str, Enum):
    """Why the joints do not do all of what was wanted; the value is the word for status messages."""

    NOT_FINITE = "not finite"
    SINGULAR = "singular pose"
    JOINT_VELOCITY = "joint velocity"
    JOINT_LIMIT = "joint limit"


@dataclass(frozen=True)
class JointMotion:
    """velocities float64 [n] (rad/s, m/s); share: by how much they were scaled down, 1 = not at all."""

    velocities: np.ndarray
    share: float
    reasons: tuple[JointReason, ...]


@dataclass(frozen=True)
class JointPoint:
    """A point of a JointTrajectory: age_s after its start; positions and velocities float64 [n]."""

    age_s: float
    positions: np.ndarray
    velocities: np.ndarray


@dataclass(frozen=True)
class JointPath:
    """A JointTrajectory that ends at rest, and why the tip does not go all of the wanted way, if so."""

    points: tuple[JointPoint, ...]
    reasons: tuple[JointReason, ...]


class Arm:
    """The chain of joints from link `base` (default: the root) to link `tip`.

    joints: their names, base first; all arrays [n] are in this order. lower, upper: limits (rad, m), infinite for
    continuous joints. max_velocity: rad/s, m/s. Raises ArmError.
    """

    def __init__(self, urdf: str, tip: str, base: str | None = None) -> None:
        chain = _chain(urdf, tip, base)
        moving = [joint for joint in chain if joint.get("type") in _MOVING]
        if not moving:
            raise ArmError(
                f"no joint moves link {tip!r} against {base or 'the root'!r}; name the link at the arm's end"
            )
        self.tip, self.joints = tip, tuple(joint.get("name", "") for joint in moving)
        limits = np.array([_limits(joint) for joint in moving])
        self.lower, self.upper, self.max_velocity = limits.T
        self._build(chain)

    def _build(self, chain: list[Element]) -> None:
        try:
            import mujoco
        except ImportError:
            raise ArmError("joint trajectories need MuJoCo, which is not installed: pip install mujoco") from None
        spec = mujoco.MjSpec()
        body = spec.worldbody
        for joint in chain:
            quat = np.zeros(4)
            mujoco.mju_euler2Quat(quat, _triple(joint, "origin", "rpy", (0, 0, 0)), "XYZ")  # about fixed axes
            body = body.add_body(pos=_triple(joint, "origin", "xyz", (0, 0, 0)), quat=quat)
            body.explicitinertial, body.mass, body.inertia = True, 1.0, [1.0, 1.0, 1.0]  # it only has to be there
            if joint.get("type") in _MOVING:
                kind = mujoco.mjtJoint.mjJNT_SLIDE if joint.get("type") == "prismatic" else mujoco.mjtJoint.mjJNT_HINGE
                body.add_joint(type=kind, axis=_triple(joint, "axis", "xyz", (1, 0, 0)))
        try:
            self._model = spec.compile()
        except ValueError as error:
            words = " ".join(str(error).split())
            raise ArmError(f"the URDF cannot be used as an arm ({words}); check it with check_urdf") from None
        self._mujoco: Any = mujoco
        self._data, self._tip = mujoco.MjData(self._model), self._model.nbody - 1

    def pose(self, positions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Point [3] (m) and rotation [3, 3] of the tip in the base link at these joint positions [n]."""
        self._data.qpos[:] = self._checked(positions)
        self._mujoco.mj_kinematics(self._model, self._data)
        return self._data.xpos[self._tip].copy(), self._data.xmat[self._tip].reshape(3, 3).copy()

    def jacobian(self, positions: Any) -> np.ndarray:
        """[6, n]: the tip's linear (m) and angular (rad) velocity in the base link per joint velocity."""
        self.pose(positions)
        self._mujoco.mj_comPos(self._model, self._data)
        out = np.zeros((6, len(self.joints)))
        self._mujoco.mj_jacBody(self._model, self._data, out[:3], out[3:], self._tip)
        return out

    def velocities(
        self, positions: Any, linear: Any, angular: Any = (0.0, 0.0, 0.0), going_s: float = 0.25
    ) -> JointMotion:
        """Joint velocities that move the tip with this twist (m/s, rad/s, in the base link), as far as they may.

        going_s: for how long they may go on; no joint leaves its limits in that time. What is not finite or of
        another length gives rest, never an exception.
        """
        rest = np.zeros(len(self.joints))
        try:
            twist = np.concatenate([np.asarray(linear, np.float64), np.asarray(angular, np.float64)])
            jacobian, at = self.jacobian(positions), np.asarray(positions, np.float64)
        except (TypeError, ValueError):
            return JointMotion(rest, 0.0, (JointReason.NOT_FINITE,))
        if twist.shape != (6,) or not np.isfinite(twist).all() or not going_s > 0:
            return JointMotion(rest, 0.0, (JointReason.NOT_FINITE,))
        size = float(np.abs(twist).max())
        if size == 0.0:
            return JointMotion(rest, 1.0, ())
        unit, reasons = twist / size, []  # huge wishes must not overflow
        u, s, vt = np.linalg.svd(jacobian, full_matrices=False)
        damping = _DAMPING**2 * max(0.0, 1.0 - (s[-1] / _SINGULAR) ** 2)
        # with little or no damping a singular value of 0 divides 0 by 0
        wanted = vt.T @ (np.divide(s, s * s + damping, where=s > 1e-12, out=np.zeros_like(s)) * (u.T @ unit))
        if damping > 0 and np.linalg.norm(jacobian @ wanted - unit) > _MISSED * np.linalg.norm(unit):
            reasons.append(JointReason.SINGULAR)
        speed = np.maximum(np.abs(wanted), 1e-300)
        fast = float((self.max_velocity / speed).min())
        room = np.where(wanted > 0, self.upper - at, at - self.lower)
        far = float(np.where(np.abs(wanted) > 1e-9, np.maximum(room, 0.0) / (speed * going_s), np.inf).min())
        if fast < min(size, far):
            reasons.append(JointReason.JOINT_VELOCITY)
        elif far < size:
            reasons.append(JointReason.JOINT_LIMIT)
        allowed = min(size, fast, far)
        return JointMotion(wanted * allowed, allowed / size, tuple(reasons))

    def trajectory(self, positions: Any, command: Command, step_s: float = 0.05) -> JointPath:
        """The command as points every step_s, from joint positions [n] on; the tip keeps its orientation.

        The last point is at rest, also where limits cut the way short. ValueError if `positions` are no n numbers.
        """
        at = np.array(self._checked(positions))
        _, upright = self.pose(at)
        end = command.knots[-1]
        ages = np.linspace(0.0, end, 1 + max(1, math.ceil(end / step_s - 1e-9)))
        points, reasons = [], set[JointReason]()
        for begin, age in pairwise(ages):
            lasts = float(age - begin)
            if lasts > 0:
                moved = np.subtract(command.displacement_at(age), command.displacement_at(begin))
                back = _rotation_vector(upright @ self.pose(at)[1].T)
                motion = self.velocities(at, moved / lasts, back / lasts, going_s=max(end - begin, lasts))
                at = np.clip(at + motion.velocities * lasts, np.minimum(at, self.lower), np.maximum(at, self.upper))
                now = self.velocities(at, command.velocity_at(age), going_s=max(end - age, lasts))
                reasons |= set(motion.reasons)
                points.append(JointPoint(float(age), at, now.velocities))
        rest = np.zeros(len(self.joints))
        last = JointPoint(float(end) if end > 0 else step_s, at, rest)
        return JointPath((*points[:-1], last), tuple(reason for reason in JointReason if reason in reasons))

    def _checked(self, positions: Any) -> np.ndarray:
        values = np.asarray(positions, np.float64)
        if values.shape != (len(self.joints),) or not np.isfinite(values).all():
            raise ValueError(f"joint positions must be {len(self.joints)} finite numbers ({', '.join(self.joints)})")
        return values


def _chain(urdf: str, tip: str, base: str | None) -> list[Element]:
    """The joints from `base` to `tip`, base first."""
    try:
        robot = ElementTree.fromstring(urdf)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ArmError(f"the robot description is not readable as XML ({error}); give a URDF") from None
    if robot.tag != "robot":
        raise ArmError(f"the robot description is no URDF: it begins with <{robot.tag}> and not with <robot>")
    links = [link.get("name", "") for link in robot.findall("link")]
    for link in (tip, base):
        if link is not None and link not in links:
            raise ArmError(f"the URDF has no link {link!r}; its links: {', '.join(links)}")
    above = {_link(joint, "child"): joint for joint in robot.findall("joint")}
    out: list[Element] = []
    link = tip
    while link in above and link != base:
        joint = above[link]
        if joint in out:
            raise ArmError(f"the joints of the URDF form a circle through link {link!r}; a URDF is a tree")
        if joint.get("type") not in (*_MOVING, "fixed"):
            raise ArmError(f"joint {joint.get('name')!r} is {joint.get('type')!r}; choose a base below it")
        if joint.find("mimic") is not None:
            raise ArmError(f"joint {joint.get('name')!r} mimics another one; choose a tip above it")
        out.insert(0, joint)
        link = _link(joint, "parent")
    if base is not None and link != base:
        raise ArmError(f"link {tip!r} does not hang below link {base!r}; its root is {link!r}")
    return out


def _limits(joint: Element) -> tuple[float, float, float]:
    """Lowest and highest position and the greatest speed of a joint."""
    name, limit = joint.get("name"), joint.find("limit")
    try:
        given = {} if limit is None else {key: float(value) for key, value in limit.attrib.items()}
    except ValueError:
        raise ArmError(f"a limit of joint {name!r} is no number; mend the URDF") from None
    if not 0 < given.get("velocity", 0.0) < math.inf:
        raise ArmError(f'joint {name!r} has no velocity limit; give it one in the URDF: <limit velocity="..."/>')
    if joint.get("type") == "continuous":
        return -math.inf, math.inf, given["velocity"]
    lower, upper = given.get("lower", 0.0), given.get("upper", 0.0)  # as urdfdom reads them
    if not -math.inf < lower < upper < math.inf:
        raise ArmError(f"joint {name!r} must have a lower limit below its upper one, not {lower:g} and {upper:g}")
    return lower, upper, given["velocity"]


def _triple(joint: Element, tag: str, key: str, default: tuple[float, float, float]) -> np.ndarray:
    part = joint.find(tag)
    try:
        values = np.array(default if part is None or part.get(key) is None else part.get(key, "").split(), np.float64)
    except ValueError:
        values = np.array([])
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ArmError(f"{key} of <{tag}> of joint {joint.get('name')!r} is not three numbers; mend the URDF")
    return values


def _link(joint: Element, tag: str) -> str:
    part = joint.find(tag)
    return "" if part is None else part.get("link", "")


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times sine of the angle, [3]: the angle itself while it is small."""
    r = rotation
    return 0.5 * np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
