"""The guided predictor, slowly and plainly: written from the formulas of V-JEPA 2 (arXiv 2506.09985) and ThinkJEPA
(arXiv 2603.22281), one row, one head and one rotary pair at a time, with an explicit mask. Shares no code with us.

Weights are a dictionary under ThinkJEPA's names, rotary pairs next to each other, as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Said:
    """Guidance of one row: states [L, S, D] and masks bool [L, S] of prompt (old) and generated (new) tokens."""

    old: Tensor | None
    new: Tensor | None
    old_mask: Tensor
    new_mask: Tensor
    weight: float = 1.0

    @property
    def anything(self) -> bool:
        some = any(m.any() for s, m in ((self.old, self.old_mask), (self.new, self.new_mask)) if s is not None)
        return self.weight != 0 and bool(some)


@dataclass
class Oracle:
    """tokens: per tubelet. mode: film, adaln or cross. published: as in the original, else ours. layers: the layer of
    each block, None for none.
    """

    w: dict[str, Tensor]
    depth: int
    heads: int
    tokens: int
    rows: int
    columns: int
    attention: str = "full"
    positions: str = "tiled"
    mode: str = "film"
    published: bool = True
    mask_token: int = 1
    eps: float = 1e-6

    def __call__(
        self, x: Tensor, context: Tensor, targets: Tensor, said: list[Said | None], layers: list[int | None]
    ) -> Tensor:
        """x [B, Nc, D], places [B, Nc] and [B, Nt] -> [B, Nt, D]."""
        return torch.stack([self._row(*one, layers) for one in zip(x, context, targets, said, strict=True)])

    def _row(self, x: Tensor, context: Tensor, targets: Tensor, said: Said | None, layers: list[int | None]) -> Tensor:
        places = torch.cat((context, targets))
        query = self.w[f"query_templates.{self.mask_token}"].flatten()
        h = torch.cat((self._linear(x, "context_adapter"), query.expand(len(targets), -1)))
        if self.positions == "table":
            h = h + self.w["fixed_position_table"][0][places]
        allowed = self._allowed(places, len(context))
        for i in range(self.depth):
            if said is not None and said.anything:
                h = self._guided(i, h, said, layers[i])
            h = self._block(f"rollout_layers.{i}.", h, places, allowed)
        h = self._norm(h, "rollout_norm", self.eps)
        return self._linear(h[len(context) :], "output_adapter")

    def _allowed(self, places: Tensor, contexts: int) -> Tensor:
        """Which query (row) sees which key (column)."""
        n = len(places)
        mask = torch.ones(n, n, dtype=torch.bool)
        for q in range(n):
            for k in range(n):
                if self.attention == "causal":
                    mask[q, k] = places[q] // self.tokens >= places[k] // self.tokens
                elif self.attention == "two_stream":
                    mask[q, k] = q >= contexts or k < contexts
        return mask

    def _block(self, name: str, h: Tensor, places: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = self._linear(self._norm(h, f"{name}norm1", self.eps), f"{name}attn.qkv").chunk(3, -1)
        seen = []
        for qh, kh, vh in zip(*(t.chunk(self.heads, -1) for t in (q, k, v)), strict=True):
            scores = self._rotated(qh, places) @ self._rotated(kh, places).T / qh.shape[1] ** 0.5
            seen.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ vh)
        h = h + self._linear(torch.cat(seen, -1), f"{name}attn.proj")
        inner = torch.nn.functional.gelu(self._linear(self._norm(h, f"{name}norm2", self.eps), f"{name}mlp.fc1"))
        return h + self._linear(inner, f"{name}mlp.fc2")

    def _rotated(self, x: Tensor, places: Tensor) -> Tensor:
        if self.positions == "table":
            return x
        rest = places % (self.rows * self.columns)
        axes = (places // (self.rows * self.columns), rest // self.columns, rest % self.columns)
        pairs = x.shape[1] // 6
        out = x.clone()
        for axis, position in enumerate(axes):
            for pair in range(pairs):
                first = 2 * (axis * pairs + pair)
                for member, partner in ((0, -x[:, first + 1]), (1, x[:, first])):
                    which = (2 * pair + member) % pairs if self.positions == "tiled" else pair
                    angle = position.to(x.dtype) * 10000.0 ** (-which / pairs)
                    out[:, first + member] = x[:, first + member] * angle.cos() + partner * angle.sin()
        return out

    def _guided(self, block: int, h: Tensor, said: Said, layer: int | None) -> Tensor:
        streams = []
        for name, states, mask in (("old", said.old, said.old_mask), ("new", said.new, said.new_mask)):
            if states is None or layer is None:
                streams.append(h.new_zeros(0, h.shape[1]))
            else:
                streams.append(states[layer][mask[layer]].to(h.dtype) @ self.w[f"guidance_{name}_adapter.weight"].T)
        if not self.published and not sum(map(len, streams)):
            return h
        gate = torch.tanh(self.w["guidance_layer_scale"].flatten()[block]) * said.weight
        if self.mode == "cross":
            return h + gate * self._read(block, h, torch.cat(streams))
        o, n = (s.mean(0) if len(s) else s.new_zeros(s.shape[1]) for s in streams)
        signal = torch.cat((o, n, (o - n).abs(), o * n))
        name = f"guidance_fusion_mlps.{block}"
        inner = torch.nn.functional.gelu(self._linear(self._norm(signal, f"{name}.0", 1e-5), f"{name}.1"))
        scale, shift = (self._linear(inner, f"{name}.3") * gate).chunk(2)
        if self.mode == "film":
            return h * (1 + scale) + shift
        if self.published:
            return self._norm(h, f"guidance_prenorms.{block}", 1e-5) * (1 + scale) + shift
        return h + torch.nn.functional.layer_norm(h, h.shape[-1:]) * scale + shift

    def _read(self, block: int, h: Tensor, memory: Tensor) -> Tensor:
        if not len(memory):
            memory = h.new_zeros(1, h.shape[1])
        name = f"guidance_memory_readers.{block}."
        weight, bias = self.w[f"{name}in_proj_weight"].chunk(3), self.w[f"{name}in_proj_bias"].chunk(3)
        x = self._norm(h, f"guidance_query_norms.{block}", 1e-5)
        q, k, v = (t @ a.T + b for t, a, b in zip((x, memory, memory), weight, bias, strict=True))
        seen = []
        for qh, kh, vh in zip(*(t.chunk(self.heads, -1) for t in (q, k, v)), strict=True):
            seen.append((qh @ kh.T / qh.shape[1] ** 0.5).softmax(-1) @ vh)
        return self._linear(torch.cat(seen, -1), f"{name}out_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )


def published_names(state: dict[str, Tensor], heads: int, depth: int) -> dict[str, Tensor]:
    """Our tensors under ThinkJEPA's names, rotary pairs side by side again: the way back from the importer."""
    out: dict[str, Tensor] = {}
    for ours, theirs in (("embed", "context_adapter"), ("norm", "rollout_norm"), ("out", "output_adapter")):
        for part in ("weight", "bias"):
            out[f"{theirs}.{part}"] = state[f"{ours}.{part}"]
    for i, token in enumerate(state["queries"]):
        out[f"query_templates.{i}"] = token[None, None]
    if "table" in state:
        out["fixed_position_table"] = state["table"][None]
    for i in range(depth):
        for ours, theirs in (("norm1", "norm1"), ("norm2", "norm2"), ("proj", "attn.proj"), ("fc1", "mlp.fc1"),
                             ("fc2", "mlp.fc2")):  # fmt: skip
            for part in ("weight", "bias"):
                out[f"rollout_layers.{i}.{theirs}.{part}"] = state[f"blocks.{i}.{ours}.{part}"]
        for part in ("weight", "bias"):
            q, k, v = state[f"blocks.{i}.qkv.{part}"].chunk(3)
            side = [torch.stack(h.chunk(2), 1).flatten(0, 1) for t in (q, k) for h in t.chunk(heads)]
            out[f"rollout_layers.{i}.attn.qkv.{part}"] = torch.cat((*side, v))
    if "guide.gate" in state:
        out |= _published_guide(
            {k.removeprefix("guide."): v for k, v in state.items() if k.startswith("guide.")}, depth
        )
    return out


def _published_guide(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    out = {f"guidance_{s}_adapter.weight": state[f"project.{i}.weight"] for i, s in enumerate(("old", "new"))}
    out["guidance_layer_scale"] = state["gate"][:, None, None]
    for i in range(depth):
        for part in ("weight", "bias"):
            if f"readers.{i}.q.{part}" in state:
                reader = f"readers.{i}."
                out[f"guidance_query_norms.{i}.{part}"] = state[f"{reader}norm.{part}"]
                both = torch.cat((state[f"{reader}q.{part}"], state[f"{reader}kv.{part}"]))
                out[f"guidance_memory_readers.{i}.in_proj_{part}"] = both
                out[f"guidance_memory_readers.{i}.out_proj.{part}"] = state[f"{reader}out.{part}"]
                continue
            for layer, ours in ((0, "norm"), (1, "fc1"), (3, "fc2")):
                shared = state.get(f"{ours}.{part}")
                own = state[f"{ours}_{part}"][i] if shared is None else shared
                out[f"guidance_fusion_mlps.{i}.{layer}.{part}"] = own
            if f"prenorm.{i}.{part}" in state:
                out[f"guidance_prenorms.{i}.{part}"] = state[f"prenorm.{i}.{part}"]
    return out
