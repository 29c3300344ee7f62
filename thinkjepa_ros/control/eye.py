"""What the policy looks at: latents of the encoder, and a small convolutional map that is finer than they are.

A token of the encoder covers a cube and more; to take a cube one has to know its place to a centimetre. Every feature
comes with the ray it lies on, so that a query that finds something by its looks also reads where that is: attention is
a soft argmax over the picture (spatial softmax, arXiv 1504.00702).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..jepa.layers import EPS
from ..values import Camera

#: Pixels per cell of the fine map.
STRIDE = 4
#: Of a point: numbers that say what was found there, how sharply it looks at first, and about how far rays spread.
_WHAT, _SHARP, _RAY = 4, 4.0, 0.3


class Seen(NamedTuple):
    """Features [B, n, features], and the ray of each: x / z and y / z in the optical frame, [n, 2]."""

    features: Tensor
    rays: Tensor


def rays(camera: Camera, cells: int) -> Tensor:
    """x / z and y / z of the middles of cells x cells squares of the picture, row by row, float32 [cells^2, 2]."""
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    x = (middles * camera.width - 0.5 - camera.cx) / camera.fx
    y = (middles * camera.height - 0.5 - camera.cy) / camera.fy
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns, rows), -1).reshape(-1, 2).float()


class Detail(nn.Module):
    """uint8 images [B, S, S, 3] -> features [B, (S / STRIDE)^2, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 5, stride=2, padding=2)
        self.second = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.third = nn.Conv2d(32, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        for layer in (self.first, self.second, self.third):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.permute(0, 3, 1, 2).to(self.first.weight.dtype) - 128) / 64
        x = F.relu(self.first(x.contiguous(memory_format=torch.channels_last)))
        x = self.third(F.relu(self.second(x)))
        normed: Tensor = self.norm(x.flatten(2).mT)
        return normed


class Look(nn.Module):
    """Queries [B, q, width] attend to what is seen; what they bring back includes the mean ray of what they looked at,
    head by head.
    """

    def __init__(self, width: int, heads: int, features: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_seen = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(features, eps=EPS)
        self.q, self.kv = nn.Linear(width, features), nn.Linear(features, 2 * features)
        self.out = nn.Linear(features + 2 * heads, width)

    def forward(self, x: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """The queries with what they found, and where the first head looks: logits [B, q, n]."""
        batch, many, _ = x.shape
        q = self.q(self.norm(x)).view(batch, many, self.heads, -1).transpose(1, 2)
        k, v = self.kv(self.norm_seen(seen.features)).view(batch, -1, 2, self.heads, q.shape[-1]).unbind(2)
        logits = (q * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        weight = logits.softmax(-1)
        found, where = weight @ v.transpose(1, 2), weight @ seen.rays.to(weight.dtype)
        both = torch.cat((found.transpose(1, 2).flatten(2), where.transpose(1, 2).flatten(2)), -1)
        return x + self.out(both), logits[:, 0]


class Points(nn.Module):
    """uint8 images [B, S, S, 3] -> where `count` learned things are in the picture, as one vector [B, width].

    Every point is a soft argmax over the fine map (spatial softmax, arXiv 1504.00702), and what was found there.
    """

    fine: Tensor

    def __init__(self, camera: Camera, count: int, width: int, channels: int = 32, hidden: int = 192):
        super().__init__()
        self.cells = camera.width // STRIDE
        self.detail = Detail(channels)
        #: Sees twice as far about: how high a gripper is shows in what is beside it.
        self.around = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.score, self.what = nn.Linear(channels, count), nn.Linear(channels, _WHAT)
        self.first, self.last = nn.Linear(count * (2 + _WHAT), hidden), nn.Linear(hidden, width)
        with torch.no_grad():
            self.score.weight.mul_(_SHARP)  # an even look over the whole picture finds nothing, and learns slowly
        self.register_buffer("fine", rays(camera, camera.width // STRIDE), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        map_ = self.detail(images)
        square = map_.mT.unflatten(2, (self.cells, self.cells))
        map_ = map_ + F.relu(self.around(square)).flatten(2).mT
        look = self.score(map_).float().softmax(1).mT
        where, what = look @ self.fine / _RAY, look.to(map_.dtype) @ self.what(map_)
        found: Tensor = self.last(F.gelu(self.first(torch.cat((where.to(what.dtype), what), -1).flatten(1))))
        return found
