"""What the thinker tells of its thoughts: their text while they are written, and what became of them. ROS-free."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..thinker.errors import ThinkerError
from ..values import Guidance
from .task import Turn

if TYPE_CHECKING:
    from ..thinker.qwen import Report

#: Ends the text of a thought that goes on. (A finished text that was cut for its length ends without the space.)
MORE = " …"
_TEXT_PERIOD_S = 0.05


class TextStream:
    """The text of the thought under way, at most every 50 ms and marked as unfinished, and the final one.

    A thought that ends without a result takes its words back: the last finished text is published again, so that the
    last message (the one that late joiners get) is always the text of the last finished thought.
    """

    def __init__(self, publish: Callable[[str], None]) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._turn: object | None = None
        self._final = ""
        self._partial = False
        self._due = 0.0

    def begin(self, turn: object) -> None:
        """From now on only `turn` may say something."""
        with self._lock:
            self._turn = turn

    def show(self, turn: object, text: str) -> None:
        """All that was written so far."""
        with self._lock:
            now = time.monotonic()
            if text and turn is self._turn and now >= self._due:
                self._due = now + _TEXT_PERIOD_S
                self._partial = True
                self._publish(text + MORE)

    def finish(self, turn: object, text: str) -> None:
        """The final text."""
        with self._lock:
            if turn is self._turn:
                self._turn, self._partial, self._final = None, False, text
                self._publish(text)

    def drop(self) -> None:
        """The thought under way, if any, came to nothing."""
        with self._lock:
            self._turn = None
            if self._partial:
                self._partial = False
                self._publish(self._final)


class Thoughts:
    """The last thought, and how many were published, cancelled, failed or skipped (the scene had not changed)."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._numbered = (-1, 0)  # epoch and sequence of the last thought; they outlive an activation
        self.begin()

    def begin(self) -> None:
        """The node is activated: there is no last thought."""
        self._last: tuple[Turn, Guidance] | None = None
        self._skipped = 0  # in a row
        self._took_s = 0.0
        self._report: Report | None = None

    def next_sequence(self, epoch: int) -> int:
        """Number of the next thought; every epoch counts from 1."""
        return self._numbered[1] + 1 if self._numbered[0] == epoch else 1

    def will_do(self, turn: Turn, newest_ns: int, epoch: int, period_s: float) -> bool:
        """Whether the last guidance answers `turn` too, should the scene of its newest image be the same.

        Not beyond half of its life, where it begins to fade, and not if it could run out before the turn after.
        """
        if self._last is None or turn.requested:
            return False
        before, last = self._last
        age_s = (newest_ns - last.stamp_ns) * 1e-9
        same = (turn.instruction, turn.template, epoch) == (before.instruction, before.template, last.epoch)
        return same and age_s < last.valid_for_s / 2 and age_s + period_s + self._took_s < last.valid_for_s

    def published(self, turn: Turn, guidance: Guidance, report: Report | None, took_s: float) -> None:
        """took_s: of the whole turn."""
        self._last = (turn, guidance)
        self._numbered = (guidance.epoch, guidance.sequence)
        self._skipped = 0
        self._took_s, self._report = took_s, report
        self._counts["published"] += 1

    def skipped(self) -> None:
        self._skipped += 1
        self._counts["skipped"] += 1

    def cancelled(self) -> None:
        self._counts["cancelled"] += 1

    def failed(self) -> None:
        self._counts["failed"] += 1

    def remark(self, period_s: float) -> str:
        """What is worth saying while all is well. period_s: of thoughts; 0 when they come on request."""
        remarks = []
        if self._last is not None and "{instruction}" not in (self._last[0].template or "{instruction}"):
            remarks.append("prompt_template has no {instruction}, so that instructions play no part")
        if self._skipped:
            remarks.append(f"the scene has not changed, {self._skipped} thoughts left out")
        elif 0 < period_s < self._took_s:
            remarks.append(f"a thought takes {self._took_s:.2f} s, longer than think_period_s ({period_s:g} s)")
        if self._report is not None and self._report.stop == "deadline":
            remarks.append("think_timeout_s cut the last thought short")
        elif self._last is not None and self._last[1].thought and not self._last[1].text:
            remarks.append("the last thought came to no answer; raise max_new_tokens or set think_tokens")
        return "; ".join(remarks)

    def figures(self) -> dict[str, str]:
        """Lines for /diagnostics."""
        lines = {
            f"thoughts {name}": str(self._counts[name]) for name in ("published", "cancelled", "failed", "skipped")
        }
        r = self._report
        if r is not None:
            lines["last thought"] = (
                f"{self._took_s * 1e3:.0f} ms: vision {r.vision_s * 1e3:.0f}, prompt {r.prefill_s * 1e3:.0f}, "
                f"words {r.decode_s * 1e3:.0f}; {r.new_pairs} of {r.pairs} pairs new, "
                f"{r.prompt_tokens} + {r.new_tokens} tokens, ended by {r.stop}"
            )
        return lines


def refuse_expired(guidance: Guidance, newest_ns: int, took_s: float) -> None:
    """Raises ThinkerError for a thought that lasted until nothing it saw counts any more."""
    if newest_ns - guidance.stamp_ns >= guidance.valid_for_s * 1e9:
        raise ThinkerError(
            f"it took {took_s:.1f} s and guidance_valid_for_s is {guidance.valid_for_s:g} s, so that it would count "
            "for nothing; give it fewer tokens or images, or a longer life"
        )
