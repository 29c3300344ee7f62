"""An inspector that knows the limits of a robot and nothing of the guard's way to keep them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from thinkjepa_ros.control.limits import Command, Limits, Reason, State

FAULTS = {Reason.STOPPED, Reason.NOT_FINITE, Reason.STATE, Reason.CLOCK}
BOX = ((-0.4, 0.1, 0.0), (0.4, 0.7, 0.5))
LIMITS = Limits(*BOX)
MIDDLE = (0.0, 0.4, 0.25)
NS = 1_000_000_000


def speed_at(command: Command, age: float) -> float:
    """Share of the command's velocity that is left `age` seconds after it left: 1, then a straight line to 0."""
    if age <= command.hold_s:
        return 1.0
    return max(0.0, 1.0 - (age - command.hold_s) / command.ramp_s) if command.ramp_s > 0 else 0.0


def travelled(command: Command, start: float, end: float) -> tuple[float, ...]:
    """Metres per axis between two ages: the area under the velocity, by trapezoids between its corners."""
    corners = [a for a in (0.0, command.hold_s, command.hold_s + command.ramp_s) if start < a < end]
    share = sum(
        (b - a) * (speed_at(command, a) + speed_at(command, b)) / 2 for a, b in pairwise([start, *corners, end])
    )
    return tuple(v * share for v in command.velocity)


class Inspector:
    """Looks at every command that leaves and raises AssertionError for the first one outside the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.sent: list[Command] = []
        self.trusted_from: int | None = None

    def where(self, state: Any, now: int) -> list[tuple[float, ...]] | None:
        """Places at which the point may be now; None if the state does not tell."""
        if not isinstance(state, State) or not isinstance(state.stamp_ns, int):
            return None
        age = now - state.stamp_ns
        if (
            not finite(state.point, 3)
            or not finite([state.closedness], 1)
            or not 0 <= age <= self.limits.stop_timeout_s * 1e9 + 1
        ):
            return None
        since = state.stamp_ns - round(self.limits.arm_lag_s * NS)
        if self.trusted_from is not None and since < self.trusted_from:
            return None
        places = [tuple(float(x) for x in state.point)]
        for k, command in enumerate(self.sent):
            until = self.sent[k + 1].stamp_ns if k + 1 < len(self.sent) else now
            if until > since:
                start = max(0, since - command.stamp_ns)
                moved = travelled(command, start / NS, (until - command.stamp_ns) / NS)
                places.append(tuple(x + d for x, d in zip(places[-1], moved, strict=True)))
        return places

    def look(self, command: Command, wanted: Any, closedness: Any, state: Any, now: Any, stop: bool = False) -> None:
        limits, last, v = self.limits, self.sent[-1] if self.sent else None, command.velocity
        tiny = 1e-9
        amount = math.hypot(*v)
        assert len(v) == 3 and all(type(x) is float and math.isfinite(x) for x in v)
        assert math.isfinite(command.hold_s) and math.isfinite(command.ramp_s)
        # it ends at rest, in time, no faster than the arm can brake
        assert 0 <= command.hold_s <= limits.lifetime_s and command.ramp_s >= 0
        assert command.hold_s + command.ramp_s <= limits.stop_timeout_s + tiny
        assert amount <= limits.max_acceleration_mps2 * command.ramp_s + tiny
        assert all(x == 0 for x in command.velocity_at(command.hold_s + command.ramp_s + tiny))
        # velocity and step
        assert max(map(abs, v)) <= limits.max_axis_velocity_mps + tiny and amount <= limits.max_speed_mps + tiny
        travel = travelled(command, 0.0, 1e3)
        assert math.hypot(*travel) <= limits.max_step_m + tiny
        # acceleration
        clock = not isinstance(now, int) or (last is not None and now <= last.stamp_ns)
        assert clock == (Reason.CLOCK in command.reasons)
        since = 0.0 if clock or last is None else min(now - last.stamp_ns, 1000 * NS) / NS
        present = (0.0,) * 3 if last is None else tuple(x * speed_at(last, since) for x in last.velocity)
        between = min(since, limits.period_s) if last is not None and not clock else limits.period_s
        change = math.dist(v, present)
        shorter = all(min(0.0, u) - tiny <= x <= max(0.0, u) + tiny for x, u in zip(v, present, strict=True))
        held = limits.period_s if clock else 0.0 if last is None else min(since, last.hold_s)
        if Reason.HARD_STOP in command.reasons:
            assert shorter and Reason.WORKSPACE in command.reasons
        else:
            allowed = max(between if command.hold_s else 0.0, held if shorter else 0.0)
            assert change <= limits.max_acceleration_mps2 * allowed + 1e-8
        # nothing moves on when something is wrong
        places = None if clock else self.where(state, now)
        wrong = {
            Reason.STOPPED: stop,
            Reason.NOT_FINITE: not (finite(wanted, 3) and finite([closedness], 1)),
            Reason.CLOCK: clock,
        }
        assert all((reason in command.reasons) == bool(is_so) for reason, is_so in wrong.items())
        if not clock:
            assert (places is None) == (Reason.STATE in command.reasons)
        if FAULTS & set(command.reasons):
            assert shorter and command.hold_s == 0
        # workspace
        for place in places or []:
            outside = False
            for x, d, u, low, high in zip(
                place, travel, v, *(limits.workspace_min_m, limits.workspace_max_m), strict=True
            ):
                near = tiny * max(1.0, abs(x))
                outside |= x < low - near or x > high + near
                assert x + d <= high + near or u <= 0, "leaves the box at its upper side"
                assert x + d >= low - near or u >= 0, "leaves the box at its lower side"
            assert not outside or amount <= max(limits.return_speed_mps, math.hypot(*present)) + tiny
        # gripper
        before = self.sent[-1].closedness if self.sent else None
        c = command.closedness
        if c is not None:
            assert type(c) is float and limits.closedness_min <= c <= limits.closedness_max
        if before is not None:
            assert c is not None and abs(c - before) <= limits.max_closedness_rate * between + tiny
            assert c == before or not FAULTS & set(command.reasons)
        # without a reason nothing was changed
        if not command.reasons:
            assert v == tuple(float(x) for x in wanted) and c == float(closedness)
        self._remember(command, clock)

    def _remember(self, command: Command, clock: bool) -> None:
        if clock:
            self.sent, self.trusted_from = [], command.stamp_ns
        self.sent.append(command)
        oldest = command.stamp_ns - round(2 * (self.limits.stop_timeout_s + self.limits.arm_lag_s) * NS)
        while len(self.sent) > 2 and self.sent[1].stamp_ns < oldest:
            self.sent.pop(0)


def finite(value: Any, count: int) -> bool:
    """Whether this is a plain sequence or array of so many finite numbers."""
    try:
        if isinstance(value, (str, bytes)):
            return False
        shape = getattr(value, "shape", (len(value),))
        return tuple(shape) == (count,) and all(not isinstance(x, (bool, str)) and math.isfinite(x) for x in value)
    except (TypeError, OverflowError):
        return False


def state(point: Any = MIDDLE, closedness: Any = 0.5, stamp_ns: int = 0) -> State:
    return State(point, closedness, stamp_ns)
