"""What a call allocates at its peak, in bytes beyond what was there before."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def peak(call: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """The output of `call` and the bytes of tensors that existed at once during it.

    On a processor it is torch's own record of its allocations, so that it does not depend on what the C library keeps
    of memory that was freed; arrays of numpy are not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        output = call()
        torch.cuda.synchronize(device)
        return output, float(torch.cuda.max_memory_allocated(device) - held)
    with (
        _quiet(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        output = call()
    recorded: Any = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return output, float(most)


def of_process() -> float:
    """The most memory that this process ever had resident, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler writes past Python to the standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - os.devnull is a name, not a path of ours
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
