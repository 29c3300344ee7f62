"""Stage 2: the guided predictor and the motion readout, on cached latents of a frozen encoder.

Losses: distance of the forecast joints (metres), smooth L1 of the predicted latents (future frames are targets only),
and the likelihood of the
distance under the predicted sigma. Guidance is dropped at random, so that unguided is a first-class mode of the same
model; so is the
observed pose (anchor).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..jepa.guidance import Payload
from ..jepa.model import ForecastNet
from .latents import Track
from .run import Run

GUIDANCE_DROPOUT = 0.4
ANCHORED = 0.35


class Future(nn.Module):
    """The trainable half of the network."""

    def __init__(self, net: ForecastNet):
        super().__init__()
        self.predictor, self.motion = net.predictor, net.motion


@dataclass(frozen=True)
class Batch:
    past: Tensor  # [B, context - 1, p^2, D]
    now: Tensor  # [B, n, D]
    poses: Tensor  # [B, context, J, 3]
    target: Tensor  # [B, T, J, 3], NaN where unknown, relative to the last pose given
    latents: Tensor  # [B, tubelets, p^2, D]
    latent_known: Tensor  # bool [B, tubelets]
    pyramid: Tensor  # [B, L, 2, D_vlm]
    weight: Tensor  # [B]


def batch(tracks: list[Track], net: ForecastNet, size: int, rng: np.random.Generator) -> Batch:
    """`size` random forecast origins."""
    p = net.config.predictor
    steps, tubelets, horizon = p.tubelet_steps, p.tubelets, net.config.horizon
    rows: list[list[Tensor]] = []
    for _ in range(size):
        track = tracks[rng.integers(len(tracks))]
        count = len(track.stamps_ns)
        if count < p.context + 1:
            raise ValueError(f"an episode has {count} grid samples; the model needs at least {p.context + 1}")
        now = int(rng.integers(p.context - 1, count - 1))
        window = slice(now + 1 - p.context, now + 1)
        poses = track.poses[window].clone()
        if rng.random() < ANCHORED:
            truth = torch.from_numpy(track.joints_seen_from(now, slice(now, now + 1))[0])
            poses += torch.where(truth.isfinite().all(-1, keepdim=True), truth - poses[-1], torch.zeros(()))
        ahead = torch.full((horizon, poses.shape[1], 3), float("nan"))
        known = min(horizon, count - 1 - now)
        ahead[:known] = torch.from_numpy(track.joints_seen_from(now, slice(now + 1, now + 1 + known)))
        latents = torch.zeros(tubelets, *track.pooled.shape[1:])
        whole = known // steps
        latents[:whole] = track.pooled[now + 1 : now + 1 + whole * steps].float().unflatten(0, (whole, steps)).mean(1)
        pyramid, weight = _guidance(track, now, net, rng)
        rows.append([track.pooled[window][:-1].float(), track.full[now].float(), poses, ahead - poses[-1], latents,
                     torch.arange(tubelets) < whole, pyramid, torch.tensor(weight)])  # fmt: skip
    return Batch(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def _guidance(track: Track, now: int, net: ForecastNet, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The newest thought that a live thinker would have finished by now (0.2 … 1 s late), sometimes none, sometimes
    fading.
    """
    p = net.config.predictor
    late_ns = int(rng.uniform(0.2, 1.0) * 1e9)
    dropped = rng.random() < GUIDANCE_DROPOUT
    weight = 1.0 if rng.random() < 0.7 else float(rng.uniform(0.05, 1.0))
    finished = int(np.searchsorted(track.thought_ns, track.stamps_ns[now] - late_ns, side="right"))
    if dropped or finished == 0:
        return torch.zeros(p.guide_layers, 2, p.guide_width), 0.0
    return track.pyramids[finished - 1], weight


def losses(net: ForecastNet, b: Batch) -> tuple[Tensor, dict[str, float]]:
    """The training loss and what the log shows."""
    payload = None
    if b.pyramid.shape[1]:
        payload = Payload.pooled(b.pyramid, torch.ones(len(b.weight), 2, dtype=torch.bool), b.weight)
    displacement, log_sigma, future = net.forecast(b.past, b.now, b.poses, payload)
    known = b.target.isfinite().all(-1)
    target = torch.where(known[..., None], b.target, 0.0)
    squared = (displacement - target).square().sum(-1)
    total = known.sum().clamp(min=1)
    distance = (squared.add(1e-8).sqrt() * known).sum() / total
    likelihood = ((3 * log_sigma + squared.detach() / (2 * (2 * log_sigma).exp())) * known).sum() / total
    weight = b.latent_known[..., None, None] / b.latent_known.sum().clamp(min=1) / b.latents[0, 0].numel()
    latent = (F.smooth_l1_loss(future, b.latents, reduction="none") * weight).sum()
    with torch.no_grad():
        held = (target.square().sum(-1).sqrt() * known).sum() / total
        copied = net.predictor.pool(b.now)[:, None]
        copy = (F.smooth_l1_loss(copied.expand_as(b.latents), b.latents, reduction="none") * weight).sum()
    notes = {
        "ade_cm": 100 * distance.item(),
        "over_hold": (distance / held).item(),
        "prediction_over_copy": (latent / copy).item(),
    }
    return 10 * distance + latent + 0.02 * likelihood, notes


def train(
    tracks: list[Track],
    net: ForecastNet,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict,
) -> Run:
    """Train `net.predictor` and `net.motion` in place. Resumes from `folder`. Raises run.Stopped."""
    torch.manual_seed(seed)
    run = Run(folder, Future(net), steps, lr, seed, describe)
    net.train()
    for step in run.steps("forecast"):
        loss, notes = losses(net, batch(tracks, net, batch_size, run.random(step)))
        run.note(**notes, grad=run.update(loss))
    return run
