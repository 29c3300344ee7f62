"""The cue-reach figures as JSON, and from that JSON the tables for the console, the model card and the docs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import write_atomically
from .claims import gap_closed, verdicts
from .groups import MAIN

if TYPE_CHECKING:
    from rich.console import Console

    from .score import Figures

NOTHING = "–"
#: (group, hand) of the tables of errors, in order, with the words for them; the first is the main one.
ERRORS = {
    ("ready", "moving"): "Told, cue gone, ready, reach not begun: the hand that moves",
    ("ready", "resting"): "Told, cue gone, ready, reach not begun: the hand that rests",
    ("ready, no cue", "moving"): "Ready, no cue: the hand that moves",
    ("wait", "moving"): "Told, cue gone, not ready yet: the hand that moves",
    ("before", "moving"): "Before the cue: the hand that moves",
    ("reach", "moving"): "During the reach: the hand that moves",
    ("transport", "moving"): "During the transport: the hand that moves",
}
Value = Sequence[float | None]  #: mean, low, high; with several seeds also least and most of the seeds


@dataclass(frozen=True)
class Table:
    """Words in cells. key: kind of inputs and what the table is about, such as "image only: ready, moving"."""

    key: str
    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")

    def show(self, console: Console, words: Collection[str], title: str = "", show_lines: bool = False) -> None:
        """Print it. words: names of the columns that hold words, and not numbers."""
        from rich.table import Table as Printed

        printed = Printed(title=title or self.title, show_lines=show_lines)
        for column in self.header:
            printed.add_column(column, justify="left" if column in words else "right")
        for row in self.rows:
            printed.add_row(*row)
        console.print(printed)


def contents(figures: Figures, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the JSON file holds. about: where the figures come from (command, model, data, seeds, time)."""
    gaps = []
    for inputs in figures.inputs:
        for horizon in figures.horizons:
            for metric in ("ade", "fde"):
                try:
                    share = gap_closed(figures, inputs, horizon, metric)
                except KeyError:
                    continue  # without an oracle there is no gap to close
                numbers = [None if np.isnan(x) else float(f"{x:.5g}") for x in share]
                gaps.append({"inputs": inputs, "horizon": horizon, "metric": metric, "share": numbers})
    judged = [asdict(verdict) for verdict in verdicts(figures)]
    return {"about": about or {}, **figures.as_dict(), "gap_closed": gaps, "verdicts": judged}


def write(figures: dict[str, Any], path: Path) -> None:
    """Write `contents` as JSON, one line per row of the table, whole or not at all."""
    lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in figures.items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _lines(value: Any) -> str:
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join("  " + json.dumps(one, allow_nan=False) for one in value) + "\n ]"


def _number(value: float | None, factor: float, digits: int, sign: str = "") -> str:
    return NOTHING if value is None else f"{factor * value:{sign}.{digits}f}"


def _cell(value: Value | None, factor: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """ "5.03 [4.90, 5.17]", or a dash where there is nothing."""
    if value is None:
        return NOTHING
    mean, low, high = (_number(x, factor, digits, sign) for x in value[:3])
    return mean if value[1] is None else f"{mean} [{low}, {high}]"


def inputs_of(figures: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["inputs"] for row in figures["rows"]))


def cell_of(row: dict[str, Any], group: str, hand: str, horizon: int) -> dict[str, Value]:
    """The figures of a row in one place, empty where nothing was measured."""
    return row["cells"].get(group, {}).get(hand, {}).get(str(horizon), {})


def tables(figures: dict[str, Any]) -> list[Table]:
    """Every table, the main one of each kind of inputs first. figures: `contents`, or the JSON read back."""
    kinds = inputs_of(figures)
    found = [_errors(figures, kind, *next(iter(ERRORS))) for kind in kinds]
    found.append(_verdicts(figures))
    found += [table(figures, kind) for kind in kinds for table in (_gaps, _more, _seeds)]
    found += [_errors(figures, kind, *place) for place in list(ERRORS)[1:] for kind in kinds]
    return [table for table in found if table.rows]


def _rows(figures: dict[str, Any], inputs: str) -> Iterable[dict[str, Any]]:
    return (row for row in figures["rows"] if row["inputs"] == inputs)


def _label(figures: dict[str, Any], row: dict[str, Any], group: str) -> str:
    """The row's name, and how many origins it speaks about where these are not all."""
    answered, every = row["answered"][group], figures["groups"][group]["origins"]
    return row["row"] if answered == every else f"{row['row']} (at {answered} of the origins)"


def _errors(figures: dict[str, Any], inputs: str, group: str, hand: str) -> Table:
    horizons = figures["horizons"]
    last = horizons[-1]
    header = ["row", *(f"ADE {k}" for k in horizons), f"FDE {last}", "within 5 cm, %", "minus unguided, cm"]
    rows = []
    for row in _rows(figures, inputs):
        cells = [cell_of(row, group, hand, k) for k in horizons]
        if not any(cells):
            continue
        end = cells[-1]
        errors = [_cell(cell.get("ade"), 100) for cell in cells] + [_cell(end.get("fde"), 100)]
        compared = _cell(end.get("ade_minus_unguided"), 100, 2, "+")
        rows.append([_label(figures, row, group), *errors, _cell(end.get("within_5"), 100, 1), compared])
    size = figures["groups"][group]
    words = (
        f"{ERRORS[group, hand]} ({inputs}; {size['origins']} origins in {size['episodes']} episodes, the truth reaches "
        f"step {last} at {size['with_truth_at_step'][str(last)]}; errors in cm, 95 % intervals over episodes)"
    )
    return Table(f"{inputs}: {group}, {hand}", words, header, rows)


def _more(figures: dict[str, Any], inputs: str) -> Table:
    """What else is known about the main group: accuracy, velocities, latents, sigma."""
    last = figures["horizons"][-1]
    header = ["row", "within 2 cm, %", "within 10 cm, %", "velocity error, cm/s", "latent L1", "latent cosine",
              "within 1 sigma, %", "within 2 sigma, %"]  # fmt: skip
    rows = []
    for row in _rows(figures, inputs):
        cell = cell_of(row, MAIN, "moving", last)
        latent = row.get("latents", {}).get(MAIN, {}).get(str(last), {})
        if cell or latent:
            accuracy = [_cell(cell.get(name), 100, 1) for name in ("within_2", "within_10")]
            latents = [_cell(latent.get(name), 1, 3) for name in ("l1", "cosine")]
            sigma = [_cell(cell.get(name), 100, 1) for name in ("sigma_1", "sigma_2")]
            rows.append([_label(figures, row, MAIN), *accuracy, _cell(cell.get("velocity"), 100), *latents, *sigma])
    words = f"Accuracy, velocities, latents and sigma over {last} steps ({inputs}; {MAIN}, told, moving hand)"
    return Table(f"{inputs}: more", words, header, rows)


def _seeds(figures: dict[str, Any], inputs: str) -> Table:
    """How far the trainings with several seeds lie apart."""
    last = figures["horizons"][-1]
    rows = []
    for row in _rows(figures, inputs):
        cell = cell_of(row, MAIN, "moving", last)
        if len(row["seeds"]) > 1 and cell:
            spread = (f"{_number(v[3], 100, 2)} to {_number(v[4], 100, 2)}" for v in (cell["ade"], cell.get("fde"))
                      if v is not None)  # fmt: skip
            rows.append([row["row"], ", ".join(map(str, row["seeds"])), *spread])
            rows[-1] += [NOTHING] * (4 - len(rows[-1]))
    words = f"Least and most of the training seeds, cm ({inputs}; {MAIN}, told, moving hand)"
    return Table(f"{inputs}: seeds", words, ["row", "seeds", f"ADE {last}", f"FDE {last}"], rows)


def _gaps(figures: dict[str, Any], inputs: str) -> Table:
    shares = {(g["horizon"], g["metric"]): g["share"] for g in figures["gap_closed"] if g["inputs"] == inputs}
    rows = []
    for metric in ("ade", "fde"):
        found = [shares.get((k, metric)) for k in figures["horizons"]]
        if any(share is not None and share[0] is not None for share in found):
            rows.append([metric.upper(), *(_cell(share, 100, 0) for share in found)])
    words = f"Share of the gap between unguided and oracle that guided closes, % ({inputs}; {MAIN}, told, moving hand)"
    return Table(f"{inputs}: gap", words, ["error", *(f"{k} steps" for k in figures["horizons"])], rows)


def _verdicts(figures: dict[str, Any]) -> Table:
    answer = {True: "yes", False: "no", None: "not measured"}
    rows = [[v["claim"], v["inputs"], answer[v["held"]], v["measured"]] for v in figures["verdicts"]]
    return Table("verdicts", "What the protocol claims", ["claim", "inputs", "held", "measured"], rows)


def markdown(figures: dict[str, Any]) -> str:
    """All tables with their titles, from the JSON."""
    return "\n\n".join(f"**{table.title}**\n\n{table.markdown()}" for table in tables(figures)) + "\n"


def show(figures: dict[str, Any]) -> None:
    """Print all tables."""
    from rich.console import Console

    console = Console()
    for table in tables(figures):
        words = {"row", "claim", "inputs", "measured", "seeds", "error"}
        table.show(console, words, show_lines=table.key == "verdicts")
