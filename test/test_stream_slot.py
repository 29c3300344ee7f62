"""NewestWins: nothing waits, nothing vanishes."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.stream.slot import NewestWins

pytestmark = pytest.mark.alone


def test_the_newest_item_comes_out_and_the_displaced_one_is_handed_back():
    slot = NewestWins()
    assert slot.put("a") is None and slot.put("b") == "a"
    assert len(slot) == 1
    assert slot.get(0) == "b" and slot.get(0) is None and len(slot) == 0


def test_get_waits_for_an_item():
    slot = NewestWins()
    threading.Timer(0.05, slot.put, ["late"]).start()
    began = time.monotonic()
    assert slot.get(5) == "late"
    assert time.monotonic() - began < 2


def test_get_gives_up_after_its_timeout():
    began = time.monotonic()
    assert NewestWins().get(0.05) is None
    assert 0.04 < time.monotonic() - began < 2


def test_close_wakes_every_waiting_get():
    slot, woken = NewestWins(), []
    threads = [threading.Thread(target=lambda: woken.append(slot.get(30))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    slot.close()
    for thread in threads:
        thread.join(5)
    assert woken == [None, None, None] and slot.closed


def test_a_closed_slot_hands_back_what_is_put_and_keeps_what_waited_for_clear():
    slot = NewestWins()
    slot.put("waiting")
    slot.close()
    slot.close()
    assert slot.put("too late") == "too late"
    assert slot.get(0) is None
    assert slot.clear() == ["waiting"] and slot.clear() == []


def test_none_cannot_be_handed_over():
    with pytest.raises(ValueError, match="None cannot"):
        NewestWins().put(None)


def test_an_item_that_is_false_is_an_item():
    slot = NewestWins()
    slot.put(0)
    assert slot.put(0.0) == 0
    assert slot.get(0) == 0.0


@given(st.lists(st.sampled_from(["put", "get", "clear", "close"]), max_size=60))
def test_every_item_ends_exactly_once(actions):
    slot, ended, put = NewestWins(), [], 0
    for action in actions:
        if action == "put":
            lost = slot.put(put)
            put += 1
            ended += [] if lost is None else [lost]
        elif action == "get":
            item = slot.get(0)
            ended += [] if item is None else [item]
        elif action == "clear":
            ended += slot.clear()
        else:
            slot.close()
    assert sorted(ended + slot.clear()) == list(range(put))


def test_two_threads_lose_nothing():
    slot, used, superseded = NewestWins(), [], []

    def work():
        while (item := slot.get(5)) is not None:
            used.append(item)

    worker = threading.Thread(target=work)
    worker.start()
    for item in range(20_000):
        lost = slot.put(item)
        if lost is not None:
            superseded.append(lost)
    deadline = time.monotonic() + 5
    while len(slot) and time.monotonic() < deadline:
        time.sleep(0.001)
    slot.close()
    worker.join(5)
    assert sorted(used + superseded) == list(range(20_000))
    assert used == sorted(used) and used[-1] == 19_999
