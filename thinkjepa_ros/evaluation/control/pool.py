"""Episodes in several processes; each loads the models once and gives back finished lines."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from thinkjepa_ros.data.workers import guard_worker

from . import films, lockstep
from .journal import Key, Line
from .models import Models, Sources
from .planned import Setting
from .rows import Row

_models: Models | None = None


@dataclass(frozen=True)
class Job:
    """film: where a strip goes if the episode fails; None: nowhere."""

    row: Row
    key: Key
    film: Path | None = None


class EpisodeFailed(RuntimeError):
    """An episode could not be run; the text names it and the reason."""


def work(job: Job, models: Models, setting: Setting) -> Line:
    """One episode, and its film."""
    line, film = lockstep.run(job.row, job.key, models, setting)
    if job.film is not None and not line["success"]:
        films.save(film, f"{job.key.row}, {job.key.kind}, seed {job.key.seed}: failed", job.film)
    return line


def run(jobs: Sequence[Job], sources: Sources, setting: Setting, workers: int, threads: int = 1) -> Iterator[Line]:
    """Lines in the order in which they are done. Raises EpisodeFailed; what was given back before it is whole."""
    if workers == 1:
        torch.set_num_threads(threads)
        models = Models(sources)
        for job in jobs:
            yield work(job, models, setting)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (sources, threads))
    queue = iter(jobs)
    running: dict[Future[Line], Job] = {}
    try:
        while True:
            while len(running) < workers + 1 and (more := next(queue, None)) is not None:
                running[pool.submit(_work, more, setting)] = more
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                del running[future]
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise EpisodeFailed(
                        "a process died (out of memory, or killed); the same command goes on where it stopped"
                    ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(sources: Sources, threads: int) -> None:
    """In a new process: leave Ctrl-C to the parent and never outlive it."""
    global _models
    guard_worker()
    torch.set_num_threads(threads)
    _models = Models(sources)


def _work(job: Job, setting: Setting) -> Line:
    assert _models is not None
    return work(job, _models, setting)
