"""`thinkjepa train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MINI, Seed, ThinkerPath, Threads, shipped

train = typer.Typer(
    help="Train the parts. Every stage resumes after Ctrl-C or a kill: give the same command again.",
    no_args_is_help=True,
)


@train.command("thinker")
def train_thinker(
    data: Annotated[
        Path | None, typer.Argument(help="Folder with train/ (episodes of `thinkjepa data sim`). Not for --steps 0.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = MINI / "thinker",
    run: Annotated[Path, typer.Option(help="Work in progress: checkpoints and logs. The same folder resumes.")] = Path(
        "out/thinker"
    ),
    steps: Annotated[
        int, typer.Option(min=0, help="0 writes the untrained mini, which says so wherever it is shown.")
    ] = 1000,
    see_steps: Annotated[int, typer.Option(min=1, help="Steps before them in which it learns to see lamps.")] = 700,
    batch_size: Annotated[int, typer.Option(min=2, help="Windows in a step.")] = 32,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1e-3,
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
    )


@train.command("all")
def train_all(
    data: Annotated[Path, typer.Argument(help="Folder with train/ (episodes of `thinkjepa data sim`).")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = MINI,
    run: Annotated[
        Path, typer.Option(help="Work in progress: checkpoints, logs, caches. The same folder resumes.")
    ] = Path("out/train"),
    thinker: ThinkerPath = MINI / "thinker",
    encoder_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `encoder`.")] = 2400,
    forecast_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `forecast`.")] = 900,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs of frames in a step of stage `encoder`.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Train the mini predictor: encoder and pose readout, then latents and thoughts, then guided predictor and motion
    readout.
    """
    from ..train.mini import train_all as run_all

    run_all(
        data,
        out,
        run=run,
        thinker=shipped(thinker),
        encoder_steps=encoder_steps,
        forecast_steps=forecast_steps,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
        limit=limit,
    )


@train.command("forecast")
def train_forecast(
    data: Annotated[Path, typer.Argument(help="Folder with train/ (episodes of `thinkjepa data sim`).")],
    init: Annotated[Path, typer.Option(help="Checkpoint folder whose encoder and pose readout are kept.")] = MINI,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/forecast"),
    run: Annotated[
        Path, typer.Option(help="Work in progress: checkpoints, logs, caches. The same folder resumes.")
    ] = Path("out/train_forecast"),
    thinker: ThinkerPath = MINI / "thinker",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 900,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Train guided predictor and motion readout anew over a trained encoder, as for another thinker.

    The second half of `train all`: latents and thoughts of every episode, then the predictor. A predictor understands
    the thinker it was trained with and no other.
    """
    from ..train.mini import train_forecast as run_forecast

    run_forecast(
        data,
        out,
        init=shipped(init),
        run=run,
        thinker=shipped(thinker),
        forecast_steps=steps,
        seed=seed,
        threads=threads,
        limit=limit,
    )


@train.command("pretrain")
def train_pretrain(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/encoder"),
    run: Annotated[Path, typer.Option(help="Work in progress: checkpoints and logs. The same folder resumes.")] = Path(
        "out/pretrain"
    ),
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
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
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
