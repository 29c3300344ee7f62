"""`thinkjepa evaluate compare`: evaluations of the same recordings side by side, and what differs beyond chance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.files import write_atomically

from . import plots, rows
from .cells import GROUPS, NOTHING, difference, figure, horizons_of, triple
from .markup import Safe, facts, folded, join, said, section, table, tag, write_page
from .pairing import MAIN, CompareError, Evaluated, differences, pair, read
from .plots import Series, known

FORMAT = 1
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROWS = (rows.HOLD, rows.VELOCITY, rows.DAMPED, rows.RIDGE, rows.UNGUIDED, rows.GUIDED)
#: What else is one figure for each: words, place in metrics.json, factor, digits.
_NUMBERS: tuple[tuple[str, tuple[str, ...], float, int], ...] = (
    ("joints now, cm", ("present_error",), 100.0, 2),
    ("steadiness, cm", ("stability", MAIN), 100.0, 2),
    ("latency p50, ms", ("latency_s", "p50"), 1000.0, 1),
    ("latency p99, ms", ("latency_s", "p99"), 1000.0, 1),
    ("age of the guidance p50, s", ("age_s", "p50"), 1.0, 2),
    ("forecasts per second", ("rate_hz",), 1.0, 1),
    ("AUROC of surprise", ("surprise", "auroc"), 1.0, 2),
)


def compare(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Compare two or more folders of `thinkjepa evaluate bag` with the first of them.

    Writes `out` (a page) and the same figures, which are returned, as JSON beside it. Raises CompareError where they
    cannot be compared, and OSError.
    """
    figures = contents(folders)
    text = json.dumps(figures, indent=1, allow_nan=False)
    write_atomically(out.with_suffix(".json"), text.encode() + b"\n")
    write(figures, out)
    return figures


def contents(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of a comparison: the evaluations, and for each but the first how it differs from that.

    {"format", "folders": [{"name", "folder", "main", "metrics"}], "against_first": [{"name", "pairs", "stretches",
    "horizons", "differences": {group: {steps: {row: {"ade", "fde", "pairs"}}}}}], "summary": [sentences], "surprise":
    sentence or nothing}; figures are [mean, low, high] in metres, null where unknown.
    """
    if not 2 <= len(folders) <= len(_LETTERS):
        raise CompareError(f"{len(folders)} folders are given; name 2 to {len(_LETTERS)} that `evaluate bag` made")
    places = [folder.resolve() for folder in folders]
    if len(set(places)) != len(places):
        raise CompareError("the same folder is given twice; name different evaluations")
    evaluated = [read(folder) for folder in folders]
    first = evaluated[0]
    against = []
    for letter, other in zip(_LETTERS[1:], evaluated[1:], strict=False):
        pairs, ordered = pair(first, other)
        most = min(first.replay.truth.shape[1], ordered.truth.shape[1])
        shared = [h for h in first.metrics.get("horizons", []) if h["steps"] <= most]
        found = differences(first.replay, ordered, pairs, [int(h["steps"]) for h in shared])
        against.append(
            {
                "name": letter,
                "pairs": len(pairs),
                "stretches": len(np.unique(rows.stretches(first.replay)[pairs.first])),
                "horizons": shared,
                "differences": _plain(found),
            }
        )
    named = [
        {"name": letter, "folder": str(one.folder), "main": one.main, "metrics": one.metrics}
        for letter, one in zip(_LETTERS, evaluated, strict=False)
    ]
    summary = [_sentence(one, evaluated[0], evaluated[k + 1]) for k, one in enumerate(against)]
    surprise = _surprise(named)
    return {"format": FORMAT, "folders": named, "against_first": against, "summary": summary, "surprise": surprise}


def _surprise(folders: Sequence[Mapping[str, Any]]) -> str:
    """What the surprise of each says of labelled moments; empty where nobody labelled any."""
    told = {one["name"]: _at(one["metrics"], ("surprise", "auroc"), one["main"]) for one in folders}
    if not any(map(known, told.values())):
        return ""
    each = ", ".join(f"{value:.2f} in {name}" if known(value) else f"unknown in {name}" for name, value in told.items())
    sources = [(one["metrics"].get("about", {}).get("events") or {}).get("source") for one in folders]
    other = "" if len(set(sources)) == 1 else "; their labels are not of the same source"
    return (
        f"Surprise is higher at labelled moments than elsewhere with probability {each} (AUROC; 0.5 is chance){other}."
    )


def _plain(value: Any) -> Any:
    """JSON values; NaN becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sentence(one: Mapping[str, Any], first: Evaluated, other: Evaluated) -> str:
    """The comparison of the main rows in words, over the longest horizon and the joints that move, else all."""
    name = one["name"]
    rows = f"{name} ({other.main}) and A ({first.main})"
    for group, words in (("moving", "where joints move"), ("all", "over all joints")):
        cells = one["differences"].get(group, {})
        if not cells:
            continue
        steps = max(cells, key=int)
        cell = cells[steps].get(MAIN)
        value = triple(cell["ade"]) if cell else None
        if value is None:
            continue
        mean, low, high = value
        seconds = next((h["s"] for h in one["horizons"] if str(h["steps"]) == steps), float("nan"))
        basis = f"{cell['pairs']} pairs of forecasts in {one['stretches']} stretches, {seconds:.1f} s ahead, {words}"
        if low is None or high is None:
            return f"{rows}: ADE differs by {100 * mean:+.2f} cm; one stretch alone cannot say how surely ({basis})."
        bounds = f"{100 * mean:+.2f} cm [{100 * low:+.2f}, {100 * high:+.2f}]"
        if low <= 0 <= high:
            return f"No difference between {rows} can be shown: ADE {bounds} ({basis})."
        verdict = "better" if mean < 0 else "worse"
        return f"{name} ({other.main}) is {verdict} than A ({first.main}): ADE {bounds} ({basis})."
    return f"{rows} have {one['pairs']} forecasts in common, none of which can be scored."


def write(figures: Mapping[str, Any], path: Path) -> None:
    """Write the page of a comparison. figures: `contents`, or the JSON read back. Raises OSError."""
    folders, against = figures["folders"], figures["against_first"]
    tables = {group: _tables(folders, against, group) for group in GROUPS}
    moving = tables["moving"] or [tag("p", "No joint moves more than 3 cm within a horizon.")]
    others = [folded(GROUPS[group], *tables[group]) for group in ("resting", "all") if tables[group]]
    note = (
        "Errors of each evaluation are over all its own forecasts. Differences are paired: over forecasts of the same "
        "images that both made, with 95 % intervals over stretches of 2 s; below 0 the evaluation is better than A."
    )
    write_page(
        path,
        "Evaluations compared",
        tag("h1", f"{len(folders)} evaluations compared"),
        *(tag("p", words, cls="lead") for words in figures["summary"]),
        tag("p", figures["surprise"]) if figures["surprise"] else "",
        _who(folders, against),
        section("Errors beside the truth", tag("h3", GROUPS["moving"]), *moving, *others, tag("p", note, cls="soft")),
        _behaviour(folders),
    )


def _who(folders: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]) -> Safe:
    shared = {one["name"]: str(one["pairs"]) for one in against}
    parts = []
    for one in folders:
        about, counts = one["metrics"].get("about", {}), one["metrics"].get("counts", {})
        trained = about.get("trained", True)
        model = join(
            [said(about.get("model_id") or NOTHING), *([] if trained else [" ", tag("span", "untrained", cls="alarm")])]
        )
        parts.append(tag("h3", f"{one['name']}: ", said(one["folder"])))
        parts.append(
            facts(
                [
                    ("model", model),
                    ("domain", said(about.get("domain") or "not said") if trained else "none"),
                    ("thinker", said(about.get("thinker_id") or "none")),
                    ("joints now", "given (anchored)" if about.get("anchored") else "from the images alone"),
                    ("mode", said(about.get("mode") or NOTHING)),
                    ("truth", said(about.get("truth_source") or "none")),
                    (
                        "recordings",
                        said(", ".join(str(bag.get("name", "?")) for bag in about.get("bags", [])) or NOTHING),
                    ),
                    ("forecasts", f"{counts.get('forecasts', NOTHING)}, scored {counts.get('scored', NOTHING)}"),
                    ("in common with A", shared.get(one["name"], "it is A")),
                    ("weights (SHA-256)", tag("code", str(about.get("weights_sha256") or NOTHING)[:16])),
                ]
            )
        )
    return join(parts)


def _tables(folders: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]], group: str) -> list[Safe]:
    """One table per horizon: the errors of all, and the paired differences to the first."""
    made = []
    for steps, words in horizons_of(folders[0]["metrics"]):
        cells = [one["metrics"].get("tables", {}).get(group, {}).get(steps, {}) for one in folders]
        apart = [one["differences"].get(group, {}).get(steps, {}) for one in against]
        names = [name for name in _ROWS if any(triple(of.get(name, {}).get("ade")) is not None for of in cells)]
        lines = [_line(name, [of.get(name, {}) for of in cells], [of.get(name, {}) for of in apart]) for name in names]
        if len({one["main"] for one in folders}) > 1 and any(of.get(MAIN) for of in apart):
            mains = [of.get(one["main"], {}) for one, of in zip(folders, cells, strict=True)]
            lines.append(_line("main row of each", mains, [of.get(MAIN, {}) for of in apart]))
        if lines:
            header = [""]
            for metric in ("ADE", "FDE"):
                header += [f"{metric} of {one['name']}, cm" for one in folders]
                header += [f"{metric}, {one['name']} minus A" for one in against]
            made.append(table(header, lines, words))
    return made


def _line(name: str, cells: Sequence[Mapping[str, Any]], apart: Sequence[Mapping[str, Any]]) -> list[object]:
    line: list[object] = [tag("span", name, cls=plots.row_class(name) if name in ("guided", "unguided") else None)]
    for metric in ("ade", "fde"):
        line += [figure(cell.get(metric), 100.0) for cell in cells]
        line += [difference(one.get(metric)) for one in apart]
    return line


def _behaviour(folders: Sequence[Mapping[str, Any]]) -> Safe:
    """Errors by time ahead of the main rows, and what else is one number for each."""
    series = []
    for one in folders:
        values = one["metrics"].get("by_step", {}).get(one["main"], [])
        horizons = one["metrics"].get("horizons", [])
        step_s = horizons[-1]["s"] / horizons[-1]["steps"] if horizons else 1.0
        x = [(k + 1) * step_s for k in range(len(values))]
        series.append(Series(f"{one['name']} ({one['main']})", x, [100.0 * v if known(v) else None for v in values]))
    drawn = plots.lines(series, "seconds ahead", "mean error, cm")
    chart = [plots.chart("Error by time ahead", plots.names_of(series), drawn)] if drawn else []
    lines = []
    for words, place, factor, digits in _NUMBERS:
        cells = [figure(_at(one["metrics"], place, one["main"]), factor, digits) for one in folders]
        if any(cell != NOTHING for cell in cells):
            lines.append([words, *cells])
    numbers = [table(["", *(one["name"] for one in folders)], lines)] if lines else []
    return section("How they behave", *([tag("div", *chart, cls="charts")] if chart else []), *numbers)


def _at(metrics: Mapping[str, Any], place: Sequence[str], main: str) -> object:
    """The figure at a place; "main" in it stands for the main row."""
    value: Any = metrics
    for key in place:
        value = value.get(main if key == MAIN else key) if isinstance(value, Mapping) else None
    return value
