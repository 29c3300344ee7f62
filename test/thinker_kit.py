"""Helpers of the thinker tests: the untrained mini, built once per session, and frames to look at."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.values import Frame


@functools.cache
def _folder() -> tuple[tempfile.TemporaryDirectory, Path]:
    holder = tempfile.TemporaryDirectory(prefix="thinker-")
    return holder, tiny.build(Path(holder.name) / "mini", seed=0)


def mini_folder() -> Path:
    """The untrained mini in a temporary folder that lives as long as the tests."""
    return _folder()[1]


def fresh_thinker(**options) -> Thinker:
    """A thinker with nothing cached."""
    return Thinker.load(mini_folder(), **options)


def lively_thinker(**options) -> Thinker:
    """One with larger random weights, so that each token that it writes depends on those before."""
    thinker = fresh_thinker(**options)
    with torch.no_grad():
        for parameter in thinker._model.model.language_model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return thinker


def frames(
    count: int, *, seed: int = 0, step_s: float = 0.25, start_ns: int = 0, size: tuple[int, int] = (128, 128)
) -> list[Frame]:
    """Frames of noise, `step_s` apart."""
    rng = np.random.default_rng(seed)
    return [
        Frame(rng.integers(0, 256, (*size, 3), dtype=np.uint8), start_ns + round(k * step_s * 1e9))
        for k in range(count)
    ]
