"""An mp4 written frame by frame, which takes its place only when it is whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

_MP4V = int.from_bytes(b"mp4v", "little")  # MPEG-4 part 2: needs no encoder beyond those in OpenCV


class FilmError(RuntimeError):
    """There is no film, or no longer one; the text says why."""


class Film:
    """`add` frames, then `close`; without `close`, `discard` leaves nothing behind. Memory does not grow.

    path: of the mp4. rate_hz: frames per second. The first frame gives the size; others are scaled to it.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        self._path, self._rate_hz = path, rate_hz
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")  # OpenCV knows the format by the ending
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self.frames = 0

    def add(self, rgb: np.ndarray, times: int = 1) -> None:
        """Show uint8 RGB [H, W, 3] (even sides) for so many frames. Raises FilmError."""
        size = (rgb.shape[1], rgb.shape[0])
        try:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer, self._size = cv2.VideoWriter(str(self._part), _MP4V, self._rate_hz, size), size
                if not self._writer.isOpened():
                    raise FilmError("this build of OpenCV can not write mp4 files")
            if size != self._size:
                rgb = np.asarray(cv2.resize(rgb, self._size), np.uint8)
            bgr = np.ascontiguousarray(rgb[..., ::-1])
            for _ in range(times):
                self._writer.write(bgr)
        except (cv2.error, OSError) as error:
            raise FilmError(f"the film could not be written: {error}") from error
        self.frames += times

    def close(self) -> None:
        """Finish the film and put it into its place. Raises FilmError; then nothing is left behind."""
        try:
            if self._writer is None:
                raise FilmError("there is no frame for a film")
            self._writer.release()
            if not _reads_back(self._part, self.frames):
                raise FilmError("the film could not be read back; is the disk full?")
            self._part.replace(self._path)
        except (cv2.error, OSError) as error:
            raise FilmError(f"the film could not be written: {error}") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up what was written so far; harmless after `close`."""
        if self._writer is not None:
            self._writer.release()
        with suppress(OSError):
            self._part.unlink()


def _reads_back(path: Path, frames: int) -> bool:
    """Whether the file holds as many frames as were written, by its index, and the first one can be decoded."""
    reader = cv2.VideoCapture(str(path))
    try:
        return reader.isOpened() and int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) == frames and reader.read()[0]
    finally:
        reader.release()
