"""What a task tells those that do it: pictures to be reached one after the other, and the thoughts of a thinker.

For a shuffled row both are those of another task, as it goes on there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.sim.behaviour import Expert
from ...data.sim.rollouts import FIRST_STAMP_NS
from ...data.sim.tasks import ACTION_S, Task, draw_task
from ...data.sim.workcell import Workcell
from ...thinker.qwen import Thinker
from ...train.mini import FIRST_THOUGHT_S, MAX_NEW_TOKENS, THINK_EVERY_S
from ...values import Frame, Guidance

#: A picture of the expert's run is shown for so many times as long as the expert took to get there.
SLACK = 2.0
ACTION_NS = round(ACTION_S * 1e9)


def stamp_of(step: int) -> int:
    """Simulated time at the beginning of an action, as in recorded episodes."""
    return FIRST_STAMP_NS + step * ACTION_NS


@dataclass(frozen=True)
class Picture:
    """image: uint8 RGB, shown before action number `until`."""

    image: np.ndarray
    until: float


@functools.lru_cache(maxsize=64)
def pictures(kind: str, seed: int) -> tuple[Picture, ...]:
    """The goal image of a reach; else what the camera sees in the expert's run of this task at the end of each of its
    stages, and when it is done (as V-JEPA 2-AC is shown sub-goals, arXiv 2506.09985, section 4).
    """
    task = draw_task(kind, seed)
    with Workcell(task) as cell:
        if task.goal is not None:
            return (Picture(cell.goal_image(), np.inf),)
        expert, found = Expert(task), []
        before = ""
        for step in range(task.most_actions + 1):
            image, action = cell.image(), expert.act(cell)
            over = cell.success() or step == task.most_actions
            if over or (before and expert.phase != before):
                found.append((image, step))
            if over:
                break
            before = expert.phase
            cell.act(action)
    ends = [*(SLACK * step for _, step in found[:-1]), np.inf]
    return tuple(Picture(image, until) for (image, _), until in zip(found, ends, strict=True))


def shown(given: Sequence[Picture], step: int) -> np.ndarray | None:
    """The picture that is to be reached at action `step`."""
    return next((one.image for one in given if step < one.until), None)


class Mind:
    """A thinker in lock step: asked at a fixed rhythm with the frames up to then, and heard an action later."""

    def __init__(self, thinker: Thinker, instruction: str) -> None:
        thinker.forget()
        self._thinker, self._instruction = thinker, instruction
        self._frames: dict[int, Frame] = {}
        self._next_s = FIRST_THOUGHT_S
        self.known: Guidance | None = None  #: at the beginning of an action

    def show(self, step: int, image: np.ndarray) -> None:
        """The frame at the beginning of an action, after `known` was read."""
        stamp = stamp_of(step)
        self._frames.setdefault(self._thinker.window.slot(stamp), Frame(image, stamp))
        seconds = step * ACTION_S
        if seconds + 1e-6 >= self._next_s:
            self._next_s = seconds + THINK_EVERY_S
            frames = list(self._frames.values())
            self.known = self._thinker.think(frames, self._instruction, max_new_tokens=MAX_NEW_TOKENS)


class Elsewhere:
    """Another task of the same kind, done by the expert beside this one: where shuffled thoughts come from."""

    def __init__(self, kind: str, seed: int) -> None:
        self.task: Task = draw_task(kind, seed)
        self._cell, self._expert = Workcell(self.task), Expert(self.task)

    def image(self) -> np.ndarray:
        """What is seen there now; then the expert's next action is done."""
        image = self._cell.image()
        self._cell.act(self._expert.act(self._cell))
        return image

    def close(self) -> None:
        self._cell.close()
