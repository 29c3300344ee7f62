"""Which guidance the predictor gets: the newest of a living thinker, never from the future or before a clock jump.

How much it counts, and for how long, is the Forecaster's business. ROS-free.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..values import Guidance

#: The thinker may see a frame a little before we do.
FUTURE_TOLERANCE_NS = 100_000_000
#: Of a time line that ended: the thinker may have seen this much more of it than we did.
_ENDED_MARGIN_NS = 500_000_000
_REMEMBERED_EPOCHS = 64


@dataclass(frozen=True)
class GuidanceCounts:
    """received == used + refused + superseded + (1 while one waits for its first use)."""

    received: int
    used: int
    refused: int
    superseded: int
    reasons: dict[str, int]


class GuidanceBox:
    """Holds the guidance in force. The subscription offers, the worker asks; one lock.

    check: raises ValueError (the reason in words) for a guidance that does not fit the model.
    """

    def __init__(self, check: Callable[[Guidance], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._now: Guidance | None = None
        self._fresh = False  # in the box and not used yet
        self._placed = False  # its stamp was compared with a frame of ours
        self._last: tuple[int, int] | None = None  # epoch and sequence last accepted
        self._left: OrderedDict[int, None] = OrderedDict()  # epochs that a newer one has replaced
        self._ended: OrderedDict[int, int] = OrderedDict()  # epoch -> last stamp of the time line it was thought on

    def refuse(self, reason: str) -> None:
        """Count a message that could not even be read."""
        with self._lock:
            self._counts["received"] += 1
            self._count_refusal(reason)

    def offer(self, guidance: Guidance, newest_ns: int | None) -> str | None:
        """Take a guidance that has arrived, or say in a sentence why not.

        newest_ns: stamp of the newest frame received; None when none came yet, then the stamp is judged at the first
        frame.
        """
        with self._lock:
            self._counts["received"] += 1
            refusal = self._judge(guidance, newest_ns)
            if refusal is not None:
                self._count_refusal(refusal[0])
                return refusal[1]
            if self._last is not None and self._last[0] != guidance.epoch:
                _remember(self._left, self._last[0], None)
            self._last = (guidance.epoch, guidance.sequence)
            self._drop()
            self._now, self._fresh, self._placed = guidance, True, newest_ns is not None
            return None

    def _judge(self, guidance: Guidance, newest_ns: int | None) -> tuple[str, str] | None:
        try:
            self._check(guidance)
        except ValueError as error:
            return "malformed", str(error)
        if newest_ns is not None and guidance.stamp_ns > newest_ns + FUTURE_TOLERANCE_NS:
            ahead = (guidance.stamp_ns - newest_ns) * 1e-9
            return (
                "future_stamp",
                f"guidance is stamped {ahead:.2f} s after the newest frame; was it thought before a clock jump?",
            )
        ended = self._ended.get(guidance.epoch)
        # beyond the end of the old time line it can only have been thought on the new one (a thinker that missed the
        # jump)
        if ended is not None and guidance.stamp_ns <= ended + _ENDED_MARGIN_NS:
            return "before_jump", f"guidance of epoch {guidance.epoch} was thought before the clock jumped"
        if guidance.epoch in self._left:
            return (
                "past_epoch",
                f"guidance of epoch {guidance.epoch} came after a newer epoch; do two thinkers publish on this topic?",
            )
        if self._last is not None and self._last[0] == guidance.epoch and guidance.sequence <= self._last[1]:
            return "out_of_order", f"guidance {guidance.sequence} came after {self._last[1]}"
        return None

    def current(self, now_ns: int) -> Guidance | None:
        """The guidance to hold at `now_ns`, the stamp of the newest frame; None while there is none."""
        with self._lock:
            if self._now is None:
                return None
            if not self._placed:
                self._placed = True
                if self._now.stamp_ns > now_ns + FUTURE_TOLERANCE_NS:
                    self._now, self._fresh = None, False
                    self._count_refusal("future_stamp")
            return self._now

    def used(self, guidance: Guidance) -> None:
        """A forecast in which `guidance` counted was published."""
        with self._lock:
            if self._fresh and self._now is guidance:
                self._fresh = False
                self._counts["used"] += 1

    def jump(self, last_ns: int | None, backward: bool) -> None:
        """The clock jumped: what is in the box is void. last_ns: newest stamp of the old time line.

        After a jump back, guidance thought before it looks young again, so its epoch is closed. A jump ahead closes
        nothing: old guidance is stale by itself, and a thinker that did not miss those frames goes on in its epoch.
        """
        with self._lock:
            if self._last is not None and backward and last_ns is not None:
                _remember(self._ended, self._last[0], last_ns)
            self._drop()

    def clear(self) -> None:
        """Forget the guidance in force and all epochs (reactivation)."""
        with self._lock:
            self._drop()
            self._last = None
            self._left.clear()
            self._ended.clear()

    def _drop(self) -> None:
        if self._fresh:
            self._counts["superseded"] += 1
        self._now, self._fresh = None, False

    def _count_refusal(self, reason: str) -> None:
        self._counts["refused"] += 1
        self._reasons[reason] += 1

    def counts(self) -> GuidanceCounts:
        with self._lock:
            c = self._counts
            return GuidanceCounts(c["received"], c["used"], c["refused"], c["superseded"], dict(self._reasons))


def _remember(epochs: OrderedDict, epoch: int, value: int | None) -> None:
    """Bounded memory: a peer that invents epochs must not fill it."""
    epochs[epoch] = value
    while len(epochs) > _REMEMBERED_EPOCHS:
        epochs.popitem(last=False)
