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
from torch.utils.flop_counter import FlopCounterMode

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


def block(tokens: int, width: int, hidden: float, mixing: float) -> float:
    """FLOPs of a transformer block whose attention takes `mixing`."""
    return linear(tokens, width, 4 * width) + mixing + 2 * linear(tokens, width, round(hidden))


def encoder(tokens: int, keys: int, width: int, depth: int, mlp_ratio: float, patch_values: int) -> float:
    """FLOPs of a vision transformer: depth (8 N D^2 + 4 N D M + 4 N K D) + the patch embedding 2 N P D.

    keys: how many tokens each token sees. patch_values: numbers in a patch (3 * tubelet * patch^2).
    """
    one = block(tokens, width, width * mlp_ratio, attention(tokens, keys, width))
    return depth * one + linear(tokens, patch_values, width)


def film(blocks: int, width: int, guide_width: int, hidden: int, projected: int) -> float:
    """FLOPs of FiLM with an MLP per block, from two streams of which `projected` states each are projected."""
    fused = linear(1, 4 * width, hidden) + linear(1, hidden, 2 * width)
    return blocks * fused + 2 * linear(projected, guide_width, width)


@dataclass(frozen=True)
class Mixing:
    """What the attention of all blocks takes, and how many tokens the last block need not carry to its end."""

    flops: float
    dropped: int = 0


def predictor(latent: int, width: int, depth: int, context: int, targets: int, mixing: Mixing) -> float:
    """FLOPs of a predictor with an MLP ratio of 4: embedding, blocks, output.

    Every block projects all tokens; context and targets then attend as `mixing` says, and go on through the MLP.
    """
    carried = depth * (context + targets) - mixing.dropped
    return (
        linear(context, latent, width)
        + depth * linear(context + targets, width, 3 * width)
        + mixing.flops
        + linear(carried, width, width)
        + 2 * linear(carried, width, 4 * width)
        + linear(targets, width, latent)
    )


def everything(depth: int, context: int, targets: int, width: int) -> Mixing:
    """All tokens see all, or a mask hides what was computed; every token is carried to the end."""
    return Mixing(depth * attention(context + targets, context + targets, width))


def full(depth: int, context: int, targets: int, width: int) -> Mixing:
    """All tokens see all; the last block finishes the targets only."""
    all_but_last = (depth - 1) * attention(context + targets, context + targets, width)
    return Mixing(all_but_last + attention(targets, context + targets, width), context)


def tubelets(depth: int, context: int, targets: int, width: int, size: int) -> Mixing:
    """Tubelets of `size` tokens see themselves and earlier ones; the last block finishes the targets only."""
    before, after = context // size, targets // size
    past = (depth - 1) * causal(before, size, width)
    return Mixing(past + depth * causal(after, size, width, before), context)


def two_stream(depth: int, context: int, targets: int, width: int) -> Mixing:
    """The context sees itself, targets see everything; the last block finishes the targets only."""
    past = (depth - 1) * attention(context, context, width)
    return Mixing(past + depth * attention(targets, context + targets, width), context)


def counted(call: Callable[[], object]) -> float:
    """FLOPs of a call by torch's counter, which is taught the attention kernel of CPUs."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping={kernel: _attention_of}) as counter:
        call()
    return float(counter.get_total_flops())


def _attention_of(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


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
