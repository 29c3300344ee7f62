"""JPEG and PNG bytes to RGB, after a look at what they claim to be.

A few kilobytes can claim to be gigabytes of pixels, so the size is read from the JPEG frame header or the PNG IHDR
chunk and checked before any decoder runs. Other formats that OpenCV could decode never reach it.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np

MAX_SIDE = 8192
MAX_BYTES = 64 * 1024 * 1024  # of a message, and of the RGB image that comes out of it

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0..SOF15 without the three that mean otherwise
_JPEG_SEQUENTIAL = (0xC0, 0xC1)
_JPEG_SCAN = 0xDA
_MAX_SEGMENTS = 1000
_MAX_SCANS = 64  # libjpeg writes 10 for a progressive picture
_MAX_CHUNKS = 20_000  # libpng writes one for every 8 KiB
_JPEG_PIXELS_PER_BYTE = 1024  # a single colour with the shortest codes, progressive, comes to about 340


class ImageError(ValueError):
    """A message that holds no usable image; str() is a sentence for logs and status topics."""


def check_size(width: int, height: int) -> None:
    """ImageError unless width x height is an image worth decoding: within MAX_SIDE, and MAX_BYTES as RGB."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ImageError(f"the image claims {width}x{height} pixels; 1x1 to {MAX_SIDE}x{MAX_SIDE} is accepted")
    if width * height * 3 > MAX_BYTES:
        raise ImageError(f"the image claims {width}x{height} pixels, more than {MAX_BYTES >> 20} MiB as RGB")


def compressed_size(data: memoryview) -> tuple[int, int]:
    """Width and height that JPEG or PNG bytes claim, checked, without decoding them.

    ImageError when they are neither, are cut off, or claim a size that is not accepted.
    """
    head = bytes(data[:8])
    if head.startswith(_JPEG):
        width, height = _jpeg_size(data)
    elif head == _PNG:
        width, height = _png_size(data)
    else:
        raise ImageError(
            f"the data ({len(data)} bytes) is neither JPEG nor PNG: it begins with {head.hex(' ') or 'nothing'}"
        )
    check_size(width, height)
    return width, height


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Width and height from the frame header; the segments before it are skipped by their lengths."""
    place, frame = 2, None
    for _ in range(_MAX_SEGMENTS):
        if data[place : place + 2] == b"\xff\xff":  # fill bytes may precede a marker
            place += 1
            continue
        if place + 4 > len(data):
            raise ImageError(f"the JPEG of {len(data)} bytes ends within its headers")
        marker, length = struct.unpack_from(">xBH", data, place)
        if data[place] != 0xFF or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or length < 2:
            raise ImageError(f"the JPEG is damaged: no segment begins at byte {place}")
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_FRAMES:
            if frame is not None or length < 8 or place + 10 > len(data):
                raise ImageError("the JPEG is damaged: its frame header is repeated or cut off")
            frame = (marker, *struct.unpack_from(">HHB", data, place + 5))
        place += 2 + length
    else:
        raise ImageError(f"the JPEG has more than {_MAX_SEGMENTS} segments before its picture")
    if frame is None:
        raise ImageError("the JPEG has no frame header before its picture")
    kind, height, width, components = frame
    in_one_scan = kind in _JPEG_SEQUENTIAL and data[place + 4 : place + 5] == bytes([components])
    _check_jpeg_picture(data, place, in_one_scan)
    if width * height > _JPEG_PIXELS_PER_BYTE * len(data):
        raise ImageError(f"the JPEG claims {width}x{height} pixels, which cannot be in its {len(data)} bytes")
    return width, height


def _check_jpeg_picture(data: memoryview, start: int, in_one_scan: bool) -> None:
    """ImageError if the picture that begins at byte `start` has no end, or is built up in too many scans.

    Without an end libjpeg would fill the rest with grey and call it a picture; cameras may pad behind the end. A scan
    of a few bytes costs it a pass over the whole picture.
    """
    if in_one_scan and data[-2:] == b"\xff\xd9":
        return
    picture = bytes(data[start:])
    if picture.rfind(b"\xff\xd9") < 0:
        raise ImageError(f"the JPEG is cut off: its {len(data)} bytes have no end marker")
    scans = 1 if in_one_scan else picture.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise ImageError(f"the JPEG has {scans} scans; {_MAX_SCANS} is the most that is accepted")


def _png_size(data: memoryview) -> tuple[int, int]:
    """Width and height from the IHDR chunk, which is always the first.

    The lengths of all chunks are checked too: for a chunk that claims 2 GB, OpenCV would provide 2 GB.
    """
    if len(data) < 33 or bytes(data[8:16]) != b"\x00\x00\x00\x0dIHDR":
        raise ImageError("the PNG is damaged: it does not begin with an IHDR chunk")
    width, height = struct.unpack_from(">II", data, 16)
    place = 8
    for _ in range(_MAX_CHUNKS):
        if place + 12 > len(data):
            raise ImageError(f"the PNG is cut off or damaged: its {len(data)} bytes do not reach an end chunk")
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return width, height
        place += 12 + length
    raise ImageError(f"the PNG has more than {_MAX_CHUNKS} chunks")


def decode(data: memoryview, size: tuple[int, int], colour: bool) -> np.ndarray:
    """Decoded pixels of the JPEG or PNG bytes that compressed_size() accepted: uint8 or uint16 [H, W, 3] in BGR order.

    colour False leaves a grey image grey, [H, W] (raw Bayer pixels travel so). Orientation tags of the camera are
    ignored, as ROS does. ImageError when the bytes are damaged; JPEG has no checksums, so not all damage is noticed.
    """
    width, height = size
    depth = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), depth | (cv2.IMREAD_COLOR if colour else cv2.IMREAD_ANYCOLOR)
        )
    except cv2.error as error:
        raise ImageError(f"the compressed image cannot be decoded: {str(error).strip()[:200]}") from error
    if image is None:
        raise ImageError(f"the compressed image of {len(data)} bytes is damaged: OpenCV cannot decode it")
    if image.shape[:2] != (height, width) or image.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"the compressed image claims {width}x{height} pixels but decodes to {image.dtype} {image.shape}"
        )
    return image
