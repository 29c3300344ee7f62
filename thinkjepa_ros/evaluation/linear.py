"""Ridge regression whose penalty is chosen, output by output, on groups that it was not fitted on: the linear model of
comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: To choose from, relative to the mean variance of the features.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: Every so many groups one is kept aside to choose by.
FOLD = 4


@dataclass(frozen=True)
class Ridge:
    """y = (x - mean) / spread @ weights + offset."""

    mean: np.ndarray  # [D]
    spread: np.ndarray  # [D]
    weights: np.ndarray  # [D, K]
    offset: np.ndarray  # [K]

    @staticmethod
    def fit(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Ridge:
        """x [N, D], y [N, K]; groups int [N]: what belongs together, an episode. Raises ValueError without rows."""
        if not len(x):
            raise ValueError("there is nothing to fit a linear model on; give more or longer episodes")
        aside = np.unique(groups, return_inverse=True)[1] % FOLD == FOLD - 1
        choice = np.full(y.shape[1], len(PENALTIES) // 2)
        if aside.any():
            solved = [_solve(x[~aside], y[~aside], p) for p in PENALTIES]
            choice = np.array([((one.predict(x[aside]) - y[aside]) ** 2).mean(0) for one in solved]).argmin(0)
        chosen = {int(k): _solve(x, y[:, choice == k], PENALTIES[k]) for k in np.unique(choice)}
        whole = next(iter(chosen.values()))
        weights, offset = np.empty((x.shape[1], y.shape[1])), np.empty(y.shape[1])
        for k, one in chosen.items():
            weights[:, choice == k], offset[choice == k] = one.weights, one.offset
        return Ridge(whole.mean, whole.spread, weights, offset)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, K]."""
        return np.asarray((x - self.mean) / self.spread @ self.weights + self.offset)


def _solve(x: np.ndarray, y: np.ndarray, penalty: float) -> Ridge:
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-6
    offset = y.mean(0, dtype=np.float64)
    z = (x - mean) / spread
    gram = z.T @ z + penalty * len(x) * np.eye(x.shape[1])
    return Ridge(mean, spread, np.linalg.solve(gram, z.T @ (y - offset)), offset)
