"""Samples for the policy: what is seen and known now, what a demonstration does next, and where the named things are.

Demonstrations are episodes of pick and place: those that succeeded, or any whose details hold under "expert_actions"
what the expert would have commanded in every state of it, [N - 1, 4] in the base frame (then the labels are right even
where the recorded actions were disturbed, as in DAgger, arXiv 1011.0686). All other episodes of the work cell show
where things are, whatever is named: the places of cube and tray are learned from them, too.

Every sample is seen by a camera that is turned a little about its centre, in another light; states, actions and places
are turned with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..control import space
from ..control.policy import CUBES, TRAYS
from ..data.episode import Episode, EpisodeError
from ..data.sim.rollouts import EXPERT
from ..jepa.guidance import Payload
from ..values import Camera
from .clips import colour_jitter
from .world_data import Origin, Spread, Track
from .world_guidance import Thoughts

#: The camera is turned by up to so many degrees about each axis.
TURN_DEG = 3.0
#: Actions of a demonstration that was disturbed and has no labels count less: some of them are noise.
DISTURBED = 0.3


class Moment(NamedTuple):
    """One sample, as arrays. H actions ahead, F frames, K frames after them."""

    frames: np.ndarray  # uint8 [F, S, S, 3], the last one is now
    state: np.ndarray  # [4] in the optical frame
    actions: np.ndarray  # [H, 4]
    weight: np.ndarray  # [H], 0 where there is nothing to learn
    words: np.ndarray  # int64 [2], as `control.policy.words_of`
    places: np.ndarray  # [2, 3] of the named cube and tray, from the gripper, in the optical frame
    placed: np.ndarray  # [2], whether they are known
    future: np.ndarray  # uint8 [K, S, S, 3]
    known: np.ndarray  # bool [K]


@dataclass(frozen=True)
class Batch:
    """The same for B samples. steps: K, rising, which of the H steps a future frame is after."""

    frames: Tensor
    state: Tensor
    actions: Tensor
    weight: Tensor
    words: Tensor
    places: Tensor
    placed: Tensor
    future: Tensor
    known: Tensor
    steps: tuple[int, ...]
    payload: Payload | None = None

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        payload = None if self.payload is None else self.payload.to(device, torch.float32)
        return replace(self, **moved, payload=payload)


@dataclass(frozen=True)
class Demonstration:
    """An episode as a track, with the labels of its actions in the base frame [N - 1, 4] and their weight; weight 0 for
    an episode that only shows where things are.
    """

    track: Track
    labels: np.ndarray
    weight: float
    intent: tuple[int, int]

    @staticmethod
    def of(episode: Episode, camera: Camera, action_s: float) -> Demonstration:
        """Raises EpisodeError for an episode on another time grid, or with labels that do not fit."""
        track, details = Track.of(episode, camera, action_s), episode.details
        labels, weight = track.base_actions, 0.0
        if episode.intent is not None and details.get("behaviour") != "random":
            if EXPERT in details:
                labels, weight = np.asarray(details[EXPERT], np.float32), 1.0
                if labels.shape != track.base_actions.shape:
                    raise EpisodeError(f"{EXPERT} of episode {episode.seed} are {labels.shape}, must be one per action")
            elif details.get("success"):
                weight = DISTURBED if details.get("behaviour") == "perturbed" else 1.0
        intent = episode.intent or {}
        named = [
            known.index(intent[name]) if intent.get(name) in known else len(known)
            for name, known in (("cube", CUBES), ("tray", TRAYS))
        ]
        return Demonstration(track, labels, weight, (named[0], named[1]))


@dataclass(frozen=True)
class Mixture:
    """What a batch is drawn from. shown: share of samples in which anything may be named and no action is learned;
    untold: share of the others in which nothing is told. thoughts are of the tracks of `demonstrations`, in order.
    """

    demonstrations: Sequence[Demonstration]
    shown: float = 0.35
    untold: float = 0.1
    thoughts: Thoughts | None = None
    augment: bool = True

    def __post_init__(self) -> None:
        if not any(d.weight for d in self.demonstrations):
            raise EpisodeError("there is no demonstration among the episodes: pick and place, with success")

    def spread(self) -> Spread:
        """Of actions and states of the demonstrations."""
        return Spread.of([replace(d.track, base_actions=d.labels) for d in self.demonstrations if d.weight])

    def draw(self, size: int, frames: int, horizon: int, future: int, rng: np.random.Generator) -> Batch:
        """`size` random samples; frames of the demonstrations are equally likely. future: how many of the H frames
        ahead are looked at, the same for all.
        """
        lengths = np.array([len(d.track) - 1 for d in self.demonstrations])
        shows = rng.random(size) < self.shown
        acting = lengths * np.array([d.weight > 0 for d in self.demonstrations])
        ends, acting_ends = lengths.cumsum(), acting.cumsum()
        steps = np.sort(rng.permutation(horizon)[:future])
        moments, origins = [], []
        for show in shows:
            cumulated = ends if show else acting_ends
            pick = int(rng.integers(cumulated[-1]))
            which = int(np.searchsorted(cumulated, pick, side="right"))
            now = int(pick - (cumulated[which] - (lengths if show else acting)[which]))
            one = self.demonstrations[which]
            words = one.intent
            if show:
                words = (int(rng.integers(len(CUBES))), int(rng.integers(len(TRAYS))))
            moments.append(sample(one, now, words, frames, horizon, steps, rng if self.augment else None, act=not show))
            origins.append(Origin(which, int(one.track.episode.stamps_ns[now])))
        columns: dict[str, Any] = {
            name: torch.from_numpy(np.stack([getattr(one, name) for one in moments])) for name in Moment._fields
        }
        batch = Batch(**columns, steps=tuple(int(h) for h in steps))
        return self._told(batch, shows, origins, rng)

    def _told(self, batch: Batch, shows: np.ndarray, origins: list[Origin], rng: np.random.Generator) -> Batch:
        """Half of the samples with a thought are told by it alone; some are told nothing."""
        untold = ~shows & (rng.random(len(shows)) < self.untold)
        payload, thought = None, np.zeros(len(shows), bool)
        if self.thoughts is not None:
            payload = self.thoughts.payload(origins, rng)
            assert payload.weight is not None
            thought = ~shows & (payload.weight.numpy() > 0) & (rng.random(len(shows)) < 0.5)
            keep = torch.from_numpy((thought & ~untold).astype(np.float32))
            payload = payload._replace(weight=payload.weight * keep)
        silent = torch.from_numpy(untold | thought)
        words = torch.where(silent[:, None], torch.tensor([len(CUBES), len(TRAYS)]), batch.words)
        placed = batch.placed * torch.from_numpy(~untold).float()[:, None]  # nobody knows what is meant
        return replace(batch, words=words, placed=placed, payload=payload)


def sample(
    one: Demonstration,
    now: int,
    words: tuple[int, int],
    frames: int,
    horizon: int,
    steps: np.ndarray,
    rng: np.random.Generator | None = None,
    act: bool = True,
) -> Moment:
    """The sample at frame `now`. rng: of the variation; None for the picture as it is."""
    track, episode = one.track, one.track.episode
    last = len(track) - 1
    ahead = now + np.arange(horizon)
    actions = space.action_to_camera(one.labels[np.minimum(ahead, last - 1)], episode.camera_pose[now])
    weight = (ahead < last).astype(np.float32) * (one.weight if act else 0.0)
    state, places, placed = track.states[now], *_places(episode, now, words)
    wanted = now + 1 + steps
    known = wanted <= last
    shown = [*np.maximum(np.arange(now - frames + 1, now + 1), 0), *np.where(known, wanted, now)]
    pictures = track.images(shown) if known.any() or frames > 1 else track.images([now])
    if len(pictures) < len(shown):
        pictures = np.repeat(pictures, len(shown), 0)
    if rng is not None:
        pictures, turn = varied(pictures, track.view.canonical, rng)
        state, actions, places = _turned(state, turn), _turned(actions, turn), places @ turn.T
    return Moment(
        pictures[:frames],
        state.astype(np.float32),
        actions.astype(np.float32),
        weight,
        np.array(words),
        places.astype(np.float32),
        placed,
        pictures[frames:],
        known,
    )


def _places(episode: Episode, now: int, words: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where what is named is, [2, 3] from the gripper in the optical frame, and whether that is known, float32 [2]."""
    names = [
        f"{kind}_{known[word]}" if word < len(known) else ""
        for kind, known, word in zip(("cube", "tray"), (CUBES, TRAYS), words, strict=True)
    ]
    gripper = episode.states[now][:3]
    found = [episode.objects[name][now] - gripper if name in episode.objects else np.zeros(3) for name in names]
    placed = np.array([name in episode.objects for name in names], np.float32)
    return np.stack(found) @ episode.camera_pose[now][:3, :3], placed


def _turned(rows: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return np.concatenate((rows[..., :3] @ turn.T, rows[..., 3:]), -1)


def varied(pictures: np.ndarray, camera: Camera, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The pictures by a camera that is turned about its centre, in another light, all alike; and the rotation."""
    turn, _ = cv2.Rodrigues(np.deg2rad(rng.uniform(-TURN_DEG, TURN_DEG, 3)))
    warp = camera.matrix @ turn @ np.linalg.inv(camera.matrix)
    light = int(rng.integers(2**31))
    made = [
        colour_jitter(
            cv2.warpPerspective(p, warp, p.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.random.default_rng(light),
        )
        for p in pictures
    ]
    return np.stack(made), turn
