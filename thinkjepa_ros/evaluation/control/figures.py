"""Pictures of the control figures, readable on a phone: success of all rows, and success over sequences per plan.

Drawn from the JSON of the report. Blue plans, green proposes and plans, orange is the policy, grey a control.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"policy + planner": "#2a9d4e", "planner": "#1f6fd1", "policy": "#e39b2d", "cem": "#8a63b8"}
CONTROL = "#b9c0c9"
_WIDTH, _DPI = 6.4, 160


def colour_of(row: str) -> str:
    """By who acts; controls, what is told the wrong thing among them, are grey."""
    if "shuffled" in row:
        return CONTROL
    return next((colour for who, colour in COLOURS.items() if row.startswith(who)), CONTROL)


def draw(whole: dict[str, Any], out: Path) -> list[Path]:
    """PNG files in `out`; a picture that has nothing to show is not made. Raises ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; `pip install matplotlib` brings it (requirements/train.txt)"
        ) from None
    made = []
    for kind in dict.fromkeys(cell["kind"] for cell in whole["cells"]):
        cells = [cell for cell in whole["cells"] if cell["kind"] == kind]
        usual = [cell for cell in cells if " @" not in cell["row"]]
        pictures = {"success": (_bars, usual, 1.2 + 0.34 * len(usual)), "budget": (_curve, cells, 4.6)}
        for name, (fill, shown, height) in pictures.items():
            picture = Figure(figsize=(_WIDTH, max(2.4, height)), layout="constrained")
            axes = picture.subplots()
            if not fill(axes, shown):
                continue
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3, axis="x" if name == "success" else "both")
            axes.set_axisbelow(True)
            picture.suptitle(f"{kind}, {cells[0]['seeds']} {whole['about']['use']} seeds", fontsize=11)
            path = out / f"{name}_{kind}.png"
            with replacing(path) as part:
                picture.savefig(part, format="png", dpi=_DPI)
            made.append(path)
    return made


def _bars(axes: Axes, cells: list[dict[str, Any]]) -> bool:
    shown = cells[::-1]  # the first row on top
    for place, cell in enumerate(shown):
        mean, low, high = (100 * x for x in cell["success"])
        axes.barh(place, mean, color=colour_of(cell["row"]), height=0.7)
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="#222222", capsize=2.5, linewidth=1.2)
        axes.annotate(f"{mean:.0f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    names = [cell["row"] + (" (untrained)" if cell["untrained"] else "") for cell in shown]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(0, 112)
    axes.set_xlabel("success, % (95 % Wilson interval)")
    return bool(shown)


def _curve(axes: Axes, cells: list[dict[str, Any]]) -> bool:
    families: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["imagined"] and "shuffled" not in cell["row"]:
            families.setdefault(cell["row"].partition(" @")[0], []).append(cell)
    families = {name: found for name, found in families.items() if len(found) > 1}
    for number, (name, found) in enumerate(families.items()):
        found.sort(key=lambda cell: cell["imagined"])
        along = [cell["imagined"] for cell in found]
        mean, low, high = ([100 * cell["success"][k] for cell in found] for k in range(3))
        style = ("-", "--", ":", "-.")[number % 4]
        axes.plot(along, mean, style, marker="o", color=colour_of(name), label=name, linewidth=2)
        axes.fill_between(along, low, high, color=colour_of(name), alpha=0.12, linewidth=0)
    if not families:
        return False
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 102)
    axes.set_xlabel("sequences imagined per plan")
    axes.set_ylabel("success, % (95 % Wilson interval)")
    axes.legend(frameon=False, fontsize=9)
    return True
