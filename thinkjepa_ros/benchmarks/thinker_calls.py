"""What `thinkjepa bench thinker` calls: thoughts on a window that slides by one pair, their parts, the plain way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from ..thinker import pyramid
from ..thinker.decode import EagerDecoder
from ..thinker.inputs import PairEncoder, Prompt, patchify
from ..thinker.qwen import Thinker
from ..values import Frame
from .thinker_models import Subject

INSTRUCTION = "put the cube into the tray"
#: Pictures that are gone through again and again, each time with new stamps.
_PICTURES = 64


class Camera:
    """Noise, one prepared picture per sampling period, in a window that is full and aligned with the pairs."""

    def __init__(self, thinker: Thinker) -> None:
        self._window = thinker.window
        rng = np.random.default_rng(0)
        self._pictures = rng.integers(0, 256, (_PICTURES, *thinker.image_size, 3), dtype=np.uint8)

    def window(self, pairs_later: int) -> list[Frame]:
        """The frames of a full window that has slid on by so many pairs."""
        first = 2 * pairs_later
        return [
            Frame(self._pictures[k % _PICTURES], k * self._window.period_ns)
            for k in range(first, first + 2 * self._window.max_pairs)
        ]


class Live:
    """Each call is a thought of `tokens` tokens, one new pair after the one before; cached: earlier pairs are kept.

    It gives the pooled rows of prompt and generated tokens, float32 [layers, D], without those of the last decoder
    layer (the library shows that layer behind the final norm).
    """

    def __init__(self, thinker: Thinker, camera: Camera, tokens: int, last_layer: int, cached: bool) -> None:
        self.thinker, self._camera, self._tokens, self._cached = thinker, camera, tokens, cached
        self._rows = [row for row, layer in enumerate(thinker.layers) if layer != last_layer]
        self.begin()

    def begin(self) -> None:
        """Go back to the first window, with all pairs but the next one in the cache."""
        self.thinker.forget()
        self.thinker.think(self._camera.window(0), INSTRUCTION, max_new_tokens=0)
        self._later = 0

    def __call__(self) -> list[Tensor]:
        self._later += 1
        if not self._cached:
            self.thinker.forget()
        guidance = self.thinker.think(self._camera.window(self._later), INSTRUCTION, max_new_tokens=self._tokens)
        rows = torch.from_numpy(guidance.pyramid[self._rows])
        return [rows[:, 0], rows[:, 1]]

    def told(self) -> dict[str, float]:
        """Where the time of the last thought went, seconds."""
        report = self.thinker.report
        assert report is not None
        parts = {"window": report.vision_s, "prefill": report.prefill_s}
        if report.new_tokens:
            parts["per token"] = report.decode_s / report.new_tokens
        return {**parts, "pooling": report.pool_s}


class Library:
    """The same thoughts by the library alone: pixels of all pairs, `generate(output_hidden_states=True)`.

    One token more is asked for, since the last one has no states there: so both ways run the model as often. The patch
    embedding is the library's.
    """

    def __init__(self, subject: Subject, thinker: Thinker, camera: Camera, tokens: int) -> None:
        self._model: Any = subject.model
        self._prompt = Prompt(subject.tokenizer, subject.checkpoint.prompt)
        self._camera, self._window, self._tokens = camera, thinker.window, tokens
        vision: Any = self._model.config.vision_config
        self._patch, self._merge = vision.patch_size, vision.spatial_merge_size
        self._grid = [side // self._patch for side in thinker.image_size]
        text: Any = self._model.config.text_config
        last = text.num_hidden_layers - 1
        self._layers = [layer for layer in thinker.layers if layer != last]
        self._ours = self._model.model.visual.patch_embed
        # On the meta device: no weights are made, those of the model are put in.
        with torch.device("meta"):
            self._theirs = Qwen3VLVisionPatchEmbed(vision)
        self._theirs.proj = self._ours.proj
        self._later = 0

    def begin(self) -> None:
        """Go back to the first window."""
        self._later = 0

    def __call__(self) -> list[Tensor]:
        self._later += 1
        inputs = self._inputs(self._camera.window(self._later))
        self._model.model.visual.patch_embed = self._theirs
        try:
            out = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self._tokens + 1,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
        finally:
            self._model.model.visual.patch_embed = self._ours
        read, *fed = out.hidden_states
        prompt = torch.stack([read[layer + 1][0].float().mean(0) for layer in self._layers])
        generated = [torch.stack([step[layer + 1][0, 0].float() for step in fed]).mean(0) for layer in self._layers]
        return [prompt.cpu(), torch.stack(generated).cpu()]

    def _inputs(self, frames: Sequence[Frame]) -> dict[str, Any]:
        pairs = self._window.choose([f.stamp_ns for f in frames])
        origin = frames[pairs[0].first].stamp_ns
        pixels, times = [], []
        for pair in pairs:
            a, b = frames[pair.first], frames[pair.second]
            pixels.append(patchify(np.stack([a.rgb, b.rgb]), self._patch, self._merge))
            times.append(((a.stamp_ns - origin) + (b.stamp_ns - origin)) * 0.5e-9)
        tokens = self._grid[0] * self._grid[1] // self._merge**2
        ids = self._prompt.ids(times, tokens, INSTRUCTION)
        device = self._model.device
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            "mm_token_type_ids": (ids == self._model.config.video_token_id).int().mul(2).to(device),
            "pixel_values_videos": torch.cat(pixels).to(device, self._model.dtype),
            "video_grid_thw": torch.tensor([[len(pairs), *self._grid]], device=device),
        }


class WindowUpdate:
    """Each call brings a new pair through the vision tower, into a cache of twice the window."""

    def __init__(self, subject: Subject, thinker: Thinker, camera: Camera) -> None:
        pairs = thinker.window.max_pairs
        self._encoder = PairEncoder(subject.model, thinker.image_size, 2 * pairs)
        self._camera, self._later = camera, 0

    def __call__(self) -> Tensor:
        first, second = self._camera.window(self._later)[-2:]
        self._later += 1
        features, new = self._encoder.encode((first.stamp_ns, first.rgb), (second.stamp_ns, second.rgb))
        assert new
        return features.pooled


class Prefill:
    """Each call reads the same prompt: a full window, its pairs encoded."""

    def __init__(self, subject: Subject, thinker: Thinker, camera: Camera) -> None:
        encoder = PairEncoder(subject.model, thinker.image_size, thinker.window.max_pairs)
        frames = camera.window(0)
        pairs = list(zip(frames[::2], frames[1::2], strict=True))
        features = [encoder.encode((a.stamp_ns, a.rgb), (b.stamp_ns, b.rgb))[0] for a, b in pairs]
        times = [(a.stamp_ns + b.stamp_ns) * 0.5e-9 for a, b in pairs]
        prompt = Prompt(subject.tokenizer, subject.checkpoint.prompt)
        self.inputs = prompt.assemble(times, features, encoder.grid, INSTRUCTION)
        self.positions, self.follows = pyramid.positions_of(subject.model, self.inputs)
        self.decoder = EagerDecoder(subject.model, thinker.layers)

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.inputs["input_ids"].shape[1])

    def __call__(self) -> Tensor:
        with self.decoder.thinking(lambda: None):
            return self.decoder.read(self.inputs, self.positions)


class Decode:
    """Each call feeds `tokens` tokens back after a prompt that `before` has read."""

    def __init__(self, prefill: Prefill, decoder: EagerDecoder, tokens: int) -> None:
        self._prefill, self._decoder, self._tokens = prefill, decoder, tokens
        self._open: Any = None

    def before(self) -> None:
        """Read the prompt; what the last call left is let go of."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._decoder.thinking(lambda: None)
        self._open.__enter__()
        self._decoder.read(self._prefill.inputs, self._prefill.positions)

    def __call__(self) -> Tensor:
        return torch.stack(
            [
                self._decoder.feed(self._decoder.choose(), self._prefill.follows + k).float().sum(1)
                for k in range(self._tokens)
            ]
        )


class Pooling:
    """Each call is the mean over the states [L, S, D] of a prompt, on the device, and its way off it."""

    def __init__(self, prefill: Prefill) -> None:
        self._states = prefill().clone()
        self._types = prefill.inputs["mm_token_type_ids"][0]

    def __call__(self) -> Tensor:
        return pyramid.masked_mean(self._states, self._types, "all")
