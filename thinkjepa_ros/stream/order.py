"""Judges the stamps of arriving frames: in order, repeated, late, impossible, or the sign of a clock that jumped.

A bag that loops and a simulator that restarts throw time back; a network that reorders packets looks the same for one
frame. So a frame far behind is only a suspect, and the next one decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NS = 1_000_000_000


class Verdict(Enum):
    """What a stamp turned out to be; the value is the reason word used in counters."""

    OK = "ok"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out_of_order"
    ZERO = "zero_stamp"
    FUTURE = "future_stamp"
    JUMP = "jump"
    SUSPECT = "suspect"


@dataclass(frozen=True)
class Ruling:
    """The judgement on one frame.

    verdict: OK and JUMP frames are good (JUMP: first clear your history, a new epoch begins); SUSPECT frames are to be
    held until a later ruling decides on them; all others are refused.
    suspect: what became of the frame held as SUSPECT: OK (it is the first frame of the new epoch and comes before this
    one), OUT_OF_ORDER (refuse it), or None (nothing was held, or it is still held).
    """

    verdict: Verdict
    suspect: Verdict | None = None


class StampGate:
    """Sorts frames by their stamps. Not thread-safe: it belongs to the subscription callback.

    - not above zero -> ZERO; more than `future_tolerance_s` ahead of now -> FUTURE (neither touches the time line)
    - equal to the newest -> DUPLICATE; behind it by at most `jump_s` -> OUT_OF_ORDER
    - behind it by more -> SUSPECT. If the next frame comes after the suspect within `follow_s` (or two camera periods,
      for a slow camera), the clock jumped back: JUMP, and both frames belong to the new epoch. Otherwise the suspect
      was OUT_OF_ORDER.
    - ahead of it by more than `forward_jump_s` -> JUMP at once: the history is useless either way
    """

    def __init__(
        self, future_tolerance_s: float = 1.0, jump_s: float = 1.0, forward_jump_s: float = 5.0, follow_s: float = 1.0
    ) -> None:
        """Seconds, all above zero (future_tolerance_s may be zero), else ValueError."""
        if not (future_tolerance_s >= 0 and jump_s > 0 and forward_jump_s > 0 and follow_s > 0):
            raise ValueError(
                "a stamp gate needs future_tolerance_s >= 0 and jump_s, forward_jump_s, follow_s > 0, not "
                f"{future_tolerance_s} and {jump_s}, {forward_jump_s}, {follow_s}"
            )
        self._future_ns = round(future_tolerance_s * NS)
        self._jump_ns = round(jump_s * NS)
        self._forward_ns = round(forward_jump_s * NS)
        self._follow_ns = round(follow_s * NS)
        self.reset()

    def reset(self) -> None:
        """Forget the time line and any suspect (reactivation, a known clock jump): the next good stamp is OK."""
        self._newest: int | None = None
        self._suspect: int | None = None
        self._period = 0

    @property
    def newest_ns(self) -> int | None:
        """Newest accepted stamp."""
        return self._newest

    @property
    def suspect_ns(self) -> int | None:
        """Stamp of the frame that is held as a suspect, None when there is none."""
        return self._suspect

    def classify(self, stamp_ns: int, now_ns: int | None) -> Ruling:
        """Judge a frame stamped `stamp_ns` that arrives when the ROS clock shows `now_ns`.

        now_ns None: the clock is not known yet (simulated time before the first /clock), FUTURE is not tested.
        """
        if stamp_ns <= 0:
            return Ruling(Verdict.ZERO)
        if now_ns is not None and stamp_ns > now_ns + self._future_ns:
            return Ruling(Verdict.FUTURE)
        if self._suspect is None:
            return Ruling(self._place(stamp_ns))
        ahead = stamp_ns - self._suspect
        if ahead == 0:
            return Ruling(Verdict.DUPLICATE)
        behind = self._newest is not None and stamp_ns < self._newest
        if behind and 0 < ahead <= max(self._follow_ns, 2 * self._period):
            self._newest, self._suspect, self._period = stamp_ns, None, ahead
            return Ruling(Verdict.JUMP, suspect=Verdict.OK)
        self._suspect = None
        return Ruling(self._place(stamp_ns), suspect=Verdict.OUT_OF_ORDER)

    def _place(self, stamp_ns: int) -> Verdict:
        """Verdict against the accepted time line alone; moves the line for OK and JUMP, remembers a SUSPECT."""
        if self._newest is None:
            self._newest = stamp_ns
            return Verdict.OK
        step = stamp_ns - self._newest
        if step == 0:
            return Verdict.DUPLICATE
        if step < 0:
            if -step <= self._jump_ns:
                return Verdict.OUT_OF_ORDER
            self._suspect = stamp_ns
            return Verdict.SUSPECT
        self._newest = stamp_ns
        if step > self._forward_ns:
            self._period = 0
            return Verdict.JUMP
        self._period = step
        return Verdict.OK
