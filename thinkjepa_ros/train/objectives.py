"""What joint-embedding training minimises, what keeps it from collapsing, and the gauge that notices when it does.

The prediction loss alone says nothing: it is smallest for an encoder that ignores its input. Masked pretraining (V-JEPA
2, arXiv 2506.09985) relies on a slowly moving target encoder, stopped gradients and layer-normed targets; end-to-end
training on a penalty: SIGReg (LeJEPA, LeWM, arXiv 2603.19312) or variance and covariance (VICReg, arXiv 2105.04906).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import ALONE, Group

# --- targets and prediction loss ---


def normalised(latents: Tensor) -> Tensor:
    """Layer norm over the width without parameters: what V-JEPA 2 predicts. Same shape."""
    return F.layer_norm(latents, latents.shape[-1:])


def prediction_loss(predicted: Tensor, target: Tensor, exponent: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """mean(weight * |predicted - target| ** exponent) / exponent; exponent 1 is V-JEPA 2's L1.

    predicted, target: [B, M, D]. weight: [B, M]; it scales, it is not normalised (`masking.context_weights`).
    """
    error = (predicted - target).abs()
    if exponent != 1.0:
        error = error.pow(exponent)
    if weight is not None:
        error = error * weight[..., None]
    return error.mean() / exponent


def momentum(step: int, total: int, start: float, end: float, shape: Literal["linear", "cosine"] = "linear") -> float:
    """Momentum of the target encoder after `step` of `total` steps, from `start` to `end`.

    V-JEPA 2: 0.99925 throughout. V-JEPA: 0.998 to 1, linear.
    """
    done = min(1.0, step / max(1, total))
    return end - (end - start) * (1 - done if shape == "linear" else (1 + math.cos(math.pi * done)) / 2)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online, in place; buffers are copied.

    The two are the same architecture. Raises ValueError where their tensors do not match.
    """
    pairs = []
    for ours, theirs in (
        (dict(target.named_parameters()), dict(online.named_parameters())),
        (dict(target.named_buffers()), dict(online.named_buffers())),
    ):
        if ours.keys() != theirs.keys() or any(ours[n].shape != theirs[n].shape for n in ours):
            raise ValueError("the target is not a copy of the online encoder: names or shapes of its tensors differ")
        pairs.append([(ours[name], theirs[name]) for name in ours])
    for own, new in pairs[0]:
        own.lerp_(new, 1 - momentum)
    for own, new in pairs[1]:
        own.copy_(new)


# --- penalties against collapse ---


def random_directions(rng: np.random.Generator, width: int, count: int = 128) -> Tensor:
    """`count` random unit vectors, float32 [width, count], for `sigreg`."""
    directions = torch.from_numpy(rng.normal(size=(width, count)).astype(np.float32))
    return directions / directions.norm(dim=0)


def sigreg(z: Tensor, directions: Tensor, group: Group = ALONE) -> Tensor:
    """Epps-Pulley statistic of z [..., B, D] against N(0, 1) along unit `directions` [D, K], per sample of the batch.

    LeJEPA; 17 knots on [0, 3], trapezoid weights. Zero for a perfect isotropic Gaussian.
    group: processes that hold B samples each. The statistic is that of all samples, so it is the same in each of them;
    a process's share of it is a `world`-th.
    """
    knots = torch.linspace(0, 3, 17, dtype=z.dtype, device=z.device)
    weight = torch.full((17,), 2 * 3 / 16, dtype=z.dtype, device=z.device)
    weight[[0, -1]] = 3 / 16
    normal = torch.exp(-knots.square() / 2)
    angle = (z @ directions)[..., None] * knots  # [..., B, K, 17]
    error = (group.mean(angle.cos().mean(-3)) - normal).square() + group.mean(angle.sin().mean(-3)).square()
    return group.world * z.shape[-2] * (error * weight * normal).sum(-1).mean()


def variance_loss(z: Tensor, floor: float = 1.0) -> Tensor:
    """How far the standard deviation of a dimension of z [N, D] falls short of `floor`, mean over dimensions."""
    return F.relu(floor - (z.var(0) + 1e-4).sqrt()).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """Squared covariance between different dimensions of z [N, D], summed, over D."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


# --- the gauge ---


def spread(z: Tensor) -> float:
    """Standard deviation of a dimension of z [N, D], mean over dimensions."""
    return float(z.std(0).mean())


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of z [N, D]: how many directions are used."""
    values = torch.linalg.svdvals(z - z.mean(0))
    p = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))


@dataclass(frozen=True)
class Reading:
    """What the gauge saw."""

    spread: float
    rank: float
    prediction_over_copy: float  #: below 1 the predictor knows more than the token it could have copied
    collapsed: bool
    sentence: str

    def columns(self) -> dict[str, float]:
        """The numbers for the log."""
        return {"prediction_over_copy": self.prediction_over_copy, "spread": self.spread, "rank": self.rank}


@dataclass(frozen=True)
class CollapseGauge:
    """Looks at latents [N, D] and says whether they collapse: nearly the same whatever the input, or nearly a line.

    Both bounds are needed: the noise of identical latents has a high rank, and a line may be long.
    """

    least_spread: float = 0.05  #: in the unit of the latents; a layer norm makes them about 1
    least_rank: float = 0.03  #: effective rank over width

    @torch.no_grad()
    def read(self, z: Tensor, prediction: float, copy: float) -> Reading:
        """prediction, copy: losses of the predictor and of copying what is visible."""
        wide, rank = spread(z), effective_rank(z)
        bound = max(self.least_rank * z.shape[1], 1.5)
        faults = []
        if not wide >= self.least_spread:
            faults.append(f"their spread is {wide:.3g} (at least {self.least_spread:g})")
        if not rank >= bound:
            faults.append(f"their effective rank is {rank:.1f} of {z.shape[1]} (at least {bound:.1f})")
        if faults:
            words = f"The latents collapse: {' and '.join(faults)}. A small loss means nothing now."
        else:
            words = f"The latents are spread over {rank:.1f} of {z.shape[1]} directions."
        return Reading(wide, rank, prediction / max(copy, 1e-12), bool(faults), words)
