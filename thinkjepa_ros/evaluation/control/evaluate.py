"""`thinkjepa evaluate control`: every row on the same seeds, what came of it as tables, JSON, pictures and films."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...control.options import Options
from ...data.sim.rollouts import WORKCELL_VERSION
from ...data.sim.script import TEST_SEEDS, VAL_SEEDS
from ...data.sim.tasks import KINDS
from ...version import __version__
from . import figures, pool, report, timing
from .journal import Journal, Key, Line
from .models import Known, Models, Sources, missing
from .planned import Setting
from .pool import Job
from .rows import Need, Row, choose, table, with_budgets

USES = {"val": VAL_SEEDS, "test": TEST_SEEDS}
#: Films are kept of failures on so many first seeds.
FILMED = 10
JOURNAL = "episodes.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is run. rows: patterns of names, see `rows.choose`. use: "val" or "test". budgets: samples and rounds beside
    the usual ones. horizon: of our planner. runs: expert's runs by which times are measured; 0: none.
    """

    kinds: tuple[str, ...] = KINDS
    rows: tuple[str, ...] = ("*",)
    seeds: int = 20
    use: str = "val"
    budgets: tuple[tuple[int, int], ...] = ()
    horizon: int = 4
    setting: Setting = field(default_factory=Setting)
    workers: int = 2
    threads: int = 1
    runs: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError naming what makes no sense."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        if self.use not in USES:
            raise ValueError(f"--use {self.use}: must be val, for choices, or test, once at the end")
        if not 1 <= self.seeds < len(USES[self.use]) or min(self.workers, self.threads) < 1:
            raise ValueError(f"seeds must be 1 to {len(USES[self.use]) - 1}, workers and threads 1 or more")

    @property
    def numbers(self) -> range:
        return USES[self.use][: self.seeds]


def evaluate(
    sources: Sources, out: Path, plan: Plan, command: Sequence[str] = (), console: Console | None = None
) -> dict[str, Any]:
    """Run what is not there yet, show the tables, and write metrics.json, table.md, pictures and films to `out`.

    Returns the contents of metrics.json. Raises CheckpointError, ThinkerError, ValueError, EpisodeFailed.
    """
    console = console or Console()
    known = sources.known()
    wanted = with_budgets(choose(table(plan.horizon), plan.rows), plan.budgets)
    rows, left_out = usable(wanted, known, plan.kinds)
    for sentence in left_out:
        console.print(f"[yellow]{sentence}[/]", highlight=False)
    if not rows:
        raise ValueError("there is no row to run: give the checkpoints that the rows need, or choose others by --rows")
    journal = Journal(out / JOURNAL)
    keys = {
        Key(row.name, kind, seed, settings_of(row, known, plan.setting)): row
        for seed in plan.numbers  # all rows of a seed before the next one, so that a table can be read early
        for kind in plan.kinds
        for row in rows
        if row.fits(kind)
    }
    _run([Job(keys[k], k, _film(out, k, plan)) for k in journal.missing(keys)], len(keys), journal, sources, plan,
         console)  # fmt: skip
    lines = [journal.lines[key] for key in keys]
    times = _times(rows, sources, plan, console) if plan.runs else []
    contents = report.contents(rows, plan.kinds, lines, times, about(known, plan, left_out, command))
    report.show(contents, console)
    report.write(contents, out)
    try:
        figures.draw(contents, out)
    except ImportError as error:
        console.print(str(error))
    films = sorted({f for k in keys if (f := _film(out, k, plan)) and f.exists() and not journal.lines[k]["success"]})
    console.print(f"{out}: metrics.json, table.md, {len(films)} films of failures in {out / 'films'}", soft_wrap=True)
    return contents


def usable(rows: Sequence[Row], known: dict[Need, Known], kinds: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows that can be run, and a sentence for every other one."""
    found, sentences = [], []
    for row in rows:
        lacks = missing(row, known)
        if lacks:
            options = " and ".join(f"--{need}" for need in lacks)
            sentences.append(f'row "{row.name}" is left out: it needs {options}')
        elif not any(row.fits(kind) for kind in kinds):
            sentences.append(f'row "{row.name}" is left out: it makes no sense for {", ".join(kinds)}')
        else:
            found.append(row)
    return found, sentences


def settings_of(row: Row, known: dict[Need, Known], setting: Setting) -> str:
    """Hash of what decides an episode of the row, but for the task: settings, weights, version of the workcell, and how
    the controller plans where nothing is set.
    """
    parts: dict[str, Any] = {"row": row.settings, "workcell": WORKCELL_VERSION}
    parts["weights"] = {need: known[need].sha256 for need in row.needs}
    if row.plans:
        parts["setting"] = asdict(setting)
    if row.method != "cem" and (row.plans or row.actor == "policy"):
        parts["options"] = asdict(Options())  # the controller's own defaults
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def about(known: dict[Need, Known], plan: Plan, left_out: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "command": " ".join(command),
        "version": __version__,
        "workcell_version": WORKCELL_VERSION,
        "use": plan.use,
        "seeds": [plan.numbers[0], plan.numbers[-1]],
        "horizon": plan.horizon,
        "setting": asdict(plan.setting),
        "weights": {n: {k: str(v) if k == "folder" else v for k, v in asdict(one).items()} for n, one in known.items()},
        "untrained": sorted(need for need, one in known.items() if not one.trained),
        "left_out": list(left_out),
        "workers": plan.workers,
        "threads": plan.threads,
        "torch": torch.__version__,
        "hardware": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors",
    }


def _film(out: Path, key: Key, plan: Plan) -> Path | None:
    """Where the film of a failure goes; None for seeds of which there are none."""
    if key.seed not in plan.numbers[:FILMED]:
        return None
    name = "".join(c if c.isalnum() or c in "+@-" else "_" for c in key.row)
    return out / "films" / key.kind / f"{name}_{key.seed}_{key.settings[:6]}.png"


def _run(jobs: Sequence[Job], total: int, journal: Journal, sources: Sources, plan: Plan, console: Console) -> None:
    """Every line is on the disk as soon as its episode is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Episodes", total=total, completed=total - len(jobs))
        for line in pool.run(jobs, sources, plan.setting, min(plan.workers, max(1, len(jobs))), plan.threads):
            journal.add(line)
            progress.update(bar, advance=1)
            if not console.is_terminal:  # a log has no bar
                console.print(_said(line), highlight=False, soft_wrap=True)


def _said(line: Line) -> str:
    ending = f"done after {line['actions']}" if line["success"] else f"failed, {100 * line['distance_m']:.1f} cm away"
    return f"{line['kind']} {line['seed']}  {line['row']}: {ending}"


def _times(rows: Sequence[Row], sources: Sources, plan: Plan, console: Console) -> list[timing.Times]:
    torch.set_num_threads(plan.threads)
    with console.status("Times, side by side"):
        return timing.measure(rows, plan.kinds, Models(sources), plan.setting, plan.runs)
