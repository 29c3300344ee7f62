"""Calibrated sigma: fitted on held-out episodes, applied apart to observed and unobserved joints, reported as coverage."""

from __future__ import annotations

import dataclasses
import json

import jepa_kit as kit
import numpy as np
import pytest
import torch

from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.readout import SigmaScale
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
        [[1.0] * 6, [1.0] * 6],
        3,
    ],
)
def test_curves_that_make_no_sense_are_refused(scale: object) -> None:
    values = json.loads(json.dumps({**kit.config().as_dict(), "sigma_scale": scale}))
    with pytest.raises(ValueError, match="sigma_scale must have"):
        model.ModelConfig.from_dict(values)
