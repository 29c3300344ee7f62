"""The layer pyramid of one thought: explicit prefill and decode, with hooks on the requested decoder layers only.

What is taken (pinned by tests against `generate(output_hidden_states=True)`):

* The state of a token after decoder layer k is the output of that layer. For the last layer that is before the final
  norm, whereas `hidden_states[-1]` of transformers is after it.
* DeepStack adds visual features behind the first layers; the output of those layers is taken before that addition.
* Every generated token is fed back once, so each has its state. `generate()` stops one forward earlier and has N - 1
  states for N tokens: ours without the last. The end-of-sequence token is not part of the thought: it is neither fed
  back nor counted.

Pooling happens on the device, in float32: what leaves it is two rows per layer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, Qwen3VLForConditionalGeneration

from .errors import Cancelled, ThinkerError, TimedOut

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


class LayerTap:
    """Keeps what the requested layers put out in the forward pass just run. Hooks live inside the `with` block only.

    `check` is called as each tapped layer ends, so that a cancel does not have to wait for a long prefill.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], layers: Iterable[int], check: Callable[[], None]) -> None:
        self._modules = modules
        self._layers = tuple(layers)
        self._check = check
        self._taken: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> LayerTap:
        self._handles = [self._modules[i].register_forward_hook(self._hook(i)) for i in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._taken.clear()

    def _hook(self, layer: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _args: Any, out: Any) -> None:
            self._taken[layer] = (out[0] if isinstance(out, tuple) else out).detach()
            self._check()

        return hook

    def take(self) -> list[torch.Tensor]:
        """States [S, D] of each requested layer; they are released here."""
        taken, self._taken = self._taken, {}
        return [taken[i][0] for i in self._layers]


@dataclass
class Thought:
    """What one run leaves behind.

    prompt, generated: float32 [L, D] on the CPU, means over the prompt's and the generated tokens (generated is None
    when there are none). tokens: generated ids without the end-of-sequence. stop: "length", "eos" or "deadline".
    prompt_states [L, S, D], generated_states [L, N, D]: the token form in the model's dtype and on its device, only on
    request.
    """

    prompt: torch.Tensor
    generated: torch.Tensor | None
    tokens: list[int]
    stop: str
    prompt_tokens: int
    prefill_s: float
    decode_s: float
    prompt_states: torch.Tensor | None = None
    generated_states: torch.Tensor | None = None


@dataclass
class _Mean:
    """Running mean over tokens of the rows of each layer."""

    total: torch.Tensor | None = None
    count: int = 0
    kept: list[torch.Tensor] = field(default_factory=list)

    def add(self, states: list[torch.Tensor], keep: bool) -> None:
        stacked = torch.stack(states)
        rows = stacked.float().sum(1)
        self.total = rows if self.total is None else self.total + rows
        self.count += stacked.shape[1]
        if keep:
            self.kept.append(stacked)

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
) -> Thought:
    """Read the prompt, then think greedily token by token.

    inputs: what `Prompt.assemble` returns (one prompt). on_tokens is called with all tokens so far after each.
    The deadline is looked at between tokens: what was generated until then counts. Raises Cancelled, and ThinkerError
    for states that are not finite.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    core, ids, types = model.model, inputs["input_ids"], inputs["mm_token_type_ids"]
    length, ends = ids.shape[1], _end_tokens(model)
    # Left to itself the model keeps positions in `rope_deltas`, where another request may find them: computed here.
    positions, delta = core.get_rope_index(ids, mm_token_type_ids=types, video_grid_thw=inputs.get("video_grid_thw"))
    text_config: Any = model.config.text_config
    cache = DynamicCache(config=text_config)
    tokens: list[int] = []
    generated = _Mean()
    stop = "length"
    started = time.monotonic()
    with LayerTap(core.language_model.layers, layers, halt.raise_if_cancelled) as tap:
        out = model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        states = torch.stack(tap.take())
        prompt = _masked_mean(states, types[0], pool)
        _refuse_non_finite(prompt, layers, "prompt")
        read = time.monotonic()
        while len(tokens) < max_new_tokens:
            halt.raise_if_cancelled()
            if halt.late:
                stop = "deadline"
                break
            token = int(out.logits[0, -1].argmax())
            if token in ends:
                stop = "eos"
                break
            tokens.append(token)
            position = (length + len(tokens) - 1 + delta).view(1, 1, 1).expand(3, 1, 1)
            out = model(
                input_ids=ids.new_tensor([[token]]),
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            generated.add(tap.take(), keep_states)
            if on_tokens is not None:
                on_tokens(tokens)
    mean = generated.value()
    if mean is not None:
        _refuse_non_finite(mean, layers, "generated")
    return Thought(
        prompt=prompt,
        generated=mean,
        tokens=tokens,
        stop=stop,
        prompt_tokens=length,
        prefill_s=read - started,
        decode_s=time.monotonic() - read,
        prompt_states=states if keep_states else None,
        generated_states=torch.cat(generated.kept, 1) if generated.kept else None,
    )


def _end_tokens(model: Qwen3VLForConditionalGeneration) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _masked_mean(states: torch.Tensor, types: torch.Tensor, pool: str) -> torch.Tensor:
    """Mean over the chosen tokens of states [L, S, D] -> float32 [L, D] on the CPU."""
    if pool != "all":
        states = states[:, (types > 0) if pool == "visual" else (types == 0)]
    return states.float().mean(1).cpu()


def _refuse_non_finite(rows: torch.Tensor, layers: Sequence[int], stream: str) -> None:
    bad = [layer for layer, row in zip(layers, rows, strict=True) if not bool(row.isfinite().all())]
    if bad:
        raise ThinkerError(
            f"the states of the {stream} tokens are not finite after layers {bad}; "
            "float16 overflows with some checkpoints: choose bfloat16 or float32"
        )
