"""Groups of origins, and means over the origins of each episode within them.

Forecasts of one episode overlap: an episode is the unit of every interval, whatever the number of its origins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .origins import GROUPS as PHASES
from .origins import MAIN as MAIN

if TYPE_CHECKING:
    from .origins import Truth

#: The phase of the origins, and whether the intent was told (None: either).
GROUPS: dict[str, tuple[str, bool | None]] = {
    "before": ("before", None),
    "wait": ("wait", True),
    "ready": ("ready", True),
    "ready, no cue": ("ready", False),
    "reach": ("reach", True),
    "transport": ("transport", True),
}


class Groups:
    """Which of the N origins belong to which group and to which of the E episodes."""

    def __init__(self, truth: Truth) -> None:
        episodes, number = np.unique(truth.episode, return_inverse=True)
        self.episodes = len(episodes)
        self._origins: dict[str, np.ndarray] = {}
        self._sums: dict[str, sparse.csr_matrix] = {}
        for name, (phase, told) in GROUPS.items():
            chosen = truth.group == PHASES.index(phase)
            if told is not None:
                chosen = chosen & (truth.told == told)
            origins = np.flatnonzero(chosen)
            places = number[origins], np.arange(len(origins))
            self._origins[name] = origins
            self._sums[name] = sparse.csr_matrix((np.ones(len(origins)), places), (self.episodes, len(origins)))

    def counts(self, there: np.ndarray) -> dict[str, int]:
        """How many origins of each group are `there`, bool [N]."""
        return {name: int(there[origins].sum()) for name, origins in self._origins.items()}

    def sizes(self, known: np.ndarray, horizons: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        """Of each group: origins, episodes, and at how many origins there is truth at the step of each horizon.

        known: bool [N, T, J].
        """
        at = {k: self.counts(np.any(known[:, k - 1], axis=-1)) for k in horizons}
        return {
            name: {
                "origins": len(origins),
                "episodes": int((self._sums[name].getnnz(1) > 0).sum()),
                "with_truth_at_step": {str(k): at[k][name] for k in horizons},
            }
            for name, origins in self._origins.items()
        }

    def means(self, values: np.ndarray, names: tuple[str, ...] = tuple(GROUPS)) -> np.ndarray:
        """Means over the origins of each episode, float32 [groups, E, ...], from values [N, ...]; NaN is left out."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        there = ~np.isnan(flat)
        flat = np.where(there, flat, 0.0)
        result = np.full((len(names), self.episodes, flat.shape[1]), np.nan, np.float32)
        for one, name in zip(result, names, strict=True):
            origins, sums = self._origins[name], self._sums[name]
            divide(sums @ flat[origins], sums @ there[origins].astype(np.float64), one)
        return result.reshape(*result.shape[:2], *values.shape[1:])


def divide(sums: np.ndarray, counts: np.ndarray, out: np.ndarray) -> None:
    """Means into `out`, which stays as it is (NaN) where nothing was counted."""
    np.divide(sums, counts, out=out, where=counts > 0, casting="unsafe")
