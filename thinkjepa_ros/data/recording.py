"""A rosbag2 recording (folder or file, sqlite3 or mcap) opened for reading, without any ROS installation.

Everything that can be wrong with a bag becomes one `RecordingError` whose text says what to do about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import Reader

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
STORAGE = (".mcap", ".db3")


class RecordingError(RuntimeError):
    """The recording can not be read, or not be used as asked; the text names the file and the remedy."""


@dataclass(frozen=True)
class Topic:
    """One topic of a recording; type is like "sensor_msgs/msg/Image", count its messages, latched = transient local."""

    name: str
    type: str
    count: int
    latched: bool = False


class Recording:
    """An open recording. Use as a context manager, or call `close`.

    topics: sorted by name. start_ns, end_ns: when its first and last message were recorded. Raises RecordingError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_layout(self.path)
        try:
            self._reader = Reader(self.path)
            self._reader.open()
            self.topics = tuple(
                Topic(name, info.msgtype or "several types", info.msgcount, any(map(_is_latched, info.connections)))
                for name, info in sorted(self._reader.topics.items())
            )
            self.start_ns, self.end_ns = self._reader.start_time, self._reader.end_time
            count = self._reader.message_count
        except Exception as error:  # the readers of damaged files fail in every way there is
            raise RecordingError(_explain(self.path, error)) from error
        if count == 0:
            self.close()
            raise RecordingError(f"{self.path} holds no messages; was the recorder started before the camera?")

    @property
    def duration_s(self) -> float:
        """Seconds between the first and the last message."""
        return max(0, self.end_ns - self.start_ns) * 1e-9

    def describe(self) -> str:
        """What is in the recording, one topic per line."""
        width = max(len(topic.name) for topic in self.topics)
        lines = (f"  {topic.name:<{width}}  {topic.count:>6} x {topic.type}" for topic in self.topics)
        return "topics in this bag:\n" + "\n".join(lines)

    def topic(self, name: str) -> Topic | None:
        """The topic of that name, or None."""
        return next((topic for topic in self.topics if topic.name == name), None)

    def cameras(self) -> list[Topic]:
        """All image topics that hold something."""
        return [topic for topic in self.topics if topic.type in (IMAGE, COMPRESSED) and topic.count]

    def camera(self, wanted: str = "") -> Topic:
        """The image topic called `wanted`, or, when that is empty, the only one there is; otherwise RecordingError."""
        cameras = self.cameras()
        if wanted:
            named = next((topic for topic in cameras if topic.name == wanted), None)
            if named is None:
                raise RecordingError(f"{self.path} has no images on {wanted}; {self.describe()}")
            return named
        if not cameras:
            raise RecordingError(
                f"{self.path} has no camera topic (sensor_msgs/Image or CompressedImage); {self.describe()}"
            )
        if len(cameras) > 1:
            names = " or ".join(topic.name for topic in cameras)
            raise RecordingError(
                f"{self.path} has {len(cameras)} camera topics; choose one (image_topic: {names}); {self.describe()}"
            )
        return cameras[0]

    def camera_info(self, camera: Topic) -> Topic | None:
        """The CameraInfo topic beside `camera` (in the nearest common namespace), the only one there is, or None."""
        infos = [topic for topic in self.topics if topic.type == CAMERA_INFO and topic.count]
        folder = camera.name
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            beside = [topic for topic in infos if topic.name.rpartition("/")[0] == folder]
            if len(beside) == 1:
                return beside[0]
        return infos[0] if len(infos) == 1 else None

    def messages(
        self, topics: Collection[Topic] = (), start_offset_s: float = 0.0, start_ns: int | None = None
    ) -> Iterator[tuple[Topic, int, bytes]]:
        """Serialized messages in the order of recording: (topic, recording time in ns, CDR bytes).

        topics: only these (empty = all). start_ns: only those recorded then or later, else start_offset_s after the
        first message. Damage that shows only while reading raises RecordingError.
        """
        by_name = {topic.name: topic for topic in topics or self.topics}
        connections = [c for c in self._reader.connections if c.topic in by_name]
        if not connections:
            return
        start = self.start_ns + round(start_offset_s * 1e9) if start_offset_s > 0 and start_ns is None else start_ns
        stream = self._reader.messages(connections, start=start)
        while True:
            try:
                connection, stamp_ns, data = next(stream)
            except StopIteration:
                return
            except Exception as error:
                raise RecordingError(_explain(self.path, error)) from error
            yield by_name[connection.topic], stamp_ns, data

    def close(self) -> None:
        """Close the files."""
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_latched(connection: Any) -> bool:
    ext = connection.ext
    return isinstance(ext, ConnectionExtRosbag2) and any(
        qos.durability == QosDurability.TRANSIENT_LOCAL for qos in ext.offered_qos_profiles
    )


def _check_layout(path: Path) -> None:
    """The mistakes people make with paths, told before any reader sees them."""
    if not path.exists():
        raise RecordingError(f"{path} does not exist; give the folder of a recording, or its .mcap or .db3 file")
    if path.is_file():
        if path.suffix == ".bag":
            raise RecordingError(f"{path} is a ROS 1 bag; convert it: rosbags-convert --src {path} --dst FOLDER")
        if path.suffix not in STORAGE:
            raise RecordingError(f"{path} is no rosbag2 file; give the folder of one, or its .mcap or .db3 file")
    elif not (path / "metadata.yaml").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix in STORAGE)
        if files:
            raise RecordingError(
                f"{path} has no metadata.yaml (was the recorder killed?); play its file directly: {files[0]}, "
                f"or make it again: ros2 bag reindex {path}"
            )
        raise RecordingError(f"{path} is a folder without metadata.yaml and without .mcap or .db3 files: no recording")


def _explain(path: Path, error: Exception) -> str:
    """A sentence for what the reader threw at us."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "metadata" in text or "YAML" in text:
        return f"the metadata.yaml of {path} is damaged ({text}); make it again: ros2 bag reindex {path}"
    if "missing" in text and "database files" in text:
        return f"{path} is incomplete ({text}); copy the missing files beside its metadata.yaml"
    if "empty" in text:
        return f"{path} is empty (0 bytes); copy or record it again"
    if "end magic" in text:
        return f"{path} is cut off (an interrupted recording or copy); repair it with `mcap recover`, or copy it again"
    if isinstance(error, ModuleNotFoundError):
        return f"{path} is compressed in a way that needs a further package: {text}"
    return f"{path} is damaged ({text}); copy it again, or repair it with `mcap recover` or `sqlite3 .recover`"
