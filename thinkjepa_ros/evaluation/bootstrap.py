"""Percentile bootstrap over episodes: how sure a mean, or a difference of two means, is.

Episodes are the unit that is drawn again (with replacement), since forecasts within one are not independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval; bounds are NaN with fewer than two episodes, all NaN with none."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies entirely on one side of 0: for a difference, "significant"."""
        return bool(self.low > 0 or self.high < 0)


def bootstrap_mean(values_per_episode: np.ndarray, n: int = 2000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Mean of values [E] with its percentile interval over `n` resamples; NaN (an episode without any) is left out."""
    values = np.asarray(values_per_episode, np.float64)
    if values.ndim != 1:
        raise ValueError(f"one value per episode is needed, [E], got {values.shape}")
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    means = np.empty(n)
    rows = max(1, 4_000_000 // len(values))  # bounded memory for thousands of episodes
    for begin in range(0, n, rows):
        end = min(n, begin + rows)
        means[begin:end] = values[random.integers(0, len(values), (end - begin, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def paired_bootstrap(a: np.ndarray, b: np.ndarray, n: int = 2000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Mean of a - b with its interval, both [E] over the same episodes in the same order.

    Drawing the pairs, not each side, removes how hard an episode is from the comparison. Pairs with a NaN are left out.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same episodes on both sides, got {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, n, seed, confidence)
