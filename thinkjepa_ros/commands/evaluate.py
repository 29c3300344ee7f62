"""`thinkjepa evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate_bag import evaluate_bag
from .evaluate_compare import evaluate_compare
from .evaluate_control import evaluate_control
from .evaluate_cue_reach import evaluate_cue_reach
from .evaluate_world import evaluate_world
from .options import MINI, Model, ThinkerPath, shipped

evaluate = typer.Typer(help="Find out what a model is worth, beside baselines.", no_args_is_help=True)
evaluate.command("bag")(evaluate_bag)
evaluate.command("compare")(evaluate_compare)
evaluate.command("control")(evaluate_control)
evaluate.command("cue-reach")(evaluate_cue_reach)
evaluate.command("world")(evaluate_world)


@evaluate.command("forecast")
def evaluate_forecast(
    data: Annotated[Path, typer.Argument(help="Folder of episodes the model was not trained on.")],
    model: Model = MINI,
    thinker: Annotated[Path | None, typer.Option(help="Also score the model guided by this thinker.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first episodes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Errors of joints now and of forecasts, beside hold and constant velocity, with 95 % intervals over episodes."""
    from ..evaluation.forecast import evaluate as run

    run(shipped(model), data, thinker=None if thinker is None else shipped(thinker), limit=limit, out=out)


@evaluate.command("calibrate")
def evaluate_calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of validation episodes (seeds from 1000000).")],
    model: Model = MINI,
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first episodes.")] = None,
) -> None:
    """Make sigma the standard deviation of the errors on validation episodes, and write that to the model's model.json.

    Shows the share of errors within one and two sigma before and after. Positions and weights stay as they are.
    """
    from ..evaluation.calibration import calibrate as run

    run(shipped(model), data, limit=limit)


@evaluate.command("encoder")
def evaluate_encoder(
    data: Annotated[Path, typer.Argument(help="Folder of simulated episodes that no encoder was trained on.")],
    train: Annotated[Path, typer.Option(help="Training episodes: the readout of the things is fitted on them.")],
    model: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint folder; give it several times. The first is compared with.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Use only the first episodes.")] = 150,
    train_limit: Annotated[int, typer.Option(min=2, help="Fit on only the first training episodes.")] = 300,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """What frozen encoders know of a scene, side by side: where the joints are, and where the cubes and trays are.

    For comparing recipes of `thinkjepa train encoder`, the untrained control ("random") among them.
    """
    from ..evaluation.encoders import evaluate as run

    run([shipped(folder) for folder in model or [MINI]], data, train, limit=limit, train_limit=train_limit, out=out)


@evaluate.command("thinker")
def evaluate_thinker(
    data: Annotated[Path, typer.Argument(help="Folder of episodes the thinker was not trained on.")],
    model: ThinkerPath = MINI / "thinker",
    probe: Annotated[
        Path | None,
        typer.Option(help="Other episodes: fit a linear probe on them that reads the intent from each layer."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first episodes.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each episode.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """How often the thinker says rightly which cube goes to which tray, over windows as a live node has them.

    Windows end at any time, at any phase to the camera, some with frames missing. With --probe also how much of the
    intent each layer of its pyramid carries, beside the same network with random weights.
    """
    from ..evaluation.thinker import evaluate as run

    run(shipped(model), data, probe=probe, limit=limit, per_episode=windows, out=out)
