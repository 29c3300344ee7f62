"""Whatever goes into the guard, nothing outside the limits comes out: 10^5 inputs, in sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guard_kit import BOX, MIDDLE, NS, Inspector
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.control.guard import Guard
from thinkjepa_ros.control.limits import Limits, State

INPUTS, PARTS, LENGTH = 100_000, 4, 100
NAN, INF = float("nan"), float("inf")
EXTREME = [0.0, -0.0, 5e-324, -5e-324, 1e-310, 1e-160, 1e-12, 1.0, -1.0, 1e3, 1e160, 1.7e308, -1.7e308, NAN, INF, -INF]
JUNK: list[Any] = [
    None, "abc", b"abc", [], [0.1], [0.1] * 4, [[0.1, 0.1, 0.1]], np.zeros((3, 1)), [None] * 3, ["0.1"] * 3, {}, 0.1,
    [True] * 3, np.array(["a"] * 3), [1 + 2j] * 3, [10**400] * 3, object(), [[0.1], 0.2, 0.3],
]  # fmt: skip
TIMES: list[Any] = [None, NAN, "now", 1.5, -(10**30), 10**30, 10**400, 2**63, 0]


def some_limits(rng: np.random.Generator) -> Limits:
    """Any limits that are allowed, from slow and soft to fast and hard."""
    lifetime, timeout = rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.6)
    acceleration = 10 ** rng.uniform(-1, 1.5)
    fastest = acceleration * min(timeout, 2 * lifetime) * (1.0 if rng.random() < 0.3 else rng.uniform(0.1, 1.0))
    return Limits(
        *BOX,
        max_axis_velocity_mps=fastest * rng.uniform(0.3, 1.5),
        max_speed_mps=fastest * (1 - 1e-12),
        max_acceleration_mps2=acceleration,
        max_step_m=10 ** rng.uniform(-3, 0),
        return_speed_mps=fastest * rng.uniform(0.01, 0.9),
        closedness_min=rng.choice([0.0, 0.2]),
        closedness_max=rng.choice([1.0, 0.9]),
        max_closedness_rate=10 ** rng.uniform(-1, 2),
        period_s=lifetime * rng.uniform(0.05, 1.0),
        lifetime_s=lifetime,
        stop_timeout_s=lifetime + timeout,
        arm_lag_s=rng.choice([0.0, 0.1]),
    )


def one_sequence(rng: np.random.Generator, length: int) -> int:
    """So many calls of one guard, each looked at; returns how many commands were motion."""
    limits = some_limits(rng)
    guard, inspector = Guard(limits), Inspector(limits)
    low, high = np.array(BOX)
    now, point, moved = int(rng.integers(0, 10**12)), rng.uniform(low, high), 0
    goal, last = rng.normal(size=3), None
    how = rng.random((length, 6))
    for trouble, lucky, size, late, gripping, halt in how:
        step = int(limits.period_s * NS * (1.0 if late < 0.6 else 10 ** (6 * late - 4.4)))
        if last is not None:  # the arm follows
            point = point + last.displacement_at(step / NS)
        now += step
        if lucky < 0.1:
            goal = rng.normal(size=3) * 10 ** rng.uniform(-3, 1)
        wanted: Any = goal * limits.max_speed_mps
        grip: Any = gripping * 1.2 - 0.1
        state: Any = State(point, 0.5, now - int(size**4 * 0.2 * NS))
        when: Any = now
        stop = bool(halt < 0.05)
        if trouble < 0.06:
            wanted = rng.choice(EXTREME, 3)
        elif trouble < 0.09:
            wanted = JUNK[int(rng.integers(len(JUNK)))]
        elif trouble < 0.12:
            grip = EXTREME[int(rng.integers(len(EXTREME)))] if lucky < 0.5 else JUNK[int(rng.integers(len(JUNK)))]
        elif trouble < 0.18:  # the arm is pushed, or was measured wrongly
            point = rng.uniform(low - 0.1, high + 0.1)
            state = State(point, 0.5, now)
        elif trouble < 0.21:
            state = State(rng.choice(EXTREME, 3), 0.5, now)
        elif trouble < 0.24:
            junk = JUNK[int(rng.integers(len(JUNK)))]
            state = [junk, State(junk, 0.5, now), State(point, junk, now), State(point, NAN, now)][int(size * 4)]
        elif trouble < 0.26:
            state = State(point, 0.5, [now + 10**6, now - 10**10, 10**30, None, NAN][int(size * 5)])
        elif trouble < 0.29:
            when = [now - 2 * step, now - step, now - 10**9][int(size * 3)]
            now = when
        elif trouble < 0.31:
            when = TIMES[int(size * len(TIMES))]
            now = when if isinstance(when, int) and abs(when) < 10**12 else now
        last = guard.command(wanted, grip, state, when, stop)
        inspector.look(last, wanted, grip, state, when, stop)
        moved += last.hold_s > 0
    return moved


@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_thousand_inputs_let_nothing_outside_the_limits_through(part: int) -> None:
    rng = np.random.default_rng(part)
    moved = sum(one_sequence(rng, LENGTH) for _ in range(INPUTS // PARTS // LENGTH))
    assert moved > INPUTS / PARTS / 3, "a guard that lets nothing through proves nothing"


numbers = st.floats(allow_nan=True, allow_infinity=True)
anything = st.one_of(
    st.none(), st.text(), numbers, st.lists(numbers, max_size=4), st.tuples(numbers, numbers, numbers),
    st.tuples(*[st.floats(-1, 1)] * 3),
)  # fmt: skip
call = st.tuples(
    anything, st.one_of(st.floats(0, 1), anything), st.tuples(*[st.floats(-0.5, 0.8)] * 3) | anything,
    st.integers(-(10**8), 10**9), st.integers(-(10**7), 10**9), st.booleans(),
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(call, min_size=1, max_size=20))
def test_what_hypothesis_thinks_of_gets_nothing_through_either(calls: list[Any]) -> None:
    limits = Limits(*BOX)
    guard, inspector, now = Guard(limits), Inspector(limits), 0
    for wanted, grip, point, step, age, stop in calls:
        now += step
        state = State(point, 0.5, now - age)
        inspector.look(guard.command(wanted, grip, state, now, stop), wanted, grip, state, now, stop)


@pytest.mark.parametrize("wanted", [*JUNK, (NAN, 0, 0), (0, INF, 0), (0, 0, -INF)], ids=lambda x: type(x).__name__)
def test_what_is_no_velocity_makes_the_moving_arm_brake(wanted: Any) -> None:
    guard, inspector = Guard(Limits(*BOX)), Inspector(Limits(*BOX))
    now = 0
    for k in range(30):
        now += NS // 20
        asked = (0.3, 0.0, 0.0) if k < 10 else wanted
        state = State(MIDDLE, 0.5, now)
        command = guard.command(asked, 0.5, state, now)
        inspector.look(command, asked, 0.5, state, now)
        assert k != 9 or command.velocity == (0.3, 0.0, 0.0)
    assert command.velocity == (0.0, 0.0, 0.0)
