"""Where the camera is in the robot's base: from a topic, TF, or a parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from . import qos
from .messages import NS, stamp_ns
from .transforms import Transforms
from .truth import pose_matrix

_KEPT = 100  # poses
_APART_S = 0.1  # the pose for an image was measured at most so long before or after it


def fixed_pose(text: str) -> np.ndarray:
    """[4, 4] of "x y z qx qy qz qw". Raises ValueError."""
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    matrix = pose_matrix(tuple(numbers[:3]), tuple(numbers[3:])) if len(numbers) == 7 else np.full((4, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise ValueError(f"the parameter camera_pose must be seven finite numbers x y z qx qy qz qw, not {text!r}")
    return matrix


class CameraPlace:
    """base from camera [4, 4] for an image; `trouble` says what was wrong with the last pose.

    Raises ValueError (TransformsError where TF is asked for and not installed).
    """

    def __init__(self, node: Node, get: Callable[[str], Any]) -> None:
        self._node, self._base = node, get("base_frame")
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=_KEPT)
        self._fixed = fixed_pose(get("camera_pose")) if get("camera_pose_from") == "parameter" else None
        self._transforms = Transforms(node) if get("camera_pose_from") == "tf" else None
        self._subscription: Any = None
        if get("camera_pose_from") == "topic":
            self._subscription = node.create_subscription(PoseStamped, "camera_pose", self._on_pose, qos.OBSERVATIONS)
        self.trouble = ""

    def close(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def forget(self) -> None:
        """The clock jumped."""
        self._poses.clear()

    def at(self, ns: int, camera_frame: str) -> np.ndarray | None:
        """The pose at the stamp of an image, any thread; None where it is not known (yet)."""
        if self._fixed is not None:
            return self._fixed
        if self._transforms is not None:
            return self._transforms.pose(self._base, camera_frame, ns)
        near = min(tuple(self._poses), key=lambda item: abs(item[0] - ns), default=None)
        return None if near is None or abs(near[0] - ns) > _APART_S * NS else near[1]

    def _on_pose(self, message: PoseStamped) -> None:
        p, q = message.pose.position, message.pose.orientation
        matrix = pose_matrix((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        self.trouble = ""
        if message.header.frame_id != self._base:
            self.trouble = f"camera_pose is given in {message.header.frame_id!r}; publish it in {self._base!r}"
        elif not np.isfinite(matrix).all():
            self.trouble = "camera_pose holds what is no number"
        else:
            self._poses.append((stamp_ns(message.header.stamp), matrix))
