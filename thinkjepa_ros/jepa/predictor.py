"""The guided predictor: latents of the frames seen so far in, pooled latents of the future out.

Layout for speed: context tokens attend to themselves only, once; query tokens (a learned mask token at every place of
a pooled grid of every future tubelet) attend to the context's keys and values and to each other. No mask, no N x N
matrix, one pass for the whole horizon. What is predicted is the change from the newest frame. The published layouts are
in `guided`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from . import rope
from .encoder import pool
from .guidance import Cross, Film, Guide, LayerMap, Mode, Payload, Ready, amount_of, layer_of_each_block
from .layers import EPS, Block, initialise


@dataclass(frozen=True)
class PredictorConfig:
    """Raises ValueError naming the field that makes no sense."""

    context: int = 8  #: frames of the dense window, one per grid step, the last one is now
    tubelets: int = 8  #: predicted future tubelets
    tubelet_steps: int = 4  #: grid steps per future tubelet
    pooled: int = 4  #: a predicted tubelet has pooled x pooled tokens
    width: int = 128
    depth: int = 3
    heads: int = 4
    guide_layers: int = 0  #: L of the thinker's pyramid; 0 builds a predictor without guidance
    guide_width: int = 0
    context_steps: int = 1  #: grid steps per context latent: the encoder's tubelet where it encodes clips
    mlp_ratio: float = 4.0
    guide_mode: Mode = "film"
    guide_map: LayerMap = "spread"

    def __post_init__(self) -> None:
        if self.context_steps < 1 or self.context % self.context_steps:
            raise ValueError(
                f"predictor context {self.context} is not a multiple of context_steps {self.context_steps}"
            )
        if self.guide_mode not in get_args(Mode):
            raise ValueError(f"predictor guide_mode is {self.guide_mode!r}, must be one of {', '.join(get_args(Mode))}")
        if isinstance(self.guide_map, list):  # JSON has no tuples
            object.__setattr__(self, "guide_map", tuple(self.guide_map))
        if self.guide_layers:
            layer_of_each_block(self.guide_map, self.depth, self.guide_layers)

    @property
    def latents(self) -> int:
        """Context latents, the newest included."""
        return self.context // self.context_steps


class Predictor(nn.Module):
    """Latents of the context -> future latents [B, tubelets, pooled * pooled, D]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: PredictorConfig, grid: int, latent_width: int):
        super().__init__()
        self.config, self.grid, self.latent_width = config, grid, latent_width
        self.embed = nn.Linear(latent_width, config.width)
        self.query = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        initialise(self.blocks)
        widths = (config.guide_width, config.guide_width)
        self.film: Film | None = None
        self.cross: Cross | None = None
        if config.guide_layers and config.guide_mode == "cross":
            self.cross = Cross(config.depth, config.width, widths, config.guide_map, config.heads)
        elif config.guide_layers:
            self.film = Film(config.depth, config.width, widths, config.guide_map, config.guide_mode)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.out = nn.Linear(config.width, latent_width)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.out.weight, std=0.02)  # at first nothing changes: copying is a good start
        nn.init.zeros_(self.out.bias)

        # time in grid steps relative to now; a tubelet sits at the middle of the steps it covers
        step, p = grid / config.pooled, config.pooled
        times = (torch.arange(config.latents) + 0.5) * config.context_steps + 0.5 - config.context
        past = rope.grid(times[:-1], p, p, step, step)
        now = rope.grid(times[-1:], grid, grid)
        middle = torch.arange(config.tubelets) * config.tubelet_steps + (config.tubelet_steps + 1) / 2
        head_dim = config.width // config.heads
        cos, sin = rope.table(torch.cat((past, now, rope.grid(middle, p, p, step, step))), head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        past: Tensor,
        now: Tensor,
        payload: Payload | Ready | None = None,
    ) -> Tensor:
        """past: pooled latents of the older tubelets [B, latents - 1, pooled^2, D]; now: full latent of the newest
        [B, n, D].

        payload: guidance per row; rows of weight 0 are unguided.
        """
        batch, config = now.shape[0], self.config
        if isinstance(payload, Payload):
            payload = self.ready(payload)
        signals = None if payload is None else payload.signals
        context = self.embed(torch.cat((past.flatten(1, 2), now), 1))
        asked = self.query.expand(batch, config.tubelets * config.pooled**2, -1)
        n = context.shape[1]
        x = torch.cat((context, asked), 1)
        for i, block in enumerate(self.blocks):
            if signals is not None and self.guide is not None:
                x = self.guide.inject(i, x, signals[i])
            # nobody reads the context after the last block but through its keys and values
            x, _ = block(x, (self.cos, self.sin), context=n, only_from=0 if i + 1 < config.depth else n)
        change = self.out(self.norm(x)).view(batch, config.tubelets, config.pooled**2, self.latent_width)
        return self.pool(now)[:, None] + change

    def ready(self, payload: Payload) -> Ready | None:
        """The payload prepared; None if there is nothing in it. Raises ValueError without a guide."""
        if payload.empty:
            return None
        if self.guide is None:
            raise ValueError("this predictor was built without guidance")
        return Ready(self.guide.prepare(payload), amount_of(payload))

    def take(self, other: Predictor) -> None:
        """Copy the weights of another predictor, but for its guide. Raises RuntimeError for one of another shape."""
        guide = ("film.", "cross.")
        theirs = {name: x for name, x in other.state_dict().items() if not name.startswith(guide)}
        mine = {name: x for name, x in self.state_dict().items() if name.startswith(guide)}
        self.load_state_dict({**theirs, **mine})

    @property
    def guide(self) -> Guide | None:
        return self.cross if self.film is None else self.film

    def pool(self, latents: Tensor) -> Tensor:
        """Full latents [..., n, D] to the pooled grid [..., pooled^2, D]."""
        return pool(latents, self.grid, self.config.pooled)
