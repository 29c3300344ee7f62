"""Write episodes as a rosbag2 recording, without any ROS installation: `thinkjepa data bag`.

Topics: /camera/image/compressed (CompressedImage), /camera/camera_info, /camera/pose (PoseStamped of the optical frame
in "world"), /truth/joints (PoseArray in "world", NaN where unknown) with every frame; /instruction (String, latched)
when an episode begins; /truth/ball (Bool, latched) of simulated ones when they begin and whenever it changes: whether
the ball that rolls across the table can be seen. Recording time is the stamp of the message.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from thinkjepa_ros.data.episode import Episode, EpisodeError, JpegFrames, encode_jpeg
from thinkjepa_ros.data.sim.ball import in_view

OPTICAL_FRAME, WORLD_FRAME = "camera_optical", "world"
IMAGE_TOPIC, INFO_TOPIC, POSE_TOPIC = "/camera/image/compressed", "/camera/camera_info", "/camera/pose"
JOINTS_TOPIC, INSTRUCTION_TOPIC, BALL_TOPIC = "/truth/joints", "/instruction", "/truth/ball"
#: Stamp of the first frame of a bag: a fixed day (2023-11-14), so that the same episodes give the same bytes.
START_NS = 1_700_000_000_000_000_000
_TYPES = {
    IMAGE_TOPIC: "sensor_msgs/msg/CompressedImage",
    INFO_TOPIC: "sensor_msgs/msg/CameraInfo",
    POSE_TOPIC: "geometry_msgs/msg/PoseStamped",
    JOINTS_TOPIC: "geometry_msgs/msg/PoseArray",
    INSTRUCTION_TOPIC: "std_msgs/msg/String",
    BALL_TOPIC: "std_msgs/msg/Bool",
}
_LATCHED = (INSTRUCTION_TOPIC, BALL_TOPIC)
_STORAGE = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


class _Messages:
    """Makes the serialized messages of one episode."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)

    def _new(self, name: str, *args: Any) -> Any:
        return self.store.types[name](*args)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._new("builtin_interfaces/msg/Time", *divmod(stamp_ns, 1_000_000_000))
        return self._new("std_msgs/msg/Header", stamp, frame_id)

    def _pose(self, position: np.ndarray, quaternion: Sequence[float] = (0.0, 0.0, 0.0, 1.0)) -> Any:
        point = self._new("geometry_msgs/msg/Point", *map(float, position))
        turn = self._new("geometry_msgs/msg/Quaternion", *map(float, quaternion))
        return self._new("geometry_msgs/msg/Pose", point, turn)

    def frame(self, episode: Episode, i: int, stamp_ns: int) -> Iterable[tuple[str, Any]]:
        """The messages of frame `i` with the stamp `stamp_ns`: (topic, message)."""
        camera, pose = episode.camera, episode.camera_pose[i]
        optical, world = self._header(stamp_ns, OPTICAL_FRAME), self._header(stamp_ns, WORLD_FRAME)
        k, lens = camera.matrix, np.array(camera.distortion or [0.0] * 5)
        region = self._new("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
        yield INFO_TOPIC, self._new(
            _TYPES[INFO_TOPIC], optical, camera.height, camera.width, camera.distortion_model, lens, k.ravel(),
            np.eye(3).ravel(), np.hstack([k, np.zeros((3, 1))]).ravel(), 0, 0, region,
        )  # fmt: skip
        turn = Rotation.from_matrix(pose[:3, :3]).as_quat()
        yield POSE_TOPIC, self._new(_TYPES[POSE_TOPIC], world, self._pose(pose[:3, 3], turn))
        yield JOINTS_TOPIC, self._new(_TYPES[JOINTS_TOPIC], world, [self._pose(p) for p in episode.joints[i]])
        blob = np.frombuffer(episode.frames.jpeg(i), np.uint8)
        yield IMAGE_TOPIC, self._new(_TYPES[IMAGE_TOPIC], optical, "jpeg", blob)

    def instruction(self, episode: Episode) -> tuple[str, Any]:
        return INSTRUCTION_TOPIC, self._new(_TYPES[INSTRUCTION_TOPIC], episode.instruction)

    def ball(self, seen: bool) -> tuple[str, Any]:
        return BALL_TOPIC, self._new(_TYPES[BALL_TOPIC], bool(seen))


def _latched() -> Qos:
    unset = QosTime(0, 0)
    return Qos(QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, unset, unset,
               QosLiveliness.AUTOMATIC, unset, False)  # fmt: skip


def write_bag(
    path: str | Path, episodes: Iterable[Episode], storage: str = "mcap", gap_s: float = 6.0, start_ns: int = START_NS
) -> int:
    """Write episodes one after another into the rosbag2 folder `path`, all or nothing; returns the number of frames.

    gap_s: seconds between the last frame of one and the first of the next; more than 5 s tells the nodes that it is
    another scene. Raises ValueError for an unknown storage, EpisodeError when `path` is there already.
    """
    path = Path(path)
    if storage not in _STORAGE:
        raise ValueError(f"storage {storage!r} is none of {', '.join(_STORAGE)}")
    if path.exists():
        raise EpisodeError(f"{path} exists already; remove it or take another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # rosbags names the files inside after the folder, hence the nested one
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    make, frames = _Messages(), 0
    try:
        with Writer(part / path.name, version=8, storage_plugin=_STORAGE[storage]) as writer:
            connections: dict[str, Any] = {}

            def write(topic: str, message: Any, stamp_ns: int) -> None:
                kind = _TYPES[topic]
                if topic not in connections:
                    qos = [_latched()] if topic in _LATCHED else []
                    connections[topic] = writer.add_connection(
                        topic, kind, typestore=make.store, offered_qos_profiles=qos
                    )
                writer.write(connections[topic], stamp_ns, bytes(make.store.serialize_cdr(message, kind)))

            for episode in episodes:
                shift = start_ns - int(episode.stamps_ns[0])
                write(*make.instruction(episode), start_ns)
                ball = in_view(episode)
                for i, stamp in enumerate(episode.stamps_ns.tolist()):
                    if ball is not None and (i == 0 or ball[i] != ball[i - 1]):
                        write(*make.ball(ball[i]), stamp + shift)
                    for topic, message in make.frame(episode, i, stamp + shift):
                        write(topic, message, stamp + shift)
                    frames += 1
                if ball is not None and ball[-1]:  # what follows is another scene
                    write(*make.ball(False), stamp + shift + 1)
                start_ns = int(episode.stamps_ns[-1]) + shift + round(gap_s * 1e9)
        (part / path.name).replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return frames


def recompress(episode: Episode, quality: int) -> Episode:
    """The same episode with images of a lower JPEG quality and halved colour resolution, as cameras send them."""
    jpegs = [encode_jpeg(image, quality, subsample=True) for image in episode.frames]
    return replace(episode, frames=JpegFrames.from_jpegs(jpegs))


def main(
    out: Path,
    files: Sequence[Path] = (),
    seed: int = 2_000_000,
    episodes: int = 1,
    split: str = "lamp",
    size: str = "640x480",
    rate_hz: float = 30.0,
    quality: int = 80,
    storage: str = "mcap",
    gap_s: float = 6.0,
) -> int:
    """Write a rosbag2 recording: of the episode files given, or of new ones with the seeds seed, seed + 1, ...

    The nodes, `ros2 bag play` and `make demo BAG=...` play it. Returns the exit code 0. Raises ValueError for wrong
    options, EpisodeError when OUT is there already or an episode file is damaged.
    """
    from thinkjepa_ros.data.sim.generate import parse_size

    width, height = parse_size(size)
    if episodes < 1 or not 1 <= quality <= 100 or gap_s <= 0:
        raise ValueError("episodes must be 1 or more, quality 1 to 100 and gap_s above 0")

    def made() -> Iterable[Episode]:
        if files:
            yield from (Episode.load(file) for file in files)
            return
        from thinkjepa_ros.data.sim.play import make_episode  # here: converting files needs no MuJoCo

        for k in range(seed, seed + episodes):
            yield recompress(make_episode(split, k, width, height, rate_hz, quality=98), quality)

    frames = write_bag(out, made(), storage, gap_s)
    megabytes = sum(file.stat().st_size for file in Path(out).iterdir()) / 1e6
    print(f"{frames} frames in {out} ({megabytes:.1f} MB)")
    return 0
