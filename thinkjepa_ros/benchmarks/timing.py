"""Timing things that are compared: in turns, so that whatever else a machine does hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import memory
from .roofline import Peak, Work

Call = Callable[[], object]
#: At least so many timed rounds, however long one takes.
_ROUNDS = 3


class UnequalError(RuntimeError):
    """Two things that were to be compared do not give the same numbers."""


@dataclass
class Variant:
    """One way to do something. `call` returns its output (or several), which is compared with `same_as`'s.

    before: called ahead of every call, and not measured. told: after a call, the seconds that each part of it took,
    where the call itself knows.
    """

    name: str
    call: Call
    work: Work
    same_as: str = ""  #: the variant that must give the same numbers
    note: str = ""
    within: float = math.inf  #: a larger difference, as a share of same_as's largest value, is an UnequalError
    before: Callable[[], None] | None = None
    told: Callable[[], Mapping[str, float]] | None = None
    size: float = 0.0  #: bytes that it puts out, where that is promised
    memory: float = 0.0  #: bytes a call allocates at its peak, measured; of attention masks, by formula (see Group)
    difference: float = float("nan")  #: largest absolute difference to same_as, measured
    scale: float = float("nan")  #: largest absolute value of its output
    times: list[float] = field(default_factory=list)  #: seconds
    parts: dict[str, list[float]] = field(default_factory=dict)  #: seconds of each part told


@dataclass(frozen=True)
class Target:
    """What the figure ought to be: a percentile of the time of `name` in milliseconds, or with `beside` the median
    ratio of beside's time to its own; of one `part` of both, if that is named; with `size` its size in bytes."""

    name: str
    limit: float
    beside: str = ""
    percentile: float = 50
    part: str = ""
    size: bool = False

    def met(self, group: Group) -> bool | None:
        """None where nothing was measured."""
        value = self.value(group)
        return None if value is None else bool(value >= self.limit if self.beside else value <= self.limit)

    def value(self, group: Group) -> float | None:
        if self.beside:
            return group.ratio(self.beside, self.name, self.part)
        times = group.seconds(self.name, self.part)
        if self.size:
            return group[self.name].size if times else None
        return float(1e3 * np.percentile(times, self.percentile)) if times else None


@dataclass
class Group:
    """Things to be compared, on one device in one data type.

    allocations: measure what calls allocate on a processor too; else `memory` there is what the variants say.
    """

    title: str
    dtype: torch.dtype
    variants: list[Variant]
    peak: Peak
    device: torch.device
    pairs: Sequence[tuple[str, str]] = ()  #: (slow, fast): ratios to print
    targets: Sequence[Target] = ()
    allocations: bool = False

    def __getitem__(self, name: str) -> Variant:
        return next(v for v in self.variants if v.name == name)

    def release(self) -> None:
        """Let go of the models; the figures stay."""
        for variant in self.variants:
            variant.call, variant.before, variant.told = _released, None, None

    def seconds(self, name: str, part: str = "") -> list[float]:
        """Times of a variant, or of one part of it; empty where nothing was measured."""
        return self[name].parts.get(part, []) if part else self[name].times

    def ratio(self, slow: str, fast: str, part: str = "") -> float | None:
        """Median over the rounds of slow's time over fast's time in the same round."""
        pairs = list(zip(self.seconds(slow, part), self.seconds(fast, part), strict=False))
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
            _prepare(variant)
            if on_gpu or group.allocations:
                output, variant.memory = memory.peak(variant.call, group.device)
            else:
                output = variant.call()
            outputs[variant.name] = [t.detach().cpu().float() for t in _tensors(output)]
        for variant in group.variants:
            _compare(variant, outputs)
        outputs.clear()
        for variant in group.variants:  # once more: now memory and kernels are all there
            _prepare(variant)
            variant.call()
        wait()
        began = time.perf_counter()
        budget = seconds * len(group.variants)
        rounds = 0
        while rounds < _ROUNDS or time.perf_counter() - began < budget:
            for variant in group.variants:
                _prepare(variant)
                wait()
                start = time.perf_counter()
                variant.call()
                wait()
                variant.times.append(time.perf_counter() - start)
                for part, took in (variant.told() if variant.told else {}).items():
                    variant.parts.setdefault(part, []).append(took)
            rounds += 1
            tick(min(1.0, (time.perf_counter() - began) / budget))


def _prepare(variant: Variant) -> None:
    if variant.before is not None:
        variant.before()


def _compare(variant: Variant, outputs: Mapping[str, list[Tensor]]) -> None:
    """Fill in scale and difference. Raises UnequalError."""
    own = outputs[variant.name]
    variant.scale = _largest(own)
    if not variant.same_as:
        return
    other = outputs[variant.same_as]
    variant.difference = _largest([a - b for a, b in zip(own, other, strict=True)])
    if math.isfinite(variant.within) and not variant.difference <= variant.within * _largest(other):
        raise UnequalError(
            f"{variant.name} and {variant.same_as} do not give the same numbers (they differ by "
            f"{variant.difference:.2g} of {_largest(other):.2g}), so comparing their times would say nothing"
        )


def _largest(tensors: Sequence[Tensor]) -> float:
    return max((float(t.abs().max()) for t in tensors), default=float("nan"))


def _released() -> object:
    raise RuntimeError("this was measured and let go of")


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in _tensors(part)] if isinstance(output, tuple | list) else []
