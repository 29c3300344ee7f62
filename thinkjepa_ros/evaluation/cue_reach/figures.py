"""Three pictures of the cue-reach figures for each kind of inputs, readable on a phone.

Drawn from the JSON of the report: errors of all rows as bars, errors by step of the main rows, and what a thought is
still worth when it is old. Blue is guided, green the oracle, red unguided, grey everything that needs no thinker.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import replacing
from .groups import MAIN
from .report import cell_of, inputs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP, HAND = MAIN, "moving"
COLOURS = {"guided": "#1f6fd1", "oracle intent": "#2a9d4e", "unguided": "#d1432b", "hold": "#555555"}
#: Drawn by step, where they were measured.
MAIN_ROWS = (*COLOURS, "shuffled guidance", "mean displacement", "ridge on past joints")
OTHER, EXTRA = "#b9c0c9", ("#e39b2d", "#8a63b8", "#4aa7b5")
AGE = re.compile(r"stale guidance, ([0-9.]+) s")
_WIDTH, _DPI = 6.4, 160


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """PNG files in `folder`; a picture that has nothing to show is not made. Raises ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; `pip install matplotlib` brings it (requirements/train.txt)"
        ) from None
    made = []
    for inputs in inputs_of(figures):
        rows = {row["row"]: row for row in figures["rows"] if row["inputs"] == inputs}
        pictures: dict[str, tuple[Callable[..., bool], float]] = {
            "bars": (_bars, max(2.4, 1.2 + 0.3 * len(rows))),
            "steps": (_steps, 5.0),
            "stale": (_stale, 4.4),
        }
        for name, (fill, height) in pictures.items():
            picture = Figure(figsize=(_WIDTH, height), layout="constrained")
            axes = picture.subplots()
            if not fill(axes, figures, rows):
                continue
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3, axis="x" if name == "bars" else "both")
            axes.set_axisbelow(True)
            picture.suptitle(f"{axes.get_title()}\n{inputs}, told, reach not begun, moving hand", fontsize=11)
            axes.set_title("")
            if axes.get_legend_handles_labels()[0]:
                picture.legend(loc="outside lower center", ncols=3, fontsize=10, frameon=False)
            path = folder / f"{name}_{inputs.replace(' ', '_')}.png"
            with replacing(path) as part:
                picture.savefig(part, format="png", dpi=_DPI)
            made.append(path)
    return made


def _ade(row: dict[str, Any] | None, horizon: int) -> list[float] | None:
    """Mean, low and high in cm; without an interval the mean three times."""
    value = cell_of(row, GROUP, HAND, horizon).get("ade") if row else None
    if value is None or value[0] is None:
        return None
    return [100 * (value[0] if x is None else x) for x in value[:3]]


def _bars(axes: Axes, figures: dict[str, Any], rows: dict[str, Any]) -> bool:
    horizon = figures["horizons"][-1]
    values = {name: value for name, row in rows.items() if (value := _ade(row, horizon))}
    names = sorted(values, key=lambda name: values[name][0], reverse=True)  # the best on top
    for place, name in enumerate(names):
        mean, low, high = values[name]
        axes.barh(place, mean, color=COLOURS.get(name, OTHER), height=0.72)
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="#222222", capsize=2.5, linewidth=1.2)
        axes.annotate(f"{mean:.1f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in COLOURS else "normal")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.12)
    axes.set_xlabel(f"mean error over {horizon * figures['step_s']:.1f} s, cm (95 % interval)")
    axes.set_title(f"Error over {horizon} steps (ADE)")
    return bool(names)


def _steps(axes: Axes, figures: dict[str, Any], rows: dict[str, Any]) -> bool:
    extra = iter(EXTRA)
    drawn = False
    for name in MAIN_ROWS:
        colour = COLOURS.get(name) or next(extra)
        steps = rows[name]["steps"] if name in rows else []
        known = [(i, value) for i, value in enumerate(steps) if value[0] is not None]
        if not known:
            continue
        drawn = True
        seconds = [(i + 1) * figures["step_s"] for i, _ in known]
        mean, low, high = ([100 * (v[0] if v[k] is None else v[k]) for _, v in known] for k in range(3))
        axes.plot(seconds, mean, color=colour, label=name, linewidth=2.2 if name in COLOURS else 1.4)
        axes.fill_between(seconds, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds ahead")
    axes.set_ylabel("mean error, cm (95 % interval)")
    axes.set_title("Error by time ahead")
    return drawn


def _stale(axes: Axes, figures: dict[str, Any], rows: dict[str, Any]) -> bool:
    horizon = figures["horizons"][-1]
    ages = {float(match[1]): name for name in rows if (match := AGE.fullmatch(name))}
    known = [(age, value) for age in sorted(ages) if (value := _ade(rows[ages[age]], horizon))]
    if not known:
        return False
    mean, low, high = ([value[k] for _, value in known] for k in range(3))
    seconds = [age for age, _ in known]
    axes.errorbar(seconds, mean, yerr=[[m - x for m, x in zip(mean, low, strict=True)],
                                       [x - m for m, x in zip(mean, high, strict=True)]],
                  color=EXTRA[0], marker="o", capsize=3, linewidth=2, label="stale guidance")  # fmt: skip
    for name in ("guided", "unguided"):
        if value := _ade(rows.get(name), horizon):
            axes.axhline(value[0], color=COLOURS[name], linewidth=1.4, linestyle="--", label=name)
            axes.axhspan(value[1], value[2], color=COLOURS[name], alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("age of the guidance, seconds")
    axes.set_ylabel(f"mean error over {horizon} steps, cm")
    axes.set_title("What an old thought is worth (ADE)")
    return True
