"""What a thinker will take of a device's memory, known from the folder's headers before anything is loaded.

weights: every tensor of the files, counted in the type it is loaded as. working: what the longest thought of the
window needs beside them. The sum is an estimate from above for the states and caches that are known by shape; what a
driver takes for itself (a CUDA context: about 0.5 GiB) is not in it.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig

from ..files import CheckpointError, read_header
from .errors import ThinkerError
from .window import Window

GIB = 1024**3
#: Tokens of a prompt and an answer that are no pictures: template, question, instruction, thinking.
_TEXT_TOKENS = 1024
#: A pair brings its time and two marks beside its visual tokens.
_TOKENS_AROUND_PAIR = 12
_MEMINFO = Path("/proc/meminfo")
#: Weights that int8 quantisation stores in one byte: the Linear layers of the decoder.
_DECODER_LINEAR = re.compile(r"language_model\.layers\.\d+\..*_proj\.weight$")


@dataclass(frozen=True)
class Need:
    """Bytes: weights once loaded, weights while they pass through the host, and the working memory of a thought."""

    weights: int
    loading: int
    working: int

    @property
    def total(self) -> int:
        """Bytes on the device while it thinks."""
        return self.weights + self.working

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.2f} GiB ({self.weights / GIB:.2f} GiB of weights and {self.working / GIB:.2f} GiB "
            "for a thought over a full window)"
        )


def weights(files: list[Path], config: Qwen3VLConfig, dtype: torch.dtype, quantization: str) -> tuple[int, int]:
    """Bytes of the tensors of safetensors `files` as they are kept, and as they are read (before quantisation).

    ThinkerError for a file whose header is damaged.
    """
    kept = read = 0
    for file in files:
        try:
            header = read_header(file)
        except CheckpointError as error:
            raise ThinkerError(f"{file.parent}: not loadable as Qwen3-VL ({error})") from error
        for name, entry in header.items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            plain = math.prod(entry.shape) * dtype.itemsize
            read += plain
            if quantization == "int8" and _DECODER_LINEAR.search(name):
                kept += math.prod(entry.shape) + entry.shape[0] * dtype.itemsize  # and one scale per output
            else:
                kept += plain
    return kept, read


def working(
    config: Qwen3VLConfig, image_size: tuple[int, int], window: Window, dtype: torch.dtype, attention: str
) -> int:
    """Bytes of the longest thought: keys and values, states and activations of the prefill, kept vision features."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    patches = image_size[0] * image_size[1] // vision.patch_size**2
    pair = patches // vision.spatial_merge_size**2
    tokens = window.max_pairs * (pair + _TOKENS_AROUND_PAIR) + _TEXT_TOKENS
    width, size = text.hidden_size, dtype.itemsize
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * size
    # One decoder layer at a time: residual, norm, queries, keys, values, output, and the three of the MLP.
    activations = tokens * (8 * width + 4 * text.intermediate_size) * size
    if attention == "eager":
        activations += text.num_attention_heads * tokens**2 * (4 + 2 * size)  # scores, in float32 for the softmax
    taps = min(8, text.num_hidden_layers) * tokens * width * (size + 4)  # and once more in float32, to be averaged
    levels = 1 + len(vision.deepstack_visual_indexes)
    features = 2 * window.max_pairs * pair * width * levels * size
    seeing = patches * (8 * vision.hidden_size + 4 * vision.intermediate_size) * size
    logits = text.vocab_size * (size + 4)
    return cache + activations + taps + features + seeing + logits


def check(need: Need, name: str, device: torch.device, cap_gib: float | None) -> None:
    """Refuse with words what does not fit: under the cap, into what the device has free, through the host's memory.

    cap_gib: None or 0 is no cap. On CUDA the cap is then enforced by torch, for this process. Raises ThinkerError.
    """
    advice = "Choose a smaller checkpoint, a shorter window, bfloat16, or quantization int8"
    if cap_gib is not None and not (math.isfinite(cap_gib) and cap_gib >= 0):
        raise ThinkerError(f"memory_gib must be a number of GiB, or 0 for no cap, not {cap_gib}.")
    if cap_gib and need.total > cap_gib * GIB:
        raise ThinkerError(f"{name} needs about {need}; memory_gib allows {cap_gib:g} GiB. {advice}, or allow more.")
    free = free_bytes(device)
    if free is not None and need.total > free:
        raise ThinkerError(f"{name} needs about {need}; {device} has {free / GIB:.2f} GiB free. {advice}.")
    host = free_bytes(torch.device("cpu"))
    if host is not None and need.loading > host:
        raise ThinkerError(
            f"{name}: its {need.loading / GIB:.2f} GiB of weights pass through the memory of the host, which has "
            f"{host / GIB:.2f} GiB free. Close other programs, or load in bfloat16."
        )
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        share = min(1.0, cap_gib * GIB / whole) if cap_gib else 1.0  # an earlier cap ends here
        torch.cuda.set_per_process_memory_fraction(share, device)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
