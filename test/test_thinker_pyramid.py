"""The layer pyramid against what transformers itself reports, and how a thought stops."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from thinker_kit import frames, fresh_thinker, lively_thinker
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from thinkjepa_ros.thinker import decode, pyramid
from thinkjepa_ros.thinker.errors import Cancelled, ThinkerError

LAYERS = (0, 1, 2, 3)
NEW = 6


@pytest.fixture(scope="module")
def thinker():
    return lively_thinker()


@pytest.fixture()
def model(thinker):
    return thinker._model


@pytest.fixture()
def inputs(thinker):
    """A prompt of three pairs, as `think` assembles it."""
    shown = frames(6)
    features = [
        thinker._encoder.encode((a.stamp_ns, a.rgb), (b.stamp_ns, b.rgb))[0]
        for a, b in zip(shown[::2], shown[1::2], strict=True)
    ]
    return thinker._prompt.assemble(
        [0.1, 0.6, 1.1], features, thinker._encoder.grid, "put the red cube in the left tray"
    )


def generate(model, inputs, count=NEW):
    """The library's own generation over the same prompt, from the same encoded pairs."""
    try:
        return model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=count,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    finally:
        model.model.rope_deltas = None


def think(model, inputs, count=NEW, layers=LAYERS, **options):
    options.setdefault("halt", pyramid.Halt())
    return pyramid.run(model, inputs, layers, max_new_tokens=count, keep_states=True, **options)


def test_states_equal_generate(model, inputs):
    ours, theirs = think(model, inputs), generate(model, inputs)
    prompt, steps = theirs.hidden_states[0], theirs.hidden_states[1:]
    assert ours.tokens == theirs.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert ours.prompt_states.shape == (4, inputs["input_ids"].shape[1], 128)
    for k in LAYERS[:-1]:  # hidden_states[0] is the embedding, so layer k is entry k + 1
        torch.testing.assert_close(ours.prompt_states[k], prompt[k + 1][0], atol=3e-5, rtol=0)
    assert len(steps) == NEW - 1, "the library has no state for the last token"
    assert ours.generated_states.shape == (4, NEW, 128), "ours has one for each"
    for n, step in enumerate(steps):
        for k in LAYERS[:-1]:
            torch.testing.assert_close(ours.generated_states[k, n], step[k + 1][0, 0], atol=3e-5, rtol=0)


def test_last_layer_is_before_the_final_norm(model, inputs):
    ours, theirs = think(model, inputs), generate(model, inputs)
    norm = model.model.language_model.norm
    with torch.inference_mode():
        torch.testing.assert_close(norm(ours.prompt_states[-1]), theirs.hidden_states[0][-1][0], atol=3e-5, rtol=0)
        torch.testing.assert_close(
            norm(ours.generated_states[-1, 0]), theirs.hidden_states[1][-1][0, 0], atol=3e-5, rtol=0
        )
    assert (ours.prompt_states[-1] - theirs.hidden_states[0][-1][0]).abs().max() > 0.1


def test_states_equal_one_forward_without_cache(model, inputs):
    """Prompt and thought read in one piece give the same states as prefill and decode, the last token's included."""
    ours = think(model, inputs)
    ids = torch.cat([inputs["input_ids"], torch.tensor([ours.tokens])], 1)
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, NEW, dtype=torch.int32)], 1)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, video_grid_thw=inputs["video_grid_thw"])
    with torch.inference_mode(), decode.LayerTap(model.model.language_model.layers, LAYERS, lambda: None) as tap:
        model(**{**inputs, "input_ids": ids, "mm_token_type_ids": types}, position_ids=positions, use_cache=False)
        whole = torch.stack(tap.take())
    torch.testing.assert_close(torch.cat([ours.prompt_states, ours.generated_states], 1), whole, atol=3e-5, rtol=0)


def test_deepstack_is_added_after_the_tapped_output(model, inputs):
    """The second layer reads what the first put out plus the visual features, at visual tokens only."""
    entered = {}
    handle = model.model.language_model.layers[1].register_forward_pre_hook(
        lambda _m, args, kwargs: entered.update(x=(args[0] if args else kwargs["hidden_states"]).clone()),
        with_kwargs=True,
    )
    try:
        ours = think(model, inputs, count=0)
    finally:
        handle.remove()
    visual = inputs["mm_token_type_ids"][0] > 0
    added = entered["x"][0] - ours.prompt_states[0]
    assert torch.equal(added[~visual], torch.zeros_like(added[~visual]))
    torch.testing.assert_close(
        added[visual], inputs["mm_encoder_outputs"]["video"].deepstack_features[0][0], atol=1e-5, rtol=0
    )


def test_pools_are_means_over_their_tokens(model, inputs):
    visual = inputs["mm_token_type_ids"][0] > 0
    for pool, mask in (("all", torch.ones_like(visual)), ("visual", visual), ("text", ~visual)):
        ours = think(model, inputs, pool=pool)
        torch.testing.assert_close(ours.prompt, ours.prompt_states[:, mask].double().mean(1).float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.generated, ours.generated_states.double().mean(1).float(), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="pool must be one of"):
        think(model, inputs, pool="some")


def test_only_requested_layers_are_hooked_and_only_meanwhile(model, inputs):
    modules = model.model.language_model.layers
    seen = []

    def look(_tokens):
        seen.append([len(m._forward_hooks) for m in modules])

    before = [len(m._forward_hooks) for m in modules]
    ours = think(model, inputs, layers=(1, 3), on_tokens=look)
    full = think(model, inputs)
    assert torch.equal(ours.prompt, full.prompt[[1, 3]])
    assert [[a - b for a, b in zip(now, before, strict=True)] for now in seen] == [[0, 1, 0, 1]] * NEW
    assert [len(m._forward_hooks) for m in modules] == before
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        think(model, inputs, halt=pyramid.Halt(cancelled))
    assert [len(m._forward_hooks) for m in modules] == before


def test_rope_deltas_are_neither_read_nor_written(model, inputs):
    clean = think(model, inputs)
    poison = torch.tensor([[12345]])
    model.model.rope_deltas = poison
    try:
        poisoned = think(model, inputs)
        assert model.model.rope_deltas is poison
    finally:
        model.model.rope_deltas = None
    assert torch.equal(clean.prompt, poisoned.prompt)
    assert torch.equal(clean.generated, poisoned.generated)


def test_a_padded_batch_of_the_library_holds_the_same_states(model, inputs, thinker):
    """Ours is one prompt without padding; theirs, left-padded beside a longer one, agrees where it is not padding."""
    longer = frames(8, seed=2)
    features = [
        thinker._encoder.encode((a.stamp_ns, a.rgb), (b.stamp_ns, b.rgb))[0]
        for a, b in zip(longer[::2], longer[1::2], strict=True)
    ]
    other = thinker._prompt.assemble([0.1, 0.6, 1.1, 1.6], features, thinker._encoder.grid, "")
    both = (inputs, other)
    width = max(each["input_ids"].shape[1] for each in both)

    def padded(name, value):
        rows = [torch.nn.functional.pad(e[name], (width - e[name].shape[1], 0), value=value) for e in both]
        return torch.cat(rows)

    pooled = [e["mm_encoder_outputs"]["video"].pooler_output[0] for e in both]
    levels = zip(*(e["mm_encoder_outputs"]["video"].deepstack_features for e in both), strict=True)
    batch = {
        "input_ids": padded("input_ids", model.generation_config.pad_token_id),
        "mm_token_type_ids": padded("mm_token_type_ids", 0),
        "attention_mask": torch.stack([torch.arange(width) >= width - e["input_ids"].shape[1] for e in both]).long(),
        "video_grid_thw": torch.cat([e["video_grid_thw"] for e in both]),
        "mm_encoder_outputs": {
            "video": BaseModelOutputWithDeepstackFeatures(
                pooler_output=pooled, deepstack_features=[[torch.cat([x for (x,) in level])] for level in levels]
            )
        },
    }
    assert batch["attention_mask"][0, 0] == 0, "the shorter one is padded"
    try:
        theirs = model.generate(
            **batch, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
        )
    finally:
        model.model.rope_deltas = None
    for row, each in enumerate(both):
        ours = think(model, each, count=3)
        length = each["input_ids"].shape[1]
        assert ours.tokens == theirs.sequences[row, width:].tolist()
        for k in LAYERS[:-1]:
            prompt = theirs.hidden_states[0][k + 1][row, width - length :]
            torch.testing.assert_close(ours.prompt_states[k], prompt, atol=3e-5, rtol=0)
            torch.testing.assert_close(
                ours.generated_states[k, 0], theirs.hidden_states[1][k + 1][row, 0], atol=3e-5, rtol=0
            )


def test_it_stops_where_the_library_stops(model, inputs, monkeypatch):
    """The library keeps the end-of-sequence token in its text; neither has a state for it."""
    ids, free = inputs["input_ids"], think(model, inputs).tokens
    token = free[4]
    assert token not in free[:4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", token)
    ours, theirs = think(model, inputs, count=20), generate(model, inputs, 20)
    assert ours.stop == "eos" and len(ours.tokens) == 4
    assert theirs.sequences[0, ids.shape[1] :].tolist() == [*ours.tokens, token]
    assert len(theirs.hidden_states) - 1 == len(ours.tokens) == ours.generated_states.shape[1]


def test_end_of_sequence_stops_and_is_not_counted(model, inputs, monkeypatch):
    free = think(model, inputs)
    index = next((i for i, t in enumerate(free.tokens) if t != free.tokens[0]), 0)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [free.tokens[index]])
    stopped = think(model, inputs)
    assert (stopped.stop, stopped.tokens) == ("eos", free.tokens[:index])
    if index == 0:
        assert stopped.generated is None
    monkeypatch.setattr(model.generation_config, "eos_token_id", free.tokens[0])
    silent = think(model, inputs)
    assert (silent.stop, silent.tokens, silent.generated) == ("eos", [], None)


def test_cancel_takes_effect_within_one_token(model, inputs):
    cancel, seen = threading.Event(), []

    def on_tokens(tokens):
        seen.append(len(tokens))
        if len(tokens) == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        think(model, inputs, count=50, halt=pyramid.Halt(cancel), on_tokens=on_tokens)
    assert seen == [1, 2]


def test_cancel_interrupts_a_prefill(model, inputs):
    """The tapped layers look at the event, so a long prompt need not be read to its end."""
    cancel, entered = threading.Event(), []
    modules = model.model.language_model.layers
    handles = [
        modules[0].register_forward_hook(lambda *_: cancel.set()),
        modules[2].register_forward_hook(lambda *_: entered.append(2)),
    ]
    try:
        with pytest.raises(Cancelled):
            think(model, inputs, halt=pyramid.Halt(cancel))
    finally:
        for handle in handles:
            handle.remove()
    assert not entered


def test_deadline_keeps_what_was_thought(model, inputs):
    free = think(model, inputs, count=50)
    halt = pyramid.Halt()

    def on_tokens(tokens):
        if len(tokens) == 3:
            halt.deadline = time.monotonic()

    late = think(model, inputs, count=50, halt=halt, on_tokens=on_tokens)
    assert (late.stop, late.tokens) == ("deadline", free.tokens[:3])
    assert torch.equal(late.generated_states, free.generated_states[:, :3])
    past = think(model, inputs, halt=pyramid.Halt.after(0.0, None))
    assert (past.stop, past.tokens, past.generated) == ("deadline", [], None)
    assert torch.equal(past.prompt, free.prompt)


def test_states_that_are_not_finite_are_refused(model, inputs):
    weight = model.model.language_model.layers[2].mlp.down_proj.weight
    kept = weight.clone()
    with torch.no_grad():
        weight.fill_(float("inf"))
    try:
        with pytest.raises(ThinkerError, match=r"not finite after layers \[2, 3\].*bfloat16"):
            think(model, inputs)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert think(model, inputs).generated is not None


def test_numbers_beyond_float16_are_refused_by_layer():
    """Where the device computes in float16 and a layer leaves its range."""
    half = fresh_thinker(dtype="float16")
    assert half.think(frames(4), "").present == (True, True)
    with torch.no_grad():
        half._model.model.language_model.layers[1].mlp.down_proj.weight.fill_(6e4)
        half._model.model.language_model.layers[1].mlp.gate_proj.weight.fill_(1.0)
        half._model.model.language_model.layers[1].mlp.up_proj.weight.fill_(1.0)
    with pytest.raises(ThinkerError, match=r"prompt tokens are not finite after layers \[1, 2, 3\].*choose bfloat16"):
        half.think(frames(4), "")


@pytest.mark.parametrize("pool", pyramid.POOLS)
def test_tokens_outside_the_pool_must_be_finite_too(model, inputs, pool):
    """They are what the others attend to, and the token form holds them."""

    def poison(_module, _args, out):
        out = out.clone()
        out[:, 0 if pool == "visual" else int(inputs["mm_token_type_ids"][0].argmax())] = float("nan")
        return out

    handle = model.model.language_model.layers[3].register_forward_hook(poison)
    try:
        with pytest.raises(ThinkerError, match=r"not finite after layers \[3\]"):
            think(model, inputs, pool=pool, count=0)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("count", "want"),
    [
        (28, (0, 4, 8, 12, 16, 20, 24, 27)),
        (36, (0, 5, 10, 15, 20, 25, 30, 35)),
        (4, (0, 1, 2, 3)),
        (1, (0,)),
        (8, (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_default_layers(count, want):
    assert pyramid.default_layers(count) == want
