"""Objectives of joint-embedding training: formulas, the moving target, and a gauge that tells collapse from health."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from thinkjepa_ros.train import objectives
from thinkjepa_ros.train.objectives import CollapseGauge


def test_targets_have_no_scale_and_no_offset() -> None:
    latents = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    out = objectives.normalised(latents)
    assert torch.allclose(out, objectives.normalised(7 * latents + 3), atol=1e-4)
    assert torch.allclose(out.square().mean(-1), torch.ones(2, 5), atol=1e-4) and not out.mean(-1).abs().max() > 1e-5


def test_the_prediction_loss_is_the_mean_absolute_error() -> None:
    predicted, target = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 4.0], [0.0, -4.0]]])
    assert objectives.prediction_loss(predicted, target).item() == (1 + 2 + 0 + 4) / 4
    assert objectives.prediction_loss(predicted, target, exponent=2).item() == (1 + 4 + 0 + 16) / 4 / 2
    weight = torch.tensor([[1.0, 0.5]])
    assert objectives.prediction_loss(predicted, target, weight=weight).item() == (1 + 2 + 0 + 2) / 4


def test_momentum_starts_ends_and_bends_as_asked() -> None:
    assert {objectives.momentum(s, 10, 0.99925, 0.99925) for s in range(11)} == {0.99925}
    for shape in ("linear", "cosine"):
        values = [objectives.momentum(s, 100, 0.998, 1.0, shape) for s in range(101)]
        assert values == sorted(values) and values[0] == pytest.approx(0.998) and values[-1] == 1.0
        assert values[50] == pytest.approx(0.999)
    linear, cosine = (objectives.momentum(25, 100, 0.0, 1.0, s) for s in ("linear", "cosine"))
    assert linear == pytest.approx(0.25) and cosine == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_the_target_moves_towards_the_online_encoder_without_a_gradient() -> None:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1.0)
    online(torch.randn(6, 3))  # moves the running statistics
    before = [p.clone() for p in target.parameters()]
    storage = [p.data_ptr() for p in target.parameters()]
    objectives.ema_update(target, online, 0.9)
    for old, new in zip(before, target.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1, atol=1e-6) and not new.requires_grad
    assert [p.data_ptr() for p in target.parameters()] == storage
    assert all(torch.equal(a, b) for a, b in zip(target.buffers(), online.buffers(), strict=True))
    objectives.ema_update(target, online, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))
    objectives.ema_update(target, online, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))


def test_a_target_of_another_shape_is_refused() -> None:
    for other in (nn.Linear(3, 5), nn.Linear(3, 4, bias=False)):
        with pytest.raises(ValueError, match="not a copy"):
            objectives.ema_update(nn.Linear(3, 4), other, 0.9)


def test_sigreg_and_rank_give_the_numbers_they_always_gave() -> None:
    """The shipped mini was trained with these; values from its training code."""
    z = torch.arange(48).float().reshape(2, 4, 6).sin()
    assert objectives.sigreg(z, torch.eye(6)).item() == pytest.approx(2.7495604, rel=1e-5)
    assert objectives.effective_rank(z[0]) == pytest.approx(1.4154352, rel=1e-4)


def test_sigreg_is_small_for_a_gaussian_and_large_for_a_collapse() -> None:
    torch.manual_seed(0)
    directions = objectives.random_directions(np.random.default_rng(0), 16, 64)
    assert torch.allclose(directions.norm(dim=0), torch.ones(64), atol=1e-6)
    gaussian = objectives.sigreg(torch.randn(1, 256, 16), directions)
    collapsed = objectives.sigreg(0.01 * torch.randn(1, 256, 16), directions)
    narrow = torch.randn(1, 256, 1) * torch.ones(16) / 4  # one direction only
    assert gaussian < 2 < objectives.sigreg(narrow, directions) < collapsed
    assert objectives.effective_rank(torch.randn(500, 16)) > 14 > 2 > objectives.effective_rank(narrow[0])


def test_variance_and_covariance_terms_ask_for_wide_and_independent_dimensions() -> None:
    torch.manual_seed(0)
    z = torch.randn(4000, 3)
    z = (z - z.mean(0)) / z.std(0)
    assert objectives.variance_loss(0.25 * z).item() == pytest.approx(0.75, abs=1e-2)
    assert objectives.variance_loss(2 * z).item() == 0
    assert objectives.covariance_loss(z).item() < 0.01
    same = z[:, :1].expand(-1, 3)
    assert objectives.covariance_loss(same).item() == pytest.approx(6 / 3, abs=1e-3)


def test_the_gauge_tells_collapse_from_health() -> None:
    torch.manual_seed(0)
    gauge = CollapseGauge()
    z = torch.randn(400, 64)
    healthy = gauge.read(z, 0.4, 0.8)
    assert not healthy.collapsed and healthy.columns().keys() == {"prediction_over_copy", "spread", "rank"}
    assert healthy.prediction_over_copy == pytest.approx(0.5) and healthy.spread == pytest.approx(1, abs=0.05)
    point = gauge.read(3 + 1e-3 * z, 1e-4, 1e-4)  # identical latents; their noise has full rank
    line = gauge.read(torch.randn(400, 1) * torch.ones(64), 0.1, 0.2)  # wide, but one direction
    assert point.collapsed and "spread" in point.sentence and "rank" not in point.sentence
    assert line.collapsed and "rank" in line.sentence and "spread" not in line.sentence
    constant = gauge.read(torch.ones(10, 64), 0.0, 0.0)
    assert constant.collapsed and constant.prediction_over_copy == 0
