"""`thinkjepa evaluate control`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Threads, shipped


def evaluate_control(
    imagination: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of `thinkjepa train world`: what planners imagine in.")
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(help="Another one, of patch tokens (--pooled 8), for the plain CEM.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Checkpoint folder of `thinkjepa train policy`.")] = None,
    thinker: Annotated[Path | None, typer.Option(help="Checkpoint folder of a thinker.")] = None,
    ahead: Annotated[
        Path | None, typer.Option(help="Sub-goals of `thinkjepa train ahead`, for that imagination.")
    ] = None,
    score: Annotated[
        Path | None, typer.Option(help="Language score of `thinkjepa train score`, for that imagination.")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of tasks, with commas.")] = "reach,pick_place_text,pick_place_lamp",
    rows: Annotated[
        list[str] | None,
        typer.Option(help='Rows by name, such as "planner: *"; give it several times. Default: all.'),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Tasks of each kind.")] = 20,
    use: Annotated[str, typer.Option(help="val: seeds for choices. test: those of the final run, once.")] = "val",
    budgets: Annotated[
        str, typer.Option(help='More samples x rounds for every row that plans, such as "16x2 32x2 128x3".')
    ] = "",
    horizon: Annotated[int, typer.Option(min=1, help="Actions that our planner looks ahead.")] = 4,
    energy: Annotated[str, typer.Option(help="Of our planner: l1, l2, likelihood or place.")] = "l1",
    dtype: Annotated[str, typer.Option(help="In which worlds are imagined: float32 or bfloat16.")] = "float32",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Take untrained weights, too; their rows are called so.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    threads: Threads = 1,
    runs: Annotated[
        int, typer.Option(min=0, help="Runs of an expert by which times are measured side by side; 0: none.")
    ] = 3,
    out: Annotated[
        Path, typer.Option(help="Folder for metrics.json, table.md, pictures, films. The same folder goes on.")
    ] = Path("out/control"),
) -> None:
    """Does planning in the latent world work? Robots in the simulated workcell, by docs/control_protocol.md.

    Lock step: simulated time stands still while the robot decides. Every finished episode is kept, so that the same
    command goes on after an interruption. Rows whose checkpoints are not given are left out.
    """
    from ..control.imagination import ENERGIES
    from ..evaluation.control.evaluate import Plan, evaluate
    from ..evaluation.control.models import Sources
    from ..evaluation.control.planned import DTYPES, Setting
    from ..evaluation.control.rows import budgets_of

    for name, value, known in (("energy", energy, ENERGIES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"there is no {name} {value!r}; choose one of {', '.join(known)}")
    plan = Plan(
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        rows=tuple(rows or ["*"]),
        seeds=seeds,
        use=use,
        budgets=tuple(budgets_of(budgets)),
        horizon=horizon,
        setting=Setting(energy, dtype),
        workers=workers,
        threads=threads,
        runs=runs,
    )
    sources = Sources(imagination, patches, policy, shipped(thinker) if thinker else None, ahead, score, untrained)
    evaluate(sources, out, plan, ["thinkjepa", *sys.argv[1:]])
