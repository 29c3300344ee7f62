"""V-JEPA 2-AC: equal to its formulas, causal over steps, the same with and without a cache, differentiable poses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from thinkjepa_ros.jepa.ac import ACConfig, ACPredictor, Cache
from thinkjepa_ros.jepa.pose import compute_new_pose, poses_to_diff


def predictor(seed: int = 0, **changes: object) -> ACPredictor:
    """A small one with weights large enough that every part matters."""
    torch.manual_seed(seed)
    config = {"latent_width": 24, "width": 48, "depth": 3, "heads": 2, "rows": 2, "columns": 3, **changes}
    net = ACPredictor(ACConfig.from_dict(config))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn_like(parameter) * 0.08
    return net.eval().requires_grad_(False)


def inputs(net: ACPredictor, batch: int = 2, steps: int = 4, seed: int = 1) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    c = net.config
    return (
        torch.randn(batch, steps, c.rows * c.columns, c.latent_width, generator=g),
        torch.randn(batch, steps, c.action_dim, generator=g),
        torch.randn(batch, steps, c.action_dim, generator=g),
    )


def test_the_published_size_has_305_million_parameters() -> None:
    with torch.device("meta"):
        net = ACPredictor(ACConfig())
    assert sum(p.numel() for p in net.parameters()) == 305_220_992


# --- causality, batches, repetition ---


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_what_happens_at_a_step_never_changes_an_earlier_prediction(which: int, k: int) -> None:
    net = predictor()
    before = inputs(net)
    after = [x.clone() for x in before]
    after[which][:, k] += 1.0
    a, b = net(*before), net(*after)
    assert torch.equal(a[:, :k], b[:, :k])
    assert not torch.allclose(a[:, k], b[:, k]) and not torch.allclose(a[:, -1], b[:, -1])


def test_a_row_of_a_batch_is_what_it_is_alone_and_twice_the_same() -> None:
    net = predictor()
    x = inputs(net, batch=3)
    y = net(*x)
    assert torch.equal(y, net(*x))
    for i in range(3):
        torch.testing.assert_close(net(*(part[i : i + 1] for part in x)), y[i : i + 1], atol=1e-6, rtol=1e-5)


# --- the cache ---


@pytest.mark.parametrize("extrinsics", [False, True])
def test_steps_with_a_cache_equal_the_full_pass(extrinsics: bool) -> None:
    net = predictor(extrinsics=extrinsics)
    z, a, s = inputs(net, steps=5)
    camera = torch.randn(2, 5, 6) if extrinsics else None
    full = net(z, a, s, camera)
    cache = net.start(z[:, :2], a[:, :2], s[:, :2], None if camera is None else camera[:, :2])
    cache = net.start(z[:, 2:3], a[:, 2:3], s[:, 2:3], None if camera is None else camera[:, 2:3], cache)
    for k in (3, 4):
        y, cache = net.step(z[:, k], a[:, k], s[:, k], cache, None if camera is None else camera[:, k])
        torch.testing.assert_close(y, full[:, k], atol=1e-6, rtol=1e-5)
    assert cache.steps == 5


def test_one_context_serves_all_candidates_and_is_held_once() -> None:
    net = predictor()
    z, a, s = inputs(net, batch=1, steps=2)
    actions = torch.randn(5, 3, 7) * 0.1
    cache = net.start(z, a, s)
    now, state = torch.randn(1, 6, 24), torch.randn(1, 7)
    out = net.rollout(now, actions, state, cache)
    assert out.cache.segments[0] is cache.segments[0] and out.cache.segments[0][0][0].shape[0] == 1
    one, _ = out.cache.segments[0][0]
    alone = Cache(2, (cache.segments[0],)).memory(0, 5)
    assert alone is not None and alone[0].data_ptr() == one.data_ptr() and alone[0].stride(0) == 0
    for i in range(5):
        single = net.rollout(now, actions[i : i + 1], state, cache)
        torch.testing.assert_close(single.latents[0], out.latents[i], atol=3e-6, rtol=1e-5)
        torch.testing.assert_close(single.states[0], out.states[i], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_rollout_equals_the_growing_sequence_recomputed_at_every_step(normalize: bool) -> None:
    net = predictor()
    z, a, s = inputs(net, batch=1, steps=2)
    now, state, actions = torch.randn(1, 6, 24), torch.randn(1, 7), torch.randn(4, 3, 7) * 0.1
    out = net.rollout(now, actions, state, net.start(z, a, s), normalize_reps=normalize)
    frames = torch.cat((z, now[:, None]), 1).expand(4, -1, -1, -1)
    states = torch.cat((s, state[:, None]), 1).expand(4, -1, -1)
    taken = a.expand(4, -1, -1)
    for h in range(3):
        taken = torch.cat((taken, actions[:, h : h + 1]), 1)
        y = net(frames, taken, states)[:, -1]
        y = F.layer_norm(y, (24,)) if normalize else y
        pose = compute_new_pose(states[:, -1], actions[:, h])
        torch.testing.assert_close(out.latents[:, h], y, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(out.states[:, h], pose, atol=1e-6, rtol=1e-5)
        frames, states = torch.cat((frames, y[:, None]), 1), torch.cat((states, pose[:, None]), 1)


def test_a_rollout_lets_gradients_reach_every_action_whatever_was_planned_before() -> None:
    net = predictor()
    now, state = torch.randn(1, 6, 24), torch.zeros(1, 7)
    with torch.inference_mode():  # tables and the cache are made here, and used below
        cache = net.start(*inputs(net, batch=1, steps=2))
        net.rollout(now, torch.zeros(3, 3, 7), state, cache)
    actions = (0.1 * torch.randn(3, 3, 7)).requires_grad_()
    net.rollout(now, actions, state, cache).latents[:, -1].abs().mean().backward()
    assert actions.grad is not None and actions.grad.isfinite().all()
    assert (actions.grad.abs().amax((0, 2)) > 0).all()


def test_it_can_be_trained_after_it_has_planned() -> None:
    net = predictor().requires_grad_(True)
    with torch.inference_mode():
        net(*inputs(net))
    net(*inputs(net)).abs().mean().backward()
    untouched = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert untouched == {"extrinsics.weight", "extrinsics.bias"}


def test_a_rollout_in_double_precision_has_the_right_gradient() -> None:
    net = predictor(depth=1, width=12, heads=1, latent_width=4, rows=1, columns=2).double()
    now = torch.randn(1, 2, 4, dtype=torch.float64)
    state = 0.2 * torch.rand(1, 7, dtype=torch.float64) + 0.3
    actions = (0.1 * torch.randn(1, 2, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: net.rollout(now, a, state).latents, actions, atol=1e-6)


def test_it_runs_in_bfloat16() -> None:
    """The published code stops with a mismatch of types here."""
    net = predictor()
    wanted = net(*inputs(net))
    got = net.bfloat16()(*(part.bfloat16() for part in inputs(net)))
    assert got.dtype == torch.bfloat16
    assert F.cosine_similarity(got.float().flatten(), wanted.flatten(), 0) > 0.999


def test_wrong_inputs_are_refused_with_words() -> None:
    net = predictor()
    z, a, s = inputs(net)
    with pytest.raises(ValueError, match="latents are"):
        net(z[:, :, :5], a, s)
    with pytest.raises(ValueError, match="without camera extrinsics"):
        net(z, a, s, torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="needs camera extrinsics"):
        predictor(extrinsics=True)(z, a, s)
    with pytest.raises(ValueError, match="integrates poses"):
        predictor(action_dim=5).rollout(z[:, 0], a[:, :, :5], s[:, 0, :5])


# --- poses ---

START = torch.tensor([0.58044, -0.00202, 0.24756, -3.06662, 0.03053, -1.91275, 0.99697])
END = torch.tensor([0.67281, 0.02897, 0.33184, -3.05144, 0.01771, -1.9125, 0.99697])

angles = st.tuples(*[st.floats(-math.pi, math.pi)] * 3)


def test_the_published_example_gives_its_action_and_back() -> None:
    """The first transition of the notebook of V-JEPA 2."""
    action = poses_to_diff(START, END)
    expected = torch.tensor([0.0924, 0.0310, 0.0843, -0.0172, -0.0100, -0.0000, 0.0])
    torch.testing.assert_close(action, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(compute_new_pose(START, action), END, atol=1e-5, rtol=0)


@given(angles, angles)
@settings(deadline=None)
def test_rotations_compose_as_scipy_composes_them(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    pose = torch.tensor([0.1, 0.2, 0.3, *first, 0.5], dtype=torch.float64)
    action = torch.tensor([0.0, 0.0, 0.1, *second, 0.1], dtype=torch.float64)
    moved = compute_new_pose(pose, action)
    want = Rotation.from_euler("xyz", second) * Rotation.from_euler("xyz", first)
    have = Rotation.from_euler("xyz", moved[3:6].numpy())
    assert (have.inv() * want).magnitude() < 1e-5
    back = Rotation.from_euler("xyz", poses_to_diff(pose, moved)[3:6].numpy())
    assert (back.inv() * Rotation.from_euler("xyz", second)).magnitude() < 1e-5
    if abs(moved[4]) < 1.5:  # away from gimbal lock the angles themselves are unique
        turns = (moved[3:6].numpy() - want.as_euler("xyz")) / (2 * math.pi)
        assert abs(turns - turns.round()).max() < 1e-6 and abs(moved[3:6]).max() <= math.pi


def test_angles_wrap_at_half_a_turn() -> None:
    pose = torch.tensor([0.0, 0, 0, math.pi - 0.01, 0, 0, 0])
    moved = compute_new_pose(pose, torch.tensor([0.0, 0, 0, 0.03, 0, 0, 0]))
    assert moved[3] == pytest.approx(-math.pi + 0.02, abs=1e-5)
    assert poses_to_diff(pose, moved)[3] == pytest.approx(0.03, abs=1e-5)


def test_the_gripper_stays_between_open_and_closed() -> None:
    poses = torch.tensor([[0.0] * 6 + [0.9], [0.0] * 6 + [0.1]])
    actions = torch.tensor([[0.0] * 6 + [0.5], [0.0] * 6 + [-0.5]])
    assert compute_new_pose(poses, actions)[:, 6].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("pitch", [0.0, math.pi / 2, -math.pi / 2])
def test_poses_have_finite_gradients_even_at_gimbal_lock(pitch: float) -> None:
    pose = torch.tensor([[0.0, 0, 0, 0.3, pitch, 0.2, 0.5]], dtype=torch.float64)
    action = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    compute_new_pose(pose, action).sum().backward()
    assert action.grad is not None and action.grad.isfinite().all()
