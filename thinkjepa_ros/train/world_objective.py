"""What the world model and its encoder are trained for.

- Prediction: pooled latents after each action, all steps in one pass, against the latents of the true frames, which
  stay where they are (no gradient flows into a target). Squared error.
- Rollout: the latent imagined half-way is looked on as seen, and the rest is imagined from there (V-JEPA 2-AC trains
  two steps so, arXiv 2506.09985).
- SIGReg (LeJEPA, LeWM, arXiv 2603.19312) on the latents of now, or on their change from now to a target: without it
  all of the above is smallest for latents that are always the same.
- Inverse dynamics: which action led from the last frame to this one. Place: where the robot is, now and in what is
  imagined. Things: where the cubes and trays are, in recordings that know. They make the latents tell what an energy
  must tell; without the first, regularisers of this kind have failed to plan (eb_jepa).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..control.imagination import Imagination, seen_by
from ..jepa.guidance import Payload
from . import objectives
from .world_data import THINGS, Moments

TARGETS = ("online", "moving")
#: What SIGReg spreads: latents of frames as in LeWM, or how latents change within the horizon.
SPREADS = ("frames", "changes")


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses, and where targets come from."""

    sigreg: float = 0.05  #: SIGReg grows with the batch; LeWM takes 0.09 for 128
    #: "frames" is filled by how scenes differ: lights, colours, cameras. "changes" asks that latents move with what
    #: moves.
    sigreg_on: str = "changes"
    rollout: float = 0.5
    inverse: float = 0.2
    place: float = 1.0
    things: float = 0.2
    #: "online": the encoder itself, gradient stopped; "moving": a moving average of it.
    target: str = "online"
    momentum: float = 0.99
    targets: int = 2  #: frames of the horizon that are looked at in each sample
    guidance_dropout: float = 0.3

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}, must be one of {', '.join(TARGETS)}")
        if self.sigreg_on not in SPREADS:
            raise ValueError(f"sigreg_on is {self.sigreg_on!r}, must be one of {', '.join(SPREADS)}")
        if self.targets < 1:
            raise ValueError(f"targets is {self.targets}, must be at least 1")


def recipe_of(**changes: Any) -> Recipe:
    """The default recipe with other values where they are not None. Raises ValueError."""
    return Recipe(**{name: value for name, value in changes.items() if value is not None})


class Losses(NamedTuple):
    total: Tensor
    prediction: float
    copy: float  #: what "nothing changes" would cost
    sigreg: float
    notes: dict[str, float]  #: for the log
    latents: Tensor  #: [N, Z] of now, less the mean at their place, no gradient: what the gauge looks at


class Learner(nn.Module):
    """The imagination, and what only training needs."""

    def __init__(self, net: Imagination, recipe: Recipe):
        super().__init__()
        self.net, self.recipe = net, recipe
        w = net.config.world
        self.inverse = nn.Sequential(
            nn.Linear(2 * w.tokens * w.latent_width, 128), nn.GELU(), nn.Linear(128, w.action_dim)
        )
        self.things = nn.Linear(w.tokens * w.latent_width, 3 * len(THINGS))
        self.target: nn.ModuleList | None = None
        if recipe.target == "moving":
            self.target = nn.ModuleList(copy.deepcopy(part).requires_grad_(False) for part in net.eye)

    def forward(self, m: Moments, directions: Tensor, dtype: torch.dtype, payload: Payload | None = None) -> Losses:
        """directions [Z, K] of SIGReg. dtype: in which the encoder computes."""
        net, r, batch = self.net, self.recipe, len(m.state)
        half = self._half
        with torch.autocast(m.state.device.type, dtype, enabled=dtype != torch.float32):
            latents = net.see(m.context.flatten(0, 1)).float().unflatten(0, (batch, -1))
            pooled = net.pool(latents)
            with torch.no_grad():
                target = net.pool(self._aim(m.targets.flatten(0, 1)).float()).unflatten(0, (batch, -1))
        again = range(half - net.config.world.context, half) if r.rollout and m.steps[-1] >= half else ()
        asked = tuple(sorted({*m.steps, *again}))
        ahead = self._imagine((pooled[:, :-1], latents[:, -1], m.state), m.actions, asked, payload)
        known = m.known[..., None, None] / m.known.sum().clamp(min=1) / target[0, 0].numel()
        predicted = ahead[:, [asked.index(h) for h in m.steps]]
        error = ((predicted - target).square() * known).sum()
        with torch.no_grad():
            copied = ((pooled[:, -1:] - target).square() * known).sum()
        total, notes = error, {}
        if again:
            *past, now = (ahead[:, asked.index(h)] for h in again)
            late = tuple(h - half for h in m.steps if h >= half)
            present = torch.stack(past, 1) if past else pooled[:, :0], net.unpool(now), m.states[:, half - 1]
            rolled = self._imagine(present, m.actions[:, half:], late, payload)
            off = ((rolled - target[:, -len(late) :]).square() * known[:, -len(late) :]).sum()
            total = total + r.rollout * off
            with torch.no_grad():
                once = ((predicted - target).square() * known)[:, -len(late) :].sum()
                notes["rollout_over_one_pass"] = (off / once.clamp(min=1e-9)).item()
        spread = pooled[:, -1]
        if r.sigreg_on == "changes":
            spread = (spread - target[:, -1])[m.known[:, -1]]
        sigreg = objectives.sigreg(spread.transpose(0, 1), directions)
        total = total + r.sigreg * sigreg
        ahead_off = (net.standard_state(predicted) - self._standard(m.states[:, list(m.steps)])).square().mean(-1)
        place = (net.standard_state(pooled[:, -1]) - self._standard(m.state)).square().mean()
        place = place + (ahead_off * m.known).sum() / m.known.sum().clamp(min=1)
        mean, std = net.world.state_mean[:3], net.world.state_std[:3]
        off = (self.things(pooled[:, -1].flatten(1)).unflatten(1, (-1, 3)) - (m.things - mean) / std).square().mean(-1)
        things = (off * m.things_known).sum() / m.things_known.sum().clamp(min=1)
        led = self.inverse(pooled[:, -2:].flatten(1)) if pooled.shape[1] > 1 else None
        total = total + r.place * place + r.things * things
        notes |= {"place": place.item(), "things": things.item()}
        if led is not None:
            wanted = (m.before - net.world.action_mean) / net.world.action_std
            inverse = ((led - wanted).square().mean(-1) * m.before_known).sum() / m.before_known.sum().clamp(min=1)
            total = total + r.inverse * inverse
            notes["inverse"] = inverse.item()
        now = pooled[:, -1].detach()
        return Losses(
            total, error.item(), copied.item(), sigreg.item(), notes, (now - now.mean(0, keepdim=True)).flatten(0, 1)
        )

    @property
    def _half(self) -> int:
        """From here on the horizon is imagined a second time, from what is imagined up to here."""
        w = self.net.config.world
        return max(w.context, (w.horizon + 1) // 2)

    def _imagine(
        self,
        present: tuple[Tensor, Tensor, Tensor],
        actions: Tensor,
        steps: tuple[int, ...],
        payload: Payload | None,
    ) -> Tensor:
        """Latents after the steps asked for, float32 [B, len(steps), M, Z].

        Always in float32: with few tokens and a mask, a processor's attention in bfloat16 takes longer on its way back
        than everything else together.
        """
        world = self.net.world
        return world.imagine(world.remember(*present), actions, payload, steps)

    def _aim(self, images: Tensor) -> Tensor:
        """Latents of target frames."""
        if self.target is None:
            return self.net.see(images)
        return seen_by(self.target, images)

    def _standard(self, state: Tensor) -> Tensor:
        return (state - self.net.world.state_mean) / self.net.world.state_std

    def stepped(self) -> None:
        """After an update: the moving average follows."""
        if self.target is not None:
            for own, online in zip(self.target, self.net.eye, strict=True):
                objectives.ema_update(own, online, self.recipe.momentum)
