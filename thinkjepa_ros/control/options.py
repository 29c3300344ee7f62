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
#: What a policy's proposals are taken to differ by at least: metres of a step, and of the gripper's closedness.
LEAST_DEVIATION = 2e-3


@dataclass(frozen=True)
class Options:
    """How plans are made. See `search.SearchConfig` for method, samples, iterations, horizon (actions), prior_weight,
    refine and seed.

    proposals, prior_weight, spread, trust: of mode "both", where the policy knows what is asked for: how many chunks
    it offers, how far their mean draws the search, how wide that begins, as a share of what is usual, and what a
    sequence costs that lies a standard deviation of the proposals from the policy's own (see `energy.prior`): to be
    preferred, it must be imagined to be better by as much. temperature: of the policy in mode "policy", 0: its mean.
    act_untold: in mode "policy", act although nothing is asked for, as a policy that knows one task only may.
    commit: actions of a plan in which the policy has a part that are done before the next plan.
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
    prior_weight: float = 1.0
    trust: float = 1.0
    spread: float = 0.02
    refine: int = 0
    temperature: float = 0.0
    act_untold: bool = False
    commit: int = 2
    distance: str = "l1"
    budget_s: float = 0.0
    workspace: tuple[Vector, Vector] | None = None
    seed: int = 0

    def search(self, proposed: bool) -> SearchConfig:
        """proposed: with proposals of a policy. Raises ValueError naming the setting that makes no sense."""
        most, share = MAX_STEP_M, self.spread if proposed else 1.0
        elites = max(2, min(6, self.samples // 4))
        return SearchConfig(
            low=(-most, -most, -most, 0.0),
            high=(most, most, most, 1.0),
            sigma=(share * most / 2,) * 3 + (share * 0.3,),
            absolute=(False, False, False, True),
            horizon=self.horizon,
            method=self.method,
            samples=self.samples,
            iterations=self.iterations,
            elites=elites,
            proposals=self.proposals if proposed else 0,
            prior_weight=self.prior_weight if proposed else 0.0,
            refine=self.refine,
            refined=min(4, elites),
            seed=self.seed,
        )
