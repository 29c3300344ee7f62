"""Folders like those of the Qwen3-VL releases: their configurations, their vocabulary size and every file they hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from thinkjepa_ros.thinker import tokenizer as bpe

#: Entries of the vocabulary before the added tokens, rows of the embedding table.
ORDINARY, ROWS = 151_643, 151_936

#: Name -> decoder (layers, width, MLP, heads), tied embeddings, vision tower (depth, width, MLP, DeepStack levels).
SIZES: dict[str, tuple[tuple[int, int, int, int], bool, tuple[int, int, int, list[int]]]] = {
    "2B": ((28, 2048, 6144, 16), True, (24, 1024, 4096, [5, 11, 17])),
    "4B": ((36, 2560, 9728, 32), True, (24, 1024, 4096, [5, 11, 17])),
    "8B": ((36, 4096, 12288, 32), False, (27, 1152, 4304, [8, 16, 24])),
}


def config(size: str) -> dict[str, Any]:
    """config.json of a release, in the words of transformers 4.57 that wrote it (rope_scaling, rope_theta)."""
    (layers, width, mlp, heads), tied, (depth, vision_width, vision_mlp, levels) = SIZES[size]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": width,
            "initializer_range": 0.02,
            "intermediate_size": mlp,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": ROWS,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": levels,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision_width,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": vision_mlp,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": width,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


def reduced(size: str, *, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """config.json of a release with some numbers changed."""
    changed = copy.deepcopy(config(size))
    changed["text_config"].update(text)
    changed["vision_config"].update(vision)
    return changed


def write(
    folder: Path, values: dict[str, Any], tokenizer: Tokenizer, *, thinking: bool, shard: str = "5GB", seed: int = 0
) -> Path:
    """A release with random weights in bfloat16: the files that a download of one has, shards and index included."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values, indent=4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    generation = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
                  "top_p": 0.8, "top_k": 20, "temperature": 0.7, "transformers_version": "4.56.0"}  # fmt: skip
    images = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
              "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor",
              "image_processor_type": "Qwen2VLImageProcessorFast"}  # fmt: skip
    video = {**images, "size": {"longest_edge": 25165824, "shortest_edge": 4096}}
    video["video_processor_type"] = video.pop("image_processor_type").replace(
        "Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor"
    )
    write_tokenizer(folder, tokenizer, thinking=thinking)
    for name, content in (
        ("config", values),  # as downloaded: save_pretrained wrote its own
        ("generation_config", generation),
        ("preprocessor_config", images),
        ("video_preprocessor_config", video),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=4))
    return folder


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, thinking: bool) -> None:
    """tokenizer.json, tokenizer_config.json, vocab.json, merges.txt and chat_template.json of a release."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    added = {
        str(number): {"content": token.content, "lstrip": False, "normalized": False, "rstrip": False,
                      "single_word": False, "special": token.special}
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    opened = "<|im_start|>assistant\\n"
    template = INSTRUCT_TEMPLATE.replace(opened, opened + "<think>\\n") if thinking else INSTRUCT_TEMPLATE
    config = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
              "additional_special_tokens": list(bpe.SPECIAL_TOKENS[1:]), "chat_template": template,
              "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
              "model_max_length": 262144, "pad_token": "<|endoftext|>", "split_special_tokens": False,
              "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")


#: What the releases' templates make of user messages (they know tools and system messages as well).
INSTRUCT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif content.type == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def padded_vocabulary() -> Tokenizer:
    """A byte-level tokenizer without merges whose added tokens have the ids of the releases."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {f"never {number}": number for number in range(len(letters), ORDINARY)}
    return with_added_tokens(vocabulary, [])


def with_added_tokens(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """The tokenizer of the releases around a vocabulary: their normaliser, splitting rule and added tokens."""
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(merges), fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(bpe._SPLIT), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in bpe.SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in bpe.ORDINARY_TOKENS])
    return tokenizer
