"""How a window of frames becomes latents: each frame alone, all as one clip, or as a causal stream.

A sight keeps of each frame what it needs until a window asks for it. Images are uint8 [S, S, 3] on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .compiled import Prepared, prepare
from .model import ForecastNet
from .step import Look
from .streaming import StreamingEncoder

#: Streams kept: phases of a camera on the time grid, times phases of tubelets on frames.
_CHAINS = 16


class Sight(ABC):
    """See the module."""

    def __init__(self, net: ForecastNet) -> None:
        self.net = net
        self.look = Prepared(Look(net), "eager")

    def prepare(self, device: torch.device, compile: bool) -> None:
        """Make `look` fast, see `compiled.prepare`."""
        size, frames = self.net.config.encoder.image_size, self.net.config.frames if self.net.config.clip else 1
        images = torch.zeros(frames, size, size, 3, dtype=torch.uint8, device=device)
        self.look = prepare(Look(self.net), (images,), compile)

    @abstractmethod
    def take(self, image: Tensor) -> Any:
        """What to keep of a frame until a window needs it."""

    @abstractmethod
    def window(self, stamps_ns: Sequence[int], kept: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Of a window, oldest first: the newest latent [n, D]; all pooled [k, p^2, D]; joints in all [k, J, 3].

        k as in `PredictorConfig.latents`.
        """

    def forget(self) -> None:  # noqa: B027  most keep nothing
        """Drop what was kept besides the frames."""


class _Frame:
    """The image of a frame until it is encoded; its latent [n, D], pooled [p^2, D], and joints [J, 3] afterwards."""

    def __init__(self, image: Tensor) -> None:
        self.image: Tensor | None = image
        self.seen: tuple[Tensor, ...] = ()


class Single(Sight):
    """Each frame alone, as its own tubelet: encoded once, whatever windows it is part of.

    What a window needs and no window before needed is encoded in one go: after a gap that is all of it, which takes
    half of the time of one by one.
    """

    def take(self, image: Tensor) -> _Frame:
        return _Frame(image)

    def window(self, stamps_ns: Sequence[int], kept: Sequence[_Frame]) -> tuple[Tensor, Tensor, Tensor]:
        new = [frame for frame in kept if frame.image is not None]
        size = 1 if self.look.captured else max(1, len(new))
        for first in range(0, len(new), size):
            group = new[first : first + size]
            seen = self.look.call(torch.stack([frame.image for frame in group if frame.image is not None]))
            for frame, *parts in zip(group, *seen, strict=True):
                frame.image, frame.seen = None, tuple(parts)
        _, pooled, joints = zip(*(frame.seen for frame in kept), strict=True)
        return kept[-1].seen[0], torch.stack(pooled), torch.stack(joints)


class Clip(Sight):
    """The window as one clip, encoded anew for every forecast: what makes bidirectional encoders exact."""

    def take(self, image: Tensor) -> Tensor:
        return image

    def window(self, stamps_ns: Sequence[int], kept: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        latents, pooled, joints = self.look.call(torch.stack(list(kept)))
        return latents[-1], pooled, joints


class _Chain:
    """A stream that has seen the tubelets of a window. stamps_ns: the frames of that window."""

    def __init__(self, net: ForecastNet) -> None:
        self.net, self.stream = net, StreamingEncoder(net.encoder)
        self.seen: deque[tuple[Tensor, ...]] = deque(maxlen=net.config.predictor.latents)
        self.stamps_ns: tuple[int, ...] = ()

    def step(self, images: Sequence[Tensor]) -> None:
        latents = self.stream.step(torch.stack(list(images))[None])
        self.seen.append((latents[0], *(part[0] for part in self.net.look(latents))))


class Stream(Sight):
    """A causal encoder with the keys and values of earlier tubelets: a window costs its newest tubelet alone.

    A latent depends on `ModelConfig.reach` tubelets, and a window holds all that its latents depend on: so continuing a
    stream and encoding the window from scratch give the same numbers but for rounding. There is a stream for every
    phase of the camera on the grid (and of tubelets on frames). A window that continues none, as after a gap, begins
    one.
    """

    def __init__(self, net: ForecastNet) -> None:
        super().__init__(net)
        self._chains: list[_Chain] = []

    def prepare(self, device: torch.device, compile: bool) -> None:
        self.look = Prepared(Look(self.net), "as a stream, eager (its memory moves on)")

    def take(self, image: Tensor) -> Tensor:
        return image

    def window(self, stamps_ns: Sequence[int], kept: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        stamps, tubelet = tuple(stamps_ns), self.net.config.frames_per_latent
        chain = self._find(stamps) or self._find(stamps[:-tubelet])
        if chain is None:
            chain = _Chain(self.net)
            for first in range(0, len(kept) - tubelet, tubelet):
                chain.step(kept[first : first + tubelet])
        if chain.stamps_ns != stamps:
            chain.step(kept[-tubelet:])
            chain.stamps_ns = stamps
        self._chains = [*(c for c in self._chains if c is not chain), chain][-_CHAINS:]
        latents, pooled, joints = zip(*chain.seen, strict=True)
        return latents[-1], torch.stack(pooled), torch.stack(joints)

    def _find(self, stamps: tuple[int, ...]) -> _Chain | None:
        """The stream whose newest frames are these."""
        return next((c for c in self._chains if c.stamps_ns[-len(stamps) :] == stamps), None)

    def forget(self) -> None:
        self._chains.clear()


def sight_of(net: ForecastNet) -> Sight:
    """The way to see that the configuration asks for."""
    config = net.config
    return Clip(net) if config.clip else Stream(net) if config.streaming else Single(net)
