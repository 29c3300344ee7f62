"""What one thought did to the forecasts of a run: the moment it arrived, and how far forecasts ended from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation import metrics
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.evaluation.score import Joined

#: Ages of guidance travel as float32.
_TOLERANCE_NS = 2_000_000


@dataclass(frozen=True, eq=False)
class Thought:
    """The thought of a run that held longest, in however many repetitions.

    heard_ns: when it was first received. guided [n]: indices of the forecasts that it guided, `before` the one just
    before these (-1: there is none).
    """

    text: str
    heard_ns: int
    guided: np.ndarray
    before: int


def main_thought(run: Run) -> Thought | None:
    """The text that was thought most often in a row (the earlier one where several were), and what it guided.

    None where no forecast was guided.
    """
    repeated = [list(same) for _, same in groupby(run.words.get("thoughts", []), key=lambda t: (t["epoch"], t["text"]))]
    if not repeated or not len(run):
        return None
    longest = max(repeated, key=len)  # the first of equals
    first, last = longest[0]["stamp_ns"] - _TOLERANCE_NS, longest[-1]["stamp_ns"] + _TOLERANCE_NS
    about = run.stamp_ns - np.nan_to_num(run.age_s.astype(np.float64)) * 1e9
    guided = np.flatnonzero((run.weight > 0) & (about >= first) & (about <= last))
    if not len(guided):
        return None
    heard = longest[0]["stamp_ns"] + round(longest[0]["delay_s"] * 1e9)
    return Thought(" ".join(longest[0]["text"].split()) or "(no words)", heard, guided, int(guided[0]) - 1)


@dataclass(frozen=True)
class Effect:
    """Distances between the end of a forecast and the truth, metres, mean over the joints of the hand that moves most.

    before_m, after_m: the last forecast before the thought and the first one it guided. guided_m, unguided_m: means
    over `count` of the forecasts it guided, as published and without any thought. NaN where there is none to measure.
    """

    hand: str
    before_m: float
    after_m: float
    guided_m: float
    unguided_m: float
    count: int


def effect(run: Run, joined: Joined, thought: Thought, unguided: Mapping[int, np.ndarray]) -> Effect:
    """unguided: positions [T, J, 3] by stamp, from `demo.unguided`."""
    groups = metrics.joint_groups(run.joint_names)
    way = np.linalg.norm(joined.truth[:, -1] - joined.truth_present, axis=-1)  # [n, J]
    hand = max(groups, key=lambda name: float(np.nan_to_num(metrics.nanmean(way[:, groups[name]], 1)).max(initial=0.0)))
    rows = {int(index): n for n, index in enumerate(joined.index)}

    def end_m(index: int, positions: np.ndarray) -> float:
        if index not in rows:
            return float("nan")
        error = np.linalg.norm(positions[-1] - joined.truth[rows[index], -1], axis=-1)
        return float(metrics.nanmean(error[groups[hand]]))

    both = [int(i) for i in thought.guided if i in rows and int(run.stamp_ns[i]) in unguided]
    after = int(thought.guided[0])
    return Effect(
        hand=hand if hand != "other" else "joints",
        before_m=end_m(thought.before, run.positions[thought.before]) if thought.before >= 0 else float("nan"),
        after_m=end_m(after, run.positions[after]),
        guided_m=float(np.mean([end_m(i, run.positions[i]) for i in both])) if both else float("nan"),
        unguided_m=float(np.mean([end_m(i, unguided[int(run.stamp_ns[i])]) for i in both])) if both else float("nan"),
        count=len(both),
    )


def sentence(run: Run, thought: Thought, result: Effect | None) -> str:
    """The effect in one sentence; without a truth it says only when the thought came."""
    seconds = (thought.heard_ns - beginning_ns(run)) * 1e-9
    words = f'the thought "{thought.text}" came after {seconds:.1f} s'
    if result is None:
        return words
    ahead = run.step_s * run.positions.shape[1]
    if np.isfinite(result.after_m):
        just = f"{result.after_m * 100:.1f} cm just after"
        if np.isfinite(result.before_m):
            just = f"{result.before_m * 100:.1f} cm just before it and {just}"
        words += f": the forecast of the {result.hand} ended ({ahead:.1f} s ahead) {just}"
    if result.count:
        words += (
            f"; over {result.count} forecasts it guided, {result.guided_m * 100:.1f} cm from the truth with it and "
            f"{result.unguided_m * 100:.1f} cm without (the same model and images, computed after the run)"
        )
    return words


def beginning_ns(run: Run) -> int:
    """When the recording began, on the run's clock."""
    return int(run.begins_ns[0]) if len(run.begins_ns) else int(run.stamp_ns[0])


def numbers(thought: Thought, result: Effect | None) -> dict[str, Any]:
    """For report.json."""
    told = {"text": thought.text, "guided_forecasts": len(thought.guided)}
    return told if result is None else told | {name: getattr(result, name) for name in Effect.__dataclass_fields__}
