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
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from thinkjepa_ros.checkpoints import CheckpointError, read_manifest
from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.data.typed import some
from thinkjepa_ros.thinker.interface import Backend

from . import ridge as ridges
from .ground import Ground, Match, match_joints, open_ground
from .offline import Offline, Origins, Rhythm, find_origins
from .replay import Replay
from .said import Said
from .twin import Paired


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
    """What is evaluated. hashes: SHA-256 of the weights by "model" and "thinker". stride_s: see `Rhythm`."""

    forecaster: Paired
    thinker: Backend | None
    hashes: Mapping[str, str | None]


def load_models(model: Path, thinker: Path | None, device: str = "cpu", dtype: str = "float32") -> Models:
    """Load a predictor, and a thinker if there is one. Raises CheckpointError, ThinkerError or ValueError, for instance
    where the two do not fit.
    """
    forecaster = Paired.load(model, device, dtype)
    hashes: dict[str, str | None] = {"model": _weights(model, "forecaster"), "thinker": None}
    if thinker is None:
        forecaster.warm_up()
        return Models(forecaster, None, hashes)
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
    return Models(forecaster, mind, hashes)


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
    console: Console | None = None,
) -> Outcome:  # fmt: skip
    """Forecasts over recordings, without any node, beside their truth.

    rhythm: default a forecast at every step of the model. anchor: give the model the true joints now. renamed: joint of
    the truth -> joint of the model. ridge: folder of training episodes for that row. about: added to `Replay.about`.
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
    said = Said(sum(map(len, origins)), past, f.horizon, len(joints), guided=models.thinker is not None)
    runner = Offline(f, models.thinker, rhythm, joints, match.in_truth, anchor)
    used, interrupted = [0] * len(grounds), False
    try:
        for number, (ground, found) in enumerate(zip(grounds, origins, strict=True)):
            said.place(number, found.image, found.piece, found.window[:, f.estimated])
            try:
                with bar.task(ground.path.name, runner.needs(ground, found)) as advance:
                    used[number] = runner.run(ground, found, said, number, advance)
            except RecordingError as error:
                failed.append(str(error))
            said.next += len(found)
    except KeyboardInterrupt:
        interrupted = True
    wall_s = time.monotonic() - began
    # pauses in a recording cost nothing and do not count
    bag_s = sum(float(np.ptp(g.course.stamps_ns[piece])) * 1e-9 for g in grounds for piece in g.pieces)
    words = _about(grounds, origins, match, models, rhythm, runner, used)
    words["speed"] = {"bag_s": bag_s, "wall_s": wall_s, "times_real_time": bag_s / wall_s if wall_s > 0 else None}
    words["anchored"] = anchor
    if interrupted:
        words["speed"]["times_real_time"] = None
        words["partial"] = True
        words["notes"].insert(0, "interrupted: only a part of the recordings was evaluated")
    words["notes"] += [f"left out: {sentence}" for sentence in failed]
    replay = said.replay(grounds, match, anchor, f.step_ns * 1e-9, {**words, **(about or {})})
    if not len(replay) and not interrupted:
        raise RecordingError("\n".join(failed or ["no image of any window can be decoded; record the camera again"]))
    if ridge is not None and not interrupted:
        replay = with_ridge(replay, ridge, models, match, anchor)
    return Outcome(replay, failed, interrupted)


def with_ridge(replay: Replay, data: Path, models: Models, match: Match, anchored: bool) -> Replay:
    """The replay with the row "ridge on past joints", fitted on the episodes in `data`."""
    if match.in_truth is None:
        raise ValueError("--ridge needs a truth (--truth TOPIC) to be scored with")
    estimates = None if anchored else match.in_model
    models.forecaster.guide(None)
    fitted = ridges.fit(data, match.names, models.forecaster, estimates)
    return replace(replay, ridge=ridges.forecasts(fitted, replay))


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
    runner: Offline, used: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    f, mind, course = models.forecaster, models.thinker, grounds[0].course
    left_out: Counter[str] = Counter()
    for ground in grounds:
        left_out.update({f"images {why}": count for why, count in ground.left_out.items()})
    left_out["moments without a whole window of images"] = sum(found.gaps for found in origins)
    left_out["images that cannot be decoded"] = runner.damaged
    left_out["thoughts that failed"] = len(runner.failed_thoughts)
    notes = list(dict.fromkeys(note for ground in grounds for note in ground.course.notes))
    notes += match.notes
    if course.truth is None:
        could = list(dict.fromkeys(topic for ground in grounds for topic in ground.could_be_truth))
        notes.append(
            "there is no truth (--truth), so that no error can be said; topics that could be one: " + some(could)
        )
    if mind is not None and not f.knows_thinker(mind.model_id):
        notes.append(f"{f.model_id} was trained with {f.thinker}, not with {mind.model_id}: its guidance may mislead")
    if runner.failed_thoughts:
        notes.append(f"the first thought that failed: {runner.failed_thoughts[0]}")
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
        "bags": [ground.about(count) for ground, count in zip(grounds, used, strict=True)],
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
