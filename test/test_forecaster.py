"""The Forecaster: a forecast is a function of its window and of the guidance in force, and of nothing else."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jepa_kit import JOINTS, config, fill, forecaster, guidance, images, small_net

from thinkjepa_ros.jepa import model, precision, sizes
from thinkjepa_ros.jepa.forecaster import ForecastError, GuidanceError
from thinkjepa_ros.values import Camera, Frame, Guidance

CLIP = config({"tubelet": 2, "attention": "full", "rope": "tiled"}, {"context_steps": 2}, clip=True)
CAUSAL_CLIP = config({"tubelet": 2, "attention": "causal"}, {"context_steps": 2}, clip=True)
STREAM = config({"tubelet": 2, "attention": "causal", "window": 2}, {"context_steps": 2})
WAYS = {
    "single": config(),
    "single, of an encoder of clips": config({"tubelet": 2, "attention": "full"}),
    "clip": CLIP,
    "causal clip": CAUSAL_CLIP,
    "stream": STREAM,
    "attentive": config(readout="attentive"),
}


@pytest.fixture(params=WAYS)
def net(request) -> model.ForecastNet:
    return small_net(made_as=WAYS[request.param])


# --- windows ---


def test_a_later_frame_changes_nothing_of_an_earlier_forecast(net) -> None:
    results = []
    for change in (lambda picture: picture, lambda picture: 255 - picture):
        f = forecaster(net)
        pictures = images(net, f.window + 1)
        stamps = fill(f, [*pictures[:-1], change(pictures[-1])])
        results.append(f.forecast(stamps[:-1]))
    assert np.array_equal(results[0].positions, results[1].positions)


def test_every_frame_of_the_window_counts(net) -> None:
    f = forecaster(net)
    pictures = images(net, f.window)
    before = f.forecast(fill(f, pictures)).positions
    for k in range(f.window):
        f.reset()
        changed = [255 - p if i == k else p for i, p in enumerate(pictures)]
        assert not np.array_equal(f.forecast(fill(f, changed)).positions, before), k


def test_the_same_window_gives_the_same_forecast_whatever_came_before(net) -> None:
    """Only rounding may differ where frames of a window were encoded together or one by one."""
    a, b = forecaster(net), forecaster(net)
    pictures = images(net, a.window + 4)
    for k, picture in enumerate(pictures):
        stamps = fill(a, [picture], k)
        if k + 1 >= a.window:
            last = a.forecast()
    assert last.stamp_ns == stamps[-1]
    again = b.forecast(fill(b, pictures[4:], 4))
    assert np.allclose(last.positions, again.positions, atol=1e-5) and np.allclose(last.sigma, again.sigma, atol=1e-5)


def test_two_runs_agree_bit_for_bit(net) -> None:
    runs = []
    for f in (forecaster(net), forecaster(net)):
        f.guide(guidance(stamp_ns=0))
        made = []
        for k, picture in enumerate(images(net, f.window + 3)):
            fill(f, [picture], k)
            if k + 1 >= f.window:
                made.append(f.forecast())
        runs.append(made)
    for a, b in zip(*runs, strict=True):
        assert (
            a.guidance_weight == 1.0 and np.array_equal(a.positions, b.positions) and np.array_equal(a.sigma, b.sigma)
        )


def test_a_frame_that_comes_again_with_other_pixels_replaces_the_first(net) -> None:
    f, pictures = forecaster(net), images(net, 20)
    stamps = fill(f, pictures[: f.window])
    first = f.forecast().positions
    f.observe(Frame(pictures[-1], stamps[2]), f.camera)
    assert not np.array_equal(f.forecast(stamps).positions, first)
    fill(f, pictures[: f.window])
    assert np.allclose(f.forecast(stamps).positions, first, atol=1e-5)


def test_a_stream_encodes_each_tubelet_once_and_begins_again_after_a_gap() -> None:
    net = small_net(made_as=STREAM)
    assert (net.config.reach, net.config.frames) == (3, 8)
    f, steps = forecaster(net), []
    for k, picture in enumerate(images(net, 14)):
        if k == 10:
            continue  # lost: the grid has a gap from here on
        fill(f, [picture], k)
        if 7 <= k < 10:
            f.forecast()
            steps.append([chain.stream.steps for chain in f._sight._chains])
    assert steps == [[4], [4, 4], [4, 5]], "two phases of tubelets on frames, each continued"
    with pytest.raises(ForecastError, match="missing on the grid"):
        f.forecast()
    fill(f, images(net, 8, seed=5), 20)
    f.forecast()
    assert f._sight._chains[-1].stream.steps == 4
    f.reset()
    assert not f._sight._chains


def test_frames_may_come_in_any_order(net) -> None:
    a, b = forecaster(net), forecaster(net)
    pictures = images(net, a.window)
    stamps = fill(a, pictures)
    for stamp, picture in reversed(list(zip(stamps, pictures, strict=True))):
        b.observe(Frame(picture, stamp, "camera"), b.camera)
    assert np.array_equal(a.forecast(stamps).positions, b.forecast(stamps).positions)


def test_without_stamps_the_window_is_that_of_the_newest_frame_on_the_grid() -> None:
    f = forecaster(small_net())
    with pytest.raises(ForecastError, match="no frame"):
        f.forecast()
    pictures = images(f._net, 12)
    stamps = [k * f.step_ns // 3 for k in range(12)]  # a camera with three images per grid step
    for stamp, picture in zip(stamps, pictures, strict=True):
        f.observe(Frame(picture, stamp), f.camera)
    newest = f.forecast()
    assert np.array_equal(newest.positions, f.forecast([stamps[k] for k in (2, 5, 8, 11)]).positions)
    f.observe(Frame(pictures[0], stamps[-1] + 3 * f.step_ns), f.camera)
    with pytest.raises(ForecastError, match="missing on the grid"):
        f.forecast()


def test_the_joints_are_seen_where_a_latent_ends(net) -> None:
    f = forecaster(net)
    stamps = fill(f, images(net, f.window))
    present = f.forecast(stamps).present
    assert np.array_equal(f.estimate(stamps[-1]), present)
    assert len(stamps[f.estimated]) == net.config.predictor.latents
    assert all(f.estimate(s).shape == (5, 3) for s in stamps[f.estimated])
    with pytest.raises(ForecastError, match="no estimate"):
        f.estimate(stamps[-1] + 1)


def test_surprise_appears_once_a_prediction_can_be_checked(net) -> None:
    f = forecaster(net)
    surprises = []
    for k, picture in enumerate(images(net, f.window + 4)):
        fill(f, [picture], k)
        if k + 1 >= f.window:
            surprises.append(f.forecast().surprise)
    assert [math.isnan(s) for s in surprises] == [True, True, False, False, False]
    f.reset()
    fill(f, images(net, f.window))
    assert math.isnan(f.forecast().surprise)


# --- guidance ---


def test_no_guidance_an_old_one_and_one_from_the_future_are_exactly_unguided(net) -> None:
    f = forecaster(net)
    now = fill(f, images(net, f.window), 1000)[-1]
    plain = f.forecast()
    for stamp in (now + 1, now - 10 * 10**9, now - 11 * 10**9):
        f.guide(guidance(stamp_ns=stamp))
        off = f.forecast()
        assert np.array_equal(plain.positions, off.positions) and np.array_equal(plain.sigma, off.sigma)
        assert off.guidance_weight == 0 and math.isnan(off.guidance_age_s)
    f.guide(guidance(stamp_ns=now - 500_000_000))
    on = f.forecast()
    assert on.guidance_weight == 1.0 and on.guidance_age_s == pytest.approx(0.5)
    assert np.abs(on.positions - plain.positions).max() > 1e-5
    f.guide(None)
    assert np.array_equal(f.forecast().positions, plain.positions)


def test_guidance_fades_with_the_age_of_the_window(net) -> None:
    f = forecaster(net)
    thought = guidance(valid_for_s=2.0, stamp_ns=f.window * f.step_ns)
    pictures = images(net, 1) * f.window
    plain = f.forecast(fill(f, pictures)).positions
    f.guide(thought)
    weights, effects = [], []
    for late in (0, 1, 8, 15, 19, 20):
        result = f.forecast(fill(f, pictures, 1 + late))
        weights.append(result.guidance_weight)
        effects.append(float(np.abs(result.positions - plain).max()))
    assert weights == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.1, 0.0])
    assert effects[0] == pytest.approx(effects[2], rel=1e-3) and effects[0] != pytest.approx(effects[3], rel=1e-3)
    assert effects[4] > 1e-4 and effects[5] == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(-100, 100), st.floats(0, 50))
def test_the_weight_of_guidance_falls_from_one_to_zero(age_s: float, valid_for_s: float) -> None:
    w = guidance(stamp_ns=10**12, valid_for_s=valid_for_s).weight(10**12 + round(age_s * 1e9))
    assert 0.0 <= w <= 1.0
    if age_s < -1e-6 or age_s >= valid_for_s + 1e-6:
        assert w == 0.0
    elif 0 <= age_s < valid_for_s * 0.49:
        assert w == 1.0


def test_guidance_that_does_not_fit_is_refused_and_the_one_held_stays() -> None:
    f = forecaster(small_net())
    held = guidance()
    f.guide(held)
    with pytest.raises(GuidanceError, match="pyramid is"):
        f.guide(guidance(pyramid=np.zeros((2, 2, 20), np.float32)))
    with pytest.raises(GuidanceError, match="finite"):
        f.guide(guidance(pyramid=np.full((3, 2, 20), np.inf, np.float32)))
    assert f.guidance is held
    f.reset()
    assert f.guidance is None
    deaf = forecaster(small_net(made_as=config(predictor={"guide_layers": 0, "guide_width": 0})))
    assert deaf.guidance_shape is None
    with pytest.raises(GuidanceError, match="without guidance"):
        deaf.guide(held)
    fill(deaf, images(deaf._net, 4))
    assert deaf.forecast().guidance_weight == 0.0


# --- anchors ---


def test_an_anchor_moves_the_present_and_missing_joints_come_from_the_image(net) -> None:
    f = forecaster(net)
    fill(f, images(net, f.window))
    anchor = np.full((5, 3), 0.5, np.float32)
    anchor[2] = np.nan
    free, tied = f.forecast(), f.forecast(anchor=anchor)
    assert tied.anchored and not free.anchored
    assert np.allclose(tied.present[[0, 1, 3, 4]], 0.5) and np.array_equal(tied.present[2], free.present[2])
    with pytest.raises(ValueError, match="anchor is"):
        f.forecast(anchor=anchor[:3])


# --- refusals and bounds ---


def test_forecaster_refuses_what_it_cannot_answer() -> None:
    f = forecaster(small_net())
    stamps = fill(f, images(f._net, 4))
    with pytest.raises(ForecastError, match="was not observed"):
        f.forecast([*stamps[1:], 9])
    with pytest.raises(ForecastError, match="needs 4"):
        f.forecast(stamps[2:])
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8), None):
        with pytest.raises(ValueError, match="image must be"):
            f.observe(Frame(bad, 9))  # type: ignore[arg-type]
    assert f.knows(stamps[3]) and not f.knows(9)


def test_output_that_is_not_finite_is_refused() -> None:
    net = small_net()
    net.motion.out.bias.fill_(float("nan"))
    f = forecaster(net)
    fill(f, images(net, 4))
    with pytest.raises(ForecastError, match="not finite"):
        f.forecast()


def test_without_intrinsics_a_forecast_says_that_its_scale_is_a_guess() -> None:
    f = forecaster(small_net())
    for i, picture in enumerate(images(f._net, 4)):
        f.observe(Frame(picture, i * f.step_ns))
    assert not f.forecast().metric


def test_memory_is_bounded() -> None:
    f = forecaster(small_net(), remember=6)
    picture = images(f._net, 1)[0]
    for i in range(40):
        f.observe(Frame(picture, i), Camera(64, 64, 60.0 + i, 60, 31.5, 31.5))
    assert not f.knows(33) and f.knows(34)
    assert len(f._views) <= 9


def test_warm_up_leaves_nothing_behind_and_changes_nothing(net) -> None:
    f, cold = forecaster(net), forecaster(net)
    f.warm_up()
    assert not f.knows(0) and f.guidance is None
    for x in (f, cold):
        fill(x, images(net, f.window))
    assert np.array_equal(f.forecast().positions, cold.forecast().positions)
    assert "float32" in f.words and "eager" in f.words


def test_bfloat16_is_near_float32() -> None:
    chosen = precision.Choice(torch.bfloat16, "asked for")
    exact, coarse = forecaster(small_net()), forecaster(small_net(), choice=chosen)
    results = []
    for f in (exact, coarse):
        stamps = fill(f, images(f._net, 4))
        f.guide(guidance(stamp_ns=stamps[-1]))
        results.append(f.forecast())
    assert coarse._net.encoder.patch_embed.weight.dtype == torch.bfloat16
    assert coarse._net.pose.fc.weight.dtype == torch.float32 == coarse._net.motion.out.weight.dtype
    assert 0 < np.abs(results[0].positions - results[1].positions).max() < 0.1
    assert results[1].positions.dtype == np.float32


# --- configurations ---


@pytest.mark.parametrize("made", WAYS.values(), ids=WAYS)
def test_configurations_survive_the_manifest(made: model.ModelConfig, tmp_path) -> None:
    net = model.ForecastNet(made)
    model.save(tmp_path, net, "small", trained=False, domain="test")
    loaded, manifest = model.load(tmp_path)
    assert loaded.config == made and manifest.config["clip"] is made.clip
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_the_full_size_has_the_published_encoder_and_a_configuration_that_is_accepted() -> None:
    made = sizes.full(JOINTS)
    assert model.ModelConfig.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert (made.frames, made.predictor.latents, made.horizon) == (32, 16, 32)
    with torch.device("meta"):
        net = model.ForecastNet(made)
    assert sum(p.numel() for p in net.encoder.parameters()) == 303_885_312
    assert net.predictor.guide is not None and len(net.predictor.blocks) == 12


def test_the_full_size_forecasts_with_fewer_layers_and_frames() -> None:
    made = sizes.full(JOINTS)
    made = dataclasses.replace(
        made,
        encoder=dataclasses.replace(made.encoder, depth=1),
        predictor=dataclasses.replace(made.predictor, depth=1, context=4, tubelets=2),
    )
    f = forecaster(small_net(made_as=made))
    layers, width = f.guidance_shape or (0, 0)
    stamps = fill(f, images(f._net, f.window))
    plain = f.forecast()
    f.guide(Guidance(np.ones((layers, 2, width), np.float32), tuple(range(layers)), stamps[-1], 1.0))
    guided = f.forecast()
    assert guided.positions.shape == (4, 5, 3) and not np.array_equal(guided.positions, plain.positions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": "yes"}, "clip is"),
        ({"readout": "other"}, "readout is"),
        ({"encoder.tubelet": 0}, "tubelet"),
        ({"encoder.tubelet": 99}, "tubelet"),
        ({"encoder.window": -1}, "window"),
        ({"encoder.rope": "other"}, "rope"),
        ({"encoder.attention": "other"}, "attention"),
        ({"encoder.mlp_ratio": 1e9}, "mlp_ratio"),
        ({"encoder.attention": "causal"}, "needs a window"),
        ({"predictor.context_steps": 3}, "context_steps"),
        ({"clip": True, "encoder.tubelet": 2}, "context_steps"),
        ({"clip": True, "encoder.tubelet": 3, "predictor.context": 6, "predictor.context_steps": 3}, "multiple of 3"),
        ({"predictor.guide_layers": 10**9}, "guide_layers"),
        ({"step_s": float("nan")}, "step_s"),
        ({"step_s": True}, "step_s"),
    ],
)
def test_configurations_without_sense_are_refused(change, words) -> None:
    values = config().as_dict()
    for name, value in change.items():
        *inside, last = name.split(".")
        (values[inside[0]] if inside else values)[last] = value
    with pytest.raises(ValueError, match=words):
        model.ModelConfig.from_dict(values)


def test_a_manifest_of_before_the_new_fields_means_what_it_meant() -> None:
    values = config().as_dict()
    for name in ("tubelet", "rope", "rope_grid", "attention", "window"):
        del values["encoder"][name]
    for name in ("clip", "readout"):
        del values[name]
    assert model.ModelConfig.from_dict(values) == config()
    assert dataclasses.replace(config(), clip=True).frames == config().frames == 4


def test_it_knows_the_thinker_it_was_trained_with(tmp_path) -> None:
    from thinkjepa_ros.jepa.forecaster import Forecaster

    model.save(tmp_path / "a", small_net(), "a", trained=True, domain="test", training={"thinker": "slow-1"})
    model.save(tmp_path / "b", small_net(), "b", trained=True, domain="test")
    told, untold = Forecaster.load(tmp_path / "a"), Forecaster.load(tmp_path / "b")
    assert told.knows_thinker("slow-1") and not told.knows_thinker("slow-2") and untold.knows_thinker("slow-2")
