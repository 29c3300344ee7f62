"""bridge.images: from_rgb and CameraInfo."""

import numpy as np
import pytest

pytest.importorskip("sensor_msgs.msg", reason="ROS 2 messages are not installed")

from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from thinkjepa_ros.bridge.images import ImageError, from_rgb, to_camera, to_rgb
from thinkjepa_ros.values import Camera


def test_from_rgb_and_back():
    header = Header(frame_id="camera_optical")
    header.stamp.sec, header.stamp.nanosec = 12, 34
    rgb = np.random.default_rng(7).integers(0, 256, (48, 64, 3), np.uint8)
    for image in (rgb, rgb[:, ::-1], np.asfortranarray(rgb)):
        message = from_rgb(image, header)
        assert (message.width, message.height, message.step, message.encoding) == (64, 48, 192, "rgb8")
        assert message.header == header
        assert (to_rgb(message) == image).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_from_rgb_refuses_other_arrays(image):
    with pytest.raises(ValueError, match="expected an RGB image"):
        from_rgb(image, Header())


def camera_info(**changes):
    info = CameraInfo(width=640, height=480, distortion_model="plumb_bob", d=[0.1, -0.2, 0.001, 0.002, 0.05])
    info.k = [500.0, 0.0, 320.5, 0.0, 501.0, 240.5, 0.0, 0.0, 1.0]
    info.p = [450.0, 0.0, 318.0, 0.0, 0.0, 451.0, 238.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def test_camera_info_becomes_a_camera():
    assert to_camera(camera_info()) == Camera(640, 480, 500.0, 501.0, 320.5, 240.5, (0.1, -0.2, 0.001, 0.002, 0.05))


def test_a_rectified_topic_has_the_projection_matrix_and_no_lens():
    assert to_camera(camera_info(), rectified=True) == Camera(640, 480, 450.0, 451.0, 318.0, 238.0)


def test_an_uncalibrated_camera_is_none():
    assert to_camera(CameraInfo(width=640, height=480)) is None
    assert to_camera(camera_info(p=[0.0] * 12), rectified=True) is None


@pytest.mark.parametrize("model", ["", "plumb_bob", "none", "rational_polynomial"])
@pytest.mark.parametrize("coefficients", [[], [0.0] * 5, [0.0] * 14])
def test_a_lens_of_zeros_is_none_by_any_name(model, coefficients):
    camera = to_camera(camera_info(distortion_model=model, d=coefficients))
    assert camera.distortion == () and camera.distortion_model == "plumb_bob"


def test_zeros_beyond_the_model_are_dropped_and_a_fisheye_stays_one():
    eight = [0.1, 0.2, 0.0, 0.0, 0.3, 0.4, 0.5, 0.6]
    camera = to_camera(camera_info(distortion_model="rational_polynomial", d=eight + [0.0] * 6))
    assert camera.distortion == tuple(eight)
    fisheye = to_camera(camera_info(distortion_model="equidistant", d=[0.0] * 4))
    assert fisheye.distortion_model == "equidistant" and fisheye.distortion == (0.0,) * 4


def test_binning_and_region_of_interest_move_the_principal_point():
    """Pixel (u, v) of the result is the mean of a 2 x 2 block of the full image, beginning at the region's corner."""
    info = camera_info(binning_x=2, binning_y=2)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 60, 400, 300
    camera = to_camera(info)
    assert (camera.width, camera.height, camera.fx, camera.fy) == (200, 150, 250.0, 250.5)
    point = np.array([0.1, 0.05, 1.0])
    full = Camera(640, 480, 500.0, 501.0, 320.5, 240.5).project(point)
    assert np.allclose((full - (100, 60) - 0.5) / 2, camera.project(point))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 0}, "camera size 0x480"),
        ({"k": [float("nan")] * 9}, "focal lengths must be finite"),
        ({"k": [-500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]}, "focal lengths"),
        ({"k": [500.0, 0.0, float("inf"), 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]}, "principal point"),
        ({"d": [0.1, 0.2]}, "takes 0 or 4 or 5 coefficients, not 2"),
        ({"d": [float("nan")] * 5}, "coefficients must be finite"),
        ({"distortion_model": "inverse_brown_conrady"}, "'inverse_brown_conrady' is not known"),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 12}, "not 12"),
    ],
)
def test_camera_info_that_no_camera_can_have_is_refused(changes, words):
    with pytest.raises(ImageError, match="camera_info cannot be used: .*" + words):
        to_camera(camera_info(**changes))
