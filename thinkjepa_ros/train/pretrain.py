"""Pretraining of a clip encoder without labels: `thinkjepa train pretrain`, as V-JEPA 2 does (arXiv 2506.09985).

Most tokens of a clip are hidden. The encoder sees the rest, a small predictor fills in the latents of the hidden ones,
and what it must hit are the latents that a slowly moving copy of the encoder gives for the whole clip. The recipe
"dense" asks for the visible tokens too (V-JEPA 2.1, arXiv 2603.14482); "end-to-end" has no copy: the encoder's own
latents are the target, gradient and all, and SIGReg keeps them from collapsing (LeJEPA, LeWM, arXiv 2603.19312).
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoints
from ..data.episode import Episode, EpisodeError
from ..jepa import rope
from ..jepa.encoder import Encoder, EncoderConfig
from ..jepa.layers import EPS, Block, initialise
from ..jepa.masking import (
    LONG_RANGE,
    SHORT_RANGE,
    Grid,
    Masks,
    TubeMask,
    context_ramp,
    context_weights,
    nearest,
)
from ..version import __version__
from . import clips, objectives
from .objectives import CollapseGauge, Reading
from .record import made_by
from .run import Run
from .run import threads as use_threads

KIND = "encoder"
#: The encoder that is pretrained by default: the mini's, seeing clips.
MINI = EncoderConfig(tubelet=2, attention="full")
#: Shares of the run at which the loss on visible tokens sets in and reaches its peak (V-JEPA 2.1: 15k, 30k of 300k).
RAMP = (0.05, 0.1)
#: The gauge needs a singular value decomposition: every so many steps.
GAUGE_EVERY = 10
GAUGE = CollapseGauge()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What is predicted, and what keeps the latents from collapsing."""

    masks: tuple[TubeMask, ...] = (SHORT_RANGE, LONG_RANGE)
    #: Target: layer-normed latents of a moving average of the encoder. Otherwise the encoder's own, with gradient.
    moving_target: bool = True
    momentum: float = 0.99  #: of the moving average, at the first step. Published: 0.99925 for all of 252,000 steps
    momentum_end: float = 0.999  #: and at the last
    context: float = 0.0  #: peak weight of the loss on visible tokens; V-JEPA 2.1: 0.5
    #: Weights of the penalties on the latents. SIGReg grows with the clips of a batch: LeWM takes 0.09 for 128 of them.
    sigreg: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0


RECIPES = {
    "masked": Recipe(),
    "dense": Recipe(context=0.5),
    "end-to-end": Recipe(moving_target=False, sigreg=1.0),
}


def recipe_of(name: str, **changes: float | None) -> Recipe:
    """A recipe by name, with other numbers where they are given. Raises ValueError."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    return replace(RECIPES[name], **given)


@dataclass(frozen=True)
class Clip:
    """Clips of the training data: frames on a time grid, cropped at random and flipped as one."""

    frames: int = 8
    step_s: float = 0.1
    area: tuple[float, float] = (0.3, 1.0)  #: of the crop, as share of the image; V-JEPA 2's
    aspect: tuple[float, float] = (0.75, 1.35)  #: width over height of the crop; drawn on a logarithmic scale

    def batch(self, episodes: list[Episode], size: int, pixels: int, rng: np.random.Generator) -> Tensor:
        """`size` random clips, uint8 [B, frames, pixels, pixels, 3]. Raises EpisodeError where none is long enough."""
        out = np.empty((size, self.frames, pixels, pixels, 3), np.uint8)
        step_ns = round(self.step_s * 1e9)
        span_ns = (self.frames - 1) * step_ns
        spare = np.array([e.stamps_ns[-1] - e.stamps_ns[0] - span_ns for e in episodes])
        long_enough = np.flatnonzero(spare >= 0)
        if not len(long_enough):
            raise EpisodeError(
                f"no episode is as long as a clip of {self.frames} frames every {self.step_s:g} s; "
                "use longer episodes or shorter clips"
            )
        for clip in out:
            which = long_enough[rng.integers(len(long_enough))]
            index = clips.Grid.of(episodes[which].stamps_ns, step_ns, int(rng.integers(spare[which] + 1))).index
            images = [episodes[which].frames[int(i)] for i in index[: self.frames]]
            top, left, height, width = self._crop(images[0].shape[0], images[0].shape[1], rng)
            flip = rng.random() < 0.5
            for to, image in zip(clip, images, strict=True):
                part = image[top : top + height, left : left + width]
                mode = cv2.INTER_AREA if min(height, width) > pixels else cv2.INTER_LINEAR
                made = cv2.resize(part, (pixels, pixels), interpolation=mode)
                to[...] = made[:, ::-1] if flip else made
        return torch.from_numpy(out)

    def _crop(self, rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop within the image."""
        area = rows * columns * rng.uniform(*self.area)
        aspect = math.exp(rng.uniform(*np.log(self.aspect)))
        height = min(rows, max(1, round(math.sqrt(area / aspect))))
        width = min(columns, max(1, round(math.sqrt(area * aspect))))
        return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width


class MaskPredictor(nn.Module):
    """Fills in hidden tokens: the visible ones and a mask token at every hidden place attend to each other.

    `guided.GuidedPredictor` without guidance, which also gives the visible tokens: the recipe "dense" needs them.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, latent: int, grid: Grid, width: int = 96, depth: int = 3, heads: int = 4):
        super().__init__()
        self.embed = nn.Linear(latent, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        initialise(self.blocks)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out = nn.Linear(width, latent)
        for layer in (self.embed, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        cos, sin = rope.table(rope.grid(torch.arange(grid[0]), *grid[1:]), width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, context: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """context: latents [B, K, D] of the visible tokens. Returns latents of the visible and of the hidden ones,
        [B, K, D] and [B, M, D].
        """
        hidden = self.mask_token.expand(*masks.target.shape, -1)
        x = torch.cat((self.embed(context), hidden), 1)
        place = torch.cat((masks.context, masks.target), 1)
        table = self.cos[place][:, None], self.sin[place][:, None]
        for block in self.blocks:
            x, _ = block(x, table)
        x = self.out(self.norm(x))
        return x[:, : context.shape[1]], x[:, context.shape[1] :]


class Losses(NamedTuple):
    total: Tensor
    prediction: Tensor  #: of the hidden tokens, mean over masks
    copy: Tensor  #: what copying the target of the nearest visible token would cost
    latents: Tensor  #: [B, N, D] of whole clips, without gradient: what the gauge looks at


class Pretraining(nn.Module):
    """Encoder, predictor and target of one recipe."""

    def __init__(self, config: EncoderConfig, recipe: Recipe, clip: Clip):
        super().__init__()
        self.recipe = recipe
        self.grid: Grid = (clip.frames // config.tubelet, config.grid, config.grid)
        self.encoder = Encoder(config)
        self.predictor = MaskPredictor(config.width, self.grid)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False) if recipe.moving_target else None

    @property
    def result(self) -> Encoder:
        """The encoder to keep: the moving average where there is one, as published."""
        return self.encoder if self.target is None else self.target

    def draw(self, batch: int, rng: np.random.Generator) -> list[Masks]:
        """The masks of a batch, one of each kind."""
        return [mask.draw(batch, self.grid, rng) for mask in self.recipe.masks]

    def forward(self, video: Tensor, masks: list[Masks], directions: Tensor, context: float = 0.0) -> Losses:
        """video uint8 [B, T, S, S, 3]; directions [D, K] for SIGReg; context: weight of the loss on visible tokens."""
        if self.target is None:
            target = self.encoder(video).flatten(1, 2)
            total = self._penalty(target, directions)
        else:
            with torch.no_grad():
                target = objectives.normalised(self.target(video).flatten(1, 2))
            total = torch.zeros((), device=video.device)
        prediction = copied = torch.zeros((), device=video.device)
        share = 1 / len(masks)
        for mask in masks:
            seen = self.encoder(video, keep=mask.context)
            visible, hidden = self.predictor(seen, mask)
            wanted = _pick(target, mask.target)
            prediction = prediction + share * objectives.prediction_loss(hidden, wanted)
            if context:
                weight = context_weights(mask, self.grid)
                near = objectives.prediction_loss(visible, _pick(target, mask.context), weight=weight)
                total = total + share * context * near
            if self.target is not None:
                total = total + share * self._penalty(seen, directions)
            with torch.no_grad():
                which = mask.context.gather(1, nearest(mask.target, mask.context, self.grid)[1])
                copied = copied + share * objectives.prediction_loss(_pick(target, which), wanted)
        return Losses(total + prediction, prediction.detach(), copied, target.detach())

    def _penalty(self, latents: Tensor, directions: Tensor) -> Tensor:
        """Of latents [B, n, D]: SIGReg over the clips at each place, variance and covariance over all tokens."""
        recipe, total = self.recipe, torch.zeros((), device=latents.device)
        if recipe.sigreg:
            total = total + recipe.sigreg * objectives.sigreg(latents.transpose(0, 1), directions)
        if recipe.variance:
            total = total + recipe.variance * objectives.variance_loss(latents.flatten(0, 1))
        if recipe.covariance:
            total = total + recipe.covariance * objectives.covariance_loss(latents.flatten(0, 1))
        return total


def _pick(latents: Tensor, index: Tensor) -> Tensor:
    """[B, K, D]: tokens `index` [B, K] of latents [B, N, D]."""
    return latents.gather(1, index[:, :, None].expand(-1, -1, latents.shape[-1]))


def train(
    episodes: list[Episode],
    net: Pretraining,
    clip: Clip,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict,
    gauge: CollapseGauge = GAUGE,
) -> tuple[Run, Reading]:
    """Train `net` in place and read the gauge at the end. Resumes from `folder`. Raises run.Stopped, EpisodeError.

    A collapse is logged as a warning when it begins; training goes on, for it may be passing.
    """
    run = Run(folder, net, steps, lr, seed, describe, weight_decay=0.04, warm_up=max(1, min(100, steps // 10)))
    device = next(net.parameters()).device
    width, size, recipe = net.encoder.config.width, net.encoder.config.image_size, net.recipe
    net.train()

    def losses(rng: np.random.Generator, context: float) -> Losses:
        video = clip.batch(episodes, batch_size, size, rng).to(device)
        masks = [Masks(*(index.to(device) for index in m)) for m in net.draw(batch_size, rng)]
        return net(video, masks, objectives.random_directions(rng, width).to(device), context)

    def read(found: Losses) -> Reading:
        return gauge.read(found.latents.flatten(0, 1), found.prediction.item(), found.copy.item())

    reading: Reading | None = None
    for step in run.steps("pretrain"):
        ramp = context_ramp(step, round(RAMP[0] * steps), round(RAMP[1] * steps), recipe.context)
        found = losses(run.random(step), ramp)
        rate = run.optimizer.param_groups[0]["lr"]
        norm = run.update(found.total / run.group.world)  # every process computes the whole batch
        momentum = 0.0  # the target is the encoder itself
        if net.target is not None:
            momentum = objectives.momentum(step, steps - 1, recipe.momentum, recipe.momentum_end)
            objectives.ema_update(net.target, net.encoder, momentum)
        if step % GAUGE_EVERY == 0 or reading is None:
            before, reading = reading, read(found)
            if reading.collapsed and not (before and before.collapsed):
                _LOG.warning("step %d: %s", step, reading.sentence)
        columns = {**reading.columns(), "prediction_over_copy": (found.prediction / found.copy).item()}
        run.note(loss=found.prediction.item(), **columns, momentum=momentum, lr=rate, grad=norm)
    with torch.no_grad():
        return run, read(losses(run.random(steps), recipe.context))


def pretrain(
    data: Path,
    out: Path,
    *,
    run: Path,
    recipe: Recipe = RECIPES["masked"],
    steps: int = 2000,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    device: str = "cpu",
    config: EncoderConfig = MINI,
    clip: Clip = Clip(),
) -> Reading:
    """Pretrain an encoder on the episodes in `data` (or its folder train/) and write it to `out`. Work in progress
    lives in `run`; the same command goes on where it was.

    Raises run.Stopped, EpisodeError, ValueError.
    """
    use_threads(threads)
    episodes = clips.load_folder(data / "train" if (data / "train").is_dir() else data, limit)
    torch.manual_seed(seed)
    net = Pretraining(config, recipe, clip).to(device)
    describe = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "episodes": len(episodes),
        "data": _identity(episodes), "config": asdict(config), "clip": asdict(clip), "recipe": asdict(recipe),
    }  # fmt: skip
    done, reading = train(
        episodes, net, clip, run, steps=steps, batch_size=batch_size, lr=lr, seed=seed, describe=describe
    )
    training = {
        **describe,
        **made_by("thinkjepa train pretrain", threads, done),
        "gauge": asdict(reading),
    }
    domain = ", ".join(sorted({e.domain for e in episodes}))
    manifest = checkpoints.Manifest(KIND, f"thinkjepa-encoder-{__version__}", asdict(config), True, domain, training)
    if done.group.first:
        checkpoints.save(out, manifest, net.result.state_dict())
    return reading


def _identity(episodes: list[Episode]) -> str:
    """A short hash of which episodes these are."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(f"{episode.split} {episode.seed} {len(episode)}".encode() + episode.frames.jpeg(0))
    return digest.hexdigest()[:16]
