"""Transformer pieces shared by encoder, predictor and world model (pre-norm, exact GELU, LayerNorm eps 1e-6: the V-JEPA
2 block).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import Rope, rotate

EPS = 1e-6
#: Keys and values of tokens seen before, each [B, heads, n, head_dim], keys rotated.
Memory = tuple[Tensor, Tensor]
#: Between so many attention scores matrix products beat the fused kernel in bfloat16 on a processor.
_FEW, _MANY = 1 << 15, 1 << 19
#: Bytes of the hidden layer that a processor computes at once: about its cache. A sixth faster for 8192 tokens.
_PIECE = 8 << 20


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [B, heads, n, head_dim]. mask: bool, True where a query sees a key.

    On a processor in bfloat16 two matrix products and a softmax take about 0.75 of the time of the fused kernel, which
    does not use its bfloat16 instructions, unless there is very little to do or the scores leave the cache; in training
    always, for the fused kernel's way back takes six times as long as its way there.
    """
    scores = q.shape[:3].numel() * k.shape[2]
    if q.is_cpu and q.dtype == torch.bfloat16 and mask is None and (q.requires_grad or _FEW < scores < _MANY):
        return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_shared(q: Tensor, k: Tensor, v: Tensor, shared: Memory, mask: Tensor | None = None) -> Tensor:
    """Attention [B, heads, n, head_dim] over keys and values that all rows share [1, heads, m, head_dim] and own ones.

    mask: bool [n, own], of the own keys; all see what is shared. What is shared is read once for all rows and never
    copied: as `attend` over both, in about 0.6 of its time on a processor for 64 rows.
    """
    rows, heads, n, _ = q.shape
    many = shared[0].shape[2]
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    at_once = max(1, _MANY // (heads * n * (many + k.shape[2]))) if q.is_cpu else rows
    parts = []
    for one, own, value in zip(
        (q * q.shape[-1] ** -0.5).split(at_once), k.split(at_once), v.split(at_once), strict=True
    ):
        count = len(one)
        flat = one.transpose(0, 1).reshape(heads, count * n, -1)
        far = (flat @ shared[0][0].mT).view(heads, count, n, many).transpose(0, 1)
        near = one @ own.mT
        weight = torch.cat((far, near if bias is None else near + bias), -1).softmax(-1)
        far, near = weight.split((many, k.shape[2]), -1)
        flat = far.transpose(0, 1).reshape(heads, count * n, many) @ shared[1][0]
        parts.append(near @ value + flat.view(heads, count, n, -1).transpose(0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def block_causal(q: Tensor, k: Tensor, v: Tensor, size: int, window: int | None = None) -> Tensor:
    """Attention [B, heads, n, head_dim] in which a query sees the keys of its own block and of earlier ones.

    size: tokens per block (a tubelet, or a world model's time step). The queries are the last n of the keys; without
    a window, all see the keys before them, which need not be whole blocks.
    window: how many blocks a query sees, its own included; None for all.
    One call per block on a slice of the keys: no mask, and nothing computed that a mask would throw away.
    """
    if q.shape[2] % size or (window is not None and k.shape[2] % size):
        raise ValueError(f"{q.shape[2]} queries and {k.shape[2]} keys are not whole blocks of {size} tokens")
    before = k.shape[2] - q.shape[2]
    parts = []
    for start in range(0, q.shape[2], size):
        end = before + start + size
        first = 0 if window is None else max(0, end - window * size)
        parts.append(attend(q[:, :, start : start + size], k[:, :, first:end], v[:, :, first:end]))
    return _side_by_side(parts) if len(parts) > 1 else parts[0]


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Put together [B, heads, n, head_dim] token by token, the order in which the output projection reads."""
    return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)


class Block(nn.Module):
    """x + proj(attention(norm x)), then x + mlp(norm x). Keys and values of earlier tokens may be passed in."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        memory: Memory | None = None,
        causal: int | None = None,
        window: int | None = None,
        only_from: int = 0,
        mask: Tensor | None = None,
        context: int = 0,
    ) -> tuple[Tensor, Memory]:
        """x [B, n, width] -> [B, n - only_from, width], and this call's (keys, values) of all n tokens.

        rope: table of the n tokens, in the type of x. memory: keys and values that x may look at besides itself; with
        batch 1 for more rows of x they are shared by all, and `mask` is of the own tokens (see `attend_shared`).
        causal: tokens per block of block-causal attention, see `block_causal`; None lets every token see all others.
        only_from: the tokens before it give keys and values only (a last block need not finish what nobody reads).
        mask: bool [.., n, n], True where a query sees a key; only where causal and memory cannot say it.
        context: the first so many tokens see each other only, the others see all: two streams in one sequence.
        """
        batch, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if qkv.is_cpu:  # one copy head by head: rotation and attention run over it faster than they would over rows
            qkv = qkv.contiguous()
        q, k = rotate(qkv[:2], rope)
        v = qkv[2]
        own = (k, v)
        shared = memory is not None and memory[0].shape[0] == 1 < batch
        if memory is not None and not shared:
            k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
        if only_from:
            q, x = q[:, :, only_from:], x[:, only_from:]
            mask = None if mask is None else mask[..., only_from:, :]
        alone = max(0, context - only_from)  # queries of the context
        if shared and memory is not None:
            y = attend_shared(q, k, v, memory, mask)
        elif causal is not None:
            y = block_causal(q, k, v, causal, window)
        elif alone:
            y = _side_by_side(
                [attend(q[:, :, :alone], k[:, :, :context], v[:, :, :context]), attend(q[:, :, alone:], k, v)]
            )
        else:
            y = attend(q, k, v, mask)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, n - only_from, width))
        return self._mlp(x), own

    def _mlp(self, x: Tensor) -> Tensor:
        rows = _PIECE // (x.shape[0] * self.fc1.out_features * x.element_size()) if x.is_cpu else x.shape[1]
        parts = [p + self.fc2(F.gelu(self.fc1(self.norm2(p)))) for p in x.split(max(64, rows), 1)]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def initialise(blocks: nn.ModuleList) -> None:
    """V-JEPA 2 init: truncated normal 0.02, output layers of block i (from 1) divided by sqrt(2 i)."""
    for depth, block in enumerate(blocks, 1):
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
                if name in ("proj", "fc2"):
                    layer.weight.data.div_(math.sqrt(2 * depth))
