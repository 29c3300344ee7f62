"""Metrics, baselines and intervals against cases worked out by hand, and against properties that must always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thinkjepa_ros.evaluation import baselines, metrics
from thinkjepa_ros.evaluation.bootstrap import bootstrap_mean, paired_bootstrap

NAN = float("nan")


def by_hand():
    """Two forecasts, two steps, two joints with errors [[3, 4], [5, -]] and [[1, -], [-, -]] metres (- = no truth)."""
    truth = np.zeros((2, 2, 2, 3))
    pred = np.zeros((2, 2, 2, 3))
    pred[0, 0, 0] = [3, 0, 0]
    pred[0, 0, 1] = [0, 4, 0]
    pred[0, 1, 0] = [3, 0, 4]
    pred[1, 0, 0] = [0, 0, -1]
    mask = np.array([[[1, 1], [1, 0]], [[1, 1], [0, 0]]], bool)
    truth[1, 0, 1, 2] = NAN
    return pred, truth, mask


def test_errors_by_hand():
    errors = metrics.displacement_errors(*by_hand())
    np.testing.assert_allclose(errors, [[[3, 4], [5, NAN]], [[1, NAN], [NAN, NAN]]])
    np.testing.assert_allclose(metrics.ade(errors), [4, 1])
    np.testing.assert_allclose(metrics.ade(errors, 1), [3.5, 1])
    np.testing.assert_allclose(metrics.fde(errors), [5, NAN])
    np.testing.assert_allclose(metrics.fde(errors, 1), [3.5, 1])
    np.testing.assert_allclose(metrics.accuracy(errors, 3.5), [1 / 3, 1])
    np.testing.assert_allclose(metrics.step_curve(errors), [8 / 3, 5])
    np.testing.assert_allclose(metrics.joint_curve(errors), [3, 4])
    np.testing.assert_allclose(metrics.per_episode_mean(metrics.ade(errors), [7, 3]), [1, 4])


def test_nothing_known_is_nan_without_a_warning(recwarn):
    errors = np.full((1, 2, 2), NAN)
    assert np.isnan(metrics.ade(errors)).all() and np.isnan(metrics.fde(errors)).all()
    assert np.isnan(metrics.accuracy(errors, 1.0)).all()
    assert np.isnan(metrics.per_episode_mean([NAN, NAN], [0, 0])).all()
    assert not recwarn.list


def test_a_missing_answer_is_refused_and_can_be_left_out_for_all():
    pred, truth, mask = by_hand()
    pred[0, 0, 1] = NAN
    with pytest.raises(ValueError, match=r"1 predictions are not finite.*sample 0, step 0, joint 1"):
        metrics.displacement_errors(pred, truth, mask)
    common = metrics.answered_by_all(mask, pred, truth * 0)
    assert mask[0, 0, 1] and not common[0, 0, 1]
    np.testing.assert_allclose(metrics.ade(metrics.displacement_errors(pred, truth, common)), [4, 1])


@pytest.mark.parametrize("steps", [0, 3, -1])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match="horizon of 2 steps"):
        metrics.ade(np.zeros((1, 2, 1)), steps)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[N, T, J, 3\]"):
        metrics.displacement_errors(np.zeros((1, 2, 1, 3)), np.zeros((1, 3, 1, 3)))
    with pytest.raises(ValueError, match="mask"):
        metrics.displacement_errors(np.zeros((1, 2, 1, 3)), np.zeros((1, 2, 1, 3)), np.ones((1, 2), bool))
    assert metrics.steps_of(1.6, 0.1, 32) == 16
    with pytest.raises(ValueError, match="64 steps"):
        metrics.steps_of(6.4, 0.1, 32)


def test_moving_hand_is_scored_apart():
    groups = metrics.joint_groups(["right_wrist", "right_palm", "left_wrist", "cup"])
    assert {name: list(indices) for name, indices in groups.items()} == {
        "right hand": [0, 1],
        "left hand": [2],
        "other": [3],
    }
    present = np.zeros((1, 4, 3))
    truth = np.zeros((1, 5, 4, 3))
    truth[0, 3, 0, 0] = 0.08  # the wrist moves 8 cm, the palm is unknown then: the group moves
    truth[0, 3, 1] = NAN
    truth[0, :, 2, 1] = 0.02  # below the threshold
    truth[0, :, 3] = NAN  # never seen: not called moving
    moving = metrics.moving_joints(present, truth, groups)
    np.testing.assert_array_equal(moving, [[True, True, False, False]])
    errors = np.arange(20.0).reshape(1, 5, 4)
    np.testing.assert_allclose(metrics.ade(metrics.only(errors, moving)), errors[..., :2].mean())
    np.testing.assert_allclose(metrics.ade(metrics.only(errors, ~moving)), errors[..., 2:].mean())
    np.testing.assert_allclose(metrics.ade(metrics.only(errors, moving[0])), errors[..., :2].mean())


finite = st.floats(-2, 2, width=32)


@given(hnp.arrays(np.float64, (3, 4, 2, 3), elements=finite), hnp.arrays(bool, (3, 4, 2)), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_masked_values_never_matter(points, mask, steps):
    """Whatever stands behind the mask changes nothing, and NaN truth is the same as a mask."""
    truth = np.zeros_like(points)
    errors = metrics.displacement_errors(points, truth, mask)
    disturbed = np.where(mask[..., None], points, NAN)
    hidden = np.where(mask[..., None], truth, NAN)
    for again in (metrics.displacement_errors(disturbed, truth, mask), metrics.displacement_errors(points, hidden)):
        np.testing.assert_array_equal(again, errors)
    for value in (metrics.ade(errors, steps), metrics.fde(errors, steps)):
        known = value[~np.isnan(value)]
        assert (known >= 0).all() and (known <= np.linalg.norm(points, axis=-1).max(initial=0) + 1e-12).all()


times = st.lists(st.floats(0.02, 0.3), min_size=3, max_size=8).map(lambda gaps: np.cumsum(gaps) + 1.7e9)


@given(times, hnp.arrays(np.float64, (2, 3), elements=finite), hnp.arrays(np.float64, (2, 3), elements=finite))
@settings(max_examples=60, deadline=None)
def test_constant_velocity_is_exact_on_straight_lines_at_any_stamps(stamps, start, speed):
    past = (start + (stamps - stamps[-1])[:, None, None] * speed)[None]
    future = start + (0.1 * np.arange(1, 6))[:, None, None] * speed
    np.testing.assert_allclose(baselines.constant_velocity(past, stamps[None], 0.1, 5)[0], future, atol=2e-5)


@given(times, hnp.arrays(np.float64, (1, 8, 2, 3), elements=finite))
@settings(max_examples=60, deadline=None)
def test_damped_velocity_lies_between_hold_and_constant_velocity(stamps, noise):
    past, stamps = noise[:, : len(stamps)], stamps[None]
    still = baselines.hold(past[:, -1], 6)
    onward = baselines.constant_velocity(past, stamps, 0.1, 6)
    damped = baselines.damped_velocity(past, stamps, 0.1, 6)
    assert (np.abs(damped - still) <= np.abs(onward - still) + 1e-9).all()
    np.testing.assert_allclose(baselines.damped_velocity(past, stamps, 0.1, 6, damping_s=1e-9), still, atol=1e-6)
    np.testing.assert_allclose(baselines.damped_velocity(past, stamps, 0.1, 6, damping_s=1e9), onward, atol=1e-6)


def test_damped_velocity_by_hand():
    past = np.array([[[[0.0, 0, 0]], [[0.1, 0, 0]]]])
    got = baselines.damped_velocity(past, [[5.0, 5.1]], 0.2, 2, damping_s=0.5)
    np.testing.assert_allclose(got[0, :, 0, 0], 0.1 + 0.5 * (1 - np.exp([-0.4, -0.8])))


def test_missing_poses():
    past = np.zeros((1, 4, 3, 3))
    past[0, :, :, 0] = np.array([0.0, 0.1, 0.2, 0.3])[:, None]
    past[0, 1, 0] = NAN  # a gap: the line is still known
    past[0, 3, 1] = NAN  # not known now: no answer
    past[0, :3, 2] = NAN  # known once: no velocity
    got = baselines.constant_velocity(past, [[0.0, 0.1, 0.2, 0.3]], 0.1, 1)[0, 0, :, 0]
    np.testing.assert_allclose(got, [0.4, NAN, 0.3])


def test_a_slow_camera_still_has_a_velocity_and_old_poses_do_not_count():
    past = np.array([[[[9.0, 0, 0]], [[0.0, 0, 0]], [[1.0, 0, 0]]]])
    assert baselines.velocity(past, [[0.0, 1.0, 2.0]])[0, 0, 0] == pytest.approx(1.0)


def test_bad_stamps():
    with pytest.raises(ValueError, match="strictly ascending"):
        baselines.constant_velocity(np.zeros((1, 2, 1, 3)), [[1.0, 1.0]], 0.1, 2)


def test_bootstrap_by_hand():
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    mean, low, high = bootstrap_mean([1.0])
    assert mean == 1.0 and np.isnan([low, high]).all()
    assert np.isnan(bootstrap_mean([])).all()
    assert bootstrap_mean([1.0, NAN, 3.0]).mean == 2.0
    # of two episodes, 0 and 1, the resampled mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4: 95 % is all of it
    assert bootstrap_mean([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert bootstrap_mean(np.arange(9.0)) == bootstrap_mean(np.arange(9.0), seed=0)
    assert bootstrap_mean(np.arange(9.0)) != bootstrap_mean(np.arange(9.0), seed=1)


def test_interval_has_the_known_width_of_a_normal_mean():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    mean, low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_pairs_remove_how_hard_an_episode_is():
    random = np.random.default_rng(0)
    hard = random.normal(10, 5, 40)
    a, b = hard + random.normal(0.3, 0.2, 40), hard
    paired = paired_bootstrap(a, b)
    assert paired.excludes_zero and paired.mean == pytest.approx((a - b).mean())
    assert bootstrap_mean(a).low < bootstrap_mean(b).high  # apart, the two intervals overlap
    assert not paired_bootstrap(b, b).excludes_zero
    with pytest.raises(ValueError, match="same episodes"):
        paired_bootstrap(a, b[:-1])


@given(hnp.arrays(np.float64, st.integers(2, 30), elements=finite))
@settings(max_examples=40, deadline=None)
def test_interval_contains_the_mean_and_stays_in_range(values):
    mean, low, high = bootstrap_mean(values, n=400)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12
    assert low - 1e-9 <= mean <= high + 1e-9 or len(values) < 8
