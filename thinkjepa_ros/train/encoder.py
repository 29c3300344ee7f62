"""Stage 1: the encoder and its pose readout, from scratch, on single frames.

Two tasks share every frame. Where the 24 joints are (metres, camera frame) makes the latents localise. Latent
prediction with SIGReg
(LeJEPA / LeWM, arXiv 2603.19312) makes them describe the whole scene: from one frame's latents those of a later frame
are predicted, and a
statistical test for an isotropic Gaussian keeps them from collapsing. The log shows the spread and the effective rank
of the latents and the
ratio of the prediction error to that of copying, since a collapsing model has an excellent loss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.episode import Episode
from ..jepa import rope
from ..jepa.encoder import pool
from ..jepa.layers import Block
from ..jepa.model import ForecastNet
from ..values import Camera
from .clips import canonical_images, colour_jitter, turned
from .objectives import effective_rank, random_directions, sigreg, spread
from .run import Run

LATENT = 64  #: width in which prediction and SIGReg work
POOLED = 4


class Sight(nn.Module):
    """Encoder, pose readout and the latent predictor that is only used here."""

    def __init__(self, net: ForecastNet):
        super().__init__()
        self.encoder, self.pose = net.encoder, net.pose
        width = net.config.encoder.width
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, LATENT))
        self.step = nn.Linear(1, width)
        self.block = Block(width, 4)
        self.out = nn.Linear(width, LATENT)
        self.rope = rope.table(rope.grid(torch.zeros(1), POOLED, POOLED), width // 4)

    def forward(self, images: Tensor, gap_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images uint8 [2 B, S, S, 3], the later half belongs to the earlier one.

        Returns joints [2 B, J, 3], their attention logits [2 B, n, J], z [2 B, 16, 64] and predicted z [B, 16, 64].
        """
        latent = self.encoder.frames(images)
        pooled = pool(latent, self.encoder.config.grid, POOLED)
        z = self.project(pooled)
        ahead, _ = self.block(pooled[: len(gap_s)] + self.step(gap_s[:, None])[:, None], self.rope)
        return *self.pose.read(latent), z, self.out(ahead) + z[: len(gap_s)]


def pose_loss(predicted: Tensor, joints: Tensor, visible: Tensor) -> Tensor:
    """Mean distance in metres; hidden joints count a quarter, unknown ones not at all."""
    known = joints.isfinite().all(-1)
    weight = torch.where(visible, 1.0, 0.25) * known
    distance = (predicted - torch.where(known[..., None], joints, 0.0)).square().sum(-1).add(1e-8).sqrt()
    return (distance * weight).sum() / weight.sum().clamp(min=1)


def place_loss(logits: Tensor, joints: Tensor, visible: Tensor, camera: Camera, grid: int) -> Tensor:
    """Cross-entropy between where the readout looks [B, n, J] and the cells around the joint's projection (bilinear),
    visible joints only.

    Without it the soft-argmax spends most of a short training on finding out that it should look at the hands.
    """
    pixel = torch.from_numpy(camera.project(joints.numpy()).astype(np.float32))
    cell = (pixel + 0.5) * (grid / camera.width) - 0.5
    known = visible & (cell > -0.5).all(-1) & (cell < grid - 0.5).all(-1)
    cell = torch.where(known[..., None], cell, 0.0).clamp(0, grid - 1.001)
    low, part = cell.floor().long(), cell - cell.floor()
    chosen = logits.log_softmax(1)
    total = torch.zeros(known.shape)
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
        index = (low[..., 1] + down) * grid + low[..., 0] + right
        total = total - weight * chosen.gather(1, index[:, None])[:, 0]
    return (total * known).sum() / known.sum().clamp(min=1)


def batch(
    episodes: list[Episode], net: ForecastNet, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`size` pairs of frames up to 0.8 s apart: images [2 B, S, S, 3], joints [2 B, J, 3], visible [2 B, J], gap in
    seconds [B].
    """
    camera = net.config.camera
    images, joints, visible, gaps = [], [], [], []
    for _ in range(size):
        episode = episodes[rng.integers(len(episodes))]
        first = int(rng.integers(len(episode)))
        later = int(np.searchsorted(episode.stamps_ns, episode.stamps_ns[first] + rng.uniform(0.1, 0.8) * 1e9))
        later = min(later, len(episode) - 1)
        gaps.append((episode.stamps_ns[later] - episode.stamps_ns[first]) * 1e-9)
        look = int(rng.integers(2**31))  # both frames of a pair get the same change of colour and view
        turn = rng.random() < 0.7
        for frame, image in zip((first, later), canonical_images(episode, (first, later), camera), strict=True):
            points = episode.joints_in_camera(frame)
            change = np.random.default_rng(look)
            if turn:
                image, points = turned(image, points, camera, change)
            images.append(colour_jitter(image, change))
            joints.append(points)
            visible.append(episode.visible[frame])
    order = [*range(0, 2 * size, 2), *range(1, 2 * size, 2)]
    pick = lambda parts: torch.from_numpy(np.stack([parts[i] for i in order]))  # noqa: E731
    return pick(images), pick(joints), pick(visible), torch.tensor(gaps, dtype=torch.float32)


def train(
    episodes: list[Episode],
    net: ForecastNet,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict,
) -> Run:
    """Train `net.encoder` and `net.pose` in place. Resumes from `folder`. Raises run.Stopped."""
    torch.manual_seed(seed)
    sight = Sight(net)
    run = Run(folder, sight, steps, lr, seed, describe)
    sight.train()
    wide, rank = float("nan"), float("nan")
    for step in run.steps("encoder"):
        rng = run.random(step)
        images, joints, visible, gap = batch(episodes, net, batch_size, rng)
        directions = random_directions(rng, LATENT)
        found, logits, z, ahead = sight(images, gap)
        pose = pose_loss(found, joints, visible)
        place = place_loss(logits, joints, visible, net.config.camera, net.config.encoder.grid)
        predict = (ahead - z[batch_size:]).square().mean()
        regular = sigreg(z.transpose(0, 1), directions)
        norm = run.update(10 * pose + place + 0.2 * predict + 0.02 * regular)
        with torch.no_grad():
            copy = (z[:batch_size] - z[batch_size:]).square().mean()
            flat = z.flatten(0, 1)
            notes = {
                "pose_cm": 100 * pose.item(),
                "place": place.item(),
                "prediction_over_copy": (predict / copy).item(),
                "sigreg": regular.item(),
                "grad": norm,
            }
            if step % 10 == 0 or wide != wide:
                wide, rank = spread(flat), effective_rank(flat)
        run.note(**notes, spread=wide, rank=rank)
    return run
