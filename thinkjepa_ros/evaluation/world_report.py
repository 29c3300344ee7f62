"""The figures of `evaluation.world` as tables for the terminal and for documents."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from .bootstrap import Interval
from .cue_reach.report import Table

_RATIOS = (
    ("sensitivity", "change of the prediction with other actions / true change", 1.0, 3),
    ("shuffled_over_right", "error with other actions / with the true ones", 1.0, 3),
    ("chosen_m", "cm from the goal, of least energy among random actions", 100.0, 1),
    ("best_m", "cm, the nearest of them", 100.0, 1),
    ("stay_m", "cm, staying", 100.0, 1),
    ("random_m", "cm, a random one", 100.0, 1),
    ("rank_correlation", "rank correlation of energy and distance", 1.0, 3),
)


def cell(figures: dict[str, Any], name: str, factor: float = 1.0, digits: int = 3) -> str:
    """A mean with its interval, or a dash."""
    if name not in figures:
        return "-"
    found = Interval(**figures[name])
    low, high = (f"{factor * x:.{digits}f}" for x in (found.low, found.high))
    return f"{factor * found.mean:.{digits}f} [{low}, {high}]"


def tables(figures: dict[str, Any]) -> list[Table]:
    """Every table. figures: of `world.evaluate`, or the JSON read back."""
    horizon = figures["horizon"]
    words = f"Error of imagined latents (mean absolute) on {figures['episodes']} episodes, 95 % intervals over episodes"
    errors = Table("errors", words, ["actions", "model", "no change", "ridge", "model - ridge"], [])
    for h in range(1, horizon + 1):
        names = (f"model_{h}", f"copy_{h}", f"ridge_{h}", f"model_minus_ridge_{h}")
        errors.rows.append([str(h), *(cell(figures, name) for name in names)])
    words = f"Energy ({figures['energy']}): share of moments in the right order, in %"
    signs = Table("signs", words, ["actions", "axis", "true < opposite", "true < none < opposite"], [])
    for steps in sorted({horizon // 2, horizon}):
        for axis in ("", "_x", "_y", "_z"):
            cells = (cell(figures, f"{kind}_{steps}{axis}", 100, 1) for kind in ("sign", "order"))
            signs.rows.append([str(steps), axis.lstrip("_") or "all", *cells])
    rest = Table("actions", "What actions change", ["figure", "value"], [])
    rest.rows.extend([[words, cell(figures, name, factor, digits)] for name, words, factor, digits in _RATIOS])
    words = "What a linear probe reads from the latents, R² (gripper: x, y, z; gripper_cm: its error in cm)"
    probe = Table("probe", words, ["of", "these weights", "random weights"], [])
    for name, value in figures["probe"].items():
        both = [value, figures["probe_random"].get(name, float("nan"))]
        probe.rows.append([name, *(" ".join(f"{x:.2f}" for x in (v if isinstance(v, list) else [v])) for v in both)])
    return [errors, signs, rest, probe]


def show(figures: dict[str, Any]) -> None:
    """Print all tables."""
    console = Console()
    for one in tables(figures):
        one.show(console, ("figure", "of", "axis"), f"{figures['model']}: {one.title}")
