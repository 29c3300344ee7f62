"""What became of every message: one lock, and a sum that always comes out.

received == used + superseded + refused + pending, at every moment and in every thread. ROS-free.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

_RATE_SPAN_S = 3.0
_LATENCIES = 300


class Fate(Enum):
    """Where a received image ends. Only a superseded one can move on.

    A window that needs it may find it broken, and an overloaded worker may come back to it.
    """

    PENDING = "pending"
    USED = "used"
    SUPERSEDED = "superseded"
    REFUSED = "refused"


_ALLOWED = {
    (Fate.PENDING, Fate.USED),
    (Fate.PENDING, Fate.SUPERSEDED),
    (Fate.PENDING, Fate.REFUSED),
    (Fate.SUPERSEDED, Fate.REFUSED),
    (Fate.SUPERSEDED, Fate.USED),
}


@dataclass(eq=False)
class Entry:
    """One received image on its way.

    message: the raw ROS message, None once it has served. rgb: its pixels once decoded.

    arrived: monotonic seconds. epoch: of the node when it arrived. Only `Ledger.settle` changes `fate`.
    """

    stamp_ns: int
    message: Any
    frame_id: str
    arrived: float
    epoch: int
    rgb: np.ndarray | None = None
    fate: Fate = field(default=Fate.PENDING)


@dataclass(frozen=True)
class Counts:
    """A consistent copy of the ledger. latency_s: p50 and p99 of the last results (NaN without one)."""

    received: int
    used: int
    superseded: int
    refused: int
    pending: int
    reasons: dict[str, int]
    published: int
    rate_hz: float
    latency_p50_s: float
    latency_p99_s: float


class Ledger:
    """Counts images by fate, refusals by reason, and results by time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fates: Counter[Fate] = Counter()
        self._reasons: Counter[str] = Counter()
        self._published = 0
        self._times: deque[float] = deque()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    def receive(self, stamp_ns: int, message: Any, frame_id: str, epoch: int) -> Entry:
        """Open an entry for an image that has just arrived; it is pending."""
        entry = Entry(stamp_ns, message, frame_id, time.monotonic(), epoch)
        with self._lock:
            self._fates[Fate.PENDING] += 1
        return entry

    def settle(self, entry: Entry, fate: Fate, reason: str = "") -> None:
        """Move an entry to its fate; `reason` is the counter of a refusal.

        ValueError for a move that would count an image twice, or a refusal without a reason.
        """
        with self._lock:
            self._move(entry, fate, reason)

    def _move(self, entry: Entry, fate: Fate, reason: str) -> None:
        if (fate is Fate.REFUSED) != bool(reason):
            raise ValueError(f"a refusal has a reason and nothing else has one, not {fate.value} because of {reason!r}")
        if (entry.fate, fate) not in _ALLOWED:
            raise ValueError(f"the image at {entry.stamp_ns} ns is {entry.fate.value} and cannot become {fate.value}")
        self._fates[entry.fate] -= 1
        self._fates[fate] += 1
        entry.fate = fate
        if reason:
            self._reasons[reason] += 1

    def settle_pending(self, entries: Sequence[Entry], fate: Fate, reason: str = "") -> int:
        """Settle those of `entries` that are still pending; returns how many. Two threads may name the same entry."""
        settled = 0
        with self._lock:
            for entry in entries:
                if entry.fate is Fate.PENDING:
                    self._move(entry, fate, reason)
                    settled += 1
        return settled

    def publish(self, latency_s: float) -> None:
        """Count one result. latency_s: from the stamp of its image to now."""
        now = time.monotonic()
        with self._lock:
            self._published += 1
            self._times.append(now)
            self._latencies.append(latency_s)
            self._forget_old(now)

    def _forget_old(self, now: float) -> None:
        while self._times and self._times[0] < now - _RATE_SPAN_S:
            self._times.popleft()

    def counts(self) -> Counts:
        """A copy in which all numbers belong to the same moment."""
        now = time.monotonic()
        with self._lock:
            self._forget_old(now)
            times, latencies = list(self._times), list(self._latencies)
            fates, reasons, published = Counter(self._fates), dict(self._reasons), self._published
        span = now - times[0] if times else 0.0
        # n results bound n - 1 intervals; a node that has just begun is not measured over an empty past
        rate = (
            (len(times) - 1) / (times[-1] - times[0])
            if len(times) > 1 and span < _RATE_SPAN_S / 2
            else len(times) / _RATE_SPAN_S
        )
        p50, p99 = np.percentile(latencies, (50, 99)) if latencies else (np.nan, np.nan)
        return Counts(
            received=sum(fates.values()),
            used=fates[Fate.USED],
            superseded=fates[Fate.SUPERSEDED],
            refused=fates[Fate.REFUSED],
            pending=fates[Fate.PENDING],
            reasons=reasons,
            published=published,
            rate_hz=rate,
            latency_p50_s=float(p50),
            latency_p99_s=float(p99),
        )
