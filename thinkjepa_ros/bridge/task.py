"""What the thinker is asked, and which thought under way a new question ends. ROS-free; any thread may call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

#: After so many thoughts in a row that a new question cut short, the next is thought to its end whatever is asked
#: meanwhile. Without this a flood of questions would keep guidance away for as long as it lasts.
PATIENCE = 3


@dataclass(eq=False)
class Turn:
    """One thought: the question that it begins with.

    requested: it was asked for, not only due. unbroken: a new question does not end it. cancel: set when it is not
    worth finishing. displaced: by a new question.
    """

    instruction: str
    template: str
    requested: bool
    unbroken: bool
    cancel: threading.Event = field(default_factory=threading.Event)
    displaced: bool = False


class Task:
    """The newest instruction and template (older ones leave nothing behind), and the turn that is under way."""

    def __init__(self, instruction: str, template: str) -> None:
        self._lock = threading.Lock()
        self._instruction, self._template = instruction, template
        self._turn: Turn | None = None
        self._requested = False
        self._displaced = 0  # turns in a row

    @property
    def instruction(self) -> str:
        return self._instruction

    @property
    def template(self) -> str:
        return self._template

    @property
    def requested(self) -> bool:
        """A thought was asked for that has not begun."""
        return self._requested

    def change(self, instruction: str | None = None, template: str | None = None) -> bool:
        """Ask this from now on. False if it is what was asked before; else a turn about it has to follow."""
        with self._lock:
            before = (self._instruction, self._template)
            self._instruction = before[0] if instruction is None else instruction
            self._template = before[1] if template is None else template
            if before == (self._instruction, self._template):
                return False
            if self._turn is not None and not self._turn.unbroken:
                self._turn.displaced = True
                self._turn.cancel.set()
            return True

    def request(self) -> bool:
        """Ask for one thought, which begins after the one under way. False if a thought is under way."""
        with self._lock:
            self._requested = True
            return self._turn is None

    def cancel(self) -> None:
        """End the turn under way, whatever it is about."""
        with self._lock:
            if self._turn is not None:
                self._turn.cancel.set()

    def begin(self) -> Turn:
        """The turn that begins now."""
        with self._lock:
            self._turn = Turn(self._instruction, self._template, self._requested, unbroken=self._displaced >= PATIENCE)
            self._requested = False
            return self._turn

    def end(self, turn: Turn, over: bool) -> None:
        """over: nothing is left to do about it. Otherwise (cancelled, nothing to see yet) a request stays open."""
        with self._lock:
            self._turn = None
            if turn.displaced:
                self._displaced += 1
            elif over and (turn.instruction, turn.template) == (self._instruction, self._template):
                self._displaced = 0
            self._requested |= turn.requested and not over
