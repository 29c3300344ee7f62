"""StampGate: what a stamp means for the time line."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.stream.order import NS, Ruling, StampGate, Verdict

OK, DUPLICATE, LATE, ZERO = Verdict.OK, Verdict.DUPLICATE, Verdict.OUT_OF_ORDER, Verdict.ZERO
FUTURE, JUMP, SUSPECT = Verdict.FUTURE, Verdict.JUMP, Verdict.SUSPECT


def judge(seconds, now=None, gate=None):
    """Rulings on a list of stamps in seconds, as (verdict, fate of the suspect)."""
    gate = gate or StampGate()
    now_ns = None if now is None else round(now * NS)
    rulings = [gate.classify(round(s * NS), now_ns) for s in seconds]
    return [(r.verdict, r.suspect) for r in rulings]


def verdicts(seconds, **kw):
    return [verdict for verdict, _ in judge(seconds, **kw)]


def test_a_steady_camera_is_ok():
    assert verdicts([100 + k / 30 for k in range(90)]) == [OK] * 90


def test_the_same_stamp_again_is_a_duplicate():
    assert verdicts([100, 100.1, 100.1, 100.2]) == [OK, OK, DUPLICATE, OK]


def test_a_little_behind_is_out_of_order_up_to_exactly_one_second():
    assert verdicts([100, 100.5, 100.4, 99.5, 100.6]) == [OK, OK, LATE, LATE, OK]


@pytest.mark.parametrize("stamp", [0, -1, -5 * NS])
def test_no_stamp(stamp):
    gate = StampGate()
    assert gate.classify(stamp, 10 * NS) == Ruling(ZERO)
    assert gate.newest_ns is None


def test_far_future_is_refused_and_does_not_move_the_time_line():
    assert verdicts([100, 150, 100.1, 101.1], now=100.1) == [OK, FUTURE, OK, OK]
    assert verdicts([101.2], now=100.1) == [FUTURE]
    assert verdicts([150], now=None) == [OK]


def test_old_recordings_played_without_simulated_time_are_ok():
    assert verdicts([100, 100.1], now=1.7e9) == [OK, OK]


def test_a_loop_of_a_bag_is_a_jump_and_the_first_frame_of_it_is_not_lost():
    assert judge([100, 130, 130.1, 100, 100.1, 100.2]) == [
        (OK, None),
        (JUMP, None),
        (OK, None),
        (SUSPECT, None),
        (JUMP, OK),
        (OK, None),
    ]


def test_one_very_late_frame_is_out_of_order():
    assert judge([100, 50, 100.1, 100.2]) == [(OK, None), (SUSPECT, None), (OK, LATE), (OK, None)]


def test_a_suspect_is_settled_by_any_frame_of_the_old_time_line():
    assert judge([100, 50, 100]) == [(OK, None), (SUSPECT, None), (DUPLICATE, LATE)]
    assert judge([100, 50, 99.5]) == [(OK, None), (SUSPECT, None), (LATE, LATE)]
    assert judge([100, 50, 106]) == [(OK, None), (SUSPECT, None), (JUMP, LATE)]


def test_a_second_stray_frame_replaces_the_first_suspect():
    assert judge([100, 50, 70, 70.1]) == [(OK, None), (SUSPECT, None), (SUSPECT, LATE), (JUMP, OK)]
    assert judge([100, 50, 49, 49.1]) == [(OK, None), (SUSPECT, None), (SUSPECT, LATE), (JUMP, OK)]


def test_stamps_that_decide_nothing_leave_the_suspect_held():
    gate = StampGate()
    assert judge([100, 50, 50, 0, 500], now=101, gate=gate)[2:] == [(DUPLICATE, None), (ZERO, None), (FUTURE, None)]
    assert gate.suspect_ns == 50 * NS
    assert judge([50.1], now=101, gate=gate) == [(JUMP, OK)]
    assert gate.suspect_ns is None and gate.newest_ns == round(50.1 * NS)


def test_a_camera_slower_than_one_hertz_still_survives_a_jump():
    assert judge([100, 102, 104, 50, 52, 54])[3:] == [(SUSPECT, None), (JUMP, OK), (OK, None)]


def test_a_gap_forward_is_a_jump_beyond_exactly_five_seconds():
    assert verdicts([100, 105, 110.001]) == [OK, OK, JUMP]


def test_one_wild_stamp_ahead_costs_an_epoch_but_not_the_stream():
    assert judge([100, 200, 100.1, 100.2, 100.3])[1:] == [(JUMP, None), (SUSPECT, None), (JUMP, OK), (OK, None)]


def test_reset_forgets_everything():
    gate = StampGate()
    judge([100, 50], gate=gate)
    gate.reset()
    assert gate.suspect_ns is None and gate.newest_ns is None
    assert judge([10], gate=gate) == [(OK, None)]


@pytest.mark.parametrize("name", ["future_tolerance_s", "jump_s", "forward_jump_s", "follow_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_nonsense_times_are_refused(name, value):
    with pytest.raises(ValueError, match="a stamp gate needs"):
        StampGate(**{name: value})


@given(st.lists(st.integers(-1, 40), max_size=120), st.integers(0, 40))
def test_every_frame_ends_once_and_each_epoch_ascends(stamps, now):
    """Stamps in half seconds: dense enough that duplicates, suspects and jumps happen in every run."""
    gate, ended, epochs, held = StampGate(), [], [[]], None
    for place, half in enumerate(stamps):
        ruling = gate.classify(half * NS // 2, now * NS)
        assert (ruling.suspect is None) or held is not None
        if ruling.verdict is JUMP:
            epochs.append([])
        if ruling.suspect is OK:
            assert ruling.verdict is JUMP
            epochs[-1].append(stamps[held])
        if ruling.suspect is not None:
            ended.append(held)
            held = None
        if ruling.verdict is SUSPECT:
            assert held is None
            held = place
        else:
            ended.append(place)
        if ruling.verdict in (OK, JUMP):
            epochs[-1].append(half)
        assert (gate.suspect_ns is None) == (held is None)
    assert sorted(ended + ([] if held is None else [held])) == list(range(len(stamps)))
    for epoch in epochs:
        assert all(a < b for a, b in pairwise(epoch))
        assert all(0 < half * NS // 2 <= (now + 1) * NS for half in epoch)


@given(st.lists(st.floats(0.01, 0.9), min_size=2, max_size=40), st.floats(1.1, 500), st.integers(1, 4))
def test_every_loop_of_a_recording_is_one_jump_and_loses_no_frame(steps, extra, loops):
    lap, stamp = [], 1000.0
    for step in steps:
        stamp += step
        lap.append(stamp)
    lap.append(lap[-1] + extra if extra < 5 else lap[-1] + 4.9)  # long enough to fall back by more than a second
    rulings = judge(lap * (loops + 1))
    assert [v for v, _ in rulings].count(JUMP) == loops
    assert sum(v in (OK, JUMP) for v, _ in rulings) + sum(s is OK for _, s in rulings) == len(rulings)
