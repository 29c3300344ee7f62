"""Frames kept by time: a bounded ring that answers "which frames lie on this time grid", and a sparse sampler.

Both count in integer nanoseconds of the ROS clock and know nothing of ROS: an item may be a raw message or an image.
Frames are chosen by stamp, never by index, so that a dropped frame or a slower camera does not stretch time.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Gap:
    """Why a window could not be filled. missing: the grid times in ns, oldest first, that have no frame near enough."""

    reason: str
    missing: tuple[int, ...]


def on_grid(stamps_ns: Sequence[int], newest_ns: int, count: int, step_ns: int, tolerance_ns: int) -> list[int] | Gap:
    """Indices of the frames nearest to newest_ns - k * step_ns for k = count-1 .. 0, oldest first.

    stamps_ns: ascending. The newest must be there with exactly that stamp; every other may be off by `tolerance_ns`. A
    frame never stands for two grid times and never is newer than `newest_ns`. Returns a Gap when a frame is missing.
    ValueError unless count >= 1, step_ns >= 1 and 0 <= 2 * tolerance_ns <= step_ns.
    """
    if count < 1 or step_ns < 1 or not 0 <= 2 * tolerance_ns <= step_ns:
        raise ValueError(
            "a window needs count >= 1, step_ns >= 1 and a tolerance of at most half a step, "
            f"not {count}, {step_ns} and {tolerance_ns}"
        )
    exclusive = 2 * tolerance_ns == step_ns
    chosen = [
        _nearest(stamps_ns, newest_ns - k * step_ns, tolerance_ns if k else 0, exclusive)
        for k in range(count - 1, -1, -1)
    ]
    found = [index for index in chosen if index is not None]
    if len(found) == count:
        return found
    missing = tuple(newest_ns - (count - 1 - place) * step_ns for place, index in enumerate(chosen) if index is None)
    if chosen[-1] is None:
        return Gap(f"the newest frame ({newest_ns} ns) is no longer in the ring", missing)
    return Gap(
        f"{len(missing)} of {count} frames are missing on the grid of {step_ns / 1e6:g} ms "
        f"(tolerance {tolerance_ns / 1e6:g} ms)",
        missing,
    )


def _nearest(stamps_ns: Sequence[int], time_ns: int, tolerance_ns: int, exclusive: bool) -> int | None:
    """Index of the frame nearest to `time_ns`, the older of two equally near; None if farther than the tolerance.

    exclusive leaves out a frame exactly `tolerance_ns` too new: with a tolerance of half a step it belongs to the
    next grid time.
    """
    right = bisect_left(stamps_ns, time_ns)
    best: int | None = None
    for index in (right - 1, right):
        if not 0 <= index < len(stamps_ns):
            continue
        off = stamps_ns[index] - time_ns
        if abs(off) > tolerance_ns or (exclusive and off > 0 and off == tolerance_ns):
            continue
        if best is None or abs(off) < abs(stamps_ns[best] - time_ns):
            best = index
    return best


class FrameRing(Generic[T]):
    """The frames of the last `span_ns` nanoseconds, at most `max_items` of them, ascending in time.

    Thread-safe: the subscription appends while a worker reads; every call holds one lock for microseconds.
    """

    def __init__(self, span_ns: int, max_items: int) -> None:
        """ValueError unless span_ns >= 0 and max_items >= 1."""
        if span_ns < 0 or max_items < 1:
            raise ValueError(f"a frame ring needs span_ns >= 0 and max_items >= 1, not {span_ns} and {max_items}")
        self.span_ns = int(span_ns)
        self.max_items = int(max_items)
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._items: list[T] = []

    def append(self, stamp_ns: int, item: T) -> None:
        """Add the newest frame and forget those that are too old or too many.

        ValueError unless `stamp_ns` is newer than every frame kept (StampGate sorts stamps out beforehand).
        """
        with self._lock:
            if self._stamps and stamp_ns <= self._stamps[-1]:
                raise ValueError(
                    f"frame stamp {stamp_ns} ns is not newer than {self._stamps[-1]} ns; "
                    "clear() the ring after a clock jump"
                )
            self._stamps.append(stamp_ns)
            self._items.append(item)
            drop = max(bisect_left(self._stamps, stamp_ns - self.span_ns), len(self._stamps) - self.max_items)
            del self._stamps[:drop], self._items[:drop]

    def window(self, newest_ns: int, count: int, step_ns: int, tolerance_ns: int) -> list[tuple[int, T]] | Gap:
        """The frames that `on_grid` chooses, as (stamp_ns, item), oldest first, or the Gap."""
        with self._lock:
            chosen = on_grid(self._stamps, newest_ns, count, step_ns, tolerance_ns)
            return chosen if isinstance(chosen, Gap) else [(self._stamps[i], self._items[i]) for i in chosen]

    def items(self, since_ns: int | None = None) -> list[tuple[int, T]]:
        """A copy of what is kept, as (stamp_ns, item), oldest first; without frames older than `since_ns` if given."""
        with self._lock:
            first = 0 if since_ns is None else bisect_left(self._stamps, since_ns)
            return list(zip(self._stamps[first:], self._items[first:], strict=True))

    def get(self, stamp_ns: int) -> T | None:
        """The item with exactly this stamp, or None."""
        with self._lock:
            index = bisect_left(self._stamps, stamp_ns)
            return self._items[index] if index < len(self._stamps) and self._stamps[index] == stamp_ns else None

    def remove(self, stamp_ns: int) -> bool:
        """Forget the frame with exactly this stamp (its image turned out to be broken). False when it is not there."""
        with self._lock:
            index = bisect_left(self._stamps, stamp_ns)
            if index == len(self._stamps) or self._stamps[index] != stamp_ns:
                return False
            del self._stamps[index], self._items[index]
            return True

    def clear(self) -> int:
        """Forget everything (clock jump, reactivation); returns how many frames were dropped."""
        with self._lock:
            dropped = len(self._stamps)
            self._stamps.clear()
            self._items.clear()
            return dropped

    @property
    def newest(self) -> int | None:
        """Stamp in ns of the newest frame, None while empty."""
        with self._lock:
            return self._stamps[-1] if self._stamps else None

    def __len__(self) -> int:
        with self._lock:
            return len(self._stamps)


class SparseSampler:
    """Thins a stream to at most one frame per period, for the long window of the thinker.

    Periods lie on the absolute time grid (period k begins at k * period_ns) and the first frame of each is kept. So the
    choice does not depend on when the node started, and two kept frames are at most one period and one camera period
    apart.
    """

    def __init__(self, period_ns: int) -> None:
        """ValueError unless period_ns >= 1."""
        if period_ns < 1:
            raise ValueError(f"a sparse sampler needs period_ns >= 1, not {period_ns}")
        self.period_ns = int(period_ns)
        self._last: int | None = None

    def keep(self, stamp_ns: int) -> bool:
        """Whether this frame is the first of its period."""
        period = stamp_ns // self.period_ns
        if period == self._last:
            return False
        self._last = period
        return True

    def reset(self) -> None:
        """Forget the last period (clock jump), so that the next frame is kept."""
        self._last = None
