"""Stages `forecast` and `guide`, on cached latents of a frozen encoder.

`forecast` trains predictor and motion readout without any thinker. `guide` then freezes them and trains what a thinker
may change: the guide of the predictor, and a second motion readout that starts as a copy of the first. So whatever a
thinker brings, it takes nothing: with a silent thinker the forecast is that of the model that never had one, bit by
bit. (Trained together, with and without guidance at the same origins, the unguided mode fell behind such a model.)

Losses: distance of the forecast joints (metres), smooth L1 of the predicted latents (future frames are targets only),
and the likelihood of the distance under the predicted sigma. The observed pose (anchor) is given at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..jepa import precision
from ..jepa.guidance import Payload, amount_of
from ..jepa.model import ForecastNet, read_motion
from . import distributed
from .run import Run
from .tracks import Tracks, Window

#: Share of a batch drawn from origins at which something moves. Motion can be seen, so that taking it more often says
#: nothing false about how likely it is; taking the moments just before it more often would.
FOCUS = 0.5
ANCHORED = 0.35
#: A live thinker's newest thought is over frames so much older than the origin, in seconds.
LATE_S = (0.2, 1.2)


class Future(nn.Module):
    """The half of the network that is trained on cached latents.

    Predictor and readout compute in `dtype`, the weights stay in float32 (bfloat16 halves the time where the processor
    multiplies it).
    """

    def __init__(self, net: ForecastNet, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.predictor, self.motion, self.guided_motion = net.predictor, net.motion, net.guided_motion
        self._dtype = dtype

    def forward(self, w: Window, poses: Tensor, payload: Payload | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `ForecastNet.forecast`, from a window and poses [B, C, J, 3], the last one now or the anchor."""
        past, now = w.past.to(self._dtype), w.now.to(self._dtype)
        amount = None
        if payload is not None:
            amount = amount_of(payload)
            payload = payload.to(now.device, self._dtype)
        weights = {name: p.to(self._dtype) for name, p in self.predictor.named_parameters()}
        weights |= {name: b.to(self._dtype) for name, b in self.predictor.named_buffers()}
        future = functional_call(self.predictor, weights, (past, now, payload)).float()
        return (*read_motion(self.motion, self.guided_motion, future, w.now, poses, amount), future)


@dataclass(frozen=True)
class Batch:
    window: Window
    poses: Tensor  # [B, C, J, 3], the last one is now or the anchor
    payload: Payload | None
    count: float  #: known joints ahead in the whole batch, of which this may be a part
    tubelets: float  #: known tubelets ahead in the whole batch

    def to(self, device: torch.device) -> Batch:
        move = Window(**{name: value.to(device) for name, value in vars(self.window).items()})
        payload = None if self.payload is None else self.payload.to(device, torch.float32)
        return Batch(move, self.poses.to(device), payload, self.count, self.tubelets)


@dataclass(frozen=True)
class Origins:
    """Samples that a forecast can begin at, int64 [N], and those of them at which something moves."""

    all: np.ndarray
    moving: np.ndarray

    @staticmethod
    def of(tracks: Tracks, context: int) -> Origins:
        """Raises ValueError if no episode is long enough."""
        every = tracks.origins(context)
        if not len(every):
            raise ValueError(f"no episode is longer than the {context} grid samples that the model looks at")
        moving = every[tracks.moving()[every]]
        return Origins(every, moving if len(moving) else every)

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """`size` of them, a share of FOCUS where something moves."""
        anywhere, moving = (some[rng.integers(len(some), size=size)] for some in (self.all, self.moving))
        return np.where(rng.random(size) < FOCUS, moving, anywhere)


def batch(
    tracks: Tracks,
    net: ForecastNet,
    origins: Origins,
    size: int,
    rng: np.random.Generator,
    guided: bool = False,
    streams: tuple[bool, bool] = (True, True),
    group: distributed.Group = distributed.ALONE,
) -> Batch:
    """`size` random forecast origins, of which this process takes its part. guided: with thoughts.

    streams: what of a thought is given, the mean states over the prompt and over what was generated.
    """
    p = net.config.predictor
    samples, anchored = origins.draw(size, rng), rng.random(size) < ANCHORED
    window = tracks.window(group.mine(samples), p.latents, p.tubelets, p.tubelet_steps)
    poses, _ = window.anchored(torch.from_numpy(group.mine(anchored)))
    payload = None
    if guided:
        late_ns = (rng.uniform(*LATE_S, size=size) * 1e9).astype(np.int64)
        weight = np.where(rng.random(size) < 0.7, 1.0, rng.uniform(0.05, 1.0, size=size))
        payload = thoughts(tracks, group.mine(samples), group.mine(late_ns), group.mine(weight), streams)
    count = group.total(window.future.isfinite().all(-1).sum().float()).item()
    tubelets = group.total(window.latents_known.sum().float()).item()
    return Batch(window, poses, payload, max(1.0, count), max(1.0, tubelets))


def thoughts(
    tracks: Tracks,
    samples: np.ndarray,
    late_ns: np.ndarray | int,
    weight: np.ndarray | float = 1.0,
    streams: tuple[bool, bool] = (True, True),
) -> Payload:
    """For every sample the newest thought over frames at least `late_ns` older, with its weight; rows without one are
    unguided.
    """
    found = tracks.thought_before(samples, late_ns)
    weights = torch.from_numpy(np.where(found < 0, 0.0, weight).astype(np.float32))
    present = torch.tensor(streams).expand(len(found), 2)
    return Payload.pooled(tracks.pyramids[torch.from_numpy(np.maximum(found, 0))], present, weights)


def motion_losses(
    displacement: Tensor, log_sigma: Tensor, target: Tensor, known: Tensor, count: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean distance in metres, and how unlikely it is under sigma (a normal distribution on every axis), per joint.

    displacement, target [B, T, J, 3], log_sigma and known [B, T, J]; count: known joints in the whole batch.
    """
    squared = (displacement - target).square().sum(-1)
    distance = (squared.add(1e-8).sqrt() * known).sum() / count
    likelihood = ((3 * log_sigma + squared.detach() / (2 * (2 * log_sigma).exp())) * known).sum() / count
    return distance, likelihood


def losses(
    net: ForecastNet, future: Future, b: Batch, group: distributed.Group = distributed.ALONE
) -> tuple[Tensor, dict[str, float]]:
    """This process's share of the training loss, and what the log shows."""
    w = b.window
    displacement, log_sigma, latents = future(w, b.poses, b.payload)
    known = w.future.isfinite().all(-1)
    target = torch.where(known[..., None], w.future - b.poses[:, -1:], 0.0)
    distance, likelihood = motion_losses(displacement, log_sigma, target, known, b.count)
    weight = w.latents_known[..., None, None] / (b.tubelets * w.latents[0, 0].numel())
    latent = (F.smooth_l1_loss(latents, w.latents, reduction="none") * weight).sum()
    with torch.no_grad():
        held = (target.square().sum(-1).sqrt() * known).sum() / b.count
        copied = net.predictor.pool(w.now)[:, None].expand_as(w.latents)
        copy = (F.smooth_l1_loss(copied, w.latents, reduction="none") * weight).sum()
        ade, hold, predicted, copying = group.total(torch.stack((distance, held, latent, copy))).tolist()
    notes = {"ade_cm": 100 * ade, "over_hold": ade / hold, "prediction_over_copy": predicted / copying}
    return 10 * distance + latent + 0.02 * likelihood, notes


def trained(net: ForecastNet, guided: bool) -> list[nn.Parameter]:
    """What stage `guide` trains, or stage `forecast`. Raises ValueError for a net without a guide or its readout."""
    guide = net.predictor.guide
    if guided:
        if guide is None or net.guided_motion is None:
            raise ValueError("this model has no guide to train; it needs guide_layers and guided_readout")
        return [*guide.parameters(), *net.guided_motion.parameters()]
    later = set() if guide is None else set(guide.parameters())
    return [p for part in (net.predictor, net.motion) for p in part.parameters() if p not in later]


def train(
    tracks: Tracks,
    net: ForecastNet,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    describe: dict,
    guided: bool = False,
    streams: tuple[bool, bool] = (True, True),
    dtype: str = "float32",
    quiet: bool = False,
) -> Run:
    """Train what a stage trains (`trained`) in place, on the device where they are. Resumes from `folder`.

    guided: stage `guide`, else stage `forecast`. dtype: "float32", "bfloat16" or "auto", in which the predictor
    computes. Raises run.Stopped, ValueError.
    """
    torch.manual_seed(seed)
    device = next(net.parameters()).device
    chosen = precision.choose(device, dtype, net.config.predictor.width)
    net.requires_grad_(False)
    for parameter in trained(net, guided):
        parameter.requires_grad_(True)
    if guided and net.guided_motion is not None:
        net.guided_motion.load_state_dict(net.motion.state_dict())
    future = Future(net, chosen.dtype)
    run = Run(folder, future, steps, lr, seed, {**describe, "dtype": chosen.name}, quiet=quiet)
    if batch_size % run.group.world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {run.group.world} processes")
    origins = Origins.of(tracks, net.config.predictor.latents)
    net.train()
    for step in run.steps("guide" if guided else "forecast"):
        b = batch(tracks, net, origins, batch_size, run.random(step), guided, streams, run.group).to(device)
        loss, notes = losses(net, future, b, run.group)
        run.note(**notes, grad=run.update(loss))
    return run
