"""A small byte-level BPE with the added tokens of Qwen3-VL, for checkpoints of our own.

The real vocabulary has 151 669 entries: a tiny model would be nearly all embedding table. This one has a few hundred,
the words of cue-reach are single tokens (bare and after a space), and everything else still encodes, byte by byte.
Splitting rule, normalisation and added tokens are those of the released models, so the same code drives both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

#: Added tokens of Qwen3(-VL) in the order of their ids.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Added as well, but ordinary text to the releases: they survive `skip_special_tokens`.
ORDINARY_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
ADDED_TOKENS = SPECIAL_TOKENS + ORDINARY_TOKENS

_LOWER = """
red green blue yellow white black left right tray cube lamp lit light none put the a in into on of to is was and it
which what where when now then first last next before after no yes cue task reach grasp transport place wait idle
pick up take move moves hand hands will with both robot arm seconds user assistant system answer think thought
happens do does goes seen early later shows says takes unknown one two
"""
_CAPITALISED = "Put Take Move Pick The Which What Where Task Answer Cue Reach None No Place Then Now It"
#: Words of the cue-reach scene, its instructions and its answers; each is one token, bare and after a space.
WORDS = (*_LOWER.split(), *_CAPITALISED.split())

#: The splitting rule of Qwen2 and Qwen3.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: ChatML as the Thinking releases write it, for text, image and video content: the answer begins with a thought.
CHAT_TEMPLATE = (
    "{%- macro body(c) -%}{%- if c is string -%}{{ c }}{%- else -%}{%- for p in c -%}"
    "{%- if p.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif p.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif p.type == 'text' -%}{{ p.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + body(m.content) + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}"
)


def corpus() -> list[str]:
    """The text the merges are learned from: every word often enough to become one token, then typical prompts."""
    sentences = [
        "<0.5 seconds> <12.3 seconds> Task: put the red cube in the left tray. Which cube goes to which tray?",
        "The lamp at the right tray was lit green. Answer: the green cube, the right tray.",
        "right lamp green\n</think>\n\ngreen cube, right tray",
    ]
    return [w for w in WORDS for _ in range(60)] + [" " + w for w in WORDS for _ in range(60)] + sentences * 20


def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` entries, the added tokens at the end. Same texts, same result."""
    tokenizer = Tokenizer(BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ORDINARY_TOKENS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as the hub checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
