"""Timing things that are compared: in turns, so that whatever else a machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .roofline import Peak, Work

Call = Callable[[], object]
#: At least so many timed rounds, however long one takes.
_ROUNDS = 3


@dataclass
class Variant:
    """One way to do something. `call` returns its output (or several), which is compared with `same_as`'s."""

    name: str
    call: Call
    work: Work
    same_as: str = ""  #: the variant that must give the same numbers
    note: str = ""
    memory: float = 0.0  #: bytes of attention masks on a CPU; on a GPU what a call allocates at its peak, measured
    difference: float = float("nan")  #: largest absolute difference to same_as, measured
    scale: float = float("nan")  #: largest absolute value of its output
    times: list[float] = field(default_factory=list)  #: seconds


@dataclass(frozen=True)
class Target:
    """What the figure ought to be: a percentile of the time of `name` in milliseconds, or with `beside` the median
    ratio of beside's time to its own."""

    name: str
    limit: float
    beside: str = ""
    percentile: float = 50

    def met(self, group: Group) -> bool | None:
        """None where nothing was measured."""
        value = self.value(group)
        return None if value is None else bool(value >= self.limit if self.beside else value <= self.limit)

    def value(self, group: Group) -> float | None:
        if self.beside:
            return group.ratio(self.beside, self.name)
        times = group[self.name].times
        return float(1e3 * np.percentile(times, self.percentile)) if times else None


@dataclass
class Group:
    """Things to be compared, on one device in one data type."""

    title: str
    dtype: torch.dtype
    variants: list[Variant]
    peak: Peak
    device: torch.device
    pairs: Sequence[tuple[str, str]] = ()  #: (slow, fast): ratios to print
    targets: Sequence[Target] = ()

    def __getitem__(self, name: str) -> Variant:
        return next(v for v in self.variants if v.name == name)

    def release(self) -> None:
        """Let go of the models; the figures stay."""
        for variant in self.variants:
            variant.call = _released

    def ratio(self, slow: str, fast: str) -> float | None:
        """Median over the rounds of slow's time over fast's time in the same round."""
        pairs = list(zip(self[slow].times, self[fast].times, strict=False))
        return float(np.median([a / b for a, b in pairs])) if pairs else None


def measure(group: Group, seconds: float, tick: Callable[[float], None] = lambda share: None) -> None:
    """Fill in the group's differences, memory and times: about `seconds` per variant, one round after the other.

    tick: told the share of the time that is over. What was measured before a KeyboardInterrupt stays in the group.
    """
    on_gpu = group.device.type == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(group.device)

    with torch.inference_mode():
        outputs: dict[str, list[Tensor]] = {}
        for variant in group.variants:
            wait()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(group.device)
                held = torch.cuda.memory_allocated(group.device)
            outputs[variant.name] = [t.detach().cpu().float() for t in _tensors(variant.call())]
            wait()
            if on_gpu:
                variant.memory = float(torch.cuda.max_memory_allocated(group.device) - held)
        for variant in group.variants:
            own = outputs[variant.name]
            variant.scale = max((float(t.abs().max()) for t in own), default=float("nan"))
            if variant.same_as:
                other = outputs[variant.same_as]
                variant.difference = max(float((a - b).abs().max()) for a, b in zip(own, other, strict=True))
        outputs.clear()
        for variant in group.variants:  # once more: now memory and kernels are all there
            variant.call()
        wait()
        began = time.perf_counter()
        budget = seconds * len(group.variants)
        rounds = 0
        while rounds < _ROUNDS or time.perf_counter() - began < budget:
            for variant in group.variants:
                start = time.perf_counter()
                variant.call()
                wait()
                variant.times.append(time.perf_counter() - start)
            rounds += 1
            tick(min(1.0, (time.perf_counter() - began) / budget))


def _released() -> object:
    raise RuntimeError("this was measured and let go of")


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in _tensors(part)] if isinstance(output, tuple | list) else []
