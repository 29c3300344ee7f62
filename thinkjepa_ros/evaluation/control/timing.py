"""How long the rows take to decide, side by side: the same moments of an expert's run are given to all of them in turn.

Nothing else should run meanwhile. Processor time is measured beside the wall's, as what others do hardly changes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...data.sim.script import VAL_SEEDS
from ...data.sim.tasks import draw_task
from ...data.sim.workcell import Workcell
from .agents import Script
from .lockstep import decide, make_agent, sights
from .models import Models
from .planned import Setting
from .rows import Row

#: Moments of one run; the first of them is a warm-up and does not count.
LENGTH = 9


@dataclass(frozen=True)
class Times:
    """Milliseconds from the picture to the action, over `moments`: those at which the row thought anew, and did not go
    on with what it had begun. imagined: sequences per plan.
    """

    row: str
    kind: str
    moments: int
    imagined: int
    wall_ms: tuple[float, float]  #: median, 90 % point
    cpu_ms: tuple[float, float]


def measure(
    rows: Sequence[Row],
    kinds: Sequence[str],
    models: Models,
    setting: Setting,
    runs: int = 3,
    seen: Callable[[], None] = lambda: None,
) -> list[Times]:
    """Rows that have a model, on `runs` validation seeds of every kind. seen: called after every moment."""
    out: list[Times] = []
    for kind in kinds:
        asked = [row for row in rows if row.needs and row.fits(kind)]
        found: dict[str, list[tuple[float, float, int]]] = {row.name: [] for row in asked}
        for seed in VAL_SEEDS[:runs]:
            task = draw_task(kind, seed)
            with Workcell(task) as cell, contextlib.ExitStack() as stack:
                driver = Script(task, cell)
                watching = [(row, stack.enter_context(sights(row, models, task, cell))) for row in asked]
                agents = [make_agent(row, models, setting, task, cell) for row in asked]
                for moment in range(LENGTH):
                    last = None
                    for (row, sight), agent in zip(watching, agents, strict=True):
                        last = sight.now()
                        answer, wall, cpu = decide(agent, last)
                        if moment and answer.fresh:
                            found[row.name].append((wall, cpu, answer.imagined))
                    if last is None:
                        break
                    cell.act(driver.act(last).action)
                    seen()
        out += [_times(row, kind, found[row.name]) for row in asked if found[row.name]]
    return out


def _times(row: Row, kind: str, found: list[tuple[float, float, int]]) -> Times:
    wall, cpu, imagined = np.array(found).T
    points = [(round(float(np.median(x)), 2), round(float(np.quantile(x, 0.9)), 2)) for x in (wall, cpu)]
    return Times(row.name, kind, len(found), round(float(imagined.max())), *points)
