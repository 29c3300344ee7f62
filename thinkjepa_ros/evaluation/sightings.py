"""What a running robot is told about the truth: where the joints are, and where the camera is, over the last seconds.

Nothing a message says is believed: what cannot be used is refused with a sentence, and counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from thinkjepa_ros.evaluation.score import MAX_POSE_NS, NoTruthError

NS = 1_000_000_000
#: Stamps that go back by more than this begin anew (a bag that is played again); by less they are out of order.
JUMP_NS = NS
#: The most that is kept of each.
MAX_KEPT = 20_000


class SightingError(ValueError):
    """A message about the truth that cannot be used; the text says why and what to do."""


@dataclass
class Sightings:
    """Truth and camera poses in the order of their stamps.

    joints: names of the points of the truth; empty: what the messages call them, else those of the model in its order.
    frame: of the truth, in place of what its messages say. refused: messages by reason; trouble: the sentence of the
    newest refusal, empty since a message was good. restarted: the truth's clock went back; whoever reads it resets it.
    begins_ns: stamps at which the scene (re)started. kept: how many are kept of each, None: all.
    """

    joints: tuple[str, ...] = ()
    frame: str = ""
    refused: Counter[str] = field(default_factory=Counter)
    trouble: str = ""
    restarted: bool = False
    begins_ns: list[int] = field(default_factory=list)
    truth_frame: str = ""
    pose_frame: str = ""
    kept: int | None = MAX_KEPT
    _names: tuple[str, ...] = ()
    _truth: deque[tuple[int, np.ndarray]] = field(default_factory=deque)
    _poses: deque[tuple[int, np.ndarray]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._truth, self._poses = deque(maxlen=self.kept), deque(maxlen=self.kept)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest truth."""
        return self._truth[-1][0] if self._truth else None

    def truth(self, stamp_ns: int, frame_id: str, points: np.ndarray, names: tuple[str, ...] = ()) -> None:
        """Where the joints were at a stamp: points [n, 3] in metres, NaN = unknown, n = 0: all are unknown.

        names: what the message calls them, where it does. Raises SightingError.
        """
        points = np.array(points, np.float32).reshape(-1, 3)
        frame, names = self.frame or frame_id.lstrip("/"), self.joints or names
        count = len(names) or (len(self._truth[-1][1]) if self._truth else len(points))
        if stamp_ns <= 0:
            raise self._refusal("no time", "the truth has no time (stamp 0); fill header.stamp at its publisher")
        if np.isinf(points).any():
            raise self._refusal("not finite", "the truth holds an infinite position; use NaN for an unknown joint")
        if len(points) not in (0, count):
            expected = f"{count} joints are named" if names else f"{count} came before"
            raise self._refusal(
                "joint count", f"the truth has {len(points)} points, but {expected}; publish always the same joints"
            )
        self._check_order(stamp_ns)
        if len(points) and (frame, names) != (self.truth_frame, self._names):
            self._truth.clear()  # another frame or other joints: what came before cannot be compared with it
            self.truth_frame, self._names = frame, names
        points[~np.isfinite(points).all(1)] = np.nan
        self.trouble = ""
        if count:
            self._truth.append((stamp_ns, points if len(points) else np.full((count, 3), np.nan, np.float32)))

    def _check_order(self, stamp_ns: int) -> None:
        back_ns = self._truth[-1][0] - stamp_ns if self._truth else -1
        if back_ns > JUMP_NS:
            self._truth.clear()
            if self._poses and self._poses[-1][0] > stamp_ns + JUMP_NS:  # else those of the new time have come already
                self._poses.clear()
            self.restarted = True
        elif back_ns >= 0:
            raise self._refusal(
                "order",
                f"the stamps of the truth go back by {back_ns / NS:.3f} s; is there a second publisher?"
                if back_ns
                else "the truth said the same stamp twice; is there a second publisher?",
            )

    def _refusal(self, reason: str, words: str) -> SightingError:
        self.refused[reason] += 1
        self.trouble = words
        return SightingError(words)

    def pose(self, stamp_ns: int, frame_id: str, world_from_camera: np.ndarray) -> None:
        """Where the camera's optical frame was: [4, 4], metres. Raises SightingError."""
        if stamp_ns <= 0 or not np.isfinite(world_from_camera).all():
            words = "no time (stamp 0)" if stamp_ns <= 0 else "numbers that are no pose (NaN, or a quaternion of 0)"
            raise self._refusal("pose", f"a pose of the camera has {words}; correct its publisher")
        if self._poses and stamp_ns <= self._poses[-1][0]:
            if self._poses[-1][0] - stamp_ns <= JUMP_NS:
                self.refused["pose out of order"] += 1
                return
            self._poses.clear()
        self.pose_frame = frame_id.lstrip("/")
        self._poses.append((stamp_ns, np.array(world_from_camera, np.float64)))

    def forget_before(self, stamp_ns: int) -> None:
        """Let go of what is older, but for one truth: a pause after it shows that another scene began."""
        while len(self._truth) > 1 and self._truth[1][0] < stamp_ns:
            self._truth.popleft()
        while len(self._poses) > 1 and self._poses[1][0] < stamp_ns:
            self._poses.popleft()

    def wanted_poses(self, stamps_ns: Sequence[int], camera_frame: str) -> list[int]:
        """Stamps, ascending, at which the camera's pose is still to be found out by whoever can (TF): those of the
        forecasts, and of the truth where it is in the camera's frame.
        """
        after = self._poses[-1][0] if self._poses else 0
        truth = [at for at, _ in self._truth] if self.truth_frame == camera_frame.lstrip("/") else []
        return sorted({at for at in [*stamps_ns, *truth] if at > after})

    def placed(
        self, joint_names: tuple[str, ...], camera_frame: str, stamps_ns: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Truth at its stamps [M], in a frame that does not move, for the joints of a model [M, J, 3]; pose stamps
        [P], poses [P, 4, 4].

        Truth in the camera's frame is moved by the camera's poses; where there are none the camera is taken as if it
        stood still, and poses at `stamps_ns` say so. Raises NoTruthError where that cannot be.
        """
        truth_ns, points, pose_ns, pose = self.all()
        if not len(truth_ns):
            raise NoTruthError("no truth has come")
        truth = self._arranged(points, joint_names)
        if self.truth_frame == camera_frame.lstrip("/"):
            return truth_ns, *lifted(truth_ns, truth, pose_ns, pose, np.array(stamps_ns, np.int64))
        if not len(pose_ns):
            raise NoTruthError(
                f"the truth is in the frame {self.truth_frame!r}, the camera is {camera_frame!r}, and no pose of the "
                "camera has come: publish it (pose_topic), or take it from TF (camera_pose_from)"
            )
        if self.pose_frame and self.truth_frame and self.pose_frame != self.truth_frame:
            raise NoTruthError(
                f"the truth is in the frame {self.truth_frame!r}, the poses of the camera are in {self.pose_frame!r}; "
                "publish both in one frame that does not move"
            )
        return truth_ns, truth, pose_ns, pose

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As it came: truth stamps [M], points float32 [M, n, 3], pose stamps [P], poses float64 [P, 4, 4]."""
        points = [points for _, points in self._truth]
        return (
            np.array([at for at, _ in self._truth], np.int64),
            np.array(points, np.float32).reshape(len(points), -1, 3) if points else np.zeros((0, 0, 3), np.float32),
            np.array([at for at, _ in self._poses], np.int64),
            np.array([matrix for _, matrix in self._poses], np.float64).reshape(-1, 4, 4),
        )

    def _arranged(self, points: np.ndarray, joint_names: tuple[str, ...]) -> np.ndarray:
        """Points [M, n, 3] in the order of the model's joints [M, J, 3]; NaN for those the truth does not have."""
        if not self._names:
            if points.shape[1] != len(joint_names):
                raise NoTruthError(
                    f"the truth has {points.shape[1]} points, the model has {len(joint_names)} joints; say which they "
                    "are (truth_joints)"
                )
            return points
        shared = [name for name in joint_names if name in self._names]
        if not shared:
            raise NoTruthError(
                f"the truth and the model have no joint in common: {', '.join(self._names[:6])}, … and "
                f"{', '.join(joint_names[:6])}, …; name the points of the truth as the model does (truth_joints)"
            )
        out = np.full((len(points), len(joint_names), 3), np.nan, np.float32)
        for name in shared:
            out[:, joint_names.index(name)] = points[:, self._names.index(name)]
        return out


def lifted(
    truth_ns: np.ndarray, truth: np.ndarray, pose_ns: np.ndarray, pose: np.ndarray, stamps_ns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth [M, J, 3] in the camera's frame of each moment, moved to the world of the poses; and those poses.

    NaN where no pose is near. Without any pose the camera stands still: identities at `stamps_ns`.
    """
    if not len(pose_ns):
        stamps = np.unique(stamps_ns)
        return truth, stamps, np.tile(np.eye(4), (len(stamps), 1, 1))
    right = np.clip(np.searchsorted(pose_ns, truth_ns), 1, max(len(pose_ns) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(pose_ns) - 1)
    nearest = np.where(np.abs(pose_ns[left] - truth_ns) <= np.abs(pose_ns[right] - truth_ns), left, right)
    matrix = pose[nearest]
    moved = np.einsum("nij,nkj->nki", matrix[:, :3, :3], truth) + matrix[:, None, :3, 3]
    moved[np.abs(pose_ns[nearest] - truth_ns) > MAX_POSE_NS] = np.nan
    return moved, pose_ns, pose
