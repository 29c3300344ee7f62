"""Stage `cache`: latents, poses and thoughts of every episode, computed once and kept on disk: `thinkjepa train cache`.

A shard is one episode: a safetensors file, written whole or not at all. Its header names what made it (the weights of
encoder and pose readout, the thinker, the episode file) and the SHA-256 of its contents. So a killed run goes on where
it was, several processes may fill one folder (each takes every n-th episode), and whoever opens it notices a shard
that is damaged or was made by something else.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..checkpoints import write_atomically
from ..data.episode import Episode
from ..jepa.model import ForecastNet
from ..values import Guidance
from .clips import Grid, Variation, canonical_images

Think = Callable[[Episode], list[Guidance]]
#: Frames that the encoder sees at once.
_TOGETHER = 32


class CacheError(RuntimeError):
    """A cache cannot be used; the text names the file and the remedy."""


@dataclass(frozen=True)
class Shard:
    """One episode on the time grid (G samples) and K thoughts about it."""

    full: torch.Tensor  # float16 [G, n, D]
    pooled: torch.Tensor  # float16 [G, p^2, D]
    poses: torch.Tensor  # float32 [G, J, 3], estimated, camera frame of each sample
    index: torch.Tensor  # int64 [G], frames of the episode
    thought_ns: torch.Tensor  # int64 [K], newest frame of every thought
    pyramids: torch.Tensor  # float32 [K, L, 2, D_vlm]
    texts: tuple[str, ...]  # K answers


@dataclass(frozen=True)
class Maker:
    """What fills a cache: the frozen half of a network, and a thinker (None: no thoughts).

    thoughts: another cache, folder and `made_by`, from which the thoughts are taken instead: those over a second
    encoder are the same. variation: number of the way to see the episodes (`clips.Variation`).
    """

    net: ForecastNet
    think: Think | None = None
    think_id: str = ""  #: what tells this thinker and its rhythm from any other
    thoughts: tuple[Path, str] | None = None
    variation: int = 0

    def __post_init__(self) -> None:
        if self.net.config.frames_per_latent != 1 or self.net.config.clip:
            raise CacheError(
                "latents are cached frame by frame; a model that sees clips or streams cannot be trained on them"
            )

    @functools.cached_property
    def made_by(self) -> str:
        """Short hash of everything that decides the numbers, but for the episode."""
        c = self.net.config
        seen = f"{c.encoder} {c.camera} {c.step_s} {c.predictor.pooled} {c.joint_names} {self.think_id}"
        seen += f" thoughts of {self.thoughts[1]}" if self.thoughts else ""
        seen += f" variation {self.variation}" if self.variation else ""
        return fingerprint(self.net.encoder, self.net.pose, extra=seen)

    def make(self, episode: Episode) -> Shard:
        """Compute the shard of an episode."""
        net, step_ns = self.net, round(self.net.config.step_s * 1e9)
        index = Grid.of(episode.stamps_ns, step_ns, phase_of(episode, step_ns, self.variation)).index
        seen = Variation(episode.seed, self.variation)
        images = torch.from_numpy(seen.images(canonical_images(episode, index, net.config.camera), net.config.camera))
        device = next(net.parameters()).device
        full, poses = [], []
        with torch.inference_mode():
            for part in images.split(_TOGETHER):
                full.append(net.encoder.frames(part.to(device)))
                poses.append(net.pose(full[-1]).cpu())
            latents = torch.cat(full)
            pooled = net.predictor.pool(latents).half().cpu()
        thought_ns, pyramids, texts = self._thoughts(episode)
        return Shard(
            full=latents.half().cpu(),
            pooled=pooled,
            poses=torch.cat(poses),
            index=torch.from_numpy(index),
            thought_ns=thought_ns,
            pyramids=pyramids,
            texts=texts,
        )

    def _thoughts(self, episode: Episode) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
        """Stamps [K], states [K, L, 2, D] and texts."""
        if self.thoughts:
            folder, made_by = self.thoughts
            other = _read(shard_path(folder, episode), episode, made_by)
            return other.thought_ns, other.pyramids, other.texts
        said = self.think(episode) if self.think else []
        pyramids = np.stack([t.pyramid for t in said]) if said else np.zeros((0, 1, 2, 1))
        stamps = torch.tensor([t.stamp_ns for t in said], dtype=torch.int64)
        return stamps, torch.from_numpy(pyramids.astype(np.float32)), tuple(t.text for t in said)


def fingerprint(*modules: torch.nn.Module, extra: str = "") -> str:
    """Short hash of weights and of anything else that decides the cached numbers."""
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def phase_of(episode: Episode, step_ns: int, variation: int = 0) -> int:
    """Where on the camera's time line the grid of an episode begins: different for each, the same every time."""
    return int(np.random.default_rng((77, episode.seed, *([variation] if variation else []))).integers(step_ns))


def fill(
    episodes: Sequence[Episode], maker: Maker, folder: Path, *, rank: int = 0, world: int = 1, title: str = "Cache"
) -> int:
    """Make the shards of `episodes` that are missing, damaged or of another maker. Returns how many were made.

    rank, world: this process takes every world-th episode; others may fill the same folder meanwhile.
    """
    made = 0
    for episode in track(list(episodes[rank::world]), title, transient=True):
        path = shard_path(folder, episode)
        try:
            _read(path, episode, maker.made_by)
        except CacheError:
            _write(path, episode, maker)
            made += 1
    return made


def load(episodes: Sequence[Episode], folder: Path, made_by: str, title: str = "Reading the cache") -> list[Shard]:
    """The shards of all episodes, verified. Raises CacheError naming the first that cannot be used."""
    return [_read(shard_path(folder, e), e, made_by) for e in track(episodes, title, transient=True)]


def shard_path(folder: Path, episode: Episode) -> Path:
    return Path(folder) / f"{episode.split}_{episode.seed:07d}.safetensors"


def _write(path: Path, episode: Episode, maker: Maker) -> None:
    shard = maker.make(episode)
    tensors = {name: getattr(shard, name) for name in _TENSORS}
    about = {"made_by": maker.made_by, "episode": _identity(episode), "sha256": _digest(tensors)}
    write_atomically(path, to_bytes(tensors, {**about, "texts": json.dumps(shard.texts)}))


_TENSORS = ("full", "pooled", "poses", "index", "thought_ns", "pyramids")


def _read(path: Path, episode: Episode, made_by: str) -> Shard:
    if not path.exists():
        raise CacheError(f"{path} is missing; `thinkjepa train cache` makes it.")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        texts = tuple(str(text) for text in json.loads(about.get("texts", "")))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CacheError(f"{path} is damaged ({error}); `thinkjepa train cache` makes it again.") from error
    if about.get("made_by") != made_by or about.get("episode") != _identity(episode):
        raise CacheError(
            f"{path} was made with another encoder, thinker or episode; `thinkjepa train cache` makes it again."
        )
    if about.get("sha256") != _digest(tensors):
        raise CacheError(f"{path} is damaged: its checksum does not match; `thinkjepa train cache` makes it again.")
    return Shard(**tensors, texts=texts)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _TENSORS:
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _identity(episode: Episode) -> str:
    """Short hash of the images and stamps of an episode."""
    digest = hashlib.sha256(episode.stamps_ns.tobytes())
    digest.update(episode.instruction.encode())
    digest.update(episode.frames.blobs.tobytes())
    return digest.hexdigest()[:16]
