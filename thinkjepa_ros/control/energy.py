"""What a planner minimises: a weighted sum of terms over what the world model imagined and the actions it imagined.

A term is a plain function of tensors with fixed shapes, so that a CUDA graph can hold it: what changes from plan to
plan (a goal, the state of the robot) is in its tensors, what does not (which function, which steps) makes its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..jepa import world_model

#: Imagined latents [S, K, ...] of the scored steps, actions [S, H, A], the term's tensors -> [S], lower is better.
Function = Callable[..., Tensor]
#: Imagined latents [S, K, M, D] and a goal that broadcasts -> [S, K].
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """function: see Function. tensors: what it is told besides. weight: what its value is multiplied by."""

    name: str
    function: Function
    tensors: tuple[Tensor, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Energy:
    """The sum of `terms`. steps: which steps of the horizon are imagined and scored, from 0, rising."""

    terms: tuple[Term, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ValueError on terms of one name, and on steps that are none or do not rise."""
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"terms of an energy need names of their own, not {names}")
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 0:
            raise ValueError(f"scored steps are {self.steps}, must rise from 0 or more")

    @property
    def key(self) -> tuple[object, ...]:
        """What stays the same while only tensors change: a captured graph holds for one key."""
        shapes = tuple(tuple((t.shape, t.dtype) for t in term.tensors) for term in self.terms)
        return (self.steps, tuple((term.name, term.function) for term in self.terms), shapes)

    def pack(self, device: torch.device) -> tuple[Tensor, ...]:
        """Weights and tensors of all terms, for `evaluate`."""
        weights = torch.tensor([term.weight for term in self.terms], dtype=torch.float32, device=device)
        return (weights, *(tensor for term in self.terms for tensor in term.tensors))

    def evaluate(self, latents: Tensor, actions: Tensor, packed: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Energy [S], and the weighted value of every term [S, terms]. Not finite counts as infinite."""
        weights, rest = packed[0], list(packed[1:])
        values = []
        for term in self.terms:
            count = len(term.tensors)
            values.append(term.function(latents, actions, *rest[:count]).float())
            rest = rest[count:]
        parts = torch.stack(values, 1) * weights
        total = parts.sum(1)
        return torch.where(total.isfinite(), total, torch.inf), parts


def every(horizon: int) -> tuple[int, ...]:
    """All steps are scored: the distance on the way counts too."""
    return tuple(range(horizon))


def final(horizon: int) -> tuple[int, ...]:
    """Only the end counts, as in V-JEPA 2-AC."""
    return (horizon - 1,)


def toward(
    latent: Tensor,
    weights: Sequence[float] = (1.0,),
    weight: float = 1.0,
    name: str = "goal",
    distance: Distance = world_model.energy,
) -> Term:
    """Distance to a latent [M, D] (of a goal image, or the sub-goal of the thinker), or one per scored step [K, M, D].

    weights: of the scored steps; they count in proportion, so that the term stays a mean distance. distance: mean L1,
    as in V-JEPA 2-AC (arXiv 2506.09985, section 3.2), or another function of imagined latents [S, K, M, D] and goal
    that gives [S, K].
    """
    shares = torch.tensor(weights, dtype=torch.float32, device=latent.device)
    if not shares.ge(0).all() or not shares.sum() > 0:
        raise ValueError(f"weights of the scored steps are {tuple(weights)}, must be 0 or more and not all 0")
    return Term(name, _Toward(distance), (latent, shares / shares.sum()), weight)


@dataclass(frozen=True)
class _Toward:
    distance: Distance

    def __call__(self, latents: Tensor, actions: Tensor, goal: Tensor, shares: Tensor) -> Tensor:
        return self.distance(latents, goal) @ shares


def language(score: Callable[[Tensor], Tensor], weight: float = 1.0, name: str = "language") -> Term:
    """How well the imagined latents fit what was asked for: `score` of [S, K, M, D] gives [S], higher is better."""
    return Term(name, _Score(score), (), weight)


@dataclass(frozen=True)
class _Score:
    score: Callable[[Tensor], Tensor]

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        return -self.score(latents)


def effort(scale: Tensor, weight: float, name: str = "effort") -> Term:
    """Mean squared action, in units of `scale` [A]; infinite where an entry does not count."""
    return Term(name, _effort, (scale,), weight)


def _effort(latents: Tensor, actions: Tensor, scale: Tensor) -> Tensor:
    return (actions / scale).square().mean((1, 2))


def smoothness(scale: Tensor, before: Tensor, weight: float, name: str = "smoothness") -> Term:
    """Mean squared change from action to action in units of `scale` [A], the first after `before` [A]."""
    return Term(name, _jerk, (scale, before), weight)


def _jerk(latents: Tensor, actions: Tensor, scale: Tensor, before: Tensor) -> Tensor:
    first = before.expand(len(actions), 1, -1)
    return (torch.cat((first, actions), 1).diff(dim=1) / scale).square().mean((1, 2))


def prior(mean: Tensor, deviation: Tensor, weight: float, name: str = "policy") -> Term:
    """How unlikely a policy finds the actions: mean squared distance from `mean` [H, A] in deviations [H, A] of what it
    proposes. With it, the best sequence is the likeliest under policy x exp(-energy / weight): planning as inference
    (arXiv 1805.00909).
    """
    return Term(name, _unlikely, (mean, deviation), weight)


def _unlikely(latents: Tensor, actions: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return ((actions - mean) / deviation).square().mean((1, 2))


def workspace(point: Tensor, low: Tensor, high: Tensor, weight: float = 10.0, name: str = "limits") -> Term:
    """Metres outside of a box, summed over axes, the mean over all steps of the horizon.

    point [3], low [3], high [3]: in the frame of the actions, whose first three entries move the point as commanded.
    """
    return Term(name, _outside, (point, low, high), weight)


def _outside(latents: Tensor, actions: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    way = point + actions[..., :3].cumsum(1)
    return ((low - way).clamp(min=0) + (way - high).clamp(min=0)).sum(2).mean(1)
