"""Parts of an offline evaluation in several processes, each with its own models, that write into the same files.

Processes and not threads: threads of one process wait for each other's Python, and half of the work is Python.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.data.workers import guard_worker

from .ground import Ground
from .offline import Done, Offline
from .origins import Part, Rhythm
from .said import Said

#: Forecasts of a part: few enough that the bar moves and that the last ones end together, many enough that what a part
#: has to make good first does not count.
PART = (100, 600)
_LOOK_S = 0.2
_METHOD = "forkserver"
#: What they need beside this module.
_NEEDED = ("thinkjepa_ros.evaluation.bag.run", "thinkjepa_ros.thinker.qwen")


@dataclass(frozen=True)
class Recipe:
    """How a process makes its own models: as they were made here."""

    model: Path
    thinker: Path | None
    dtype: str
    threads: int


@dataclass(frozen=True, eq=False)
class _Job:
    """What every process gets to know at its start."""

    recipe: Recipe
    rhythm: Rhythm
    joints: np.ndarray
    grounds: list[Ground]
    folder: Path
    sizes: tuple[Any, ...]
    made: Any  # how many forecasts are done, of all parts
    stop: Any


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def prepare() -> None:
    """Have a server begin to import what the processes need, while this one does other things. Again is nothing."""
    multiprocessing.get_context(_METHOD).set_forkserver_preload([__name__, *_NEEDED])
    forkserver.ensure_running()


class Workers:
    """Processes that do parts of an evaluation. Use as a context manager."""

    def __init__(
        self, count: int, recipe: Recipe, rhythm: Rhythm, joints: np.ndarray, grounds: Sequence[Ground], said: Said
    ) -> None:
        """said: in a room with a folder."""
        assert said.room.folder is not None
        prepare()
        context = multiprocessing.get_context(_METHOD)
        self._made, self._stop = context.Value("q", 0), context.Event()
        slim = [replace(g, course=replace(g.course, truth=None, pose=np.zeros((0, 4, 4)))) for g in grounds]
        job = _Job(recipe, rhythm, joints, slim, said.room.folder, said.sizes, self._made, self._stop)
        self._pool = ProcessPoolExecutor(count, context, _begin, (job,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def run(self, parts: Sequence[Part], done: Sequence[Done], advance: Callable[[int], None]) -> dict[int, str]:
        """Do all parts. done: what came of each recording is added there. advance: called with the number of forecasts.

        Returns why recordings failed, by their number. On Ctrl-C parts that have begun are left at what they have done,
        and KeyboardInterrupt goes on.
        """
        jobs: dict[Future[Done], Part] = {}
        failed: dict[int, str] = {}
        seen = 0
        finished: dict[int, Done] = {}  # by first row, as thoughts are told in the order of time
        try:
            for part in parts:
                jobs[self._pool.submit(_run, part)] = part
            waiting = set(jobs)
            while waiting:
                ready, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for job in ready:
                    self._take(job, jobs[job], finished, failed)
                now = int(self._made.value)
                advance(now - seen)
                seen = now
        except KeyboardInterrupt:
            self._stop.set()
            for job in jobs:
                job.cancel()
            for job in (j for j in jobs if not j.cancelled()):
                if jobs[job].first not in finished:
                    self._take(job, jobs[job], finished, failed)
            raise
        finally:
            for part in parts:
                if part.first in finished:
                    done[part.number].add(finished[part.first])
        return failed

    @staticmethod
    def _take(job: Future[Done], part: Part, finished: dict[int, Done], failed: dict[int, str]) -> None:
        try:
            finished[part.first] = job.result()
        except RecordingError as error:
            failed.setdefault(part.number, str(error))
        except BrokenProcessPool:
            failed.setdefault(
                part.number,
                "a process of the evaluation died (out of memory, or killed), and what it had not done is missing; "
                "run it again with fewer (--workers 1)",
            )


_MINE: dict[str, Any] = {}


def _begin(job: _Job) -> None:
    """In a new process: Ctrl-C is the parent's, which asks to stop; a parent that is gone cannot."""
    guard_worker()
    import cv2
    import torch

    from .run import load_models

    torch.set_num_threads(job.recipe.threads)
    cv2.setNumThreads(job.recipe.threads)
    models = load_models(job.recipe.model, job.recipe.thinker, "cpu", job.recipe.dtype)
    runner = Offline(models.forecaster, models.thinker, job.rhythm, job.joints)
    _MINE.update(job=job, runner=runner, said=Said.opened(job.folder, job.sizes))


def _run(part: Part) -> Done:
    done = Done()
    job, runner, said = _MINE["job"], _MINE["runner"], _MINE["said"]

    def advance(count: int) -> None:
        with job.made.get_lock():
            job.made.value += count

    runner.run(job.grounds[part.number], said, part, done, advance, job.stop.is_set)
    return done
