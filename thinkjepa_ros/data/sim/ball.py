"""When the ball that rolls across the table can be seen: something surprising that is really there, with its times.

No task tells it and no hand touches it, so that a model can know of it only by seeing it.
"""

from __future__ import annotations

import numpy as np

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.data.sim.script import SCENE_VERSION, SIM_SPLITS, draw


def in_view(episode: Episode) -> np.ndarray | None:
    """Whether the middle of the ball lies within the picture, bool [N]; False throughout where no ball rolls.

    What a hand or a lamp covers for a moment counts as in view. None where the episode is not a whole one of this
    version of the scene, so that nobody knows.
    """
    if episode.split not in SIM_SPLITS or episode.details.get("scene_version") != SCENE_VERSION:
        return None
    script = draw(episode.split, episode.seed)
    if script.ball is None:
        return np.zeros(len(episode), bool)
    y, x, speed = script.ball
    seconds = (episode.stamps_ns - episode.stamps_ns[0]) * 1e-9
    world = np.stack([x + speed * seconds, np.full(len(episode), y), np.full(len(episode), script.look.ball[0])], -1)
    pose, camera = episode.camera_pose, episode.camera
    seen = np.einsum("ni,nij->nj", world - pose[:, :3, 3], pose[:, :3, :3])
    depth = np.where(seen[:, 2] > 0, seen[:, 2], np.nan)
    u, v = camera.fx * seen[:, 0] / depth + camera.cx, camera.fy * seen[:, 1] / depth + camera.cy
    return np.asarray((np.abs(u - camera.cx) < camera.width / 2) & (np.abs(v - camera.cy) < camera.height / 2))
