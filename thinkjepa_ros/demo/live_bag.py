"""Recordings through the real nodes, by their own clock: `thinkjepa evaluate bag --live`.

Player, predictor, thinker and evaluator run as in `thinkjepa demo`, each in a process of its own, on a ROS domain of
their own on this machine. The player keeps the stamps of the recording and publishes /clock; nobody waits for anybody.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.checkpoints import CheckpointError, Manifest, read_manifest
from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.demo.run import ERROR, DemoError, Graph, Source, environment, open_source, prepare, stop_signals
from thinkjepa_ros.demo.supervisor import Supervisor
from thinkjepa_ros.evaluation.bag.ground import Ground, open_ground
from thinkjepa_ros.evaluation.bag.live import LiveBagError, Played, live_replay
from thinkjepa_ros.evaluation.bag.replay import Replay
from thinkjepa_ros.evaluation.runs import Run, RunError
from thinkjepa_ros.transport import free_domain

RATES = (0.1, 10.0)
#: The evaluator keeps what comes within an hour.
MAX_PLAYED_S = 3500.0
POSE_ARRAY = "geometry_msgs/msg/PoseArray"
#: What the nodes have by themselves, at the speed of the recording.
FORECASTS_HZ, INPUT_TIMEOUT_S = 30.0, 0.5
#: What the player says at its end.
_TOOK = re.compile(r"played \d+ messages in ([\d.]+) s")
#: Nobody listens there.
UNUSED = "camera_info_of_the_recording"


class LiveBagStopped(LiveBagError):
    """Somebody pressed Ctrl-C."""


def replay_live(
    bags: Sequence[str | Path],
    settings: Settings,
    model: str | Path = "mini",
    thinker: str | Path | None = "mini",
    rate: float = 1.0,
    *,
    out: Path,
    device: str = "cpu",
    dtype: str = "auto",
    anchor: bool = False,
    renamed: Mapping[str, str] | None = None,
    think_period_s: float = 1.0,
    about: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Replay:
    """Play recordings to the nodes, one after the other, and return what they said beside the truth.

    settings: where truth, camera and pose are in the recordings. model, thinker: "mini" or checkpoint folders; without
    a thinker forecasts are unguided. rate: 2.0 plays twice as fast; then latencies and ages are seconds of the
    recording. dtype: in which the predictor computes, as its parameter of that name. out: folder for what the evaluator
    writes and for logs, one per recording. anchor: the truth is also what the predictor is told of the joints now.
    renamed: joint of the truth -> joint of the model. about: what is to be added to `Replay.about`. To be called in the
    main thread. Raises LiveBagError, LiveBagStopped on Ctrl-C, RecordingError and ValueError, each with a sentence.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise LiveBagError(f"the rate is {rate:g}; the nodes can be played to at {RATES[0]:g} to {RATES[1]:g}")
    if not bags:
        raise LiveBagError("there is no recording to play")
    if find_spec("rclpy") is None:
        raise LiveBagError("--live needs ROS 2 (rclpy); source its setup, or leave --live out")
    _check_dtype(dtype)
    manifest = _manifest(model, "", "forecaster")
    grounds = [open_ground(bag, settings) for bag in bags]
    for ground in grounds:
        if ground.joint_names != grounds[0].joint_names:
            raise LiveBagError(
                f"the truth of {ground.path} has other joints than that of {grounds[0].path}; evaluate them apart"
            )
    sources = [_open(ground, settings, rate) for ground in grounds]
    if anchor:
        for ground in grounds:
            _check_anchor(ground, len(manifest.config.get("joint_names", ())) if manifest else 0)
    rig = _Rig(
        settings, str(model), None if thinker is None else str(thinker), float(rate), device, dtype, anchor,
        think_period_s,
    )  # fmt: skip
    played: list[Played] = []
    with stop_signals() as asked, _progress(console or Console(), len(bags)) as show:
        for number, (ground, source) in enumerate(zip(grounds, sources, strict=True)):
            folder = prepare(out.resolve() / f"recording_{number}")
            one = rig.play(ground, source, folder, lambda share, words, k=number: show(k + share, words), asked)
            if one is None:
                raise LiveBagStopped(
                    f"stopped while {ground.path.name} was played; what came until then is in {folder}"
                )
            played.append(one)
    words: dict[str, Any] = {"rate": float(rate), "weights_sha256": _weights(manifest)}
    if thinker is not None:
        words["thinker_sha256"] = _weights(_manifest(thinker, "thinker", "thinker"))
    return live_replay(
        grounds, played, guided=thinker is not None, renamed=renamed, anchored=anchor, about={**words, **(about or {})}
    )


def _check_dtype(dtype: str) -> None:
    """By the table of the predictor's parameters, before it is started."""
    from thinkjepa_ros.bridge.parameters import PREDICTOR  # needs rclpy

    choices = next(parameter.choices for parameter in PREDICTOR if parameter.name == "dtype")
    if dtype not in choices:
        raise LiveBagError(f"the predictor cannot compute in {dtype!r}; give --dtype one of {', '.join(choices)}")


def _manifest(model: str | Path, part: str, kind: str) -> Manifest | None:
    """The description of a checkpoint; None where there is none of ours, and its node will say what is wrong."""
    try:
        return read_manifest(model_folder(str(model), part), kind)
    except (CheckpointError, FileNotFoundError):
        return None


def _weights(manifest: Manifest | None) -> str | None:
    return None if manifest is None else manifest.sha256.get("model.safetensors")


def _open(ground: Ground, settings: Settings, rate: float) -> Source:
    try:
        source = open_source(ground.path, settings.image_topic)
    except DemoError as error:
        raise RecordingError(str(error)) from error
    if ground.duration_s / rate > MAX_PLAYED_S:
        raise LiveBagError(
            f"{ground.path} lasts {ground.duration_s:.0f} s; at most {MAX_PLAYED_S * rate:.0f} s can be played in one "
            f"go at rate {rate:g}: cut it, play it faster, or evaluate it without --live"
        )
    return source


def _check_anchor(ground: Ground, joints: int) -> None:
    """The predictor takes observed joints as a PoseArray of all its joints in the frame of the camera."""
    course, kind = ground.course, ground.course.truth.source if ground.course.truth is not None else ""
    if POSE_ARRAY not in kind or course.truth_frame != course.camera_frame:
        raise LiveBagError(
            f"live, the predictor can be anchored only by a PoseArray in the frame of the camera "
            f"({course.camera_frame!r}); the truth of {ground.path} is {kind or 'not given'} in "
            f"{course.truth_frame!r}; leave out --anchor or --live"
        )
    if joints and len(ground.joint_names) != joints:
        raise LiveBagError(
            f"live, the predictor is anchored by all of its {joints} joints, the truth of {ground.path} has "
            f"{len(ground.joint_names)}; leave out --anchor or --live"
        )


@contextmanager
def _progress(console: Console, count: int) -> Any:
    """Yields show(recordings done, words): a bar on a terminal, else nothing."""
    columns = (TextColumn("live"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[words]}"), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("live", total=count, done="", words="")

        def show(done: float, words: str) -> None:
            bar.update(task, completed=done, done=f"recording {min(int(done) + 1, count)} of {count}", words=words)

        yield show


_ByNode = Mapping[str, Mapping[str, Any]]


class _BagGraph(Graph):
    """The nodes of a demo with parameters and remappings of our own."""

    def __init__(self, changes: _ByNode, remaps: Mapping[str, Mapping[str, str]], *args: Any, **kwargs: Any) -> None:
        """changes, remaps: by name of the node; the rest as in Graph."""
        self._changes, self._remaps = changes, remaps
        super().__init__(*args, **kwargs)

    def _add(self, name: str, remap: Mapping[str, str] | None = None, **parameters: Any) -> None:
        super()._add(name, self._remaps.get(name, remap), **{**parameters, **self._changes.get(name, {})})


class _Rig:
    """Plays recordings to fresh nodes."""

    def __init__(
        self, settings: Settings, model: str, thinker: str | None, rate: float, device: str, dtype: str,
        anchor: bool, think_period_s: float,
    ) -> None:  # fmt: skip
        self.settings, self.model, self.thinker, self.rate = settings, model, thinker, rate
        self.device, self.dtype, self.anchor, self.think_period_s = device, dtype, anchor, think_period_s

    def _changes(self, ground: Ground) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
        """Parameters and remappings by node. Times that the nodes measure themselves go with the rate."""
        settings, topics = self.settings, [ground.course.image_topic.name]
        words = settings.instruction_topic
        if ground.course.said and not settings.instruction:
            topics.append(words)
        if self.anchor:
            topics.append(settings.truth)
        shared: dict[str, Any] = {"use_sim_time": True}
        slow = {"input_timeout_s": max(INPUT_TIMEOUT_S, min(60.0, INPUT_TIMEOUT_S / self.rate))}
        rate_hz = min(240.0, FORECASTS_HZ * max(1.0, self.rate))
        predictor = {**shared, **slow, "max_rate_hz": rate_hz, "dtype": self.dtype}
        player: dict[str, Any] = {"clock": "bag", "rate": self.rate, "topics": ",".join(topics)}
        if settings.intrinsics:
            names = ("camera_fx_px", "camera_fy_px", "camera_cx_px", "camera_cy_px")
            predictor |= dict(zip(names, map(float, settings.intrinsics), strict=True))
            player["camera_info_to"] = UNUSED
        changes = {
            "evaluator": {**shared, "record_s": 3600.0},
            "predictor": predictor,
            "thinker": {
                **shared,
                **slow,
                "think_period_s": max(0.05, self.think_period_s / self.rate),
                "instruction": settings.instruction,
            },
            "player": player,
        }
        remaps = {"player": {words: "/thinker/instruction"}}
        if self.anchor:
            remaps["predictor"] = {"joints_observed": settings.truth}
        return changes, remaps

    def play(self, ground: Ground, source: Source, folder: Path, show: Any, asked: Event) -> Played | None:
        """Play one recording to its end; None when it was asked to stop. Raises LiveBagError."""
        logs = f"the logs are in {folder / 'logs'}"
        seconds, notes = ground.duration_s / self.rate, []
        if self.rate != 1.0:
            notes.append(f"played at {self.rate:g} times real time: latencies and ages are seconds of the recording")
        began = ended = None
        stopped = False
        changes, remaps = self._changes(ground)
        with Supervisor(environment(folder, free_domain())) as supervisor:
            graph = _BagGraph(
                changes, remaps, supervisor, source, folder, model=self.model,
                thinker_model=self.thinker or "mini", device=self.device, thinker=self.thinker is not None,
                pictures=False,
            )  # fmt: skip
            evaluator = supervisor.children["evaluator"]
            while not graph.played and not stopped:
                stopped = asked.wait(0.1)
                supervisor.look_after()
                if trouble := graph.trouble() or self._thinker_trouble(graph, supervisor):
                    raise LiveBagError(f"{trouble}; {logs}")
                if began is None and graph.playing:
                    began = time.monotonic()
                if evaluator.status == 0:
                    notes.append(f"the evaluator was ended before {ground.path.name} was: the rest of it is not here")
                    break
                share = 0.0 if began is None else min((time.monotonic() - began) / seconds, 1.0)
                show(share, f"playing {ground.path.name}" if began else "starting the nodes")
            ended = time.monotonic()
            graph.finish()
            died = [name for name, child in supervisor.children.items() if child.deaths]
        if stopped:
            return None
        if died:
            raise LiveBagError(f"the {died[0]} died while {ground.path.name} was played; {logs}")
        try:
            run = Run.load(folder)
        except RunError as error:
            raise LiveBagError(f"the nodes left no result: {error}; {logs}") from error
        said = supervisor.children["player"].tail(10_000)
        behind, took = said.count("behind schedule; going on"), _TOOK.search(said)
        if behind:
            notes.append(f"the player fell behind {behind} times: the machine was too slow for rate {self.rate:g}")
        if self.thinker is not None and not run.words.get("thoughts"):
            notes.append("the thinker had no thought while this was played: every forecast is unguided")
        # our own clock begins when we hear of the first image, which is up to a second late
        return Played(run, float(took[1]) if took else ended - (began or ended), tuple(notes))

    def _thinker_trouble(self, graph: Graph, supervisor: Supervisor) -> str:
        """Without a thinker that works a run would be unguided, and nobody would know."""
        if self.thinker is None:
            return ""
        status = graph.told.get("statuses", {}).get("thinker")
        if status and status["state"] == ERROR:
            return f"the thinker does not work: {status['words']}"
        if supervisor.children["thinker"].deaths > 2:
            return f"the thinker does not stay alive: {supervisor.children['thinker'].tail()}"
        return ""
