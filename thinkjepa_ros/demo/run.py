"""`thinkjepa demo`: plays a recording through the real nodes, shows a live table, and ends with a report."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.checkpoints import CheckpointError, read_manifest
from thinkjepa_ros.data.recording import COMPRESSED, Recording, RecordingError
from thinkjepa_ros.demo.report import Report, make_report
from thinkjepa_ros.demo.supervisor import Child, Supervisor
from thinkjepa_ros.demo.table import LiveView
from thinkjepa_ros.evaluation.runs import Run, RunError
from thinkjepa_ros.transport import child_environment, free_domain
from thinkjepa_ros.values import Camera

TRUTH, POSES = "/truth/joints", "geometry_msgs/msg/PoseArray"
NODES = "thinkjepa_ros.nodes."
#: Watching must not delay what is watched. (The thinker stands back by itself, see its parameter niceness.)
NICE = {"evaluator": 2}
ERROR = 8  # NodeStatus.ERROR; this module knows no messages
#: Loading a model may take this long before playing begins anyway.
START_S = 120.0


class DemoError(RuntimeError):
    """The demo can not run; the text says why and what to do."""


@dataclass(frozen=True)
class Source:
    """What is played: the recording, its camera topic, whether that is compressed, and topics with poses of others."""

    bag: Path
    topic: str
    compressed: bool
    title: str
    poses: tuple[str, ...] = ()


def shipped_bag() -> Path:
    """The recording that comes with the package. Raises DemoError where it is missing."""
    try:
        return model_folder("mini").parent / "demo" / "cue_reach"
    except FileNotFoundError as error:
        raise DemoError(f"{error}; or name a recording of your own: make demo BAG=PATH") from error


def open_source(bag: Path | None, image_topic: str = "") -> Source:
    """Look into the recording. Raises DemoError."""
    bag = shipped_bag() if bag is None else bag
    try:
        with Recording(bag) as recording:
            camera = recording.camera(image_topic)
            rate = (camera.count - 1) / recording.duration_s if recording.duration_s > 0 else 0.0
            title = f"{bag.name}: {recording.duration_s:.1f} s, {camera.count} images of {camera.name} at {rate:.0f} Hz"
            poses = tuple(t.name for t in recording.topics if t.type == POSES and t.name != TRUTH)
    except RecordingError as error:
        raise DemoError(str(error)) from error
    return Source(bag.resolve(), camera.name, camera.type == COMPRESSED, title, poses)


def prepare(out: Path) -> Path:
    """The folder for a run, empty of what an earlier one left in it. Raises OSError."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    logs = [f"logs/{name}.log" for name in ("player", "predictor", "thinker", "evaluator")]
    for stale in ("run.npz", "run.json", "report.txt", "report.json", "forecast.png", "forecast.mp4", *logs):
        (out / stale).unlink(missing_ok=True)
    return out


def environment(out: Path, domain: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """For the nodes of a demo: the transport profile, this machine only, a domain of their own, no downloads."""
    return child_environment(base) | {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(out / "logs" / "ros"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def ros_arguments(remap: Mapping[str, str] | None = None, **parameters: Any) -> list[str]:
    """Command line of a node. Values are JSON, which ROS reads as YAML: a path keeps its blanks and colons."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]
    for old, new in (remap or {}).items():
        arguments += ["-r", f"{old}:={new}"]
    return arguments


class Graph:
    """Player, thinker, predictor and evaluator around one recording; everything they say lies in `out`/logs.

    told: the newest line of the evaluator, empty until there is one. pictures: whether images are kept.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        source: Source,
        out: Path,
        *,
        model: str = "mini",
        thinker_model: str = "mini",
        device: str = "cpu",
        thinker: bool = True,
        loop: bool = False,
        pictures: bool = True,
        on_tell: Any = lambda told: None,
        thinking: Mapping[str, Any] | None = None,
        predicting: Mapping[str, Any] | None = None,
    ) -> None:
        """thinking, predicting: parameters of thinker and predictor other than the defaults."""
        self.told: dict[str, Any] = {}
        self.out, self._supervisor, self._on_tell = out, supervisor, on_tell
        self._common: dict[str, Any] = {
            "device": device,
            "image_transport": "compressed" if source.compressed else "raw",
        }
        self._thinker_model = thinker_model
        rate_hz = 15.0 if pictures else 0.0
        transport = self._common["image_transport"]
        record_s = 120.0 if pictures else 600.0  # what is kept without pictures is small
        self._add(
            "evaluator",
            out=str(out),
            image_transport=transport,
            live=True,
            picture_rate_hz=rate_hz,
            record_s=record_s,
        )
        self._add("predictor", model=model, **self._common, **(predicting or {}))
        if thinker:
            self.start_thinker(**(thinking or {}))
        self._add(
            "player",
            remap={"/instruction": "/thinker/instruction"},
            bag=str(source.bag),
            image_topic=source.topic,
            loop=loop,
            wait_for_subscribers=1 + thinker + pictures,
            wait_timeout_s=START_S,
        )

    def start_thinker(self, **parameters: Any) -> None:
        """With other parameters than the defaults."""
        self._add("thinker", model=self._thinker_model, **self._common, **parameters)

    def _add(self, name: str, remap: Mapping[str, str] | None = None, **parameters: Any) -> None:
        self._supervisor.start(
            Child(
                name,
                NODES + name,
                ros_arguments(remap, **parameters),
                keep=name in ("predictor", "thinker"),
                on_line=self._hear if name == "evaluator" else None,
                log=self.out / "logs" / f"{name}.log",
                nice=NICE.get(name, 0),
            )
        )

    def _hear(self, line: str) -> None:
        try:
            self.told = json.loads(line)
        except ValueError:
            return  # a warning of some library, not ours
        self._on_tell(self.told)

    def trouble(self) -> str:
        """Why going on makes no sense, in a sentence; empty while all is well."""
        children = self._supervisor.children
        for name in ("player", "evaluator"):
            if children[name].status not in (None, 0):
                return f"the {name} ended: {children[name].tail() or 'it said nothing'}"
        predictor = self.told.get("statuses", {}).get("predictor")
        if predictor and predictor["state"] == ERROR and not self.told["forecasts"]:
            return f"the predictor does not work: {predictor['words']}"
        if children["predictor"].deaths > 2 and not self.told.get("forecasts"):
            return f"the predictor does not stay alive: {children['predictor'].tail()}"
        return ""

    @property
    def played(self) -> bool:
        """The recording is at its end."""
        return self._supervisor.children["player"].status == 0

    @property
    def playing(self) -> bool:
        """The predictor has received an image."""
        return bool(self.told.get("statuses", {}).get("predictor", {}).get("received"))

    def finish(self) -> None:
        """Stop everything in order: first the source, last the nodes, so that the evaluator sees the final counters."""
        self._supervisor.stop(["player"])
        time.sleep(1.1)  # the nodes tell their counters twice a second
        self._supervisor.stop(["evaluator"], step_s=15.0)  # it writes the results first
        self._supervisor.stop()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts whatever is still being tidied up."""
    asked = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demo(
    bag: Path | None = None,
    out: Path = Path("out/demo"),
    model: str = "mini",
    device: str = "cpu",
    thinker: bool = True,
    seconds: float | None = None,
    loop: bool = False,
    record_video: bool = True,
    image_topic: str = "",
    thinker_model: str = "mini",
    console: Console | None = None,
) -> int:
    """Play `bag` (default: the one shipped) through the nodes and report; returns the exit status.

    out: folder for logs, numbers and pictures. model, thinker_model: "mini" (the shipped ones) or checkpoint folders.
    seconds: stop so long after the first image (default: at the end of the recording; with `loop` at Ctrl-C).
    0: there were forecasts; 1: not, and it was said why.
    """
    console = console or Console()
    try:
        source = open_source(bag, image_topic)
        domain = free_domain()
        out = prepare(out)
    except (RuntimeError, OSError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    trouble = ""
    with (
        stop_signals() as asked,
        LiveView(source.title, console) as view,
        Supervisor(environment(out, domain), view.event) as supervisor,
    ):
        graph = Graph(
            supervisor,
            source,
            out,
            model=model,
            thinker_model=thinker_model,
            device=device,
            thinker=thinker,
            loop=loop,
            on_tell=view.update,
        )
        view.event(f"to look in with ROS tools: ROS_DOMAIN_ID={domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
        began: float | None = None
        while not asked.wait(0.1):
            supervisor.look_after()
            trouble = graph.trouble()
            if trouble or graph.played:
                break
            if began is None and graph.playing:
                began = time.monotonic()
            if seconds is not None and began is not None and time.monotonic() - began > seconds:
                break
        graph.finish()
    return conclude(out, source, model, device, trouble, record_video, console)


def conclude(out: Path, source: Source, model: str, device: str, trouble: str, film: bool, console: Console) -> int:
    """Make and print the report of a finished run."""
    if trouble:
        console.print(trouble, style="red", markup=False, highlight=False, soft_wrap=True)
    try:
        run = Run.load(out)
    except RunError as error:
        console.print(
            f"no report: {error}; the logs are in {out / 'logs'}", markup=False, highlight=False, soft_wrap=True
        )
        return 1

    def without_thoughts(stamps: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
        from thinkjepa_ros.demo import unguided  # torch, which nothing else in this process needs

        try:
            return unguided.forecasts(unguided.load(model, device), run, source.bag, source.topic, stamps)
        except (RuntimeError, ValueError, OSError) as error:  # the run itself is fine: say why a comparison is missing
            console.print(f"no forecasts without thoughts: {error}", markup=False, highlight=False, soft_wrap=True)
            return {}

    with console.status("drawing ..."):
        report: Report = make_report(
            run, out, source.title, canonical_camera(model), film, source.poses, without_thoughts
        )
    console.print("\n".join(report.lines), markup=False, highlight=False, soft_wrap=True)
    return 0 if len(run) else 1


def canonical_camera(model: str) -> Camera | None:
    """The camera a predictor's checkpoint was trained with; None if that can not be read."""
    try:
        camera = dict(read_manifest(model_folder(model), "forecaster").config["camera"])
        return Camera(**{**camera, "distortion": tuple(camera.get("distortion", ()))})
    except (CheckpointError, FileNotFoundError, KeyError, TypeError, ValueError):
        return None
