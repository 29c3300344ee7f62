"""The figures of `evaluation.world` as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .bootstrap import Interval


def cell(figures: dict[str, Any], name: str, factor: float = 1.0, digits: int = 3) -> str:
    """A mean with its interval, or a dash."""
    if name not in figures:
        return "-"
    found = Interval(**figures[name])
    low, high = (f"{factor * x:.{digits}f}" for x in (found.low, found.high))
    return f"{factor * found.mean:.{digits}f} [{low}, {high}]"


def show(figures: dict[str, Any]) -> None:
    """Print all tables."""
    console, horizon = Console(), figures["horizon"]
    errors = Table(
        title=f"{figures['model']}: error of imagined latents (mean absolute) on {figures['episodes']} episodes, "
        "95 % intervals over episodes"
    )
    for column in ("actions", "model", "no change", "ridge", "model - ridge"):
        errors.add_column(column, justify="right")
    for h in range(1, horizon + 1):
        names = (f"model_{h}", f"copy_{h}", f"ridge_{h}", f"model_minus_ridge_{h}")
        errors.add_row(str(h), *(cell(figures, name) for name in names))
    console.print(errors)
    signs = Table(title=f"Energy ({figures['energy']}): share of moments in the right order, in %")
    for column in ("actions", "axis", "true < opposite", "true < none < opposite"):
        signs.add_column(column, justify="right")
    for steps in sorted({horizon // 2, horizon}):
        for axis in ("", "_x", "_y", "_z"):
            cells = (cell(figures, f"{kind}_{steps}{axis}", 100, 1) for kind in ("sign", "order"))
            signs.add_row(str(steps), axis.lstrip("_") or "all", *cells)
    console.print(signs)
    rest = Table(title="Actions, and what a linear probe reads (R², beside an encoder of random weights)")
    rest.add_column("figure")
    rest.add_column("value", justify="right")
    rest.add_row("change of the prediction with other actions / true change", cell(figures, "sensitivity"))
    rest.add_row("error with other actions / with the true ones", cell(figures, "shuffled_over_right"))
    for name, words in (
        ("chosen_m", "cm from the goal, of least energy among random actions"),
        ("best_m", "cm, the nearest of them"),
        ("stay_m", "cm, staying"),
        ("random_m", "cm, a random one"),
    ):
        rest.add_row(words, cell(figures, name, 100, 1))
    rest.add_row("rank correlation of energy and distance", cell(figures, "rank_correlation"))
    for name, value in figures["probe"].items():
        both = [value, figures["probe_random"].get(name, float("nan"))]
        said = (" ".join(f"{x:.2f}" for x in v) if isinstance(v, list) else f"{v:.2f}" for v in both)
        rest.add_row(f"probe: {name}", " | random ".join(said))
    console.print(rest)
