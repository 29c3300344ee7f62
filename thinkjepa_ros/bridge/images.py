"""Camera messages to RGB arrays and camera values, and back.

Nothing a message claims is believed: encoding, size, step and length are checked before numpy or a decoder sees the
data, and whatever is wrong becomes an ImageError that says what. The conversion is our own and not cv_bridge: that of a
ROS 2 distribution is compiled for numpy 1 and fails beside the numpy 2 that torch brings, its big-endian path uses a
numpy function that no longer exists, and it does not check lengths. Where it runs, the results are the same (a test
compares them).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from thinkjepa_ros.bridge.codecs import MAX_BYTES, ImageError, check_size, compressed_size, decode
from thinkjepa_ros.stream.geometry import DISTORTION_MODELS, FISHEYE, check_camera
from thinkjepa_ros.values import Camera

__all__ = ["ENCODINGS", "ImageError", "check_header", "from_rgb", "to_camera", "to_rgb"]


@dataclass(frozen=True)
class Encoding:
    """How a pixel lies in memory: channels of `size` bytes, and the OpenCV code that makes RGB of it (None: it is)."""

    channels: int
    size: int
    to_rgb: int | None
    bayer: bool = False

    @property
    def pixel_bytes(self) -> int:
        return self.channels * self.size


def _encodings() -> dict[str, Encoding]:
    table = {
        "yuv422": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
        "uyvy": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
        "yuv422_yuy2": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
        "yuyv": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
        # OpenCV's own types carry no colour order; by OpenCV's habit it is BGR
        "8UC1": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
        "8UC3": Encoding(3, 1, cv2.COLOR_BGR2RGB),
        "8UC4": Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    }
    for bits, size in ((8, 1), (16, 2)):
        table[f"mono{bits}"] = Encoding(1, size, cv2.COLOR_GRAY2RGB)
        table[f"rgb{bits}"] = Encoding(3, size, None)
        table[f"bgr{bits}"] = Encoding(3, size, cv2.COLOR_BGR2RGB)
        table[f"rgba{bits}"] = Encoding(4, size, cv2.COLOR_RGBA2RGB)
        table[f"bgra{bits}"] = Encoding(4, size, cv2.COLOR_BGRA2RGB)
        for pattern in ("rggb", "bggr", "gbrg", "grbg"):
            code = getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB")
            table[f"bayer_{pattern}{bits}"] = Encoding(1, size, code, bayer=True)
    return table


#: Every encoding of sensor_msgs/Image that becomes RGB.
ENCODINGS = _encodings()

#: Encodings of depth images: numbers, not pictures.
DEPTH = ("16UC1", "32FC1")


def check_header(message: Image | CompressedImage) -> None:
    """ImageError with a sentence if `message` cannot be an image; takes microseconds and does not touch its pixels."""
    if hasattr(message, "format"):
        _check_compressed(message)
    else:
        _check_raw(message)


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """The picture in `message`: uint8 [H, W, 3], RGB, C-contiguous.

    16-bit values are scaled by 255 / 65535 and rounded, YUV is BT.601 limited range, Bayer is demosaiced (bilinear),
    alpha is dropped. Unpadded rgb8 is not copied: that array is a read-only view into the message.
    Any object with the fields of these messages will do. ImageError with a sentence on everything that is no image.
    """
    if hasattr(message, "format"):
        return _compressed_to_rgb(message)
    encoding = _check_raw(message)
    pixels = _pixels(message, encoding)
    if encoding.to_rgb is None and encoding.size == 1:
        image = np.ascontiguousarray(pixels)
        image.flags.writeable = False
        return image
    return _convert(pixels, encoding)


def _convert(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """RGB uint8 [H, W, 3] of native-endian pixels [H, W] or [H, W, C]."""
    height, width = pixels.shape[:2]
    if encoding.bayer and min(height, width) < 3:
        raise ImageError(
            f"a Bayer image of {width}x{height} pixels is too small for its colours, at least 3x3 is needed"
        )
    if encoding.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, encoding.to_rgb)
    return _to_8_bit(pixels)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else cv2.convertScaleAbs(pixels, alpha=255 / 65535)


def _bytes_of(message: Any) -> memoryview:
    """The data field as flat bytes, whatever array type the middleware or a bag reader chose."""
    try:
        data = memoryview(message.data)
        return data if data.format == "B" and data.ndim == 1 else data.cast("B")
    except TypeError as error:
        raise ImageError(f"the data of an image must be bytes, not {type(message.data).__name__}") from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _check_raw(message: Any) -> Encoding:
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        if message.encoding in DEPTH:
            raise ImageError(
                f"encoding {message.encoding} is a depth image; remap the image topic to a colour one, "
                "for instance camera/color/image_raw"
            )
        raise ImageError(f"encoding {_short(message.encoding)} is not supported; supported are {', '.join(ENCODINGS)}")
    check_size(message.width, message.height)
    if message.width % 2 and encoding.channels == 2:
        raise ImageError(
            f"{message.encoding} shares colour between pairs of pixels, so a width of {message.width} is impossible"
        )
    row = message.width * encoding.pixel_bytes
    if message.step < row:
        raise ImageError(
            f"step is {message.step} but a row of {message.width} {message.encoding} pixels has {row} bytes"
        )
    length = len(_bytes_of(message))
    needed = message.step * (message.height - 1) + row  # the padding of the last row may be missing
    if length < needed:
        raise ImageError(
            f"{message.width}x{message.height} {message.encoding} with step {message.step} needs {needed} bytes, "
            f"not {length}"
        )
    if length > MAX_BYTES:
        raise ImageError(
            f"the message has {length} bytes; {MAX_BYTES} ({MAX_BYTES >> 20} MiB) is the most that is accepted"
        )
    return encoding


def _pixels(message: Any, encoding: Encoding) -> np.ndarray:
    """A view of the checked data as [H, W] or [H, W, C], native byte order (big-endian data is copied and swapped)."""
    dtype = np.dtype("u1" if encoding.size == 1 else (">u2" if message.is_bigendian else "<u2"))
    shape = (message.height, message.width, encoding.channels)
    strides = (message.step, encoding.pixel_bytes, encoding.size)
    pixels: np.ndarray = np.ndarray(shape, dtype, buffer=_bytes_of(message), strides=strides)
    if message.step % encoding.size or not dtype.isnative:
        pixels = pixels.astype(dtype.newbyteorder("="))  # OpenCV knows neither odd steps nor foreign byte order
    return pixels[..., 0] if encoding.channels == 1 else pixels


def _check_compressed(message: Any) -> tuple[int, int]:
    """Width and height."""
    if "compressedDepth" in message.format or message.format.startswith(DEPTH):
        raise ImageError(
            f"format {_short(message.format)} is a depth image; remap the image topic to a colour one, "
            "for instance camera/color/image_raw/compressed"
        )
    data = _bytes_of(message)
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"the message has {len(data)} bytes; {MAX_BYTES} ({MAX_BYTES >> 20} MiB) is the most that is accepted"
        )
    return compressed_size(data)


def _compressed_to_rgb(message: Any) -> np.ndarray:
    """RGB of a JPEG or PNG. The format ("rgb8; jpeg compressed bgr8") says what the pixels were before compression."""
    size = _check_compressed(message)
    name, _, codec = message.format.partition(";")
    original = ENCODINGS.get(name.strip())
    if original is not None and original.bayer:
        image = decode(_bytes_of(message), size, colour=False)
        if image.ndim == 2:  # image_transport compresses Bayer pixels as if they were grey
            return _convert(image, original)
    else:
        image = decode(_bytes_of(message), size, colour=True)
    # a publisher that fed RGB to an encoder of BGR says so; all others store true colours
    return _to_8_bit(image if "compressed rgb" in codec else cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def from_rgb(rgb: np.ndarray, header: Header) -> Image:
    """An rgb8 message of an array uint8 [H, W, 3]. ValueError on any other array."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"expected an RGB image uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
    message = Image(header=header, encoding="rgb8", is_bigendian=0)
    message.height, message.width, message.step = int(rgb.shape[0]), int(rgb.shape[1]), int(rgb.shape[1]) * 3
    data = array("B")  # the one type that the setter takes over without walking through the elements
    data.frombytes(np.ascontiguousarray(rgb).data.cast("B"))
    message.data = data
    return message


def to_camera(info: CameraInfo, rectified: bool = False) -> Camera | None:
    """The camera that took the images published beside `info`; None for an uncalibrated one (K[0] = 0 by definition).

    rectified True is for topics like image_rect, whose pixels are already free of distortion: P then takes the place of
    K. Binning and region of interest are applied. ImageError with a sentence on values that no camera can have.
    """
    matrix, places = (info.p, (0, 5, 2, 6)) if rectified else (info.k, (0, 4, 2, 5))
    fx, fy, cx, cy = (float(matrix[place]) for place in places)
    if fx == 0:
        return None
    model, coefficients = ("", ()) if rectified else _lens(info)
    bin_x, bin_y = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    roi = info.roi
    width, height = (roi.width, roi.height) if roi.width and roi.height else (info.width, info.height)
    camera = Camera(
        int(width) // bin_x,
        int(height) // bin_y,
        fx / bin_x,
        fy / bin_y,
        (cx - roi.x_offset + 0.5) / bin_x - 0.5,  # pixel centres lie on integers
        (cy - roi.y_offset + 0.5) / bin_y - 0.5,
        coefficients,
        model or "plumb_bob",
    )
    try:
        check_camera(camera)
    except ValueError as error:
        raise ImageError(f"camera_info cannot be used: {error}") from error
    return camera


def _lens(info: CameraInfo) -> tuple[str, tuple[float, ...]]:
    """Distortion model and coefficients without what drivers add: names for no lens, zeros beyond the model."""
    model, values = info.distortion_model, [float(v) for v in info.d]
    if not any(values) and model not in FISHEYE:
        return "plumb_bob", ()
    most = max(DISTORTION_MODELS.get(model, (len(values),)))
    return model, tuple(values if any(values[most:]) else values[:most])
