"""Guidance: what the thinker said changes the predictor's stream before each of its blocks (ThinkJEPA, arXiv
2603.22281).

Three ways, with scale, shift and gate g from what the thinker said (weight w, 0 … 1):

- "film":  x (1 + scale) + shift
- "adaln": x + LN(x) scale + shift. Like FiLM, but the size of the change does not grow with the stream, and the stream
  itself is never normalised: a closed gate leaves it as it is. The published form, LN(x) (1 + scale) + shift, replaces
  the stream by its normalised self even at a closed gate; it is here for imported weights (`PublishedFilm`).
- "cross": x + w tanh(g) attention(LN(x), tokens of both streams)

where scale, shift = w tanh(g) MLP(summary), one summary per block. FiLM and AdaLN use the mean state of each stream,
so they take pooled pyramids as well as tokens; a pooled pyramid is tokens with S = 1.

Everything is per sample: the guidance of one row never touches another. Rows of weight zero, rows of which nothing is
valid, a payload that is missing and closed gates leave the stream bit-identical. What a mask leaves out may hold
anything, NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..values import GENERATED

Mode = Literal["film", "adaln", "cross"]
#: Which decoder layer guides a block: "spread" first to first, last to last, evenly between; "index" block i has layer
#: i, and blocks beyond the last layer have none (ThinkJEPA v1); "last" all have the last; or one layer per block.
LayerMap = Literal["spread", "index", "last"] | Sequence[int]


class Payload(NamedTuple):
    """What the thinker said, per row: hidden states of its prompt tokens and of the tokens it generated.

    prompt [B, L, S, D], generated [B, L, S', D]: after each of L decoder layers; None where there are none.
    prompt_mask, generated_mask: bool [B, L, S] and [B, L, S'], True where a token counts; None if all do.
    weight [B]: 0 … 1, how much the guidance of a row counts; None for 1. A row of weight 0 is unguided.
    """

    prompt: Tensor | None
    generated: Tensor | None
    prompt_mask: Tensor | None = None
    generated_mask: Tensor | None = None
    weight: Tensor | None = None

    @staticmethod
    def pooled(pyramid: Tensor, present: Tensor, weight: Tensor) -> Payload:
        """From the mean states [B, L, 2, D] of both streams, which are there (bool [B, 2]), and the weight [B]."""
        there = present[:, :, None, None].expand(-1, -1, pyramid.shape[1], 1)
        return Payload(pyramid[:, :, :1], pyramid[:, :, 1:], there[:, 0], there[:, 1], weight)

    @staticmethod
    def of_tokens(states: np.ndarray, streams: np.ndarray, sizes: tuple[int, int]) -> Payload:
        """From the states float32 [L, S, D] of tokens and their kinds uint8 [S] (`values.Guidance`), in one row.

        The prompt's tokens become exactly sizes[0] and the generated ones sizes[1], so that shapes are the same for
        every thought: of more the last are kept, which are the newest frames and the instruction; fewer are padded.
        """
        parts = []
        for size, chosen in zip(sizes, (streams != GENERATED, streams == GENERATED), strict=True):
            picked = states[:, np.flatnonzero(chosen)[-size:]]
            count = picked.shape[1]
            padded = np.zeros((len(states), size, states.shape[2]), np.float32)
            padded[:, :count] = picked
            mask = torch.arange(size) < count
            parts.append((torch.from_numpy(padded)[None], mask.expand(1, len(states), size)))
        (prompt, prompt_mask), (generated, generated_mask) = parts
        return Payload(prompt, generated, prompt_mask, generated_mask)

    def to(self, device: torch.device, dtype: torch.dtype) -> Payload:
        """On this device, its numbers in this type."""
        return Payload(*(x if x is None else x.to(device, dtype if x.is_floating_point() else x.dtype) for x in self))

    @property
    def empty(self) -> bool:
        return self.prompt is None and self.generated is None


class Ready(NamedTuple):
    """A payload that the predictor's guide has prepared: the same for every forecast while the guidance is.

    amount [B]: how much the guidance of a row counts, 0 … 1; 0 for rows that say nothing.
    """

    signals: list[Any]
    amount: Tensor


def spread(block: int, blocks: int, layers: int) -> int:
    """Which of `layers` exported decoder layers guides `block`: first to first, last to last, evenly between."""
    return round(block * (layers - 1) / (blocks - 1)) if blocks > 1 else layers - 1


def layer_of_each_block(which: LayerMap, blocks: int, layers: int) -> list[int]:
    """One layer number per block; `layers` itself means none. Raises ValueError for a list that does not fit."""
    if which == "spread":
        return [spread(i, blocks, layers) for i in range(blocks)]
    if which == "index":
        return [min(i, layers) for i in range(blocks)]
    if which == "last":
        return [layers - 1] * blocks
    if isinstance(which, str) or len(which) != blocks or not all(0 <= i < layers for i in which):
        raise ValueError(f"layer map {which!r}: use 'spread', 'index', 'last' or {blocks} numbers in 0 … {layers - 1}")
    return list(which)


class _Stream(NamedTuple):
    """One stream, safe to compute with: numbers that do not count are zero."""

    tokens: Tensor  # [B, L, S, D]
    mask: Tensor | None  # bool [B, L, S]

    @property
    def mean(self) -> Tensor:
        """[B, L, D], zero where nothing is valid."""
        if self.mask is None:
            return self.tokens.mean(2)
        return self.tokens.sum(2) / self.mask.sum(2, keepdim=True).clamp(min=1).to(self.tokens.dtype)


class _Said(NamedTuple):
    """A payload made safe. valid: bool [B, L], whether a layer says anything; None if all do. weight [B] or None."""

    streams: tuple[_Stream | None, _Stream | None]
    valid: Tensor | None
    weight: Tensor | None
    layers: int

    def factor(self, picks: Sequence[int], every_block: bool) -> Tensor:
        """How much the guidance counts, [blocks, B]: the weight; 0 for rows that say nothing.

        every_block: a block counts although its own layer says nothing, if the row says anything at all.
        """
        stream = self.streams[0] or self.streams[1]
        assert stream is not None
        batch = stream.tokens.shape[0]
        weight = stream.tokens.new_ones(batch) if self.weight is None else self.weight
        if every_block:
            some = weight if self.valid is None else weight * self.valid.any(1)
            return some.expand(len(picks), batch)
        nothing = torch.zeros_like(weight)
        rows = [weight if self.valid is None else weight * self.valid[:, i] for i in range(self.layers)]
        return torch.stack([(*rows, nothing)[i] for i in picks])


def _read(payload: Payload) -> _Said:
    """Raises ValueError for streams that do not agree in rows or layers."""
    live = None if payload.weight is None else (payload.weight != 0)[:, None, None]
    streams: list[_Stream | None] = []
    for tokens, mask in ((payload.prompt, payload.prompt_mask), (payload.generated, payload.generated_mask)):
        if tokens is None:
            streams.append(None)
            continue
        if tokens.dim() != 4 or (mask is not None and mask.shape != tokens.shape[:3]):
            raise ValueError(
                f"states are [B, L, S, D] with a mask [B, L, S], not {list(tokens.shape)}"
                + (f" with {list(mask.shape)}" if mask is not None else "")
            )
        counts = mask if live is None else live if mask is None else mask & live
        streams.append(_Stream(tokens if counts is None else torch.where(counts[..., None], tokens, 0), mask))
    prompt, generated = streams
    some = prompt or generated
    if some is None:
        raise ValueError("the payload holds neither stream; pass None for no guidance")
    if prompt and generated and prompt.tokens.shape[:2] != generated.tokens.shape[:2]:
        raise ValueError(
            f"the streams have {list(prompt.tokens.shape[:2])} and {list(generated.tokens.shape[:2])} rows and layers"
        )
    masks = [s.mask.any(2) if s.mask is not None else None for s in streams if s]
    valid = None if any(m is None for m in masks) else torch.stack([m for m in masks if m is not None]).any(0)
    return _Said((prompt, generated), valid, payload.weight, some.tokens.shape[1])


def amount_of(payload: Payload) -> Tensor:
    """How much the guidance of each row counts, [B]. Raises ValueError for a payload of wrong shapes."""
    return _read(payload).factor([0], every_block=True)[0]


class Guide(nn.Module):
    """What every way of guiding has in common: bias-free projections of both streams to the predictor's width.

    Without a bias, pooling at the thinker equals pooling here: W mean(x) = mean(W x).
    """

    gate: nn.Parameter  # [blocks], zero before training
    every_block = False  #: published: a block without a layer of its own gets the answer to an empty summary

    def __init__(self, blocks: int, width: int, guide_widths: tuple[int, int], which: LayerMap = "spread"):
        super().__init__()
        self.blocks, self.width, self.which = blocks, width, which
        self.project = nn.ModuleList(nn.Linear(d, width, bias=False) for d in guide_widths)

    def prepare(self, payload: Payload) -> list[Any]:
        """What `inject` needs for each block. Constant as long as the payload is."""
        raise NotImplementedError

    def inject(self, block: int, x: Tensor, signal: Any) -> Tensor:
        """The stream [B, n, width] before `block`, guided by what `prepare` gave for that block."""
        raise NotImplementedError

    def pack(self, signals: list[Any]) -> tuple[Tensor, ...]:
        """What `prepare` gave for a payload with masks, as tensors in a row; a captured step takes no others."""
        return tuple(signals)

    def unpack(self, packed: Sequence[Tensor]) -> list[Any]:
        """The reverse of `pack`."""
        return list(packed)

    def _summaries(self, payload: Payload) -> tuple[Tensor, Tensor]:
        """[blocks, B, 4 width]: prompt, generated, |difference|, product of the mean states; and the factors."""
        said = _read(payload)
        picks = layer_of_each_block(self.which, self.blocks, said.layers)
        means: list[Tensor | None] = [None, None]
        for i, stream in enumerate(said.streams):
            if stream is not None:
                means[i] = self.project[i](stream.mean.to(self.gate.dtype))
        prompt, generated = means
        if prompt is None:
            assert generated is not None
            prompt = torch.zeros_like(generated)
        elif generated is None:
            generated = torch.zeros_like(prompt)
        summary = torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), -1)
        rows = (*summary.unbind(1), torch.zeros_like(summary[:, 0]))
        return torch.stack([rows[i] for i in picks]), said.factor(picks, self.every_block).to(self.gate.dtype)


class Film(Guide):
    """Scale and shift from one MLP that all blocks share. mode: "film" or "adaln" (ours)."""

    def __init__(
        self,
        blocks: int,
        width: int,
        guide_widths: tuple[int, int],
        which: LayerMap = "spread",
        mode: Mode = "film",
        hidden: int = 256,
    ):
        super().__init__(blocks, width, guide_widths, which)
        self.mode = mode
        self.norm = nn.LayerNorm(4 * width)
        self.fc1 = nn.Linear(4 * width, hidden)
        self.fc2 = nn.Linear(hidden, 2 * width)
        self.gate = nn.Parameter(torch.zeros(blocks))

    def prepare(self, payload: Payload) -> list[Tensor]:
        """[B, 1, 2 * width] per block."""
        summary, factor = self._summaries(payload)
        out = self.fc2(F.gelu(self.fc1(self.norm(summary))))
        return list((out * (self.gate.tanh()[:, None] * factor)[..., None])[:, :, None])

    def inject(self, block: int, x: Tensor, signal: Tensor) -> Tensor:
        scale, shift = signal.chunk(2, -1)
        if self.mode == "adaln":
            return x + torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
        return torch.addcmul(shift, x, 1 + scale)


class PublishedFilm(Guide):
    """FiLM and AdaLN as published: an MLP per block, and AdaLN replaces the stream by its normalised self.

    The weight multiplies scale and shift; towards 0 published AdaLN tends to LN(x), and only at 0 is it x. The weights
    of the MLPs are stacked, so that all blocks are one batched product.
    """

    every_block = True

    def __init__(
        self,
        blocks: int,
        width: int,
        guide_widths: tuple[int, int],
        which: LayerMap = "index",
        mode: Mode = "film",
        hidden: int = 512,
    ):
        super().__init__(blocks, width, guide_widths, which)
        self.mode = mode
        self.norm_weight = nn.Parameter(torch.ones(blocks, 4 * width))
        self.norm_bias = nn.Parameter(torch.zeros(blocks, 4 * width))
        self.fc1_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(blocks, hidden, 4 * width), std=0.02))
        self.fc1_bias = nn.Parameter(torch.zeros(blocks, hidden))
        self.fc2_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(blocks, 2 * width, hidden), std=0.02))
        self.fc2_bias = nn.Parameter(torch.zeros(blocks, 2 * width))
        self.gate = nn.Parameter(torch.zeros(blocks))
        self.prenorm = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks)) if mode == "adaln" else None

    def prepare(self, payload: Payload) -> list[tuple[Tensor, Tensor | None]]:
        """Scale and shift [B, 1, 2 * width] and which rows are guided (bool [B, 1, 1], None: all), per block."""
        summary, factor = self._summaries(payload)
        x = F.layer_norm(summary, summary.shape[-1:]) * self.norm_weight[:, None] + self.norm_bias[:, None]
        x = F.gelu(torch.baddbmm(self.fc1_bias[:, None], x, self.fc1_weight.mT))
        x = torch.baddbmm(self.fc2_bias[:, None], x, self.fc2_weight.mT)
        x = x * (self.gate.tanh()[:, None] * factor)[..., None]
        always = payload.weight is None and None in (payload.prompt_mask, payload.generated_mask)
        live = None if always else (factor != 0)[:, :, None, None]
        return [(x[i][:, None], None if live is None else live[i]) for i in range(self.blocks)]

    def inject(self, block: int, x: Tensor, signal: tuple[Tensor, Tensor | None]) -> Tensor:
        scale, shift = signal[0].chunk(2, -1)
        if self.prenorm is None:
            return torch.addcmul(shift, x, 1 + scale)
        guided = torch.addcmul(shift, self.prenorm[block](x), 1 + scale)
        return guided if signal[1] is None else torch.where(signal[1], guided, x)


class _Reader(nn.Module):
    """The stream asks, the thinker's tokens answer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def memory(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S, width] -> keys and values [2, B, heads, S, head_dim]."""
        return self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, memory[0], memory[1], attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Cross(Guide):
    """Cross-attention to the valid tokens of both streams.

    published: as in the original, a block whose layer says nothing attends to one zero token, which gives a constant.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        guide_widths: tuple[int, int],
        which: LayerMap = "spread",
        heads: int = 6,
        published: bool = False,
    ):
        super().__init__(blocks, width, guide_widths, which)
        self.every_block = published
        self.readers = nn.ModuleList(_Reader(width, heads) for _ in range(blocks))
        self.gate = nn.Parameter(torch.zeros(blocks))

    def prepare(self, payload: Payload) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Keys and values, mask bool [B, 1, 1, S] or None, and factor [B, 1, 1], per block."""
        said = _read(payload)
        picks = layer_of_each_block(self.which, self.blocks, said.layers)
        both = [(s, p) for s, p in zip(said.streams, self.project, strict=True) if s is not None]
        batch = both[0][0].tokens.shape[0]
        masked = any(s.mask is not None for s, _ in both)
        layers: dict[int, tuple[Tensor, Tensor | None]] = {}
        for layer in set(picks):
            if layer == said.layers:
                layers[layer] = both[0][0].tokens.new_zeros(batch, 1, self.width, dtype=self.gate.dtype), None
                continue
            tokens = torch.cat([project(s.tokens[:, layer].to(self.gate.dtype)) for s, project in both], 1)
            mask = None
            if masked:
                parts = [s.tokens.new_ones(s.tokens.shape[:3], dtype=torch.bool) if s.mask is None else s.mask
                         for s, _ in both]  # fmt: skip
                mask = torch.cat([part[:, layer] for part in parts], 1)
                mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]  # nothing valid: attend to the zeros
            layers[layer] = tokens, mask
        factor = (self.gate.tanh()[:, None] * said.factor(picks, self.every_block).to(self.gate.dtype))[..., None, None]
        chosen = [layers[layer] for layer in picks]
        return [
            (reader.memory(tokens), mask, amount)  # type: ignore[operator]
            for reader, (tokens, mask), amount in zip(self.readers, chosen, factor, strict=True)
        ]

    def pack(self, signals: list[Any]) -> tuple[Tensor, ...]:
        return tuple(part for signal in signals for part in signal)

    def unpack(self, packed: Sequence[Tensor]) -> list[Any]:
        return list(zip(packed[0::3], packed[1::3], packed[2::3], strict=True))

    def inject(self, block: int, x: Tensor, signal: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        memory, mask, amount = signal
        return torch.addcmul(x, self.readers[block](x, memory, mask), amount)
