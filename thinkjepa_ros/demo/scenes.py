"""Episodes one after another in one recording, with stamps from which every node knows that another scene has begun.

A new scene must leave nothing of the old one: no image in a window, no thought, no guidance. Nodes begin anew when the
stamps of the camera step back by more than a second (stream/order.py) or ahead by more than five. A step ahead would
have to be waited for, since stamps of the future are refused; a step back costs no time. So the stamps of every scene
lie before those of the scene played before it. A thought of the old scene that comes late is then always stamped after
everything the new one will ever show, and is refused for that too, besides for its epoch (bridge/guidance.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from thinkjepa_ros.bridge.stamps import write_stamp
from thinkjepa_ros.data.bag import IMAGE_TOPIC, INFO_TOPIC, INSTRUCTION_TOPIC, START_NS, write_bag
from thinkjepa_ros.data.episode import Episode, JpegFrames
from thinkjepa_ros.data.recording import Recording

#: Between the last image of a scene and the first of the next, in real time: its forecast must still come out.
PAUSE_NS = 400_000_000
#: The stamps of a scene end this long before those of the scene before begin: twice what nodes take for a jump.
BACK_NS = 2_000_000_000


@dataclass(frozen=True, eq=False)
class Scene:
    """One episode of a recording. stamps_ns [n]: of the frames played, on the episode's own time line.

    first_ns: stamp of its first image in the recording. behind_ns: how much its stamps lie before the time at which the
    recording plays them.
    """

    name: str
    stamps_ns: np.ndarray
    first_ns: int
    behind_ns: int

    @property
    def last_ns(self) -> int:
        return self.first_ns + int(self.stamps_ns[-1] - self.stamps_ns[0])

    def own(self, stamp_ns: Any) -> Any:
        """Stamps of the recording (ns, one or an array) on the own time line of the episode."""
        return stamp_ns - self.first_ns + int(self.stamps_ns[0])


def cut(episode: Episode, until_ns: int | None) -> Episode:
    """The episode up to the last frame stamped at most `until_ns` (its own time line); all of it for None."""
    n = len(episode) if until_ns is None else int(np.searchsorted(episode.stamps_ns, until_ns, "right"))
    if not 0 < n < len(episode):
        return episode
    arrays: dict[str, Any] = {
        name: getattr(episode, name)[:n]
        for name in ("stamps_ns", "camera_pose", "joints", "visible", "states", "phases")
    }
    objects = {name: places[:n] for name, places in episode.objects.items()}
    frames = JpegFrames.from_jpegs([episode.frames.jpeg(i) for i in range(n)])
    return replace(episode, frames=frames, actions=episode.actions[: n - 1], objects=objects, **arrays)


def write_scenes(path: Path, names: Sequence[str], episodes: Sequence[Episode]) -> list[Scene]:
    """Write the episodes as a rosbag2 folder: images (their JPEGs unchanged), calibration and instruction.

    Raises EpisodeError when `path` is there already.
    """
    scenes: list[Scene] = []
    played_ns = stamp_ns = START_NS
    for name, episode in zip(names, episodes, strict=True):
        span = int(episode.stamps_ns[-1] - episode.stamps_ns[0])
        if scenes:
            stamp_ns = scenes[-1].first_ns - BACK_NS - span
        scenes.append(Scene(name, episode.stamps_ns, stamp_ns, played_ns - stamp_ns))
        played_ns += span + PAUSE_NS
    forward = path.with_name(f"{path.name}_forward")
    shutil.rmtree(forward, ignore_errors=True)
    try:
        write_bag(forward, episodes, gap_s=PAUSE_NS * 1e-9)
        _set_back(forward, path, scenes)
    finally:
        shutil.rmtree(forward, ignore_errors=True)
    return scenes


def _set_back(source: Path, target: Path, scenes: Sequence[Scene]) -> None:
    """Copy a recording whose stamps are its recording times, with the stamps that its scenes are to have."""
    begins = np.array([scene.first_ns + scene.behind_ns for scene in scenes])
    store = get_typestore(Stores.ROS2_JAZZY)
    with Recording(source) as recording, Writer(target, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = [topic for topic in recording.topics if topic.name in (IMAGE_TOPIC, INFO_TOPIC, INSTRUCTION_TOPIC)]
        connections = {topic: writer.add_connection(topic.name, topic.type, typestore=store) for topic in topics}
        for topic, at, data in recording.messages(topics):
            if topic.name != INSTRUCTION_TOPIC:
                scene = scenes[int(np.searchsorted(begins, at, "right")) - 1]
                data = write_stamp(data, at - scene.behind_ns)
            writer.write(connections[topic], at, bytes(data))
