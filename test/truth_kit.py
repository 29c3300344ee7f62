"""Messages with positions, and recordings of a camera beside them, for the tests of truth and conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bag_kit import BEGIN_NS, NS, STORE, camera_info, header, make, write
from rosbags.rosbag2 import StoragePlugin

TURN = (0.0, 0.0, 0.0, 1.0)


def ns(seconds: float) -> int:
    """A stamp `seconds` after the beginning of the recordings."""
    return BEGIN_NS + round(seconds * NS)


def point(p: Sequence[float], kind: str = "Point") -> Any:
    return make(f"geometry_msgs/msg/{kind}", *map(float, p))


def pose(p: Sequence[float], q: Sequence[float] = TURN) -> Any:
    return make("geometry_msgs/msg/Pose", point(p), make("geometry_msgs/msg/Quaternion", *map(float, q)))


def transform(p: Sequence[float], q: Sequence[float] = TURN) -> Any:
    turn = make("geometry_msgs/msg/Quaternion", *map(float, q))
    return make("geometry_msgs/msg/Transform", point(p, "Vector3"), turn)


def pose_array(stamp: int, points: Iterable[Sequence[float]], frame: str = "world") -> Any:
    return make("geometry_msgs/msg/PoseArray", header(stamp, frame), [pose(p) for p in points])


def pose_stamped(stamp: int, p: Sequence[float], q: Sequence[float] = TURN, frame: str = "world") -> Any:
    return make("geometry_msgs/msg/PoseStamped", header(stamp, frame), pose(p, q))


def path(stamp: int, poses: Sequence[tuple[int, Sequence[float]]], frame: str = "world", inner: str = "") -> Any:
    inside = [make("geometry_msgs/msg/PoseStamped", header(s, inner), pose(p)) for s, p in poses]
    return make("nav_msgs/msg/Path", header(stamp, frame), inside)


def trajectory(
    stamp: int, points: Sequence[Sequence[Sequence[float]]], names: Sequence[str] = (), after_s: float = 0.0
) -> Any:
    """points [steps][joints][3]; the first is at stamp + after_s."""
    rows = []
    for k, row in enumerate(points):
        time = make("builtin_interfaces/msg/Duration", *divmod(round((after_s + k) * NS), NS))
        rows.append(make("trajectory_msgs/msg/MultiDOFJointTrajectoryPoint", [transform(p) for p in row], [], [], time))
    return make("trajectory_msgs/msg/MultiDOFJointTrajectory", header(stamp, "world"), list(names), rows)


def marker(stamp: int, name: str, p: Sequence[float], frame: str = "world", action: int = 0, store: Any = STORE) -> Any:
    """Fields that a version of the message does not have are left out."""
    kinds, (space, _, number) = store.types, name.rpartition("/")
    kind = kinds["visualization_msgs/msg/Marker"]
    values: dict[str, Any] = {
        "header": header(stamp, frame), "ns": space, "id": int(number), "type": 2, "action": action, "pose": pose(p),
        "scale": point((1, 1, 1), "Vector3"), "color": make("std_msgs/msg/ColorRGBA", 0.0, 0.0, 0.0, 1.0),
        "lifetime": make("builtin_interfaces/msg/Duration", 0, 0), "frame_locked": False, "points": [], "colors": [],
        "text": "", "mesh_resource": "", "mesh_use_embedded_materials": False, "texture_resource": "",
        "uv_coordinates": [],
    }  # fmt: skip
    if "texture" in kind.__dataclass_fields__:
        values["texture"] = make("sensor_msgs/msg/CompressedImage", header(0, ""), "", np.zeros(0, np.uint8))
        values["mesh_file"] = make("visualization_msgs/msg/MeshFile", "", np.zeros(0, np.uint8))
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def markers(*inside: Any, store: Any = STORE) -> Any:
    return store.types["visualization_msgs/msg/MarkerArray"](list(inside))


def tf(*links: tuple[int, str, str, Sequence[float], Sequence[float]]) -> Any:
    """links: (stamp, parent, child, position, quaternion)."""
    inside = [
        make("geometry_msgs/msg/TransformStamped", header(stamp, parent), child, transform(p, q))
        for stamp, parent, child, p, q in links
    ]
    return make("tf2_msgs/msg/TFMessage", inside)


def joint_state(stamp: int, values: Mapping[str, float]) -> Any:
    nothing = np.zeros(0)
    position = np.array(list(values.values()), float)
    return make("sensor_msgs/msg/JointState", header(stamp, ""), list(values), position, nothing, nothing)


def jpeg(index: int, width: int = 32, height: int = 24) -> bytes:
    """A small picture, different for every index."""
    image = np.full((height, width, 3), (index * 7 % 256, 90, 255 - index * 5 % 256), np.uint8)
    image[index % height] = 255
    return bytes(cv2.imencode(".jpg", image)[1].tobytes())


def compressed(stamp: int, data: bytes, frame: str = "camera_optical", kind: str = "jpeg") -> Any:
    return make("sensor_msgs/msg/CompressedImage", header(stamp, frame), kind, np.frombuffer(data, np.uint8))


Message = tuple[str, int, Any]


def camera(stamps: Iterable[int], info: bool = True, frame: str = "camera_optical") -> list[Message]:
    """A calibrated camera of 32 x 24 pixels that makes a picture at every stamp."""
    out: list[Message] = []
    for k, stamp in enumerate(stamps):
        if info:
            out.append(("/camera/camera_info", stamp, camera_info(stamp)))
        out.append(("/camera/image/compressed", stamp, compressed(stamp, jpeg(k), frame)))
    return out


def bag(folder: Path, *parts: Iterable[Message], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """A recording of the messages of all parts in the order of their times."""
    messages = [message for part in parts for message in part]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write(folder, sorted(messages, key=lambda m: m[1]), storage)
