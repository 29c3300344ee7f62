"""What should be seen a while ahead, if what is asked for gets done: sub-goals that know where things are.

    latents of now [M, Z], the robot's state, cube and tray that are asked for -> latents of `steps` actions later

A thinker says what is wanted, slowly and in words; where cube and tray are, the eye knows, now. So the sub-goal of a
thought is made here, anew for every plan, and not where the thought was. Learned from demonstrations alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from ..jepa.layers import EPS
from . import space
from .policy import CUBES, TRAYS

KIND = "ahead"


@dataclass(frozen=True)
class AheadConfig:
    """Of latents [M, Z] of the imagination that is named `imagination`. Raises ValueError."""

    tokens: int
    latent_width: int
    steps: int = 4  #: actions from now to what is wanted
    width: int = 512
    told_width: int = 64
    imagination: str = ""  #: model id and hash: latents of others mean nothing

    def __post_init__(self) -> None:
        for name in ("tokens", "latent_width", "steps", "width", "told_width"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 16384:
                raise ValueError(f"{name} is {value!r}, must be a whole number in 1 … 16384")


class Ahead(nn.Module):
    """See the head of this file. It begins with "as now": the last layer's weights are 0."""

    def __init__(self, config: AheadConfig):
        super().__init__()
        self.config = c = config
        self.cube = nn.Embedding(len(CUBES), c.told_width)
        self.tray = nn.Embedding(len(TRAYS), c.told_width)
        self.first = nn.Linear(c.tokens * c.latent_width + space.DIM + 2 * c.told_width, c.width)
        self.norms = nn.ModuleList(nn.LayerNorm(c.width, eps=EPS) for _ in range(2))
        self.hidden = nn.ModuleList(nn.Linear(c.width, c.width) for _ in range(2))
        self.last = nn.Linear(c.width, c.tokens * c.latent_width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, now: Tensor, state: Tensor, words: Tensor) -> Tensor:
        """now [B, M, Z], state [B, 4] in standard deviations of the imagination's data, words int64 [B, 2], see
        `policy.words_of`, both told -> [B, M, Z].
        """
        told = torch.cat((self.cube(words[:, 0]), self.tray(words[:, 1])), -1)
        x = self.first(torch.cat((now.flatten(1), state, told), -1))
        for norm, layer in zip(self.norms, self.hidden, strict=True):
            x = x + layer(F.gelu(norm(x)))
        change: Tensor = self.last(F.gelu(x))
        return now + change.view_as(now)


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load_ahead(folder: str | Path) -> tuple[Ahead, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: Ahead(AheadConfig(**config)))
