"""Arrays for what is said over recordings: in memory, or in files, so that an hour needs no more than a minute."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

#: Rows that are moved at once.
_BLOCK = 1024


class Room:
    """Makes named arrays. folder: where their files lie, which several processes may open; None: in memory.

    The system writes pages of the files out when memory is short; nobody else's memory is taken for them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32, fill: float = np.nan) -> np.ndarray:
        """A new array, full of `fill`. Raises OSError where the disk has no room."""
        if self.folder is None or prod(shape) == 0:
            return np.full(shape, fill, dtype)
        out = np.memmap(self._file(name), dtype, "w+", shape=shape)
        for first in range(0, shape[0], _BLOCK):
            out[first : first + _BLOCK] = fill
        return out

    def open(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array that `array` has made, for reading and writing. Only of a room with a folder."""
        assert self.folder is not None
        return np.zeros(shape, dtype) if prod(shape) == 0 else np.memmap(self._file(name), dtype, "r+", shape=shape)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.raw"

    def rows(self, name: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Some rows of an array, int64 [n]: the array itself where those are all, else a new one called `name`."""
        if len(rows) == len(values):
            return values
        out = self.array(name, (len(rows), *values.shape[1:]), values.dtype, 0)
        for first in range(0, len(rows), _BLOCK):
            out[first : first + _BLOCK] = values[rows[first : first + _BLOCK]]
        return out


_SCRATCH = ".arrays-"


@contextmanager
def scratch_folder(place: Path | None, needed: bool) -> Iterator[Path | None]:
    """A folder in `place` for the files of a room, None where there is no place and none is `needed`.

    It is gone at the end, and so is what a killed run left. Arrays in its files stay usable: only the names go.
    """
    if place is None and not needed:
        yield None
        return
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(f"{_SCRATCH}*"):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
