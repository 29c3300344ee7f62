"""Guidance injection by FiLM (ThinkJEPA, arXiv 2603.22281): each predictor block scales and shifts its stream by what
the thinker said.

Everything is per sample: the guidance of one row never touches another. A guidance of weight zero, a missing one and
a closed gate
all leave the stream bit-identical.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Payload(NamedTuple):
    """What the thinker said, per row: hidden states of its prompt tokens and of the tokens it generated.

    prompt [B, L, S, D], generated [B, L, S', D]: after each of L decoder layers; None where there are none.
    prompt_mask, generated_mask: bool [B, L, S] and [B, L, S'], True where a token counts; None if all do.
    weight [B]: 0 … 1, how much the guidance of a row counts; None for 1. A row of weight 0 is unguided.
    """

    prompt: Tensor | None
    generated: Tensor | None
    prompt_mask: Tensor | None = None
    generated_mask: Tensor | None = None
    weight: Tensor | None = None

    @staticmethod
    def pooled(pyramid: Tensor, present: Tensor, weight: Tensor) -> Payload:
        """From the mean states [B, L, 2, D] of both streams, which are there (bool [B, 2]), and the weight [B]."""
        there = present[:, :, None, None].expand(-1, -1, pyramid.shape[1], 1)
        return Payload(pyramid[:, :, :1], pyramid[:, :, 1:], there[:, 0], there[:, 1], weight)


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

    def forward(self, payload: Payload) -> Tensor:
        """Scales and shifts [blocks, B, 1, 2 * width] of a pooled payload.

        A stream that is not present counts as zeros, whatever its numbers.
        """
        prompt, generated, prompt_mask, generated_mask, weight = payload
        assert prompt is not None and generated is not None and weight is not None
        assert prompt_mask is not None and generated_mask is not None
        present = torch.cat((prompt_mask, generated_mask), 2)
        states = torch.where(present[..., None], torch.cat((prompt, generated), 2), 0)
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
