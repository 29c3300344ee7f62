"""A network taken over for other joints: what it knows goes with the names, the rest is new."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from training_kit import CAMERA, small_net

from thinkjepa_ros.data.episode import JOINT_NAMES
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.jepa.model import ForecastNet
from thinkjepa_ros.train.transplant import configuration, taken_over

#: Two joints that the small network knows, in another order, around two that it does not.
NAMES = ("gripper", JOINT_NAMES[7], JOINT_NAMES[2], "elbow")
PLACES = [7, 2]


def known(readout: str = "soft_argmax") -> ForecastNet:
    """A network whose every weight says which it is: no two are equal."""
    net = ForecastNet(dataclasses.replace(small_net().config, readout=readout))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.rand(p.shape, generator=generator) * 0.2 - 0.1)
    return net.eval()


@pytest.mark.parametrize("readout", ["soft_argmax", "attentive"])
def test_joints_of_the_same_name_are_found_where_they_were(readout: str) -> None:
    """With the rows of all others and what mixes joints silenced, a joint must be what it was, to the last bit."""
    net = known(readout)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if "correct" in name or name.startswith(("motion.pose", "motion.gather", "pose.blocks")):
                tensor.zero_()
    config = configuration(net.config, NAMES, CAMERA, None)
    other = taken_over(net, config, seed=0)
    with torch.no_grad():
        for name, tensor in other.named_parameters():
            if "correct" in name or name.startswith(("motion.pose", "motion.gather", "pose.blocks")):
                tensor.zero_()
        other.motion.pose.bias.copy_(net.motion.pose.bias)
    latent = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))
    future = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    past = torch.full((2, 4, 24, 3), 0.2)  # alike, so that their middle does not depend on how many there are
    with torch.no_grad():
        before, after = net.pose(latent), other.pose(latent)
        moved, sigma = net.motion(future, latent, past)
        again, its_sigma = other.motion(future, latent, past[:, :, :4])
    assert after.shape == (2, 4, 3) and again.shape == (2, 6, 4, 3)
    for ours, theirs in ((after[:, 1:3], before[:, PLACES]), (again[:, :, 1:3], moved[:, :, PLACES])):
        assert torch.allclose(ours, theirs, atol=1e-6) and theirs.abs().max() > 1e-3
    assert torch.allclose(its_sigma[..., 1:3], sigma[..., PLACES], atol=1e-6)


def test_the_weights_that_mix_joints_keep_the_columns_of_a_name() -> None:
    net = known()
    other = taken_over(net, configuration(net.config, NAMES, CAMERA, None), seed=0)
    columns = net.pose.correct1.weight.unflatten(1, (24, -1))[:, PLACES]
    assert torch.equal(other.pose.correct1.weight.unflatten(1, (4, -1))[:, 1:3], columns)
    columns = net.motion.pose.weight.unflatten(1, (4, 24, 3))[:, :, PLACES]
    assert torch.equal(other.motion.pose.weight.unflatten(1, (4, 4, 3))[:, :, 1:3], columns)
    new = other.pose.place.weight.detach().unflatten(0, (4, 4))[[0, 3]]
    fresh = ForecastNet(other.config)
    assert float(new.std()) == pytest.approx(float(fresh.pose.place.weight.detach().std()), rel=0.3), (
        "as a new one is drawn"
    )


def test_encoder_and_predictor_are_taken_over_whatever_the_joints() -> None:
    net = known()
    for names in (NAMES, ("a", "b"), JOINT_NAMES):
        other = taken_over(net, configuration(net.config, names, CAMERA, None), seed=0)
        mine, theirs = other.state_dict(), net.state_dict()
        shared = [name for name in mine if name.startswith(("encoder.", "predictor."))]
        assert len(shared) > 20 and all(torch.equal(mine[name], theirs[name]) for name in shared)
        assert not any("film" in name for name in mine) and other.guided_motion is None
    for name, tensor in mine.items():  # of the same joints, in the same order
        assert torch.equal(tensor, theirs[name]), name


def test_what_is_new_follows_from_the_seed() -> None:
    net = known()
    config = configuration(net.config, NAMES, CAMERA, None)
    one, same, other = (taken_over(net, config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], tensor) for name, tensor in same.items())
    assert not torch.equal(one["pose.place.weight"], other["pose.place.weight"])


def test_a_guide_goes_with_its_thinker_and_an_other_one_begins_closed() -> None:
    net = known()
    same = configuration(net.config, NAMES, CAMERA, (2, 6))
    theirs = net.predictor.film.state_dict()
    mine = taken_over(net, same, seed=0, guide=True).predictor.film.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    for config, guide in ((same, False), (configuration(net.config, NAMES, CAMERA, (4, 8)), True)):
        other = taken_over(net, config, seed=0, guide=guide).eval()
        layers, width = config.predictor.guide_layers, config.predictor.guide_width
        payload = Payload.pooled(torch.randn(1, layers, 2, width), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
        past, now = torch.randn(1, 3, 16, 24), torch.randn(1, 16, 24)
        with torch.no_grad():
            assert torch.equal(other.predictor(past, now, payload), other.predictor(past, now)), "it changes nothing"


def test_a_map_of_layers_that_fits_no_more_is_made_anew() -> None:
    net = small_net()
    by_hand = dataclasses.replace(net.config.predictor, guide_map=(1,))
    config = dataclasses.replace(net.config, predictor=by_hand, sigma_scale=None)
    assert configuration(config, NAMES, CAMERA, (2, 6)).predictor.guide_map == (1,)
    assert configuration(config, NAMES, CAMERA, (1, 6)).predictor.guide_map == "spread"
