"""Test episodes through the real nodes at real speed: what remains live of what a model can do offline.

Player, predictor, thinker and evaluator run as in `thinkjepa demo`, each in a process of its own; the thinker thinks
once a second beside the camera and nobody waits for it. What the predictor published comes back per episode.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.demo.run import ERROR, Graph, environment, open_source, prepare, stop_signals
from thinkjepa_ros.demo.scenes import PAUSE_NS, Scene, cut, write_scenes
from thinkjepa_ros.demo.supervisor import Supervisor
from thinkjepa_ros.evaluation.cue_reach.live import LiveEpisode, LiveError, LiveRun
from thinkjepa_ros.evaluation.runs import Run, RunError
from thinkjepa_ros.transport import free_domain

THINK_PERIOD_S = 1.0
#: Episodes that are played in one go: starting the nodes takes about ten seconds, an interruption loses one chunk.
CHUNK = 20
#: A chunk in which the player fell behind (a camera does not) is played again, so often in all.
ATTEMPTS = 3
#: The evaluator keeps what comes within ten minutes.
MAX_CHUNK_S = 580.0
#: Stamps are integers, ages of guidance travel as float32.
_AGE_TOLERANCE_NS = 1_000_000


class LiveStopped(LiveError):
    """Somebody pressed Ctrl-C; the chunks that were played are kept."""


class _Slipped(LiveError):
    """The player did not keep its pace, so that stamps do not say which image they belong to."""


def run_live(
    episodes: Sequence[Path],
    out: Path,
    *,
    model: str | Path = "mini",
    thinker: str | Path = "mini",
    guided: bool = True,
    device: str = "cpu",
    dtype: str = "auto",
    until_ns: Sequence[int] | None = None,
    chunk: int = CHUNK,
    console: Console | None = None,
) -> LiveRun:
    """Play episode files through the nodes, in real time, and return what the predictor published about each.

    out: folder for the result of every chunk of episodes and for the logs; another call with the same arguments goes
    on where the first was stopped. model, thinker: "mini" or checkpoint folders. guided: without it no thinker runs.
    dtype: of the predictor; "auto" is what its node takes by itself, "float32" what offline figures are made in.
    until_ns: per episode the stamp (its own time line) up to which it is played; None: to its end. To be called in the
    main thread. Raises LiveError (a sentence), LiveStopped on Ctrl-C, EpisodeError for a file that is no episode.
    """
    files = [Path(file) for file in episodes]
    _check(files, until_ns, chunk)
    ends: list[int | None] = [None] * len(files) if until_ns is None else [int(at) for at in until_ns]
    rig = _Rig(out.resolve(), str(model), str(thinker), guided, device, dtype)
    runs: list[LiveRun] = []
    with stop_signals() as asked, _progress(console or Console(), guided, len(files)) as show:
        for begin in range(0, len(files), chunk):
            part, until = files[begin : begin + chunk], ends[begin : begin + chunk]
            path, wanted = rig.out / f"chunk_{begin // chunk:03d}", rig.settings(part, until)
            run = _finished(path, wanted)
            if run is None:
                run = rig.play(part, until, _part_of(show, begin, len(part)), asked)
                if run is None:
                    raise LiveStopped(
                        f"stopped after {begin} of {len(files)} episodes; the same command goes on from there"
                    )
                run.words["settings"] = wanted
                run.save(path)
            show(begin + len(part), "")
            runs.append(run)
    return LiveRun([one for run in runs for one in run.episodes], {"chunks": [run.words for run in runs]})


def _part_of(show: Callable[[float, str], None], begin: int, count: int) -> Callable[[float, str], None]:
    """Shows the share of a chunk of `count` episodes."""
    return lambda share, words: show(begin + share * count, words)


def _check(files: Sequence[Path], until_ns: Sequence[int] | None, chunk: int) -> None:
    if not files:
        raise LiveError("there is no episode to play")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise LiveError(f"{missing[0]} does not exist; name episode files (thinkjepa data sim makes them)")
    if len({file.name for file in files}) != len(files):
        raise LiveError("two of the episodes have the same file name; results are kept by that name")
    if until_ns is not None and len(until_ns) != len(files):
        raise LiveError(f"until_ns names {len(until_ns)} ends for {len(files)} episodes")
    if chunk < 1:
        raise LiveError(f"a chunk holds at least one episode, not {chunk}")


def _finished(path: Path, wanted: dict[str, Any]) -> LiveRun | None:
    """The result of a chunk that was played before; None if there is none. Raises LiveError if it is of another run."""
    if not path.with_suffix(".json").exists():
        return None
    run = LiveRun.load(path)
    if run.words.get("settings") != wanted:
        raise LiveError(
            f"{path.parent} holds a live run of other episodes, models or settings; remove it or name another folder"
        )
    return run


@contextmanager
def _progress(console: Console, guided: bool, count: int) -> Any:
    """Yields show(episodes done, words): a bar on a terminal, else one line per chunk."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[words]}"), console=console, disable=not console.is_terminal
    ) as bar:
        title = "live, guided" if guided else "live, unguided"
        task = bar.add_task(title, total=count, done="", words="")

        def show(done: float, words: str) -> None:
            bar.update(task, completed=done, done=f"{int(done)} of {count} episodes", words=words)
            if not console.is_terminal and not words:
                console.print(f"{title}: {int(done)} of {count} episodes", highlight=False)

        yield show


@dataclass(frozen=True)
class _Rig:
    """Plays chunks of episodes to fresh nodes."""

    out: Path
    model: str
    thinker: str
    guided: bool
    device: str
    dtype: str

    def settings(self, files: Sequence[Path], ends: Sequence[int | None]) -> dict[str, Any]:
        """What tells one chunk from another, as JSON gives it back."""
        models = {
            "model": _identity(self.model),
            "thinker": _identity(self.thinker, "thinker") if self.guided else None,
        }
        return {
            **models,
            "guided": self.guided,
            "device": self.device,
            "dtype": self.dtype,
            "think_period_s": THINK_PERIOD_S,
            "episodes": [[file.name, end] for file, end in zip(files, ends, strict=True)],
        }

    def play(
        self, files: Sequence[Path], ends: Sequence[int | None], show: Callable[[float, str], None], asked: Event
    ) -> LiveRun | None:
        """One chunk; None when it was asked to stop. Raises LiveError."""
        folder = self.out / "nodes"
        episodes = [cut(Episode.load(file), end) for file, end in zip(files, ends, strict=True)]
        seconds = sum(int(e.stamps_ns[-1] - e.stamps_ns[0]) + PAUSE_NS for e in episodes) * 1e-9
        if seconds > MAX_CHUNK_S:
            raise LiveError(
                f"{len(files)} episodes last {seconds:.0f} s, at most {MAX_CHUNK_S:g} s can be played in one go"
            )
        for attempt in range(1, ATTEMPTS + 1):
            prepare(folder)
            shutil.rmtree(folder / "recording", ignore_errors=True)
            scenes = write_scenes(folder / "recording", [file.name for file in files], episodes)
            try:
                if not self._run(folder, seconds, show, asked):
                    return None
                run = Run.load(folder)
                if not len(run):
                    words = "the nodes published no forecast at all: is the machine busy with other work?"
                    raise LiveError(f"{words} Their logs are in {folder / 'logs'}")
                return LiveRun(by_episode(run, scenes), _words(run))
            except RunError as error:
                raise LiveError(f"the nodes left no result: {error}; their logs are in {folder / 'logs'}") from error
            except _Slipped as slipped:
                if attempt == ATTEMPTS:
                    raise LiveError(
                        f"{slipped}, {ATTEMPTS} times in a row: is the machine busy with other work?"
                    ) from None
            finally:
                shutil.rmtree(folder / "recording", ignore_errors=True)
        raise AssertionError("the last attempt returns or raises")

    def _run(self, folder: Path, seconds: float, show: Callable[[float, str], None], asked: Event) -> bool:
        """Play folder/recording to its end, with the results in `folder`; False when it was asked to stop."""
        with Supervisor(environment(folder, free_domain())) as supervisor:
            graph = Graph(
                supervisor,
                open_source(folder / "recording"),
                folder,
                model=self.model,
                thinker_model=self.thinker,
                device=self.device,
                thinker=self.guided,
                pictures=False,
                thinking={"think_period_s": THINK_PERIOD_S},
                predicting={"dtype": self.dtype},
            )
            began: float | None = None
            while not graph.played:
                if asked.wait(0.1):
                    return False
                supervisor.look_after()
                if trouble := graph.trouble() or self._thinker_trouble(graph, supervisor):
                    raise LiveError(f"{trouble}; the logs are in {folder / 'logs'}")
                if began is None and graph.playing:
                    began = time.monotonic()
                share = 0.0 if began is None else min((time.monotonic() - began) / seconds, 1.0)
                show(share, "playing" if began else "starting the nodes")
            graph.finish()
            died = [name for name, child in supervisor.children.items() if child.deaths]
        if died:
            raise LiveError(f"the {died[0]} died while it played; the logs are in {folder / 'logs'}")
        return True

    def _thinker_trouble(self, graph: Graph, supervisor: Supervisor) -> str:
        """Without a thinker that works a run would be unguided, and nobody would know."""
        status = graph.told.get("statuses", {}).get("thinker") if self.guided else None
        if status and status["state"] == ERROR:
            return f"the thinker does not work: {status['words']}"
        if self.guided and supervisor.children["thinker"].deaths > 2:
            return f"the thinker does not stay alive: {supervisor.children['thinker'].tail()}"
        return ""


def _identity(model: str, part: str = "") -> str:
    """What tells a checkpoint from another: the hash of its description, which names the hash of its weights."""
    try:
        description = model_folder(model, part) / "model.json"
        return hashlib.sha256(description.read_bytes()).hexdigest()
    except OSError:
        return model  # one that has no such file (a folder of Qwen), or is none: the node will say


def _words(run: Run) -> dict[str, Any]:
    words = {name: run.words[name] for name in ("forecasts", "rate_hz", "statuses")}
    return words | {"model_id": run.model_id, "domain": run.domain, "step_s": run.step_s}


def by_episode(run: Run, scenes: Sequence[Scene]) -> list[LiveEpisode]:
    """The forecasts of a run by the scene they belong to, on the time lines of the episodes.

    Raises LiveError when the player slipped or a forecast was guided by a thought of another scene.
    """
    if not len(run.begins_ns):
        raise LiveError("the player never began; its log says why")
    shift = int(run.begins_ns[0]) - scenes[0].first_ns  # the player moves all stamps alike
    recorded = run.stamp_ns - shift
    found, placed = [], 0
    for scene in scenes:
        index = np.flatnonzero((recorded >= scene.first_ns) & (recorded <= scene.last_ns))
        index = index[np.argsort(recorded[index], kind="stable")]
        stamps = scene.own(recorded[index])
        if not np.isin(stamps, scene.stamps_ns).all():
            raise _Slipped("the player fell behind its schedule")
        placed += len(index)
        ages = run.age_s[index].astype(np.float64)
        thought_ns = stamps - np.nan_to_num(ages) * 1e9
        if (thought_ns < scene.stamps_ns[0] - _AGE_TOLERANCE_NS).any():
            raise LiveError(f"a forecast in {scene.name} was guided by a thought from before its beginning: a bug")
        arrived_ns = run.receipt_ns[index] - run.stamp_ns[index] - scene.behind_ns
        thoughts = [
            {"stamp_ns": scene.own(at), "heard_ns": scene.own(at + round(t["delay_s"] * 1e9) - scene.behind_ns)}
            | {"text": t["text"], "instruction": t["instruction"]}
            for t in run.words.get("thoughts", [])
            if scene.first_ns <= (at := t["stamp_ns"] - shift) <= scene.last_ns
        ]
        found.append(
            LiveEpisode(
                name=scene.name, stamps_ns=stamps, positions=run.positions[index], sigma=run.sigma[index],
                present=run.present[index], weight=run.weight[index], age_s=run.age_s[index],
                latency_s=arrived_ns * 1e-9, thoughts=thoughts,
            )
        )  # fmt: skip
    if placed != len(run):
        raise _Slipped("the player fell behind its schedule")
    return found
