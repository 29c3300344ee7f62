"""Stage `subgoal`: the head that says what the thinker wants to be seen (`thinker.subgoal`): `thinkjepa train subgoal`.

It gets the states of a thought and learns the latent of the encoder, pooled as the predictor pools it, `horizon_s`
after the newest frame of that thought. Latents are taken as they are: the encoder ends with a LayerNorm, so that they
are of one scale already, and the head answers in the space in which the predictor forecasts. A thought whose horizon
lies behind the end of its episode has the last frame as its target: the task is done and nothing moves any more.

What it can know is little: the thinker says which cube goes to which tray, and where those lie is hardly in its states.
So it is compared with three others: the latent of the moment of the thought, the mean of the latents it learned from,
and its own answer to the thought of another episode. If that is as good, nothing of the intent came through.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..jepa import model
from ..thinker import subgoal
from ..thinker.qwen import Thinker
from ..thinker.subgoal import SubgoalConfig, SubgoalHead
from ..version import __version__
from . import clips, defaults, distributed, mini
from .record import made_by
from .run import Run
from .run import threads as use_threads
from .tracks import Tracks

#: How often what was generated is held back: a thought may have been cut off before its first word.
SPEECHLESS = 0.1


@dataclass(frozen=True)
class Lessons:
    """K thoughts and what was to be seen."""

    pyramids: Tensor  # float32 [K, L, 2, D_vlm]
    present: Tensor  # bool [K, 2]
    now: Tensor  # float32 [K, p^2, D], latent at the newest frame of the thought
    later: Tensor  # float32 [K, p^2, D], the target
    other: Tensor  # int64 [K], a thought of the next episode, as far into it

    @staticmethod
    def of(tracks: Tracks, horizon_s: float) -> Lessons:
        """Raises ValueError where there are no thoughts."""
        if not len(tracks.thought_ns):
            raise ValueError("there are no thoughts to learn sub-goals from; the episodes are too short")
        now, later, other = [], [], []
        full = [e for e in range(len(tracks.thoughts) - 1) if tracks.thoughts[e + 1] > tracks.thoughts[e]]
        begin = {int(tracks.episode[n]): int(n) for n in np.unique(tracks.begin)}
        for place, e in enumerate(full):
            first = begin[e]
            stamps = tracks.stamps_ns[first : tracks.end[first]]
            follower = full[(place + 1) % len(full)]
            start, count = tracks.thoughts[follower], tracks.thoughts[follower + 1] - tracks.thoughts[follower]
            for k, stamp in enumerate(tracks.thought_ns[tracks.thoughts[e] : tracks.thoughts[e + 1]]):
                now.append(first + max(0, int(np.searchsorted(stamps, stamp, side="right")) - 1))
                later.append(first + int(np.abs(stamps - (stamp + round(horizon_s * 1e9))).argmin()))
                other.append(int(start + min(k, count - 1)))
        return Lessons(
            pyramids=tracks.pyramids,
            present=tracks.pyramids.abs().amax((1, 3)) > 0,
            now=tracks.pooled[torch.tensor(now)].float(),
            later=tracks.pooled[torch.tensor(later)].float(),
            other=torch.tensor(other),
        )

    def __len__(self) -> int:
        return len(self.pyramids)


@dataclass(frozen=True)
class Reading:
    """Mean absolute errors of latents over validation thoughts, and what else it could have been."""

    thoughts: int
    episodes: int
    head: float
    copy: float  #: the latent at the thought
    mean: float  #: mean of the training targets, per token
    other: float  #: the head's answer to the thought of another episode

    @property
    def sentence(self) -> str:
        return (
            f"L1 {self.head:.4f} over {self.thoughts} thoughts of {self.episodes} episodes; copying the latent of now "
            f"{self.copy:.4f}, the mean latent {self.mean:.4f}, with the thoughts of other episodes {self.other:.4f}"
        )


def read(head: SubgoalHead, lessons: Lessons, mean: Tensor, episodes: int) -> Reading:
    """mean: [p^2, D], of the targets that the head learned from."""
    device = next(head.parameters()).device
    with torch.inference_mode():
        pick = lambda rows: head(lessons.pyramids[rows].to(device), lessons.present[rows].to(device)).cpu()  # noqa: E731
        said, astray = pick(torch.arange(len(lessons))), pick(lessons.other)
        error = lambda guess: float((guess - lessons.later).abs().mean())  # noqa: E731
        return Reading(len(lessons), episodes, error(said), error(lessons.now), error(mean), error(astray))


def train(
    lessons: Lessons,
    head: SubgoalHead,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict[str, Any],
    quiet: bool = False,
) -> Run:
    """Train `head` in place, on the device where it is. Resumes from `folder`.

    The log shows its L1 as a share of that of copying the latent of now, and of the mean latent. Raises run.Stopped,
    ValueError.
    """
    device = next(head.parameters()).device
    run = Run(folder, head, steps, lr, seed, describe, quiet=quiet)
    group = run.group
    if batch_size % group.world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {group.world} processes")
    mean = lessons.later.mean(0)
    head.train()
    for step in run.steps("subgoal"):
        rng = run.random(step)
        rows = torch.from_numpy(rng.integers(len(lessons), size=batch_size))
        speaks = torch.from_numpy(rng.random(batch_size) >= SPEECHLESS)
        rows, speaks = group.mine(rows), group.mine(speaks)
        present = lessons.present[rows] & torch.stack((torch.ones_like(speaks), speaks), 1)
        target = lessons.later[rows]
        said = head(lessons.pyramids[rows].to(device), present.to(device))
        share = F.smooth_l1_loss(said, target.to(device)) / group.world
        norm = run.update(share)
        errors = [(guess - target).abs().mean() for guess in (said.detach().cpu(), lessons.now[rows], mean)]
        own, copy, average = (group.total(torch.stack(errors)) / group.world).tolist()
        run.note(l1=own, over_copy=own / copy, over_mean=own / average, grad=norm)
    head.eval()
    return run


def train_subgoal(
    data: Path,
    out: Path,
    *,
    init: Path,
    run: Path,
    thinker: Path,
    latents: Path | None = None,
    steps: int = defaults.SUBGOAL_STEPS,
    batch_size: int = defaults.SUBGOAL_BATCH,
    lr: float = defaults.SUBGOAL_LR,
    horizon_s: float = defaults.SUBGOAL_HORIZON_S,
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    val_limit: int | None = defaults.VAL_EPISODES,
    device: str = "cpu",
) -> Reading:
    """`thinkjepa train subgoal`: train a head on the episodes in `data` (folder train/) and write it to `out`.

    init: the model whose encoder sees the latents, and whose id names their space. latents: folder of the cache, made
    where it is missing; default `run`/cache. The reading is over data/val, or over what it learned from where there is
    no such folder. Raises as `mini.train_forecast` does.
    """
    where = model.torch_device(device)
    use_threads(threads)
    processes = distributed.group()
    mind = Thinker.load(thinker, device)
    net, manifest = model.load(init)
    net.to(where).eval().requires_grad_(False)
    maker = mini.cache_maker(net, mind, thinker)
    folder = latents or run / "cache"
    source = mini.folder_of(data)
    episodes = clips.load_folder(source, limit)
    lessons = Lessons.of(mini.cached(episodes, maker, folder, processes), horizon_s)
    tokens, width = lessons.later.shape[1:]
    config = SubgoalConfig(tuple(mind.layers), mind.width, tokens, width, horizon_s, space=manifest.model_id)
    record: dict[str, Any] = {
        "seed": seed, "episodes": len(episodes), "data_sha256": clips.data_hash(source, limit),
        "thoughts": len(lessons), "steps": steps, "batch_size": batch_size, "lr": lr,
    }  # fmt: skip
    torch.manual_seed(seed)
    head = SubgoalHead(config).to(where)
    done = train(
        lessons,
        head,
        run,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        describe={**record, "config": asdict(config), "cache": maker.made_by},
    )
    checked, mean = lessons, lessons.later.mean(0)
    if (data / "val").is_dir():
        episodes = clips.load_folder(data / "val", val_limit)
        checked = Lessons.of(mini.cached(episodes, maker, folder, processes), horizon_s)
    reading = read(head, checked, mean, len(episodes))
    if processes.first:
        training = {
            **made_by("thinkjepa train subgoal", threads, done),
            **record,
            "target": "pooled latent of the encoder",
            "thinker": mind.model_id,
            "encoder": manifest.name,
            "reading": asdict(reading),
        }
        name = f"thinkjepa-mini-subgoal-{__version__}"
        subgoal.save(out, head.cpu(), name, trained=True, domain=mini.DOMAIN, training=training)
    processes.wait()
    return reading
