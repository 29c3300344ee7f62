"""metrics.json: what a `Replay` is worth, beside forecasts that need no model. docs/evaluate_bag.md says what is what.

Only whole horizons count, and of those only entries that all rows answer. Forecasts are measured in blocks, so that an
hour of them needs little more memory than they take themselves.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation import coverage, metrics
from thinkjepa_ros.evaluation.bootstrap import Interval, bootstrap_mean
from thinkjepa_ros.evaluation.runs import plain
from thinkjepa_ros.files import write_atomically

from . import rows
from .replay import Replay
from .words import summary

FORMAT = 1
#: Grid steps at which forecasts are scored; the last one of the horizon is, too.
HORIZONS = (8, 16, 32)
GROUPS = ("moving", "resting", "all")
#: Figures of one forecast.
_ACCURACIES = {"acc_2cm": 0.02, "acc_5cm": 0.05, "acc_10cm": 0.10}
FIGURES = ("ade", "fde", *_ACCURACIES, "velocity", "jerk")
_BLOCK = 256
#: Moments that are shown, at least this far apart.
_MOMENTS, _APART_S = 6, 2.0


@dataclass
class Measured:
    """Figures of every forecast and sums over all. H horizons.

    one: {group: {steps: {row: {figure: float64 [N]}}}}, NaN where nothing is scored. by_step, by_joint: {row: sums},
    beside the numbers of entries. present: error of the joints now [N].
    """

    horizons: list[int]
    one: dict[str, dict[int, dict[str, dict[str, np.ndarray]]]]
    present: np.ndarray
    longest: int = 0
    by_step: dict[str, np.ndarray] = field(default_factory=dict)
    by_joint: dict[str, np.ndarray] = field(default_factory=dict)
    within: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))


def horizons_of(replay: Replay) -> list[int]:
    """Numbers of steps at which is scored."""
    steps = replay.truth.shape[1]
    return sorted({*(h for h in HORIZONS if h <= steps), steps} - {0})


def measure(replay: Replay, found: Measured | None = None) -> dict[str, Any]:
    """The contents of metrics.json (format 1): strict JSON values, None for what is not known.

    found: `measure_each` of the same replay, where it is there already.
    """
    found = measure_each(replay) if found is None else found
    there = rows.names(replay)
    stretch = rows.stretches(replay)
    main, scored = rows.main(replay) or rows.HOLD, _scored(found, replay)
    tables: dict[str, Any] = {}
    for group in GROUPS:
        for steps in found.horizons:
            values = found.one[group][steps]
            if any(np.isfinite(values[row]["ade"]).any() for row in there):
                cells = {row: _cell(values, row, stretch) for row in there}
                tables.setdefault(group, {})[str(steps)] = cells
    out = {
        "format": FORMAT,
        "about": replay.about,
        "summary": "",
        "counts": {
            "forecasts": len(replay),
            "scored": int(scored.sum()),
            "origins_moving": int(np.isfinite(_of(found, "moving", found.horizons[-1], there[0])).sum()),
            "stretches": len(np.unique(stretch[scored])),
            "pieces": len(np.unique(np.stack([replay.bag, replay.piece], 1), axis=0)),
            "thoughts": len(replay.thoughts),
        },
        "horizons": [{"steps": h, "s": round(h * replay.step_s, 9)} for h in found.horizons],
        "rows": there,
        "tables": tables,
        "present_error": list(_interval(found.present, stretch)),
        "by_step": {row: values.tolist() for row, values in found.by_step.items()},
        "by_joint": {
            row: dict(zip(replay.joint_names, values.tolist(), strict=True)) for row, values in found.by_joint.items()
        },
        "calibration": {
            "steps": list(range(1, found.within.shape[1] + 1)),
            "within_1_sigma": found.within[0].tolist(),
            "within_2_sigma": found.within[1].tolist(),
        },
        "stability": rows.stability(replay),
        "latency_s": _quantiles(replay.latency_s),
        "age_s": _quantiles(replay.age_s),
        "rate_hz": _rate_hz(replay),
        "weight_mean": float(metrics.nanmean(replay.weight)),
        "surprise": {
            "stamps_s": times_s(replay).tolist(),
            "values": replay.surprise.tolist(),
            "auroc": auroc(replay.surprise, replay.event),
        },
        "moments": _moments(replay, found, main),
    }
    clean: dict[str, Any] = plain(out)
    clean["summary"] = summary(clean, replay)
    return clean


def _of(found: Measured, group: str, steps: int, row: str, figure: str = "ade") -> np.ndarray:
    return found.one[group][steps][row][figure]


def _scored(found: Measured, replay: Replay) -> np.ndarray:
    """bool [N]: forecasts that count at some horizon."""
    first = rows.names(replay)[0]
    return np.any([np.isfinite(_of(found, "all", steps, first)) for steps in found.horizons], 0)


# --- every forecast ---


def measure_each(replay: Replay) -> Measured:
    """The figures of every forecast."""
    n = len(replay)
    there, horizons = rows.names(replay), horizons_of(replay)
    one = {
        group: {h: {row: {f: np.full(n, np.nan) for f in FIGURES} for row in there} for h in horizons}
        for group in GROUPS
    }
    distance = np.linalg.norm(replay.present.astype(np.float64) - replay.truth_present, axis=-1)
    found = Measured(horizons, one, metrics.nanmean(distance, 1))
    ends: dict[int, int] = dict.fromkeys(horizons, 0)
    for part, values, known in _blocks(replay):
        truth = replay.truth[part]
        errors = {row: metrics.displacement_errors(value, truth, known) for row, value in values.items()}
        speed = {row: _speed_errors(value, truth, known, replay.step_s) for row, value in values.items()}
        jerks = {row: _jerks(value, known, replay.step_s) for row, value in values.items()}
        for steps in horizons:
            whole = np.asarray(known[:, steps - 1].any(1))
            ends[steps] += int(whole.sum())
            groups = rows.groups(replay.truth_present[part], replay.truth[part, :steps], replay.joint_names)
            for group, joints in groups.items():
                chosen = joints & whole[:, None]
                for row in there:
                    cell = one[group][steps][row]
                    error = metrics.only(errors[row][:, :steps], chosen)
                    cell["ade"][part], cell["fde"][part] = metrics.ade(error), metrics.fde(error)
                    for name, threshold in _ACCURACIES.items():
                        cell[name][part] = metrics.accuracy(error, threshold)
                    cell["velocity"][part] = metrics.nanmean(metrics.only(speed[row][:, : steps - 1], chosen), (1, 2))
                    jerk = metrics.only(jerks[row][:, : max(0, steps - 3)], chosen)
                    cell["jerk"][part] = metrics.nanmean(jerk, (1, 2))
    found.longest = max((h for h in horizons if ends[h]), default=0)
    if found.longest:
        _sums(replay, found)
    return found


def _blocks(replay: Replay) -> Iterator[tuple[slice, dict[str, np.ndarray], np.ndarray]]:
    """Some of the forecasts at a time: where, all rows [n, T, J, 3], and what all of them answer where truth is known,
    bool [n, T, J].
    """
    for first in range(0, len(replay), _BLOCK):
        part = slice(first, min(first + _BLOCK, len(replay)))
        values = rows.predictions(replay, part)
        known = metrics.answered_by_all(np.isfinite(replay.truth[part]).all(-1), *values.values())
        yield part, values, known


def _speed_errors(value: np.ndarray, truth: np.ndarray, known: np.ndarray, step_s: float) -> np.ndarray:
    """Distance between forecast and true velocity from each step to the next, [n, T - 1, J] in m/s."""
    apart = np.linalg.norm(np.diff(value, axis=1) - np.diff(truth, axis=1), axis=-1) / step_s
    return np.where(known[:, 1:] & known[:, :-1], apart, np.nan)


def _jerks(value: np.ndarray, known: np.ndarray, step_s: float) -> np.ndarray:
    """Size of the third difference of a forecast, [n, T - 3, J] in m/s^3: how unsteady its motion is."""
    if value.shape[1] < 4:
        return np.full((len(value), 0, value.shape[2]), np.nan)
    size = np.linalg.norm(np.diff(value, 3, axis=1), axis=-1) / step_s**3
    return np.where(known[:, 3:] & known[:, 2:-1] & known[:, 1:-2] & known[:, :-3], size, np.nan)


def _sums(replay: Replay, found: Measured) -> None:
    """Errors by step and by joint, and coverage, over forecasts that are whole up to the longest horizon there is."""
    steps, j, main = found.longest, len(replay.joint_names), rows.main(replay)
    total = {row: np.zeros((steps, j)) for row in rows.names(replay)}
    count = np.zeros((steps, j))
    inside, axes = np.zeros((2, steps)), np.zeros(steps)
    for part, values, known in _blocks(replay):
        known = known[:, :steps] & np.asarray(known[:, steps - 1].any(1))[:, None, None]
        truth = replay.truth[part, :steps]
        count += known.sum(0)
        for row, value in values.items():
            total[row] += np.nan_to_num(metrics.displacement_errors(value[:, :steps], truth, known)).sum(0)
        if main is None:
            continue
        sigma = replay.sigma[part, :steps].astype(np.float64)
        sure = known & (sigma > 0)  # a sigma that is not known covers nothing and is not counted
        scores = coverage.scores(values[main][:, :steps], truth, sigma, sure)
        axes += np.isfinite(scores).sum((0, 2, 3))
        for k in (0, 1):
            inside[k] += (scores <= k + 1).sum((0, 2, 3))
    with np.errstate(invalid="ignore"):
        found.by_step = {row: value.sum(1) / count.sum(1) for row, value in total.items()}
        found.by_joint = {row: value.sum(0) / count.sum(0) for row, value in total.items()}
        found.within = inside / axes if main is not None else found.within


# --- over all ---


def _over_stretches(values: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Mean of the values [N] of every stretch, NaN where one has none."""
    known = np.isfinite(values)
    count = np.bincount(stretch[known], minlength=int(stretch.max(initial=-1)) + 1)
    total = np.bincount(stretch[known], values[known], minlength=len(count))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(values: np.ndarray, stretch: np.ndarray) -> Interval:
    return bootstrap_mean(_over_stretches(values, stretch))


def _cell(values: dict[str, dict[str, np.ndarray]], row: str, stretch: np.ndarray) -> dict[str, Any]:
    mine = values[row]
    out: dict[str, Any] = {name: list(_interval(mine[name], stretch)) for name in ("ade", "fde")}
    for name in FIGURES[2:]:
        out[name] = float(metrics.nanmean(_over_stretches(mine[name], stretch)))
    for other in (rows.HOLD, rows.UNGUIDED):
        if other in values and other != row:
            out[f"minus_{other}"] = list(_interval(mine["ade"] - values[other]["ade"], stretch))
    return out


def _quantiles(values: np.ndarray) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"p50": float("nan"), "p95": float("nan"), "p99": float("nan"), "max": float("nan")}
    p50, p95, p99 = np.quantile(known, (0.5, 0.95, 0.99))
    return {"p50": p50, "p95": p95, "p99": p99, "max": float(known.max())}


def _rate_hz(replay: Replay) -> float:
    """Forecasts per second of recording, within the pieces."""
    same = (np.diff(replay.bag) == 0) & (np.diff(replay.piece) == 0)
    seconds = float(np.diff(replay.stamp_ns)[same].sum()) * 1e-9
    return float(same.sum()) / seconds if seconds > 0 else float("nan")


def times_s(replay: Replay) -> np.ndarray:
    """Seconds of every forecast after the first image of its recording, [N]."""
    bags, first = replay.about.get("bags", []), replay.stamp_ns.copy()
    for number in np.unique(replay.bag):
        mine = replay.bag == number
        told = bags[number].get("first_ns") if number < len(bags) else None
        first[mine] = replay.stamp_ns[mine].min() if told is None else told
    return np.asarray((replay.stamp_ns - first) * 1e-9)


def auroc(values: np.ndarray, event: np.ndarray | None) -> float:
    """Chance that a value at a labelled moment is above one elsewhere (ties count half); NaN where one kind lacks."""
    if event is None:
        return float("nan")
    known = np.isfinite(values)
    yes, no = values[known & event], np.sort(values[known & ~event])
    if not len(yes) or not len(no):
        return float("nan")
    below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return float(below.mean() / 2 / len(no))


def _moments(replay: Replay, found: Measured, main: str) -> dict[str, Any]:
    """The forecasts that were most wrong and most right, where something moves if anything does."""
    if not found.longest:
        return {"worst": [], "best": []}
    ade = _of(found, "all", found.longest, main)
    moving = _of(found, "moving", found.longest, main)
    easy = moving if np.isfinite(moving).any() else ade
    seconds = times_s(replay)
    spoken = sorted(replay.thoughts, key=lambda t: (int(t["bag"]), int(t["stamp_ns"])))

    def pick(values: np.ndarray) -> list[dict[str, Any]]:
        chosen: list[int] = []
        for index in np.argsort(values, kind="stable"):
            if len(chosen) == _MOMENTS or np.isnan(values[index]):
                break
            apart = (replay.bag[chosen] != replay.bag[index]) | (np.abs(seconds[chosen] - seconds[index]) >= _APART_S)
            if apart.all():
                chosen.append(int(index))
        return [_moment(replay, index, abs(float(values[index])), seconds, spoken) for index in chosen]

    return {"worst": pick(-ade), "best": pick(easy)}


def _moment(
    replay: Replay, index: int, ade: float, seconds: np.ndarray, spoken: list[dict[str, Any]]
) -> dict[str, Any]:
    """One of them, with the thought that guided it."""
    bag, stamp, age = int(replay.bag[index]), int(replay.stamp_ns[index]), float(replay.age_s[index])
    thought = ""
    if replay.weight[index] > 0 and np.isfinite(age):
        of = [t for t in spoken if int(t["bag"]) == bag and int(t["stamp_ns"]) <= stamp - age * 1e9 + 1e6]
        thought = str(of[-1]["text"]) if of else ""
    return {
        "index": index, "bag": bag, "stamp_ns": stamp, "time_s": float(seconds[index]), "ade": ade, "thought": thought,
    }  # fmt: skip


# --- per_frame.csv ---


def write_per_frame(replay: Replay, found: Measured, path: Path) -> None:
    """One line per forecast: where and when, guidance and surprise, and ADE and FDE of all joints of each row.

    found: `measure_each` of the replay.
    """
    there = rows.names(replay)
    columns: dict[str, np.ndarray] = {name: getattr(replay, name) for name in ("bag", "piece", "stamp_ns")}
    columns |= {name: getattr(replay, name) for name in ("weight", "age_s", "surprise", "latency_s")}
    for row in there:
        for steps in found.horizons:
            for figure in ("ade", "fde"):
                name = f"{row.replace(' ', '_')}_{figure}_{steps}"
                columns[name] = _of(found, "all", steps, row, figure)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for values in zip(*columns.values(), strict=True):
        writer.writerow([_number(value) for value in values])
    write_atomically(path, text.getvalue().encode())


def _number(value: Any) -> str:
    if isinstance(value, np.integer):
        return str(int(value))
    return "" if np.isnan(value) else f"{float(value):.6g}"
