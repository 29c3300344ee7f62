"""Score a forecaster on episodes, offline and deterministic, through the same streaming code that runs on a robot.

Rows: the model from images alone and with an observed pose, beside hold, constant and damped velocity with exactly
the poses each may use;
the same model with black and with foreign frames (which must be worse); guided by recorded thoughts. Statistics are
over episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from ..data.episode import PHASES, Episode
from ..jepa.forecaster import Forecaster
from ..train.clips import Grid, load_folder
from ..values import Frame, Guidance
from . import baselines, metrics
from .bootstrap import Interval, bootstrap_mean, paired_bootstrap
from .coverage import Coverage, coverage, scores
from .coverage import show as show_coverage

#: Seconds between two forecast origins of an episode.
ORIGIN_EVERY_S = 0.5
#: Grid steps at which forecasts are scored.
HORIZONS = (8, 16, 32)
MODEL, ANCHORED, GUIDED = "model, image only", "model, anchored", "model, guided"
HOLD, VELOCITY, DAMPED = "hold", "constant velocity", "damped velocity"
TRUE = ", observed pose"
BLACK, FOREIGN = "model, black frames", "model, frames of another episode"

Thoughts = Callable[[Episode], list[Guidance]]


@dataclass
class Origins:
    """Everything measured at the forecast origins of all episodes, in the camera frame of each origin."""

    episode: list[int] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)
    truth: list[np.ndarray] = field(default_factory=list)  # [T, J, 3]
    now: list[np.ndarray] = field(default_factory=list)  # true joints now [J, 3]
    visible: list[np.ndarray] = field(default_factory=list)
    sigma: dict[str, list[np.ndarray]] = field(default_factory=dict)  # [T, J] of some of the methods
    found: list[np.ndarray] = field(default_factory=list)  # estimated joints now
    methods: dict[str, list[np.ndarray]] = field(default_factory=dict)
    present: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, method: str, positions: np.ndarray, sigma: np.ndarray | None = None) -> None:
        self.methods.setdefault(method, []).append(positions)
        if sigma is not None:
            self.sigma.setdefault(method, []).append(sigma)


def collect(
    forecaster: Forecaster, episodes: list[Episode], thoughts: Thoughts | None = None, controls: bool = True
) -> Origins:
    """Run the forecaster over every episode on the time grid. A foreign frame comes from the next episode of the
    list.
    """
    out = Origins()
    for number, episode in enumerate(track(episodes, "Evaluating", transient=True)):
        _one(forecaster, number, episode, episodes[(number + 1) % len(episodes)], thoughts, controls, out)
    return out


def _one(
    f: Forecaster,
    number: int,
    episode: Episode,
    foreign: Episode,
    thoughts: Thoughts | None,
    controls: bool,
    out: Origins,
) -> None:
    stamps = episode.stamps_ns
    grid = np.arange(stamps[0], stamps[-1] + 1, f.step_ns)
    frames = Grid.of(stamps, f.step_ns).index
    every = max(1, round(ORIGIN_EVERY_S * 1e9 / f.step_ns))
    origins = range(f.window - 1, len(grid) - 1, every)
    times = (-np.arange(f.window - 1, -1, -1) * f.step_ns * 1e-9)[f.estimated]
    said = thoughts(episode) if thoughts else []
    f.reset()
    for k, i in enumerate(frames):
        f.observe(Frame(episode.frames[int(i)], int(grid[k])), episode.camera)
    for k in origins:
        window = [int(s) for s in grid[k + 1 - f.window : k + 1]]
        read = frames[k + 1 - f.window : k + 1][f.estimated]
        true_past = np.stack([episode.points_in_camera(int(i), int(frames[k])) for i in read])
        now = true_past[-1]
        ahead = np.full((f.horizon, *now.shape), np.nan)
        known = frames[k + 1 : k + 1 + f.horizon]
        ahead[: len(known)] = episode.points_in_camera(known, int(frames[k]))
        f.guide(None)
        free, anchored = f.forecast(window), f.forecast(window, anchor=now)
        estimates = np.stack([f.estimate(s) for s in window[f.estimated]])
        out.episode.append(number)
        out.phase.append(int(episode.phases[frames[k]]))
        out.truth.append(ahead)
        out.now.append(now)
        out.visible.append(episode.visible[frames[k]])
        out.found.append(free.present)
        out.add(MODEL, free.positions, free.sigma)
        out.add(ANCHORED, anchored.positions, anchored.sigma)
        for suffix, past in (("", estimates), (TRUE, true_past)):
            out.add(HOLD + suffix, baselines.hold(past[None, -1], f.horizon)[0])
            out.add(
                VELOCITY + suffix, baselines.constant_velocity(past[None], times[None], f.step_ns * 1e-9, f.horizon)[0]
            )
            out.add(DAMPED + suffix, baselines.damped_velocity(past[None], times[None], f.step_ns * 1e-9, f.horizon)[0])
        if thoughts:
            newest = [g for g in said if g.stamp_ns <= window[-1] - 200_000_000]
            f.guide(newest[-1] if newest else None)
            out.add(GUIDED, f.forecast(window).positions)
    if not controls:
        return
    black = np.zeros((episode.camera.height, episode.camera.width, 3), np.uint8)
    for name, picture in ((BLACK, lambda i: black), (FOREIGN, lambda i: foreign.frames[int(i) % len(foreign)])):
        f.reset()
        for k, i in enumerate(frames):
            f.observe(Frame(picture(i), int(grid[k])), episode.camera)
        for k in origins:
            result = f.forecast([int(s) for s in grid[k + 1 - f.window : k + 1]])
            out.add(name, result.positions)
            out.present.setdefault(name, []).append(result.present)
    f.reset()


@dataclass(frozen=True)
class Row:
    """One line of the table: metres, with 95 % intervals over episodes; against: method minus model, paired."""

    method: str
    ade: Interval
    fde: Interval
    against: Interval


@dataclass(frozen=True)
class Report:
    """What an evaluation found. present: error of the joints now; horizons: steps -> rows."""

    episodes: int
    origins: int
    present: dict[str, Interval]
    tables: dict[str, list[Row]]
    coverage: list[Coverage]

    def as_dict(self) -> dict[str, Any]:
        def row(r: Row) -> dict[str, Any]:
            intervals = {"ade_m": r.ade, "fde_m": r.fde, "minus_model_m": r.against}
            return {"method": r.method, **{name: interval._asdict() for name, interval in intervals.items()}}

        rows = {title: [row(r) for r in table] for title, table in self.tables.items()}
        return {"episodes": self.episodes, "origins": self.origins, "sigma": [c.as_dict() for c in self.coverage],
                "present_error_m": {k: v._asdict() for k, v in self.present.items()}, "forecasts": rows}  # fmt: skip


def report(
    origins: Origins, mean_pose: np.ndarray, joint_names: tuple[str, ...], steps: tuple[int, ...] = HORIZONS
) -> Report:
    """Tables from the collected origins. mean_pose: [J, 3], the training set's mean joints in the camera frame.

    steps: horizons to score; those beyond the model's are left out.
    """
    available = origins.truth[0].shape[0]
    steps = tuple(s for s in steps if s <= available) or (available,)
    ids = np.array(origins.episode)
    truth, now = np.stack(origins.truth), np.stack(origins.now)
    visible, phase = np.stack(origins.visible), np.array(origins.phase)

    def present_error(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
        distance = np.where(mask, np.linalg.norm(points - now, axis=-1), np.nan)
        return metrics.per_episode_mean(metrics.nanmean(distance, 1), ids)

    everything = np.isfinite(now).all(-1)
    candidates = {"model": np.stack(origins.found), "mean pose": np.broadcast_to(mean_pose, now.shape)}
    candidates |= {name: np.stack(points) for name, points in origins.present.items()}
    present: dict[str, Interval] = {}
    for words, mask in (("visible joints", visible & everything), ("all joints", everything)):
        errors = {name: present_error(points, mask) for name, points in candidates.items()}
        present |= {f"{name}, {words}": bootstrap_mean(e) for name, e in errors.items()}
        for name in origins.present:
            present[f"{name} minus model, {words}"] = paired_bootstrap(errors[name], errors["model"])
        present[f"model minus a third of mean pose, {words}"] = paired_bootstrap(
            errors["model"], errors["mean pose"] / 3
        )

    predictions = {name: np.stack(p) for name, p in origins.methods.items()}
    mask = metrics.answered_by_all(np.isfinite(truth).all(-1), *predictions.values())
    errors = {name: metrics.displacement_errors(p, truth, mask) for name, p in predictions.items()}
    moving = metrics.moving_joints(now, truth, metrics.joint_groups(joint_names))
    tables: dict[str, list[Row]] = {}
    for horizon in steps:
        tables[f"all origins, {horizon} steps"] = _rows(errors, ids, horizon)
    tables[f"moving hand, {steps[-1]} steps"] = _rows(
        {n: metrics.only(e, moving) for n, e in errors.items()}, ids, steps[-1]
    )
    for name in ("wait", "reach", "transport"):
        chosen = phase == PHASES.index(name)
        if chosen.any():
            tables[f"{name}, {steps[-1]} steps"] = _rows(
                {n: e[chosen] for n, e in errors.items()}, ids[chosen], steps[-1]
            )
    return Report(len(np.unique(ids)), len(ids), present, tables, sigma_coverage(origins, joint_names, steps))


def sigma_coverage(origins: Origins, joint_names: tuple[str, ...], steps: tuple[int, ...] = HORIZONS) -> list[Coverage]:
    """How often the truth lies within sigma: from images alone and anchored, all joints, those of a hand that moves and
    those of one that rests; at the first step, at each of `steps` and at all together.
    """
    truth, ids = np.stack(origins.truth), np.array(origins.episode)
    mask = np.isfinite(truth).all(-1)
    moving = metrics.moving_joints(np.stack(origins.now), truth, metrics.joint_groups(joint_names))
    groups = {"all": np.ones_like(moving), "moving": moving, "resting": ~moving}
    steps = tuple(s for s in sorted({0, 1, *steps}) if s <= truth.shape[1])
    lines = []
    for method, sigma in origins.sigma.items():
        values = scores(np.stack(origins.methods[method]), truth, np.stack(sigma), mask)
        lines += coverage(values, method.removeprefix("model, "), groups, ids, steps)
    return lines


def _rows(errors: dict[str, np.ndarray], ids: np.ndarray, horizon: int) -> list[Row]:
    ades = {n: metrics.per_episode_mean(metrics.ade(e, horizon), ids) for n, e in errors.items()}
    fdes = {n: metrics.per_episode_mean(metrics.fde(e, horizon), ids) for n, e in errors.items()}

    def beside(name: str) -> str:  # the anchored model and what sees the observed pose are compared with each other
        return ANCHORED if name == ANCHORED or name.endswith(TRUE) else MODEL

    return [
        Row(n, bootstrap_mean(ades[n]), bootstrap_mean(fdes[n]), paired_bootstrap(ades[n], ades[beside(n)]))
        for n in errors
    ]


def show(result: Report) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cm = lambda i: f"{100 * i.mean:.2f} [{100 * i.low:.2f}, {100 * i.high:.2f}]"  # noqa: E731
    table = Table(
        title=f"Joints now, error in cm ({result.episodes} episodes, {result.origins} origins; 95 % intervals)"
    )
    table.add_column("estimate")
    table.add_column("cm", justify="right")
    for name, interval in result.present.items():
        table.add_row(name, cm(interval))
    console.print(table)
    for title, rows in result.tables.items():
        table = Table(title=f"Forecast error in cm: {title}")
        for column in ("method", "ADE", "FDE", "ADE minus the model's"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for row in rows:
            table.add_row(
                row.method, cm(row.ade), cm(row.fde), "" if row.method in (MODEL, ANCHORED) else cm(row.against)
            )
        console.print(table)
    show_coverage(result.coverage, "held-out episodes")


def evaluate(
    model: Path, data: Path, *, thinker: Path | None = None, limit: int | None = None, out: Path | None = None
) -> Report:
    """`thinkjepa evaluate forecast`: load, run, print, write `out` (JSON) when given."""
    import json

    from .. import checkpoints
    from ..jepa import model as jepa_model

    manifest = checkpoints.read_manifest(model, jepa_model.KIND)
    if "mean_pose" not in manifest.training:
        raise checkpoints.CheckpointError(
            f"{model}: its training record holds no mean pose; only models of `thinkjepa train` are scored here."
        )
    forecaster, episodes, thoughts = Forecaster.load(model), load_folder(data, limit), None
    if thinker:
        from ..thinker.qwen import Thinker
        from ..train.mini import thinker_over

        thoughts = thinker_over(Thinker.load(thinker))
    origins = collect(forecaster, episodes, thoughts)
    result = report(origins, np.array(manifest.training["mean_pose"]), forecaster.joint_names)
    show(result)
    if out:
        source = {"model": manifest.model_id, "weights_sha256": manifest.sha256[checkpoints.WEIGHTS], "data": data.name}
        checkpoints.write_atomically(out, (json.dumps({**source, **result.as_dict()}, indent=1) + "\n").encode())
    return result
