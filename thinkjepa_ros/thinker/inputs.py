"""From frames and words to the tensors of Qwen3-VL, without torchvision and without the video processor.

Pixels and token ids equal those of the official processor (a test compares them where torchvision is installed). The
prompt is built here because it must not depend on the installed version: since transformers 5.10 the official processor
leaves an outer <|vision_start|>...<|vision_end|> around the pairs, which earlier versions, the format of the releases
and other servers do not have.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, vision_utils
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from .folder import VIEWS

#: Longer instructions are refused: every thought would pay for them again.
MAX_INSTRUCTION_CHARS = 500
#: Longer question templates are refused for the same reason.
MAX_QUESTION_CHARS = 2000
#: Bars of a letterboxed frame: the grey that the normalisation maps to (nearly) zero.
BAR_VALUE = 127
_NO_INSTRUCTION = "none"


def fit(rgb: np.ndarray, size: tuple[int, int], view: str = "whole") -> np.ndarray:
    """Image uint8 [H, W, 3] of any size -> uint8 [size[0], size[1], 3], its aspect kept.

    view "whole": letterbox, with grey bars where the image does not fill; a lamp at the border of the picture is what
    the thinker is for. "centre": the largest part of the aspect of `size` around the centre (a square for a square
    size), for models trained on such a view. Shrinks by area averaging; enlarges linearly. An image that already has
    the size is returned as it is. ValueError for another view.
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}, must be one of {', '.join(VIEWS)}")
    if rgb.shape[:2] == size:
        return rgb
    if view == "centre":
        return _resized(_central(rgb, size), size)
    height, width = size
    h, w = rgb.shape[:2]
    scale = min(height / h, width / w)
    new_h, new_w = max(1, round(h * scale)), max(1, round(w * scale))
    small = _resized(rgb, (new_h, new_w))
    if (new_h, new_w) == size:
        return small
    out = np.full((height, width, 3), BAR_VALUE, np.uint8)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    out[top : top + new_h, left : left + new_w] = small
    return out


def _central(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest part of rgb with the aspect of `size`, around its centre."""
    h, w = rgb.shape[:2]
    part_h = min(h, max(1, round(w * size[0] / size[1])))
    part_w = min(w, max(1, round(h * size[1] / size[0])))
    top, left = (h - part_h) // 2, (w - part_w) // 2
    return rgb[top : top + part_h, left : left + part_w]


def _resized(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < rgb.shape[0] or size[1] < rgb.shape[1]
    return cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def patchify(pair: np.ndarray, patch: int, merge: int) -> torch.Tensor:
    """Two frames uint8 [2, H, W, 3] -> float32 [H/patch * W/patch, 3 * 2 * patch * patch], as the ViT orders it.

    Tokens that will be merged (merge x merge) lie next to each other. Values are (x / 255 - 0.5) / 0.5.
    """
    x = torch.from_numpy(np.ascontiguousarray(pair)).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1.0)
    t, c, h, w = x.shape
    gh, gw = h // patch, w // patch
    x = x.view(1, t, c, gh // merge, merge, patch, gw // merge, merge, patch).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(gh * gw, c * t * patch * patch)


def clean_line(text: str, max_chars: int) -> str:
    """`text` fit for a terminal, a log or a prompt: one line, printable characters only, at most `max_chars`."""
    text = "".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", text))
    text = " ".join(text.split())
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


@dataclass(frozen=True)
class Features:
    """What the vision tower says about one pair: pooled float [n, D] and one float [n, D] per DeepStack level."""

    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


class PairEncoder:
    """Vision features of frame pairs, each computed once: the ViT attends within a pair, so it can stand alone.

    The key is the two stamps and a checksum of the prepared pixels. The stamps name the pair; the checksum makes a
    looping bag or a second episode with the same stamps a miss instead of a silent mistake. Least recently used pairs
    leave first.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, image_size: tuple[int, int], capacity: int) -> None:
        vision: Any = model.config.vision_config
        self._model = model
        self._patch, self._merge = vision.patch_size, vision.spatial_merge_size
        self._capacity = capacity
        self._kept: OrderedDict[tuple[int, int, int, int], Features] = OrderedDict()
        self.image_size = image_size
        self.grid = (image_size[0] // self._patch, image_size[1] // self._patch)
        self.tokens_per_pair = self.grid[0] * self.grid[1] // self._merge**2
        self._layout = self._laid_out()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget every pair."""
        self._kept.clear()

    def encode(self, first: tuple[int, np.ndarray], second: tuple[int, np.ndarray]) -> tuple[Features, bool]:
        """Features of a pair of (stamp_ns, prepared uint8 [H, W, 3]), and whether they had to be computed."""
        (stamp_a, a), (stamp_b, b) = first, second
        crc_a = _checksum(a)
        crc_b = crc_a if b is a else _checksum(b)
        key = (stamp_a, stamp_b, crc_a, crc_b)
        known = self._kept.get(key)
        if known is None:
            features = self._compute(np.stack([a, b]))
            self._kept[key] = features
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            return features, True
        with contextlib.suppress(KeyError):  # a clock jump may have cleared the cache from another thread meanwhile
            self._kept.move_to_end(key)
        return known, False

    @torch.inference_mode()
    def _compute(self, pair: np.ndarray) -> Features:
        # One pair per call, always: a batch may round differently, and a cached pair must equal a fresh one exactly.
        visual: Any = self._model.model.visual
        weight = visual.patch_embed.proj.weight
        pixels = patchify(pair, self._patch, self._merge).to(weight.device, weight.dtype)
        out = visual(pixels, **self._layout)
        return Features(out.pooler_output, tuple(out.deepstack_features))

    def _laid_out(self) -> dict[str, Any]:
        """What the vision tower works out from the size of a pair, once: on a GPU it asks back for it in every layer,
        and it is half of the time of a small tower.
        """
        visual: Any = self._model.model.visual
        device = visual.patch_embed.proj.weight.device
        grid = torch.tensor([[1, *self.grid]])
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self._merge,
        )
        bounds = vision_utils.get_vision_cu_seqlens(grid)
        flash = visual.config._attn_implementation.startswith("flash")  # its kernel reads them, the others' callers do
        return {
            "grid_thw": grid.to(device),
            "interp_indices": indices.to(device),
            "interp_weights": weights.to(device),
            "position_ids": vision_utils.get_vision_position_ids(grid, self._merge).to(device),
            "cu_seqlens": bounds.to(device) if flash else bounds,
            "max_seqlen": self.grid[0] * self.grid[1],
        }


def _checksum(rgb: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rgb).data)


class Prompt:
    """The words around the pairs: chat format of the checkpoint's own template, and a question with the instruction."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, question: str) -> None:
        self._tokenizer = tokenizer
        mark = "\u2063"
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
        head, found, tail = str(rendered).partition(mark)
        if not found:
            raise ValueError("the chat template drops the content of the user's message")
        self._head, self._tail = head, tail
        self.tail: list[int] = tokenizer.encode(tail, add_special_tokens=False)  #: what the prompt ends with
        self._video_pad: Any = tokenizer.convert_tokens_to_ids("<|video_pad|>")
        # Longest first, so that no added token is left over as part of another.
        self._reserved = sorted((str(t) for t in tokenizer.get_added_vocab()), key=len, reverse=True)
        self._default = self._question = self._checked(question)

    @property
    def question(self) -> str:
        """The template of the question; `{instruction}` stands for the instruction."""
        return self._question

    def ask(self, question: str) -> None:
        """Ask this from the next prompt on; an empty one is the first one again. ValueError if it cannot be asked."""
        self._question = self._checked(question) if question.strip() else self._default

    def _checked(self, question: str) -> str:
        if len(question) > MAX_QUESTION_CHARS:
            raise ValueError(f"the question has {len(question)} characters, at most {MAX_QUESTION_CHARS} are allowed")
        if not all(c.isprintable() or c == "\n" for c in question):
            raise ValueError("the question holds characters that cannot be printed; only line breaks are allowed")
        if token := next((t for t in self._reserved if t in question), None):
            raise ValueError(f"the question holds the control token {token}; the chat template puts those in by itself")
        if unknown := re.search(r"{(?!instruction})\w*}", question):
            raise ValueError(f"the question holds {unknown[0]}; only {{instruction}} is filled in")
        return question

    def words(self, instruction: str) -> str:
        """The instruction as it goes into the prompt: one printable line, no control tokens. ValueError if too long."""
        if len(instruction) > MAX_INSTRUCTION_CHARS:
            raise ValueError(
                f"the instruction has {len(instruction)} characters, at most {MAX_INSTRUCTION_CHARS} are allowed"
            )
        line = clean_line(instruction, MAX_INSTRUCTION_CHARS)
        for token in self._reserved:
            line = line.replace(token, " ")  # a space, so that what is left cannot close up to another token
        return clean_line(line, MAX_INSTRUCTION_CHARS) or _NO_INSTRUCTION

    def ids(self, times_s: Sequence[float], tokens_per_pair: int, instruction: str) -> torch.Tensor:
        """Token ids int64 [1, S] of a prompt with a pair at each of `times_s` (seconds since the first frame)."""
        pads = "<|video_pad|>" * tokens_per_pair
        pairs = "".join(f"<{t:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for t in times_s)
        question = self._question.replace("{instruction}", self.words(instruction))
        text = f"{self._head}{pairs}{question}{self._tail}"
        return torch.tensor([self._tokenizer.encode(text, add_special_tokens=False)])

    def assemble(
        self,
        times_s: Sequence[float],
        features: Sequence[Features],
        grid: tuple[int, int],
        instruction: str,
    ) -> dict[str, Any]:
        """Arguments of one prefill: ids, types (0 text, 2 video), grid, and encoded pairs in place of pixels."""
        device = features[0].pooled.device
        ids = self.ids(times_s, len(features[0].pooled), instruction).to(device)
        levels = zip(*(f.deepstack for f in features), strict=True)
        # Lists in place of tensors, one entry per video: what `get_video_features` itself returns.
        video = BaseModelOutputWithDeepstackFeatures(
            pooler_output=[torch.cat([f.pooled for f in features])],  # type: ignore[arg-type]
            deepstack_features=[[torch.cat(level)] for level in levels],  # type: ignore[misc]
        )
        return {
            "input_ids": ids,
            "mm_token_type_ids": torch.eq(ids, self._video_pad).int() * 2,
            "video_grid_thw": torch.tensor([[len(features), *grid]], device=device),
            "mm_encoder_outputs": {"video": video},
        }


def check_rgb(rgb: np.ndarray) -> None:
    """ValueError with words unless `rgb` is uint8 [H, W, 3] with pixels in it."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        what = f"{rgb.dtype} {list(rgb.shape)}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise ValueError(f"a frame must be uint8 [H, W, 3] RGB with at least one pixel, not {what}")
