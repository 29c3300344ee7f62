"""What the tests of image messages share: builders of messages, a smooth picture, the memory of this process."""

from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs.msg", reason="ROS 2 messages are not installed")

from sensor_msgs.msg import CompressedImage, Image

from thinkjepa_ros.bridge.images import ENCODINGS

BAYER = [f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]
YUV = ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"]
PLAIN = [name for name in ENCODINGS if name not in BAYER + YUV]


def filled(data):
    values = array("B")
    values.frombytes(bytes(data))
    return values


def raw(encoding, width, height, data, step=None, big=False):
    message = Image(encoding=encoding, width=width, height=height, is_bigendian=int(big))
    message.step = width * ENCODINGS[encoding].pixel_bytes if step is None else step
    message.data = filled(data)
    return message


def random_message(encoding, width=20, height=14, padding=0, big=False, seed=0):
    """A message of random pixels (the padding too), and its pixels as integers [H, W, C]."""
    layout, rng = ENCODINGS[encoding], np.random.default_rng(seed)
    pixels = rng.integers(0, 256**layout.size, (height, width, layout.channels))
    rows = pixels.astype((">" if big else "<") + f"u{layout.size}").tobytes()
    length = width * layout.pixel_bytes
    data = b"".join(rows[y * length : (y + 1) * length] + rng.bytes(padding) for y in range(height))
    return raw(encoding, width, height, data, length + padding, big), pixels


def compressed(data, text="jpeg"):
    message = CompressedImage(format=text)
    message.data = filled(data)
    return message


def jpeg(image, *options):
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


SMOOTH = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 5)
SMOOTH = cv2.normalize(SMOOTH, None, 0, 255, cv2.NORM_MINMAX)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
