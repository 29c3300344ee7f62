"""`thinkjepa train table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train import defaults
from .options import MINI, Dtype, ThinkerPath, shipped


def train_table(
    data: Annotated[Path, typer.Argument(help="Folder with train/ (episodes of `thinkjepa data sim`).")],
    out: Annotated[Path, typer.Option(help="One checkpoint folder per trial. The same folder resumes.")] = Path(
        "out/table"
    ),
    init: Annotated[Path, typer.Option(help="Checkpoint folder of the model that all trials start from.")] = MINI,
    thinker: ThinkerPath = MINI / "thinker",
    cache: Annotated[Path, typer.Option(help="Latents and thoughts, in train/; made where they are missing.")] = Path(
        "out/cache"
    ),
    only: Annotated[str, typer.Option(help="Only trials whose name contains this.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps without a thinker.")] = defaults.FORECAST_STEPS,
    guide_steps: Annotated[int, typer.Option(min=1, help="Steps of each guide.")] = defaults.GUIDE_STEPS,
    batch_size: Annotated[int, typer.Option(min=2, help="Forecast origins in a step.")] = defaults.FORECAST_BATCH,
    dtype: Dtype = "auto",
    threads: Annotated[int, typer.Option(min=1, help="torch threads; rather start the command twice.")] = 1,
) -> None:
    """Train what the cue-reach table compares: other seeds, without guidance, told the truth, other ways to guide.

    On cached latents, some minutes each. Give the command several times at once to share the trials between processes;
    a trial that is done is not done again. `thinkjepa evaluate cue-reach` makes the table of them.
    """
    from ..train.table_stage import train_table as run

    run(
        data,
        out,
        init=shipped(init),
        thinker=shipped(thinker),
        latents=cache,
        steps=steps,
        guide_steps=guide_steps,
        batch_size=batch_size,
        dtype=dtype,
        only=only,
        threads=threads,
    )
