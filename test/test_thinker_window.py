"""Pair-aligned sparse sampling: pure time logic."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.thinker.window import Window

MS = 1_000_000


@st.composite
def cameras(draw, max_interval_ms=2000, max_frames=400):
    """Ascending stamps (ns) of a camera with any jitter, from any time on."""
    start = draw(st.integers(0, 2**60))
    intervals = draw(st.lists(st.integers(1, max_interval_ms * MS), min_size=1, max_size=max_frames))
    stamps = [start]
    for interval in intervals:
        stamps.append(stamps[-1] + interval)
    return stamps


windows = st.builds(
    lambda pairs, period: Window(2 * pairs * period, period), st.integers(1, 20), st.sampled_from([0.1, 0.25, 0.3])
)


def ring(stamps, newest, window):
    """What a ring that holds `window` seconds still has when `newest` has come."""
    return [s for s in stamps if newest - window.span_ns <= s <= newest]


def chosen(stamps, window):
    """Pairs as stamps, by their number."""
    return {p.number: (stamps[p.first], stamps[p.second]) for p in window.choose(stamps)}


@given(cameras(), windows)
def test_window_is_bounded_and_ends_at_the_newest(stamps, window):
    pairs = window.choose(stamps)
    assert 1 <= len(pairs) <= window.max_pairs
    flat = [stamps[i] for p in pairs for i in ((p.first, p.second) if p.first != p.second else (p.first,))]
    assert flat == sorted(set(flat)), "each frame once, in order"
    assert all(stamps[-1] - s < window.span_ns for s in flat)
    assert stamps[-1] - flat[-1] < window.period_ns


@given(cameras(max_frames=120), windows, st.data())
def test_a_formed_pair_never_changes(stamps, window, data):
    """Whenever the thoughts begin and whatever the ring has let go: same number, same frames."""
    formed = {}
    for newest in data.draw(st.lists(st.sampled_from(stamps), min_size=2, max_size=20).map(sorted)):
        now = chosen(ring(stamps, newest, window), window)
        for number, pair in now.items():
            assert formed.get(number, pair) == pair
            if pair[0] != pair[1] or number < max(now):
                formed[number] = pair
        oldest_start = newest - window.span_ns
        inside = {n for n in formed if n * 2 * window.period_ns > oldest_start}
        assert inside <= now.keys(), "a formed pair stays until the window leaves it"


@given(cameras(max_interval_ms=50), st.sampled_from([2.0, 8.0]))
def test_gaps_stay_below_a_third_of_a_second(stamps, window_s):
    """Any camera of 20 Hz or more, however irregular: neighbours are at most 0.3 s apart."""
    window = Window(window_s)
    flat = sorted({s for pair in chosen(stamps, window).values() for s in pair})
    assert all(b - a <= 300 * MS for a, b in pairwise(flat))


@given(cameras(), windows)
def test_gaps_are_below_a_slot_and_a_camera_interval(stamps, window):
    worst = max(b - a for a, b in pairwise(stamps))
    flat = sorted({s for pair in chosen(stamps, window).values() for s in pair})
    assert all(b - a < window.period_ns + worst for a, b in pairwise(flat))


@given(cameras(), windows)
def test_frames_already_thinned_are_all_chosen_again(stamps, window):
    once = chosen(stamps, window)
    thinned = sorted({s for pair in once.values() for s in pair})
    assert chosen(thinned, window) == once


@given(cameras(), windows)
def test_the_first_frame_of_each_slot_is_all_it_needs(stamps, window):
    """A live ring may thin by slot as frames arrive."""
    sparse = list({window.slot(s): s for s in reversed(stamps)}.values())[::-1]
    a, b = chosen(stamps, window), chosen(sparse, window)
    newest_start = sparse[-1] - window.span_ns
    # The thinned ring ends up to one slot earlier, so it may still hold one pair more at its old end.
    assert {n: p for n, p in b.items() if n in a} == a
    assert all(n * 2 * window.period_ns > newest_start for n in b)


def test_steady_camera_by_hand():
    window = Window(window_s=1.0, period_s=0.25)
    stamps = [k * 100 * MS for k in range(20)]  # 10 Hz, newest at 1.9 s
    assert chosen(stamps, window) == {2: (1000 * MS, 1300 * MS), 3: (1500 * MS, 1800 * MS)}
    assert chosen(stamps[:16], window) == {2: (1000 * MS, 1300 * MS), 3: (1500 * MS, 1500 * MS)}, "half a pair: twice"


def test_a_slot_without_a_frame_is_filled_by_its_neighbour():
    window = Window(window_s=4.0, period_s=0.25)
    assert chosen([300 * MS, 2000 * MS], window) == {0: (300 * MS, 300 * MS), 4: (2000 * MS, 2000 * MS)}


@pytest.mark.parametrize("stamps", [[2, 1], [1, 1], [1, 5, 5]])
def test_stamps_must_ascend(stamps):
    with pytest.raises(ValueError, match="ascend"):
        Window().choose(stamps)


def test_no_frames_no_pairs():
    assert Window().choose([]) == []


@pytest.mark.parametrize(
    ("window_s", "period_s"),
    [(8.0, 0.0), (8.0, -1.0), (8.0, float("nan")), (0.4, 0.25), (float("nan"), 0.25), (1e9, 0.25)],
)
def test_impossible_windows_are_refused(window_s, period_s):
    with pytest.raises(ValueError, match=r"period_s|window_s"):
        Window(window_s, period_s)
