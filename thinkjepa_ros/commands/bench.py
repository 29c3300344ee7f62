"""`thinkjepa bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import MINI, Model, Threads, shipped

if TYPE_CHECKING:
    from ..benchmarks.thinker import Serialise

bench = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@bench.command("transport")
def bench_transport(
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each of the runs.")] = 4.0,
    rate: Annotated[float, typer.Option(min=1.0, help="Images per second.")] = 30.0,
    size: Annotated[
        list[str] | None, typer.Option(help="Image size such as 640x480; may be repeated. Default: three sizes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Raw images from process to process: frames delivered and latency, with and without the transport profile."""
    arguments = ["--seconds", str(seconds), "--rate", str(rate)]
    arguments += ["--size", *size] if size else []
    arguments += ["--out", str(out)] if out else []
    command = [sys.executable, "-m", "thinkjepa_ros.nodes.bench_transport", *arguments]
    raise SystemExit(subprocess.run(command, check=False).returncode)


@bench.command("jepa")
def bench_jepa(
    model: Model = MINI,
    size: Annotated[str, typer.Option(help="What to measure: mini, vitl or all.")] = "all",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each row of the tables.")] = 3.0,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the large models. Default: 2 on a CPU, all on a GPU.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=32, help="Context and target tokens of the predictor. Default: 512 mini, 4096 vitl."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="both, float32 or bfloat16.")] = "both",
    part: Annotated[str, typer.Option(help="all, encoder, predictor, stream (large only) or step.")] = "all",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """The model alone, beside other ways to the same numbers and what the machine could do at best.

    The encoder beside that of transformers, the guided predictor beside one written plainly and one written as
    published (same weights, numbers compared), and whole steps from a camera image to a forecast. Ctrl-C prints what
    was measured so far.
    """
    from ..benchmarks.jepa import bench as run

    run(shipped(model), size, device, threads, seconds, layers, tokens, dtype, part, json)


@bench.command("thinker")
def bench_thinker(
    model: Annotated[Path, typer.Option(help="Checkpoint folder of the mini thinker.")] = MINI / "thinker",
    size: Annotated[str, typer.Option(help="What to measure: mini, 2b (random weights) or all.")] = "all",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each row of the tables.")] = 3.0,
    layers: Annotated[
        int | None,
        typer.Option(help="Layers and vision blocks of the 2B shape, 2 or more. Default: 2 on a CPU, all on a GPU."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that a thought writes.")] = 16,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32 or bfloat16. auto: the mini in float32, the 2B in bfloat16 where the device has it."
        ),
    ] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """A thought of the thinker and its parts, with and without the vision cache, beside the library's own way.

    The window slides by one pair of frames from thought to thought. What is compared runs in turns, and gives the same
    states or nothing is printed. Ctrl-C prints what was measured so far.
    """
    from ..benchmarks.thinker import bench as run

    run(shipped(model), size, device, threads, seconds, layers, tokens, dtype, json, _serialiser())


def _serialiser() -> Serialise | None:
    """What makes a message of a guidance; None without ROS."""
    try:
        from ..bridge.serialised import guidance_bytes
    except ImportError:
        return None
    return guidance_bytes


@bench.command("plan")
def bench_plan(
    size: Annotated[str, typer.Option(help="What to measure: mini, or full (a GPU's work).")] = "mini",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each row of the tables.")] = 3.0,
    dtype: Annotated[str, typer.Option(help="both, float32 or bfloat16.")] = "both",
    share: Annotated[
        float | None,
        typer.Option(help="Share of the samples of V-JEPA 2-AC in its row. Default: 0.1 on a CPU, 1 on a GPU."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Whole plans in our world model beside a plain CEM on patch tokens, with random weights.

    The first row has the settings of V-JEPA 2-AC, with a stated share of its samples; the second the samples of ours.
    How well what was planned succeeds is in the table of `thinkjepa evaluate control`. Ctrl-C prints what was measured
    so far.
    """
    from ..benchmarks.plan import bench as run

    run(size, device, threads, seconds, dtype, share, json)


@bench.command("graph")
def bench_graph(
    bag: Annotated[Path | None, typer.Option(help="Recording to play. Default: the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for logs and figures.")] = Path("out/bench_graph"),
    model: Annotated[str, typer.Option(help="Checkpoint folder of the predictor, or a shipped model's name.")] = "mini",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    seconds: Annotated[
        float, typer.Option(min=5.0, help="How long to measure without a thinker, and beside one.")
    ] = 20.0,
) -> None:
    """The nodes on a recording: forecasts without a thinker, beside one that never rests, and when that is killed."""
    from ..demo.bench_graph import bench_graph as run

    raise SystemExit(run(bag=bag, out=out, model=model, device=device, seconds=seconds))
