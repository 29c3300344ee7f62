"""Checkpoints as the training loops of their publishers leave them, with random weights, and the command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

from thinkjepa_ros import checkpoints, cli
from thinkjepa_ros.importers import command
from thinkjepa_ros.importers.source import SourceError

State = dict[str, Tensor]


def call(source: object, out: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.app, ["import", str(source), str(out), *options])


def refused(source: object, out: Path, *options: str) -> str:
    """The sentence with which an import is refused; nothing may be left behind."""
    before = sorted(out.parent.rglob("*"))
    done = call(source, out, *options)
    assert isinstance(done.exception, SourceError), done.exception
    assert sorted(out.parent.rglob("*")) == before
    text = str(done.exception)
    assert "\n" not in text and text.endswith((".", "published"))
    return text


def blocks(name: str, depth: int, width: int) -> State:
    """Random weights of `depth` transformer blocks under the published names."""
    sizes = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    state = {}
    for i in range(depth):
        for layer, shape in sizes.items():
            state[f"{name}.{i}.{layer}.weight"] = torch.randn(shape)
            state[f"{name}.{i}.{layer}.bias"] = torch.randn(shape[:1])
    return state


def linear(name: str, rows: int, columns: int) -> State:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def norm(name: str, width: int) -> State:
    return {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}


def meta_encoder(width: int = 192, depth: int = 1) -> State:
    patches = {"patch_embed.proj.weight": torch.randn(width, 3, 2, 16, 16), "patch_embed.proj.bias": torch.randn(width)}
    return patches | blocks("blocks", depth, width) | norm("norm", width)


def ac_predictor(width: int = 32, latent: int = 192) -> State:
    state = linear("predictor_embed", width, latent) | linear("predictor_proj", latent, width)
    for name, size in (("action_encoder", 7), ("state_encoder", 7), ("extrinsics_encoder", 6)):
        state |= linear(name, width, size)
    return state | blocks("predictor_blocks", 2, width) | norm("predictor_norm", width)


def thinkjepa_predictor(width: int = 48, latent: int = 64, vlm: int = 40, depth: int = 3) -> State:
    state = linear("context_adapter", width, latent) | linear("output_adapter", latent, width)
    state |= {f"query_templates.{i}": torch.randn(1, 1, width) for i in range(2)}
    state |= blocks("rollout_layers", depth, width) | norm("rollout_norm", width)
    state |= {f"guidance_{name}_adapter.weight": torch.randn(width, vlm) for name in ("old", "new")}
    state["guidance_layer_scale"] = torch.randn(depth, 1, 1)
    for i in range(depth):
        state |= norm(f"guidance_fusion_mlps.{i}.0", 4 * width)
        state |= linear(f"guidance_fusion_mlps.{i}.1", 32, 4 * width)
        state |= linear(f"guidance_fusion_mlps.{i}.3", 2 * width, 32)
    return state


def thinkjepa_head(width: int = 64, joints: int = 5) -> State:
    state = {"token_query": torch.randn(1, 1, width), "token_attn.in_proj_weight": torch.randn(3 * width, width)}
    state |= {"token_attn.in_proj_bias": torch.randn(3 * width)} | linear("token_attn.out_proj", width, width)
    state |= norm("ln_in", width) | linear("mlp_in.0", width, width) | norm("ln_out", width)
    state |= linear("temporal_mlp.0", width, width) | linear("temporal_mlp.3", width, width)
    return state | linear("fc_out", 3 * joints, width)


def wrapped(state: State, prefix: str = "module.backbone.") -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def meta_file() -> dict[str, object]:
    """As the training loop of V-JEPA 2 saves it."""
    torch.manual_seed(0)
    parts = {"encoder": wrapped(meta_encoder()), "target_encoder": wrapped(meta_encoder())}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    return {**parts, "opt": optimizer, "scaler": None, "epoch": 3, "loss": np.float64(0.1), "lr": 1e-3}


def meta_file_with_predictor() -> dict[str, object]:
    state = linear("predictor_embed", 48, 192) | linear("predictor_proj", 192, 48) | norm("predictor_norm", 48)
    state |= {f"mask_tokens.{i}": torch.randn(1, 1, 48) for i in range(10)} | blocks("predictor_blocks", 1, 48)
    return {**meta_file(), "predictor": wrapped(state)}


def ac_file() -> dict[str, object]:
    return {**meta_file(), "predictor": wrapped(ac_predictor(), "module.")}


def thinkjepa_file() -> dict[str, object]:
    """As the training loop of ThinkJEPA saves it, with a numpy number in `best`."""
    torch.manual_seed(0)
    args = {"past_T": 4, "future_T": 4, "joint_pred": False, "predictor": "thinkjepa", "lr": 1e-3}
    best = {"ade": np.float64(0.06), "epoch": np.int64(7), "better": np.bool_(True)}
    parts = {"predictor": thinkjepa_predictor(), "cls_model": thinkjepa_head()}
    return {"epoch": 7, **parts, "optimizer": {"state": {}, "param_groups": []}, "best": best, "args": args}


#: name: (content, options of the command, kinds that come out)
FILES: dict[str, tuple[Callable[[], dict[str, object]], list[str], list[str]]] = {
    "vitl.pt": (meta_file_with_predictor, [], ["encoder", "mask_predictor"]),
    "encoder.pt": (meta_file, [], ["encoder"]),
    "vjepa2-ac-vitg.pt": (ac_file, ["--heads", "4"], ["encoder", "ac_predictor"]),
    "ckpt_best.pt": (thinkjepa_file, ["--layout", "v2", "--heads", "2"], ["guided_predictor", "trajectory_head"]),
}


def load(folder: Path, kind: str) -> tuple[torch.nn.Module, checkpoints.Manifest]:
    build = next(c.BUILD[kind] for c in command.converters() if kind in c.BUILD)
    return checkpoints.load_module(folder, kind, build)


def good(place: Path) -> Path:
    torch.save(meta_file(), place / "good.pt")
    return place / "good.pt"
