"""The sub-goal head: from the pyramid of a thought to the latent z* that the thinker wants to be seen a while later.

Small, and separate from the thinker: it is made to be trained on recorded episodes, with the latent of the encoder at
`horizon_s` after the thought as the target, while thinker and encoder stay as they are. Its output lives in the space
of one encoder, whose model id goes with it, so that nobody compares it with latents of another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import CheckpointError, Manifest
from ..values import STREAMS, Subgoal
from .errors import ThinkerError

KIND = "subgoal"
_BOUNDS = {"width": (1, 65536), "tokens": (1, 65536), "latent_width": (1, 65536), "hidden": (1, 16384)}


@dataclass(frozen=True)
class SubgoalConfig:
    """Raises ValueError naming the field that makes no sense."""

    layers: tuple[int, ...]  #: decoder layers of the pyramids it takes
    width: int  #: of the thinker's states
    tokens: int  #: of the latent
    latent_width: int  #: of the encoder
    horizon_s: float  #: from the stamp of the thought to the moment of the latent
    space: str  #: model id of the encoder
    hidden: int = 256

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"sub-goal {name} is {value!r}, must be a whole number in {low} … {high}")
        if not isinstance(self.layers, (list, tuple)) or not all(type(n) is int and 0 <= n < 1000 for n in self.layers):
            raise ValueError(f"sub-goal layers is {self.layers!r}, must be layer numbers")
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"sub-goal layers is {list(self.layers)}, must ascend")
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has no tuples
        if type(self.horizon_s) not in (int, float) or not 0 < self.horizon_s <= 3600:
            raise ValueError(f"sub-goal horizon_s is {self.horizon_s!r}, must be above 0 and at most 3600 s")
        if not isinstance(self.space, str) or not 0 < len(self.space) <= 200:
            raise ValueError(f"sub-goal space is {self.space!r}, must be the model id of an encoder")


class SubgoalHead(nn.Module):
    """Pyramid [B, L, 2, D] -> latent [B, tokens, latent_width].

    Every row is normalised (a layer's states have their own scale), the layers of each stream are mixed with learned
    weights, and one MLP answers for each token of the latent, told apart by a learned embedding.
    """

    def __init__(self, config: SubgoalConfig) -> None:
        super().__init__()
        self.config = c = config
        self.absent = nn.Parameter(torch.zeros(len(STREAMS), c.width))
        self.mix = nn.Parameter(torch.zeros(len(c.layers), len(STREAMS)))
        self.gather = nn.Linear(len(STREAMS) * c.width, c.hidden)
        self.token = nn.Parameter(torch.zeros(c.tokens, c.hidden))
        self.norm = nn.LayerNorm(c.hidden)
        self.fc = nn.Linear(c.hidden, c.hidden)
        self.out = nn.Linear(c.hidden, c.latent_width)
        for weight in (self.absent, self.token):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, pyramid: Tensor, present: Tensor) -> Tensor:
        """pyramid [B, L, 2, D], present bool [B, 2]: rows of a stream that is absent may hold anything."""
        c = self.config
        if pyramid.shape[1:] != (len(c.layers), len(STREAMS), c.width) or present.shape != (len(pyramid), len(STREAMS)):
            raise ValueError(
                f"pyramid and present are {list(pyramid.shape)} and {list(present.shape)}, this head takes "
                f"[B, {len(c.layers)}, {len(STREAMS)}, {c.width}] and [B, {len(STREAMS)}]"
            )
        there = present[:, None, :, None]
        rows = F.layer_norm(torch.where(there, pyramid, 0), (c.width,))
        rows = torch.where(there, rows, self.absent)
        said = (rows * self.mix.softmax(0)[..., None]).sum(1).flatten(1)
        x = self.gather(said)[:, None] + self.token
        return self.out(F.gelu(self.fc(F.gelu(self.norm(x)))))


class SubgoalMaker:
    """A loaded head that fits a thinker."""

    def __init__(self, head: SubgoalHead, trained: bool) -> None:
        self._head, self._trained = head, trained

    @classmethod
    def load(cls, folder: str | Path, layers: Sequence[int], width: int) -> SubgoalMaker:
        """The head of a folder, for a thinker that exports these layers of this width. Raises ThinkerError."""
        try:
            head, manifest = load(folder)
        except CheckpointError as error:
            raise ThinkerError(str(error)) from error
        have = head.config
        if have.layers != tuple(layers) or have.width != width:
            raise ThinkerError(
                f"{folder}: this sub-goal head takes layers {list(have.layers)} of width {have.width}, the thinker "
                f"exports {list(layers)} of width {width}. Use the thinker and the layers that the head was trained on."
            )
        return cls(head, manifest.trained)

    def make(self, pyramid: Tensor, present: tuple[bool, bool]) -> Subgoal:
        """From one pyramid [L, 2, D] on the CPU. Raises ThinkerError where it is not finite."""
        with torch.inference_mode():
            latent = self._head(pyramid[None], torch.tensor([present]))[0]
        if not bool(latent.isfinite().all()):
            raise ThinkerError("the sub-goal holds values that are not finite: train its head again, or do without")
        c = self._head.config
        return Subgoal(latent.numpy(), float(c.horizon_s), c.space, self._trained)


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load(folder: str | Path) -> tuple[SubgoalHead, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: SubgoalHead(SubgoalConfig(**config)))
