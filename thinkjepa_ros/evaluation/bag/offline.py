"""Forecasts over recordings without any node: the streaming code that runs on a robot, in lock step and repeatable.

Two threads share the work: one reads, encodes and makes the main forecasts; the other decodes pictures, thinks, and
forecasts without guidance. What each computes depends on the recording alone and never on which was faster. Of the
pictures no more than a few are in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from thinkjepa_ros.data.pictures import PictureError
from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.typed import NS, decode, store_for
from thinkjepa_ros.jepa.forecaster import ForecastError
from thinkjepa_ros.stream.frames import Gap, SparseSampler, on_grid
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.interface import Backend
from thinkjepa_ros.values import Frame, Guidance

from .footage import rgb_of
from .ground import Ground
from .said import Said
from .twin import Paired

#: As long as the thinker node lets a thought be, and as long as its guidance counts.
MAX_NEW_TOKENS, VALID_FOR_S = 16, 4.0
#: The first thought of a piece is over this much of it, as in training.
FIRST_THOUGHT_S = 0.5
#: Pictures that are decoded ahead, and forecasts of the twin that are waited for.
_AHEAD = 12


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


class Offline:
    """Runs a forecaster, and a thinker if there is one, over recordings, and files what they say in a `Said`.

    anchored: the true joints now are given to the model; joints_in_truth, joints_in_model: int64 [J], which these are.
    """

    def __init__(
        self, forecaster: Paired, thinker: Backend | None, rhythm: Rhythm, joints_in_model: np.ndarray,
        joints_in_truth: np.ndarray | None, anchored: bool = False,
    ) -> None:  # fmt: skip
        self.forecaster, self.thinker, self.rhythm = forecaster, thinker, rhythm
        self.in_model, self.in_truth = joints_in_model, joints_in_truth
        self.anchored = anchored and joints_in_truth is not None
        self.twin = None if thinker is None else forecaster.twin()
        self.damaged = 0
        self.failed_thoughts: list[str] = []

    def sparse(self, ground: Ground, origins: Origins) -> set[int]:
        """The images that the thinker's window takes: the first of each slot, up to the last forecast of a piece."""
        out: set[int] = set()
        if self.thinker is None:
            return out
        last: dict[int, int] = dict(zip(origins.piece.tolist(), origins.image.tolist(), strict=True))
        for number, piece in enumerate(ground.pieces):
            sampler = SparseSampler(self.thinker.window.period_ns)
            stamps = ground.course.stamps_ns[piece].tolist()
            kept = (int(image) for image, stamp in zip(piece, stamps, strict=True) if sampler.keep(stamp))
            out.update(image for image in kept if image <= last.get(number, -1))
        return out

    def needs(self, ground: Ground, origins: Origins) -> int:
        """How many images of a recording are looked at."""
        return len(self.sparse(ground, origins) | set(np.unique(origins.window).tolist()))

    def run(self, ground: Ground, origins: Origins, said: Said, number: int, advance: Callable[[int], None]) -> int:
        """Forecast at all `origins`, which are the rows from `said.next` on; returns how many images were looked at.

        number: of the recording. advance: called with the number of images that are done. Raises RecordingError.
        """
        with ThreadPoolExecutor(1, "beside") as beside:
            walk = _Walk(self, ground, origins, said, number, beside)
            try:
                looked = walk.run(advance)
                walk.collect(everything=True)
                return looked
            finally:
                beside.shutdown(cancel_futures=True)  # after Ctrl-C nothing new is begun
                walk.collect()


@dataclass
class _Image:
    """A picture that will be there."""

    number: int
    stamp_ns: int
    job: Future[tuple[np.ndarray | None, Frame | None]]


class _Walk:
    """One pass over one recording."""

    def __init__(
        self, owner: Offline, ground: Ground, origins: Origins, said: Said, number: int, beside: ThreadPoolExecutor
    ) -> None:
        self.o, self.ground, self.origins, self.said, self.number, self.beside = (
            owner, ground, origins, said, number, beside,
        )  # fmt: skip
        self.first = said.next
        self.row_of = {image: row for row, image in enumerate(origins.image.tolist())}
        self.seen = set(np.unique(origins.window).tolist())
        self.sparse = owner.sparse(ground, origins)
        self.piece_of = {int(image): k for k, piece in enumerate(ground.pieces) for image in piece}
        self.anchors = self._anchors()
        self.thoughts: list[tuple[int, Future[Guidance | None]]] = []  # of this piece, oldest first, that may be used
        self.unfiled: deque[tuple[int, Future[Guidance | None]]] = deque()
        self.ring: list[Frame] = []
        self.due = 0
        self.waiting: deque[tuple[int, Future[np.ndarray]]] = deque()

    def _anchors(self) -> np.ndarray | None:
        """float32 [n, J of the model, 3], NaN where unknown."""
        if not self.o.anchored:
            return None
        assert self.o.in_truth is not None
        out = np.full((len(self.origins), len(self.o.forecaster.joint_names), 3), np.nan, np.float32)
        out[:, self.o.in_model] = self.ground.now(self.origins.image, self.o.in_truth)
        return out

    def run(self, advance: Callable[[int], None]) -> int:
        piece, stamps, lost = -1, self.ground.course.stamps_ns, set()
        looked = 0
        for image in self._pictures():
            rgb, small = image.job.result()
            advance(1)
            looked += 1
            if self.piece_of[image.number] != piece:
                piece = self.piece_of[image.number]
                self._begin(int(stamps[self.ground.pieces[piece][0]]))
            if rgb is None:
                self.o.damaged += 1
                lost.add(image.number)
                continue
            if small is not None:
                self._consider(small, image.number)
            if image.number not in self.seen:
                continue
            began = time.perf_counter()
            self.o.forecaster.observe(Frame(rgb, image.stamp_ns), self.ground.course.camera)
            row = self.row_of.get(image.number)
            if row is not None and not lost.intersection(self.origins.window[row].tolist()):
                self._forecast(row, began)
        return looked

    def _pictures(self) -> Iterator[_Image]:
        """The images that are looked at, in the order of recording, decoded some way ahead of their turn."""
        course = self.ground.course
        needed, ahead, count = self.seen | self.sparse, deque[_Image](), 0
        with Recording(self.ground.path) as recording:
            store = store_for(recording, course.image_topic)
            for number, (_, _, data) in enumerate(recording.messages([course.image_topic])):
                count += 1
                if number not in needed:
                    continue
                job = self.beside.submit(self._picture, store, recording, data, number)
                ahead.append(_Image(number, int(course.stamps_ns[number]), job))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft()
            if count != len(course.stamps_ns):
                raise RecordingError(
                    f"{recording.path} changed while it was read; evaluate it when its recording has ended"
                )
            while ahead:
                yield ahead.popleft()

    def _picture(
        self, store: Typestore, recording: Recording, data: bytes, number: int
    ) -> tuple[np.ndarray | None, Frame | None]:
        """RGB of an image, None where it is damaged, and what the thinker takes of it."""
        course, thinker = self.ground.course, self.o.thinker
        try:
            rgb = rgb_of(decode(store, recording, course.image_topic, data))
        except PictureError:
            return None, None
        height, width = rgb.shape[:2]
        if (width, height) != (course.camera.width, course.camera.height):
            raise RecordingError(
                f"image {number} on {course.image_topic.name} of {recording.path} is {width}x{height} and not "
                f"{course.camera.width}x{course.camera.height} as before; record each camera mode on its own"
            )
        if thinker is None or number not in self.sparse:
            return rgb, None
        return rgb, thinker.prepare(Frame(rgb, int(course.stamps_ns[number])))

    def _begin(self, stamp_ns: int) -> None:
        """A new piece: nothing of the last one counts."""
        self.o.forecaster.reset()
        self.thoughts, self.ring, self.due = [], [], stamp_ns + round(FIRST_THOUGHT_S * NS)
        if self.o.thinker is not None and self.o.twin is not None:
            self.beside.submit(self.o.thinker.forget)
            self.beside.submit(self.o.twin.reset)

    def _consider(self, frame: Frame, image: int) -> None:
        """A frame of the long window, and a thought if one is due."""
        thinker = self.o.thinker
        assert thinker is not None
        self.ring.append(frame)
        while self.ring[0].stamp_ns < frame.stamp_ns - thinker.window.span_ns - 2 * thinker.window.period_ns:
            self.ring.pop(0)
        if frame.stamp_ns < self.due:
            return
        while self.due <= frame.stamp_ns:
            self.due += round(self.o.rhythm.think_period_s * NS)
        frames, words = list(self.ring), self.ground.course.told(image)

        def think() -> Guidance | None:
            try:
                guidance = thinker.think(
                    frames, words, max_new_tokens=MAX_NEW_TOKENS, valid_for_s=self.o.rhythm.valid_for_s
                )
                self.o.forecaster.check_guidance(guidance)
                return guidance
            except (ThinkerError, ValueError) as error:  # the next thought may work
                self.o.failed_thoughts.append(str(error))
                return None

        job = self.beside.submit(think)
        self.thoughts.append((frame.stamp_ns, job))
        self.unfiled.append((frame.stamp_ns, job))

    def _guidance(self, now_ns: int) -> Guidance | None:
        """Of the newest thought that is ready at a time. Older ones are forgotten."""
        ready = now_ns - round(self.o.rhythm.think_delay_s * NS)
        for place in range(len(self.thoughts) - 1, -1, -1):
            stamp, job = self.thoughts[place]
            if stamp <= ready and (guidance := job.result()) is not None:
                del self.thoughts[:place]
                return guidance
        return None

    def _forecast(self, row: int, began: float) -> None:
        f, said, place = self.o.forecaster, self.said, self.first + row
        stamps = [int(s) for s in self.ground.course.stamps_ns[self.origins.window[row]]]
        waited = time.perf_counter()
        guidance = self._guidance(stamps[-1])
        waited = time.perf_counter() - waited  # for a thought, in lock step: not part of a forecast
        f.guide(guidance)
        anchor = None if self.anchors is None else self.anchors[row]
        try:
            forecast = f.forecast(stamps, anchor)
        except ForecastError:
            return
        said.latency_s[place] = time.perf_counter() - began - waited
        said.weight[place], said.age_s[place] = forecast.guidance_weight, forecast.guidance_age_s
        said.surprise[place] = forecast.surprise
        said.file(place, forecast, np.stack([f.estimate(s) for s in stamps[f.estimated]]), self.o.in_model)
        if self.o.twin is None:
            said.done[place] = True
        elif forecast.guidance_weight == 0:
            said.file_unguided(place, forecast.positions, self.o.in_model)
            said.done[place] = True
        else:
            lent = f.lend(stamps)
            self.waiting.append((place, self.beside.submit(self._beside, lent, stamps, anchor)))
        self.collect()

    def _beside(self, lent: Any, stamps: list[int], anchor: np.ndarray | None) -> np.ndarray:
        assert self.o.twin is not None
        self.o.twin.borrow(lent)
        return self.o.twin.forecast(stamps, anchor).positions

    def collect(self, everything: bool = False) -> None:
        """File what the other thread has done; wait for it where that is too much, or where `everything` is wanted."""
        while self.waiting and (everything or len(self.waiting) > _AHEAD or self.waiting[0][1].done()):
            place, job = self.waiting.popleft()
            if job.cancelled():
                continue
            with suppress(ForecastError):
                self.said.file_unguided(place, job.result(), self.o.in_model)
                self.said.done[place] = True
        while self.unfiled and (everything or self.unfiled[0][1].done()):
            stamp, thought = self.unfiled.popleft()
            if not thought.cancelled() and (guidance := thought.result()) is not None:
                self.said.thoughts.append(
                    {"bag": self.number, "stamp_ns": stamp, "text": guidance.text, "delay_s": None}
                )
