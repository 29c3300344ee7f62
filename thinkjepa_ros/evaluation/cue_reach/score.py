"""Scores every row of the cue-reach table: errors by group of origins, hand and horizon, with intervals over episodes.

Predictions are taken one after the other and only their means are kept, so that a hundred of them fit through a small
machine. An entry without truth never counts.

- A hand moves at an origin if the truth says so within the whole future (`metrics.moving_joints`), at every horizon.
- ADE, accuracy, velocity error and coverage are means over the entries with truth up to the horizon. Where an episode
  ends earlier these are fewer; FDE exists only where there is truth at the very step.
- Velocity error: between consecutive steps of the forecast, from the first on; nothing is said about the present.
- A row may leave out whole origins (all NaN): it is scored on the others, it is told how many these are, and rows are
  compared on the origins that both answer. A hole in an answer is refused.
- Several seeds of one row are averaged; least and most of the seeds' own means are kept as well.

Shapes: N origins, T steps, J joints, E episodes; G groups, H hands, K horizons, M metrics, C = 2 (ADE and FDE).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import metrics
from .groups import GROUPS, MAIN, Groups, divide
from .intervals import intervals

if TYPE_CHECKING:
    from .origins import Truth
    from .rows import Prediction

HORIZONS = (8, 16, 32)
HANDS = ("moving", "resting", "all")
WITHIN_M = {"within_2": 0.02, "within_5": 0.05, "within_10": 0.10}
SIGMAS = {"sigma_1": 1.0, "sigma_2": 2.0}
METRICS = ("ade", "fde", *WITHIN_M, "velocity", *SIGMAS)
LATENT_METRICS = ("l1", "cosine")
#: The row, of the same inputs, that others are compared with, and by which metrics.
BASE, COMPARED = "unguided", ("ade", "fde")
#: Origins worked on together: what they need fits into the cache of a core.
_CHUNK = 64
_DIGITS = 5


@dataclass(frozen=True)
class Row:
    """One row, float32, averaged over the seeds; NaN where there is nothing.

    Means over the origins of each episode: hands [G, E, H, K, M], latents [G, E, K, 2], and steps [E, T], the error at
    each step (main group, moving hand). origins [N, H, K, C]: errors at each origin. Means over episodes of every
    seed S: hands_by_seed [S, G, H, K, M], latents_by_seed [S, G, K, 2]. answered: origins of each group.
    """

    row: str
    inputs: str
    seeds: tuple[int, ...]
    hands: np.ndarray
    latents: np.ndarray
    steps: np.ndarray
    origins: np.ndarray
    hands_by_seed: np.ndarray
    latents_by_seed: np.ndarray
    answered: dict[str, int]


@dataclass(frozen=True)
class Figures:
    """All rows by (row, inputs), in the order in which they came. sizes: see `Groups.sizes`."""

    horizons: tuple[int, ...]
    step_s: float
    groups: Groups
    sizes: dict[str, dict[str, Any]]
    rows: dict[tuple[str, str], Row]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(inputs for _, inputs in self.rows))

    def together(
        self,
        rows: Sequence[str],
        inputs: str,
        horizon: int,
        metric: str = "ade",
        group: str = MAIN,
        hand: str = "moving",
    ) -> np.ndarray:
        """Mean "ade" or "fde" of several rows in every episode, [rows, E] in metres, over the origins that all answer.

        NaN for an episode without any. Raises KeyError for what was not scored.
        """
        for row in rows:
            if (row, inputs) not in self.rows:
                raise KeyError(f'there is no row "{row}" ({inputs})')
        if horizon not in self.horizons:
            raise KeyError(f"there is no horizon of {horizon} steps")
        h, k, c = HANDS.index(hand), self.horizons.index(horizon), COMPARED.index(metric)
        values = np.stack([self.rows[row, inputs].origins[:, h, k, c] for row in rows], 1)
        values[np.isnan(values).any(1)] = np.nan
        return self.groups.means(values, (group,))[0].T.astype(np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Everything for JSON. A figure is [mean, low, high], with several seeds [mean, low, high, least, most seed];
        a bound that does not exist is null, a figure that does not exist is left out.
        """
        return {
            "horizons": list(self.horizons),
            "step_s": self.step_s,
            "episodes": self.groups.episodes,
            "groups": self.sizes,
            "rows": [self._row(row) for row in self.rows.values()],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        hands = _columns(row.hands, row.hands_by_seed)
        latents = _columns(row.latents, row.latents_by_seed)
        base = self.rows.get((BASE, row.inputs))
        minus = None
        if base is not None and base is not row:
            minus = _columns(self.groups.means(row.origins - base.origins))
        cells: dict[str, Any] = {}
        for g, group in enumerate(GROUPS):
            for h, hand in enumerate(HANDS):
                for k, horizon in enumerate(self.horizons):
                    cell = _named(METRICS, hands[g, h, k])
                    if minus is not None:
                        cell |= _named([f"{name}_minus_{BASE}" for name in COMPARED], minus[g, h, k])
                    if cell:
                        cells.setdefault(group, {}).setdefault(hand, {})[str(horizon)] = cell
        told: dict[str, Any] = {"row": row.row, "inputs": row.inputs, "seeds": list(row.seeds)}
        told |= {"answered": row.answered, "cells": cells}
        for g, group in enumerate(GROUPS):
            for k, horizon in enumerate(self.horizons):
                if cell := _named(LATENT_METRICS, latents[g, k]):
                    told.setdefault("latents", {}).setdefault(group, {})[str(horizon)] = cell
        return told | {"steps": [_figure(one) for one in intervals(row.steps)]}


def _columns(per_episode: np.ndarray, by_seed: np.ndarray | None = None) -> np.ndarray:
    """Figures of [G, E, ...]: [G, ..., 3], or [G, ..., 5] with several seeds ([S, G, ...])."""
    first = np.moveaxis(per_episode, 1, 0)
    result = intervals(first.reshape(len(first), -1)).reshape(*first.shape[1:], 3)
    if by_seed is None or len(by_seed) == 1:
        return result
    return np.concatenate([result, by_seed.min(0)[..., None], by_seed.max(0)[..., None]], -1)


def _named(names: Iterable[str], figures: np.ndarray) -> dict[str, list[float | None]]:
    return {name: _figure(one) for name, one in zip(names, figures, strict=True) if not np.isnan(one[0])}


def _figure(numbers: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else float(f"{x:.{_DIGITS}g}") for x in numbers]


def score(truth: Truth, predictions: Iterable[Prediction], horizons: tuple[int, ...] = HORIZONS) -> Figures:
    """Figures of all predictions, which may come from a generator: each is used once and let go.

    Raises ValueError for a shape that does not fit, a horizon beyond the future, a row that comes twice with the same
    seed, and a prediction, latent or sigma that is not finite where there is truth.
    """
    scorer = _Scorer(truth, horizons)
    found: dict[tuple[str, str], dict[int, tuple[np.ndarray, ...]]] = {}
    for prediction in predictions:
        seeds = found.setdefault((prediction.row, prediction.inputs), {})
        if prediction.seed in seeds:
            raise ValueError(f"{_name(prediction)}: it came twice; a row is scored once per seed")
        seeds[prediction.seed] = scorer.of(prediction)
    rows = {}
    for (row, inputs), by_seed in found.items():
        parts = [np.stack(part) for part in zip(*by_seed.values(), strict=True)]
        mean = [metrics.nanmean(part, 0).astype(np.float32) for part in parts]
        rows[row, inputs] = Row(
            row,
            inputs,
            tuple(by_seed),
            hands=mean[0],
            latents=mean[1],
            steps=mean[2],
            origins=mean[3],
            hands_by_seed=metrics.nanmean(parts[0], 2),
            latents_by_seed=metrics.nanmean(parts[1], 2),
            answered=scorer.groups.counts(np.any(parts[4], axis=0)),
        )
    sizes = scorer.groups.sizes(scorer.known, scorer.horizons)
    return Figures(scorer.horizons, float(truth.step_s), scorer.groups, sizes, rows)


def _name(prediction: Prediction) -> str:
    return f'row "{prediction.row}" ({prediction.inputs}, seed {prediction.seed})'


class _Scorer:
    """What the truth decides, computed once: known entries, hands, and which origins make which episode of a group."""

    def __init__(self, truth: Truth, horizons: tuple[int, ...]) -> None:
        shape = truth.future.shape
        if len(shape) != 4 or shape[3] != 3 or truth.present.shape != (shape[0], *shape[2:]) or not shape[0]:
            raise ValueError(
                f"the future must be [N, T, J, 3] and the present [N, J, 3], got {shape} and {truth.present.shape}"
            )
        if not horizons or list(horizons) != sorted(set(horizons)) or not 1 <= horizons[0] <= horizons[-1] <= shape[1]:
            raise ValueError(f"horizons must ascend between 1 and {shape[1]} steps, got {horizons}")
        self.truth, self.horizons = truth, tuple(horizons)
        self.last = np.array(horizons) - 1
        self.known = np.isfinite(truth.future).all(-1)
        sides = metrics.joint_groups(truth.joint_names)
        moving = np.concatenate(
            [metrics.moving_joints(truth.present[i], truth.future[i], sides) for i in _chunks(shape[0])]
        )
        self.hands = np.stack([moving, ~moving, np.ones_like(moving)], -1).astype(np.float32)  # [N, J, H]
        self.groups = Groups(truth)

    def of(self, prediction: Prediction) -> tuple[np.ndarray, ...]:
        """Of one prediction: hands [G, E, H, K, M], latents [G, E, K, 2], steps [E, T], origins [N, H, K, C], answered
        [N].
        """
        self._check(prediction)
        answered = np.isfinite(prediction.positions).any((1, 2, 3))
        parts = [self._errors(prediction, i, answered[i]) for i in _chunks(len(answered))]
        hands, curve = (np.concatenate(part) for part in zip(*parts, strict=True))
        latents = np.full((len(answered), len(self.horizons), len(LATENT_METRICS)), np.nan, np.float32)
        if prediction.latents is not None:
            latents = np.concatenate([self._latents(prediction, i, answered[i]) for i in _chunks(len(answered))])
        errors = hands[..., [METRICS.index(name) for name in COMPARED]]
        means = self.groups.means
        return means(hands), means(latents), means(curve, (MAIN,))[0], errors, answered

    def _check(self, prediction: Prediction) -> None:
        wanted = {
            "positions": self.truth.future.shape,
            "sigma": self.known.shape,
            "latents": self.truth.latents.shape,
        }
        for name, shape in wanted.items():
            array = getattr(prediction, name)
            if (array is not None or name == "positions") and np.shape(array) != shape:
                raise ValueError(f"{_name(prediction)}: {name} must be {shape} like the truth, got {np.shape(array)}")

    def _errors(self, prediction: Prediction, i: slice, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the origins in `i`: [n, H, K, M], and the moving hand's error at each step, [n, T]."""
        known, hands = self.known[i] & answered[:, None, None], self.hands[i]
        away = prediction.positions[i].astype(np.float32) - self.truth.future[i]
        away[~known] = 0
        if not np.isfinite(away).all():
            n, t, j = np.argwhere(~np.isfinite(away).all(-1))[0]
            raise ValueError(
                f"{_name(prediction)}: a position is not finite where there is truth (origin {i.start + n}, step {t}, "
                f"joint {j}); an origin is answered as a whole, or left out as a whole with NaN"
            )
        error = np.sqrt(np.einsum("ntjx,ntjx->ntj", away, away))
        count = known.astype(np.float32) @ hands  # [n, T, H]
        total = error @ hands
        counted = np.cumsum(count, 1)[:, self.last]  # [n, K, H]
        out = np.full((*counted.shape, len(METRICS)), np.nan, np.float32)

        def put(name: str, sums: np.ndarray, counts: np.ndarray) -> None:
            divide(sums, counts, out[..., METRICS.index(name)])

        def mean(name: str, values: np.ndarray) -> None:
            put(name, np.cumsum(values.astype(np.float32) @ hands, 1)[:, self.last], counted)

        mean("ade", error)
        put("fde", total[:, self.last], count[:, self.last])
        for name, limit in WITHIN_M.items():
            mean(name, (error <= limit) & known)
        faster = np.diff(away, axis=1)
        both = known[:, 1:] & known[:, :-1]
        speed = np.where(both, np.sqrt(np.einsum("ntjx,ntjx->ntj", faster, faster)) / self.truth.step_s, 0)
        first = np.zeros_like(count[:, :1])  # one difference fewer than steps
        sums, counts = (np.cumsum(np.concatenate([first, x.astype(np.float32) @ hands], 1), 1) for x in (speed, both))
        put("velocity", sums[:, self.last], counts[:, self.last])
        if prediction.sigma is not None:
            sigma = np.where(known, prediction.sigma[i], 1).astype(np.float32)
            if not ((sigma > 0) & np.isfinite(sigma)).all():
                raise ValueError(f"{_name(prediction)}: a sigma is not a positive, finite number where there is truth")
            far = np.abs(away) / sigma[..., None]
            for name, limit in SIGMAS.items():
                mean(name, (far <= limit).mean(-1, dtype=np.float32) * known)
        curve = np.full(count.shape[:2], np.nan, np.float32)
        divide(total[..., HANDS.index("moving")], count[..., HANDS.index("moving")], curve)
        return out.swapaxes(1, 2), curve

    def _latents(self, prediction: Prediction, i: slice, answered: np.ndarray) -> np.ndarray:
        """Of the origins in `i`: mean absolute difference and mean cosine of the tokens, [n, K, 2]."""
        assert prediction.latents is not None
        known = self.truth.latents_known[i] & answered[:, None]
        ours, true = (_floats(x[i]) for x in (prediction.latents, self.truth.latents))
        ours[~known] = true[~known] = 0
        product = np.einsum("ntpd,ntpd->ntp", ours, true)
        lengths = np.sqrt(np.einsum("ntpd,ntpd->ntp", ours, ours) * np.einsum("ntpd,ntpd->ntp", true, true))
        cosine = (product / np.maximum(lengths, 1e-12)).mean(-1)
        ours -= true
        distance = np.abs(ours, out=ours).mean((2, 3))
        if not np.isfinite(distance).all():
            raise ValueError(f"{_name(prediction)}: a latent is not finite where there is one to compare it with")
        out = np.full((len(known), len(self.horizons), len(LATENT_METRICS)), np.nan, np.float32)
        for k, horizon in enumerate(self.horizons):
            there = known[:, : horizon // self.truth.steps_per_tubelet]
            for m, values in enumerate((distance, cosine)):
                divide(values[:, : there.shape[1]].sum(1), there.sum(1), out[:, k, m])
        return out


def _floats(values: np.ndarray) -> np.ndarray:
    """A float32 copy; torch reads float16 several times as fast as numpy."""
    return torch.from_numpy(np.array(values)).float().numpy()


def _chunks(origins: int) -> Iterator[slice]:
    return (slice(i, i + _CHUNK) for i in range(0, origins, _CHUNK))
