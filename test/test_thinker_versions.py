"""The prompt and the states of a fixed small thinker, as numbers: a transformers that makes others of them is noticed.

Guidance is only worth something to a predictor that was trained on the same states. The numbers below hold for
transformers 5.18.0 and 5.23.0 (`pip install --target DIR --no-deps transformers==5.18.0`, then PYTHONPATH=DIR).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from released_kit import INSTRUCT_TEMPLATE, with_added_tokens
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.thinker.folder import Checkpoint
from thinkjepa_ros.thinker.inputs import Prompt
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.values import Frame

TEXT = (
    "<|im_start|>user\n"
    "<0.1 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    "<0.6 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    "Task: go\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
)
QUESTION = "Task: {instruction}\nAnd then?"


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and added tokens, nothing learned: ids that no version of any library can move."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = with_added_tokens({letter: number for number, letter in enumerate(letters)}, [])
    return PreTrainedTokenizerFast(tokenizer_object=base, chat_template=INSTRUCT_TEMPLATE, eos_token="<|im_end|>")


def test_the_prompt_is_these_tokens():
    """One <|vision_start|> per pair and none around all: since 5.10 the library's own processor adds a second one."""
    words = tokenizer()
    ids = Prompt(words, QUESTION).ids([0.1, 0.55], 2, "go")[0].tolist()
    assert words.decode(ids) == TEXT
    seconds = [220, 82, 68, 66, 78, 77, 67, 82, 29]
    pair = [265, 269, 269, 266]
    assert ids == [
        *[257, 84, 82, 68, 81, 198],
        *[27, 15, 13, 16, *seconds, *pair],
        *[27, 15, 13, 21, *seconds, *pair],
        *[51, 64, 82, 74, 25, 220, 70, 78, 198, 32, 77, 67, 220, 83, 71, 68, 77, 30, 258, 198],
        *[257, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198],
    ]


def fixed() -> Thinker:
    """The mini's shape with weights that are a function of their names, whatever a version draws at random."""
    words = tokenizer()
    ids = {token: words.convert_tokens_to_ids(token) for token in words.get_added_vocab()}
    network = Qwen3VLForConditionalGeneration(tiny.config(ids, vocabulary=320)).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(weight.shape) * 0.05
            weight.copy_(torch.from_numpy(drawn).float())
    checkpoint = Checkpoint(Path("nowhere"), "fixed", False, (64, 64), QUESTION)
    return Thinker(network, words, checkpoint, layers=(0, 1, 3))


def test_the_states_are_these_numbers():
    rng = np.random.default_rng(0)
    shown = [Frame(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), k * 250_000_000) for k in range(4)]
    guidance = fixed().think(shown, "go", max_new_tokens=4)
    pyramid = guidance.pyramid
    found = np.concatenate([np.linalg.norm(pyramid, axis=-1).ravel(), pyramid[:, :, 5].ravel()])
    assert found == pytest.approx(STATES, rel=2e-4, abs=2e-4)


#: Of layers 0, 1 and 3, mean over the prompt then over what was generated: lengths, then channel 5.
STATES = [1.13799, 1.44356, 2.02838, 2.51526, 4.38989, 5.09745, -0.0865, -0.03109, -0.10317, 0.03129, 0.18041, 0.14661]
