"""What a simulated arm is told, checked: a message that no arm should follow becomes a CommandError with a reason.

Reasons are words for counters (`~/status`): not_finite, too_fast, wrong_frame, wrong_length, wrong_joints, times,
out_of_range, stale, future_stamp, too_long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float32
from trajectory_msgs.msg import JointTrajectory

from ..control.arm_kinematics import Arm
from ..data.sim.arm import ARM_JOINTS, BASE_FRAME, FINGER_JOINTS, FINGER_TRAVEL, TOOL, urdf
from .messages import NS, stamp_ns

#: More is a mistake and refused; what lies between this and what the arm can do is held to the latter. m/s.
MOST_SPEED = 1.0
MOST_POINTS, MOST_SECONDS = 1000, 60.0
_SLACK = 1e-3  # rad or m by which a joint may be outside of its range: states are measured


class CommandError(ValueError):
    """A command that is not followed. reason: the word that it is counted under."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(frozen=True)
class ToolPath:
    """Where the tool has to be: points float64 [n, 3] in metres at ages_s [n], ascending from 0. It ends at rest.

    closedness: [n], or None where the fingers are not told.
    """

    ages_s: np.ndarray
    points: np.ndarray
    closedness: np.ndarray | None

    @property
    def length_s(self) -> float:
        return float(self.ages_s[-1])

    def at(self, age_s: float) -> np.ndarray:
        """Where the tool has to be then [3]."""
        return np.array([np.interp(age_s, self.ages_s, self.points[:, k]) for k in range(3)])

    def closed_at(self, age_s: float) -> float | None:
        return None if self.closedness is None else float(np.interp(age_s, self.ages_s, self.closedness))


def check_stamp(header: Any, now_ns: int, timeout_s: float, tolerance_s: float) -> None:
    """Raises CommandError for a command that was stamped too long ago, or in the future. A stamp of 0 means now."""
    stamp = stamp_ns(header.stamp)
    age_s = (now_ns - stamp) / NS
    if stamp and age_s > timeout_s:
        raise CommandError("stale", f"a command is {age_s:.2f} s old when it arrives, {timeout_s:g} s is the most")
    if stamp and -age_s > tolerance_s:
        raise CommandError("future_stamp", f"a command is stamped {-age_s:.2f} s in the future; are the clocks equal?")


def _check_frame(frame: str, wanted: str) -> None:
    if frame != wanted:
        raise CommandError("wrong_frame", f"header.frame_id is {frame!r}; give commands in {wanted!r}")


def velocity_of(message: TwistStamped, frame: str) -> np.ndarray:
    """The linear velocity [3] of a twist in m/s. The gripper always points down: turning is not followed, but must be
    made of numbers. Raises CommandError.
    """
    _check_frame(message.header.frame_id, frame)
    linear, angular = ([float(getattr(v, k)) for k in "xyz"] for v in (message.twist.linear, message.twist.angular))
    if not all(map(math.isfinite, [*linear, *angular])):
        raise CommandError("not_finite", f"a twist holds {linear} and {angular}, which are not all numbers")
    if max(map(abs, linear)) > MOST_SPEED:
        raise CommandError("too_fast", f"a twist asks for {max(map(abs, linear)):g} m/s; {MOST_SPEED:g} is the most")
    return np.array(linear)


def closedness_of(message: Float32) -> float:
    """0 (open) to 1 (closed). Raises CommandError."""
    value = float(message.data)
    if not math.isfinite(value):
        raise CommandError("not_finite", f"a gripper command is {value}, which is no number")
    if not 0.0 <= value <= 1.0:
        raise CommandError("out_of_range", f"a gripper command is {value:g}; it runs from 0 (open) to 1 (closed)")
    return value


class JointReader:
    """Makes tool paths of JointTrajectory messages: joint angles go through the kinematics of the arm."""

    def __init__(self) -> None:
        self._arm = Arm(urdf(), TOOL, BASE_FRAME)

    def path(self, message: JointTrajectory, frame: str, start: np.ndarray) -> ToolPath | None:
        """The path from `start` (float64 [3], where the tool is) through the points of `message`; None for a message
        without points, which means: stop. Raises CommandError.
        """
        if message.header.frame_id:
            _check_frame(message.header.frame_id, frame)
        if not message.points:
            return None
        if len(message.points) > MOST_POINTS:
            raise CommandError("too_long", f"a trajectory has {len(message.points)} points, {MOST_POINTS} is the most")
        order, fingers = self._order(list(message.joint_names))
        ages, rows = self._rows(message)
        points = np.array([self._tool(row[order]) for row in rows])
        closed = None
        if fingers:
            opening = rows[:, fingers].mean(1)
            if opening.min() < -_SLACK or opening.max() > FINGER_TRAVEL + _SLACK:
                raise CommandError("out_of_range", f"fingers go from 0 to {FINGER_TRAVEL} m, a trajectory goes beyond")
            closed = np.clip(1 - opening / FINGER_TRAVEL, 0.0, 1.0)
        if ages[0] > 0.0:  # from where the tool is now
            ages, points = np.concatenate([[0.0], ages]), np.concatenate([[start], points])
            closed = None if closed is None else np.concatenate([closed[:1], closed])
        else:
            points[0] = start
        speed = np.abs(np.diff(points, axis=0)).max(1) / np.diff(ages) if len(ages) > 1 else np.zeros(1)
        if speed.max() > MOST_SPEED:
            raise CommandError(
                "too_fast", f"a trajectory moves the tool at {speed.max():.2f} m/s; {MOST_SPEED:g} is the most"
            )
        return ToolPath(ages, points, closed)

    def _order(self, names: list[str]) -> tuple[list[int], list[int]]:
        """Columns of the arm's joints in the order of the kinematics, and those of the fingers."""
        known = {*ARM_JOINTS, *FINGER_JOINTS}
        if len(set(names)) != len(names) or not set(ARM_JOINTS) <= set(names) <= known:
            raise CommandError(
                "wrong_joints", f"a trajectory names {', '.join(names) or 'no joint'}; it has to name each of "
                f"{', '.join(ARM_JOINTS)} once, and may name {' and '.join(FINGER_JOINTS)}"
            )  # fmt: skip
        return [names.index(n) for n in self._arm.joints], [names.index(n) for n in FINGER_JOINTS if n in names]

    def _rows(self, message: JointTrajectory) -> tuple[np.ndarray, np.ndarray]:
        """Ages [n] in seconds and positions [n, joints]."""
        width = len(message.joint_names)
        lengths = {len(point.positions) for point in message.points}
        if lengths != {width}:
            raise CommandError(
                "wrong_length", f"{width} joints are named and a point has {min(lengths)} to {max(lengths)} positions"
            )
        rows = np.array([point.positions for point in message.points], np.float64)
        ages = np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points])
        if not np.isfinite(rows).all():
            raise CommandError("not_finite", "a trajectory holds positions that are no numbers")
        if ages[0] < 0 or (np.diff(ages) <= 0).any():
            raise CommandError("times", "time_from_start must ascend from point to point, from 0 or more on")
        if ages[-1] > MOST_SECONDS:
            raise CommandError("too_long", f"a trajectory lasts {ages[-1]:.1f} s, {MOST_SECONDS:g} s is the most")
        return ages, rows

    def _tool(self, angles: np.ndarray) -> np.ndarray:
        low, high = self._arm.lower - _SLACK, self._arm.upper + _SLACK
        if (angles < low).any() or (angles > high).any():
            name = self._arm.joints[int(np.argmax((angles < low) | (angles > high)))]
            raise CommandError("out_of_range", f"a trajectory takes {name} out of its range")
        return self._arm.pose(angles)[0]
