"""`thinkjepa train fine-tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .bag_options import words
from .options import MINI, Device, Dtype, Run, Seed, Threads, shipped


def train_fine_tune(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes (`thinkjepa data from-bag`), or with train/ and val/.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    init: Annotated[Path, typer.Option(help="Checkpoint folder to start from.")] = MINI,
    run: Run = Path("out/fine_tune"),
    val: Annotated[
        Path | None, typer.Option(help="Folder of held-out episodes. Default: DATA/val, else a share of DATA.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="That share: the last recordings of DATA.")
    ] = defaults.HELD_OUT,
    joints: Annotated[str, typer.Option(help="Joints to forecast, a,b,c. Default: all that are ever known.")] = "",
    camera: Annotated[
        str,
        typer.Option(help="keep: the field of view of --init; from-data: as wide as the images."),
    ] = "keep",
    thinker: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of a thinker, to learn its guidance. Default: no guidance.")
    ] = None,
    see_steps: Annotated[int, typer.Option(min=1, help="Steps of encoder and pose readout.")] = defaults.TUNE_SEE_STEPS,
    see_batch: Annotated[int, typer.Option(min=2, help="Pairs of frames in such a step.")] = defaults.TUNE_SEE_BATCH,
    encoder_lr: Annotated[
        float, typer.Option(min=0.0, help="Highest learning rate of the encoder; 0 leaves it as it is.")
    ] = defaults.TUNE_ENCODER_LR,
    steps: Annotated[int, typer.Option(min=1, help="Steps of predictor and motion readout.")] = defaults.TUNE_STEPS,
    batch_size: Annotated[int, typer.Option(min=1, help="Forecast origins in a step.")] = defaults.FORECAST_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Their highest learning rate.")] = defaults.TUNE_LR,
    guide_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the guide, with --thinker.")
    ] = defaults.TUNE_GUIDE_STEPS,
    variations: Annotated[
        int | None,
        typer.Option(min=0, help="Further ways to see every episode: other light, a camera that is turned a little."),
    ] = None,
    name: Annotated[str, typer.Option(help="Model id. Default: the name of --out.")] = "",
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes of DATA.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Fine-tune a forecaster on recordings of another robot, camera and set of joints.

    Encoder and predictor are those of --init and learn on; readouts are made for the joints of DATA, and keep what they
    know of joints of the same name. At the end the held-out episodes calibrate sigma and are scored beside simple
    forecasts. docs/recordings.md has all steps from the recording to the robot.

    Example: thinkjepa train fine-tune data/mine --out models/mine
    """
    from ..evaluation.held_out import judge, sentences
    from ..train.distributed import group
    from ..train.fine_tune import fine_tune

    outcome = fine_tune(
        data,
        out,
        init=shipped(init),
        run=run,
        judge=judge,
        val=val,
        held_out=held_out,
        joints=words(joints),
        camera=camera,
        thinker=None if thinker is None else shipped(thinker),
        see_steps=see_steps,
        see_batch=see_batch,
        encoder_lr=encoder_lr,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        guide_steps=guide_steps,
        variations=variations,
        name=name,
        dtype=dtype,
        seed=seed,
        threads=threads,
        limit=limit,
        device=device,
    )
    if group().first:
        for sentence in sentences(outcome):
            print(sentence)
        print(f"{out} is ready: `ros2 launch thinkjepa_ros thinkjepa.launch.py model:={out}`")
