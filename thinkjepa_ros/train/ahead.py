"""Stage `ahead`: what will be seen some actions later where what is asked for gets done: `thinkjepa train ahead`.

From demonstrations of the expert, undisturbed: what it sees `steps` actions after every frame, in the latents of an
imagination that stays as it is. Behind the end of an episode stands its last frame: the task is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track as bar
from torch import Tensor

from ..control import ahead, imagination
from ..control.ahead import Ahead, AheadConfig
from ..control.imagination import Imagination
from ..data.episode import EpisodeError
from ..jepa import model
from ..version import __version__
from . import clips, defaults
from .mini import LICENCE, folder_of
from .policy_data import Demonstration
from .record import made_by
from .run import Run
from .run import threads as use_threads

MODEL_ID = f"thinkjepa-ahead-{__version__}"
_AT_ONCE = 64  # frames


@dataclass(frozen=True)
class Lessons:
    """N moments: pooled latents of all frames [F, M, Z], which frame is now and which is wanted [N], states [N, 4] in
    standard deviations, words [N, 2].
    """

    latents: Tensor
    now: Tensor
    later: Tensor
    states: Tensor
    words: Tensor

    @staticmethod
    @torch.inference_mode()
    def of(demonstrations: Sequence[Demonstration], seer: Imagination, steps: int) -> Lessons:
        """Raises EpisodeError where nobody shows how it is done."""
        right = [d for d in demonstrations if d.weight and d.track.episode.details.get("behaviour") == "expert"]
        if not right:
            raise EpisodeError(
                "no episode shows an expert who picks and places; make some with `thinkjepa data rollouts`"
            )
        device, w = next(seer.parameters()).device, seer.world
        latents, now, later, states, words, first = [], [], [], [], [], 0
        for one in bar(right, "Encoding", transient=True):
            count = len(one.track)
            images = torch.from_numpy(one.track.images(range(count)))
            latents += [seer.pool(seer.see(part.to(device))) for part in images.split(_AT_ONCE)]
            frames = torch.arange(count)
            now.append(first + frames)
            later.append(first + (frames + steps).clamp(max=count - 1))
            states.append((torch.from_numpy(one.track.states).to(device) - w.state_mean) / w.state_std)
            words.append(torch.tensor([one.intent]).expand(count, 2))
            first += count
        columns = (torch.cat(x).to(device) for x in (latents, now, later, states, words))
        return Lessons(*(x.clone() for x in columns))  # made in inference mode, learned from outside of it


def train(
    lessons: Lessons,
    net: Ahead,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    quiet: bool = False,
) -> Run:
    """Train `net` in place. Resumes from `folder`. The log has the error as a share of that of "as now".

    Raises run.Stopped.
    """
    device = next(net.parameters()).device
    run = Run(folder, net, steps, lr, seed, describe, warm_up=max(1, min(100, steps // 10)), quiet=quiet)
    net.train()
    for step in run.steps("ahead"):
        rows = torch.from_numpy(run.random(step).integers(len(lessons.now), size=batch_size)).to(device)
        now, wanted = lessons.latents[lessons.now[rows]], lessons.latents[lessons.later[rows]]
        loss = (net(now, lessons.states[rows], lessons.words[rows]) - wanted).abs().mean()
        norm = run.update(loss / run.group.world)
        copied = (now - wanted).abs().mean().item()
        run.note(loss=loss.item(), over_copy=loss.item() / max(copied, 1e-12), grad=norm)
    net.eval()
    return run


def train_ahead(
    data: Path,
    out: Path,
    *,
    world: Path,
    run: Path,
    ahead_steps: int = AheadConfig.steps,
    steps: int = defaults.AHEAD_STEPS,
    batch_size: int = defaults.AHEAD_BATCH,
    lr: float = defaults.AHEAD_LR,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train sub-goals for the imagination `world` on the episodes in `data` and write them to `out`.

    ahead_steps: actions from now to what is wanted. Raises run.Stopped, EpisodeError, CheckpointError, ValueError.
    """
    where = model.torch_device(device)
    use_threads(threads)
    source = folder_of(data)
    episodes = clips.load_folder(source, limit)
    seer, manifest = imagination.load_imagination(world)
    seer = seer.to(where).requires_grad_(False)
    c = seer.config
    base = manifest.name
    torch.manual_seed(seed)
    net = Ahead(AheadConfig(c.world.tokens, c.world.latent_width, ahead_steps, imagination=base)).to(where)
    lessons = Lessons.of([Demonstration.of(e, c.camera, c.action_s) for e in episodes], seer, ahead_steps)
    describe = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "episodes": len(episodes),
        "moments": len(lessons.now), "data_sha256": clips.data_hash(source, limit),
        "config": dataclasses.asdict(net.config),
    }  # fmt: skip
    done = train(lessons, net, run, steps=steps, batch_size=batch_size, lr=lr, seed=seed, describe=describe)
    training = {**describe, **made_by("thinkjepa train ahead", threads, done)}
    domain = ", ".join(sorted({e.domain for e in episodes}))
    if done.group.first:
        ahead.save(out, net.cpu(), MODEL_ID, trained=True, domain=domain, training=training, licence=LICENCE)
    done.group.wait()
