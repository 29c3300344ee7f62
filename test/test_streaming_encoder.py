"""Streaming a causal encoder: the numbers of the full pass, for ever."""

import pytest
import torch
from torch import Tensor

from thinkjepa_ros.jepa.encoder import Encoder, EncoderConfig
from thinkjepa_ros.jepa.streaming import StreamingEncoder


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
