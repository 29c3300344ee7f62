"""Loading a verified Qwen3-VL folder onto a device: what is asked for is checked before anything is read."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging as hf_logging

from . import folder as folders
from . import memory
from .errors import ThinkerError
from .window import Window

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
QUANTIZATIONS = ("none", "int8")
#: The first version of transformers whose forward takes encoded frames in place of pixels.
_MIN_TRANSFORMERS = (5, 18)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    attention: str = "sdpa",
    quantization: str = "none",
    memory_gib: float | None = None,
    window: Window | None = None,
) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerBase, folders.Checkpoint]:
    """Model (evaluation mode, no gradients), tokenizer and description of a checkpoint folder or cached hub id.

    dtype: float32, float16, bfloat16 or auto (None): float32 on the CPU, bfloat16 on CUDA. attention: sdpa, eager or
    flash_attention_2 (CUDA, half precision, package flash_attn). quantization: none, or int8: torchao's weight-only
    int8 on the decoder's Linear layers; the vision tower, embeddings and lm_head stay as they are. Its states are
    another distribution, so the checkpoint's name then ends with " int8". memory_gib: what weights and a thought over
    a full `window` may take, by an estimate made before anything is read (`memory.py`); None or 0 is no cap. Raises
    ThinkerError with the remedy.
    """
    _check_library()
    place = _checked_device(device)
    precision = resolve_dtype(dtype, place)
    _check_attention(attention, place, precision)
    _check_quantization(quantization)
    checkpoint = folders.find(path)
    config = _config(checkpoint)
    kept, read = memory.weights(checkpoint.weight_files, config, precision, quantization)
    thought = memory.working(config, checkpoint.image_size, window or Window(), precision, attention)
    memory.check(memory.Need(kept, read, thought), checkpoint.name, place, memory_gib)
    model, tokenizer = _load(checkpoint.folder, place, precision, attention, quantization)
    if quantization != "none":
        checkpoint = replace(checkpoint, name=f"{checkpoint.name} {quantization}")
    return model, tokenizer, checkpoint


def resolve_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """The type that `load` computes in. Raises ThinkerError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise ThinkerError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)} or auto.")
    return _DTYPES[dtype]


class PatchEmbedding(nn.Module):
    """The patch embedding of the vision tower as one matrix product.

    Patches do not overlap, so the 3-D convolution of the library is a product with the flattened kernel: the same
    numbers to 3e-6 in float32, four times as fast on a CPU (docs/thinker.md). The kernel stays a parameter of the
    convolution, so that names and shapes in a state dict are those of the checkpoint.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [n, C * T * P * P] -> [n, width]."""
        weight = self.proj.weight
        return functional.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)


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
    if place.type == "cuda" and place.index is not None and place.index >= torch.cuda.device_count():
        raise ThinkerError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return place


def _check_attention(attention: str, device: torch.device, dtype: torch.dtype) -> None:
    if attention not in ATTENTIONS:
        raise ThinkerError(f"attention {attention!r} is not one of {', '.join(ATTENTIONS)}.")
    if attention != "flash_attention_2":
        return
    if device.type != "cuda" or dtype == torch.float32:
        raise ThinkerError(
            "attention 'flash_attention_2' runs on CUDA in float16 or bfloat16 only, "
            f"not on {device.type} in {str(dtype).removeprefix('torch.')}; use 'sdpa'."
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ThinkerError(
            "attention 'flash_attention_2' needs the package flash_attn, which is not installed; "
            "use 'sdpa', or install it: pip install flash-attn --no-build-isolation."
        )


def _check_quantization(quantization: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ThinkerError(f"quantization {quantization!r} is not one of {', '.join(QUANTIZATIONS)}.")
    if quantization == "int8" and importlib.util.find_spec("torchao") is None:
        raise ThinkerError(
            "quantization 'int8' needs the package torchao, which is not installed; "
            "use 'none', or install it: pip install -r requirements/quantize.txt."
        )


def _config(checkpoint: folders.Checkpoint) -> Qwen3VLConfig:
    try:
        config = Qwen3VLConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        vision: Any = config.vision_config
        multiple = vision.patch_size * vision.spatial_merge_size
        wrong = any(s % multiple for s in checkpoint.image_size)
    except Exception as error:  # whatever the library says to words in place of numbers
        raise ThinkerError(
            f"{checkpoint.folder}: not loadable as Qwen3-VL ({type(error).__name__}: {error})."
        ) from error
    if wrong:
        raise ThinkerError(f"{checkpoint.folder}: image_size {checkpoint.image_size}: not multiples of {multiple}.")
    return config


def _load(
    folder: Path, device: torch.device, dtype: torch.dtype, attention: str, quantization: str
) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerBase]:
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=attention,
            output_loading_info=True,
        )
        model, info = loaded
        # Left alone, transformers fills what is missing with random numbers and only logs it.
        wrong = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        if wrong:
            raise ThinkerError(
                f"{folder}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]}. Import it again."
            )
        visual: Any = model.model.visual
        visual.patch_embed = PatchEmbedding(visual.patch_embed.proj)
        if quantization == "int8":
            _quantize(model.model.language_model.layers)  # before the move: the device never holds more than it keeps
        model = model.to(device).eval()
    except ThinkerError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ThinkerError(
            f"{folder}: does not fit into the memory of {device} ({error}). Choose a smaller checkpoint or dtype."
        ) from error
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError, SafetensorError, RuntimeError ...
        raise ThinkerError(f"{folder}: not loadable as Qwen3-VL ({type(error).__name__}: {error}).") from error
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


def _quantize(layers: nn.Module) -> None:
    """Weight-only int8, one scale per output, on every Linear below `layers`, in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layers, Int8WeightOnlyConfig())
