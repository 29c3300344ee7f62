"""`thinkjepa import`: published layouts become checkpoints that load, all or nothing."""

import json
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from import_kit import (
    FILES,
    State,
    ac_file,
    call,
    good,
    load,
    meta_encoder,
    meta_file_with_predictor,
    refused,
    thinkjepa_file,
)
from safetensors.torch import save_file
from transformers import VJEPA2Config, VJEPA2Model
from typer.testing import CliRunner

from thinkjepa_ros import checkpoints, cli
from thinkjepa_ros.importers import command, vjepa2
from thinkjepa_ros.importers.source import Options, SourceError, read

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", FILES)
def test_a_published_file_becomes_a_checkpoint_per_part(tmp_path: Path, name: str, old_format: bool) -> None:
    content, options, kinds = FILES[name]
    source, out = tmp_path / name, tmp_path / "out"
    torch.save(content(), source, _use_new_zipfile_serialization=not old_format)
    done = call(source, out, *options, "--licence", "MIT")
    assert done.exit_code == 0, done.exception
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "out"])
    found = {json.loads((p / "model.json").read_text())["kind"]: p for p in out.iterdir()}
    assert sorted(found) == sorted(kinds)
    for kind, folder in found.items():
        module, manifest = load(folder, kind)
        assert manifest.licence == "MIT" and manifest.source["name"] == name
        assert manifest.source["sha256"] == {name: checkpoints.sha256_of(source)}
        assert all(p.dtype == torch.float32 for p in module.parameters())
        parameters = sum(p.numel() for p in module.parameters())
        assert f"{kind}: {parameters:,} parameters, float32, in {folder}" in done.stdout
        assert f"sha256 {checkpoints.sha256_of(folder / 'model.safetensors')}" in done.stdout


def test_one_kind_can_be_asked_for(tmp_path: Path) -> None:
    torch.save(ac_file(), tmp_path / "ac.pt")
    assert call(tmp_path / "ac.pt", tmp_path / "out", "--as", "encoder").exit_code == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["encoder"]
    assert "holds nothing that can be imported as trajectory_head" in refused(
        tmp_path / "ac.pt", tmp_path / "other", "--as", "trajectory_head"
    )
    assert re.search("no such kind; there are .*encoder", refused(tmp_path / "ac.pt", tmp_path / "o", "--as", "thing"))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real VJEPA2Model with random weights, as `save_pretrained` leaves it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "frames_per_clip": 4}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    folder = tmp_path_factory.mktemp("hf") / "vjepa2-tiny"
    VJEPA2Model(VJEPA2Config(**sizes, **predictor)).save_pretrained(folder)
    return folder


def encoder_weights(out: Path) -> State:
    return load(out / "encoder", "encoder")[0].state_dict()


def test_a_folder_its_shards_half_precision_and_flat_file_give_the_same_numbers(
    hugging_face: Path, tmp_path: Path
) -> None:
    assert call(hugging_face, tmp_path / "one").exit_code == 0
    want = encoder_weights(tmp_path / "one")
    VJEPA2Model.from_pretrained(hugging_face).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert call(tmp_path / "shards", tmp_path / "two").exit_code == 0
    _, manifest = load(tmp_path / "two" / "encoder", "encoder")
    assert len(manifest.source["sha256"]) == len(list((tmp_path / "shards").glob("*.safetensors")))
    VJEPA2Model.from_pretrained(hugging_face).half().save_pretrained(tmp_path / "half")
    assert call(tmp_path / "half", tmp_path / "three").exit_code == 0
    for name, tensor in want.items():
        assert torch.equal(encoder_weights(tmp_path / "two")[name], tensor)
    for name, tensor in encoder_weights(tmp_path / "three").items():
        assert torch.allclose(tensor, want[name], atol=1e-3), name


def test_an_id_is_looked_up_in_the_local_cache(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's own layout, in which the files of a snapshot are links out of its folder."""
    commit, root = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache" / "models--owner--name"
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "blobs").mkdir()
    for i, file in enumerate(hugging_face.iterdir()):
        (root / "blobs" / str(i)).write_bytes(file.read_bytes())
        (root / "snapshots" / commit / file.name).symlink_to(root / "blobs" / str(i))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert call("owner/name", tmp_path / "out").exit_code == 0
    _, manifest = load(tmp_path / "out" / "encoder", "encoder")
    assert manifest.model_id == "owner/name/encoder" and manifest.source["revision"] == commit
    text = refused("owner/name", tmp_path / "no", "--revision", "other")
    assert re.search(r"owner/name@other: .*HF_HUB_OFFLINE is set.*hf download owner/name", text)
    for file in (root / "snapshots" / commit).glob("*.safetensors"):
        file.unlink()
    assert "has no .safetensors" in refused("owner/name", tmp_path / "no")


def test_offline_and_not_in_the_cache_says_what_to_do(tmp_path: Path) -> None:
    text = refused("nobody/has-this", tmp_path / "out")
    assert "not in the local Hugging Face cache" in text and "HF_HUB_OFFLINE is set" in text
    assert "no such file or folder" in refused(tmp_path / "missing.pt", tmp_path / "out")


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    source, out = good(tmp_path), tmp_path / "out"
    assert call(source, out).exit_code == 0
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    assert "--force to replace it" in refused(source, out)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before
    assert call(source, out, "--force", "--model-id", "again").exit_code == 0
    assert load(out / "encoder", "encoder")[1].model_id == "again/encoder"
    (out / "diary.txt").write_text("dear diary")
    assert "holds more than imported parts (diary.txt)" in refused(source, out, "--force")
    assert (out / "diary.txt").read_text() == "dear diary"


def test_a_failed_import_with_force_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(good(tmp_path), out)
    broken = meta_encoder()
    broken["norm.bias"][0] = torch.nan
    torch.save(broken, tmp_path / "broken.pt")
    refused(tmp_path / "broken.pt", out, "--force")
    assert encoder_weights(out)


@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("moment", ["save", "load_module"])
def test_a_kill_leaves_the_old_or_nothing_and_the_next_import_cleans_up(
    tmp_path: Path, there: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = good(tmp_path), tmp_path / "out"
    if there:
        assert call(source, out).exit_code == 0
    child = os.fork()
    if child == 0:
        real = getattr(checkpoints, moment)

        def die(*arguments: object, **named: object) -> None:
            real(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(checkpoints, moment, die)
        call(source, out, "--force")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert out.exists() is there and (not there or encoder_weights(out))
    assert any(p.name.startswith(".out.import-") for p in tmp_path.iterdir())
    assert call(source, out, "--force").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.pt", "out"] and encoder_weights(out)


def test_a_kill_while_the_new_takes_the_place_of_the_old_loses_neither(tmp_path: Path) -> None:
    source, out = good(tmp_path), tmp_path / "out"
    call(source, out, "--model-id", "old")
    child = os.fork()
    if child == 0:
        real = Path.rename

        def die(self: Path, target: Path) -> None:
            real(self, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename = die  # type: ignore[method-assign,assignment]
        call(source, out, "--force", "--model-id", "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert isinstance(call(source, out).exception, SourceError)  # it is back, and is not replaced without being asked
    assert load(out / "encoder", "encoder")[1].model_id == "old/encoder"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.pt", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = good(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(checkpoints, "load_module", lambda *_: signal.raise_signal(number))
    done = call(source, tmp_path / "out")
    assert done.exit_code != 0 and [p.name for p in tmp_path.iterdir()] == ["good.pt"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = good(tmp_path)
    assert f"{source / 'out'}: cannot be written" in refused(source, source / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as on a disk that is nearly full
    try:
        assert "out: cannot be written" in refused(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_error_in_one_part_says_that_the_others_can_be_had(tmp_path: Path) -> None:
    content = meta_file_with_predictor()
    content["predictor"] = {k: v for k, v in content["predictor"].items() if not k.endswith("norm.bias")}
    torch.save(content, tmp_path / "a.pt")
    assert re.search(r"predictor_?norm|rollout_norm.*--as encoder", refused(tmp_path / "a.pt", tmp_path / "out"))
    assert call(tmp_path / "a.pt", tmp_path / "out", "--as", "encoder").exit_code == 0


def test_names_that_the_format_refuses_are_refused_of_the_place_meant(tmp_path: Path) -> None:
    source, out = good(tmp_path), tmp_path / "out"
    assert refused(source, out, "--model-id", "a\x1b[31m").startswith(f"{out}/encoder/model.json: model_id")
    assert refused(source, out, "--licence", "a\nb").startswith(f"{out}/encoder/model.json: licence")


def test_a_revision_goes_with_an_id_only(tmp_path: Path) -> None:
    source = good(tmp_path)
    assert "--revision" in refused(source, tmp_path / "out", "--revision", "main")


def test_sections_prefixes_and_plain_values_are_told_apart(tmp_path: Path) -> None:
    torch.save(thinkjepa_file(), tmp_path / "a.pt")
    source = read(tmp_path / "a.pt")
    assert set(source.sections) == {"predictor", "cls_model"}
    assert source.args["past_T"] == 4 and source.args["epoch"] == 7 and "optimizer" not in source.args
    assert source.section("token_query") is source.sections["cls_model"]
    source = read(good(tmp_path))
    assert set(source.sections) == {"encoder", "target_encoder"} and "norm.bias" in source.sections["encoder"]
    assert isinstance(source.args["loss"], float) and not isinstance(source.args["loss"], np.generic)


def test_test_vectors_are_read_as_the_weights_in_them(tmp_path: Path) -> None:
    state = meta_encoder()
    save_file(
        {f"w.{k}": v for k, v in state.items()} | {"x": torch.ones(2)}, tmp_path / "v.safetensors", {"depth": "1"}
    )
    source = read(tmp_path / "v.safetensors")
    assert source.sections[""].keys() == state.keys() and source.metadata == {"depth": "1"}
    assert vjepa2.recognises(source) and vjepa2.convert(source, Options())[0].kind == "encoder"


def test_help_documents_and_registry_name_what_there_is() -> None:
    import yaml

    kinds = {kind for converter in command.converters() for kind in converter.BUILD}
    words = CliRunner().invoke(cli.app, ["import", "--help"], env={"COLUMNS": "200"}).stdout
    page = (ROOT / "docs" / "models.md").read_text()
    registry = yaml.safe_load((ROOT / "models" / "registry.yaml").read_text())["importable"]
    assert kinds == {part for entry in registry for part in entry["parts"]}
    for kind in kinds:
        assert kind in words and f"`{kind}`" in page, kind
    for entry in registry:
        assert entry["licence"] and re.fullmatch("[0-9a-f]{64}", entry.get("sha256", "0" * 64))
        assert f"`{entry['id']}`" in page
