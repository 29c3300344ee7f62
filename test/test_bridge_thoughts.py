"""The parts of the thinker node that need no ROS: what it is asked, what it says while it thinks, what became of it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.bridge.ledger import Ledger
from thinkjepa_ros.bridge.task import PATIENCE, Task
from thinkjepa_ros.bridge.thoughts import MORE, TextStream, Thoughts, refuse_expired
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.qwen import Report
from thinkjepa_ros.values import Guidance

S = 1_000_000_000
REPORT = Report(16, 2, 300, 5, "length", False, 0.01, 0.02, 0.03, 0.0, 0.06)


def guidance(stamp_ns: int = 0, **fields) -> Guidance:
    values = {"valid_for_s": 4.0, "text": "red", "sequence": 1, "epoch": 7, **fields}
    return Guidance(np.zeros((1, 2, 4), np.float32), (0,), stamp_ns, **values)


# ---- what is asked


def test_a_new_question_cancels_the_turn_and_the_same_one_does_not():
    task = Task("a", "")
    turn = task.begin()
    assert not task.change(instruction="a") and not task.change(template="") and not turn.cancel.is_set()
    assert task.change(instruction="b") and turn.cancel.is_set()
    task.end(turn, over=False)
    assert task.begin().instruction == "b"


def test_instruction_and_template_are_changed_apart():
    task = Task("a", "t")
    assert task.change(template="u")
    turn = task.begin()
    assert (turn.instruction, turn.template) == ("a", "u")
    assert task.change(instruction="b") and (task.instruction, task.template) == ("b", "u")


def test_after_some_cancelled_thoughts_one_is_thought_to_its_end():
    task = Task("", "")
    for k in range(PATIENCE):
        turn = task.begin()
        assert not turn.unbroken
        task.change(instruction=f"a{k}")
        assert turn.cancel.is_set()
        task.end(turn, over=False)
    turn = task.begin()
    assert turn.unbroken and task.change(instruction="newer") and not turn.cancel.is_set()
    task.end(turn, over=True)
    last = task.begin()
    assert last.unbroken and last.instruction == "newer", "the flood may go on"
    task.end(last, over=True)
    assert not task.begin().unbroken, "the flood is over: the newest question was answered"


def test_an_unbroken_turn_still_ends_with_the_activation_or_a_jump():
    task = Task("", "")
    for k in range(PATIENCE):
        turn = task.begin()
        task.change(instruction=str(k))
        task.end(turn, over=False)
    turn = task.begin()
    task.cancel()
    assert turn.unbroken and turn.cancel.is_set()


def test_a_request_lasts_until_a_turn_about_it_is_over():
    task = Task("", "")
    assert task.request() and task.requested
    turn = task.begin()
    assert turn.requested and not task.requested
    task.end(turn, over=False)
    assert task.requested, "cancelled: it was not answered"
    turn = task.begin()
    assert not task.request(), "a turn is under way; another one follows"
    task.end(turn, over=True)
    assert task.requested and task.begin().requested


@given(st.lists(st.sampled_from(["change", "begin", "end", "void", "cancel", "request"]), max_size=60))
def test_a_flood_never_starves_and_the_newest_question_always_counts(steps):
    task, turn, asked, row = Task("0", ""), None, 0, 0
    for step in steps:
        if step == "change":
            asked += 1
            assert task.change(instruction=str(asked))
            if turn is not None and not turn.unbroken:
                assert turn.cancel.is_set()
        elif step == "begin" and turn is None:
            turn = task.begin()
            assert turn.instruction == str(asked) and turn.unbroken == (row >= PATIENCE)
        elif step in ("end", "void") and turn is not None:
            over = step == "end" and not turn.cancel.is_set()
            task.end(turn, over)
            row = row + 1 if turn.displaced else 0 if over and turn.instruction == str(asked) else row
            turn = None
        elif step == "cancel":
            task.cancel()
        elif step == "request":
            task.request()
    assert task.instruction == str(asked)


# ---- what is said


@pytest.fixture
def stream(monkeypatch):
    said: list[str] = []
    stream = TextStream(said.append)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stream.said, stream.clock = said, clock
    return stream


def test_text_under_way_is_marked_and_comes_at_most_20_times_a_second(stream):
    turn = object()
    stream.begin(turn)
    for k in range(100):
        stream.clock[0] += 0.01
        stream.show(turn, f"word {k}")
    assert 18 <= len(stream.said) <= 20 and all(text.endswith(MORE) for text in stream.said)
    stream.finish(turn, "the answer")
    assert stream.said[-1] == "the answer"


def test_a_thought_that_comes_to_nothing_takes_its_words_back(stream):
    first, second = object(), object()
    stream.begin(first)
    stream.show(first, "bl")
    stream.drop()
    assert stream.said == ["bl" + MORE, ""], "no thought has finished yet"
    stream.begin(second)
    stream.finish(second, "red")
    stream.clock[0] += 1
    third = object()
    stream.begin(third)
    stream.show(third, "gre")
    stream.drop()
    stream.drop()
    assert stream.said[2:] == ["red", "gre" + MORE, "red"]


def test_nothing_is_taken_back_where_nothing_was_said(stream):
    turn = object()
    stream.begin(turn)
    stream.show(turn, "")
    stream.drop()
    assert stream.said == []


def test_a_call_that_comes_back_late_says_nothing(stream):
    hung, now = object(), object()
    stream.begin(hung)
    stream.drop()
    stream.show(hung, "late")
    stream.finish(hung, "late")
    stream.begin(now)
    stream.clock[0] += 1
    stream.show(hung, "late")
    stream.finish(hung, "late")
    assert stream.said == []
    stream.finish(now, "in time")
    assert stream.said == ["in time"]


def test_two_threads_never_leave_a_partial_text_last():
    for _ in range(200):
        said: list[str] = []
        stream, turn = TextStream(said.append), object()
        stream.begin(turn)
        late = threading.Thread(target=stream.show, args=(turn, "half"))
        late.start()
        stream.drop()
        late.join()
        assert not said or said[-1] == ""


# ---- what became of it


def test_the_last_guidance_will_do_only_for_the_same_question_in_its_first_half():
    task, thoughts = Task("a", ""), Thoughts()
    turn = task.begin()
    assert not thoughts.will_do(turn, 0, 7, 0.1), "there is no guidance"
    thoughts.published(turn, guidance(10 * S), REPORT, 0.1)
    assert thoughts.will_do(turn, 11 * S, 7, 0.1)
    assert thoughts.will_do(turn, 12 * S - 1, 7, 0.1) and not thoughts.will_do(turn, 12 * S, 7, 0.1), "half of 4 s"
    assert not thoughts.will_do(turn, 11 * S, 8, 0.1), "another epoch"
    assert not thoughts.will_do(turn, 11 * S, 7, 2.95), "it would have run out before the next"
    task.end(turn, True)
    task.change(instruction="b")
    assert not thoughts.will_do(task.begin(), 11 * S, 7, 0.1), "another question"
    task.change(instruction="a")
    task.request()
    assert not thoughts.will_do(task.begin(), 11 * S, 7, 0.1), "it was asked for"
    thoughts.begin()
    assert not thoughts.will_do(turn, 11 * S, 7, 0.1), "of an earlier activation"


def test_thoughts_are_numbered_within_an_epoch_over_activations():
    thoughts, turn = Thoughts(), Task("", "").begin()
    assert thoughts.next_sequence(7) == 1
    thoughts.published(turn, guidance(sequence=1), REPORT, 0.1)
    assert thoughts.next_sequence(7) == 2
    thoughts.begin()
    assert thoughts.next_sequence(7) == 2, "the predictor would refuse another first one"
    assert thoughts.next_sequence(8) == 1


def test_remarks_and_figures():
    thoughts, task = Thoughts(), Task("", "only lamps")
    assert thoughts.remark(1.0) == ""
    turn = task.begin()
    thoughts.published(turn, guidance(), REPORT, 1.5)
    assert "1.50 s, longer than think_period_s (1 s)" in thoughts.remark(1.0)
    assert "no {instruction}" in thoughts.remark(1.0)
    assert "longer" not in thoughts.remark(0.0) and "longer" not in thoughts.remark(2.0)
    thoughts.skipped()
    thoughts.skipped()
    assert "not changed, 2 thoughts left out" in thoughts.remark(1.0)
    thoughts.cancelled()
    thoughts.failed()
    figures = thoughts.figures()
    counts = [figures[f"thoughts {name}"] for name in ("published", "cancelled", "failed", "skipped")]
    assert counts == ["1", "1", "1", "2"] and "2 of 16 pairs new, 300 + 5 tokens" in figures["last thought"]
    plain = Task("", "").begin()
    thoughts.published(plain, guidance(text="", thought="hm"), REPORT, 0.5)
    assert "no answer" in thoughts.remark(1.0) and "left out" not in thoughts.remark(1.0)
    thoughts.published(plain, guidance(), Report(**{**vars(REPORT), "stop": "deadline"}), 0.5)
    assert "think_timeout_s" in thoughts.remark(1.0)


def test_a_thought_that_outlived_its_guidance_is_refused():
    refuse_expired(guidance(10 * S), 14 * S - 1, 1.0)
    with pytest.raises(ThinkerError, match=r"took 4\.2 s and guidance_valid_for_s is 4 s"):
        refuse_expired(guidance(10 * S), 14 * S, 4.2)


# ---- what it looks at


def image(good: bool = True):
    from sensor_msgs.msg import Image

    return Image(height=4, width=4, encoding="rgb8", step=12, data=bytes(48 if good else 7))


def long_window(ledger, refused):
    from thinkjepa_ros.bridge.long_window import LongWindow

    return LongWindow(2 * S, S // 4, ledger, refused.append)


def test_a_broken_image_takes_nothing_from_the_window_before_it():
    ledger, refused = Ledger(), []
    window = long_window(ledger, refused)
    stamps = [S + k * S // 4 for k in range(9)]
    for stamp in stamps:
        assert window.file(ledger.receive(stamp, image(), "camera", 0))
    assert window.file(ledger.receive(stamps[-1] + S * 3 // 4, image(good=False), "camera", 0))
    entries, frames = window.take(0, lambda frame: frame)
    assert [entry.stamp_ns for entry in entries] == stamps and len(frames) == 9
    assert len(refused) == 1 and ledger.counts().reasons == {"bad_image": 1}


def test_what_has_left_the_window_is_not_looked_at():
    ledger = Ledger()
    window = long_window(ledger, [])
    stamps = [S + k * S // 4 for k in range(30)]
    for stamp in stamps:
        window.file(ledger.receive(stamp, image(), "camera", 0))
    entries, _ = window.take(0, lambda frame: frame)
    assert [entry.stamp_ns for entry in entries] == [s for s in stamps if s >= stamps[-1] - 2 * S]
    assert ledger.counts().pending == len(window.pending()) <= len(entries) + 4 and ledger.counts().superseded >= 16
