"""`thinkjepa train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import MINI, Cache, Device, Dtype, Model, Run, Seed, ThinkerPath, Threads, shipped
from .train_ahead import train_ahead
from .train_all import train_all
from .train_cache import train_cache
from .train_encoder import train_encoder
from .train_fine_tune import train_fine_tune
from .train_policy import train_policy
from .train_score import train_score
from .train_table import train_table
from .train_world import train_world

train = typer.Typer(
    help="Train the parts. Every stage resumes after Ctrl-C or a kill: give the same command again.",
    no_args_is_help=True,
)
train.command("all")(train_all)
train.command("encoder")(train_encoder)
train.command("cache")(train_cache)
train.command("fine-tune")(train_fine_tune)
train.command("table")(train_table)
train.command("world")(train_world)
train.command("policy")(train_policy)
train.command("score")(train_score)
train.command("ahead")(train_ahead)


@train.command("thinker")
def train_thinker(
    data: Annotated[
        Path | None, typer.Argument(help="Folder with train/ (of `data sim` or `data rollouts`). Not for --steps 0.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = MINI / "thinker",
    run: Run = Path("out/thinker"),
    steps: Annotated[
        int, typer.Option(min=0, help="0 writes the untrained mini, which says so wherever it is shown.")
    ] = defaults.THINKER_STEPS,
    see_steps: Annotated[
        int, typer.Option(min=1, help="Steps before them in which it learns to see lamps.")
    ] = defaults.SEE_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Windows in a step.")] = defaults.THINKER_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1e-3,
    start: Annotated[
        Path | None, typer.Option(help="A mini thinker to go on from, such as models/mini/thinker.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Train the mini thinker, a real Qwen3-VL of about a million parameters, to say what cue-reach asks for.

    From scratch, in less than half an hour on two cores: which cube goes to which tray, told by a lamp that was lit
    seconds ago or by the instruction. `thinkjepa evaluate thinker` tells how often it is right.
    """
    from ..train.thinker import train as run_training

    run_training(
        data,
        out,
        run=run,
        steps=steps,
        see_steps=see_steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        threads=threads,
        limit=limit,
        start=None if start is None else shipped(start),
    )


@train.command("forecast")
def train_forecast(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    init: Annotated[Path, typer.Option(help="Checkpoint folder whose encoder and pose readout are kept.")] = MINI,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/forecast"),
    run: Run = Path("out/train_forecast"),
    thinker: ThinkerPath = MINI / "thinker",
    cache: Cache = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the predictor of --init as well, and train only its guide.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps without a thinker.")] = defaults.FORECAST_STEPS,
    guide_steps: Annotated[int, typer.Option(min=1, help="Steps of its guide after them.")] = defaults.GUIDE_STEPS,
    batch_size: Annotated[int, typer.Option(min=1, help="Forecast origins in a step.")] = defaults.FORECAST_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.FORECAST_LR,
    guide_lr: Annotated[float, typer.Option(min=0.0, help="That of the guide.")] = defaults.GUIDE_LR,
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train predictor and motion readout over a trained encoder, then what a thinker changes in them.

    First latents and thoughts of every episode (as `train cache` makes them). A guide understands the thinker it was
    trained with and no other; with --keep it is all that is trained, and forecasts without guidance stay as they were.
    """
    from ..train.mini import train_forecast as run_forecast

    run_forecast(
        data,
        out,
        init=shipped(init),
        run=run,
        thinker=shipped(thinker),
        latents=cache,
        keep=keep,
        steps=steps,
        guide_steps=guide_steps,
        batch_size=batch_size,
        lr=lr,
        guide_lr=guide_lr,
        dtype=dtype,
        seed=seed,
        threads=threads,
        limit=limit,
        device=device,
    )


@train.command("subgoal")
def train_subgoal(
    data: Annotated[Path, typer.Argument(help="Folder with train/ and val/ (episodes of `thinkjepa data sim`).")],
    model: Model = MINI,
    thinker: ThinkerPath = MINI / "thinker",
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/subgoal"),
    run: Run = Path("out/train_subgoal"),
    cache: Cache = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = defaults.SUBGOAL_STEPS,
    batch_size: Annotated[int, typer.Option(min=1, help="Thoughts in a step.")] = defaults.SUBGOAL_BATCH,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = defaults.SUBGOAL_LR,
    horizon_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds from the newest frame of a thought to what should be seen.")
    ] = defaults.SUBGOAL_HORIZON_S,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first training episodes.")] = None,
    val_limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first validation episodes.")
    ] = defaults.VAL_EPISODES,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the head that turns a thought into the latent that should be seen a while later (node parameter subgoal).

    It ends with its error on val/, beside that of copying the latent of now, of the mean latent, and of the thoughts of
    other episodes.
    """
    from ..train.distributed import group
    from ..train.subgoal import train_subgoal as run_training

    reading = run_training(
        data,
        out,
        init=shipped(model),
        run=run,
        thinker=shipped(thinker),
        latents=cache,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        horizon_s=horizon_s,
        seed=seed,
        threads=threads,
        limit=limit,
        val_limit=val_limit,
        device=device,
    )
    if group().first:
        print(f"{out}: {reading.sentence}")


@train.command("pretrain")
def train_pretrain(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/encoder"),
    run: Run = Path("out/pretrain"),
    recipe: Annotated[
        str, typer.Option(help="masked (V-JEPA 2), dense (V-JEPA 2.1) or end-to-end (SIGReg).")
    ] = "masked",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=2, help="Clips in a step.")] = 16,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1e-3,
    momentum: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the target encoder, at the first step. Default: 0.99.")
    ] = None,
    momentum_end: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the target encoder, at the last step. Default: 0.999.")
    ] = None,
    sigreg: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of SIGReg. Default: 1 in end-to-end, else 0.")
    ] = None,
    variance: Annotated[float | None, typer.Option(min=0.0, help="Weight of the variance term. Default: 0.")] = None,
    covariance: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the covariance term. Default: 0.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Pretrain a clip encoder without labels by predicting hidden parts of clips; see docs/pretraining.md."""
    from ..train.pretrain import pretrain, recipe_of

    changes = {"momentum": momentum, "momentum_end": momentum_end}
    changes |= {"sigreg": sigreg, "variance": variance, "covariance": covariance}
    reading = pretrain(
        data,
        out,
        run=run,
        recipe=recipe_of(recipe, **changes),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        threads=threads,
        limit=limit,
        device=device,
    )
    print(f"{out}: {reading.sentence}")


@train.command("untrained")
def train_untrained(
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    seed: Seed = 0,
) -> None:
    """Write a predictor with random weights: to try the plumbing and to measure speed. Everything that shows it says
    so.
    """
    from ..train.mini import untrained

    untrained(out, seed)
