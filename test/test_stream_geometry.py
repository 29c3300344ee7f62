"""CanonicalView: points land where the canonical camera says, whatever the source camera was."""

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.stream.geometry import CanonicalView, distort
from thinkjepa_ros.values import Camera

CANONICAL = Camera(128, 128, 110.0, 110.0, 63.5, 63.5)
BARREL = (-0.28, 0.09, 0.0011, -0.0007, -0.012)
RATIONAL = (0.55, 0.08, 0.0003, -0.0002, 0.01, 0.82, 0.15, 0.02)
FISHEYE = (-0.02, 0.005, -0.001, 0.0002)


def project_by_opencv(camera, points):
    """Source pixels [N, 2] of points [N, 3], by OpenCV and with lens distortion."""
    zero, points = np.zeros(3), np.asarray(points, np.float64).reshape(1, -1, 3)
    if camera.distortion_model in ("equidistant", "fisheye"):
        pixels, _ = cv2.fisheye.projectPoints(
            points, zero, zero, camera.matrix, np.array(camera.distortion or (0.0,) * 4)
        )
    else:
        pixels, _ = cv2.projectPoints(points, zero, zero, camera.matrix, np.array(camera.distortion or (0.0,) * 4))
    return pixels.reshape(-1, 2)


def spot(camera, pixel, sigma):
    """A white Gaussian spot centred at a sub-pixel place, uint8 [H, W, 3]."""
    x, y = np.arange(camera.width), np.arange(camera.height)
    light = np.exp(-((x - pixel[0]) ** 2)[None] / (2 * sigma**2) - ((y - pixel[1]) ** 2)[:, None] / (2 * sigma**2))
    return np.repeat(np.rint(250 * light).astype(np.uint8)[..., None], 3, 2)


def centre(image):
    weight = image[..., 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


SOURCES = {
    "vga": Camera(640, 480, 520.3, 515.8, 321.7, 236.2),
    "odd size, off-centre": Camera(641, 479, 430.0, 431.0, 300.2, 260.9),
    "small, enlarged": Camera(96, 80, 70.0, 70.0, 47.1, 40.3),
    "full hd": Camera(1920, 1080, 1000.0, 1002.0, 955.0, 541.0),
    "barrel": Camera(640, 480, 380.0, 381.0, 318.0, 243.0, BARREL),
    "rational": Camera(1280, 720, 610.0, 611.0, 642.0, 355.0, RATIONAL, "rational_polynomial"),
    "fisheye": Camera(848, 800, 285.0, 286.0, 421.0, 398.0, FISHEYE, "equidistant"),
    "fisheye by its other name": Camera(848, 800, 285.0, 286.0, 421.0, 398.0, FISHEYE, "fisheye"),
    "fisheye without terms": Camera(640, 480, 320.0, 320.0, 319.5, 239.5, (0.0,) * 4, "equidistant"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_points_land_where_the_canonical_camera_projects_them(name):
    source = SOURCES[name]
    view = CanonicalView(source, CANONICAL)
    for point in [(0.0, 0.0, 1.0), (0.21, -0.13, 0.7), (-0.25, 0.2, 0.8), (0.1, 0.3, 1.1)]:
        pixel = project_by_opencv(source, point)[0]
        sigma = 3.0 * source.fx / CANONICAL.fx
        found = centre(view.apply(spot(source, pixel, sigma)))
        # a round spot is not exactly round after undistortion, hence the wider bound there
        bound = 0.25 if any(source.distortion) or source.distortion_model == "equidistant" else 0.03
        assert np.abs(found - CANONICAL.project(np.array(point))).max() < bound, point


@pytest.mark.parametrize("name", [name for name in SOURCES if SOURCES[name].distortion])
def test_a_straight_grid_of_small_points_lands_on_itself(name):
    """The same without the bias of a wide spot: the map itself, taken at exact places, through OpenCV's lens model."""
    source = SOURCES[name]
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-0.5, 0.5, 21))
    bent = distort(source, x, y)
    pixels = np.stack([bent[0] * source.fx + source.cx, bent[1] * source.fy + source.cy], -1).reshape(-1, 2)
    points = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    assert np.abs(pixels - project_by_opencv(source, points)).max() < 1e-6


def test_the_canonical_view_of_the_canonical_camera_is_the_identity_bit_for_bit():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    out = CanonicalView(CANONICAL, CANONICAL).apply(image)
    assert (out == image).all() and out is not image and not np.shares_memory(out, image)
    zero_terms = Camera(128, 128, 110.0, 110.0, 63.5, 63.5, (0.0,) * 5)
    assert (CanonicalView(zero_terms, CANONICAL).apply(image) == image).all()


def test_an_integer_crop_and_an_exact_halving_are_exact():
    """Pixel centres: half the resolution has cx' = (cx - 0.5) / 2, and a crop only moves the principal point."""
    image = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    shifted = Camera(400, 300, 110.0, 110.0, 63.5 + 31, 63.5 + 17)
    assert (CanonicalView(shifted, CANONICAL).apply(image) == image[17:145, 31:159]).all()
    doubled = Camera(400, 300, 220.0, 220.0, 127.5 + 20, 127.5 + 10)
    mean = image[10:266, 20:276].reshape(128, 2, 128, 2, 3).astype(np.float64).mean((1, 3))
    assert np.abs(CanonicalView(doubled, CANONICAL).apply(image) - mean).max() <= 0.51


def test_what_a_narrow_camera_does_not_see_is_black():
    narrow = Camera(
        640, 480, 1100.0, 1100.0, 319.5, 239.5
    )  # 10 source pixels per canonical pixel: 64 x 48 of 128 x 128
    out = CanonicalView(narrow, CANONICAL).apply(np.full((480, 640, 3), 200, np.uint8))
    expected = np.zeros((128, 128, 3), np.uint8)
    expected[40:88, 32:96] = 200
    assert (out == expected).all()


def test_a_camera_that_looks_past_the_canonical_view_gives_black():
    elsewhere = Camera(640, 480, 500.0, 500.0, 5000.0, 239.5)
    assert not CanonicalView(elsewhere, CANONICAL).apply(np.full((480, 640, 3), 200, np.uint8)).any()


@pytest.mark.parametrize("size", [(640, 480), (641, 481), (1280, 720), (1920, 1080), (130, 129), (60, 80)])
@pytest.mark.parametrize("source", ["unknown", "filling"])
def test_a_flat_image_stays_flat_up_to_the_rim(size, source):
    width, height = size
    camera = None
    if source == "filling":
        focal = 110.0 * min(size) / 128
        camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    out = CanonicalView(camera, CANONICAL).apply(np.full((height, width, 3), (200, 100, 50), np.uint8))
    assert (out == (200, 100, 50)).all()


def test_a_lens_never_shows_the_image_twice():
    """Strong barrel distortion folds back beyond its valid radius: those rays must be black, not a mirror image."""
    folding = Camera(640, 480, 200.0, 200.0, 319.5, 239.5, (-0.5, 0.0, 0.0, 0.0))
    wide = Camera(128, 128, 20.0, 20.0, 63.5, 63.5)
    out = CanonicalView(folding, wide).apply(np.full((480, 640, 3), 255, np.uint8))
    y, x = np.mgrid[:128, :128]
    radius = np.hypot(x - 63.5, y - 63.5) / 20.0
    limit = (1 / 1.5) ** 0.5  # d/dr of r - 0.5 r^3 vanishes
    assert not out[radius > limit + 0.1].any()
    assert (out[radius < limit - 0.1] == 255).all()


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (1920, 1080)])
@pytest.mark.parametrize("period", [2, 3])
def test_fine_stripes_become_grey_not_moire(size, period):
    width, height = size
    stripes = np.zeros((height, width, 3), np.uint8)
    stripes[:, ::period] = 255
    out = CanonicalView(None, CANONICAL).apply(stripes).astype(np.float64)
    assert abs(out.mean() - 255 / period) < 3
    side = min(size)
    square = np.ascontiguousarray(stripes[:side, (width - side) // 2 :][:, :side])
    area = cv2.resize(square, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float64)
    assert out.std() < 1.3 * area.std() + 5, "point sampling would give about 120"


def test_downscaling_is_close_to_the_mean_over_the_area():
    image = np.random.default_rng(2).integers(0, 256, (480, 480, 3), np.uint8)
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    area = cv2.resize(smooth, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float64)
    out = CanonicalView(None, CANONICAL).apply(smooth)
    assert np.abs(out - area).max() <= 4 and np.abs(out - area).mean() < 0.8


def test_without_intrinsics_the_centre_square_is_used_and_nothing_is_metric():
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 80:560] = 255
    view = CanonicalView(None, CANONICAL)
    assert not view.metric and CanonicalView(SOURCES["vga"], CANONICAL).metric
    out = view.apply(image)
    assert (out[:, 1:-1] == 255).all() and out.min() > 240
    found = centre(view.apply(spot(Camera(640, 480, 1, 1, 0, 0), (319.5 + 90, 239.5 - 60), 8)))
    assert np.abs(found - (63.5 + 24, 63.5 - 16)).max() < 0.03


def test_without_intrinsics_the_size_may_change_from_frame_to_frame():
    view = CanonicalView(None, CANONICAL)
    for width, height in [(640, 480), (320, 240), (640, 480), (1, 1)]:
        assert (view.apply(np.full((height, width, 3), 77, np.uint8)) == 77).all()


def test_a_canonical_camera_need_not_be_square():
    wide = Camera(160, 96, 100.0, 100.0, 79.5, 47.5)
    out = CanonicalView(SOURCES["vga"], wide).apply(
        spot(SOURCES["vga"], project_by_opencv(SOURCES["vga"], (0.2, 0.1, 1))[0], 14)
    )
    assert out.shape == (96, 160, 3)
    assert np.abs(centre(out) - wide.project(np.array([0.2, 0.1, 1]))).max() < 0.03


def test_reversed_and_read_only_images_are_fine_and_untouched():
    bgr = np.random.default_rng(3).integers(0, 256, (480, 640, 3), np.uint8)
    bgr.flags.writeable = False
    view = CanonicalView(SOURCES["barrel"], CANONICAL)
    assert (view.apply(bgr[..., ::-1]) == view.apply(np.ascontiguousarray(bgr[..., ::-1]))).all()
    assert (view.apply(bgr) == view.apply(bgr)).all()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 0}, "camera size"),
        ({"height": 8193}, "camera size"),
        ({"fx": 0.0}, "focal lengths"),
        ({"fy": -3.0}, "focal lengths"),
        ({"fx": float("nan")}, "focal lengths"),
        ({"fy": float("inf")}, "focal lengths"),
        ({"cx": float("nan")}, "principal point"),
        ({"cy": float("inf")}, "principal point"),
        ({"distortion_model": "magic"}, "'magic' is not known; known are plumb_bob"),
        ({"distortion": (0.1,) * 3}, "0 or 4 or 5 coefficients, not 3"),
        ({"distortion": (float("nan"),) * 5}, "must be finite"),
        ({"distortion": (0.1,) * 5, "distortion_model": "equidistant"}, "0 or 4 coefficients, not 5"),
    ],
)
def test_impossible_cameras_are_refused_with_words(changes, words):
    values = {"width": 640, "height": 480, "fx": 500.0, "fy": 500.0, "cx": 319.5, "cy": 239.5, **changes}
    with pytest.raises(ValueError, match=words):
        CanonicalView(Camera(**values), CANONICAL)


def test_a_canonical_camera_with_a_lens_is_refused():
    with pytest.raises(ValueError, match="without lens distortion"):
        CanonicalView(None, Camera(128, 128, 110.0, 110.0, 63.5, 63.5, (0.1, 0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480, 640, 3), np.float32),
        np.zeros((0, 640, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_rgb_image_are_refused(image):
    for camera in (None, SOURCES["vga"]):
        with pytest.raises(ValueError, match=r"expected an RGB image uint8 \[H, W, 3\]"):
            CanonicalView(camera, CANONICAL).apply(image)


def test_an_image_of_another_size_than_its_calibration_is_refused():
    with pytest.raises(ValueError, match="the image is 320x240 but the camera is calibrated for 640x480"):
        CanonicalView(SOURCES["vga"], CANONICAL).apply(np.zeros((240, 320, 3), np.uint8))


focal = st.floats(1e-3, 1e6)
principal = st.floats(-1e7, 1e7)
term = st.floats(-100, 100)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), focal, focal, principal, principal, st.data())
def test_any_finite_camera_gives_an_image(width, height, fx, fy, cx, cy, data):
    model, count = data.draw(
        st.sampled_from([("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4), ("plumb_bob", 0)])
    )
    lens = tuple(data.draw(st.lists(term, min_size=count, max_size=count)))
    small = Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
    out = CanonicalView(Camera(width, height, fx, fy, cx, cy, lens, model), small).apply(
        np.full((height, width, 3), 9, np.uint8)
    )
    assert out.shape == (24, 32, 3) and out.dtype == np.uint8 and out.max() <= 9


def test_it_is_cheap():
    image = np.random.default_rng(4).integers(0, 256, (480, 640, 3), np.uint8)
    view = CanonicalView(SOURCES["vga"], CANONICAL)
    view.apply(image)
    best = 1.0
    for _ in range(60):
        began = time.perf_counter()
        view.apply(image)
        best = min(best, time.perf_counter() - began)
    assert best < 1.5e-3, f"{best * 1e3:.2f} ms; 0.4 ms is usual on one core"
