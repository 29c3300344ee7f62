"""How well what is imagined fits what was asked for: the language score of a planner.

score(z, l) = cosine of a projection of the latents and one of the instruction + progress of the task, 0 ... 1. The
former is trained contrastively (InfoNCE, arXiv 1807.03748) on latents of tasks that are done, the latter by regression
on the way there: both from demonstrations alone. A planner subtracts it from its energy.
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
from .energy import Term
from .policy import CUBES, TRAYS

KIND = "language-score"


@dataclass(frozen=True)
class ScoreConfig:
    """Of latents [M, Z] of the imagination that is named `imagination`. Raises ValueError."""

    tokens: int
    latent_width: int
    width: int = 128
    told_width: int = 64
    imagination: str = ""  #: model id and hash: scores of other latents mean nothing

    def __post_init__(self) -> None:
        for name in ("tokens", "latent_width", "width", "told_width"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 16384:
                raise ValueError(f"{name} is {value!r}, must be a whole number in 1 … 16384")


class LanguageScore(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ScoreConfig):
        super().__init__()
        self.config = c = config
        self.embed = nn.Linear(c.latent_width, c.width)
        self.place = nn.Parameter(torch.zeros(c.tokens, c.width))
        self.hidden = nn.Linear(c.tokens * c.width, c.width)
        self.norm = nn.LayerNorm(c.width, eps=EPS)
        self.project = nn.Linear(c.width, c.told_width)
        self.cube = nn.Embedding(len(CUBES) + 1, c.told_width)
        self.tray = nn.Embedding(len(TRAYS) + 1, c.told_width)
        self.progress_of = nn.Sequential(nn.Linear(c.width + c.told_width, c.width), nn.GELU(), nn.Linear(c.width, 1))
        self.sharpness = nn.Parameter(torch.tensor(2.3))  # its exponential multiplies the cosine: 1 / temperature

    def tell(self, words: Tensor) -> Tensor:
        """Words int64 [..., 2] (`policy.words_of`) -> [..., told_width]."""
        told: Tensor = self.cube(words[..., 0]) + self.tray(words[..., 1])
        return told

    def forward(self, latents: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled latents [..., M, Z], told [..., told_width] or what broadcasts -> cosine and progress [...]."""
        x = F.gelu(self.embed(latents) + self.place)
        x = self.norm(F.gelu(self.hidden(x.flatten(-2))))
        cosine = F.cosine_similarity(self.project(x), told, dim=-1)
        both = torch.cat((x.expand(*cosine.shape, -1), told.expand(*cosine.shape, -1)), -1)
        return cosine, self.progress_of(both)[..., 0].sigmoid()

    def score(self, latents: Tensor, actions: Tensor, told: Tensor) -> Tensor:
        """The negative score [S] of imagined latents [S, K, M, Z] after the last of the scored steps."""
        cosine, progress = self(latents[:, -1], told)
        return -(cosine + progress)

    def term(self, words: tuple[int, int], weight: float = 1.0, name: str = "language") -> Term:
        """For a planner's energy."""
        with torch.no_grad():
            told = self.tell(torch.tensor(words, device=self.place.device))
        return Term(name, self.score, (told,), weight)


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load_score(folder: str | Path) -> tuple[LanguageScore, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: LanguageScore(ScoreConfig(**config)))
