"""What a checkpoint tells of how it was made."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ..version import __version__
from .run import Run


def made_by(command: str, threads: int | None = None, run: Run | None = None) -> dict[str, Any]:
    """command: as typed, without options. run: whose time is told; None where there were several."""
    found: dict[str, Any] = {
        "command": command,
        "version": __version__,
        "torch": torch.__version__,
        "hardware": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    if threads is not None:
        found["threads"] = threads
    if run is not None:
        found |= {"seconds": round(run.seconds), "cpu_seconds": round(run.cpu_seconds)}
    return found
