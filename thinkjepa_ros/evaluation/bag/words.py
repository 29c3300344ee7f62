"""What the figures of an evaluation mean, in one or two sentences, and as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table

from . import rows
from .replay import Replay

_TITLES = {"moving": "joints that move", "resting": "joints at rest", "all": "all joints"}


def summary(metrics: dict[str, Any], replay: Replay) -> str:
    """The main row beside hold, constant velocity and itself without guidance, where joints move if any do."""
    tables, main = metrics["tables"], rows.main(replay)
    said = f"{metrics['counts']['forecasts']} forecasts were made"
    if not tables:
        why = "there is no truth" if not replay.about.get("truth_source") else "no whole horizon has truth"
        return f"{said}; {why}, so that no error can be said."
    group = next(g for g in ("moving", "all") if g in tables)
    steps = max(tables[group], key=int)
    cells, seconds = tables[group][steps], int(steps) * replay.step_s
    where = f"Over {seconds:g} s, {_TITLES[group] if group == 'moving' else 'over all joints (none moves)'}"
    if main is None:
        best = min((row for row in cells if cells[row]["ade"][0] is not None), key=lambda row: cells[row]["ade"][0])
        return (
            f"{where}: the model has none of the joints of the truth; of the baselines {best} has the smallest mean "
            f"error, {_cm(cells[best]['ade'])}."
        )
    text = f"{where}: the mean error of the {main} model is {_cm(cells[main]['ade'])}"
    others = []
    for name in (rows.HOLD, rows.VELOCITY):
        others.append(f"{name} {_cm(cells[name]['ade'])}")
    text += f"; {', '.join(others)}."
    if cells[main]["ade"][0] < cells[rows.VELOCITY]["ade"][0]:
        text += f" {_against(cells[main].get('minus_hold'), 'hold', main)}"
    else:  # who does not beat both is not called better
        text += " It does not beat constant velocity."
    if main == rows.GUIDED and rows.UNGUIDED in cells:
        text += f" {_against(cells[main].get('minus_unguided'), 'the same model unguided', main)}"
    if not replay.about.get("trained", True):
        text = f"The model is untrained. {text}"
    return text


def _cm(value: list[float | None] | None, signed: bool = False) -> str:
    if not value or value[0] is None:
        return "not known"
    form = "{:+.2f}" if signed else "{:.2f}"
    mean, low, high = (None if v is None else form.format(100 * v) for v in value)
    return f"{mean} cm" if low is None else f"{mean} cm ({low} to {high})"


def _against(difference: list[float | None] | None, other: str, main: str) -> str:
    """Whether the main row is better, only where its interval says so."""
    if not difference or difference[0] is None:
        return ""
    low, high = difference[1], difference[2]
    if low is None or high is None:
        return f"The recording is too short to say whether {main} is better than {other}."
    if high < 0:
        return f"It is better than {other} by {_cm([-difference[0], -high, -low])}."
    if low > 0:
        return f"It is worse than {other} by {_cm(list(difference))}."
    return f"It is not told apart from {other} ({_cm(list(difference), signed=True)})."


def surprise_told(metrics: dict[str, Any]) -> str:
    """What the surprise says of labelled moments; empty where nobody labelled any, or where nothing can be said."""
    auroc = metrics["surprise"].get("auroc")
    if auroc is None:
        return ""
    return f"surprise is higher at labelled moments than elsewhere with probability {auroc:.2f} (AUROC; 0.5 is chance)"


def show(metrics: dict[str, Any], console: Console) -> None:
    """Print the tables of errors, what else is to be said, and the sentences."""
    about, parts = metrics["about"], []
    for group, title in _TITLES.items():
        if group == "all" and "moving" in metrics["tables"]:
            continue
        for steps, cells in metrics["tables"].get(group, {}).items():
            seconds = next(h["s"] for h in metrics["horizons"] if str(h["steps"]) == steps)
            parts.append(_table(f"{title}, {seconds:g} s ahead: errors in cm", cells, metrics["rows"]))
    console.print(Group(*parts))
    lines = [*about.get("notes", []), *(f"left out: {n} {why}" for why, n in about.get("left_out", {}).items())]
    for line in [*lines, *_measures(metrics), "", metrics["summary"]]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _table(title: str, cells: dict[str, Any], names: list[str]) -> Table:
    """Fits into 80 columns; the page has the other figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for words in ("ADE", "95 %", "FDE", "ADE minus hold"):
        table.add_column(words, justify="right", no_wrap=True)
    for row in names:
        (ade, *bounds), (fde, *_) = cells[row]["ade"], cells[row]["fde"]
        difference: list[float | None] = cells[row].get("minus_hold") or [None, None, None]
        less, around = difference[0], difference[1:]
        table.add_row(
            row, _digits(ade), _between(bounds), _digits(fde), f"{_digits(less, '+')} {_between(around, '+')}".strip()
        )
    return table


def _digits(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f}"


def _between(bounds: list[float | None], sign: str = "") -> str:
    return "" if None in bounds else f"({_digits(bounds[0], sign)}, {_digits(bounds[1], sign)})"


def _measures(metrics: dict[str, Any]) -> list[str]:
    """Lines about time, guidance and surprise."""
    latency, speed, out = metrics["latency_s"], metrics["about"].get("speed", {}), []
    if latency["p50"] is not None:
        out.append(f"a forecast takes {1e3 * latency['p50']:.1f} ms (p99 {1e3 * latency['p99']:.1f} ms)")
    if speed.get("times_real_time"):
        stride = metrics["about"].get("stride_s")
        out.append(f"{speed['times_real_time']:.1f} times real time, a forecast every {stride} s")
    if told := surprise_told(metrics):
        out.append(told)
    return out
