"""Who drives the arm when episodes are recorded: an expert, the expert disturbed, and smooth random motion.

All of them see the simulation's truth and answer with an action: float32 [4], metres along x, y, z over the next
0.2 s (each at most STEP_LIMIT) and the commanded closedness.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from thinkjepa_ros.data.sim.tasks import STEP_LIMIT, WORKSPACE, Task
from thinkjepa_ros.data.sim.workcell import Workcell

#: Height of the finger tips when they take a cube, carry it, and let it go into a tray.
_TAKE_Z, _CARRY_Z, _LEAVE_Z = 0.014, 0.12, 0.046
_NEAR_XY, _NEAR_Z = 0.010, 0.008
_HELD = 0.035  # a cube is held whose centre is no farther from the tool


class Behaviour(Protocol):
    """Something that drives the arm."""

    @property
    def phase(self) -> str:
        """What it is doing, a word of episode.PHASES."""
        ...

    @property
    def label(self) -> np.ndarray | None:
        """What the expert would have done in place of the last action, float32 [4]; None where nobody knows."""
        ...

    def act(self, cell: Workcell) -> np.ndarray:
        """The next action, float32 [4]."""
        ...


def bounded(delta: np.ndarray, closedness: float, limit: float = STEP_LIMIT) -> np.ndarray:
    """An action [4] in the direction of `delta` [3], shortened until no axis exceeds `limit`."""
    delta = delta * min(1.0, limit / max(float(np.abs(delta).max()), 1e-12))
    action = np.array([*delta, np.clip(closedness, 0.0, 1.0)], np.float32)
    action[:3] = np.clip(action[:3], -STEP_LIMIT, STEP_LIMIT)
    return action


class Expert:
    """Does the task, by stages whose waypoints follow from where gripper and cube are now.

    rng: draws a style (speed, heights, where in the tray); None: the plain style. tolerance: scales how near is near
    enough. Above 1 it closes too early at times, notices that nothing is lifted, and tries again.
    """

    def __init__(self, task: Task, rng: np.random.Generator | None = None, tolerance: float = 1.0) -> None:
        self.phase = "reach"
        self.tolerance = tolerance
        self._task, self._tray = task, np.array(task.look.tray_xy[task.tray])
        self._limit, self._gain, self._height = STEP_LIMIT, 0.85, _CARRY_Z
        if rng is not None:
            self._limit = rng.uniform(0.55, 1.0) * STEP_LIMIT
            self._gain, self._height = rng.uniform(0.65, 0.95), _CARRY_Z + rng.uniform(-0.015, 0.05)
            self._tray = self._tray + rng.uniform(-0.012, 0.012, 2)
        self._stage, self._since = self._above, 0
        self.label: np.ndarray | None = None

    def act(self, cell: Workcell) -> np.ndarray:
        self.label = self._next(cell)
        return self.label

    def _next(self, cell: Workcell) -> np.ndarray:
        hand = cell.state()[:3].astype(np.float64)
        if self._task.goal is not None:
            return bounded(self._gain * (self._task.goal - hand), 0.0, self._limit)
        before = self._stage
        target, closedness = self._stage(hand, cell.cube_position(), cell)
        self._since = self._since + 1 if self._stage == before else 0
        return bounded(self._gain * (target - hand), closedness, self._limit)

    # A stage returns where to go and how far to close, and says which stage is next.

    def _above(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        """Over the cube; a gripper that is low rises before it crosses the table."""
        self.phase = "reach"
        if cell.success():
            return self._leave(hand)
        aside, safe = float(np.abs(hand[:2] - cube[:2]).max()), cube[2] + 0.06
        if aside > 0.03 and hand[2] < safe - 0.02:
            return np.array([*hand[:2], safe + 0.02]), 0.0
        if aside < _NEAR_XY * self.tolerance and hand[2] < safe + 0.05:
            self._stage = self._down
        return np.array([*cube[:2], safe + 0.25 * aside]), 0.0

    def _down(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        take = max(_TAKE_Z, cube[2] - 0.012)
        if np.abs(hand[:2] - cube[:2]).max() > 0.03 or self._since > 10:  # it moved, or something is in the way
            self._stage = self._above
        elif hand[2] < take + _NEAR_Z * self.tolerance:
            self._stage = self._close
        return np.array([*cube[:2], take]), 0.0

    def _close(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        self.phase = "grasp"
        if self._since >= 1:
            self._stage = self._lift
        return hand, 1.0

    def _lift(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        self.phase = "transport"
        if np.linalg.norm(cube - hand) > _HELD:
            return self._again(hand)
        if hand[2] > self._height - 0.03:
            self._stage = self._carry
        return np.array([*hand[:2], self._height + 0.01]), 1.0

    def _carry(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        if np.linalg.norm(cube - hand) > _HELD:
            return self._again(hand)
        over = self._tray - (cube[:2] - hand[:2])  # the cube, not the hand, belongs over the tray
        if np.abs(over - hand[:2]).max() < 0.015 * self.tolerance:
            self._stage = self._lower
        return np.array([*over, self._height]), 1.0

    def _lower(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        self.phase = "place"
        if np.linalg.norm(cube - hand) > _HELD:
            return self._again(hand)
        if hand[2] < _LEAVE_Z + 0.01 * self.tolerance or self._since > 8:
            self._stage = self._open
        over = self._tray - (cube[:2] - hand[:2])
        return np.array([*over, _LEAVE_Z]), 1.0

    def _open(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        if self._since >= 1:
            self._stage = self._away
        return hand, 0.0

    def _away(self, hand: np.ndarray, cube: np.ndarray, cell: Workcell) -> tuple[np.ndarray, float]:
        if hand[2] > 0.12 and not cell.in_tray():
            self._stage = self._above
        return self._leave(hand)

    def _leave(self, hand: np.ndarray) -> tuple[np.ndarray, float]:
        return np.array([*hand[:2], max(hand[2], 0.15)]), 0.0

    def _again(self, hand: np.ndarray) -> tuple[np.ndarray, float]:
        """The cube is not in the hand: open, rise, look for it."""
        self._stage, self.tolerance = self._above, 1.0
        return hand + np.array([0.0, 0.0, 0.04]), 0.0


class Perturbed:
    """The expert with noise that is held for some steps, detours, and a gripper that closes or opens at wrong times."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._expert = Expert(task, rng, tolerance=float(rng.choice((1.0, 2.0, 3.0))))
        self._rng = rng
        self._noise, self._noise_left = np.zeros(3), 0
        self._spread = rng.uniform(0.006, 0.025)
        self._detour, self._detour_left = np.zeros(3), 0
        self._slip, self._slip_left = 0.0, 0

    @property
    def phase(self) -> str:
        return self._expert.phase

    @property
    def label(self) -> np.ndarray | None:
        return self._expert.label

    def act(self, cell: Workcell) -> np.ndarray:
        rng, action = self._rng, self._expert.act(cell).astype(np.float64)
        delta, closedness = action[:3], float(action[3])
        if self._noise_left == 0:
            self._noise_left = int(rng.integers(2, 6))
            self._noise = rng.normal(0.0, self._spread, 3) if rng.random() < 0.6 else np.zeros(3)
        if self._detour_left == 0 and rng.random() < 0.03:
            self._detour_left, self._detour = int(rng.integers(2, 6)), rng.uniform(*WORKSPACE)
        if self._slip_left == 0 and rng.random() < 0.02:
            self._slip_left, self._slip = int(rng.integers(1, 4)), float(rng.choice((0.0, 1.0, rng.random())))
        self._noise_left -= 1
        if self._detour_left:
            self._detour_left -= 1
            delta = 0.7 * (self._detour - cell.state()[:3])
            delta *= min(1.0, 0.05 / max(float(np.abs(delta).max()), 1e-12))
        if self._slip_left:
            self._slip_left -= 1
            closedness = self._slip
        return bounded(delta + self._noise, closedness)


class Random:
    """Smooth random motion through the workspace: from place to place, often to a cube, opening and closing."""

    phase = "idle"
    label = None

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left, self._target, self._limit = 0, np.zeros(3), STEP_LIMIT
        self._closedness = float(rng.choice((0.0, 1.0)))
        self._drift, self._spread = np.zeros(3), rng.uniform(0.0, 0.02)
        self._near = rng.uniform(0.2, 0.8)  # how often it goes to a cube

    def _draw(self, cell: Workcell) -> None:
        rng = self._rng
        self._left, self._limit = int(rng.integers(3, 11)), rng.uniform(0.2, 1.0) * STEP_LIMIT
        self._target = rng.uniform(*WORKSPACE)
        if rng.random() < self._near:
            cube = cell.cube_position(int(rng.integers(3)))
            self._target = cube + rng.normal(0.0, (0.02, 0.02, 0.01))
            self._target[2] = rng.uniform(0.012, 0.08)
        if rng.random() < 0.6:
            self._closedness = float(rng.choice((0.0, 1.0, rng.random())))

    def act(self, cell: Workcell) -> np.ndarray:
        if self._left == 0:
            self._draw(cell)
        self._left -= 1
        self._drift = 0.7 * self._drift + 0.7 * self._rng.normal(0.0, self._spread, 3)
        delta = 0.8 * (self._target - cell.state()[:3])
        delta = delta * min(1.0, self._limit / max(float(np.abs(delta).max()), 1e-12))
        return bounded(delta + self._drift, self._closedness)
