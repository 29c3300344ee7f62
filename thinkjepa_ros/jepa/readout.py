"""Readouts: where the joints are (from one frame's latent) and how they will move (from the predicted latents).

Plain pooling cannot localise, so the present is read by soft-argmax: each joint attends over the token grid, every
token votes for an image place near itself and for a depth, and the vote is lifted to metres with the canonical camera.
A small correction across joints follows, which places the joints that are hidden. The future is read in the same way:
what the predictor expects asks the newest frame for places, and joints move towards or away from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..values import Camera
from .layers import EPS

#: Metres in front of the camera where joints are looked for first: a table at arm's length.
MEDIAN_DEPTH = 0.6


def track(poses: Tensor) -> Tensor:
    """Poses [B, context, J, 3], the last one now, as [B, context * J * 3]: earlier ones relative to now, then now."""
    now = poses[:, -1:]
    return torch.cat((4 * (poses[:, :-1] - now), now), 1).flatten(1)  # motion is small beside position


def bounded_log_sigma(raw: Tensor) -> Tensor:
    """log sigma around 5 cm, between 0.05 mm and 37 cm: one surprising sample must not blow up the likelihood."""
    return raw.clamp(-7, 2) - 3.0


@dataclass(frozen=True)
class SigmaScale:
    """What the sigma of every step is multiplied with, as `evaluation.calibration` fits it on held-out episodes.

    Two curves, because the readout cannot know which pose it was given: the error of a joint that was observed now
    grows from nothing, that of a joint only seen starts with the error of seeing it.
    """

    image_only: tuple[float, ...]
    anchored: tuple[float, ...]

    @staticmethod
    def from_dict(values: dict[str, Any], steps: int) -> SigmaScale:
        """Raises ValueError unless there are two curves of `steps` positive numbers."""

        def usable(curve: Any) -> bool:
            return (
                isinstance(curve, (list, tuple))
                and len(curve) == steps
                and all(type(x) in (int, float) and 1e-3 <= x <= 1e3 for x in curve)
            )

        fits = isinstance(values, dict) and values.keys() == {"image_only", "anchored"}
        if not (fits and all(usable(curve) for curve in values.values())):
            raise ValueError(f"sigma_scale must have image_only and anchored, {steps} numbers in 0.001 … 1000 each")
        return SigmaScale(**{name: tuple(float(x) for x in curve) for name, curve in values.items()})


class Lift(nn.Module):
    """From votes of the tokens of a grid to metres in the optical frame of the canonical camera."""

    cells: Tensor
    lens: Tensor

    def __init__(self, grid: int, camera: Camera):
        super().__init__()
        row, column = torch.meshgrid(torch.arange(grid) + 0.5, torch.arange(grid) + 0.5, indexing="ij")
        self.register_buffer("cells", torch.stack((column, row), -1).reshape(-1, 2), persistent=False)
        patch = camera.width / grid
        # tokens -> normalised image plane: (cell * patch - 0.5 - c) / f, pixel centres at whole numbers
        lens = torch.tensor(
            [[patch / camera.fx, patch / camera.fy], [-(0.5 + camera.cx) / camera.fx, -(0.5 + camera.cy) / camera.fy]]
        )
        self.register_buffer("lens", lens, persistent=False)

    def forward(self, cell: Tensor, log_depth: Tensor) -> Tensor:
        """cell [..., 2], column and row on the grid; log_depth [..., 1], relative to MEDIAN_DEPTH. Returns [..., 3]."""
        depth = MEDIAN_DEPTH * log_depth.clamp(-2, 2).exp()
        return torch.cat((cell * self.lens[0] + self.lens[1], torch.ones_like(depth)), -1) * depth


class PoseReadout(nn.Module):
    """Latent [B, n, D] -> joints [B, J, 3] in metres, optical frame of the canonical camera."""

    def __init__(self, joints: int, grid: int, latent_width: int, camera: Camera, hidden: int = 256, feature: int = 16):
        super().__init__()
        self.joints = joints
        self.norm = nn.LayerNorm(latent_width, eps=EPS)
        self.fc = nn.Linear(latent_width, hidden)
        # tokens know their places relative to each other only (RoPE); a joint's usual place and depth are absolute
        self.position = nn.Parameter(torch.zeros(grid * grid, hidden))
        self.place = nn.Linear(hidden, joints * 4)  # attention logit, column vote, row vote, log-depth vote
        self.value = nn.Linear(hidden, feature)
        self.correct1 = nn.Linear(joints * (feature + 3), hidden)
        self.correct2 = nn.Linear(hidden, joints * 3)
        nn.init.zeros_(self.correct2.weight)
        nn.init.zeros_(self.correct2.bias)
        nn.init.trunc_normal_(self.position, std=0.5)
        self.lift = Lift(grid, camera)

    def forward(self, latent: Tensor) -> Tensor:
        return self.read(latent)[0]

    def read(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Joints [B, J, 3], and the attention logits over the token grid [B, n, J] that training also supervises."""
        h = F.gelu(self.fc(self.norm(latent)) + self.position)
        vote = self.place(h).float().unflatten(-1, (self.joints, 4))  # [B, n, J, 4]
        attention = vote[..., :1].softmax(1)
        cell = (attention * (self.lift.cells[:, None] + vote[..., 1:3])).sum(1)  # [B, J, 2]
        seen = self.lift(cell, (attention * vote[..., 3:]).sum(1))
        feature = torch.einsum("bnj,bnf->bjf", attention[..., 0], self.value(h).float())
        joint = torch.cat((feature, seen), -1).flatten(1)
        correction = self.correct2(F.gelu(self.correct1(joint))).float().unflatten(-1, (self.joints, 3))
        return seen + correction, vote[..., 0]


class Pointers(nn.Module):
    """Places in the newest frame that queries [B, T, C] ask for: K of them each, [B, T, K, 3] in metres, with features.

    A query attends over the tokens K times; as in `PoseReadout` every token votes for a place near itself.
    """

    def __init__(self, grid: int, latent_width: int, camera: Camera, asking: int, count: int = 4, head: int = 32):
        super().__init__()
        hidden = count * head
        self.count, self.scale = count, head**-0.5
        self.norm = nn.LayerNorm(latent_width, eps=EPS)
        self.fc = nn.Linear(latent_width, hidden)
        self.position = nn.Parameter(torch.zeros(grid * grid, hidden))  # absolute, see PoseReadout
        self.ask = nn.Linear(asking, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.vote = nn.Linear(hidden, count * 3)
        self.value = nn.Linear(hidden, count * 8)
        self.lift = Lift(grid, camera)
        nn.init.trunc_normal_(self.position, std=0.5)

    def forward(self, x: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, asking], now [B, n, D] -> places [B, T, K, 3], features [B, T, K, 8]."""
        token = F.gelu(self.fc(self.norm(now)) + self.position)
        key, vote, value = (f(token).unflatten(-1, (self.count, -1)) for f in (self.key, self.vote, self.value))
        query = self.ask(x).unflatten(-1, (self.count, -1))
        attention = (torch.einsum("btkd,bnkd->btkn", query, key) * self.scale).softmax(-1)
        cell = torch.einsum("btkn,bnkc->btkc", attention, self.lift.cells[:, None] + vote[..., :2])
        place = self.lift(cell, torch.einsum("btkn,bnkc->btkc", attention, vote[..., 2:]))
        return place, torch.einsum("btkn,bnkf->btkf", attention, value)


def _convolved(x: Tensor, conv: nn.Module) -> Tensor:
    """conv (kernel 3, padding 1) over axis 1 of x [B, T, C], as one product: over a handful of steps that is faster."""
    assert isinstance(conv, nn.Conv1d)
    return F.linear(F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).flatten(2), conv.weight.flatten(1), conv.bias)


class MotionReadout(nn.Module):
    """Predicted latents, the newest latent and recent poses -> displacements [B, T, J, 3], and log sigma [B, T, J].

    A joint moves by a share of the way to each of a few places in the newest frame (`Pointers`), and freely. Temporal
    mixing by two layers over the tubelets, so that a trajectory is one piece.
    """

    def __init__(
        self,
        joints: int,
        context: int,
        tubelets: int,
        tubelet_steps: int,
        tokens: int,
        latent_width: int,
        grid: int,
        camera: Camera,
        hidden: int = 256,
    ):
        """tokens: of a predicted tubelet; grid: of the newest latent, [grid * grid, latent_width]."""
        super().__init__()
        self.joints, self.steps = joints, tubelet_steps
        self.squeeze = nn.Linear(latent_width, 32)
        self.token = nn.Linear(32 * tokens, hidden)
        self.pose = nn.Linear(context * joints * 3, hidden)
        self.time = nn.Parameter(torch.zeros(tubelets, hidden))
        self.summary = nn.Linear(hidden, hidden)
        self.pointers = Pointers(grid, latent_width, camera, hidden)
        self.found = nn.Linear(self.pointers.count * 11, hidden)
        self.mix = nn.ModuleList(nn.Conv1d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.share = nn.Linear(hidden, tubelet_steps * joints * self.pointers.count)
        self.out = nn.Linear(hidden, tubelet_steps * joints * 4)
        nn.init.trunc_normal_(self.time, std=0.02)
        for layer in (self.share, self.out):  # nothing moves at first
            nn.init.trunc_normal_(layer.weight, std=0.002)
            nn.init.zeros_(layer.bias)

    def forward(self, future: Tensor, now: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """future [B, tubelets, tokens, D]; now [B, n, D]; poses [B, context, J, 3] in metres, the last one is now."""
        present = poses[:, -1]
        x = F.gelu(self.token(self.squeeze(future).flatten(2)) + self.pose(track(poses))[:, None] + self.time)
        x = x + F.gelu(self.summary(x.mean(1, keepdim=True)))
        place, feature = self.pointers(x, now)
        middle = present.mean(1)[:, None, None]
        x = x + F.gelu(self.found(torch.cat((4 * (place - middle), feature), -1).flatten(2)))
        for mix in self.mix:
            x = x + F.gelu(_convolved(x, mix))
        share = self.share(x).unflatten(-1, (self.steps, self.joints, self.pointers.count))
        # share * (place - joint), summed over the places: [B, tubelets, steps, J, 3]
        toward = torch.einsum("btsjk,btkc->btsjc", share, place) - share.sum(-1, keepdim=True) * present[:, None, None]
        out = self.out(x).float().unflatten(-1, (self.steps, self.joints, 4))
        return (out[..., :3] + toward).flatten(1, 2), bounded_log_sigma(out[..., 3].flatten(1, 2))
