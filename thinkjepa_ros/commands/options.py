"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MINI = Path("models/mini")
Model = Annotated[Path, typer.Option(help="Checkpoint folder of the predictor.")]
ThinkerPath = Annotated[Path, typer.Option(help="Checkpoint folder of the thinker.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads.")]
Run = Annotated[Path, typer.Option(help="Work in progress: checkpoints and logs. The same folder resumes.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder of the latents and thoughts, made where missing. Default: RUN/cache.")
]
Device = Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1 …")]
Dtype = Annotated[
    str, typer.Option(help="In which the predictor computes: float32, bfloat16, or auto, which tries what is faster.")
]


def shipped(path: Path) -> Path:
    """A default such as models/mini means the package's own, from whatever folder the command is given."""
    if path.is_relative_to(MINI) and not path.exists():
        from .. import resources

        return resources.find(path)
    return path
