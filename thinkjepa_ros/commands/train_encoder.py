"""`thinkjepa train encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Seed, Threads


def train_encoder(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/mini_encoder"),
    run: Annotated[Path, typer.Option(help="Work in progress: checkpoints and logs. The same folder resumes.")] = Path(
        "out/train_encoder"
    ),
    recipe: Annotated[
        str,
        typer.Option(
            help="What it learns beside the pose: end-to-end (latent prediction with SIGReg), masked (V-JEPA 2), "
            "pose (nothing), random (nothing, and the encoder stays as it was drawn)."
        ),
    ] = "end-to-end",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2400,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs of frames in a step.")] = 32,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1e-3,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
) -> None:
    """Train encoder and pose readout of the mini alone, by one of four recipes.

    `train forecast --init OUT` then trains a predictor over them. Several processes share a training under torchrun:
    `torchrun --nproc-per-node 2 -m -- thinkjepa_ros.cli train encoder DATA`.
    """
    from ..train.encoder_stage import train_encoder as run_training

    run_training(
        data,
        out,
        run=run,
        recipe=recipe,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        limit=limit,
        seed=seed,
        threads=threads,
        device=device,
    )
