"""The live table of a run; plain lines where the output is no terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
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

    title: what is being played. console: where to; a terminal gets a table that stays in place. `update` and `event`
    may be called from any thread.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console()
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
                self._live.update(render(told, self._title, list(self._events)), refresh=True)
            elif time.monotonic() - self._last_line >= PLAIN_PERIOD_S:
                self._last_line = time.monotonic()
                self._console.print(line(told), markup=False, highlight=False, soft_wrap=True)

    def event(self, words: str) -> None:
        """Something happened: it stays in view for a while."""
        with self._lock:
            self._events.append(words)
            if self._live is not None:
                self._live.update(render(self._told, self._title, list(self._events)), refresh=True)
            else:
                self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
            self._live.update(render({}, self._title, []), refresh=True)
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
    """The state as a table."""
    table = Table(box=None, padding=(0, 1), expand=True)
    table.add_column("node", style="bold", no_wrap=True)
    table.add_column("state", no_wrap=True, ratio=1, min_width=18)
    for name in ("Hz", "p50 / p99", "received", "used", "superseded", "refused", "pending"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in NODES:
        status = told.get("statuses", {}).get(name)
        if status is None:
            table.add_row(name, Text("not there yet" if name == "predictor" else "-", "dim"), *[""] * 7)
            continue
        latency = told.get("latency_s") if name == "predictor" else None
        p50, p99 = (latency["p50"], latency["p99"]) if latency else (status["latency_p50_s"], status["latency_p99_s"])
        rate = told["rate_hz"] if name == "predictor" else status["rate_hz"]
        table.add_row(
            name,
            Text(status["words"].partition(":")[0], _colour(status["words"])),
            f"{rate or 0:.1f}",
            f"{_ms(p50)} / {_ms(p99)}",
            *(str(status[key]) for key in ("received", "used", "superseded", "refused", "pending")),
        )
    rows: list[RenderableType] = [table, Text()]
    about = Table.grid(padding=(0, 1))
    about.add_column(style="dim", no_wrap=True)
    about.add_column(ratio=1)
    about.add_row("models", _models(told))
    about.add_row("guidance", _guidance(told) or "none yet")
    about.add_row("thought", Text(_thought(told["thought"], 300) if told.get("thought") else "none yet", "italic"))
    for name, status in told.get("statuses", {}).items():
        if ":" in status["words"]:
            about.add_row(name, status["words"])
        if status["reasons"]:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in status["reasons"].items())
            about.add_row("refused", f"{name}: {reasons}")
        if status["last_error"] and status["last_error"] not in status["words"]:
            about.add_row("error", Text(f"{name}: {status['last_error']}", "red"))
    rows.append(about)
    rows += [Text(event, "yellow") for event in events]
    seconds = f"{told['t']:.0f} s" if told else "starting"
    return Panel(
        Group(*rows), title=title, subtitle=f"{seconds} · Ctrl-C ends and writes the report", title_align="left"
    )


def _colour(words: str) -> str:
    return next((colour for begin, colour in _COLOURS.items() if words.startswith(begin)), "yellow")


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f} ms" if seconds < 2 else f"{seconds:.1f} s"


def _guidance(told: dict[str, Any]) -> str:
    if told.get("weight") is None:
        return ""
    if not told["weight"] or told.get("age_s") is None:
        return "unguided"
    return f"guided, weight {told['weight']:.2f}, thought {told['age_s']:.1f} s old"


def _models(told: dict[str, Any]) -> Text:
    """Model ids, with what must be known about them in colour."""
    text = Text()
    for name, status in told.get("statuses", {}).items():
        if not status["model_id"]:
            continue
        text.append(("  ·  " if text else "") + f"{name} {status['model_id'].removesuffix(' (untrained)')} ")
        if not status["trained"]:
            text.append("untrained", "bold red")
        elif name == "predictor" and told.get("domain"):
            text.append(f"trained on {told['domain']}", "yellow")
    return text or Text("loading", "dim")


def _thought(thought: dict[str, Any], length: int) -> str:
    words = " ".join(thought["text"].split()) or "(no words)"
    number = f"#{thought['sequence']}"
    untrained = "" if thought["trained"] else " (untrained thinker)"
    return f"{number}{untrained} {words if len(words) <= length else words[:length] + ' ...'}"
