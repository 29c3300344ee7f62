"""Stage 1: the encoder and its pose readout, from scratch, on single frames.

Two tasks share every frame. Where the 24 joints are (metres, camera frame) makes the latents localise. A
self-supervised task, by default latent prediction with SIGReg, makes them describe the whole scene (`recipes`). The log
shows the spread and the effective rank of the latents and the ratio of the prediction error to that of copying, since a
collapsing model has an excellent loss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.episode import Episode
from ..jepa.model import ForecastNet
from ..values import Camera
from .clips import canonical_images, colour_jitter, turned
from .distributed import ALONE, Group
from .objectives import effective_rank, spread
from .recipes import sight_of
from .run import Run

RECIPE = "end-to-end"  #: that of the shipped mini


def pose_loss(predicted: Tensor, joints: Tensor, visible: Tensor, group: Group = ALONE) -> Tensor:
    """Mean distance in metres; hidden joints count a quarter, unknown ones not at all.

    group: processes that hold a part of the batch each; the result is this one's share of the mean over all.
    """
    known = joints.isfinite().all(-1)
    weight = torch.where(visible, 1.0, 0.25) * known
    distance = (predicted - torch.where(known[..., None], joints, 0.0)).square().sum(-1).add(1e-8).sqrt()
    return (distance * weight).sum() / group.total(weight.sum()).clamp(min=1)


def place_loss(
    logits: Tensor, joints: Tensor, visible: Tensor, camera: Camera, grid: int, group: Group = ALONE
) -> Tensor:
    """Cross-entropy between where the readout looks [B, n, J] and the cells around the joint's projection (bilinear),
    visible joints only. A share, as in `pose_loss`.

    Without it the soft-argmax spends most of a short training on finding out that it should look at the hands.
    """
    pixel = torch.from_numpy(camera.project(joints.cpu().numpy()).astype(np.float32)).to(logits.device)
    cell = (pixel + 0.5) * (grid / camera.width) - 0.5
    known = visible & (cell > -0.5).all(-1) & (cell < grid - 0.5).all(-1)
    cell = torch.where(known[..., None], cell, 0.0).clamp(0, grid - 1.001)
    low, part = cell.floor().long(), cell - cell.floor()
    chosen = logits.log_softmax(1)
    total = torch.zeros(known.shape, device=logits.device)
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
        index = (low[..., 1] + down) * grid + low[..., 0] + right
        total = total - weight * chosen.gather(1, index[:, None])[:, 0]
    return (total * known).sum() / group.total(known.sum()).clamp(min=1)


def batch(
    episodes: list[Episode], net: ForecastNet, size: int, rng: np.random.Generator, group: Group = ALONE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`size` pairs of frames up to 0.8 s apart: images [2 B, S, S, 3], joints [2 B, J, 3], visible [2 B, J], gap in
    seconds [B]. All are drawn, B of them are loaded: those of this process.
    """
    camera = net.config.camera
    pairs = []
    for _ in range(size):
        episode = episodes[rng.integers(len(episodes))]
        first = int(rng.integers(len(episode)))
        later = int(np.searchsorted(episode.stamps_ns, episode.stamps_ns[first] + rng.uniform(0.1, 0.8) * 1e9))
        later = min(later, len(episode) - 1)
        look = int(rng.integers(2**31))  # both frames of a pair get the same change of colour and view
        pairs.append((episode, first, later, look, rng.random() < 0.7))
    images, joints, visible, gaps = [], [], [], []
    for episode, first, later, look, turn in group.mine(pairs):
        gaps.append((episode.stamps_ns[later] - episode.stamps_ns[first]) * 1e-9)
        for frame, image in zip((first, later), canonical_images(episode, (first, later), camera), strict=True):
            points = episode.joints_in_camera(frame)
            change = np.random.default_rng(look)
            if turn:
                image, points = turned(image, points, camera, change)
            images.append(colour_jitter(image, change))
            joints.append(points)
            visible.append(episode.visible[frame])
    order = [*range(0, len(images), 2), *range(1, len(images), 2)]
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
    recipe: str = RECIPE,
    encoder_rate: float = 1.0,
) -> Run:
    """Train `net.encoder` and `net.pose` in place, on the device where they are. Resumes from `folder`.

    encoder_rate: learning rate of the encoder as a share of that of the rest; 0 freezes it.
    Under torchrun every process takes its part of the `batch_size` pairs; spread and effective rank are then means over
    the parts. Raises run.Stopped, ValueError.
    """
    torch.manual_seed(seed)
    device = next(net.parameters()).device
    sight = sight_of(net, recipe).to(device)
    describe = describe if recipe == RECIPE else {**describe, "recipe": recipe}
    describe = describe if encoder_rate == 1 else {**describe, "encoder_rate": encoder_rate}
    sight.encoder.requires_grad_(encoder_rate > 0 and recipe != "random")
    run = Run(folder, sight, steps, lr, seed, describe, slower={"encoder.": encoder_rate} if encoder_rate else {})
    group = run.group
    if batch_size % group.world:
        raise ValueError(f"a batch of {batch_size} pairs cannot be shared evenly by {group.world} processes")
    sight.train()
    wide, rank = float("nan"), float("nan")
    for step in run.steps("encoder"):
        rng = run.random(step)
        images, joints, visible, gap = (part.to(device) for part in batch(episodes, net, batch_size, rng, group))
        seen = sight(images, gap, sight.draw(batch_size, rng, group), group)
        pose = pose_loss(seen.joints, joints, visible, group)
        place = place_loss(seen.logits, joints, visible, net.config.camera, net.config.encoder.grid, group)
        norm = run.update(10 * pose + place + seen.loss)
        sight.stepped(step, steps)
        if step % 10 == 0 or wide != wide:
            wide, rank = spread(seen.latents), effective_rank(seen.latents)
        notes = {"pose_cm": 100 * group.world * pose.item(), "place": group.world * place.item(), **seen.notes}
        run.note(**notes, grad=norm, spread=wide, rank=rank)
    return run
