"""The trajectory head of ThinkJEPA: `cls_model` of ckpt_best.pt, or a file with the same tensor names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..jepa.published_head import KIND, HeadConfig, TrajectoryHead
from .source import Options, Part, Source, SourceError

TITLE = "ThinkJEPA's trajectory head"
BUILD: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {KIND: lambda config: TrajectoryHead(HeadConfig(**config))}

_MARK = "temporal_mlp.0.weight"
_POOL_MARK = "token_query"
_OURS = {
    "ln_in": "norm1",
    "mlp_in.0": "embed",
    "temporal_mlp.0": "fc1",
    "temporal_mlp.3": "fc2",
    "ln_out": "norm2",
    "fc_out": "out",
}
#: Of the predictor, in its new and its old name. `--heads` means the predictor where there is one.
_PREDICTOR = ("context_adapter.weight", "predictor_embed.weight")
#: Published; the number cannot be seen in the weights.
_HEADS = 8


def recognises(source: Source) -> bool:
    """Whether there are weights of a trajectory head."""
    return source.section(_MARK) is not None


def convert(source: Source, options: Options) -> list[Part]:
    """The head as one part. Raises SourceError where the weights are not those of the published head."""
    part = head(source, options)
    return [] if part is None else [part]


def head(source: Source, options: Options) -> Part | None:
    """The head in `source`, or None. Sizes come from the weights; heads and downsampling are what the file, the
    options or the paper say.
    """
    state = source.section(_MARK)
    if state is None:
        return None
    told = {**source.args, **source.metadata}
    hidden, width = _matrix(source, state, "mlp_in.0.weight")
    outputs, _ = _matrix(source, state, "fc_out.weight")
    if outputs % 3:
        raise SourceError(f"{source.path}: fc_out.weight has {outputs} rows, must be three for every joint.")
    pooled = _POOL_MARK in state
    heads = (None if source.section(*_PREDICTOR) else options.heads) or _number(source, told, "nhead") or _HEADS
    downsample = _flag(source, told, "downsample", _flag(source, told, "joint_pred", False))
    try:
        config = HeadConfig(width, hidden, outputs // 3, heads if pooled else 0, downsample)
    except ValueError as error:
        raise SourceError(f"{source.path}: {error}. If the number of heads is wrong, give it with --heads.") from None
    taken = set()

    def take(name: str) -> Tensor:
        if name not in state:
            raise SourceError(f"{source.path}: no tensor {name}. The file is cut, or not {TITLE}.")
        taken.add(name)
        return state[name]

    out = {f"{ours}.{p}": take(f"{theirs}.{p}") for theirs, ours in _OURS.items() for p in ("weight", "bias")}
    if pooled:
        out["pool.token"] = take(_POOL_MARK).flatten()
        for p, name in (("weight", "token_attn.in_proj_weight"), ("bias", "token_attn.in_proj_bias")):
            joint = take(name)
            if joint.shape[:1] != (3 * width,):
                raise SourceError(f"{source.path}: {name} is {list(joint.shape)}, must have {3 * width} rows.")
            for ours, rows in zip(("query", "key", "value"), joint.split(width), strict=True):
                out[f"pool.{ours}.{p}"] = rows.clone()
            out[f"pool.proj.{p}"] = take(f"token_attn.out_proj.{p}")
    if odd := sorted(state.keys() - taken):
        raise SourceError(f"{source.path}: {len(odd)} tensors are not {TITLE}'s ({', '.join(odd[:3])}).")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TrajectoryHead(config).state_dict().items()}
    for name, tensor in out.items():
        if tensor.shape != shapes[name]:
            raise SourceError(
                f"{source.path}: {name} (our name) is {list(tensor.shape)}, others ask for {list(shapes[name])}."
            )
    pooling = f"{heads} heads pool the tokens" if pooled else "tokens are averaged"
    steps = "averages pairs of steps" if downsample else "one output per latent"
    return Part(KIND, KIND, dataclasses.asdict(config), out, f"Not to be seen in the weights: {pooling}, {steps}.")


def _matrix(source: Source, state: dict[str, Tensor], name: str) -> tuple[int, int]:
    if name not in state:
        raise SourceError(f"{source.path}: no tensor {name}. The file is cut, or not {TITLE}.")
    shape = tuple(state[name].shape)
    if len(shape) != 2 or not all(shape):
        raise SourceError(f"{source.path}: {name} is {list(shape)}, a matrix is needed.")
    return shape


def _number(source: Source, told: dict[str, Any], name: str) -> int | None:
    value = told.get(name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SourceError(f"{source.path}: {name} is {value!r}, must be a positive whole number.")
    return value


def _flag(source: Source, told: dict[str, Any], name: str, default: bool) -> bool:
    value = told.get(name, default)
    words = {"True": True, "true": True, "False": False, "false": False}
    value = words.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise SourceError(f"{source.path}: {name} is {value!r}, must be True or False.")
    return value
