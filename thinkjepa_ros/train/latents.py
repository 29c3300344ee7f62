"""What stage 2 trains on: latents, poses and thoughts of every episode, computed once and kept on disk.

One file per episode, written atomically and stamped with the hash of what made it, so that a killed run goes on where
it was and a
changed encoder or thinker is noticed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from ..checkpoints import write_atomically
from ..data.episode import Episode
from ..jepa.model import ForecastNet
from ..values import Guidance
from .clips import Grid, canonical_images


@dataclass(frozen=True)
class Track:
    """One episode on the time grid (G samples), ready for training."""

    full: torch.Tensor  # float16 [G, n, D]
    pooled: torch.Tensor  # float16 [G, p^2, D]
    poses: torch.Tensor  # float32 [G, J, 3], estimated, camera frame of each sample
    joints: np.ndarray  # float32 [G, J, 3], truth, world
    camera_pose: np.ndarray  # float64 [G, 4, 4]
    stamps_ns: np.ndarray  # int64 [G]
    thought_ns: np.ndarray  # int64 [K], newest frame of every thought
    pyramids: torch.Tensor  # float32 [K, L, 2, D_vlm]

    def joints_seen_from(self, sample: int, steps: slice) -> np.ndarray:
        """True joints at `steps` in the camera frame of `sample`, float32 [.., J, 3]."""
        pose = self.camera_pose[sample]
        return np.asarray((self.joints[steps] - pose[:3, 3]) @ pose[:3, :3], np.float32)


def fingerprint(*modules: torch.nn.Module, extra: str = "") -> str:
    """Short hash of weights and of anything else that decides the cached numbers."""
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def phase_of(episode: Episode, step_ns: int) -> int:
    """Where on the camera's time line the grid of an episode begins: different for each, the same every time."""
    return int(np.random.default_rng((77, episode.seed)).integers(step_ns))


def build(
    episodes: list[Episode],
    net: ForecastNet,
    folder: Path,
    think: Callable[[Episode], list[Guidance]] | None = None,
    think_id: str = "",
    title: str = "Latents",
) -> list[Track]:
    """Tracks of all episodes, from the cache in `folder` where it is valid. `think` gives the thoughts of an episode
    ([] for none).
    """
    if net.config.frames_per_latent != 1 or net.config.clip:
        raise ValueError(
            "latents are cached frame by frame; a model that sees clips or streams cannot be trained on them"
        )
    made_by = fingerprint(net.encoder, net.pose, extra=f"{net.config} {think_id}")
    tracks = []
    for episode in track(episodes, title, transient=True):
        path = folder / f"{episode.split}_{episode.seed:07d}.safetensors"
        tracks.append(_track(episode, _cached(path, made_by, functools.partial(_compute, episode, net, think))))
    return tracks


def _cached(path: Path, made_by: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                if file.metadata().get("made_by") == made_by:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no dict
        except Exception:
            path.unlink()
    tensors = compute()
    write_atomically(path, to_bytes(tensors, {"made_by": made_by}))
    return tensors


def _compute(
    episode: Episode, net: ForecastNet, think: Callable[[Episode], list[Guidance]] | None
) -> dict[str, torch.Tensor]:
    step_ns = round(net.config.step_s * 1e9)
    index = Grid.of(episode.stamps_ns, step_ns, phase_of(episode, step_ns)).index
    images = torch.from_numpy(canonical_images(episode, index, net.config.camera))
    full, poses = [], []
    with torch.inference_mode():
        for part in images.split(32):
            full.append(net.encoder.frames(part))
            poses.append(net.pose(full[-1]))
    latents = torch.cat(full)
    thoughts = think(episode) if think else []
    shape = (net.config.predictor.guide_layers, 2, net.config.predictor.guide_width)
    pyramids = np.stack([t.pyramid for t in thoughts]) if thoughts else np.zeros((0, *shape), np.float32)
    return {
        "full": latents.half(),
        "pooled": net.predictor.pool(latents).half(),
        "poses": torch.cat(poses),
        "index": torch.from_numpy(index),
        "thought_ns": torch.tensor([t.stamp_ns for t in thoughts], dtype=torch.int64),
        "pyramids": torch.from_numpy(pyramids.astype(np.float32)),
    }


def _track(episode: Episode, tensors: dict[str, torch.Tensor]) -> Track:
    index = tensors["index"].numpy()
    return Track(
        tensors["full"],
        tensors["pooled"],
        tensors["poses"],
        episode.joints[index],
        episode.camera_pose[index],
        episode.stamps_ns[index],
        tensors["thought_ns"].numpy(),
        tensors["pyramids"],
    )
