"""The mini thinker: a real Qwen3-VL of 1.1 M parameters in a checkpoint folder of a few megabytes.

Architecture, tokenizer rules, prompt and folder layout are those of the released models; only the numbers in the
configuration are small. Without training its states are a random function of the scene and its text is gibberish, which
is why the manifest says `"trained": false` and every `model_id` made from it ends with "(untrained)".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from .. import checkpoints
from . import tokenizer as bpe

KIND = "thinker"
NAME = "thinkjepa-mini-thinker"
LICENCE = "Apache-2.0"
IMAGE_SIZE = (128, 128)
VOCABULARY = 640
#: The mini sees the central square of a picture, which is what it is trained on: its lamps are a few pixels wide.
VIEW = "centre"
#: Twice the library's: the output shares the embedding table, and with 0.02 the embedding of the last prompt token
#: outweighs what four layers add to it, so that the untrained model would only repeat a line break.
INITIALIZER_RANGE = 0.04
POSITION_RANGE = 0.2
#: What the mini is asked; the words of `{instruction}` are put in by `inputs.question`.
PROMPT = "Task: {instruction}\nWhich cube goes to which tray?"
#: GitHub-friendly and quick to hash: a larger mini is a mistake in the numbers below.
MAX_WEIGHT_BYTES = 5_000_000
#: Beside the weights everything that changes what the model sees or says is hashed as well.
HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def config(ids: dict[str, int], vocabulary: int = VOCABULARY) -> Qwen3VLConfig:
    """Configuration of the mini: ViT 64 x 2 (16 px patches, 2 x 2 merged, pairs of frames), decoder 128 x 4."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            # Sections (time, height, width) share half a head, in the proportions of the releases (24, 20, 20 of 64).
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "initializer_range": INITIALIZER_RANGE,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def model(ids: dict[str, int], seed: int) -> Qwen3VLForConditionalGeneration:
    """The mini with the library's own initialisation from `seed`; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Qwen3VLForConditionalGeneration(config(ids)).eval()
        # As large as the patches beside them, or training finds out late that a lamp has a left and a right.
        torch.nn.init.normal_(network.model.visual.pos_embed.weight, std=POSITION_RANGE)
        return network


def build(path: str | Path, seed: int = 0) -> Path:
    """Write the untrained checkpoint folder and return it. The same seed and torch version give the same bytes."""
    folder = Path(path)
    untrained = model(write_tokenizer(folder), seed)
    save(folder, untrained, trained=False, domain="none", training={"seed": seed, "steps": 0})
    return folder


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Write the tokenizer's files and return the ids of the added tokens."""
    tokenizer = bpe.train(bpe.corpus(), VOCABULARY)
    bpe.save(tokenizer, folder)
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in bpe.ADDED_TOKENS}
    return ids


def save(
    folder: Path,
    network: Qwen3VLForConditionalGeneration,
    *,
    trained: bool,
    domain: str,
    training: dict[str, Any],
) -> None:
    """Write configuration, weights and manifest of a mini into a folder that already holds its tokenizer."""
    text: Any = network.config.text_config
    network.config.architectures = ["Qwen3VLForConditionalGeneration"]
    _write_json(folder / "config.json", network.config.to_dict())
    generation = GenerationConfig(
        do_sample=False, eos_token_id=[text.eos_token_id, text.pad_token_id], pad_token_id=text.pad_token_id
    )
    _write_json(folder / "generation_config.json", generation.to_diff_dict())
    # lm_head shares the embedding table: one of the two is stored.
    state = {k: v for k, v in network.state_dict().items() if k != "lm_head.weight"}
    manifest = checkpoints.Manifest(
        kind=KIND,
        model_id=NAME,
        config={"image_size": list(IMAGE_SIZE), "prompt": PROMPT, "view": VIEW},
        trained=trained,
        domain=domain,
        licence=LICENCE,
        training={**training, "parameters": sum(v.numel() for v in state.values())},
        sha256={file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in HASHED},
    )
    checkpoints.save(folder, manifest, state)
    size = (folder / checkpoints.WEIGHTS).stat().st_size
    if size > MAX_WEIGHT_BYTES:
        raise ValueError(f"{folder}: the mini thinker is {size} bytes, more than the {MAX_WEIGHT_BYTES} it may have.")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    # The version of transformers is no part of the model, and would change the bytes with every update.
    values = {k: v for k, v in values.items() if k not in ("transformers_version", "_name_or_path")}
    checkpoints.write_atomically(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())
