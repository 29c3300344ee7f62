"""Rotary position encoding over (time, row, column), as in V-JEPA 2 (arXiv 2506.09985) with the true pairs of V-JEPA
2.1.

The head dimension is cut into three equal slices, one per axis; what is left over is not rotated. Both members of a
pair turn by the
same angle, so the encoding is relative: moving every position by the same amount changes no attention score.

Storage order: the first members of all pairs, then the second members ("half-split"). It is the interleaved form of
the papers with
the rows of the query and key weights permuted, and rotates contiguous halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [n, head_dim / 2], of positions [n, 3] (time, row, column; any real numbers).

    Angles are computed in float64: rounding them in the activation's type would shift late positions by degrees.
    """
    pairs = head_dim // 6  # per axis
    frequency = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = (positions.to(torch.float64)[:, :, None] * frequency).flatten(1)  # [n, 3 * pairs]
    angle = torch.nn.functional.pad(angle, (0, head_dim // 2 - angle.shape[1]))
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., n, head_dim] by a table [n, head_dim / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def grid(times: Tensor, rows: int, columns: int, row_step: float = 1.0, column_step: float = 1.0) -> Tensor:
    """Positions [len(times) * rows * columns, 3] of a token grid, time-major, then row, then column.

    The steps place coarser grids on the coordinates of a finer one: a cell of a pooled grid sits at its centre.
    """
    row = (torch.arange(rows, dtype=torch.float64) + 0.5) * row_step - 0.5
    column = (torch.arange(columns, dtype=torch.float64) + 0.5) * column_step - 0.5
    return torch.stack(torch.meshgrid(times.to(torch.float64), row, column, indexing="ij"), -1).reshape(-1, 3)
