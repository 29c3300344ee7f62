"""What limits can be had, and what a command is: a velocity that ends by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from guard_kit import BOX, LIMITS, travelled
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.control.limits import Command, Limits

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"workspace_min_m": (0, 0)}, "workspace_min_m must be three finite numbers in metres"),
        ({"workspace_max_m": (0, NAN, 1)}, "workspace_max_m must be three finite numbers in metres"),
        ({"workspace_max_m": None}, "workspace_max_m must be three finite numbers"),
        ({"workspace_max_m": (0.4, 0.1, 0.5)}, "workspace_max_m must lie above workspace_min_m in y: 0.1 is not > 0.1"),
        ({"max_axis_velocity_mps": 0}, "max_axis_velocity_mps must be a finite number above 0, not 0"),
        ({"max_speed_mps": -0.1}, "max_speed_mps must be a finite number above 0"),
        ({"max_acceleration_mps2": INF}, "max_acceleration_mps2 must be a finite number above 0, not inf"),
        ({"max_step_m": NAN}, "max_step_m must be a finite number above 0"),
        ({"return_speed_mps": 0.0}, "return_speed_mps must be a finite number above 0"),
        ({"return_speed_mps": 0.6}, r"return_speed_mps must not exceed max_speed_mps \(0.5\); lower it"),
        ({"max_closedness_rate": "fast"}, "max_closedness_rate must be a finite number above 0, not 'fast'"),
        ({"closedness_min": -0.1}, "closedness_min must be a finite number, at least 0"),
        ({"arm_lag_s": -1}, "arm_lag_s must be a finite number, at least 0"),
        ({"closedness_max": 1.1}, "must be 0 <= min < max <= 1, not 0 and 1.1"),
        ({"closedness_min": 0.5, "closedness_max": 0.5}, "must be 0 <= min < max <= 1, not 0.5 and 0.5"),
        ({"period_s": 0.3}, "lifetime_s 0.25 ends before the next command comes after period_s 0.3; raise it"),
        ({"stop_timeout_s": 0.25}, r"stop_timeout_s must be longer than lifetime_s \(0.25\); raise it"),
        ({"stop_timeout_s": 0.4}, "0.5 cannot be stopped in time: at most 0.375 with this stop_timeout_s - lifetime_s"),
        (
            {"lifetime_s": 0.08, "stop_timeout_s": 1.0},
            "0.5 cannot be stopped in time: at most 0.4 with this lifetime_s and max_acceleration_mps2",
        ),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_with_the_remedy(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(LIMITS, **change)


def test_limits_at_the_edge_of_what_can_be_kept_are_allowed() -> None:
    edge = replace(LIMITS, max_speed_mps=0.625, max_acceleration_mps2=2.5, lifetime_s=0.25, stop_timeout_s=0.5)
    assert edge.max_speed_mps / edge.max_acceleration_mps2 == edge.stop_timeout_s - edge.lifetime_s
    assert Limits(*np.array(BOX), period_s=0.25) == Limits(*BOX, period_s=0.25)  # arrays are welcome, too


def test_the_step_speed_moves_the_point_by_the_step() -> None:
    for step, lifetime in product((0.001, 0.05, 0.3), (0.13, 0.25)):
        limits = replace(LIMITS, max_step_m=step, lifetime_s=lifetime)
        v = limits.step_speed_mps
        assert v * lifetime + v * v / (2 * limits.max_acceleration_mps2) == pytest.approx(step)


def test_a_command_holds_then_falls_then_rests() -> None:
    command = Command((0.2, -0.1, 0.0), 0.5, 0, hold_s=0.25, ramp_s=0.1)
    assert command.knots == (0.25, 0.35)
    for age, share in ((-1, 1), (0, 1), (0.25, 1), (0.275, 0.75), (0.3, 0.5), (0.35, 0), (9e9, 0)):
        assert command.velocity_at(age) == pytest.approx((0.2 * share, -0.1 * share, 0.0))
    for age, seconds in ((-1, 0), (0.1, 0.1), (0.25, 0.25), (0.3, 0.25 + 0.0375), (0.35, 0.3), (9e9, 0.3)):
        assert command.displacement_at(age) == pytest.approx((0.2 * seconds, -0.1 * seconds, 0.0))
    rest = Command((0.0, 0.0, 0.0), None, 0, 0.0, 0.0)
    assert rest.knots == (0.0,) and rest.velocity_at(0.0) == rest.displacement_at(1.0) == (0.0, 0.0, 0.0)


ages = st.floats(0, 1)


@given(st.tuples(*[st.floats(-1, 1)] * 3), ages, st.floats(1e-3, 0.5), ages, ages)
def test_the_displacement_is_the_area_under_the_velocity(
    v: tuple[float, float, float], hold: float, ramp: float, start: float, end: float
) -> None:
    command = Command(v, None, 0, hold, ramp)
    start, end = sorted((start, end))
    moved = np.subtract(command.displacement_at(end), command.displacement_at(start))
    assert moved == pytest.approx(travelled(command, start, end), abs=1e-12)
    assert math.dist(command.velocity_at(hold + ramp + 1e-12), (0, 0, 0)) == 0
