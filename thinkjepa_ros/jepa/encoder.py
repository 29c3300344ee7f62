"""The encoder: a V-JEPA 2 vision transformer (arXiv 2506.09985) that sees one frame at a time.

A frame is its own tubelet, as in V-JEPA 2-AC: a latent depends on its frame alone, so nothing of the future can be in
it, and
a stream encodes every frame once. Motion is left to the predictor, which sees the latents of several frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import rope
from .layers import EPS, Block, initialise

#: ImageNet statistics, those of V-JEPA 2, in units of 8-bit pixels.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class EncoderConfig:
    image_size: int = 128
    patch_size: int = 16
    width: int = 128
    depth: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0

    @property
    def grid(self) -> int:
        """Tokens per image side."""
        return self.image_size // self.patch_size


class Encoder(nn.Module):
    """uint8 [B, H, W, 3] -> latents [B, n, width], tokens row-major."""

    cos: Tensor
    sin: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(3 * config.patch_size**2, config.width)
        nn.init.trunc_normal_(self.patch_embed.weight, std=0.02)
        nn.init.zeros_(self.patch_embed.bias)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        initialise(self.blocks)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        cos, sin = rope.table(rope.grid(torch.zeros(1), config.grid, config.grid), config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        batch, height, width, channels = images.shape
        size, patch, grid = self.config.image_size, self.config.patch_size, self.config.grid
        if (height, width, channels) != (size, size, 3):
            raise ValueError(f"images are {list(images.shape)}, the encoder was built for [B, {size}, {size}, 3]")
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        x = x.view(batch, grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4).reshape(batch, grid * grid, -1)
        x = self.patch_embed(x)
        for block in self.blocks:
            x, _ = block(x, (self.cos, self.sin))
        return self.norm(x)


def pool(latents: Tensor, grid: int, pooled: int) -> Tensor:
    """Mean-pool latents [..., grid * grid, D] to [..., pooled * pooled, D]: one token per square of neighbours."""
    *lead, n, width = latents.shape
    if n != grid * grid or grid % pooled:
        raise ValueError(f"cannot pool {n} tokens of a {grid}x{grid} grid to {pooled}x{pooled}")
    step = grid // pooled
    return (
        latents.reshape(*lead, pooled, step, pooled, step, width).mean((-4, -2)).reshape(*lead, pooled * pooled, width)
    )
