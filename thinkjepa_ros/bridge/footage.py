"""What a camera saw, read back as a live window would have kept it: from a video file, an episode or a recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rosbags.typesys import Stores, get_typestore

from thinkjepa_ros.bridge.images import ImageError, to_rgb
from thinkjepa_ros.data.recording import STORAGE, Recording, RecordingError
from thinkjepa_ros.thinker.video import Video
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.values import Frame

_STRING = "std_msgs/msg/String"


@dataclass
class Footage:
    """Frames in the order of their stamps, the first of each slot of the window.

    title: what is read. duration_s: how long it is said to be, 0.0 if unknown. told: for each frame the instruction
    that was in force ("" if none is in the source). unreadable: images passed over so far because they were damaged.
    """

    title: str
    duration_s: float
    told: Iterator[tuple[Frame, str]]
    unreadable: list[str] = field(default_factory=list)


def open_footage(source: Path, window: Window, image_topic: str = "", reader: str = "opencv") -> Footage:
    """Open a rosbag2 folder or file, an episode (.h5), or else a video file.

    image_topic: where a recording has several cameras. reader: of video files, see `thinker.video`. Raises
    RecordingError, EpisodeError or VideoError, here or while the frames are read.
    """
    if source.is_dir() or source.suffix in (*STORAGE, ".bag"):
        return _recording(source, window, image_topic)
    if source.suffix == ".h5":
        return _episode(source, window)
    video = Video(source)
    seen = ((frame, "") for frame in video.frames(window, reader))
    return Footage(f"{source.name}: video, {video.rate_hz:.4g} frames a second", video.duration_s, seen)


def _episode(source: Path, window: Window) -> Footage:
    from thinkjepa_ros.data.episode import Episode

    episode = Episode.load(source)
    stamps = [int(s) for s in episode.stamps_ns]

    def told() -> Iterator[tuple[Frame, str]]:
        newest = None
        for number, stamp in enumerate(stamps):
            if window.slot(stamp) != newest:
                newest = window.slot(stamp)
                yield Frame(episode.frames[number], stamp), episode.instruction

    return Footage(f"{source.name}: episode, {len(stamps)} images", (stamps[-1] - stamps[0]) * 1e-9, told())


def _recording(source: Path, window: Window, image_topic: str) -> Footage:
    recording = Recording(source)
    camera = recording.camera(image_topic)
    spoken = [t for t in recording.topics if t.type == _STRING and t.name.rpartition("/")[2] == "instruction"]
    store = get_typestore(Stores.ROS2_JAZZY)
    footage = Footage(f"{source.name}: {camera.count} images of {camera.name}", recording.duration_s, iter(()))

    def told() -> Iterator[tuple[Frame, str]]:
        instruction, newest = "", None
        with recording:
            for topic, _, data in recording.messages([camera, *spoken]):
                try:
                    message = store.deserialize_cdr(data, topic.type)
                    if topic.type == _STRING:
                        instruction = message.data  # type: ignore[attr-defined]
                        continue
                    stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec  # type: ignore[attr-defined]
                    if window.slot(stamp) == newest:
                        continue
                    frame = Frame(to_rgb(message), stamp, message.header.frame_id)  # type: ignore[attr-defined]
                except ImageError as error:
                    footage.unreadable.append(str(error))
                    continue
                except Exception as error:  # CDR that is cut or of another type fails in every way there is
                    raise RecordingError(f"{source}: a message of {topic.name} is damaged ({error}).") from error
                newest = window.slot(stamp)
                yield frame, instruction

    footage.told = told()
    return footage
