"""How the controller plans: mode, search, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .limits import Vector
from .search import Method, SearchConfig

Mode = Literal["planner", "policy", "both"]
MODES: tuple[Mode, ...] = ("planner", "policy", "both")
#: What a search goes for: the goal image, the thinker's sub-goal, what the words ask for, or the first that there is.
Aim = Literal["auto", "image", "subgoal", "words"]
AIMS: tuple[Aim, ...] = ("auto", "image", "subgoal", "words")
#: Metres that an action moves the point at most, along each axis of the base frame.
MAX_STEP_M = 0.06


@dataclass(frozen=True)
class Options:
    """How plans are made. See `search.SearchConfig` for method, samples, iterations, horizon (actions), prior_weight,
    refine and seed.

    proposals: chunks that the policy offers in mode "both". temperature: of the policy in mode "policy", 0: its mean.
    commit: actions of a chunk that are done, in mode "policy", before it is asked anew.
    distance: see `Imagination.energy`. budget_s: no new round begins after so long; 0: all are made.
    workspace: lowest and highest corner [m]; plans that leave it cost more.
    """

    mode: Mode = "planner"
    aim: Aim = "auto"
    method: Method = "icem"
    samples: int = 64
    iterations: int = 3
    horizon: int = 4
    proposals: int = 16
    prior_weight: float = 0.0
    refine: int = 0
    temperature: float = 0.0
    commit: int = 2
    distance: str = "l1"
    budget_s: float = 0.0
    workspace: tuple[Vector, Vector] | None = None
    seed: int = 0

    @property
    def search(self) -> SearchConfig:
        """Raises ValueError naming the setting that makes no sense."""
        most = MAX_STEP_M
        elites = max(2, min(6, self.samples // 4))
        return SearchConfig(
            low=(-most, -most, -most, 0.0),
            high=(most, most, most, 1.0),
            sigma=(most / 2, most / 2, most / 2, 0.3),
            absolute=(False, False, False, True),
            horizon=self.horizon,
            method=self.method,
            samples=self.samples,
            iterations=self.iterations,
            elites=elites,
            proposals=self.proposals if self.mode == "both" else 0,
            prior_weight=self.prior_weight if self.mode == "both" else 0.0,
            refine=self.refine,
            refined=min(4, elites),
            seed=self.seed,
        )
