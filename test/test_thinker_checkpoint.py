"""The checkpoint folder: how the mini is written, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from thinker_kit import frames, mini_folder

from thinkjepa_ros.thinker import folder as folders
from thinkjepa_ros.thinker import loading, tiny, tokenizer
from thinkjepa_ros.thinker.qwen import Thinker, ThinkerError

SHIPPED = Path(__file__).parents[1] / "models" / "mini" / "thinker"


@pytest.fixture()
def folder(tmp_path):
    """A copy of the mini that may be damaged."""
    return Path(shutil.copytree(mini_folder(), tmp_path / "mini"))


@pytest.fixture()
def foreign(folder):
    """The same as a released checkpoint: no manifest of ours."""
    (folder / "model.json").unlink()
    return folder


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_same_seed_same_bytes(tmp_path):
    state = torch.random.get_rng_state()
    again = tiny.build(tmp_path / "again", seed=0)
    assert torch.equal(torch.random.get_rng_state(), state), "building leaves the caller's random numbers alone"
    names = sorted(p.name for p in again.iterdir())
    assert names == sorted(p.name for p in mini_folder().iterdir())
    for name in names:
        assert (again / name).read_bytes() == (mini_folder() / name).read_bytes(), name
    other = tiny.build(tmp_path / "other", seed=1)
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()


def test_shipped_mini_is_whole_small_and_says_whether_it_is_trained():
    thinker = Thinker.load(SHIPPED)
    record = json.loads((SHIPPED / "model.json").read_text())
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 5_000_000
    assert thinker.trained is record["trained"] is not thinker.model_id.endswith(" (untrained)")
    parameters = sum(p.numel() for p in thinker._model.parameters())
    assert 1_000_000 < parameters < 1_500_000
    assert parameters == record["training"]["parameters"]
    assert (thinker.layers, thinker.width, thinker.image_size) == ((0, 1, 2, 3), 128, (128, 128))
    assert thinker.think(frames(4), "", max_new_tokens=2).model_id == thinker.model_id
    built = json.loads((mini_folder() / "model.json").read_text())
    assert record["config"] == built["config"], "rebuild models/mini/thinker: the code asks another question"


def test_words_of_the_scene_are_single_tokens():
    trained = tokenizer.train(tokenizer.corpus(), tiny.VOCABULARY)
    assert trained.get_vocab_size() <= tiny.VOCABULARY
    for word in tokenizer.WORDS:
        assert len(trained.encode(word).ids) == len(trained.encode(" " + word).ids) == 1, word
    text = 'Ünïcode, 漢字 🤖 and "quotes"\n\tstay 12.5 whole'
    assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == text


def test_released_folder_without_manifest_loads(foreign):
    thinker = Thinker.load(foreign)
    assert thinker.trained and thinker.model_id == "mini" and thinker.image_size == (256, 256)
    assert thinker.think(frames(2), "", max_new_tokens=1).present == (True, True)


def test_sharded_folder_loads(foreign):
    state = load_file(foreign / "model.safetensors")
    (foreign / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for shard, keys in shards.items():
        save_file({k: state[k] for k in keys}, foreign / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: shard for shard, keys in shards.items() for k in keys}}
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Thinker.load(foreign).model_id == "mini"
    (foreign / "b.safetensors").unlink()
    with pytest.raises(ThinkerError, match=r"weight files are missing: b\.safetensors"):
        Thinker.load(foreign)


def damaged(what):
    """Cases: how a folder is damaged, and the words of the refusal."""

    def decorate(function):
        return pytest.param(function, what, id=function.__name__)

    return decorate


@damaged(r"no model\.safetensors in it.*--steps 0")
def no_weights(folder):
    (folder / "model.json").unlink()
    (folder / "model.safetensors").unlink()


@damaged(r"only pickled weights \(pytorch_model\.bin\).*Convert them")
def pickled(folder):
    no = folder / "model.safetensors"
    no.rename(folder / "pytorch_model.bin")


@damaged(r"model\.safetensors: SHA-256 is .*changed or cut")
def one_bit(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@damaged(r"tokenizer\.json: SHA-256")
def tokenizer_changed(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("red", "der"))


@damaged(r"no config\.json in it")
def no_config(folder):
    (folder / "config.json").unlink()


@damaged(r"no tokenizer\.json in it")
def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@damaged(r"config\.json describes a 'llama' model")
def other_model(folder):
    edit(folder / "config.json", model_type="llama")


@damaged(r"config\.json: not readable as JSON")
def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


@damaged(r"config\.json: holds no JSON object")
def list_config(folder):
    (folder / "config.json").write_text("[1]")


@damaged(r"model\.json: holds a 'predictor', a 'thinker' is needed")
def other_kind(folder):
    edit(folder / "model.json", kind="predictor")


@damaged(r"model\.json: no SHA-256 of model\.safetensors")
def no_hash(folder):
    edit(folder / "model.json", sha256={})


@damaged(r"points outside its folder")
def hash_of_elsewhere(folder):
    record = json.loads((folder / "model.json").read_text())
    (folder.parent / "elsewhere").write_text("x")
    edit(folder / "model.json", sha256={**record["sha256"], "../elsewhere": "0"})


@damaged(r"image_size must be two whole numbers")
def odd_image_size(folder):
    edit(folder / "model.json", config={"image_size": "128"})


@damaged(r"image_size \(100, 128\): not multiples of 32")
def unaligned_image_size(folder):
    edit(folder / "model.json", config={"image_size": [100, 128]})


@damaged(r"prompt must be text")
def odd_prompt(folder):
    edit(folder / "model.json", config={"image_size": [128, 128], "prompt": 3})


@damaged(r"view must be one of whole, centre, is 'left'")
def odd_view(folder):
    edit(folder / "model.json", config={"image_size": [128, 128], "view": "left"})


DAMAGES = [no_weights, pickled, one_bit, tokenizer_changed, no_config, no_tokenizer, other_model, broken_config]
DAMAGES += [list_config, other_kind, no_hash, hash_of_elsewhere, odd_image_size, unaligned_image_size, odd_prompt]
DAMAGES += [odd_view]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damaged_folder_is_refused(folder, damage, words):
    damage(folder)
    with pytest.raises(ThinkerError, match=words):
        Thinker.load(folder)


def test_view_is_read_from_the_manifest_and_whole_without_one(folder):
    record = json.loads((folder / "model.json").read_text())
    for given, want in (({"view": "centre"}, "centre"), ({"view": "whole"}, "whole"), ({}, "whole")):
        config = {name: value for name, value in record["config"].items() if name != "view"} | given
        edit(folder / "model.json", config=config)
        assert folders.find(folder).view == want
    (folder / "model.json").unlink()
    assert folders.find(folder).view == "whole", "released models see whole pictures"


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": {"x": 3}}])
def test_an_index_that_names_no_files_is_refused(foreign, index):
    (foreign / "model.safetensors").unlink()
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ThinkerError, match=r"weight_map does not name files"):
        Thinker.load(foreign)


def test_cut_weights_of_a_released_folder(foreign):
    path = foreign / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ThinkerError, match="not loadable as Qwen3-VL"):
        Thinker.load(foreign)


def test_missing_tensors_are_not_filled_with_noise(foreign):
    state = load_file(foreign / "model.safetensors")
    gone = next(k for k in state if "layers.2.mlp" in k)
    del state[gone]
    save_file(state, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ThinkerError, match=r"1 tensors are missing.*layers\.2\.mlp"):
        Thinker.load(foreign)


def test_tokenizer_of_another_model(foreign):
    path = foreign / "config.json"
    edit(path, video_token_id=json.loads(path.read_text())["video_token_id"] + 1)
    with pytest.raises(ThinkerError, match=r"<\|video_pad\|> is \d+, config.json says \d+"):
        Thinker.load(foreign)


def test_places_that_are_no_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(ThinkerError, match=r"no such folder.*models/mini/thinker"):
        Thinker.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ThinkerError, match="a file; give the folder"):
        Thinker.load(tmp_path / "file")
    with pytest.raises(ThinkerError, match=r"neither a folder here nor in the local .*give the path"):
        Thinker.load("Nobody/has-this-model@0123abc")


def test_hub_id_is_found_in_the_local_cache(tmp_path, monkeypatch):
    """The layout of the Hugging Face cache: models--owner--name/snapshots/<commit>, refs/main."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--owner--name"
    shutil.copytree(mini_folder(), root / "snapshots" / commit)
    (root / "snapshots" / commit / "model.json").unlink()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert Thinker.load("owner/name").model_id == "owner/name@01234567"
    assert Thinker.load(f"owner/name@{commit}").trained
    with pytest.raises(ThinkerError, match=r"neither a folder here"):
        Thinker.load("owner/name@other")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "warp"}, "not one that torch knows"),
        ({"dtype": "float8"}, "not one of float32, float16, bfloat16"),
        ({"layers": [0, 4]}, r"within 0\.\.3"),
        ({"layers": [2, 1]}, "ascend"),
        ({"layers": []}, "ascend"),
        ({"pool": "most"}, "pool must be one of"),
    ],
)
def test_options_that_cannot_be_had(options, words):
    with pytest.raises(ThinkerError, match=words):
        Thinker.load(mini_folder(), **options)


@pytest.mark.parametrize("version", ["4.57.1", "5.9.0", "5.17.2"])
def test_too_old_transformers(version, monkeypatch):
    monkeypatch.setattr(loading.transformers, "__version__", version)
    with pytest.raises(ThinkerError, match=f"transformers {version} is too old.*5.18"):
        Thinker.load(mini_folder())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none():
    with pytest.raises(ThinkerError, match="no CUDA device"):
        Thinker.load(mini_folder(), device="cuda")
