"""The rows of an evaluation: forecasts that need no model, of the very joints that the model starts from, and its own.

Shapes: N forecasts, T steps, J joints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thinkjepa_ros.evaluation import baselines, metrics

from .replay import Replay

HOLD, VELOCITY, DAMPED, RIDGE = "hold", "constant velocity", "damped velocity", "ridge on past joints"
UNGUIDED, GUIDED = "unguided", "guided"
#: Neighbouring forecasts are not independent: intervals are made over stretches of this length.
STRETCH_S = 2.0


def names(replay: Replay) -> list[str]:
    """The rows that there are, in the order of tables."""
    there = {RIDGE: replay.ridge, UNGUIDED: replay.unguided, GUIDED: replay.guided}
    return [HOLD, VELOCITY, DAMPED, *(name for name, value in there.items() if value is not None)]


def main(replay: Replay) -> str | None:
    """The row that the evaluation is about."""
    return GUIDED if replay.guided is not None else UNGUIDED if replay.unguided is not None else None


def predictions(replay: Replay, part: slice) -> dict[str, np.ndarray]:
    """All rows of some of the forecasts, float64 [n, T, J, 3]; NaN where a row has no answer."""
    past, past_s = replay.past[part].astype(np.float64), replay.past_s[part]
    step_s, steps = replay.step_s, replay.truth.shape[1]
    out = {HOLD: baselines.hold(past[:, -1], steps)}
    out[VELOCITY] = baselines.constant_velocity(past, past_s, step_s, steps)
    out[DAMPED] = baselines.damped_velocity(past, past_s, step_s, steps)
    for name, value in ((RIDGE, replay.ridge), (UNGUIDED, replay.unguided), (GUIDED, replay.guided)):
        if value is not None:
            out[name] = value[part].astype(np.float64)
    return out


def groups(now: np.ndarray, ahead: np.ndarray, joint_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Which joints are in each group, bool [n, J], by the truth now [n, J, 3] and ahead [n, T, J, 3].

    Of joints that are not known now nobody knows whether they move: they are neither moving nor resting.
    """
    hands = metrics.joint_groups(joint_names)
    moving = metrics.moving_joints(now, ahead, hands)
    told = np.zeros_like(moving)
    known = np.isfinite(now).all(-1) & np.isfinite(ahead).all(-1).any(1)
    for joints in hands.values():
        told[:, joints] = known[:, joints].any(1)[:, None]
    return {"moving": moving, "resting": told & ~moving, "all": np.ones_like(moving)}


def stretches(replay: Replay) -> np.ndarray:
    """Number of the stretch of `STRETCH_S` that each forecast is in, int64 [N], from 0; no stretch spans two pieces."""
    if not len(replay):
        return np.zeros(0, np.int64)
    key = np.zeros((len(replay), 3), np.int64)
    for piece in np.unique(np.stack([replay.bag, replay.piece], 1), axis=0):
        mine = np.flatnonzero((replay.bag == piece[0]) & (replay.piece == piece[1]))
        since = replay.stamp_ns[mine] - replay.stamp_ns[mine].min()
        key[mine, :2], key[mine, 2] = piece, since // round(STRETCH_S * 1e9)
    return np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)


def stability(replay: Replay, block: int = 256) -> dict[str, float]:
    """Mean distance in metres between what a forecast and the one after it say about the same moment, of every row.

    Between the steps of the earlier one it is read by straight lines. Both are taken into the frame of the later one.
    """
    total = dict.fromkeys(names(replay), 0.0)
    count = dict.fromkeys(total, 0)
    horizon, step_s = replay.truth.shape[1], replay.step_s
    for first in range(0, len(replay) - 1, block):
        part = slice(first, first + block + 1)
        found = predictions(replay, part)
        bag, piece, stamp = replay.bag[part], replay.piece[part], replay.stamp_ns[part]
        later = np.diff(stamp) * 1e-9
        pairs = np.flatnonzero((np.diff(bag) == 0) & (np.diff(piece) == 0) & (later > 0))
        if not len(pairs):
            continue
        place = np.arange(horizon) + (later[pairs] / step_s)[:, None]  # [p, T] steps of the earlier forecast
        place = np.where(np.abs(place - np.round(place)) < 1e-6, np.round(place), place)
        inside = place <= horizon - 1
        left = np.minimum(np.floor(place).astype(np.int64), horizon - 1)
        right = np.minimum(left + 1, horizon - 1)
        share = np.where(inside, place - left, 0.0)[..., None, None]
        for name, value in found.items():
            before = np.take_along_axis(value[pairs], left[..., None, None], 1) * (1 - share)
            before += np.take_along_axis(value[pairs], right[..., None, None], 1) * share
            if replay.pose is not None:
                before = _moved(before, replay.pose[part][pairs], replay.pose[part][pairs + 1])
            distance = np.linalg.norm(before - value[pairs + 1], axis=-1)[inside]
            known = np.isfinite(distance)
            total[name] += float(distance[known].sum())
            count[name] += int(known.sum())
    return {name: total[name] / count[name] if count[name] else float("nan") for name in total}


def _moved(points: np.ndarray, pose: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Points [n, T, J, 3] in the cameras `pose` [n, 4, 4], as the cameras `into` see them."""
    world = np.einsum("ntji,nki->ntjk", points, pose[:, :3, :3]) + pose[:, None, None, :3, 3]
    return np.einsum("ntjk,nki->ntji", world - into[:, None, None, :3, 3], into[:, :3, :3])
