"""How long a frame and a forecast take: `thinkjepa bench jepa`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..values import Frame, Guidance
from .forecaster import Forecaster


def measure(call: Callable[[], object], seconds: float) -> np.ndarray:
    """Wall times in seconds of repeated calls, after three that do not count."""
    for _ in range(3):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 20:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return np.array(times)


def bench(model: Path, device: str = "cpu", threads: int = 1, seconds: float = 3.0) -> dict[str, np.ndarray]:
    """Times of the parts of one step on this machine, printed as a table side by side."""
    import torch
    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(threads)
    f = Forecaster.load(model, device)
    f.warm_up()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    window = [k * f.step_ns for k in range(f.window)]
    for stamp in window:
        f.observe(Frame(image, stamp))

    def observe() -> None:
        f.observe(Frame(image, window[-1]))
        if device.startswith("cuda"):  # it only queues work; a forecast waits for its own result
            torch.cuda.synchronize(device)

    parts: dict[str, Callable[[], object]] = {
        "a frame (640x480: view, encode, pose)": observe,
        "a forecast, unguided": lambda: f.forecast(window),
    }
    if f.guidance_shape:
        layers, width = f.guidance_shape
        pyramid = rng.normal(size=(layers, 2, width)).astype(np.float32)
        guidance = Guidance(pyramid, tuple(range(layers)), window[-1], 1.0)

        def guided() -> None:
            f.guide(guidance)
            f.forecast(window)
            f.guide(None)

        parts["a forecast, guided"] = guided
    times = {name: measure(call, seconds) for name, call in parts.items()}
    table = Table(title=f"{f.model_id} on {device}, {threads} thread(s), {seconds:g} s each")
    for column in ("part", "p50 ms", "p99 ms", "times the frame"):
        table.add_column(column, justify="left" if column == "part" else "right")
    frame = float(np.median(times["a frame (640x480: view, encode, pose)"]))
    for name, values in times.items():
        p50, p99 = np.percentile(values, (50, 99))
        table.add_row(name, f"{1e3 * p50:.1f}", f"{1e3 * p99:.1f}", f"{p50 / frame:.2f}")
    Console().print(table)
    return times
