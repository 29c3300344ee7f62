"""The thinker: Qwen3-VL looks at sparse frames over a long window and hands out guidance.

One object, one worker: `think` and `warm_up` are called from one thread. `observe`, `forget` and `ask` may come from
another, at any time.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

from ..values import Frame, Guidance
from . import decode, loading, pyramid
from . import folder as folders
from .errors import Cancelled, ThinkerError, TimedOut
from .inputs import MAX_INSTRUCTION_CHARS, PairEncoder, Prompt, check_rgb, clean_line, fit
from .marks import Transcript
from .subgoal import SubgoalMaker
from .window import Pair, Window

__all__ = ["Cancelled", "Report", "Thinker", "ThinkerError", "TimedOut"]


@dataclass(frozen=True)
class Report:
    """How much a thought read and wrote, why it stopped, and where its time went, in seconds.

    new_pairs: those that had to be encoded. stop: "length", "eos" or "deadline". forced_end: </think> was put in
    because the thinking budget was spent. pool_s: means over tokens, their check, and the way off the device.
    """

    pairs: int
    new_pairs: int
    prompt_tokens: int
    new_tokens: int
    stop: str
    forced_end: bool
    vision_s: float
    prefill_s: float
    decode_s: float
    pool_s: float
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
        subgoal: str | Path | None = None,
        prompt: str | None = None,
        static: bool | None = None,
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
        self._model, self._pool, self._view = model, pool, checkpoint.view
        try:
            self._prompt = Prompt(tokenizer, checkpoint.prompt)
        except ValueError as error:
            raise ThinkerError(f"{checkpoint.folder}: {error}. Restore the checkpoint.") from None
        self._transcript = Transcript(tokenizer, self._prompt.tail)
        if prompt:
            self.ask(prompt)
        self._subgoal = SubgoalMaker.load(subgoal, self.layers, self.width) if subgoal else None
        self._decoder = decode.make(model, self.layers, static)
        # Twice the window: a thought on an older instruction or a window moved back still finds its pairs.
        self._encoder = PairEncoder(model, self.image_size, capacity=2 * self.window.max_pairs)
        self._open: tuple[int, int, np.ndarray] | None = None
        self._thinking = False
        self._seen: np.ndarray | None = None  # newest frame of the last finished thought

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
        attention: str = "sdpa",
        quantization: str = "none",
        memory_gib: float | None = None,
        subgoal: str | Path | None = None,
        prompt: str | None = None,
        static: bool | None = None,
    ) -> Thinker:
        """Load a checkpoint folder (models/mini/thinker), or a hub id ("owner/name[@revision]") out of the local cache.

        dtype, attention, quantization, memory_gib: see `loading.load`. layers: decoder layers to export, default
        `pyramid.default_layers`. pool: which prompt tokens the prompt row averages ("all", "text", "visual"). subgoal:
        folder of a sub-goal head for these layers. prompt: see `ask`. static: decode with a cache of fixed length, as a
        CUDA graph on CUDA; None: on CUDA where the attention can. Raises ThinkerError with the remedy.
        """
        model, tokenizer, checkpoint = loading.load(
            path,
            device,
            dtype,
            attention=attention,
            quantization=quantization,
            memory_gib=memory_gib,
            window=window,
        )
        return cls(
            model,
            tokenizer,
            checkpoint,
            layers=layers,
            window=window,
            pool=pool,
            subgoal=subgoal,
            prompt=prompt,
            static=static,
        )

    @property
    def words(self) -> str:
        """How it computes, for a log."""
        precision = str(self._model.dtype).removeprefix("torch.")
        return f"{self._model.device}, {precision}, {self._decoder.words}"

    @property
    def question(self) -> str:
        """The template of the question; `{instruction}` stands for the instruction."""
        return self._prompt.question

    def ask(self, template: str) -> None:
        """Ask this from the next thought on; an empty template is the checkpoint's own again.

        `{instruction}` in it is filled in; without it the instruction plays no part. Raises ThinkerError, and keeps
        the question it had, for one of more than 2000 characters, with control tokens or with another placeholder.
        """
        try:
            self._prompt.ask(template)
        except ValueError as error:
            raise ThinkerError(f"{error}.") from None

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
        """Optional: encodes the pair that `frame` completes, so that the next thought finds it ready.

        Frames come in the order of their stamps, from one thread. While a thought runs the pair is left to the next
        one, so that neither waits for the other. Raises ThinkerError.
        """
        slot = self.window.slot(frame.stamp_ns)
        before = self._open
        if before is not None and before[0] == slot:
            return
        rgb = self._fit(frame.rgb)
        self._open = (slot, frame.stamp_ns, rgb)
        if slot % 2 == 0 or self._thinking:
            return
        second = (frame.stamp_ns, rgb)
        first = before[1:] if before is not None and before[0] == slot - 1 else second
        self._guarded(lambda: self._encoder.encode(first, second))

    def scene_change(self, frames: Sequence[Frame]) -> float:
        """How much the newest of `frames` differs from the newest frame of the last finished thought: mean absolute
        difference of the prepared pictures, 0 to 255; infinite if there was no thought since `forget`.

        Slow changes add up, since every frame is compared with the same one. ThinkerError without a frame.
        """
        if not frames:
            raise ThinkerError("there is no frame to compare with the last thought.")
        seen = self._seen
        if seen is None:
            return math.inf
        now = self._fit(frames[-1].rgb)
        return float(cv2.norm(now, seen, cv2.NORM_L1)) / now.size

    def think(
        self,
        frames: Sequence[Frame],
        instruction: str,
        *,
        max_new_tokens: int = 16,
        think_tokens: int | None = None,
        deadline_s: float | None = None,
        cancel: threading.Event | None = None,
        on_text: Callable[[str], None] | None = None,
        valid_for_s: float = 10.0,
        sequence: int = 0,
        epoch: int = 0,
        tokens: bool = False,
    ) -> Guidance:
        """One thought over `frames` (stamps ascending, any size, dense or already sparse: the window picks from them).

        think_tokens: after so many tokens inside a <think> block it is closed; None: never. deadline_s: seconds from
        now; passed between two tokens, the thought ends there and counts. on_text gets all that was written so far,
        thought and answer in one clean line, after every token. tokens: export the state of each token as well. The
        guidance carries the stamp of the newest frame that was looked at. Greedy, so the same frames give the same
        guidance. Raises Cancelled, TimedOut (before the prompt was read), and ThinkerError for frames or an instruction
        that cannot be used, memory that ran out, and states that are not finite.
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("think_tokens", think_tokens)):
            if value is not None and value < 0:
                raise ThinkerError(f"{name} must be 0 or more, not {value}.")
        halt = pyramid.Halt.after(deadline_s, cancel)
        self._thinking = True
        try:
            guidance = self._guarded(
                lambda: self._think(frames, instruction, halt, max_new_tokens, think_tokens, on_text, tokens)
            )
        finally:
            self._thinking = False
        return replace(guidance, valid_for_s=valid_for_s, sequence=sequence, epoch=epoch)

    def forget(self) -> None:
        """Drop every cached pair and what the last thought saw: after a clock jump, or to give memory back."""
        self._encoder.clear()
        self._open = self._seen = None

    def _think(
        self,
        frames: Sequence[Frame],
        instruction: str,
        halt: pyramid.Halt,
        max_new_tokens: int,
        think_tokens: int | None,
        on_text: Callable[[str], None] | None,
        tokens: bool,
    ) -> Guidance:
        started = time.monotonic()
        words = self._prompt.words(instruction)
        pairs = self.window.choose([f.stamp_ns for f in frames])
        inputs, new, newest = self._look(frames, pairs, instruction, halt)
        looked = time.monotonic()
        thought = pyramid.run(
            self._model,
            inputs,
            self.layers,
            max_new_tokens=max_new_tokens,
            halt=halt,
            pool=self._pool,
            on_tokens=None if on_text is None else lambda written: on_text(self._transcript.line(written)),
            keep_states=tokens,
            budget=self._transcript.budget(think_tokens),
            decoder=self._decoder,
        )
        finished = time.monotonic()
        said = thought.generated is not None
        rows = torch.zeros_like(thought.prompt) if thought.generated is None else thought.generated
        pooled = torch.stack([thought.prompt, rows], 1)
        written, answer = self._transcript.parts(thought.tokens)
        states, streams = thought.token_form(inputs["mm_token_type_ids"][0]) if tokens else (None, None)
        guidance = Guidance(
            pyramid=pooled.numpy(),
            layers=self.layers,
            stamp_ns=frames[pairs[-1].second].stamp_ns,
            valid_for_s=0.0,
            present=(True, said),
            text=answer,
            instruction=clean_line(instruction, MAX_INSTRUCTION_CHARS),
            instruction_id=hashlib.blake2s(words.encode(), digest_size=4).hexdigest(),
            model_id=self.model_id,
            thought=written,
            states=states,
            streams=streams,
            subgoal=self._subgoal.make(pooled, (True, said)) if self._subgoal else None,
        )
        ended = time.monotonic()
        self.report = Report(
            pairs=len(pairs),
            new_pairs=new,
            prompt_tokens=thought.prompt_tokens,
            new_tokens=len(thought.tokens),
            stop=thought.stop,
            forced_end=thought.forced_end,
            vision_s=looked - started,
            prefill_s=thought.prefill_s,
            decode_s=thought.decode_s,
            pool_s=thought.pool_s + ended - finished,
            total_s=ended - started,
        )
        self._seen = newest
        return guidance

    def _look(
        self, frames: Sequence[Frame], pairs: Sequence[Pair], instruction: str, halt: pyramid.Halt
    ) -> tuple[dict[str, Any], int, np.ndarray]:
        """The prompt with its pairs encoded, how many of them had to be, and the newest picture that was looked at."""
        if not pairs:
            raise ThinkerError("there is no frame to think about; a thought needs at least one.")
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
        return self._prompt.assemble(times, features, self._encoder.grid, instruction), new, b

    def _fit(self, rgb: np.ndarray) -> np.ndarray:
        try:
            check_rgb(rgb)
        except ValueError as error:
            raise ThinkerError(f"{error}.") from None
        return fit(rgb, self.image_size, self._view)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run `work` so that whatever goes wrong in it is a ThinkerError and leaves the thinker able to think again."""
        try:
            return work()
        except ThinkerError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.forget()
            self._decoder.release()
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
