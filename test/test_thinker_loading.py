"""How a checkpoint is loaded: types, attention, int8, the patch embedding, and memory that is looked at beforehand."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from thinker_kit import frames, fresh_thinker, mini_folder
from transformers import Qwen3VLForConditionalGeneration

from thinkjepa_ros.thinker import loading, memory
from thinkjepa_ros.thinker.qwen import Thinker, ThinkerError
from thinkjepa_ros.thinker.window import Window

INSTRUCTION = "put the red cube in the left tray"


def pyramid(**options) -> np.ndarray:
    return fresh_thinker(**options).think(frames(8), INSTRUCTION, max_new_tokens=4).pyramid


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """Largest relative difference of a row."""
    return float((np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)).max())


# ---------------------------------------------------------------- types and attention


def test_auto_is_float32_on_a_processor_and_bfloat16_on_cuda():
    assert fresh_thinker(dtype="auto")._model.dtype == torch.float32
    assert loading.resolve_dtype("auto", "cuda") == loading.resolve_dtype(None, "cuda:1") == torch.bfloat16


def test_eager_attention_gives_the_same_states():
    assert fresh_thinker(attention="eager")._model.config._attn_implementation == "eager"
    assert relative(pyramid(attention="eager"), pyramid()) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "fast"}, "attention 'fast' is not one of sdpa, eager, flash_attention_2"),
        ({"attention": "flash_attention_2"}, r"runs on CUDA.*not on cpu in float32; use 'sdpa'"),
        ({"attention": "flash_attention_2", "dtype": "bfloat16"}, "not on cpu in bfloat16"),
        ({"quantization": "int4"}, "quantization 'int4' is not one of none, int8"),
        ({"dtype": "float8"}, "not one of float32, float16, bfloat16 or auto"),
    ],
)
def test_what_cannot_be_had_is_refused(options, words):
    with pytest.raises(ThinkerError, match=words):
        Thinker.load(mini_folder(), **options)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed here")
def test_flash_attention_names_what_is_missing():
    with pytest.raises(ThinkerError, match=r"package flash_attn.*use 'sdpa', or install it: pip install flash-attn"):
        loading._check_attention("flash_attention_2", torch.device("cuda"), torch.bfloat16)


# ---------------------------------------------------------------- the patch embedding


@pytest.mark.parametrize("width", [64, 1024], ids=["mini", "2B"])
def test_patch_embedding_equals_the_convolution(width):
    torch.manual_seed(0)
    kernel = (2, 16, 16)
    conv = torch.nn.Conv3d(3, width, kernel, stride=kernel)
    patches = torch.rand(64, 3 * 2 * 16 * 16) * 2 - 1
    with torch.inference_mode():
        ours = loading.PatchEmbedding(conv)(patches)
        theirs = conv(patches.view(-1, 3, *kernel)).flatten(1)
    assert ours.shape == (64, width) and (ours - theirs).abs().max() < 1e-5


def test_features_equal_those_of_the_library_and_names_stay():
    thinker = fresh_thinker()
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(mini_folder(), dtype=torch.float32).eval()
    state = thinker._model.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert state[name].shape == tensor.shape and torch.equal(state[name], tensor), name
    assert state.keys() == theirs.state_dict().keys() >= load_file(mini_folder() / "model.safetensors").keys()
    pixels, grid = torch.rand(64, 1536) * 2 - 1, torch.tensor([[1, 8, 8]])
    with torch.inference_mode():
        ours = thinker._model.model.get_video_features(pixels, grid, return_dict=True)
        same = theirs.model.get_video_features(pixels, grid, return_dict=True)
    assert (ours.pooler_output[0] - same.pooler_output[0]).abs().max() < 1e-5


# ---------------------------------------------------------------- int8


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed here")
def test_int8_without_torchao_names_the_remedy():
    with pytest.raises(ThinkerError, match=r"needs the package torchao.*pip install -r requirements/quantize\.txt"):
        fresh_thinker(quantization="int8")


@pytest.fixture(scope="module")
def int8():
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed (pip install -r requirements/quantize.txt)")
    return fresh_thinker(quantization="int8")


def test_int8_quantises_the_decoder_and_nothing_else(int8):
    decoder, seen = int8._model.model.language_model.layers, 0
    for name, module in int8._model.named_modules():
        if isinstance(module, torch.nn.Linear):
            quantised = type(module.weight.data) is not torch.Tensor or module.weight.dtype == torch.int8
            assert quantised == name.startswith("model.language_model.layers."), name
            seen += quantised
    assert seen == 7 * len(decoder)
    weight = decoder[0].mlp.gate_proj.weight
    assert weight.qdata.dtype == torch.int8 and weight.qdata.nbytes == weight.numel()


def test_int8_states_are_close_and_say_what_they_are(int8):
    guidance = int8.think(frames(8), INSTRUCTION, max_new_tokens=4)
    assert guidance.model_id == int8.model_id and int8.model_id.endswith(" int8 (untrained)")
    error = np.linalg.norm(guidance.pyramid[:, 0] - pyramid()[:, 0]) / np.linalg.norm(pyramid()[:, 0])
    assert 1e-4 < error < 0.03, "weight-only int8 changes the states a little, and it does change them"


# ---------------------------------------------------------------- memory


def test_the_cap_is_compared_with_an_estimate_that_it_states():
    with pytest.raises(ThinkerError, match=r"mini-thinker-\w+ needs about .* GiB of weights and .* GiB for a thought "):
        fresh_thinker(memory_gib=0.001)
    assert fresh_thinker(memory_gib=2.0).think(frames(2), "").present[0]
    assert fresh_thinker(memory_gib=0).trained is False, "0 is no cap"


@pytest.mark.parametrize("cap", [-1.0, float("nan"), float("inf")])
def test_a_cap_that_is_no_amount_is_refused(cap):
    with pytest.raises(ThinkerError, match="memory_gib must be a number of GiB"):
        fresh_thinker(memory_gib=cap)


def test_what_the_machine_does_not_have_is_not_begun(monkeypatch, tmp_path):
    """A machine with 1 MB left, as its /proc/meminfo says it."""
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:       16000000 kB\nMemFree:          900 kB\nMemAvailable:       1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", said)

    def read(*_, **__):
        raise AssertionError("weights were read although there is no room for them")

    monkeypatch.setattr(loading, "_load", read)
    with pytest.raises(ThinkerError, match=r"needs about .*; cpu has 0\.00 GiB free\. Choose a smaller checkpoint"):
        fresh_thinker()


def test_free_memory_is_known_with_and_without_proc(monkeypatch, tmp_path):
    assert 1e8 < memory.free_bytes(torch.device("cpu")) < 1e14
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert 0 < memory.free_bytes(torch.device("cpu")) < 1e14
    (tmp_path / "none").write_text("MemAvailable: much\n")
    assert 0 < memory.free_bytes(torch.device("cpu")) < 1e14
    assert memory.free_bytes(torch.device("meta")) is None


def test_a_longer_window_eager_attention_and_larger_pictures_need_more():
    config = fresh_thinker()._model.config

    def need(size=(128, 128), seconds=8.0, dtype=torch.float32, attention="sdpa"):
        return memory.working(config, size, Window(seconds), dtype, attention)

    assert need(dtype=torch.bfloat16) < need() < need(seconds=16.0) < need(seconds=16.0, attention="eager")
    assert need() < need(size=(256, 256))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_estimate_is_above_what_a_thought_takes(dtype):
    """Bytes of all tensors that a thought creates on the processor at any one time, watched by torch's profiler."""
    thinker = fresh_thinker(dtype=dtype)
    shown = frames(32, seed=3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        thinker.think(shown, INSTRUCTION, max_new_tokens=4)
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    estimate = memory.working(thinker._model.config, (128, 128), thinker.window, dtype, "sdpa")
    assert 1e6 < peak < estimate < 20 * peak


def test_a_damaged_header_is_refused(tmp_path):
    folder = shutil.copytree(mini_folder(), tmp_path / "mini")
    (folder / "model.json").unlink()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ThinkerError, match="not loadable as Qwen3-VL"):
        Thinker.load(folder)


@pytest.mark.gpu
def test_on_cuda_the_cap_holds_for_the_process():
    thinker = Thinker.load(mini_folder(), device="cuda", memory_gib=0.5)
    assert thinker.think(frames(4), INSTRUCTION, max_new_tokens=2).present[0]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    torch.cuda.set_per_process_memory_fraction(1.0)
