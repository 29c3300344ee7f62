"""Before the world model: teach the points of an imagination's eye where the robot and the things are.

Pictures alone, no dynamics: many times cheaper than a step of everything together, in which finding things would be the
slowest to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..control import space
from ..control.eye import Points
from ..control.imagination import Imagination
from .run import Run
from .world_data import THINGS, Track, befores_and_afters

BATCH, LR = 48, 3e-3
_FRAMES = 256  # by which they are scaled at the end


class PointsLearner(nn.Module):
    """Reads states and things from what the points say."""

    mean: Tensor
    std: Tensor

    def __init__(self, points: Points, state_mean: Tensor, state_std: Tensor):
        super().__init__()
        self.points = points
        self.read = nn.Linear(points.last.out_features, space.DIM + 3 * len(THINGS))
        self.register_buffer("mean", state_mean.clone(), persistent=False)
        self.register_buffer("std", state_std.clone(), persistent=False)

    def forward(self, images: Tensor, state: Tensor, things: Tensor, known: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, and for a log how far off gripper and things are, metres, means over those that are known."""
        found = self.read(self.points(images)).float()
        own = found[:, : space.DIM] - (state - self.mean) / self.std
        others = found[:, space.DIM :].unflatten(1, (-1, 3)) - (things - self.mean[:3]) / self.std[:3]
        count = known.sum().clamp(min=1)
        loss = own.square().mean() + (others.square().mean(-1) * known).sum() / count
        with torch.no_grad():
            gripper = (own[:, :3] * self.std[:3]).norm(dim=-1).mean()
            cubes = ((others * self.std[:3]).norm(dim=-1) * known).sum() / count
        return loss, {"gripper_m": gripper.item(), "things_m": cubes.item()}


def teach(
    tracks: Sequence[Track],
    net: Imagination,
    folder: Path,
    *,
    steps: int,
    seed: int,
    describe: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
) -> Run:
    """Teach `net.points` in place, and let `net.place` read from them; resumes from `folder`.

    At the end their part of a latent changes within half a horizon by about 1, as `world.whiten` makes the other part
    do. Raises run.Stopped, ValueError.
    """
    if net.points is None:
        raise ValueError("this imagination has no points to teach; build it with some")
    device = next(net.parameters()).device
    learner = PointsLearner(net.points, net.world.state_mean, net.world.state_std).to(device)
    run = Run(folder, learner, steps, LR, seed, describe, warm_up=max(1, min(100, steps // 10)), quiet=quiet)
    for step in run.steps("points"):
        batch = _draw(tracks, BATCH, run.random(step))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, notes = learner(*(x.to(device) for x in batch))
        norm = run.update(loss / run.group.world)  # every process computes the whole batch
        run.note(loss=loss.item(), **notes, grad=norm)
    _finish(tracks, net, learner.read, run.random(steps))
    return run


def _draw(tracks: Sequence[Track], size: int, rng: np.random.Generator) -> list[Tensor]:
    """Frames, and what `PointsLearner` is taught about them."""
    rows = []
    for number in rng.integers(len(tracks), size=size):
        track = tracks[int(number)]
        now = int(rng.integers(len(track)))
        rows.append((track.images([now])[0], track.states[now], *track.things(now)))
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


@torch.no_grad()
def _finish(tracks: Sequence[Track], net: Imagination, read: nn.Linear, rng: np.random.Generator) -> None:
    """Scale what the points say, and hand the reader's knowledge of the robot's state to `net.place`."""
    assert net.points is not None
    frames = befores_and_afters(tracks, _FRAMES // 2, net.config.world.horizon // 2, rng)
    frames = frames.to(net.points.last.weight.device)
    told = torch.cat([net.points(part) for part in frames.split(32)])
    changes = (told[1::2] - told[::2]).std().clamp(min=1e-6)
    net.points.last.weight /= changes
    net.points.last.bias.copy_((net.points.last.bias - told.mean(0)) / changes)
    w = net.config.world
    place = net.place.weight.view(w.state_dim, w.tokens, w.latent_width)
    place.zero_()
    place[..., net.project.out_features :] = (read.weight[: space.DIM] * changes / w.tokens)[:, None]
    net.place.bias.copy_(read.bias[: space.DIM] + read.weight[: space.DIM] @ told.mean(0))
