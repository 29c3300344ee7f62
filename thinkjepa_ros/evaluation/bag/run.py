"""`thinkjepa evaluate bag` offline: from recordings to a `Replay`, and from any `Replay` to the files of a report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from thinkjepa_ros.checkpoints import CheckpointError, read_manifest
from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.data.typed import some
from thinkjepa_ros.thinker.interface import Backend

from . import ridge as ridges
from .ground import Ground, Match, match_joints, open_ground
from .offline import Done, Offline
from .origins import Origins, Rhythm, find_origins, parts_of
from .replay import Replay
from .room import Room, scratch_folder
from .said import Said
from .twin import Paired
from .workers import PART, Recipe, Workers


@dataclass
class Outcome:
    """replay: what came of the recordings that could be used. failed: a sentence for each that could not.

    interrupted: somebody pressed Ctrl-C; what was done until then is in the replay.
    """

    replay: Replay
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Models:
    """What is evaluated. hashes: SHA-256 of the weights by "model" and "thinker". recipe: how other processes make the
    same ones; None where they had better not, for instance on a GPU.
    """

    forecaster: Paired
    thinker: Backend | None
    hashes: Mapping[str, str | None]
    recipe: Recipe | None = None


def load_models(model: Path, thinker: Path | None, device: str = "cpu", dtype: str = "float32") -> Models:
    """Load a predictor, and a thinker if there is one. Raises CheckpointError, ThinkerError or ValueError, for instance
    where the two do not fit.
    """
    forecaster = Paired.load(model, device, dtype)
    # a type that was chosen by trying is not tried again
    recipe = Recipe(model, thinker, forecaster.choice.name, torch.get_num_threads()) if device == "cpu" else None
    hashes: dict[str, str | None] = {"model": _weights(model, "forecaster"), "thinker": None}
    if thinker is None:
        forecaster.warm_up()
        return Models(forecaster, None, hashes, recipe)
    if forecaster.guidance_shape is None:
        raise ValueError(f"{forecaster.model_id} was built without guidance; leave the thinker out (--no-thinker)")
    from thinkjepa_ros.thinker.qwen import Thinker

    mind = Thinker.load(thinker, device)
    shape = (len(mind.layers), mind.width)
    if shape != forecaster.guidance_shape:
        raise ValueError(
            f"{mind.model_id} gives {shape[0]} layers of width {shape[1]}, {forecaster.model_id} takes "
            f"{forecaster.guidance_shape[0]} of {forecaster.guidance_shape[1]}; give the thinker it was trained with "
            "(--thinker), or none (--no-thinker)"
        )
    forecaster.warm_up()
    mind.warm_up()
    hashes["thinker"] = _weights(thinker, "thinker")
    return Models(forecaster, mind, hashes, recipe)


def _weights(folder: Path, kind: str) -> str | None:
    try:
        return read_manifest(folder, kind).sha256.get("model.safetensors")
    except (CheckpointError, FileNotFoundError):
        return None


def survey_all(bags: Sequence[Path], settings: Settings, bar: Bar) -> tuple[list[Ground], list[str]]:
    """What can be evaluated, and a sentence for each recording that cannot. Raises RecordingError if none can,
    ValueError for a recording that is given twice.
    """
    places = [Path(bag).resolve() for bag in bags]
    if twice := [str(bag) for k, bag in enumerate(bags) if places[k] in places[:k]]:
        raise ValueError(f"{twice[0]} is given twice; give each recording once")
    grounds: list[Ground] = []
    failed: list[str] = []
    for bag in bags:
        try:
            with bar.task(f"reading {Path(bag).name}") as advance:
                ground = open_ground(bag, settings, advance)
            if grounds and ground.joint_names != grounds[0].joint_names:
                raise RecordingError(
                    f"the truth of {bag} has the joints {some(list(ground.joint_names))}, that of {grounds[0].path} "
                    f"{some(list(grounds[0].joint_names))}; evaluate them apart"
                )
            grounds.append(ground)
        except RecordingError as error:
            failed.append(str(error))
    if not grounds:
        raise RecordingError("\n".join(failed))
    return grounds, failed


def offline(
    bags: Sequence[Path], settings: Settings, models: Models, rhythm: Rhythm | None = None, *, anchor: bool = False,
    renamed: Mapping[str, str] | None = None, ridge: Path | None = None, about: Mapping[str, Any] | None = None,
    console: Console | None = None, workers: int = 1, scratch: Path | None = None,
) -> Outcome:  # fmt: skip
    """Forecasts over recordings, without any node, beside their truth.

    rhythm: default a forecast at every step of the model. anchor: give the model the true joints now. renamed: joint of
    the truth -> joint of the model. ridge: folder of training episodes for that row. about: added to `Replay.about`.
    workers: processes that share the work where there is enough of it; what comes out does not depend on it. scratch:
    folder for files that hold the arrays of the replay, so that they need no memory; their names are gone at the end.
    Raises RecordingError where nothing can be evaluated, ValueError, EpisodeError (ridge).
    """
    f = models.forecaster
    rhythm = rhythm or Rhythm(f.step_ns * 1e-9)
    bar, began = Bar(console or Console(quiet=True)), time.monotonic()
    grounds, failed = survey_all(bags, settings, bar)
    match = match_joints(grounds[0].joint_names, f.joint_names, renamed or {})
    if anchor and (match.in_truth is None or match.in_model is None):
        raise ValueError("--anchor needs a truth (--truth TOPIC) with joints that the model has")
    origins, short = [], []
    for ground in grounds:
        found = find_origins(ground, f.window, f.step_ns, rhythm.stride_s)
        if not len(found):
            short.append(_too_short(ground, f))
        origins.append(found)
    failed += short
    if not any(map(len, origins)):
        raise RecordingError("\n".join(failed))
    joints = match.in_model if match.in_model is not None else np.zeros(0, np.int64)
    past = len(range(f.window)[f.estimated])
    workers = 1 if models.recipe is None else max(1, min(workers, sum(map(len, origins)) // PART[0]))
    with scratch_folder(scratch, needed=workers > 1) as folder:
        said = Said(
            sum(map(len, origins)), past, f.horizon, len(joints), guided=models.thinker is not None,
            anchored=len(f.joint_names) if anchor else 0, room=Room(folder),
        )  # fmt: skip
        for number, (ground, found) in enumerate(zip(grounds, origins, strict=True)):
            rows = said.place(number, found.image, found.piece, found.window[:, f.estimated])
            if said.anchor is not None:
                assert match.in_truth is not None
                said.anchor[rows, joints] = ground.now(found.image, match.in_truth)
            said.next = rows.stop
        done = [Done() for _ in grounds]
        runner = Offline(f, models.thinker, rhythm, joints)
        interrupted = False
        try:
            _forecast(grounds, origins, runner, said, workers, models.recipe, done, failed, bar)
        except KeyboardInterrupt:
            interrupted = True
        said.thoughts = [thought for one in done for thought in one.thoughts]
        words = _about(grounds, origins, match, models, rhythm, done)
        words["speed"] = _speed(grounds, time.monotonic() - began, workers)
        words["anchored"] = anchor
        if interrupted:
            words["speed"]["times_real_time"] = None
            words["partial"] = True
            words["notes"].insert(0, "interrupted: only a part of the recordings was evaluated")
        words["notes"] += [f"left out: {sentence}" for sentence in failed]
        replay = said.replay(grounds, match, anchor, f.step_ns * 1e-9, {**words, **(about or {})})
        if not len(replay) and not interrupted:
            reasons = failed or ["no image of any window can be decoded; record the camera again"]
            raise RecordingError("\n".join(reasons))
        if ridge is not None and not interrupted:
            replay = with_ridge(replay, ridge, models, match, anchor, said.room)
        return Outcome(replay, failed, interrupted)


def _forecast(
    grounds: Sequence[Ground], origins: Sequence[Origins], runner: Offline, said: Said, workers: int,
    recipe: Recipe | None, done: Sequence[Done], failed: list[str], bar: Bar,
) -> None:  # fmt: skip
    """All forecasts. done, failed: what came of each recording, and sentences for those that failed."""
    count = sum(map(len, origins))
    turns = -(-count // (workers * PART[1]))  # all processes have as many parts, and end together
    size = max(1, count if workers == 1 else -(-count // (workers * turns)))
    firsts = np.cumsum([0, *map(len, origins)]).tolist()
    reach_ns = runner.forecaster.reach_ns
    parts = [
        part
        for number, (ground, found) in enumerate(zip(grounds, origins, strict=True))
        for part in parts_of(number, ground, found, firsts[number], size, reach_ns)
    ]
    with bar.task("forecasts", count) as advance:
        if workers > 1:
            assert recipe is not None
            with Workers(workers, recipe, runner.rhythm, runner.joints, grounds, said) as others:
                failed += others.run(parts, done, advance).values()
            return
        for part in parts:
            try:
                runner.run(grounds[part.number], said, part, done[part.number], advance)
            except RecordingError as error:
                failed.append(str(error))


def _speed(grounds: Sequence[Ground], wall_s: float, workers: int) -> dict[str, Any]:
    """How long it took. Pauses in a recording cost nothing and do not count."""
    bag_s = sum(float(np.ptp(g.course.stamps_ns[piece])) * 1e-9 for g in grounds for piece in g.pieces)
    times = bag_s / wall_s if wall_s > 0 else None
    return {"bag_s": bag_s, "wall_s": wall_s, "times_real_time": times, "workers": workers}


def with_ridge(replay: Replay, data: Path, models: Models, match: Match, anchored: bool, room: Room) -> Replay:
    """The replay with the row "ridge on past joints", fitted on the episodes in `data`."""
    if match.in_truth is None:
        raise ValueError("--ridge needs a truth (--truth TOPIC) to be scored with")
    estimates = None if anchored else match.in_model
    models.forecaster.guide(None)
    fitted = ridges.fit(data, match.names, models.forecaster, estimates)
    return replace(replay, ridge=ridges.forecasts(fitted, replay, room))


def _too_short(ground: Ground, f: Paired) -> str:
    """Why a recording has no window."""
    lasts = max(float(np.ptp(ground.course.stamps_ns[piece])) * 1e-9 for piece in ground.pieces)
    step_s, span_s = f.step_ns * 1e-9, (f.window - 1) * f.step_ns * 1e-9
    if lasts < span_s:
        return (
            f"{ground.path}: its longest unbroken piece lasts {lasts:.2f} s, {f.model_id} looks at {span_s:.2f} s; "
            "record for longer, or see whether images are missing (--gap-s)"
        )
    return (
        f"{ground.path}: no window of {f.window} images {step_s:g} s apart is whole; {f.model_id} needs a camera of "
        f"{1 / step_s:g} Hz or more"
    )


def _about(
    grounds: Sequence[Ground], origins: Sequence[Origins], match: Match, models: Models, rhythm: Rhythm,
    done: Sequence[Done],
) -> dict[str, Any]:  # fmt: skip
    f, mind, course = models.forecaster, models.thinker, grounds[0].course
    left_out: Counter[str] = Counter()
    for ground in grounds:
        left_out.update({f"images {why}": count for why, count in ground.left_out.items()})
    left_out["moments without a whole window of images"] = sum(found.gaps for found in origins)
    left_out["images that cannot be decoded"] = sum(one.damaged for one in done)
    thoughts = [why for one in done for why in one.failed]
    left_out["thoughts that failed"] = len(thoughts)
    notes = list(dict.fromkeys(note for ground in grounds for note in ground.course.notes))
    notes += match.notes
    if course.truth is None:
        could = list(dict.fromkeys(topic for ground in grounds for topic in ground.could_be_truth))
        notes.append(
            "there is no truth (--truth), so that no error can be said; topics that could be one: " + some(could)
        )
    if mind is not None and not f.knows_thinker(mind.model_id):
        notes.append(f"{f.model_id} was trained with {f.thinker}, not with {mind.model_id}: its guidance may mislead")
    if thoughts:
        notes.append(f"the first thought that failed: {thoughts[0]}")
    if rhythm.stride_s > 1.5 * f.step_ns * 1e-9:
        notes.append("surprise is known only where a forecast was made one tubelet earlier (--stride)")
    camera = course.camera
    return {
        "mode": "offline",
        "rate": None,
        "model_id": f.model_id,
        "weights_sha256": models.hashes["model"],
        "domain": f.domain,
        "trained": f.trained,
        "thinker_id": None if mind is None else mind.model_id,
        "thinker_sha256": models.hashes["thinker"],
        "stride_s": rhythm.stride_s,
        "think_period_s": None if mind is None else rhythm.think_period_s,
        "think_delay_s": None if mind is None else rhythm.think_delay_s,
        "guidance_valid_for_s": None if mind is None else rhythm.valid_for_s,
        "horizon_s": f.horizon * f.step_ns * 1e-9,
        "bags": [ground.about(one.looked) for ground, one in zip(grounds, done, strict=True)],
        "truth_source": None if course.truth is None else course.truth.source,
        "image_topic": course.image_topic.name,
        "camera": {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")},
        "left_out": {why: count for why, count in left_out.items() if count},
        "notes": notes,
        "joints_without_truth": list(match.joints_without_truth),
        "truth_without_joint": list(match.truth_without_joint),
        "dropped": {},
    }


class Bar:
    """A progress bar on a terminal, else nothing."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, words: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Yields advance(count)."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True) as bar:
            task: TaskID = bar.add_task(words, total=total)
            yield lambda count: bar.update(task, advance=count)
