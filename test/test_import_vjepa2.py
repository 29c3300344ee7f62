"""Importing V-JEPA 2: our encoder gives the numbers of `transformers`' VJEPA2Model on random weights."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from thinkjepa_ros.importers import vjepa2
from thinkjepa_ros.importers.source import Options, Source, SourceError, read
from thinkjepa_ros.jepa.encoder import MEAN, STD, Encoder, EncoderConfig

SMALL = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "crop_size": 64,
    "frames_per_clip": 8,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "mlp_ratio": 4.0}
HUGE = {"hidden_size": 1280, "num_attention_heads": 16, "mlp_ratio": 4.0}
GIANT = {"hidden_size": 1408, "num_attention_heads": 22, "mlp_ratio": 48 / 11}


def published(std: float = 0.02, **config: object) -> VJEPA2Model:
    """A real VJEPA2Model with random weights; also biases and norms, which its own initialisation leaves trivial."""
    torch.manual_seed(0)
    model = VJEPA2Model(VJEPA2Config(**{**SMALL, **config}, initializer_range=std)).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def clip(frames: int, side: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    shape = (batch, frames, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def features(model: VJEPA2Model, video: torch.Tensor) -> torch.Tensor:
    """What the published model makes of the video after the published normalisation, [B, tubelets * n, D]."""
    pixels = (video.float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        return model.get_vision_features(pixels.permute(0, 1, 4, 2, 3))


def imported(source: Source, options: Options | None = None) -> Encoder:
    part = next(p for p in vjepa2.convert(source, options or Options()) if p.kind == "encoder")
    encoder = vjepa2.BUILD["encoder"](part.config)
    encoder.load_state_dict(part.state)
    assert isinstance(encoder, Encoder)
    return encoder.eval().requires_grad_(False)


def from_folder(model: VJEPA2Model, folder: Path, **save: object) -> Encoder:
    model.save_pretrained(folder, **save)
    return imported(read(folder))


def meta_names(model: VJEPA2Model) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names of Meta's files."""
    state = {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    out = {
        k.replace("embeddings.patch_embeddings.", "patch_embed.")
        .replace("layernorm.", "norm.")
        .replace("layer.", "blocks."): v
        for k, v in state.items()
        if ".attention." not in k
    }
    for i in range(model.config.num_hidden_layers):
        for part in ("weight", "bias"):
            a = f"layer.{i}.attention."
            out[f"blocks.{i}.attn.qkv.{part}"] = torch.cat([state[f"{a}{x}.{part}"] for x in ("query", "key", "value")])
            out[f"blocks.{i}.attn.proj.{part}"] = state[f"{a}proj.{part}"]
    return out


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.flatten(1, 2), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frames", "side", "config"),
    [
        (8, 64, {}),
        (2, 64, {}),
        (1, 64, {}),  # a single image is a still clip
        (12, 64, {"initializer_range": 0.1}),  # more frames than the configuration says
        (4, 112, {"initializer_range": 0.2}),
        (6, 96, {"patch_size": 8, "tubelet_size": 3, "mlp_ratio": 2.5}),
        (4, 128, {"patch_size": 32, "hidden_size": 60, "num_attention_heads": 3}),  # 2 dims of a head are not turned
        (4, 64, {"layer_norm_eps": 1e-2, "qkv_bias": False}),
    ],
)
def test_equal_to_transformers_at_every_size(tmp_path: Path, frames: int, side: int, config: dict) -> None:
    std = config.pop("initializer_range", 0.02)
    model = published(std, crop_size=side, **config)
    video = clip(frames, side, batch=2)
    encoder = from_folder(model, tmp_path)
    with torch.inference_mode():
        same(encoder(video), features(model, video))


@pytest.mark.parametrize("size", [LARGE, HUGE, GIANT], ids=["L", "H", "g"])
def test_equal_to_transformers_in_the_shapes_of_the_released_models(tmp_path: Path, size: dict) -> None:
    model = published(0.03, num_hidden_layers=2, **size)
    video = clip(4, 64)
    encoder = from_folder(model, tmp_path)
    with torch.inference_mode():
        same(encoder(video), features(model, video))


@pytest.mark.parametrize(("size", "depth"), [(LARGE, 24), (HUGE, 32), (GIANT, 40)], ids=["L", "H", "g"])
def test_the_released_sizes_have_as_many_parameters_as_published(size: dict, depth: int) -> None:
    config = EncoderConfig(
        256, 16, size["hidden_size"], depth, size["num_attention_heads"], size["mlp_ratio"], tubelet=2, rope="tiled"
    )
    with torch.device("meta"):
        ours = sum(p.numel() for p in Encoder(config).parameters())
        model = VJEPA2Model(VJEPA2Config(**size, num_hidden_layers=depth, pred_num_hidden_layers=1))
    assert ours == sum(p.numel() for p in model.encoder.parameters())
    if depth == 24:
        assert ours == 303_885_312


def test_a_folder_in_shards_gives_the_same(tmp_path: Path) -> None:
    model, video = published(0.1), clip(4, 64)
    encoder = from_folder(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.inference_mode():
        same(encoder(video), features(model, video))


def test_the_encoder_of_a_video_classifier_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VJEPA2ForVideoClassification(VJEPA2Config(**SMALL, num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    video = clip(4, 64)
    with torch.inference_mode():
        same(imported(read(tmp_path))(video), features(model.vjepa2, video))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_metas_files_give_the_same_under_every_prefix(tmp_path: Path, prefix: str) -> None:
    model, video = published(0.1, hidden_size=192, num_attention_heads=3), clip(4, 64)
    state = {prefix + name: tensor for name, tensor in meta_names(model).items()}
    state[f"{prefix}pos_embed"] = torch.zeros(1, 8, 192)  # in the published files, unused
    torch.save({"encoder": state, "epoch": 3, "opt": {"lr": 0.1}}, tmp_path / "vitl.pt")
    with torch.inference_mode():
        same(imported(read(tmp_path / "vitl.pt"))(video), features(model, video))


def test_averaged_weights_are_preferred_and_named(tmp_path: Path) -> None:
    model = published(hidden_size=192, num_attention_heads=3)
    good, other = meta_names(model), {k: v + 1 for k, v in meta_names(model).items()}
    for best in ("target_encoder", "ema_encoder"):
        torch.save({"encoder": other, best: good}, tmp_path / "vitg-384.pt")
        (part,) = vjepa2.convert(read(tmp_path / "vitg-384.pt"), Options())
        assert best in part.note and part.config["image_size"] == 384
        assert torch.equal(part.state["norm.weight"], good["norm.weight"])


def test_two_point_one_files_are_interleaved_stretched_and_know_images_from_video(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = meta_names(published(0.1, hidden_size=192, num_attention_heads=3))
    weight, bias = state.pop("norm.weight"), state.pop("norm.bias")
    for level in range(4):
        state[f"norms_block.{level}.weight"], state[f"norms_block.{level}.bias"] = weight * level, bias * level
    state["video_mod_embed"], state["img_mod_embed"] = torch.randn(2, 1, 1, 192)
    state["patch_embed_img.proj.weight"], state["patch_embed_img.proj.bias"] = torch.randn(192, 3, 1, 16, 16), bias
    torch.save({"ema_encoder": state}, tmp_path / "vjepa2_1_vitl_dist_vitG_384.pt")
    source = read(tmp_path / "vjepa2_1_vitl_dist_vitG_384.pt")
    (part,) = vjepa2.convert(source, Options())
    assert {
        "rope": "interleaved",
        "rope_grid": 16,
        "image_patches": True,
        "image_size": 384,
    }.items() <= part.config.items()
    encoder, video = imported(source), clip(4, 64)
    assert torch.equal(encoder.norm.weight, weight * 3)
    x = ((video.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3).float()
    for pixels, name, modality, stride in ((x, "", "video", 2), (x[:, :, :1], "_img", "img", 1)):
        proj = f"patch_embed{name}.proj."
        wanted = (
            torch.nn.functional.conv3d(pixels, state[proj + "weight"], state[proj + "bias"], stride=(stride, 16, 16))
            .flatten(2)
            .mT
            + state[f"{modality}_mod_embed"]
        )
        got = encoder.embed(video if modality == "video" else video[:, :1])[0]
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)


def test_what_is_no_encoder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = meta_names(published(hidden_size=192, num_attention_heads=3))

    def source(**changes: object) -> Source:
        state = {k: v for k, v in {**whole, **changes}.items() if v is not None}
        return Source(tmp_path / "x.pt", {"target_encoder": state})

    assert not vjepa2.recognises(Source(tmp_path, {"": {"other": torch.zeros(1)}}))
    assert vjepa2.convert(Source(tmp_path, {}), Options()) == []
    for broken, words in (
        ({"blocks.1.norm1.bias": None}, "no tensor blocks.1.norm1.bias"),
        ({"norm.weight": None}, "no tensor norm.weight"),
        ({"cls_token": torch.zeros(1, 1, 192)}, "cls_token are not part"),
        ({"patch_embed.proj.weight": torch.zeros(192, 1, 2, 16, 16)}, "must be .width, 3"),
        ({"blocks.2.mlp.fc3.weight": torch.zeros(1)}, "fc3.weight are not part"),
        ({"blocks.7.norm1.weight": torch.zeros(192)}, "blocks.7.norm1.weight are not part"),
        ({"blocks.1.mlp.fc1.weight": torch.zeros(10, 192)}, "blocks.1.fc1.weight is .10, 192., .* needs .768, 192."),
        ({"blocks.1.attn.qkv.weight": torch.zeros(5, 192)}, "do not fit together"),
    ):
        with pytest.raises(SourceError, match=words):
            vjepa2.convert(source(**broken), Options())
    odd = {"target_encoder": meta_names(published(hidden_size=96, num_attention_heads=4))}
    with pytest.raises(SourceError, match="--heads"):
        vjepa2.convert(Source(tmp_path / "x.pt", odd), Options())
    assert vjepa2.convert(Source(tmp_path / "x.pt", odd), Options(heads=4))[0].config["heads"] == 4
    with pytest.raises(SourceError, match="not a multiple of heads 5"):
        vjepa2.convert(Source(tmp_path / "x.pt", odd), Options(heads=5))
    with pytest.raises(SourceError, match="hidden_act"):
        published().save_pretrained(tmp_path / "folder")
        folder = read(tmp_path / "folder")
        folder.config["hidden_act"] = "relu"
        vjepa2.convert(folder, Options())


WHOLE = meta_names(published(hidden_size=192, num_attention_heads=3, num_hidden_layers=1))


@settings(max_examples=100, deadline=None)
@example({}, {"num_heads": 5})
@given(
    st.dictionaries(
        st.sampled_from(sorted(WHOLE)),
        st.none() | st.lists(st.integers(0, 4), max_size=5),
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from(["num_heads", "crop_size", "layer_norm_eps", "hidden_act", "qkv_bias", "embed_dim"]),
        st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=8) | st.just([256, 256]),
    ),
)
def test_whatever_is_wrong_with_a_file_is_said_in_a_sentence(changes: dict, told: dict) -> None:
    state = {k: v for k, v in WHOLE.items() if k not in changes}
    state |= {k: torch.zeros(shape) for k, shape in changes.items() if shape is not None}
    try:
        parts = vjepa2.convert(Source(Path("x.pt"), {"encoder": state}, config=told), Options())
    except SourceError as error:
        assert str(error).startswith("x.pt: ") and "\n" not in str(error)
    else:
        for part in parts:
            imported_again = vjepa2.BUILD[part.kind](part.config)
            imported_again.load_state_dict(part.state)
