"""`thinkjepa evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MINI, Model, shipped

evaluate = typer.Typer(help="Find out what a model is worth, beside baselines.", no_args_is_help=True)


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
