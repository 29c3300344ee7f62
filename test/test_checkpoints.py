"""Checkpoints: what is damaged, foreign or out of place is refused with the reason, and no pickle is ever read."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkjepa_ros import checkpoints, files
from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train.mini import canonical_camera


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = model.ModelConfig(
        EncoderConfig(image_size=32, patch_size=16, width=16, depth=1, heads=1),
        PredictorConfig(context=2, tubelets=1, tubelet_steps=1, pooled=1, width=16, depth=1, heads=1),
        ("a", "b"),
        canonical_camera(32),
    )
    model.save(tmp_path / "model", model.ForecastNet(config), "tiny", trained=True, domain="test", training={"seed": 1})
    return tmp_path / "model"


def change(folder: Path, **fields: object) -> None:
    path = folder / checkpoints.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_checkpoint_loads_as_it_was_saved(folder: Path) -> None:
    net, manifest = model.load(folder)
    again, _ = model.load(folder)
    assert manifest.model_id == "tiny" and manifest.trained and manifest.training == {"seed": 1}
    assert net.config.joint_names == ("a", "b") and not net.training
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "missing"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]), "SHA-256"),
        (lambda f: (f / "model.json").unlink(), "no model.json"),
        (lambda f: (f / "model.json").write_text("{"), "JSON"),
        (lambda f: (f / "model.json").write_text("[" * 100_000), "JSON"),
        (lambda f: (f / "model.json").write_text("[]"), "format"),
        (lambda f: change(f, format="other/9"), "format"),
        (lambda f: change(f, kind="thinker"), "'thinker'"),
        (lambda f: change(f, trained="yes"), "trained"),
        (lambda f: change(f, model_id="\x1b[31m"), "plain name"),
        (lambda f: change(f, config={}), "configuration"),
        (lambda f: change(f, sha256={}), "SHA-256"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(folder: Path, spoil, words: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=words):
        model.load(folder)


def test_a_flipped_bit_anywhere_in_the_weights_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), len(whole) // 40):
        broken = whole.copy()
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="SHA-256"):
            model.load(folder)


def test_weights_that_point_out_of_the_folder_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    outside = folder.parent / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside"):
        model.load(folder)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    change(folder, sha256={"model.safetensors": checkpoints.sha256_of(path)})
    with pytest.raises(CheckpointError, match="safetensors"):
        model.load(folder)


def test_tensors_must_match_the_configuration_and_be_finite(folder: Path) -> None:
    net, manifest = model.load(folder)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for name, value in (
        ("extra", torch.zeros(1)),
        ("encoder.norm.bias", torch.zeros(3)),
        ("encoder.norm.bias", torch.full((16,), torch.nan)),
    ):
        checkpoints.save(folder, manifest, {**state, name: value})
        with pytest.raises(CheckpointError, match=name):
            model.load(folder)
    del state["encoder.norm.bias"]
    checkpoints.save(folder, manifest, state)
    with pytest.raises(CheckpointError, match="missing"):
        model.load(folder)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["encoder", "predictor", "camera", "joint_names", "step_s", "other"]), value=_json)
def test_a_configuration_of_anything_is_refused_in_words(folder: Path, field: str, value: object) -> None:
    config = json.loads((folder / "model.json").read_text())["config"]
    change(folder, config={**config, field: value})
    try:
        model.load(folder)  # some values are fine
    except CheckpointError as error:
        assert str(folder) in str(error)
    finally:
        change(folder, config=config)


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    checkpoints.write_atomically(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
