"""`thinkjepa bench jepa`: our encoder, predictor and whole steps beside other ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..jepa import model, precision
from . import encoders, predictors, running, steps
from .baselines import Sizes
from .roofline import Peak
from .timing import Group, Target

SIZES = ("mini", "vitl", "all")
DTYPES = ("both", "float32", "bfloat16")
#: Blocks of the large models where nothing else is said: on a processor all of them would take hours.
CPU_LAYERS = 2
MINI_TOKENS, TOKENS = 512, 4096
PARTS = ("all", "encoder", "predictor", "stream", "step")


def bench(
    checkpoint: Path,
    size: str = "all",
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 3.0,
    layers: int | None = None,
    tokens: int | None = None,
    dtype: str = "both",
    part: str = "all",
    out: Path | None = None,
) -> list[Group]:
    """Measure, print, and write JSON to `out`. What was measured before Ctrl-C is printed and written too.

    Raises ValueError naming the option that makes no sense.
    """
    for name, value, known in (("size", size, SIZES), ("dtype", dtype, DTYPES), ("part", part, PARTS)):
        if value not in known:
            raise ValueError(f"--{name} {value}: must be one of {', '.join(known)}")
    if tokens is not None:
        predictors.layout("v1", tokens)
    where = model.torch_device(device)
    torch.set_num_threads(threads)
    if layers is None and where.type == "cpu":
        layers = CPU_LAYERS
    console = running.console()
    machine = running.introduce(where, threads, console)
    peaks = running.peaks(where, kinds(dtype, where, console), seconds, console)
    return running.run(_groups(checkpoint, size, part, where, layers, tokens, peaks), seconds, machine, out, console)


def kinds(dtype: str, device: torch.device, console: Console) -> list[torch.dtype]:
    """Types to measure in: those asked for, and of both those that the processor multiplies."""
    if dtype != "both":
        return [getattr(torch, dtype)]
    if device.type == "cpu" and not precision.cpu_flags():
        console.print("bfloat16 is left out: this processor emulates it, slowly; --dtype bfloat16 measures it")
        return [torch.float32]
    return [torch.float32, torch.bfloat16]


def _groups(
    checkpoint: Path,
    size: str,
    part: str,
    device: torch.device,
    layers: int | None,
    tokens: int | None,
    peaks: dict[torch.dtype, Peak],
) -> Iterator[Callable[[], Group]]:
    """What is compared, built one by one, so that only one of them is in memory."""
    asked = PARTS[1:] if part == "all" else (part,)
    for whole in ("mini", "vitl") if size == "all" else (size,):
        mini = whole == "mini"
        sizes = Sizes(128, 128, 3, 4, 4, 128, 256) if mini else Sizes(depth=min(layers or 12, 12))
        count = tokens or (MINI_TOKENS if mini else TOKENS)
        for kind, peak in peaks.items():
            if "encoder" in asked:
                for shape in encoders.shapes(whole, layers):
                    yield partial(encoders.against_transformers, shape, device, kind, peak)
            if "predictor" in asked:
                for name in ("v1", "v2"):
                    yield partial(predictors.compare, predictors.layout(name, count), sizes, device, kind, peak)
            if "stream" in asked and not mini:
                yield partial(encoders.streaming, layers, device, kind, peak)
            if "step" in asked:
                yield partial(_steps, checkpoint if mini else None, layers, device, kind, peak)


def _steps(checkpoint: Path | None, layers: int | None, device: torch.device, dtype: torch.dtype, peak: Peak) -> Group:
    """Whole steps of a checkpoint, or of ViT-L; says what the probe would choose where it would choose otherwise."""
    net = steps.vitl(layers) if checkpoint is None else model.load(checkpoint)[0]
    probed = precision.choose(device, "auto", net.config.encoder.width)
    reason = f"the probe's choice: {probed.reason}"
    if probed.dtype != dtype:
        reason = f"asked for; the probe would choose {probed.name}: {probed.reason}"
    choice = precision.Choice(dtype, reason)
    if checkpoint is None:
        targets = [Target(steps.FULL, steps.VITL_LIMIT, percentile=99)] if device.type == "cuda" else []
        return steps.steps(net, f"ViT-L, {net.config.frames} frames", device, choice, peak, targets)
    return steps.steps(net, checkpoint.name, device, choice, peak, steps.mini_targets(net, device, dtype))
