"""The masked predictors: equal to the formulas written out, per row, causal, and nothing without guidance."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_predictor import Oracle, Said, published_names

from thinkjepa_ros.jepa import layers, rope
from thinkjepa_ros.jepa.guidance import Payload, layer_of_each_block
from thinkjepa_ros.jepa.guided import GuidedConfig, GuidedPredictor
from thinkjepa_ros.jepa.predictor import Predictor, PredictorConfig

SMALL = GuidedConfig(
    latent_width=10, width=24, depth=3, heads=2, tokens=4, rows=2, columns=2, mask_tokens=2, mask_token=1,
    guide_widths=(7, 9), guide_hidden=6, published=True,
)  # fmt: skip
MODES = ("film", "adaln", "cross")


def build(config: GuidedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> GuidedPredictor:
    """Random everywhere, nothing left at zero or one."""
    torch.manual_seed(seed)
    net = GuidedPredictor(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.to(dtype).eval().requires_grad_(False)


def oracle(net: GuidedPredictor) -> Oracle:
    c = net.config
    w = {k: v.double() for k, v in published_names(net.state_dict(), c.heads, c.depth).items()}
    return Oracle(w, c.depth, c.heads, c.tokens, c.rows, c.columns, c.attention, c.positions, c.guide_mode,
                  c.published, c.mask_token, c.norm_eps)  # fmt: skip


def payload(batch: int, layers: int = 3, widths: tuple[int, int] = (7, 9), seed: int = 1, **changes: Any) -> Payload:
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(batch, layers, 5, widths[0], generator=g)
    new = torch.randn(batch, layers, 3, widths[1], generator=g)
    made = Payload(
        old,
        new,
        torch.rand(batch, layers, 5, generator=g) < 0.6,
        torch.rand(batch, layers, 3, generator=g) < 0.6,
        torch.linspace(1.0, 0.3, batch),
    )
    return made._replace(**changes)


def said(p: Payload) -> list[Said | None]:
    batch = len(p.prompt if p.prompt is not None else p.generated)  # type: ignore[arg-type]

    def one(part: torch.Tensor | None, row: int) -> torch.Tensor | None:
        return None if part is None else part[row].double()

    def mask(part: torch.Tensor | None, given: torch.Tensor | None, row: int) -> torch.Tensor:
        if given is not None:
            return given[row]
        return torch.ones(part.shape[1:3] if part is not None else (0, 0), dtype=torch.bool)

    weights = torch.ones(batch) if p.weight is None else p.weight
    return [
        Said(one(p.prompt, i), one(p.generated, i), mask(p.prompt, p.prompt_mask, i),
             mask(p.generated, p.generated_mask, i), float(weights[i]))
        for i in range(batch)
    ]  # fmt: skip


def layers_of(config: GuidedConfig, layers: int) -> list[int | None]:
    return [i if i < layers else None for i in layer_of_each_block(config.guide_map, config.depth, layers)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[GuidedConfig, int, int, dict[str, bool]]:
    """A configuration, the rows of the batch, the layers of the pyramid, and what the payload leaves out."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    depth, heads, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    positions = draw(st.sampled_from(("tiled", "interleaved", "table")))
    which: Any = draw(st.sampled_from(("spread", "index", "last", "list")))
    if which == "list":
        which = tuple(draw(st.lists(st.integers(0, layers - 1), min_size=depth, max_size=depth)))
    config = dataclasses.replace(
        SMALL, depth=depth, heads=heads, width=heads * draw(st.sampled_from((6, 8, 12, 14))), positions=positions,
        places=64 if positions == "table" else 0, tokens=rows * columns, rows=rows, columns=columns,
        attention=draw(st.sampled_from(("full", "causal", "two_stream"))), guide_map=which,
        guide_mode=draw(st.sampled_from(MODES)), published=draw(st.booleans()),
        norm_eps=draw(st.sampled_from((1e-6, 1e-2))),
    )  # fmt: skip
    missing = {name: draw(st.integers(0, 3)) == 0 for name in ("prompt", "generated", "prompt_mask", "weight")}
    return config, draw(st.integers(1, 3)), layers, missing


@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(0, 2**16), st.booleans())
def test_every_configuration_equals_the_formulas(
    situation: tuple[GuidedConfig, int, int, dict[str, bool]], seed: int, ranges: bool
) -> None:
    config, batch, layers, missing = situation
    net = build(config, seed, torch.float64)
    given_ = payload(batch, layers, seed=seed)
    given_ = given_._replace(**{name: None for name, gone in missing.items() if gone})
    g = torch.Generator().manual_seed(seed)
    context: Any
    targets: Any
    if ranges:
        context, targets = range(config.tokens, 3 * config.tokens), range(4 * config.tokens, 6 * config.tokens)
        places = torch.tensor(context).expand(batch, -1), torch.tensor(targets).expand(batch, -1)
    else:
        order = torch.stack([torch.randperm(6 * config.tokens, generator=g) for _ in range(batch)])
        context, targets = places = order[:, : 2 * config.tokens], order[:, 2 * config.tokens : 5 * config.tokens]
    x = torch.randn(batch, places[0].shape[1], 10, generator=g, dtype=torch.float64)
    got = net(x, context, targets, given_)
    empty = given_.prompt is None and given_.generated is None
    rows = [None] * batch if empty else said(given_)
    wanted = oracle(net)(x, *places, rows, layers_of(config, layers))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)  # the rotary table is float32


@pytest.mark.parametrize("attention", ["full", "causal", "two_stream"])
@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_say_nothing_are_bit_identical_to_unguided(mode: str, published: bool, attention: str) -> None:
    """Weight 0, nothing valid, no payload; whatever numbers stand where nothing counts."""
    net = build(dataclasses.replace(SMALL, guide_mode=mode, published=published, attention=attention))  # type: ignore
    x, context, targets = torch.randn(3, 8, 10), range(8), range(8, 16)
    plain = net(x, context, targets)
    mute = payload(3, weight=torch.tensor([0.0, 1.0, 1.0]))
    for mask in (mute.prompt_mask, mute.generated_mask):
        assert mask is not None
        mask[1] = False
    assert mute.prompt is not None and mute.generated is not None
    mute.prompt[:2], mute.generated[:2] = float("nan"), float("inf")
    got = net(x, context, targets, mute)
    assert torch.equal(got[:2], plain[:2])
    assert not torch.allclose(got[2], plain[2], atol=1e-3)
    assert torch.equal(net(x, context, targets, Payload(None, None)), plain)
    if not (mode == "adaln" and published):  # which normalises the stream even at a closed gate
        assert net.guide is not None
        net.guide.gate.zero_()
        assert torch.equal(net(x, context, targets, payload(3)), plain)


@pytest.mark.parametrize("attention", ["full", "causal", "two_stream"])
@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_a_batch_equals_the_row_alone_and_two_runs_agree(mode: str, attention: str) -> None:
    net = build(dataclasses.replace(SMALL, guide_mode=mode, attention=attention))  # type: ignore[arg-type]
    x, context, targets, p = torch.randn(3, 8, 10), range(8), range(8, 16), payload(3)
    whole = net(x, context, targets, p)
    assert torch.equal(whole, net(x, context, targets, p))
    for i in range(3):
        own = Payload(*(None if part is None else part[i : i + 1] for part in p))
        torch.testing.assert_close(net(x[i : i + 1], context, targets, own)[0], whole[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_ranges_and_tensors_of_the_same_places_agree(mode: str) -> None:
    for attention in ("full", "causal", "two_stream"):
        net = build(dataclasses.replace(SMALL, guide_mode=mode, attention=attention))  # type: ignore[arg-type]
        x, context, targets, p = torch.randn(2, 8, 10), range(8), range(12, 20), payload(2)
        wanted = net(x, context, targets, p)
        for rows in (None, 2):
            places = [torch.tensor(index) for index in (context, targets)]
            if rows:
                places = [p.expand(rows, -1) for p in places]
            torch.testing.assert_close(net(x, *places, p), wanted, atol=1e-5, rtol=1e-5)


def test_the_order_of_tokens_does_not_matter() -> None:
    for attention in ("full", "causal"):
        net = build(dataclasses.replace(SMALL, attention=attention))  # type: ignore[arg-type]
        x, p = torch.randn(1, 8, 10), payload(1)
        context, targets = torch.randperm(8), torch.randperm(8) + 8
        mixed = net(x[:, context], context, targets, p)
        wanted = net(x, range(8), range(8, 16), p)[:, targets - 8]
        torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-5)


# --- causality ---


def test_a_later_context_changes_no_earlier_target() -> None:
    """Tubelets 0 and 2 are seen, 1 and 3 asked for: what is seen in 2 reaches 3 and leaves 1 bit-identical."""
    net = build(dataclasses.replace(SMALL, attention="causal"))
    x = torch.randn(1, 8, 10)
    other = torch.cat((x[:, :4], torch.randn(1, 4, 10)), 1)
    seen, asked = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), torch.tensor([4, 5, 6, 7, 12, 13, 14, 15])
    a, b = net(x, seen, asked), net(other, seen, asked)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-3)


def test_in_whole_tubelets_a_later_context_changes_nothing_remembered_earlier() -> None:
    net = build(dataclasses.replace(SMALL, attention="causal"))
    x = torch.randn(1, 12, 10)
    other = torch.cat((x[:, :8], torch.randn(1, 4, 10)), 1)
    for (k, v), (k2, v2) in zip(*(net.remember(seen, range(12)).memories for seen in (x, other)), strict=True):
        assert torch.equal(k[:, :, :8], k2[:, :, :8]) and torch.equal(v[:, :, :8], v2[:, :, :8])
        assert not torch.allclose(v[:, :, 8:], v2[:, :, 8:], atol=1e-3)


def test_a_later_question_changes_no_earlier_answer() -> None:
    net = build(dataclasses.replace(SMALL, attention="causal"))
    memory = net.remember(torch.randn(1, 8, 10), range(8))
    one, two = net.predict(memory, range(8, 12)), net.predict(memory, range(8, 16))
    torch.testing.assert_close(one, two[:, :4], atol=1e-6, rtol=1e-6)


# --- a context read once ---


@pytest.mark.parametrize("attention", ["causal", "two_stream"])
@pytest.mark.parametrize("mode", MODES)
def test_a_remembered_context_gives_the_whole_pass(mode: str, attention: str) -> None:
    net = build(dataclasses.replace(SMALL, guide_mode=mode, attention=attention))  # type: ignore[arg-type]
    x, p = torch.randn(2, 8, 10), payload(2)
    memory = net.remember(x, range(8), p)
    for targets in (range(8, 16), range(12, 16), range(8, 12)):
        torch.testing.assert_close(net.predict(memory, targets), net(x, range(8), targets, p), atol=1e-6, rtol=1e-6)
        explicit = net(x, torch.arange(8), torch.tensor(targets), p)
        torch.testing.assert_close(net.predict(memory, targets), explicit, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_remembered_is_refused() -> None:
    x = torch.randn(1, 8, 10)
    with pytest.raises(ValueError, match="'full'"):
        build(SMALL).remember(x, range(8))
    causal = build(dataclasses.replace(SMALL, attention="causal"))
    with pytest.raises(ValueError, match="whole tubelets"):
        causal.remember(x, range(1, 9))
    with pytest.raises(ValueError, match="whole tubelets"):
        causal.remember(x, torch.arange(8))
    with pytest.raises(ValueError, match="after the context"):
        causal.predict(causal.remember(x, range(4, 12)), range(0, 4))
    with pytest.raises(ValueError, match="8 tokens and 4 places"):
        causal(x, range(4), range(4, 8))
    with pytest.raises(ValueError, match="without guidance"):
        build(dataclasses.replace(SMALL, guide_widths=(0, 0)))(x, range(8), range(8, 12), payload(1))


def test_rotary_tables_are_made_once_per_layout() -> None:
    net = build(SMALL)
    x = torch.randn(1, 8, 10)
    net(x, range(8), range(8, 16))
    tables = dict(net._ropes)
    net(x, range(8), range(8, 16))
    assert all(net._ropes[key] is table for key, table in tables.items()) and len(tables) == 2
    for i in range(100):  # a stream of ever-changing layouts does not fill the memory
        net(x, range(8), range(8 + i, 16 + i))
    assert len(net._ropes) <= 16


# --- sizes and configurations ---

PUBLISHED = {"mask_tokens": 2, "mask_token": 1, "guide_widths": (2048, 2048), "published": True, "heads": 6}


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (PUBLISHED, 37_863_820),
        ({**PUBLISHED, "guide_mode": "adaln"}, 37_873_036),
        ({**PUBLISHED, "guide_mode": "cross"}, 30_761_356),
        ({"mask_tokens": 2}, 22_082_944),
        ({"mask_tokens": 1}, 22_082_560),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(changes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        net = GuidedPredictor(GuidedConfig(**changes))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": "half"}, "attention"),
        ({"positions": "sine"}, "positions"),
        ({"guide_mode": "add"}, "guide_mode"),
        ({"depth": 0}, "depth"),
        ({"mask_token": 1}, "mask_token"),
        ({"places": 4}, "places"),
        ({"guide_widths": (4, 0)}, "guide_widths"),
        ({"guide_map": (0, 1)}, "guide_map"),
        ({"guide_map": "most"}, "layer map"),
        ({"norm_eps": 0}, "norm_eps"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GuidedConfig(**changes)


def test_lists_of_json_are_taken_as_tuples() -> None:
    config = GuidedConfig(depth=2, guide_map=[0, 1], guide_widths=[4, 4])  # type: ignore[arg-type]
    assert config.guide_map == (0, 1) and config.guide_widths == (4, 4)
    assert PredictorConfig(depth=2, guide_map=[0, 1], guide_layers=2, guide_width=4).guide_map == (0, 1)


# --- our own layout ---


def own(seed: int = 0, **changes: Any) -> Predictor:
    torch.manual_seed(seed)
    config = PredictorConfig(
        **{"context": 3, "tubelets": 2, "tubelet_steps": 2, "pooled": 2, "width": 24, "depth": 2, "heads": 2,
           "guide_layers": 3, "guide_width": 20, **changes}
    )  # fmt: skip
    net = Predictor(config, 4, 12)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


def pooled(batch: int, weight: tuple[float, ...]) -> Payload:
    g = torch.Generator().manual_seed(5)
    pyramid = torch.randn(batch, 3, 2, 20, generator=g)
    return Payload.pooled(pyramid, torch.ones(batch, 2, dtype=torch.bool), torch.tensor(weight))


@pytest.mark.parametrize("mode", MODES)
def test_own_predictor_without_guidance_zero_weight_and_closed_gate_are_bit_identical(mode: str) -> None:
    net = own(guide_mode=mode)
    past, now = torch.randn(3, 2, 4, 12), torch.randn(3, 16, 12)
    plain = net(past, now)
    guided = net(past, now, pooled(3, (0.0, 1.0, 0.5)))
    assert torch.equal(guided[0], plain[0])
    assert (guided[1:] - plain[1:]).abs().amax((1, 2, 3)).min() > 1e-4
    nothing = pooled(3, (1.0, 1.0, 1.0))._replace(prompt_mask=torch.zeros(3, 3, 1, dtype=torch.bool))
    nothing = nothing._replace(generated_mask=nothing.prompt_mask)
    assert torch.equal(net(past, now, nothing), plain)
    assert net.guide is not None
    net.guide.gate.zero_()
    assert torch.equal(net(past, now, pooled(3, (1.0, 1.0, 1.0))), plain)


@pytest.mark.parametrize("mode", MODES)
def test_own_predictor_lets_every_sample_see_its_own_guidance_only(mode: str) -> None:
    net, p = own(guide_mode=mode), pooled(3, (1.0, 0.4, 0.0))
    past, now = torch.randn(3, 2, 4, 12), torch.randn(3, 16, 12)
    whole = net(past, now, p)
    for i in range(3):
        alone = Payload(*(None if part is None else part[i : i + 1] for part in p))
        torch.testing.assert_close(net(past[i : i + 1], now[i : i + 1], alone)[0], whole[i], atol=1e-5, rtol=1e-5)


def test_own_predictor_equals_one_masked_attention_over_all_tokens() -> None:
    """The two-stream layout is the plain block with a mask that hides queries from the context; what comes out is the
    change from the newest frame.
    """
    p = own(guide_layers=0)
    past, now = torch.randn(1, 2, 4, 12), torch.randn(1, 16, 12)
    x = torch.cat((p.embed(torch.cat((past.flatten(1, 2), now), 1)), p.query.expand(1, 8, -1)), 1)
    cos, sin = p.cos, p.sin
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:24, 24:] = False
    for b in p.blocks:
        q, k, v = b.qkv(b.norm1(x)).view(1, 32, 3, 2, 12).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(
            rope.rotate(q, (cos, sin)), rope.rotate(k, (cos, sin)), v, attn_mask=mask
        )
        x = x + b.proj(y.transpose(1, 2).reshape(1, 32, 24))
        x = x + b.fc2(torch.nn.functional.gelu(b.fc1(b.norm2(x))))
    wanted = p.pool(now)[:, None] + p.out(p.norm(x[:, 24:])).view(1, 2, 4, 12)
    torch.testing.assert_close(p(past, now), wanted, atol=1e-5, rtol=1e-5)


def test_a_latent_of_a_clip_sits_at_the_middle_of_its_steps() -> None:
    net = own(context=8, context_steps=2, guide_layers=0)
    assert net.config.latents == 4
    middle = rope.table(rope.grid(torch.tensor([-6.5, -4.5, -2.5]), 2, 2, 2, 2), 12)[0]
    newest = rope.table(rope.grid(torch.tensor([-0.5]), 4, 4), 12)[0]
    assert torch.equal(net.cos[: 3 * 4 + 16], torch.cat((middle, newest)))
    assert net(torch.randn(1, 3, 4, 12), torch.randn(1, 16, 12)).shape == (1, 2, 4, 12)
    with pytest.raises(ValueError, match="context_steps"):
        own(context=7, context_steps=2)


def test_long_sequences_in_pieces_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor cuts the hidden layer of long sequences."""
    net = build(dataclasses.replace(SMALL, tokens=128, rows=128, columns=1), dtype=torch.float64)
    x = torch.randn(2, 512, 10, dtype=torch.float64)
    wanted = net(x, range(512), range(512, 1024))
    monkeypatch.setattr(layers, "_PIECE", 1)
    torch.testing.assert_close(net(x, range(512), range(512, 1024)), wanted)
