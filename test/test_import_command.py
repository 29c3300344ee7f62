"""`thinkjepa import`: published layouts become checkpoints that load, all or nothing, and nothing in a file runs."""

import json
import os
import pickle
import re
import resource
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model
from typer.testing import CliRunner

from thinkjepa_ros import checkpoints, cli
from thinkjepa_ros.importers import command, vjepa2
from thinkjepa_ros.importers.source import Options, SourceError, read

ROOT = Path(__file__).parents[1]
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


class Bomb:
    """A pickle that would run a program."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.canary}",))


def wrong(what: str) -> Callable:
    """Cases: how a source is wrong, and the words of the refusal."""

    def decorate(function: Callable) -> object:
        return pytest.param(function, what, id=function.__name__)

    return decorate


def good(place: Path) -> Path:
    torch.save(meta_file(), place / "good.pt")
    return place / "good.pt"


@wrong("empty")
def empty(place: Path) -> Path:
    (place / "a.pt").touch()
    return place / "a.pt"


@wrong("all zeros")
def zeros(place: Path) -> Path:
    (place / "a.pt").write_bytes(bytes(4096))
    return place / "a.pt"


@wrong("neither safetensors nor a PyTorch file")
def noise(place: Path) -> Path:
    (place / "a.pt").write_bytes(np.random.default_rng(0).bytes(4096))
    return place / "a.pt"


@wrong("cut, or changed")
def cut(place: Path) -> Path:
    data = good(place).read_bytes()
    (place / "a.pt").write_bytes(data[: len(data) // 2])
    return place / "a.pt"


@wrong("not readable as a PyTorch file")
def cut_legacy(place: Path) -> Path:
    torch.save(meta_file(), place / "a.pt", _use_new_zipfile_serialization=False)
    (place / "a.pt").write_bytes((place / "a.pt").read_bytes()[:-1000])
    return place / "a.pt"


@wrong("a tar archive; unpack it")
def tar(place: Path) -> Path:
    with tarfile.open(place / "a.tar", "w") as archive:
        archive.add(good(place), "a.pt")
    return place / "a.tar"


@wrong(r"more than tensors and numbers \(posix\.system\).*not read")
def bomb(place: Path) -> Path:
    torch.save({**meta_file(), "best": Bomb(place / "canary")}, place / "a.pt")
    return place / "a.pt"


@wrong(r"more than tensors and numbers \(posix\.system\).*not read")
def legacy_bomb(place: Path) -> Path:
    content = {**meta_file(), "best": Bomb(place / "canary")}
    torch.save(content, place / "a.pt", _use_new_zipfile_serialization=False)
    return place / "a.pt"


@wrong("more than tensors and numbers")
def plain_bomb(place: Path) -> Path:
    (place / "a.pt").write_bytes(pickle.dumps(Bomb(place / "canary")))
    return place / "a.pt"


@wrong("JSON, not weights")
def json_for_safetensors(place: Path) -> Path:
    (place / "a.safetensors").write_text('{"a": 1}')
    return place / "a.safetensors"


@wrong("a web page")
def web_page(place: Path) -> Path:
    (place / "vitl.pt").write_text("<html>404</html>")
    return place / "vitl.pt"


@wrong("Git LFS pointer.*git lfs pull")
def lfs_pointer(place: Path) -> Path:
    (place / "vitl.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    return place / "vitl.pt"


@wrong("holds a Tensor, not a dictionary")
def bare_tensor(place: Path) -> Path:
    torch.save(torch.ones(3), place / "a.pt")
    return place / "a.pt"


@wrong("no tensors in it")
def no_tensors(place: Path) -> Path:
    torch.save({"epoch": 1}, place / "a.pt")
    return place / "a.pt"


@wrong(r"nothing that can be imported.*layer1\.conv.*--help")
def another_network(place: Path) -> Path:
    torch.save({"layer1.conv": torch.ones(3)}, place / "a.pt")
    return place / "a.pt"


@wrong("holds values that are not finite")
def not_finite(place: Path) -> Path:
    state = meta_encoder()
    state["norm.bias"][0] = torch.nan
    torch.save({"encoder": state}, place / "a.pt")
    return place / "a.pt"


@wrong(r"blocks\.0\.mlp\.fc1\.weight")
def tensor_missing(place: Path) -> Path:
    state = meta_encoder()
    del state["blocks.0.mlp.fc1.weight"]
    torch.save({"encoder": state}, place / "a.pt")
    return place / "a.pt"


@wrong("sparse is not a plain dense tensor")
def sparse(place: Path) -> Path:
    torch.save({"sparse": torch.eye(3).to_sparse()}, place / "a.pt")
    return place / "a.pt"


@wrong(r"holds a\.pt, good\.pt")
def two_models(place: Path) -> Path:
    folder = place / "two"
    folder.mkdir()
    good(folder)
    torch.save({}, folder / "a.pt")
    return folder


@wrong(r"no config\.json beside model\.safetensors")
def no_config(place: Path) -> Path:
    folder = place / "hf"
    folder.mkdir()
    save_file(meta_encoder(), folder / "model.safetensors")
    return folder


@wrong("missing.*b.safetensors")
def no_shard(place: Path) -> Path:
    folder = place / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "b.safetensors"}}')
    return folder


@wrong(r"missing.*\.\./good")
def shard_elsewhere(place: Path) -> Path:
    good(place)
    folder = no_shard.values[0](place)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../good.pt"}}')
    return folder


@wrong("checkpoint of this package already")
def ours(place: Path) -> Path:
    folder = place / "ours"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    return folder


WRONG = [empty, zeros, noise, cut, cut_legacy, tar, bomb, legacy_bomb, plain_bomb, json_for_safetensors, web_page]
WRONG += [lfs_pointer, bare_tensor, no_tensors, another_network, not_finite, tensor_missing, sparse, two_models]
WRONG += [no_config, no_shard, shard_elsewhere, ours]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_what_is_no_checkpoint_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    text = refused(make(tmp_path), tmp_path / "out")
    assert text.startswith(str(tmp_path)) and re.search(words, text), text
    assert not (tmp_path / "canary").exists()


def test_the_bomb_is_a_real_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))  # noqa: S301
    assert (tmp_path / "canary").exists()


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
    refused(not_finite.values[0](tmp_path), out, "--force")
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    keep=st.integers(1, 10**6) | st.none(),
)
def test_a_damaged_file_raises_nothing_but_a_sentence(
    tmp_path: Path, old: bool, flips: list[tuple[int, int]], keep: int | None
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"encoder": {"a": torch.ones(9, 9)}, "epoch": 1}, path, _use_new_zipfile_serialization=not old)
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] ^= value
    path.write_bytes(data[: None if keep is None else keep % len(data)])
    try:
        read(path)
    except SourceError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
