"""V-JEPA 2-AC: the action-conditioned predictor of `vjepa2-ac-vitg.pt`, or of any file with the same tensor names.

The encoder of that file is V-JEPA 2's and is imported by `importers.vjepa2`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..jepa import ac
from .blocks import block
from .source import Options, Part, Source, SourceError

TITLE = "V-JEPA 2-AC"
BUILD: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    ac.KIND: lambda config: ac.ACPredictor(ac.ACConfig.from_dict(config))
}

_OURS = {
    "predictor_embed": "embed",
    "action_encoder": "action",
    "state_encoder": "state",
    "extrinsics_encoder": "extrinsics",
    "predictor_norm": "norm",
    "predictor_proj": "out",
}
_MARK = "action_encoder.weight"
#: Published: width 1024 with 16 heads. The number of heads cannot be seen in the weights.
_HEADS = {1024: 16}
#: The published weights are built by a function that sets the epsilon of the layer norms. The class below it leaves
#: torch's default; files that list its arguments (test vectors do) were made with the class.
_PUBLISHED_EPS, _CLASS_EPS = 1e-6, 1e-5


def recognises(source: Source) -> bool:
    """Whether there are weights of an action-conditioned predictor."""
    return source.section(_MARK) is not None


def convert(source: Source, options: Options) -> list[Part]:
    """The predictor as one part. Raises SourceError where the weights are not those of V-JEPA 2-AC."""
    state = source.section(_MARK)
    if state is None:
        return []
    told = {**source.args, **source.metadata}
    config, note = _config(source, state, told, options)
    out = {
        f"{ours}.{part}": _get(source, state, f"{theirs}.{part}")
        for theirs, ours in _OURS.items()
        for part in ("weight", "bias")
    }
    try:
        for i in range(config.depth):
            out |= block(state, f"predictor_blocks.{i}.", config.heads, f"blocks.{i}.")
    except KeyError as error:
        raise SourceError(f"{source.path}: no tensor {error.args[0]}. The file is cut, or not {TITLE}.") from None
    except IndexError:
        raise SourceError(f"{source.path}: a bias is shorter than its weight. The file was changed.") from None
    if len(out) != len(state):
        known = tuple(f"{name}." for name in (*_OURS, "predictor_blocks"))
        odd = sorted(name for name in state if not name.startswith(known)) or ["in the blocks"]
        raise SourceError(f"{source.path}: {len(state) - len(out)} tensors are not {TITLE}'s ({', '.join(odd[:3])}).")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ac.ACPredictor(config).state_dict().items()}
    for name, tensor in out.items():
        if tensor.shape != shapes[name]:
            raise SourceError(
                f"{source.path}: {name} (our name) is {list(tensor.shape)}, others ask for {list(shapes[name])}."
            )
    return [Part(ac.KIND, ac.KIND, dataclasses.asdict(config), out, note)]


def _config(
    source: Source, state: dict[str, Tensor], told: dict[str, Any], options: Options
) -> tuple[ac.ACConfig, str]:
    """Sizes from the weights; what weights do not show from the file's own words, the options, or the paper."""
    blocks = {int(match[1]) for name in state if (match := re.match(r"predictor_blocks\.(\d+)\.", name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise SourceError(f"{source.path}: the predictor's blocks are {sorted(blocks)[:8]}, must count from 0.")
    if any(name.endswith("mlp.fc3.weight") for name in state) or _flag(source, told, "use_silu", False):
        raise SourceError(
            f"{source.path}: blocks with SwiGLU (use_silu) are not supported; the published ones use GELU."
        )
    if not _flag(source, told, "is_frame_causal", True):
        raise SourceError(
            f"{source.path}: is_frame_causal=False has no meaning here: the published code cannot run it."
        )
    width, latent = _matrix(source, state, "predictor_embed.weight")
    hidden = _matrix(source, state, "predictor_blocks.0.mlp.fc1.weight")[0]
    heads = options.heads or _number(source, told, "num_heads") or _HEADS.get(width)
    if heads is None:
        raise SourceError(
            f"{source.path}: the number of attention heads is not in the weights and is known only for width 1024 "
            f"(16), not {width}; give it with --heads."
        )
    patch = _number(source, told, "patch_size") or 16
    height, wide = _image(source, told)
    eps = _value(source, told, "layer_norm_eps")
    if eps is None:
        eps = _CLASS_EPS if "predictor_embed_dim" in source.metadata else _PUBLISHED_EPS
    try:
        config = ac.ACConfig.from_dict(
            {
                "latent_width": latent,
                "width": width,
                "depth": len(blocks),
                "heads": heads,
                "rows": height // patch,
                "columns": wide // patch,
                "mlp_ratio": hidden / width,
                "action_dim": _matrix(source, state, "action_encoder.weight")[1],
                "extrinsics": _flag(source, told, "use_extrinsics", False),
                "rotary": _flag(source, told, "use_rope", True),
                "norm_eps": eps,
            }
        )
    except (ValueError, TypeError) as error:
        raise SourceError(f"{source.path}: {error}. If the number of heads is wrong, give it with --heads.") from None
    note = (
        f"Not to be seen in the weights: {heads} heads, {config.rows} x {config.columns} patches, "
        f"layer norms with epsilon {config.norm_eps:g}."
    )
    return config, note


def _get(source: Source, state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise SourceError(f"{source.path}: no tensor {name}. The file is cut, or not {TITLE}.")
    return state[name]


def _matrix(source: Source, state: dict[str, Tensor], name: str) -> tuple[int, int]:
    shape = tuple(_get(source, state, name).shape)
    if len(shape) != 2 or not all(shape):
        raise SourceError(f"{source.path}: {name} is {list(shape)}, a matrix is needed.")
    return shape


def _value(source: Source, told: dict[str, Any], name: str) -> Any:
    """A setting that the file states, or None. Metadata of safetensors is text: "(64, 96)", "True", "4"."""
    value = told.get(name)
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise SourceError(f"{source.path}: {name} is {value[:40]!r}, not a number, a pair or a truth value.") from None


def _number(source: Source, told: dict[str, Any], name: str) -> int | None:
    value = _value(source, told, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SourceError(f"{source.path}: {name} is {value!r}, must be a positive whole number.")
    return value


def _flag(source: Source, told: dict[str, Any], name: str, default: bool) -> bool:
    value = _value(source, told, name)
    if value is not None and not isinstance(value, bool):
        raise SourceError(f"{source.path}: {name} is {value!r}, must be True or False.")
    return default if value is None else value


def _image(source: Source, told: dict[str, Any]) -> tuple[int, int]:
    """Height and width in pixels; 256 where the file does not say."""
    value = _value(source, told, "img_size")
    if value is None:
        value = 256
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(type(x) is int and x > 0 for x in value)):
        raise SourceError(f"{source.path}: img_size is {value!r}, must be a number of pixels or a pair of them.")
    return value[0], value[1]
