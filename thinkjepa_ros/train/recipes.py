"""Recipes of the stage `encoder`: what the encoder learns from beside the pose of the hands.

In all of them the pose readout reads the encoder's latents of whole frames, gradient and all, with the same losses on
the same frames; they differ in the self-supervised part alone.

- "end-to-end": a later frame's latents are predicted from those of a frame, and SIGReg keeps them from collapsing
  (LeJEPA / LeWM, arXiv 2603.19312).
- "masked": most tokens of a frame are hidden, and the latents that a slowly moving copy of the encoder has there are
  predicted from the others (V-JEPA 2, arXiv 2506.09985).
- "pose": nothing; tells whether the self-supervised part helps.
- "random": nothing, and the encoder stays as it was drawn; tells what its architecture alone gives to the readout.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..jepa import rope
from ..jepa.encoder import pool
from ..jepa.layers import Block
from ..jepa.masking import LONG_RANGE, SHORT_RANGE, Grid, Masks, nearest
from ..jepa.model import ForecastNet
from .distributed import Group
from .objectives import ema_update, momentum, normalised, prediction_loss, random_directions, sigreg
from .pretrain import MaskPredictor

LATENT = 64  #: width in which "end-to-end" predicts and SIGReg works
POOLED = 4
#: Of the moving average in "masked", at the first and the last step; the published 0.99925 is for 252,000 steps.
MOMENTUM = (0.99, 0.999)


class Seen(NamedTuple):
    """One step's batch as the net sees it; its first half are the earlier frames of the pairs, the other the later."""

    joints: Tensor  #: [2 B, J, 3] metres
    logits: Tensor  #: [2 B, n, J] where the readout looks
    loss: Tensor  #: of the self-supervised part, weighted; this process's share
    latents: Tensor  #: [N, D] without gradient: what spread and effective rank are measured on
    notes: dict[str, float]  #: for the log


class Sight(nn.Module):
    """Recipe "pose": encoder and pose readout. The other recipes add to it."""

    def __init__(self, net: ForecastNet):
        super().__init__()
        self.encoder, self.pose = net.encoder, net.pose

    def draw(self, pairs: int, rng: np.random.Generator, group: Group) -> Any:
        """The random things of a step of `pairs` pairs in all processes together."""

    def forward(self, images: Tensor, gap_s: Tensor, drawn: Any, group: Group) -> Seen:
        """images uint8 [2 B, S, S, 3], the later half belongs to the earlier one, gap_s [B] seconds later."""
        latent = self.encoder.frames(images)
        return Seen(*self.pose.read(latent), latent.new_zeros(()), latent.detach().flatten(0, 1), {})

    def stepped(self, step: int, steps: int) -> None:
        """Called after the update of `step` of `steps`."""


class Random(Sight):
    """The encoder is frozen, and stays so afterwards."""

    def __init__(self, net: ForecastNet):
        super().__init__(net)
        self.encoder.requires_grad_(False)


class EndToEnd(Sight):
    """Spread and effective rank are those of the projected latents, on which SIGReg works."""

    cos: Tensor
    sin: Tensor

    def __init__(self, net: ForecastNet):
        super().__init__(net)
        width = net.config.encoder.width
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, LATENT))
        self.step = nn.Linear(1, width)
        self.block = Block(width, 4)
        self.out = nn.Linear(width, LATENT)
        cos, sin = rope.table(rope.grid(torch.zeros(1), POOLED, POOLED), width // 4)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def draw(self, pairs: int, rng: np.random.Generator, group: Group) -> Tensor:
        return random_directions(rng, LATENT)

    def forward(self, images: Tensor, gap_s: Tensor, drawn: Tensor, group: Group) -> Seen:
        latent = self.encoder.frames(images)
        pooled = pool(latent, self.encoder.config.grid, POOLED)
        z = self.project(pooled)
        first, later = z[: len(gap_s)], z[len(gap_s) :]
        ahead, _ = self.block(pooled[: len(gap_s)] + self.step(gap_s[:, None])[:, None], (self.cos, self.sin))
        joints, logits = self.pose.read(latent)
        predict = (self.out(ahead) + first - later).square().mean()
        regular = sigreg(z.transpose(0, 1), drawn.to(z.device), group)
        with torch.no_grad():
            copied = (first - later).square().mean()
        notes = {"prediction_over_copy": (predict.detach() / copied).item(), "sigreg": regular.item()}
        loss = (0.2 * predict + 0.02 * regular) / group.world
        return Seen(joints, logits, loss, z.detach().flatten(0, 1), notes)


class Masked(Sight):
    """The encoder that is kept is the one that learns, not its moving average as in `pretrain`: the pose readout is
    trained on the former's latents, and fits no other's.
    """

    def __init__(self, net: ForecastNet):
        super().__init__(net)
        config = net.config.encoder
        self.grid: Grid = (1, config.grid, config.grid)
        self.predictor = MaskPredictor(config.width, self.grid)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum = MOMENTUM[0]

    def draw(self, pairs: int, rng: np.random.Generator, group: Group) -> list[Masks]:
        """One mask of each kind for every frame: those of the frames of this process."""
        whole = [mask.draw(2 * pairs, self.grid, rng) for mask in (SHORT_RANGE, LONG_RANGE)]
        return [Masks(*(torch.cat([group.mine(half) for half in index.chunk(2)]) for index in m)) for m in whole]

    def forward(self, images: Tensor, gap_s: Tensor, drawn: list[Masks], group: Group) -> Seen:
        latent = self.encoder.frames(images)
        with torch.no_grad():
            target = normalised(self.target.frames(images))
        predict = copied = torch.zeros((), device=latent.device)
        for mask in drawn:
            mask = Masks(*(index.to(latent.device) for index in mask))
            _, hidden = self.predictor(self.encoder(images[:, None], keep=mask.context), mask)
            wanted = _pick(target, mask.target)
            predict = predict + prediction_loss(hidden, wanted) / len(drawn)
            with torch.no_grad():
                seen = mask.context.gather(1, nearest(mask.target, mask.context, self.grid)[1])
                copied = copied + prediction_loss(_pick(target, seen), wanted) / len(drawn)
        notes = {
            "prediction_over_copy": (predict.detach() / copied).item(),
            "prediction": predict.item(),
            "momentum": self.momentum,
        }
        joints, logits = self.pose.read(latent)
        return Seen(joints, logits, predict / group.world, latent.detach().flatten(0, 1), notes)

    def stepped(self, step: int, steps: int) -> None:
        """Let the target follow."""
        self.momentum = momentum(step, steps - 1, *MOMENTUM)
        ema_update(self.target, self.encoder, self.momentum)


def _pick(latents: Tensor, index: Tensor) -> Tensor:
    """[B, K, D]: tokens `index` [B, K] of latents [B, N, D]."""
    return latents.gather(1, index[:, :, None].expand(-1, -1, latents.shape[-1]))


RECIPES: dict[str, type[Sight]] = {"end-to-end": EndToEnd, "masked": Masked, "pose": Sight, "random": Random}


def sight_of(net: ForecastNet, recipe: str) -> Sight:
    """What trains encoder and pose readout of `net` by `recipe`. Raises ValueError."""
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r} for the encoder; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe](net)
