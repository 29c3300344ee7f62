"""A world with a known best plan, for tests of the planner: a point that goes where it is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from thinkjepa_ros.control import energy as terms
from thinkjepa_ros.control.energy import Energy
from thinkjepa_ros.control.planner import Problem
from thinkjepa_ros.control.search import SearchConfig

H = 4
CONFIG = SearchConfig(
    low=(-0.06, -0.06, -0.06, 0.0),
    high=(0.06, 0.06, 0.06, 1.0),
    sigma=(0.03, 0.03, 0.03, 0.3),
    absolute=(False, False, False, True),
    horizon=H,
)
START, HOLD = torch.tensor([0.1, 0.2, 0.3, 0.0]), torch.tensor([0.0, 0.0, 0.0, 0.25])
GOAL, SCALE = torch.tensor([0.22, 0.1, 0.25, 0.9]), torch.tensor([10.0, 10.0, 10.0, 1.0])


class Table:
    """A latent is where the point is, in decimetres, and how closed the gripper: [S, K, 1, 4]. All actions add up."""

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        point = known[0][:3] + actions[..., :3].cumsum(1)
        return torch.cat((10 * point, actions[..., 3:]), 2)[:, list(steps), None]


def problem(goal: Tensor = GOAL, start: Tensor = START, steps: tuple[int, ...] = terms.final(H), *more) -> Problem:
    return Problem((start,), Energy((terms.toward((goal * SCALE)[None], [1.0] * len(steps)), *more), steps), HOLD)


def config(**changes) -> SearchConfig:
    return dataclasses.replace(CONFIG, **changes)


class Watched(Table):
    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        if not actions.requires_grad:
            self.seen.append(actions.numpy())
        return super().imagine(actions, steps, *known)
