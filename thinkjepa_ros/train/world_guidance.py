"""Thoughts for the world model: the pooled states of a thinker over the episodes, from a folder of `train cache`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.episode import Episode
from ..jepa.guidance import Payload
from . import cache
from .cache import CacheError
from .world_data import Origin

#: The newest thought of a live thinker is over frames so much older than now, in seconds.
LATE_S = (0.2, 1.2)


@dataclass(frozen=True)
class Thoughts:
    """Of each episode, in order: when the newest frame of every thought was taken, and the pyramids [K, L, 2, D]."""

    made_by: str
    stamps_ns: tuple[np.ndarray, ...]
    pyramids: tuple[Tensor, ...]

    @staticmethod
    def load(folder: Path, episodes: Sequence[Episode]) -> Thoughts:
        """Raises CacheError where a shard is missing or damaged, or where nobody thought."""
        made_by = _maker_of(cache.shard_path(folder, episodes[0]))
        stamps, pyramids = [], []
        for episode in episodes:  # one by one: their latents need not stay
            shard = cache.load([episode], folder, made_by)[0]
            stamps.append(shard.thought_ns.numpy())
            pyramids.append(shard.pyramids)
        if not any(len(s) for s in stamps):
            raise CacheError(f"{folder} holds no thoughts; `thinkjepa train cache` makes them with a thinker.")
        return Thoughts(made_by, tuple(stamps), tuple(pyramids))

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and width of a pyramid."""
        first = next(p for p in self.pyramids if len(p))
        return first.shape[1], first.shape[3]

    def payload(self, origins: Sequence[Origin], rng: np.random.Generator) -> Payload:
        """For every moment the newest thought that would be known then; rows without one are unguided."""
        layers, width = self.shape
        pyramids, weights = torch.zeros(len(origins), layers, 2, width), torch.zeros(len(origins))
        for row, (origin, late_s) in enumerate(zip(origins, rng.uniform(*LATE_S, size=len(origins)), strict=True)):
            latest = origin.stamp_ns - int(late_s * 1e9)
            number = int(np.searchsorted(self.stamps_ns[origin.episode], latest, side="right")) - 1
            if number >= 0:
                pyramids[row], weights[row] = self.pyramids[origin.episode][number], 1.0
        return Payload.pooled(pyramids, torch.ones(len(origins), 2, dtype=torch.bool), weights)


def drop(payload: Payload, share: float, rng: np.random.Generator) -> Payload:
    """The same guidance, a random `share` of the rows without any: so the model learns to do without."""
    assert payload.weight is not None
    keep = torch.from_numpy((rng.random(len(payload.weight)) >= share).astype(np.float32))
    return payload._replace(weight=payload.weight * keep)


def _maker_of(path: Path) -> str:
    """What made a shard."""
    if not path.exists():
        raise CacheError(f"{path} is missing; `thinkjepa train cache` makes it.")
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("made_by"))
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path} is damaged ({error}); `thinkjepa train cache` makes it again.") from error
