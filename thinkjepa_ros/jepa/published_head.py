"""The trajectory head of ThinkJEPA (arXiv 2603.22281), for imported weights: latents in, joints out, frame by frame.

It reads absolute joints in metres in the camera frame, one frame at a time: what is called its temporal MLP mixes
nothing over time. Our own readouts are in `readout` and `attentive`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KIND = "trajectory_head"


@dataclass(frozen=True)
class HeadConfig:
    """Raises ValueError naming the field that makes no sense."""

    width: int = 1024  #: of the latents
    hidden: int = 1024
    joints: int = 52
    heads: int = 8  #: of the attention that pools the tokens of a frame; 0: they are averaged
    downsample: bool = False  #: pairs of steps are averaged ("joint prediction": past and future go in, T / 2 come out)

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("hidden", 1), ("joints", 1), ("heads", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"head {name} is {value!r}, must be a whole number of at least {least}")
        if not isinstance(self.downsample, bool):
            raise ValueError(f"head downsample is {self.downsample!r}, must be true or false")
        if self.heads and self.width % self.heads:
            raise ValueError(f"head width {self.width} is not a multiple of its {self.heads} heads")


class LearnedPool(nn.Module):
    """Attention from one learned query: tokens [..., n, D] -> [..., D].

    `nn.MultiheadAttention` without its waste. The query is the same for every frame, so it is put through the key
    weights once and scores the tokens directly; the value weights are applied to the one weighted mean per head. A
    frame then costs 2 heads n D products instead of 2 n D^2. The key bias adds the same to every score, so that softmax
    drops it; it is kept as a weight and never computed with.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1] // self.heads
        query = self.query(self.token).view(self.heads, 1, size) * size**-0.5
        scores = x @ (query @ self.key.weight.view(self.heads, size, -1))[:, 0].T  # [..., n, heads]
        mean = scores.softmax(-2, torch.float32).to(x.dtype).mT @ x  # [..., heads, D]
        value = torch.einsum("...hd,hsd->...hs", mean, self.value.weight.view(self.heads, size, -1)).flatten(-2)
        return self.proj(value + self.value.bias)


class TrajectoryHead(nn.Module):
    """Latents [B, T, n, D] -> joints [B, T, J, 3] in metres, camera frame; T / 2 steps with `downsample`.

    Trained without `downsample`, step t belongs to latent t. With it the published training pairs steps wrongly: the
    first half of the outputs sees only past frames (thinkjepa v1 and v2 alike).
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self.pool = LearnedPool(config.width, config.heads) if config.heads else None
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.embed = nn.Linear(config.width, config.hidden)
        self.fc1 = nn.Linear(config.hidden, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.norm2 = nn.LayerNorm(config.hidden, eps=1e-5)
        self.out = nn.Linear(config.hidden, config.joints * 3)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.mean(2) if self.pool is None else self.pool(latents)
        x = F.gelu(self.embed(self.norm1(x)))
        x = x + F.gelu(self.fc2(F.gelu(self.fc1(x))))
        if self.config.downsample:
            x = F.avg_pool1d(x.mT, 2).mT
        return self.out(self.norm2(x)).unflatten(-1, (self.config.joints, 3))
