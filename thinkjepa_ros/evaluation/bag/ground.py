"""A recording as an evaluation sees it: its unbroken pieces, and the truth in the frame of any of its images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.survey import Course, Settings, survey
from thinkjepa_ros.data.typed import NS, some

_DEFAULT = re.compile(r"joint_\d+")
#: Images whose horizons are interpolated at once.
_BLOCK = 256
#: Topics of these types could say where the joints are.
_COULD_BE_TRUTH = (
    "geometry_msgs/msg/PoseArray", "geometry_msgs/msg/PoseStamped", "nav_msgs/msg/Path",
    "trajectory_msgs/msg/MultiDOFJointTrajectory", "visualization_msgs/msg/MarkerArray", "tf2_msgs/msg/TFMessage",
    "sensor_msgs/msg/JointState",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ground:
    """One recording. pieces: numbers of the images of each unbroken stretch, int64 [K], their stamps ascending.

    left_out: images by the reason why they are in no piece. could_be_truth: topics that might say where joints are.
    """

    path: Path
    course: Course
    settings: Settings
    pieces: tuple[np.ndarray, ...]
    left_out: dict[str, int]
    duration_s: float
    sha256: str
    could_be_truth: tuple[str, ...]

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Of the truth; none where there is no truth."""
        return () if self.course.truth is None else self.course.truth.joint_names

    def about(self, used: int) -> dict[str, Any]:
        """The entry of `Replay.about["bags"]`. used: images that the model looked at."""
        camera = self.course.camera
        return {
            "name": self.path.resolve().name,
            "path": str(self.path),
            "sha256": self.sha256,
            "duration_s": self.duration_s,
            "images": len(self.course.stamps_ns),
            "used": used,
            "first_ns": int(self.course.stamps_ns[0]),
            "camera": {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")},
        }

    def image_at(self, stamp_ns: int) -> tuple[int, int] | None:
        """(number of the image with this stamp, number of its piece), or None where no piece has it."""
        for number, images in enumerate(self.pieces):
            stamps = self.course.stamps_ns[images]
            place = int(np.searchsorted(stamps, stamp_ns))
            if place < len(stamps) and stamps[place] == stamp_ns:
                return int(images[place]), number
        return None

    def ahead(
        self, images: np.ndarray, pieces: np.ndarray, horizon: int, step_s: float, joints: np.ndarray
    ) -> np.ndarray:
        """The truth over the horizon of each image, in its optical frame, float64 [n, T, J, 3].

        images, pieces: int64 [n], numbers of images and of the pieces they are in; step k of the result is at stamp +
        (k + 1) * step_s. joints: numbers of the joints of the truth. NaN where unknown and beyond the end of the piece.
        """
        out = np.full((len(images), horizon, len(joints), 3), np.nan)
        ends = np.array([self.course.stamps_ns[piece[-1]] for piece in self.pieces], np.int64)
        steps_ns = np.round(np.arange(1, horizon + 1) * step_s * NS).astype(np.int64)
        for first in range(0, len(images), _BLOCK):
            part = slice(first, first + _BLOCK)
            at = self.course.stamps_ns[images[part], None] + steps_ns
            world = self._world(at, joints)
            world[at > ends[pieces[part], None]] = np.nan
            out[part] = self.into_camera(images[part], world)
        return out

    def now(self, images: np.ndarray, joints: np.ndarray, seen_from: np.ndarray | None = None) -> np.ndarray:
        """The true joints at images (int64, any shape [n, …]) in the optical frame of image seen_from [n] (default: of
        that image itself, with images [n]), float64 [n, …, J, 3].
        """
        world = self._world(self.course.stamps_ns[images], joints)
        return self.into_camera(images if seen_from is None else seen_from, world)

    def _world(self, stamps_ns: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """The truth at stamps of any shape, in the world; all NaN where there is none."""
        if self.course.truth is None:
            return np.full((*stamps_ns.shape, len(joints), 3), np.nan)
        found = self.course.truth.at(stamps_ns.ravel(), self.settings.truth_gap_s)[:, joints]
        return found.reshape(*stamps_ns.shape, len(joints), 3)

    def into_camera(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        """World points [n, …, 3] in the optical frames of images [n]."""
        return into_camera(self.course.pose[images], points)


def into_camera(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [n, …, 3] in the frames of the poses [n, 4, 4], world from camera."""
    moved = points - pose[:, :3, 3].reshape(len(points), *(1,) * (points.ndim - 2), 3)
    return np.einsum("n...i,nij->n...j", moved, pose[:, :3, :3])


def into_world(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The inverse of `into_camera`."""
    turned = np.einsum("n...i,nji->n...j", points, pose[:, :3, :3])
    return np.asarray(turned + pose[:, :3, 3].reshape(len(points), *(1,) * (points.ndim - 2), 3))


def open_ground(bag: str | Path, settings: Settings, advance: Callable[[int], None] = lambda _: None) -> Ground:
    """Read all of a recording but its pictures. Raises RecordingError with the remedy."""
    with Recording(bag) as recording:
        course = survey(recording, settings, advance)
        could = tuple(f"{t.name} ({t.type})" for t in recording.topics if t.type in _COULD_BE_TRUTH and t.count)
        duration_s = recording.duration_s
    pieces, left_out = _pieces(course, settings.gap_s)
    if not pieces:
        reasons = "; ".join([*(f"{count} images {why}" for why, count in left_out.items()), *course.notes])
        raise RecordingError(f"nothing of {bag} can be evaluated: {reasons}")
    path = Path(bag)
    return Ground(path, course, settings, pieces, left_out, duration_s, hash_of(path), could)


def _pieces(course: Course, gap_s: float) -> tuple[tuple[np.ndarray, ...], dict[str, int]]:
    """Cut only at gaps, clock jumps and missing poses; an image that repeats a stamp is left out."""
    posed = np.isfinite(course.pose).all((1, 2))
    again = np.append(False, np.diff(course.stamps_ns) == 0)
    images = np.flatnonzero(~again)
    runs = np.split(images, np.flatnonzero(course.breaks(images, gap_s)) + 1)
    left_out = {"with the stamp of the image before": int(again.sum())}
    left_out["without a camera pose"] = int((~posed[images]).sum())
    return tuple(run for run in runs if posed[run[0]]), {why: count for why, count in left_out.items() if count}


def hash_of(bag: Path) -> str:
    """Hex SHA-256 over the names and bytes of a recording's files."""
    out = hashlib.sha256()
    for file in sorted(f for f in bag.iterdir() if f.is_file()) if bag.is_dir() else [bag]:
        out.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                out.update(block)
    return out.hexdigest()


@dataclass(frozen=True, eq=False)
class Match:
    """The scored joints: names [J] as the replay has them, their places in the truth and in the model, int64 [J].

    in_model is None where the model has none of the truth's joints; in_truth is None where there is no truth. notes:
    sentences about it.
    """

    names: tuple[str, ...]
    in_truth: np.ndarray | None
    in_model: np.ndarray | None
    joints_without_truth: tuple[str, ...] = ()
    truth_without_joint: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def match_joints(truth: Sequence[str], model: Sequence[str], renamed: Mapping[str, str]) -> Match:
    """Which joints can be scored: those that truth and model call the same.

    renamed: a joint of the truth -> the joint of the model that it is. Raises ValueError for a name that nobody has.
    """
    for said, of, names in (("truth", renamed, truth), ("model", renamed.values(), model)):
        odd = [name for name in of if name not in names]
        if odd and truth:
            raise ValueError(f"--match names {odd[0]!r}, which the {said} does not have; it has {some(list(names))}")
    called = [renamed.get(name, name) for name in truth]
    twice = [name for name in called if called.count(name) > 1]
    if twice:
        raise ValueError(f"--match makes two joints of the truth {twice[0]!r} of the model; rename one of them only")
    if not truth:
        return Match(tuple(model), None, np.arange(len(model)), joints_without_truth=tuple(model))
    notes: tuple[str, ...] = ()
    if len(called) == len(model) and not set(called) & set(model) and all(map(_DEFAULT.fullmatch, called)):
        called = list(model)
        notes = ("the joints of the truth have no names: they are taken in the order of the model's joints",)
    shared = [name for name in model if name in called]
    if not shared:
        note = (
            f"the model has none of the joints of the truth: truth {some(list(truth))}; model {some(list(model))}. Its "
            "rows are left out; if they are the same joints, say which (--match truth=model,...), else train on such "
            "recordings (`thinkjepa data from-bag`, then `thinkjepa train fine-tune`)"
        )
        everything = np.arange(len(truth))
        return Match(tuple(truth), everything, None, tuple(model), tuple(truth), (note,))
    return Match(
        tuple(shared),
        np.array([called.index(name) for name in shared]),
        np.array([list(model).index(name) for name in shared]),
        tuple(name for name in model if name not in called),
        tuple(old for old, name in zip(truth, called, strict=True) if name not in model),
        notes,
    )
