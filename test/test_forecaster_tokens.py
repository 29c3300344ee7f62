"""Guidance as the states of single tokens: what a predictor with cross-attention makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jepa_kit import config, fill, forecaster, guidance, images, small_net

from thinkjepa_ros.jepa import forecaster as forecasting
from thinkjepa_ros.jepa.forecaster import Forecaster, GuidanceError
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.values import GENERATED, PROMPT_TEXT, PROMPT_VISUAL, Guidance

CROSS = config(predictor={"guide_mode": "cross"})
PROMPT, SAID = forecasting.GUIDE_TOKENS


def thought(prompt: int = 30, said: int = 5, seed: int = 0, **changes) -> Guidance:
    """One that fits `small_net`, with the states of its tokens."""
    states = np.random.default_rng(seed).normal(size=(3, prompt + said, 20)).astype(np.float32)
    streams = np.array([PROMPT_TEXT, PROMPT_VISUAL] * prompt, np.uint8)[:prompt]
    streams = np.concatenate((streams, np.full(said, GENERATED, np.uint8)))
    return guidance(seed, states=states, streams=streams, present=(True, said > 0), **changes)


@pytest.fixture(scope="module")
def net():
    return small_net(made_as=CROSS)


@pytest.fixture(scope="module")
def pictures(net):
    return images(net, 4)


def answer(f: Forecaster, pictures, said: Guidance | None):
    """The forecast of these pictures under this guidance, thought at the newest one."""
    stamps = fill(f, pictures)
    f.guide(None if said is None else dataclasses.replace(said, stamp_ns=stamps[-1]))
    return f.forecast()


def directly(net, pictures, payload: Payload | None) -> np.ndarray:
    """Positions by the network itself, without a Forecaster."""
    with torch.inference_mode():
        latents = net.encoder.frames(torch.from_numpy(np.stack(pictures)))
        pooled, poses = net.look(latents)
        displacement, _, _ = net.forecast(pooled[None, :-1], latents[-1:], poses[None], payload)
    return (poses[-1] + displacement[0]).numpy()


def test_tokens_guide_as_the_predictor_itself_is_guided_by_them(net, pictures) -> None:
    said = thought()
    states = torch.from_numpy(said.states)[None]
    payload = Payload(states[:, :, :30], states[:, :, 30:])
    by_tokens = answer(forecaster(net), pictures, said)
    assert by_tokens.guidance_weight == 1.0
    np.testing.assert_allclose(by_tokens.positions, directly(net, pictures, payload), atol=1e-5)
    assert np.abs(by_tokens.positions - directly(net, pictures, None)).max() > 1e-3


def test_a_pooled_thought_is_one_token_per_stream(net, pictures) -> None:
    said = guidance()
    rows = torch.from_numpy(said.pyramid)[None]
    pooled = answer(forecaster(net), pictures, said)
    np.testing.assert_allclose(
        pooled.positions, directly(net, pictures, Payload(rows[:, :, :1], rows[:, :, 1:])), atol=1e-5
    )
    assert not np.array_equal(pooled.positions, answer(forecaster(net), pictures, thought()).positions)


def test_padding_changes_nothing_but_rounding(net, pictures, monkeypatch) -> None:
    results = []
    for sizes in ((PROMPT, SAID), (30, 5), (31, 64)):
        monkeypatch.setattr(forecasting, "GUIDE_TOKENS", sizes)
        results.append(answer(forecaster(net), pictures, thought()).positions)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


@pytest.mark.parametrize(("prompt", "said"), [(PROMPT + 150, 5), (30, SAID + 9), (PROMPT + 1, SAID + 1)])
def test_of_a_longer_thought_the_last_tokens_count(net, pictures, prompt, said) -> None:
    long = thought(prompt, said)
    keep = np.r_[max(0, prompt - PROMPT) : prompt, prompt + max(0, said - SAID) : prompt + said]
    tail = dataclasses.replace(long, states=long.states[:, keep], streams=long.streams[keep])
    a, b = (answer(forecaster(net), pictures, each).positions for each in (long, tail))
    assert np.array_equal(a, b)
    forgotten = dataclasses.replace(long, states=long.states.copy())
    gone = np.setdiff1d(np.arange(prompt + said), keep)
    forgotten.states[:, gone] += 100
    assert np.array_equal(answer(forecaster(net), pictures, forgotten).positions, a)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(0, 12), st.integers(1, 50), st.integers(1, 20))
def test_the_shapes_of_a_payload_depend_on_nothing(prompt, said, room, room_said) -> None:
    made = thought(prompt, said) if prompt + said else thought(1, 0)
    payload = Payload.of_tokens(made.states, made.streams, (room, room_said))
    assert payload.prompt.shape == (1, 3, room, 20) and payload.generated.shape == (1, 3, room_said, 20)
    assert payload.prompt_mask.sum() == 3 * min(room, max(prompt, 1 - said))
    assert payload.generated_mask.sum() == 3 * min(room_said, said)
    count = min(room_said, said)
    np.testing.assert_array_equal(payload.generated[0, :, :count], made.states[:, prompt + said - count :][:, :count])


def test_without_generated_tokens_the_prompt_guides(net, pictures) -> None:
    said = thought(30, 0)
    payload = Payload(torch.from_numpy(said.states)[None], None)
    np.testing.assert_allclose(
        answer(forecaster(net), pictures, said).positions, directly(net, pictures, payload), atol=1e-5
    )


def test_expired_tokens_are_exactly_unguided_and_fading_ones_count_less(net, pictures) -> None:
    f = forecaster(net)
    plain = answer(f, pictures, None).positions
    f.guide(thought(valid_for_s=2.0))
    effects = []
    for late in (0, 15, 21):
        f.reset()
        stamps = fill(f, pictures, late)
        f.guide(thought(valid_for_s=2.0, stamp_ns=stamps[-1] - late * 100_000_000))
        effects.append(np.abs(f.forecast().positions - plain).max())
    assert effects[0] > effects[1] > 0 and effects[2] == 0


def test_means_are_all_that_film_looks_at(pictures) -> None:
    f = forecaster(small_net())
    assert not f.takes_tokens
    pooled, tokens = (answer(f, pictures, each).positions for each in (guidance(), thought()))
    assert np.array_equal(pooled, tokens)


def test_warm_up_leaves_nothing_behind(net, pictures) -> None:
    warm, cold = forecaster(net), forecaster(net)
    assert warm.takes_tokens
    warm.warm_up()
    assert warm.guidance is None and not warm.knows(0)
    for said in (None, guidance(), thought()):
        assert np.array_equal(answer(warm, pictures, said).positions, answer(cold, pictures, said).positions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": np.zeros((2, 35, 20), np.float32)}, r"states is \[2, 35, 20\]"),
        ({"states": np.zeros((3, 35, 21), np.float32)}, r"takes \[3, tokens, 20\]"),
        ({"states": np.zeros((3, 20), np.float32)}, "states is"),
        ({"states": np.zeros((3, 0, 20), np.float32), "streams": np.zeros(0, np.uint8)}, "states is"),
        ({"streams": None}, "streams must be"),
        ({"streams": np.zeros(34, np.uint8)}, r"streams must be uint8 \[35\]"),
        ({"streams": np.zeros(35, np.int64)}, "streams must be"),
        ({"streams": np.full(35, 3, np.uint8)}, "streams holds 3"),
        ({"states": np.full((3, 35, 20), np.nan, np.float32)}, "states holds values that are not finite"),
        ({"states": np.full((3, 35, 20), -np.inf, np.float32)}, "states holds values that are not finite"),
    ],
)
def test_malformed_tokens_are_refused_and_what_was_held_stays(net, changes, words) -> None:
    f, held = forecaster(net), thought()
    f.guide(held)
    with pytest.raises(GuidanceError, match=words):
        f.guide(dataclasses.replace(held, **changes))
    assert f.guidance is held


def test_a_thought_of_the_mini_guides_by_its_tokens_over_the_wire() -> None:
    """Thinker, message, forecaster: as the nodes do it."""
    from thinker_kit import frames as seen
    from thinker_kit import fresh_thinker

    from thinkjepa_ros.bridge import messages

    said = fresh_thinker().think(seen(8, start_ns=10**9), "do it", max_new_tokens=4, tokens=True)
    net = small_net(made_as=config(predictor={"guide_mode": "cross", "guide_layers": 4, "guide_width": 128}))
    f, pictures = forecaster(net), images(net, 4)
    plain = answer(f, pictures, None).positions
    back = messages.guidance_from_message(messages.guidance_to_message(said))
    over_the_wire, in_process = (answer(f, pictures, each).positions for each in (back, said))
    np.testing.assert_allclose(over_the_wire, in_process, atol=1e-3)
    assert np.abs(over_the_wire - plain).max() > 10 * np.abs(over_the_wire - in_process).max()
    means = dataclasses.replace(back, states=None, streams=None)
    assert not np.array_equal(answer(f, pictures, means).positions, over_the_wire)


@pytest.mark.gpu
def test_a_captured_step_takes_either_form(net, pictures) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    graph, eager = (forecaster(small_net(made_as=CROSS), device="cuda") for _ in range(2))
    graph.warm_up()
    for said in (thought(), None, guidance(), thought(200, 70), thought(valid_for_s=1e-9), guidance(1)):
        a, b = (answer(f, pictures, said) for f in (graph, eager))
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-4)
