"""`thinkjepa train score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import Device, Run, Seed, Threads


def train_score(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes of the work cell (`thinkjepa data rollouts`), or with train/.")
    ],
    imagination: Annotated[Path, typer.Option(help="Folder of `train world`, whose latents are scored.")] = Path(
        "out/world"
    ),
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/score"),
    run: Run = Path("out/train_score"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = defaults.SCORE_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Frames in a step.")] = defaults.SCORE_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.SCORE_LR,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the language score: how well latents fit an instruction, and how far its task is.

    The planner subtracts it from its energy. It belongs to the imagination whose latents it was trained on.
    """
    from ..train.score import train_score as run_training

    run_training(
        data,
        out,
        world=imagination,
        run=run,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        limit=limit,
        seed=seed,
        threads=threads,
        device=device,
    )
