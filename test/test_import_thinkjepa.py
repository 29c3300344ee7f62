"""Importing ThinkJEPA's predictors and V-JEPA 2's: the numbers of the originals, under every name they go by."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_predictor import Oracle, Said, published_names
from safetensors.torch import load_file, save_file
from transformers import VJEPA2Config, VJEPA2Model

from thinkjepa_ros.importers import thinkjepa
from thinkjepa_ros.importers.source import Options, Source, SourceError, read
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.jepa.guided import GuidedConfig, GuidedPredictor

MODES = ("film", "adaln", "cross")
#: Current names to older ones, as the published code lists them.
OLDER = {
    "context_adapter": "predictor_embed",
    "query_templates": "mask_tokens",
    "fixed_position_table": "predictor_pos_embed",
    "rollout_layers": "predictor_blocks",
    "rollout_norm": "predictor_norm",
    "output_adapter": "predictor_proj",
    "guidance_old_adapter": "vlm_old_proj",
    "guidance_new_adapter": "vlm_new_proj",
    "guidance_fusion_mlps": "vlm_adapters",
    "guidance_prenorms": "vlm_adaln_norms",
    "guidance_query_norms": "vlm_cross_attn_norms",
    "guidance_memory_readers": "vlm_cross_attn",
    "guidance_layer_scale": "vlm_gate",
}


def build(**changes: Any) -> GuidedPredictor:
    torch.manual_seed(0)
    shape = {"latent_width": 10, "width": 24, "depth": 3, "heads": 2, "tokens": 4, "rows": 2, "columns": 2,
             "mask_tokens": 2, "mask_token": 1, "guide_map": "index"}  # fmt: skip
    guide = {"guide_widths": (7, 9), "guide_hidden": 6, "published": True}
    net = GuidedPredictor(GuidedConfig(**{**shape, **guide, **changes}))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


def names(net: GuidedPredictor, older: bool = False) -> dict[str, torch.Tensor]:
    state = published_names(net.state_dict(), net.config.heads, net.config.depth)
    if not older:
        return state
    module = {name: name.split(".")[0] for name in state}
    return {OLDER[module[name]] + name.removeprefix(module[name]): tensor for name, tensor in state.items()}


def source(state: dict[str, torch.Tensor], section: str = "", **rest: Any) -> Source:
    return Source(Path("some.pt"), {section: state}, **rest)


def imported(foreign: Source, layout: str | None = None, heads: int | None = None) -> GuidedPredictor:
    (part,) = thinkjepa.convert(foreign, Options(layout=layout, heads=heads))
    net = thinkjepa.BUILD[part.kind](part.config)
    net.load_state_dict(part.state, strict=True)
    assert isinstance(net, GuidedPredictor)
    return net.eval().requires_grad_(False)


# --- the published numbers ---


def test_the_vectors_of_the_original_are_met_guided_and_unguided(shared: Path) -> None:
    path = shared / "golden" / "predictor_film.safetensors"
    foreign, v = read(path), load_file(path)
    assert thinkjepa.recognises(foreign)
    net = imported(foreign)
    said = Payload(*(v[name].expand(2, *v[name].shape) for name in ("old", "new", "old_mask", "new_mask")))
    half = v["ctx"].shape[1]
    for context, targets in ((v["ctx"], v["tgt"]), (range(half), range(half, 2 * half))):
        torch.testing.assert_close(net(v["x"], context, targets), v["y_unguided"], atol=1e-6, rtol=0)
        torch.testing.assert_close(net(v["x"], context, targets, said), v["y_guided"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["v1", "v2", "grid"])
@pytest.mark.parametrize("mode", MODES)
def test_every_layout_gives_the_numbers_of_the_formulas(mode: str, layout: str) -> None:
    """Twelve pseudo-frames or frames of four tokens, five blocks, three layers; some tokens are padding."""
    net = build(depth=5, guide_mode=mode)
    state = names(net)
    size = {"v1": "(4, 1)", "v2": "(4, 1)", "grid": "(32, 32)"}[layout]
    patch = "16" if layout == "grid" else "1"
    foreign = source(state, metadata={"img_size": size, "patch_size": patch, "num_heads": "2"})
    got = imported(foreign, layout)
    causal = layout == "v2"
    rows, columns = {"v1": (4, 4), "v2": (4, 1), "grid": (2, 2)}[layout]  # how a place becomes (time, row, column)
    w = {k: v.double() for k, v in state.items()}
    oracle = Oracle(w, 5, 2, 4, rows, columns, "causal" if causal else "full", mode=mode)
    x, old, new = torch.randn(2, 24, 10), torch.randn(2, 3, 6, 7), torch.randn(2, 3, 2, 9)
    masks = torch.rand(2, 3, 6) < 0.5, torch.rand(2, 3, 2) < 0.5
    context, targets = torch.arange(24).expand(2, -1), torch.arange(24, 48).expand(2, -1)
    said = [Said(o.double(), n.double(), om, nm) for o, n, om, nm in zip(old, new, *masks, strict=True)]
    layers = [0, 0, 1, 2, 2] if causal else [0, 1, 2, None, None]  # round(i / 2) to even
    wanted = oracle(x.double(), context, targets, said, layers).float()
    found = got(x, range(24), range(24, 48), Payload(old, new, *masks))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    plain = oracle(x.double(), context, targets, [None, None], layers).float()
    torch.testing.assert_close(got(x, context, targets), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mask_tokens", [2, 5])
def test_the_mask_predictor_of_transformers_gives_the_same_latents(tmp_path: Path, mask_tokens: int) -> None:
    torch.manual_seed(0)
    model = VJEPA2Model(VJEPA2Config(
        hidden_size=48, num_attention_heads=2, num_hidden_layers=1, crop_size=64, frames_per_clip=8,
        pred_hidden_size=36, pred_num_attention_heads=3, pred_num_hidden_layers=2, pred_num_mask_tokens=mask_tokens,
        pred_zero_init_mask_tokens=False, initializer_range=0.1,
    )).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    net = imported(read(tmp_path))
    seen, asked = torch.arange(2, 34).expand(2, -1), torch.randperm(64)[:20].expand(2, -1)
    with torch.no_grad():
        out = model(torch.randn(2, 8, 3, 64, 64), context_mask=[seen], target_mask=[asked])
    found = net(out.masked_hidden_state, seen, asked)
    torch.testing.assert_close(found, out.predictor_output.last_hidden_state, atol=1e-5, rtol=1e-5)


# --- names, files and what they say ---


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_tensor_arrives_under_current_and_older_names(mode: str, older: bool) -> None:
    for changes in ({}, {"positions": "table", "places": 12}, {"mask_tokens": 1, "mask_token": 0}):
        net = build(guide_mode=mode, **changes)
        got = imported(source(names(net, older), metadata={"img_size": "(32, 32)", "num_heads": "2"}))
        wanted = net.config if mode != "cross" else dataclasses.replace(net.config, guide_hidden=512)
        assert got.config == wanted
        state = net.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in got.state_dict().items())


def test_a_training_checkpoint_is_read_from_its_file(tmp_path: Path) -> None:
    """As `ckpt_best.pt` is written: sections, a wrapper's prefix, and the arguments of the run."""
    net = build()
    content = {
        "epoch": 3,
        "best": {"ade": 0.1},
        "cls_model": {"token_query": torch.zeros(1, 1, 10)},
        "predictor": {f"module.{name}": tensor for name, tensor in names(net).items()},
        "args": {"predictor": "thinkjepa", "past_T": 32, "thinkjepa_vlm_cond_mode": "film"},
    }
    torch.save(content, tmp_path / "ckpt_best.pt")
    got = imported(read(tmp_path / "ckpt_best.pt"), heads=2)
    assert (got.config.tokens, got.config.rows, got.config.columns) == (128, 128, 128)
    assert (got.config.attention, got.config.guide_map) == ("full", "index")
    content["args"]["training_implementation_fingerprint"] = "ab"  # type: ignore[index]
    torch.save(content, tmp_path / "ckpt_best.pt")
    newer = imported(read(tmp_path / "ckpt_best.pt"), heads=2).config
    assert (newer.tokens, newer.rows, newer.columns) == (256, 256, 1)
    assert (newer.attention, newer.guide_map) == ("causal", "spread")
    assert imported(read(tmp_path / "ckpt_best.pt"), "v1", 2).config == got.config  # what the user says counts


def test_weights_in_safetensors_are_read_bare_or_beside_inputs(tmp_path: Path) -> None:
    net = build()
    told = {"img_size": "(4, 1)", "patch_size": "1", "num_heads": "2"}
    for prefix, more in (("", {}), ("w.", {"x": torch.zeros(1)})):
        save_file({**{prefix + k: v.contiguous() for k, v in names(net).items()}, **more}, tmp_path / "a.safetensors",
                  metadata=told)  # fmt: skip
        got = imported(read(tmp_path / "a.safetensors"))
        assert (got.config.tokens, got.config.rows, got.config.heads) == (4, 4, 2)


def test_metas_file_gives_a_mask_predictor_with_twelve_heads_on_a_square_grid(tmp_path: Path) -> None:
    net = build(width=72, heads=12, guide_widths=(0, 0), published=False, mask_tokens=10)
    state = {f"module.backbone.{name}": tensor for name, tensor in names(net, older=True).items()}
    torch.save({"encoder": {"norm.weight": torch.ones(3)}, "predictor": state}, tmp_path / "vitl.pt")
    (part,) = thinkjepa.convert(read(tmp_path / "vitl.pt"), Options())
    assert part.kind == "mask_predictor"
    config = imported(read(tmp_path / "vitl.pt")).config
    assert (config.heads, config.rows, config.columns, config.mask_tokens, config.mask_token) == (12, 16, 16, 10, 1)
    (tmp_path / "vitl.pt").rename(tmp_path / "vitg-384.pt")
    larger = imported(read(tmp_path / "vitg-384.pt")).config
    assert (larger.tokens, larger.rows, larger.columns) == (576, 24, 24)


def test_the_epsilon_of_the_layer_norms_is_that_of_what_made_the_file() -> None:
    net = build()
    for told, eps in (
        ({}, 1e-6),  # a run
        ({"predictor_embed_dim": "24"}, 1e-5),  # arguments of the class, which leaves torch's default
        ({"predictor_embed_dim": "24", "norm_layer": "functools.partial(<class 'LayerNorm'>, eps=1e-06)"}, 1e-6),
        ({"layer_norm_eps": "1e-4"}, 1e-4),
    ):
        got = imported(source(names(net), metadata={**told, "img_size": "(32, 32)"}), heads=2)
        assert got.config.norm_eps == eps
        assert {b.norm1.eps for b in got.blocks} == {eps} and got.norm.eps == eps  # type: ignore[union-attr]


def test_an_official_predictor_trained_by_thinkjepa_has_its_heads_and_layout() -> None:
    net = build(guide_widths=(0, 0), published=False, mask_tokens=1, mask_token=0, heads=6)
    args = {"predictor": "official", "thinkjepa_vlm_cond_mode": "film"}
    foreign = Source(Path("c.pt"), {"cls_model": {}, "predictor": names(net, older=True)}, args=args)
    (part,) = thinkjepa.convert(foreign, Options())
    assert part.kind == "guided_predictor" and part.config["heads"] == 6 and part.config["rows"] == 128


def test_a_predictor_without_query_templates_asks_with_zeros() -> None:
    state = {k: v for k, v in names(build()).items() if not k.startswith("query_templates")}
    assert torch.equal(imported(source(state), "v1", 2).queries, torch.zeros(1, 24))


# --- what is refused ---


def test_a_file_that_does_not_tell_its_layout_asks_for_it() -> None:
    with pytest.raises(SourceError, match="say layout 'v1' or 'v2'"):
        thinkjepa.convert(source(names(build())), Options(heads=2))
    with pytest.raises(SourceError, match="'v3'"):
        thinkjepa.convert(source(names(build())), Options(layout="v3", heads=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rollout_norm.bias": None}, "no tensor rollout_norm.bias"),
        ({"rollout_layers.1.attn.qkv.weight": None}, r"no tensor rollout_layers.1.attn.qkv.weight"),
        ({"guidance_layer_scale": None}, "no tensor guidance_layer_scale"),
        ({"query_templates.0": None, "query_templates.1": torch.zeros(1, 1, 24)}, "no tensor|not part"),
        ({"rollout_layers.0.mlp.fc3.weight": torch.zeros(2, 2)}, "rollout_layers.0.mlp.fc3.weight are not part"),
        ({"rollout_norm.bias": torch.zeros(7)}, r"norm.bias is \[7\], must be \[24\]"),
        ({"guidance_layer_scale": torch.zeros(2, 1, 1)}, r"guide.gate is \[2\]"),
    ],
)
def test_tensors_that_are_missing_too_many_or_of_a_wrong_shape_are_named(change: dict[str, Any], words: str) -> None:
    state = {k: v for k, v in {**names(build()), **change}.items() if v is not None}
    with pytest.raises(SourceError, match=words):
        thinkjepa.convert(source(state), Options(layout="v1", heads=2))


def test_heads_and_activations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SourceError, match="not a multiple of heads 5"):
        thinkjepa.convert(source(names(build())), Options(layout="v1", heads=5))
    with pytest.raises(SourceError, match="GELU"):
        thinkjepa.convert(source(names(build()), metadata={"use_silu": "True"}), Options(layout="v1", heads=2))


SHAPES = st.lists(st.integers(0, 9), max_size=4)
TOLD = st.dictionaries(
    st.sampled_from(("img_size", "patch_size", "num_heads", "layer_norm_eps", "crop_size", "use_silu", "args")),
    st.one_of(st.text(max_size=6), st.sampled_from(("(4, 1)", "0", "-3", "1e400", "(1, 2, 3)", "None", "[]", "{}"))),
)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(MODES), TOLD, st.sampled_from((None, "v1", "v2", "grid", "x")))
def test_a_made_up_file_is_refused_in_words_or_read(
    data: st.DataObject, mode: str, told: dict[str, str], layout: str | None
) -> None:
    state = names(build(guide_mode=mode))
    for name in data.draw(st.lists(st.sampled_from(sorted(state)), max_size=3)):
        what = data.draw(st.sampled_from(("drop", "shape", "number")))
        tensor = state.pop(name, torch.zeros(1))
        if what == "shape":
            state[name] = torch.zeros(data.draw(SHAPES))
        elif what == "number":
            state[name.replace(".0.", ".999999999.")] = tensor
    try:
        assert len(thinkjepa.convert(source(state, metadata=told), Options(layout=layout, heads=2))) <= 1
    except SourceError as error:
        assert "some.pt" in str(error)


def test_other_files_are_not_recognised() -> None:
    state = names(build(guide_widths=(0, 0), published=False), older=True)
    assert thinkjepa.recognises(source(state))
    assert not thinkjepa.recognises(source({**state, "action_encoder.weight": torch.zeros(1)}))  # V-JEPA 2-AC
    assert not thinkjepa.recognises(source({**state, "video_mod_embed": torch.zeros(1, 1, 24)}))  # V-JEPA 2.1
    assert not thinkjepa.recognises(source({**state, "predictor_proj.weight": torch.zeros(40, 24)}))
    assert not thinkjepa.recognises(source({"patch_embed.proj.weight": torch.zeros(1)}))
    assert thinkjepa.convert(source({"a": torch.zeros(1)}), Options()) == []
