"""What `thinkjepa import` refuses: files that are no checkpoints, in one sentence each, and nothing in them runs."""

import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from import_kit import good, meta_encoder, meta_file, refused
from safetensors.torch import save_file

from thinkjepa_ros.importers.source import SourceError, read


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


@wrong("a compressed archive")
def zip_bomb(place: Path) -> Path:
    with zipfile.ZipFile(place / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10_000_000))
    return place / "a.pt"


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


WRONG = [
    empty,
    zeros,
    noise,
    cut,
    cut_legacy,
    tar,
    zip_bomb,
    bomb,
    legacy_bomb,
    plain_bomb,
    json_for_safetensors,
    web_page,
]
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


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    arguments = ["import", str(tmp_path / "missing.pt"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "thinkjepa_ros.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("thinkjepa: ") and done.stderr.count("\n") == 1
