"""The one gate that every command to the robot passes: whatever goes in, what comes out is within the limits.

The guard knows nothing of plans, models or ROS.

Why it can always brake in time. Let K = lifetime_s + max_speed / (2 max_acceleration), so that a command of velocity v
moves the point by at most K v before it rests. The guard lets each axis go at most at room / K, room being the way to
the wall. After dt at that velocity the room is smaller by v dt, so the next command must be slower by v dt / K, which
the acceleration limit allows as long as v <= K max_acceleration: `Limits` refuses any other choice. The approach to
a wall is thus exponential. An arm that lags behind its commands has more to come than the measured point shows: its lag
is told as arm_lag_s. That is exact for a pure delay and holds for a first-order lag up to K / 4, where the loop of
arm and guard is critically damped; an arm slower than that wants a longer lifetime_s.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from typing import Any

from .limits import REST, Command, Limits, Reason, State, Vector, each, integer, numbers, seconds, shortened, times

_NOTICEABLE = 1e-9  # smaller changes are rounding and not worth a reason
_KEPT = 512  # commands that a state may be older than
_FAULTS = {Reason.STOPPED, Reason.NOT_FINITE, Reason.STATE, Reason.CLOCK}  # nothing may move, the gripper neither


class Guard:
    """Turns what is wanted into a command that may leave; the newest command that left is the one it builds on.

    Call it once per period_s, always from one thread, with the time of a steady clock. It never raises: what is no
    number, no state or no time makes the robot brake to rest.

    * Not asked to move (stop, bad input, or a wanted velocity of 0): the velocity falls at max_acceleration_mps2 to 0.
      Such a command is a ramp from the start, and repeating it does not begin a new one, so the robot rests within
      stop_timeout_s however often or seldom the guard is called (`Limits` sees to it that this time is enough).
    * The workspace goes before the acceleration limit: a point that is not where the commands led to (pushed, or
      measured wrongly before) may leave less room than braking needs. Then the component that would leave the box is
      cut at once, never turned round (HARD_STOP). While the arm follows its commands this does not happen.
    * Outside the box no component may lead farther out, and the rest is slow (return_speed_mps). Moving sideways stays
      allowed: an arm that sags a millimetre below the box would otherwise be stuck.
    * The measured point is old by the time it is used. The guard adds what it commanded since (and arm_lag_s before),
      and takes the worst of all points in between. A state older than stop_timeout_s is none.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._sent: deque[Command] = deque(maxlen=_KEPT)
        self._oldest_ns, self._lag_ns = round(limits.stop_timeout_s * 1e9), round(limits.arm_lag_s * 1e9)
        self._known_from_ns: int | None = None  # a state from before cannot be brought up to date
        self._closedness: float | None = None

    def release(self) -> None:
        """Begin again from the measured closedness, not from the one last commanded: for when others moved it."""
        self._closedness = None

    def command(self, wanted: Any, closedness: Any, state: State | None, now_ns: Any, stop: bool = False) -> Command:
        """The command that may leave now.

        wanted: velocity [3] in m/s in base_frame (of a displacement: divided by its time). closedness: the gripper's,
        0 ... 1. state: the newest measured one, None if there is none. stop: brake to rest, whatever is wanted.
        """
        limits, reasons = self.limits, set[Reason]()
        now, elapsed = self._time(now_ns, reasons)
        velocity, grip = numbers(wanted, 3), numbers([closedness], 1)
        reach = None if Reason.CLOCK in reasons else self._reach(state, now)
        if stop:
            reasons.add(Reason.STOPPED)
        if velocity is None or grip is None:
            reasons.add(Reason.NOT_FINITE)
        if reach is None and Reason.CLOCK not in reasons:
            reasons.add(Reason.STATE)
        if reach is None or reasons or velocity == REST:
            velocity, hold = self._braked(reach, now, reasons), 0.0
        else:
            velocity, hold = self._guarded(velocity, reach, now, elapsed, reasons), limits.lifetime_s
        if velocity == REST:
            velocity, hold = REST, 0.0  # without a sign of zero
        self._grip(None if reasons & _FAULTS or grip is None else grip[0], state, elapsed, reasons)
        ramp = math.hypot(*velocity) / limits.max_acceleration_mps2
        ordered = tuple(reason for reason in Reason if reason in reasons)
        command = Command(velocity, self._closedness, now, hold, ramp, ordered)
        self._remember(command, Reason.CLOCK in reasons)
        return command

    def _time(self, now_ns: Any, reasons: set[Reason]) -> tuple[int, float]:
        """Now, and how long ago the last command left (s, at most period_s).

        A clock that stands still or goes back tells nothing about how long the arm has been moving: one period is
        assumed, and the arm brakes.
        """
        limits, last = self.limits, self._sent[-1] if self._sent else None
        now = integer(now_ns)
        if now is None or (last is not None and now <= last.stamp_ns):
            reasons.add(Reason.CLOCK)
            return (now if now is not None else last.stamp_ns if last else 0), limits.period_s
        if last is None:
            return now, limits.period_s
        return now, min(seconds(now - last.stamp_ns), limits.period_s)

    def _present(self, now: int) -> tuple[Vector, float]:
        """The velocity that the last command asks for now, and for how long it has been held (s)."""
        if not self._sent:
            return REST, 0.0
        last = self._sent[-1]
        if now <= last.stamp_ns:  # the clock is at fault, see _time
            return last.velocity, self.limits.period_s
        age = seconds(now - last.stamp_ns)
        return last.velocity_at(age), min(age, last.hold_s)

    def _braked(self, reach: tuple[Vector, Vector] | None, now: int, reasons: set[Reason]) -> Vector:
        """The velocity now on the way to rest: as much slower as the time allows for which the last one was held."""
        present, held = self._present(now)
        slower = max(0.0, math.hypot(*present) - self.limits.max_acceleration_mps2 * held)
        velocity = shortened(present, slower)
        if velocity != REST and Reason.STOPPED not in reasons:
            reasons.add(Reason.ACCELERATION)
        if reach is None:
            return velocity
        low, high = self._room(reach, slower / (2 * self.limits.max_acceleration_mps2))
        return self._cut(velocity, low, high, 0.0, reasons)

    def _guarded(
        self, wanted: Vector, reach: tuple[Vector, Vector], now: int, elapsed: float, reasons: set[Reason]
    ) -> Vector:
        """The wanted velocity within every limit.

        All limits but acceleration are convex sets around 0 (two balls, two boxes) which hold both `base`, the
        present velocity cut where the room became too small, and the target; so any point between them fits, and
        the one farthest from `base` that the acceleration limit allows is taken.
        """
        limits = self.limits
        fast = max(map(abs, wanted))
        target = times(wanted, limits.max_axis_velocity_mps / fast) if fast > limits.max_axis_velocity_mps else wanted
        target = shortened(target, limits.max_speed_mps)
        if target != wanted:
            reasons.add(Reason.VELOCITY)
        if math.hypot(*target) > limits.step_speed_mps:
            target = shortened(target, limits.step_speed_mps)
            reasons.add(Reason.STEP)
        low, high = self._room(reach, limits.reach_s)
        inside = _clipped(target, low, high)
        if _is_outside(reach, limits):
            inside = shortened(inside, limits.return_speed_mps)
        if inside != target:
            reasons.add(Reason.WORKSPACE)
        present, held = self._present(now)
        base = self._cut(present, low, high, limits.max_acceleration_mps2 * max(held, elapsed), reasons)
        velocity = _toward(base, inside, present, limits.max_acceleration_mps2 * elapsed)
        if velocity != inside:
            reasons.add(Reason.ACCELERATION)
        return velocity

    def _cut(self, velocity: Vector, low: Vector, high: Vector, braking: float, reasons: set[Reason]) -> Vector:
        """Each component of `velocity` shortened into the room; a change above `braking` (m/s) is a hard stop."""
        cut = _clipped(velocity, low, high)
        change = math.dist(cut, velocity)
        if change > _NOTICEABLE:
            reasons.add(Reason.WORKSPACE)
        if change > braking + _NOTICEABLE:
            reasons.add(Reason.HARD_STOP)
        return cut

    def _reach(self, state: State | None, now: int) -> tuple[Vector, Vector] | None:
        """Lowest and highest place, per axis, at which the point may be now; None if the state does not tell."""
        if not isinstance(state, State):
            return None
        point, stamp = numbers(state.point, 3), integer(state.stamp_ns)
        if point is None or stamp is None or numbers([state.closedness], 1) is None:
            return None
        if not 0 <= now - stamp <= self._oldest_ns:
            return None
        stamp -= self._lag_ns
        if self._known_from_ns is not None and stamp < self._known_from_ns:
            return None
        here, low, high = point, point, point
        ends = [command.stamp_ns for command in self._sent][1:] + [now]
        for command, end in zip(self._sent, ends, strict=False):
            if end <= stamp:
                continue
            before = command.displacement_at(seconds(stamp - command.stamp_ns))
            after = command.displacement_at(seconds(end - command.stamp_ns))
            here = each(lambda x, a, b: x + (b - a), here, before, after)
            low, high = each(min, low, here), each(max, high, here)
        return low, high

    def _room(self, reach: tuple[Vector, Vector], going_s: float) -> tuple[Vector, Vector]:
        """Lowest and highest velocity per axis that, kept for `going_s`, leads to no wall; 0 is between them."""
        going_s = max(going_s, 1e-9)
        low = each(lambda wall, x: min(0.0, (wall - x) / going_s), self.limits.workspace_min_m, reach[0])
        high = each(lambda wall, x: max(0.0, (wall - x) / going_s), self.limits.workspace_max_m, reach[1])
        return low, high

    def _grip(self, wanted: float | None, state: State | None, elapsed: float, reasons: set[Reason]) -> None:
        """Set the closedness to command: the wanted one within range and rate, else the last one again."""
        limits = self.limits
        if self._closedness is None:
            measured = numbers([state.closedness], 1) if isinstance(state, State) else None
            if measured is None:
                return
            self._closedness = min(max(measured[0], limits.closedness_min), limits.closedness_max)
        if wanted is None:
            return
        target = min(max(wanted, limits.closedness_min), limits.closedness_max)
        if target != wanted:
            reasons.add(Reason.CLOSEDNESS)
        most = limits.max_closedness_rate * elapsed
        reached = min(max(target, self._closedness - most), self._closedness + most)
        if reached != target:
            reasons.add(Reason.CLOSEDNESS_RATE)
        self._closedness = reached

    def _remember(self, command: Command, clock_fault: bool) -> None:
        """Keep what is needed to bring a state up to date, and no more."""
        if clock_fault:
            self._sent.clear()
            self._known_from_ns = command.stamp_ns
        if len(self._sent) == _KEPT:
            self._known_from_ns = self._sent[1].stamp_ns
        self._sent.append(command)
        oldest = command.stamp_ns - self._oldest_ns - self._lag_ns
        while len(self._sent) > 1 and self._sent[1].stamp_ns < oldest:
            self._sent.popleft()


def _clipped(v: Vector, low: Vector, high: Vector) -> Vector:
    return each(lambda x, a, b: min(max(x, a), b), v, low, high)


def _is_outside(reach: tuple[Vector, Vector], limits: Limits) -> bool:
    lowest, highest = reach
    below = any(x < m for x, m in zip(lowest, limits.workspace_min_m, strict=True))
    return below or any(x > m for x, m in zip(highest, limits.workspace_max_m, strict=True))


def _toward(start: Vector, goal: Vector, centre: Vector, radius: float) -> Vector:
    """The point nearest to `goal` on the line from `start` that is at most `radius` from `centre`; at least `start`."""
    if math.dist(goal, centre) <= radius:
        return goal
    b, d = each(operator.sub, start, centre), each(operator.sub, goal, start)
    bb, bd, dd = (sum(map(operator.mul, p, q)) for p, q in ((b, b), (b, d), (d, d)))
    if bb >= radius * radius or dd == 0.0:
        return start
    part = (math.sqrt(bd * bd + dd * (radius * radius - bb)) - bd) / dd
    return each(lambda x, y: x + min(1.0, part) * y, start, d)
