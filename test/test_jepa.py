"""The network: causal, per sample, deterministic, and nothing when there is no guidance."""

import math

import pytest
import torch

from thinkjepa_ros.jepa import layers, model, rope
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.guidance import Film, Payload, modulate, spread
from thinkjepa_ros.jepa.predictor import Predictor, PredictorConfig
from thinkjepa_ros.train.mini import canonical_camera

JOINTS = tuple(f"right_{i}" for i in range(5))


def small_net(seed: int = 0, gate: float = 0.7) -> model.ForecastNet:
    """A real network, small, with open gates and no zero-initialised ends."""
    torch.manual_seed(seed)
    config = model.ModelConfig(
        EncoderConfig(image_size=64, patch_size=16, width=48, depth=2, heads=2),
        PredictorConfig(
            context=4, tubelets=3, tubelet_steps=2, pooled=2, width=48, depth=2, heads=2, guide_layers=3, guide_width=20
        ),
        JOINTS,
        canonical_camera(64),
    )
    net = model.ForecastNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        assert net.predictor.film is not None
        net.predictor.film.gate.fill_(gate)
    return net.eval().requires_grad_(False)


def inputs(
    net: model.ForecastNet, weight: tuple[float, ...] = (1.0, 0.4, 0.0)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Payload]:
    p, e, batch = net.config.predictor, net.config.encoder, len(weight)
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, p.context - 1, p.pooled**2, e.width, generator=g),
        torch.randn(batch, e.grid**2, e.width, generator=g),
        torch.randn(batch, p.context, len(JOINTS), 3, generator=g),
        Payload.pooled(
            torch.randn(batch, p.guide_layers, 2, p.guide_width, generator=g),
            torch.ones(batch, 2, dtype=torch.bool),
            torch.tensor(weight),
        ),
    )


# --- rotary positions ---


def test_rotary_scores_depend_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 12, 32, dtype=torch.float64), torch.randn(1, 12, 32, dtype=torch.float64)
    positions = rope.grid(torch.arange(3), 2, 2)

    def scores(shift: torch.Tensor) -> torch.Tensor:
        cos, sin = (part.double() for part in rope.table(positions + shift, 32))
        return rope.rotate(q, (cos, sin)) @ rope.rotate(k, (cos, sin)).mT

    moved = scores(torch.tensor([5.0, -2.0, 3.0]))
    assert torch.allclose(scores(torch.zeros(3)), moved, atol=1e-5)
    assert not torch.allclose(moved, q @ k.mT, atol=1e-2)  # it does encode something


def test_rotation_equals_the_formula_of_the_paper_pair_by_pair() -> None:
    head, position = 20, torch.tensor([[2.0, 5.0, 3.0]])
    x = torch.randn(1, head)
    got = rope.rotate(x, rope.table(position, head))[0]
    pairs = head // 6
    for axis in range(3):
        for j in range(pairs):
            angle = float(position[0, axis]) * 10000 ** (-j / pairs)
            i = axis * pairs + j
            a, b = float(x[0, i]), float(x[0, i + head // 2])
            assert float(got[i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
            assert float(got[i + head // 2]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)
    assert torch.equal(got[[9, 19]], x[0, [9, 19]])  # what is left over is not turned


def test_tiled_rotation_equals_the_published_form_element_by_element() -> None:
    """In the released weights element e of an axis turns by angle e modulo pairs, so a pair turns by two angles."""
    torch.manual_seed(0)
    head, position = 20, torch.tensor([[2.0, 5.0, 3.0]])
    pairs = head // 6
    interleaved = torch.randn(head)
    order = rope.half_split_order(1, head)
    got = torch.empty(head)
    got[order] = rope.rotate(interleaved[order][None], rope.table(position, head, "tiled"))[0]
    for axis in range(3):
        for e in range(2 * pairs):
            angle = float(position[0, axis]) * 10000 ** (-(e % pairs) / pairs)
            i = axis * 2 * pairs + e
            partner = -interleaved[i + 1] if e % 2 == 0 else interleaved[i - 1]
            wanted = float(interleaved[i]) * math.cos(angle) + float(partner) * math.sin(angle)
            assert float(got[i]) == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(got[6 * pairs :], interleaved[6 * pairs :])
    with pytest.raises(ValueError, match="rope form"):
        rope.table(position, head, "other")


# --- attention ---


@pytest.mark.parametrize("window", [None, 1, 2, 9])
def test_block_causal_attention_equals_a_mask(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (12, 18, 18))
    query, key = torch.arange(6, 18)[:, None] // 3, torch.arange(18)[None] // 3
    mask = (key <= query) & (key > query - (window or 99))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(layers.block_causal(q, k, v, 3, window), wanted, atol=1e-12)
    with pytest.raises(ValueError, match="whole blocks"):
        layers.block_causal(q, k, v, 5)


def test_a_block_gives_the_same_rows_when_only_the_last_are_asked_for() -> None:
    torch.manual_seed(0)
    block, x = layers.Block(24, 2).eval(), torch.randn(2, 10, 24)
    table = rope.table(rope.grid(torch.arange(10), 1, 1), 12)
    whole, (k, v) = block(x, table)
    part, (k2, v2) = block(x, table, only_from=7)
    assert torch.allclose(whole[:, 7:], part, atol=1e-6) and torch.equal(k, k2) and torch.equal(v, v2)


# --- guidance ---


def test_missing_guidance_zero_weight_and_closed_gate_are_bit_identical_to_unguided() -> None:
    net = small_net()
    past, now, poses, payload = inputs(net, (0.0, 0.0, 0.0))
    plain = net.forecast(past, now, poses)
    zero = net.forecast(past, now, poses, payload)
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))
    net.predictor.film.gate.zero_()
    closed = net.forecast(past, now, poses, payload._replace(weight=torch.ones(3)))
    assert all(torch.equal(a, b) for a, b in zip(plain, closed, strict=True))


def test_open_gates_let_guidance_change_the_forecast() -> None:
    net = small_net()
    past, now, poses, payload = inputs(net, (1.0, 1.0, 1.0))
    plain = net.forecast(past, now, poses)[0]
    assert (net.forecast(past, now, poses, payload)[0] - plain).abs().max() > 1e-4


def test_every_sample_sees_its_own_guidance_only() -> None:
    net = small_net()
    past, now, poses, payload = inputs(net)
    whole = net.forecast(past, now, poses, payload)
    for i in range(3):
        row = slice(i, i + 1)
        own = Payload(*(part if part is None else part[row] for part in payload))
        alone = net.forecast(past[row], now[row], poses[row], own)
        for a, b in zip(whole, alone, strict=True):
            assert torch.allclose(a[i : i + 1], b, atol=1e-5)


def test_a_stream_that_is_not_present_counts_as_zeros_whatever_it_holds() -> None:
    film = small_net().predictor.film
    pyramid = torch.randn(1, 3, 2, 20)
    zeroed = pyramid.clone()
    zeroed[:, :, 1] = 0
    one = torch.ones(1)
    both = torch.ones(1, 2, dtype=torch.bool)
    only = torch.tensor([[True, False]])
    assert torch.equal(film(Payload.pooled(pyramid, only, one)), film(Payload.pooled(zeroed, both, one)))
    pyramid[:, :, 1] = float("nan")
    assert film(Payload.pooled(pyramid, only, one)).isfinite().all()


def test_layers_are_spread_from_first_to_last() -> None:
    assert [spread(i, 12, 8) for i in range(12)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7]
    assert spread(0, 1, 4) == 3


def test_film_matches_the_formula_written_out() -> None:
    torch.manual_seed(0)
    film = Film(blocks=2, width=8, layers=2, guide_width=5, hidden=16)
    torch.nn.init.normal_(film.gate)
    pyramid, weight = torch.randn(1, 2, 2, 5), torch.tensor([0.6])
    for block in range(2):
        o = film.project[0].weight @ pyramid[0, block, 0]
        n = film.project[1].weight @ pyramid[0, block, 1]
        h = film.fc2(torch.nn.functional.gelu(film.fc1(film.norm(torch.cat((o, n, (o - n).abs(), o * n))))))
        scale, shift = (h * torch.tanh(film.gate[block]) * 0.6).chunk(2)
        x = torch.randn(1, 3, 8)
        got = modulate(x, film(Payload.pooled(pyramid, torch.ones(1, 2, dtype=torch.bool), weight))[block])
        assert torch.allclose(got, x * (1 + scale) + shift, atol=1e-6)


def test_predictor_equals_one_masked_attention_over_all_tokens() -> None:
    """The two-stream layout is the plain block with a mask that hides queries from the context."""
    torch.manual_seed(0)
    p = Predictor(
        PredictorConfig(context=3, tubelets=2, tubelet_steps=2, pooled=2, width=24, depth=2, heads=2), 4, 12
    ).eval()
    past, now = torch.randn(1, 2, 4, 12), torch.randn(1, 16, 12)
    x = torch.cat((p.embed(torch.cat((past.flatten(1, 2), now), 1)), p.query.expand(1, 8, -1)), 1)
    cos, sin = torch.cat((p.context_cos, p.query_cos)), torch.cat((p.context_sin, p.query_sin))
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:24, 24:] = False
    for b in p.blocks:
        q, k, v = b.qkv(b.norm1(x)).view(1, 32, 3, 2, 12).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(
            rope.rotate(q, (cos, sin)), rope.rotate(k, (cos, sin)), v, attn_mask=mask
        )
        x = x + b.proj(y.transpose(1, 2).reshape(1, 32, 24))
        x = x + b.fc2(torch.nn.functional.gelu(b.fc1(b.norm2(x))))
    wanted = p.out(p.norm(x[:, 24:])).view(1, 2, 4, 12)
    assert torch.allclose(p(past, now), wanted, atol=1e-5)
