"""One episode of one row: simulated time stands still while the agent decides."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...data.sim.tasks import Task, draw_task
from ...data.sim.workcell import Workcell
from . import told
from .agents import Agent, Answer, Hold, Random, Script, Seen
from .journal import Key, Line
from .models import Models
from .planned import Cem, Controlled, Setting
from .rows import Row

#: A cube whose middle is so high above the table has been lifted, metres.
LIFTED_M = 0.05


@dataclass
class Film:
    """What was seen, for people. images: before every action, and at the end; words: beside each."""

    images: list[np.ndarray] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    pictures: list[np.ndarray | None] = field(default_factory=list)


def make_agent(row: Row, models: Models, setting: Setting, task: Task, cell: Workcell) -> Agent:
    """A fresh agent for an episode. What it draws at random follows from the task's seed."""
    if row.actor == "hold":
        return Hold()
    if row.actor == "random":
        return Random(np.random.default_rng((task.seed, 5)))
    if row.actor == "expert":
        return Script(task, cell)
    if row.method == "cem":
        return Cem(models.patches if row.patches else models.imagination, row, setting, task.seed)
    policy = models.policy if "policy" in row.actor else None
    score = models.score if "score" in row.needs else None
    ahead = models.ahead if "ahead" in row.needs else None
    return Controlled(models.imagination, models.model_id, policy, row, setting, task.seed, score, ahead)


@contextlib.contextmanager
def sights(row: Row, models: Models, task: Task, cell: Workcell) -> Iterator[Sight]:
    """What the agent of a row gets to see in `cell`, action by action."""
    other = told.Elsewhere(task.kind, next_seed(task.seed)) if row.shuffled and row.goal == "thinker" else None
    try:
        yield Sight(row, models, task, cell, other)
    finally:
        if other is not None:
            other.close()


def next_seed(seed: int) -> int:
    """Of the task whose goal a shuffled row is told."""
    return seed + 1


class Sight:
    """See `sights`."""

    def __init__(self, row: Row, models: Models, task: Task, cell: Workcell, elsewhere: told.Elsewhere | None) -> None:
        self._cell, self._elsewhere = cell, elsewhere
        asks = draw_task(task.kind, next_seed(task.seed)) if row.shuffled else task
        self._instruction = asks.instruction
        self._pictures = told.pictures(asks.kind, asks.seed) if row.goal == "pictures" else ()
        self._mind = told.Mind(models.thinker, asks.instruction) if row.goal == "thinker" else None
        self._step = 0

    def now(self) -> Seen:
        """Once per action, before it is done."""
        cell, step = self._cell, self._step
        image = cell.image()
        seen = Seen(
            step,
            told.stamp_of(step),
            image,
            cell.camera,
            cell.camera_pose(),
            cell.state(),
            self._instruction,
            told.shown(self._pictures, step),
            self._mind.known if self._mind else None,
        )
        if self._mind:
            self._mind.show(step, self._elsewhere.image() if self._elsewhere else image)
        self._step += 1
        return seen


def decide(agent: Agent, seen: Seen) -> tuple[Answer, float, float]:
    """The answer, and wall and processor milliseconds it took, from the picture to the action."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = agent.act(seen)
    return answer, 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def run(row: Row, key: Key, models: Models, setting: Setting) -> tuple[Line, Film]:
    """An episode. Everything in the line but the times is a function of row, task, weights and setting."""
    task = draw_task(key.kind, key.seed)
    film, course = Film(), Course(task)
    answers: list[Answer] = []
    times: list[tuple[float, float]] = []
    digest = hashlib.sha256()
    with Workcell(task) as cell:
        agent = make_agent(row, models, setting, task, cell)
        with sights(row, models, task, cell) as sight:
            while not cell.success() and len(answers) < task.most_actions:
                seen = sight.now()
                answer, wall, cpu = decide(agent, seen)
                cell.act(answer.action)
                digest.update(np.asarray(answer.action, np.float32).tobytes())
                film.images.append(seen.image)
                film.pictures.append(seen.picture)
                film.words.append(course.words(cell, answer))
                answers.append(answer)
                times.append((wall, cpu))
                course.note(cell)
        film.images.append(cell.image())
        film.pictures.append(film.pictures[-1] if film.pictures else None)
        film.words.append("done" if cell.success() else "time is up")
        line = {**key._asdict(), "success": cell.success(), "actions": len(answers), **course.end(cell)}
    imagined = [a.imagined for a in answers if a.imagined]
    line["imagined"] = round(float(np.mean(imagined))) if imagined else 0
    line["sources"] = dict(Counter(a.source for a in answers))
    for name, column in zip(("wall_ms", "cpu_ms"), np.transpose(times), strict=True):
        line[name] = round(float(np.median(column)), 2)
    line["digest"] = digest.hexdigest()[:16]
    return line, film


class Course:
    """How near the gripper or the cube came, and what happened to the cubes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._nearest = math.inf
        self._touched = self._lifted = self._misplaced = False

    def note(self, cell: Workcell) -> None:
        """After an action."""
        self._nearest = min(self._nearest, self.distance(cell))
        if self._task.goal is None:
            self._touched |= cell.touched()
            self._lifted |= bool(cell.cube_position()[2] > LIFTED_M and cell.touched())
            self._misplaced |= bool(astray(cell))

    def distance(self, cell: Workcell) -> float:
        """Metres from the gripper to the goal; of pick and place from the cube to the middle of its tray, level."""
        if self._task.goal is not None:
            return cell.reached_error()
        tray = self._task.look.tray_xy[self._task.tray]
        return float(np.linalg.norm(cell.cube_position()[:2] - np.asarray(tray)))

    def words(self, cell: Workcell, answer: Answer) -> str:
        """Before an action."""
        gain = answer.hold_energy - answer.energy
        return f"{100 * self.distance(cell):.1f} cm" + (f", gain {gain:.3f}" if math.isfinite(gain) else "")

    def end(self, cell: Workcell) -> dict[str, Any]:
        """For the line."""
        found: dict[str, Any] = {"distance_m": round(self.distance(cell), 5), "nearest_m": round(self._nearest, 5)}
        if self._task.goal is None:
            found |= {"touched": self._touched, "lifted": self._lifted, "misplaced": self._misplaced}
        else:  # as the camera sees it: a picture tells across better than along
            off = (cell.state()[:3] - self._task.goal) @ cell.camera_pose()[:3, :3]
            found |= {"across_m": round(float(np.hypot(*off[:2])), 5), "along_m": round(float(abs(off[2])), 5)}
        return found


def astray(cell: Workcell) -> Sequence[tuple[int, int]]:
    """(cube, tray) of every cube that lies in a tray where it was not asked for."""
    task, found = cell.task, []
    for cube in range(len(task.cube_xy)):
        place = cell.cube_position(cube)
        for tray, middle in enumerate(task.look.tray_xy):
            inside = np.abs(place[:2] - np.asarray(middle)).max() < task.look.tray_half and place[2] < LIFTED_M
            if inside and (cube, tray) != (task.cube, task.tray) and not cell.touched(cube):
                found.append((cube, tray))
    return found
