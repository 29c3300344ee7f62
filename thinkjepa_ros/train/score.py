"""Stage `score`: how well latents fit what was asked for, from demonstrations alone: `thinkjepa train score`.

The latents are those of an imagination that stays as it is. Contrast: latents of frames in which the task is done,
against the instructions of all tasks (InfoNCE over the six of cubes and trays). Progress: the share of the actions of a
demonstration that is done, for its own instruction; for another one nothing is done at its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..control import imagination, score
from ..control.imagination import Imagination
from ..control.policy import CUBES, TRAYS
from ..control.score import LanguageScore, ScoreConfig
from ..data.episode import EpisodeError
from ..jepa import model
from ..version import __version__
from . import clips, defaults
from .mini import LICENCE, folder_of
from .policy_data import Demonstration, varied
from .record import made_by
from .run import Run
from .run import threads as use_threads

MODEL_ID = f"thinkjepa-score-{__version__}"
#: Every instruction that names a cube and a tray, as words.
EVERY = torch.tensor([(cube, tray) for cube in range(len(CUBES)) for tray in range(len(TRAYS))])


def progress(done_after: int, frame: int) -> float:
    """Share of the task that is done at a frame."""
    return min(1.0, frame / max(1, done_after))


def draw(demonstrations: Sequence[Demonstration], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [B, S, S, 3], number of the instruction in EVERY [B], progress [B]; half of them of done tasks."""
    images, told, done = [], [], []
    for pick in rng.integers(len(demonstrations), size=size):
        one = demonstrations[int(pick)]
        after = int(one.track.episode.details["done_after"])
        frame = int(rng.integers(after, len(one.track)) if rng.random() < 0.5 else rng.integers(after))
        images.append(varied(one.track.images([frame]), one.track.view.canonical, rng)[0][0])
        told.append(len(TRAYS) * one.intent[0] + one.intent[1])
        done.append(progress(after, frame))
    return torch.from_numpy(np.stack(images)), torch.tensor(told), torch.tensor(done)


def loss_of(net: LanguageScore, latents: Tensor, told: Tensor, done: Tensor) -> tuple[Tensor, dict[str, float]]:
    """latents [B, M, Z]. See the head of this file."""
    every = net.tell(EVERY.to(latents.device))
    cosine, found = net(latents[:, None], every)
    finished = done >= 1
    logits = (cosine * net.sharpness.exp())[finished]
    contrast = F.cross_entropy(logits, told[finished]) if bool(finished.any()) else logits.sum()
    own = F.one_hot(told, len(every)).bool()
    # for another instruction the same picture is the end of nothing, and early on nobody can tell
    wanted = torch.where(own, done[:, None], 0.0)
    counts = own | (finished[:, None] & ~own)
    step = ((found - wanted).square() * counts).sum() / counts.sum()
    right = (logits.argmax(-1) == told[finished]).float().mean() if bool(finished.any()) else logits.new_zeros(())
    return contrast + step, {"contrast": contrast.item(), "progress": step.item(), "right": right.item()}


def train(
    demonstrations: Sequence[Demonstration],
    seer: Imagination,
    net: LanguageScore,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    quiet: bool = False,
) -> Run:
    """Train `net` in place. Resumes from `folder`. Raises run.Stopped, EpisodeError."""
    done = [d for d in demonstrations if d.weight and d.track.episode.details.get("done_after")]
    done = [d for d in done if int(d.track.episode.details["done_after"]) < len(d.track)]
    if not done:
        raise EpisodeError("no episode tells when its task was done (details: done_after); make some of the work cell")
    device = next(net.parameters()).device
    seer = seer.to(device).eval().requires_grad_(False)
    run = Run(folder, net, steps, lr, seed, describe, warm_up=max(1, min(100, steps // 10)), quiet=quiet)
    net.train()
    for step in run.steps("score"):
        images, told, share = (x.to(device) for x in draw(done, batch_size, run.random(step)))
        with torch.no_grad():
            latents = seer.pool(seer.see(images))
        loss, notes = loss_of(net, latents, told, share)
        norm = run.update(loss / run.group.world)
        run.note(loss=loss.item(), **notes, grad=norm)
    net.eval()
    return run


def train_score(
    data: Path,
    out: Path,
    *,
    world: Path,
    run: Path,
    steps: int = defaults.SCORE_STEPS,
    batch_size: int = defaults.SCORE_BATCH,
    lr: float = defaults.SCORE_LR,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train a language score for the imagination `world` on the episodes in `data` and write it to `out`.

    Raises run.Stopped, EpisodeError, CheckpointError, ValueError.
    """
    where = model.torch_device(device)
    use_threads(threads)
    source = folder_of(data)
    episodes = clips.load_folder(source, limit)
    seer, manifest = imagination.load_imagination(world)
    c = seer.config
    found = [Demonstration.of(e, c.camera, c.action_s) for e in episodes]
    base = manifest.name
    torch.manual_seed(seed)
    net = LanguageScore(ScoreConfig(c.world.tokens, c.world.latent_width, imagination=base)).to(where)
    describe = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "episodes": len(episodes),
        "data_sha256": clips.data_hash(source, limit), "config": dataclasses.asdict(net.config),
    }  # fmt: skip
    done = train(found, seer, net, run, steps=steps, batch_size=batch_size, lr=lr, seed=seed, describe=describe)
    training = {**describe, **made_by("thinkjepa train score", threads, done)}
    domain = ", ".join(sorted({e.domain for e in episodes}))
    if done.group.first:
        score.save(out, net.cpu(), MODEL_ID, trained=True, domain=domain, training=training, licence=LICENCE)
    done.group.wait()
