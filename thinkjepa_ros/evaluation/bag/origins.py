"""When the forecasts of an offline evaluation are made, and how they are shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from thinkjepa_ros.data.typed import NS
from thinkjepa_ros.stream.frames import Gap, on_grid

from .ground import Ground

#: As long as the guidance of the thinker node counts.
VALID_FOR_S = 4.0


@dataclass(frozen=True)
class Rhythm:
    """When things happen, in seconds of the recording.

    stride_s: between two forecasts. think_period_s: between two thoughts. think_delay_s: a thought over frames up to t
    is used from t + think_delay_s on. valid_for_s: then its guidance has faded.
    """

    stride_s: float
    think_period_s: float = 1.0
    think_delay_s: float = 0.2
    valid_for_s: float = VALID_FOR_S

    def __post_init__(self) -> None:
        for name in ("stride_s", "think_period_s", "valid_for_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number of seconds above 0")
        if not 0 <= self.think_delay_s < 1e6:
            raise ValueError(f"think_delay_s is {self.think_delay_s}; give 0 s or more")


@dataclass(frozen=True, eq=False)
class Origins:
    """Where n forecasts of one recording are made. image, piece: int64 [n]. window: int64 [n, W], images on the grid,
    the last one is `image`. gaps: times at which there is no whole window.
    """

    image: np.ndarray
    piece: np.ndarray
    window: np.ndarray
    gaps: int

    def __len__(self) -> int:
        return len(self.image)


def find_origins(ground: Ground, frames: int, step_ns: int, stride_s: float) -> Origins:
    """A forecast at every `stride_s` of each piece, from its first whole window of `frames` images on."""
    image, pieces, windows, gaps = [], [], [], 0
    stride_ns = max(1, round(stride_s * NS))
    for number, piece in enumerate(ground.pieces):
        stamps = ground.course.stamps_ns[piece]
        times = np.arange(stamps[0] + (frames - 1) * step_ns, stamps[-1] + 1, stride_ns)
        listed, last = stamps.tolist(), -1
        for place in _nearest(stamps, times).tolist():
            if place == last:
                continue
            last = place
            window = on_grid(listed, listed[place], frames, step_ns, step_ns // 2)
            if isinstance(window, Gap):
                gaps += 1
                continue
            image.append(int(piece[place]))
            pieces.append(number)
            windows.append(piece[window])
    return Origins(
        np.array(image, np.int64), np.array(pieces, np.int64), np.array(windows, np.int64).reshape(-1, frames), gaps
    )


def _nearest(stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Places of the stamps (ascending) nearest to the times, the older of two equally near."""
    right = np.clip(np.searchsorted(stamps, times), 0, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(times - stamps[left] <= stamps[right] - times, left, right)


@dataclass(frozen=True, eq=False)
class Part:
    """Some forecasts of recording `number`, for one process. origins: the first `warm` of them are made only because
    the others rest on them; then row `first` of the `Said` comes. images: which are looked at on its account.
    """

    number: int
    origins: Origins
    warm: int
    first: int
    images: range

    @property
    def rows(self) -> range:
        """Of the `Said`, the rows that it files."""
        return range(self.first, self.first + len(self.origins) - self.warm)


def parts_of(number: int, ground: Ground, origins: Origins, first: int, size: int, reach_ns: int) -> Iterator[Part]:
    """The forecasts of a recording in parts of `size`. first: row of the first of them.

    reach_ns: how far back what a forecaster keeps matters. A part begins with the forecasts that are at most that much
    older, of the same piece.
    """
    image, piece = origins.image, origins.piece
    stamps, next_image = ground.course.stamps_ns[image], 0
    for begin in range(0, len(origins), size):
        near = (piece[:begin] == piece[begin]) & (stamps[:begin] >= stamps[begin] - reach_ns)
        warm, end = int(near.sum()), min(begin + size, len(origins))
        some = slice(begin - warm, end)
        goes_on = end < len(origins) and piece[end] == piece[end - 1]
        images = range(next_image, int(image[end] if goes_on else image[end - 1] + 1))
        yield Part(number, Origins(image[some], piece[some], origins.window[some], 0), warm, first + begin, images)
        next_image = images.stop
