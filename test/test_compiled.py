"""Fixed shapes made fast: what cannot be had is done without and said; a graph gives what eager gives."""

import numpy as np
import pytest
import torch
from jepa_kit import config, fill, forecaster, guidance, images, small_net

from thinkjepa_ros.jepa import precision
from thinkjepa_ros.jepa.compiled import prepare
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.jepa.step import Foresee, Look, Numbers

WAYS = {
    "single": config(),
    "clip": config({"tubelet": 2, "attention": "full", "rope": "tiled"}, {"context_steps": 2}, clip=True),
    "attentive": config(readout="attentive"),
}


def test_on_a_processor_a_function_stays_as_it_is() -> None:
    def double(x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)

    made = prepare(double, (torch.ones(3),))
    assert made.call is double and made.words == "eager" and not made.captured


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why() -> None:
    def asks_back(x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + 1 if x.sum().item() > 0 else x - 1,)

    made = prepare(asks_back, (torch.ones(3),), compile=True)
    assert made.words.startswith("not compiled (") and made.words.endswith("), eager")
    assert made.call(torch.ones(3))[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("made", WAYS.values(), ids=WAYS)
def test_guidance_of_weight_zero_is_bit_identical_to_none_in_the_static_step(made) -> None:
    """A graph has one path: it computes guidance always and relies on this."""
    net = small_net(made_as=made)
    p, e = net.config.predictor, net.config.encoder
    g = torch.Generator().manual_seed(0)
    shapes = ((e.grid**2, e.width), (p.latents, p.pooled**2, e.width), (p.latents, 5, 3))
    window = [torch.randn(shape, generator=g) for shape in shapes]
    anchor, expected = torch.full((5, 3), float("nan")), torch.full((p.pooled**2, e.width), float("nan"))
    states, there = torch.randn(1, 3, 2, 20), torch.ones(1, 2, dtype=torch.bool)
    step = Foresee(net)
    plain = step(*window, anchor, expected)
    for parts in (
        (states, there, torch.zeros(1)),
        (torch.zeros_like(states), ~there, torch.zeros(1)),
        (torch.full_like(states, float("nan")), ~there, torch.zeros(1)),
    ):
        signals = step.ready(Payload.pooled(*parts))
        for a, b in zip(plain, step(*window, anchor, expected, *signals), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
    numbers = Numbers.of(plain[0], net.config.horizon, 5)
    assert numbers.positions.shape == (6, 5, 3) and numbers.seen.shape == (p.latents, 5, 3)
    assert torch.equal(numbers.present, numbers.seen[-1]) and bool(numbers.surprise.isnan())


def test_a_step_never_asks_the_device_back() -> None:
    """Tensors without values: any `.item()`, `.cpu()` or branch on a value raises."""
    for made in WAYS.values():
        with torch.device("meta"):
            net = small_net(made_as=made)
            e, p = made.encoder, made.predictor
            frames = made.frames if made.clip else 1
            latents, pooled, joints = Look(net)(torch.zeros(frames, 64, 64, 3, dtype=torch.uint8))
            k = p.latents if made.clip else 1
            assert latents.shape == (k, e.grid**2, e.width) and joints.shape == (k, 5, 3)
            assert pooled.shape == (k, p.pooled**2, e.width)
            window = latents[-1], pooled.expand(p.latents, -1, -1), joints.expand(p.latents, -1, -1)
            payload = (torch.zeros(1, 3, 2, 20), torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1))
            step = Foresee(net)
            flat, _ = step(
                *window, torch.zeros(5, 3), torch.zeros(p.pooled**2, e.width), *step.ready(Payload.pooled(*payload))
            )
            assert flat.shape == (6 * 5 * 4 + 15 + p.latents * 15 + 1,)


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("made", WAYS.values(), ids=WAYS)
def test_a_graph_gives_what_eager_gives(made, dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    choice = precision.Choice(dtype, "the test")
    graph = forecaster(small_net(made_as=made), device="cuda", choice=choice)
    eager = forecaster(small_net(made_as=made), device="cuda", choice=choice)
    graph.warm_up()
    assert graph.words.count("CUDA graph") == 2 and eager.words.count("eager") == 2
    thought = guidance(stamp_ns=(graph.window + 1) * graph.step_ns)
    for k, picture in enumerate(images(graph._net, graph.window + 4)):
        anchor = np.full((5, 3), 0.3, np.float32) if k % 2 else None
        results = []
        for f in (graph, eager):
            f.guide(thought)
            fill(f, [picture], k)
            results.append(f.forecast(anchor=anchor) if k + 1 >= f.window else None)
        a, b = results
        if a is not None and b is not None:
            assert (a.guidance_weight > 0) == (k > graph.window) and a.guidance_weight == b.guidance_weight
            assert np.allclose(a.positions, b.positions, atol=1e-4) and np.allclose(a.sigma, b.sigma, atol=1e-4)
            assert a.surprise == pytest.approx(b.surprise, abs=1e-2, nan_ok=True)


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_as_it_is_and_says_why() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def asks_back(x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + 1 if x.sum().item() > 0 else x - 1,)

    made = prepare(asks_back, (torch.ones(3, device="cuda"),))
    assert "no CUDA graph (" in made.words and not made.captured
    assert made.call(torch.ones(3, device="cuda"))[0].tolist() == [2, 2, 2]
