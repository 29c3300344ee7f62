"""The transformer block of the published code, whose names V-JEPA 2, V-JEPA 2-AC and ThinkJEPA share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..jepa.rope import half_split_order

_SAME = {
    "norm1": "norm1",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


def block(state: dict[str, Tensor], prefix: str, heads: int, into: str) -> dict[str, Tensor]:
    """State of a `jepa.layers.Block` named `into` from the published block `prefix` (both end with a dot).

    The rows of the query and key weights are put in half-split order; the numbers stay. Raises KeyError naming the
    tensor that is missing.
    """
    out = {
        f"{into}{ours}.{part}": state[f"{prefix}{theirs}.{part}"]
        for theirs, ours in _SAME.items()
        for part in ("weight", "bias")
    }
    width = out[f"{into}qkv.weight"].shape[0] // 3
    order = half_split_order(heads, width // heads)
    rows = torch.cat((order, width + order, torch.arange(2 * width, 3 * width)))
    for part in ("weight", "bias"):
        out[f"{into}qkv.{part}"] = out[f"{into}qkv.{part}"][rows].contiguous()
    return out


class Read(dict[str, Tensor]):
    """Tensors that remember in `used` which of them were read, so that nothing is left out in silence."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__(state)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return super().__getitem__(name)
