"""The parts of a node that need no ROS: the ledger, the guidance box, the pacer and the worker."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_kit import wait_until

from thinkjepa_ros.bridge.guidance import FUTURE_TOLERANCE_NS, GuidanceBox
from thinkjepa_ros.bridge.ledger import Entry, Fate, Ledger
from thinkjepa_ros.bridge.worker import Pacer, Worker
from thinkjepa_ros.values import Guidance

NS = 1_000_000_000


def balanced(ledger: Ledger) -> bool:
    c = ledger.counts()
    return c.received == c.used + c.superseded + c.refused + c.pending and sum(c.reasons.values()) == c.refused


def test_an_image_has_one_fate_at_a_time():
    ledger = Ledger()
    entry = ledger.receive(1, "message", "camera", 0)
    assert ledger.counts().pending == 1
    ledger.settle(entry, Fate.SUPERSEDED)
    ledger.settle(entry, Fate.REFUSED, "bad_image")
    counts = ledger.counts()
    assert (counts.received, counts.superseded, counts.refused, counts.reasons) == (1, 0, 1, {"bad_image": 1})
    for fate in (Fate.USED, Fate.SUPERSEDED):
        with pytest.raises(ValueError, match="cannot become"):
            ledger.settle(entry, fate)
    assert balanced(ledger)


def test_a_refusal_needs_a_reason_and_nothing_else_has_one():
    ledger = Ledger()
    entry = ledger.receive(1, None, "", 0)
    with pytest.raises(ValueError, match="reason"):
        ledger.settle(entry, Fate.REFUSED)
    with pytest.raises(ValueError, match="reason"):
        ledger.settle(entry, Fate.USED, "because")
    assert entry.fate is Fate.PENDING and balanced(ledger)


def test_the_sum_comes_out_while_two_threads_settle():
    ledger = Ledger()
    entries: list[Entry] = []
    wrong, done = [], threading.Event()

    def settle(fate, reason):
        while not done.is_set():
            ledger.settle_pending(entries[-50:], fate, reason)
            if not balanced(ledger):
                wrong.append(ledger.counts())

    threads = [threading.Thread(target=settle, args=a) for a in ((Fate.USED, ""), (Fate.REFUSED, "odd"))]
    for thread in threads:
        thread.start()
    for k in range(2000):
        entries.append(ledger.receive(k, None, "", 0))
    wait_until(lambda: ledger.counts().pending == 0 or ledger.settle_pending(entries, Fate.SUPERSEDED), "all settled")
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong and balanced(ledger) and ledger.counts().received == 2000


def test_rate_and_latency():
    ledger = Ledger()
    assert math.isnan(ledger.counts().latency_p50_s) and ledger.counts().rate_hz == 0
    for k in range(21):
        ledger.publish(k * 1e-3)
        time.sleep(0.01)
    counts = ledger.counts()
    assert counts.latency_p50_s == pytest.approx(0.010) and 0.019 < counts.latency_p99_s <= 0.020
    assert 20 < counts.rate_hz <= 100 and counts.published == 21


# ---- guidance


def thought(stamp_s: float, sequence: int = 1, epoch: int = 1, valid_for_s: float = 4.0) -> Guidance:
    return Guidance(
        np.zeros((1, 2, 4), np.float32), (0,), round(stamp_s * NS), valid_for_s, epoch=epoch, sequence=sequence
    )


def at(seconds: float) -> int:
    return round(seconds * NS)


def test_guidance_is_held_until_a_newer_one_comes():
    box, first, second = GuidanceBox(lambda g: None), thought(10.0, 1), thought(11.0, 2)
    assert box.current(at(10)) is None
    assert box.offer(first, at(10.2)) is None and box.current(at(10.5)) is first
    assert box.offer(second, at(11.2)) is None and box.current(at(60.0)) is second, "its age is not judged here"


def test_guidance_from_the_future_is_refused():
    box = GuidanceBox(lambda g: None)
    assert "after the newest frame" in box.offer(thought(10.2), at(10.0))
    assert box.offer(thought(10.05), at(10.0)) is None


def test_guidance_that_came_before_the_first_frame_is_judged_at_the_first_frame():
    box = GuidanceBox(lambda g: None)
    assert box.offer(thought(50.0), None) is None
    assert box.current(at(10.0)) is None and box.counts().reasons == {"future_stamp": 1}
    assert box.current(at(51.0)) is None, "it does not come back when time reaches it"
    box.clear()
    assert box.offer(thought(9.0), None) is None and box.current(at(10.0)) is not None


def test_order_within_an_epoch_and_between_epochs():
    box = GuidanceBox(lambda g: None)
    assert box.offer(thought(1.0, 5, epoch=3), at(2)) is None
    assert "came after" in box.offer(thought(1.1, 5, epoch=3), at(2))
    assert "came after" in box.offer(thought(1.2, 4, epoch=3), at(2))
    assert box.offer(thought(1.3, 1, epoch=9), at(2)) is None
    assert "newer epoch" in box.offer(thought(1.4, 6, epoch=3), at(2))
    assert box.counts().reasons == {"out_of_order": 2, "past_epoch": 1}


def test_after_a_jump_back_the_old_epoch_is_closed_until_time_has_passed_its_end():
    box = GuidanceBox(lambda g: None)
    assert box.offer(thought(20.0, 1), at(20)) is None
    box.jump(at(21.0), backward=True)
    assert box.current(at(20.0)) is None
    assert "before the clock jumped" in box.offer(thought(15.0, 2), at(16))
    # a thinker that missed the jump goes on in its epoch; beyond the old end there is no doubt any more
    assert box.offer(thought(22.0, 3), at(22)) is None


def test_a_jump_ahead_closes_no_epoch():
    box = GuidanceBox(lambda g: None)
    assert box.offer(thought(20.0, 1), at(20)) is None
    box.jump(at(20.5), backward=False)
    assert box.current(at(20.6)) is None
    assert box.offer(thought(30.0, 2), at(30)) is None


def test_what_does_not_fit_is_refused_with_the_words_of_the_model():
    def check(guidance):
        raise ValueError("pyramid is too small")

    box = GuidanceBox(check)
    assert box.offer(thought(1.0), at(1)) == "pyramid is too small" and box.counts().reasons == {"malformed": 1}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.integers(0, 60), st.integers(0, 5), st.integers(0, 3)),
            st.tuples(st.just("ask"), st.integers(0, 60)),
            st.tuples(st.just("jump"), st.integers(0, 60), st.booleans()),
            st.tuples(st.just("bad")),
        ),
        max_size=60,
    )
)
def test_every_guidance_is_accounted_for(steps):
    """received == used + refused + superseded + at most the one in the box; nothing from the future is held."""
    box, now = GuidanceBox(lambda g: None), 30
    for step in steps:
        if step[0] == "offer":
            box.offer(thought(step[1], step[2], step[3]), at(now))
        elif step[0] == "ask":
            now = max(now, step[1])
            if (found := box.current(at(now))) is not None:
                assert found.stamp_ns <= at(now) + FUTURE_TOLERANCE_NS
                box.used(found)
        elif step[0] == "jump":
            box.jump(at(now), step[2])
            now = step[1]
        else:
            box.refuse("malformed")
        c = box.counts()
        assert 0 <= c.received - c.used - c.refused - c.superseded <= 1 and sum(c.reasons.values()) == c.refused


# ---- pace


def test_pacer_keeps_the_period_on_average():
    pacer = Pacer(0.02)
    began = time.monotonic()
    for _ in range(11):
        assert pacer.wait()
        pacer.begin()
    took = time.monotonic() - began
    assert 0.19 <= took < 2.0


def test_pacer_lets_jitter_pass_but_not_the_rate():
    """Turns that come a little early after a late one are not held back by a whole period."""
    pacer = Pacer(0.1)
    pacer.begin()
    time.sleep(0.13)  # 30 ms late
    assert pacer.wait()
    pacer.begin()
    began = time.monotonic()
    assert pacer.wait()
    assert time.monotonic() - began < 0.09, "due 200 ms after the first, not 100 ms after the late one"


def test_a_sleeping_pacer_follows_a_new_period_hurry_and_close():
    pacer = Pacer(3600.0)
    pacer.begin()
    results: list[tuple[bool, float]] = []

    def wait():
        began = time.monotonic()
        results.append((pacer.wait(), time.monotonic() - began))

    for act, expected in ((lambda: pacer.set_period(0.01), True), (pacer.hurry, True), (pacer.close, False)):
        pacer.set_period(3600.0)
        pacer.begin()
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.03)
        assert thread.is_alive()
        act()
        thread.join(5)
        assert results[-1][0] is expected and results[-1][1] < 5
    assert not pacer.wait()


def test_worker_knows_how_long_a_call_takes_and_reports_a_crash():
    gate, crashes = threading.Event(), []

    def loop():
        with worker.busy():
            gate.wait(10)
        raise RuntimeError("unforeseen")

    worker = Worker("test worker", loop, crashes.append)
    assert worker.busy_s == 0.0
    worker.start()
    wait_until(lambda: worker.busy_s > 0.02, "a call under way")
    assert not worker.join(0.01) and worker.alive
    gate.set()
    assert worker.join(5) and worker.busy_s == 0.0 and "unforeseen" in str(crashes[0])
