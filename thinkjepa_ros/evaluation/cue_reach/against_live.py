"""What is lost between the table and the robot: the main rows live, beside the same rows in lock step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import baselines, metrics
from ..bootstrap import Interval, bootstrap_mean, paired_bootstrap
from . import rows
from .evaluate import Bench
from .live import AtOrigins, LiveError, LiveRun, at_origins
from .origins import GROUPS, MAIN

#: Steps over which live and offline are compared.
HORIZON = 32
#: Seconds that an episode is played beyond its last origin.
AFTER_S = 0.25


def chosen(bench: Bench, count: int) -> list[int]:
    """Numbers of `count` episodes that told the intent and have a main origin: those with the lowest seeds, so that
    every way of telling is among them as often as it is.
    """
    truth = bench.truth
    main = (truth.group == GROUPS.index(MAIN)) & truth.told
    numbers = sorted(np.unique(truth.episode[main]).tolist(), key=lambda n: bench.episodes[n].seed)
    return sorted(numbers[:count])


def until_ns(bench: Bench, numbers: Sequence[int]) -> list[int]:
    """Stamp on each episode's own time line up to which it has to be played."""
    truth, stamps = bench.truth, bench.tracks.stamps_ns
    main = truth.group == GROUPS.index(MAIN)
    return [int(stamps[truth.sample[main & (truth.episode == n)]].max() + AFTER_S * 1e9) for n in numbers]


def compare(bench: Bench, numbers: Sequence[int], guided: LiveRun, unguided: LiveRun) -> dict[str, Any]:
    """Errors of the moving hand at the main origins of the played episodes (in the order of the runs), live and
    offline, and the share of the guided gain that is lost live. Origins without a live forecast are counted, and left
    out of every row. Raises LiveError where none is left.
    """
    truth = bench.truth
    where = np.flatnonzero((truth.group == GROUPS.index(MAIN)) & np.isin(truth.episode, numbers))
    asked = np.stack([np.searchsorted(numbers, truth.episode[where]), bench.tracks.stamps_ns[truth.sample[where]]], 1)
    live = {"guided, live": at_origins(guided, asked), "thinker silent, live": at_origins(unguided, asked)}
    positions = {name: _in_frame_of_origin(bench, where, found) for name, found in live.items()}
    for name, guide in (("guided", rows.by_thinker(bench.scene)), ("thinker silent", rows.nobody)):
        offline = rows.forecasts(bench.scene, bench.net, name, 0, guide, where)
        positions[name] = next(p.positions for p in offline if p.inputs == rows.IMAGE)[where]
    seen = bench.scene.past(rows.IMAGE, truth.sample[where])[:, -1]
    positions["hold"] = baselines.hold(seen, bench.scene.horizon)
    answered = np.logical_and.reduce([np.isfinite(p).all((1, 2, 3)) for p in positions.values()])
    kept = where[answered]
    if not len(kept):
        raise LiveError(
            f"at none of the {len(where)} main origins did both runs publish a forecast; look at the logs beside the "
            "recordings, or play on a machine with less other work"
        )
    present, future, episode = truth.present[kept], truth.future[kept], truth.episode[kept]
    moving = metrics.moving_joints(present, future, metrics.joint_groups(truth.joint_names))
    errors, ends = {}, {}
    for name, places in positions.items():
        error = metrics.only(metrics.displacement_errors(places[answered], future), moving)
        errors[name] = metrics.per_episode_mean(metrics.ade(error, HORIZON), episode)
        ends[name] = metrics.per_episode_mean(metrics.fde(error, HORIZON), episode)
    both = live["guided, live"]
    return {
        "episodes": len(numbers),
        "origins": len(where),
        "answered": int(answered.sum()),
        "rows": [
            {
                "row": name,
                "ade_m": bootstrap_mean(errors[name])._asdict(),
                "fde_m": bootstrap_mean(ends[name])._asdict(),
            }
            for name in positions
        ],
        "gain_offline_m": paired_bootstrap(errors["thinker silent"], errors["guided"])._asdict(),
        "gain_live_m": paired_bootstrap(errors["thinker silent, live"], errors["guided, live"])._asdict(),
        "live_minus_offline_m": paired_bootstrap(errors["guided, live"], errors["guided"])._asdict(),
        "gain_lost": _lost(errors)._asdict(),
        "guided_share": float(np.mean(both.weight[answered] > 0)),
        "guidance_age_s": _quantiles(both.age_s[answered]),
        "latency_s": _quantiles(both.latency_s[answered]),
        "behind_s": _quantiles(both.behind_s[answered]),
    }


def _in_frame_of_origin(bench: Bench, where: np.ndarray, found: AtOrigins) -> np.ndarray:
    """Live positions [n, T, J, 3], which are in the camera frame of the image they are about, in that of the origin."""
    out = np.array(found.positions, np.float64)
    for i, number in enumerate(bench.truth.episode[where]):
        episode = bench.episodes[number]
        origin = int(bench.tracks.frames[bench.truth.sample[where[i]]])
        if not found.answered[i] or found.stamp_ns[i] == episode.stamps_ns[origin]:
            continue
        seen = int(np.searchsorted(episode.stamps_ns, found.stamp_ns[i]))
        from_, to = episode.camera_pose[seen], episode.camera_pose[origin]
        world = out[i] @ from_[:3, :3].T + from_[:3, 3]
        out[i] = (world - to[:3, 3]) @ to[:3, :3]
    return out.astype(np.float32)


def _lost(errors: dict[str, np.ndarray], draws: int = 2000) -> Interval:
    """1 - (gain live) / (gain offline), interval over episodes."""
    live = errors["thinker silent, live"] - errors["guided, live"]
    offline = errors["thinker silent"] - errors["guided"]
    known = np.isfinite(live) & np.isfinite(offline)
    live, offline = live[known], offline[known]
    drawn = np.random.default_rng(0).integers(0, len(live), (draws, len(live)))
    shares = 1 - live[drawn].mean(1) / offline[drawn].mean(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(1 - live.mean() / offline.mean()), float(low), float(high))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {name: float(np.quantile(values, q)) for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}


def show(found: dict[str, Any]) -> None:
    """Print what `compare` returned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Live: {found['episodes']} episodes, {found['answered']} of {found['origins']} origins answered"
    )
    for column in ("row", "ADE 32, cm", "FDE 32, cm"):
        table.add_column(column, justify="left" if column == "row" else "right")
    cm = lambda i: f"{100 * i['mean']:.2f} [{100 * i['low']:.2f}, {100 * i['high']:.2f}]"  # noqa: E731
    for row in found["rows"]:
        table.add_row(row["row"], cm(row["ade_m"]), cm(row["fde_m"]))
    console, lost = Console(), found["gain_lost"]
    console.print(table)
    console.print(
        f"gain of guidance: {cm(found['gain_offline_m'])} cm offline, {cm(found['gain_live_m'])} cm live; "
        f"lost {100 * lost['mean']:.0f} % [{100 * lost['low']:.0f}, {100 * lost['high']:.0f}]"
    )
