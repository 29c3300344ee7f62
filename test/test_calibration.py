"""Calibrated sigma: fitted on held-out episodes, applied apart to observed joints, reported as coverage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jepa_kit as kit
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros import checkpoints
from thinkjepa_ros.data.episode import JOINT_NAMES, Episode, EpisodeError, JpegFrames
from thinkjepa_ros.evaluation import calibration, card
from thinkjepa_ros.evaluation.coverage import coverage, scores
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.jepa.readout import SigmaScale
from thinkjepa_ros.train.mini import canonical_camera
from thinkjepa_ros.values import Frame

# --- what a calibrated checkpoint does ---


def calibrated(scale: SigmaScale | None) -> model.ForecastNet:
    return kit.small_net(made_as=dataclasses.replace(kit.config(), sigma_scale=scale))


def forecasts(net: model.ForecastNet, anchor: np.ndarray | None = None):
    f = kit.forecaster(net)
    for i, image in enumerate(kit.images(net, f.window)):
        f.observe(Frame(image, i * f.step_ns), f.camera)
    return f.forecast(anchor=anchor)


def test_calibration_scales_sigma_and_nothing_else() -> None:
    steps = kit.config().horizon
    scale = SigmaScale(tuple(0.5 + 0.1 * t for t in range(steps)), (3.0,) * steps)
    plain, scaled = forecasts(calibrated(None)), forecasts(calibrated(scale))
    assert np.array_equal(plain.positions, scaled.positions)
    np.testing.assert_allclose(scaled.sigma, plain.sigma * np.array(scale.image_only)[:, None], rtol=1e-6)


def test_observed_joints_have_their_own_curve() -> None:
    steps = kit.config().horizon
    anchor = np.full((len(kit.JOINTS), 3), np.nan)
    anchor[1] = (0.1, 0.2, 0.6)
    scale = SigmaScale((2.0,) * steps, (0.25,) * steps)
    plain, scaled = forecasts(calibrated(None), anchor), forecasts(calibrated(scale), anchor)
    want = [0.25 if joint == 1 else 2.0 for joint in range(len(kit.JOINTS))]
    np.testing.assert_allclose(scaled.sigma / plain.sigma, np.tile(want, (steps, 1)), rtol=1e-6)


def test_a_model_without_calibration_gives_the_sigma_of_its_readout_bit_for_bit() -> None:
    net = calibrated(None)
    log_sigma = torch.randn(net.config.horizon, len(kit.JOINTS))
    observed = torch.tensor([True, False, True, False, True])
    assert torch.equal(net.sigma(log_sigma, observed), log_sigma.exp())
    assert not any("sigma" in name for name in net.state_dict())


def test_the_curves_live_in_the_configuration_and_come_back(tmp_path) -> None:
    steps = kit.config().horizon
    scale = SigmaScale(tuple(1 + 0.01 * t for t in range(steps)), (0.5,) * steps)
    model.save(tmp_path, calibrated(scale), "small", trained=True, domain="test")
    net, manifest = model.load(tmp_path)
    assert net.config.sigma_scale == scale
    assert torch.equal(net.sigma_scale, torch.tensor([scale.image_only, scale.anchored]))
    del manifest.config["sigma_scale"]  # as checkpoints were before
    assert model.ModelConfig.from_dict(manifest.config).sigma_scale is None


@pytest.mark.parametrize(
    "scale",
    [
        {"image_only": [1.0] * 6},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 5},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 5 + [0.0]},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 5 + [float("nan")]},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 5 + ["2"]},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 6, "more": []},
        {"image_only": [1.0] * 6, "anchored": [1.0] * 5 + [10**400]},
        [[1.0] * 6, [1.0] * 6],
        3,
    ],
)
def test_curves_that_make_no_sense_are_refused(scale: object) -> None:
    values = json.loads(json.dumps({**kit.config().as_dict(), "sigma_scale": scale}))
    with pytest.raises(ValueError, match="sigma_scale must have"):
        model.ModelConfig.from_dict(values)


# --- coverage ---


def normal(n: int, steps: int, seed: int = 0) -> np.ndarray:
    """|error| / sigma of normal errors whose sigma is right."""
    return np.abs(np.random.default_rng(seed).normal(size=(n, steps, 2, 3)))


def test_scores_are_per_axis_and_unknown_truth_has_none() -> None:
    truth = np.zeros((1, 2, 1, 3))
    truth[0, 1] = np.nan
    positions = np.full((1, 2, 1, 3), (0.1, -0.3, 0.0))
    values = scores(positions, truth, np.full((1, 2, 1), 0.1), np.isfinite(truth).all(-1))
    np.testing.assert_allclose(values[0, 0, 0], (1, 3, 0))
    assert np.isnan(values[0, 1]).all()
    with pytest.raises(ValueError, match="not a positive number"):
        scores(positions, truth, np.zeros((1, 2, 1)), np.isfinite(truth).all(-1))


def test_normal_errors_have_the_nominal_coverage() -> None:
    (line,) = coverage(normal(4000, 3), "image only", {"all": np.ones((4000, 2), bool)}, np.arange(4000) % 50, (0,))
    assert line.within_1.mean == pytest.approx(0.6827, abs=0.01)
    assert line.within_2.mean == pytest.approx(0.9545, abs=0.01)
    assert line.rms == pytest.approx(1, abs=0.01) and line.within_1.low < 0.6827 < line.within_1.high


def test_every_line_counts_its_own_joints_and_its_own_step() -> None:
    values = np.full((4, 3, 2, 3), 0.5)
    values[:, 1, 0] = 1.5  # second step, first joint: within two sigma only
    values[:, 2] = np.nan
    groups = {"first": np.array([[True, False]] * 4), "second": np.array([[False, True]] * 4)}
    lines = {(x.joints, x.step): x for x in coverage(values, "p", groups, np.arange(4), (0, 1, 2, 3))}
    assert lines.keys() == {("first", 0), ("first", 1), ("first", 2), ("second", 0), ("second", 1), ("second", 2)}
    assert lines["first", 2].within_1.mean == 0 and lines["first", 2].within_2.mean == 1
    assert lines["first", 0].within_1.mean == 0.5 and lines["second", 0].within_1.mean == 1
    assert lines["first", 1].rms == 0.5 and json.dumps([x.as_dict() for x in lines.values()])


def test_the_table_has_a_row_for_each_kind_and_a_column_for_each_step() -> None:
    groups = {"all": np.ones((4, 2), bool), "second": np.array([[False, True]] * 4)}
    values = np.full((4, 2, 2, 3), 1.5)
    values[:, 1, 1] = np.nan
    lines = [x.as_dict() for x in coverage(values, "anchored", groups, np.arange(4), (0, 1, 2))]
    assert card.sigma_table({"sigma": lines}).splitlines() == [
        "| % within 1 / 2 sigma | all steps | step 1 | step 2 | rms |",
        "|---|---|---|---|---|",
        "| normal distribution | 68 / 95 | 68 / 95 | 68 / 95 | 1.00 |",
        "| anchored, all | 0 / 100 | 0 / 100 | 0 / 100 | 1.50 |",
        "| anchored, second | 0 / 100 | 0 / 100 |  | 1.50 |",
    ]


# --- fitting ---


def test_the_fit_finds_the_factor_that_sigma_is_wrong_by() -> None:
    """Between the knots the factor is a straight line in log over log: a power law is found exactly."""
    truth = 0.4 * np.arange(1, 33) ** 0.7
    found = calibration.fit(normal(3000, 32) * truth[:, None, None])
    np.testing.assert_allclose(found, truth, rtol=0.03)
    np.testing.assert_allclose(found[calibration.knots(32) - 1], truth[[0, 1, 3, 7, 15, 31]], rtol=0.03)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 40),
    wrong=st.floats(0.01, 100),
    slope=st.floats(-1, 1),
    unknown=st.floats(0, 0.8),
    seed=st.integers(0, 99),
)
def test_no_other_curve_is_more_likely(steps: int, wrong: float, slope: float, unknown: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(4, (40, steps, 2, 3)) * wrong * (np.arange(1, steps + 1) ** slope)[:, None, None]
    values = np.abs(np.where(rng.random((40, steps, 2, 1)) < unknown, np.nan, values))
    found = calibration.fit(values)

    def surprise(curve: np.ndarray) -> float:
        return float(np.nanmean(np.log(curve)[:, None, None] + (values / curve[:, None, None]) ** 2 / 2))

    at = calibration.knots(steps)
    assert at[0] == 1 and at[-1] == steps
    assert np.sqrt(np.nanmean((values / found[:, None, None]) ** 2)) == pytest.approx(1, abs=1e-6)
    for knot in range(len(at)):
        bump = np.interp(np.log(np.arange(1, steps + 1)), np.log(at), np.eye(len(at))[knot])
        for much in (-0.02, 0.02):
            assert surprise(found * np.exp(much * bump)) > surprise(found)


def test_episodes_that_are_too_short_are_not_calibrated_with() -> None:
    values = normal(10, 5)
    values[:, 3:] = np.nan
    with pytest.raises(ValueError, match="no truth at step 4"):
        calibration.fit(values)


# --- the command ---

CAMERA = canonical_camera(64)


def episode(seed: int) -> Episode:
    """Hands that wander a little in front of a resting camera."""
    rng = np.random.default_rng(seed)
    stamps = (np.arange(50) * 50_000_000).astype(np.int64)
    walk = 0.01 * rng.normal(size=(50, 1, 3)).cumsum(0)
    joints = rng.uniform((-0.1, -0.1, 0.5), (0.1, 0.1, 0.7), (len(JOINT_NAMES), 3)) + walk
    return Episode(
        frames=JpegFrames.encode(list(rng.integers(0, 255, (50, 64, 64, 3), dtype=np.uint8))),
        stamps_ns=stamps, camera=CAMERA, camera_pose=np.tile(np.eye(4), (50, 1, 1)), joints=joints.astype(np.float32),
        visible=np.ones((50, len(JOINT_NAMES)), bool), states=np.zeros((50, 7), np.float32),
        actions=np.zeros((49, 7), np.float32), phases=np.full(50, 3, np.uint8), instruction="", split="none", seed=seed,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An uncalibrated checkpoint and three validation episodes."""
    net = kit.small_net(made_as=dataclasses.replace(kit.config(), joint_names=JOINT_NAMES))
    training = {"mean_pose": np.zeros((24, 3)).tolist()}
    model.save(tmp_path / "model", net, "small", trained=True, domain="test", training=training)
    for seed in (1_000_000, 1_000_001, 1_000_002):
        episode(seed).save(tmp_path / "val" / f"none_{seed:07d}.h5")
    return tmp_path / "model", tmp_path / "val"


def test_calibration_changes_sigma_alone_and_is_the_same_again(folders: tuple[Path, Path]) -> None:
    folder, data = folders
    weights = (folder / checkpoints.WEIGHTS).read_bytes()
    plain = checkpoints.read_manifest(folder, model.KIND)
    before, after = calibration.calibrate(folder, data)
    assert (folder / checkpoints.WEIGHTS).read_bytes() == weights
    calibrated = checkpoints.read_manifest(folder, model.KIND)
    record = calibrated.training["sigma_calibration"]
    assert record["episodes"] == 3 and record["seeds"] == [1_000_000, 1_000_002] and record["data"] == "val"
    scale = model.ModelConfig.from_dict(calibrated.config).sigma_scale
    assert scale is not None and scale.image_only[0] != scale.anchored[0]
    assert {**calibrated.config, "sigma_scale": None} == {**plain.config, "sigma_scale": None}
    assert {k: v for k, v in calibrated.training.items() if k != "sigma_calibration"} == plain.training

    def everywhere(lines: list, pose: str) -> float:
        return next(x.rms for x in lines if (x.pose, x.joints, x.step) == (pose, "all", 0))

    for pose in ("image only", "anchored"):
        assert abs(everywhere(before, pose) - 1) > 0.1
        assert everywhere(after, pose) == pytest.approx(1, abs=1e-3)
    once = (folder / checkpoints.MANIFEST).read_bytes()
    calibration.calibrate(folder, data)  # from the sigma of the readout, not from the scaled one
    assert (folder / checkpoints.MANIFEST).read_bytes() == once
    assert Forecaster.load(folder).horizon == len(scale.anchored)


def test_test_and_training_episodes_are_refused(folders: tuple[Path, Path]) -> None:
    folder, data = folders
    untouched = (folder / checkpoints.MANIFEST).read_bytes()
    for seed in (2_000_000, 5):
        episode(seed).save(data / f"none_{seed:07d}.h5")
        with pytest.raises(EpisodeError, match=f"seed {seed}; sigma is calibrated on validation episodes only"):
            calibration.calibrate(folder, data)
        (data / f"none_{seed:07d}.h5").unlink()
    assert (folder / checkpoints.MANIFEST).read_bytes() == untouched
