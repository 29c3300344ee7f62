"""Guidance injection by FiLM (ThinkJEPA, arXiv 2603.22281): each predictor block scales and shifts its stream by what
the thinker said.

Everything is per sample: the guidance of one row never touches another. A guidance of weight zero, a missing one and
a closed gate
all leave the stream bit-identical.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spread(block: int, blocks: int, layers: int) -> int:
    """Which of `layers` exported decoder layers guides `block`: first to first, last to last, evenly between."""
    return round(block * (layers - 1) / (blocks - 1)) if blocks > 1 else layers - 1


class Film(nn.Module):
    """Per-block scale and shift from a pooled pyramid.

    The two streams are projected without bias, so that pooling at the thinker equals pooling here:
    W mean(x) = mean(W x). Their summary is [prompt, generated, |difference|, product].
    """

    def __init__(self, blocks: int, width: int, layers: int, guide_width: int, hidden: int = 256):
        super().__init__()
        self.blocks, self.layers = blocks, layers
        self.project = nn.ModuleList(nn.Linear(guide_width, width, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(4 * width)
        self.fc1 = nn.Linear(4 * width, hidden)
        self.fc2 = nn.Linear(hidden, 2 * width)
        self.gate = nn.Parameter(torch.zeros(blocks))

    def forward(self, pyramid: Tensor, present: Tensor, weight: Tensor) -> Tensor:
        """Scales and shifts [blocks, B, 1, 2 * width] of pyramid [B, L, 2, D], present bool [B, 2], weight [B].

        A stream that is not present counts as zeros, whatever its numbers.
        """
        states = torch.where(present[:, None, :, None], pyramid, 0)
        chosen = states[:, [spread(i, self.blocks, self.layers) for i in range(self.blocks)]]  # [B, blocks, 2, D]
        prompt, generated = self.project[0](chosen[:, :, 0]), self.project[1](chosen[:, :, 1])
        signal = torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), -1)
        out = self.fc2(F.gelu(self.fc1(self.norm(signal))))
        return (out * self.gate.tanh()[:, None] * weight[:, None, None]).transpose(0, 1)[:, :, None]


def modulate(x: Tensor, scale_shift: Tensor | None) -> Tensor:
    """x (1 + scale) + shift."""
    if scale_shift is None:
        return x
    scale, shift = scale_shift.chunk(2, -1)
    return x * (1 + scale) + shift
