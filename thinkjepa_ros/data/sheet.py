"""Look at episodes: a contact sheet with the joints drawn on the frames, `thinkjepa data sheet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from thinkjepa_ros.data.episode import SIDES, Episode

_SEEN = {"right": (255, 230, 60), "left": (60, 220, 255)}
_HIDDEN = (255, 0, 255)


def draw_frame(episode: Episode, i: int, height: int = 256, joints: bool = True) -> np.ndarray:
    """Frame `i` scaled to `height`, uint8 RGB: right joints yellow, left cyan, hidden magenta; phase, time."""
    image = episode.frames[i]
    scale = height / image.shape[0]
    way = cv2.INTER_NEAREST if scale >= 2 else cv2.INTER_AREA
    image = cv2.resize(image, (round(image.shape[1] * scale), height), interpolation=way)
    if joints:
        pixels = (episode.camera.project(episode.joints_in_camera(i)) + 0.5) * scale
        for name, pixel, seen in zip(episode.joint_names, pixels, episode.visible[i], strict=True):
            if np.isfinite(pixel).all() and np.abs(pixel).max() < 1e4:
                side = name.split("_")[0]
                colour = _SEEN.get(side, _SEEN[SIDES[0]]) if seen else _HIDDEN
                cv2.circle(image, (round(pixel[0]), round(pixel[1])), 2, colour, -1, cv2.LINE_AA)
    seconds = (episode.stamps_ns[i] - episode.stamps_ns[0]) * 1e-9
    words = f"{seconds:.1f} s {episode.phase(i)}"
    cv2.putText(image, words, (4, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(image)


def contact_sheet(episodes: Sequence[Episode], columns: int = 8, height: int = 256, joints: bool = True) -> np.ndarray:
    """One row per episode, `columns` frames spread over its phases, uint8 RGB. The instruction stands above the row."""
    rows = []
    for episode in episodes:
        # as many frames of each phase as its share asks for, but a short one (the cue) is never left out
        begins = np.flatnonzero(np.diff(episode.phases.astype(int), prepend=-1))
        middles = [(a + b) // 2 for a, b in zip(begins, [*begins[1:], len(episode)], strict=True)]
        spread = np.linspace(0, len(episode) - 1, max(columns - len(middles), 0) + 2).astype(int)[1:-1]
        picked = sorted({*middles, *spread.tolist()})[:columns]
        row = np.concatenate([draw_frame(episode, i, height, joints) for i in picked], 1)
        title = np.full((22, row.shape[1], 3), 24, np.uint8)
        words = f"{episode.split} {episode.seed}: {episode.instruction}"
        if episode.intent:
            words += f"  [{episode.intent['cube']} to {episode.intent['tray']}]"
        cv2.putText(title, words, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(np.concatenate([title, row]))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def main(out: Path, files: Sequence[Path], columns: int = 8, height: int = 256, joints: bool = True) -> int:
    """Draw a picture of episode files: one row each, joints on the frames. Returns the exit code 0.

    Raises EpisodeError for a damaged file and ValueError without files or for a size that makes no picture.
    """
    if not files or columns < 1 or height < 32:
        raise ValueError("give at least one episode file, columns 1 or more and height 32 or more")
    sheet = contact_sheet([Episode.load(file) for file in files], columns, height, joints)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise ValueError(f"{out} cannot be written; give a name that ends in .png or .jpg")
    print(f"{len(files)} episodes drawn in {out}")
    return 0
