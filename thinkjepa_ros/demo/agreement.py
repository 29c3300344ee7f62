"""Over topics, in real time, beside lock step (`thinkjepa evaluate control`): the same tasks, the same models.

In lock step simulated time stands still while the robot decides, and the first action of a plan is done exactly. Over
topics a plan is late by what it takes, commands go through the guard, and the robot does not wait. Figures of the
former are worth something on a robot only if the latter agrees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from thinkjepa_ros.evaluation.control.evaluate import JOURNAL
from thinkjepa_ros.evaluation.control.journal import Journal
from thinkjepa_ros.evaluation.control.report import triple
from thinkjepa_ros.evaluation.control.statistics import Comparison, compare, wilson
from thinkjepa_ros.evaluation.cue_reach.report import NOTHING, Table

#: The row that the controller's nodes do in lock step when nothing is set but the models, by kind of task.
ROWS = {"reach": "planner: pictures", "pick_place_text": "policy: words", "pick_place_lamp": "policy: thinker"}


class AgreementError(ValueError):
    """There is nothing to compare with; the text says why."""


def lock_step(folder: Path) -> dict[str, dict[int, bool]]:
    """Successes by kind and seed of the rows of ROWS in a folder of `thinkjepa evaluate control`. Raises
    AgreementError.
    """
    try:
        cells = json.loads((folder / "metrics.json").read_text())["cells"]
        counted = {(c["row"], c["kind"], c["settings"]) for c in cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AgreementError(f"{folder} is no folder of a finished `thinkjepa evaluate control`: {error}") from None
    found: dict[str, dict[int, bool]] = {kind: {} for kind in ROWS}
    for key, line in Journal(folder / JOURNAL).lines.items():
        if (key.row, key.kind, key.settings) in counted and ROWS.get(key.kind) == key.row:
            found[key.kind][key.seed] = bool(line["success"])
    if not any(found.values()):
        raise AgreementError(f"{folder} has none of the rows {', '.join(map(repr, ROWS.values()))}")
    return found


def agreement(results: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[int, bool]]) -> dict[str, Comparison]:
    """Over topics minus lock step, by kind, on the seeds that both have. results: of the conductor."""
    out = {}
    for kind in ROWS:
        live = {int(r["seed"]): bool(r["success"]) for r in results if r["kind"] == kind}
        shared = dict(before.get(kind, {}))
        if live.keys() & shared.keys():
            out[kind] = compare(live, shared)
    return out


def lines(results: Sequence[Mapping[str, Any]], compared: Mapping[str, Comparison]) -> list[str]:
    """How many tasks of each kind were done, and how that agrees with lock step."""
    out = []
    for kind in dict.fromkeys(r["kind"] for r in results):
        done = [bool(r["success"]) for r in results if r["kind"] == kind]
        share, low, high = (round(100 * x) for x in wilson(sum(done), len(done)))
        words = f"{kind}: {sum(done)} of {len(done)} done over topics, {share} [{low}, {high}] %"
        if kind in compared:
            c = compared[kind]
            points, least, most = (round(100 * x) for x in c.difference)
            words += (
                f"; in lock step ({ROWS[kind]}) {c.both + c.only_b} of the same {c.seeds}, only one {c.only_a} : "
                f"{c.only_b}, difference {points:+d} [{least:+d}, {most:+d}] points, p {c.p:.2g}"
            )
        out.append(words)
    return out


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The same for documents. summary: result.json of `thinkjepa demo-control`."""
    header = ["kind", "over topics, %", "lock step, same tasks", "only one", "difference", "actions", "slowest pace"]
    rows = []
    for kind in dict.fromkeys(r["kind"] for r in summary["results"]):
        found = [r for r in summary["results"] if r["kind"] == kind]
        won = [r["done_after"] for r in found if r["success"]]
        row = [kind, f"{len(won)} of {len(found)}: {triple(wilson(len(won), len(found)), 100, 0)}"]
        c = summary["lock_step"].get(kind)
        row += [NOTHING] * 3 if c is None else [
            f"{c['both'] + c['only_b']} of {c['seeds']}", f"{c['only_a']} : {c['only_b']}",
            triple(c["difference"], 100, 0, "+"),
        ]  # fmt: skip
        rows.append([*row, f"{median(won):g}" if won else NOTHING, f"{min(r['pace'] for r in found):.2f}"])
    words = "Done over topics in real time, beside lock step (95 % intervals; pace: simulated seconds per second)"
    return [Table("topics", words, header, rows)]
