"""Many intervals at once: the same bootstrap over episodes as in `evaluation/bootstrap.py`, as one product of matrices.

A table of the benchmark has tens of thousands of intervals. How often each episode is drawn depends on the number of
episodes alone, so the draws are made once and every column that knows the same number of episodes shares them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..bootstrap import Interval

RESAMPLES, SEED, BOUNDS = 2000, 0, (0.025, 0.975)


@lru_cache(maxsize=64)
def _draws(episodes: int) -> np.ndarray:
    """How often each episode is drawn in each resample, float32 [RESAMPLES, episodes]."""
    drawn = np.random.default_rng(SEED).integers(0, episodes, (RESAMPLES, episodes))
    drawn += np.arange(RESAMPLES)[:, None] * episodes
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)


def intervals(values: np.ndarray) -> np.ndarray:
    """Mean, low and high of every column of values [E, C], float64 [C, 3]: what `bootstrap_mean` says of each.

    An episode without a value (NaN) is left out of its column. Bounds are NaN with fewer than two episodes, all is NaN
    with none.
    """
    if values.ndim != 2:
        raise ValueError(f"values must be [episodes, columns], got {values.shape}")
    known = ~np.isnan(values)
    result = np.full((values.shape[1], 3), np.nan)
    patterns, of_column = np.unique(np.packbits(known, axis=0), axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        columns = np.flatnonzero(of_column.ravel() == number)
        rows = known[:, columns[0]]
        if not rows.any():
            continue
        chosen = values[np.ix_(rows, columns)].astype(np.float64)
        mean = chosen.mean(0)
        result[columns, 0] = mean
        if len(chosen) > 1:
            # about the mean, so that float32 loses nothing
            around = _draws(len(chosen)) @ (chosen - mean).astype(np.float32) / len(chosen)
            result[columns, 1:] = (mean + np.quantile(around, BOUNDS, axis=0)).T
    return result


def ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Mean of `above` over mean of `below`, [E] each over the same episodes, with its interval; NaN pairs are left out.

    The bounds are NaN with fewer than two episodes, and where a resample has a denominator of 0 or less: a ratio to
    nothing has no interval. All is NaN where the mean of `below` itself is not above 0.
    """
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"a ratio needs the same episodes on both sides, got {above.shape} and {below.shape}")
    known = ~(np.isnan(above) | np.isnan(below))
    nan = float("nan")
    if not known.any() or not below[known].mean() > 0:
        return Interval(nan, nan, nan)
    over, under = above[known].astype(np.float64), below[known].astype(np.float64)
    value = float(over.mean() / under.mean())
    draws = _draws(len(over)).astype(np.float64)
    drawn = draws @ under
    if len(over) < 2 or not (drawn > 0).all():
        return Interval(value, nan, nan)
    low, high = np.quantile(draws @ over / drawn, BOUNDS)
    return Interval(value, float(low), float(high))
