"""One run of a benchmark: what machine it is, group after group with a progress bar, then the verdicts and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import memory, report, roofline
from .roofline import Peak
from .timing import Group, measure

#: Columns of the tables where the output is no terminal.
WIDTH = 140


def console() -> Console:
    """The terminal, or wide enough for the tables where there is none."""
    made = Console()
    if not made.is_terminal:
        made.width = WIDTH
    return made


def introduce(device: torch.device, threads: int, console: Console) -> dict[str, Any]:
    """Print and return what the figures will be measured on."""
    machine = report.machine(device, threads)
    console.print(f"{machine['device']}, {threads} thread(s), torch {machine['torch']}", highlight=False)
    return machine


def peaks(
    device: torch.device, dtypes: Iterable[torch.dtype], seconds: float, console: Console
) -> dict[torch.dtype, Peak]:
    """Measure and print what the device can do in these types."""
    found = {kind: roofline.measure(device, kind, min(1.0, 10 * seconds)) for kind in dtypes}
    for kind, peak in found.items():
        console.print(
            f"{report.name(kind)}: {peak.flops * 1e-9:.0f} GFLOP/s, {peak.bandwidth * 1e-9:.0f} GB/s", highlight=False
        )
    console.print()
    return found


def run(
    groups: Iterable[Callable[[], Group]], seconds: float, machine: dict[str, Any], out: Path | None, console: Console
) -> list[Group]:
    """Build, measure and print the groups one by one, so that only one is in memory; write JSON to `out`.

    What was measured before an exception (Ctrl-C) is printed and written too.
    """
    done: list[Group] = []
    complete = False
    try:
        for build in groups:
            group = build()
            done.append(group)
            _run(group, seconds, console)
        complete = True
    finally:
        report.summarise(done, console)
        peak = memory.of_process()
        console.print(f"memory of the process at its peak: {report.in_units(peak)}", highlight=False)
        if out is not None:
            figures = report.as_dict(done, {**machine, "process_peak_bytes": peak}, complete)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return done


def _run(group: Group, seconds: float, console: Console) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(group.title, total=1.0)
            measure(group, seconds, lambda share: progress.update(task, completed=share))
    finally:
        if any(variant.times for variant in group.variants):
            report.show(group, console)
        group.release()
