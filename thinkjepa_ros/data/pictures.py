"""Camera messages of a bag as JPEG files and camera values, without any ROS installation.

A colour or grey JPEG stays the bytes it is; everything else is decoded and encoded once.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from thinkjepa_ros.stream.geometry import DISTORTION_MODELS, FISHEYE, check_camera, distort
from thinkjepa_ros.values import Camera

from .episode import encode_jpeg

MAX_SIDE = 8192
#: Rays farther out (87 degrees from the axis, in the plane z = 1) are not looked up in the polynomial of a lens.
_WIDEST = 20.0
_ORIENTATION = 0x0112  # EXIF tag; ROS ignores it, decoders of JPEG files do not
#: Encoding of sensor_msgs/Image: bytes a channel, channels, the OpenCV code that makes RGB of it (None: it is).
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB), "8UC3": (1, 3, cv2.COLOR_BGR2RGB), "8UC4": (1, 4, cv2.COLOR_BGRA2RGB),
    "uyvy": (1, 2, cv2.COLOR_YUV2RGB_UYVY), "yuv422": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": (1, 2, cv2.COLOR_YUV2RGB_YUYV), "yuv422_yuy2": (1, 2, cv2.COLOR_YUV2RGB_YUYV),
}  # fmt: skip
for _size in (1, 2):
    for _name, _channels, _code in (
        ("mono", 1, cv2.COLOR_GRAY2RGB), ("rgb", 3, None), ("bgr", 3, cv2.COLOR_BGR2RGB),
        ("rgba", 4, cv2.COLOR_RGBA2RGB), ("bgra", 4, cv2.COLOR_BGRA2RGB),
        ("bayer_rggb", 1, cv2.COLOR_BayerRGGB2RGB), ("bayer_bggr", 1, cv2.COLOR_BayerBGGR2RGB),
        ("bayer_gbrg", 1, cv2.COLOR_BayerGBRG2RGB), ("bayer_grbg", 1, cv2.COLOR_BayerGRBG2RGB),
    ):  # fmt: skip
        _ENCODINGS[f"{_name}{8 * _size}"] = (_size, _channels, _code)


class PictureError(ValueError):
    """A message that holds no picture; the text says why. damaged: another message of the topic may be good."""

    def __init__(self, words: str, damaged: bool = True) -> None:
        super().__init__(words)
        self.damaged = damaged


def jpeg_of(message: Any, quality: int = 92) -> tuple[bytes, tuple[int, int]]:
    """JPEG file and (width, height) of a sensor_msgs Image or CompressedImage. Raises PictureError."""
    if hasattr(message, "format"):
        return _compressed(message, quality)
    rgb = raw_rgb(message)
    return encode_jpeg(rgb, quality), (rgb.shape[1], rgb.shape[0])


def _compressed(message: Any, quality: int) -> tuple[bytes, tuple[int, int]]:
    said = message.format
    if "compressedDepth" in said or said.startswith(("16UC1", "32FC1")):
        raise PictureError(
            f"format {said[:40]!r} is a depth image; choose a colour topic (--image-topic)", damaged=False
        )
    data = bytes(memoryview(message.data))
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            size, kind, mode = picture.size, picture.format, picture.mode
            turned = kind == "JPEG" and picture.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"the data ({len(data)} bytes) is no readable JPEG or PNG ({error})") from None
    if max(size) > MAX_SIDE:
        raise PictureError(f"the image claims {size[0]}x{size[1]} pixels; {MAX_SIDE} is the most for a side")
    bayer = said.startswith("bayer_")
    keep = kind == "JPEG" and mode in ("RGB", "L") and not (turned or bayer or "compressed rgb" in said)
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise PictureError(f"the JPEG is cut off: its {len(data)} bytes have no end marker")
    if keep:  # a look at an eighth of the size tells damage in a fraction of the time
        if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8) is None:
            raise PictureError(f"the JPEG of {len(data)} bytes is damaged")
        return data, size
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_GRAYSCALE if bayer else cv2.IMREAD_COLOR)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise PictureError(f"the compressed image of {len(data)} bytes is damaged")
    if bayer:  # image_transport compresses Bayer pixels as if they were grey
        code = _ENCODINGS.get(said.partition(";")[0].strip(), (1, 1, None))[2]
        if code is None:
            raise PictureError(f"format {said[:40]!r} is not supported; choose a colour topic", damaged=False)
        rgb = cv2.cvtColor(image, code)
    else:  # a publisher that fed RGB to an encoder of BGR says so; all others store true colours
        rgb = image if "compressed rgb" in said else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return encode_jpeg(rgb, quality), size


def raw_rgb(message: Any) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a sensor_msgs/Image."""
    known = _ENCODINGS.get(message.encoding)
    if known is None:
        depth = message.encoding in ("16UC1", "32FC1")
        words = "a depth image" if depth else f"not supported (supported: {', '.join(sorted(_ENCODINGS))})"
        raise PictureError(f"encoding {message.encoding[:40]!r} is {words}; choose a colour topic", damaged=False)
    size, channels, code = known
    width, height, step = int(message.width), int(message.height), int(message.step)
    row, data = width * channels * size, memoryview(message.data).cast("B")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE) or step < row or len(data) < step * (height - 1) + row:
        raise PictureError(
            f"{width}x{height} {message.encoding} with step {step} does not fit into its {len(data)} bytes"
        )
    if channels == 2 and width % 2:
        raise PictureError(
            f"{message.encoding} shares colour between pairs of pixels; a width of {width} is impossible"
        )
    number = np.dtype("u1" if size == 1 else (">u2" if message.is_bigendian else "<u2"))
    strides = (step, channels * size, size)
    pixels: np.ndarray = np.ndarray((height, width, channels), number, data, strides=strides)
    pixels = np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels).astype(number.newbyteorder("="))
    if code is not None:
        pixels = cv2.cvtColor(pixels, code)
    return pixels if size == 1 else cv2.convertScaleAbs(pixels, alpha=255 / 65535)


def camera_of(info: Any, rectified: bool = False) -> Camera | None:
    """The camera of a sensor_msgs/CameraInfo, with its binning and region; None where it is not calibrated (K = 0).

    rectified: the pixels are free of distortion already, as on topics called image_rect: P takes the place of K.
    Raises ValueError with a sentence on values that no camera can have.
    """
    matrix, places = (info.p, (0, 5, 2, 6)) if rectified else (info.k, (0, 4, 2, 5))
    fx, fy, cx, cy = (float(matrix[place]) for place in places)
    if fx == 0:
        return None
    lens = [] if rectified else [float(value) for value in info.d]
    if not any(lens) and info.distortion_model not in FISHEYE:
        lens = []
    most = max(DISTORTION_MODELS.get(info.distortion_model, (len(lens),)))
    if not any(lens[most:]):  # some drivers fill up with zeros
        lens = lens[:most]
    bins, roi = (max(int(info.binning_x), 1), max(int(info.binning_y), 1)), info.roi
    width, height = (roi.width, roi.height) if roi.width and roi.height else (info.width, info.height)
    camera = Camera(
        int(width) // bins[0],
        int(height) // bins[1],
        fx / bins[0],
        fy / bins[1],
        (cx - roi.x_offset + 0.5) / bins[0] - 0.5,  # pixel centres lie on integers
        (cy - roi.y_offset + 0.5) / bins[1] - 0.5,
        tuple(lens),
        (info.distortion_model if lens else "") or "plumb_bob",
    )
    check_camera(camera)
    return camera


def in_image(camera: Camera, points: np.ndarray) -> np.ndarray:
    """bool [...]: whether points [..., 3] (metres, optical frame) fall on a pixel, lens distortion included."""
    points = np.asarray(points, np.float64)
    with np.errstate(invalid="ignore"):
        ahead = points[..., 2] > 1e-6
        z = np.where(ahead, points[..., 2], 1.0)
        rays = [points[..., k] / z for k in (0, 1)]
        ahead &= np.hypot(*rays) < _WIDEST
    x, y = (np.where(ahead, ray, 0.0) for ray in rays)
    if ahead.any():
        x, y = distort(camera, x, y)
    with np.errstate(invalid="ignore"):
        u, v = camera.fx * x + camera.cx, camera.fy * y + camera.cy
        seen = (u >= -0.5) & (u <= camera.width - 0.5) & (v >= -0.5) & (v <= camera.height - 0.5)
    return np.asarray(ahead & seen)
