"""How sure a share of successes is, and a difference of two on the same seeds."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np

from ..bootstrap import Interval, paired_bootstrap

#: What tells one task from another, such as its seed.
Task = TypeVar("Task", int, tuple[str, int])
#: 97.5 % point of the normal distribution.
_Z = 1.959963984540054


def wilson(successes: int, count: int) -> Interval:
    """Share of successes with Wilson's 95 % score interval (Wilson 1927); NaN where nothing was tried.

    Unlike the textbook interval it has a width when all or none succeed.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} make no sense")
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    share, square = successes / count, _Z**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # at 0 and at 1 the bound is the share itself, which rounding must not cross
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test: of the seeds on which one of two rows alone succeeds, each row has a
    fair coin's chance. 1 where there are none.
    """
    count = only_a + only_b
    if count == 0:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2.0 * tail / 2**count)


class Comparison(NamedTuple):
    """Row a beside row b. difference: of their shares of success, a - b, over the seeds that both have."""

    seeds: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: Interval
    p: float


def compare(a: dict[Task, bool], b: dict[Task, bool]) -> Comparison:
    """Successes by task. What only one of them has is left out."""
    shared = sorted(a.keys() & b.keys())
    left, right = (np.array([bool(one[seed]) for seed in shared], bool) for one in (a, b))
    only_a, only_b = int((left & ~right).sum()), int((right & ~left).sum())
    return Comparison(
        len(shared),
        int((left & right).sum()),
        only_a,
        only_b,
        int((~left & ~right).sum()),
        paired_bootstrap(left.astype(float), right.astype(float)),
        mcnemar(only_a, only_b),
    )
