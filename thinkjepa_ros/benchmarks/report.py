"""What was measured, as tables and as JSON. A figure that was not measured is not printed."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..jepa import precision
from .timing import Group, Target, Variant


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "bf16_instructions": list(precision.cpu_flags()),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - one line of a file that has no size
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def name(dtype: torch.dtype) -> str:
    """ "float32", not "torch.float32"."""
    return str(dtype).removeprefix("torch.")


def show(group: Group, console: Console) -> None:
    """One table for the group, its ratios and its targets below it. Columns of parts are medians in milliseconds."""
    console.print(f"[bold]{group.title} · {name(group.dtype)}[/bold]", highlight=False)
    table = Table()
    on_gpu = group.device.type == "cuda"
    parts = list(dict.fromkeys(part for variant in group.variants for part in variant.parts))
    columns = ("", "p50 ms", "p99 ms", "runs", *parts, "GFLOP", "roofline ms", "times roofline")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", overflow="fold")
    table.add_column("allocates" if on_gpu or group.allocations else "masks", justify="right")
    table.add_column("difference", justify="right")
    for variant in group.variants:
        if not variant.times:
            continue
        figures = _figures(variant, group)
        table.add_row(
            variant.name,
            _short(figures["p50_ms"]),
            _short(figures["p99_ms"]),
            str(figures["runs"]),
            *(_short(figures["parts_ms"][part]["p50"]) if part in variant.parts else "" for part in parts),
            _short(variant.work.flops * 1e-9),
            _short(figures["roofline_ms"]),
            _short(figures["times_roofline"]),
            in_units(variant.memory),
            f"{variant.difference:.1e} of {variant.scale:.2g}" if variant.same_as else "",
        )
    console.print(table)
    for variant in group.variants:
        if variant.note and variant.times:
            console.print(f"  {variant.name}: {variant.note}", highlight=False)
    for slow, fast in group.pairs:
        ratio = group.ratio(slow, fast)
        if ratio is not None:
            console.print(f"  {slow} / {fast} = [bold]{ratio:.2f}[/bold]", highlight=False)
    for target in group.targets:
        words = _target(target, group)
        if words:
            console.print(f"  target: {words}", highlight=False)
    console.print()


def summarise(groups: Sequence[Group], console: Console) -> None:
    """How many targets are met, and which are not."""
    judged = [(g, t) for g in groups for t in g.targets if t.met(g) is not None]
    missed = [(g, t) for g, t in judged if not t.met(g)]
    console.print(f"[bold]{len(judged) - len(missed)} of {len(judged)} targets met[/bold]", highlight=False)
    for group, target in missed:
        console.print(f"  {group.title} · {name(group.dtype)}: {_target(target, group)}", highlight=False)


def _short(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _target(target: Target, group: Group) -> str:
    value, met = target.value(group), target.met(group)
    if value is None:
        return ""
    verdict = "[green]met[/green]" if met else "[red]not met[/red]"
    what = f"{target.name}, {target.part}," if target.part else target.name
    if target.beside:
        return f"{what} at least {target.limit:g} times as fast as {target.beside}: {value:.2f}, {verdict}"
    if target.size:
        return f"{what} at most {in_units(target.limit)}: {in_units(value)}, {verdict}"
    return f"{what} at most {target.limit:g} ms (p{target.percentile:g}): {value:.1f}, {verdict}"


def in_units(value: float) -> str:
    """Bytes as "64 MiB"."""
    if not value:
        return "0"
    unit = min(3, int(math.log2(value) // 10))
    return f"{_short(value / 1024**unit)} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _figures(variant: Variant, group: Group) -> dict[str, Any]:
    p50, p99 = np.percentile(variant.times, (50, 99))
    roof = group.peak.seconds(variant.work)
    return {
        "p50_ms": float(1e3 * p50),
        "p99_ms": float(1e3 * p99),
        "runs": len(variant.times),
        "roofline_ms": 1e3 * roof,
        "times_roofline": float(p50 / roof),
        "parts_ms": {
            part: {"p50": float(1e3 * np.median(times)), "p99": float(1e3 * np.percentile(times, 99))}
            for part, times in variant.parts.items()
        },
    }


def as_dict(groups: Iterable[Group], machine: dict[str, Any], complete: bool) -> dict[str, Any]:
    """JSON values of everything that was measured."""
    return {"machine": machine, "complete": complete, "groups": [_group(g) for g in groups]}


def _group(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "dtype": name(group.dtype),
        "peak_flops": group.peak.flops,
        "peak_bandwidth": group.peak.bandwidth,
        "variants": [
            {
                "name": v.name,
                "note": v.note,
                "flops": v.work.flops,
                "bytes": v.work.bytes,
                "memory_bytes": v.memory,
                "size_bytes": v.size,
                "same_as": v.same_as,
                "difference": v.difference if v.same_as else None,
                **_figures(v, group),
            }
            for v in group.variants
            if v.times
        ],
        "ratios": [
            {"slow": slow, "fast": fast, "median": ratio}
            for slow, fast in group.pairs
            if (ratio := group.ratio(slow, fast)) is not None
        ],
        "targets": [
            {
                "name": t.name,
                "beside": t.beside,
                "limit": t.limit,
                "percentile": t.percentile,
                "part": t.part,
                "size": t.size,
                "value": t.value(group),
                "met": t.met(group),
            }
            for t in group.targets
            if t.met(group) is not None
        ],
    }
