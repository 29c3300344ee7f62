"""`thinkjepa bench graph`: do the nodes keep up on this machine, and what does a thinker cost the predictor?

First without a thinker, then beside one that thinks as fast as it can, then when that one is killed: in one run.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from thinkjepa_ros.demo.report import account
from thinkjepa_ros.demo.run import DemoError, Graph, environment, open_source, prepare, stop_signals
from thinkjepa_ros.demo.supervisor import BACK_OFF_S, Supervisor
from thinkjepa_ros.evaluation.runs import Run, RunError, plain
from thinkjepa_ros.transport import free_domain

#: What two cores are to reach with a 640 x 480 camera at 30 Hz.
RATE_HZ, P50_S, P99_S = 15.0, 0.060, 0.150
#: The first seconds of forecasts are left out: caches fill and processes still settle.
SETTLE_S = 3.0
RETURN_S = 40.0
#: The share of its rate that the predictor keeps while the thinker thinks.
KEPT = 0.95
#: A thought begins as soon as the one before has ended: its shortest period, and a new image for each. The window holds
#: as many images as the default one of 8 s, so that a thought is as long.
FASTEST = {"think_period_s": 0.05, "sample_period_s": 0.05, "window_s": 1.6}

Span = tuple[int, int]


@dataclass(frozen=True)
class Phases:
    """Times in ns: without a thinker, while it thinks, and when it was killed."""

    alone: Span
    busy: Span
    killed: int


@dataclass(frozen=True)
class Rate:
    """Forecasts of a span of time: how many came per second, how old they were, and the time between two."""

    hz: float
    p50_s: float
    p99_s: float
    gap_p50_s: float
    gap_p99_s: float
    count: int

    @classmethod
    def of(cls, run: Run, span: Span, when: str) -> Rate:
        """DemoError if there are too few."""
        chosen = (run.receipt_ns > span[0]) & (run.receipt_ns < span[1])
        if chosen.sum() < 10:
            raise DemoError(f"only {chosen.sum()} forecasts came {when}; nothing can be said")
        gaps_s = np.diff(run.receipt_ns[chosen]) * 1e-9
        p50, p99 = np.quantile(run.latency_s[chosen], [0.5, 0.99])
        gap_p50, gap_p99 = np.quantile(gaps_s, [0.5, 0.99])
        return cls(len(gaps_s) / gaps_s.sum(), p50, p99, float(gap_p50), float(gap_p99), int(chosen.sum()))


@dataclass
class Figures:
    """lines: (what, value, target, held). The last two are empty where nothing is promised."""

    lines: list[tuple[str, str, str, bool | None]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, value: str, target: str = "", held: bool | None = None) -> None:
        self.lines.append((what, value, target, held))


def bench_graph(
    bag: Path | None = None,
    out: Path = Path("out/bench_graph"),
    model: str = "mini",
    device: str = "cpu",
    seconds: float = 20.0,
    console: Console | None = None,
) -> int:
    """Play `bag` in a loop, `seconds` without and `seconds` with a thinker; kill it, wait until it is back, print.

    Returns 0 when there are figures, also when a target is missed, and 1 when there are none.
    """
    console = console or Console()
    try:
        source = open_source(bag)
        out = prepare(out)
        console.print(f"{source.title}; {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
        phases = _play(source, out, model, device, seconds, console)
        figures = measure(Run.load(out), phases)
    except (DemoError, RunError, OSError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    table = Table("what", "measured", "target", "")
    for what, value, target, held in figures.lines:
        verdict = "" if held is None else "[green]held[/]" if held else "[red]missed[/]"
        table.add_row(what, value, target, verdict)
    console.print(table)
    path = out / "bench_graph.json"
    path.write_text(json.dumps(plain({"source": source.title, "cores": os.cpu_count(), **figures.numbers}), indent=1))
    console.print(f"figures: {path}")
    return 0


def _play(source: Any, out: Path, model: str, device: str, seconds: float, console: Console) -> Phases:
    """Run the graph; returns what was when."""
    with stop_signals() as asked, Supervisor(environment(out, free_domain()), console.print) as supervisor:
        graph = Graph(supervisor, source, out, model=model, device=device, thinker=False, loop=True, pictures=False)

        def wait(condition: Any, timeout_s: float, what: str) -> None:
            deadline = time.monotonic() + timeout_s
            while not condition():
                supervisor.look_after()
                if trouble := graph.trouble():
                    raise DemoError(trouble)
                if asked.wait(0.05):
                    raise DemoError("interrupted")
                if time.monotonic() > deadline:
                    raise DemoError(f"{what} did not happen within {timeout_s:.0f} s; the logs are in {out / 'logs'}")

        def epoch() -> int | None:
            return (graph.told.get("thought") or {}).get("epoch")

        def steady() -> Span:
            begin = time.time_ns() + round(SETTLE_S * 1e9)
            end = begin + round(seconds * 1e9)
            wait(lambda: time.time_ns() > end, seconds + 60.0, "measuring")
            return begin, end

        wait(lambda: graph.told.get("forecasts", 0) > 0, 180.0, "the first forecast")
        alone = steady()
        graph.start_thinker(**FASTEST)
        wait(lambda: epoch() is not None, 180.0, "the first guidance")
        busy = steady()
        before, thinker = epoch(), supervisor.children["thinker"]
        killed_ns = time.time_ns()
        os.kill(thinker.pid or 0, signal.SIGKILL)
        wait(lambda: epoch() != before, RETURN_S + 60.0, "the return of the guidance")
        end = time.monotonic()
        wait(lambda: time.monotonic() - end > 2.0, 10.0, "the end")
        graph.finish()
    return Phases(alone, busy, killed_ns)


def measure(run: Run, phases: Phases) -> Figures:
    """The figures of a run. DemoError if there are too few forecasts."""
    figures, killed_ns = Figures(), phases.killed
    alone = Rate.of(run, phases.alone, "before there was a thinker")
    busy = Rate.of(run, phases.busy, "while it thought")
    kept = busy.hz / alone.hz
    figures.add("forecasts per second, no thinker", f"{alone.hz:.1f}")
    figures.add("forecasts per second, while it thinks", f"{busy.hz:.1f}", f">= {RATE_HZ:g}", bool(busy.hz >= RATE_HZ))
    figures.add("share of the rate that is kept", f"{kept:.2f}", f">= {KEPT:g}", bool(kept >= KEPT))
    figures.add("age of a forecast, no thinker, p50 / p99", f"{_ms(alone.p50_s)} / {_ms(alone.p99_s)}")
    figures.add("age of a forecast, p50", _ms(busy.p50_s), f"<= {_ms(P50_S)}", bool(busy.p50_s <= P50_S))
    figures.add("age of a forecast, p99", _ms(busy.p99_s), f"<= {_ms(P99_S)}", bool(busy.p99_s <= P99_S))
    figures.add("between forecasts, p50 / p99", f"{_ms(busy.gap_p50_s)} / {_ms(busy.gap_p99_s)}")

    thoughts = run.words["thoughts"]
    receipts = np.array([t["stamp_ns"] + t["delay_s"] * 1e9 for t in thoughts])
    delays = np.array([t["delay_s"] for t in thoughts])
    epochs = np.array([t["epoch"] for t in thoughts])
    inside = (receipts > phases.busy[0]) & (receipts < phases.busy[1])
    pace = _rate(receipts[inside])
    ages = np.quantile(delays[inside], [0.5, 0.99]) if inside.any() else np.full(2, np.nan)
    figures.add("thoughts per second", f"{pace:.2f}")
    figures.add("age of a thought on arrival, p50 / p99", f"{_ms(ages[0])} / {_ms(ages[1])}")

    cost = _longest_gap_s(run, killed_ns - 200_000_000, killed_ns + round(BACK_OFF_S[0] * 1e9))
    allowed = max(
        busy.gap_p99_s, 2 * busy.gap_p50_s
    )  # "one period": one forecast may be missing, or what happens anyhow
    figures.add("longest gap when the thinker is killed", _ms(cost), f"<= {_ms(allowed)}", cost <= allowed)
    before = receipts <= killed_ns
    old = epochs[before][-1] if before.any() else -1
    back = receipts[(receipts > killed_ns) & (epochs != old)]
    back_s = float(back[0] - killed_ns) * 1e-9 if len(back) else float("inf")
    figures.add("until guidance is back", f"{back_s:.1f} s")
    after = (run.receipt_ns > killed_ns) & (run.receipt_ns < killed_ns + back_s * 1e9)
    loading_s = _longest_gap_s(run, killed_ns, killed_ns + round(min(back_s, 60.0) * 1e9))
    figures.add("meanwhile: forecasts, of them guided", f"{after.sum()}, {(run.weight[after] > 0).sum()}")
    figures.add("meanwhile: longest gap between forecasts", _ms(loading_s))
    for name, status in run.words["statuses"].items():
        figures.add(f"account of the {name}", account(status), "adds up", "NOT" not in account(status))
    figures.numbers = {
        "alone": asdict(alone), "busy": asdict(busy), "rate_kept": kept,
        "thoughts_hz": pace, "thought_age_p50_s": float(ages[0]), "thought_age_p99_s": float(ages[1]),
        "gap_at_kill_s": cost, "gap_while_loading_s": loading_s, "guidance_back_s": back_s,
        "accounts": {name: account(status) for name, status in run.words["statuses"].items()},
    }  # fmt: skip
    return figures


def _longest_gap_s(run: Run, begin_ns: int, end_ns: int) -> float:
    """Between two forecasts received in this time, seconds; infinite when there are fewer."""
    received = run.receipt_ns[(run.receipt_ns > begin_ns) & (run.receipt_ns < end_ns)]
    return float(np.diff(received).max() * 1e-9) if len(received) > 1 else float("inf")


def _rate(receipts_ns: np.ndarray) -> float:
    return (len(receipts_ns) - 1) / (np.ptp(receipts_ns) * 1e-9) if len(receipts_ns) > 1 else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
