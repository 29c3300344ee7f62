"""What the policy is trained for (VLA-JEPA, arXiv 2602.10098, with a frozen target encoder and single frames).

- Action: conditional flow matching on what the expert does next, several draws of noise and time per sample.
- World: a predictor is told the latents of now and the policy's latent actions, and must say what the latents of the
  frames ahead are; mean absolute error, weight 0.1. Future frames are targets only, every frame is encoded alone, and
  the predictor is not part of the policy: it is gone after training.
- Place: where the named cube and tray are, from the gripper, and that the queries for them look there. It teaches the
  reader to look at what is named, from every frame and for all words, long before the actions alone would.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..control.imagination import Imagination
from ..control.policy import PLACE_M, Policy, Present, flow_loss, shrunk
from ..jepa.world_model import WorldModel
from .policy_data import Batch

#: Times of the flow are 1 - s b with b from Beta(1.5, 1): noisy ones are seen more often. s keeps them below 1.
#: How sharply a query should look at a thing, standard deviation in cells.
SPREAD_CELLS = 0.7
_ALPHA, _LATEST = 1.5, 0.999


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses."""

    world: float = 0.1
    place: float = 0.3
    look: float = 0.1
    draws: int = 4  #: of noise and time per sample
    future: int = 2  #: frames of the horizon that are targets in each step, if `world` counts


class PolicyLearner(nn.Module):
    """The policy, and what only training needs. imagination: gives the latents that are foretold; it stays as it is."""

    def __init__(self, policy: Policy, recipe: Recipe, imagination: Imagination | None = None):
        super().__init__()
        if recipe.world and imagination is None:
            raise ValueError("a loss of a world model needs an imagination whose latents it foretells; give its folder")
        self.policy, self.recipe = policy, recipe
        self.target = imagination.eval().requires_grad_(False) if recipe.world and imagination is not None else None
        self.ahead = None
        if self.target is not None:
            w = self.target.config.world
            config = dataclasses.replace(
                w, context=1, horizon=policy.config.horizon, action_dim=policy.config.width, action_mean=(),
                action_std=(), guide_layers=0, guide_width=0, sight="actions",
            )  # fmt: skip
            self.ahead = WorldModel(config)

    def train(self, mode: bool = True) -> PolicyLearner:
        super().train(mode)
        if self.target is not None:
            self.target.eval()
        return self

    def forward(self, batch: Batch, noise: Tensor, time: Tensor) -> tuple[Tensor, dict[str, float]]:
        """noise [B, K, H, 4] and time [B, K] of the flow. Returns the loss, and its parts for a log."""
        policy, r = self.policy, self.recipe
        present = policy.remember(policy.see(batch.frames), batch.state, batch.words, batch.payload)
        action = flow_loss(policy, present, batch.actions, batch.weight, noise, time)
        off = (present.places - batch.places) / PLACE_M
        distance = (off.square().sum(-1) + 1e-4).sqrt()
        place = (distance * batch.placed).sum() / batch.placed.sum().clamp(min=1)
        look = self._look(batch, present)
        total = action + r.place * place + r.look * look
        notes = {"action": action.item(), "place_m": place.item() * PLACE_M, "look": look.item()}
        if self.ahead is not None:
            world, copied = self._world(batch, present.latent_actions)
            total = total + r.world * world
            notes |= {"world": world.item(), "world_over_copy": world.item() / max(copied, 1e-12)}
        return total, notes

    def _look(self, batch: Batch, present: Present) -> Tensor:
        """Cross-entropy of where the two queries look and where the things are seen, in cells of the finest map."""
        c = self.policy.config
        coarse, fine = self.policy.coarse_rays, self.policy.fine_rays
        grid, skip = (fine, len(coarse)) if c.detail else (coarse[: c.encoder.grid**2], 0)
        there = batch.places + batch.state[:, None, :3]
        ray = there[..., :2] / there[..., 2:].clamp(min=0.05)
        side = round(len(grid) ** 0.5)
        cell = c.camera.width / c.camera.fx / side
        near = -0.5 * ((ray[:, :, None] - grid) / (SPREAD_CELLS * cell)).square().sum(-1)
        inside = batch.placed * (near.amax(-1) > -2)  # what is out of the picture cannot be looked at
        wanted = near.softmax(-1)
        total = near.new_zeros(())
        for logits in present.looks:
            of_all = logits.float().log_softmax(-1)[..., skip : skip + len(grid)]
            total = total - ((wanted * of_all).sum(-1) * inside).sum() / inside.sum().clamp(min=1)
        return total / len(present.looks)

    def _world(self, batch: Batch, latent_actions: Tensor) -> tuple[Tensor, float]:
        """Mean absolute error of the foretold latents, and that of "nothing changes"."""
        assert self.target is not None and self.ahead is not None
        with torch.no_grad():
            images = torch.cat((batch.frames[:, -1:], batch.future), 1).flatten(0, 1)
            seen = self.target.see(shrunk(images, images.shape[1] // self.target.config.encoder.image_size))
            seen = seen.unflatten(0, (len(batch.state), -1))
            now, goal = seen[:, 0], self.target.pool(seen[:, 1:])
        context = self.ahead.remember(self.target.pool(now)[:, None][:, :0], now, batch.state)
        foretold = self.ahead.imagine(context, latent_actions, steps=batch.steps)
        counts = batch.known[..., None, None] / batch.known.sum().clamp(min=1) / goal[0, 0].numel()
        copied = ((self.target.pool(now)[:, None] - goal).abs() * counts).sum().item()
        return ((foretold - goal).abs() * counts).sum(), copied


def times(random: Tensor) -> Tensor:
    """Times of the flow from uniform random numbers."""
    return 1 - _LATEST * random.pow(1 / _ALPHA)  # the inverse of the distribution function of Beta(1.5, 1)
