"""The guard with an arm behind it: it stops in time, never leaves its box, and lets through what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from guard_kit import BOX, LIMITS, MIDDLE, NS, Inspector, state
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.control.guard import Guard
from thinkjepa_ros.control.limits import Command, Limits, Reason, State

PERIOD = round(LIMITS.period_s * NS)
LOW, HIGH = np.array(BOX)
Wish = Callable[[int, np.ndarray], Any]


class Arm:
    """A point that follows commands, `lag_s` behind them (first order), and is measured `delay_s` late."""

    def __init__(self, limits: Limits, point: Any, lag_s: float = 0.0, delay_s: float = 0.0) -> None:
        self.guard, self.inspector, self.now = Guard(limits), Inspector(limits), 10 * NS
        self.lag_s, self.delay_ns = lag_s, round(delay_s * NS)
        self.point, self.led = np.array(point, float), np.array(point, float)
        self.path = [(self.now, self.point)]

    def step(self, wanted: Any, grip: Any = 0.5, stop: bool = False, lasts_s: float = LIMITS.period_s) -> Command:
        """One command, and the motion it causes in `lasts_s`."""
        seen = max((x for x in self.path if x[0] <= self.now - self.delay_ns), default=self.path[0], key=lambda x: x[0])
        measured = State(seen[1], 0.5, seen[0])
        command = self.guard.command(wanted, grip, measured, self.now, stop)
        self.inspector.look(command, wanted, grip, measured, self.now, stop)
        self.coast(command, lasts_s)
        return command

    def coast(self, command: Command, seconds: float) -> None:
        """Let time pass while `command` is the last one."""
        begin = self.led
        for k in range(1, 5):
            self.led = begin + command.displacement_at(seconds * k / 4)
            share = 1.0 if self.lag_s == 0 else 1 - math.exp(-seconds / 4 / self.lag_s)
            self.point = self.point + share * (self.led - self.point)
            self.path.append((self.now + round(seconds * k / 4 * NS), self.point))
        self.now += round(seconds * NS)
        self.path = self.path[-300:]


@pytest.mark.parametrize("v", list(product((-0.28, 0.0, 1e-6, 0.2), repeat=3)))
def test_what_is_allowed_arrives_unchanged(v: tuple[float, float, float]) -> None:
    arm = Arm(LIMITS, MIDDLE)
    for _ in range(4):
        command = arm.step(v)
    assert command.velocity == v and command.closedness == 0.5 and not command.reasons


@pytest.mark.parametrize(
    "v, reason, expected",
    [
        ((0.6, 0.3, 0.0), Reason.VELOCITY, (0.3, 0.15, 0.0)),
        ((0.3, 0.3, -0.3), Reason.VELOCITY, (0.5 / 3**0.5, 0.5 / 3**0.5, -0.5 / 3**0.5)),
        ((1.7e308, -1.7e308, 0.0), Reason.VELOCITY, (0.3, -0.3, 0.0)),
    ],
)
def test_what_is_too_fast_keeps_its_direction(v: Any, reason: Reason, expected: Any) -> None:
    arm = Arm(replace(LIMITS, workspace_min_m=(-9, -9, -9), workspace_max_m=(9, 9, 9)), MIDDLE)
    for _ in range(8):
        command = arm.step(v)
    assert command.velocity == pytest.approx(expected) and command.reasons == (reason,)


def test_one_command_moves_the_point_by_one_step_at_most() -> None:
    arm = Arm(replace(LIMITS, max_step_m=0.03), MIDDLE)
    for _ in range(8):
        command = arm.step((0.25, 0.0, 0.0))
    assert command.displacement_at(9) == pytest.approx((0.03, 0, 0)) and command.reasons == (Reason.STEP,)


def test_the_velocity_rises_by_the_acceleration_of_one_period() -> None:
    arm = Arm(LIMITS, MIDDLE)
    commands = [arm.step((0.3, 0, 0)) for _ in range(4)]
    assert [c.velocity[0] for c in commands] == pytest.approx([0.125, 0.25, 0.3, 0.3])
    assert [c.reasons for c in commands] == [(Reason.ACCELERATION,), (Reason.ACCELERATION,), (), ()]
    arm.coast(commands[-1], 5.0)  # after a pause, too
    assert arm.step((-0.3, 0, 0)).velocity == pytest.approx((-0.125, 0, 0))


@pytest.mark.parametrize("axis, side", list(product(range(3), (-1, 1))))
@pytest.mark.parametrize("lag_s, delay_s", [(0, 0), (0.08, 0), (0, 0.2), (0.08, 0.1)])
def test_the_point_approaches_a_wall_and_stays_inside(axis: int, side: int, lag_s: float, delay_s: float) -> None:
    arm = Arm(replace(LIMITS, arm_lag_s=lag_s), MIDDLE, lag_s, delay_s)
    wish = np.zeros(3)
    wish[axis], wish[(axis + 1) % 3] = 0.3 * side, 0.01
    for _ in range(80):
        command = arm.step(wish)
        assert Reason.HARD_STOP not in command.reasons
        assert (arm.point >= LOW - 1e-9).all() and (arm.point <= HIGH + 1e-9).all()
    wall = (HIGH if side > 0 else LOW)[axis]
    assert abs(arm.point[axis] - wall) < 2e-3 and Reason.WORKSPACE in command.reasons
    assert command.velocity[(axis + 1) % 3] == pytest.approx(0.01)  # along the wall it goes on


direction = st.tuples(*[st.floats(-1, 1)] * 3)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(direction, st.integers(1, 12), st.sampled_from([0.3, 1.0, 1.0, 6.0]), st.booleans()),
        min_size=4,
        max_size=10,
    ),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.sampled_from([0.0, 0.12]),
)
def test_an_arm_that_follows_never_needs_a_hard_stop_and_never_leaves(
    wishes: list[Any], start: Any, delay_s: float
) -> None:
    edge = replace(
        LIMITS, max_speed_mps=0.625, max_axis_velocity_mps=0.625, max_step_m=1
    )  # no speed can be had above this
    arm = Arm(edge, LOW + np.array(start) * (HIGH - LOW), delay_s=delay_s)  # no greater speed can be had
    for wish, times, slow, stop in wishes:
        for _ in range(times):
            command = arm.step(np.array(wish), stop=stop and slow == 1.0, lasts_s=LIMITS.period_s * slow)
            assert Reason.HARD_STOP not in command.reasons
            assert (arm.point >= LOW - 1e-9).all() and (arm.point <= HIGH + 1e-9).all()
    arm.step((0.0, 0.6, 0.0), lasts_s=1.0)  # the controller is killed
    assert (arm.point >= LOW - 1e-9).all() and (arm.point <= HIGH + 1e-9).all()


GRID = list(
    product(*[(low - 0.02, low, low + 0.01, (low + high) / 2, high) for low, high in zip(LOW, HIGH, strict=True)])
)


@pytest.mark.parametrize("before", [(0.0, 0.0, 0.0), (0.3, 0.1, -0.1), (-0.2, -0.2, -0.2)])
@pytest.mark.parametrize("stop", [False, True])
def test_every_wish_at_every_place_from_every_motion(before: Any, stop: bool) -> None:
    for point, wish in product(GRID, product((-0.3, 0.0, 9.0), repeat=3)):
        guard, inspector = Guard(LIMITS), Inspector(LIMITS)
        for now, at, wanted in ((0, MIDDLE, before), (PERIOD, MIDDLE, before), (2 * PERIOD, point, wish)):
            last = stop and wanted is wish
            command = guard.command(wanted, 0.5, state(at, 0.5, now), now, last)
            inspector.look(command, wanted, 0.5, state(at, 0.5, now), now, last)
    assert command.stamp_ns == 2 * PERIOD


def test_after_the_last_command_the_arm_rests_in_time() -> None:
    arm = Arm(replace(LIMITS, max_speed_mps=0.625, max_axis_velocity_mps=0.625, max_step_m=1), (0.0, 0.1, 0.2))
    for _ in range(5):
        command = arm.step((0.0, 0.6, 0.0))
    age = LIMITS.stop_timeout_s
    assert command.velocity[1] > 0.5
    assert command.velocity_at(age) == (0, 0, 0) and command.knots[-1] <= age


@pytest.mark.parametrize("every_s", [0.004, 0.013, 0.05, 0.2, 0.3, 0.45, 1.0])
@pytest.mark.parametrize("what", ["stop", "nan", "no state", "rest"])
def test_a_stop_is_smooth_and_in_time_however_seldom_the_guard_is_called(every_s: float, what: str) -> None:
    limits = replace(LIMITS, max_speed_mps=0.625, max_axis_velocity_mps=0.625, max_step_m=1, workspace_max_m=(9, 9, 9))
    guard, inspector, now = Guard(limits), Inspector(limits), 0
    for _ in range(8):
        now += PERIOD
        inspector.look(command := guard.command((0.625, 0, 0), 0.5, state(stamp_ns=now), now),
                       (0.625, 0, 0), 0.5, state(stamp_ns=now), now)  # fmt: skip
    assert command.velocity[0] == 0.625
    begin, now = now, now + round(0.02 * NS)
    wanted = {"nan": (math.nan, 0, 0), "rest": (0, 0, 0)}.get(what, (0.625, 0, 0))
    noticed, speeds = now, []
    while now <= noticed + 2 * NS:
        seen = None if what == "no state" else state(stamp_ns=now)
        command = guard.command(wanted, 0.9, seen, now, what == "stop")
        inspector.look(command, wanted, 0.9, seen, now, what == "stop")
        speeds += [(now + round(k * every_s / 20 * NS), command.velocity_at(k * every_s / 20)[0]) for k in range(20)]
        now += round(every_s * NS)
    assert all(speed == 0 for at, speed in speeds if at > noticed + limits.stop_timeout_s * NS)
    # a straight line at the limit of acceleration, from the command before on
    for at, speed in speeds:
        assert speed == pytest.approx(max(0.0, 0.625 - limits.max_acceleration_mps2 * (at - begin) / NS), abs=1e-6)
    if what != "rest":
        assert command.closedness == 0.5, "the gripper holds what it holds"


def test_a_point_pushed_to_a_wall_stops_hard_but_never_turns_round() -> None:
    for axis, side in product(range(3), (-1, 1)):
        arm = Arm(LIMITS, MIDDLE)
        wish = np.full(3, 0.1)
        wish[axis] = 0.28 * side
        for _ in range(5):
            arm.step(wish)
        arm.now += 1
        arm.point = arm.led = np.array(MIDDLE)
        arm.point[axis] = (HIGH if side > 0 else LOW)[axis] - 0.001 * side
        arm.path = [(arm.now, arm.point)]
        command = arm.step(wish)
        assert {Reason.HARD_STOP, Reason.WORKSPACE} <= set(command.reasons)
        assert 0 < command.velocity[axis] * side < 0.01 and command.displacement_at(9)[axis] * side < 0.001


def test_outside_the_box_only_the_way_back_is_open_and_slow() -> None:
    out = np.array(MIDDLE)
    out[2] = -0.05
    below = Arm(LIMITS, out)
    for _ in range(5):
        command = below.step((0.0, 0.0, -0.3))
    assert command.velocity == (0, 0, 0) and Reason.WORKSPACE in command.reasons
    for _ in range(5):
        command = below.step((0.0, 0.0, 0.3))
    assert command.velocity == pytest.approx((0, 0, LIMITS.return_speed_mps)) and Reason.WORKSPACE in command.reasons
    for _ in range(5):
        command = below.step((0.3, 0.0, -0.3))  # sideways: slow, and not farther out
    assert command.velocity == pytest.approx((LIMITS.return_speed_mps, 0, 0))
    for _ in range(40):
        command = below.step((0.0, 0.0, 0.3))
    assert below.point[2] > 0 and command.velocity[2] == pytest.approx(0.3)


def test_the_gripper_keeps_range_and_rate() -> None:
    limits = replace(LIMITS, closedness_min=0.1, closedness_max=0.9, max_closedness_rate=2.0)
    arm = Arm(limits, MIDDLE)
    commands = [arm.step((0, 0, 0), 5.0) for _ in range(6)]
    assert [c.closedness for c in commands] == pytest.approx([0.6, 0.7, 0.8, 0.9, 0.9, 0.9])
    assert commands[0].reasons == (Reason.CLOSEDNESS, Reason.CLOSEDNESS_RATE)
    assert commands[-1].reasons == (Reason.CLOSEDNESS,)
    assert [arm.step((0, 0, 0), -1.0).closedness for _ in range(9)][-1] == pytest.approx(0.1)
    assert arm.step((0, 0, 0), math.nan).closedness == pytest.approx(0.1)
    arm.guard.release()  # from the measured 0.5 again
    command = arm.guard.command((0, 0, 0), 0.1, State(MIDDLE, 0.5, arm.now), arm.now)
    assert command.closedness == pytest.approx(0.4)


def test_a_gripper_that_was_never_seen_is_left_alone() -> None:
    command = Guard(LIMITS).command((0.1, 0, 0), 1.0, None, PERIOD)
    assert command.closedness is None and command.velocity == (0, 0, 0) and command.reasons == (Reason.STATE,)


@pytest.mark.parametrize("seen", [None, "here", state((0, 0)), state((0, math.nan, 0)), state(MIDDLE, None)])
def test_without_a_state_nothing_moves(seen: Any) -> None:
    for stamp in (PERIOD, None):
        given = replace(seen, stamp_ns=PERIOD) if isinstance(seen, State) and stamp else seen
        command = Guard(LIMITS).command((0.1, 0, 0), 0.5, given, PERIOD)
        assert command.velocity == (0, 0, 0) and Reason.STATE in command.reasons


@pytest.mark.parametrize("stamp, good", [(0, True), (1, False), (-NS // 2, True), (-NS // 2 - 1, False), (None, False)])
def test_a_state_must_be_of_now_or_shortly_before(stamp: Any, good: bool) -> None:
    command = Guard(LIMITS).command((0.1, 0, 0), 0.5, state(stamp_ns=stamp), 0)
    assert (Reason.STATE not in command.reasons) == good and (command.velocity[0] > 0) == good


@pytest.mark.parametrize("times", [[0] * 9, [-PERIOD] * 9, [None] * 9, [1.5] * 9, [-PERIOD, -2 * PERIOD, -9 * NS] * 3])
def test_a_clock_that_does_not_advance_brakes_the_arm(times: list[Any]) -> None:
    arm = Arm(LIMITS, MIDDLE)
    for _ in range(5):
        last = arm.step((0.3, 0, 0))
    now = arm.now - PERIOD
    for step in times:
        at = now + step if isinstance(step, int) else step
        seen = state(stamp_ns=at)
        command = arm.guard.command((0.3, 0, 0), 0.5, seen, at)
        arm.inspector.look(command, (0.3, 0, 0), 0.5, seen, at)
        if last.velocity[0] > 0:
            assert command.velocity[0] < last.velocity[0]
        last = command
    assert last.velocity == (0, 0, 0)
    late = now + 5 * NS  # and when the clock is well again, so is the guard
    assert arm.guard.command((0.3, 0, 0), 0.5, state(stamp_ns=late), late).velocity == pytest.approx((0.125, 0, 0))


def test_a_state_from_before_a_clock_fault_is_not_trusted() -> None:
    arm = Arm(LIMITS, MIDDLE)
    for _ in range(5):
        arm.step((0.3, 0, 0))
    fault = arm.now - 2 * PERIOD
    arm.guard.command((0.3, 0, 0), 0.5, state(stamp_ns=fault), fault)
    old = arm.guard.command((0.3, 0, 0), 0.5, state(stamp_ns=fault - 1), fault + PERIOD)
    new = arm.guard.command((0.3, 0, 0), 0.5, state(stamp_ns=fault + PERIOD), fault + 2 * PERIOD)
    assert Reason.STATE in old.reasons and Reason.STATE not in new.reasons


def test_many_commands_in_a_short_time_are_remembered_or_the_state_is_refused() -> None:
    guard, inspector, now = Guard(LIMITS), Inspector(LIMITS), 0
    for _ in range(700):
        now += 10**5
        inspector.look(guard.command((0.3, 0, 0), 0.5, state(stamp_ns=now), now), (0.3, 0, 0), 0.5,
                       state(stamp_ns=now), now)  # fmt: skip
    assert Reason.STATE in guard.command((0.3, 0, 0), 0.5, state(stamp_ns=10**5), now + 1).reasons
    assert Reason.STATE not in guard.command((0.3, 0, 0), 0.5, state(stamp_ns=now - 10**7), now + 2).reasons
