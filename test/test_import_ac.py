"""The importer of V-JEPA 2-AC: equal to the formulas and the published vectors, and it refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import oracle_ac
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from thinkjepa_ros import checkpoints
from thinkjepa_ros.importers import vjepa2_ac
from thinkjepa_ros.importers.command import run
from thinkjepa_ros.importers.source import Options, Source, SourceError, read
from thinkjepa_ros.jepa import ac
from thinkjepa_ros.jepa.ac import ACPredictor
from thinkjepa_ros.jepa.encoder import Encoder, EncoderConfig

STATE = oracle_ac.random_state(width=12, depth=2, latent=6)


def imported(source: Source, **options: int) -> ACPredictor:
    (part,) = vjepa2_ac.convert(source, Options(**options))
    net = vjepa2_ac.BUILD[part.kind](part.config)
    net.load_state_dict(part.state)
    assert isinstance(net, ACPredictor)
    return net.eval().requires_grad_(False)


def source(state: oracle_ac.State, **told: object) -> Source:
    return Source(Path("weights.pt"), {"predictor": state}, args=told)


def test_the_published_vectors_come_out(shared: Path) -> None:
    path = shared / "golden" / "ac_predictor.safetensors"
    if not path.is_file():
        pytest.skip(f"no test vectors at {path}")
    vectors = load_file(path)
    steps = vectors["actions"].shape[1]
    x = vectors["x"].unflatten(1, (steps, -1))
    y = imported(read(path))(x, vectors["actions"], vectors["states"])
    torch.testing.assert_close(y.flatten(1, 2), vectors["y"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("grid", "heads", "extrinsics", "rotary", "action_dim", "by_class"),
    [
        ((2, 2), 2, False, True, 7, False),
        ((2, 3), 4, True, True, 7, False),
        ((3, 1), 1, False, True, 5, True),
        ((1, 3), 2, True, False, 7, True),
    ],
)
def test_the_predictor_equals_its_formulas(
    grid: tuple[int, int], heads: int, extrinsics: bool, rotary: bool, action_dim: int, by_class: bool
) -> None:
    """by_class: the file lists the arguments of the published class, whose layer norms have another epsilon."""
    state = oracle_ac.random_state(width=40, depth=2, latent=18, action_dim=action_dim)
    told = {
        "num_heads": heads,
        "img_size": (grid[0] * 16, grid[1] * 16),
        "use_extrinsics": extrinsics,
        "use_rope": rotary,
    }
    if by_class:
        words = {name: str(value) for name, value in told.items()} | {"predictor_embed_dim": "40"}
        net = imported(Source(Path("vectors.safetensors"), {"": state}, metadata=words))
    else:
        net = imported(source(state, **told))
    g = torch.Generator().manual_seed(5)
    z = torch.randn(2, 3, grid[0] * grid[1], 18, generator=g)
    a, s = torch.randn(2, 2, 3, action_dim, generator=g).unbind()
    e = torch.randn(2, 3, action_dim - 1, generator=g) if extrinsics else None
    want = oracle_ac.predict(state, heads, grid, z, a, s, e, rotary, 1e-5 if by_class else 1e-6)
    torch.testing.assert_close(net(z, a, s, e), want, atol=1e-5, rtol=1e-5)
    assert want.std() > 0.3


def test_a_checkpoint_as_published_is_read_with_the_published_settings(tmp_path: Path) -> None:
    state = oracle_ac.random_state(width=1024, depth=1, latent=8)
    encoder = {"module.norm.weight": torch.ones(8)}
    wrapped = {f"module.{name}": tensor.bfloat16() for name, tensor in state.items()}
    torch.save({"encoder": encoder, "predictor": wrapped, "epoch": 3}, tmp_path / "vjepa2-ac-vitg.pt")
    found = read(tmp_path / "vjepa2-ac-vitg.pt")
    assert vjepa2_ac.recognises(found)
    (part,) = vjepa2_ac.convert(found, Options())
    assert part.kind == "ac_predictor" and "16 heads" in part.note
    config = {k: part.config[k] for k in ("heads", "rows", "columns", "norm_eps", "extrinsics")}
    assert config == {"heads": 16, "rows": 16, "columns": 16, "norm_eps": 1e-6, "extrinsics": False}
    vjepa2_ac.BUILD[part.kind](part.config).load_state_dict(part.state)


def test_an_imported_file_gives_an_encoder_and_a_predictor_that_imagine(tmp_path: Path) -> None:
    """From `vjepa2-ac-vitg.pt`, here small, to a rollout from a picture."""
    g = torch.Generator().manual_seed(0)

    def linear(name: str, *shape: int) -> oracle_ac.State:
        weight = 0.05 * torch.randn(*shape, generator=g)
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(shape[0])}

    def norm(name: str) -> oracle_ac.State:
        return {f"{name}.weight": torch.ones(192), f"{name}.bias": torch.zeros(192)}

    encoder = linear("patch_embed.proj", 192, 3, 2, 16, 16) | norm("norm")
    encoder |= norm("blocks.0.norm1") | norm("blocks.0.norm2")
    encoder |= linear("blocks.0.attn.qkv", 576, 192) | linear("blocks.0.attn.proj", 192, 192)
    encoder |= linear("blocks.0.mlp.fc1", 768, 192) | linear("blocks.0.mlp.fc2", 192, 768)
    predictor = oracle_ac.random_state(width=24, depth=2, latent=192)
    file = tmp_path / "vjepa2-ac-vitg.pt"
    torch.save(
        {
            "encoder": {f"module.backbone.{name}": tensor for name, tensor in encoder.items()},
            "predictor": {f"module.{name}": tensor for name, tensor in predictor.items()},
            "epoch": 3,
        },
        file,
    )
    run(str(file), tmp_path / "ac", Options(heads=2), licence="MIT")
    eyes, _ = checkpoints.load_module(tmp_path / "ac" / "encoder", "encoder", lambda c: Encoder(EncoderConfig(**c)))
    net, manifest = ac.load(tmp_path / "ac" / "ac_predictor")
    assert manifest.licence == "MIT" and net.config.heads == 2
    image = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8, generator=g)
    z = F.layer_norm(eyes.frames(image), (192,))
    actions, state = 0.05 * torch.randn(2, 1, 7, generator=g), torch.zeros(1, 7)
    with torch.inference_mode():
        got = net.rollout(z, actions, state).latents[:, 0]
        frames = z[:, None].expand(2, -1, -1, -1)
        want = oracle_ac.predict(predictor, 2, (16, 16), frames, actions, state.expand(2, 1, 7))[:, 0]
    torch.testing.assert_close(got, F.layer_norm(want, (192,)), atol=1e-5, rtol=1e-5)


def test_a_file_that_states_its_epsilon_is_believed() -> None:
    for stated in ("1e-06", "2e-5"):
        words = {"predictor_embed_dim": "12", "num_heads": "2", "layer_norm_eps": stated}
        net = imported(Source(Path("v.safetensors"), {"": STATE}, metadata=words))
        assert net.norm.eps == net.blocks[0].norm1.eps == float(stated)


def test_other_checkpoints_are_left_to_other_importers() -> None:
    other = Source(Path("other.pt"), {"predictor": {"mask_tokens.0": torch.zeros(1)}})
    assert not vjepa2_ac.recognises(other) and vjepa2_ac.convert(other, Options()) == []


def without(*names: str) -> oracle_ac.State:
    return {name: tensor for name, tensor in STATE.items() if name not in names}


@pytest.mark.parametrize(
    ("state", "told", "words"),
    [
        (STATE, {}, "give it with --heads"),
        (STATE, {"num_heads": 4}, "even number"),
        (STATE, {"num_heads": 2, "use_silu": True}, "SwiGLU"),
        (STATE, {"num_heads": 2, "is_frame_causal": "False"}, "is_frame_causal"),
        (STATE, {"num_heads": 2, "img_size": "(64, 8)"}, "columns is 0"),
        (STATE, {"num_heads": 2, "img_size": "64 px"}, "img_size"),
        (STATE, {"num_heads": "__import__('os')"}, "num_heads"),
        (STATE | {"pos_embed": torch.zeros(1)}, {"num_heads": 2}, "pos_embed"),
        (without("predictor_norm.bias"), {"num_heads": 2}, "no tensor predictor_norm.bias"),
        (without("predictor_blocks.1.attn.qkv.bias"), {"num_heads": 2}, "no tensor predictor_blocks.1.attn.qkv.bias"),
        ({n: x for n, x in STATE.items() if "blocks.0." not in n}, {"num_heads": 2}, "must count from 0"),
        (STATE | {"predictor_blocks.1.attn.qkv.weight": torch.zeros(30, 12)}, {"num_heads": 2}, "others ask"),
        (STATE | {"predictor_blocks.1.attn.qkv.bias": torch.zeros(30)}, {"num_heads": 2}, "shorter"),
        (STATE | {"predictor_embed.weight": torch.zeros(12)}, {"num_heads": 2}, "a matrix is needed"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_words(state: oracle_ac.State, told: dict, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        vjepa2_ac.convert(source(state, **told), Options())


SETTINGS = ["num_heads", "img_size", "patch_size", "use_rope", "layer_norm_eps"]


@given(st.dictionaries(st.sampled_from(SETTINGS), st.text(max_size=12)))
@settings(deadline=None, max_examples=60)
def test_whatever_the_metadata_says_the_answer_is_a_part_or_a_sentence(words: dict[str, str]) -> None:
    try:
        assert vjepa2_ac.convert(Source(Path("x.safetensors"), {"": STATE}, metadata=words), Options(heads=2))
    except SourceError as error:
        assert "x.safetensors" in str(error)


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_vectors_are_read_whatever_the_length_of_their_header(tmp_path: Path, padding: int) -> None:
    """Its first byte takes every possible value here, among them the one that pickles begin with."""
    tensors = {f"w.{name}": tensor for name, tensor in STATE.items()} | {"x": torch.zeros(1, 4, 6)}
    words = {"num_heads": "2", "img_size": "(32, 32)", "padding": " " * padding}
    save_file(tensors, tmp_path / "v.safetensors", words)
    assert imported(read(tmp_path / "v.safetensors")).config.rows == 2
