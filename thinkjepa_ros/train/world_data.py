"""Samples for the world model: what was seen and done up to now, what is done next, and what is seen then.

Episodes have one frame per action, every `action_s` seconds; states and actions are given in the optical frame of the
camera (`control.space`). What lies beyond the end of an episode is marked unknown and counts nowhere; before its
beginning its first frame is repeated, as at the start of a live run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..control import space
from ..control.policy import CUBES, TRAYS
from ..data.episode import Episode, EpisodeError
from ..stream.geometry import CanonicalView
from ..values import Camera

#: How much the time between two frames may differ from the grid step, as a share of it.
TOLERANCE = 0.1
#: What a recording may know the places of.
THINGS = (*(f"cube_{colour}" for colour in CUBES), *(f"tray_{side}" for side in TRAYS))


@dataclass(frozen=True)
class Track:
    """One episode, N frames: states float32 [N, 4] in the optical frame of their own frame, and actions [N - 1, 4] in
    the base frame.
    """

    episode: Episode
    states: np.ndarray
    base_actions: np.ndarray
    view: CanonicalView

    @staticmethod
    def of(episode: Episode, camera: Camera, action_s: float) -> Track:
        """Raises EpisodeError for an episode on another time grid."""
        gaps = np.diff(episode.stamps_ns) * 1e-9
        if not len(gaps) or np.abs(gaps / action_s - 1).max() > TOLERANCE:
            found = f"every {np.median(gaps):.3g} s" if len(gaps) else "once"
            raise EpisodeError(
                f"episode {episode.split}_{episode.seed} has a frame {found}, a world model needs one every "
                f"{action_s:g} s, one per action; make episodes of the work cell."
            )
        states = space.state_to_camera(space.chosen(episode.states), episode.camera_pose)
        return Track(episode, states, space.chosen(episode.actions), CanonicalView(episode.camera, camera))

    def actions(self, now: int, which: np.ndarray) -> np.ndarray:
        """Actions `which` [K] as a planner at frame `now` would give them, float32 [K, 4]: the camera may sway
        afterwards.
        """
        return space.action_to_camera(self.base_actions[which], self.episode.camera_pose[now])

    def things(self, now: int) -> tuple[np.ndarray, np.ndarray]:
        """Where THINGS are, float32 [T, 3] in the optical frame, and whether that is known, bool [T]."""
        e = self.episode
        known = np.array([name in e.objects for name in THINGS])
        places = np.stack([e.objects[name][now] if name in e.objects else np.zeros(3) for name in THINGS])
        pose = e.camera_pose[now]
        return ((places - pose[:3, 3]) @ pose[:3, :3]).astype(np.float32), known

    def __len__(self) -> int:
        return len(self.states)

    def images(self, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [K, S, S, 3] as the canonical camera sees them."""
        return np.stack([self.view.apply(self.episode.frames[int(i)]) for i in frames])


def befores_and_afters(tracks: Sequence[Track], pairs: int, apart: int, rng: np.random.Generator) -> Tensor:
    """Images uint8 [2 pairs, S, S, 3]: random frames, and behind each the frame `apart` later, or the last."""
    images = []
    for number in rng.integers(len(tracks), size=pairs):
        one = tracks[int(number)]
        first = int(rng.integers(len(one)))
        images.append(one.images([first, min(len(one) - 1, first + apart)]))
    return torch.from_numpy(np.concatenate(images))


class Origin(NamedTuple):
    """The present of a moment: number of the episode, and the stamp of its newest frame."""

    episode: int
    stamp_ns: int


@dataclass(frozen=True)
class Moments:
    """B moments. C context frames, H actions ahead, K of the frames after them."""

    context: Tensor  # uint8 [B, C, S, S, 3], the last one is now
    state: Tensor  # [B, 4] now
    before: Tensor  # [B, 4], action from the last frame but one to now
    before_known: Tensor  # bool [B]
    actions: Tensor  # [B, H, 4]
    states: Tensor  # [B, H, 4] after every action
    targets: Tensor  # uint8 [B, K, S, S, 3]
    steps: tuple[int, ...]  # K, rising: which of the H steps a target is, 0 … H - 1
    known: Tensor  # bool [B, K]
    things: Tensor  # [B, T, 3] now, see `Track.things`
    things_known: Tensor  # bool [B, T]

    def to(self, device: torch.device) -> Moments:
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def draw(
    tracks: Sequence[Track], size: int, context: int, horizon: int, targets: int, rng: np.random.Generator
) -> tuple[Moments, list[Origin]]:
    """`size` random moments, frames equally likely. Of the H frames ahead `targets` are looked at, the same for all."""
    lengths = np.array([len(t) - 1 for t in tracks])  # at the last frame nothing is done any more
    ends = lengths.cumsum()
    steps = np.sort(rng.permutation(horizon)[:targets])
    parts, origins = [], []
    for pick in rng.integers(ends[-1], size=size):
        which = int(np.searchsorted(ends, pick, side="right"))
        now = int(pick - (ends[which] - lengths[which]))
        parts.append(moment(tracks[which], now, context, horizon, steps))
        origins.append(Origin(which, int(tracks[which].episode.stamps_ns[now])))
    context_, state, before, started, actions, states, seen, known, things, things_known = (
        torch.from_numpy(np.stack(column)) for column in zip(*parts, strict=True)
    )
    chosen = tuple(int(h) for h in steps)
    found = Moments(context_, state, before, started, actions, states, seen, chosen, known, things, things_known)
    return found, origins


def moment(track: Track, now: int, context: int, horizon: int, steps: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of `Moments` for one of them, without `steps`."""
    last = len(track) - 1
    seen = np.maximum(np.arange(now - context + 1, now + 1), 0)
    ahead = now + 1 + np.arange(horizon)
    todo = np.minimum(ahead - 1, last - 1)
    actions = track.actions(now, todo)
    actions[ahead > last, :3] = 0
    wanted = now + 1 + steps
    known = wanted <= last
    # a frame beyond the end is not decoded: the picture of now stands in its place and counts nowhere
    pictures = track.images([*seen, *wanted[known]])
    targets = np.stack([pictures[context - 1]] * len(steps))
    targets[known] = pictures[context:]
    return (
        pictures[:context],
        track.states[now],
        track.actions(now, np.array([max(0, now - 1)]))[0],
        np.array(now > 0),
        actions,
        track.states[np.minimum(ahead, last)],
        targets,
        known,
        *track.things(now),
    )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of states and actions, by column."""

    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]

    @staticmethod
    def of(tracks: Sequence[Track], least: float = 1e-3) -> Spread:
        """Over all frames. `least`: what never changes gets this standard deviation, so that it stays finite."""
        found = []
        actions = [space.action_to_camera(t.base_actions, t.episode.camera_pose[:-1]) for t in tracks]
        for rows in (actions, [t.states for t in tracks]):
            every = np.concatenate(rows).astype(np.float64)
            found += [every.mean(0).round(5), np.maximum(every.std(0), least).round(5)]
        return Spread(*(tuple(float(x) for x in values) for values in found))
