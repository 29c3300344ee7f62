"""The live table of a run; plain lines where the output is no terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

#: Between two plain lines.
PLAIN_PERIOD_S = 2.0
NODES = ("predictor", "thinker")
_COLOURS = {"running": "green", "error": "bold red", "a model": "bold red", "no usable": "red"}


class LiveView:
    """Shows what the evaluator tells, one picture a second. Use as a context manager.

    title: what is being played. console: where to; a terminal gets a table that stays in place. drawn(told, title,
    events), said(told): what is shown on a terminal and elsewhere; default: `render` and `line`. `update` and `event`
    may be called from any thread.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        drawn: Callable[[dict[str, Any], str, list[str]], RenderableType] | None = None,
        said: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self._console = console or Console()
        self._drawn, self._said = drawn or render, said or line
        self._title = title
        self._told: dict[str, Any] = {}
        self._events: deque[str] = deque(maxlen=4)
        self._lock = threading.Lock()
        self._last_line = float("-inf")
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def update(self, told: dict[str, Any]) -> None:
        """Show the newest state (see nodes/evaluator.py)."""
        with self._lock:
            self._told = told
            if self._live is not None:
                self._live.update(self._drawn(told, self._title, list(self._events)), refresh=True)
            elif time.monotonic() - self._last_line >= PLAIN_PERIOD_S:
                self._last_line = time.monotonic()
                self._console.print(self._said(told), markup=False, highlight=False, soft_wrap=True)

    def event(self, words: str) -> None:
        """Something happened: it stays in view for a while."""
        with self._lock:
            self._events.append(words)
            if self._live is not None:
                self._live.update(self._drawn(self._told, self._title, list(self._events)), refresh=True)
            else:
                self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
            self._live.update(self._drawn({}, self._title, []), refresh=True)
        else:
            self._console.print(self._title, markup=False, highlight=False, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def line(told: dict[str, Any]) -> str:
    """The state in one line."""
    parts = [f"{told.get('t', 0):5.1f} s"]
    for name in NODES:
        status = told.get("statuses", {}).get(name)
        if status is None:
            parts.append(f"{name}: not there yet" if name == "predictor" else "")
            continue
        counts = " ".join(f"{key} {status[key]}" for key in ("received", "used", "superseded", "refused", "pending"))
        rate = told["rate_hz"] if name == "predictor" else status["rate_hz"]
        parts.append(f"{name} [{status['words']}] {rate or 0:.1f} Hz, {counts}")
    if told.get("latency_s"):
        parts.append(f"latency {_ms(told['latency_s']['p50'])} / {_ms(told['latency_s']['p99'])} (p50/p99)")
    parts.append(_guidance(told))
    if told.get("thought"):
        parts.append(f"thought: {_thought(told['thought'], 80)}")
    return " | ".join(part for part in parts if part)


def render(told: dict[str, Any], title: str, events: list[str]) -> RenderableType:
    """The state as a table: a column for each node, so that it fits into 80 characters."""
    statuses = told.get("statuses", {})
    nodes = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    nodes.add_column("", style="dim", no_wrap=True)
    for name in NODES:
        nodes.add_column(name, ratio=1, header_style="bold")
    present = [statuses.get(name) for name in NODES]
    rows: dict[str, Sequence[RenderableType]] = {
        "state": [_state(status) for status in present],
        "model": [_model(status, told, name) for status, name in zip(present, NODES, strict=True)],
        "rate": [_rate(status, told, name) for status, name in zip(present, NODES, strict=True)],
        "latency": [_latency(status, told, name) for status, name in zip(present, NODES, strict=True)],
    }
    for label, cells in rows.items():
        nodes.add_row(label, *cells)
    for key in ("received", "used", "superseded", "refused", "pending"):
        nodes.add_row(key, *(_count(status, key) for status in present))
    about = Table.grid(padding=(0, 2, 0, 0))
    about.add_column(style="dim", no_wrap=True)
    about.add_column(ratio=1)
    about.add_row("guidance  ", _guidance(told) or "none yet")
    about.add_row("thought", Text(_thought(told["thought"], 300) if told.get("thought") else "none yet", "italic"))
    for name, status in statuses.items():
        if status["last_error"] and status["last_error"] not in status["words"]:
            about.add_row("error", Text(f"{name}: {status['last_error']}", "red"))
    parts: list[RenderableType] = [nodes, Text(), about, *(Text(event, "yellow") for event in events)]
    seconds = f"{told['t']:.0f} s" if told else "starting"
    return Panel(
        Group(*parts), title=title, subtitle=f"{seconds} · Ctrl-C ends and writes the report", title_align="left"
    )


def _state(status: dict[str, Any] | None) -> Text:
    return Text(status["words"], _colour(status["words"])) if status else Text("not there yet", "dim")


def _model(status: dict[str, Any] | None, told: dict[str, Any], name: str) -> Text:
    """The model's id, with what must be known about it in colour."""
    if status is None or not status["model_id"]:
        return Text("-", "dim")
    text = Text(status["model_id"].removesuffix(" (untrained)") + " ")
    if not status["trained"]:
        text.append("untrained", "bold red")
    elif name == "predictor" and told.get("domain"):
        text.append(f"trained on {told['domain']}", "yellow")
    return text


def _rate(status: dict[str, Any] | None, told: dict[str, Any], name: str) -> str:
    if status is None:
        return ""
    rate = told.get("rate_hz") if name == "predictor" else status["rate_hz"]
    return f"{rate or 0:.1f} per second"


def _latency(status: dict[str, Any] | None, told: dict[str, Any], name: str) -> str:
    """From the image to the result: as received for the predictor, as the thinker tells it."""
    if status is None:
        return ""
    p50, p99 = status["latency_p50_s"], status["latency_p99_s"]
    if name == "predictor" and told.get("latency_s"):
        p50, p99 = told["latency_s"]["p50"], told["latency_s"]["p99"]
    return "-" if p50 is None else f"{_ms(p50)} (p50), {_ms(p99)} (p99)"


def _count(status: dict[str, Any] | None, key: str) -> str:
    if status is None:
        return ""
    reasons = ", ".join(f"{number} x {reason}" for reason, number in status["reasons"].items())
    return f"{status[key]}" + (f" ({reasons})" if key == "refused" and reasons else "")


def _colour(words: str) -> str:
    return next((colour for begin, colour in _COLOURS.items() if words.startswith(begin)), "yellow")


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _guidance(told: dict[str, Any]) -> str:
    if told.get("weight") is None:
        return ""
    if not told["weight"] or told.get("age_s") is None:
        return "unguided"
    return f"guided, weight {told['weight']:.2f}, thought {told['age_s']:.1f} s old"


def _thought(thought: dict[str, Any], length: int) -> str:
    words = " ".join(thought["text"].split()) or "(no words)"
    number = f"#{thought['sequence']}"
    untrained = "" if thought["trained"] else " (untrained thinker)"
    return f"{number}{untrained} {words if len(words) <= length else words[:length] + ' ...'}"
