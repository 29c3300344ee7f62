"""What every training stage shares: a progress bar, a log (CSV, TensorBoard, a figure), checkpoints that resume, a
clean Ctrl-C.

A run is a folder. Its random numbers are a function of (seed, step), never of how often it was stopped, so that a run
that was killed and resumed ends with the same weights as one that was not (bit-equal on the same machine). Under
torchrun the processes of a run do the same steps and stop at the same one (`distributed`).
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from . import distributed, figure

STATE = "state.pt"
LOG = "log.csv"


class Stopped(Exception):
    """The user asked to stop; everything up to the last step is saved."""


@dataclass
class Run:
    """One training run in `folder`, to be driven with `for step in run.steps(...)`.

    Under torchrun `update` takes this process's share of the loss, and `note` what is a mean over its part.
    """

    folder: Path
    net: nn.Module
    steps_total: int
    lr: float
    seed: int
    describe: dict[str, Any]  #: what makes this run this run; resuming with another description is refused
    weight_decay: float = 0.05
    warm_up: int = 100
    clip: float = 1.0
    save_every_s: float = 60.0
    quiet: bool = False
    #: Learning rate of the parameters whose names begin so, as a share of that of the others.
    slower: dict[str, float] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self.group = distributed.group()
        if self.group.first:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.group.wait()
        self.group.same_weights(self.net)
        self.optimizer = torch.optim.AdamW(list(self._groups()), lr=self.lr, betas=(0.9, 0.99))
        self.step = 0
        self.seconds = 0.0  # wall time of all calls together
        self.cpu_seconds = 0.0  # time of all threads, which other work on the machine does not stretch
        self._load()

    def _groups(self) -> Iterator[dict[str, Any]]:
        """Parameters by learning rate, matrices and what decays not apart."""
        for rate in dict.fromkeys((1.0, *self.slower.values())):
            learn = [p for name, p in self.net.named_parameters() if p.requires_grad and self._rate(name) == rate]
            yield {"params": [p for p in learn if p.ndim > 1], "weight_decay": self.weight_decay, "rate": rate}
            yield {"params": [p for p in learn if p.ndim <= 1], "weight_decay": 0.0, "rate": rate}

    def _rate(self, name: str) -> float:
        return next((rate for prefix, rate in self.slower.items() if name.startswith(prefix)), 1.0)

    def random(self, step: int) -> np.random.Generator:
        """The random numbers of a step."""
        return np.random.default_rng((self.seed, step))

    def steps(self, title: str, every: int = 50) -> Iterator[int]:
        """Steps still to do. Logs the means of `note` every `every` steps, saves from time to time, draws the log at
        the end. Raises Stopped on SIGINT or SIGTERM to any of the processes.
        """
        if self.step >= self.steps_total:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        quiet = self.quiet or not self.group.first
        writer = _tensorboard(self.folder) if self.group.first else _NoWriter()
        with (
            _interruptible() as asked,
            Progress(*columns, TextColumn("{task.fields[words]}"), disable=quiet) as bar,
        ):
            task = bar.add_task(title, total=self.steps_total, completed=self.step, words="")
            began = saved = time.monotonic()
            cpu = time.process_time()
            while self.step < self.steps_total:
                for group in self.optimizer.param_groups:
                    # a state that was saved by version 0.1 knows no rates
                    group["lr"] = group.get("rate", 1.0) * self.lr * schedule(self.step, self.steps_total, self.warm_up)
                yield self.step
                self.step += 1
                bar.advance(task)
                now = time.monotonic()
                if self.step % every == 0 or self.step == self.steps_total:
                    means = self._means()
                    self._sums, self._count = {}, 0
                    self._log(means, self.seconds + now - began)
                    for name, value in means.items():
                        writer.add_scalar(name, value, self.step)
                    bar.update(task, words="  ".join(f"{k} {v:.4g}" for k, v in means.items()))
                    if not sys.stdout.isatty() and not quiet:
                        print(
                            f"{title} {self.step}/{self.steps_total} "
                            + " ".join(f"{k}={v:.4g}" for k, v in means.items()),
                            flush=True,
                        )
                stop, save = self._together(asked(), now - saved > self.save_every_s)
                if stop or save or self.step == self.steps_total:
                    self.seconds += now - began
                    self.cpu_seconds += time.process_time() - cpu
                    began = saved = now
                    cpu = time.process_time()
                    self._save()
                if stop and self.step < self.steps_total:
                    self._draw()
                    raise Stopped(
                        f"{title}: stopped at step {self.step} of {self.steps_total}; "
                        f"the same command continues from here ({self.folder})."
                    )
        writer.close()
        self._draw()

    def update(self, loss: torch.Tensor) -> float:
        """Backward, clip, step. Returns the gradient norm. Raises RuntimeError when the loss is not finite (nothing
        is changed).

        loss: of this process's part, as a share of that of the whole batch: the losses of all processes are added.
        """
        if not bool(self.group.total(loss).isfinite()):
            raise RuntimeError(f"the loss is not finite at step {self.step}; the last good state is in {self.folder}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.group.sum_gradients(self.net)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        return float(norm)

    def note(self, **values: float) -> None:
        """Add to the running means of the log."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def _together(self, *wishes: bool) -> list[bool]:
        """Each wish, if any process has it: all must stop and save at the same step."""
        return (self.group.total(torch.tensor(wishes, dtype=torch.float32)) > 0).tolist()

    def _noted(self) -> tuple[dict[str, float], int]:
        """Sums of what was noted, mean over the processes, and how often it was noted."""
        parts = self.group.gather(self._sums)
        if len(parts) == 1:
            return self._sums, self._count
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}, self._count

    def _means(self) -> dict[str, float]:
        sums, count = self._noted()
        return {name: total / max(1, count) for name, total in sums.items()}

    def _log(self, means: dict[str, float], seconds: float) -> None:
        if not self.group.first:
            return
        path = self.folder / LOG
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            rows = csv.writer(file)
            if fresh:
                rows.writerow(["step", "seconds", *means])
            rows.writerow([self.step, f"{seconds:.1f}", *(f"{v:.6g}" for v in means.values())])

    def _draw(self) -> None:
        """A figure of the log. It is a convenience: where it cannot be drawn, a sentence says so."""
        if not self.group.first or not (self.folder / LOG).exists():
            return
        try:
            figure.draw(self.folder)
        except (ImportError, OSError, ValueError) as error:
            if not self.quiet:
                print(f"No figure of {self.folder / LOG}: {error}", flush=True)

    def _save(self) -> None:
        sums, count = self._noted()
        if self.group.first:
            self._write(sums, count)
        self.group.wait()

    def _write(self, sums: dict[str, float], count: int) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "describe": json.dumps(self.describe, sort_keys=True),
            "sums": sums,
            "count": count,
        }
        part = self.folder / f".{STATE}.{os.getpid()}"
        torch.save(state, part)
        part.replace(self.folder / STATE)

    def _load(self) -> None:
        path = self.folder / STATE
        there = path.exists()
        if len(set(self.group.gather(there))) > 1:
            raise ValueError(f"only some processes see {path}; put the folder where all machines of the training do")
        if not there:
            if self.group.first:
                (self.folder / LOG).unlink(missing_ok=True)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["describe"] != json.dumps(self.describe, sort_keys=True):
            raise ValueError(
                f"{path} belongs to a run with other settings ({state['describe']}); choose another folder or delete it"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.cpu_seconds = state["step"], state["seconds"], state["cpu_seconds"]
        self._sums, self._count = state["sums"], state["count"]
        if self.group.first:
            _cut_log(self.folder / LOG, self.step)


def _cut_log(path: Path, step: int) -> None:
    """Drop log rows of steps after the state that is resumed; they will be made again."""
    if not path.exists():
        return
    rows = list(csv.reader(path.read_text().splitlines()))
    kept = [rows[0], *(r for r in rows[1:] if int(r[0]) <= step)]
    path.write_text("".join(",".join(r) + "\n" for r in kept))


def schedule(step: int, total: int, warm_up: int) -> float:
    """Linear warm-up, then cosine to 2 %."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, total - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it the first SIGINT or SIGTERM only sets a flag; the second one interrupts as usual.

    Under torchrun the second one only repeats the first: it passes on the Ctrl-C that its processes got from the
    terminal, too. It ends by force what has not stopped after 30 seconds.
    """
    asked = False

    def handler(number: int, _frame: object) -> None:
        nonlocal asked
        if asked and not distributed.launched():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True

    try:
        old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller owns the signals
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the training extra is not installed: the CSV has the same numbers
        return _NoWriter()
    return SummaryWriter(str(folder / "tensorboard"))


class _NoWriter:
    def add_scalar(self, *_: object) -> None: ...

    def close(self) -> None: ...


def threads(number: int) -> None:
    """Use `number` torch threads in this process."""
    torch.set_num_threads(number)
    with contextlib.suppress(RuntimeError):  # may be set once only
        torch.set_num_interop_threads(1)
