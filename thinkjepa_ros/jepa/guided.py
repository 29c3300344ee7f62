"""The general masked predictor: latents of some token positions in, latents of others out.

It computes what V-JEPA 2's mask predictor (arXiv 2506.09985) and ThinkJEPA's guided predictor (arXiv 2603.22281)
compute, and is what their weights load into. Tokens are named by their place in the window, tubelet * tokens + place
in the tubelet. What a token may look at is the `attention` of the configuration:

- "full": every token of context and targets (V-JEPA 2, ThinkJEPA v1).
- "causal": tokens of its own tubelet and of earlier ones (ThinkJEPA v2).
- "two_stream": the context sees the context, targets see context and targets. Not published; see `predictor`.

The published code sorts all tokens by position first. Attention does not care about the order of tokens, so nothing is
sorted here. Where the context never sees the targets (causal, two_stream) it can be read once and asked often:
`predict(remember(context))` is the whole pass.

Index sets given as `range` are known without looking at a tensor: their rotary tables are cached, and causal attention
over whole tubelets runs tubelet by tubelet without a mask. Causal attention over other index sets builds an explicit
mask [.., N, N]: correct for any tokens in any order, and meant for small N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from . import rope
from .guidance import Cross, Film, Guide, LayerMap, Mode, Payload, PublishedFilm, layer_of_each_block
from .layers import EPS, Block, Memory, initialise

Attention = Literal["full", "causal", "two_stream"]
Positions = Literal["interleaved", "tiled", "table"]
#: Token places: a range, or int64 [n] (all rows alike) or [B, n].
Index = range | Tensor
#: Tables of so many index ranges are kept; a deployment has one or two.
_LAYOUTS = 16


@dataclass(frozen=True)
class GuidedConfig:
    """The defaults are the published sizes. Raises ValueError naming the field that makes no sense."""

    latent_width: int = 1024
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    tokens: int = 256  #: per tubelet
    rows: int = 16  #: of the grid that splits a token's place into (time, row, column) for the rotary encoding:
    columns: int = 16  #: place // (rows * columns), the rest // columns, the rest of that
    attention: Attention = "full"
    positions: Positions = "tiled"  #: rotary form, or "table": a fixed embedding per place is added instead
    places: int = 0  #: length of that table
    mask_tokens: int = 1  #: learned query templates
    mask_token: int = 0  #: the one that is used
    guide_widths: tuple[int, int] = (0, 0)  #: of the thinker's prompt and generated states; (0, 0): no guidance
    guide_mode: Mode = "film"
    guide_map: LayerMap = "spread"
    guide_hidden: int = 512
    published: bool = False  #: guidance as published: an MLP per block, AdaLN that normalises the stream
    norm_eps: float = EPS  #: of the layer norms, those of the guidance apart

    def __post_init__(self) -> None:
        for name, known in (("attention", Attention), ("positions", Positions), ("guide_mode", Mode)):
            if getattr(self, name) not in get_args(known):
                words = ", ".join(get_args(known))
                raise ValueError(f"guided predictor {name} is {getattr(self, name)!r}, must be one of {words}")
        for name in ("latent_width", "width", "depth", "heads", "tokens", "rows", "columns", "mask_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"guided predictor {name} is {value!r}, must be a whole number of at least 1")
        if not 0 <= self.mask_token < self.mask_tokens:
            raise ValueError(f"guided predictor mask_token {self.mask_token} is not among {self.mask_tokens}")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ValueError(f"guided predictor norm_eps is {self.norm_eps!r}, must be a number between 0 and 1")
        if (self.positions == "table") != (self.places > 0):
            raise ValueError(f"guided predictor places is {self.places} with positions {self.positions!r}")
        for name in ("guide_widths", "guide_map"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.guide_widths) != 2 or (min(self.guide_widths) < 1 and self.guide_widths != (0, 0)):
            raise ValueError(f"guided predictor guide_widths is {self.guide_widths}, must be two widths or (0, 0)")
        if isinstance(self.guide_map, str):
            layer_of_each_block(self.guide_map, self.depth, 1)
        elif len(self.guide_map) != self.depth:
            raise ValueError(f"guided predictor guide_map names {len(self.guide_map)} layers for {self.depth} blocks")

    @property
    def guided(self) -> bool:
        return self.guide_widths != (0, 0)


class Remembered(NamedTuple):
    """Keys and values of the context in every block, what guided it, and where it lies."""

    memories: list[Memory]
    signals: list[Any] | None
    places: Index


class GuidedPredictor(nn.Module):
    """Context latents [B, Nc, latent_width] -> target latents [B, Nt, latent_width]."""

    def __init__(self, config: GuidedConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.latent_width, config.width)
        self.queries = nn.Parameter(torch.zeros(config.mask_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        initialise(self.blocks)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.latent_width)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
        self.guide = _guide(config) if config.guided else None
        self.table = None
        if config.positions == "table":
            self.table = nn.Parameter(torch.zeros(config.places, config.width), requires_grad=False)
        self._ropes: dict[tuple[range, torch.dtype, torch.device], rope.Rope] = {}

    def forward(
        self,
        context: Tensor,
        context_index: Index,
        target_index: Index,
        payload: Payload | None = None,
        mask_token: int | None = None,
    ) -> Tensor:
        """context [B, Nc, D] at the places `context_index` -> [B, Nt, D] at `target_index`.

        payload: guidance per row; rows of weight 0 are unguided. mask_token: another query template than configured.
        Raises ValueError for guidance without a guide and for index sets that do not fit.
        """
        if self.config.attention != "full" and not self._needs_mask(context_index, target_index):
            return self.predict(self.remember(context, context_index, payload), target_index, mask_token)
        signals = self._signals(payload)
        x = self._embed(context, context_index)
        first = x.shape[1]
        x = torch.cat((x, self._ask(target_index, len(x), mask_token)), 1)
        table, mask = self._joined(x, context_index, target_index)
        for i, block in enumerate(self.blocks):
            x = self._inject(i, x, signals)
            # the last block finishes only the tokens that are asked for
            x, _ = block(x, table, mask=mask, only_from=first if i + 1 == len(self.blocks) else 0)
        return self.out(self.norm(x))

    def remember(self, context: Tensor, index: Index, payload: Payload | None = None) -> Remembered:
        """Read a context once, for any number of `predict`. The guidance is remembered with it.

        Raises ValueError with attention "full", where the context looks at the targets, and for a causal context that
        is not a range of whole tubelets.
        """
        causal = self._causal(index)
        signals = self._signals(payload)
        x = self._embed(context, index)
        table = self._rope(index, x)
        memories = []
        for i, block in enumerate(self.blocks):
            x = self._inject(i, x, signals)
            last = i + 1 == len(self.blocks)  # of which only keys and values are read
            x, memory = block(x, table, causal=None if last else causal, only_from=x.shape[1] if last else 0)
            memories.append(memory)
        return Remembered(memories, signals, index)

    def predict(self, remembered: Remembered, index: Index, mask_token: int | None = None) -> Tensor:
        """Targets [B, Nt, D] at `index` from a remembered context. Raises ValueError as `remember` does."""
        if self._needs_mask(remembered.places, index):
            raise ValueError(f"causal targets must be whole tubelets of {self.config.tokens} after the context")
        causal = self._causal(index)
        q = self._ask(index, len(remembered.memories[0][0]), mask_token)
        table = self._rope(index, q)
        for i, (block, memory) in enumerate(zip(self.blocks, remembered.memories, strict=True)):
            q, _ = block(self._inject(i, q, remembered.signals), table, memory, causal)
        return self.out(self.norm(q))

    def _causal(self, index: Index) -> int | None:
        """Tokens per block of block-causal attention over this index set, None for attention without order."""
        if self.config.attention == "full":
            raise ValueError("with attention 'full' the context looks at the targets; it cannot be read beforehand")
        if self.config.attention == "two_stream":
            return None
        if not self._whole(index):
            raise ValueError(f"a causal context must be a range of whole tubelets of {self.config.tokens} tokens")
        return self.config.tokens

    def _whole(self, index: Index) -> bool:
        tokens = self.config.tokens
        return isinstance(index, range) and index.step == 1 and not (index.start % tokens or index.stop % tokens)

    def _needs_mask(self, context: Index, targets: Index) -> bool:
        """Whether causal attention cannot be cut into tubelets: decided by ranges alone, never by values."""
        if self.config.attention != "causal":
            return False
        if not (isinstance(context, range) and isinstance(targets, range)):
            return True
        return not (self._whole(context) and self._whole(targets) and context.stop <= targets.start)

    def _signals(self, payload: Payload | None) -> list[Any] | None:
        if payload is None or payload.empty:
            return None
        if self.guide is None:
            raise ValueError("this predictor was built without guidance")
        return self.guide.prepare(payload)

    def _inject(self, block: int, x: Tensor, signals: list[Any] | None) -> Tensor:
        return x if signals is None or self.guide is None else self.guide.inject(block, x, signals[block])

    def _embed(self, context: Tensor, index: Index) -> Tensor:
        count = len(index) if isinstance(index, range) else index.shape[-1]
        if context.shape[1] != count:
            raise ValueError(f"the context has {context.shape[1]} tokens and {count} places")
        x = self.embed(context)
        return x if self.table is None else x + self.table[_places(index, self.table.device)]

    def _ask(self, index: Index, batch: int, mask_token: int | None) -> Tensor:
        query = self.queries[self.config.mask_token if mask_token is None else mask_token]
        count = len(index) if isinstance(index, range) else index.shape[-1]
        q = query if self.table is None else query + self.table[_places(index, self.table.device)]
        return q.expand(batch, count, -1)

    def _joined(self, x: Tensor, context: Index, targets: Index) -> tuple[rope.Rope, Tensor | None]:
        """Rotary table of context and targets, and the mask of causal attention, bool [N, N] or [B, 1, N, N]."""
        parts = [self._rope(context, x), self._rope(targets, x)]
        rows = max(part[0].dim() for part in parts)
        if rows > 2:  # one of them differs by row of the batch
            parts = [tuple(t.expand(len(x), 1, *t.shape[-2:]) for t in part) for part in parts]  # type: ignore[misc]
        table = (torch.cat((parts[0][0], parts[1][0]), -2), torch.cat((parts[0][1], parts[1][1]), -2))
        if self.config.attention != "causal":
            return table, None
        places = [_places(index, x.device) for index in (context, targets)]
        if rows > 2:
            places = [p.expand(len(x), -1) for p in places]
        tubelet = torch.cat(places, -1) // self.config.tokens
        mask = tubelet[..., :, None] >= tubelet[..., None, :]
        return table, mask[:, None] if rows > 2 else mask

    def _rope(self, index: Index, x: Tensor) -> rope.Rope:
        """cos and sin in the type of x: [n, head_dim], or [B, 1, n, head_dim] of an index set per row."""
        if not isinstance(index, range):
            table = self._rotation(index.to(x.device))
            return _cast(table if index.dim() == 1 else tuple(t[:, None] for t in table), x)
        key = (index, x.dtype, x.device)
        if key not in self._ropes:
            if len(self._ropes) >= _LAYOUTS:
                self._ropes.clear()
            with torch.inference_mode(False):
                self._ropes[key] = _cast(self._rotation(_places(index, x.device)), x)
        return self._ropes[key]

    def _rotation(self, places: Tensor) -> rope.Rope:
        rows, columns = self.config.rows, self.config.columns
        rest = places % (rows * columns)
        position = torch.stack((places // (rows * columns), rest // columns, rest % columns), -1)
        head_dim = self.config.width // self.config.heads
        if self.config.positions == "table":
            position, form = torch.zeros_like(position), "tiled"
        else:
            form = self.config.positions
        cos, sin = rope.table(position.reshape(-1, 3), head_dim, form)  # type: ignore[arg-type]
        return cos.view(*places.shape, head_dim), sin.view(*places.shape, head_dim)


def _guide(config: GuidedConfig) -> Guide:
    size = (config.depth, config.width, config.guide_widths, config.guide_map)
    if config.guide_mode == "cross":
        return Cross(*size, config.heads, config.published)
    return (PublishedFilm if config.published else Film)(*size, config.guide_mode, config.guide_hidden)


def _places(index: Index, device: torch.device) -> Tensor:
    if isinstance(index, range):
        return torch.arange(index.start, index.stop, index.step, device=device)
    return index.to(device)


def _cast(table: tuple[Tensor, ...], x: Tensor) -> rope.Rope:
    return table[0].to(x.dtype), table[1].to(x.dtype)
