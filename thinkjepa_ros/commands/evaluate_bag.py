"""`thinkjepa evaluate bag`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import bag_options as options
from .options import MINI, Device, Model, Threads, shipped

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.survey import Settings
    from ..evaluation.bag.replay import Replay


def evaluate_bag(
    bags: options.Bags,
    truth: Annotated[
        str, typer.Option(help="Topic that says where the joints are. Without it no error can be said.")
    ] = "",
    model: Model = MINI,
    thinker: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of the thinker. Default: MODEL/thinker, where there is one.")
    ] = None,
    no_thinker: Annotated[bool, typer.Option("--no-thinker", help="Forecasts without guidance only.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Play the recordings to the real nodes (needs ROS).")] = False,
    rate: Annotated[float, typer.Option(min=0.1, max=10.0, help="Speed of the playback, with --live.")] = 1.0,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Give the true joints now to the model and to hold.")
    ] = False,
    match: Annotated[str, typer.Option(help="Joints of the truth by other names: truth=model,...")] = "",
    ridge: Annotated[
        Path | None, typer.Option(help="Training episodes (data from-bag): also score ridge on past joints.")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds between two forecasts. Default: the model's step.")
    ] = None,
    think_period: Annotated[float, typer.Option(min=0.05, help="Seconds between two thoughts.")] = 1.0,
    think_delay: Annotated[
        float, typer.Option(min=0.0, help="A thought over images up to t counts from t + this many seconds on.")
    ] = 0.2,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, report.html and the rest.")] = Path("out/bag"),
    events: Annotated[
        str,
        typer.Option(
            help="Labelled moments, for the AUROC of surprise: a std_msgs/Bool topic, or a .csv file with from_s,to_s."
        ),
    ] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write report.html.")] = False,
    no_video: Annotated[bool, typer.Option("--no-video", help="Do not write forecast.mp4 and forecast.rrd.")] = False,
    image_topic: options.ImageTopic = "",
    camera_frame: options.CameraFrame = "",
    pose_topic: options.PoseTopic = "",
    world_frame: options.WorldFrame = "",
    truth_frame: options.TruthFrame = "",
    joints: options.Joints = "",
    urdf: options.Urdf = None,
    links: options.Links = "",
    intrinsics: options.Intrinsics = "",
    instruction: options.Instruction = "",
    gap_s: Annotated[float, typer.Option(min=0.01, help="Nothing is scored across a longer gap between images.")] = 1.0,
    truth_gap_s: options.TruthGap = 0.25,
    tf_gap_s: options.TfGap = 1.0,
    device: Device = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="In which the predictor computes: float32, bfloat16, or auto, which tries what is faster. Default: "
            "float32, with --live auto, as on a robot."
        ),
    ] = None,
    threads: Threads = 1,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes that share the work offline; 0: one per processor. They change no figure."),
    ] = 0,
) -> None:
    """What a model is worth on your own recordings, beside hold, constant velocity and itself without the thinker.

    Offline by default: no ROS is needed, and the same command gives the same figures. Joints are scored that truth and
    model call the same; without --truth there are still forecasts, surprise, thoughts and times. docs/evaluate_bag.md
    says what each figure is, docs/recordings.md what to record.

    Example: thinkjepa evaluate bag my_bag --truth /hand_keypoints --out out/mine
    """
    from rich.console import Console

    from ..evaluation.bag import events as labels
    from ..evaluation.bag import output

    settings = options.settings_of(
        truth=truth,
        image_topic=image_topic,
        camera_frame=camera_frame,
        pose_topic=pose_topic,
        world_frame=world_frame,
        truth_frame=truth_frame,
        joints=joints,
        urdf=urdf,
        links=links,
        intrinsics=intrinsics,
        instruction=instruction,
        gap_s=gap_s,
        truth_gap_s=truth_gap_s,
        tf_gap_s=tf_gap_s,
    )
    renamed = _renamed(match)
    output.check_folder(out)
    console = Console()
    labelled = None
    if events:
        with console.status("reading labels"):
            labelled = labels.read_labels(events, bags, settings)
    folder = shipped(model)
    mind = None if no_thinker else _thinker(folder, thinker, console)
    about = {"command": shlex.join(["thinkjepa", *sys.argv[1:]])}
    common: dict[str, Any] = {"anchor": anchor, "renamed": renamed, "about": about, "console": console}
    failed: list[str] = []
    interrupted = False
    if live:
        if ridge is not None or stride is not None:
            raise ValueError("--ridge and --stride are for an evaluation without --live")
        common |= {"device": device, "dtype": dtype or "auto", "think_period_s": think_period}
        replay, kept = _live(bags, settings, folder, mind, rate, out, common), list(bags)
    else:
        import cv2
        import torch

        from ..evaluation.bag import run
        from ..evaluation.bag import workers as processes
        from ..evaluation.bag.origins import Rhythm

        count = workers or max(1, processes.processors() // threads)
        if count > 1 and device == "cpu":
            processes.prepare()
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        models = run.load_models(folder, mind, device, dtype or "float32")
        step_s = models.forecaster.step_ns * 1e-9
        rhythm = Rhythm(step_s if stride is None else stride, think_period, think_delay)
        result = run.offline(bags, settings, models, rhythm, ridge=ridge, workers=count, scratch=out, **common)
        replay, failed, interrupted = result.replay, result.failed, result.interrupted
        kept = [Path(bag["path"]) for bag in replay.about["bags"]]
    if labelled is not None:
        replay = labels.label(replay, labelled)
    try:
        output.write(replay, out, kept, settings, console, report=not no_report, video=not (no_video or interrupted))
    except OSError as error:
        why = error.strerror or error
        raise SystemExit(f"{out} cannot be written ({why}); make room, or give another --out") from None
    for line in failed:
        print(f"left out: {line}", file=sys.stderr)
    if interrupted:
        raise SystemExit(130)
    raise SystemExit(1 if failed else 0)


def _renamed(text: str) -> dict[str, str]:
    """The pairs of --match. Raises ValueError with the remedy."""
    pairs = [word.split("=") for word in options.words(text)]
    for pair in pairs:
        if len(pair) != 2 or not all(part.strip() for part in pair):
            raise ValueError(f"--match takes truth=model pairs with commas between them, not {'='.join(pair)!r}")
    return {old.strip(): new.strip() for old, new in pairs}


def _thinker(model: Path, thinker: Path | None, console: Console) -> Path | None:
    """The folder of the thinker: the one given, else the one beside the model, where there is one."""
    if thinker is not None:
        return shipped(thinker)
    beside = model / "thinker"
    if beside.is_dir():
        return beside
    console.print(f"{beside} does not exist: forecasts without guidance (--thinker)", soft_wrap=True, highlight=False)
    return None


def _live(
    bags: list[Path], settings: Settings, model: Path, thinker: Path | None, rate: float, out: Path,
    common: dict[str, Any],
) -> Replay:  # fmt: skip
    """The recordings played to the nodes."""
    from ..demo.live_bag import LiveBagStopped, replay_live
    from ..evaluation.bag.live import LiveBagError

    try:
        return replay_live(bags, settings, model, thinker, rate, out=out / "live", **common)
    except LiveBagStopped as error:
        print(error, file=sys.stderr)
        raise SystemExit(130) from None
    except LiveBagError as error:
        raise SystemExit(str(error)) from None
