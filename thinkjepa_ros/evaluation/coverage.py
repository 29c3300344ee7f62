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


def table(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The lines (`Coverage.as_dict`) as cells: a header, the normal distribution, then pose and joints by step; the
    last column is the root mean square over all steps.
    """
    steps = sorted({line["step"] for line in lines})
    rows = [["% within 1 / 2 sigma", *(f"step {step}" if step else "all steps" for step in steps), "rms"]]
    rows.append(["normal distribution", *["68 / 95"] * len(steps), "1.00"])
    for name in dict.fromkeys((line["pose"], line["joints"]) for line in lines):
        of_step = {line["step"]: line for line in lines if (line["pose"], line["joints"]) == name}
        shares = [_shares(of_step[step]) if step in of_step else "" for step in steps]
        rows.append([", ".join(name), *shares, f"{of_step[0]['rms']:.2f}" if 0 in of_step else ""])
    return rows


def _shares(line: dict[str, Any]) -> str:
    return " / ".join(f"{100 * line[f'within_{k}_sigma']['mean']:.0f}" for k in (1, 2))


def show(lines: list[Coverage], title: str) -> None:
    """Print the lines as a table."""
    from rich.console import Console
    from rich.table import Table

    header, *rows = table([line.as_dict() for line in lines])
    printed = Table(title=f"Errors per axis beside sigma: {title}")
    for column in header:
        printed.add_column(column, justify="left" if column == header[0] else "right")
    for row in rows:
        printed.add_row(*row)
    Console().print(printed)
