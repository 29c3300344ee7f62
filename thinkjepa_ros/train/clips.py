"""Episodes as training samples: frames and clips on the model's time grid, with joints in the camera of the newest
frame.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.episode import Episode, EpisodeError, list_episodes
from ..stream.geometry import CanonicalView
from ..values import Camera


def load_folder(folder: str | Path, limit: int | None = None, split: str | None = None) -> list[Episode]:
    """Every episode of a folder (images stay JPEG in memory), with a progress bar. Raises EpisodeError."""
    from rich.progress import track

    paths = list_episodes(folder, split, limit)
    if not paths:
        raise EpisodeError(f"There are no episodes in {folder}; make some with `thinkjepa data sim {folder}`.")
    return [Episode.load(p) for p in track(paths, f"Reading {Path(folder).name}", transient=True)]


def data_hash(folder: Path, limit: int | None) -> str:
    """One hash over the names and contents of the episodes."""
    digest = hashlib.sha256()
    for path in list_episodes(folder, limit=limit):
        digest.update(json.dumps([path.name, path.stat().st_size]).encode())
        with path.open("rb") as file:
            digest.update(file.read(512))  # the user block of an episode holds the SHA-256 of the rest
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """Frame numbers of an episode on a time grid: index[k] is the frame nearest to start + k * step."""

    index: np.ndarray  # int [K]

    @staticmethod
    def of(stamps_ns: np.ndarray, step_ns: int, phase_ns: int = 0) -> Grid:
        times = np.arange(stamps_ns[0] + phase_ns, stamps_ns[-1] + 1, step_ns)
        right = np.clip(np.searchsorted(stamps_ns, times), 1, len(stamps_ns) - 1)
        nearer_left = times - stamps_ns[right - 1] <= stamps_ns[right] - times
        return Grid(np.where(nearer_left, right - 1, right))


def canonical_images(episode: Episode, frames: Sequence[int] | np.ndarray, canonical: Camera) -> np.ndarray:
    """uint8 [K, S, S, 3]: the frames as the canonical camera would see them."""
    view = CanonicalView(episode.camera, canonical)
    return np.stack([view.apply(episode.frames[int(i)]) for i in frames])


def colour_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another brightness, contrast and white balance, and a little noise; geometry is untouched."""
    gain = rng.uniform(0.75, 1.3) * rng.uniform(0.92, 1.08, 3)
    out = (image.astype(np.float32) - 110) * rng.uniform(0.8, 1.2) + 110
    out = out * gain + rng.normal(0, 1.0, (1, 1, 3)) * 4
    if rng.random() < 0.5:
        out += rng.normal(0, rng.uniform(0, 6), image.shape[:2])[..., None]
    return np.clip(out, 0, 255).astype(np.uint8)


def turned(
    image: np.ndarray, points: np.ndarray, camera: Camera, rng: np.random.Generator, degrees: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Image and points [..., 3] after turning the camera about its centre by up to `degrees` per axis: an exact view
    of the same scene.
    """
    rotation, _ = cv2.Rodrigues(np.deg2rad(rng.uniform(-degrees, degrees, 3)))
    warp = camera.matrix @ rotation @ np.linalg.inv(camera.matrix)
    size = (camera.width, camera.height)
    fill = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    return cv2.warpPerspective(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=fill), (
        points @ rotation.T
    ).astype(np.float32)


@dataclass(frozen=True)
class Variation:
    """One way to see a whole episode, as (seed, number) say: number 0 is as it is, others are in other light, by a
    camera that is turned a little about its centre.
    """

    seed: int
    number: int

    def images(self, images: np.ndarray, camera: Camera) -> np.ndarray:
        """uint8 [K, S, S, 3] of canonical images; all are changed alike."""
        if not self.number:
            return images
        return np.stack([colour_jitter(self._turned(i, camera)[0], self._random(1)) for i in images])

    def camera_pose(self, pose: np.ndarray, camera: Camera) -> np.ndarray:
        """World from the turned camera, float64 [N, 4, 4], from that of the episode."""
        if not self.number:
            return pose
        back = self._turned(np.zeros((camera.height, camera.width, 3), np.uint8), camera)[1]
        return np.asarray(pose @ back)

    def _turned(self, image: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """The image, and the camera from the turned camera, float64 [4, 4]."""
        back = np.eye(4)
        image, back[:3, :3] = turned(image, np.eye(3), camera, self._random(0))
        return image, back

    def _random(self, what: int) -> np.random.Generator:
        return np.random.default_rng((78, self.seed, self.number, what))
