"""Two evaluations of the same recordings: which forecasts belong together, and how their errors differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation import metrics as errors
from thinkjepa_ros.evaluation.bootstrap import Interval, bootstrap_mean
from thinkjepa_ros.files import CheckpointError, read_json

from . import rows
from .replay import Replay, ReplayError

AGAIN = "make it again with `thinkjepa evaluate bag`"
#: Two folders tell the same truth if it lies this near to each other, in metres.
SAME_TRUTH_M = 1e-3
MAIN = "main"
_BLOCK = 256


class CompareError(ValueError):
    """Folders that cannot be compared; the text says why, and the remedy."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One folder that `thinkjepa evaluate bag` made."""

    folder: Path
    metrics: dict[str, Any]
    replay: Replay

    @property
    def main(self) -> str:
        """Which row is the main one; hold, where the model cannot be scored."""
        return rows.main(self.replay) or rows.HOLD


@dataclass(frozen=True, eq=False)
class Pairs:
    """The n forecasts that two evaluations have in common. first, other: int64 [n], their numbers in each."""

    first: np.ndarray
    other: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def read(folder: Path) -> Evaluated:
    """Raises CompareError where the folder is none of an evaluation, or damaged."""
    file = folder / "metrics.json"
    try:
        measured = read_json(file, file.read_bytes())
        if measured.get("format") != 1 or not all(isinstance(measured.get(k), dict) for k in ("about", "tables")):
            raise CompareError(f"{file} is not of this version of the format; {AGAIN}")
        return Evaluated(folder, measured, Replay.load(folder))
    except FileNotFoundError:
        raise CompareError(f"{folder} holds no evaluation (metrics.json is missing); {AGAIN}") from None
    except OSError as error:
        raise CompareError(f"{file} cannot be read ({error.strerror}); {AGAIN}") from None
    except (CheckpointError, ReplayError) as error:
        raise CompareError(f"{folder} cannot be compared: {error}") from None


def pair(first: Evaluated, other: Evaluated) -> tuple[Pairs, Replay]:
    """The forecasts over the same images of the same recordings, and `other` with its joints in the order of `first`.

    Recordings are the same where their SHA-256 is. Raises CompareError, with the remedy, where the two cannot be
    compared.
    """
    a, b = first.replay, other.replay
    what = f"{first.folder} and {other.folder} cannot be compared"
    if abs(a.step_s - b.step_s) > 1e-9:
        raise CompareError(
            f"{what}: their steps are {a.step_s:g} s and {b.step_s:g} s; compare models with the same step"
        )
    if set(a.joint_names) != set(b.joint_names):
        odd = sorted(set(a.joint_names) ^ set(b.joint_names))
        some = ", ".join(odd[:4]) + (" …" if len(odd) > 4 else "")
        raise CompareError(
            f"{what}: they score other joints (only one has {some}); evaluate both with the same --joints, --links and "
            "--match"
        )
    sources = [one.replay.about.get("truth_source") for one in (first, other)]
    if sources[0] != sources[1]:
        raise CompareError(
            f"{what}: their truth is {sources[0] or 'none'} and {sources[1] or 'none'}; evaluate both with the same "
            "--truth"
        )
    b = in_order(b, a.joint_names)
    ours, theirs = _keys(a), _keys(b)
    common = [key for key in ours if key in theirs]
    if not common:
        raise CompareError(
            f"{what}: no forecast of the two is over the same image of the same recording; evaluate the same bags with "
            "the same --stride"
        )
    pairs = Pairs(np.array([ours[key] for key in common]), np.array([theirs[key] for key in common]))
    steps = min(a.truth.shape[1], b.truth.shape[1])
    with np.errstate(invalid="ignore"):
        apart = np.linalg.norm(a.truth[pairs.first, :steps] - b.truth[pairs.other, :steps], axis=-1)
    if np.isfinite(apart).any() and float(np.nanmax(apart)) > SAME_TRUTH_M:
        raise CompareError(
            f"{what}: at the same images their truth lies up to {100 * float(np.nanmax(apart)):.1f} cm apart; evaluate "
            "both with the same options for truth, frames and camera"
        )
    return pairs, b


def in_order(replay: Replay, names: tuple[str, ...]) -> Replay:
    """The replay with its joints in the order of `names`, which are the same."""
    if replay.joint_names == names:
        return replay
    places = [replay.joint_names.index(name) for name in names]
    moved = {
        name: value[..., places, :]
        for name in ("guided", "unguided", "ridge", "present", "past", "truth", "truth_present")
        if (value := getattr(replay, name)) is not None
    }
    return replace(replay, joint_names=names, sigma=replay.sigma[..., places], **moved)


def _keys(replay: Replay) -> dict[tuple[str, int], int]:
    """Forecasts by recording and stamp; the first of those with one stamp."""
    bags = replay.about.get("bags") or []
    names = [str(bag.get("sha256") or bag.get("name")) for bag in bags]
    out: dict[tuple[str, int], int] = {}
    for index, (bag, stamp) in enumerate(zip(replay.bag.tolist(), replay.stamp_ns.tolist(), strict=True)):
        out.setdefault((names[bag] if bag < len(names) else str(bag), stamp), index)
    return out


def differences(
    a: Replay, b: Replay, pairs: Pairs, horizons: Sequence[int]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """How much larger the errors of `b` are than those of `a`: {group: {steps: {row: {"ade", "fde", "pairs"}}}}.

    Figures are Interval in metres, paired over stretches of 2 s; "pairs" is how many forecasts they rest on. Both
    sides of a figure rest on exactly the same entries: whole horizons where the truth is known and both answered. The
    row MAIN sets the main row of one beside that of the other.
    """
    stretch = rows.stretches(a)[pairs.first]
    each = _each(a.only(pairs.first), b.only(pairs.other), horizons)
    out: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for (group, steps, name), (ade, fde) in each.items():
        known = np.isfinite(ade)
        if known.any():
            cell = {"ade": _interval(ade, stretch), "fde": _interval(fde, stretch), "pairs": int(known.sum())}
            out.setdefault(group, {}).setdefault(str(steps), {})[name] = cell
    return out


def _each(a: Replay, b: Replay, horizons: Sequence[int]) -> dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]]:
    """ADE and FDE of `b` minus those of `a` for every pair, [n] and [n], by (group, steps, row); a block at a time."""
    out: dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]] = {}
    for begin in range(0, len(a), _BLOCK):
        part = slice(begin, min(begin + _BLOCK, len(a)))
        ours, theirs = (rows.predictions(one, part) for one in (a, b))
        sides = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
        mains = rows.main(a), rows.main(b)
        if mains[0] is not None and mains[1] is not None:
            sides[MAIN] = ours[mains[0]], theirs[mains[1]]
        for steps in horizons:
            truth = a.truth[part, :steps]
            known = np.isfinite(truth).all(-1)
            known &= known[:, -1].any(-1)[:, None, None]  # only whole horizons
            groups = rows.groups(a.truth_present[part], truth, a.joint_names)
            for name, both in sides.items():
                pair = [one[:, :steps] for one in both]
                mask = errors.answered_by_all(known, *pair)
                far = [errors.displacement_errors(one, truth, mask) for one in pair]
                for group, joints in groups.items():
                    first, second = (errors.only(one, joints) for one in far)
                    room = out.setdefault((group, steps, name), (np.full(len(a), np.nan), np.full(len(a), np.nan)))
                    room[0][part] = errors.ade(second) - errors.ade(first)
                    room[1][part] = errors.fde(second) - errors.fde(first)
    return out


def _interval(values: np.ndarray, stretch: np.ndarray) -> Interval:
    return bootstrap_mean(errors.per_episode_mean(values, stretch))
