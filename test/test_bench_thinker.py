"""`thinkjepa bench thinker`: what is compared gives the same states, and what does not is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from thinker_kit import mini_folder

from thinkjepa_ros.benchmarks import memory, report, roofline, thinker, thinker_models
from thinkjepa_ros.benchmarks.thinker import DECODE, DECODE_STATIC, LIBRARY, POOLED, STATES, STATIC, WITH, WITHOUT
from thinkjepa_ros.benchmarks.thinker_calls import Camera, Decode, Library, Live, Prefill
from thinkjepa_ros.benchmarks.timing import Group, Target, UnequalError, Variant, measure
from thinkjepa_ros.bridge.messages import guidance_from_message
from thinkjepa_ros.bridge.serialised import guidance_bytes
from thinkjepa_ros.values import Guidance

pytestmark = pytest.mark.alone

CPU, PEAK = torch.device("cpu"), roofline.Peak(1e9, 1e9)
SMALL = thinker_models.Shape(
    "small", 1024, 64, 128, 3, 4, 2, 16, (3, 3, 2), 32, 64, 3, 2, (0, 1, 2), positions=64, image_size=(64, 64)
)


def small(dtype: torch.dtype = torch.float32) -> thinker_models.Subject:
    return thinker_models.random(SMALL, None, mini_folder(), CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_ways_to_the_same_thought_give_the_same_states(dtype):
    g = thinker.thoughts(small(dtype), 3, PEAK, [])
    measure(g, 0.01)
    for name in (WITHOUT, WITH, STATIC):
        variant = g[name]
        assert variant.same_as == LIBRARY and variant.difference < 1e-5 + 0.02 * (dtype == torch.bfloat16)
        assert variant.scale > 0.3 and variant.parts.keys() == {"window", "prefill", "per token", "pooling"}
        inside = [sum(times) for times in zip(*variant.parts.values(), strict=True)]
        assert all(0 < part < whole for part, whole in zip(inside, variant.times, strict=True))
    assert g[WITHOUT].work.flops == g[LIBRARY].work.flops > g[WITH].work.flops == g[STATIC].work.flops
    assert g.ratio(WITHOUT, WITH, "window") > 3, "16 pairs instead of one"


def test_other_words_than_the_librarys_are_refused():
    subject = small()
    own, other = subject.thinker(), subject.thinker()
    camera = Camera(own)
    library = Library(subject, own, camera, 3)
    other.ask("What else?")
    live = Live(other, camera, 3, SMALL.layers - 1, cached=True)
    variants = [Variant(LIBRARY, library, roofline.Work(1)), Variant(WITH, live, roofline.Work(1), LIBRARY)]
    variants[1].within = thinker.WITHIN[torch.float32]
    g = Group("", torch.float32, variants, PEAK, CPU)
    with pytest.raises(UnequalError, match=f"{WITH} and {LIBRARY} do not give the same numbers"):
        measure(g, 0.01)
    assert not g[WITH].times, "nothing was timed"


def test_what_is_not_a_number_is_not_equal():
    nothing = torch.full((2,), float("nan"))
    variants = [
        Variant("a", lambda: torch.zeros(2), roofline.Work(1)),
        Variant("b", lambda: nothing, roofline.Work(1), "a", within=1.0),
    ]
    with pytest.raises(UnequalError):
        measure(Group("", torch.float32, variants, PEAK, CPU), 0.01)


def test_each_thought_slides_the_window_by_one_pair_and_encodes_what_it_must():
    subject = small()
    for cached, new in ((True, 1), (False, 16)):
        live = Live(subject.thinker(), Camera(subject.thinker()), 2, 2, cached)
        for _ in range(3):
            live()
            done = live.thinker.report
            assert (done.pairs, done.new_pairs, done.new_tokens) == (16, new, 2)


def test_both_decoders_go_on_from_the_same_prompt_as_often_as_asked():
    g = thinker.parts(small(), 4, PEAK)
    measure(g, 0.01)
    assert g[DECODE_STATIC].difference < 1e-4 < g[DECODE_STATIC].scale
    assert g[DECODE].memory > g[DECODE_STATIC].memory > 0, "a fixed cache does not grow"
    subject = small()
    prefill = Prefill(subject, subject.thinker(), Camera(subject.thinker()))
    decode = Decode(prefill, prefill.decoder, 2)
    with torch.inference_mode():
        outputs = []
        for _ in range(2):
            decode.before()
            outputs.append(decode())
    assert torch.equal(*outputs) and outputs[0].shape == (2, 3, 64)


def test_what_is_sent_has_the_size_that_is_told_and_reads_back():
    subject = small()
    subject.depth = 28
    g = thinker.export(subject, 4, PEAK, guidance_bytes, limited=True)
    measure(g, 0.01)
    layers, width = 8, 64
    assert layers * 2 * width * 2 < g[POOLED].size < layers * 2 * width * 2 + 1000
    assert g[STATES].size > 100 * layers * width * 2
    assert g.targets[0].met(g) and g.targets[0].value(g) == g[POOLED].size
    assert Target(POOLED, 1024, size=True).met(g) is False

    from rclpy.serialization import deserialize_message

    from thinkjepa_ros.msg import Guidance as Message

    pyramid = torch.randn(2, 2, 8).numpy()
    back = guidance_from_message(deserialize_message(guidance_bytes(Guidance(pyramid, (0, 1), 5, 1.0)), Message))
    assert abs(back.pyramid - pyramid).max() < 1e-2 and back.stamp_ns == 5


def test_without_ros_the_numbers_stand_for_the_message():
    g = thinker.export(small(), 4, PEAK, None, limited=False)
    assert g[POOLED].size == 3 * 2 * 64 * 2 and "without ROS" in g.title and not g.targets
    with pytest.raises(ValueError, match="float16"):
        thinker.numbers(Guidance(torch.full((1, 2, 4), 1e6).numpy(), (0,), 0, 1.0))


def test_allocations_of_a_call_are_found_and_its_output_kept():
    def call():
        passing = torch.zeros(1000, 100)
        return passing[:1].clone()

    output, most = memory.peak(call, CPU)
    assert output.shape == (1, 100) and 400_000 <= most < 402_000
    assert memory.of_process() > 50e6


def test_the_2b_shape_has_the_numbers_of_the_release():
    shape = thinker_models.QWEN3_VL_2B
    with torch.device("meta"):
        from transformers import Qwen3VLForConditionalGeneration

        ids = {f"<|{name}|>": k for k, name in enumerate(("image_pad", "video_pad", "vision_start", "vision_end"))}
        model = Qwen3VLForConditionalGeneration._from_config(shape.config(ids))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.128e9, rel=0.001)
    cut = shape.cut(2)
    assert (cut.layers, cut.vision_layers, cut.levels) == (2, 2, (0, 1))
    assert shape.cut(None) == shape.cut(99) == shape
    assert shape.cut(5).levels == (2, 3, 4)


def test_the_command_prints_and_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "f.json"
    thinker.bench(mini_folder(), "mini", seconds=0.02, tokens=4, out=out, serialise=guidance_bytes)
    values, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert values["complete"] and values["machine"]["process_peak_bytes"] > 0
    assert [g["title"].split(":")[0] for g in values["groups"]] == ["thought", "parts", "export"]
    for g in values["groups"]:
        for v in g["variants"]:
            assert 0 < v["p50_ms"] <= v["p99_ms"] and v["runs"] >= 3
    ways = {v["name"]: v for v in values["groups"][0]["variants"]}
    assert ways[WITH]["memory_bytes"] > 0 and ways[WITH]["parts_ms"]["per token"]["p50"] > 0
    assert [t["name"] for t in values["groups"][0]["targets"]] == [WITH, WITH]
    for words in ("(untrained)", f"{LIBRARY} / {WITH} = ", f"{WITHOUT} / {WITH} = ", "per token", "targets met"):
        assert words in printed


def test_what_was_measured_before_an_interrupt_is_printed_and_written(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(thinker, "parts", interrupted)
    out = tmp_path / "f.json"
    with pytest.raises(KeyboardInterrupt):
        thinker.bench(mini_folder(), "mini", seconds=0.02, tokens=2, out=out)
    values = json.loads(out.read_text())
    assert not values["complete"] and len(values["groups"]) == 1 and values["groups"][0]["variants"]
    assert f"{LIBRARY} / {WITH} = " in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [{"size": "giant"}, {"dtype": "float16"}, {"tokens": 0}, {"layers": 1}, {"device": "warp"}]
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_measured(option, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(ValueError, match=str(next(iter(option.values())))):
        thinker.bench(Path("models/mini/thinker"), **option)


def test_a_part_that_was_not_told_has_no_verdict():
    g = Group("", torch.float32, [Variant("a", lambda: None, roofline.Work(1), times=[1.0])], PEAK, CPU)
    assert Target("a", 1.0, part="vision").met(g) is None
    assert Target("a", 2.0, beside="a", part="vision").met(g) is None
    assert report.as_dict([g], {}, True)["groups"][0]["targets"] == []


@pytest.mark.gpu
def test_a_gpu_thinks_with_the_full_2b_shape(tmp_path):
    assert torch.cuda.is_available()
    out = tmp_path / "f.json"
    groups = thinker.bench(mini_folder(), "2b", device="cuda", seconds=0.5, out=out)
    assert json.loads(out.read_text())["complete"]
    assert groups[0][STATIC].note == "CUDA graph" and len(groups[0].targets) == 2
    assert all(v.times and v.memory >= 0 for g in groups for v in g.variants)
