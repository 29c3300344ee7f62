"""Transformer pieces shared by the encoder and the predictor (pre-norm, exact GELU, LayerNorm eps 1e-6: the V-JEPA 2
block).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import rotate

Rope = tuple[Tensor, Tensor]
EPS = 1e-6


class Block(nn.Module):
    """x + proj(attention(norm x)), then x + mlp(norm x). Keys and values of earlier tokens may be passed in."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(
        self, x: Tensor, rope: Rope, memory: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, n, width] -> the same shape, and this call's (keys, values) [B, heads, n, head_dim].

        memory: (keys, values) of tokens that x may look at besides itself.
        """
        batch, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], *rope)
        v = qkv[2]
        own = (k, v)
        if memory is not None:
            k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, n, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)))), own


def initialise(blocks: nn.ModuleList) -> None:
    """V-JEPA 2 init: truncated normal 0.02, output layers of block i (from 1) divided by sqrt(2 i)."""
    for depth, block in enumerate(blocks, 1):
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
                if name in ("proj", "fc2"):
                    layer.weight.data.div_(math.sqrt(2 * depth))
