"""Finished episodes, one line of JSON each, so that an evaluation that was stopped goes on where it was.

A line is written with one call and brought to the disk before the next episode counts. A kill, or a power cut, can
leave a last line that is not whole; it is left out, and its episode is run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Which episode: of a row, with its settings and weights (a hash), on one task."""

    row: str
    kind: str
    seed: int
    settings: str


Line = dict[str, Any]


def key_of(line: Line) -> Key:
    return Key(str(line["row"]), str(line["kind"]), int(line["seed"]), str(line["settings"]))


class Journal:
    """The lines of a file; what was run with other settings or weights stays in it and does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, Line] = {}
        text = path.read_bytes() if path.exists() else b""
        self._whole = text.endswith(b"\n") or not text
        for row in text.split(b"\n"):
            try:
                line = json.loads(row)
                self.lines.setdefault(key_of(line), line)
            except (ValueError, KeyError, TypeError):
                continue  # cut short

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those that are not there yet, in order."""
        return [key for key in keys if key not in self.lines]

    def add(self, line: Line) -> None:
        """Write a line."""
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, data if self._whole else b"\n" + data)
            os.fsync(file)
        finally:
            os.close(file)
        self._whole = True
        self.lines[key_of(line)] = line
