"""Decoding with buffers of fixed length gives the tokens and states of the growing cache, whatever was there before."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch
from thinker_kit import frames, lively_thinker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thinkjepa_ros.thinker import decode, pyramid
from thinkjepa_ros.thinker.decode import EagerDecoder, StaticDecoder
from thinkjepa_ros.thinker.errors import Cancelled, ThinkerError

LAYERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def thinker():
    return lively_thinker()


@pytest.fixture()
def model(thinker):
    return thinker._model


def prompt(thinker, pairs: int, seed: int = 0) -> dict:
    shown = frames(2 * pairs, seed=seed)
    features = [
        thinker._encoder.encode((a.stamp_ns, a.rgb), (b.stamp_ns, b.rgb))[0]
        for a, b in zip(shown[::2], shown[1::2], strict=True)
    ]
    return thinker._prompt.assemble([0.5 * k for k in range(pairs)], features, thinker._encoder.grid, "do it")


def think(model, inputs, decoder, count=8, layers=LAYERS, **options):
    options.setdefault("halt", pyramid.Halt())
    return pyramid.run(model, inputs, layers, max_new_tokens=count, keep_states=True, decoder=decoder, **options)


def same(ours, theirs, atol=3e-5) -> None:
    assert ours.tokens == theirs.tokens and len(set(ours.tokens)) > 2 and ours.stop == theirs.stop
    assert torch.equal(ours.prompt_states, theirs.prompt_states), "the prompt is read in the same way"
    torch.testing.assert_close(ours.generated_states, theirs.generated_states, atol=atol, rtol=0)
    torch.testing.assert_close(ours.generated, theirs.generated, atol=atol, rtol=0)


def test_one_decoder_serves_many_thoughts(thinker, model):
    """Shorter and longer prompts in turn, over the same buffers and with nothing left of the thought before."""
    static = StaticDecoder(model, LAYERS)
    for pairs in (6, 1, 3, 6):
        inputs = prompt(thinker, pairs, seed=pairs)
        same(think(model, inputs, static), think(model, inputs, EagerDecoder(model, LAYERS)))
    assert static.words == "cache of 512 places, eager"


def test_a_thought_that_outgrows_the_buffers_goes_on_in_larger_ones(thinker, model, monkeypatch):
    monkeypatch.setattr(decode, "_ROOM", 1)
    inputs = prompt(thinker, 1)
    length = inputs["input_ids"].shape[1]
    count = 256 - length + 10
    static, grown = StaticDecoder(model, LAYERS), []
    ours = think(model, inputs, static, count, on_tokens=lambda _: grown.append(static._capacity))
    assert (grown[0], grown[-1]) == (1 << length.bit_length(), 512) and length < 128
    assert [grown[n - length - 1] for n in (128, 129, 256, 257)] == [128, 256, 256, 512]
    same(ours, think(model, inputs, None, count), atol=2e-4)


def test_states_equal_one_forward_without_cache(thinker, model):
    inputs = prompt(thinker, 2)
    ours = think(model, inputs, StaticDecoder(model, LAYERS))
    count = len(ours.tokens)
    ids = torch.cat([inputs["input_ids"], torch.tensor([ours.tokens])], 1)
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, count, dtype=torch.int32)], 1)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, video_grid_thw=inputs["video_grid_thw"])
    with torch.inference_mode(), decode.LayerTap(model.model.language_model.layers, LAYERS, None) as tap:
        model(**{**inputs, "input_ids": ids, "mm_token_type_ids": types}, position_ids=positions, use_cache=False)
        whole = torch.stack(tap.take())
    torch.testing.assert_close(ours.generated_states, whole[:, -count:], atol=3e-5, rtol=0)


def test_only_requested_layers_come_out(thinker, model):
    inputs = prompt(thinker, 2)
    some, every = (think(model, inputs, StaticDecoder(model, n), layers=n) for n in ((1, 3), LAYERS))
    assert torch.equal(some.generated_states, every.generated_states[[1, 3]])


def test_what_a_failed_thought_left_behind_plays_no_part(thinker, model):
    """Not a number times zero is not a number: the places behind a mask must be clean."""
    inputs, static = prompt(thinker, 2), StaticDecoder(model, LAYERS)
    before = think(model, inputs, static)
    with torch.inference_mode():
        for layer in static._buffers.cache.layers:
            layer.keys.fill_(float("nan"))
            layer.values.fill_(float("nan"))
    same(think(model, inputs, static), before, atol=0)
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        think(model, inputs, static, halt=pyramid.Halt(cancel), on_tokens=lambda t: len(t) == 3 and cancel.set())
    same(think(model, inputs, static), before, atol=0)


def test_memory_is_given_back_and_taken_again(thinker, model):
    inputs, static = prompt(thinker, 2), StaticDecoder(model, LAYERS)
    before = think(model, inputs, static)
    static.release()
    assert static._buffers is None and static.words == "cache of fixed length"
    same(think(model, inputs, static), before, atol=0)


def test_memory_that_ran_out_is_given_back_and_the_next_thought_works():
    thinker = lively_thinker(static=True)
    before = thinker.think(frames(6), "do it", max_new_tokens=6)
    layer, calls = thinker._model.model.language_model.layers[1], []

    def fail(*_):
        calls.append(1)
        if len(calls) == 4:  # the prompt and two tokens went well
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = layer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ThinkerError, match="out of memory in a thought"):
            thinker.think(frames(6), "do it", max_new_tokens=6)
    finally:
        handle.remove()
    assert thinker._decoder._buffers is None and len(thinker._encoder) == 0
    after = thinker.think(frames(6), "do it", max_new_tokens=6)
    assert np.array_equal(after.pyramid, before.pyramid) and after.thought == before.thought


def test_hooks_are_gone_after_a_thought_however_it_ends(thinker, model):
    inputs, static, cancel = prompt(thinker, 2), StaticDecoder(model, LAYERS), threading.Event()
    think(model, inputs, static)
    cancel.set()
    with pytest.raises(Cancelled):
        think(model, inputs, static, halt=pyramid.Halt(cancel))
    assert not any(len(layer._forward_hooks) for layer in model.model.language_model.layers)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_kinds_of_attention_agree(attention):
    thinker = lively_thinker(attention=attention, static=True)
    grows = lively_thinker(static=False)
    assert "fixed length" in thinker.words and "growing" in grows.words
    ours, theirs = (t.think(frames(6), "do it", max_new_tokens=6, tokens=True) for t in (thinker, grows))
    torch.testing.assert_close(torch.from_numpy(ours.states), torch.from_numpy(theirs.states), atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decodes_into_the_buffers_too(dtype):
    """Rounded differently, so that a text may part from the other one: the first token is the same."""
    static, grows = (lively_thinker(dtype=dtype, static=s) for s in (True, False))
    ours, theirs = (t.think(frames(6), "do it", max_new_tokens=1).pyramid for t in (static, grows))
    assert abs(ours - theirs).max() < 0.02 * abs(theirs).max()


def test_what_cannot_be_is_refused(model, monkeypatch):
    with pytest.raises(ValueError, match=r"taps layers \[0, 1\], asked for are \[0, 1, 2, 3\]"):
        think(model, {}, EagerDecoder(model, (0, 1)))
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="needs attention sdpa or eager, not flash_attention_2"):
        StaticDecoder(model, LAYERS)
    assert isinstance(decode.make(model, LAYERS, None), EagerDecoder)
    with pytest.raises(ThinkerError, match=r"flash_attention_2; choose that attention, or .*static=False"):
        decode.make(model, LAYERS, True)


class _OnTheDevice(TorchDispatchMode):
    """Every tensor that a kernel reads or makes must be on the device: what copies from the host cannot be captured."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, f"{func} touches the host"
        return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_neither_asks_the_host_nor_copies_from_it(attention):
    """Tensors without values: whatever looks at one raises. A captured step could do neither."""
    thinker = lively_thinker(attention=attention)
    model = thinker._model.to("meta")
    static = StaticDecoder(model, (1, 3))
    buffers = decode._Buffers(static._text, 64, 2, model.dtype, model.device)
    heads = static._text.num_key_value_heads, 8, static._text.head_dim
    with torch.inference_mode():
        buffers.fill([(torch.zeros(1, *heads, device="meta"),) * 2] * 4, 8)
        with static.thinking(lambda: None), _OnTheDevice():
            static._step(buffers)
    for name, shape in (("states", (2, 1, 128)), ("scores", (640,))):
        assert getattr(buffers, name).shape == shape and getattr(buffers, name).is_meta


# --- on a GPU ---


@pytest.fixture()
def gpu_thinker():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return lively_thinker(device="cuda", dtype="float32")


@pytest.mark.gpu
def test_a_captured_step_gives_the_same_thought(gpu_thinker, monkeypatch):
    monkeypatch.setattr(decode, "_ROOM", 8)
    model, layers = gpu_thinker._model, gpu_thinker.layers
    static = StaticDecoder(model, layers)
    for pairs, count in ((6, 4), (1, 4), (6, 300), (3, 20)):
        inputs = prompt(gpu_thinker, pairs, seed=pairs)
        ours, theirs = think(model, inputs, static, count), think(model, inputs, EagerDecoder(model, layers), count)
        assert "CUDA graph" in static.words
        assert torch.equal(ours.prompt_states, theirs.prompt_states)
        # Kernels round differently, so that after hundreds of tokens a text may take another turn.
        assert ours.tokens[:20] == theirs.tokens[:20]
        close = dict(atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(ours.generated_states[:, :20], theirs.generated_states[:, :20], **close)
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        think(model, inputs, static, halt=pyramid.Halt(cancel), on_tokens=lambda t: len(t) == 3 and cancel.set())
    again = think(model, inputs, static, 20)
    assert again.tokens == ours.tokens and torch.equal(again.generated_states, ours.generated_states)


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_runs_eagerly_and_says_so(gpu_thinker, monkeypatch, caplog):
    model, layers = gpu_thinker._model, gpu_thinker.layers
    step = StaticDecoder._step

    def asks_back(self, buffers):
        step(self, buffers)
        buffers.scores.sum().item()

    monkeypatch.setattr(StaticDecoder, "_step", asks_back)
    static, inputs = StaticDecoder(model, layers), prompt(gpu_thinker, 2)
    with caplog.at_level(logging.WARNING):
        ours = think(model, inputs, static)
    assert "cannot be captured as a CUDA graph" in caplog.text and static.words.endswith("eager")
    assert ours.tokens == think(model, inputs, None).tokens


@pytest.mark.gpu
def test_thoughts_on_a_gpu_are_captured_by_default(gpu_thinker):
    gpu_thinker.warm_up()
    assert "CUDA graph" in gpu_thinker.words
    ours = gpu_thinker.think(frames(8), "do it", max_new_tokens=8, tokens=True)
    theirs = lively_thinker().think(frames(8), "do it", max_new_tokens=8, tokens=True)
    assert ours.text == theirs.text and abs(ours.states - theirs.states).max() < 1e-2
