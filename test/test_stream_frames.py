"""FrameRing, Gap and SparseSampler."""

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.stream.frames import FrameRing, Gap, SparseSampler

MS = 1_000_000


def ring_of(stamps, span=10**12, most=1000):
    ring = FrameRing(span, most)
    for stamp in stamps:
        ring.append(stamp, f"frame {stamp}")
    return ring


def test_window_of_a_30_hz_camera_lies_on_the_grid_and_ends_at_the_newest():
    stamps = [round(k * 1e9 / 30) for k in range(1, 61)]
    ring = ring_of(stamps)
    found = ring.window(stamps[-1], 8, 100 * MS, 50 * MS)
    assert [stamp for stamp, _ in found] == stamps[-1 - 21 :: 3]
    assert [item for _, item in found] == [f"frame {stamp}" for stamp in stamps[-1 - 21 :: 3]]


def test_window_may_end_before_the_newest_frame_and_never_looks_past_its_end():
    ring = ring_of([100, 200, 300, 349, 400])
    assert [s for s, _ in ring.window(300, 3, 100, 50)] == [100, 200, 300]


def test_window_takes_the_nearest_and_of_two_equally_near_the_older():
    ring = ring_of([90, 108, 195, 205, 300])
    assert [s for s, _ in ring.window(300, 3, 100, 20)] == [108, 195, 300]


def test_one_frame_never_stands_for_two_grid_times():
    ring = ring_of([150, 300])  # half-way between 100 and 200, tolerance half a step
    gap = ring.window(300, 3, 100, 50)
    assert isinstance(gap, Gap) and gap.missing == (100,)


def test_gap_names_the_missing_times_oldest_first():
    gap = ring_of([100, 300, 500]).window(500, 5, 100, 20)
    assert gap == Gap(gap.reason, (200, 400))
    assert "2 of 5" in gap.reason


def test_the_newest_must_be_exact():
    ring = ring_of([100, 201])
    gap = ring.window(200, 2, 100, 50)
    assert isinstance(gap, Gap) and 200 in gap.missing and "no longer" in gap.reason


def test_a_window_of_one_is_the_newest_frame():
    assert ring_of([7]).window(7, 1, 100, 0) == [(7, "frame 7")]


@pytest.mark.parametrize("count, step, tolerance", [(0, 100, 0), (1, 0, 0), (2, 100, 51), (2, 100, -1)])
def test_nonsense_windows_are_refused(count, step, tolerance):
    with pytest.raises(ValueError, match="a window needs"):
        ring_of([100]).window(100, count, step, tolerance)


@pytest.mark.parametrize("span, most", [(-1, 1), (1, 0)])
def test_nonsense_rings_are_refused(span, most):
    with pytest.raises(ValueError, match="a frame ring needs"):
        FrameRing(span, most)


def test_append_refuses_a_stamp_that_is_not_newer_and_keeps_what_it_had():
    ring = ring_of([100, 200])
    for stamp in (200, 150, 1):
        with pytest.raises(ValueError, match="not newer than 200"):
            ring.append(stamp, "late")
    assert [s for s, _ in ring.items()] == [100, 200]


def test_eviction_by_span_keeps_the_frame_exactly_at_the_edge():
    ring = ring_of([100, 199, 200, 300], span=100)
    assert [s for s, _ in ring.items()] == [200, 300]


def test_eviction_by_count():
    assert [s for s, _ in ring_of([1, 2, 3, 4], most=2).items()] == [3, 4]


def test_remove_get_items_clear_newest():
    ring = ring_of([100, 200, 300])
    assert ring.remove(200) and not ring.remove(200) and not ring.remove(999)
    assert ring.get(100) == "frame 100" and ring.get(200) is None and ring.get(10**9) is None
    assert ring.items(since_ns=150) == [(300, "frame 300")]
    assert ring.newest == 300 and len(ring) == 2
    assert ring.clear() == 2
    assert ring.newest is None and len(ring) == 0 and ring.items() == []
    ring.append(5, "after the jump")
    assert ring.newest == 5


stamps_strategy = st.lists(st.integers(1, 3000), unique=True, max_size=80).map(sorted)


@given(stamps_strategy, st.integers(0, 500), st.integers(1, 20))
def test_ring_holds_exactly_the_newest_frames_of_its_span(stamps, span, most):
    ring = ring_of(stamps, span, most)
    expected = [s for s in stamps if s >= stamps[-1] - span][-most:] if stamps else []
    assert [s for s, _ in ring.items()] == expected


@given(stamps_strategy.filter(bool), st.integers(1, 8), st.integers(1, 300), st.data())
def test_window_agrees_with_a_search_over_all_frames(stamps, count, step, data):
    tolerance = data.draw(st.integers(0, step // 2))
    newest = data.draw(st.sampled_from(stamps))
    found = ring_of(stamps).window(newest, count, step, tolerance)
    missing, chosen = [], []
    for k in reversed(range(count)):
        grid = newest - k * step
        near = [s for s in stamps if (-tolerance <= s - grid <= tolerance if k else s == grid)]
        near = [s for s in near if s - grid < tolerance or 2 * tolerance < step or s == grid]
        if near:
            chosen.append(min(near, key=lambda s: (abs(s - grid), s)))
        else:
            missing.append(grid)
    if missing:
        assert isinstance(found, Gap) and list(found.missing) == missing
    else:
        assert [s for s, _ in found] == chosen
        assert len(set(chosen)) == count and max(chosen) == newest


def test_reading_while_another_thread_appends():
    ring, errors, done = FrameRing(2000, 64), [], threading.Event()

    def read():
        while not done.is_set():
            newest = ring.newest
            if newest is not None:
                found = ring.window(newest, 4, 30, 10)
                if not isinstance(found, Gap) and any(stamp != item for stamp, item in found):
                    errors.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for stamp in range(10, 200_000, 10):
        ring.append(stamp, stamp)
    done.set()
    for thread in readers:
        thread.join(5)
    assert not errors and len(ring) == 64


def test_sampler_keeps_the_first_frame_of_each_period():
    sampler = SparseSampler(300)
    assert [s for s in range(650, 1500, 33) if sampler.keep(s)] == [650, 914, 1211]


def test_sampler_choice_does_not_depend_on_the_start():
    late, early = SparseSampler(300), SparseSampler(300)
    stamps = list(range(10, 6000, 33))
    kept = [s for s in stamps if early.keep(s)]
    kept_late = [s for s in stamps[40:] if late.keep(s)]
    assert kept_late[1:] == [s for s in kept if s > kept_late[0]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(1, 300))
def test_sampler_gap_is_bounded_by_a_period_and_a_camera_period(steps, period):
    sampler, stamp, stamps = SparseSampler(period), 1000, []
    for step in steps:
        stamp += step
        stamps.append(stamp)
    kept = [s for s in stamps if sampler.keep(s)]
    assert kept[0] == stamps[0]
    assert all(b - a < period + max(steps) for a, b in pairwise(kept))
    assert len({s // period for s in kept}) == len(kept)


def test_sampler_after_a_jump():
    sampler = SparseSampler(300)
    assert sampler.keep(900) and not sampler.keep(910)
    sampler.reset()
    assert sampler.keep(920)
    assert sampler.keep(10), "time thrown back starts a new period even without reset"


def test_sampler_refuses_no_period():
    with pytest.raises(ValueError, match="period_ns >= 1"):
        SparseSampler(0)
