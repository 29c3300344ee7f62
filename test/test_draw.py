"""Pictures: right places, right colours, every warning, and no image or point set that breaks them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.data.episode import JOINT_NAMES
from thinkjepa_ros.evaluation.draw import (
    ALARM,
    BASELINE,
    PREDICTED,
    TRUE,
    WARN,
    assumed_camera,
    bones,
    draw_forecast,
    path_joints,
    warnings,
)
from thinkjepa_ros.values import Camera, Forecast


def camera(width=640, height=480):
    return Camera(width, height, 0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)


def forecast(joints=1, steps=10, names=None, **changes):
    """All joints go from the left to the right, 20 cm, 1 m away."""
    present = np.zeros((joints, 3), np.float32) + np.array([-0.2, 0, 1], np.float32)
    positions = np.repeat(present[None], steps, 0)
    positions[..., 0] += 0.4 * np.arange(1, steps + 1)[:, None] / steps
    names = names or tuple(f"point_{i}" for i in range(joints))
    fields = {"model_id": "m", "domain": "simulation", **changes}
    return Forecast(positions, np.zeros((steps, joints)), present, names, 0.1, 0, **fields)


def near(pixel, colour, tolerance=60):
    return np.abs(np.asarray(pixel, int) - colour).max() < tolerance


@pytest.mark.parametrize("width", [320, 640, 1280])
def test_paths_end_where_the_points_project(width):
    view = camera(width, width * 3 // 4)
    rgb = np.full((view.height, view.width, 3), 90, np.uint8)
    before = rgb.copy()
    shift = np.array([0, 0.1, 0])
    one = forecast()
    picture = draw_forecast(rgb, view, one, truth=one.positions + shift, baseline=one.positions - shift)
    np.testing.assert_array_equal(rgb, before)
    assert picture.shape == rgb.shape and picture.dtype == np.uint8
    for points, colour in (
        (one.positions, PREDICTED),
        (one.positions + shift, TRUE),
        (one.positions - shift, BASELINE),
    ):
        x, y = np.round(view.project(points)[-1, 0]).astype(int)
        assert near(picture[y, x], colour), (colour, picture[y, x])
    x, y = np.round(view.project(one.present)[0]).astype(int)
    assert near(picture[y, x], (255, 255, 255))


def test_paths_fade_with_time():
    view = camera()
    rgb = np.zeros((480, 640, 3), np.uint8)
    one = forecast(steps=32)
    picture = draw_forecast(rgb, view, one)
    early, late = (np.round(view.project(one.positions)[k, 0]).astype(int) for k in (3, 26))
    assert picture[early[1], early[0], 0] > 1.8 * picture[late[1], late[0], 0] > 0


def test_other_image_sizes_scale_the_camera():
    one = forecast()
    small = draw_forecast(np.zeros((240, 320, 3), np.uint8), camera(640, 480), one)
    x, y = np.round(camera(320, 240).project(one.positions)[-1, 0]).astype(int)
    assert near(small[y, x], PREDICTED)


@pytest.mark.parametrize(
    ("changes", "said", "colour"),
    [
        ({}, ["trained on simulation"], WARN),
        ({"model_id": "mini (untrained)"}, ["untrained"], ALARM),
        (
            {"model_id": "mini (untrained)", "metric": False},
            ["untrained", "camera not calibrated: scale assumed"],
            ALARM,
        ),
        ({"domain": "", "metric": False}, ["camera not calibrated: scale assumed"], WARN),
        ({"domain": ""}, [], None),
    ],
)
def test_what_must_be_known_is_stamped(changes, said, colour):
    one = forecast(**changes)
    assert [words for words, _ in warnings(one)] == said
    picture = draw_forecast(np.zeros((480, 640, 3), np.uint8), camera(), one)
    corner = picture[:40, 400:].reshape(-1, 3)
    stamped = sum(near(pixel, colour) for pixel in corner) if colour else corner.sum()
    assert stamped > 300 if colour else stamped == 0


def test_hands_and_other_points():
    assert len(bones(JOINT_NAMES)) == 26
    assert [JOINT_NAMES[i] for i in path_joints(JOINT_NAMES)][:6] == [
        "right_wrist", "right_thumb_tip", "right_index_tip", "right_middle_tip", "right_ring_tip", "right_pinky_tip",
    ]  # fmt: skip
    keypoints = tuple(f"k{i}" for i in range(12))
    assert bones(keypoints) == [] and path_joints(keypoints) == list(range(12))


def test_assumed_camera_is_the_canonical_one_over_the_central_square():
    canonical = Camera(128, 128, 100.0, 100.0, 63.5, 63.5)
    wide = assumed_camera(canonical, 640, 360)
    assert (wide.width, wide.height) == (640, 360)
    assert wide.fx == pytest.approx(100 * 360 / 128)
    # the left edge of the canonical image is the left edge of the square
    edge = canonical.project(np.array([-63.5 / 100, 0, 1.0]))
    assert edge[0] == pytest.approx(0)
    assert wide.project(np.array([-63.5 / 100, 0, 1.0]))[0] == pytest.approx(140, abs=1.5)


def test_long_captions_and_foreign_letters_stay_inside():
    rgb = np.zeros((240, 320, 3), np.uint8)
    picture = draw_forecast(rgb, camera(320, 240), forecast(24, names=JOINT_NAMES), text="the red cube " * 50 + "红色")
    assert picture[:140].max() > 0 and picture.shape == (240, 320, 3)


@given(
    st.integers(16, 400),
    st.integers(16, 300),
    st.sampled_from([1, 2, 12, 24]),
    st.integers(1, 8),
    st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_any_size_and_any_points(width, height, joints, steps, seed):
    random = np.random.default_rng(seed)
    points = random.normal(0, 1, (steps, joints, 3)) * random.choice([1e-3, 1, 1e6])
    points[random.random(points.shape) < 0.2] = np.nan
    points[random.random(points.shape) < 0.05] = np.inf
    names = JOINT_NAMES if joints == 24 else tuple(map(str, range(joints)))
    one = Forecast(points, np.abs(points[..., 0]), points[0], names, 0.1, 0, domain="simulation", metric=bool(seed % 2))
    picture = draw_forecast(
        np.zeros((height, width, 3), np.uint8), camera(width, height), one, truth=points[::-1], text="a thought"
    )
    assert picture.shape == (height, width, 3)
