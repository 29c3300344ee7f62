"""`thinkjepa train policy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import Device, Dtype, Run, Seed, Threads, shipped


def train_policy(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes of the work cell (`thinkjepa data rollouts`), or with train/.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/policy"),
    run: Run = Path("out/train_policy"),
    imagination: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `train world`: its encoder is the policy's, and the policy's latent actions learn to "
            "foretell its latents."
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Another checkpoint folder whose encoder it starts from, such as models/mini.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="A policy to go on from, with all its weights.")] = None,
    world: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the world model's loss. Default: 0.1 with --imagination.")
    ] = None,
    place: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of telling where the named cube and tray are.")
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=16, help="Pixels per side, a multiple of what the encoder takes.")
    ] = defaults.WORLD_IMAGE,
    frames: Annotated[int, typer.Option(min=1, help="Newest frames that it looks at.")] = 1,
    width: Annotated[int, typer.Option(min=8, help="Width of reader and decoder.")] = defaults.POLICY_WIDTH,
    detail: Annotated[
        int, typer.Option(min=0, help="Channels of the map that is finer than the encoder's tokens; 0: none.")
    ] = defaults.POLICY_DETAIL,
    horizon: Annotated[int, typer.Option(min=1, help="Actions of a chunk.")] = defaults.WORLD_HORIZON,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = defaults.POLICY_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Moments in a step.")] = defaults.POLICY_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.POLICY_LR,
    encoder_rate: Annotated[
        float, typer.Option(min=0.0, help="Learning rate of the encoder, as a share of the others'; 0: it stays.")
    ] = 0.0,
    thoughts: Annotated[
        Path | None, typer.Option(help="Folder of thoughts (`train cache`): the policy is told by them, too.")
    ] = None,
    more: Annotated[
        list[Path] | None,
        typer.Option(help="More folders of episodes, such as those of `data rollouts --policy`; several times."),
    ] = None,
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the policy that proposes chunks of actions for an instruction, by flow matching on demonstrations.

    It imitates the episodes of pick and place that succeeded, and learns from all where cubes and trays are.
    """
    from ..train.policy import train_policy as run_training
    from ..train.policy_objective import Recipe

    known = Recipe()
    if world is None:
        world = 0.0 if imagination is None else known.world
    recipe = Recipe(world=world, place=known.place if place is None else place)
    run_training(
        data,
        out,
        run=run,
        init=None if init is None else shipped(init),
        world=imagination,
        start=start,
        recipe=recipe,
        image_size=image_size,
        frames=frames,
        width=width,
        detail=detail,
        horizon=horizon,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        encoder_rate=encoder_rate,
        thoughts=thoughts,
        more=more or (),
        dtype=dtype,
        limit=limit,
        seed=seed,
        threads=threads,
        device=device,
    )
