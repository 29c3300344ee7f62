"""In which type the encoder and the predictor compute: chosen by what the processor can do, and said in words.

bfloat16 halves the memory traffic and, where the processor multiplies it, doubles the speed; where it does not, it is
emulated and slower than float32. So a flag is not enough: a few multiplications of the model's width are timed.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Want = Literal["auto", "float32", "bfloat16"]
WANTED: tuple[Want, ...] = ("auto", "float32", "bfloat16")
#: Instructions that multiply bfloat16, as Linux names them on x86 and on ARM.
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_CPUINFO = Path("/proc/cpuinfo")
#: bfloat16 has to be this much faster: a tie is not worth its rounding.
_WORTH = 1.15
#: The probe repeats until it has this many, or this many seconds are over.
_REPEATS, _PROBE_S = 12, 0.25


@dataclass(frozen=True)
class Choice:
    """The type to compute in, and why."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def cpu_flags(text: str | None = None) -> tuple[str, ...]:
    """Those of INSTRUCTIONS that this processor has. text: of /proc/cpuinfo; other systems than Linux tell nothing."""
    if text is None:
        try:
            text = _CPUINFO.read_text()
        except OSError:
            return ()
    words: set[str] = set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            words |= set(value.split())
    return tuple(flag for flag in INSTRUCTIONS if flag in words)


def probe(width: int, tokens: int = 192) -> dict[torch.dtype, float]:
    """Seconds that the two linear layers of a block's MLP take in each type: the least of some repeats, alternating.

    The least is what the processor can do; anything more is what else it was doing. Takes a fraction of a second.
    """
    generator = torch.Generator().manual_seed(0)
    calls = {}
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((tokens, width), (4 * width, width), (width, 4 * width))
        calls[dtype] = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    best = dict.fromkeys(calls, float("inf"))
    with torch.inference_mode():
        end = time.perf_counter() + _PROBE_S
        for repeat in range(_REPEATS):
            if repeat > 1 and time.perf_counter() > end:
                break
            for dtype, (x, first, second) in calls.items():
                began = time.perf_counter()
                torch.nn.functional.linear(torch.nn.functional.linear(x, first), second)
                best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best


def choose(device: str | torch.device, want: str = "auto", width: int = 384) -> Choice:
    """The type for a model of this width on `device`. Raises ValueError on a `want` that is not one of WANTED.

    auto: bfloat16 on a GPU that has it, and on a processor that has instructions for it and is faster with them.
    """
    if want not in WANTED:
        raise ValueError(f"dtype must be one of {', '.join(WANTED)}, not {want!r}")
    device = torch.device(device)
    if want != "auto":
        return Choice(getattr(torch, want), "asked for")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return Choice(torch.bfloat16, f"{name} computes in bfloat16")
        return Choice(torch.float32, f"{name} has no bfloat16")
    if device.type != "cpu":
        return Choice(torch.float32, f"nothing is known of {device.type}")
    flags = cpu_flags()
    if not flags:
        return Choice(torch.float32, f"this {platform.machine()} processor has none of {', '.join(INSTRUCTIONS)}")
    times = probe(min(width, 1024))
    gain = times[torch.float32] / times[torch.bfloat16]
    words = f"processor has {', '.join(flags)}; bfloat16 takes {1 / gain:.2f} of the time of float32 at width {width}"
    return Choice(torch.bfloat16 if gain >= _WORTH else torch.float32, words)
