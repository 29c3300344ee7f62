"""The truth side of an evaluator: one topic with joints, and the camera's pose from a topic or from TF."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from thinkjepa_ros.evaluation.sightings import SightingError, Sightings

from .transforms import Transforms
from .truth import TRUTH_TYPES, read_pose, read_truth

#: Forecasts whose camera pose may still be asked of TF.
MAX_STAMPS = 3000


def make_sightings(get: Callable[[str], Any], kept: int | None) -> Sightings:
    """By the parameters of the evaluator. kept: how many truths and poses, None: all."""
    names = tuple(name for name in map(str.strip, get("truth_joints").split(",")) if name)
    return Sightings(joints=names, frame=get("truth_frame").lstrip("/"), kept=kept)


class TruthInput:
    """Fills the `stores` (asked at every message) with truth and poses; what is wrong with a message is logged.

    Raises TransformsError where TF is asked for and not installed.
    """

    def __init__(self, node: Node, get: Callable[[str], Any], stores: Callable[[], Iterable[Sightings]]) -> None:
        self._node, self._stores = node, stores
        self._kind = TRUTH_TYPES[get("truth_type")]
        self._world = get("world_frame").lstrip("/")
        self._stamps: deque[int] = deque(maxlen=MAX_STAMPS)
        self._camera_frame = ""
        self._transforms = Transforms(node) if get("camera_pose_from") == "tf" else None
        node.create_subscription(self._kind, get("truth_topic"), self._on_truth, 50, raw=True)
        if self._transforms is None:
            node.create_subscription(PoseStamped, get("pose_topic"), self._on_pose, 50, raw=True)

    def _on_truth(self, cdr: bytes) -> None:
        try:
            stamp, frame, points, names = read_truth(cdr, self._kind)
            words = self._tell_all(lambda store: store.truth(stamp, frame, points, names))
        except ValueError as error:
            words = str(error)
        if words:
            self._node.get_logger().warning(f"truth refused: {words}", throttle_duration_sec=5.0)

    def _on_pose(self, cdr: bytes) -> None:
        stamp, frame, matrix = read_pose(cdr)
        if words := self._tell_all(lambda store: store.pose(stamp, frame, matrix)):
            self._node.get_logger().warning(f"camera pose refused: {words}", throttle_duration_sec=5.0)

    def _tell_all(self, keep: Callable[[Sightings], None]) -> str:
        """Hand something to every store; why it was refused, in a sentence."""
        words = ""
        for store in self._stores():
            try:
                keep(store)
            except SightingError as error:
                words = str(error)
        return words

    def forecast(self, stamp_ns: int, frame_id: str) -> None:
        """A forecast came: where the camera was at its stamp will be asked of TF."""
        self._stamps.append(stamp_ns)
        self._camera_frame = frame_id.lstrip("/")

    def look_up(self) -> None:
        """Ask TF for the poses that are missing; call it about once a second."""
        if self._transforms is None or not self._stamps:
            return
        for store in self._stores():
            world = self._world or store.truth_frame
            if not world or world == self._camera_frame:
                continue
            for stamp in store.wanted_poses(list(self._stamps), self._camera_frame):
                matrix = self._transforms.pose(world, self._camera_frame, stamp)
                if matrix is not None:
                    store.pose(stamp, world, matrix)
