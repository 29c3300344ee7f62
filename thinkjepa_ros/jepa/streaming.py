"""Causal encoders one tubelet at a time, with the keys and values of earlier tubelets kept.

A step computes what the full pass over the whole past would give for its newest tubelet, at the cost of that tubelet
alone: block-causal attention never changes what was computed before. It goes on without end: memory is bounded by the
window, and since interleaved rotary positions are relative, the count of tubelets may grow as it likes.
"""

from __future__ import annotations

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
