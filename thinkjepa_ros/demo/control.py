"""`thinkjepa demo-control`: a simulated robot does tasks under the real nodes, with a live picture and a film."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from thinkjepa_ros import resources
from thinkjepa_ros.checkpoints import CheckpointError, read_manifest
from thinkjepa_ros.demo.agreement import agreement, lock_step
from thinkjepa_ros.demo.agreement import lines as counts
from thinkjepa_ros.demo.run import NODES, DemoError, environment, ros_arguments, stop_signals
from thinkjepa_ros.demo.supervisor import Child, Supervisor
from thinkjepa_ros.demo.table import LiveView
from thinkjepa_ros.transport import free_domain

SHIPPED = Path("models", "control")
#: What a run writes beside its logs; an earlier run's are removed at the beginning.
FILES = ("live.jpg", "last.png", "film.mp4", "result.json")
FILM_HZ = 15.0
SLOW = 0.9
_MOST_DEATHS = 2
#: Seconds for which the pictures may still be written after Ctrl-C.
_FINISH_S = 15.0


@dataclass(frozen=True)
class Weights:
    """Checkpoint folders; policy: none where no policy proposes. untrained: the names of those that are."""

    imagination: Path
    policy: Path | None
    untrained: tuple[str, ...] = ()


def find_weights(imagination: Path | None, policy: Path | None) -> Weights:
    """The folders that were named, or those that come with the package. Raises DemoError with the remedy."""
    shipped: Path | None = None
    if imagination is None:
        try:
            shipped = resources.find(SHIPPED)
        except FileNotFoundError:
            raise DemoError(
                f"no control models come with this version ({SHIPPED} is missing): train them (`thinkjepa train "
                "world`, `thinkjepa train policy`) and name the folders: --imagination FOLDER --policy FOLDER"
            ) from None
        imagination = shipped / "imagination"
        policy = policy or (shipped / "policy" if (shipped / "policy").is_dir() else None)
    untrained = []
    for name, folder in (("imagination", imagination), ("policy", policy)):
        if folder is None:
            continue
        try:
            manifest = read_manifest(folder, name)
        except (CheckpointError, OSError) as error:
            raise DemoError(f"--{name}: {error}") from None
        if not manifest.trained:
            untrained.append(name)
    return Weights(imagination, policy, tuple(untrained))


class ControlGraph:
    """Simulator, thinker, controller and conductor; everything they say lies in `out`/logs.

    told: the newest line of the conductor, empty until there is one.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        out: Path,
        tasks: Sequence[str],
        *,
        controlling: Mapping[str, Any],
        controller: str = NODES + "controller",
        simulating: Mapping[str, Any] | None = None,
        thinker: str | None = "control",
        device: str = "cpu",
        film: bool = True,
        note: str = "",
        on_tell: Any = lambda told: None,
    ) -> None:
        """tasks: words kind:seed. controlling, simulating: parameters of those nodes. controller: its module."""
        self.told: dict[str, Any] = {}
        self._out, self._supervisor, self._on_tell = out, supervisor, on_tell
        camera = {
            "image": "camera/image",
            "image/compressed": "camera/image/compressed",
            "camera_info": "camera/camera_info",
        }
        seen = {"image_transport": "compressed", "device": device}
        self._add("simulator", NODES + "simulator", simulating or {})
        topics = {**camera, "camera_pose": "camera/pose", "guidance": "thinker/guidance"}
        self._add("controller", controller, {**seen, **controlling}, topics)
        if thinker is not None:
            words = {"~/instruction": "instruction"}
            self._add("thinker", NODES + "thinker", {"model": thinker, **seen}, {**camera, **words})
        conducting = {
            "tasks": ",".join(tasks),
            "out": str(out),
            "film_rate_hz": FILM_HZ if film else 0.0,
            "note": note,
            "forgetful": "controller" if thinker is None else "thinker,controller",
        }
        self._add("conductor", NODES + "conductor", conducting, keep=False, on_line=self._hear)

    def _add(
        self,
        name: str,
        module: str,
        parameters: Mapping[str, Any],
        remap: Mapping[str, str] | None = None,
        keep: bool = True,
        on_line: Any = None,
    ) -> None:
        arguments, log = ros_arguments(remap, **parameters), self._out / "logs" / f"{name}.log"
        self._supervisor.start(Child(name, module, arguments, keep=keep, on_line=on_line, log=log))

    def _hear(self, line: str) -> None:
        try:
            self.told = json.loads(line)
        except ValueError:
            return  # a warning of some library, not ours
        self._on_tell(self.told)

    @property
    def over(self) -> bool:
        """The conductor has ended, well or not."""
        return self._supervisor.children["conductor"].status is not None

    def trouble(self) -> str:
        """Why going on makes no sense, in a sentence; empty while all is well."""
        children = self._supervisor.children
        conductor = children["conductor"]
        if conductor.status not in (None, 0):
            return conductor.tail(3).removeprefix("conductor: ") or "the conductor ended and said nothing"
        dying = [name for name, child in children.items() if child.deaths > _MOST_DEATHS]
        return f"the {dying[0]} does not stay alive: {children[dying[0]].tail()}" if dying else ""

    def finish(self) -> None:
        """Stop everything: the conductor first, who finishes the film, then the controller before its robot."""
        self._supervisor.stop(["conductor"], step_s=_FINISH_S)
        self._supervisor.stop(["controller"])
        self._supervisor.stop()


def demo_control(
    imagination: Path | None = None,
    policy: Path | None = None,
    out: Path = Path("out/demo_control"),
    kinds: Sequence[str] = ("reach", "pick_place_text"),
    seed: int = 2_000_000,
    size: str = "256",
    thinker: str | None = "control",
    device: str = "cpu",
    film: bool = True,
    console: Console | None = None,
    controller: str = NODES + "controller",
    controlling: Mapping[str, Any] | None = None,
    seeds: int = 1,
    beside: Path | None = None,
) -> int:
    """Have the robot do `seeds` tasks of each kind; returns the exit status.

    imagination, policy: checkpoint folders (default: the shipped ones). thinker: "mini", "control", a folder, or None.
    controller: module of the controller; one that is not ours gets the parameters `controlling` and no weights.
    seeds: from `seed` on. beside: folder of `thinkjepa evaluate control`, to compare with what was done in lock step.
    0: every task was tried; 1: not, and it was said why. Whether tasks succeeded is in the words and in result.json.
    """
    from thinkjepa_ros.data.sim.generate import parse_size

    console = console or Console()

    def say(words: str, style: str = "") -> None:
        console.print(words, style=style, markup=False, highlight=False, soft_wrap=True)

    try:
        before = lock_step(beside) if beside is not None else {}
        width, height = parse_size(size)
        untrained: tuple[str, ...] = ()
        if controlling is None:
            weights = find_weights(imagination, policy)
            untrained = weights.untrained
            controlling = {
                "model": str(weights.imagination.resolve()),
                "policy": str(weights.policy.resolve()) if weights.policy else "",
                "mode": "both" if weights.policy else "planner",
            }
        domain, out = free_domain(), _prepare(out)
    except (DemoError, ValueError, RuntimeError, OSError) as error:
        say(str(error), "red")
        return 1
    note = f"UNTRAINED {' and '.join(untrained)}" if untrained else ""
    tasks = [f"{kind}:{number}" for number in range(seed, seed + seeds) for kind in kinds]
    asked_for = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks from {tasks[0]} on"
    with (
        stop_signals() as asked,
        LiveView(f"control: {asked_for}{f' ({note})' if note else ''}", console, render, line) as view,
        Supervisor(environment(out, domain), view.event) as supervisor,
    ):
        began = time.monotonic()
        graph = ControlGraph(
            supervisor,
            out,
            tasks,
            controlling=controlling,
            controller=controller,
            simulating={"image_width_px": width, "image_height_px": height, "kind": kinds[0], "seed": seed},
            thinker=thinker,
            device=device,
            film=film,
            note=note,
            on_tell=view.update,
        )
        view.event(f"live picture: {out / 'live.jpg'} (rewritten 5 times a second; open it in a viewer that follows)")
        view.event(f"to look in with ROS tools: ROS_DOMAIN_ID={domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
        trouble = ""
        while not (asked.wait(0.1) or trouble or graph.over):
            supervisor.look_after()
            trouble = graph.trouble()
        trouble = trouble or graph.trouble()
        graph.finish()
    results = graph.told.get("results", [])
    compared = agreement(results, before)
    summary = {"tasks": tasks, "results": results, "untrained": untrained,
               "lock_step": {kind: c._asdict() for kind, c in compared.items()}}  # fmt: skip
    (out / "result.json").write_text(json.dumps({**summary, "seconds": round(time.monotonic() - began, 1)}, indent=1))
    for words in report(results, out, note):
        say(words)
    for words in counts(results, compared) if seeds > 1 or compared else ():
        say(words)
    if trouble:
        say(f"{trouble}; the logs are in {out / 'logs'}", "red")
    elif len(results) < len(tasks):
        say(f"stopped after {len(results)} of {len(tasks)} tasks")
    return 1 if trouble else 0


def _prepare(out: Path) -> Path:
    """The folder for a run, empty of what an earlier one left in it. Raises OSError."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    logs = [f"logs/{name}.log" for name in ("simulator", "thinker", "controller", "conductor")]
    for stale in (*FILES, *logs):
        (out / stale).unlink(missing_ok=True)
    return out


def report(results: Sequence[Mapping[str, Any]], out: Path, note: str) -> list[str]:
    """What came of the tasks, and where the pictures are, in lines."""
    lines = [f"{note}: what it did means nothing"] if note else []
    for result in results:
        done = f"done after {result['done_after']} actions" if result["success"] else "not done"
        error = "" if result["error_m"] is None else f", {result['error_m'] * 100:.1f} cm from the goal at the end"
        lines.append(
            f"{result['kind']}:{result['seed']}: {done} (at most {result['most_actions']}) "
            f"in {result['seconds']:.1f} s, {result['plans']} plans{error}{_pace(result)}"
        )
    named = (("last picture", "last.png"), ("film", "film.mp4"))
    return lines + [f"{name}: {out / file}" for name, file in named if (out / file).is_file()]


def _pace(result: Mapping[str, Any]) -> str:
    """A robot that lives slower than its controller has an easier time: that must be said."""
    slow = result["pace"] < SLOW
    return f"; this machine was too slow, the robot lived at {result['pace']:.2f} of real time" if slow else ""


def line(told: dict[str, Any]) -> str:
    """The state in one line."""
    parts = [f"{told.get('t', 0):5.1f} s", told.get("doing", "starting"), told.get("task", "")]
    if told.get("outcome"):
        parts.append(_outcome(told["outcome"]))
    if told.get("plan"):
        parts.append(_plan(told["plan"]))
    if told.get("thought"):
        parts.append(f"thought: {told['thought'][:60]}")
    if told.get("doing") != "running":
        parts += [f"{name} [{node['words']}]" for name, node in told.get("nodes", {}).items()]
    return " | ".join(part for part in parts if part)


def render(told: dict[str, Any], title: str, events: list[str]) -> RenderableType:
    """The state as a table."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row("now", told.get("doing", "starting the nodes"))
    table.add_row("task", Text(told.get("task") or "-", "bold"))
    table.add_row("outcome", _outcome(told["outcome"]) if told.get("outcome") else "-")
    table.add_row("plan", _plan(told["plan"]) if told.get("plan") else "none yet")
    table.add_row("thought", Text(told.get("thought") or "none yet", "italic"))
    for name, node in told.get("nodes", {}).items():
        table.add_row(name, Text(node["words"], "green" if node["words"].startswith("running") else "yellow"))
    for result in told.get("results", [])[-6:]:
        done = result["success"]
        table.add_row("result", Text(f"{result['kind']}:{result['seed']} {'done' if done else 'not done'}",
                                     "bold green" if done else "bold red"))  # fmt: skip
    body = Group(table, Text(), *(Text(event, "yellow") for event in events))
    return Panel(body, title=title, subtitle="Ctrl-C ends and keeps the film so far", title_align="left")


def _outcome(outcome: Mapping[str, Any]) -> str:
    words = f"action {outcome['actions']} of {outcome['most_actions']}"
    if outcome["error_m"] is not None:
        words += f", {outcome['error_m'] * 100:.1f} cm from the goal"
    return words + (f", done after {outcome['done_after']}" if outcome["done_after"] is not None else "")


def _plan(plan: Mapping[str, Any]) -> str:
    words = plan["source"]
    if plan["planning_s"] is not None:
        words += f" in {plan['planning_s'] * 1e3:.0f} ms"
    if plan["energy"] is not None and plan["hold_energy"] is not None:
        words += f", energy {plan['energy']:.3f} (holding still: {plan['hold_energy']:.3f})"
    if not plan["trained"]:
        words += ", UNTRAINED"
    return words
