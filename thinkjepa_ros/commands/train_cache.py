"""`thinkjepa train cache`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .options import MINI, Device, Model, ThinkerPath, Threads, shipped

#: Who tells a process its part: torchrun and its like, then Slurm's job arrays.
_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))


def part_of(rank: int | None, world: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process, from 0, and how many there are. Options win over the environment; alone it is 0 of 1.

    Raises ValueError where that makes no sense.
    """
    names = ("--rank", "--world-size")
    if rank is None and world is None:
        told = next((pair for pair in _RANKS if pair[0] in environment or pair[1] in environment), None)
        if told is None:
            return 0, 1
        names = told
        values = [environment.get(name, "") for name in names]
        if not all(value.isdecimal() for value in values):
            raise ValueError(f"{names[0]} is {values[0]!r} and {names[1]} is {values[1]!r}; set both to whole numbers")
        rank, world = (int(value) for value in values)
        if names == _RANKS[1]:
            first, step = (environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("MIN", "STEP"))
            rank = (rank - int(first or 0)) // int(step or 1)
    if rank is None or world is None:
        raise ValueError("--rank and --world-size belong together; give both or none")
    if not 0 <= rank < world:
        raise ValueError(f"{names[0]} is {rank} of {names[1]} {world}; ranks are 0 … {names[1]} - 1")
    return rank, world


def train_cache(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    model: Model = MINI,
    thinker: ThinkerPath = MINI / "thinker",
    out: Annotated[Path, typer.Option(help="Folder of the cache, one file per episode.")] = Path("out/cache"),
    rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of this process among those that share the work, from 0. Default: RANK, or "
            "SLURM_ARRAY_TASK_ID, or alone.",
        ),
    ] = None,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="How many processes share the work. Default: WORLD_SIZE or SLURM_ARRAY_TASK_COUNT."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Compute latents, poses and thoughts of every episode once, for the trainings and the benchmark.

    What is there and whole is kept, so the same command goes on after a kill. Several processes, or the tasks of a job
    array, may fill one folder: each makes its part.
    """
    place, among = part_of(rank, world_size, os.environ)
    from ..train.mini import fill_cache

    made, count = fill_cache(
        data,
        out,
        init=shipped(model),
        thinker=shipped(thinker),
        rank=place,
        world=among,
        limit=limit,
        threads=threads,
        device=device,
    )
    part = f" in part {place + 1} of {among}" if among > 1 else ""
    print(f"{out}: shards made{part}: {made}, kept: {count - made}")
