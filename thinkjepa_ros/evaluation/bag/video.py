"""forecast.mp4: the recordings as the model saw them, with what it said drawn on them, at the speed it happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from ..film import Film, FilmError
from . import scenes
from .metrics import times_s
from .replay import Replay
from .scenes import NS, Frames

#: Frames are shown this wide, so that paths and words can be read.
WIDTH = 640
#: A longer time without a forecast is cut to this, in seconds.
MOST_REST_S = 1.0
_BAND = 44  # height of the band below the picture
_PAST_S = 8.0  # how much of the surprise the band shows
_INK, _SOFT, _BACK, _SURPRISE, _EVENT = (235, 238, 244), (150, 158, 172), (22, 25, 31), (87, 201, 195), (96, 48, 44)


def write(replay: Replay, pictures: Frames, path: Path, advance: Callable[[int], None] = lambda done: None) -> str:
    """Write the film; returns why there is none, or nothing. advance: called with the number of forecasts drawn.

    Pictures are read, drawn and written one by one, so memory does not grow with the length of the recordings.
    """
    if trouble := scenes.obstacle(replay):
        return trouble
    film = Film(path, rate := frame_rate(replay))
    try:
        for frame, times in _film(replay, pictures, rate, advance):
            film.add(frame, times)  # recordings of several cameras are scaled: a film has one size
        if not film.frames:
            return "no frame could be read from the recordings"
        film.close()
    except (FilmError, cv2.error, OSError) as error:
        return str(error) if isinstance(error, FilmError) else f"the film could not be written: {error}"
    finally:
        film.discard()
    return ""


def frame_rate(replay: Replay) -> float:
    """Frames per second of the film: one frame for each forecast at the usual distance of two, 1 to 60."""
    steps = np.diff(replay.stamp_ns)[np.diff(replay.piece) == 0]
    steps = steps[steps > 0]
    return float(np.clip(NS / np.median(steps), 1.0, 60.0)) if len(steps) else 1.0


def _film(
    replay: Replay, pictures: Frames, rate: float, advance: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, int]]:
    """(frame, how often it is shown) in the order of recording."""
    place = scenes.index_of(replay)
    since = times_s(replay)
    top = float(np.nanmax(replay.surprise)) if np.isfinite(replay.surprise).any() else 0.0
    shown = 0.0  # seconds of film so far, against which roundings are made up
    frames = 0
    before: tuple[int, np.ndarray] | None = None
    for bag, stamp, rgb in pictures(sorted(place)):
        index = place.get((int(bag), int(stamp)))
        if index is None:
            continue
        frame = _frame(replay, index, rgb, since, top)
        if before is not None:
            gap = (int(stamp) - int(replay.stamp_ns[before[0]])) / NS
            same = replay.bag[before[0]] == bag and 0 < gap <= MOST_REST_S + 1.0 / rate
            shown += gap if same else MOST_REST_S
            times = max(1, round(shown * rate) - frames)
            yield before[1], times
            frames += times
        before = (index, frame)
        advance(1)
    if before is not None:
        yield before[1], max(1, round(rate * MOST_REST_S))


def _frame(replay: Replay, index: int, rgb: np.ndarray, since: np.ndarray, top: float) -> np.ndarray:
    """The drawn picture with its band below, uint8 RGB [H + band, WIDTH, 3] (even)."""
    thought = scenes.thought_at(replay, index)
    text = f"thought: {thought}" if thought else ""
    drawn = scenes.draw(replay, index, rgb, text, WIDTH)
    frame = np.full((drawn.shape[0] + _BAND, drawn.shape[1], 3), _BACK, np.uint8)
    frame[: drawn.shape[0]] = drawn
    _band(frame[drawn.shape[0] :], replay, index, since, top)
    return frame


def _band(band: np.ndarray, replay: Replay, index: int, since: np.ndarray, top: float) -> None:
    """Below the picture: recording and time on the left; the surprise of the last seconds on the right."""
    name = scenes.bag_name(replay, int(replay.bag[index]))
    _write(band, f"{since[index]:.1f} s  {name[:28]}", (10, 18), _INK)
    _write(band, f"stamp {int(replay.stamp_ns[index]) / NS:.3f}", (10, 36), _SOFT)
    value = float(replay.surprise[index])
    left, right, floor = 390, band.shape[1] - 10, band.shape[0] - 6
    _write(band, "surprise", (left - 90, 18), _SOFT)
    _write(band, f"{value:.3f}" if np.isfinite(value) else "none yet", (left - 90, 36), _INK)
    if top <= 0:
        return
    past = np.flatnonzero((replay.bag == replay.bag[index]) & (np.arange(len(replay)) <= index))
    past = past[since[past] >= since[index] - _PAST_S]
    x = right - (since[index] - since[past]) / _PAST_S * (right - left)
    if replay.event is not None:
        for at in x[replay.event[past]]:
            cv2.line(band, (round(at), 4), (round(at), floor), _EVENT, 3)
    cv2.line(band, (left, floor), (right, floor), _SOFT, 1)
    y = floor - np.nan_to_num(replay.surprise[past], nan=-1.0) / top * (floor - 6)
    for a, b, ya, yb, piece_a, piece_b in zip(
        x, x[1:], y, y[1:], replay.piece[past], replay.piece[past][1:], strict=False
    ):
        if max(ya, yb) <= floor and piece_a == piece_b:
            cv2.line(band, (round(a), round(ya)), (round(b), round(yb)), _SURPRISE, 2, cv2.LINE_AA)


def _write(image: np.ndarray, words: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    plain = words.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
