"""How often the truth lies as near as sigma says, by horizon step and for moving and resting hands.

Sigma is the standard deviation of the error on one axis. So an error is scored axis by axis, as |error| / sigma: if
sigma is right the root mean square of the scores is 1, and for normally distributed errors 68.3 % of them are below 1
and 95.4 % below 2. Errors of forecasts have heavier tails than that; root mean square and shares are reported side by
side, since no single sigma can make all of them right.

Shapes: N forecasts, T steps, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import metrics
from .bootstrap import Interval, bootstrap_mean

#: What a normal distribution has within one and two standard deviations.
NOMINAL = (0.6827, 0.9545)


@dataclass(frozen=True)
class Coverage:
    """One line: shares of the errors within one and two sigma, with 95 % intervals over episodes.

    step: number of the step, from 1; 0 for all steps together. rms: root mean square of |error| / sigma.
    """

    pose: str
    joints: str
    step: int
    within_1: Interval
    within_2: Interval
    rms: float

    def as_dict(self) -> dict[str, Any]:
        shares = {"within_1_sigma": self.within_1._asdict(), "within_2_sigma": self.within_2._asdict()}
        return {"pose": self.pose, "joints": self.joints, "step": self.step, **shares, "rms": self.rms}


def scores(positions: np.ndarray, truth: np.ndarray, sigma: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """|error| / sigma on every axis, float64 [N, T, J, 3], NaN where mask [N, T, J] is False.

    positions, truth: [N, T, J, 3] in metres; sigma: [N, T, J] in metres. Raises ValueError if a sigma in use is not
    positive.
    """
    if not (sigma[mask] > 0).all():
        raise ValueError("a sigma is not a positive number")
    with np.errstate(invalid="ignore"):
        return np.where(mask[..., None], np.abs(positions - truth) / sigma[..., None], np.nan)


def within(values: np.ndarray, sigmas: float) -> np.ndarray:
    """1 where a score is at most `sigmas`, 0 where not, NaN where there is none."""
    return np.where(np.isnan(values), np.nan, values <= sigmas)


def coverage(
    values: np.ndarray, pose: str, groups: Mapping[str, np.ndarray], ids: np.ndarray, steps: tuple[int, ...]
) -> list[Coverage]:
    """Lines for the scores [N, T, J, 3] of one kind of forecast: each group of joints (bool [N, J]) at each step.

    ids [N]: the episode of each forecast. A line without any truth is left out.
    """
    lines = []
    for joints, chosen in groups.items():
        for step in steps:
            there = values if step == 0 else values[:, step - 1 : step]
            there = np.where(chosen[:, None, :, None], there, np.nan)
            if np.isnan(there).all():
                continue
            shares = [metrics.nanmean(within(there, k), (1, 2, 3)) for k in (1.0, 2.0)]
            one, two = (bootstrap_mean(metrics.per_episode_mean(share, ids)) for share in shares)
            rms = float(np.sqrt(metrics.nanmean(there**2)))
            lines.append(Coverage(pose, joints, step, one, two, rms))
    return lines


def show(lines: list[Coverage], title: str) -> None:
    """Print the lines as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Errors within sigma, per axis: {title}")
    for column in ("pose", "joints", "step", "within 1 sigma, %", "within 2 sigma, %", "rms of error / sigma"):
        table.add_column(column, justify="left" if column in ("pose", "joints") else "right")
    nominal = [f"{100 * share:.1f}" for share in NOMINAL]
    table.add_row("normal distribution", "", "", *nominal, "1.00", end_section=True)
    for line in lines:
        shares = [f"{100 * i.mean:.1f} [{100 * i.low:.1f}, {100 * i.high:.1f}]" for i in (line.within_1, line.within_2)]
        table.add_row(line.pose, line.joints, str(line.step or "all"), *shares, f"{line.rms:.2f}")
    Console().print(table)
