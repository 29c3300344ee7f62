"""Attentive readouts: learned queries that look for their joint among the tokens of a tubelet, mixed over time.

The attentive probe of V-JEPA 2 (arXiv 2506.09985, section 4: cross-attention from learned queries, then self-attention)
with what localising needs: one query per joint, and tokens that say where they are. Latents know their places relative
to each other only, and a plain average of them has forgotten even that.

Both modules are called like their counterparts in `readout` and start from "nothing moves": their last layer is zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import rope
from .layers import EPS, Block, initialise
from .readout import MEDIAN_DEPTH, bounded_log_sigma, track

#: Octaves of the place features: the finest tells neighbours of a 16 x 16 grid apart.
_OCTAVES = 4


def place_features(rows: int, columns: int) -> Tensor:
    """Where the tokens of a row-major grid lie: [rows * columns, 2 + 4 * octaves].

    Row and column in -1 … 1 (cell centres), and sine and cosine of them at octaves of half a turn per image.
    """
    places = rope.grid(torch.zeros(1), rows, columns)[:, 1:].float() + 0.5
    places = 2 * places / torch.tensor([rows, columns]) - 1
    angle = math.pi / 2 * (2.0 ** torch.arange(_OCTAVES)) * places[..., None]
    return torch.cat((places, angle.sin().flatten(1), angle.cos().flatten(1)), 1)


class AttentivePool(nn.Module):
    """Tokens [N, rows * columns, D] -> one vector per learned query, [N, queries, width]."""

    places: Tensor

    def __init__(self, queries: int, rows: int, columns: int, latent_width: int, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"readout width {width} is not a multiple of heads {heads}")
        self.heads = heads
        places = place_features(rows, columns)
        self.register_buffer("places", places, persistent=False)
        self.norm = nn.LayerNorm(latent_width, eps=EPS)
        self.embed = nn.Linear(latent_width, width)
        self.place = nn.Linear(places.shape[1], width, bias=False)
        self.query = nn.Parameter(torch.randn(queries, width))
        self.kv = nn.Linear(width, 2 * width)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self._attention(tokens)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        # attention that is still even averages the tokens' differences away; the norm brings them back
        x = self.query + self.proj(self.norm1(y))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def logits(self, tokens: Tensor) -> Tensor:
        """How much each query wants each token, mean over the heads: [N, rows * columns, queries]."""
        q, k, _ = self._attention(tokens)
        return (k @ q.mT).mean(1) / math.sqrt(q.shape[-1])

    def _attention(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if tokens.shape[1] != len(self.places):
            raise ValueError(f"{tokens.shape[1]} tokens, this readout was built for {len(self.places)}")
        h = F.gelu(self.embed(self.norm(tokens)) + self.place(self.places))
        k, v = self.kv(h).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.query.unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(len(tokens), -1, -1, -1)
        return q, k, v


class AttentivePose(nn.Module):
    """Latent [B, grid * grid, D] -> joints [B, J, 3] in metres, optical frame of the canonical camera.

    A joint is read as a ray (x / z, y / z) and a log-depth. Untrained, all joints lie on the optical axis.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, joints: int, grid: int, latent_width: int, heads: int = 4, width: int = 256):
        super().__init__()
        self.pool = AttentivePool(joints, grid, grid, latent_width, width, heads)
        self.blocks = nn.ModuleList([Block(width, heads, 2.0)])
        initialise(self.blocks)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out = nn.Linear(width, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        _register(self, torch.zeros(joints, 3), width // heads)  # joints have no order: their queries tell them apart

    def forward(self, latent: Tensor) -> Tensor:
        x = self.pool(latent)
        for block in self.blocks:
            x, _ = block(x, (self.cos.to(x.dtype), self.sin.to(x.dtype)))
        ray, depth = self.out(self.norm(x)).float().split((2, 1), -1)
        return MEDIAN_DEPTH * depth.clamp(-2, 2).exp() * torch.cat((ray, torch.ones_like(depth)), -1)

    def read(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Joints [B, J, 3], and the attention logits over the token grid [B, n, J] that training also supervises."""
        return self(latent), self.pool.logits(latent).float()


class AttentiveMotion(nn.Module):
    """Predicted latents and recent poses -> displacements [B, T, J, 3] in metres from the last pose, and log sigma.

    T = tubelets * tubelet_steps. Absolute places matter (latents speak of them), so the pose now is an input beside the
    motion up to now; the displacement counts from exactly the pose that was given, observed or estimated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        joints: int,
        context: int,
        tubelets: int,
        tubelet_steps: int,
        tokens: int,
        latent_width: int,
        heads: int = 4,
        width: int = 256,
        depth: int = 2,
    ):
        """tokens: of one tubelet, a square grid. Raises ValueError if they are not one."""
        super().__init__()
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"{tokens} tokens per tubelet are no square grid")
        self.joints, self.steps = joints, tubelet_steps
        self.pool = AttentivePool(joints, side, side, latent_width, width // 4, heads)
        self.gather = nn.Linear(joints * (width // 4), width)
        self.pose = nn.Linear(context * joints * 3, width)
        self.time = nn.Parameter(torch.randn(tubelets, width))  # RoPE says how far apart tubelets are, not which
        self.blocks = nn.ModuleList(Block(width, heads, 2.0) for _ in range(depth))
        initialise(self.blocks)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out = nn.Linear(width, tubelet_steps * joints * 4)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        _register(self, F.pad(torch.arange(tubelets)[:, None], (0, 2)), width // heads)

    def forward(self, future: Tensor, now: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """future [B, tubelets, tokens, D]; now, the newest latent, is not looked at; poses [B, context, J, 3] in
        metres, the last one is now.
        """
        pooled = self.pool(future.flatten(0, 1)).flatten(1).unflatten(0, future.shape[:2])
        x = self.gather(pooled) + self.pose(track(poses))[:, None] + self.time
        for block in self.blocks:
            x, _ = block(x, (self.cos.to(x.dtype), self.sin.to(x.dtype)))
        out = self.out(self.norm(x)).float().unflatten(-1, (self.steps, self.joints, 4)).flatten(1, 2)
        return out[..., :3], bounded_log_sigma(out[..., 3])


def _register(module: nn.Module, positions: Tensor, head_dim: int) -> None:
    cos, sin = rope.table(positions, head_dim)
    module.register_buffer("cos", cos, persistent=False)
    module.register_buffer("sin", sin, persistent=False)
