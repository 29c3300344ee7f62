"""`thinkjepa evaluate world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate_world(
    data: Annotated[Path, typer.Argument(help="Folder of episodes of the work cell that it was not trained on.")],
    train: Annotated[Path, typer.Option(help="Training episodes: ridge and probes are fitted on them.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder of `thinkjepa train world`.")] = Path("out/world"),
    energy: Annotated[str, typer.Option(help="l1, l2, likelihood or place.")] = "l1",
    limit: Annotated[int, typer.Option(min=2, help="Use only the first episodes.")] = 60,
    train_limit: Annotated[int, typer.Option(min=2, help="Fit on only the first training episodes.")] = 150,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """What a world model imagines, beside no change and a linear model, and whether its energy points the right way."""
    from ..control.imagination import ENERGIES
    from ..evaluation.world import evaluate as run

    if energy not in ENERGIES:
        raise ValueError(f"there is no energy {energy!r}; choose one of {', '.join(ENERGIES)}")
    run(model, data, train, energy=energy, limit=limit, train_limit=train_limit, out=out)
