"""The least time a machine needs for a piece of work: its FLOPs at the peak rate, or its bytes at the peak bandwidth.

FLOPs are those of matrix products, by formula, a multiplication and an addition each (the count of
`torch.utils.flop_counter`); norms, activations and rotations are left out. Bytes are the weights, the inputs and the
outputs, each moved once: what no implementation can avoid. Both peaks are measured in the same run with the same
threads, so that the share of a machine that a benchmark gets is the share that its roofline gets.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Sides of the square products among which the peak is looked for.
_CPU_SIDES, _GPU_SIDES = (512, 1024, 2048), (4096, 8192)
#: Bytes of the big copy: several times any cache.
_CPU_COPY, _GPU_COPY = 1 << 28, 1 << 31


@dataclass(frozen=True)
class Work:
    """What one call computes and must move."""

    flops: float
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Peak:
    """What a device can do in one data type: FLOPs per second and bytes per second."""

    flops: float
    bandwidth: float

    def seconds(self, work: Work) -> float:
        """The roofline time."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


def linear(tokens: int, into: int, out: int) -> float:
    """FLOPs of a linear layer."""
    return 2.0 * tokens * into * out


def attention(queries: int, keys: int, width: int) -> float:
    """FLOPs of scores and weighted sum over all heads."""
    return 4.0 * queries * keys * width


def causal(blocks: int, size: int, width: int, before: int = 0) -> float:
    """FLOPs of block-causal attention in which a block of `size` tokens sees itself, the blocks before it, and
    `before` older blocks."""
    return attention(size, size, width) * sum(before + k for k in range(1, blocks + 1))


def block(tokens: int, width: int, hidden: float, mixing: float, finished: int | None = None) -> float:
    """FLOPs of a transformer block whose attention takes `mixing`; only `finished` tokens are carried to its end."""
    done = tokens if finished is None else finished
    return (
        linear(tokens, width, 3 * width) + mixing + linear(done, width, width) + 2 * linear(done, width, round(hidden))
    )


def encoder(tokens: int, keys: int, width: int, depth: int, mlp_ratio: float, patch_values: int) -> float:
    """FLOPs of a vision transformer: depth (8 N D^2 + 4 N D M + 4 N K D) + the patch embedding 2 N P D.

    keys: how many tokens each token sees. patch_values: numbers in a patch (3 * tubelet * patch^2).
    """
    one = block(tokens, width, width * mlp_ratio, attention(tokens, keys, width))
    return depth * one + linear(tokens, patch_values, width)


def film(blocks: int, width: int, guide_width: int, hidden: int, pairs: int = 1) -> float:
    """FLOPs of FiLM from a pyramid with `pairs` tokens per stream that are projected before they are averaged."""
    fused = linear(1, 4 * width, hidden) + linear(1, hidden, 2 * width)
    return blocks * (2 * linear(pairs, guide_width, width) + fused)


def predictor(
    context: int, targets: int, latent: int, mixing: float, width: int, depth: int, skipped: float = 0.0
) -> float:
    """FLOPs of a predictor over context + target tokens, MLP ratio 4, attention `mixing` per block.

    skipped: what the last block need not compute.
    """
    tokens = context + targets
    return (
        linear(context, latent, width)
        + depth * block(tokens, width, 4 * width, mixing)
        - skipped
        + linear(targets, width, latent)
    )


def moved(module: nn.Module, *tensors: Tensor) -> float:
    """Bytes of a module's weights and of these tensors."""
    return float(sum(t.numel() * t.element_size() for t in (*module.parameters(), *tensors)))


def measure(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> Peak:
    """The peak of `device` with torch's present threads: the best product and the best copy seen in about `seconds`."""
    on_gpu = device.type == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    def best(run: Callable[[], object], budget: float) -> float:
        run()
        wait()
        least, end = float("inf"), time.perf_counter() + budget
        while True:
            began = time.perf_counter()
            run()
            wait()
            now = time.perf_counter()
            least = min(least, now - began)
            if now > end:
                return least

    with torch.inference_mode():
        sides = _GPU_SIDES if on_gpu else _CPU_SIDES
        rates = []
        for side in sides:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            product = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
            rates.append(2 * side**3 / best(product, seconds / len(sides) / 2))
        size = _GPU_COPY if on_gpu else _CPU_COPY
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copied = best(lambda: target.copy_(source), seconds / 2)
    return Peak(max(rates), 2 * size / copied)
