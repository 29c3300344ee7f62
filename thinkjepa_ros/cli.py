"""`thinkjepa`: the command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from .importers.cli import import_

app = typer.Typer(
    help="Think slowly, predict fast: a Qwen3-VL thinker guides a V-JEPA predictor of 3-D hand trajectories.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make episodes and bags.", no_args_is_help=True)
train = typer.Typer(
    help="Train the parts. Every stage resumes after Ctrl-C or a kill: give the same command again.",
    no_args_is_help=True,
)
evaluate = typer.Typer(help="Find out what a model is worth, beside baselines.", no_args_is_help=True)
bench = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
for name, part in (("data", data), ("train", train), ("evaluate", evaluate), ("bench", bench)):
    app.add_typer(part, name=name)

app.command("import")(import_)

MINI = Path("models/mini")
Model = Annotated[Path, typer.Option(help="Checkpoint folder of the predictor.")]
ThinkerPath = Annotated[Path, typer.Option(help="Checkpoint folder of the thinker.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads.")]


def _shipped(path: Path) -> Path:
    """A default such as models/mini means the package's own, from whatever folder the command is given."""
    if path.is_relative_to(MINI) and not path.exists():
        from . import resources

        return resources.find(path)
    return path


@app.command()
def demo(
    bag: Annotated[
        Path | None,
        typer.Option(help="rosbag2 folder or file (mcap, sqlite3) with a camera topic. Default: the shipped one."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the video and the figures.")] = Path("out/demo"),
    model: Annotated[str, typer.Option(help="Checkpoint folder of the predictor, or a shipped model's name.")] = "mini",
    thinker_model: Annotated[
        str, typer.Option(help="Checkpoint folder of the thinker, or a shipped model's name.")
    ] = "mini",
    device: Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1 …")] = "cpu",
    thinker: Annotated[bool, typer.Option(help="Run the thinker node beside the predictor.")] = True,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="Stop after this many seconds. Default: when the bag ends.")
    ] = None,
    loop: Annotated[bool, typer.Option(help="Play the bag again and again until Ctrl-C.")] = False,
    video: Annotated[bool, typer.Option(help="Write a short film of the forecasts.")] = True,
    image_topic: Annotated[str, typer.Option(help="Camera topic, where the bag has several.")] = "",
) -> None:
    """Play a bag at real speed through the real nodes and show what they say.

    Starts player, thinker and predictor as separate processes, shows rates, latencies and thoughts while they run,
    and ends with the
    error beside the baselines (where the bag holds the truth) and pictures of predicted and true trajectories.
    """
    from .demo.run import demo as run

    raise SystemExit(
        run(
            bag=bag,
            out=out,
            model=model,
            thinker_model=thinker_model,
            device=device,
            thinker=thinker,
            seconds=seconds,
            loop=loop,
            record_video=video,
            image_topic=image_topic,
        )
    )


@data.command("sim")
def data_sim(
    out: Annotated[Path, typer.Argument(help="Folder for the episodes.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    split: Annotated[str, typer.Option(help="lamp, text, distractor, none, or mixed (all four).")] = "mixed",
    seed_start: Annotated[
        int,
        typer.Option(min=0, help="First seed; train, val and test live in ranges of their own, see docs/cue_reach.md."),
    ] = 0,
    size: Annotated[str, typer.Option(help="Image size: 128 or 640x480.")] = "128",
    workers: Annotated[int, typer.Option(min=1, help="Processes; one per core is best.")] = os.cpu_count() or 1,
    rate_hz: Annotated[float, typer.Option(min=1.0, help="Camera rate.")] = 30.0,
) -> None:
    """Make cue-reach episodes in simulation. An episode is a function of (split, seed); what is there already is
    kept.
    """
    from .data.sim.generate import main as run

    raise SystemExit(run(out, episodes, split, seed_start, size, workers, rate_hz))


@data.command("bag")
def data_bag(
    out: Annotated[Path, typer.Argument(help="rosbag2 folder to write.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Episode files to write. Default: new episodes from --seed on.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="First seed of new episodes.")] = 2_000_000,
    episodes: Annotated[int, typer.Option(min=1, help="How many new episodes.")] = 1,
    split: Annotated[str, typer.Option(help="lamp, text, distractor, none or mixed.")] = "lamp",
    size: Annotated[str, typer.Option(help="Image size of new episodes.")] = "640x480",
    rate_hz: Annotated[float, typer.Option(min=1.0, help="Camera rate of new episodes.")] = 30.0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of new episodes.")] = 80,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    gap_s: Annotated[float, typer.Option(min=0.0, help="Seconds between two episodes.")] = 6.0,
) -> None:
    """Write episodes as a rosbag2 recording that the nodes, `ros2 bag play` and `make demo BAG=...` play."""
    from .data.bag import main as run

    raise SystemExit(run(out, files or (), seed, episodes, split, size, rate_hz, quality, storage, gap_s))


@data.command("sheet")
def data_sheet(
    out: Annotated[Path, typer.Argument(help="Picture to write (PNG).")],
    files: Annotated[list[Path], typer.Argument(help="Episode files, one row each.")],
) -> None:
    """Draw episodes as a contact sheet, with the joints on the images."""
    from .data.sheet import main as run

    raise SystemExit(run(out, files))


@train.command("thinker")
def train_thinker(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = MINI / "thinker",
    steps: Annotated[
        int, typer.Option(min=0, help="0 writes the untrained mini, which says so wherever it is shown.")
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Write the mini thinker: a real Qwen3-VL of about a million parameters."""
    from .thinker.tiny import main as run

    print(run(out, steps, seed))


@train.command("all")
def train_all(
    data: Annotated[Path, typer.Argument(help="Folder with train/ (episodes of `thinkjepa data sim`).")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = MINI,
    run: Annotated[
        Path, typer.Option(help="Work in progress: checkpoints, logs, caches. The same folder resumes.")
    ] = Path("out/train"),
    thinker: ThinkerPath = MINI / "thinker",
    encoder_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `encoder`.")] = 2400,
    forecast_steps: Annotated[int, typer.Option(min=1, help="Steps of stage `forecast`.")] = 900,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs of frames in a step of stage `encoder`.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Train the mini predictor: encoder and pose readout, then latents and thoughts, then guided predictor and motion
    readout.
    """
    from .train.mini import train_all as run_all

    run_all(
        data,
        out,
        run=run,
        thinker=_shipped(thinker),
        encoder_steps=encoder_steps,
        forecast_steps=forecast_steps,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
        limit=limit,
    )


@train.command("pretrain")
def train_pretrain(
    data: Annotated[
        Path, typer.Argument(help="Folder of episodes, or with train/ (episodes of `thinkjepa data sim`).")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")] = Path("out/encoder"),
    run: Annotated[Path, typer.Option(help="Work in progress: checkpoints and logs. The same folder resumes.")] = Path(
        "out/pretrain"
    ),
    recipe: Annotated[
        str, typer.Option(help="masked (V-JEPA 2), dense (V-JEPA 2.1) or end-to-end (SIGReg).")
    ] = "masked",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=2, help="Clips in a step.")] = 16,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1e-3,
    momentum: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the target encoder, at the first step. Default: 0.99.")
    ] = None,
    momentum_end: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the target encoder, at the last step. Default: 0.999.")
    ] = None,
    sigreg: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of SIGReg. Default: 1 in end-to-end, else 0.")
    ] = None,
    variance: Annotated[float | None, typer.Option(min=0.0, help="Weight of the variance term. Default: 0.")] = None,
    covariance: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the covariance term. Default: 0.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first episodes.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
) -> None:
    """Pretrain a clip encoder without labels by predicting hidden parts of clips; see docs/pretraining.md."""
    from .train.pretrain import pretrain, recipe_of

    changes = {"momentum": momentum, "momentum_end": momentum_end}
    changes |= {"sigreg": sigreg, "variance": variance, "covariance": covariance}
    reading = pretrain(
        data,
        out,
        run=run,
        recipe=recipe_of(recipe, **changes),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        threads=threads,
        limit=limit,
        device=device,
    )
    print(f"{out}: {reading.sentence}")


@train.command("untrained")
def train_untrained(
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    seed: Seed = 0,
) -> None:
    """Write a predictor with random weights: to try the plumbing and to measure speed. Everything that shows it says
    so.
    """
    from .train.mini import untrained

    untrained(out, seed)


@evaluate.command("forecast")
def evaluate_forecast(
    data: Annotated[Path, typer.Argument(help="Folder of episodes the model was not trained on.")],
    model: Model = MINI,
    thinker: Annotated[Path | None, typer.Option(help="Also score the model guided by this thinker.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first episodes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Errors of joints now and of forecasts, beside hold and constant velocity, with 95 % intervals over episodes."""
    from .evaluation.forecast import evaluate as run

    run(_shipped(model), data, thinker=None if thinker is None else _shipped(thinker), limit=limit, out=out)


@evaluate.command("calibrate")
def evaluate_calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of validation episodes (seeds from 1000000).")],
    model: Model = MINI,
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first episodes.")] = None,
) -> None:
    """Make sigma the standard deviation of the errors on validation episodes, and write that to the model's model.json.

    Shows the share of errors within one and two sigma before and after. Positions and weights stay as they are.
    """
    from .evaluation.calibration import calibrate as run

    run(_shipped(model), data, limit=limit)


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
    from .benchmarks.jepa import bench as run

    run(_shipped(model), size, device, threads, seconds, layers, tokens, dtype, part, json)


@bench.command("graph")
def bench_graph(
    bag: Annotated[Path | None, typer.Option(help="Recording to play. Default: the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for logs and figures.")] = Path("out/bench_graph"),
    model: Annotated[str, typer.Option(help="Checkpoint folder of the predictor, or a shipped model's name.")] = "mini",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=5.0, help="How long to measure before the thinker is killed.")] = 20.0,
) -> None:
    """Both nodes on a camera recording: rate, age of the forecasts, accounts, and what a killed thinker costs."""
    from .demo.bench_graph import bench_graph as run

    raise SystemExit(run(bag=bag, out=out, model=model, device=device, seconds=seconds))


#: Errors whose text is written for the user, by module; a module that was never imported cannot have raised one.
_SENTENCES = {
    "thinkjepa_ros.checkpoints": "CheckpointError",
    "thinkjepa_ros.data.episode": "EpisodeError",
    "thinkjepa_ros.data.recording": "RecordingError",
    "thinkjepa_ros.evaluation.runs": "RunError",
    "thinkjepa_ros.jepa.forecaster": "ForecastError",
    "thinkjepa_ros.thinker.errors": "ThinkerError",
    "thinkjepa_ros.train.run": "Stopped",
}


def main() -> None:
    """Entry point: an error with words for the user becomes that sentence and exit code 1, Ctrl-C exit code 130.

    THINKJEPA_TRACEBACK=1 shows where it came from.
    """
    try:
        app()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        known = tuple(getattr(sys.modules[m], n) for m, n in _SENTENCES.items() if m in sys.modules)
        if os.environ.get("THINKJEPA_TRACEBACK") or not isinstance(
            error, (*known, ValueError, FileNotFoundError, PermissionError)
        ):
            raise
        print(f"thinkjepa: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
