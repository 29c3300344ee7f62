"""The dense window of the predictor: raw images in, encoded frames on the model's time grid out.

Nothing inside the window is lost while the model runs, and nothing is decoded before a window needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..stream.frames import FrameRing, Gap
from ..values import Camera, Frame
from .images import ImageError, to_rgb
from .ledger import Entry, Fate, Ledger

#: The ring reaches this much further back than a window, since newer images keep coming while a turn is under way:
#: without it a machine that is slow for a moment would lose the begin of every window.
_SLACK_NS = 1_000_000_000
#: Bounds of the ring for cameras far faster than the model's grid needs: in all, and per grid step of a long window.
_MAX_FRAMES = 128
_PER_STEP = 8
#: So many images of a window may be new to the model before another window is preferred. A camera with three images per
#: grid step costs one new image per forecast while every image is used, and two while every second one is.
_AFFORDABLE = 2


class Observer(Protocol):
    """What sees the frames: `jepa.forecaster.Forecaster`, or `control.controller.Controller`."""

    step_ns: int  #: of the grid

    @property
    def window(self) -> int:
        """Frames of a window."""

    def observe(self, frame: Frame, camera: Camera | None) -> None:
        """Take in a frame. Raises ValueError on an image that is none."""

    def knows(self, stamp_ns: int) -> bool:
        """Whether this frame was observed and is not forgotten."""

    def reset(self) -> None:
        """Forget all frames."""


class BrokenImage(ValueError):
    """The newest image cannot be used; the text says why."""


class FrameWindow:
    """The images of the last grid window. `add` and `clear` belong to the executor, the rest to the worker.

    refused: told in words about an older image that turned out to be broken.
    """

    def __init__(self, observer: Observer, ledger: Ledger, refused: Callable[[str], None]) -> None:
        self._observer, self._ledger, self._refused = observer, ledger, refused
        span_ns = observer.window * observer.step_ns + _SLACK_NS
        self._ring: FrameRing[Entry] = FrameRing(span_ns, max(_MAX_FRAMES, _PER_STEP * observer.window))
        self._epoch = -1
        self._last_ns = -1  # end of the last window
        self._camera: Camera | None = None

    def add(self, entry: Entry) -> None:
        self._ring.append(entry.stamp_ns, entry)

    def clear(self) -> None:
        """Forget all images: the clock has jumped."""
        self._ring.clear()

    @property
    def frame_id(self) -> str | None:
        """Optical frame of the newest image; None while there is none."""
        newest = self._ring.newest
        entry = None if newest is None else self._ring.get(newest)
        return None if entry is None else entry.frame_id

    def affordable(self, newest: Entry) -> Entry:
        """The image to forecast from: `newest`, or on an overloaded machine one less than a grid step older.

        A worker that falls behind meets windows of which the model has seen nothing, and encoding all of it makes it
        fall behind further. One on the same phase of the grid as the last one used shares its window but for the end.
        """
        cost = None if newest.epoch != self._epoch else self._cost(newest)
        if cost is None or cost <= _AFFORDABLE:
            return newest
        best, least = newest, cost
        for stamp, entry in self._ring.items(newest.stamp_ns - self._observer.step_ns + 1):
            if stamp <= self._last_ns or entry.fate is not Fate.SUPERSEDED:
                continue
            cost = self._cost(entry)
            if cost is not None and (cost < least or (cost == least and best is not newest)):  # the newest of the cheap
                best, least = entry, cost
        return best

    def _cost(self, entry: Entry) -> int | None:
        """How many images of the window that ends at `entry` are new to the model; None while the window has a gap."""
        window = self._grid(entry)
        return None if isinstance(window, Gap) else sum(not self._observer.knows(stamp) for stamp, _ in window)

    def _grid(self, entry: Entry) -> list[tuple[int, Entry]] | Gap:
        step_ns = self._observer.step_ns
        return self._ring.window(entry.stamp_ns, self._observer.window, step_ns, step_ns // 2)

    def discard(self, entry: Entry) -> None:
        """This image serves no window, now or later."""
        self._ring.remove(entry.stamp_ns)
        entry.message = entry.rgb = None

    def end_at(self, newest: Entry, camera: Callable[[int, int], Camera | None]) -> list[int] | Gap:
        """Stamps of the window that ends at `newest`, each observed, oldest first; or the gap in it.

        camera(width, height): intrinsics for images of that size. `newest.rgb` holds the pixels afterwards. Raises
        BrokenImage.
        """
        if newest.epoch != self._epoch:
            self._observer.reset()
            self._epoch = newest.epoch
        rgb = _decode(newest)
        intrinsics = camera(rgb.shape[1], rgb.shape[0])
        if intrinsics != self._camera:  # what was seen through another calibration does not fit
            self._observer.reset()
            self._camera = intrinsics
        self._observe(newest, rgb)
        self._last_ns = newest.stamp_ns
        while True:
            window = self._grid(newest)
            if isinstance(window, Gap):
                return window
            unknown = [entry for stamp, entry in window if not self._observer.knows(stamp)]
            if not unknown:
                return [stamp for stamp, _ in window]
            for entry in unknown:  # each is known or out of the ring after this, so the search ends
                self._catch_up(entry)

    def _catch_up(self, entry: Entry) -> None:
        """Observe an image that was superseded before its turn."""
        if entry.message is None:  # the observer has forgotten it and its pixels are gone
            self._ring.remove(entry.stamp_ns)
            return
        try:
            self._observe(entry, _decode(entry))
            entry.rgb = None
        except BrokenImage as error:
            self.discard(entry)
            self._ledger.settle(entry, Fate.REFUSED, "bad_image")
            self._refused(f"image refused: {error}")

    def _observe(self, entry: Entry, rgb: np.ndarray) -> None:
        try:
            self._observer.observe(Frame(rgb, entry.stamp_ns, entry.frame_id), self._camera)
        except ValueError as error:
            raise BrokenImage(str(error)) from None
        entry.message = None  # what the observer keeps of it serves from here on


def _decode(entry: Entry) -> np.ndarray:
    try:
        entry.rgb = to_rgb(entry.message)
    except ImageError as error:
        raise BrokenImage(str(error)) from None
    return entry.rgb
