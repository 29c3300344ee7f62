"""Strips of what was seen in an episode, for people who want to know why it failed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...files import replacing
from .lockstep import Film

#: Pictures of a strip, pixels of the side of each, height of the words below it.
MANY, SIDE, WORDS = 10, 160, 18
_INK, _PAPER, _GAP = (30, 30, 30), (250, 250, 248), 4


def strip(film: Film, title: str) -> np.ndarray:
    """uint8 RGB: what is to be reached (where a picture tells) and evenly chosen moments, words below each."""
    count = len(film.images)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MANY)).round().astype(int))
    cells = []
    asked: np.ndarray | None = None
    for index in chosen:
        picture = film.pictures[index]
        if picture is not None and picture is not asked:
            cells.append(_cell(picture, "to be reached"))
            asked = picture
        cells.append(_cell(film.images[index], f"{index}: {film.words[index]}"))
    row = np.concatenate(cells, 1)
    head = np.full((WORDS + 4, row.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(head, title, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return np.concatenate((head, row), 0)


def _cell(image: np.ndarray, words: str) -> np.ndarray:
    out = np.full((SIDE + WORDS, SIDE + _GAP, 3), _PAPER, np.uint8)
    out[:SIDE, :SIDE] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    cv2.putText(out, words, (2, SIDE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.33, _INK, 1, cv2.LINE_AA)
    return out


def save(film: Film, title: str, path: Path) -> None:
    """Write a strip as PNG."""
    coded = cv2.imencode(".png", strip(film, title)[..., ::-1])[1]
    with replacing(path) as part:
        part.write_bytes(coded.tobytes())
