"""Frames with their stamps out of a video file, thinned as the live window thins a camera: one per slot.

Two readers. "opencv" decodes the file as it goes and takes the stamp of every frame from it, also where the rate
varies. "qwen-vl-utils" is the releases' own way (an extra for training: `pip install qwen-vl-utils`, with torchvision
and torchcodec or decord): it knows the times of frames from the average rate alone, and scales pictures to multiples
of 32 pixels. Which one is used is asked for and not guessed, because the pixels differ a little, and so do the states.

Nothing but one frame per slot leaves a reader, and a reader holds no more than a second of video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..values import Frame
from .errors import ThinkerError
from .window import Window

READERS = ("opencv", "qwen-vl-utils")
#: Larger pictures are refused before one is decoded.
MAX_SIDE = 8192
#: Frames that qwen-vl-utils reads at once (an even number: it drops one of an odd one), and how few it can.
_SEGMENT, _FEWEST = 32, 4
#: The releases' patch, merged in twos: what qwen-vl-utils rounds a picture's sides to is a multiple of twice this.
_PATCH = 16


class VideoError(ThinkerError):
    """The file cannot be read as a video; the text says why and what to do."""


class Video:
    """A video file that can be decoded. duration_s: what its header claims, 0.0 where it claims nothing.

    Raises VideoError for what is no file, no video, or too large to look at.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise VideoError(f"{self.path}: a folder; give a video file.")
        if not self.path.is_file():
            raise VideoError(f"{self.path}: no such file. Give a video file, such as an mp4.")
        if not self.path.stat().st_size:
            raise VideoError(f"{self.path}: empty (0 bytes). Copy or record it again.")
        capture = self._open()
        self.rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
        count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            self.rate_hz = 0.0
        claims = self.rate_hz > 0 and math.isfinite(count) and count > 0
        self.duration_s = count / self.rate_hz if claims else 0.0

    def frames(self, window: Window, reader: str = "opencv") -> Iterator[Frame]:
        """The first frame of every slot of `window`, oldest first: RGB of the file's own size, stamps from 0 on.

        Raises VideoError: for a reader that is not there, before the first frame when there is none, and in the
        middle for damage that the decoder reports as an error. A file that was cut just ends.
        """
        if reader not in READERS:
            raise VideoError(f"reader {reader!r} is not one of {', '.join(READERS)}.")
        newest = -1
        read = self._by_opencv if reader == "opencv" else self._by_qwen_vl_utils
        for frame in read(window):
            if (slot := window.slot(frame.stamp_ns)) > newest:
                newest = slot
                yield frame
        if newest < 0:
            raise VideoError(f"{self.path}: no frame in it can be decoded. It is damaged or cut; copy it again.")

    def _open(self) -> cv2.VideoCapture:
        # FFmpeg and nothing else: other back ends would read names as addresses or as patterns of image files.
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise VideoError(f"{self.path}: cannot be decoded: it is no video, or damaged. Copy it again.")
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            capture.release()
            raise VideoError(f"{self.path}: claims {width}x{height} pixels; 1x1 to {MAX_SIDE}x{MAX_SIDE} is accepted.")
        return capture

    def _by_opencv(self, window: Window) -> Iterator[Frame]:
        capture, stamp, slot = self._open(), -1, -1
        step = round(1e9 / self.rate_hz) if self.rate_hz else 1
        try:
            while capture.grab():
                said = capture.get(cv2.CAP_PROP_POS_MSEC)
                told = round(said * 1e6) if math.isfinite(said) else -1
                stamp = told if told > stamp else stamp + step  # some streams know no times: the rate counts on
                if window.slot(stamp) == slot:
                    continue  # grabbed only: turning it into pixels of its own is most of the work
                good, bgr = capture.retrieve()
                if good and bgr is not None and bgr.size:
                    slot = window.slot(stamp)
                    yield Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), stamp)
        finally:
            capture.release()

    def _by_qwen_vl_utils(self, window: Window) -> Iterator[Frame]:
        fetch = _qwen_vl_utils()
        if not self.rate_hz or not self.duration_s:
            raise VideoError(f"{self.path}: says neither rate nor length, which qwen-vl-utils needs; use opencv.")
        count = round(self.duration_s * self.rate_hz)
        begin = 0
        while begin < count:
            end = begin + _SEGMENT if begin + _SEGMENT + _FEWEST <= count else count
            wanted = {
                "video": str(self.path),
                "video_start": (begin - 0.25) / self.rate_hz,
                "video_end": (end - 0.75) / self.rate_hz,
                "fps": self.rate_hz,  # every frame: those that it spreads evenly are not the first of their slots
                "min_pixels": (2 * _PATCH) ** 2,
            }
            try:
                pixels, said = fetch(wanted, image_patch_size=_PATCH, return_video_metadata=True)
                stamps = [round(int(index) / float(said["fps"]) * 1e9) for index in said["frames_indices"]]
            except Exception as error:  # whatever the decoder below it throws
                raise VideoError(f"{self.path}: qwen-vl-utils cannot read it ({error}); use opencv.") from error
            for image, stamp in zip(pixels, stamps, strict=True):
                yield Frame(np.ascontiguousarray(image.clamp(0, 255).byte().permute(1, 2, 0).numpy()), stamp)
            begin = end


def _qwen_vl_utils() -> Any:
    try:
        from qwen_vl_utils.vision_process import fetch_video
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
        raise VideoError(
            f"reader 'qwen-vl-utils' cannot be imported ({error}). Use 'opencv', or install it: pip install "
            "qwen-vl-utils, a torchvision that fits the installed torch, and torchcodec or decord."
        ) from error
    return fetch_video
