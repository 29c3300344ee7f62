"""The control figures as JSON, and from that JSON the tables for the terminal and for documents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ...files import write_atomically
from ..bootstrap import bootstrap_mean
from ..cue_reach.report import NOTHING, Table
from ..runs import plain
from . import claims
from .journal import Line
from .rows import Row
from .statistics import compare, wilson
from .timing import Times


def contents(
    rows: Sequence[Row], kinds: Sequence[str], lines: Sequence[Line], times: Sequence[Times], about: dict[str, Any]
) -> dict[str, Any]:
    """What metrics.json holds."""
    untrained = set(about.get("untrained", ()))
    cells, pairs = [], []
    all_won: dict[tuple[str, str], dict[int, bool]] = {}
    for kind in kinds:
        by_row = {row.name: [x for x in lines if (x["row"], x["kind"]) == (row.name, kind)] for row in rows}
        by_row = {name: found for name, found in by_row.items() if found}
        cells += [
            _cell(row, kind, by_row[row.name], bool(untrained & set(row.needs))) for row in rows if row.name in by_row
        ]
        won = {name: {int(x["seed"]): bool(x["success"]) for x in found} for name, found in by_row.items()}
        all_won |= {(kind, name): found for name, found in won.items()}
        pairs += [_pair(kind, a, b, won[a], won[b]) for a, b in claims.PAIRS if a in won and b in won]
    pairs += _everything(kinds, all_won)
    whole = {"about": about, "cells": cells, "pairs": pairs, "times": [asdict(one) for one in times]}
    whole["verdicts"] = [asdict(one) for one in claims.verdicts(whole)]
    return dict(plain(whole))


def _cell(row: Row, kind: str, found: Sequence[Line], untrained: bool) -> dict[str, Any]:
    won = [x for x in found if x["success"]]
    cell: dict[str, Any] = {
        "row": row.name, "kind": kind, "untrained": untrained, "seeds": len(found), "successes": len(won),
        "success": list(wilson(len(won), len(found))), "settings": found[0]["settings"],
        "actions": float(np.median([x["actions"] for x in won])) if won else None,
        "distance_m": list(bootstrap_mean(np.array([x["distance_m"] for x in found]))),
        "nearest_m": list(bootstrap_mean(np.array([x["nearest_m"] for x in found]))),
        "imagined": round(float(np.median([x["imagined"] for x in found]))),
        "samples": row.samples, "rounds": row.rounds, "horizon": row.horizon if row.plans else None,
        "wall_ms": float(np.median([x["wall_ms"] for x in found])),
        "cpu_ms": float(np.median([x["cpu_ms"] for x in found])),
        "sources": {},
    }  # fmt: skip
    for name in ("touched", "lifted", "misplaced", "across_m", "along_m"):
        if name in found[0]:
            cell[name] = float(np.mean([x[name] for x in found]))
    for line in found:
        for source, count in line["sources"].items():
            cell["sources"][source] = cell["sources"].get(source, 0) + count
    return cell


def _everything(kinds: Sequence[str], won: dict[tuple[str, str], dict[int, bool]]) -> list[dict[str, Any]]:
    """Policy and planner together beside each alone over all kinds of tasks, where all of them were run."""
    whole = {}
    for who, rows in claims.EVERYWHERE.items():
        if set(rows) == set(kinds) and all((kind, row) in won for kind, row in rows.items()):
            whole[who] = {(kind, seed): ok for kind, row in rows.items() for seed, ok in won[kind, row].items()}
    both, *alone = claims.EVERYWHERE
    return [_pair(claims.EVERYTHING, both, one, whole[both], whole[one]) for one in alone if {both, one} <= set(whole)]


def _pair(kind: str, a: str, b: str, of_a: dict[Any, bool], of_b: dict[Any, bool]) -> dict[str, Any]:
    found = compare(of_a, of_b)
    return {"kind": kind, "a": a, "b": b, **found._asdict(), "difference": list(found.difference)}


def write(whole: dict[str, Any], out: Path) -> None:
    """metrics.json and table.md."""
    write_atomically(out / "metrics.json", (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(out / "table.md", markdown(whole).encode())


def tables(whole: dict[str, Any]) -> list[Table]:
    """Every table. whole: `contents`, or the JSON read back."""
    kinds = list(dict.fromkeys(cell["kind"] for cell in whole["cells"]))
    out = [_successes(whole, kind) for kind in kinds]
    for make in (_pairs, _times, _verdicts):
        made = make(whole)
        out += [made] if made.rows else []
    return out


def _successes(whole: dict[str, Any], kind: str) -> Table:
    reach = kind == "reach"
    header = ["row", "seeds", "success, %", "actions", "cm at the end"]
    extra = {"across_m": "across", "along_m": "along"} if reach else {}
    extra |= {} if reach else {"touched": "touched, %", "lifted": "lifted, %", "misplaced": "astray, %"}
    header += [*extra.values(), "cm nearest", "imagined", "CPU ms"]
    rows = []
    for cell in whole["cells"]:
        if cell["kind"] == kind:
            rows.append([
                cell["row"] + (" (untrained)" if cell["untrained"] else ""), str(cell["seeds"]),
                triple(cell["success"], 100, 0), number(cell["actions"], 1, 0), triple(cell["distance_m"], 100, 1),
                *(number(cell[name], 100, 1 if reach else 0) for name in extra), triple(cell["nearest_m"], 100, 1),
                str(cell["imagined"] or NOTHING), number(cell["cpu_ms"], 1, 1),
            ])  # fmt: skip
    use = whole["about"]["use"]
    return Table(kind, f"{kind}, {use} seeds; 95 % Wilson intervals of success, bootstrap of the rest", header, rows)


def _pairs(whole: dict[str, Any]) -> Table:
    rows = [
        [x["kind"], x["a"], x["b"], str(x["seeds"]), f"{x['only_a']} : {x['only_b']}",
         triple(x["difference"], 100, 0, "+"), f"{x['p']:.2g}"]
        for x in whole["pairs"]
    ]  # fmt: skip
    words = "Paired on the same seeds: share of success, first minus second, points; McNemar's exact test"
    return Table("pairs", words, ["kind", "row", "minus row", "seeds", "only one", "difference", "p"], rows)


def _times(whole: dict[str, Any]) -> Table:
    rows = [
        [x["kind"], x["row"], str(x["imagined"] or NOTHING), *(f"{v:.1f}" for v in (*x["wall_ms"], *x["cpu_ms"]))]
        for x in whole["times"]
    ]
    header = ["kind", "row", "imagined", "wall ms", "90 %", "CPU ms", "90 %"]
    threads = whole["about"].get("threads", 1)
    return Table("times", f"From the picture to the action, side by side, {threads} thread(s): medians", header, rows)


def _verdicts(whole: dict[str, Any]) -> Table:
    answer = {True: "yes", False: "no", None: "not measured"}
    rows = [[x["claim"], answer[x["held"]], x["measured"]] for x in whole["verdicts"]]
    return Table("verdicts", "What the protocol calls success", ["claim", "held", "measured"], rows)


def number(value: float | None, factor: float, digits: int, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{factor * value:{sign}.{digits}f}"


def triple(value: Sequence[float | None], factor: float, digits: int, sign: str = "") -> str:
    """ "5.03 [4.90, 5.17]"."""
    mean, low, high = (number(x, factor, digits, sign) for x in value[:3])
    return mean if low == NOTHING else f"{mean} [{low}, {high}]"


def markdown(whole: dict[str, Any]) -> str:
    """All tables with their titles, and where they come from."""
    said = whole["about"]
    head = [f"`{said['command']}`", ""] if said.get("command") else []
    weights = [
        f"- {need}: {one['model_id']}, {one['sha256'][:12]}" + ("" if one["trained"] else " (untrained)")
        for need, one in said.get("weights", {}).items()
    ]
    left = [f"- {sentence}" for sentence in said.get("left_out", ())]
    parts = ["\n".join([*head, *weights, *left])] if head or weights or left else []
    return "\n\n".join([*parts, *(f"**{t.title}**\n\n{t.markdown()}" for t in tables(whole))]) + "\n"


def show(whole: dict[str, Any], console: Console) -> None:
    """Print all tables."""
    for one in tables(whole):
        one.show(console, ("row", "kind", "minus row", "claim", "held", "measured"))
