"""What a search goes for, as terms of its energy: a goal image, the thinker's sub-goal, or what the words ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..values import Camera, Subgoal
from . import energy as terms
from .ahead import Ahead
from .energy import Term
from .imagination import Imagination
from .options import Aim
from .policy import named
from .score import LanguageScore
from .sight import Sight

_NOTHING: dict[Aim, str] = {
    "auto": "there is nothing to plan for: no goal image, no sub-goal, no words that a score knows",
    "image": "there is no goal image to plan for",
    "subgoal": "there is no sub-goal to plan for: none of the thinker, or no words that one can be made of",
    "words": "the words name no cube or no tray to plan for",
}


def check_made_for(stage: str, wanted: str, imagination: str) -> None:
    """Raises ValueError where a part of stage `stage` was trained with the latents of another imagination than this."""
    if wanted not in ("", imagination):
        raise ValueError(
            f"--{stage}: it was trained with the latents of {wanted}, the imagination is {imagination}; train one for "
            f"it (thinkjepa train {stage})"
        )


class Target(NamedTuple):
    """key: tells one target from another, see `same`. term: None where there is nothing to go for: see `reason`."""

    key: object
    term: Term | None
    reason: str = ""

    def same(self, key: object) -> bool:
        """Whether this is what was gone for with `key`: the same image, the same sub-goal, or equal words."""
        return self.key is key or (isinstance(self.key, tuple) and self.key == key)


@dataclass(frozen=True, eq=False)
class _Goal:
    rgb: np.ndarray
    camera: Camera | None


@dataclass(frozen=True)
class Distance:
    """The same function for all plans, so that what was captured for one holds for the next."""

    net: Imagination
    kind: str

    def __call__(self, latents: Tensor, goal: Tensor) -> Tensor:
        return self.net.energy(latents, goal, self.kind)


class Aims:
    """score: None where words cannot be planned for. space: model id of the imagination, that sub-goals must name."""

    def __init__(
        self,
        net: Imagination,
        sight: Sight,
        score: LanguageScore | None,
        ahead: Ahead | None,
        space: str,
        device: torch.device,
    ) -> None:
        self._net, self._sight, self._score, self._space, self._device = net, sight, score, space, device
        self._ahead = ahead
        self.goal: _Goal | None = None  #: the image that is shown, to be told from another
        self._encoded: tuple[_Goal, Tensor] | None = None
        w = net.config.world
        for name, config in (("score", score and score.config), ("sub-goal model", ahead and ahead.config)):
            if config is not None and (config.tokens, config.latent_width) != (w.tokens, w.latent_width):
                raise ValueError(
                    f"the {name} takes latents {[config.tokens, config.latent_width]}, the imagination's are "
                    f"{[w.tokens, w.latent_width]}; use the {name} that was trained with it"
                )

    def show(self, rgb: np.ndarray | None, camera: Camera | None) -> None:
        """A goal image, uint8 [H, W, 3]; None takes it back. Any thread."""
        self.goal = None if rgb is None else _Goal(rgb, camera)

    def target(
        self, aim: Aim, distance: Distance, subgoal: Subgoal | None, words: tuple[int, int],
        now: Callable[[], tuple[Tensor, Tensor]],
    ) -> Target:  # fmt: skip
        """What to go for now. now: gives latent and state, see `ahead.Ahead`. Raises ValueError for an image that fits
        no camera or a sub-goal of another space.
        """
        goal = self.goal
        if goal is not None and aim in ("auto", "image"):
            if self._encoded is None or self._encoded[0] is not goal:
                self._encoded = (goal, self._net.pool(self._sight.see(goal.rgb, goal.camera))[0])
            return Target(goal, terms.toward(self._encoded[1], distance=distance))
        if subgoal is not None and aim in ("auto", "subgoal"):
            return Target(subgoal, terms.toward(self._latent(subgoal), distance=distance))
        told = named(words)
        if self._ahead is not None and told and aim in ("auto", "subgoal"):
            latent = self._ahead(*now(), torch.tensor([words], device=self._device))[0]
            return Target(("ahead", *words), terms.toward(latent, distance=distance))
        if self._score is not None and told and aim in ("auto", "words"):
            return Target(words, self._score.term(words))
        return Target(None, None, _NOTHING[aim])

    def _latent(self, wanted: Subgoal) -> Tensor:
        """[M, Z] of a sub-goal that was made for this imagination."""
        w = self._net.config.world
        latent = torch.as_tensor(np.asarray(wanted.latent, np.float32), device=self._device)
        if latent.shape == (w.grid**2, w.latent_width):
            latent = self._net.pool(latent)
        if latent.shape != (w.tokens, w.latent_width) or not wanted.trained or wanted.space != self._space:
            raise ValueError(
                f"the sub-goal is {list(wanted.latent.shape)} in the space of {wanted.space or 'nobody'}"
                f"{'' if wanted.trained else ' (untrained)'}, {self._space} takes {[w.tokens, w.latent_width]} of "
                "its own; run the thinker whose sub-goals were trained with it"
            )
        return latent
