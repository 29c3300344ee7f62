"""Figures of metrics.json as cells and tables, for the report of one evaluation and for comparisons of several.

A figure is [mean, low, high] with the bounds of its 95 % interval, one number, or None where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Safe, join, safe, table, tag
from .plots import known, row_class

NOTHING = "–"
#: Names of the groups of joints in metrics.json, with their titles.
GROUPS = {"moving": "Joints that move", "resting": "Joints at rest", "all": "All joints"}
#: What the columns of a table of errors are: key in metrics.json, title, factor, digits.
ERRORS = (
    ("ade", "ADE, cm", 100.0, 2),
    ("fde", "FDE, cm", 100.0, 2),
    ("minus_hold", "ADE minus hold", 100.0, 2),
    ("minus_unguided", "ADE minus unguided", 100.0, 2),
    ("acc_2cm", "% within 2\N{NO-BREAK SPACE}cm", 100.0, 1),
    ("acc_5cm", "% within 5\N{NO-BREAK SPACE}cm", 100.0, 1),
    ("acc_10cm", "% within 10\N{NO-BREAK SPACE}cm", 100.0, 1),
    ("velocity", "velocity error, cm/s", 100.0, 2),
    ("jerk", "jerk, m/s³", 1.0, 2),
)
DIFFERENCES = ("minus_hold", "minus_unguided")
EXPLAINED = (
    "ADE: mean distance over the horizon; FDE: distance at its end. In brackets 95 % intervals over stretches of 2 s. "
    "Bold: the smallest error, only where its interval lies apart from all others. Differences are paired; below 0 the "
    "row is better."
)


def triple(value: object) -> tuple[float, float | None, float | None] | None:
    """(mean, low, high), the bounds None where there are none; None where nothing was measured."""
    if isinstance(value, (list, tuple)):
        mean, low, high = [*value, None, None][:3]
        if not known(mean):
            return None
        return (mean, low, high) if known(low) and known(high) else (mean, None, None)
    return (float(value), None, None) if isinstance(value, (int, float)) and known(value) else None


def figure(value: object, factor: float = 1.0, digits: int = 2, sign: str = "") -> Safe:
    """ "5.03" with "[4.90, 5.17]" below it, or a dash."""
    found = triple(value)
    if found is None:
        return safe(NOTHING)
    mean, low, high = found
    bounds = (
        []
        if low is None or high is None
        else [" ", tag("small", f"[{_digits(factor * low, digits, sign)}, {_digits(factor * high, digits, sign)}]")]
    )
    return join([_digits(factor * mean, digits, sign), *bounds])


def _digits(value: float, digits: int, sign: str) -> str:
    """Rounded; what rounds to nothing has no sign."""
    rounded = round(value, digits)
    return f"{rounded:{sign}.{digits}f}" if rounded else f"{0:.{digits}f}"


def difference(value: object, factor: float = 100.0, digits: int = 2) -> Safe:
    """A difference of errors: said to be better or worse only where its interval excludes 0."""
    found = triple(value)
    cell = figure(value, factor, digits, "+")
    if found is None or found[1] is None or found[2] is None or found[1] <= 0 <= found[2]:
        return cell
    return tag("span", cell, tag("small", "better" if found[0] < 0 else "worse"), cls="good" if found[0] < 0 else "bad")


def best(rows: Mapping[str, Any], key: str) -> str | None:
    """The row with the smallest figure, if its interval lies below all others."""
    found = {name: triple(row.get(key)) for name, row in rows.items() if isinstance(row, Mapping)}
    whole = {name: value for name, value in found.items() if value is not None}
    if len(whole) < 2:
        return None
    first = min(whole, key=lambda name: whole[name][0])
    high = whole[first][2]
    lows = [value[1] for name, value in whole.items() if name != first]
    return first if high is not None and all(low is not None and high < low for low in lows) else None


def error_table(rows: Mapping[str, Any], caption: object, order: Sequence[str] = ()) -> Safe:
    """The errors of all rows over one horizon; columns that no row has are left out."""
    names = [*(name for name in order if name in rows), *(name for name in rows if name not in order)]
    names = [name for name in names if triple(rows[name].get("ade")) is not None]
    if not names:
        return Safe("")
    columns = [c for c in ERRORS if any(triple(rows[name].get(c[0])) is not None for name in names)]
    smallest = {key: best({name: rows[name] for name in names}, key) for key in ("ade", "fde")}
    lines = []
    for name in names:
        cells: list[object] = [tag("span", name, cls=row_class(name) if name in ("guided", "unguided") else None)]
        for key, _, factor, digits in columns:
            value = rows[name].get(key)
            if key in DIFFERENCES:
                cells.append(difference(value, factor, digits))
            elif smallest.get(key) == name:
                cells.append(tag("b", figure(value, factor, digits)))
            else:
                cells.append(figure(value, factor, digits))
        lines.append(cells)
    return table(["", *(title for _, title, _, _ in columns)], lines, caption)


def horizons_of(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(steps as the key of a table, words such as "0.8 s ahead (8 steps)"), the nearest first."""
    return [(str(h["steps"]), f"{h['s']:.1f} s ahead ({h['steps']} steps)") for h in metrics.get("horizons", [])]


def group_tables(metrics: Mapping[str, Any], group: str) -> list[Safe]:
    """One table per horizon of a group of joints; none where nothing was scored."""
    tables = metrics.get("tables", {}).get(group, {})
    order = metrics.get("rows", [])
    made = [error_table(tables[steps], words, order) for steps, words in horizons_of(metrics) if tables.get(steps)]
    return [one for one in made if one]
