"""May the robot move now? A watchdog that answers at any time, with every reason why not.

It knows times and words only. Its clock is steady (it neither jumps nor stops with the ROS clock), and it is asked from
a thread of its own, so that it answers while a model is stuck. What then happens is the guard's: `Guard.command(...,
stop=True)` brakes to rest within stop_timeout_s.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum

_NS = 1_000_000_000


class Input(str, Enum):
    """What must be fresh; the value is the word for it."""

    IMAGE = "image"
    STATE = "state"
    GUIDANCE = "guidance"
    PLAN = "plan"


class Cause(str, Enum):
    """Why the robot must not move; the value is the word for status messages."""

    EMERGENCY_STOP = "emergency stop"
    DISABLED = "disabled"
    CLOCK = "clock went back"
    NEVER = "never received"
    STALE = "stale"
    FUTURE = "from the future"
    NOT_FINITE = "energy not finite"
    HOLD_IS_BETTER = "hold is better"


@dataclass(frozen=True)
class Halt:
    """One reason to stop: its kind, the input it is about (None for the others), and a sentence with the figures."""

    cause: Cause
    input: Input | None
    words: str


@dataclass(frozen=True)
class Verdict:
    """The answer: the robot may move exactly if there is no reason against it.

    ages_s: of the newest of each input, seconds; NaN where there is none.
    """

    halts: tuple[Halt, ...]
    ages_s: dict[Input, float]

    @property
    def may_move(self) -> bool:
        return not self.halts

    @property
    def ask_thinker(self) -> bool:
        """Whether the planner sees no way that beats staying where it is, so that the thinker should look again."""
        return any(halt.cause in (Cause.NOT_FINITE, Cause.HOLD_IS_BETTER) for halt in self.halts)

    @property
    def words(self) -> str:
        """All reasons in one line; empty if the robot may move."""
        return "; ".join(halt.words for halt in self.halts)


@dataclass(frozen=True)
class Timeouts:
    """Up to which age (s) each input is good enough to move on. Raises ValueError with the remedy.

    guidance_s: None where the controller runs without a thinker. future_s: how far a stamp may lie ahead of the clock,
    for clocks of two machines that differ a little. margin: by how much the energy of a plan must be below that of
    holding still, in units of the energy; None does not ask (a policy without a planner knows no energy).
    """

    image_s: float = 0.5
    state_s: float = 0.2
    guidance_s: float | None = 10.0
    plan_s: float = 0.6
    future_s: float = 0.05
    margin: float | None = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in ("guidance_s", "margin"):
                continue
            zero = field.name in ("future_s", "margin")
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero):
                kind = "a finite number, at least 0" if zero else "a finite number of seconds above 0"
                raise ValueError(f"{field.name} must be {kind}, not {value!r}")

    def of(self, what: Input) -> float | None:
        """Seconds for this input; None if it is not needed."""
        value: float | None = getattr(self, f"{what.value}_s")
        return value


class Watch:
    """Keeps what arrived when, whether the robot is enabled, and the emergency stop. All methods are thread-safe.

    It begins disabled, with nothing received. now_ns: the steady clock.

    The emergency stop latches: it holds until reset() after the button was released, and it disables, so that a reset
    alone never sets the robot in motion.
    """

    def __init__(self, timeouts: Timeouts, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.timeouts, self._now_ns = timeouts, now_ns
        self._lock = threading.Lock()
        self._latest_ns = now_ns()
        self._born_ns: dict[Input, int] = {}  # on the steady clock: when the newest of each input was measured
        self._ahead_s: dict[Input, float] = {}  # the last stamp of this input was from the future by so much
        self._energies: tuple[float, float] | None = None
        self._back_s = 0.0  # by how much the clock went back, when all was forgotten for that
        self._enabled = self._latched = self._pressed = False

    # ------------------------------------------------------------------ what arrives

    def saw(self, what: Input, age_s: float = 0.0) -> None:
        """An input arrived that was `age_s` old by its stamp (time of the ROS clock - stamp; below 0: the future).

        An older one that comes late does not make the newest one older. What has no finite age or comes from the
        future does not count, and stops the robot until a good one comes.
        """
        with self._lock:
            self._saw(what, age_s)

    def planned(self, energy: float, hold_energy: float, age_s: float = 0.0) -> None:
        """The planner has a plan, `age_s` old: its energy and that of holding still, imagined in the same pass."""
        with self._lock:
            if self._saw(Input.PLAN, age_s):
                self._energies = (float(energy), float(hold_energy))

    def forget(self) -> None:
        """Nothing was ever received: after a jump of the ROS clock, or when the controller is activated."""
        with self._lock:
            self._forget()

    # ------------------------------------------------------------------ what people say

    def enable(self) -> str:
        """Allow motion. Returns why that is refused, or nothing."""
        with self._lock:
            if self._latched:
                return "the emergency stop is latched; release it and call reset first"
            self._enabled = True
            return ""

    def disable(self) -> None:
        with self._lock:
            self._enabled = False

    def emergency_stop(self, pressed: bool = True) -> None:
        """The button is pressed (latches) or was released (the latch stays)."""
        with self._lock:
            self._pressed = bool(pressed)
            if self._pressed:
                self._latched, self._enabled = True, False

    def reset(self) -> str:
        """Take back the emergency stop; the robot stays disabled. Returns why that is refused, or nothing."""
        with self._lock:
            if self._pressed:
                return "the emergency stop is still pressed; release it first"
            self._latched = False
            return ""

    # ------------------------------------------------------------------ the answer

    def verdict(self) -> Verdict:
        """Whether the robot may move at this moment, and all reasons why not."""
        with self._lock:
            now = self._time()
            halts: list[Halt] = []
            if self._latched:
                state = "pressed" if self._pressed else "latched; call reset"
                halts.append(Halt(Cause.EMERGENCY_STOP, None, f"the emergency stop is {state}"))
            if not self._enabled:
                halts.append(Halt(Cause.DISABLED, None, "the controller is disabled"))
            needed = [what for what in Input if self.timeouts.of(what) is not None]
            if self._back_s and not all(what in self._born_ns for what in needed):
                words = f"the steady clock went back by {self._back_s:.3f} s; waiting for new inputs"
                halts.append(Halt(Cause.CLOCK, None, words))
            for what in needed:
                halts += self._input(what, now)
            halts += self._judged()
            ages = {what: (now - self._born_ns[what]) / _NS if what in self._born_ns else math.nan for what in Input}
            return Verdict(tuple(halts), ages)

    def _input(self, what: Input, now: int) -> list[Halt]:
        out, most = [], self.timeouts.of(what)
        if what in self._ahead_s:
            ahead = self._ahead_s[what]
            by = f"{ahead:.3f} s in the future" if math.isfinite(ahead) else "no time"
            out.append(Halt(Cause.FUTURE, what, f"the stamp of the {what.value} is {by}; set the clocks right"))
        if what not in self._born_ns:
            out.append(Halt(Cause.NEVER, what, f"no {what.value} has come yet"))
        elif most is not None and (age := (now - self._born_ns[what]) / _NS) > most:
            out.append(Halt(Cause.STALE, what, f"the {what.value} is {age:.2f} s old, more than {most:.2f} s"))
        return out

    def _judged(self) -> list[Halt]:
        if self._energies is None or self.timeouts.margin is None:
            return []
        energy, hold = self._energies
        if not (math.isfinite(energy) and math.isfinite(hold)):
            return [Halt(Cause.NOT_FINITE, None, f"the energy of the plan is {energy:g}, of holding still {hold:g}")]
        if not hold - energy > self.timeouts.margin:
            words = f"the plan's energy {energy:.4g} does not beat holding still ({hold:.4g})"
            return [Halt(Cause.HOLD_IS_BETTER, None, f"{words} by more than {self.timeouts.margin:g}")]
        return []

    def _saw(self, what: Input, age_s: float) -> bool:
        """Note an input; True if it is now the newest of its kind."""
        now = self._time()
        if not math.isfinite(age_s) or age_s < -self.timeouts.future_s:
            self._ahead_s[what] = -age_s
            return False
        self._ahead_s.pop(what, None)
        born = now - int(min(max(age_s, 0.0), 1e9) * _NS)
        if born < self._born_ns.get(what, born):
            return False
        self._born_ns[what] = born
        return True

    def _time(self) -> int:
        """Now. If the clock went back, no age is known any more."""
        now = self._now_ns()
        if now < self._latest_ns:
            self._forget()
            self._back_s = (self._latest_ns - now) / _NS
        self._latest_ns = now
        return now

    def _forget(self) -> None:
        self._born_ns, self._ahead_s, self._energies, self._back_s = {}, {}, None, 0.0
