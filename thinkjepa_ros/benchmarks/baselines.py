"""The guided predictor in two other ways, to compare with: the obvious one and the published one.

Both take the weights of a published ThinkJEPA checkpoint by its own names (`load_state_dict` of one is the checkpoint),
in FiLM mode and without dropout, and give the numbers that `jepa.guided` gives for the imported weights.

- `Plain`: what one writes down first. All tokens in one sequence, one fused projection, one call of
  `scaled_dot_product_attention`, with a boolean mask where the layout is causal (made once, kept). Rotary tables are
  computed once per call and used in every block.
- `Published`: what the published code does, written from its description. Queries are gathered from a full grid, rows
  are sorted and put back one by one in Python, the boolean mask is made in every call, and every block computes the
  rotary angles anew for every head, in the type of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..jepa.layers import EPS


@dataclass(frozen=True)
class Layout:
    """How the tokens of one of the two published generations lie: frames of equally many tokens, time-major.

    "v1": 128 tokens per frame, position (0, frame, token), full attention, guidance by layer index. Its code takes the
    128 for the side of a square grid, so that more frames than tokens per frame would go on in the first coordinate.
    "v2": 256 tokens per frame, position (frame, token, 0), a token sees its own frame and earlier ones, guidance layers
    spread over the blocks.
    """

    name: str
    context: int  #: frames
    targets: int  #: frames
    tokens: int  #: per frame

    @property
    def causal(self) -> bool:
        return self.name == "v2"

    def positions(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time, row and column of token indices."""
        frame, token = index // self.tokens, index % self.tokens
        if self.causal:
            return frame, token, torch.zeros_like(index)
        return frame // self.tokens, frame % self.tokens, token

    def mask(self, index: Tensor) -> Tensor | None:
        """bool [..., N, N] of token indices [..., N], true where a row sees a column; None where all see all."""
        if not self.causal:
            return None
        frame = index // self.tokens
        return frame[..., :, None] >= frame[..., None, :]

    def guide(self, block: int, blocks: int, layers: int) -> int | None:
        """Which pyramid layer guides a block; None where v1 has none left (its summary is then zeros)."""
        if self.causal:
            return round(block * (layers - 1) / max(1, blocks - 1))
        return block if block < layers else None


@dataclass(frozen=True)
class Sizes:
    """Of the published predictor."""

    latent: int = 1024
    width: int = 384
    depth: int = 12
    heads: int = 6
    guide_layers: int = 8
    guide_width: int = 2048
    guide_hidden: int = 512


class _Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = _Attention(width), _Mlp(width)


class _Weights(nn.Module):
    """The tensors of a published checkpoint, random, with open guidance gates."""

    def __init__(self, layout: Layout, sizes: Sizes):
        super().__init__()
        self.layout, self.sizes = layout, sizes
        width = sizes.width
        self.context_adapter = nn.Linear(sizes.latent, width)
        self.query_templates = nn.ParameterList(torch.randn(1, 1, width) for _ in range(2))
        self.rollout_layers = nn.ModuleList(_Block(width) for _ in range(sizes.depth))
        self.rollout_norm = nn.LayerNorm(width, eps=EPS)
        self.output_adapter = nn.Linear(width, sizes.latent)
        self.guidance_old_adapter = nn.Linear(sizes.guide_width, width, bias=False)
        self.guidance_new_adapter = nn.Linear(sizes.guide_width, width, bias=False)
        self.guidance_fusion_mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(4 * width),
                nn.Linear(4 * width, sizes.guide_hidden),
                nn.GELU(),
                nn.Linear(sizes.guide_hidden, 2 * width),
            )
            for _ in range(sizes.depth)
        )
        self.guidance_layer_scale = nn.Parameter(torch.linspace(0.2, 0.8, sizes.depth).view(-1, 1, 1))

    def modulation(self, index: int, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift [B, 1, width] of block `index` from old and new [B, L, S, guide_width], all of them valid."""
        layer = self.layout.guide(index, self.sizes.depth, old.shape[1])
        if layer is None:
            o = n = old.new_zeros(len(old), self.sizes.width)
        else:
            o = self.guidance_old_adapter(old[:, layer]).mean(1)
            n = self.guidance_new_adapter(new[:, layer]).mean(1)
        signal = torch.cat((o, n, (o - n).abs(), o * n), -1)
        gated = self.guidance_fusion_mlps[index](signal) * self.guidance_layer_scale[index].tanh()
        scale, shift = gated[:, None].chunk(2, -1)
        return scale, shift

    def heads(self, block: _Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B, heads, N, head_dim] of x [B, N, width]."""
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, self.sizes.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


def _finish(block: _Block, x: Tensor, seen: Tensor) -> Tensor:
    """The rest of a block after its attention gave `seen` [B, heads, N, head_dim]."""
    x = x + block.attn.proj(seen.transpose(1, 2).flatten(2))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def _turned(x: Tensor) -> Tensor:
    """The quarter turn of neighbouring pairs: (a, b) -> (-b, a)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((-b, a), -1).flatten(-2)


def _angles(position: Tensor, dims: int, dtype: torch.dtype) -> Tensor:
    """Tiled angles [..., N, dims] of one axis."""
    frequency = 10000.0 ** -(torch.arange(dims // 2, device=position.device, dtype=dtype) / (dims // 2))
    return (position[..., None].to(dtype) * frequency).repeat(*[1] * position.dim(), 2)


class Plain(_Weights):
    """Latents of the context [B, n, latent], guidance twice [B, L, S, guide_width] -> target latents [B, m, latent]."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, layout: Layout, sizes: Sizes, masked: bool | None = None):
        """masked: attend with a boolean mask, all of it true where the layout is not causal; default: where it is."""
        super().__init__(layout, sizes)
        index = torch.arange((layout.context + layout.targets) * layout.tokens)
        mask = layout.mask(index)
        if mask is None and masked:
            mask = torch.ones(len(index), len(index), dtype=torch.bool)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, context: Tensor, old: Tensor, new: Tensor) -> Tensor:
        targets = self.layout.targets * self.layout.tokens
        queries = self.query_templates[1].expand(len(context), targets, -1)
        x = torch.cat((self.context_adapter(context), queries), 1)
        head_dim = self.sizes.width // self.sizes.heads
        dims = 2 * (head_dim // 6)
        axes = [_angles(p, dims, torch.float32) for p in self.layout.positions(self.index)]
        angle = F.pad(torch.cat(axes, -1), (0, head_dim - 3 * dims))
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for index, block in enumerate(self.rollout_layers):
            assert isinstance(block, _Block)
            scale, shift = self.modulation(index, old, new)
            x = x * (1 + scale) + shift
            q, k, v = self.heads(block, x)
            q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
            x = _finish(block, x, F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask))
        return self.output_adapter(self.rollout_norm(x[:, -targets:]))


class Published(_Weights):
    """Latents of the context [B, n, latent], token indices of context [B, n] and targets [B, m], guidance twice
    [B, L, S, guide_width] -> target latents [B, m, latent].
    """

    def forward(self, context: Tensor, at: Tensor, wanted: Tensor, old: Tensor, new: Tensor) -> Tensor:
        batch, seen = at.shape
        everywhere = self.query_templates[1].repeat(
            batch, (self.layout.context + self.layout.targets) * self.layout.tokens, 1
        )
        queries = everywhere.gather(1, wanted[:, :, None].repeat(1, 1, everywhere.shape[2]))
        x = torch.cat((self.context_adapter(context), queries), 1)
        index = torch.cat((at, wanted), 1)
        order = index.argsort(1)
        index = torch.stack([row[by] for row, by in zip(index, order, strict=True)])
        x = torch.stack([row[by] for row, by in zip(x, order, strict=True)])
        mask = self.layout.mask(index[:, None])
        guidance = [self.modulation(i, old, new) for i in range(len(self.rollout_layers))]
        for block, (scale, shift) in zip(self.rollout_layers, guidance, strict=True):
            assert isinstance(block, _Block)
            x = x * (1 + scale) + shift
            q, k, v = self.heads(block, x)
            q, k = self._rotate(q, index), self._rotate(k, index)
            x = _finish(block, x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        x = self.rollout_norm(x)
        back = order.argsort(1)
        x = torch.stack([row[by] for row, by in zip(x, back, strict=True)])
        return self.output_adapter(x[:, seen:])

    def _rotate(self, x: Tensor, index: Tensor) -> Tensor:
        """x [B, heads, N, head_dim] by the positions of token indices [B, N], axis by axis."""
        dims = 2 * (x.shape[-1] // 6)
        per_head = index[:, None].repeat(1, x.shape[1], 1)
        parts = []
        for axis, position in enumerate(self.layout.positions(per_head)):
            part = x[..., axis * dims : (axis + 1) * dims]
            angle = _angles(position, dims, x.dtype)
            parts.append(part * angle.cos() + _turned(part) * angle.sin())
        return torch.cat((*parts, x[..., 3 * dims :]), -1)
