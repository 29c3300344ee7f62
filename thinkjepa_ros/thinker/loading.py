"""Loading a verified Qwen3-VL folder onto a device: what is asked for is checked before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.utils import logging as hf_logging

from . import folder as folders
from .errors import ThinkerError

#: The first version of transformers whose forward takes encoded frames in place of pixels.
_MIN_TRANSFORMERS = (5, 18)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path: str | Path, device: str = "cpu", dtype: str | torch.dtype | None = None
) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerBase, folders.Checkpoint]:
    """Model (evaluation mode, no gradients), tokenizer and description of a checkpoint folder or cached hub id.

    dtype: float32, float16 or bfloat16; default float32 on the CPU, bfloat16 on CUDA. Raises ThinkerError with the
    remedy.
    """
    _check_library()
    place, precision = _checked_device(device), _checked_dtype(dtype, device)
    checkpoint = folders.find(path)
    model, tokenizer = _load(checkpoint.folder, place, precision)
    vision: Any = model.config.vision_config
    multiple = vision.patch_size * vision.spatial_merge_size
    if any(s % multiple for s in checkpoint.image_size):
        raise ThinkerError(f"{checkpoint.folder}: image_size {checkpoint.image_size}: not multiples of {multiple}.")
    return model, tokenizer, checkpoint


def _check_library() -> None:
    have = transformers.__version__
    if tuple(int(part) for part in have.split(".")[:2]) < _MIN_TRANSFORMERS:
        want = ".".join(map(str, _MIN_TRANSFORMERS))
        raise ThinkerError(f"transformers {have} is too old for the thinker; install version {want} or newer.")


def _checked_device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ThinkerError(f"device {device!r} is not one that torch knows; use 'cpu' or 'cuda'.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ThinkerError(f"device {device!r}: no CUDA device, or torch was installed for the CPU only. Use 'cpu'.")
    return place


def _checked_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise ThinkerError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _load(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerBase]:
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        model, info = loaded[0].to(device).eval(), loaded[1]
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ThinkerError(
            f"{folder}: does not fit into the memory of {device} ({error}). Choose a smaller checkpoint or dtype."
        ) from error
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError, SafetensorError, RuntimeError ...
        raise ThinkerError(f"{folder}: not loadable as Qwen3-VL ({type(error).__name__}: {error}).") from error
    # Left alone, transformers fills what is missing with random numbers and only logs it.
    wrong = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if wrong:
        raise ThinkerError(
            f"{folder}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]}. Import it again."
        )
    for token, want in (
        ("<|video_pad|>", model.config.video_token_id),
        ("<|vision_start|>", model.config.vision_start_token_id),
    ):
        have = tokenizer.convert_tokens_to_ids(token)
        if have != want:
            raise ThinkerError(
                f"{folder}: the tokenizer's {token} is {have}, config.json says {want}: different models."
            )
    return model.requires_grad_(False), tokenizer
