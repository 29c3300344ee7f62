"""ThinkJEPA (arXiv 2603.22281) and the mask predictor of V-JEPA 2 (arXiv 2506.09985): one architecture, three sets of
names.

`ckpt_best.pt` of ThinkJEPA in its current and its older names, with FiLM, AdaLN or cross-attention guidance or none;
the "predictor" section of Meta's V-JEPA 2 files; the predictor of a Hugging Face `VJEPA2Model` folder. All are first
put under ThinkJEPA's current names.

What the weights do not tell is how a token's place becomes a position (`Options.layout`):

- "grid": V-JEPA 2, square grid of (time, row, column), full attention.
- "v1": ThinkJEPA as in the paper: pseudo-frames of 128 tokens at (0, time, place), full attention, block i guided by
  layer i and blocks beyond the last layer by an empty summary.
- "v2": its causal successor: frames of 256 tokens at (time, place, 0), attention causal by frame, layers spread over
  the blocks.

A file that tells its image size (`img_size`, `crop_size`) has other numbers of tokens.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..jepa.guidance import LayerMap, Mode
from ..jepa.guided import GuidedConfig, GuidedPredictor
from .blocks import Read, block
from .source import Options, Part, Source, SourceError

TITLE = "ThinkJEPA predictors and the mask predictor of V-JEPA 2"
GUIDED, MASKED = "guided_predictor", "mask_predictor"
BUILD: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = dict.fromkeys(
    (GUIDED, MASKED), lambda config: GuidedPredictor(GuidedConfig(**config))
)

#: Older names (also V-JEPA 2's) to current ones; some stand for a module, some for a bare tensor.
_CURRENT = {
    "predictor_embed": "context_adapter",
    "mask_tokens": "query_templates",
    "predictor_pos_embed": "fixed_position_table",
    "predictor_blocks": "rollout_layers",
    "predictor_norm": "rollout_norm",
    "predictor_proj": "output_adapter",
    "vlm_old_proj": "guidance_old_adapter",
    "vlm_new_proj": "guidance_new_adapter",
    "vlm_adapters": "guidance_fusion_mlps",
    "vlm_adaln_norms": "guidance_prenorms",
    "vlm_cross_attn_norms": "guidance_query_norms",
    "vlm_cross_attn": "guidance_memory_readers",
    "vlm_gate": "guidance_layer_scale",
}
_HF_EMBED = "predictor.embeddings.predictor_embeddings"
_HF = {
    _HF_EMBED: "context_adapter",
    "predictor.layer": "rollout_layers",
    "predictor.layernorm": "rollout_norm",
    "predictor.proj": "output_adapter",
}
_HF_MASKS = "predictor.embeddings.mask_tokens"
#: Tokens per frame, and heads, of the published runs.
_TOKENS = {"v1": 128, "v2": 256, "grid": 256}
_HEADS = {GUIDED: 6, MASKED: 12}
#: Epsilon of the layer norms: the runs set it; the class they set it for leaves torch's default.
_TRAINED_EPS, _CLASS_EPS = 1e-6, 1e-5
#: What only the predictors of V-JEPA 2-AC and 2.1 have, which share the other names.
_OTHERS = {"action_encoder.weight", "video_mod_embed", "predictor_proj_context.weight"}
#: Only the causal successor writes this among its arguments.
_V2_ARGUMENT = "training_implementation_fingerprint"


def recognises(source: Source) -> bool:
    """Whether there is a masked predictor, guided or not."""
    return _find(source) is not None


def convert(source: Source, options: Options) -> list[Part]:
    """The predictor as one part. Raises SourceError where the weights or the layout do not fit."""
    found = _find(source)
    if found is None:
        return []
    kind, state = found
    told = {**source.args, **{k: _value(v) for k, v in source.metadata.items()}, **source.config}
    try:
        config, note = _config(source, kind, state, told, options)
        out, used = _weights(state, config)
        with torch.device("meta"):
            wanted = GuidedPredictor(config).state_dict()
    except KeyError as error:
        raise SourceError(f"{source.path}: no tensor {error.args[0]}. The file is cut, or not a predictor.") from None
    except (
        ValueError,
        TypeError,
        IndexError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # whatever a made-up file stumbles over
        raise SourceError(f"{source.path}: the predictor is not usable ({error}).") from None
    if left := sorted(state.keys() - used):
        raise SourceError(f"{source.path}: {', '.join(left[:3])} are not part of a predictor; nothing was imported.")
    for name, tensor in wanted.items():
        if out[name].shape != tensor.shape:
            shapes = f"{list(out[name].shape)}, must be {list(tensor.shape)}"
            raise SourceError(f"{source.path}: what becomes {name} is {shapes}; the tensors do not fit each other.")
    return [Part(kind, kind, dataclasses.asdict(config), out, note)]


def _find(source: Source) -> tuple[str, dict[str, Tensor]] | None:
    """Kind and tensors of the first predictor, under current names."""
    ours = "cls_model" in source.sections or str(source.args.get("predictor", "")) in ("thinkjepa", "official")
    for state in source.sections.values():
        if _OTHERS & state.keys():
            continue
        bare = {re.sub(r"^(w|vjepa2)\.", "", name): tensor for name, tensor in state.items()}
        if f"{_HF_EMBED}.weight" in bare:
            state = _from_hugging_face(bare)
        else:
            state = {_renamed(name): tensor for name, tensor in bare.items()}
        embed, out = state.get("context_adapter.weight"), state.get("output_adapter.weight")
        if embed is None or out is None or embed.shape[1:] != out.shape[:1]:
            continue
        thinks = ours or any(name.startswith("guidance_") for name in state)
        return GUIDED if thinks or _current(source) else MASKED, state
    return None


def _current(source: Source) -> bool:
    return source.section("rollout_norm.weight", "w.rollout_norm.weight") is not None


def _renamed(name: str) -> str:
    for old in sorted(_CURRENT, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return _CURRENT[old] + name.removeprefix(old)
    return name


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The predictor's tensors, with query, key and value fused and the mask tokens apart."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, current in _HF.items():
            if name.startswith(f"{theirs}."):
                name = name.replace(".attention.", ".attn.")
                out[current + name.removeprefix(theirs)] = tensor
    for name in [n for n in out if n.endswith((".query.weight", ".query.bias"))]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        out[name.replace(".query.", ".qkv.")] = torch.cat([out.pop(part) for part in parts])
    for i, token in enumerate(state.get(_HF_MASKS, ())):
        out[f"query_templates.{i}"] = token
    return out


def _value(text: str) -> Any:
    """A value that was written into metadata as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """How many there are; a gap in their numbers shows as a tensor that is missing."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})


def _config(
    source: Source, kind: str, state: dict[str, Tensor], told: dict[str, Any], options: Options
) -> tuple[GuidedConfig, str]:
    """Sizes from the weights; what weights do not show from the options, the file's own words or the paper."""
    if told.get("use_silu") or told.get("hidden_act", "gelu") != "gelu":
        raise ValueError("its activation is not GELU")
    if kind == MASKED and "384" in source.path.name and not {"img_size", "crop_size"} & told.keys():
        told = {**told, "img_size": 384}  # Meta's files say it in their names only
    grid = _grid(told)
    layout = options.layout or _layout(kind, told, grid)
    if layout not in _TOKENS:
        raise SourceError(
            f"{source.path}: whether its positions are those of the paper or of its causal successor is not in the "
            f"file; say layout 'v1' or 'v2' ('grid' for a square grid), not {layout!r}."
        )
    tokens = _TOKENS[layout] if grid is None else grid[0] * grid[1]
    rows, columns = grid or ((tokens, 1) if layout != "grid" else (round(tokens**0.5),) * 2)
    if layout != "v2":
        columns = rows  # the earlier code takes every grid for a square one
    heads = options.heads or told.get("pred_num_attention_heads") or (told.get("num_heads") or _HEADS[kind])
    width, latent_width = state["context_adapter.weight"].shape
    depth, templates = _count(state, "rollout_layers"), _count(state, "query_templates")
    guide_widths, mode, hidden = (0, 0), "film", 512
    if "guidance_old_adapter.weight" in state:
        guide_widths = tuple(state[f"guidance_{s}_adapter.weight"].shape[1] for s in ("old", "new"))  # type: ignore
        if "guidance_memory_readers.0.in_proj_weight" in state:
            mode = "cross"
        else:
            mode = "adaln" if "guidance_prenorms.0.weight" in state else "film"
            hidden = state["guidance_fusion_mlps.0.1.weight"].shape[0]
    # the causal code gives a single block the first layer, where `spread` gives it the last
    guide_map: LayerMap = "spread" if layout == "v2" and depth > 1 else "index"
    table = state.get("fixed_position_table")
    config = GuidedConfig(
        latent_width=latent_width,
        width=width,
        depth=depth,
        heads=int(heads),
        mlp_ratio=state["rollout_layers.0.mlp.fc1.weight"].shape[0] / width,
        tokens=tokens,
        rows=rows,
        columns=columns,
        attention="causal" if layout == "v2" and told.get("causal_attention", True) else "full",
        positions="tiled" if table is None else "table",
        places=0 if table is None else table.shape[1],
        mask_tokens=max(templates, 1),
        mask_token=1 % max(templates, 1),
        guide_widths=guide_widths,
        guide_mode=_mode(mode),
        guide_map=guide_map,
        guide_hidden=hidden,
        published=guide_widths != (0, 0),
        norm_eps=_norm_eps(source, told),
    )
    words = f"layout {layout}, {heads} heads, {tokens} tokens per tubelet, mask token {config.mask_token}"
    return config, f"{words}, layer norms with epsilon {config.norm_eps:g}"


def _norm_eps(source: Source, told: dict[str, Any]) -> float:
    """As told; else that of every training run; else, for files that list the arguments of the class (test vectors do),
    the default of the class.
    """
    if (eps := told.get("layer_norm_eps")) is not None:
        return float(eps)
    if found := re.search(r"eps=([\d.e+-]+)", str(told.get("norm_layer", ""))):
        return float(found[1])
    return _CLASS_EPS if "predictor_embed_dim" in source.metadata else _TRAINED_EPS


def _mode(mode: str) -> Mode:
    return "cross" if mode == "cross" else "adaln" if mode == "adaln" else "film"


def _grid(told: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of patches, as the file tells them."""
    size = told.get("crop_size", told.get("img_size"))
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    patch = int(told.get("patch_size", 16))
    return int(height) // patch, int(width) // patch


def _layout(kind: str, told: dict[str, Any], grid: tuple[int, int] | None) -> str | None:
    if told.get("causal_attention") or _V2_ARGUMENT in told:
        return "v2"
    if grid is not None and grid[1] == 1 < grid[0]:
        return "v1"
    if kind == MASKED or grid is not None:
        return "grid"
    return "v1" if "thinkjepa_vlm_cond_mode" in told else None


def _weights(state: dict[str, Tensor], config: GuidedConfig) -> tuple[dict[str, Tensor], set[str]]:
    """Our tensors, and the names of those they were made of. Raises KeyError naming a tensor that is missing."""
    read = Read(state)
    out: dict[str, Tensor] = {}
    same = {"embed": "context_adapter", "norm": "rollout_norm", "out": "output_adapter"}
    for ours, theirs in same.items():
        for part in ("weight", "bias"):
            out[f"{ours}.{part}"] = read[f"{theirs}.{part}"]
    if "query_templates.0" in state:
        out["queries"] = torch.cat([read[f"query_templates.{i}"].flatten()[None] for i in range(config.mask_tokens)])
    else:
        out["queries"] = torch.zeros(1, config.width)
    if config.positions == "table":
        out["table"] = read["fixed_position_table"][0]
    for i in range(config.depth):
        out |= block(read, f"rollout_layers.{i}.", config.heads, f"blocks.{i}.")
    if config.guided:
        out |= {f"guide.{name}": tensor for name, tensor in _guide(read, config).items()}
    return {name: tensor.float().contiguous() for name, tensor in out.items()}, read.used


def _guide(read: dict[str, Tensor], config: GuidedConfig) -> dict[str, Tensor]:
    out = {f"project.{i}.weight": read[f"guidance_{s}_adapter.weight"] for i, s in enumerate(("old", "new"))}
    out["gate"] = read["guidance_layer_scale"].flatten()
    blocks = range(config.depth)
    for part in ("weight", "bias"):
        if config.guide_mode == "cross":
            for i in blocks:
                theirs = f"guidance_memory_readers.{i}."
                out[f"readers.{i}.norm.{part}"] = read[f"guidance_query_norms.{i}.{part}"]
                joined = read[f"{theirs}in_proj_{part}"]
                out[f"readers.{i}.q.{part}"] = joined[: config.width]
                out[f"readers.{i}.kv.{part}"] = joined[config.width :]
                out[f"readers.{i}.out.{part}"] = read[f"{theirs}out_proj.{part}"]
            continue
        for layer, ours in ((0, "norm"), (1, "fc1"), (3, "fc2")):
            out[f"{ours}_{part}"] = torch.stack([read[f"guidance_fusion_mlps.{i}.{layer}.{part}"] for i in blocks])
        if config.guide_mode == "adaln":
            for i in blocks:
                out[f"prenorm.{i}.{part}"] = read[f"guidance_prenorms.{i}.{part}"]
    return out
