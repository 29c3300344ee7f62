"""Guidance modules: the formulas, what counts and what does not, and which layer goes where."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.jepa.guidance import Cross, Film, Guide, Payload, PublishedFilm, layer_of_each_block, spread

WIDTH, BLOCKS, LAYERS = 12, 3, 2


def guide(kind: str, which: Any = "spread") -> Guide:
    torch.manual_seed(0)
    widths = (5, 7)
    made: Guide
    if kind.endswith("cross"):
        made = Cross(BLOCKS, WIDTH, widths, which, heads=2, published=kind.startswith("published"))
    elif kind.startswith("published"):
        made = PublishedFilm(BLOCKS, WIDTH, widths, which, kind.removeprefix("published "), hidden=8)  # type: ignore
    else:
        made = Film(BLOCKS, WIDTH, widths, which, kind, hidden=8)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made.requires_grad_(False)


KINDS = ("film", "adaln", "cross", "published film", "published adaln", "published cross")


def payload(batch: int = 2, seed: int = 1, masks: bool = True) -> Payload:
    g = torch.Generator().manual_seed(seed)
    made = Payload(torch.randn(batch, LAYERS, 4, 5, generator=g), torch.randn(batch, LAYERS, 3, 7, generator=g))
    if masks:
        prompt, generated = torch.ones(batch, LAYERS, 4), torch.ones(batch, LAYERS, 3)
        prompt[:, :, 2:], generated[:, 0, 1:] = 0, 0
        made = made._replace(prompt_mask=prompt.bool(), generated_mask=generated.bool())
    return made


def run(net: Guide, x: torch.Tensor, p: Payload) -> torch.Tensor:
    """The stream injected before every block, one after the other."""
    for i, signal in enumerate(net.prepare(p)):
        x = net.inject(i, x, signal)
    return x


# --- layer maps ---


def test_layers_are_spread_from_first_to_last() -> None:
    assert [spread(i, 12, 8) for i in range(12)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7]
    assert spread(0, 1, 4) == 3


def test_every_map_names_a_layer_per_block() -> None:
    assert layer_of_each_block("index", 5, 3) == [0, 1, 2, 3, 3]  # 3 of 3: none
    assert layer_of_each_block("last", 3, 8) == [7, 7, 7]
    assert layer_of_each_block((2, 0, 1), 3, 3) == [2, 0, 1]
    for bad in ("first", (0, 1), (0, 1, 3), (0, 1, -1)):
        with pytest.raises(ValueError, match="layer map"):
            layer_of_each_block(bad, 3, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("which", "wanted"), [("last", [1, 1, 1]), ((1, 0, 1), [1, 0, 1]), ("spread", [0, 0, 1])])
def test_a_block_hears_its_own_layer_only(kind: str, which: Any, wanted: list[int]) -> None:
    net, x, p = guide(kind, which), torch.randn(2, 6, WIDTH), payload()
    signals = net.prepare(p)
    for layer in range(LAYERS):
        other = p.prompt.clone()  # type: ignore[union-attr]
        other[:, layer] += 1
        changed = net.prepare(p._replace(prompt=other))
        for i in range(BLOCKS):
            same = torch.equal(net.inject(i, x, signals[i]), net.inject(i, x, changed[i]))
            assert same == (wanted[i] != layer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_beyond_the_last_layer(kind: str) -> None:
    """Ours leaves the stream; the published modules answer to an empty summary, whatever was said."""
    net, x = guide(kind, "index"), torch.randn(2, 6, WIDTH)
    got = [net.inject(2, x, net.prepare(payload(seed=s))[2]) for s in (1, 2)]
    assert torch.equal(*got)
    assert torch.equal(got[0], x) == (not kind.startswith("published"))


# --- formulas ---


@pytest.mark.parametrize("kind", ["film", "adaln", "published film", "published adaln"])
def test_scale_and_shift_match_the_formula_written_out(kind: str) -> None:
    net, p = guide(kind), payload(1)._replace(weight=torch.tensor([0.6]))
    x = torch.randn(1, 6, WIDTH)
    normal = torch.nn.functional.layer_norm
    for block, layer in enumerate((0, 0, 1)):
        o = net.project[0].weight @ p.prompt[0, layer][p.prompt_mask[0, layer]].mean(0)  # type: ignore
        n = net.project[1].weight @ p.generated[0, layer][p.generated_mask[0, layer]].mean(0)  # type: ignore
        s = normal(torch.cat((o, n, (o - n).abs(), o * n)), (4 * WIDTH,))
        if isinstance(net, PublishedFilm):
            s = net.fc1_weight[block] @ (s * net.norm_weight[block] + net.norm_bias[block]) + net.fc1_bias[block]
            h = net.fc2_weight[block] @ torch.nn.functional.gelu(s) + net.fc2_bias[block]
        else:
            assert isinstance(net, Film)
            h = net.fc2(torch.nn.functional.gelu(net.fc1(s * net.norm.weight + net.norm.bias)))
        scale, shift = (h * torch.tanh(net.gate[block]) * 0.6).chunk(2)
        wanted = {
            "film": x * (1 + scale) + shift,
            "adaln": x + normal(x, (WIDTH,)) * scale + shift,
        }.get(kind.removeprefix("published "))
        if isinstance(net, PublishedFilm) and net.prenorm is not None:
            wanted = net.prenorm[block](x) * (1 + scale) + shift
        torch.testing.assert_close(net.inject(block, x, net.prepare(p)[block]), wanted, atol=1e-5, rtol=1e-5)


def test_cross_attention_matches_the_attention_of_torch() -> None:
    net, p = guide("cross"), payload(1)
    assert isinstance(net, Cross)
    x = torch.randn(1, 6, WIDTH)
    for block, layer in enumerate((0, 0, 1)):
        reader: Any = net.readers[block]
        plain = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        with torch.no_grad():
            plain.in_proj_weight.copy_(torch.cat((reader.q.weight, reader.kv.weight)))
            plain.in_proj_bias.copy_(torch.cat((reader.q.bias, reader.kv.bias)))
            plain.out_proj.load_state_dict(reader.out.state_dict())
        old = net.project[0](p.prompt[:, layer][p.prompt_mask[:, layer]])  # type: ignore[index]
        new = net.project[1](p.generated[:, layer][p.generated_mask[:, layer]])  # type: ignore[index]
        memory = torch.cat((old, new))[None]
        wanted = x + plain(reader.norm(x), memory, memory)[0] * net.gate[block].tanh()
        torch.testing.assert_close(net.inject(block, x, net.prepare(p)[block]), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["film", "adaln", "published film", "published adaln"])
def test_pooling_at_the_thinker_equals_pooling_here(kind: str) -> None:
    net = guide(kind)
    net.project[1] = torch.nn.Linear(5, WIDTH, bias=False)  # a pyramid has one width
    tokens, p = torch.randn(2, LAYERS, 3, 5), payload()
    whole = p._replace(generated=tokens)
    prompt = (p.prompt * p.prompt_mask[..., None]).sum(2) / p.prompt_mask.sum(2)[..., None]  # type: ignore
    new = (tokens * p.generated_mask[..., None]).sum(2) / p.generated_mask.sum(2)[..., None]  # type: ignore
    present, weight = torch.ones(2, 2, dtype=torch.bool), torch.ones(2)
    short = Payload.pooled(torch.stack((prompt, new), 2), present, weight)
    x = torch.randn(2, 6, WIDTH)
    torch.testing.assert_close(run(net, x, short), run(net, x, whole), atol=1e-5, rtol=1e-5)


# --- what counts ---


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mask_leaves_out_may_hold_anything(kind: str) -> None:
    net, x, p = guide(kind), torch.randn(2, 6, WIDTH), payload()
    dirty = []
    for states, mask in ((p.prompt, p.prompt_mask), (p.generated, p.generated_mask)):
        dirty.append(torch.where(mask[..., None], states, float("nan")))  # type: ignore
    assert torch.equal(run(net, x, p._replace(prompt=dirty[0], generated=dirty[1])), run(net, x, p))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_not_there_counts_as_nothing(kind: str) -> None:
    net, x, p = guide(kind), torch.randn(2, 6, WIDTH), payload()
    masked = p._replace(generated_mask=torch.zeros_like(p.generated_mask))  # type: ignore[arg-type]
    without = p._replace(generated=None, generated_mask=None)
    torch.testing.assert_close(run(net, x, masked), run(net, x, without), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", [True, False])
def test_rows_of_weight_zero_are_left_alone_bit_for_bit(kind: str, masks: bool) -> None:
    net, x, p = guide(kind), torch.randn(2, 6, WIDTH), payload(masks=masks)
    p.prompt[0] = float("inf")  # type: ignore[index]
    got = run(net, x, p._replace(weight=torch.tensor([0.0, 1.0])))
    assert torch.equal(got[0], x[0]) and got.isfinite().all() and not torch.allclose(got[1], x[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["film", "adaln", "cross", "published film", "published cross"])
def test_guidance_fades_continuously_to_nothing(kind: str) -> None:
    net, x = guide(kind), torch.randn(1, 6, WIDTH)
    steps = [1.0, 0.5, 0.1, 1e-2, 1e-4, 0.0]
    away = [float((run(net, x, payload(1)._replace(weight=torch.tensor([w]))) - x).abs().max()) for w in steps]
    assert all(a > b for a, b in itertools.pairwise(away)) and away[-2] < 1e-2 and away[-1] == 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**16), st.integers(1, 4), st.sampled_from(("spread", "index", "last")))
def test_guidance_never_crosses_rows(kind: str, seed: int, batch: int, which: str) -> None:
    net, g = guide(kind, which), torch.Generator().manual_seed(seed)
    masks = [torch.rand(batch, LAYERS, s, generator=g) < 0.4 for s in (4, 3)]
    weight = (torch.rand(batch, generator=g) - 0.3).clamp(min=0)
    p = payload(batch, seed)._replace(prompt_mask=masks[0], generated_mask=masks[1], weight=weight)
    x = torch.randn(batch, 5, WIDTH, generator=g)
    whole = run(net, x, p)
    assert whole.isfinite().all()
    for i in range(batch):
        alone = Payload(*(None if part is None else part[i : i + 1] for part in p))
        torch.testing.assert_close(run(net, x[i : i + 1], alone)[0], whole[i], atol=1e-5, rtol=1e-5)
        if weight[i] == 0 or not (masks[0][i].any() or masks[1][i].any()):
            assert torch.equal(whole[i], x[i])


@pytest.mark.parametrize("kind", ["film", "adaln", "cross"])
def test_a_closed_gate_can_be_learned_open(kind: str) -> None:
    net = guide(kind).requires_grad_(True)
    with torch.no_grad():
        net.gate.zero_()
    p = payload()._replace(weight=torch.tensor([1.0, 0.0]))
    p.prompt[1] = float("nan")  # type: ignore[index]
    run(net, torch.randn(2, 6, WIDTH), p).square().sum().backward()
    assert net.gate.grad is not None and net.gate.grad.isfinite().all() and net.gate.grad.abs().min() > 0
    for parameter in net.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_a_payload_that_does_not_fit_is_refused() -> None:
    net, p = guide("film"), payload()
    with pytest.raises(ValueError, match=r"\[B, L, S, D\]"):
        net.prepare(p._replace(prompt=p.prompt[0]))  # type: ignore[index]
    with pytest.raises(ValueError, match="with"):
        net.prepare(p._replace(prompt_mask=p.prompt_mask[:, :1]))  # type: ignore[index]
    with pytest.raises(ValueError, match="rows and layers"):
        net.prepare(p._replace(prompt=p.prompt[:, :1], prompt_mask=None))  # type: ignore[index]
    with pytest.raises(ValueError, match="neither stream"):
        net.prepare(Payload(None, None))
