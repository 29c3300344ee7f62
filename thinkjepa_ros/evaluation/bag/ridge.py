"""The row "ridge on past joints": linear regression of where the joints go on where they were, from training episodes.

It is fitted on what it will be given: joints as the model finds them in the images, or, where that is anchored, the
true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.evaluation.cue_reach.rows import Ridge
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.train.clips import Grid, load_folder
from thinkjepa_ros.values import Frame

from .ground import into_camera, into_world
from .replay import Replay
from .room import Room

#: Every so many grid steps of an episode is an example.
_EVERY = 3


@dataclass(frozen=True, eq=False)
class PastRidge:
    """past_s: float64 [P], seconds (at most 0) at which it takes the past, oldest first. step_s, steps: its horizon."""

    ridge: Ridge
    past_s: np.ndarray
    step_s: float
    steps: int

    def __call__(self, past: np.ndarray, past_s: np.ndarray) -> np.ndarray:
        """Forecasts float32 [N, T, J, 3] from the past [N, Q, J, 3] at seconds [N, Q]; NaN where now is unknown."""
        nearest = np.abs(past_s[:, None] - self.past_s[:, None]).argmin(2)  # [N, P]
        taken = np.take_along_axis(past, nearest[..., None, None], 1).astype(np.float64)
        now = taken[:, -1:]
        moved = self.ridge(_features(taken)).reshape(len(taken), self.steps, *now.shape[2:])
        return np.asarray(now + moved, np.float32)


def _features(past: np.ndarray) -> np.ndarray:
    """[N, P, J, 3] -> [N, F]: earlier joints relative to now, and now."""
    both = np.concatenate((past[:, :-1] - past[:, -1:], past[:, -1:]), 1)
    return np.asarray(np.nan_to_num(both.reshape(len(past), -1)))


def fit(data: Path, names: Sequence[str], forecaster: Forecaster, in_model: np.ndarray | None) -> PastRidge:
    """Fit on the episodes in the folder `data`, for the joints called `names`.

    in_model: their places in the model, whose estimates are then the past; None: the true joints are. Raises
    EpisodeError for a folder without episodes, ValueError where they cannot be used, with the remedy.
    """
    episodes = load_folder(data)
    if len(episodes) < 2:
        raise ValueError(f"{data} holds {len(episodes)} episode; ridge needs 2 or more (--ridge DATA)")
    pasts, moved, ids = [], [], []
    for number, episode in enumerate(track(episodes, "Fitting ridge", transient=True)):
        lacks = [name for name in names if name not in episode.joint_names]
        if lacks:
            raise ValueError(
                f"the episodes in {data} do not have the joint {lacks[0]!r}; make them of recordings with the same "
                "joints (`thinkjepa data from-bag`), or leave out --ridge"
            )
        joints = np.array([episode.joint_names.index(name) for name in names])
        past, ahead = _examples(episode, joints, forecaster, in_model)
        pasts.append(past)
        moved.append(ahead - past[:, -1:])
        ids += [number] * len(past)
    past, target = np.concatenate(pasts), np.concatenate(moved)
    known = np.isfinite(past[:, -1]).all((1, 2))
    if len(np.unique(np.array(ids)[known])) < 2:
        raise ValueError(f"the episodes in {data} are too short, or their joints are not known; give others (--ridge)")
    target = target.reshape(len(target), forecaster.horizon, -1)[known]
    ridge = Ridge.fit(_features(past[known]), target, np.array(ids)[known])
    step_s = forecaster.step_ns * 1e-9
    past_s = (np.arange(1 - forecaster.window, 1) * step_s)[forecaster.estimated]
    return PastRidge(ridge, past_s, step_s, forecaster.horizon)


def _examples(
    episode: Episode, joints: np.ndarray, f: Forecaster, in_model: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Past [n, P, J, 3] and future [n, T, J, 3] in the camera of n moments of an episode; NaN unknown."""
    grid = Grid.of(episode.stamps_ns, f.step_ns)
    frames = np.asarray(grid.index)
    begin = int(episode.stamps_ns[0])
    if in_model is not None:
        f.reset()
        for k, i in enumerate(frames):
            f.observe(Frame(episode.frames[int(i)], begin + k * f.step_ns), episode.camera)
    pasts, ahead = [], []
    for k in range(f.window - 1, len(frames) - 1, _EVERY):
        window = frames[k + 1 - f.window : k + 1]
        read, now = window[f.estimated], int(frames[k])
        if in_model is None:
            past = episode.points_in_camera(read, now)[:, joints]
        else:
            stamps = [begin + i * f.step_ns for i in range(k + 1 - f.window, k + 1)]
            f.forecast(stamps)
            own = np.stack([f.estimate(s)[in_model] for s in stamps[f.estimated]]).astype(np.float64)
            pose = np.repeat(episode.camera_pose[None, now], len(read), 0)
            past = into_camera(pose, into_world(episode.camera_pose[read], own))
        future = np.full((f.horizon, len(joints), 3), np.nan)
        known = frames[k + 1 : k + 1 + f.horizon]
        future[: len(known)] = episode.points_in_camera(known, now)[:, joints]
        pasts.append(past)
        ahead.append(future)
    if in_model is not None:
        f.reset()
    shape = (0, len(range(f.window)[f.estimated]), len(joints), 3)
    if not pasts:
        return np.zeros(shape), np.zeros((0, f.horizon, len(joints), 3))
    return np.stack(pasts), np.stack(ahead)


def forecasts(ridge: PastRidge, replay: Replay, room: Room) -> np.ndarray:
    """The row over a replay, float32 [N, T, J, 3], in blocks. room: where it is to be."""
    out = room.array("ridge", replay.truth.shape)
    for first in range(0, len(replay), 512):
        part = slice(first, first + 512)
        out[part] = ridge(replay.past[part], replay.past_s[part])
    return out
