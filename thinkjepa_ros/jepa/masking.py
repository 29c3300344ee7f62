"""Which tokens of a clip an encoder sees and which a predictor must predict: multi-block tube masks of V-JEPA 2.

A clip is a grid of tokens (tubelets, rows, columns), numbered tubelet-major, then row, then column. A mask is the union
of a few rectangles at random places, each a tube through all tubelets (arXiv 2404.08471 section 3.2, 2506.09985). The
union is the target, its complement the context. The rectangle's size is drawn once per batch, its places per clip, and
the token counts are cut to the smallest of the batch, so that the index tensors are rectangular.

V-JEPA 2.1 (arXiv 2603.14482) keeps the masks and also asks for the visible tokens, weighted by how near they are to a
masked one: `context_weights`, `context_ramp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import rope

Grid = tuple[int, int, int]  #: tubelets, rows, columns
Range = tuple[float, float]
_TRIES = 100


class Masks(NamedTuple):
    """Token numbers of a batch, int64, ascending in every row; no token of a row is in both."""

    context: Tensor  # [B, K]: what the encoder sees
    target: Tensor  # [B, M]: what is predicted


@dataclass(frozen=True)
class TubeMask:
    """How the masks of a batch are drawn. Shares are drawn uniformly from their range."""

    blocks: int  #: rectangles per clip
    spatial_share: Range  #: cells of a rectangle over cells of the grid, before it is clipped to the grid
    aspect: Range = (0.75, 1.5)  #: height over width
    temporal_share: Range = (1.0, 1.0)  #: tubelets of a rectangle over all tubelets; 1 makes tubes
    #: Only this share of the tubelets, the first ones, may be context; what comes later is target.
    context_duration: float = 1.0
    max_context: int | None = None  #: at most this many context tokens
    #: Which tokens are left out where a clip has more than the others of its batch. "tubes": all tubelets of cells
    #: drawn at random. "last": those with the highest numbers, as published, so the last tubelets lose tokens first.
    leave_out: Literal["tubes", "last"] = "tubes"
    #: Where a token that was left out goes: nowhere, or to the other side ("target": the target becomes the complement
    #: of the cut context; "context": the other way round).
    complete: Literal["none", "target", "context"] = "none"
    swapped: bool = False  #: predict the complement from the rectangles

    def __post_init__(self) -> None:
        for name in ("spatial_share", "temporal_share"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {low} to {high}; shares are above 0 and at most 1, the smaller one first")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is {self.aspect[0]} to {self.aspect[1]}; it is positive, the smaller one first")
        if self.blocks < 1 or not 0 < self.context_duration <= 1 or (self.max_context or 1) < 1:
            raise ValueError("a mask has at least one block, one context token and a context duration in (0, 1]")

    def block_size(self, grid: Grid, rng: np.random.Generator) -> Grid:
        """Tubelets, rows and columns of a rectangle: rows = round(sqrt(cells * aspect)), columns = round(sqrt(cells /
        aspect)), at least one and at most the grid.
        """
        tubelets, rows, columns = grid
        duration = max(1, int(tubelets * rng.uniform(*self.temporal_share)))
        cells = int(rows * columns * rng.uniform(*self.spatial_share))
        aspect = rng.uniform(*self.aspect)
        height, width = round(math.sqrt(cells * aspect)), round(math.sqrt(cells / aspect))
        return duration, min(max(height, 1), rows), min(max(width, 1), columns)

    def draw(self, batch: int, grid: Grid, rng: np.random.Generator) -> Masks:
        """Masks of `batch` clips. Raises ValueError where the rectangles leave no context in the grid."""
        size = self.block_size(grid, rng)
        masked = self._union(batch, grid, size, rng)
        for _ in range(_TRIES):
            blind = masked.all((1, 2, 3))
            if not blind.any():
                break
            masked[blind] = self._union(int(blind.sum()), grid, size, rng)
        else:
            raise ValueError(
                f"{self.blocks} rectangles of {size[1]}x{size[2]} leave no context in a grid of {grid[1]}x{grid[2]} "
                "cells; use larger images or a smaller spatial share"
            )
        masked = masked.reshape(batch, -1)
        context = self._cut(~masked, grid, self.max_context, rng)
        target = self._cut(masked, grid, None, rng)
        if self.complete == "target":
            target = ~context
        elif self.complete == "context":
            context = ~target
        masks = Masks(_numbers(context), _numbers(target))
        return Masks(masks.target, masks.context) if self.swapped else masks

    def _union(self, batch: int, grid: Grid, size: Grid, rng: np.random.Generator) -> np.ndarray:
        """bool [batch, tubelets, rows, columns]: True where a rectangle lies."""
        inside = []
        for length, part in zip(grid, size, strict=True):
            first = rng.integers(0, length - part + 1, (batch, self.blocks, 1))
            place = np.arange(length)
            inside.append((place >= first) & (place < first + part))
        time, row, column = inside
        block = time[..., :, None, None] & row[..., None, :, None] & column[..., None, None, :]
        masked = np.logical_or.reduce(block, axis=1)
        masked[:, max(1, int(grid[0] * self.context_duration)) :] = True
        return masked

    def _cut(self, chosen: np.ndarray, grid: Grid, most: int | None, rng: np.random.Generator) -> np.ndarray:
        """chosen bool [B, N] with as many tokens in every row as the poorest row has, and at most `most`."""
        batch, tokens = chosen.shape
        count = min(int(chosen.sum(1).min()), most or tokens)
        if self.leave_out == "tubes":
            # Tokens of a cell share its random number and stable sorting keeps them together, so whole tubes go.
            key = np.tile(rng.permuted(np.tile(np.arange(tokens // grid[0]), (batch, 1)), axis=1), grid[0])
        else:
            key = np.broadcast_to(np.arange(tokens), (batch, tokens))
        order = np.argsort(np.where(chosen, key, tokens), axis=1, kind="stable")
        kept = np.zeros_like(chosen)
        np.put_along_axis(kept, order[:, :count], True, axis=1)
        return kept


def _numbers(chosen: np.ndarray) -> Tensor:
    """int64 [B, K] of bool [B, N] with K True in every row."""
    return torch.from_numpy(np.nonzero(chosen)[1].reshape(len(chosen), -1))


#: The two masks that V-JEPA 2 and 2.1 predict for every clip; the second hides about nine tenths of it.
SHORT_RANGE = TubeMask(blocks=8, spatial_share=(0.15, 0.15))
LONG_RANGE = TubeMask(blocks=2, spatial_share=(0.7, 0.7))


def positions(index: Tensor, grid: Grid) -> Tensor:
    """(tubelet, row, column) of token numbers [...], float32 [..., 3]."""
    return rope.grid(torch.arange(grid[0]), *grid[1:]).float().to(index.device)[index]


def nearest(tokens: Tensor, others: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Distance [B, K] from each of `tokens` [B, K] to the nearest of `others` [B, M], and which one it is [B, K].

    In cells and tubelets, Euclidean: a tubelet counts as much as a cell.
    """
    distance = torch.cdist(
        positions(tokens, grid), positions(others, grid), compute_mode="donot_use_mm_for_euclid_dist"
    )
    found = distance.min(-1)
    return found.values, found.indices


def context_weights(masks: Masks, grid: Grid, unit: float = 1.0) -> Tensor:
    """Weights [B, K] of the loss on visible tokens: 1 / sqrt(distance to the nearest masked token) (V-JEPA 2.1).

    unit: cells per unit of distance. Published: 1, and rows // 16 when training goes on at a higher resolution.
    """
    return (nearest(masks.context, masks.target, grid)[0] / unit).rsqrt()


def context_ramp(step: int, start: int = 15_000, end: int = 30_000, peak: float = 0.5) -> float:
    """Weight lambda of the loss on visible tokens: 0 until `start`, then linear, `peak` from `end` on."""
    return peak * min(1.0, max(0.0, (step - start) / max(1, end - start)))
