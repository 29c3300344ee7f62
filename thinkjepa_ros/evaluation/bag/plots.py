"""Charts as SVG inside the page: they follow its colours, need no library, and say what a thing is when touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .markup import Safe, join, safe, tag
from .style import OTHERS, ROW_CLASSES

#: Width of a chart in its own units; text of 12 units stays readable on a phone of 350 pixels.
WIDTH, WIDE = 420, 900
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40
#: More points than this on one curve are thinned; a screen shows no more.
_MOST_POINTS = 500
_LABEL = 18  # letters of a bar's label

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve. x ascending; y of the same length, None or NaN where it is broken. thin: beside the main ones."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    thin: bool = False


def known(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def row_class(name: str, place: int = 0) -> str:
    """The class that colours a row, by its name; of others by their place."""
    return ROW_CLASSES.get(name, OTHERS[place % len(OTHERS)])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at least two."""
    if not high > low:
        high = low + 1.0
    rough = (high - low) / max(most - 1, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def key(entries: Sequence[tuple[str, str]]) -> Safe:
    """Names and their classes: what the colours mean."""
    return tag("ul", *(tag("li", tag("span", name), cls=kind) for name, kind in entries), cls="key")


def chart(title: str, *content: object, note: object = None) -> Safe:
    """A chart with its title and, below it, what it says."""
    below = [tag("figcaption", note)] if note is not None else []
    return tag("figure", tag("h3", title), *content, *below)


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    wanted: Sequence[tuple[float, str]] = (),
    spans: Sequence[Bounds] = (),
    marks: Sequence[tuple[float, str]] = (),
    top: float | None = None,
    width: int = WIDTH,
    height: int = 230,
) -> Safe:
    """Curves over x, from 0 on the y axis. wanted: heights to reach, dashed. spans: shaded parts of the x axis.

    marks: places on the x axis with words to show when touched. top: end of the y axis. Empty where no point is known.
    """
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True) if y is not None and known(y)]
    if not points:
        return Safe("")
    xs = [x for x, _ in points]
    high = top if top is not None else max([y for _, y in points] + [y for y, _ in wanted])
    low = min(0.0, *(y for _, y in points))
    y_ticks = ticks(low, high, 5)
    first = 0.0 if 0 <= min(xs) <= 0.2 * max(xs) else min(xs)
    across = (first, max(xs) if max(xs) > first else first + 1.0)
    x_ticks = [t for t in ticks(*across, max(3, width // 80)) if across[0] <= t <= across[1]]
    up = (y_ticks[0], y_ticks[-1])

    def at_x(x: float) -> float:
        return _LEFT + (x - across[0]) / (across[1] - across[0]) * (width - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return _TOP + (up[1] - min(y, up[1])) / (up[1] - up[0]) * (height - _TOP - _BOTTOM)

    end = height - _BOTTOM
    parts = [_rect(at_x(a), _TOP, at_x(b) - at_x(a), end - _TOP, "event") for a, b in spans]
    for y in y_ticks:
        parts.append(_line(_LEFT, at_y(y), width - _RIGHT, at_y(y), "axis" if y == 0 else "grid"))
        parts.append(_text(_LEFT - 6, at_y(y) + 4, f"{y:g}", "end"))
    for x in x_ticks:
        parts.append(_line(at_x(x), end, at_x(x), end + 4, "axis"))
        parts.append(_text(at_x(x), end + 17, f"{x:g}", "middle"))
    parts += [_line(_LEFT, at_y(y), width - _RIGHT, at_y(y), "wanted") for y, _ in wanted]
    for x, words in marks:
        if across[0] <= x <= across[1]:
            place = at_x(x)
            shape = f"{place - 5:.1f},{_TOP - 10} {place + 5:.1f},{_TOP - 10} {place:.1f},{_TOP}"
            parts.append(tag("polygon", tag("title", words), points=shape, cls="fill guided"))
    for number, one in enumerate(series):
        parts.append(_curve(one, number, at_x, at_y))
    parts.append(_text((width + _LEFT - _RIGHT) / 2, height - 6, x_label, "middle"))
    parts.append(_text(0, 0, y_label, "middle", transform=f"translate(11 {(end + _TOP) / 2:.0f}) rotate(-90)"))
    return _svg(width, height, f"{y_label} over {x_label}", parts)


def both(draw: Callable[[int], Safe]) -> Safe:
    """The same chart twice, wide for a desk and narrow for a phone; the page shows one. draw: a function of width."""
    wide = draw(WIDE)
    return join([tag("div", wide, cls="wide"), tag("div", draw(WIDTH), cls="narrow")]) if wide else Safe("")


def names_of(series: Sequence[Series], wanted: Sequence[tuple[float, str]] = ()) -> Safe:
    entries = [(one.name, row_class(one.name, place)) for place, one in enumerate(series)]
    return key([*entries, *((words, "wanted") for _, words in wanted)])


def bars(values: Mapping[str, Mapping[str, float | None]], unit: str, width: int = WIDTH) -> Safe:
    """One line per label: a bar for the first row that is known, strokes for the others. values: {label: {row: v}}."""
    shown = {label: {row: v for row, v in rows.items() if v is not None and known(v)} for label, rows in values.items()}
    shown = {label: rows for label, rows in shown.items() if rows}
    if not shown:
        return Safe("")
    rows_of = list(dict.fromkeys(row for rows in values.values() for row in rows))
    left, pitch = 8 + 7 * min(_LABEL, max(len(label) for label in shown)), 22
    marks = ticks(0.0, max(max(rows.values()) for rows in shown.values()), 5)
    end = _TOP + pitch * len(shown)

    def at_x(value: float) -> float:
        return left + value / marks[-1] * (width - left - _RIGHT)

    parts = []
    for mark in marks:
        parts.append(_line(at_x(mark), _TOP, at_x(mark), end, "axis" if mark == 0 else "grid"))
        parts.append(_text(at_x(mark), end + 16, f"{mark:g}", "middle"))
    for place, (label, rows) in enumerate(shown.items()):
        y = _TOP + pitch * place
        short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
        parts.append(tag("g", tag("title", label), _text(left - 6, y + 15, short, "end", "value")))
        for number, (row, value) in enumerate(rows.items()):
            words = tag("title", f"{label}, {row}: {value:.3g} {unit}")
            kind = row_class(row, rows_of.index(row))
            if number == 0:
                size = {"x": f"{left:.1f}", "y": y + 4, "width": f"{max(at_x(value) - left, 0.5):.1f}", "height": 13}
                parts.append(tag("rect", words, **size, rx=2, opacity=0.75, cls=f"fill {kind}"))
            else:
                x = f"{at_x(value):.1f}"
                parts.append(tag("line", words, x1=x, x2=x, y1=y + 1, y2=y + 20, cls=f"mark {kind}"))
    parts.append(_text((width + left - _RIGHT) / 2, end + 34, unit, "middle"))
    return _svg(width, end + 40, f"{unit} by {', '.join(rows_of)}", parts)


def _curve(one: Series, number: int, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> Safe:
    """The unbroken parts of a curve; a lonely point is a dot."""
    kind = row_class(one.name, number)
    stride = max(1, math.ceil(len(one.x) / _MOST_POINTS))
    runs: list[list[str]] = [[]]
    for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        if y is None or not known(y):
            runs.append([])
        elif i % stride == 0 or len(one.x) - 1 == i:
            runs[-1].append(f"{at_x(x):.1f},{at_y(y):.1f}")
    thin = " thin" if one.thin else ""
    parts = []
    for run in runs:
        if len(run) == 1:
            across, down = run[0].split(",")
            parts.append(tag("circle", cx=across, cy=down, r=2.5, cls=f"fill {kind}"))
        elif run:
            parts.append(tag("polyline", points=" ".join(run), cls=f"curve {kind}{thin}"))
    return tag("g", tag("title", one.name), *parts)


def _svg(width: float, height: float, label: str, parts: Sequence[Safe]) -> Safe:
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Safe:
    return tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{max(width, 1):.1f}", height=f"{height:.1f}", cls=kind)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Safe:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", cls=kind)


def _text(
    x: float, y: float, words: object, anchor: str, kind: str | None = None, transform: str | None = None
) -> Safe:
    return tag("text", safe(words), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, cls=kind, transform=transform)
