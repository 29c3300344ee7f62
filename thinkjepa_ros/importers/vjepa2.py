"""V-JEPA 2 and 2.1: the encoder of a Hugging Face `VJEPA2Model` folder or of Meta's original `.pt`.

Both hold the same numbers under different names; the Hugging Face ones are first put under Meta's. V-JEPA 2 uses tiled
rotary positions; 2.1 uses interleaved ones on a stretched grid, has a patch embedding for single images beside that for
video, and a constant vector per modality, which is added to the bias of its patch embedding here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..jepa.encoder import Encoder, EncoderConfig
from .blocks import Read, block
from .source import Options, Part, Source, SourceError

TITLE = "V-JEPA 2 and 2.1 encoders"
KIND = "encoder"
BUILD: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {KIND: lambda config: Encoder(EncoderConfig(**config))}

#: Sections of Meta's files, best first: the averaged weights are those that were evaluated and released.
_SECTIONS = ("target_encoder", "ema_encoder", "encoder", "")
_META = "patch_embed.proj.weight"
_HF = "encoder.embeddings.patch_embeddings.proj.weight"
#: Heads cannot be seen in the weights: tiny, small, B, L, H, g, G.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
#: Pixels per side of the images on whose grid the rows and columns of 2.1 are stretched.
_GRID_PIXELS = 256
_HF_NAMES = (
    ("encoder.embeddings.patch_embeddings.proj.", "patch_embed.proj."),
    ("encoder.layernorm.", "norm."),
    ("encoder.layer.", "blocks."),
)


def recognises(source: Source) -> bool:
    """Whether there is a V-JEPA 2 encoder."""
    return _section(source) is not None


def convert(source: Source, options: Options) -> list[Part]:
    """The encoder as one part. Raises SourceError where the weights are not those of a V-JEPA 2 encoder."""
    found = _section(source)
    if found is None:
        return []
    name, state = found
    notes = [f"taken from {name!r}"] if name else []
    try:
        state = _published_names(source, state)
        config, notes_of_config = _config(source, state, options)
        notes += notes_of_config
        out, used = _encoder(state, config)
    except KeyError as error:
        raise SourceError(f"{source.path}: no tensor {error.args[0]}. The file is cut, or not an encoder.") from None
    except (IndexError, RuntimeError) as error:  # torch stumbles over a shape
        raise SourceError(f"{source.path}: tensors do not fit together ({str(error).splitlines()[0]}).") from None
    _check_shapes(source, out, config)
    left = sorted(state.keys() - used - {"pos_embed"})
    if left:
        raise SourceError(
            f"{source.path}: {', '.join(left[:3])} are not part of a V-JEPA 2 encoder; nothing was imported."
        )
    return [Part(KIND, KIND, dataclasses.asdict(config), out, "; ".join(notes))]


def _section(source: Source) -> tuple[str, dict[str, Tensor]] | None:
    """Name and tensors of the best section that holds an encoder, without prefixes."""
    for name in (*_SECTIONS, *source.sections):
        state = source.sections.get(name, {})
        for mark in (_META, _HF):
            prefix = next((key.removesuffix(mark) for key in state if key.endswith(mark)), None)
            if prefix is not None and re.fullmatch(r"(w\.|vjepa2\.)?", prefix):
                return name, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return None


def _published_names(source: Source, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under Meta's names, with query, key and value fused."""
    if _META in state:
        return state
    act = source.config.get("hidden_act", "gelu")
    if act != "gelu":
        raise SourceError(f"{source.path}: hidden_act is {act!r}; V-JEPA 2 uses exact 'gelu', and so do we.")
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, meta in _HF_NAMES:
            if name.startswith(theirs) and ".attention." not in name:
                out[meta + name.removeprefix(theirs)] = tensor
    for i in range(_depth(out)):
        theirs, meta = f"encoder.layer.{i}.attention.", f"blocks.{i}.attn."
        out[f"{meta}proj.weight"], out[f"{meta}proj.bias"] = state[f"{theirs}proj.weight"], state[f"{theirs}proj.bias"]
        weights = [state[f"{theirs}{part}.weight"] for part in ("query", "key", "value")]
        out[f"{meta}qkv.weight"] = torch.cat(weights)
        without = not source.config.get("qkv_bias", True)
        out[f"{meta}qkv.bias"] = torch.cat(
            [w.new_zeros(len(w)) for w in weights]
            if without
            else [state[f"{theirs}{part}.bias"] for part in ("query", "key", "value")]
        )
    return out


def _depth(state: dict[str, Tensor]) -> int:
    """Blocks count from 0 without a gap; a tensor of a later one is found to belong to nothing."""
    named = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    return next(i for i in range(len(named) + 1) if i not in named)


def _config(source: Source, state: dict[str, Tensor], options: Options) -> tuple[EncoderConfig, list[str]]:
    """Sizes from the weights; what weights do not show from the file's words, its name, the paper or the options."""
    told = {**source.args, **source.metadata, **source.config}
    patches = state[_META]
    if patches.dim() == 4:  # an image model: a convolution in two dimensions
        patches = patches.unsqueeze(2)
    if patches.dim() != 5 or patches.shape[1] != 3 or patches.shape[3] != patches.shape[4]:
        raise SourceError(f"{source.path}: {_META} is {list(patches.shape)}, must be [width, 3, frames, patch, patch].")
    width, _, tubelet, patch, _ = patches.shape
    heads = _number(source, told, "num_attention_heads", "num_heads") or _HEADS.get(width) or options.heads
    if heads is None:
        raise SourceError(
            f"{source.path}: how many heads an encoder of width {width} has is not in the file; give it with --heads."
        )
    notes = []
    size = _number(source, told, "crop_size", "img_size")
    if size is None:
        size = 384 if "384" in source.path.name else 256
        notes.append(f"made for images of {size} pixels, to judge by the file's name")
    # the published sizes are built by functions that set the epsilon; files that list the arguments of the class below
    # them (test vectors do) were made with its default
    eps = told.get("layer_norm_eps", 1e-5 if "embed_dim" in source.metadata else 1e-6)
    newer = "norms_block.0.weight" in state  # 2.1
    if newer:
        notes.append("V-JEPA 2.1: only the norm of the last level is kept")
    try:
        config = EncoderConfig(
            image_size=size,
            patch_size=patch,
            width=width,
            depth=_depth(state),
            heads=heads,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            tubelet=tubelet,
            rope="interleaved" if newer else "tiled",
            rope_grid=_GRID_PIXELS // patch if newer else 0,
            attention="full",
            norm_eps=float(eps),
            image_patches="patch_embed_img.proj.weight" in state,
        )
    except (ValueError, TypeError) as error:
        raise SourceError(f"{source.path}: the encoder's configuration is not usable ({error}).") from None
    return config, notes


def _check_shapes(source: Source, out: dict[str, Tensor], config: EncoderConfig) -> None:
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Encoder(config).state_dict().items()}
    for name, shape in wanted.items():
        if name not in out or out[name].shape != shape:
            got = list(out[name].shape) if name in out else "missing"
            raise SourceError(f"{source.path}: {name} is {got}, an encoder of these sizes needs {list(shape)}.")


def _number(source: Source, told: dict[str, Any], *names: str) -> int | None:
    """The first of these that the file states: a whole number, or the first of a pair ("(256, 256)")."""
    value = next((told[name] for name in names if told.get(name) is not None), None)
    if value is None:
        return None
    found = re.match(r"[\[(]?(\d{1,6})\b", str(value))
    if found is None or not int(found[1]):
        raise SourceError(f"{source.path}: {names[0]} is {str(value)[:40]!r}, must be a positive whole number.")
    return int(found[1])


def _encoder(state: dict[str, Tensor], config: EncoderConfig) -> tuple[dict[str, Tensor], set[str]]:
    """Our tensors, and the names of those they were made of. Raises KeyError naming a tensor that is missing."""
    read = Read(state)
    out: dict[str, Tensor] = {}
    for theirs, ours, modality in (
        ("patch_embed", "patch_embed", "video_mod_embed"),
        ("patch_embed_img", "image_patch_embed", "img_mod_embed"),
    ):
        if f"{theirs}.proj.weight" in state:
            out[f"{ours}.weight"] = read[f"{theirs}.proj.weight"].flatten(1)
            out[f"{ours}.bias"] = read[f"{theirs}.proj.bias"]
            if modality in state:
                out[f"{ours}.bias"] = out[f"{ours}.bias"] + read[modality].flatten()
    for i in range(config.depth):
        out |= block(read, f"blocks.{i}.", config.heads, f"blocks.{i}.")
    norm = "norm"
    levels = {name.split(".")[1] for name in state if name.startswith("norms_block.")}
    if levels:
        read.used |= {name for name in state if name.startswith("norms_block.")}
        norm = f"norms_block.{max(map(int, levels))}"
    out["norm.weight"], out["norm.bias"] = read[f"{norm}.weight"], read[f"{norm}.bias"]
    return {name: tensor.float().contiguous() for name, tensor in out.items()}, read.used
