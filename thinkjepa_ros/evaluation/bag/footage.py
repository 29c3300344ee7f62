"""The pictures of recordings, decoded as the nodes decode them: only those that are asked for, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from thinkjepa_ros.data.pictures import PictureError, jpeg_of, raw_rgb
from thinkjepa_ros.data.recording import Recording
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.data.typed import read, stamp_ns


def rgb_of(message: Any) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a sensor_msgs Image or CompressedImage, losslessly. Raises PictureError."""
    if not hasattr(message, "format"):
        return raw_rgb(message)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    odd = message.format.startswith("bayer_") or "compressed rgb" in message.format
    if odd or data[:4].tobytes() != b"\x89PNG":  # a PNG would become a JPEG
        data = np.frombuffer(jpeg_of(message, 100)[0], np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise PictureError(f"the compressed image of {len(data)} bytes is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def pictures(
    bags: Sequence[str | Path], settings: Settings, wanted: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (bag, stamp in ns, RGB uint8 [H, W, 3]) for each of `wanted` (number in `bags`, stamp), in the order of
    recording, each once. What is not there or cannot be decoded is passed over. Raises RecordingError.
    """
    for number, bag in enumerate(bags):
        left = {stamp for which, stamp in wanted if which == number}
        if not left:
            continue
        with Recording(bag) as recording:
            for _, _, message in read(recording, [recording.camera(settings.image_topic)]):
                stamp = stamp_ns(message.header)
                if stamp not in left:
                    continue
                try:
                    rgb = rgb_of(message)
                except PictureError:
                    continue
                left.discard(stamp)
                yield number, stamp, rgb
                if not left:
                    break
