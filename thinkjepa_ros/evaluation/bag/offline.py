"""Forecasts over recordings without any node: the streaming code that runs on a robot, in lock step and repeatable.

A recording can be done in parts, each by another process: a part begins early enough to know all that its first
forecast rests on (images, expectations, thoughts and what those rest on), so that the parts say bit by bit what the
whole says. One picture is in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from thinkjepa_ros.data.pictures import PictureError
from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.typed import NS, decode, store_for
from thinkjepa_ros.jepa.forecaster import ForecastError
from thinkjepa_ros.stream.frames import SparseSampler
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.interface import Backend
from thinkjepa_ros.values import Forecast, Frame, Guidance

from .footage import rgb_of
from .ground import Ground
from .origins import Part, Rhythm
from .said import Said
from .twin import Paired

#: As long as the thinker node lets a thought be.
MAX_NEW_TOKENS = 16
#: The first thought of a piece is over this much of it, as in training.
FIRST_THOUGHT_S = 0.5


@dataclass
class Done:
    """What came of some forecasts beside what was filed: images looked at and those that are damaged, the thoughts (as
    in `Replay`), and why some failed.
    """

    looked: int = 0
    damaged: int = 0
    thoughts: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Done) -> None:
        """Count what came of another part, too."""
        self.looked += other.looked
        self.damaged += other.damaged
        self.thoughts += other.thoughts
        self.failed += other.failed


class Offline:
    """Runs a forecaster, and a thinker if there is one, over recordings, and files what they say in a `Said`.

    joints: int64 [J], which joints of the model are scored.
    """

    def __init__(self, forecaster: Paired, thinker: Backend | None, rhythm: Rhythm, joints: np.ndarray) -> None:
        self.forecaster, self.thinker, self.rhythm, self.joints = forecaster, thinker, rhythm, joints
        self.twin = None if thinker is None else forecaster.twin()

    def run(
        self, ground: Ground, said: Said, part: Part, done: Done,
        advance: Callable[[int], None] = lambda _: None, stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Make the forecasts of a part of the recording and file them. done: counts what came of it. advance: called
        with the number of forecasts that are done. stop: asked before every image whether to leave it at that. Raises
        RecordingError.
        """
        _Walk(self, ground, said, part, done).run(advance, stop)


class _Thought:
    """A thought over some frames, had when it is asked for."""

    def __init__(self, stamp_ns: int, think: Callable[[], Guidance | str]) -> None:
        self.stamp_ns, self._think = stamp_ns, think
        self._said: Guidance | str | None = None

    @property
    def said(self) -> Guidance | str:
        """Guidance, or why it failed."""
        if self._said is None:
            self._said = self._think()
        return self._said


class _Walk:
    """One pass over some forecasts of one recording."""

    def __init__(self, owner: Offline, ground: Ground, said: Said, part: Part, done: Done) -> None:
        self.o, self.ground, self.said, self.part = owner, ground, said, part
        self.stamps, self.done = ground.course.stamps_ns, done
        images, pieces = part.origins.image.tolist(), part.origins.piece.tolist()
        self.place_of = {image: place for place, image in enumerate(images)}
        self.seen = set(np.unique(part.origins.window).tolist())
        last = dict(zip(pieces, images, strict=True))
        last[pieces[-1]] = part.images.stop - 1
        self.sparse = set() if owner.thinker is None else self._sparse(owner.thinker, last)
        self.piece_of = {
            image: number
            for number, images in ((number, ground.pieces[number]) for number in last)
            for image in (self.seen | self.sparse).intersection(range(images[0], images[-1] + 1))
        }
        self.thoughts: list[_Thought] = []  # of this piece, oldest first, that may be used
        self.ring: list[Frame] = []
        self.due = 0

    def _sparse(self, thinker: Backend, last: dict[int, int]) -> set[int]:
        """The images that the thinker's window takes: the first of each slot, up to the last forecast of a piece. In
        the first piece of a part from where the thoughts that may count for its first forecast begin.
        """
        out: set[int] = set()
        rhythm, first = self.o.rhythm, self.part.origins
        back_s = rhythm.valid_for_s + rhythm.think_delay_s + 2 * rhythm.think_period_s
        since = int(self.stamps[first.image[0]]) - round(back_s * NS) - thinker.window.span_ns
        since -= 4 * thinker.window.period_ns
        for number, end in last.items():
            piece = self.ground.pieces[number]
            sampler = SparseSampler(thinker.window.period_ns)
            stamps = self.stamps[piece].tolist()
            kept = [int(image) for image, stamp in zip(piece, stamps, strict=True) if sampler.keep(stamp)]
            kept = [image for image in kept if image <= end]
            out.update(kept if number != first.piece[0] else (i for i in kept if self.stamps[i] >= since))
        return out

    def run(self, advance: Callable[[int], None], stop: Callable[[], bool]) -> None:
        piece, lost = -1, set[int]()
        for number, rgb, small in self._pictures():
            if stop():
                break
            place, mine = self.place_of.get(number), number in self.part.images
            advance(int(place is not None and place >= self.part.warm))
            self.done.looked += mine
            if self.piece_of[number] != piece:
                piece = self.piece_of[number]
                self._begin(int(self.stamps[self.ground.pieces[piece][0]]), int(self.stamps[number]))
            if rgb is None:
                self.done.damaged += mine
                lost.add(number)
                continue
            if small is not None:
                self._consider(small, number)
            if number not in self.seen:
                continue
            began = time.perf_counter()
            self.o.forecaster.observe(Frame(rgb, int(self.stamps[number])), self.ground.course.camera)
            if place is not None and not lost.intersection(self.part.origins.window[place].tolist()):
                self._forecast(place, began)

    def _pictures(self) -> Iterator[tuple[int, np.ndarray | None, Frame | None]]:
        """The images that are looked at, in the order of recording: number, RGB (None where it is damaged) and what the
        thinker takes of it.
        """
        course = self.ground.course
        needed = sorted(self.seen | self.sparse)
        begin = 0
        if (np.diff(course.recorded_ns) >= 0).all():  # else from the beginning, as files of a split bag may overlap
            begin = int(np.searchsorted(course.recorded_ns, course.recorded_ns[needed[0]]))
        left = iter(needed)
        wanted = next(left, None)
        with Recording(self.ground.path) as recording:
            store = store_for(recording, course.image_topic)
            stream = recording.messages(
                [course.image_topic], start_ns=int(course.recorded_ns[begin]) if begin else None
            )
            for number, (_, recorded_ns, data) in enumerate(stream, begin):
                if number >= len(course.recorded_ns) or recorded_ns != course.recorded_ns[number]:
                    break
                if number == wanted:
                    yield number, *self._picture(store, recording, data, number)
                    if (wanted := next(left, None)) is None:
                        return
        raise RecordingError(f"{self.ground.path} changed while it was read; evaluate it when its recording has ended")

    def _picture(
        self, store: Typestore, recording: Recording, data: bytes, number: int
    ) -> tuple[np.ndarray | None, Frame | None]:
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
        return rgb, thinker.prepare(Frame(rgb, int(self.stamps[number])))

    def _begin(self, stamp_ns: int, now_ns: int) -> None:
        """A new piece, which began at `stamp_ns`: nothing of the last one counts. now_ns: of the first image of it that
        is looked at.
        """
        self.o.forecaster.reset()
        self.thoughts, self.ring, self.due = [], [], stamp_ns + round(FIRST_THOUGHT_S * NS)
        self._pass(now_ns - 1)
        if self.o.thinker is not None and self.o.twin is not None:
            self.o.thinker.forget()
            self.o.twin.reset()

    def _pass(self, stamp_ns: int) -> None:
        """No thought is due up to a time."""
        while self.due <= stamp_ns:
            self.due += round(self.o.rhythm.think_period_s * NS)

    def _consider(self, frame: Frame, image: int) -> None:
        """A frame of the long window, and a thought if one is due."""
        thinker = self.o.thinker
        assert thinker is not None
        self.ring.append(frame)
        while self.ring[0].stamp_ns < frame.stamp_ns - thinker.window.span_ns - 2 * thinker.window.period_ns:
            self.ring.pop(0)
        if frame.stamp_ns < self.due:
            return
        self._pass(frame.stamp_ns)
        frames, words = list(self.ring), self.ground.course.told(image)

        def think() -> Guidance | str:
            try:
                guidance = thinker.think(
                    frames, words, max_new_tokens=MAX_NEW_TOKENS, valid_for_s=self.o.rhythm.valid_for_s
                )
                self.o.forecaster.check_guidance(guidance)
                return guidance
            except (ThinkerError, ValueError) as error:  # the next thought may work
                return str(error)

        self.thoughts.append(_Thought(frame.stamp_ns, think))
        if image in self.part.images:
            self._file(self.thoughts[-1])

    def _file(self, thought: _Thought) -> None:
        """Note a thought of one's own."""
        said = thought.said
        if isinstance(said, str):
            self.done.failed.append(said)
        else:
            self.done.thoughts.append(
                {"bag": self.part.number, "stamp_ns": thought.stamp_ns, "text": said.text, "delay_s": None}
            )

    def _guidance(self, now_ns: int) -> Guidance | None:
        """Of the newest thought that is ready at a time. Older ones are forgotten."""
        ready = now_ns - round(self.o.rhythm.think_delay_s * NS)
        for place in range(len(self.thoughts) - 1, -1, -1):
            thought = self.thoughts[place]
            if thought.stamp_ns <= ready and isinstance(guidance := thought.said, Guidance):
                del self.thoughts[:place]
                return guidance
        return None

    def _forecast(self, place: int, began: float) -> None:
        f, said, twin = self.o.forecaster, self.said, self.o.twin
        row = self.part.first + place - self.part.warm
        stamps = self.stamps[self.part.origins.window[place]].tolist()
        waited = time.perf_counter()
        guidance = self._guidance(stamps[-1])
        waited = time.perf_counter() - waited  # for a thought, in lock step: not part of a forecast
        f.guide(guidance)
        anchor = None if said.anchor is None else np.array(said.anchor[row])
        try:
            forecast = f.forecast(stamps, anchor)
            took = time.perf_counter() - began - waited
            if row not in self.part.rows:
                return
            if twin is not None:
                same = forecast.guidance_weight == 0
                said.file_unguided(row, (forecast if same else self._unguided(stamps, anchor)).positions, self.o.joints)
        except ForecastError:
            return
        said.latency_s[row] = took
        said.weight[row], said.age_s[row] = forecast.guidance_weight, forecast.guidance_age_s
        said.surprise[row] = forecast.surprise
        said.file(row, forecast, np.stack([f.estimate(s) for s in stamps[f.estimated]]), self.o.joints)
        said.done[row] = True

    def _unguided(self, stamps: list[int], anchor: np.ndarray | None) -> Forecast:
        assert self.o.twin is not None
        self.o.twin.borrow(self.o.forecaster.lend(stamps))
        return self.o.twin.forecast(stamps, anchor)
