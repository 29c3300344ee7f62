"""`thinkjepa evaluate encoder`: what frozen encoders know of a scene, side by side.

Two questions to each. Where are the joints: its own pose readout, as it was trained with it. Where are the things
(cubes and trays of cue-reach): a readout of the same kind, fitted here on frozen latents of training episodes, since
nobody told the encoder about them. Spread and effective rank of the latents say whether they collapsed. A recipe
is worth something if it beats the encoder that was never trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..checkpoints import WEIGHTS, write_atomically
from ..data.episode import Episode, EpisodeError
from ..jepa import model as jepa_model
from ..jepa.model import ForecastNet
from ..jepa.readout import PoseReadout
from ..train import clips
from ..train.objectives import effective_rank, spread
from ..train.run import schedule
from . import metrics
from .bootstrap import Interval, bootstrap_mean, paired_bootstrap

#: Frames looked at of every episode, steps and batch of the readout that is fitted.
FRAMES, STEPS, BATCH, LR = 8, 500, 96, 2e-3


@dataclass(frozen=True)
class Seen:
    """Frames [N] of some episodes: latents float32 [N, n, D], joints and things in metres in the camera frame."""

    episode: np.ndarray  # int64 [N]
    latents: Tensor  # [N, n, D]
    found: Tensor  # [N, J, 3], by the encoder's own pose readout
    joints: Tensor  # [N, J, 3], NaN where unknown
    visible: np.ndarray  # bool [N, J]
    things: Tensor  # [N, K, 3]


@dataclass(frozen=True)
class Row:
    """One encoder. Errors in metres, mean over the frames of an episode, then over episodes."""

    model: str
    recipe: str
    weights: str
    joints: Interval
    things: Interval
    joints_minus_first: Interval
    things_minus_first: Interval
    spread: float
    rank: float
    steps: int  #: of its training; 0 where the checkpoint does not say
    cpu_minutes: float

    def as_dict(self) -> dict[str, Any]:
        return {k: v._asdict() if isinstance(v, Interval) else v for k, v in vars(self).items()}


@torch.inference_mode()
def look(net: ForecastNet, episodes: Sequence[Episode], title: str) -> Seen:
    """FRAMES frames of every episode, evenly spread. Raises EpisodeError where nothing is known of things."""
    parts: list[tuple[Any, ...]] = []
    for number, episode in enumerate(track(episodes, title, transient=True)):
        if not episode.objects:
            raise EpisodeError(
                f"episode {episode.seed}: nothing is known of the things in it; simulated episodes are needed"
            )
        frames = np.linspace(0, len(episode) - 1, FRAMES).astype(int)
        latents = net.encoder.frames(torch.from_numpy(clips.canonical_images(episode, frames, net.config.camera)))
        pose = episode.camera_pose[frames]
        things = np.stack([episode.objects[name][frames] for name in sorted(episode.objects)], 1)
        places = np.einsum("nkj,njl->nkl", things - pose[:, None, :3, 3], pose[:, :3, :3])
        joints = np.stack([episode.joints_in_camera(int(i)) for i in frames])
        parts.append(
            (np.full(len(frames), number), latents, net.pose(latents), joints, episode.visible[frames], places)
        )
    episode_, latents_, found, joints_, visible, things_ = zip(*parts, strict=True)
    return Seen(
        np.concatenate(episode_),
        torch.cat(latents_),
        torch.cat(found),
        torch.from_numpy(np.concatenate(joints_)),
        np.concatenate(visible),
        torch.from_numpy(np.concatenate(things_).astype(np.float32)),
    )


def fit_things(net: ForecastNet, seen: Seen, steps: int = STEPS, seed: int = 0) -> PoseReadout:
    """A readout of the places of things from frozen latents."""
    torch.manual_seed(seed)
    e = net.config.encoder
    readout = PoseReadout(seen.things.shape[1], e.grid, e.width, net.config.camera)
    optimizer = torch.optim.AdamW(readout.parameters(), lr=LR)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, steps, min(50, math.ceil(steps / 10)))
        chosen = torch.from_numpy(rng.integers(len(seen.latents), size=BATCH))
        loss = (readout(seen.latents[chosen]) - seen.things[chosen]).norm(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return readout.eval()


def evaluate(
    models: Sequence[Path],
    test: Path,
    train: Path,
    *,
    limit: int = 150,
    train_limit: int = 300,
    out: Path | None = None,
) -> list[Row]:
    """Score the encoders of some checkpoint folders; the first one is what the others are compared with.

    Raises CheckpointError, EpisodeError.
    """
    learned, scored = clips.load_folder(train, train_limit), clips.load_folder(test, limit)
    errors: list[tuple[np.ndarray, np.ndarray]] = []
    rows: list[Row] = []
    for folder in models:
        net, manifest = jepa_model.load(folder)
        readout = fit_things(net, look(net, learned, f"{folder.name}: training episodes"), STEPS)
        seen = look(net, scored, f"{folder.name}: test episodes")
        with torch.inference_mode():
            off = (readout(seen.latents) - seen.things).norm(dim=-1).mean(1).numpy()
        known = seen.visible & np.isfinite(seen.joints.numpy()).all(-1)
        joints = np.where(known, (seen.found - seen.joints).norm(dim=-1).numpy(), np.nan)
        both = [metrics.per_episode_mean(x, seen.episode) for x in (metrics.nanmean(joints, 1), off)]
        errors.append((both[0], both[1]))
        flat = seen.latents.flatten(0, 1)
        picked = flat[:: max(1, len(flat) // 4096)]
        rows.append(
            Row(
                model=str(folder),
                recipe=str(manifest.training.get("encoder_recipe", "")),
                weights=manifest.sha256[WEIGHTS][:8],
                joints=bootstrap_mean(both[0]),
                things=bootstrap_mean(both[1]),
                joints_minus_first=paired_bootstrap(both[0], errors[0][0]),
                things_minus_first=paired_bootstrap(both[1], errors[0][1]),
                spread=spread(picked),
                rank=effective_rank(picked),
                steps=int(manifest.training.get("encoder_steps", 0)),
                cpu_minutes=round(manifest.training.get("encoder_cpu_seconds", 0) / 60, 1),
            )
        )
    show(rows, len(scored))
    if out:
        write_atomically(out, (json.dumps([row.as_dict() for row in rows], indent=1) + "\n").encode())
    return rows


def show(rows: Sequence[Row], episodes: int) -> None:
    """Print the rows."""
    table = Table(title=f"Frozen encoders on {episodes} episodes: error in cm, 95 % intervals over episodes")
    for column in ("encoder", "recipe", "steps", "CPU min", "visible joints", "cubes and trays", "spread", "rank"):
        table.add_column(column, justify="left" if column in ("encoder", "recipe") else "right")
    for row in rows:
        cells = (f"{100 * i.mean:.2f} [{100 * i.low:.2f}, {100 * i.high:.2f}]" for i in (row.joints, row.things))
        cost = (str(row.steps), f"{row.cpu_minutes:g}")
        table.add_row(row.model, row.recipe, *cost, *cells, f"{row.spread:.2f}", f"{row.rank:.1f}")
    Console().print(table)
