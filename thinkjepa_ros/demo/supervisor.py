"""Starts the nodes as processes, brings dead ones back, and never leaves one behind.

Every child leads a process group of its own, so that Ctrl-C reaches us alone and we end the others in order. On Linux
it also asks the kernel to be killed when we die: even `kill -9` of this process leaves no orphan.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

#: Launch's steps: SIGINT, then SIGTERM, then SIGKILL.
STEP_S = 5.0
#: A restart waits this long, twice as long after each death, up to the last.
BACK_OFF_S = (1.0, 16.0)
#: A process that lived this long begins again with the shortest wait.
HEALTHY_S = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One process to keep alive. module: run as `python -m module`. keep: bring it back when it dies.

    on_line: called with every line of its standard output (in a thread); the standard error goes to `log`.
    nice: how far it stands back where processes compete for the processor.
    """

    name: str
    module: str
    arguments: Sequence[str] = ()
    keep: bool = True
    on_line: Callable[[str], None] | None = None
    log: Path | None = None
    nice: int = 0
    process: subprocess.Popen[str] | None = None
    started_s: float = 0.0
    due_s: float = 0.0
    wait_s: float = BACK_OFF_S[0]
    deaths: int = 0
    status: int | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def tail(self, lines: int = 12) -> str:
        """The end of its log, for when it died."""
        if self.log is None or not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Supervisor:
    """Owns the children. Use as a context manager, in the main thread: leaving it stops all of them (and so would the
    end of the thread that started them).

    environment: what the children get. on_event: called with a sentence whenever one dies or comes back.
    """

    def __init__(self, environment: Mapping[str, str], on_event: Callable[[str], None] = lambda words: None) -> None:
        self._environment = dict(environment)
        self._on_event = on_event
        self.children: dict[str, Child] = {}

    def start(self, child: Child) -> None:
        """Start a process and look after it from now on."""
        self.children[child.name] = child
        self._spawn(child)

    def _spawn(self, child: Child) -> None:
        command = [sys.executable, "-m", child.module, *child.arguments]
        if child.log is not None:
            child.log.parent.mkdir(parents=True, exist_ok=True)
        with child.log.open("a") if child.log is not None else contextlib.nullcontext(subprocess.DEVNULL) as log:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if child.on_line else log,
                stderr=log,
                env=self._environment,
                text=True,
                preexec_fn=_die_with(os.getpid(), child.nice),
            )
        child.started_s, child.status = time.monotonic(), None
        if child.on_line is not None and child.process.stdout is not None:
            reader = threading.Thread(
                target=_read, args=(child.process.stdout, child.on_line), name=f"{child.name} output", daemon=True
            )
            reader.start()
            child.threads.append(reader)

    def look_after(self) -> None:
        """Notice deaths and bring back what is to be kept; call it a few times a second."""
        now = time.monotonic()
        for child in self.children.values():
            if child.process is None or child.alive:
                continue
            if child.status is None:
                child.status = child.process.returncode
                _kill_group(child.process.pid)  # what it may have started itself
                if not child.keep:
                    continue
                child.deaths += 1
                if now - child.started_s > HEALTHY_S:
                    child.wait_s = BACK_OFF_S[0]
                child.due_s = now + child.wait_s
                self._on_event(f"{child.name} {_how(child.status)}; it starts again in {child.wait_s:g} s")
                child.wait_s = min(2 * child.wait_s, BACK_OFF_S[1])
            elif child.keep and now >= child.due_s:
                self._spawn(child)
                self._on_event(f"{child.name} has been started again")

    def stop(self, names: Sequence[str] | None = None, step_s: float = STEP_S) -> bool:
        """Stop these children (default: all), together: SIGINT, SIGTERM, SIGKILL. False when one had to be killed."""
        chosen = [child for name, child in self.children.items() if names is None or name in names]
        for child in chosen:
            child.keep = False
        gently = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            running = [child for child in chosen if child.alive]
            if not running:
                break
            gently = number != signal.SIGKILL
            for child in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, number)  # type: ignore[union-attr]
            deadline = time.monotonic() + step_s
            while time.monotonic() < deadline and any(child.alive for child in running):
                time.sleep(0.02)
        for child in chosen:
            if child.process is not None:
                _kill_group(child.process.pid)
                child.status = child.process.wait()
                for thread in child.threads:
                    thread.join(1.0)
        return gently

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _die_with(parent: int, nice: int) -> Callable[[], None]:
    """What a child does before it becomes its program: lead a group, die with its parent, take signals normally."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # loaded before the fork

    def prepare() -> None:
        os.setpgrp()
        os.nice(nice)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where we run in the background

    return prepare


def _read(stream: IO[str], on_line: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            on_line(line.rstrip("\n"))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _how(status: int) -> str:
    """In words how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
