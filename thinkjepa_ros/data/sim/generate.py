"""Make cue-reach episodes in parallel: `thinkjepa data sim`.

Every episode is a pure function of (split, seed, size, rate), so the number of workers, the order and an interruption
change nothing in the files.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinkjepa_ros.data.episode import SUFFIX, Episode, EpisodeError
from thinkjepa_ros.data.sim.script import SCENE_VERSION, SIM_SPLITS, mixed_split
from thinkjepa_ros.data.workers import guard_worker

_MANIFEST = "dataset.json"


def parse_size(size: str) -> tuple[int, int]:
    """(width, height) from "128" or "640x480". Raises ValueError with the remedy."""
    parts = size.lower().split("x")
    if len(parts) in (1, 2) and all(p.isdecimal() for p in parts):
        width, height = int(parts[0]), int(parts[-1])
        if 16 <= width <= 1280 and 16 <= height <= 1280:
            return width, height
    raise ValueError(f"size {size!r} is no image size; write 128 or 640x480 (16 to 1280 pixels each)")


def episode_path(folder: Path, split: str, seed: int) -> Path:
    """Where the episode of (split, seed) lies; `split` may be "mixed"."""
    return folder / f"{mixed_split(seed) if split == 'mixed' else split}_{seed:07d}{SUFFIX}"


def _work(path: str, split: str, seed: int, width: int, height: int, rate_hz: float) -> int:
    from thinkjepa_ros.data.sim.play import make_episode  # here: the parent needs neither MuJoCo nor OpenGL

    episode = make_episode(split, seed, width, height, rate_hz)
    episode.save(path)
    return len(episode)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new data folder, or refuse to add episodes of other settings to an old one."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / _MANIFEST
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
        except ValueError:
            found = None
        if found != settings:
            raise ValueError(
                f"{folder} holds episodes of other settings ({found}, not {settings}); take another folder or empty it"
            )
        return
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(settings, indent=1) + "\n")
    part.replace(manifest)


def _is_opengl(words: str) -> bool:
    return any(name in words for name in ("OpenGL", "EGL", "OSMesa", "MUJOCO_GL", "GLError"))


def _is_good(path: Path) -> bool:
    try:
        Episode.load(path)
    except EpisodeError:
        return False
    return True


def main(
    out: Path,
    episodes: int = 100,
    split: str = "mixed",
    seed_start: int = 0,
    size: str = "128",
    workers: int = 2,
    rate_hz: float = 30.0,
    quiet: bool = False,
) -> int:
    """Make cue-reach episodes with the seeds seed_start, seed_start + 1, ... in the folder OUT.

    Splits: lamp (a lamp shows the cube's colour at the tray), text (the instruction says it), distractor (lamp, and
    other lamps flash in colours of no cube), none (no cue), mixed (40 % lamp, 25 % distractor, 20 % text, 15 % none).
    Seeds: training from 0, validation from 1000000, test from 2000000. Episodes that are there already are kept, so
    the same command goes on after an interruption.

    Returns the exit code: 0 done, 130 interrupted. Raises ValueError for wrong options, EpisodeError when
    an episode fails or the simulator is not installed.
    """
    if split not in (*SIM_SPLITS, "mixed"):
        raise ValueError(f"split {split!r} is none of {', '.join(SIM_SPLITS)}, mixed")
    if episodes < 1 or workers < 1 or seed_start < 0 or not 1.0 <= rate_hz <= 240.0:
        raise ValueError("episodes and workers must be 1 or more, seed_start 0 or more, rate_hz 1 to 240")
    width, height = parse_size(size)
    settings = {"scene_version": SCENE_VERSION, "width": width, "height": height, "rate_hz": rate_hz}
    jobs = [
        (str(episode_path(Path(out), split, seed)), split, seed, width, height, rate_hz)
        for seed in range(seed_start, seed_start + episodes)
    ]
    return fill(Path(out), settings, _work, jobs, workers, quiet)


def fill(
    out: Path,
    settings: dict[str, Any],
    work: Callable[..., int],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    quiet: bool = False,
) -> int:
    """Make the episodes of `jobs` in the folder `out`, those that are there already excepted; shows a progress bar.

    work: a function of a module, called with a job in a process of its own; it writes a file and returns its number of
    frames. jobs: (path of the file, what kind of episode, seed, ...). settings: what the folder's episodes share; a
    folder that holds others is refused.

    Returns the exit code: 0 done, 130 interrupted. Raises ValueError for a folder of other settings, EpisodeError when
    an episode fails or the simulator is not installed.
    """
    if find_spec("mujoco") is None:
        raise EpisodeError("The simulator needs MuJoCo, which is not installed: pip install mujoco")
    _claim(out, settings)
    console = Console(quiet=quiet)
    todo = [job for job in jobs if not _is_good(Path(job[0]))]
    frames, started, episodes = 0, time.monotonic(), len(jobs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]} frames/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task("episodes", total=episodes, completed=episodes - len(todo), fps="-")

        def advance(new: int) -> None:
            nonlocal frames
            frames += new
            progress.update(bar, advance=1, fps=f"{frames / max(time.monotonic() - started, 1e-9):.0f}")

        try:
            _run(work, todo, min(workers, max(len(todo), 1)), advance)
        except KeyboardInterrupt:
            done = sum(Path(job[0]).exists() for job in todo)
            there = episodes - len(todo) + done
            console.print(f"Interrupted: {there} of {episodes} episodes are in {out}; the same command goes on.")
            return 130
    seconds = time.monotonic() - started
    speed = f"{frames} frames in {seconds:.0f} s, {frames / max(seconds, 1e-9):.0f} frames/s"
    console.print(f"{episodes} episodes in {out} ({len(todo)} new, {speed})", soft_wrap=True)
    return 0


def _run(work: Callable[..., int], jobs: list[tuple[Any, ...]], workers: int, advance: Callable[[int], None]) -> None:
    """Run the jobs in processes; the first failure ends the run with an EpisodeError that names the seed."""
    queue = iter(jobs)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=guard_worker)
    running: dict[Future[int], tuple[Any, ...]] = {}
    try:
        while True:
            while len(running) < workers + 1 and (job := next(queue, None)) is not None:
                running[pool.submit(work, *job)] = job
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                try:
                    advance(future.result())
                except BrokenProcessPool:
                    raise EpisodeError(
                        "A worker process died (out of memory, or killed); the same command goes on where it stopped."
                    ) from None
                except Exception as error:
                    words = f"{type(error).__name__}: {error}"
                    hint = " (it needs EGL: apt-get install libegl1 libgl1-mesa-dri)" if _is_opengl(words) else ""
                    raise EpisodeError(f"Episode {job[1]} of seed {job[2]} failed{hint}: {words}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
