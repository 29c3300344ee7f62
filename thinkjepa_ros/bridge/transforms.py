"""Where the camera is, from TF: by tf2_ros, which comes with an installed ROS 2 and is no Python wheel."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from .truth import pose_matrix


class TransformsError(ValueError):
    """TF cannot be used; the text says what to do."""


class Transforms:
    """Listens to /tf and /tf_static. Raises TransformsError where tf2_ros is not installed."""

    def __init__(self, node: Node) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise TransformsError(
                "tf2_ros is not installed, so the camera's pose cannot be taken from TF: install it with ROS 2 (apt "
                "install ros-$ROS_DISTRO-tf2-ros-py), or publish the pose as geometry_msgs/PoseStamped "
                "(camera_pose_from:=topic)"
            ) from None
        self._failure = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def pose(self, world: str, camera: str, stamp_ns: int) -> np.ndarray | None:
        """world_from_camera [4, 4] in metres at the stamp; None where TF does not know it (yet)."""
        try:
            found = self._buffer.lookup_transform(world, camera, Time(nanoseconds=stamp_ns)).transform
        except self._failure:
            return None
        t, q = found.translation, found.rotation
        return pose_matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
