"""States and actions in the camera's orientation: there and back, in numpy and torch, and limits in the base frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from thinkjepa_ros.control import space

angles = st.tuples(*[st.floats(-3.1, 3.1) for _ in range(3)])


def pose(euler: tuple[float, float, float] = (-2.2, 0.1, 0.3), place: tuple[float, float, float] = (0.1, -0.9, 0.7)):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", euler).as_matrix()
    out[:3, 3] = place
    return out


def test_a_state_is_the_point_that_the_camera_sees() -> None:
    """A camera above the table that looks down: right stays right, away from it is up in the picture, height is
    nearness.
    """
    down = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, -1, 1.2], [0, 0, 0, 1]])
    seen = space.state_to_camera(np.array([0.2, 0.6, 0.3, 0.7], np.float32), down)
    np.testing.assert_allclose(seen, [0.2, -0.1, 0.9, 0.7], atol=1e-6)
    moved = space.action_to_camera(np.array([0.01, 0.02, 0.03, 1.0], np.float32), down)
    np.testing.assert_allclose(moved, [0.01, -0.02, -0.03, 1.0], atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(angles, st.integers(0, 2**31))
def test_there_and_back_is_where_it_was(euler: tuple[float, float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(5, 3, 4))
    where = pose(euler, tuple(rng.normal(size=3)))
    for there, back in (
        (space.state_to_camera, space.state_to_base),
        (space.action_to_camera, space.action_to_base),
    ):
        np.testing.assert_allclose(back(there(values, where), where), values, atol=1e-12)


def test_an_action_is_the_difference_of_two_states() -> None:
    rng = np.random.default_rng(0)
    here, there = rng.normal(size=(2, 7, 4))
    difference = space.state_to_camera(there, pose()) - space.state_to_camera(here, pose())
    np.testing.assert_allclose(space.action_to_camera(there - here, pose()), difference, atol=1e-12)


def test_tensors_give_the_same_numbers_and_carry_a_gradient() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(6, 4)).astype(np.float32)
    poses = np.stack([pose((i, 0.2, -i), (i, 1, 2)) for i in range(6)])
    for function in (space.state_to_camera, space.state_to_base, space.action_to_camera, space.action_to_base):
        one = function(values, poses)
        tensor = torch.from_numpy(values).requires_grad_()
        other = function(tensor, torch.from_numpy(poses))
        assert one.dtype == np.float32 and other.dtype == torch.float32
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-5)
        other.sum().backward()
        assert tensor.grad is not None and bool((tensor.grad != 0).any())
        for i in range(6):  # a pose for each row is as each row alone
            np.testing.assert_allclose(function(values[i], poses[i]), one[i], atol=1e-6)


def test_limits_hold_along_the_axes_of_the_base_and_leave_what_is_inside() -> None:
    rng = np.random.default_rng(2)
    wild = rng.normal(scale=0.1, size=(1000, 4))
    for kind in (lambda x: x, torch.from_numpy):
        tame = space.clipped(kind(wild), kind(pose()), 0.06)
        base = np.asarray(space.action_to_base(tame, kind(pose())))
        assert np.abs(base[:, :3]).max() <= 0.06 + 1e-12 and base[:, 3].min() == 0 and base[:, 3].max() <= 1
        inside = (np.abs(space.action_to_base(wild, pose())[:, :3]) <= 0.06).all(1)
        assert 50 < inside.sum() < 950
        np.testing.assert_allclose(np.asarray(tame)[inside, :3], wild[inside, :3], atol=1e-12)


def test_the_columns_of_an_episode_are_place_and_closedness() -> None:
    rows = np.arange(14.0).reshape(2, 7)
    np.testing.assert_array_equal(space.chosen(rows), [[0, 1, 2, 6], [7, 8, 9, 13]])
    with pytest.raises(ValueError, match="7 columns"):
        space.chosen(rows[:, :4])
    with pytest.raises(ValueError, match="4 numbers"):
        space.state_to_camera(rows, pose())
