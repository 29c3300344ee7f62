"""Errors of forecast trajectories: masked, in metres, per horizon, per joint group.

Two rules hold everywhere. An entry without truth is NaN and is left out of every mean: it never counts as 0. A method
that has no answer where there is truth is not excused: `displacement_errors` refuses it, and `answered_by_all` makes
the common mask on which several methods may be compared.

Shapes: N forecasts, T steps, J joints, G joint groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def displacement_errors(pred: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Euclidean distance between prediction and truth, float64 [N, T, J] in metres, NaN where masked.

    pred, truth: [N, T, J, 3] in metres in the same frame. mask: bool [N, T, J], False = leave out; truth that is not
    finite is left out as well. Raises ValueError on shapes that differ and on predictions that are not finite where
    they would be scored.
    """
    pred, truth = np.asarray(pred, np.float64), np.asarray(truth, np.float64)
    if pred.ndim != 4 or pred.shape[-1] != 3 or pred.shape != truth.shape:
        raise ValueError(f"prediction and truth must both be [N, T, J, 3], got {pred.shape} and {truth.shape}")
    scored = np.isfinite(truth).all(-1)
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != scored.shape:
            raise ValueError(f"the mask must be {scored.shape} like the trajectories, got {mask.shape}")
        scored &= mask
    bad = scored & ~np.isfinite(pred).all(-1)
    if bad.any():
        n, t, j = np.argwhere(bad)[0]
        raise ValueError(
            f"{int(bad.sum())} predictions are not finite where there is truth (first: sample {n}, step {t}, "
            f"joint {j}); leave them out for every method alike with answered_by_all"
        )
    with np.errstate(invalid="ignore"):
        return np.where(scored, np.linalg.norm(pred - truth, axis=-1), np.nan)


def answered_by_all(mask: np.ndarray, *predictions: np.ndarray) -> np.ndarray:
    """The mask [N, T, J] without the entries for which any of the `predictions` [N, T, J, 3] is not finite."""
    common = np.array(mask, bool)
    for prediction in predictions:
        common &= np.isfinite(prediction).all(-1)
    return common


def nanmean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Mean without the NaN entries; NaN where nothing is left (and no warning)."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _up_to(errors: np.ndarray, steps: int | None) -> np.ndarray:
    errors = np.asarray(errors, np.float64)
    if errors.ndim != 3:
        raise ValueError(f"errors must be [N, T, J], got {errors.shape}")
    if steps is None:
        return errors
    if not 1 <= steps <= errors.shape[1]:
        raise ValueError(f"steps must be between 1 and the horizon of {errors.shape[1]} steps, got {steps}")
    return errors[:, :steps]


def ade(errors: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Average displacement error of every forecast, [N] in metres: mean over its first `steps` steps and its joints."""
    return nanmean(_up_to(errors, steps), (1, 2))


def fde(errors: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Final displacement error of every forecast, [N] in metres: mean over joints at step number `steps` (or the last).

    NaN where no joint has truth at that step; an earlier step does not stand in for it.
    """
    return nanmean(_up_to(errors, steps)[:, -1], 1)


def accuracy(errors: np.ndarray, threshold_m: float, steps: int | None = None) -> np.ndarray:
    """Share of scored entries of every forecast within `threshold_m` of the truth, [N] in 0..1."""
    errors = _up_to(errors, steps)
    return nanmean(np.where(np.isnan(errors), np.nan, errors <= threshold_m), (1, 2))


def step_curve(errors: np.ndarray) -> np.ndarray:
    """Mean error at every step, [T] in metres."""
    return nanmean(_up_to(errors, None), (0, 2))


def joint_curve(errors: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Mean error of every joint, [J] in metres."""
    return nanmean(_up_to(errors, steps), (0, 1))


def steps_of(horizon_s: float, step_s: float, available: int) -> int:
    """How many steps of `step_s` seconds make `horizon_s`; ValueError if that is none or more than `available`."""
    steps = round(horizon_s / step_s)
    if not 1 <= steps <= available:
        raise ValueError(f"a horizon of {horizon_s:g} s is {steps} steps of {step_s:g} s; the forecast has {available}")
    return steps


def joint_groups(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Joint indices by hand: names that begin with "right" or "left"; everything else is the group "other"."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        side = next((s for s in ("right", "left") if name.lower().startswith(s)), None)
        groups.setdefault(f"{side} hand" if side else "other", []).append(index)
    return {name: np.array(indices) for name, indices in groups.items()}


def moving_joints(
    present: np.ndarray, truth: np.ndarray, groups: Mapping[str, np.ndarray], threshold_m: float = 0.03
) -> np.ndarray:
    """Which joints belong to a group that really moves within the forecast, bool [N, J].

    A group moves when the mean displacement of its known joints from `present` [N, J, 3] exceeds `threshold_m` at any
    step of `truth` [N, T, J, 3]. The truth decides, never a prediction. Joints of no group count as resting.
    """
    truth = np.asarray(truth, np.float64)
    distance = np.linalg.norm(truth - np.asarray(present, np.float64)[:, None], axis=-1)
    moving = np.zeros((truth.shape[0], truth.shape[2]), bool)
    for indices in groups.values():
        furthest = np.nan_to_num(nanmean(distance[..., indices], 2), nan=0.0).max(1, initial=0.0)
        moving[:, indices] = (furthest > threshold_m)[:, None]
    return moving


def only(errors: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """The errors [N, T, J] of chosen joints (bool [J] or [N, J]), NaN elsewhere: a resting hand dilutes every mean."""
    joints = np.asarray(joints, bool)
    return np.where(joints[..., None, :] if joints.ndim == 2 else joints, errors, np.nan)


def per_episode_mean(values: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    """Mean of the values [N] of every episode, [E] in ascending order of the ids; NaN for an episode without values.

    Forecasts of one episode overlap and are far from independent: statistics are made over episodes.
    """
    values, episode_ids = np.asarray(values, np.float64), np.asarray(episode_ids)
    if values.ndim != 1 or values.shape != episode_ids.shape:
        raise ValueError(f"values and episode ids must be [N] alike, got {values.shape} and {episode_ids.shape}")
    return np.array([nanmean(values[episode_ids == one]) for one in np.unique(episode_ids)], np.float64)
