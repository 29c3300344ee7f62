"""What a controller answers."""

from __future__ import annotations

from dataclasses import dataclass

from ..values import Plan


@dataclass(frozen=True)
class Outcome:
    """plan: None where there is none, and `reason` says why. planning_s: what it took. imagined: sequences. parts: of
    the energy, by term.
    """

    plan: Plan | None
    reason: str = ""
    planning_s: float = 0.0
    imagined: int = 0
    parts: dict[str, float] | None = None

    def asks(self, margin: float) -> bool:
        """Whether the thinker should look again: nothing that was imagined beats staying by `margin`."""
        imagined = self.plan is not None and self.plan.source != "policy"
        return imagined and self.plan is not None and not self.plan.gain > margin
