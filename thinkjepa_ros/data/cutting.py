"""What episodes a recording will give: camera, truth and camera pose at every image, cut into pieces.

Reads the recording once per kind of topic and keeps numbers only: the truth and the times of an hour are tens of
megabytes where its images are gigabytes. The plan depends on the recording and the settings alone, so that it is the
same after an interruption.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.values import Camera

from .frames import POSE_STAMPED, Frames, tf_topics
from .pictures import PictureError, camera_of, in_image, jpeg_of
from .recording import CAMERA_INFO, Recording, RecordingError, Topic
from .truth import Truth, read_truth
from .typed import NS, frame_name, read, required_topic, some, stamp_ns

STRING = "std_msgs/msg/String"


@dataclass(frozen=True)
class Settings:
    """How to make episodes of recordings; `data from-bag --help` says what each is. Lengths of time in seconds.

    links, joints, urdf, truth_frame: see `truth.read_truth`. intrinsics: fx, fy, cx, cy in pixels, in place of
    CameraInfo. seconds: length of an episode. min_seconds: shorter rests are left out. gap_s: a longer time between two
    images begins a new episode. truth_gap_s, tf_gap_s: longest gap in truth and in transforms that is bridged.
    """

    truth: str
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
class Piece:
    """One episode to be. images: numbers of its images in the order of recording, int64 [N]; the rest as in Episode."""

    images: np.ndarray
    stamps_ns: np.ndarray
    camera_pose: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    instruction: str
    recorded_ns: int

    def digest(self, about: dict[str, Any]) -> str:
        """Hash over everything but the pictures."""
        out = hashlib.sha256(json.dumps([about, self.instruction, self.recorded_ns], sort_keys=True).encode())
        for name in ("images", "stamps_ns", "camera_pose", "joints", "visible"):
            out.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return out.hexdigest()


@dataclass(frozen=True, eq=False)
class Plan:
    """The episodes of one recording. left_out: images by the reason why they are in none. notes: what else to say."""

    image_topic: Topic
    camera: Camera
    joint_names: tuple[str, ...]
    pieces: list[Piece]
    images: int
    left_out: dict[str, int]
    notes: list[str]
    details: dict[str, Any]


@dataclass
class _Images:
    """Times of the images: header stamp, recording time and the instruction in force (index, -1 for none) of each."""

    frame_id: str = ""
    stamps: array[int] = field(default_factory=lambda: array("q"))
    recorded: array[int] = field(default_factory=lambda: array("q"))
    instruction: array[int] = field(default_factory=lambda: array("q"))
    said: list[str] = field(default_factory=list)
    camera: Camera | None = None


def make_plan(recording: Recording, settings: Settings, advance: Callable[[int], None] = lambda _: None) -> Plan:
    """Plan the episodes of `recording`. advance: called with the number of images seen since the last call.

    Raises RecordingError where no episode can be made, with the remedy.
    """
    topic = recording.camera(settings.image_topic)
    required_topic(recording, settings.truth)
    images = _look(recording, topic, settings, advance)
    assert images.camera is not None
    truth = read_truth(
        recording, settings.truth, links=settings.links, joint_names=settings.joints, urdf=settings.urdf or None,
        frame_id=settings.truth_frame, max_age_s=settings.tf_gap_s,
    )  # fmt: skip
    stamps = np.array(images.stamps, np.int64)
    _check_overlap(recording, topic, stamps, truth)
    camera_frame = frame_name(settings.camera_frame) or images.frame_id
    world, how, pose, joints, notes = _place(recording, settings, truth, camera_frame, stamps)
    pieces, left_out = _cut(images, stamps, pose, joints, settings, images.camera)
    details = {
        "truth": {"source": truth.source, "frame": truth.frame_id, "longest_gap_s": settings.truth_gap_s},
        "visible": "inside the image; what is occluded is not known",
        "states": "not known: zeros",
        "world": world,
        "camera": {"topic": topic.name, "frame": camera_frame, "pose": how},
    }
    if not pieces:
        reasons = "; ".join([*(f"{count} images {why}" for why, count in left_out.items()), *notes])
        raise RecordingError(f"no episode can be made of {recording.path}: {reasons}")
    return Plan(topic, images.camera, truth.joint_names, pieces, len(stamps), left_out, notes, details)


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
) -> tuple[str, str, np.ndarray, np.ndarray, list[str]]:
    """(world, how the pose is known, camera pose [N, 4, 4], joints in world at the images [N, J, 3], notes).

    The world is a frame that does not move: the root of the tree of frames above the truth, unless it is given.
    """
    if not camera:
        raise RecordingError(f"the images of {recording.path} do not say their frame; give it with --camera-frame")
    still = not (settings.pose_topic or settings.world_frame) and truth.frame_id == camera
    if still:
        joints = truth.at(stamps, settings.truth_gap_s)
        hint = "the camera is taken as if it stood still; where it moves, give --world-frame (transforms were recorded)"
        notes = [hint] if tf_topics(recording) else []
        return camera, "identity: the truth is in the camera frame", _tiled(len(stamps)), joints, notes
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
    placed = Truth(truth.stamps_ns, moved, world, truth.joint_names)
    notes = frames.told(world, camera, stamps)
    notes += [line for line in frames.told(world, truth.frame_id, truth.stamps_ns) if line not in notes]
    how = f"topic {settings.pose_topic}" if settings.pose_topic else "transforms"
    return world, how, pose, placed.at(stamps, settings.truth_gap_s), notes


def _tiled(count: int) -> np.ndarray:
    return np.tile(np.eye(4), (count, 1, 1))


def _cut(
    images: _Images, stamps: np.ndarray, pose: np.ndarray, joints: np.ndarray, settings: Settings, camera: Camera
) -> tuple[list[Piece], dict[str, int]]:
    """Pieces, and the number of images that are in none, by reason."""
    posed, known = np.isfinite(pose).all((1, 2)), np.isfinite(joints).all(2).any(1)
    steps, said = np.diff(stamps), np.array(images.instruction)
    apart = (steps <= 0) | (steps > round(settings.gap_s * NS)) | (np.diff(said) != 0) | (np.diff(posed) != 0)
    left_out = {"without a camera pose": int((~posed).sum()), "without truth": 0, "in rests that are too short": 0}
    pieces = []
    for run in np.split(np.arange(len(stamps)), np.flatnonzero(apart) + 1):
        if not posed[run[0]]:
            continue
        seen = np.flatnonzero(known[run])
        inside = run[seen[0] : seen[-1] + 1] if len(seen) else run[:0]
        left_out["without truth"] += len(run) - len(inside)
        if not len(inside):
            continue
        part = (stamps[inside] - stamps[inside[0]]) // round(settings.seconds * NS)
        for chosen in np.split(inside, np.flatnonzero(np.diff(part)) + 1):
            rate = float(np.median(np.diff(stamps[chosen]))) if len(chosen) > 1 else 0.0
            long_enough = (stamps[chosen[-1]] - stamps[chosen[0]] + rate) >= settings.min_seconds * NS
            if not (long_enough and known[chosen].any()):
                reason = "in rests that are too short" if known[chosen].any() else "without truth"
                left_out[reason] += len(chosen)
                continue
            in_camera = (joints[chosen] - pose[chosen, None, :3, 3]) @ pose[chosen, :3, :3]
            text = images.said[said[chosen[0]]] if said[chosen[0]] >= 0 else ""
            pieces.append(
                Piece(
                    images=chosen,
                    stamps_ns=stamps[chosen],
                    camera_pose=pose[chosen],
                    joints=joints[chosen].astype(np.float32),
                    visible=in_image(camera, in_camera),
                    instruction=text,
                    recorded_ns=int(images.recorded[int(chosen[0])]),
                )
            )
    return pieces, {why: count for why, count in left_out.items() if count}
