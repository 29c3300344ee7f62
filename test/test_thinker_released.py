"""Released Qwen3-VL folders load unchanged: full shapes, files, vocabulary and both kinds of template."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from released_kit import config, padded_vocabulary, reduced, with_added_tokens, write, write_tokenizer
from safetensors.torch import load_file
from thinker_kit import frames
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from thinkjepa_ros.thinker import memory
from thinkjepa_ros.thinker.inputs import Prompt
from thinkjepa_ros.thinker.pyramid import default_layers
from thinkjepa_ros.thinker.qwen import Thinker, ThinkerError
from thinkjepa_ros.thinker.tokenizer import ADDED_TOKENS
from thinkjepa_ros.thinker.window import Window

SMALL_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2}  # fmt: skip
SMALL_VISION = {"depth": 6, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 256,
                "deepstack_visual_indexes": [1, 3, 5]}  # fmt: skip
QUESTION = "Task: {instruction}\nWhat happens next?"


@pytest.fixture(scope="module")
def vocabulary():
    return padded_vocabulary()


@pytest.fixture(scope="module", params=["Instruct", "Thinking"])
def release(request, vocabulary, tmp_path_factory):
    """A folder with everything a download holds: 86 MB of weights in two shards, the real vocabulary size."""
    folder = tmp_path_factory.mktemp("hub") / f"Qwen3-VL-2B-{request.param}"
    values = reduced("2B", text=SMALL_TEXT, vision=SMALL_VISION)
    return write(folder, values, vocabulary, thinking=request.param == "Thinking", shard="40MB")


def on_meta(size: str) -> Qwen3VLForConditionalGeneration:
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config(size)))


@pytest.mark.parametrize(
    ("size", "billions", "layers"),
    [
        ("2B", 2.128, (0, 4, 8, 12, 16, 20, 24, 27)),
        ("4B", 4.438, (0, 5, 10, 15, 20, 25, 30, 35)),
        ("8B", 8.767, (0, 5, 10, 15, 20, 25, 30, 35)),
    ],
)
def test_full_shapes(size, billions, layers, tmp_path):
    """Parameters and memory of the published sizes, from the header of a file without contents (a hole on the disk)."""
    model = on_meta(size)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(billions * 1e9, rel=5e-4)
    text = model.config.text_config
    assert default_layers(text.num_hidden_layers) == layers
    folder = hollow(tmp_path / f"Qwen3-VL-{size}", model)
    files = [folder / "model.safetensors"]
    kept, read = memory.weights(files, model.config, torch.bfloat16, "none")
    assert kept == read == sum(p.numel() * 2 for p in model.parameters())
    int8, still_read = memory.weights(files, model.config, torch.bfloat16, "int8")
    linear = sum(
        m.weight.numel() for m in model.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)
    )
    assert still_read == read and read - int8 == pytest.approx(linear, rel=1e-3)
    window = memory.working(model.config, (256, 256), Window(), torch.bfloat16, "sdpa")
    cache_of_a_token = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert cache_of_a_token == {"2B": 112, "4B": 144, "8B": 144}[size] * 1024
    assert 1200 * cache_of_a_token < window < 2e9
    need = (kept + window) / memory.GIB
    began = time.monotonic()
    with pytest.raises(ThinkerError, match=rf"needs about {need:.2f} GiB .*; memory_gib allows 3 GiB.*int8"):
        Thinker.load(folder, dtype="bfloat16", memory_gib=3.0)
    assert time.monotonic() - began < 20, "nothing but headers is read for a refusal"


def hollow(folder: Path, model: Qwen3VLForConditionalGeneration) -> Path:
    """A folder with the header of bfloat16 weights and nothing behind it: a sparse file of the full size."""
    header, place = {}, 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        size = 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    (folder / "config.json").write_text(json.dumps(config(folder.name.removeprefix("Qwen3-VL-"))))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_release_loads_and_thinks(release):
    before = {p.name: p.stat().st_mtime_ns for p in release.iterdir()}
    assert {"model.safetensors.index.json", "vocab.json", "merges.txt", "preprocessor_config.json"} < set(before)
    assert len([name for name in before if name.endswith(".safetensors")]) == 2
    thinker = Thinker.load(release)
    assert thinker.model_id == release.name and thinker.trained
    assert (thinker.layers, thinker.width, thinker.image_size) == ((0, 1, 2, 3), 256, (256, 256))
    guidance = thinker.think(frames(4, size=(96, 128)), "put the red cube in the left tray", max_new_tokens=3)
    assert guidance.pyramid.shape == (4, 2, 256) and np.isfinite(guidance.pyramid).all() and guidance.present[1]
    report = thinker.report
    assert report is not None and report.new_tokens <= 3 and report.prompt_tokens > 2 * 64
    again = thinker.think(frames(4, size=(96, 128)), "put the red cube in the left tray", max_new_tokens=3)
    assert np.array_equal(again.pyramid, guidance.pyramid), "greedy, although generation_config.json asks for sampling"
    assert {p.name: p.stat().st_mtime_ns for p in release.iterdir()} == before, "the folder is only read"


def test_every_shard_reaches_the_model(release):
    thinker = Thinker.load(release, dtype="bfloat16")
    names = thinker._model.state_dict()
    for file in sorted(release.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert torch.equal(names[name], tensor), name


def test_special_tokens_have_the_published_ids(release):
    tokenizer = AutoTokenizer.from_pretrained(release)
    check_special_tokens(tokenizer)


def check_special_tokens(tokenizer) -> None:
    published = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
                 "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "<think>": 151667,
                 "</think>": 151668}  # fmt: skip
    for token, number in published.items():
        assert tokenizer.convert_tokens_to_ids(token) == number and tokenizer.encode(token) == [number], token
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == [*range(151643, 151669)]
    think = tokenizer.encode("<think>on</think>off<|im_end|>")
    assert tokenizer.decode(think, skip_special_tokens=True) == "<think>on</think>off", "thoughts are ordinary text"


def test_the_prompt_is_that_of_the_official_template(release):
    check_prompt(AutoTokenizer.from_pretrained(release), thinking=release.name.endswith("Thinking"))


def check_prompt(tokenizer, thinking: bool) -> None:
    """Ours against the template's own words for a video, with each pair spelled out as the releases were trained."""
    times, instruction = [0.1, 0.6, 1.2], "put the red cube in the left tray"
    content = [{"type": "video"}, {"type": "text", "text": QUESTION.replace("{instruction}", instruction)}]
    official = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    bare = "<|vision_start|><|video_pad|><|vision_end|>"
    assert official.count(bare) == 1
    pairs = "".join(f"<{t:.1f} seconds><|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>" for t in times)
    wanted = tokenizer.encode(official.replace(bare, pairs), add_special_tokens=False)
    ids = Prompt(tokenizer, QUESTION).ids(times, 4, instruction)[0].tolist()
    assert ids == wanted
    assert tokenizer.decode(ids).endswith("assistant\n<think>\n" if thinking else "assistant\n")


@pytest.mark.slow
def test_two_layers_at_full_width(vocabulary, tmp_path):
    """The 2B as published, but for the depth of its two stacks: 1 GB."""
    text, vision = {"num_hidden_layers": 2}, {"depth": 3, "deepstack_visual_indexes": [0, 1]}
    folder = write(
        tmp_path / "Qwen3-VL-2B", reduced("2B", text=text, vision=vision), vocabulary, thinking=True, shard="400MB"
    )
    thinker = Thinker.load(folder, dtype="bfloat16", window=Window(2.0))
    assert (thinker.width, thinker.layers) == (2048, (0, 1))
    guidance = thinker.think(frames(8), "wait", max_new_tokens=2)
    assert guidance.pyramid.shape == (2, 2, 2048) and np.isfinite(guidance.pyramid).all()


def published_vocabulary() -> Path:
    """The vocabulary file of the Qwen models, which the PyPI package dashscope ships."""
    given = os.environ.get("THINKJEPA_QWEN_TIKTOKEN")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip(
            "no Qwen vocabulary here: pip install dashscope, or set THINKJEPA_QWEN_TIKTOKEN to its "
            "dashscope/resources/qwen.tiktoken"
        )
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.mark.parametrize("thinking", [False, True], ids=["Instruct", "Thinking"])
def test_the_real_vocabulary(thinking, tmp_path):
    """Rebuilt from the published ranks: published ids, and prompts like those of the official template."""
    ranks = {}
    for line in published_vocabulary().read_bytes().splitlines():
        token, number = line.split()
        ranks[base64.b64decode(token)] = int(number)
    assert len(ranks) == 151_643
    write_tokenizer(tmp_path, with_added_tokens(*merges_of(ranks)), thinking=thinking)
    (tmp_path / "config.json").write_text(json.dumps(config("2B")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    check_special_tokens(tokenizer)
    check_prompt(tokenizer, thinking)
    # A prompt of the 2B, as numbers: whatever builds it otherwise is another prompt, and has other states.
    ids = Prompt(tokenizer, QUESTION).ids([0.1], 2, "put the red cube in the left tray")[0].tolist()
    assert ids[:16] == [151644, 872, 198, 27, 15, 13, 16, 6486, 29, 151652, 151656, 151656, 151653, 6262, 25, 2182]
    assert ids[16:22] == [279, 2518, 23739, 304, 279, 2115]
    assert ids[-3:] == ([198, 151667, 198] if thinking else [151644, 77091, 198])


def merges_of(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in the letters of byte-level BPE, from byte strings with their ranks."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + k) for k, byte in enumerate(b for b in range(256) if b not in letters)}

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, number in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[k : k + 1] for k in range(len(token))]
        while len(parts) > 2:  # what the tokenizer itself would have made of it before this merge existed
            best = min(range(len(parts) - 1), key=lambda k: ranks.get(parts[k] + parts[k + 1], number))
            if ranks.get(parts[best] + parts[best + 1], number) >= number:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((text(parts[0]), text(parts[1])))
    return {text(token): number for token, number in ranks.items()}, merges
