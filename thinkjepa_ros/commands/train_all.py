"""`thinkjepa train all`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import MINI, Cache, Device, Dtype, Run, Seed, Threads, shipped


def train_all(
    data: Annotated[Path, typer.Argument(help="Folder with train/ and val/ (episodes of `thinkjepa data sim`).")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = MINI,
    run: Run = Path("out/train"),
    thinker: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder of a trained thinker. Default: one is trained, and written to OUT/thinker."
        ),
    ] = None,
    cache: Cache = None,
    encoder_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `encoder`.")] = defaults.ENCODER_STEPS,
    encoder_batch: Annotated[
        int, typer.Option(min=2, help="Pairs of frames in a step of stage `encoder`.")
    ] = defaults.ENCODER_BATCH,
    see_steps: Annotated[
        int, typer.Option(min=1, help="Steps of stage `thinker` in which it learns to see lamps.")
    ] = defaults.SEE_STEPS,
    thinker_steps: Annotated[
        int, typer.Option(min=1, help="Steps of stage `thinker` after them.")
    ] = defaults.THINKER_STEPS,
    thinker_batch: Annotated[
        int, typer.Option(min=2, help="Windows in a step of stage `thinker`.")
    ] = defaults.THINKER_BATCH,
    forecast_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `forecast`.")] = defaults.FORECAST_STEPS,
    guide_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `guide`.")] = defaults.GUIDE_STEPS,
    forecast_batch: Annotated[
        int, typer.Option(min=1, help="Forecast origins in a step of stages `forecast` and `guide`.")
    ] = defaults.FORECAST_BATCH,
    subgoal_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `subgoal`.")] = defaults.SUBGOAL_STEPS,
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first training episodes.")] = None,
    val_limit: Annotated[
        int | None, typer.Option(min=2, help="Use only the first validation episodes.")
    ] = defaults.VAL_EPISODES,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the mini: encoder, thinker, guided predictor, sub-goal head; then calibrate its sigma on val/.

    One command for all stages, which goes on where it was. Every stage has a command of its own, too.
    `torchrun --nproc-per-node 2 -m -- thinkjepa_ros.cli train all DATA` shares the work.
    """
    from ..train.distributed import group
    from ..train.stages import train_all as run_all

    run_all(
        data,
        out,
        run=run,
        mind=None if thinker is None else shipped(thinker),
        latents=cache,
        encoder_steps=encoder_steps,
        encoder_batch=encoder_batch,
        see_steps=see_steps,
        thinker_steps=thinker_steps,
        thinker_batch=thinker_batch,
        forecast_steps=forecast_steps,
        guide_steps=guide_steps,
        forecast_batch=forecast_batch,
        subgoal_steps=subgoal_steps,
        dtype=dtype,
        seed=seed,
        threads=threads,
        limit=limit,
        val_limit=val_limit,
        device=device,
    )
    if group().first and (data / "val").is_dir():
        from ..evaluation.calibration import calibrate

        calibrate(out, data / "val", limit=val_limit)
