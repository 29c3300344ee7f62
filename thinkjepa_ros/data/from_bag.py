"""Turn recordings into training episodes: `thinkjepa data from-bag`.

An episode is a function of the recording and the settings. Its file is written whole or not at all, read back, and kept
by the next run when it is whole and says what this run would say, so that the same command goes on after a kill and
ends with the same bytes. Images are streamed: no more than one episode's JPEG files are in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from thinkjepa_ros.files import write_atomically

from .cutting import Piece, Plan, Settings, make_plan
from .episode import SUFFIX, Episode, EpisodeError, JpegFrames
from .pictures import PictureError, jpeg_of
from .recording import Recording, RecordingError
from .typed import NS, read

MANIFEST = "dataset.json"
#: Seeds of the episodes of one recording: this many lie between those of one and of the next.
SEEDS_PER_RECORDING = 10_000
_FORMAT = 1


@dataclass
class Made:
    """What became of one recording: episodes written, kept from before, and left without a readable image."""

    new: int = 0
    kept: int = 0
    empty: int = 0
    frames: int = 0
    damaged: int = 0

    @property
    def episodes(self) -> int:
        return self.new + self.kept


def convert(
    bags: Sequence[str | Path], out: str | Path, settings: Settings, limit: int | None = None, quiet: bool = False
) -> int:
    """Write the episodes of recordings into the folder `out` as recorded_<number>.h5.

    limit: no more than this many episodes in all. Of several recordings, those that cannot be used are told on stderr
    and left out. Returns the exit code: 0 done, 1 some recordings were left out, 130 interrupted.
    Raises RecordingError where the only recording or all of them cannot be used, EpisodeError where the folder cannot.
    """
    if not bags:
        raise ValueError("give at least one recording")
    places = [Path(bag).resolve() for bag in bags]
    if twice := [str(bag) for k, bag in enumerate(bags) if places[k] in places[:k]]:
        raise ValueError(f"{twice[0]} is given twice; give each recording once")
    out, console = Path(out), Console(quiet=quiet)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    made, failed = 0, []
    with _claimed(out, settings) as known:
        bar = Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)
        try:
            with bar:
                for bag in bags:
                    left = None if limit is None else limit - made
                    if left == 0:
                        break
                    try:
                        with Recording(bag) as recording:
                            made += _convert_one(recording, out, settings, known, left, bar)
                    except RecordingError as error:
                        failed.append(str(error))
        except KeyboardInterrupt:
            there = len(list(out.glob(f"recorded_*{SUFFIX}")))
            console.print(f"Interrupted: {there} episodes are in {out}; the same command goes on.", soft_wrap=True)
            return 130
    if failed and not made:
        raise RecordingError("\n".join(failed))
    for line in failed:
        print(f"left out: {line}", file=sys.stderr)
    console.print(f"{made} episodes in {out}", soft_wrap=True)
    return 1 if failed else 0


def _convert_one(
    recording: Recording, out: Path, settings: Settings, known: list[dict[str, Any]], limit: int | None, bar: Progress
) -> int:
    """The episodes of one recording; returns how many there are now."""
    task = bar.add_task(f"reading {_name(recording)}", total=None)
    plan = make_plan(recording, settings, lambda count: bar.update(task, advance=count))
    place = _place_of(recording, out, settings, known)
    if len(plan.pieces) > SEEDS_PER_RECORDING:
        raise RecordingError(
            f"{recording.path} gives {len(plan.pieces)} episodes, more than {SEEDS_PER_RECORDING}; take longer ones "
            "(--seconds), or cut the recording"
        )
    pieces = plan.pieces[:limit]
    bar.update(task, description=_name(recording), total=sum(len(p.images) for p in pieces), completed=0)
    made = _write(recording, plan, pieces, out, place, settings, bar, task)
    bar.remove_task(task)
    for line in _summary(recording, plan, pieces, made):
        bar.console.print(line, soft_wrap=True, highlight=False)
    return made.episodes


def _summary(recording: Recording, plan: Plan, pieces: list[Piece], made: Made) -> Iterator[str]:
    used = sum(len(piece.images) for piece in plan.pieces)
    seen = np.concatenate([piece.visible.ravel() for piece in plan.pieces])
    known = np.concatenate([np.isfinite(piece.joints).all(-1).ravel() for piece in plan.pieces])
    yield (
        f"{_name(recording)}: {made.episodes} episodes ({made.new} new, {made.kept} kept), {used} of {plan.images} "
        f"images, {len(plan.joint_names)} joints in {plan.details['world']}: {known.mean():.0%} known, "
        f"{seen[known].mean():.0%} of those in the image"
    )
    if len(pieces) < len(plan.pieces):
        yield f"  {len(plan.pieces) - len(pieces)} more episodes are beyond the limit"
    if made.damaged:
        yield f"  left out: {made.damaged} images that cannot be decoded"
    if made.empty:
        yield f"  left out: {made.empty} episodes without a single image that can be decoded"
    for why, count in plan.left_out.items():
        yield f"  left out: {count} images {why}"
    yield from (f"  {note}" for note in plan.notes)
    if not seen.any():
        yield "  no joint ever projects into the image: are the frames of camera and truth right?"


# --- the folder ---


@contextmanager
def _claimed(out: Path, settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """Hold the folder alone, with the recordings it is known to be made of. Raises EpisodeError."""
    record = settings.record()
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise EpisodeError(f"{out} cannot be used as a folder: {error.strerror}; take another") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EpisodeError(
                f"another process writes episodes into {out}; wait for it, or take another folder"
            ) from None
        for pattern in (f".recorded_*{SUFFIX}.*.part", f".{MANIFEST}.*"):  # of a run that was killed
            for left in out.glob(pattern):
                left.unlink(missing_ok=True)
        yield _read_manifest(out, record)
    finally:
        os.close(handle)


def _read_manifest(out: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    path = out / MANIFEST
    if not path.exists():
        if any(out.glob(f"*{SUFFIX}")):
            raise EpisodeError(f"{out} holds episodes that were not made from recordings; take another folder")
        return []
    try:
        found = json.loads(path.read_text())
        made, recordings = found["settings"], list(found["recordings"])
    except (ValueError, KeyError, TypeError):
        raise EpisodeError(
            f"{path} was not written by `data from-bag`; take another folder, or empty this one"
        ) from None
    if made != record:
        odd = [name for name in record if not isinstance(made, dict) or made.get(name) != record[name]]
        raise EpisodeError(
            f"{out} holds episodes of other settings ({', '.join(odd) or 'an older version'}); take another folder or "
            "empty it"
        )
    return recordings


def _place_of(recording: Recording, out: Path, settings: Settings, known: list[dict[str, Any]]) -> int:
    """Number of the recording in the folder; a new one is noted there before its first episode."""
    me = {
        "name": _name(recording),
        "start_ns": recording.start_ns,
        "end_ns": recording.end_ns,
        "messages": {topic.name: topic.count for topic in recording.topics},
    }
    if me not in known:
        known.append(me)
        text = json.dumps({"format": _FORMAT, "settings": settings.record(), "recordings": known}, indent=1)
        with _told(out / MANIFEST):
            write_atomically(out / MANIFEST, text.encode() + b"\n")
    return known.index(me)


def _name(recording: Recording) -> str:
    return recording.path.resolve().name


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the file system refuses, as EpisodeError."""
    try:
        yield
    except OSError as error:
        raise EpisodeError(
            f"{path} cannot be written ({error.strerror or error}); make room or take another folder, then the same "
            "command goes on"
        ) from error


# --- the episodes ---


def _write(
    recording: Recording, plan: Plan, pieces: list[Piece], out: Path, place: int, settings: Settings, bar: Progress,
    task: Any,
) -> Made:  # fmt: skip
    made = Made()
    todo = []
    for k, piece in enumerate(pieces):
        seed = place * SEEDS_PER_RECORDING + k
        path = out / f"recorded_{seed:07d}{SUFFIX}"
        details = _details(recording, plan, piece)
        if (kept := _whole(path, details["digest"])) is not None:
            made.kept += 1
            made.damaged += len(piece.images) - kept
            made.frames += kept
            bar.update(task, advance=len(piece.images))
        else:
            todo.append((piece, seed, path, details))
    if not todo:
        return made
    for (piece, seed, path, details), jpegs in _pictures(recording, plan, todo, settings, bar, task):
        good = np.array([jpeg is not None for jpeg in jpegs])
        made.damaged += int((~good).sum())
        if not good.any():
            made.empty += 1
            continue
        frames = JpegFrames.from_jpegs([jpeg for jpeg in jpegs if jpeg is not None], str(path))
        episode = _episode(piece, good, frames, plan, seed, details, settings)
        with _told(path):
            episode.save(path)
        if _whole(path, details["digest"]) is None:
            raise EpisodeError(f"{path} is not what was written; is the disk full or failing?")
        made.new += 1
        made.frames += len(frames)
    return made


def _details(recording: Recording, plan: Plan, piece: Piece) -> dict[str, Any]:
    about = plan.details | {
        "recording": {"name": _name(recording), "image_recorded_ns": piece.recorded_ns},
        "joint_names": list(plan.joint_names),
        "intrinsics": plan.camera.matrix.ravel().tolist(),
    }
    plain = {name: value for name, value in about.items() if name not in ("joint_names", "intrinsics")}
    return plain | {"digest": piece.digest(about)}


def _whole(path: Path, digest: str) -> int | None:
    """Number of frames of the episode at `path` if it is undamaged and what it should be."""
    try:
        episode = Episode.load(path)
    except EpisodeError:
        return None
    return len(episode) if episode.details.get("digest") == digest else None


_Job = tuple[Piece, int, Path, dict[str, Any]]


def _pictures(
    recording: Recording, plan: Plan, todo: list[_Job], settings: Settings, bar: Progress, task: Any
) -> Iterator[tuple[_Job, list[bytes | None]]]:
    """Each job with its JPEG files, None for an image that cannot be decoded; one job in memory at a time."""
    size = (plan.camera.width, plan.camera.height)
    jobs = iter(todo)
    job = next(jobs)
    jpegs: list[bytes | None] = []
    for number, (_, _, message) in enumerate(read(recording, [plan.image_topic])):
        if number != job[0].images[len(jpegs)]:
            continue
        jpegs.append(_picture(message, size, number, recording, plan, settings))
        bar.update(task, advance=1)
        if len(jpegs) == len(job[0].images):
            yield job, jpegs
            jpegs = []
            following = next(jobs, None)
            if following is None:
                return
            job = following
    raise RecordingError(f"{recording.path} changed while it was read; convert it when its recording has ended")


def _picture(
    message: Any, size: tuple[int, int], number: int, recording: Recording, plan: Plan, settings: Settings
) -> bytes | None:
    try:
        jpeg, found = jpeg_of(message, settings.quality)
    except PictureError as error:
        if error.damaged:
            return None
        raise RecordingError(f"image {number} on {plan.image_topic.name} of {recording.path}: {error}") from None
    if found != size:
        raise RecordingError(
            f"image {number} on {plan.image_topic.name} of {recording.path} is {found[0]}x{found[1]} and not "
            f"{size[0]}x{size[1]} as before; record each camera mode on its own"
        )
    return jpeg


def _episode(
    piece: Piece, good: np.ndarray, frames: JpegFrames, plan: Plan, seed: int, details: dict[str, Any],
    settings: Settings,
) -> Episode:  # fmt: skip
    count = int(good.sum())
    stamps = piece.stamps_ns[good]
    rate = (count - 1) / ((stamps[-1] - stamps[0]) / NS) if count > 1 else 0.0
    return Episode(
        frames=frames,
        stamps_ns=stamps,
        camera=plan.camera,
        camera_pose=piece.camera_pose[good],
        joints=piece.joints[good],
        visible=piece.visible[good],
        states=np.zeros((count, 7), np.float32),
        actions=np.zeros((count - 1, 7), np.float32),
        phases=np.zeros(count, np.uint8),
        instruction=piece.instruction,
        split="recorded",
        seed=seed,
        joint_names=plan.joint_names,
        details=details | {"rate_hz": round(float(rate), 3), "damaged_images": int((~good).sum())},
        domain=settings.domain,
    )
