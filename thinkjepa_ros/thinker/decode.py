"""How a prompt is read and tokens are fed back, one at a time: with a growing cache, or with one of fixed length.

Both give the same tokens and states. With the growing cache (`EagerDecoder`) every kernel of the model is launched by
itself for each token, and a GPU waits for that. `StaticDecoder` keeps keys and values in buffers of fixed length, so
that a step is the same work on the same memory each time, which a CUDA graph launches at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3VLForConditionalGeneration, StaticCache

from .errors import ThinkerError

_log = logging.getLogger(__name__)
#: Steps before a capture: libraries allocate their workspaces and choose their kernels in the first ones.
_WARM_UP = 3
#: Tokens that fit behind a prompt before the fixed cache has to grow.
_ROOM = 256
#: Kinds of attention that can leave out the unused places of a fixed cache.
STATIC_ATTENTION = ("sdpa", "eager")


class LayerTap:
    """Keeps what the requested layers put out in the forward pass just run. Hooks live inside the `with` block only.

    `check` is called as each tapped layer ends, so that a cancel does not have to wait for a long prefill.
    """

    def __init__(
        self, modules: Sequence[torch.nn.Module], layers: Iterable[int], check: Callable[[], None] | None
    ) -> None:
        self._modules = modules
        self._layers = tuple(layers)
        self.check = check
        self._taken: dict[int, Tensor] = {}
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
            if self.check is not None:
                self.check()

        return hook

    def take(self) -> list[Tensor]:
        """States [S, D] of each requested layer; they are released here."""
        taken, self._taken = self._taken, {}
        return [taken[i][0] for i in self._layers]


class EagerDecoder:
    """Reads with the cache of the library, which grows by a token per step.

    One thought at a time: `with decoder.thinking(check):`, then `read` once, then `choose` and `feed` in turn.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, layers: Sequence[int]) -> None:
        text: Any = model.config.text_config
        self.layers = tuple(layers)
        self._model, self._text = model, text
        self._cache: Any = None
        self._scores: Tensor | None = None
        self._tap: Any = None

    @property
    def words(self) -> str:
        """How it decodes, for a log."""
        return "growing cache"

    @contextmanager
    def thinking(self, check: Callable[[], None]) -> Iterator[None]:
        """Taps the layers for one thought. check: called as each tapped layer has read the prompt; may raise."""
        try:
            with LayerTap(self._model.model.language_model.layers, self.layers, check) as self._tap:
                yield
        finally:
            self._cache = self._scores = self._tap = None

    def read(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        """Read the prompt (arguments of one forward, positions [3, 1, S]). States [L, S, D] of its tokens."""
        self._cache = DynamicCache(config=self._text)
        out = self._model.model(**inputs, position_ids=positions, past_key_values=self._cache, use_cache=True)
        # The last row alone: for a slice of a batch, which is what the library takes, torch lays the whole output
        # matrix out anew on a processor in half precision (0.6 GB and seconds for a vocabulary of 150,000).
        self._scores = self._model.lm_head(out.last_hidden_state[0, -1])
        return torch.stack(self._tap.take())

    def choose(self) -> int:
        """The token that the model would go on with."""
        assert self._scores is not None, "read a prompt first"
        return int(self._scores.argmax())

    def feed(self, token: int, position: int) -> Tensor:
        """Go on with `token` at `position`. Its states [L, 1, D], valid until the next call."""
        device = self._model.device
        out = self._model(
            input_ids=torch.tensor([[token]], device=device),
            position_ids=torch.full((3, 1, 1), position, device=device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._scores = out.logits[0, -1]
        return torch.stack(self._tap.take())

    def release(self) -> None:
        """Give back memory that is kept between thoughts."""


class _Buffers:
    """The fixed memory of `StaticDecoder`: what goes into a step, what comes out, and keys and values so far."""

    def __init__(self, text: Any, capacity: int, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.cache = StaticCache(config=text, max_cache_len=capacity)
        self.token = zeros(1, 1, dtype=torch.long)
        self.position = zeros(3, 1, 1, dtype=torch.long)
        self.place = zeros(1, dtype=torch.long)  # of the token in the cache
        self.places = torch.arange(capacity, device=device)
        self.mask = zeros(1, 1, 1, capacity)  # added to the scores of the attention
        self.scores = zeros(text.vocab_size)
        self.states = zeros(layers, 1, text.hidden_size)

    def fill(self, memory: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Begin with the first `length` keys and values [1, heads, n, head_dim] of each layer."""
        # To zeros, not only to no length: what a mask hides is multiplied by 0, and NaN of a failed thought stays NaN.
        self.cache.reset()
        for index, (keys, values) in enumerate(memory):
            self.cache.update(keys[:, :, :length], values[:, :, :length], index)

    def memory(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, the places that are not used included."""
        return _memory(self.cache)


class StaticDecoder(EagerDecoder):
    """Decodes with buffers of fixed length: a power of two, doubled where a thought outgrows it.

    On CUDA a step is captured as a graph; where that fails, which is logged, the same step runs kernel by kernel, as it
    does on a processor. The prompt is read as by `EagerDecoder` and its keys and values are copied, so that its states
    are the same bit for bit. Attention by sdpa or eager; FlashAttention has no mask to hide the unused places behind.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, layers: Sequence[int]) -> None:
        super().__init__(model, layers)
        if self._text._attn_implementation not in STATIC_ATTENTION:
            raise ValueError(
                f"a cache of fixed length needs attention {' or '.join(STATIC_ATTENTION)}, "
                f"not {self._text._attn_implementation}"
            )
        self._captures = model.device.type == "cuda"
        self._buffers: _Buffers | None = None
        self._graph: Any = None
        self._capacity = self._length = 0

    @property
    def words(self) -> str:
        how = "eager" if self._graph is None else "CUDA graph"
        return f"cache of {self._capacity} places, {how}" if self._capacity else "cache of fixed length"

    def read(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        states = super().read(inputs, positions)
        self._tap.check = None  # nothing may be raised inside a capture; between tokens the caller looks itself
        memory, self._cache = _memory(self._cache), None
        self._length = inputs["input_ids"].shape[1]
        self._begin(memory, self._length + _ROOM)
        return states

    def feed(self, token: int, position: int) -> Tensor:
        assert self._buffers is not None, "read a prompt first"
        if self._length == self._capacity:
            self._begin(self._buffers.memory(), 2 * self._capacity)
        buffers = self._buffers
        buffers.token.fill_(token)
        buffers.position.fill_(position)
        buffers.place.fill_(self._length)
        if self._graph is None:
            self._step(buffers)
        else:
            self._graph.replay()
        self._length += 1
        self._scores = buffers.scores
        return buffers.states

    def release(self) -> None:
        self._buffers = self._graph = None
        self._capacity = 0

    def _begin(self, memory: Sequence[tuple[Tensor, Tensor]], wanted: int) -> None:
        """Take over the keys and values so far, with places for `wanted` tokens: in new buffers if these are short."""
        if self._buffers is None or self._capacity < wanted:
            self.release()
            capacity = 1 << (wanted - 1).bit_length()
            buffers = _Buffers(self._text, capacity, len(self.layers), self._model.dtype, self._model.device)
            buffers.fill(memory, self._length)  # allocates the cache, on this stream
            if self._captures:
                self._graph = self._captured(buffers)
            self._buffers, self._capacity = buffers, capacity
        self._buffers.fill(memory, self._length)

    def _captured(self, buffers: _Buffers) -> Any:
        """The step over these buffers as a CUDA graph, or None, and a warning, where it cannot be captured."""
        device = self._model.device
        buffers.cache.reset()  # there is room for the steps of the warm-up
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(device):
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        self._step(buffers)
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._step(buffers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._captures = False
            torch.cuda.synchronize(device)
            _log.warning("A step of the decoder cannot be captured as a CUDA graph (%s): it runs eagerly.", error)
            return None
        return graph

    def _step(self, buffers: _Buffers) -> None:
        """One token, from fixed memory to fixed memory. Nothing in it may ask the host or copy from it."""
        language = self._model.model.language_model
        buffers.mask.zero_().masked_fill_(buffers.places > buffers.place, torch.finfo(buffers.mask.dtype).min)
        out = language(
            inputs_embeds=language.embed_tokens(buffers.token),
            position_ids=buffers.position,
            attention_mask=buffers.mask,
            past_key_values=buffers.cache,
            use_cache=True,
        )
        buffers.states.copy_(torch.stack(self._tap.take()))
        buffers.scores.copy_(self._model.lm_head(out.last_hidden_state[:, -1])[0])


def make(
    model: Qwen3VLForConditionalGeneration, layers: Sequence[int], static: bool | None = None
) -> EagerDecoder | StaticDecoder:
    """The decoder of a model. static: buffers of fixed length; None: on CUDA, where the attention can do with them.

    Raises ThinkerError.
    """
    text: Any = model.config.text_config
    if static is None:
        static = model.device.type == "cuda" and text._attn_implementation in STATIC_ATTENTION
    if not static:
        return EagerDecoder(model, layers)
    try:
        return StaticDecoder(model, layers)
    except ValueError as error:
        raise ThinkerError(f"{error}; choose that attention, or decode with a growing cache (static=False).") from None


def _memory(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]
