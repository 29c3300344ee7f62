"""What the robot may do, and what a command is: a velocity that is held for a moment and then goes to 0 by itself.

So a controller that dies in motion leaves the robot at rest. `guard.Guard` is what holds commands to the limits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import numpy as np

Vector = tuple[float, float, float]

REST: Vector = (0.0, 0.0, 0.0)
_LONG_NS = 10**12  # longer than any profile: enough to know that the last command is over


class Reason(str, Enum):
    """Why the command that left is not the one that was wanted; the value is the word for status messages."""

    STOPPED = "stopped"  # the caller said so
    NOT_FINITE = "not finite"  # NaN, infinity or no number where the wanted motion should be
    STATE = "state"  # nobody knows where the point is now
    CLOCK = "clock"  # time did not advance, or is no time
    VELOCITY = "velocity"
    STEP = "step"
    ACCELERATION = "acceleration"
    WORKSPACE = "workspace"
    HARD_STOP = "hard stop"  # the workspace demanded to brake harder than max_acceleration_mps2
    CLOSEDNESS = "closedness"
    CLOSEDNESS_RATE = "closedness rate"


@dataclass(frozen=True)
class Limits:
    """What the robot may do. Lengths in metres, times in seconds, in base_frame. Raises ValueError with the remedy.

    workspace_min_m, workspace_max_m: corners of the box in which the point between the finger tips must stay.
    max_axis_velocity_mps: along each axis. max_speed_mps, max_acceleration_mps2: of the whole vector.
    max_step_m: what one command may move the point in all, until it rests by itself.
    return_speed_mps: outside the box, on the way back.
    closedness_min, closedness_max: of the gripper; max_closedness_rate: per second.
    period_s: time between two commands; a later one may not change the velocity by more than an earlier one might.
    lifetime_s: how long a velocity is held, and the longest timeout that a receiver of twists may have.
    stop_timeout_s: after this time any command has ended at rest.
    arm_lag_s: how far the arm is behind its commands; what was commanded in that time is still to come.
    """

    workspace_min_m: Vector
    workspace_max_m: Vector
    max_axis_velocity_mps: float = 0.3
    max_speed_mps: float = 0.5
    max_acceleration_mps2: float = 2.5
    max_step_m: float = 0.2
    return_speed_mps: float = 0.05
    closedness_min: float = 0.0
    closedness_max: float = 1.0
    max_closedness_rate: float = 5.0
    period_s: float = 0.05
    lifetime_s: float = 0.25
    stop_timeout_s: float = 0.5
    arm_lag_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workspace_min_m", "workspace_max_m"):
            corner = numbers(getattr(self, name), 3)
            if corner is None:
                raise ValueError(f"{name} must be three finite numbers in metres, not {getattr(self, name)!r}")
            object.__setattr__(self, name, corner)
        for low, high, axis in zip(self.workspace_min_m, self.workspace_max_m, "xyz", strict=True):
            if not low < high:
                raise ValueError(f"workspace_max_m must lie above workspace_min_m in {axis}: {high:g} is not > {low:g}")
        for field in fields(self)[2:]:
            value = numbers([getattr(self, field.name)], 1)
            zero = field.name in ("closedness_min", "closedness_max", "arm_lag_s")
            if value is None or value[0] < 0 or (value[0] == 0 and not zero):
                kind = "a finite number, at least 0" if zero else "a finite number above 0"
                raise ValueError(f"{field.name} must be {kind}, not {getattr(self, field.name)!r}")
            object.__setattr__(self, field.name, value[0])
        if not self.closedness_min < self.closedness_max <= 1:
            raise ValueError(
                f"closedness_min and closedness_max must be 0 <= min < max <= 1, not {self.closedness_min:g} and "
                f"{self.closedness_max:g}"
            )
        if self.return_speed_mps > self.max_speed_mps:
            raise ValueError(f"return_speed_mps must not exceed max_speed_mps ({self.max_speed_mps:g}); lower it")
        if self.period_s > self.lifetime_s:
            raise ValueError(
                f"lifetime_s {self.lifetime_s:g} ends before the next command comes after period_s {self.period_s:g}; "
                "raise it above period_s"
            )
        if self.stop_timeout_s <= self.lifetime_s:
            raise ValueError(f"stop_timeout_s must be longer than lifetime_s ({self.lifetime_s:g}); raise it")
        in_time = self.max_acceleration_mps2 * (self.stop_timeout_s - self.lifetime_s)
        before_wall = 2 * self.max_acceleration_mps2 * self.lifetime_s
        if self.max_speed_mps > min(in_time, before_wall):
            needs = "stop_timeout_s - lifetime_s" if in_time < before_wall else "lifetime_s"
            raise ValueError(
                f"max_speed_mps {self.max_speed_mps:g} cannot be stopped in time: at most "
                f"{min(in_time, before_wall):g} with this {needs} and max_acceleration_mps2; change one of them"
            )

    @property
    def reach_s(self) -> float:
        """K of guard.py: metres that a command moves the point until it rests, per m/s, at most."""
        return self.lifetime_s + self.max_speed_mps / (2 * self.max_acceleration_mps2)

    @property
    def step_speed_mps(self) -> float:
        """The speed at which a command moves the point by max_step_m: v lifetime + v^2 / 2a = step, solved for v."""
        a, hold = self.max_acceleration_mps2, self.lifetime_s
        return a * (math.sqrt(hold * hold + 2 * self.max_step_m / a) - hold)


@dataclass(frozen=True)
class State:
    """Where the robot is: point [3] between the finger tips in base_frame (m), closedness 0 ... 1.

    stamp_ns: when that was measured, on the clock that the guard is given the time of.
    """

    point: Any
    closedness: Any
    stamp_ns: int


@dataclass(frozen=True)
class Command:
    """A velocity that is held for hold_s from stamp_ns on and then goes to 0 along a straight line in ramp_s.

    velocity: m/s in base_frame. closedness: the gripper's target, None where none was ever known (leave it alone).
    As a stream of TwistStamped: send `velocity`; the receiver's timeout must not exceed Limits.lifetime_s.
    As a JointTrajectory: points at the ages in `knots`, the last one at rest.
    """

    velocity: Vector
    closedness: float | None
    stamp_ns: int
    hold_s: float
    ramp_s: float
    reasons: tuple[Reason, ...] = ()

    @property
    def knots(self) -> tuple[float, ...]:
        """Ages in seconds at which the velocity begins to fall and at which it is 0; only (0,) for rest."""
        return (self.hold_s, self.hold_s + self.ramp_s) if self.ramp_s > 0 else (0.0,)

    def velocity_at(self, age_s: float) -> Vector:
        """What this command asks for `age_s` seconds after it left."""
        if age_s <= self.hold_s:
            return self.velocity
        if age_s >= self.hold_s + self.ramp_s:
            return REST
        return times(self.velocity, max(0.0, 1.0 - (age_s - self.hold_s) / self.ramp_s))

    def displacement_at(self, age_s: float) -> Vector:
        """How far this command has moved the point `age_s` seconds after it left, in metres."""
        held = min(max(age_s, 0.0), self.hold_s)
        if self.ramp_s > 0:
            x = min(max(age_s - self.hold_s, 0.0), self.ramp_s)
            held += x - x * x / (2 * self.ramp_s)
        return times(self.velocity, held)


def numbers(value: Any, count: int) -> Any:
    """`count` finite floats, or None for whatever is not that."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.shape != (count,):
            return None
        out = tuple(array.astype(np.float64).tolist())
    except Exception:  # anything may be handed over, with an __array__ of its own: it is no number, that is all
        return None
    return out if all(map(math.isfinite, out)) else None


def integer(value: Any) -> int | None:
    try:
        return operator.index(value)
    except Exception:  # see numbers
        return None


def seconds(ns: int) -> float:
    return max(-_LONG_NS, min(ns, _LONG_NS)) * 1e-9


def each(f: Callable[..., float], *vectors: Vector) -> Vector:
    x, y, z = map(f, *vectors)
    return x, y, z


def times(v: Vector, factor: float) -> Vector:
    return v[0] * factor, v[1] * factor, v[2] * factor


def shortened(v: Vector, longest: float) -> Vector:
    """`v`, or the vector of length `longest` in its direction if it is longer."""
    length = math.hypot(*v)
    return v if length <= longest else times(v, longest / length)
