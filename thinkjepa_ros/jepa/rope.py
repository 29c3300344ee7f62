"""Rotary position encoding over (time, row, column), as in V-JEPA 2 (arXiv 2506.09985), in its two forms.

The head dimension is cut into three equal slices, one per axis; what is left over is not rotated. Neighbouring
dimensions form a pair; pair j of an axis turns by position * 10000^(-j / pairs).

- "interleaved": both members of a pair turn by the same angle (V-JEPA 2.1 and our own models). The encoding is
  relative: moving every position by the same amount changes no attention score.
- "tiled": the released V-JEPA 2 weights were trained with the list of angles repeated twice instead of each angle
  twice, so the members of a pair turn by different angles. It is neither relative nor norm-preserving; positions must
  stay inside the range of training. Kept for those weights (and V-JEPA 2-AC, ThinkJEPA) only.

Storage order: the first members of all pairs, then the second members ("half-split"). It is the form of the papers with
the rows of the query and key weights permuted (`half_split_order`), and rotates contiguous halves.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BASE = 10000.0
Form = Literal["interleaved", "tiled"]
#: cos and signed sin of a list of positions, each [n, head_dim].
Rope = tuple[Tensor, Tensor]


def table(positions: Tensor, head_dim: int, form: Form = "interleaved") -> Rope:
    """cos and signed sin, float32 [n, head_dim] each, of positions [n, 3] (time, row, column; any real numbers).

    Angles are computed in float64: rounding them in the activation's type would shift late positions by degrees.
    """
    pairs = head_dim // 6  # per axis
    frequency = BASE ** (-torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs)
    angle = positions.to(torch.float64)[:, :, None] * frequency  # [n, 3, pairs]
    if form == "interleaved":
        first = second = angle
    elif form == "tiled":
        both = torch.cat((angle, angle), -1)
        first, second = both[..., 0::2], both[..., 1::2]
    else:
        raise ValueError(f"rope form {form!r} is not known; use 'interleaved' or 'tiled'")
    rest = (0, head_dim // 2 - 3 * pairs)
    first, second = (torch.nn.functional.pad(a.flatten(1), rest) for a in (first, second))
    return torch.cat((first.cos(), second.cos()), 1).float(), torch.cat((-first.sin(), second.sin()), 1).float()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate x [..., n, head_dim] (half-split) by a table in the type of x."""
    cos, sin = rope
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def half_split_order(heads: int, head_dim: int) -> Tensor:
    """Rows of a published query or key weight [heads * head_dim, D] in the order in which they are stored here."""
    order = torch.cat((torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)))
    return (torch.arange(heads)[:, None] * head_dim + order).flatten()


def grid(times: Tensor, rows: int, columns: int, row_step: float = 1.0, column_step: float = 1.0) -> Tensor:
    """Positions [len(times) * rows * columns, 3] of a token grid, time-major, then row, then column.

    The steps place coarser grids on the coordinates of a finer one: a cell of a pooled grid sits at its centre.
    """
    row = (torch.arange(rows, dtype=torch.float64) + 0.5) * row_step - 0.5
    column = (torch.arange(columns, dtype=torch.float64) + 0.5) * column_step - 0.5
    return torch.stack(torch.meshgrid(times.to(torch.float64), row, column, indexing="ij"), -1).reshape(-1, 3)
