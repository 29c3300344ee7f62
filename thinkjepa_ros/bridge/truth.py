"""Messages about the truth as arrays. A PoseArray of a hand comes often and has hundreds of objects: it is read from
its bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped
from rclpy.serialization import deserialize_message
from trajectory_msgs.msg import MultiDOFJointTrajectory

from .stamps import read_stamp

#: What a truth topic may hold.
TRUTH_TYPES = {
    "geometry_msgs/PoseArray": PoseArray,
    "geometry_msgs/PoseStamped": PoseStamped,
    "trajectory_msgs/MultiDOFJointTrajectory": MultiDOFJointTrajectory,
}
#: Bytes before the body of a serialized message; alignment counts from there.
_HEAD = 4


def read_truth(cdr: bytes, kind: Any) -> tuple[int, str, np.ndarray, tuple[str, ...]]:
    """Stamp in ns, frame, points float64 [n, 3] in metres and their names (none for poses) of a serialized message.

    kind: one of TRUTH_TYPES; of a trajectory its first point counts. Raises ValueError for bytes that are not such a
    message.
    """
    if kind is PoseArray:
        return *read_pose_array(cdr), ()
    message = deserialize_message(cdr, kind)
    header = message.header
    stamp = read_stamp(cdr)
    if kind is PoseStamped:
        p = message.pose.position
        return stamp, header.frame_id, np.array([[p.x, p.y, p.z]]), ()
    names = tuple(message.joint_names)
    if not message.points:
        return stamp, header.frame_id, np.zeros((0, 3)), names
    first = message.points[0]
    points = np.array([(t.translation.x, t.translation.y, t.translation.z) for t in first.transforms]).reshape(-1, 3)
    after = first.time_from_start
    return stamp and stamp + after.sec * 1_000_000_000 + after.nanosec, header.frame_id, points, names


def read_pose_array(cdr: bytes) -> tuple[int, str, np.ndarray]:
    """Stamp in ns, frame and positions float64 [n, 3] of a serialized geometry_msgs/PoseArray. Raises ValueError."""
    stamp, order = read_stamp(cdr), "<" if cdr[1] & 1 else ">"
    try:
        (length,) = struct.unpack_from(f"{order}I", cdr, _HEAD + 8)
        at = _HEAD + 12 + length
        frame = bytes(cdr[_HEAD + 12 : at]).rstrip(b"\0").decode()
        at += -(at - _HEAD) % 4
        (count,) = struct.unpack_from(f"{order}I", cdr, at)
        at += 4
        at += -(at - _HEAD) % 8 if count else 0
        values = np.frombuffer(cdr, f"{order}f8", 7 * count, at)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"a PoseArray of {len(cdr)} bytes is damaged: {error}") from error
    return stamp, frame, values.reshape(-1, 7)[:, :3].astype(np.float64)


def read_pose(cdr: bytes) -> tuple[int, str, np.ndarray]:
    """Stamp in ns, frame and pose [4, 4] of a serialized PoseStamped; NaN where the quaternion has length 0."""
    message = deserialize_message(cdr, PoseStamped)
    p, q = message.pose.position, message.pose.orientation
    return read_stamp(cdr), message.header.frame_id, pose_matrix((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def pose_matrix(position: tuple[float, ...], quaternion: tuple[float, ...]) -> np.ndarray:
    """[4, 4] of a position in metres and a quaternion x, y, z, w of any length; NaN where that is 0."""
    q = np.array(quaternion, np.float64)
    x, y, z, w = q / (np.linalg.norm(q) or np.nan)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = position
    return matrix
