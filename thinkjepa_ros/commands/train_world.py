"""`thinkjepa train world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import Device, Dtype, Run, Seed, Threads, shipped


def train_world(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes with one frame per action, or with train/ (of the work cell).")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/world"),
    run: Run = Path("out/train_world"),
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint folder whose encoder it starts from, such as models/mini.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=16, help="Pixels per side; without --init.")] = defaults.WORLD_IMAGE,
    encoder_depth: Annotated[
        int, typer.Option(min=1, help="Blocks of the encoder; without --init.")
    ] = defaults.WORLD_ENCODER_DEPTH,
    latent: Annotated[int, typer.Option(min=1, help="Width of the latents planned in.")] = defaults.WORLD_LATENT,
    pooled: Annotated[
        int, typer.Option(min=1, help="An imagined latent has so many tokens squared.")
    ] = defaults.WORLD_POOLED,
    points: Annotated[
        int, typer.Option(min=0, help="Points that the eye follows, beside the encoder; 0: the encoder alone.")
    ] = defaults.WORLD_POINTS,
    points_width: Annotated[
        int, typer.Option(min=1, help="How much of --latent is theirs.")
    ] = defaults.WORLD_POINTS_WIDTH,
    see_steps: Annotated[
        int, typer.Option(min=0, help="Steps beforehand in which these points learn where robot and things are.")
    ] = defaults.WORLD_SEE_STEPS,
    context: Annotated[int, typer.Option(min=1, help="Frames that the present is made of.")] = defaults.WORLD_CONTEXT,
    horizon: Annotated[int, typer.Option(min=2, help="Actions of the longest plan.")] = defaults.WORLD_HORIZON,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = defaults.WORLD_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Moments in a step.")] = defaults.WORLD_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.WORLD_LR,
    encoder_rate: Annotated[
        float,
        typer.Option(min=0.0, help="Learning rate of encoder and points, as a share of the others'; 0: they stay."),
    ] = 1.0,
    target: Annotated[
        str, typer.Option(help="Targets are latents of the encoder itself (online) or of its moving average (moving).")
    ] = "online",
    sigreg: Annotated[float | None, typer.Option(min=0.0, help="Weight of the penalty against collapse.")] = None,
    sigreg_on: Annotated[
        str | None, typer.Option(help="What that penalty spreads: frames, or changes within the horizon (default).")
    ] = None,
    rollout: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the loss of what is imagined from the imagined.")
    ] = None,
    inverse: Annotated[float | None, typer.Option(min=0.0, help="Weight of inverse dynamics.")] = None,
    place: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of telling the robot's state from the latents.")
    ] = None,
    things: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of telling from the latents where cubes and trays are.")
    ] = None,
    targets: Annotated[
        int | None, typer.Option(min=1, help="Frames of the horizon that are looked at in each sample.")
    ] = None,
    thoughts: Annotated[
        Path | None, typer.Option(help="Folder of thoughts (`train cache`): the model is guided by them, too.")
    ] = None,
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the world model that the controller plans in, together with its encoder.

    It learns what will be seen after each of some actions. `thinkjepa evaluate world` tells what it is worth.
    """
    from ..train.world import train_world as run_training
    from ..train.world_objective import recipe_of

    weights: dict[str, object] = {
        "sigreg": sigreg,
        "rollout": rollout,
        "inverse": inverse,
        "place": place,
        "things": things,
        "targets": targets,
    }
    weights |= {"sigreg_on": sigreg_on}
    reading = run_training(
        data,
        out,
        run=run,
        init=None if init is None else shipped(init),
        image_size=image_size,
        encoder_depth=encoder_depth,
        latent=latent,
        pooled=pooled,
        points=points,
        points_width=points_width,
        see_steps=see_steps,
        context=context,
        horizon=horizon,
        recipe=recipe_of(target=target, **weights),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        encoder_rate=encoder_rate,
        thoughts=thoughts,
        dtype=dtype,
        limit=limit,
        seed=seed,
        threads=threads,
        device=device,
    )
    if reading is not None:
        print(f"{out}: {reading.sentence}")
