"""V-JEPA 2-AC from its formulas, slow and plain: one sequence, one mask of all pairs, one rotation per token and axis.

Works on the published tensor names, shares no code with the package, and rotates neighbouring dimensions in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(width: int, depth: int, latent: int, action_dim: int = 7, mlp: int = 4, seed: int = 0) -> State:
    """Weights under the published names, large enough that every part of the network matters."""
    g = torch.Generator().manual_seed(seed)

    def linear(name: str, rows: int, columns: int) -> State:
        return {
            f"{name}.weight": torch.randn(rows, columns, generator=g) / columns**0.5,
            f"{name}.bias": 0.2 * torch.randn(rows, generator=g),
        }

    def norm(name: str) -> State:
        return {
            f"{name}.weight": 1 + 0.2 * torch.randn(width, generator=g),
            f"{name}.bias": 0.2 * torch.randn(width, generator=g),
        }

    state = linear("predictor_embed", width, latent)
    state |= linear("action_encoder", width, action_dim) | linear("state_encoder", width, action_dim)
    state |= linear("extrinsics_encoder", width, action_dim - 1)
    for i in range(depth):
        name = f"predictor_blocks.{i}"
        state |= norm(f"{name}.norm1") | norm(f"{name}.norm2")
        state |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        state |= linear(f"{name}.mlp.fc1", mlp * width, width) | linear(f"{name}.mlp.fc2", width, mlp * width)
    return state | norm("predictor_norm") | linear("predictor_proj", latent, width)


def turn(x: Tensor, position: float) -> Tensor:
    """One axis of one token [..., d]: pairs (2i, 2i+1), angles repeated as a list ("tiled")."""
    half = x.shape[-1] // 2
    angle = position * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / max(half, 1))
    angle = torch.cat((angle, angle)).to(x.dtype)
    other = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    return x * angle.cos() + other * angle.sin()


def predict(
    state: State,
    heads: int,
    grid: tuple[int, int],
    latents: Tensor,
    actions: Tensor,
    states: Tensor,
    extrinsics: Tensor | None = None,
    rotary: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """latents [B, T, n, D], actions and states [B, T, A] -> [B, T, n, D]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    rows, columns = grid
    steps = latents.shape[1]
    sequence, places, step_of = [], [], []
    for k in range(steps):
        single = [linear("action_encoder", actions[:, k]), linear("state_encoder", states[:, k])]
        if extrinsics is not None:
            single.append(linear("extrinsics_encoder", extrinsics[:, k]))
        for token in single:
            sequence.append(token)
            places.append((k,))
            step_of.append(k)
        for p in range(rows * columns):
            sequence.append(linear("predictor_embed", latents[:, k, p]))
            # both axes are measured by the height of the grid
            places.append((k, p // columns, p % columns * rows / columns))
            step_of.append(k)
    x = torch.stack(sequence, 1)
    batch, n, width = x.shape
    head_dim = width // heads
    part = 2 * (head_dim // 3 // 2)
    when = torch.tensor(step_of)
    mask = when[:, None] >= when[None, :]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("predictor_blocks"))
    for i in range(depth):
        name = f"predictor_blocks.{i}"
        q, k, v = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x)).view(batch, n, 3, heads, head_dim).unbind(2)
        if rotary:
            q, k = q.clone(), k.clone()
            for token, place in enumerate(places):
                for axis, position in enumerate(place):
                    dims = slice(axis * part, (axis + 1) * part)
                    q[:, token, :, dims] = turn(q[:, token, :, dims], position)
                    k[:, token, :, dims] = turn(k[:, token, :, dims], position)
        score = torch.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5
        weight = score.masked_fill(~mask, float("-inf")).softmax(-1)
        x = x + linear(f"{name}.attn.proj", torch.einsum("bhqk,bkhd->bqhd", weight, v).reshape(batch, n, width))
        x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
    patches = x.view(batch, steps, n // steps, width)[:, :, n // steps - rows * columns :]
    return linear("predictor_proj", norm("predictor_norm", patches))
