"""The thinker: Qwen3-VL looks at sparse frames over a long window and hands out guidance.

One object, one worker: `think`, `observe` and `warm_up` are called from one thread; `forget` may come from another.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

from ..values import Frame, Guidance
from . import folder as folders
from . import loading, pyramid
from .errors import Cancelled, ThinkerError, TimedOut
from .inputs import MAX_INSTRUCTION_CHARS, PairEncoder, Prompt, check_rgb, clean_line, fit
from .window import Window

__all__ = ["Cancelled", "Report", "Thinker", "ThinkerError", "TimedOut"]

#: Text of a thought is shown in terminals and sent in every message: longer ones are cut.
MAX_TEXT_CHARS = 500


@dataclass(frozen=True)
class Report:
    """Where the time of a thought went, in seconds, and how much it read and wrote."""

    pairs: int
    new_pairs: int
    prompt_tokens: int
    new_tokens: int
    stop: str
    vision_s: float
    prefill_s: float
    decode_s: float
    total_s: float


class Thinker:
    """A loaded Qwen3-VL. Build one with `Thinker.load`."""

    def __init__(
        self,
        model: Qwen3VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        checkpoint: folders.Checkpoint,
        *,
        layers: Sequence[int] | None = None,
        window: Window | None = None,
        pool: str = "all",
    ) -> None:
        text: Any = model.config.text_config
        self.layers = _checked_layers(layers, text.num_hidden_layers)
        if pool not in pyramid.POOLS:
            raise ThinkerError(f"pool must be one of {', '.join(pyramid.POOLS)}, not {pool!r}.")
        self.trained = checkpoint.trained
        self.model_id = checkpoint.name + ("" if checkpoint.trained else " (untrained)")
        self.image_size = checkpoint.image_size
        self.width: int = text.hidden_size
        self.window = window or Window()
        self.report: Report | None = None
        self._model, self._tokenizer, self._pool = model, tokenizer, pool
        self._prompt = Prompt(tokenizer, checkpoint.prompt)
        # Twice the window: a thought on an older instruction or a window moved back still finds its pairs.
        self._encoder = PairEncoder(model, self.image_size, capacity=2 * self.window.max_pairs)
        self._open: tuple[int, int, np.ndarray] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        layers: Sequence[int] | None = None,
        *,
        window: Window | None = None,
        pool: str = "all",
    ) -> Thinker:
        """Load a checkpoint folder (models/mini/thinker), or a hub id ("owner/name[@revision]") out of the local cache.

        dtype: float32, float16 or bfloat16; default float32 on the CPU, bfloat16 on CUDA. layers: decoder layers to
        export. pool: which prompt tokens the prompt row averages ("all", "text", "visual"). Raises ThinkerError with
        the remedy.
        """
        model, tokenizer, checkpoint = loading.load(path, device, dtype)
        return cls(model, tokenizer, checkpoint, layers=layers, window=window, pool=pool)

    def warm_up(self) -> None:
        """Think once over a full window of grey frames, so that the first real thought is as quick as the others."""
        blank = np.full((*self.image_size, 3), 127, np.uint8)
        period = self.window.period_ns
        frames = [Frame(blank, k * period) for k in range(2 * self.window.max_pairs)]
        self.think(frames, "", max_new_tokens=2)
        self.forget()
        self.report = None

    def prepare(self, frame: Frame) -> Frame:
        """The frame at the size the model looks at: what to keep in a long ring instead of full pictures.

        ThinkerError if it is no RGB image.
        """
        return Frame(self._fit(frame.rgb), frame.stamp_ns, frame.frame_id)

    def observe(self, frame: Frame) -> None:
        """Optional, between thoughts: encodes the pair that `frame` completes, so that the next thought finds it ready.

        Frames come in the order of their stamps. Raises ThinkerError.
        """
        slot = self.window.slot(frame.stamp_ns)
        before = self._open
        if before is not None and before[0] == slot:
            return
        rgb = self._fit(frame.rgb)
        self._open = (slot, frame.stamp_ns, rgb)
        if slot % 2 == 0:
            return
        second = (frame.stamp_ns, rgb)
        first = before[1:] if before is not None and before[0] == slot - 1 else second
        self._guarded(lambda: self._encoder.encode(first, second))

    def think(
        self,
        frames: Sequence[Frame],
        instruction: str,
        *,
        max_new_tokens: int = 8,
        deadline_s: float | None = None,
        cancel: threading.Event | None = None,
        on_text: Callable[[str], None] | None = None,
        valid_for_s: float = 10.0,
        sequence: int = 0,
        epoch: int = 0,
    ) -> Guidance:
        """One thought over `frames` (stamps ascending, any size, dense or already sparse: the window picks from them).

        deadline_s: seconds from now; passed between two tokens, the thought ends there and counts. on_text gets the
        whole cleaned text so far after every token. The guidance carries the stamp of the newest frame that was looked
        at. Greedy, so the same frames give the same guidance. Raises Cancelled, TimedOut (before the prompt was read),
        and ThinkerError for frames or an instruction that cannot be used, memory that ran out, and states that are not
        finite.
        """
        halt = pyramid.Halt.after(deadline_s, cancel)
        return self._guarded(
            lambda: self._think(frames, instruction, max_new_tokens, halt, on_text, valid_for_s, sequence, epoch)
        )

    def forget(self) -> None:
        """Drop every cached pair: after a clock jump, or to give memory back."""
        self._encoder.clear()
        self._open = None

    def _think(
        self,
        frames: Sequence[Frame],
        instruction: str,
        max_new_tokens: int,
        halt: pyramid.Halt,
        on_text: Callable[[str], None] | None,
        valid_for_s: float,
        sequence: int,
        epoch: int,
    ) -> Guidance:
        started = time.monotonic()
        pairs = self.window.choose([f.stamp_ns for f in frames])
        if not pairs:
            raise ThinkerError("there is no frame to think about; a thought needs at least one.")
        if max_new_tokens < 0:
            raise ThinkerError(f"max_new_tokens must be 0 or more, not {max_new_tokens}.")
        words = self._prompt.words(instruction)
        features, times, new = [], [], 0
        origin = frames[pairs[0].first].stamp_ns
        for pair in pairs:
            halt.raise_if_over()
            first, second = frames[pair.first], frames[pair.second]
            a = self._fit(first.rgb)
            b = a if second is first else self._fit(second.rgb)
            encoded, computed = self._encoder.encode((first.stamp_ns, a), (second.stamp_ns, b))
            features.append(encoded)
            times.append(((first.stamp_ns - origin) + (second.stamp_ns - origin)) * 0.5e-9)
            new += computed
        halt.raise_if_over()
        inputs = self._prompt.assemble(times, features, self._encoder.grid, instruction)
        seen = time.monotonic()
        thought = pyramid.run(
            self._model,
            inputs,
            self.layers,
            max_new_tokens=max_new_tokens,
            halt=halt,
            pool=self._pool,
            on_tokens=None if on_text is None else lambda tokens: on_text(self._text(tokens)),
        )
        self.report = Report(
            pairs=len(pairs),
            new_pairs=new,
            prompt_tokens=thought.prompt_tokens,
            new_tokens=len(thought.tokens),
            stop=thought.stop,
            vision_s=seen - started,
            prefill_s=thought.prefill_s,
            decode_s=thought.decode_s,
            total_s=time.monotonic() - started,
        )
        said = thought.generated is not None
        rows = torch.zeros_like(thought.prompt) if thought.generated is None else thought.generated
        return Guidance(
            pyramid=torch.stack([thought.prompt, rows], 1).numpy(),
            layers=self.layers,
            stamp_ns=frames[pairs[-1].second].stamp_ns,
            valid_for_s=valid_for_s,
            present=(True, said),
            text=self._text(thought.tokens),
            instruction=clean_line(instruction, MAX_INSTRUCTION_CHARS),
            instruction_id=hashlib.blake2s(words.encode(), digest_size=4).hexdigest(),
            epoch=epoch,
            sequence=sequence,
            model_id=self.model_id,
        )

    def _fit(self, rgb: np.ndarray) -> np.ndarray:
        try:
            check_rgb(rgb)
        except ValueError as error:
            raise ThinkerError(f"{error}.") from None
        return fit(rgb, self.image_size)

    def _text(self, tokens: list[int]) -> str:
        return clean_line(str(self._tokenizer.decode(tokens, skip_special_tokens=True)), MAX_TEXT_CHARS)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run `work` so that whatever goes wrong in it is a ThinkerError and leaves the thinker able to think again."""
        try:
            return work()
        except ThinkerError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.forget()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise ThinkerError(
                f"out of memory in a thought on {self._model.device} ({error}); shorten the window, "
                "or choose a smaller checkpoint or dtype"
            ) from error
        except ValueError as error:
            raise ThinkerError(f"the thought was refused: {error}") from error
        except RuntimeError as error:
            raise ThinkerError(f"the model failed in a thought: {error}") from error


def _checked_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if layers is None:
        return pyramid.default_layers(count)
    chosen = tuple(int(i) for i in layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
        raise ThinkerError(f"layers {list(chosen)}: they must ascend within 0..{count - 1}, none twice.")
    return chosen
