"""`thinkjepa train ahead`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import Device, Run, Seed, Threads


def train_ahead(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes of the work cell (`thinkjepa data rollouts`), or with train/.")
    ],
    imagination: Annotated[
        Path, typer.Option(help="Folder of `train world`, in whose latents is looked ahead.")
    ] = Path("out/world"),
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/ahead"),
    run: Run = Path("out/train_ahead"),
    ahead_steps: Annotated[int, typer.Option(min=1, help="Actions from now to what is wanted.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = defaults.AHEAD_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Moments in a step.")] = defaults.AHEAD_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.AHEAD_LR,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train sub-goals: what should be seen some actions later, if the named cube shall come into the named tray.

    A planner heads for them where words or a thinker say what is wanted. They belong to the imagination whose latents
    they are.
    """
    from ..train.ahead import train_ahead as run_training

    run_training(
        data,
        out,
        world=imagination,
        run=run,
        ahead_steps=ahead_steps,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        limit=limit,
        seed=seed,
        threads=threads,
        device=device,
    )
