"""What generated tokens say: which of them are thought and which are answer, and how long the thought may get."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .inputs import clean_line

#: Text of a thought is shown in terminals and sent in every message: longer ones are cut.
MAX_TEXT_CHARS = 500
#: Between thought and answer where both are shown in one line.
_THEN = " → "


@dataclass(frozen=True)
class Marks:
    """Token ids of <think> and </think>. The prompt of a reasoning model may end with the block already open."""

    begin: int
    end: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Marks | None:
        """The marks of a tokenizer, or None if it has none as single tokens."""
        added = tokenizer.get_added_vocab()
        begin, end = added.get("<think>"), added.get("</think>")
        return None if begin is None or end is None else cls(begin, end)

    def left_open(self, ids: Iterable[int]) -> bool:
        """Whether a block is open after these tokens."""
        last = None
        for token in ids:
            if token in (self.begin, self.end):
                last = token
        return last == self.begin

    def split(self, tokens: Sequence[int], opened: bool) -> tuple[list[int], list[int]]:
        """Tokens of the thought and of the answer, without the marks. opened: the prompt ended inside a block.

        A block that was never closed is all thought. Without a block all is answer.
        """
        thought: list[int] = []
        answer: list[int] = []
        inside = opened
        for token in tokens:
            if token == self.begin:
                inside = True
            elif token == self.end:
                inside = False
            else:
                (thought if inside else answer).append(token)
        return thought, answer


class Budget:
    """Counts the tokens of an open block and says when it has to be closed; one object per thought.

    limit: tokens inside the block, None for no limit. opened: the prompt ended inside a block.
    """

    def __init__(self, marks: Marks | None = None, limit: int | None = None, opened: bool = False) -> None:
        self._marks, self._limit = marks, limit
        self._spent: int | None = 0 if opened else None  # None outside a block
        self.forced = False  #: a block was closed because its budget was spent

    def instead_of(self, token: int) -> int:
        """The token to go on with: the one that the model chose, or </think> where the block has used up its budget."""
        if self._marks is None:
            return token
        if self._spent is not None and self._limit is not None and self._spent >= self._limit:
            self.forced |= token != self._marks.end
            token = self._marks.end
        if token == self._marks.end:
            self._spent = None
        elif token == self._marks.begin:
            self._spent = 0
        elif self._spent is not None:
            self._spent += 1
        return token


class Transcript:
    """Generated tokens as text, fit for terminals, logs and messages.

    tail: the tokens that every prompt of the model ends with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tail: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._marks = Marks.of(tokenizer)
        self._opened = self._marks is not None and self._marks.left_open(tail)

    def budget(self, limit: int | None) -> Budget:
        """For one thought; limit: tokens inside its <think> block."""
        return Budget(self._marks, limit, self._opened)

    def parts(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Thought and answer, each a clean line."""
        parts = ([], list(tokens)) if self._marks is None else self._marks.split(tokens, self._opened)
        thought, answer = (str(self._tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
        return clean_line(thought, MAX_TEXT_CHARS), clean_line(answer, MAX_TEXT_CHARS)

    def line(self, tokens: Sequence[int]) -> str:
        """Thought and answer in one line."""
        return _THEN.join(filter(None, self.parts(tokens)))
