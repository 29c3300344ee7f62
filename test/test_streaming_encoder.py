"""Streaming a causal encoder: the numbers of the full pass, for ever, and one chain per phase of the camera."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thinkjepa_ros.jepa.encoder import Encoder, EncoderConfig
from thinkjepa_ros.jepa.streaming import PhaseStreams, StreamingEncoder

STEP = 100_000_000  # ns


def causal(**config: object) -> Encoder:
    torch.manual_seed(0)
    values = {"width": 24, "depth": 3, "heads": 2, "attention": "causal", "window": 3, "patch_size": 8, **config}
    encoder = Encoder(EncoderConfig(**values))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder.eval().requires_grad_(False)


def video(frames: int, batch: int = 1, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, 16, 24, 3), dtype=torch.uint8, generator=g)


def streamed(stream: StreamingEncoder, clip: Tensor) -> Tensor:
    return torch.stack([stream.step(part) for part in clip.split(stream.encoder.config.tubelet, 1)], 1)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_streaming_equals_the_full_pass(window: int, tubelet: int) -> None:
    encoder = causal(window=window, tubelet=tubelet).double()
    clip = video(9 * tubelet, batch=2)
    with torch.inference_mode():
        full = encoder(clip)
    torch.testing.assert_close(streamed(StreamingEncoder(encoder), clip), full, atol=1e-12, rtol=0)
    single = causal(window=window, tubelet=tubelet)
    torch.testing.assert_close(streamed(StreamingEncoder(single), clip).double(), full, atol=1e-5, rtol=0)


def test_streaming_in_half_precision_is_as_close_as_the_full_pass() -> None:
    encoder, clip = causal().bfloat16(), video(9)
    with torch.inference_mode():
        exact = causal().double()(clip)
        error = (encoder(clip).double() - exact).abs().mean()
    assert (streamed(StreamingEncoder(encoder), clip).double() - exact).abs().mean() < 1.5 * error


def reach(encoder: Encoder) -> int:
    """How many tubelets a latent depends on."""
    return encoder.config.depth * (encoder.config.window - 1) + 1


def assert_no_drift(stream: StreamingEncoder, clip: Tensor) -> None:
    """The newest latents equal those of a full pass that begins where their dependence begins."""
    got = streamed(stream, clip)
    with torch.inference_mode():
        wanted = stream.encoder(clip)
    first = reach(stream.encoder) - 1
    torch.testing.assert_close(got[:, first:], wanted[:, first:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("start", [250, 2_000, 99_990, 10**9])
def test_the_window_slides_without_drift(start: int) -> None:
    stream = StreamingEncoder(causal())
    streamed(stream, video(20))
    stream._steps = start  # as if it had run so long
    stream._ahead = None
    assert_no_drift(stream, video(30, seed=2))


def test_thousands_of_real_steps_leave_no_trace() -> None:
    stream = StreamingEncoder(causal(depth=2, width=12))
    clip = video(500)
    for _ in range(6):
        streamed(stream, clip)
    assert stream.steps == 3000
    assert_no_drift(stream, video(20, seed=2))


@pytest.mark.slow
def test_a_hundred_thousand_real_steps_leave_no_trace() -> None:
    stream = StreamingEncoder(causal(depth=2, width=12))
    clip = video(1000)
    for _ in range(100):
        streamed(stream, clip)
    assert stream.steps == 100_000
    assert_no_drift(stream, video(20, seed=2))


def test_memory_is_bounded_by_the_window() -> None:
    stream = StreamingEncoder(causal())
    streamed(stream, video(2))
    held = [x.data_ptr() for pair in stream._kept for x in pair]
    streamed(stream, video(40))
    assert [x.data_ptr() for pair in stream._kept for x in pair] == held
    assert all(x.shape == (1, 2, 2 * 6, 12) for pair in stream._kept for x in pair)


def test_after_a_reset_nothing_of_the_past_is_left() -> None:
    encoder, clip = causal(), video(6)
    stream = StreamingEncoder(encoder)
    streamed(stream, video(300, seed=3))
    stream.reset()
    assert stream.steps == 0
    assert torch.equal(streamed(stream, clip), streamed(StreamingEncoder(encoder), clip))
    stream.reset()
    assert stream.step(torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)).shape == (2, 1, 24)  # another size


def test_what_a_latent_depends_on_ends_where_the_window_says() -> None:
    encoder = causal()
    one, other = video(12), video(12)
    other[:, 0] = 0
    a, b = streamed(StreamingEncoder(encoder), one), streamed(StreamingEncoder(encoder), other)
    assert torch.equal(a[:, reach(encoder) :], b[:, reach(encoder) :])
    assert not torch.equal(a[:, reach(encoder) - 1], b[:, reach(encoder) - 1])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"attention": "full", "window": 0}, "'full' attention cannot be streamed"),
        ({"attention": "frame", "window": 0}, "'frame' attention cannot be streamed"),
        ({"rope": "tiled"}, "not relative"),
        ({"window": 0}, "without a window"),
    ],
)
def test_encoders_that_cannot_be_streamed_are_refused(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StreamingEncoder(causal(**config))
    with pytest.raises(ValueError, match=words):
        PhaseStreams(causal(**config), STEP)


def test_a_step_takes_one_tubelet_of_the_size_of_the_first() -> None:
    stream = StreamingEncoder(causal())
    with pytest.raises(ValueError, match="a step takes one"):
        stream.step(video(2))
    first = stream.step(video(1))
    with pytest.raises(ValueError, match="changed to"):
        stream.step(video(1)[:, :, :8])
    with pytest.raises(ValueError, match="changed to"):
        stream.step(video(1, batch=2))
    stream.step(video(1, seed=5))
    assert stream.steps == 2 and first.shape == (1, 6, 24)  # what was refused did not count


# --- phases ---


def test_each_phase_of_a_fast_camera_is_a_chain_of_its_own() -> None:
    """30 Hz on a grid of 0.1 s, stamps off by up to 3 ms: every frame continues the one three frames before."""
    encoder, clip = causal(), video(21)
    streams = PhaseStreams(encoder, STEP)
    jitter = [0, 3, -2, 1, -3, 2, 0] * 3
    got = []
    for i, off in enumerate(jitter):
        got.append(streams.step(round(i * STEP / 3) + off * 1_000_000, clip[:, i : i + 1]))
        assert len(streams) == min(i + 1, 3)
    for phase in range(3):
        with torch.inference_mode():
            wanted = encoder(clip[:, phase::3])
        torch.testing.assert_close(torch.stack(got[phase::3], 1), wanted, atol=1e-5, rtol=0)


def test_a_missed_frame_ends_its_chain_only() -> None:
    encoder, clip = causal(), video(12)
    streams = PhaseStreams(encoder, STEP)
    lone = StreamingEncoder(encoder).step(clip[:, 7:8])
    for i in range(12):
        if i == 4:
            continue
        got = streams.step(round(i * STEP / 3), clip[:, i : i + 1])
        if i == 7:
            assert torch.equal(got, lone)  # its predecessor, frame 4, is missing: it begins anew
        if i == 8:
            torch.testing.assert_close(got, encoder(clip[:, [2, 5, 8]])[:, -1], atol=1e-5, rtol=0)
    assert len(streams) == 3


def test_of_two_chains_that_could_go_on_the_nearer_one_does() -> None:
    encoder, clip = causal(), video(3)
    streams = PhaseStreams(encoder, STEP)
    for stamp_ms, i in ((0, 0), (20, 1), (112, 2)):  # 12 ms late for the first, 8 ms early for the second
        got = streams.step(stamp_ms * 1_000_000, clip[:, i : i + 1])
    with torch.inference_mode():
        torch.testing.assert_close(got, encoder(clip[:, 1:])[:, -1], atol=1e-5, rtol=0)


def test_a_jump_of_time_resets_and_the_same_stamp_does_not() -> None:
    encoder, clip = causal(), video(4)
    streams = PhaseStreams(encoder, STEP)
    alone = [StreamingEncoder(encoder).step(clip[:, i : i + 1]) for i in range(4)]
    for i in range(3):
        last = streams.step(10 * STEP + i * STEP, clip[:, i : i + 1])
    assert not torch.equal(last, alone[2])
    assert torch.equal(streams.step(12 * STEP, clip[:, 3:]), last)
    assert torch.equal(streams.step(11 * STEP, clip[:, 3:]), alone[3]) and len(streams) == 1  # backwards
    assert torch.equal(streams.step(90 * STEP, clip[:, 2:3]), alone[2]) and len(streams) == 1  # a gap
    streams.reset()
    assert len(streams) == 0
    assert torch.equal(streams.step(91 * STEP, clip[:, 1:2]), alone[1])


def test_phases_beyond_the_limit_are_left_out_and_starve_nobody() -> None:
    encoder, clip = causal(), video(24)
    streams = PhaseStreams(encoder, STEP, chains=2)
    got = [streams.step(round(i * STEP / 4), clip[:, i : i + 1]) for i in range(24)]
    assert [x is None for x in got] == [False, False, True, True] * 6
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack(got[::4], 1), encoder(clip[:, ::4]), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**9), 10**9), max_size=40))
def test_whatever_stamps_come_chains_are_bounded_and_a_step_apart(deltas: list[int]) -> None:
    streams = PhaseStreams(causal(depth=1, width=12), STEP, chains=3)
    image, now = video(1), 0
    for delta in deltas:
        now += delta
        streams.step(now, image)
        assert len(streams) <= 3
        assert all(now - STEP * 9 // 8 <= chain.stamp_ns <= now for chain in streams._chains)


def test_settings_that_make_no_sense_are_refused() -> None:
    for step, tolerance, chains in ((0, None, 3), (STEP, STEP, 3), (STEP, -1, 3), (STEP, None, 0)):
        with pytest.raises(ValueError, match="make no sense"):
            PhaseStreams(causal(), step, tolerance, chains)
