"""The long window of the thinker: one image per sampling period, filed at any time, made small by the worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..stream.frames import FrameRing, SparseSampler
from ..thinker.errors import ThinkerError
from ..values import Frame
from .images import ImageError, to_rgb
from .ledger import Entry, Fate, Ledger

_MAX_FRAMES = 4096
#: Kept beyond the window: an image that turns out to be broken when it is looked at makes the one before it the newest.
_SLACK_NS = 1_000_000_000


class LongWindow:
    """Images of the last `span_ns`, one per `period_ns`. The executor thread files, the worker takes.

    refused: told in words about an image that turned out to be broken.
    """

    def __init__(self, span_ns: int, period_ns: int, ledger: Ledger, refused: Callable[[str], None]) -> None:
        self._span_ns = span_ns
        self._ring: FrameRing[Entry] = FrameRing(span_ns + _SLACK_NS, _MAX_FRAMES)
        self._sampler = SparseSampler(period_ns)
        self._waiting: deque[Entry] = deque()
        self._ledger, self._refused = ledger, refused

    def file(self, entry: Entry) -> bool:
        """Keep an image, or not, if its period has one. Entries come in the order of their stamps."""
        if not self._sampler.keep(entry.stamp_ns):
            entry.message = None
            self._ledger.settle(entry, Fate.SUPERSEDED)
            return False
        self._ring.append(entry.stamp_ns, entry)
        self._waiting.append(entry)
        # What slides out of the window before any thought took it will never be looked at.
        while self._waiting and (
            self._waiting[0].fate is not Fate.PENDING or self._waiting[0].stamp_ns < entry.stamp_ns - self._ring.span_ns
        ):
            self._ledger.settle_pending([self._waiting.popleft()], Fate.SUPERSEDED)
        return True

    def clear(self) -> None:
        """Forget everything: a new time line begins."""
        self._ring.clear()
        self._sampler.reset()
        self._ledger.settle_pending(self.pending(), Fate.SUPERSEDED)
        self._waiting.clear()

    def pending(self) -> list[Entry]:
        """Images that no thought has taken."""
        return list(self._waiting)

    @property
    def empty(self) -> bool:
        return self._ring.newest is None

    def take(self, epoch: int, prepare: Callable[[Frame], Frame]) -> tuple[list[Entry], list[Frame]]:
        """The images of an epoch, oldest first. `prepare` makes each small, once; what is broken is refused."""
        entries = [entry for _, entry in self._ring.items() if entry.epoch == epoch and self._ready(entry, prepare)]
        if entries:
            oldest = entries[-1].stamp_ns - self._span_ns
            entries = [entry for entry in entries if entry.stamp_ns >= oldest]
        return entries, [Frame(e.rgb, e.stamp_ns, e.frame_id) for e in entries if e.rgb is not None]

    def _ready(self, entry: Entry, prepare: Callable[[Frame], Frame]) -> bool:
        if entry.rgb is not None:
            return True
        try:
            entry.rgb = prepare(Frame(to_rgb(entry.message), entry.stamp_ns, entry.frame_id)).rgb
        except (ImageError, ThinkerError) as error:
            self._ring.remove(entry.stamp_ns)
            self._ledger.settle_pending([entry], Fate.REFUSED, "bad_image")
            self._refused(f"image refused: {error}")
            return False
        finally:
            entry.message = None
        return True
