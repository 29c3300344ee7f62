"""Forecasts that the real nodes published while recordings were played to them, beside the truth of the recordings.

The nodes are started by demo/live_bag.py; here is what becomes of what their evaluator wrote. Whatever was late, lost
or guided by an old thought is in it as it came: each forecast is scored at the stamp of the image it is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation.baselines import VELOCITY_WINDOW_S
from thinkjepa_ros.evaluation.runs import Run

from .ground import Ground, Match, match_joints
from .replay import Replay
from .said import Said

NS = 1_000_000_000
#: Baselines see estimates of at most this long.
PAST_S = 1.0


class LiveBagError(RuntimeError):
    """A live evaluation cannot be made; the text says why and what to do."""


@dataclass(frozen=True, eq=False)
class Played:
    """One recording as the nodes saw it: what their evaluator wrote, how long it was played, and what to say of it."""

    run: Run
    played_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Placed:
    """Forecasts of one recording that belong to an image of a piece: index int64 [n] into the run, image and piece
    [n], ascending in time, and the place of that image in its piece.
    """

    index: np.ndarray
    image: np.ndarray
    piece: np.ndarray
    place: np.ndarray


def live_replay(
    grounds: Sequence[Ground],
    played: Sequence[Played],
    *,
    guided: bool,
    about: Mapping[str, Any],
    renamed: Mapping[str, str] | None = None,
    anchored: bool = False,
) -> Replay:
    """What was published over recordings, beside their truth. grounds: by the number of the recording, as `played`.

    guided: whether a thinker ran. renamed: see `match_joints`. about: what is to be added to `Replay.about`.
    Raises LiveBagError where there is nothing to score, ValueError for joints that nobody has.
    """
    first = _same_model(played)
    match = match_joints(grounds[0].joint_names, first.joint_names, renamed or {})
    chosen = match.in_model if match.in_model is not None else np.zeros(0, np.int64)
    left_out: Counter[str] = Counter()
    placed = [_place(ground, one.run, left_out) for ground, one in zip(grounds, played, strict=True)]
    past = _past_images(grounds, placed)
    for k, found in enumerate(placed):
        early = found.place + 1 < past
        left_out["forecasts at the very beginning of a piece"] += int(early.sum())
        placed[k] = _Placed(*(part[~early] for part in (found.index, found.image, found.piece, found.place)))
    count = sum(len(found.index) for found in placed)
    if not count:
        reasons = "; ".join(f"{number} x {why}" for why, number in left_out.items() if number)
        raise LiveBagError(f"none of the forecasts belongs to an image of the recording: {reasons}")
    said = Said(count, past, first.positions.shape[1], len(chosen), guided=guided, unguided=not guided)
    for number, (ground, one, found) in enumerate(zip(grounds, played, placed, strict=True)):
        _file(said, number, ground, one.run, found, chosen)
    words = _about(grounds, played, placed, match, left_out)
    return said.replay(grounds, match, anchored, first.step_s, {**words, "anchored": anchored, **about})


def _same_model(played: Sequence[Played]) -> Run:
    """The first run with forecasts. Raises LiveBagError where there is none, or where another model made another."""
    runs = [one.run for one in played if len(one.run)]
    if not runs:
        status = played[-1].run.words.get("statuses", {}).get("predictor") or {}
        why = status.get("last_error") or status.get("words") or "it said nothing"
        raise LiveBagError(f"the predictor published no forecast; it says: {why}")
    for run in runs:
        for name in ("model_id", "joint_names", "step_s"):
            if getattr(run, name) != getattr(runs[0], name):
                raise LiveBagError(f"the recordings were played to different models ({name} differs); play all again")
    return runs[0]


def _place(ground: Ground, run: Run, left_out: Counter[str]) -> _Placed:
    """Which image each forecast is about; where two forecasts are about one image, the first counts."""
    stamps, order = np.unique(run.stamp_ns, return_index=True)
    left_out["forecasts of an image that was played twice"] += len(run) - len(stamps)
    found: list[np.ndarray] = []
    for number, piece in enumerate(ground.pieces):
        known = ground.course.stamps_ns[piece]
        place = np.searchsorted(known, stamps)
        inside = np.flatnonzero(known[np.minimum(place, len(known) - 1)] == stamps)
        here = place[inside]
        found.append(np.stack([order[inside], piece[here], np.full(len(inside), number), here]))
    rows = np.concatenate(found, 1) if found else np.zeros((4, 0), np.int64)
    # a clock that jumped may have given one stamp to images of two pieces: nobody can say which was meant
    _, once, times = np.unique(rows[0], return_index=True, return_counts=True)
    rows = rows[:, np.sort(once[times == 1])]
    left_out["forecasts of images that are left out"] += len(stamps) - rows.shape[1]
    return _Placed(*rows.astype(np.int64))


def _past_images(grounds: Sequence[Ground], placed: Sequence[_Placed]) -> int:
    """How many images back the baselines see: a second, or as far as every forecast has images behind it; in any case
    what a velocity is made of.
    """
    steps = [np.diff(ground.course.stamps_ns[piece]) for ground in grounds for piece in ground.pieces]
    period_s = float(np.median(np.concatenate(steps))) * 1e-9 if sum(map(len, steps)) else PAST_S
    least = 2 + int(np.ceil(VELOCITY_WINDOW_S / max(period_s, 1e-3)))
    most = 1 + int(np.ceil(PAST_S / max(period_s, 1e-3)))
    there = [int(found.place.min()) + 1 for found in placed if len(found.place)]
    return max(least, min([most, *there]))


def _file(said: Said, number: int, ground: Ground, run: Run, found: _Placed, joints: np.ndarray) -> None:
    """The next rows of `said` are the forecasts of one recording."""
    n, past = len(found.index), said.past_image.shape[1]
    rows = slice(said.next, said.next + n)
    back = np.arange(1 - past, 1)
    images = np.zeros((n, past), np.int64)
    for k, piece in enumerate(ground.pieces):
        mine = np.flatnonzero(found.piece == k)
        images[mine] = piece[found.place[mine, None] + back]
    said.place(number, found.image, found.piece, images)
    main = said.guided if said.guided is not None else said.unguided
    assert main is not None
    main[rows], said.sigma[rows] = run.positions[found.index][:, :, joints], run.sigma[found.index][:, :, joints]
    present = run.present[found.index][:, joints]
    said.present[rows] = present
    # at images without a forecast nobody knows where the model saw the joints
    estimate = np.full((len(ground.course.stamps_ns), *present.shape[1:]), np.nan, np.float32)
    estimate[found.image] = present
    said.estimates[rows] = estimate[images]
    said.weight[rows], said.age_s[rows] = run.weight[found.index], run.age_s[found.index]
    said.surprise[rows], said.latency_s[rows] = run.surprise[found.index], run.latency_s[found.index]
    first, last = (int(ground.course.stamps_ns[k]) for k in (0, -1))
    said.thoughts += [
        {"bag": number, "stamp_ns": int(t["stamp_ns"]), "text": t["text"], "delay_s": t["delay_s"]}
        for t in run.words.get("thoughts", [])
        if first <= t["stamp_ns"] <= last
    ]
    said.done[rows] = True
    said.next += n


def _about(
    grounds: Sequence[Ground], played: Sequence[Played], placed: Sequence[_Placed], match: Match, left_out: Counter[str]
) -> dict[str, Any]:
    """What can be said from the runs and the recordings alone."""
    run = next(one.run for one in played if len(one.run))
    course = grounds[0].course
    for ground in grounds:
        for why, count in ground.left_out.items():
            left_out[f"images {why}"] += count
    status = run.words.get("statuses", {})
    steps = np.concatenate([np.diff(one.run.stamp_ns) for one in played]) * 1e-9
    bag_s, wall_s = sum(ground.duration_s for ground in grounds), sum(one.played_s for one in played)
    notes = [note for one in played for note in one.notes]
    notes += [note for ground in grounds for note in ground.course.notes if note not in notes]
    if not run.metric:
        notes.append("no calibration of the camera reached the predictor: its metres rest on that of its training")
    return {
        "mode": "live",
        "model_id": run.model_id,
        "domain": run.domain,
        "trained": bool(status.get("predictor", {}).get("trained", True)),
        "thinker_id": status.get("thinker", {}).get("model_id") or None,
        "stride_s": round(float(np.median(steps[steps > 0])), 4) if (steps > 0).any() else None,
        "horizon_s": run.step_s * run.positions.shape[1],
        "bags": [ground.about(_used(one.run)) for ground, one in zip(grounds, played, strict=True)],
        "truth_source": course.truth.source if course.truth is not None else None,
        "image_topic": course.image_topic.name,
        "camera": {name: getattr(course.camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")},
        "left_out": {why: count for why, count in left_out.items() if count},
        "notes": [*notes, *match.notes],
        "joints_without_truth": list(match.joints_without_truth),
        "truth_without_joint": list(match.truth_without_joint),
        "speed": {"bag_s": bag_s, "wall_s": wall_s, "times_real_time": bag_s / wall_s if wall_s > 0 else None},
        "dropped": dropped(grounds, [one.run for one in played]),
    }


def _used(run: Run) -> int:
    return int((run.words.get("statuses", {}).get("predictor") or {}).get("used", 0))


def dropped(grounds: Sequence[Ground], runs: Sequence[Run]) -> dict[str, int]:
    """What the nodes' own counters say of images and forecasts that led to nothing, over all recordings."""
    out: Counter[str] = Counter()
    for ground, run in zip(grounds, runs, strict=True):
        statuses = run.words.get("statuses", {})
        predictor = statuses.get("predictor") or {}
        out["images played"] += len(ground.course.stamps_ns)
        out["images that did not reach the predictor"] += max(
            0, len(ground.course.stamps_ns) - int(predictor.get("received", 0))
        )
        out["images that gave way to newer ones"] += int(predictor.get("superseded", 0))
        for reason, count in (predictor.get("reasons") or {}).items():
            out[f"images refused by the predictor ({reason})"] += int(count)
        out["images used without a forecast (filling the window)"] += max(
            0, int(predictor.get("used", 0)) - int(predictor.get("published", 0))
        )
        received = int(run.words.get("forecasts", len(run)))
        out["forecasts received"] += received
        out["forecasts lost on the way"] += max(0, int(predictor.get("published", 0)) - received)
        out["forecasts refused as malformed"] += int(run.words.get("refused_forecasts", 0))
        if thinker := statuses.get("thinker"):
            out["thoughts published"] += int(thinker.get("published", 0))
            out["thoughts that reached the predictor"] += int(predictor.get("guidance_received", 0))
            out["thoughts refused by the predictor"] += int(predictor.get("guidance_refused", 0))
    return {name: count for name, count in out.items() if count or name.startswith(("images played", "forecasts rec"))}
