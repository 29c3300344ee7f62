"""A workcell in real time: what it was last told, how far it is in its task, and the pace of its clock. ROS-free."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .arm_commands import ToolPath
from .ledger import Entry, Fate, Ledger

if TYPE_CHECKING:
    from ..data.sim.workcell import Workcell

#: Behind by more than this, the simulation does not hurry after the clock but goes on from now.
MOST_BEHIND_S = 0.1
_RATE_SPAN_S = 5.0
_SLOW = 0.95  # of the pace that was asked for: less is told
_FOLLOW_S = 0.02  # a path is followed in steps of this
_FOLLOW_GAIN = 6.0  # per second, of the distance from the path
_SETTLE_M, _SETTLE_S = 1e-3, 1.0  # a path is over when the tool is so near its end, or so long after it at the latest


@dataclass(frozen=True)
class Order:
    """A checked command. Of velocity [3] (m/s) and path at most one is given; neither, and no closedness: halt."""

    velocity: np.ndarray | None = None
    path: ToolPath | None = None
    closedness: float | None = None

    @property
    def slot(self) -> str:
        """What a newer order replaces: the motion or the grip."""
        return "motion" if self.closedness is None else "grip"


class Inbox:
    """Between the thread that hears commands and the one that simulates: the newest of each slot, all accounted for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._lock = ledger, threading.Lock()
        self._orders: dict[str, tuple[Entry | None, Order]] = {}

    def put(self, entry: Entry | None, order: Order) -> None:
        """entry: of the message, None for an order of our own (halt)."""
        with self._lock:
            old = self._orders.pop(order.slot, (None, order))[0]
            self._orders[order.slot] = (entry, order)
        if old is not None:
            self._ledger.settle(old, Fate.SUPERSEDED)

    def take(self) -> list[Order]:
        """What is to be done now, settled as used."""
        with self._lock:
            orders, self._orders = self._orders, {}
        for entry, _ in orders.values():
            if entry is not None:
                self._ledger.settle(entry, Fate.USED)
        return [order for _, order in orders.values()]

    def clear(self, reason: str) -> None:
        """Nothing of it will be done."""
        with self._lock:
            orders, self._orders = self._orders, {}
        self._ledger.settle_pending([entry for entry, _ in orders.values() if entry], Fate.REFUSED, reason)


@dataclass(frozen=True)
class Outcome:
    """How far a task is.

    actions: periods of 0.2 s since the first command. done_after: how many there were when the task was done first.
    error_m: distance from the goal of a reach. time_s: simulated, since the reset.
    """

    kind: str
    seed: int
    epoch: int
    success: bool
    error_m: float | None
    actions: int
    most_actions: int
    done_after: int | None
    time_s: float


class LiveCell:
    """A workcell that follows orders; one thread uses it. timeout_s: how long a velocity lives."""

    def __init__(self, cell: Workcell, timeout_s: float, epoch: int) -> None:
        from ..data.sim.tasks import ACTION_S  # MuJoCo, which a node imports when it is configured

        self.cell, self.epoch, self._timeout_s, self._action_s = cell, epoch, timeout_s, ACTION_S
        self.time = 0.0
        self._closedness = 0.0
        self._velocity = np.zeros(3)
        self._until: float | None = None  # when it ends
        self._path: ToolPath | None = None
        self._path_began = 0.0
        self._began: float | None = None
        self._success, self._judged = False, -1
        self._done_after: int | None = None

    def obey(self, order: Order) -> None:
        """Follow this order from now on."""
        if order.closedness is not None:
            self._closedness = order.closedness
            velocity = self._velocity if self._until is not None else np.zeros(3)
            self.cell.apply(velocity, self._closedness)
        else:
            self._rest()
            if order.velocity is not None:
                self._velocity, self._until = order.velocity, self.time + self._timeout_s
                self.cell.apply(order.velocity, self._closedness)
            self._path, self._path_began = order.path, self.time
        moves = order.path is not None or order.closedness is not None or order.velocity is not None
        if moves and self._began is None:
            self._began = self.time

    def _rest(self) -> None:
        self._velocity, self._until, self._path = np.zeros(3), None, None
        self.cell.apply(self._velocity, self._closedness)

    def advance(self, seconds: float) -> None:
        """Let simulated time pass; a velocity ends when it has lived its time."""
        end = self.time + seconds
        while (left := end - self.time) > 1e-9:
            piece = left
            if self._path is not None:
                piece = min(left, _FOLLOW_S)
                self._follow(self._path, piece)
            elif self._until is not None:
                piece = min(left, max(self._until - self.time, 0.0))
            self.cell.advance(piece)
            self.time += piece
            if self._until is not None and self.time >= self._until - 1e-9:
                self._rest()
        grid = math.floor(self.time / self._action_s + 1e-6)
        if grid > self._judged:  # at the end of an action, as tasks are judged offline
            self._judged = grid
            self._success = self.cell.success()
            if self._success and self._done_after is None:
                self._done_after = self.actions

    def _follow(self, path: ToolPath, seconds: float) -> None:
        """The velocity along the path, and toward it."""
        age = self.time - self._path_began
        here, wanted = self.cell.state()[:3].astype(np.float64), path.at(age)
        gone = age > path.length_s and np.abs(here - wanted).max() < _SETTLE_M
        if gone or age > path.length_s + _SETTLE_S:
            self._rest()
            return
        if (closed := path.closed_at(age)) is not None:
            self._closedness = closed
        ahead = (path.at(age + seconds) - wanted) / seconds
        self.cell.apply(ahead + _FOLLOW_GAIN * (wanted - here), self._closedness)

    @property
    def moving(self) -> bool:
        """A command is being followed."""
        return self._until is not None or self._path is not None

    @property
    def actions(self) -> int:
        return 0 if self._began is None else math.ceil((self.time - self._began) / self._action_s - 1e-6)

    def outcome(self) -> Outcome:
        error, task = self.cell.reached_error(), self.cell.task
        return Outcome(
            kind=task.kind,
            seed=task.seed,
            epoch=self.epoch,
            success=self._success,
            error_m=round(error, 4) if math.isfinite(error) else None,
            actions=self.actions,
            most_actions=task.most_actions,
            done_after=self._done_after,
            time_s=round(self.time, 3),
        )


class Pace:
    """Keeps simulated seconds at `factor` per second, and says how many there really are."""

    def __init__(self, factor: float, sim_s: float = 0.0, clock: Any = time.monotonic) -> None:
        self._factor, self._clock = factor, clock
        self._base_s, self._base_sim_s = clock(), sim_s
        self._past: deque[tuple[float, float]] = deque([(self._base_s, sim_s)])
        self.lost_s = 0.0

    def wait(self, sim_s: float, over: threading.Event) -> float:
        """Sleep until `sim_s` is due, or `over`; returns by how many seconds that is late now."""
        due = self._base_s + (sim_s - self._base_sim_s) / self._factor
        while (left := due - self._clock()) > 0 and not over.wait(left):
            pass
        behind = max(0.0, self._clock() - due)
        if behind > MOST_BEHIND_S:
            self._base_s += behind
            self.lost_s += behind
            behind = 0.0
        now = self._clock()
        self._past.append((now, sim_s))
        while len(self._past) > 2 and self._past[1][0] < now - _RATE_SPAN_S:
            self._past.popleft()
        return behind

    @property
    def achieved(self) -> float:
        """Simulated seconds per second, over the last five; the factor itself before that is known."""
        (began, first), (now, last) = self._past[0], self._past[-1]
        return (last - first) / (now - began) if now - began > 0.5 else self._factor

    @property
    def slow(self) -> bool:
        """This machine does not keep the pace."""
        return self.achieved < _SLOW * self._factor

    @property
    def words(self) -> str:
        words = f"at {self.achieved:.2f} of real time"
        if self.slow:
            words += f" in place of {self._factor:g}: this machine is too slow for it, and everything takes longer"
        return words
