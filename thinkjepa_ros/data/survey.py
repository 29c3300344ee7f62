"""What is known of a recording at every image: camera, truth and camera pose, before anything is cut.

Reads the recording once per kind of topic and keeps numbers only: the truth and the times of an hour are tens of
megabytes where its images are gigabytes.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.values import Camera

from .frames import POSE_STAMPED, Frames, tf_topics
from .pictures import PictureError, camera_of, jpeg_of
from .recording import CAMERA_INFO, Recording, RecordingError, Topic
from .truth import Truth, read_truth
from .typed import NS, frame_name, read, required_topic, some, stamp_ns

STRING = "std_msgs/msg/String"


@dataclass(frozen=True)
class Settings:
    """How to read recordings and make episodes of them; `data from-bag --help` says what each is. Times in seconds.

    truth: its topic; an evaluation may do without ("").
    links, joints, urdf, truth_frame: see `truth.read_truth`. intrinsics: fx, fy, cx, cy in pixels, in place of
    CameraInfo. seconds: length of an episode. min_seconds: shorter rests are left out. gap_s: a longer time between two
    images begins a new episode. truth_gap_s, tf_gap_s: longest gap in truth and in transforms that is bridged.
    """

    truth: str = ""
    image_topic: str = ""
    camera_frame: str = ""
    pose_topic: str = ""
    world_frame: str = ""
    truth_frame: str = ""
    joints: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    urdf: str = ""
    intrinsics: tuple[float, ...] = ()
    instruction: str = ""
    instruction_topic: str = "/instruction"
    seconds: float = 12.0
    min_seconds: float = 2.0
    gap_s: float = 1.0
    truth_gap_s: float = 0.25
    tf_gap_s: float = 1.0
    quality: int = 92
    domain: str = "recordings"

    def __post_init__(self) -> None:
        for name in ("seconds", "gap_s", "truth_gap_s", "tf_gap_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number of seconds above 0")
        if not 0 <= self.min_seconds <= self.seconds:
            raise ValueError(f"min_seconds is {self.min_seconds}; give 0 to the length of an episode, {self.seconds}")
        if len(self.intrinsics) not in (0, 4) or not np.isfinite(self.intrinsics).all():
            raise ValueError(f"intrinsics are fx,fy,cx,cy in pixels, not {self.intrinsics}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; give 1 to 100")

    def record(self) -> dict[str, Any]:
        """As JSON values; of the URDF its content counts and not where it lies."""
        out = json.loads(json.dumps(asdict(self)))
        if self.urdf:
            path = Path(self.urdf)
            if not path.is_file():
                raise RecordingError(f"the URDF {path} does not exist; give the file with --urdf")
            out["urdf"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return dict(out)


@dataclass(frozen=True, eq=False)
class Course:
    """What is known of one recording at each of its N images, in the order of recording, before anything is cut.

    camera_frame: its optical frame. stamps_ns, recorded_ns: int64 [N], header stamps and times of recording.
    instruction: int64 [N], number of the one in force in `said`, -1 for none. world: the frame that does not move, how
    = how the camera's pose in it is known. pose: float64 [N, 4, 4], world from camera, NaN unknown. truth: in the
    world, for any time; None where none was asked for, and then the camera is taken as if it stood still. truth_frame:
    what its messages were in.
    """

    image_topic: Topic
    camera: Camera
    camera_frame: str
    stamps_ns: np.ndarray
    recorded_ns: np.ndarray
    instruction: np.ndarray
    said: tuple[str, ...]
    world: str
    how: str
    pose: np.ndarray
    truth: Truth | None
    truth_frame: str
    notes: list[str]

    def breaks(self, images: np.ndarray, gap_s: float) -> np.ndarray:
        """Whether something is broken between one of `images` [K] and the next, bool [K - 1]: a gap longer than
        `gap_s`, a clock that does not go on, a pose that begins or ends to be known.
        """
        steps, posed = np.diff(self.stamps_ns[images]), np.isfinite(self.pose[images]).all((1, 2))
        return np.asarray((steps <= 0) | (steps > round(gap_s * NS)) | (np.diff(posed) != 0))

    def told(self, image: int) -> str:
        """The instruction in force at an image."""
        number = int(self.instruction[image])
        return self.said[number] if number >= 0 else ""


@dataclass
class _Images:
    """Times of the images: header stamp, recording time and the instruction in force (index, -1 for none) of each."""

    frame_id: str = ""
    stamps: array[int] = field(default_factory=lambda: array("q"))
    recorded: array[int] = field(default_factory=lambda: array("q"))
    instruction: array[int] = field(default_factory=lambda: array("q"))
    said: list[str] = field(default_factory=list)
    camera: Camera | None = None


def survey(recording: Recording, settings: Settings, advance: Callable[[int], None] = lambda _: None) -> Course:
    """What is known at every image. advance: called with the number of images seen since the last call.

    Raises RecordingError where camera, truth or pose cannot be had, with the remedy.
    """
    topic = recording.camera(settings.image_topic)
    if settings.truth:
        required_topic(recording, settings.truth)
    images = _look(recording, topic, settings, advance)
    assert images.camera is not None
    stamps = np.array(images.stamps, np.int64)
    camera_frame = frame_name(settings.camera_frame) or images.frame_id
    placed: Truth | None
    if settings.truth:
        truth = read_truth(
            recording, settings.truth, links=settings.links, joint_names=settings.joints, urdf=settings.urdf or None,
            frame_id=settings.truth_frame, max_age_s=settings.tf_gap_s,
        )  # fmt: skip
        _check_overlap(recording, topic, stamps, truth)
        placed, how, pose, notes = _place(recording, settings, truth, camera_frame, stamps)
        world, told = placed.frame_id, truth.frame_id
    else:
        how, world, told = "identity: no truth was asked for", camera_frame, ""
        placed, pose, notes = None, _tiled(len(stamps)), []
    return Course(
        image_topic=topic,
        camera=images.camera,
        camera_frame=camera_frame,
        stamps_ns=stamps,
        recorded_ns=np.array(images.recorded, np.int64),
        instruction=np.array(images.instruction, np.int64),
        said=tuple(images.said),
        world=world,
        how=how,
        pose=pose,
        truth=placed,
        truth_frame=told,
        notes=notes,
    )


def _look(recording: Recording, topic: Topic, settings: Settings, advance: Callable[[int], None]) -> _Images:
    """One pass over images, calibration and instructions."""
    out, size = _Images(), None
    info = None if settings.intrinsics else recording.camera_info(topic)
    words = recording.topic(settings.instruction_topic)
    words = words if words is not None and words.type == STRING and not settings.instruction else None
    for found, recorded_ns, message in read(recording, [t for t in (topic, info, words) if t is not None]):
        if found == words:
            if not out.said and out.recorded and recorded_ns - out.recorded[0] <= NS:
                out.instruction = array(
                    "q", [0] * len(out.stamps)
                )  # a latched message that came after the first images
            if message.data not in out.said[-1:]:  # said again is no new task
                out.said.append(message.data)
        elif found == info:
            _calibrate(out, message, found, recording, rectified="image_rect" in topic.name)  # image_pipeline's name
        else:
            if size is None:
                size = _size(message, topic, recording)
            stamp = stamp_ns(message.header)
            if stamp <= 0:
                raise RecordingError(
                    f"the images on {topic.name} of {recording.path} have no time (stamp 0); make the driver fill "
                    "header.stamp and record again"
                )
            frame = frame_name(message.header.frame_id)
            if out.frame_id and frame != out.frame_id and not settings.camera_frame:
                raise RecordingError(
                    f"the frame of {topic.name} in {recording.path} changes from {out.frame_id} to {frame}; say which "
                    "one is right (--camera-frame)"
                )
            out.frame_id = frame
            out.stamps.append(stamp)
            out.recorded.append(recorded_ns)
            out.instruction.append(len(out.said) - 1)
            advance(1)
    if size is None:
        raise RecordingError(f"no image on {topic.name} of {recording.path} can be decoded; record the camera again")
    if settings.intrinsics:
        fx, fy, cx, cy = settings.intrinsics
        out.camera = Camera(*size, fx, fy, cx, cy)
    if out.camera is None:
        where = f"{info.name} holds no calibration (K = 0)" if info else f"there is no {CAMERA_INFO} beside it"
        raise RecordingError(
            f"the camera of {topic.name} in {recording.path} is not known: {where}; give --intrinsics fx,fy,cx,cy in "
            f"pixels (for {size[0]}x{size[1]}); {recording.describe()}"
        )
    if size != (out.camera.width, out.camera.height):
        raise RecordingError(
            f"the images on {topic.name} of {recording.path} are {size[0]}x{size[1]}, but CameraInfo is for "
            f"{out.camera.width}x{out.camera.height}; give --intrinsics fx,fy,cx,cy of these images"
        )
    if settings.instruction:
        out.said, out.instruction = [settings.instruction], array("q", [0] * len(out.stamps))
    return out


def _size(message: Any, topic: Topic, recording: Recording) -> tuple[int, int] | None:
    """Width and height of an image, None where this one is damaged."""
    try:
        return jpeg_of(message)[1]
    except PictureError as error:
        if error.damaged:
            return None
        raise RecordingError(f"{topic.name} of {recording.path}: {error}; {recording.describe()}") from None


def _calibrate(out: _Images, message: Any, topic: Topic, recording: Recording, rectified: bool) -> None:
    try:
        camera = camera_of(message, rectified)
    except ValueError as error:
        raise RecordingError(
            f"{topic.name} of {recording.path} cannot be used: {error}; give --intrinsics fx,fy,cx,cy"
        ) from None
    if out.camera is not None and camera is not None and camera != out.camera:
        raise RecordingError(
            f"the calibration on {topic.name} of {recording.path} changes within the recording; cut it there "
            "(a zoom, or two cameras on one topic)"
        )
    out.camera = out.camera or camera


def _check_overlap(recording: Recording, topic: Topic, stamps: np.ndarray, truth: Truth) -> None:
    first, last = int(truth.stamps_ns[0]), int(truth.stamps_ns[-1])
    if stamps.max() < first or stamps.min() > last:
        raise RecordingError(
            f"truth and images of {recording.path} do not overlap in time: {truth.source} says {first / NS:.3f} to "
            f"{last / NS:.3f} s, {topic.name} {stamps.min() / NS:.3f} to {stamps.max() / NS:.3f} s; let both use the "
            "clock of ROS (one of them may be stamped by its device, or by simulated time)"
        )


def _place(
    recording: Recording, settings: Settings, truth: Truth, camera: str, stamps: np.ndarray
) -> tuple[Truth, str, np.ndarray, list[str]]:
    """(the truth in the world, how the camera's pose is known, that pose [N, 4, 4], notes).

    The world is a frame that does not move: the root of the tree of frames above the truth, unless it is given.
    """
    if not camera:
        raise RecordingError(f"the images of {recording.path} do not say their frame; give it with --camera-frame")
    still = not (settings.pose_topic or settings.world_frame) and truth.frame_id == camera
    if still:
        hint = "the camera is taken as if it stood still; where it moves, give --world-frame (transforms were recorded)"
        notes = [hint] if tf_topics(recording) else []
        return truth, "identity: the truth is in the camera frame", _tiled(len(stamps)), notes
    frames = Frames.of(recording, max_age_s=settings.tf_gap_s)
    if settings.pose_topic:
        frames.add_poses(recording, settings.pose_topic, camera)
    elif not tf_topics(recording):
        poses = some([topic.name for topic in recording.topics if topic.type == POSE_STAMPED and topic.count])
        raise RecordingError(
            f"the truth of {recording.path} is in {truth.frame_id!r}, its images are from {camera!r}, and no "
            f"transforms were recorded; give the camera's pose (--pose-topic; PoseStamped topics: {poses}), record "
            f"/tf and /tf_static, or, if both frames are one, give --truth-frame {camera}"
        )
    known = truth.frame_id in frames.names
    world = frame_name(settings.world_frame) or (frames.ancestors(truth.frame_id)[-1] if known else truth.frame_id)
    pose = frames.lookup(world, camera, stamps)
    turn = frames.lookup(world, truth.frame_id, truth.stamps_ns)
    moved = np.einsum("nij,nkj->nki", turn[:, :3, :3], truth.joints) + turn[:, None, :3, 3]
    placed = replace(truth, joints=moved, frame_id=world)
    notes = frames.told(world, camera, stamps)
    notes += [line for line in frames.told(world, truth.frame_id, truth.stamps_ns) if line not in notes]
    how = f"topic {settings.pose_topic}" if settings.pose_topic else "transforms"
    return placed, how, pose, notes


def _tiled(count: int) -> np.ndarray:
    return np.tile(np.eye(4), (count, 1, 1))
