"""What acts in the workcell: one small interface, and those that need no model.

An agent gets at the beginning of every action what a robot would know (`Seen`) and answers with an action. It does not
get the simulation; only the expert is given that, when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...data.sim.behaviour import Expert
from ...data.sim.tasks import STEP_LIMIT, Task
from ...data.sim.workcell import Workcell
from ...values import Camera, Guidance


@dataclass(frozen=True)
class Seen:
    """At the beginning of an action. image: uint8 RGB [H, W, 3]. camera_pose [4, 4]: base frame from camera. state
    [4]: x, y, z of the point between the finger tips in the base frame, metres, and closedness. What is asked for:
    instruction in words; picture: what shall be seen, None where nobody shows one; guidance: the newest thought of the
    thinker that is known by now.
    """

    step: int
    stamp_ns: int
    image: np.ndarray
    camera: Camera
    camera_pose: np.ndarray
    state: np.ndarray
    instruction: str = ""
    picture: np.ndarray | None = None
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Answer:
    """action: float32 [4], metres along x, y, z of the base frame and closedness. source: where it comes from, a word.
    imagined: sequences. energy, hold_energy: of what was imagined, NaN where nothing was. fresh: thought now, and not
    what is left of an earlier plan, or nothing at all.
    """

    action: np.ndarray
    source: str
    imagined: int = 0
    energy: float = float("nan")
    hold_energy: float = float("nan")
    fresh: bool = True


class Agent(Protocol):
    def act(self, seen: Seen) -> Answer:
        """The next action. Called once per action, in order."""
        ...


class Hold:
    """Does nothing: no motion, and the gripper stays as open as it was commanded at first."""

    def act(self, seen: Seen) -> Answer:
        return Answer(np.zeros(4, np.float32), "hold")


@dataclass
class Random:
    """Actions drawn evenly from all that are allowed, each kept for 1 to 5 actions."""

    rng: np.random.Generator
    left: int = 0
    action: np.ndarray = field(default_factory=lambda: np.zeros(4, np.float32))

    def act(self, seen: Seen) -> Answer:
        if self.left == 0:
            self.left = int(self.rng.integers(1, 6))
            drawn = (*self.rng.uniform(-STEP_LIMIT, STEP_LIMIT, 3), self.rng.uniform())
            self.action = np.array(drawn, np.float32)
        self.left -= 1
        return Answer(self.action, "random")


class Script:
    """The expert that recorded the training data, in its plain style. It sees the simulation's truth."""

    def __init__(self, task: Task, cell: Workcell) -> None:
        self._expert, self._cell = Expert(task), cell

    def act(self, seen: Seen) -> Answer:
        return Answer(self._expert.act(self._cell), "expert")
