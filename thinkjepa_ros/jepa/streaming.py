"""Causal encoders one tubelet at a time, with the keys and values of earlier tubelets kept.

A step computes what the full pass over the whole past would give for its newest tubelet, at the cost of that tubelet
alone: block-causal attention never changes what was computed before. It goes on without end: memory is bounded by the
window, and since interleaved rotary positions are relative, the count of tubelets may grow as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import rope
from .encoder import Encoder

#: Rotary tables of so many tubelets are made at once.
_AHEAD = 256


class StreamingEncoder:
    """The state of one stream through a causal encoder. Raises ValueError for an encoder that cannot be streamed."""

    def __init__(self, encoder: Encoder):
        config = encoder.config
        if config.attention != "causal":
            raise ValueError(
                f"an encoder with {config.attention!r} attention cannot be streamed: only causal attention leaves "
                "earlier tubelets as they are. Use encoder(video) on the window, or encoder.frames on each frame."
            )
        if config.rope != "interleaved":
            raise ValueError(
                f"{config.rope!r} rotary positions cannot be streamed: they are not relative, so that kept keys would "
                "be wrong for later positions and positions would leave the range of training. Use encoder(video)."
            )
        if not config.window:
            raise ValueError("a causal encoder without a window cannot be streamed: its memory would grow without end")
        self.encoder = encoder
        self._kept: list[
            tuple[Tensor, Tensor]
        ] = []  # per block: keys and values [B, heads, (window - 1) * n, head_dim]
        self._ahead: rope.Rope | None = None
        self._steps = 0

    @property
    def steps(self) -> int:
        """Tubelets seen since the last reset."""
        return self._steps

    def reset(self) -> None:
        """Forget everything, as after a jump in time. Frames of another size may follow."""
        self._kept, self._ahead, self._steps = [], None, 0

    @torch.inference_mode()
    def step(self, images: Tensor) -> Tensor:
        """The next tubelet, [B, tubelet, H, W, 3] -> its latents [B, n, width]. A single frame fills its tubelet.

        Raises ValueError where the images are no tubelet, or changed in number or size since the first step.
        """
        encoder = self.encoder
        x, times, rows, columns = encoder.embed(images)
        if times != 1:
            raise ValueError(f"{images.shape[1]} frames are {times} tubelets; a step takes one")
        batch, n, width = x.shape
        heads, past = encoder.config.heads, encoder.config.window - 1
        shape = (batch, heads, past * n, width // heads)
        if not self._kept:
            self._kept = [(x.new_empty(shape), x.new_empty(shape)) for _ in encoder.blocks]
        elif self._kept[0][0].shape != shape:
            raise ValueError(f"the images changed to {list(images.shape)} within a stream; reset it first")
        table = self._table(encoder.table(1, rows, columns, x))
        filled = min(self._steps, past) * n
        slot = slice(self._steps % past * n, self._steps % past * n + n) if past else slice(0)
        for block, (keys, values) in zip(encoder.blocks, self._kept, strict=True):
            # attention does not ask for the order of keys, so the oldest tubelet's place is given to the newest
            x, (k, v) = block(x, table, memory=(keys[:, :, :filled], values[:, :, :filled]))
            if past:
                keys[:, :, slot], values[:, :, slot] = k, v
        self._steps += 1
        return encoder.norm(x)

    def _table(self, space: rope.Rope) -> rope.Rope:
        """The table of the grid `space` at time 0, moved to the time of this step. Angles of float64 (see `rope`)."""
        at = self._steps % _AHEAD
        if self._ahead is None or at == 0:
            times = torch.arange(self._steps - at, self._steps - at + _AHEAD)
            config = self.encoder.config
            cos, sin = rope.table(rope.grid(times, 1, 1), config.width // config.heads)
            self._ahead = cos.to(space[0]), sin.to(space[1])
        # every dimension turns by time or by space and has angle 0 in the other: cos 1 and sin 0, exactly
        return space[0] * self._ahead[0][at], space[1] + self._ahead[1][at]


@dataclass(eq=False)
class _Chain:
    stream: StreamingEncoder
    stamp_ns: int
    latents: Tensor


class PhaseStreams:
    """A camera faster than the model's time grid: one stream per phase, each a chain of tubelets one grid step apart.

    A 30 Hz camera on a grid of 0.1 s has three phases. A tubelet joins the chain whose newest one lies a step earlier;
    otherwise it opens a chain. A chain that a frame was missed of is dropped, and when time runs backwards, all are.
    """

    def __init__(self, encoder: Encoder, step_ns: int, tolerance_ns: int | None = None, chains: int = 8):
        """step_ns: time from tubelet to tubelet. tolerance_ns: how far a stamp may be off it, by default an eighth.
        chains: at most so many; frames of further phases are left out.
        """
        self._tolerance_ns = step_ns // 8 if tolerance_ns is None else tolerance_ns
        if step_ns <= 0 or not 0 <= self._tolerance_ns < step_ns or chains < 1:
            raise ValueError(
                f"step {step_ns} ns, tolerance {self._tolerance_ns} ns and {chains} chains make no sense; the step "
                "must be positive, the tolerance smaller than it, and there must be a chain"
            )
        self._encoder, self._step_ns, self._limit = encoder, step_ns, chains
        self._chains: list[_Chain] = []
        StreamingEncoder(encoder)  # raises here if the encoder cannot be streamed
        self._newest_ns: int | None = None

    def __len__(self) -> int:
        """Chains that can be continued."""
        return len(self._chains)

    def reset(self) -> None:
        """Drop every chain."""
        self._chains, self._newest_ns = [], None

    def step(self, stamp_ns: int, images: Tensor) -> Tensor | None:
        """Latents [B, n, width] of the tubelet whose newest frame has this stamp; None if no chain is free for it.

        The same stamp again gives the same latents. Raises ValueError as `StreamingEncoder.step`.
        """
        if self._newest_ns is not None and stamp_ns < self._newest_ns:
            self.reset()
        self._newest_ns = stamp_ns
        for chain in self._chains:
            if chain.stamp_ns == stamp_ns:
                return chain.latents
        due = lambda chain: stamp_ns - chain.stamp_ns - self._step_ns  # noqa: E731  positive: late
        self._chains = [chain for chain in self._chains if due(chain) <= self._tolerance_ns]
        ready = [chain for chain in self._chains if due(chain) >= -self._tolerance_ns]
        if ready:
            chain = min(ready, key=lambda chain: abs(due(chain)))
            chain.latents = chain.stream.step(images)
            chain.stamp_ns = stamp_ns
            return chain.latents
        if len(self._chains) >= self._limit:
            return None
        stream = StreamingEncoder(self._encoder)
        latents = stream.step(images)
        self._chains.append(_Chain(stream, stamp_ns, latents))
        return latents
