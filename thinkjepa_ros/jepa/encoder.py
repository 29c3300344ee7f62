"""The encoder: a V-JEPA 2 vision transformer (arXiv 2506.09985), for clips and for single frames.

A tubelet of frames becomes a grid of patch tokens. What a tubelet may look at is the `attention` of the configuration:

- "frame": itself alone, as in V-JEPA 2-AC. A stream encodes every frame once; motion is left to the predictor.
- "full": the whole clip, as the released weights were trained. A latent then knows of later frames of its clip.
- "causal": itself and the tubelets before it, at most `window` in all. `streaming.StreamingEncoder` runs it stepwise.

A single frame (`frames`) is encoded alike in all of them: alone, as its own tubelet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import rope
from .layers import EPS, Block, initialise

#: ImageNet statistics, those of V-JEPA 2, in units of 8-bit pixels.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

Attention = Literal["frame", "full", "causal"]
#: Pixels are counted from here: it keeps the sums of the patch embedding, and so their rounding, small.
_MIDDLE = 128
#: Tables of so many shapes are kept; a stream has one or two.
_SHAPES = 16


@dataclass(frozen=True)
class EncoderConfig:
    """Raises ValueError naming the field that makes no sense."""

    image_size: int = 128  #: of training, pixels per side; other sizes are encoded too
    patch_size: int = 16
    width: int = 128
    depth: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0
    tubelet: int = 1  #: frames per tubelet
    rope: rope.Form = "interleaved"
    rope_grid: int = 0  #: rows and columns are stretched onto a grid of so many (V-JEPA 2.1: 16); 0 leaves them
    attention: Attention = "frame"
    norm_eps: float = EPS  #: of the layer norms
    image_patches: bool = False  #: single frames have a patch embedding of their own (V-JEPA 2.1)
    window: int = 0  #: how many tubelets a tubelet sees with causal attention, its own included; 0 for all

    def __post_init__(self) -> None:
        for name, known in (("rope", get_args(rope.Form)), ("attention", get_args(Attention))):
            if getattr(self, name) not in known:
                raise ValueError(f"encoder {name} is {getattr(self, name)!r}, must be one of {', '.join(known)}")
        for name, least in (("patch_size", 1), ("tubelet", 1), ("heads", 1), ("rope_grid", 0), ("window", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"encoder {name} is {value!r}, must be a whole number of at least {least}")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ValueError(f"encoder norm_eps is {self.norm_eps!r}, must be a number between 0 and 1")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"encoder width {self.width} is not a multiple of heads {self.heads} with an even quotient"
            )
        if self.window and self.attention != "causal":
            raise ValueError(f"encoder window {self.window} needs attention 'causal', it is {self.attention!r}")

    @property
    def grid(self) -> int:
        """Tokens per side of an image of the training size."""
        return self.image_size // self.patch_size


class _Folded(NamedTuple):
    """A prepared patch embedding, and what it was made of (held, so that its memory is not given to other weights)."""

    weight: Tensor
    bias: Tensor
    from_weight: Tensor
    from_bias: Tensor
    weight_version: int
    bias_version: int

    def made_of(self, weight: Tensor, bias: Tensor) -> bool:
        return (
            self.from_weight.data_ptr() == weight.data_ptr()
            and self.from_bias.data_ptr() == bias.data_ptr()
            and (self.weight_version, self.bias_version) == (weight._version, bias._version)
        )


class Encoder(nn.Module):
    """uint8 video [B, T, H, W, 3] -> latents [B, T / tubelet, n, width], tokens row-major.

    Weights that need no gradient are prepared once: the normalisation is folded into the patch embedding, and rotary
    tables are kept per shape. A change of those weights is noticed, except one made through `.data`.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(3 * config.tubelet * config.patch_size**2, config.width)
        embeddings = [self.patch_embed]
        if config.image_patches:
            self.image_patch_embed = nn.Linear(3 * config.patch_size**2, config.width)
            embeddings.append(self.image_patch_embed)
        for embedding in embeddings:
            nn.init.trunc_normal_(embedding.weight, std=0.02)
            nn.init.zeros_(embedding.bias)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        initialise(self.blocks)
        self.norm = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
        self._folded: dict[bool, _Folded] = {}
        self._tables: dict[tuple[Any, ...], rope.Rope] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": {}, "_tables": {}}  # a copy prepares its own weights

    def frames(self, images: Tensor) -> Tensor:
        """Encode each image alone: uint8 [B, H, W, 3] -> [B, n, width]. A tubelet is filled by repeating the frame."""
        if images.dim() != 4:
            raise ValueError(f"images are {list(images.shape)}, must be [B, H, W, 3]")
        return self(images[:, None])[:, 0]

    def forward(self, video: Tensor, keep: Tensor | None = None) -> Tensor:
        """video: uint8, or floating in 8-bit units, [B, T, H, W, 3]; H and W multiples of the patch, T of the tubelet
        or 1 (repeated to fill it). Returns [B, T / tubelet, n, width].

        keep: which tokens the encoder sees, int64 [B, K] counted over [T / tubelet, n]; the result is [B, K, width] in
        that order. Unless attention is "full" it must hold equally many tokens of every tubelet, in order of time, as
        masks of whole tubes do.
        """
        x, times, rows, columns = self.embed(video)
        batch, n = len(x), rows * columns
        mode = self.config.attention if times > 1 else "full"
        table = self.table(1 if mode == "frame" else times, rows, columns, x)
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
            if mode != "full":
                n = self._per_tubelet(keep, times, n)
            if mode == "frame":
                keep = (keep % (rows * columns)).view(batch * times, n)
            table = (table[0][keep][:, None], table[1][keep][:, None])  # the same for every head
        if mode == "frame":
            x = x.reshape(batch * times, n, -1)
        size, window = (n, self.config.window or None) if mode == "causal" else (None, None)
        for block in self.blocks:
            x, _ = block(x, table, causal=size, window=window)
        return self.norm(x).view(batch, *((-1,) if keep is not None else (times, n)), x.shape[-1])

    def embed(self, video: Tensor) -> tuple[Tensor, int, int, int]:
        """Patch tokens [B, times * rows * columns, width] of a video [B, T, H, W, 3], and times, rows, columns."""
        config, patch = self.config, self.config.patch_size
        if video.dim() != 5 or video.shape[-1] != 3 or 0 in video.shape:
            raise ValueError(f"video is {list(video.shape)}, must be [B, T, H, W, 3]")
        batch, steps, height, width, _ = video.shape
        if height % patch or width % patch:
            raise ValueError(
                f"frames of {height}x{width} are not whole patches of {patch}x{patch}; resize or crop them"
            )
        still = steps == 1 and (config.tubelet > 1 or config.image_patches)
        if not still and steps % config.tubelet:
            raise ValueError(f"{steps} frames are not whole tubelets of {config.tubelet}")
        tubelet = 1 if still else config.tubelet
        times, rows, columns = steps // tubelet, height // patch, width // patch
        weight, bias = self._patch_weights(still)
        # exact: flipping the top bit of 0 ... 255 gives -128 ... 127 in two's complement
        centred = (video ^ _MIDDLE).view(torch.int8) if video.dtype == torch.uint8 else video - _MIDDLE
        # one pass that sorts and casts; pixels of a patch row stay neighbours, the weights are sorted to match
        x = centred.view(batch, times, tubelet, rows, patch, columns, patch, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
        x = x.to(weight.dtype, memory_format=torch.contiguous_format).reshape(batch, times * rows * columns, -1)
        return F.linear(x, weight, bias), times, rows, columns

    def table(self, times: int, rows: int, columns: int, like: Tensor) -> rope.Rope:
        """Rotary table of a token grid in the type and on the device of `like`, kept for the next call."""
        return self._table(times, rows, columns, like.dtype, like.device)

    @torch.compiler.assume_constant_result  # a compiled graph holds the finished table
    def _table(self, times: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> rope.Rope:
        key = (times, rows, columns, dtype, device)
        if key not in self._tables:
            if len(self._tables) >= _SHAPES:
                self._tables.clear()
            with torch.inference_mode(False):  # training may use it later
                cos, sin = rope.table(
                    self.positions(torch.arange(times), rows, columns),
                    self.config.width // self.config.heads,
                    self.config.rope,
                )
                self._tables[key] = cos.to(device, dtype), sin.to(device, dtype)
        return self._tables[key]

    def positions(self, times: Tensor, rows: int, columns: int) -> Tensor:
        """Rotary positions, float64 [len(times) * rows * columns, 3]; rows and columns stretched onto `rope_grid`."""
        positions = rope.grid(times, rows, columns)
        if self.config.rope_grid:
            last = self.config.rope_grid - 1
            stretch = [1.0, *(last / (side - 1) if side > 1 else 0.0 for side in (rows, columns))]
            positions = positions * torch.tensor(stretch, dtype=torch.float64)
        return positions

    def _patch_weights(self, still: bool) -> tuple[Tensor, Tensor]:
        """Weight and bias of the patch embedding for raw pixels; `still` for a single frame."""
        embedding = self.image_patch_embed if still and self.config.image_patches else self.patch_embed
        weight, bias = embedding.weight, embedding.bias
        if torch.compiler.is_compiling() or weight.requires_grad or bias.requires_grad:
            return self._fold(weight, bias, still)  # a compiled graph has it inside, training changes the weights
        if weight.is_inference() or bias.is_inference():
            return self._fold(weight, bias, still)  # such tensors do not count their changes
        held = self._folded.get(still)
        if held is None or not held.made_of(weight, bias):
            with torch.inference_mode(False):
                made = self._fold(weight, bias, still)
            held = _Folded(*made, weight.detach(), bias.detach(), weight._version, bias._version)
            self._folded[still] = held
        return held.weight, held.bias

    def _fold(self, weight: Tensor, bias: Tensor, still: bool) -> tuple[Tensor, Tensor]:
        """(x - mean) / std followed by the patch embedding is one linear map of x: W / std and b - W mean / std. Here x
        and mean are counted from _MIDDLE.

        In float64, since the terms of the bias nearly cancel, and with the bias of the rounded W / std, so that an
        average pixel stays at zero whatever the type.
        """
        patch = self.config.patch_size
        w = weight.double().view(len(weight), 3, -1, patch, patch).permute(0, 2, 3, 4, 1)
        w = w / torch.tensor(STD, dtype=torch.float64, device=w.device)
        if still:
            w = w.sum(1, keepdim=True)  # the same frame fills the tubelet
        w = w.to(weight.dtype)
        mean = torch.tensor(MEAN, dtype=torch.float64, device=w.device) - _MIDDLE
        b = bias.double() - (w.double() * mean).flatten(1).sum(1)
        return w.flatten(1), b.to(bias.dtype)

    @staticmethod
    def _per_tubelet(keep: Tensor, times: int, n: int) -> int:
        if keep.shape[1] % times:
            raise ValueError(f"{keep.shape[1]} kept tokens are not equally many of {times} tubelets")
        count = keep.shape[1] // times
        if keep.is_cpu and bool((keep.view(-1, times, count) // n != torch.arange(times)[:, None]).any()):
            raise ValueError("kept tokens must be equally many of every tubelet, in order of time")
        return count


def pool(latents: Tensor, grid: int, pooled: int) -> Tensor:
    """Mean-pool latents [..., grid * grid, D] to [..., pooled * pooled, D]: one token per square of neighbours."""
    *lead, n, width = latents.shape
    if n != grid * grid or grid % pooled:
        raise ValueError(f"cannot pool {n} tokens of a {grid}x{grid} grid to {pooled}x{pooled}")
    step = grid // pooled
    squares = latents.reshape(*lead, pooled, step, pooled, step, width)
    return squares.mean(-2).mean(-3).reshape(*lead, pooled * pooled, width)  # one axis at a time is ten times as fast
