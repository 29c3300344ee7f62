"""`thinkjepa`: the command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .commands.bench import bench
from .commands.demo_control import demo_control
from .commands.evaluate import evaluate
from .commands.from_bag import from_bag
from .commands.think import think
from .commands.train import train
from .importers.cli import import_

app = typer.Typer(
    help="Think slowly, predict fast: a Qwen3-VL thinker guides a V-JEPA predictor of 3-D hand trajectories.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make episodes and bags.", no_args_is_help=True)
for name, part in (("data", data), ("train", train), ("evaluate", evaluate), ("bench", bench)):
    app.add_typer(part, name=name)

app.command("import")(import_)
app.command("demo-control")(demo_control)
app.command("think")(think)
data.command("from-bag")(from_bag)


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


@data.command("rollouts")
def data_rollouts(
    out: Annotated[Path, typer.Argument(help="Folder for the episodes.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, help="First seed: training from 0, validation from 1000000, test from 2000000.")
    ] = 0,
    kind: Annotated[str, typer.Option(help="reach, pick_place_text, pick_place_lamp, or mix (all three).")] = "mix",
    behaviour: Annotated[str, typer.Option(help="expert, perturbed, random, or mix (40, 35, 25 %).")] = "mix",
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder of a policy that drives in place of --behaviour; an expert says what it "
            "would have done (pick and place alone)."
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Image size: 128 or 640x480.")] = "128",
    workers: Annotated[int, typer.Option(min=1, help="Processes; one per core is best.")] = os.cpu_count() or 1,
) -> None:
    """Record a simulated arm that reaches, picks and places, by contact and friction, at one frame per action (5 Hz).
    An episode is a function of (kind, behaviour, seed), or of (kind, policy, seed); what is there already is kept.
    """
    if policy is not None:
        from .train.practice import main as practise

        raise SystemExit(practise(out, policy, episodes, seed, kind, size, workers))
    from .data.sim.rollouts import main as run

    raise SystemExit(run(out, episodes, seed, kind, behaviour, size, workers))


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


#: Errors whose text is written for the user, by module; a module that was never imported cannot have raised one.
_SENTENCES = {
    "thinkjepa_ros.checkpoints": "CheckpointError",
    "thinkjepa_ros.data.episode": "EpisodeError",
    "thinkjepa_ros.data.recording": "RecordingError",
    "thinkjepa_ros.evaluation.bag.replay": "ReplayError",
    "thinkjepa_ros.evaluation.runs": "RunError",
    "thinkjepa_ros.jepa.forecaster": "ForecastError",
    "thinkjepa_ros.thinker.errors": "ThinkerError",
    "thinkjepa_ros.evaluation.cue_reach.live": "LiveError",
    "thinkjepa_ros.train.cache": "CacheError",
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
