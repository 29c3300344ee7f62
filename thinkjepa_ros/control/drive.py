"""The thread that commands the robot: the newest plan, through the guard, once per period of a steady clock.

It waits for nothing but its clock: plans and states are handed over by assignment, the watchdog's lock is held for
microseconds only, and what planning, callbacks or the ROS clock do does not matter. When they stop, it brakes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..values import Plan
from .guard import Guard
from .limits import REST, Command, Limits, State, Vector
from .watch import Cause, Verdict, Watch

#: More than braking may take: the thread is woken late on a busy machine.
_CLOSE_S = 1.0


@dataclass(frozen=True)
class Motion:
    """A plan on the steady clock. began_ns: when the image was taken that it rests on."""

    plan: Plan
    began_ns: int

    def at(self, now_ns: int) -> tuple[Vector, float]:
        """Velocity (m/s) and closedness that the plan asks for now. After its end it asks for rest.

        The time that planning took has passed in the plan, too: what it wanted then is over.
        """
        actions = np.asarray(self.plan.actions, np.float64)
        index = math.floor((now_ns - self.began_ns) * 1e-9 / self.plan.step_s)
        if not 0 <= index < len(actions):
            return REST, float(actions[-1 if index > 0 else 0, 3])
        x, y, z = (float(d) / self.plan.step_s for d in actions[index, :3])
        return (x, y, z), float(actions[index, 3])


@dataclass(frozen=True)
class Report:
    """The last cycle. held: why there is no plan to follow, empty if there is one. sent: whether the command left.

    late_s: the longest delay of a cycle so far. trouble: the last error of sending.
    """

    verdict: Verdict
    command: Command
    held: str
    sent: bool
    late_s: float
    trouble: str

    @property
    def speed_mps(self) -> float:
        return math.hypot(*self.command.velocity)

    @property
    def stopped(self) -> str:
        """Why the robot is kept from moving; empty while it may move."""
        return "; ".join(filter(None, (self.verdict.words, self.held)))


class Drive:
    """See the head of this file. send: publishes a command; called in the thread of this drive only.

    While the robot is disabled nothing is sent (others may drive it), once it rested for stop_timeout_s. A latched
    emergency stop is said again and again.
    """

    def __init__(
        self,
        limits: Limits,
        watch: Watch,
        send: Callable[[Command], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.limits, self._watch, self._send, self._now_ns = limits, watch, send, now_ns
        self._guard = Guard(limits)
        self.state: State | None = None  #: the newest measured one; assign to tell it
        self._motion: Motion | None = None
        self._held = ""
        self._quiet = True
        self._rested_ns: int | None = None  # since when rest is commanded
        self._late_s, self._trouble = 0.0, ""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.report: Report | None = None  #: of the last cycle

    # ------------------------------------------------------------------ any thread

    def follow(self, plan: Plan, age_s: float) -> None:
        """Follow this plan, whose image is `age_s` old, instead of the one before."""
        self._motion = Motion(plan, self._now_ns() - round(max(age_s, 0.0) * 1e9))

    def hold(self, reason: str) -> None:
        """There is no plan to follow: brake, and stay. reason: in words."""
        self._held, self._motion = reason, None

    @property
    def closedness(self) -> float | None:
        """What the gripper was told last; None while it is others' business."""
        report = self.report
        return report.command.closedness if report is not None and report.sent else None

    def start(self, crashed: Callable[[BaseException], None]) -> None:
        """Begin. crashed: told of an exception that ended the thread; the commands that left end at rest by themselves.
        Raises RuntimeError if it was started before.
        """
        if self._thread is not None:
            raise RuntimeError("a drive is started once; make a new one")

        def run() -> None:
            try:
                self._run()
            except BaseException as error:
                crashed(error)

        self._thread = threading.Thread(target=run, name="drive", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Brake to rest, send that, and end. False if the thread did not end in time."""
        self._watch.disable()
        self._closing.set()
        if self._thread is None:
            return True
        self._thread.join(self.limits.stop_timeout_s + _CLOSE_S)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        due = self._now_ns()
        while True:
            self._late_s = max(self._late_s, (self._now_ns() - due) * 1e-9)
            command = self.cycle()
            if self._closing.is_set() and command.velocity == REST:
                return
            due = max(due + round(self.limits.period_s * 1e9), self._now_ns())  # what was missed is not made up for
            left = (due - self._now_ns()) * 1e-9
            if self._closing.is_set():
                time.sleep(max(0.0, left))
            else:
                self._closing.wait(left)

    def cycle(self) -> Command:
        """One command, sent unless it is nobody's business."""
        verdict, motion, state = self._watch.verdict(), self._motion, self.state
        now = self._now_ns()
        wanted, closedness = motion.at(now) if motion is not None else (REST, 0.0)
        stop = motion is None or not verdict.may_move or self._closing.is_set()
        causes = {halt.cause for halt in verdict.halts}
        idle = Cause.DISABLED in causes and Cause.EMERGENCY_STOP not in causes
        if self._quiet and not idle:
            self._guard.release()  # meanwhile others may have moved the gripper
        command = self._guard.command(wanted, closedness, state, now, stop=stop)
        if command.velocity != REST:
            self._rested_ns = None
        elif self._rested_ns is None:
            self._rested_ns = now
        rested = self._rested_ns is not None and now - self._rested_ns > self.limits.stop_timeout_s * 1e9
        self._quiet = idle and (self._quiet or rested)
        if not self._quiet:
            try:
                self._send(command)
            except Exception as error:  # the next may leave; if none does, the robot comes to rest by itself
                self._trouble = f"a command could not be sent: {type(error).__name__}: {error}"
        held = self._held if motion is None else ""
        self.report = Report(verdict, command, held, not self._quiet, self._late_s, self._trouble)
        return command
