"""Running a function of tensors whose shapes never change with as little overhead as the device allows.

On a GPU a small model waits for the launches of its hundreds of kernels; a CUDA graph launches all of them at once. A
graph reads and writes fixed memory, so inputs are copied in and outputs copied out. `torch.compile` fuses kernels and
needs a C++ or Triton compiler. Whatever cannot be had is done without, and the words say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
#: Calls before a capture: libraries allocate their workspaces and choose their kernels in the first ones.
_WARM_UP = 3


@dataclass(frozen=True)
class Prepared:
    """call: same inputs and outputs as the function. words: how it runs, for a log. captured: every input is needed."""

    call: Function
    words: str
    captured: bool = False


class CapturedGraph:
    """`function` as a CUDA graph. Call it with tensors of the shapes, types and device of `inputs`.

    An input that is the very tensor of the call before is not copied again, so a caller never writes into one.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._buffers = tuple(x.detach().clone() for x in inputs)
        self._last: list[Tensor | None] = [None] * len(self._buffers)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._buffers[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    function(*self._buffers)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._outputs = function(*self._buffers)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for index, (buffer, value) in enumerate(zip(self._buffers, inputs, strict=True)):
            if value is not self._last[index]:
                buffer.copy_(value, non_blocking=True)
                self._last[index] = value
        self._graph.replay()
        return tuple(out.clone() for out in self._outputs)  # the next replay overwrites the graph's own


def prepare(function: Function, inputs: Sequence[Tensor], compile: bool = False) -> Prepared:
    """`function` made fast for tensors like `inputs`: compiled if asked for, captured on a GPU, else as it is."""
    words = []
    with torch.inference_mode():
        if compile:
            try:
                # frozen: weights become constants of the compiled code, laid out as the processor likes them
                compiled = torch.compile(function, dynamic=False, fullgraph=True, options={"freezing": True})
                compiled(*inputs)
                function = compiled
                words.append("compiled")
            except Exception as error:  # no compiler, an operator that it does not know: all are reported alike
                words.append(f"not compiled ({_line(error)})")
        if inputs[0].is_cuda:
            try:
                return Prepared(CapturedGraph(function, inputs), ", ".join([*words, "CUDA graph"]), captured=True)
            except RuntimeError as error:
                torch.cuda.synchronize(inputs[0].device)
                words.append(f"no CUDA graph ({_line(error)})")
    return Prepared(function, ", ".join([*words, "eager"]))


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
