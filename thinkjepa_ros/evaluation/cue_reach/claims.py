"""What the protocol claims about the cue-reach table, and whether the figures bear it out.

All claims are about the hand that moves, at the origins "ready"; each is judged for each kind of inputs apart. A claim
whose row or horizon is missing, or that fewer than two episodes speak about, is neither held nor refuted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import Interval, bootstrap_mean, paired_bootstrap
from .groups import MAIN
from .intervals import ratio
from .score import BASE, Figures

GUIDED, UNGUIDED, ORACLE = "guided", BASE, "oracle intent"
SHUFFLED, ANYTIME, SILENT = "shuffled guidance", "shuffled guidance, any time", "guided, thinker silent"
BASELINES = ("hold", "constant velocity", "mean displacement", "ridge on past joints")
NO_CUE, HAND = "ready, no cue", "moving"
LONG, MIDDLE = 32, 16
GAP, NO_CUE_MARGIN = 0.70, 0.05


@dataclass(frozen=True)
class Verdict:
    """held: None where it could not be measured; `measured` says why."""

    claim: str
    inputs: str
    measured: str
    held: bool | None


class NotMeasured(Exception):
    """What is missing, in words."""


@dataclass(frozen=True)
class _Asked:
    """The figures of one kind of inputs, as the claims ask for them: the moving hand, at least two episodes."""

    figures: Figures
    inputs: str

    def together(self, rows: Sequence[str], horizon: int, metric: str = "ade", group: str = MAIN) -> np.ndarray:
        """[rows, E], see `Figures.together`."""
        try:
            values = self.figures.together(rows, self.inputs, horizon, metric, group)
        except KeyError as error:
            raise NotMeasured(str(error.args[0])) from None
        if np.isfinite(values[0]).sum() < 2:
            raise NotMeasured(f"fewer than two episodes of {group!r} know {' and '.join(rows)} at {horizon} steps")
        return values

    def minus(self, row: str, other: str, horizon: int, metric: str = "ade") -> Interval:
        return paired_bootstrap(*self.together((row, other), horizon, metric))


def gap_closed(
    figures: Figures, inputs: str, horizon: int = LONG, metric: str = "ade", guided: str = GUIDED
) -> Interval:
    """Share of the way from unguided to the oracle that guidance goes: (unguided - guided) / (unguided - oracle).

    Ratio of means over the origins that all three answer; their episodes are drawn together for the interval. NaN where
    the oracle is no better than unguided. Raises KeyError for a row or horizon that was not scored.
    """
    start, reached, best = figures.together((UNGUIDED, guided, ORACLE), inputs, horizon, metric)
    return ratio(start - reached, start - best)


def verdicts(figures: Figures) -> list[Verdict]:
    """Every claim for every kind of inputs, in the order of the protocol."""
    found = []
    for inputs in figures.inputs:
        for claim, check in CLAIMS.items():
            try:
                measured, held = check(_Asked(figures, inputs))
            except NotMeasured as why:
                found.append(Verdict(claim, inputs, f"not measured: {why}", None))
            else:
                found.append(Verdict(claim, inputs, measured, held))
    return found


def _cm(interval: Interval, sign: str = "") -> str:
    mean, low, high = (f"{100 * x:{sign}.2f}" for x in interval)
    return f"{mean} cm [{low}, {high}]"


def _apart(asked: _Asked) -> tuple[str, bool]:
    words, held = [], []
    for metric in ("ade", "fde"):
        ours, theirs = (bootstrap_mean(values) for values in asked.together((GUIDED, UNGUIDED), LONG, metric))
        held.append(ours.high < theirs.low)
        apart = "intervals apart" if held[-1] else "intervals not apart in favour of guided"
        words.append(f"{metric.upper()} {_cm(ours)} against {_cm(theirs)}, {apart}")
    return "; ".join(words), held[0]


def _gap(asked: _Asked) -> tuple[str, bool]:
    best = bootstrap_mean(asked.together((UNGUIDED, GUIDED, ORACLE), LONG)[2])
    share = gap_closed(asked.figures, asked.inputs)
    if np.isnan(share.mean):
        return "there is no gap: the oracle is no better than unguided", False
    bounds = "" if np.isnan(share.low) else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.mean:.0f} %{bounds} of the gap; the oracle's ADE is {_cm(best)}", share.mean >= GAP


def _no_better(row: str) -> Callable[[_Asked], tuple[str, bool]]:
    def check(asked: _Asked) -> tuple[str, bool]:
        ade, fde = (asked.minus(row, UNGUIDED, LONG, metric) for metric in ("ade", "fde"))
        return f"shuffled minus unguided {_cm(ade, '+')}, at the end {_cm(fde, '+')}", not ade.high < 0

    return check


def _no_cue(asked: _Asked) -> tuple[str, bool]:
    ours, theirs = asked.together((GUIDED, UNGUIDED), LONG, group=NO_CUE)
    change = ratio(ours - theirs, theirs)
    if np.isnan(change.mean):
        raise NotMeasured("the unguided error without a cue is not above 0")
    words = f"{100 * change.mean:+.1f} % [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return f"guided against unguided {words}", abs(change.mean) <= NO_CUE_MARGIN


def _baselines(asked: _Asked) -> tuple[str, bool]:
    words, held = [], True
    for horizon in (MIDDLE, LONG):
        beside = {row: asked.minus(GUIDED, row, horizon) for row in BASELINES}
        held &= all(difference.high < 0 for difference in beside.values())
        words.append(f"{horizon} steps: " + ", ".join(f"{row} {_cm(d, '+')}" for row, d in beside.items()))
    return f"guided minus each; {'; '.join(words)}", held


def _silent(asked: _Asked) -> tuple[str, bool]:
    difference = asked.minus(SILENT, UNGUIDED, LONG)
    return f"silent minus unguided {_cm(difference, '+')}", bool(difference.low <= 0)


CLAIMS: dict[str, Callable[[_Asked], tuple[str, bool]]] = {
    "guided beats unguided at 32 steps, with intervals of ADE apart": _apart,
    "guided closes at least 70 % of the gap between unguided and oracle at 32 steps (ADE)": _gap,
    "shuffled guidance is no better than unguided (ADE at 32 steps)": _no_better(SHUFFLED),
    "shuffled over all times as well, guidance is no better than unguided (ADE at 32 steps)": _no_better(ANYTIME),
    "without a cue, guided is within 5 % of unguided (ADE at 32 steps)": _no_cue,
    "guided beats hold, constant velocity, mean displacement and ridge at 16 and 32 steps (ADE)": _baselines,
    "with the thinker silent, the guided model is no worse than the unguided one (ADE at 32 steps)": _silent,
}
