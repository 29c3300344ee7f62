"""One round of a search by sampling: draw candidates, score them, move the distribution to the good ones.

Pure functions of tensors with fixed shapes and no branches on values, so that a CUDA graph can hold a round.

- "cem": V-JEPA 2-AC's (arXiv 2506.09985, section 3.2): the mean and the standard deviation of the best candidates of
  this round, blended with the old ones.
- "icem": arXiv 2008.06389: the best candidates of all rounds are kept, so that they count again without being imagined.
- "mppi": as icem, but the better of them count more: weights exp(-(J - J_min) / (temperature * spread of J)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Method = Literal["cem", "icem", "mppi"]
METHODS: tuple[Method, ...] = ("cem", "icem", "mppi")
#: Where a candidate comes from.
SAMPLED, SHIFTED, PROPOSED = 0, 1, 2


@dataclass(frozen=True)
class SearchConfig:
    """Everything that stays the same from plan to plan. Per-entry settings have one number for each of the A entries of
    an action.
    """

    low: tuple[float, ...]  #: bounds of an action, never exceeded
    high: tuple[float, ...]
    sigma: tuple[float, ...]  #: standard deviation that a search begins with
    absolute: tuple[bool, ...]  #: an entry that commands a place (a gripper's closedness), not a motion
    horizon: int = 4
    method: Method = "icem"
    samples: int = 64  #: imagined per round
    iterations: int = 3  #: rounds of a plan
    elites: int = 6
    momentum_mean: tuple[float, ...] = ()  #: what is kept of the old mean; empty: 0.1
    momentum_std: tuple[float, ...] = ()  #: of the old deviation; empty: 0.1
    least_sigma: float = 0.05  #: share of sigma that the deviation never falls below (cem: 0, as published)
    warm_sigma: float = 0.5  #: share of sigma that a warm start begins with at least
    beta: float = 2.0  #: colour of the noise, see `noise`; cem: 0
    window: int = 32  #: of the noise, steps
    decay: float = 1.0  #: samples of a round over those of the next, icem's gamma
    kept: float = 0.5  #: share of the elites that is tried again in the next plan
    temperature: float = 0.5  #: mppi
    proposals: int = 0  #: most candidates that somebody else may propose
    prior_weight: float = 0.0  #: how far their mean draws the mean of a search before its first round, 0 … 1
    refine: int = 0  #: steps of Adam on the best candidates after the last round
    refined: int = 4  #: how many of them
    rate: float = 0.05  #: of Adam, in half ranges of the bounds
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that makes no sense."""
        size = len(self.low)
        for name in ("high", "sigma", "absolute", "momentum_mean", "momentum_std"):
            if name.startswith("momentum") and not getattr(self, name):
                object.__setattr__(self, name, (0.1,) * size)
            if len(getattr(self, name)) != size or not size:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, actions have {size}")
        if not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low {self.low} must be below high {self.high} in every entry")
        if not all(s > 0 for s in self.sigma):
            raise ValueError(f"sigma is {self.sigma}, must be greater than 0 in every entry")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, must be one of {', '.join(METHODS)}")
        whole = {"horizon": 1, "samples": 2, "iterations": 1, "elites": 2, "proposals": 0, "refine": 0, "refined": 1}
        for name, least in whole.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be a whole number of {least} or more")
        for name in ("prior_weight", "least_sigma", "warm_sigma", "kept"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must lie in 0 … 1")
        if not self.decay >= 1 or not self.temperature > 0 or not self.rate > 0 or not self.beta >= 0:
            raise ValueError("decay must be 1 or more, temperature and rate greater than 0, beta 0 or more")
        if self.elites > self.samples or self.refined > self.elites:
            raise ValueError(
                f"{self.samples} samples cannot hold {self.elites} elites, of which {self.refined} refined"
            )
        if self.injected > self.sizes[-1]:
            raise ValueError(
                f"{self.injected} candidates are the mean, {self.again} elites of the plan before and "
                f"{self.proposals} proposals: more than the {self.sizes[-1]} samples of the smallest round"
            )

    @property
    def size(self) -> int:
        """A, entries of an action."""
        return len(self.low)

    @property
    def again(self) -> int:
        """Elites that are tried again in the next plan."""
        return 0 if self.method == "cem" else round(self.kept * self.elites)

    @property
    def injected(self) -> int:
        """Rows of a round that may hold something else than noise."""
        return 1 + self.again + self.proposals

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of every round; a round never has fewer than twice the elites, unless all have."""
        least = min(self.samples, 2 * self.elites)
        return tuple(max(least, round(self.samples * self.decay**-i)) for i in range(self.iterations))


class State(NamedTuple):
    """A search between two rounds; everything float32."""

    mean: Tensor  #: [H, A]
    std: Tensor  #: [H, A]
    elites: Tensor  #: [E, H, A], best first
    energies: Tensor  #: [E], infinite where there is none yet
    parts: Tensor  #: [E, terms], what the energies are made of
    origins: Tensor  #: int64 [E]


class Offer(NamedTuple):
    """Candidates that take the place of the first noisy ones where they are valid."""

    actions: Tensor  #: [R, H, A]
    valid: Tensor  #: bool [R]
    origins: Tensor  #: int64 [R]


def candidates(state: State, noise: Tensor, offer: Offer, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Actions [S, H, A] within the bounds and their origins [S]. noise: [S, H, A] of variance 1."""
    drawn = state.mean + state.std * noise
    rows = len(offer.actions)
    good = offer.valid & offer.actions.isfinite().all((1, 2))
    first = torch.where(good[:, None, None], offer.actions, drawn[:rows])
    origins = torch.where(good, offer.origins, SAMPLED)
    rest = torch.full((len(noise) - rows,), SAMPLED, dtype=torch.int64, device=noise.device)
    return torch.cat((first, drawn[rows:])).clamp(low, high), torch.cat((origins, rest))


class Rates(NamedTuple):
    """Tensors [A] of a SearchConfig."""

    mean: Tensor
    std: Tensor
    least: Tensor


def update(
    state: State, actions: Tensor, energies: Tensor, parts: Tensor, origins: Tensor, rates: Rates, config: SearchConfig
) -> State:
    """After a round with candidates [S, H, A] of energies [S], made of parts [S, terms], and of origins [S].

    Infinite energies never count, however few are finite.
    """
    if config.method != "cem":
        actions, energies = torch.cat((state.elites, actions)), torch.cat((state.energies, energies))
        parts, origins = torch.cat((state.parts, parts)), torch.cat((state.origins, origins))
    best, index = energies.topk(config.elites, largest=False)
    finite = best.isfinite()
    elites = torch.where(finite[:, None, None], actions[index], state.mean)
    weight = finite.float()
    count = weight.sum()
    if config.method == "mppi":
        above = torch.where(finite, best - best[0], 0.0)
        spread = (above.square().sum() / count.clamp(min=1)).sqrt()
        weight = weight * (-above / (config.temperature * spread).clamp(min=1e-12)).exp()
    share = (weight / weight.sum().clamp(min=1e-12))[:, None, None]
    mean = (share * elites).sum(0)
    variance = (share * (elites - mean).square()).sum(0)
    if config.method != "mppi":
        variance = variance * (count / (count - 1).clamp(min=1))  # unbiased, as published
    std = torch.maximum((1 - rates.std) * variance.sqrt() + rates.std * state.std, rates.least)
    mean = (1 - rates.mean) * mean + rates.mean * state.mean
    some = count > 0
    return State(
        torch.where(some, mean, state.mean),
        torch.where(some, std, state.std),
        elites,
        best,
        parts[index],
        origins[index],
    )


def shift(actions: Tensor, steps: float, absolute: Tensor) -> Tensor:
    """Sequences [..., H, A] whose first `steps` steps are over: what is left, then rest.

    Between whole steps, motions are those of moving evenly within a step; a place that is commanded stays commanded at
    the end, a motion does not.
    """
    horizon = actions.shape[-2]
    steps = min(max(steps, 0.0), float(horizon))
    whole = min(int(steps), horizon)
    part = steps - whole
    rest = actions[..., -1:, :] * absolute
    longer = torch.cat((actions, rest.expand(*actions.shape[:-2], whole + 1, -1)), -2)
    now, after = longer[..., whole : whole + horizon, :], longer[..., whole + 1 : whole + 1 + horizon, :]
    return now + part * (after - now)
