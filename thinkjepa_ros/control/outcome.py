"""What a controller starts from, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..values import Plan
from . import space

#: Why a policy alone does nothing.
UNASKED = "nothing is asked for: no instruction and no thought names a cube or a tray (act_untold: act all the same)"


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


class Scene(NamedTuple):
    """A moment, on the device: state [1, 4], base from camera [4, 4], and closedness [1] that is commanded."""

    stamps: list[int]
    state: Tensor
    pose: Tensor
    closedness: Tensor
    weight: float  # of the guidance


def missing(there: int, window: int, state: np.ndarray | None, pose: np.ndarray | None) -> str:
    """What a plan needs and is not there, in words. there: how many of the `window` frames are."""
    if there != window:
        return f"{there} of the {window} frames that a plan needs are there"
    for name, value, shape in (("state", state, (space.DIM,)), ("camera pose", pose, (4, 4))):
        if value is None:
            return f"no {name} is known"
        if np.shape(value) != shape or not np.isfinite(np.asarray(value, np.float64)).all():
            return f"the {name} is not {' x '.join(map(str, shape))} finite numbers"
    return ""
