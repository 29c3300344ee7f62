"""`thinkjepa bench jepa`: the things compared give the same numbers, and the FLOPs are those that torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa_ros.benchmarks import roofline
from thinkjepa_ros.benchmarks.baselines import Layout, Plain, Published, Sizes
from thinkjepa_ros.benchmarks.timing import Group, Target, Variant, measure

SMALL = Sizes(latent=32, width=96, depth=3, heads=2, guide_layers=2, guide_width=24, guide_hidden=16)
LAYOUTS = {"v1": Layout("v1", 4, 4, 8), "v2": Layout("v2", 3, 2, 10)}


def counted(call) -> int:
    """FLOPs by torch's own counter, which knows the products of the mathematical form of attention on every device."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def inputs(layout: Layout, sizes: Sizes, batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    context = torch.randn(batch, layout.context * layout.tokens, sizes.latent)
    old, new = (torch.randn(batch, sizes.guide_layers, n, sizes.guide_width) for n in (3, 5))
    return context, old, new


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_two_other_ways_give_the_same_numbers(name):
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    plain, masked, published = Plain(layout, SMALL), Plain(layout, SMALL, masked=True), Published(layout, SMALL)
    masked.load_state_dict(plain.state_dict())
    published.load_state_dict(plain.state_dict())
    context, old, new = inputs(layout, SMALL)
    index = torch.arange((layout.context + layout.targets) * layout.tokens).expand(2, -1)
    at, wanted = index.split((layout.context * layout.tokens, layout.targets * layout.tokens), 1)
    shuffled = torch.stack([torch.randperm(at.shape[1]) for _ in at])
    with torch.inference_mode():
        expected = plain(context, old, new)
        assert expected.std() > 0.1
        torch.testing.assert_close(masked(context, old, new), expected, rtol=0, atol=1e-5)
        for order in (at, shuffled):  # the published way takes its tokens in any order
            rows = context.gather(1, order[:, :, None].expand_as(context))
            torch.testing.assert_close(published(rows, order, wanted, old, new), expected, rtol=0, atol=1e-5)
        assert (plain(context, old + 1, new) - expected).abs().max() > 1e-3, "the guidance does nothing"


def test_only_the_causal_layout_has_a_mask():
    assert Plain(LAYOUTS["v1"], SMALL).mask is None
    mask = Plain(LAYOUTS["v2"], SMALL).mask
    assert mask is not None and mask.shape == (1, 50, 50)
    assert mask[0, 9, 9] and mask[0, 0, 9] and not mask[0, 9, 10] and mask[0, 10, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_flops_of_a_predictor_are_those_that_torch_counts(name):
    layout = LAYOUTS[name]
    plain = Plain(layout, SMALL)
    context, old, new = (t[:1] for t in inputs(layout, SMALL))
    seen, wanted = layout.context * layout.tokens, layout.targets * layout.tokens
    mixing = roofline.attention(seen + wanted, seen + wanted, SMALL.width)
    expected = roofline.predictor(seen, wanted, SMALL.latent, mixing, SMALL.width, SMALL.depth)
    fused = roofline.film(1, SMALL.width, 0, SMALL.guide_hidden) * SMALL.depth
    guided = SMALL.depth if layout.causal else SMALL.guide_layers  # v1 projects nothing for blocks without a layer
    projected = guided * (3 + 5) * roofline.linear(1, SMALL.guide_width, SMALL.width)
    assert counted(lambda: plain(context, old, new)) == expected + fused + projected


def test_work_adds_up_and_the_slower_roof_counts():
    peak = roofline.Peak(flops=100.0, bandwidth=10.0)
    work = roofline.Work(200.0, 10.0) + roofline.Work(100.0, 5.0)
    assert work == roofline.Work(300.0, 15.0) and peak.seconds(work) == 3.0
    assert peak.seconds(roofline.Work(1.0, 50.0)) == 5.0


def test_the_peak_of_this_machine_is_measured():
    peak = roofline.measure(torch.device("cpu"), torch.float32, seconds=0.05)
    assert 1e8 < peak.flops < 1e14 and 1e8 < peak.bandwidth < 1e13


def group(**calls) -> Group:
    variants = [Variant(name, call, roofline.Work(1e6)) for name, call in calls.items()]
    return Group("of a test", torch.float32, variants, roofline.Peak(1e9, 1e9), torch.device("cpu"))


def test_what_is_compared_runs_in_turns():
    order = []
    g = group(a=lambda: order.append("a"), b=lambda: order.append("b"))
    measure(g, 0.01)
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(g["a"].times) == len(g["b"].times) >= 3


def test_a_difference_is_found():
    g = group(a=lambda: (torch.ones(2), torch.zeros(3)), b=lambda: (torch.ones(2), torch.tensor([0.0, -0.25, 0.0])))
    g["b"].same_as = "a"
    measure(g, 0.001)
    assert g["b"].difference == 0.25 and g["b"].scale == 1.0


def test_what_was_measured_before_an_interrupt_is_kept():
    rounds = []

    def interrupt():
        rounds.append(1)
        if len(rounds) == 5:
            raise KeyboardInterrupt

    g = group(a=lambda: None, b=interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(g, 100.0)
    assert len(g["a"].times) == 3 and len(g["b"].times) == 2


def test_targets_by_hand():
    g = group(slow=lambda: None, fast=lambda: None)
    g["slow"].times, g["fast"].times = [0.010, 0.020, 0.040], [0.010, 0.010, 0.010]
    assert g.ratio("slow", "fast") == 2.0
    assert Target("fast", 1.5, beside="slow").met(g) is True and Target("fast", 2.5, beside="slow").met(g) is False
    assert Target("slow", 20.0).met(g) is True and Target("slow", 20.0, percentile=99).met(g) is False
    g["slow"].times = []
    assert Target("slow", 20.0).met(g) is None and Target("fast", 1.5, beside="slow").met(g) is None
