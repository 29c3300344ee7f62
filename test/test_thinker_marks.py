"""The <think> block: what is thought and what is answer, and a thought that is ended when its budget is spent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinker_kit import frames, lively_thinker

from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.marks import MAX_TEXT_CHARS, Budget, Marks, Transcript

BEGIN, END = 100, 101
MARKS = Marks(BEGIN, END)
TASK = "put the red cube in the left tray"
tokens = st.lists(st.one_of(st.integers(0, 5), st.sampled_from([BEGIN, END])), max_size=30)


@pytest.fixture(scope="module")
def thinker():
    return lively_thinker()


@pytest.fixture(scope="module")
def tokenizer(thinker):
    return thinker._prompt._tokenizer


@pytest.mark.parametrize(
    ("written", "opened", "thought", "answer"),
    [
        ([1, 2, END, 3], True, [1, 2], [3]),
        ([1, 2], True, [1, 2], []),
        ([END, 1, 2], True, [], [1, 2]),
        ([1, 2], False, [], [1, 2]),
        ([BEGIN, 1, END, 2], False, [1], [2]),
        ([3, BEGIN, 1], False, [1], [3]),
        ([1, END, 2, END, 3], True, [1], [2, 3]),
        ([], True, [], []),
    ],
)
def test_thought_and_answer_are_told_apart(written, opened, thought, answer):
    assert MARKS.split(written, opened) == (thought, answer)


@given(tokens, st.booleans())
def test_no_token_but_the_marks_is_lost(written, opened):
    thought, answer = MARKS.split(written, opened)
    assert sorted(thought + answer) == sorted(t for t in written if t not in (BEGIN, END))


@given(tokens)
def test_a_block_is_open_after_the_last_mark_that_opens_one(written):
    marks = [t for t in written if t in (BEGIN, END)]
    assert MARKS.left_open(written) == (bool(marks) and marks[-1] == BEGIN)


@given(tokens, st.integers(0, 8), st.booleans())
def test_no_block_is_longer_than_its_budget(chosen, limit, opened):
    """Whatever the model writes; and what it writes outside a block, or within the budget, stays as it is."""
    budget = Budget(MARKS, limit, opened)
    written = [budget.instead_of(t) for t in chosen]
    inside, longest = (0 if opened else None), 0
    for token in written:
        if token in (BEGIN, END):
            inside = 0 if token == BEGIN else None
        elif inside is not None:
            inside += 1
            longest = max(longest, inside)
    assert longest <= limit
    changed = [(a, b) for a, b in zip(chosen, written, strict=True) if a != b]
    assert all(b == END for _, b in changed) and budget.forced == bool(changed)
    free = Budget(MARKS, None, opened)
    assert [free.instead_of(t) for t in chosen] == chosen and not free.forced
    assert [Budget().instead_of(t) for t in chosen] == chosen


def test_the_budget_ends_the_thought_of_a_model(thinker, tokenizer):
    """The forced token is one of the tokens, has a state, and what follows it is the answer."""
    end = tokenizer.get_added_vocab()["</think>"]
    shown = frames(6)
    free = thinker.think(shown, TASK, max_new_tokens=10, tokens=True)
    assert (free.text, thinker.report.forced_end) == ("", False) and free.thought
    bound = thinker.think(shown, TASK, max_new_tokens=10, think_tokens=4, tokens=True)
    assert thinker.report.forced_end and thinker.report.new_tokens == 10
    assert bound.text and free.thought.startswith(bound.thought) and bound.thought != free.thought
    said = (bound.streams == 2).nonzero()[0]
    assert len(said) == 10
    assert (bound.states[:, said[:4]] == free.states[:, said[:4]]).all(), "up to there it is the same thought"
    assert not (bound.states[:, said[4]] == free.states[:, said[4]]).any(), "and here another token was read"
    at_once = thinker.think(shown, TASK, max_new_tokens=3, think_tokens=0)
    assert at_once.thought == "" and at_once.text
    assert thinker.think(shown, TASK, max_new_tokens=4, think_tokens=4).text == "", "no room to answer"
    plain = thinker.think(shown, TASK, max_new_tokens=10, think_tokens=10)
    assert plain.thought == free.thought and not thinker.report.forced_end
    with pytest.raises(ThinkerError, match="think_tokens must be 0 or more"):
        thinker.think(shown, TASK, think_tokens=-1)
    written = []
    thinker.think(shown, TASK, max_new_tokens=10, think_tokens=4, on_text=written.append)
    assert written[3] == bound.thought == written[4] and written[-1] == f"{bound.thought} → {bound.text}"
    assert end not in tokenizer.encode(bound.text)


def test_text_is_clean_and_short(tokenizer):
    transcript = Transcript(tokenizer, [])
    nasty = tokenizer.encode("\x1b[31mred\x07\u202eder\r\ntwo")
    assert transcript.parts(nasty) == ("", "[31mred der two") and transcript.line(nasty) == "[31mred der two"
    thinking = Transcript(tokenizer, tokenizer.encode("<|im_start|>assistant\n<think>\n"))
    assert thinking.parts(nasty) == ("[31mred der two", "")
    answered = tokenizer.encode("left lamp red\n</think>\n\nred cube, left tray<|im_end|>")
    assert thinking.parts(answered) == ("left lamp red", "red cube, left tray")
    assert thinking.line(answered) == "left lamp red → red cube, left tray"
    closed = Transcript(tokenizer, tokenizer.encode("<|im_start|>assistant\n<think>\n\n</think>\n\n"))
    assert closed.parts(tokenizer.encode("red cube")) == ("", "red cube")
    long = tokenizer.encode("the tray " * 400 + "</think>" + "the tray " * 400)
    assert [len(part) for part in thinking.parts(long)] == [MAX_TEXT_CHARS] * 2


class _WithoutMarks:
    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def get_added_vocab(self):
        return {}

    def decode(self, *args, **kwargs):
        return self._tokenizer.decode(*args, **kwargs)


def test_a_tokenizer_without_marks_has_no_thoughts(tokenizer):
    plain = Transcript(_WithoutMarks(tokenizer), [])
    ids = tokenizer.encode("red cube")
    assert plain.parts(ids) == ("", "red cube") and plain.budget(0).instead_of(ids[0]) == ids[0]
