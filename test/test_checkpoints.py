"""Checkpoints: what is damaged, foreign or out of place is refused with the reason, before anything is allocated."""

import json
import os
import pickle
import resource
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

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
        (lambda f: (f / "model.json").write_text("[]"), "no JSON object"),
        (lambda f: change(f, format="other/9"), "format"),
        (lambda f: change(f, kind="thinker"), "'thinker'"),
        (lambda f: change(f, trained="yes"), "trained"),
        (lambda f: change(f, model_id="\x1b[31m"), "plain name"),
        (lambda f: change(f, config={}), "configuration"),
        (lambda f: change(f, sha256={}), "no SHA-256 of model.safetensors"),
        (lambda f: change(f, sha256={"model.safetensors": 3}), "no SHA-256 of model.safetensors"),
        (lambda f: change(f, domain="\x1b[31m"), "plain text"),
        (lambda f: change(f, licence=3), "licence"),
        (lambda f: change(f, licence="x" * 501), "plain text"),
        (lambda f: change(f, source=[]), "source"),
        (lambda f: change(f, training=float("nan")), "NaN is not a finite number"),
        (lambda f: (f / "model.json").write_text('{"format": 1e999}'), "1e999 is not a finite number"),
        (lambda f: (f / "model.json").write_text('{"kind": 1, "kind": 2}'), "twice"),
        (lambda f: (f / "model.json").write_text('{"kind": "\\ud800"}'), "surrogates"),
        (lambda f: (f / "model.json").write_text(f'{{"a": {"[" * 70}{"]" * 70}}}'), "64 deep"),
        (lambda f: (f / "model.json").write_bytes(b"\xff\xfe{"), "JSON"),
        (lambda f: (f / "model.json").write_bytes(b" " * (5 << 20)), "larger than 4 MiB"),
        (lambda f: ((f / "model.json").unlink(), (f / "model.json").mkdir()), "no model.json"),
        (lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()), "a folder, where a file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "SHA-256"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "model.safetensors"), "pickle.*`thinkjepa import`"),
        (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps([1] * 9)), "pickle.*`thinkjepa import`"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(folder: Path, spoil: Callable, words: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as refusal:
        model.load(folder)
    text = str(refusal.value)
    assert text.startswith(str(folder)) and "\n" not in text and len(text) < 500 + len(str(folder))


def test_what_may_not_be_read_is_refused_in_words(folder: Path) -> None:
    """As another user, in a child process: root may read everything."""
    (folder / "model.json").chmod(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            model.load(folder)
        except CheckpointError as error:
            code = 0 if "cannot be read (Permission denied)" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_licence_and_source_are_kept_and_may_be_absent(folder: Path) -> None:
    net, manifest = model.load(folder)
    assert manifest.licence == "" and manifest.source == {}
    fields = {"licence": "MIT", "source": {"name": "vitl.pt"}}
    checkpoints.save(folder, checkpoints.Manifest(**{**vars(manifest), **fields}), net.state_dict())
    _, manifest = model.load(folder)
    assert manifest.licence == "MIT" and manifest.source == {"name": "vitl.pt"}


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


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../b", "..", "", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="outside"):
        checkpoints.verified_file(folder, name, model.load(folder)[1])


def write_weights(folder: Path, data: bytes) -> None:
    """Other weights, with a SHA-256 that fits: what is tested comes after it."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    change(folder, sha256={"model.safetensors": checkpoints.sha256_of(path)})


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "canary",))

    write_weights(folder, pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"a pickle .* `thinkjepa import`"):
        model.load(folder)
    assert not (tmp_path / "canary").exists()


def header_of(entries: dict[str, object], data: int = 8) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "an endless header": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a large header": struct.pack("<Q", 20 << 20) + b" " * (20 << 20),
    "eight bytes": bytes(8),
    "three bytes": b"abc",
    "no object": header_of([]),  # type: ignore[arg-type]
    "not JSON": struct.pack("<Q", 3) + b"{a}",
    "a key twice": struct.pack("<Q", 16) + b'{"a": 1, "a": 2}',
    "a hole": header_of({"a": entry(offsets=(4, 12))}, 12),
    "an overlap": header_of({"a": entry(), "b": entry(offsets=(4, 12))}, 12),
    "data that nobody owns": header_of({"a": entry()}, 9),
    "data cut off": header_of({"a": entry()}, 7),
    "a wrong size": header_of({"a": entry(shape=(3,))}),
    "a negative size": header_of({"a": entry(shape=(-2,))}),
    "sizes whose product wraps": header_of({"a": entry(shape=(2**62, 4, 2))}),
    "a size that is true": header_of({"a": entry("U8", (True,), (0, 1))}, 1),
    "an unknown type": header_of({"a": entry("F3")}),
    "a type that is a list": header_of({"a": entry(["F32"])}),
    "offsets backwards": header_of({"a": entry(offsets=(8, 0))}),
    "one offset": header_of({"a": entry(offsets=(8,))}),
    "a field too many": header_of({"a": {**entry(), "more": 1}}),
    "a tensor that is text": header_of({"a": "F32"}),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_header_must_describe_every_byte(folder: Path, data: bytes) -> None:
    write_weights(folder, data)
    with pytest.raises(CheckpointError, match=r"not readable as|not those of the configuration|no JSON object"):
        model.load(folder)


def test_a_good_header_may_begin_with_the_byte_of_a_pickle(tmp_path: Path) -> None:
    for pad in range(0, 160, 8):  # the length runs over every multiple of 8, 0x80 among them
        save_file({"a" * (1 + pad): torch.ones(2)}, tmp_path / "x")
        assert list(checkpoints.read_header(tmp_path / "x").values()) == [("float32", (2,), 8)]


class Square(nn.Module):
    def __init__(self, width: int, depth: int = 1, table: int = 1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("table", torch.arange(table), persistent=False)


def square(folder: Path, **config: object) -> nn.Module:
    return checkpoints.load_module(folder, "square", lambda c: Square(**c))[0]


@pytest.fixture
def square_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    manifest = checkpoints.Manifest("square", "s", {"width": 4}, True, "test")
    checkpoints.save(tmp_path / "square", manifest, Square(4).state_dict())
    return tmp_path / "square"


def test_tables_that_are_not_in_the_file_are_made_anew(square_folder: Path) -> None:
    change(square_folder, config={"width": 4, "table": 5})
    loaded = square(square_folder)
    assert loaded.table.tolist() == [0, 1, 2, 3, 4] and not loaded.training
    assert all(not p.is_meta and not p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.layers[0].weight, load_file(square_folder / "model.safetensors")["layers.0.weight"])


def test_loaded_weights_do_not_change_with_the_file(square_folder: Path) -> None:
    loaded = square(square_folder)
    before = loaded.layers[0].weight.clone()
    with (square_folder / "model.safetensors").open("r+b") as file:
        file.seek(-80, os.SEEK_END)
        file.write(bytes(80))
    assert torch.equal(loaded.layers[0].weight, before) and bool(before.any())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"width": 10_000_000}, r"asks for float32 \[10000000"),
        ({"width": 10**9}, "larger than any size"),
        ({"width": 4, "depth": 9_999_999}, "many more tensors"),
        ({"width": 4, "depth": 2}, r"missing .*layers\.1"),
        ({"width": 4, "table": 10_000_000_000}, "larger than any size"),
        ({"width": [10**9]}, "larger than any size"),
        ({"width": -1}, "not usable"),
        ({"width": "4"}, "not usable"),
        ({"wide": 4}, "not usable"),
    ],
)
def test_a_configuration_that_the_file_does_not_bear_out_costs_nothing(
    square_folder: Path, config: dict[str, object], words: str
) -> None:
    change(square_folder, config=config)
    start, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=words):
        square(square_folder)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100_000  # KiB


def test_tables_larger_than_any_model_needs_are_refused(square_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_MAX_BUFFER_BYTES", 1 << 20)
    change(square_folder, config={"width": 4, "table": 1_000_000})
    with pytest.raises(CheckpointError, match="tables"):
        square(square_folder)


def test_a_tensor_of_another_type_is_refused(square_folder: Path) -> None:
    state = {k: v.half() for k, v in load_file(square_folder / "model.safetensors").items()}
    save_file(state, square_folder / "other")
    write_weights(square_folder, (square_folder / "other").read_bytes())
    with pytest.raises(CheckpointError, match=r"float16 .* asks for float32"):
        square(square_folder)


def test_loading_leaves_modules_of_other_threads_alone(square_folder: Path) -> None:
    """A node loads in a thread of its own; what is built beside it gets memory as ever."""
    beside: list[nn.Module] = []

    def build(config: dict[str, int]) -> nn.Module:
        thread = threading.Thread(target=lambda: beside.append(nn.Linear(3, 3)))
        thread.start()
        thread.join()
        return Square(**config)

    checkpoints.load_module(square_folder, "square", build)
    assert len(beside) == 2 and all(not p.is_meta for module in beside for p in module.parameters())
    assert not nn.Linear(3, 3).weight.is_meta


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=8), cut=st.integers()
)
def test_flipped_bytes_in_header_or_manifest_raise_nothing_else(
    square_folder: Path, flips: list[tuple[int, int]], cut: int
) -> None:
    weights, manifest = square_folder / "model.safetensors", square_folder / "model.json"
    good = weights.read_bytes(), manifest.read_bytes()
    (length,) = struct.unpack("<Q", good[0][:8])
    for path, limit in ((weights, 8 + length), (manifest, len(good[1]))):
        data = bytearray(path.read_bytes())
        for place, value in flips:
            data[place % limit] ^= value
        data = data[: cut % len(data)] if cut > 0 else data
        if path == weights:
            write_weights(square_folder, bytes(data))
        else:
            path.write_bytes(bytes(data))
        try:
            square(square_folder)  # some flips do no harm
        except CheckpointError as error:
            assert str(square_folder) in str(error)
        finally:
            weights.write_bytes(good[0])
            manifest.write_bytes(good[1])


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
