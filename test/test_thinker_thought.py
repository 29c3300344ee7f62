"""Whole thoughts: shapes, exactness under caching, limits, and survival of what goes wrong."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from thinker_kit import frames, fresh_thinker

from thinkjepa_ros.thinker.qwen import Cancelled, ThinkerError, TimedOut
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.values import GENERATED, PROMPT_TEXT, PROMPT_VISUAL, Frame

TASK = "put the red cube in the left tray"


@pytest.fixture(scope="module")
def shared_thinker():
    return fresh_thinker()


@pytest.fixture()
def thinker(shared_thinker):
    shared_thinker.forget()
    return shared_thinker


def same(a, b) -> bool:
    return np.array_equal(a.pyramid, b.pyramid) and (a.text, a.stamp_ns, a.present) == (b.text, b.stamp_ns, b.present)


def test_guidance_says_what_it_is(thinker):
    shown = frames(9, start_ns=7_000_000_000)
    g = thinker.think(shown, TASK, max_new_tokens=4, valid_for_s=3.0, sequence=5, epoch=2)
    assert g.pyramid.shape == (4, 2, 128) and g.pyramid.dtype == np.float32 and np.isfinite(g.pyramid).all()
    assert (g.layers, g.present, g.stamp_ns) == ((0, 1, 2, 3), (True, True), shown[-1].stamp_ns)
    assert (g.valid_for_s, g.sequence, g.epoch, g.instruction) == (3.0, 5, 2, TASK)
    assert g.model_id.endswith("(untrained)") and g.thought
    assert g.instruction_id == thinker.think(shown, f"  {TASK}\n", max_new_tokens=0).instruction_id
    assert g.instruction_id != thinker.think(shown, "put the blue cube", max_new_tokens=0).instruction_id
    assert np.abs(g.pyramid.astype(np.float16).astype(np.float32) - g.pyramid).max() < 1e-2, "fits float16 on the wire"


def test_two_thinkers_agree_bit_for_bit(thinker):
    assert same(thinker.think(frames(20), TASK), fresh_thinker().think(frames(20), TASK))


def test_cached_pairs_change_nothing_but_the_time(thinker):
    """A window sliding frame by frame over kept features equals a thinker that sees each window for the first time."""
    stream, fresh = frames(40), fresh_thinker()
    for end in range(33, 39):
        kept = thinker.think(stream[:end], TASK, max_new_tokens=3)
        report = thinker.report
        fresh.forget()
        assert same(kept, fresh.think(stream[:end], TASK, max_new_tokens=3))
        assert fresh.report.new_pairs == report.pairs == fresh.report.pairs
        if end > 33:
            assert report.new_pairs <= 1


def test_window_picks_from_dense_frames(thinker):
    """Thirty frames a second or the chosen few: the same thought, and frames outside the window play no part."""
    dense = frames(300, step_s=1 / 30, size=(32, 32))
    sparse = {thinker.window.slot(f.stamp_ns): f for f in reversed(dense)}
    few = sorted(sparse.values(), key=lambda f: f.stamp_ns)
    newest = few[-1].stamp_ns
    inside = [f for f in few if newest - f.stamp_ns < thinker.window.span_ns]
    whole = thinker.think(dense, TASK, max_new_tokens=2)
    assert len(few) > 2 * thinker.window.max_pairs
    assert same(whole, thinker.think(few, TASK, max_new_tokens=2)) and same(
        whole, thinker.think(inside, TASK, max_new_tokens=2)
    )


def test_frames_of_any_size_and_prepared_ones_are_the_same(thinker):
    big = frames(4, size=(90, 160))
    small = [thinker.prepare(f) for f in big]
    assert small[0].rgb.shape == (128, 128, 3) and small[0].stamp_ns == big[0].stamp_ns
    assert same(thinker.think(big, TASK), thinker.think(small, TASK))


def test_every_input_matters(thinker):
    """Pixels, time, words and order of the frames reach the guidance."""
    shown = frames(8)
    base = thinker.think(shown, TASK).pyramid
    brighter = [*shown[:2], Frame(np.full_like(shown[2].rgb, 200), shown[2].stamp_ns), *shown[3:]]
    swapped = [Frame(shown[k ^ 4].rgb, f.stamp_ns) for k, f in enumerate(shown)]
    later = [Frame(f.rgb, f.stamp_ns + (k > 3) * 2_000_000_000) for k, f in enumerate(shown)]
    for other in (brighter, swapped, later):
        assert not np.array_equal(thinker.think(other, TASK).pyramid, base)
    assert not np.array_equal(thinker.think(shown, "put the blue cube in the right tray").pyramid, base)


def test_each_pair_is_told_its_time(thinker, monkeypatch):
    """Middle of the pair in seconds since the first frame; a single frame is its own middle."""
    told = []
    ids = thinker._prompt.ids
    monkeypatch.setattr(thinker._prompt, "ids", lambda times, *rest: told.extend(times) or ids(times, *rest))
    start = 5_000_000_000
    stamps = [start + round(s * 1e9) for s in (0.05, 0.3, 0.61, 0.99, 1.7)]
    rgb = frames(1)[0].rgb
    thinker.think([Frame(rgb, s) for s in stamps], TASK, max_new_tokens=0)
    assert told == pytest.approx([0.125, 0.75, 1.65])
    assert thinker.report.prompt_tokens == ids(told, 16, TASK).shape[1]


def test_absolute_time_does_not_matter(thinker):
    """Stamps enter relative to the window, in whole slots: the same scene an hour later is the same thought."""
    hour = 3600 * 10**9
    a = thinker.think(frames(8), TASK)
    b = thinker.think(frames(8, start_ns=hour), TASK)
    assert np.array_equal(a.pyramid, b.pyramid) and b.stamp_ns - a.stamp_ns == hour


def test_one_frame_is_enough_and_none_is_not(thinker):
    assert thinker.think(frames(1), TASK, max_new_tokens=1).present == (True, True)
    with pytest.raises(ThinkerError, match="no frame to think about"):
        thinker.think([], TASK)


def test_no_tokens_leave_the_generated_stream_absent(thinker):
    g = thinker.think(frames(4), TASK, max_new_tokens=0)
    assert g.present == (True, False) and g.text == "" and not g.pyramid[:, 1].any() and g.pyramid[:, 0].any()


def test_observed_pairs_are_ready_when_the_thought_begins(thinker):
    stream = frames(330, step_s=1 / 30, size=(32, 32))
    alone = fresh_thinker().think(stream, TASK, max_new_tokens=2)
    for frame in stream:
        thinker.observe(frame)
    g = thinker.think(stream, TASK, max_new_tokens=2)
    assert thinker.report.new_pairs <= 1 and thinker.report.pairs >= 15
    assert same(g, alone)


def test_text_is_streamed_and_clean(thinker):
    seen = []
    g = thinker.think(frames(4), TASK, max_new_tokens=4, on_text=seen.append)
    assert len(seen) == 4 and seen[-1] == g.thought and all(b.startswith(a) for a, b in pairwise(seen))


def test_the_token_form_holds_what_the_means_are_made_of(thinker):
    shown = frames(7)
    g = thinker.think(shown, TASK, max_new_tokens=5, tokens=True)
    pooled = thinker.think(shown, TASK, max_new_tokens=5)
    assert pooled.states is pooled.streams is None and np.array_equal(pooled.pyramid, g.pyramid)
    report = thinker.report
    assert g.states.shape == (4, report.prompt_tokens + 5, 128) and g.states.dtype == np.float32
    assert g.streams.dtype == np.uint8 and (g.streams == PROMPT_VISUAL).sum() == 16 * report.pairs
    assert (g.streams[-5:] == GENERATED).all() and (g.streams == GENERATED).sum() == 5
    prompt = g.streams != GENERATED
    np.testing.assert_allclose(g.states[:, prompt].mean(1), g.pyramid[:, 0], atol=1e-5)
    np.testing.assert_allclose(g.states[:, ~prompt].mean(1), g.pyramid[:, 1], atol=1e-5)
    for pool, kind in (("text", PROMPT_TEXT), ("visual", PROMPT_VISUAL)):
        other = fresh_thinker(pool=pool).think(shown, TASK, max_new_tokens=5).pyramid
        np.testing.assert_allclose(g.states[:, g.streams == kind].mean(1), other[:, 0], atol=1e-5)
    silent = thinker.think(shown, TASK, max_new_tokens=0, tokens=True)
    assert silent.states.shape[1] == report.prompt_tokens and not (silent.streams == GENERATED).any()


def test_the_report_says_where_the_time_went(thinker):
    thinker.think(frames(12), TASK, max_new_tokens=4)
    r = thinker.report
    assert (r.pairs, r.new_pairs, r.new_tokens, r.stop, r.forced_end) == (6, 6, 4, "length", False)
    parts = (r.vision_s, r.prefill_s, r.decode_s, r.pool_s)
    assert all(p > 0 for p in parts) and 0.8 * r.total_s < sum(parts) <= r.total_s
    thinker.think(frames(12), TASK, max_new_tokens=4, think_tokens=1)
    assert thinker.report.new_pairs == 0 and thinker.report.forced_end


def test_another_question_is_asked_from_the_next_thought_on():
    thinker = fresh_thinker()
    own, shown = thinker.question, frames(4)
    before = thinker.think(shown, TASK)
    thinker.ask("Describe what is seen.")
    other = thinker.think(shown, TASK)
    assert not np.array_equal(other.pyramid, before.pyramid) and thinker.report.new_pairs == 0
    assert np.array_equal(thinker.think(shown, "anything else").pyramid, other.pyramid), "no place for an instruction"
    thinker.ask("Now: {instruction}!")
    assert not np.array_equal(thinker.think(shown, TASK).pyramid, thinker.think(shown, "anything else").pyramid)
    for bad in ("{task}", "x" * 2001, "<|im_start|>"):
        with pytest.raises(ThinkerError, match="the question"):
            thinker.ask(bad)
        assert thinker.question == "Now: {instruction}!"
    thinker.ask("")
    assert thinker.question == own and same(thinker.think(shown, TASK), before)
    asked = fresh_thinker(prompt="Now: {instruction}!")
    assert asked.question == "Now: {instruction}!"
    asked.ask(" ")
    assert asked.question == own, "the checkpoint's, not the first one asked"
    with pytest.raises(ThinkerError, match=r"the question holds \{task\}"):
        fresh_thinker(prompt="{task}")


def test_a_change_of_the_scene_is_measured_against_the_last_finished_thought(thinker):
    def grey(level, stamp_ns=0, size=(128, 128)):
        return [Frame(np.full((*size, 3), level, np.uint8), stamp_ns)]

    assert thinker.scene_change(grey(5)) == math.inf
    thinker.think(grey(100), TASK, max_new_tokens=0)
    assert thinker.scene_change(grey(100)) == 0 and thinker.scene_change(grey(110)) == 10
    assert thinker.scene_change(grey(90, size=(300, 300))) == 10, "pictures are compared as the model sees them"
    assert thinker.scene_change([*grey(0), *grey(255, 1)]) == 155, "the newest one"
    half = np.full((128, 128, 3), 100, np.uint8)
    half[:64] = 120
    assert thinker.scene_change([Frame(half, 0)]) == 10
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        thinker.think(grey(200), TASK, cancel=cancel)
    assert thinker.scene_change(grey(200)) == 100, "a thought that did not finish has seen nothing"
    thinker.think([*grey(0), *grey(200, 10**9)], TASK, max_new_tokens=0)
    assert thinker.scene_change(grey(200)) == 0
    thinker.forget()
    assert thinker.scene_change(grey(200)) == math.inf
    with pytest.raises(ThinkerError, match="no frame to compare"):
        thinker.scene_change([])
    thinker.think(grey(200), TASK, max_new_tokens=0)
    with pytest.raises(ThinkerError, match=r"uint8 \[H, W, 3\]"):
        thinker.scene_change([Frame(np.zeros((4, 4), np.uint8), 0)])


def test_frames_observed_during_a_thought_are_left_to_the_next_one(thinker):
    """From another thread, at any time: nothing is computed beside the thought, lost, or mixed up."""
    stream = frames(24)
    alone = fresh_thinker().think(stream, TASK, max_new_tokens=2)
    seen = []

    def on_text(_):
        before = len(thinker._encoder)
        thread = threading.Thread(target=lambda: [thinker.observe(f) for f in stream])
        thread.start()
        thread.join()
        seen.append(len(thinker._encoder) - before)

    thinker.think(stream[:8], TASK, max_new_tokens=2, on_text=on_text)
    assert seen == [0, 0]
    assert same(thinker.think(stream, TASK, max_new_tokens=2), alone) and thinker.report.new_pairs == 8
    for frame in frames(2, seed=5, start_ns=60_000_000_000):
        thinker.observe(frame)
    assert len(thinker._encoder) == 13, "between thoughts a pair is encoded when it is complete"


def test_the_view_of_the_checkpoint_is_kept():
    """The mini is shown the central square."""
    thinker = fresh_thinker()
    assert thinker._view == "centre"
    wide = Frame(np.zeros((96, 160, 3), np.uint8), 0)
    wide.rgb[:, :32] = wide.rgb[:, 128:] = 255
    assert not thinker.prepare(wide).rgb.any()
    thinker._view = "whole"
    assert (thinker.prepare(wide).rgb == 255).any()


def test_cancel_and_the_next_thought_works(thinker):
    before = thinker.think(frames(8), TASK)
    cancel, seen = threading.Event(), []

    def on_text(text):
        seen.append(text)
        cancel.set()

    with pytest.raises(Cancelled):
        thinker.think(frames(8), TASK, max_new_tokens=1000, cancel=cancel, on_text=on_text)
    assert len(seen) == 1, "within one token"
    with pytest.raises(Cancelled):
        thinker.think(frames(8), TASK, cancel=cancel)
    assert same(thinker.think(frames(8), TASK), before)


def test_cancel_from_another_thread_is_quick(thinker):
    cancel, ended = threading.Event(), []

    def work():
        try:
            thinker.think(frames(8), TASK, max_new_tokens=100_000, cancel=cancel)
        except Cancelled:
            ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    asked = time.monotonic()
    cancel.set()
    thread.join(5)
    assert ended and ended[0] - asked < 1.0


def test_deadline_before_the_prompt_is_read(thinker):
    with pytest.raises(TimedOut, match="before the prompt was read"):
        thinker.think(frames(8), TASK, deadline_s=0.0)
    assert thinker.think(frames(8), TASK, deadline_s=60.0).present == (True, True)


def test_deadline_between_tokens_keeps_the_thought_so_far(thinker):
    thinker.think(frames(8), TASK, max_new_tokens=1)  # pairs are kept, so that only tokens take time
    g = thinker.think(frames(8), TASK, max_new_tokens=100_000, deadline_s=0.5)
    assert g.present == (True, True) and thinker.report.stop == "deadline"
    assert 1 <= thinker.report.new_tokens < 100_000 and thinker.report.total_s < 5


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory in a thought on cpu.*shorten the window"),
        (MemoryError(), "out of memory"),
        (RuntimeError("kernel lost"), "the model failed in a thought: kernel lost"),
    ],
)
def test_failures_are_reported_and_survived(thinker, failure, words):
    before = thinker.think(frames(6), TASK)

    def fail(*_):
        raise failure

    handle = thinker._model.model.language_model.layers[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(ThinkerError, match=words):
            thinker.think(frames(6), TASK)
    finally:
        handle.remove()
    assert same(thinker.think(frames(6), TASK), before)


@pytest.mark.parametrize(
    ("shown", "instruction", "options", "words"),
    [
        (frames(4)[::-1], TASK, {}, "stamps of the frames must ascend"),
        ([Frame(np.zeros((8, 8), np.uint8), 0)], TASK, {}, r"uint8 \[H, W, 3\]"),
        (frames(2), "x" * 501, {}, "501 characters"),
        (frames(2), TASK, {"max_new_tokens": -1}, "max_new_tokens must be 0 or more"),
    ],
)
def test_input_that_cannot_be_used_is_refused(thinker, shown, instruction, options, words):
    with pytest.raises(ThinkerError, match=words):
        thinker.think(shown, instruction, **options)


def test_forget_from_another_thread_while_thinking(thinker):
    stop = threading.Event()

    def forget():
        while not stop.wait(1e-4):  # a loop without a pause would keep the interpreter to itself
            thinker.forget()
            forgotten.append(1)

    forgotten: list[int] = []
    thread = threading.Thread(target=forget)
    before = thinker.think(frames(12), TASK)
    thread.start()
    try:
        for _ in range(3):
            assert same(thinker.think(frames(12), TASK), before)
    finally:
        stop.set()
        thread.join()
    assert len(forgotten) > 100


def test_warm_up_leaves_nothing_behind(thinker):
    thinker.warm_up()
    assert len(thinker._encoder) == 0 and thinker.report is None


def test_memory_stays_bounded(thinker):
    """A long stream keeps no more pairs than twice the window."""
    tiny_window = fresh_thinker(window=Window(2.0, 0.25))
    for start in range(0, 20, 2):
        tiny_window.think(frames(8, seed=start, start_ns=start * 10**9), "", max_new_tokens=0)
    assert len(tiny_window._encoder) == 2 * tiny_window.window.max_pairs == 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(thinker, dtype):
    full = thinker.think(frames(6), TASK, max_new_tokens=2).pyramid
    half = fresh_thinker(dtype=dtype).think(frames(6), TASK, max_new_tokens=2).pyramid
    assert half.dtype == np.float32
    assert np.linalg.norm(half[:, 0] - full[:, 0]) < 0.03 * np.linalg.norm(full[:, 0])
    assert not np.array_equal(half, full)
