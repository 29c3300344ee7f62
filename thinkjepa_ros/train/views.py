"""The pictures of a thinker's window in training: other light, from a little elsewhere, and where their lamps are.

A window is varied as one: its frames come from one camera in one room.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from ..data.episode import Episode, EpisodeError
from ..data.sim.rollouts import WORKCELL_VERSION
from ..data.sim.script import SCENE_VERSION
from ..data.sim.script import draw as draw_script
from ..data.sim.tasks import KINDS, draw_task
from ..data.told import LAMP_STATES, Sample

#: Class of a token without a lamp in `lamp_tokens`; above it 1 + side * states + state.
NO_LAMP = 0
TOKEN_CLASSES = 1 + 2 * len(LAMP_STATES)
_GLOBE_ABOVE_POST_M = 0.03


@dataclass(frozen=True)
class View:
    """One way to see a window. warp: float64 [2, 3], pixels to pixels. table: uint8 [1, 256, 3], new colours.

    blur, noise: standard deviations in pixels and in grey levels; 0 is none. seed: of the noise.
    """

    warp: np.ndarray
    table: np.ndarray
    blur: float
    noise: float
    seed: int

    @staticmethod
    def draw(rng: np.random.Generator, size: int) -> View:
        """A random one: up to 3 degrees, 12 % and 6 pixels of `size`; brightness, contrast and white balance."""
        turn, zoom = rng.uniform(-3, 3), rng.uniform(0.88, 1.12)
        warp = np.array(cv2.getRotationMatrix2D((size / 2, size / 2), turn, zoom))
        warp[:, 2] = warp[:, 2] + rng.uniform(-6, 6, 2)
        gain = rng.uniform(0.8, 1.25) * rng.uniform(0.94, 1.06, 3)
        lift = 110 * (1 - rng.uniform(0.85, 1.15))
        table = np.clip((np.arange(256)[:, None] + lift) * gain, 0, 255).astype(np.uint8)[None]
        blur = rng.uniform(0.3, 0.8) if rng.random() < 0.4 else 0.0
        noise = rng.uniform(0, 5) if rng.random() < 0.5 else 0.0
        return View(warp, table, float(blur), float(noise), int(rng.integers(2**31)))

    def apply(self, images: np.ndarray) -> np.ndarray:
        """uint8 [T, S, S, 3] -> the same shape."""
        rng = np.random.default_rng(self.seed)
        size = images.shape[2], images.shape[1]
        out = []
        for image in images:
            moved = cv2.warpAffine(image, self.warp, size, borderMode=cv2.BORDER_REPLICATE)
            if self.blur:
                moved = cv2.GaussianBlur(moved, (0, 0), self.blur)
            moved = cv2.LUT(moved, self.table)
            if self.noise:
                grain = rng.normal(0, self.noise, (*size[::-1], 1))
                moved = np.clip(moved + grain, 0, 255).astype(np.uint8)
            out.append(moved)
        return np.stack(out)

    def points(self, pixels: np.ndarray) -> np.ndarray:
        """Where pixels [..., 2] of the original lie in the view."""
        return np.asarray(pixels @ self.warp[:, :2].T + self.warp[:, 2])


def pictures(episode: Episode, sample: Sample, view: View | None) -> np.ndarray:
    """The frames of a window, uint8 [T, S, S, 3], mirrored where the sample is; EpisodeError unless they are square."""
    images = np.stack([episode.frames[int(i)] for i in sample.frames])
    if images.shape[1] != images.shape[2]:
        raise EpisodeError(
            f"training takes square pictures, episode {episode.seed} has {images.shape[2]} x {images.shape[1]}"
        )
    if sample.mirrored:
        images = images[:, :, ::-1]
    images = np.ascontiguousarray(images)
    return images if view is None else view.apply(images)


def lamp_tokens(episode: Episode, sample: Sample, view: View | None, grid: int) -> np.ndarray:
    """What the token at each place shows, int64 [P, grid * grid]: NO_LAMP, or which lamp in which state.

    The simulator knows where its lamps are; they stand still, so the middle of the pair's two frames is exact enough.
    """
    size = episode.camera.width
    out = np.full((len(sample.pairs), grid, grid), NO_LAMP, np.int64)
    for k, pair in enumerate(sample.pairs):
        both = [_lamp_pixels(episode, int(sample.frames[i]), sample.mirrored) for i in (pair.first, pair.second)]
        pixels = np.mean(both, axis=0)
        if view is not None:
            pixels = view.points(pixels)
        cells = np.floor((pixels + 0.5) * grid / size)
        for side, (column, row) in enumerate(cells):
            if 0 <= column < grid and 0 <= row < grid:
                out[k, int(row), int(column)] = 1 + side * len(LAMP_STATES) + sample.lamps[k, side]
    return out.reshape(len(sample.pairs), -1)


def _lamp_pixels(episode: Episode, frame: int, mirrored: bool) -> np.ndarray:
    """Pixels of the left and the right lamp as seen, float64 [2, 2]; NaN behind the camera."""
    name, version, command = (
        ("workcell_version", WORKCELL_VERSION, "rollouts")
        if episode.split == "workcell"
        else ("scene_version", SCENE_VERSION, "sim")
    )
    if episode.details.get(name) != version:
        raise EpisodeError(
            f"episode {episode.seed} is not of version {version} of the scene; make it with `thinkjepa data {command}`"
        )
    pose = episode.camera_pose[frame]
    split = str(episode.details["kind"]) if episode.split == "workcell" else episode.split
    pixels = episode.camera.project((_lamps(split, episode.seed) - pose[:3, 3]) @ pose[:3, :3])
    if mirrored:
        pixels = (pixels * [-1, 1] + [episode.camera.width - 1, 0])[::-1]
    return pixels


@lru_cache(maxsize=100_000)
def _lamps(split: str, seed: int) -> np.ndarray:
    look = (draw_task if split in KINDS else draw_script)(split, seed).look
    return np.array([[x, y, look.lamp_height + _GLOBE_ABOVE_POST_M] for x, y in look.lamp_xy])
