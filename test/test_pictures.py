"""Camera messages of a bag as JPEG files and cameras, beside what the nodes make of the same messages."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from bag_kit import camera_info, header, make
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from truth_kit import compressed, jpeg

from thinkjepa_ros.data import pictures
from thinkjepa_ros.data.pictures import PictureError, camera_of, in_image, jpeg_of
from thinkjepa_ros.values import Camera

SMOOTH = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 5)


def decoded(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def raw(encoding: str, pixels: np.ndarray, big: bool = False, padding: int = 0) -> Any:
    """An Image of pixels [H, W, C]."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    rows = rows.astype((">" if big else "<") + f"u{pixels.itemsize}").view(np.uint8).reshape(height, -1)
    step = rows.shape[1] + padding
    data = np.pad(rows, ((0, 0), (0, padding))).ravel()
    return make("sensor_msgs/msg/Image", header(1), height, width, encoding, int(big), step, data)


@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("encoding", sorted(pictures._ENCODINGS))
def test_raw_images_are_what_the_nodes_see(encoding: str, big: bool) -> None:
    node = pytest.importorskip("thinkjepa_ros.bridge.images", reason="ROS 2 messages are not installed")
    size, channels, _ = pictures._ENCODINGS[encoding]
    pixels = np.resize(SMOOTH, (48, 64, channels)).astype(np.uint8 if size == 1 else np.uint16)
    message = raw(encoding, pixels * 257 if size == 2 else pixels, big and size == 2, padding=3)
    found, size_told = jpeg_of(message, 100)
    assert size_told == (64, 48)
    assert np.abs(pictures.raw_rgb(message).astype(int) - node.to_rgb(message)).max() <= 1
    assert decoded(found).shape == (48, 64, 3)
    assert set(node.ENCODINGS) == set(pictures._ENCODINGS)


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image)[1].tobytes())


def test_a_jpeg_stays_as_it_is_unless_decoders_would_turn_or_colour_it_otherwise() -> None:
    plain = bytes(cv2.imencode(".jpg", SMOOTH)[1].tobytes())
    grey = bytes(cv2.imencode(".jpg", SMOOTH[..., 0])[1].tobytes())
    for data, kind in ((plain, "jpeg"), (plain, "rgb8; jpeg compressed bgr8"), (grey, "mono8; jpeg compressed ")):
        assert jpeg_of(compressed(1, data, kind=kind)) == (data, (64, 48))
    swapped = jpeg_of(compressed(1, plain, kind="rgb8; jpeg compressed rgb8"), 100)[0]
    assert np.abs(decoded(swapped).astype(int) - decoded(plain)[..., ::-1]).mean() < 2
    out = io.BytesIO()
    tags = Picture.Exif()
    tags[0x0112] = 6
    Picture.fromarray(SMOOTH).save(out, "JPEG", exif=tags, quality=100)
    turned, size = jpeg_of(compressed(1, out.getvalue()), 100)
    assert size == (64, 48) and decoded(turned).shape == (48, 64, 3), "ROS knows no orientation of pictures"
    assert np.abs(decoded(turned).astype(int) - SMOOTH).mean() < 3
    assert (
        np.abs(decoded(jpeg_of(compressed(1, png(SMOOTH), kind="png"), 100)[0]).astype(int) - SMOOTH[..., ::-1]).mean()
        < 2
    )
    bayer = jpeg_of(compressed(1, png(np.full((8, 8), 77, np.uint8)), kind="bayer_rggb8; png compressed "), 100)[0]
    assert np.abs(decoded(bayer).astype(int) - 77).max() <= 2


@pytest.mark.parametrize(
    "message, words, damaged",
    [
        (compressed(1, jpeg(0)[:-20]), "cut off", True),
        (compressed(1, b"GIF89a" + bytes(50)), "no readable JPEG or PNG", True),
        (compressed(1, b""), "no readable JPEG or PNG", True),
        (compressed(1, png(SMOOTH)[:60]), "damaged|no readable", True),
        (compressed(1, jpeg(0), kind="16UC1; compressedDepth png"), "depth image; choose a colour topic", False),
        (compressed(1, png(SMOOTH), kind="bayer_abcd8; png"), "not supported", False),
        (raw("16UC1", np.zeros((4, 4, 1), np.uint16)), "a depth image; choose a colour topic", False),
        (raw("hsv8", np.zeros((4, 4, 3), np.uint8)), "not supported .supported: 8UC1", False),
        (raw("yuyv", np.zeros((4, 3, 2), np.uint8)), "a width of 3 is impossible", True),
        (make("sensor_msgs/msg/Image", header(1), 4, 4, "rgb8", 0, 12, np.zeros(40, np.uint8)), "does not fit", True),
        (make("sensor_msgs/msg/Image", header(1), 4, 4, "rgb8", 0, 11, np.zeros(90, np.uint8)), "does not fit", True),
        (make("sensor_msgs/msg/Image", header(1), 0, 4, "rgb8", 0, 12, np.zeros(90, np.uint8)), "does not fit", True),
    ],
)
def test_what_is_no_picture_is_told(message: Any, words: str, damaged: bool) -> None:
    with pytest.raises(PictureError, match=words) as refused:
        jpeg_of(message)
    assert refused.value.damaged == damaged


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_picture_or_refused_in_words(data: bytes, start: bytes) -> None:
    try:
        jpeg_of(compressed(1, start + data))
    except PictureError as error:
        assert str(error)


def test_the_camera_is_that_of_the_nodes() -> None:
    node = pytest.importorskip("thinkjepa_ros.bridge.images", reason="ROS 2 messages are not installed")
    plain = camera_info(1)
    assert camera_of(plain) == node.to_camera(plain) and camera_of(plain).distortion == ()  # type: ignore[union-attr]
    binned = camera_info(1, 640, 480)
    binned.binning_x, binned.binning_y, binned.d = 2, 4, np.array([0.1, 0.2, 0.0, 0.0, 0.0])
    binned.roi = make("sensor_msgs/msg/RegionOfInterest", 8, 16, 400, 320, False)
    assert camera_of(binned) == node.to_camera(binned)
    fisheye = camera_info(1)
    fisheye.distortion_model, fisheye.d = "equidistant", np.zeros(4)
    assert camera_of(fisheye) == node.to_camera(fisheye)
    lens = camera_info(1)
    lens.d = np.array([0.1, 0.2, 0.0, 0.0, 0.0])
    lens.p = np.array([33.0, 0, 15, 0, 0, 34, 11, 0, 0, 0, 1, 0])
    assert camera_of(lens, rectified=True) == node.to_camera(lens, rectified=True)
    assert camera_of(lens) == node.to_camera(lens)
    lens.d = np.array([0.1, 0.2, *[0.0] * 12])
    assert camera_of(lens) == node.to_camera(lens) and len(camera_of(lens).distortion) == 5  # type: ignore[union-attr]
    none = camera_info(1)
    none.k = np.zeros(9)
    assert camera_of(none) is None
    none.k = np.full(9, np.nan)
    with pytest.raises(ValueError, match="finite"):
        camera_of(none)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), model=st.sampled_from(["", "plumb_bob", "rational_polynomial", "equidistant"]))
def test_a_point_is_in_the_image_where_opencv_projects_it_there(seed: int, model: str) -> None:
    rng = np.random.default_rng(seed)
    lens = {"": 0, "plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}[model]
    coefficients = rng.uniform(-0.05, 0.05, lens)
    camera = Camera(64, 48, 50.0, 52.0, 31.0, 24.5, tuple(coefficients), model or "plumb_bob")
    points = rng.uniform((-0.6, -0.5, 0.8), (0.6, 0.5, 1.2), (40, 3))
    if model == "equidistant":
        pixels = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), camera.matrix, coefficients)[0]
    else:
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, coefficients if lens else None)[0]
    u, v = pixels.reshape(-1, 2).T
    inside = (u >= -0.5) & (u <= 63.5) & (v >= -0.5) & (v <= 47.5)
    far_from_rim = np.minimum(np.abs(np.abs(u - 31.5) - 32), np.abs(np.abs(v - 23.5) - 24)) > 1e-6
    assert np.array_equal(in_image(camera, points)[far_from_rim], inside[far_from_rim])
    behind = points * (1, 1, -1)
    assert not in_image(camera, behind).any() and not in_image(camera, points * np.nan).any()


def test_a_ray_nearly_in_the_image_plane_hits_no_pixel_and_spoils_no_other() -> None:
    camera = Camera(64, 48, 50.0, 52.0, 31.0, 24.5, (-0.3, 0.0, 0.0, 0.0, 0.0))
    points = np.array([[1.0, 0.0, 1e-5], [0.1, 0.1, 1.0], [0.0, 0.0, 1.0]])
    assert in_image(camera, points).tolist() == [False, True, True]
