"""The guided predictor: latents of the frames seen so far in, pooled latents of the future out.

Layout for speed: context tokens attend to themselves only, once; query tokens (a learned mask token at every place of
a pooled grid
of every future tubelet) attend to the context's keys and values and to each other. No mask, no N x N matrix, one pass
for the whole horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import rope
from .encoder import pool
from .guidance import Film, Payload, modulate
from .layers import EPS, Block, initialise


@dataclass(frozen=True)
class PredictorConfig:
    context: int = 8  #: frames of the dense window, one per grid step, the last one is now
    tubelets: int = 8  #: predicted future tubelets
    tubelet_steps: int = 4  #: grid steps per future tubelet
    pooled: int = 4  #: a predicted tubelet has pooled x pooled tokens
    width: int = 128
    depth: int = 3
    heads: int = 4
    guide_layers: int = 0  #: L of the thinker's pyramid; 0 builds a predictor without guidance
    guide_width: int = 0


class Predictor(nn.Module):
    """Latents [B, context, n, D] -> future latents [B, tubelets, pooled * pooled, D]."""

    context_cos: Tensor
    context_sin: Tensor
    query_cos: Tensor
    query_sin: Tensor

    def __init__(self, config: PredictorConfig, grid: int, latent_width: int):
        super().__init__()
        self.config, self.grid, self.latent_width = config, grid, latent_width
        self.embed = nn.Linear(latent_width, config.width)
        self.query = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        initialise(self.blocks)
        self.film = None
        if config.guide_layers:
            self.film = Film(config.depth, config.width, config.guide_layers, config.guide_width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.out = nn.Linear(config.width, latent_width)
        nn.init.trunc_normal_(self.query, std=0.02)

        # time in grid steps relative to now; a tubelet sits at the middle of the steps it covers
        step, p = grid / config.pooled, config.pooled
        past = rope.grid(torch.arange(1 - config.context, 0), p, p, step, step)
        now = rope.grid(torch.zeros(1), grid, grid)
        middle = torch.arange(config.tubelets) * config.tubelet_steps + (config.tubelet_steps + 1) / 2
        head_dim = config.width // config.heads
        for name, positions in (("context", torch.cat((past, now))), ("query", rope.grid(middle, p, p, step, step))):
            for part, values in zip(("cos", "sin"), rope.table(positions, head_dim), strict=True):
                self.register_buffer(f"{name}_{part}", values, persistent=False)

    def forward(
        self,
        past: Tensor,
        now: Tensor,
        payload: Payload | None = None,
    ) -> Tensor:
        """past: pooled latents of the older frames [B, context - 1, pooled^2, D]; now: full latent of the newest
        frame [B, n, D].

        payload: guidance per row; rows of weight 0 are unguided.
        """
        batch, config = now.shape[0], self.config
        modulation: Tensor | list[None] = [None] * config.depth
        if payload is not None:
            if self.film is None:
                raise ValueError("this predictor was built without guidance")
            modulation = self.film(payload)
        x = self.embed(torch.cat((past.flatten(1, 2), now), 1))
        q = self.query.expand(batch, config.tubelets * config.pooled**2, -1)
        for block, scale_shift in zip(self.blocks, modulation, strict=True):
            x, memory = block(modulate(x, scale_shift), (self.context_cos, self.context_sin))
            q, _ = block(modulate(q, scale_shift), (self.query_cos, self.query_sin), memory)
        return self.out(self.norm(q)).view(batch, config.tubelets, config.pooled**2, self.latent_width)

    def pool(self, latents: Tensor) -> Tensor:
        """Full latents [..., n, D] to the pooled grid [..., pooled^2, D]."""
        return pool(latents, self.grid, self.config.pooled)
