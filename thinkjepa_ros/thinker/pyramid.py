"""The layer pyramid of one thought: explicit prefill and decode, with hooks on the requested decoder layers only.

What is taken (pinned by tests against `generate(output_hidden_states=True)`):

* The state of a token after decoder layer k is the output of that layer. For the last layer that is before the final
  norm, whereas `hidden_states[-1]` of transformers is after it.
* DeepStack adds visual features behind the first layers; the output of those layers is taken before that addition.
* Every generated token is fed back once, so each has its state. `generate()` stops one forward earlier and has N - 1
  states for N tokens: ours without the last. The end-of-sequence token is not part of the thought: it is neither fed
  back nor counted. A </think> that was forced is a token like any other.

Pooling happens on the device, in float32: what leaves it is two rows per layer, unless the token form is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from ..values import GENERATED, PROMPT_TEXT, PROMPT_VISUAL
from .decode import EagerDecoder
from .errors import Cancelled, ThinkerError, TimedOut
from .marks import Budget

#: Which prompt tokens the prompt row is the mean of.
POOLS = ("all", "text", "visual")
_REFERENCE_LAYERS = (0, 4, 8, 12, 16, 20, 24, 27)


def default_layers(count: int) -> tuple[int, ...]:
    """Decoder layers to export out of `count`: the reference's for 28 layers, else at most eight spread evenly."""
    if count == 28:
        return _REFERENCE_LAYERS
    wanted = min(count, len(_REFERENCE_LAYERS))
    return tuple(round(k * (count - 1) / max(1, wanted - 1)) for k in range(wanted))


@dataclass
class Halt:
    """When to stop: a cancel event and a deadline on the monotonic clock, either may be absent."""

    cancel: threading.Event | None = None
    deadline: float | None = None

    @classmethod
    def after(cls, seconds: float | None, cancel: threading.Event | None) -> Halt:
        """Deadline `seconds` from now; None is no deadline."""
        return cls(cancel, None if seconds is None else time.monotonic() + seconds)

    def raise_if_cancelled(self) -> None:
        """Raises Cancelled."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("the thought was cancelled")

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def raise_if_over(self) -> None:
        """Raises Cancelled or TimedOut; for the part of a thought that leaves nothing to export."""
        self.raise_if_cancelled()
        if self.late:
            raise TimedOut("the deadline passed before the prompt was read; give the thought more time or fewer frames")


@dataclass
class Thought:
    """What one run leaves behind.

    prompt, generated: float32 [L, D] on the CPU, means over the prompt's and the generated tokens (generated is None
    when there are none). tokens: generated ids without the end-of-sequence. stop: "length", "eos" or "deadline".
    forced_end: </think> was put in because the budget was spent.
    prompt_states [L, S, D], generated_states [L, N, D]: the token form in the model's dtype and on its device, only on
    request (None without generated tokens).
    """

    prompt: torch.Tensor
    generated: torch.Tensor | None
    tokens: list[int]
    stop: str
    forced_end: bool
    prompt_tokens: int
    prefill_s: float
    decode_s: float
    pool_s: float
    prompt_states: torch.Tensor | None = None
    generated_states: torch.Tensor | None = None

    def token_form(self, types: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """States float32 [L, S, D] of all tokens and their kinds uint8 [S] (`values.Guidance`), where they were kept.

        types: of the prompt's tokens, 0 for text.
        """
        assert self.prompt_states is not None, "they were not asked for"
        parts = [part for part in (self.prompt_states, self.generated_states) if part is not None]
        states = torch.cat(parts, 1).float().cpu().numpy()
        streams = np.full(states.shape[1], GENERATED, np.uint8)
        streams[: len(types)] = np.where(types.cpu().numpy() > 0, PROMPT_VISUAL, PROMPT_TEXT)
        return states, streams


@dataclass
class _Mean:
    """Running mean over tokens of the rows of each layer."""

    total: torch.Tensor | None = None
    count: int = 0
    kept: list[torch.Tensor] = field(default_factory=list)

    def add(self, states: torch.Tensor, keep: bool) -> None:
        """states [L, n, D] may be overwritten afterwards."""
        rows = states.float().sum(1)
        self.total = rows if self.total is None else self.total.add_(rows)
        self.count += states.shape[1]
        if keep:
            self.kept.append(states.clone())

    def value(self) -> torch.Tensor | None:
        return None if self.total is None else (self.total / self.count).cpu()


@torch.inference_mode()
def run(
    model: Qwen3VLForConditionalGeneration,
    inputs: dict[str, Any],
    layers: Sequence[int],
    *,
    max_new_tokens: int,
    halt: Halt,
    pool: str = "all",
    on_tokens: Callable[[list[int]], None] | None = None,
    keep_states: bool = False,
    budget: Budget | None = None,
    decoder: EagerDecoder | None = None,
) -> Thought:
    """Read the prompt, then think greedily token by token.

    inputs: what `Prompt.assemble` returns (one prompt). on_tokens is called with all tokens so far after each.
    budget: of this thought, closes its <think> block in time. decoder: one for this model and these layers that is kept
    between thoughts; without it a new `EagerDecoder`.
    The deadline is looked at between tokens: what was generated until then counts. Raises Cancelled, and ThinkerError
    for states that are not finite.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    if decoder is None:
        decoder = EagerDecoder(model, layers)
    elif decoder.layers != tuple(layers):
        raise ValueError(f"the decoder taps layers {list(decoder.layers)}, asked for are {list(layers)}")
    ids, types, ends = inputs["input_ids"], inputs["mm_token_type_ids"], _end_tokens(model)
    length = ids.shape[1]
    budget = budget or Budget()
    tokens: list[int] = []
    generated = _Mean()
    stop = "length"
    clock = _Clock(model.device)
    with decoder.thinking(halt.raise_if_cancelled):
        positions, follows = positions_of(model, inputs)
        states = decoder.read(inputs, positions)
        prefill_s = clock.lap()
        prompt = masked_mean(states, types[0], pool)
        _refuse_non_finite(states, layers, "prompt")
        pool_s = clock.lap()
        kept = states if keep_states else None
        del states
        while len(tokens) < max_new_tokens:
            halt.raise_if_cancelled()
            if halt.late:
                stop = "deadline"
                break
            token = budget.instead_of(decoder.choose())
            if token in ends:
                stop = "eos"
                break
            generated.add(decoder.feed(token, follows + len(tokens)), keep_states)
            tokens.append(token)
            if on_tokens is not None:
                on_tokens(tokens)
    decode_s = clock.lap()
    mean = generated.value()
    if mean is not None:
        _refuse_non_finite(mean, layers, "generated")
    return Thought(
        prompt=prompt,
        generated=mean,
        tokens=tokens,
        stop=stop,
        forced_end=budget.forced,
        prompt_tokens=length,
        prefill_s=prefill_s,
        decode_s=decode_s,
        pool_s=pool_s + clock.lap(),
        prompt_states=kept,
        generated_states=torch.cat(generated.kept, 1) if generated.kept else None,
    )


class _Clock:
    """Seconds between laps, in which a device has done all that it was given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.monotonic()

    def lap(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before, self._last = self._last, time.monotonic()
        return self._last - before


def positions_of(model: Qwen3VLForConditionalGeneration, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Positions [3, 1, S] of the prompt's tokens, and that of the token that follows.

    Left to itself the model keeps them in `rope_deltas`, where another request may find them. Computed on the CPU: it
    is a loop over the pairs that asks for every number.
    """
    ids, grid = inputs["input_ids"], inputs.get("video_grid_thw")
    positions, delta = model.model.get_rope_index(
        ids.cpu(),
        mm_token_type_ids=inputs["mm_token_type_ids"].cpu(),
        video_grid_thw=None if grid is None else grid.cpu(),
    )
    return positions.to(ids.device), ids.shape[1] + int(delta)


def _end_tokens(model: Qwen3VLForConditionalGeneration) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def masked_mean(states: torch.Tensor, types: torch.Tensor, pool: str) -> torch.Tensor:
    """Mean over the chosen tokens of states [L, S, D] -> float32 [L, D] on the CPU."""
    if pool != "all":
        states = states[:, (types > 0) if pool == "visual" else (types == 0)]
    return states.float().mean(1).cpu()


def _refuse_non_finite(states: torch.Tensor, layers: Sequence[int], stream: str) -> None:
    """Raises ThinkerError that names the layers of states [L, ..., D] which hold NaN or infinities."""
    finite = states.isfinite().flatten(1).all(1).tolist()
    bad = [layer for layer, fine in zip(layers, finite, strict=True) if not fine]
    if bad:
        raise ThinkerError(
            f"the states of the {stream} tokens are not finite after layers {bad}; "
            "float16 overflows with some checkpoints: choose bfloat16 or float32"
        )
