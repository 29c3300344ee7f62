"""What episodes a recording will give: what is known at every image, cut into pieces.

The plan depends on the recording and the settings alone, so that it is the same after an interruption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkjepa_ros.values import Camera

from .pictures import in_image
from .recording import Recording, RecordingError, Topic
from .survey import Course, Settings, survey
from .typed import NS, required_topic

__all__ = ["Piece", "Plan", "Settings", "make_plan"]


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


def make_plan(recording: Recording, settings: Settings, advance: Callable[[int], None] = lambda _: None) -> Plan:
    """Plan the episodes of `recording`. advance: called with the number of images seen since the last call.

    Raises RecordingError where no episode can be made, with the remedy.
    """
    required_topic(recording, settings.truth)
    course = survey(recording, settings, advance)
    assert course.truth is not None
    joints = course.truth.at(course.stamps_ns, settings.truth_gap_s)
    pieces, left_out = _cut(course, joints, settings)
    details = {
        "truth": {"source": course.truth.source, "frame": course.truth_frame, "longest_gap_s": settings.truth_gap_s},
        "visible": "inside the image; what is occluded is not known",
        "states": "not known: zeros",
        "world": course.world,
        "camera": {"topic": course.image_topic.name, "frame": course.camera_frame, "pose": course.how},
    }
    if not pieces:
        reasons = "; ".join([*(f"{count} images {why}" for why, count in left_out.items()), *course.notes])
        raise RecordingError(f"no episode can be made of {recording.path}: {reasons}")
    return Plan(
        course.image_topic, course.camera, course.truth.joint_names, pieces, len(course.stamps_ns), left_out,
        course.notes, details,
    )  # fmt: skip


def _cut(course: Course, joints: np.ndarray, settings: Settings) -> tuple[list[Piece], dict[str, int]]:
    """Pieces, and the number of images that are in none, by reason. joints: [N, J, 3] in the world at the images."""
    stamps, pose = course.stamps_ns, course.pose
    posed, known = np.isfinite(pose).all((1, 2)), np.isfinite(joints).all(2).any(1)
    apart = course.breaks(np.arange(len(stamps)), settings.gap_s) | (np.diff(course.instruction) != 0)
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
            pieces.append(
                Piece(
                    images=chosen,
                    stamps_ns=stamps[chosen],
                    camera_pose=pose[chosen],
                    joints=joints[chosen].astype(np.float32),
                    visible=in_image(course.camera, in_camera),
                    instruction=course.told(int(chosen[0])),
                    recorded_ns=int(course.recorded_ns[chosen[0]]),
                )
            )
    return pieces, {why: count for why, count in left_out.items() if count}
