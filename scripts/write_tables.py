"""Write the tables of the documents from the JSON files that the evaluations wrote.

A table stands between `<!-- table SOURCE: NAME -->` and `<!-- end -->`; SOURCE is a file in models/mini, or
control/FILE, which is one in models/control. Run it after
an evaluation; the tests run it with --check, so that no document says what was not measured.

    python scripts/write_tables.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinkjepa_ros.demo import agreement
from thinkjepa_ros.evaluation import card, world_report
from thinkjepa_ros.evaluation.control import report as control_report
from thinkjepa_ros.evaluation.cue_reach import report

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")]
MARKED = re.compile(r"(<!-- table (?P<source>[\w/]+): (?P<name>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)

Figures = dict[str, Any]


def _forecast(figures: Figures, name: str) -> str:
    if name == "joints now":
        return card.present_table(figures)
    if name == "sigma":
        return card.sigma_table(figures)
    if name == "all":
        return "\n\n".join(card.forecast_table(figures, title) for title in figures["forecasts"])
    return card.forecast_table(figures, name)


def _thinker(figures: Figures, name: str) -> str:
    return {"answers": card.answers_table, "probe": card.probe_table}[name](figures)


def _cue_reach(figures: Figures, name: str) -> str:
    if name == "main":
        return card.main_rows(figures)
    tables = {table.key: table for table in report.tables(figures)}
    chosen = tables.values() if name == "all" else [tables[name]]
    return "\n\n".join(f"**{table.title}**\n\n{table.markdown()}" for table in chosen)


def _one(make: Callable[[Any], str]) -> Callable[[Any, str], str]:
    return lambda figures, _: make(figures)


def _named(make: Callable[[Figures], list[Any]]) -> Callable[[Figures, str], str]:
    """The table of that key."""
    return lambda figures, name: {table.key: table for table in make(figures)}[name].markdown()


SOURCES: dict[str, Callable[[Any, str], str]] = {
    "evaluation": _forecast,
    "thinker/evaluation": _thinker,
    "cue_reach": _cue_reach,
    "cue_reach_live": _one(card.live_table),
    "encoders": _one(card.encoders_table),
    "control/world": _named(world_report.tables),
    "control/table": _named(control_report.tables),
    "control/topics": _named(agreement.tables),
}


def filled(text: str) -> str:
    """The document with every marked table as it was measured. Raises KeyError for a table that does not exist."""

    def table(match: re.Match[str]) -> str:
        own = match["source"].startswith("control/")
        figures = json.loads(((MODELS if own else MODELS / "mini") / f"{match['source']}.json").read_text())
        return f"{match[1]}{SOURCES[match['source']](figures, match['name'])}\n{match[4]}"

    return MARKED.sub(table, text)


def main() -> int:
    """Exit status 1 if --check finds a document that is not as measured."""
    differ = [path for path in DOCUMENTS if filled(path.read_text()) != path.read_text()]
    for path in differ:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not what was measured; run python scripts/write_tables.py")
        else:
            path.write_text(filled(path.read_text()))
            print(f"{path.relative_to(ROOT)} written")
    return int("--check" in sys.argv and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
