"""`thinkjepa bench jepa`: the things compared give the same numbers, and the FLOPs are those that torch counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.benchmarks import encoders, jepa, predictors, report, roofline, steps
from thinkjepa_ros.benchmarks.baselines import Layout, Plain, Published, Sizes
from thinkjepa_ros.benchmarks.timing import Group, Target, Variant, measure

SMALL = Sizes(latent=32, width=96, depth=3, heads=2, guide_layers=2, guide_width=24, guide_hidden=16)
LAYOUTS = {"v1": Layout("v1", 4, 4, 8), "v2": Layout("v2", 3, 2, 10)}


CPU, PEAK = torch.device("cpu"), roofline.Peak(1e9, 1e9)


def counted_in_full(call) -> int:
    """FLOPs by torch's own counter, which by itself knows attention on a CPU in its mathematical form only."""
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
    assert mask is not None and mask.shape == (50, 50)
    assert mask[9, 9] and mask[0, 9] and not mask[9, 10] and mask[10, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_ours_gives_the_same_numbers_for_the_flops_of_the_formula(name, dtype):
    sizes = Sizes(latent=48, width=96, depth=5, heads=2, guide_layers=3, guide_width=24, guide_hidden=16)
    g = predictors.compare(predictors.layout(name, 64), sizes, CPU, dtype, PEAK)
    measure(g, 0.001)
    plain, ours, published = (g[n] for n in (predictors.PLAIN, predictors.OURS, predictors.PUBLISHED))
    within = 2e-5 if dtype == torch.float32 else 0.1
    assert plain.scale > 0.5 and ours.difference < within and published.difference < within
    for variant in g.variants:
        assert variant.work.flops == counted_in_full(variant.call) == roofline.counted(variant.call), variant.name
    assert ours.work.flops < plain.work.flops
    assert (plain.memory, ours.memory) == (0 if name == "v1" else 128**2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_encoder_is_compared_with_the_same_weights(dtype):
    g = encoders.against_transformers(encoders.Shape("small", 64, 4, 2, 48, 2, 2), CPU, dtype, PEAK)
    measure(g, 0.001)
    ours = g[encoders.OURS]
    assert ours.scale > 0.5 and ours.difference < (1e-5 if dtype == torch.float32 else 0.1)
    for variant in g.variants:
        assert variant.work.flops == counted_in_full(variant.call) == roofline.counted(variant.call)


def test_a_stream_is_compared_with_its_clip():
    g = encoders.streaming(1, CPU, torch.float32, PEAK, times=3, image_size=32, width=96)
    again, newest = g.variants
    assert again.work.flops == counted_in_full(again.call)
    measure(g, 0.001)
    assert newest.difference < 1e-5 < newest.scale
    assert newest.work.flops == counted_in_full(newest.call)  # with its window full


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


def test_a_stopped_benchmark_writes_what_it_has(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "steps", stop)
    out = tmp_path / "figures.json"
    with pytest.raises(KeyboardInterrupt):
        jepa.bench(Path("models/mini"), "mini", seconds=0.01, tokens=32, dtype="float32", out=out)
    values = json.loads(out.read_text())
    assert values["complete"] is False and len(values["groups"]) == 4
    printed = capsys.readouterr().out
    assert printed.count("guided predictor v2") == 1
    assert "targets met" in printed


def test_the_command_prints_and_writes_every_figure(tmp_path):
    done = CliRunner().invoke(cli.app, ["train", "untrained", str(tmp_path / "small")])
    assert done.exit_code == 0, done.output
    options = [
        "--model",
        str(tmp_path / "small"),
        "--size",
        "mini",
        "--seconds",
        "0.01",
        "--tokens",
        "32",
        "--dtype",
        "float32",  # bfloat16 takes minutes where it is emulated
    ]
    done = CliRunner().invoke(cli.app, ["bench", "jepa", *options, "--json", str(tmp_path / "f.json")])
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "f.json").read_text())
    assert values["complete"] and {"device", "threads", "bf16_instructions", "torch"} <= values["machine"].keys()
    assert len(values["groups"]) == 5
    for g in values["groups"]:
        assert {"title", "dtype", "peak_flops", "peak_bandwidth", "variants", "ratios", "targets"} <= g.keys()
        for v in g["variants"]:
            assert v["p50_ms"] <= v["p99_ms"] and v["runs"] >= 3 and v["roofline_ms"] > 0 and v["flops"] > 0
        assert bool(g["targets"]) != g["title"].startswith("guided predictor"), "its targets hold at 4096 tokens"
        assert all(t["met"] in (True, False) and t["value"] > 0 for t in g["targets"])
    for words in (
        "transformers / ours = ",
        "plain / ours = ",
        "as published / ours = ",
        "streaming step",
        "targets met",
    ):
        assert words in done.output


@pytest.mark.parametrize(
    "option", [{"size": "giant"}, {"dtype": "float16"}, {"part": "wheel"}, {"tokens": 100}, {"device": "warp"}]
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_measured(option, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(ValueError, match=str(next(iter(option.values())))):
        jepa.bench(Path("models/mini"), **option)


def test_one_part_alone_can_be_measured(tmp_path):
    for part, titles in (("encoder", ["encoder"] * 2), ("step", ["whole steps"])):
        groups = jepa.bench(Path("models/mini"), "mini", seconds=0.01, dtype="float32", part=part)
        assert [g.title.split(",")[0] for g in groups] == titles


def test_memory_is_told_in_units():
    assert [report.in_units(n) for n in (0, 1000, 67108864, 1.5 * 2**30)] == ["0", "1000 B", "64 MiB", "1.5 GiB"]


@pytest.mark.gpu
def test_a_gpu_runs_the_full_size(tmp_path):
    assert torch.cuda.is_available()
    out = tmp_path / "f.json"
    groups = jepa.bench(Path("models/mini"), device="cuda", seconds=0.2, dtype="bfloat16", out=out)
    assert json.loads(out.read_text())["complete"]
    assert any("CUDA graph" in v.note for g in groups for v in g.variants)
    for g in groups:
        for v in g.variants:
            assert v.times and not v.difference > 0.1 * v.scale, (g.title, v.name)
            assert v.memory > 0
