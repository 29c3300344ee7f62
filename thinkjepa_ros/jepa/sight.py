"""What is kept of a frame, and how a window of frames becomes latents: alone, as one clip, or as a causal stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compiled import Prepared, prepare
from .model import ForecastNet
from .step import Look


class Context(NamedTuple):
    """now: newest latent [n, D]; pooled [latents, p^2, D]; poses float32 [latents, J, 3], metres, the last is now."""

    now: Tensor
    pooled: Tensor
    poses: Tensor


class Sight(ABC):
    """One of three ways to see. Images are uint8 [S, S, 3] on the device."""

    def __init__(self, net: ForecastNet) -> None:
        self.net = net
        self.look = Prepared(Look(net), "eager")

    def prepare(self, device: torch.device, compile: bool) -> None:
        """Make `look` fast, see `compiled.prepare`."""
        config = self.net.config
        size, frames = config.encoder.image_size, config.frames if config.clip else 1
        images = torch.zeros(frames, size, size, 3, dtype=torch.uint8, device=device)
        self.look = prepare(Look(self.net), (images,), compile)

    @abstractmethod
    def take(self, image: Tensor) -> Any:
        """What to keep of a frame until a window needs it."""

    @abstractmethod
    def context(self, stamps_ns: Sequence[int], kept: Sequence[Any]) -> Context:
        """Latents of a window, oldest first."""

    def forget(self) -> None:  # noqa: B027  most keep nothing
        """Drop what was kept besides the frames."""


class Single(Sight):
    """Each frame alone, as its own tubelet: encoded once, when it comes, whatever windows it will be part of."""

    def take(self, image: Tensor) -> Context:
        return Context(*self.look.call(image[None]))

    def context(self, stamps_ns: Sequence[int], kept: Sequence[Context]) -> Context:
        return Context(
            kept[-1].now, torch.cat([seen.pooled for seen in kept]), torch.cat([seen.poses for seen in kept])
        )


class Clip(Sight):
    """The window as one clip, encoded anew for every forecast: what bidirectional encoders need to be exact."""

    def take(self, image: Tensor) -> Tensor:
        return image

    def context(self, stamps_ns: Sequence[int], kept: Sequence[Tensor]) -> Context:
        return Context(*self.look.call(torch.stack(list(kept))))


def sight_of(net: ForecastNet) -> Sight:
    """The way to see that the configuration asks for."""
    return Clip(net) if net.config.clip else Single(net)
