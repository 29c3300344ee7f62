"""Many episodes in memory, end to end on the time grid, from which training and evaluation take windows by number.

N samples of E episodes, 0.1 s apart within an episode. A sample is a forecast origin if the context fits before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.episode import Episode
from .cache import Shard


@dataclass(frozen=True)
class Window:
    """Forecast origins [B] with what a model sees and what comes. Places are in metres, camera frame of the origin."""

    past: Tensor  # float32 [B, C - 1, p^2, D], pooled latents of the older frames
    now: Tensor  # float32 [B, n, D], latent of the newest
    poses: Tensor  # float32 [B, C, J, 3], estimated joints, each in the camera frame of its own sample
    present: Tensor  # float32 [B, J, 3], true joints now, NaN where unknown
    future: Tensor  # float32 [B, T, J, 3], true joints ahead, NaN where unknown or after the end
    latents: Tensor  # float32 [B, tubelets, p^2, D], pooled latents ahead, mean over the frames of a tubelet
    latents_known: Tensor  # bool [B, tubelets]

    def anchored(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Poses [B, C, J, 3] moved joint by joint to where the joints truly are now, and which are known, bool [B, J].

        where: bool [B], windows whose present is observed; joints that are not known stay as they were found.
        """
        observed = self.present.isfinite().all(-1) & where[:, None]
        off = torch.where(observed[..., None], self.present - self.poses[:, -1], 0.0)
        return self.poses + off[:, None], observed


@dataclass(frozen=True)
class Tracks:
    full: Tensor  # float16 [N, n, D]
    pooled: Tensor  # float16 [N, p^2, D]
    poses: Tensor  # float32 [N, J, 3]
    joints: Tensor  # float32 [N, J, 3], truth, world
    rotation: Tensor  # float32 [N, 3, 3], world from camera
    place: Tensor  # float32 [N, 3], of the camera in the world
    stamps_ns: np.ndarray  # int64 [N]
    frames: np.ndarray  # int64 [N], frame of the episode
    phases: np.ndarray  # uint8 [N], index into PHASES
    episode: np.ndarray  # int64 [N], 0 ... E - 1
    end: np.ndarray  # int64 [N], first sample after the episode
    begin: np.ndarray  # int64 [N], first sample of the episode
    thought_ns: np.ndarray  # int64 [K]
    pyramids: Tensor  # float32 [K, L, 2, D_vlm]
    texts: tuple[str, ...]  # K answers
    thoughts: np.ndarray  # int64 [E + 1], the thoughts of episode e are thoughts[e] ... thoughts[e + 1] - 1

    @staticmethod
    def of(episodes: Sequence[Episode], shards: Sequence[Shard]) -> Tracks:
        """From episodes and their shards, in the same order."""
        lengths = np.array([len(s.index) for s in shards])
        starts = np.concatenate(([0], np.cumsum(lengths)))
        number = np.repeat(np.arange(len(shards)), lengths)
        pose = np.concatenate([e.camera_pose[s.index.numpy()] for e, s in zip(episodes, shards, strict=True)])
        pick = lambda name: np.concatenate(  # noqa: E731
            [getattr(e, name)[s.index.numpy()] for e, s in zip(episodes, shards, strict=True)]
        )
        counts = [len(s.thought_ns) for s in shards]
        return Tracks(
            full=torch.cat([s.full for s in shards]),
            pooled=torch.cat([s.pooled for s in shards]),
            poses=torch.cat([s.poses for s in shards]),
            joints=torch.from_numpy(pick("joints")),
            rotation=torch.from_numpy(pose[:, :3, :3].astype(np.float32)),
            place=torch.from_numpy(pose[:, :3, 3].astype(np.float32)),
            stamps_ns=pick("stamps_ns"),
            frames=np.concatenate([s.index.numpy() for s in shards]),
            phases=pick("phases"),
            episode=number,
            end=starts[1:][number],
            begin=starts[:-1][number],
            thought_ns=np.concatenate([s.thought_ns.numpy() for s in shards]),
            pyramids=torch.cat([s.pyramids for s in shards if len(s.thought_ns)] or [torch.zeros(0, 1, 2, 1)]),
            texts=tuple(text for s in shards for text in s.texts),
            thoughts=np.concatenate(([0], np.cumsum(counts))),
        )

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def with_thoughts(self, pyramids: Tensor) -> Tracks:
        """The same with other states for its thoughts, [K, L, 2, D]."""
        return replace(self, pyramids=pyramids)

    def origins(self, context: int) -> np.ndarray:
        """Samples with a whole context behind them and something ahead, int64 [M]."""
        number = np.arange(len(self))
        return np.flatnonzero((number - self.begin >= context - 1) & (self.end - number > 1))

    def moving(self, steps: int = 3, least_m: float = 0.03) -> np.ndarray:
        """Samples at which some joint has moved so far within the last grid steps, bool [N]: what can be seen then."""
        before = np.maximum(np.arange(len(self)) - steps, self.begin)
        moved = (self.joints - self.joints[torch.from_numpy(before)]).norm(dim=-1).nan_to_num()
        return np.asarray(moved.amax(1) > least_m)

    def window(self, samples: np.ndarray, context: int, tubelets: int, steps: int) -> Window:
        """Windows around `samples` [B]; steps: grid steps of a tubelet."""
        samples = np.asarray(samples)
        origin = torch.from_numpy(samples)
        behind = torch.from_numpy(samples[:, None] + np.arange(1 - context, 1))
        known, ahead_of = self._ahead(samples, tubelets * steps)
        pooled = self.pooled[ahead_of].float().unflatten(1, (tubelets, steps)).mean(2)
        whole = known.unflatten(1, (tubelets, steps)).all(-1)
        return Window(
            past=self.pooled[behind[:, :-1]].float(),
            now=self.full[origin].float(),
            poses=self.poses[behind],
            present=self._seen_from(origin, self.joints[origin][:, None])[:, 0],
            future=self.ahead(samples, tubelets * steps),
            latents=torch.where(whole[..., None, None], pooled, 0.0),
            latents_known=whole,
        )

    def ahead(self, samples: np.ndarray, steps: int) -> Tensor:
        """True joints after `samples` in their camera frames, float32 [B, steps, J, 3], NaN after the end."""
        known, ahead_of = self._ahead(samples, steps)
        future = self._seen_from(torch.from_numpy(samples), self.joints[ahead_of])
        return torch.where(known[..., None, None], future, torch.nan)

    def _ahead(self, samples: np.ndarray, steps: int) -> tuple[Tensor, Tensor]:
        """Which of the next samples are of the same episode, bool [B, steps], and their numbers (the last one's beyond
        the end), int64 [B, steps].
        """
        ahead, end = samples[:, None] + np.arange(1, steps + 1), self.end[samples][:, None]
        return torch.from_numpy(ahead < end), torch.from_numpy(np.minimum(ahead, end - 1))

    def true_past(self, samples: np.ndarray, context: int) -> Tensor:
        """True joints of the context, each in the camera frame of the origin, float32 [B, C, J, 3]."""
        behind = torch.from_numpy(np.asarray(samples)[:, None] + np.arange(1 - context, 1))
        return self._seen_from(torch.from_numpy(np.asarray(samples)), self.joints[behind])

    def _seen_from(self, origin: Tensor, points: Tensor) -> Tensor:
        """World points [B, T, J, 3] in the camera frame of samples [B]."""
        place = self.place[origin][:, None, None]
        return torch.einsum("btjk,bkl->btjl", points - place, self.rotation[origin])

    def thought_before(self, samples: np.ndarray, age_ns: np.ndarray | int) -> np.ndarray:
        """Number of the newest thought over frames at least `age_ns` older than each sample, -1 where there is none.

        Raises ValueError if there is not a single thought: then nobody thought, which is another thing.
        """
        if not len(self.thought_ns):
            raise ValueError("the cache holds no thoughts; fill it with a thinker (`thinkjepa train cache --thinker`)")
        samples = np.asarray(samples)
        latest = self.stamps_ns[samples] - age_ns
        found = np.empty(len(samples), np.int64)
        for i, (e, stamp) in enumerate(zip(self.episode[samples], latest, strict=True)):
            first, last = self.thoughts[e], self.thoughts[e + 1]
            n = int(np.searchsorted(self.thought_ns[first:last], stamp, side="right"))
            found[i] = first + n - 1 if n else -1
        return found
