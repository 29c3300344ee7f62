"""Where forecasts of the cue-reach benchmark begin: fixed by the phases of an episode, never by a model.

- before: the last grid sample before the cue lights (splits lamp and distractor). Nobody can know the intent.
- wait: 1.0 and 1.5 s before the last grid sample at which the reach has not begun. The hand rests; when it will begin,
  nobody is told.
- ready: 0 and 0.2 s before that sample. The hand has risen, so that the time is known. These are the main rows: who saw
  the cue, or was told, can know where the hand will go.
- reach: 0.3 and 0.8 s after the reach has begun. transport: likewise.

In wait and ready the cue has been off for the whole dense window. In the split none the same places count, and `told`
is False there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.episode import PHASES, Episode
from ...train.tracks import Tracks

GROUPS = ("before", "wait", "ready", "reach", "transport")
#: The group of the main rows.
MAIN = "ready"
#: Seconds before the last sample of the wait, and after the begin of reach and transport.
BEFORE_REACH_S = {"wait": (1.5, 1.0), "ready": (0.2, 0.0)}
AFTER_BEGIN_S = (0.3, 0.8)


@dataclass(frozen=True)
class Truth:
    """N origins in order of the episodes, and what happens after them. Metres, camera frame of the origin."""

    sample: np.ndarray  # int64 [N], number in the tracks
    episode: np.ndarray  # int64 [N]
    group: np.ndarray  # int64 [N], index into GROUPS
    told: np.ndarray  # bool [N], whether the intent was told in this episode
    split: np.ndarray  # str [N]
    present: np.ndarray  # float32 [N, J, 3], NaN where unknown
    future: np.ndarray  # float32 [N, T, J, 3], NaN where unknown or after the end
    latents: np.ndarray  # float16 [N, tubelets, p^2, D], pooled latents ahead, mean over a tubelet
    latents_known: np.ndarray  # bool [N, tubelets]
    steps_per_tubelet: int
    joint_names: tuple[str, ...]
    step_s: float


def choose(episodes: Sequence[Episode], tracks: Tracks, context: int, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples int64 [N] and groups int64 [N] of all origins; context: samples of the dense window."""
    possible = np.zeros(len(tracks), bool)
    possible[tracks.origins(context)] = True
    chosen: list[tuple[int, int]] = []
    for number, episode in enumerate(episodes):
        samples = np.flatnonzero(tracks.episode == number)
        phase = tracks.phases[samples]
        chosen += [(samples[i], g) for i, g in _of(episode, tracks.stamps_ns[samples], phase, context, step_s)]
    pairs = np.array([pair for pair in chosen if possible[pair[0]]], np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _of(episode: Episode, stamps: np.ndarray, phase: np.ndarray, context: int, step_s: float) -> list[tuple[int, int]]:
    """(grid sample, group) of the origins of one episode, in order of time within a group."""
    found: list[tuple[int, int]] = []
    reach, transport = (int(np.argmax(phase >= PHASES.index(name))) for name in ("reach", "transport"))
    if phase[reach] < PHASES.index("reach"):
        return []  # nothing ever moves: not an episode of this benchmark
    if episode.cue_ns is not None:
        lit = int(np.searchsorted(stamps, episode.cue_ns[0]))
        found += [(lit - 1, GROUPS.index("before"))] if lit else []
    gone = -1 if episode.cue_ns is None else int(np.searchsorted(stamps, episode.cue_ns[1]))
    for name, times in BEFORE_REACH_S.items():
        for back in times:
            at = reach - 1 - round(back / step_s)
            if at >= 0 and phase[at] < PHASES.index("reach") and at - (context - 1) >= gone:
                found.append((at, GROUPS.index(name)))
    for begin, name in ((reach, "reach"), (transport, "transport")):
        for after in AFTER_BEGIN_S:
            at = begin + round(after / step_s)
            if begin and at < len(stamps) and phase[at] == PHASES.index(name):
                found.append((at, GROUPS.index(name)))
    return found


def truth_of(
    episodes: Sequence[Episode],
    tracks: Tracks,
    *,
    context: int,
    tubelets: int,
    steps: int,
    joint_names: tuple[str, ...],
    step_s: float,
) -> Truth:
    """The origins of all episodes with what happens after them. steps: grid steps of a tubelet."""
    sample, group = choose(episodes, tracks, context, step_s)
    episode = tracks.episode[sample]
    parts = [
        tracks.window(part, context, tubelets, steps) for part in np.array_split(sample, max(1, len(sample) // 256))
    ]
    join = lambda name: np.concatenate([getattr(p, name).numpy() for p in parts])  # noqa: E731
    split = np.array([e.split for e in episodes])
    return Truth(
        sample=sample,
        episode=episode,
        group=group,
        told=(split != "none")[episode],
        split=split[episode],
        present=join("present"),
        future=join("future"),
        latents=np.concatenate([p.latents.half().numpy() for p in parts]),
        latents_known=join("latents_known"),
        steps_per_tubelet=steps,
        joint_names=joint_names,
        step_s=step_s,
    )
