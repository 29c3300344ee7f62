"""Small recordings made by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

NS = 1_000_000_000
BEGIN_NS = 1_600_000_000 * NS
STORE = get_typestore(Stores.ROS2_JAZZY)
#: The clock of the camera differs from that of the recorder, as on many robots.
CAMERA_BEGIN_NS = 5_000 * NS + 123


def make(kind: str, *fields: Any) -> Any:
    return STORE.types[kind](*fields)


def header(stamp_ns: int, frame: str = "camera_optical") -> Any:
    return make("std_msgs/msg/Header", make("builtin_interfaces/msg/Time", *divmod(stamp_ns, NS)), frame)


def pixels(index: int, width: int = 32, height: int = 24) -> np.ndarray:
    """A different image for every index, uint8 [H, W, 3]."""
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def image(index: int, stamp_ns: int) -> Any:
    rgb = pixels(index)
    return make(
        "sensor_msgs/msg/Image", header(stamp_ns), rgb.shape[0], rgb.shape[1], "rgb8", 0, rgb.shape[1] * 3, rgb.ravel()
    )


def poses(stamp_ns: int, count: int = 2) -> Any:
    """A nav_msgs/Path: a header and further headers inside."""
    pose = make(
        "geometry_msgs/msg/Pose",
        make("geometry_msgs/msg/Point", 1.0, 2.0, 3.0),
        make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0),
    )
    inside = [make("geometry_msgs/msg/PoseStamped", header(stamp_ns + k * NS), pose) for k in range(count)]
    return make("nav_msgs/msg/Path", header(stamp_ns), inside)


def camera_info(stamp_ns: int, width: int = 32, height: int = 24) -> Any:
    k = np.array([40.0, 0, (width - 1) / 2, 0, 40.0, (height - 1) / 2, 0, 0, 1])
    region = make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    projection = np.array([*k[:3], 0, *k[3:6], 0, *k[6:], 0])
    return make(
        "sensor_msgs/msg/CameraInfo", header(stamp_ns), height, width, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(),
        projection, 0, 0, region,
    )  # fmt: skip


def write(
    path: Path,
    messages: list[tuple[str, int, Any]],
    storage: StoragePlugin = StoragePlugin.MCAP,
) -> Path:
    """A recording of (topic, recording time, message)."""
    with Writer(path, version=8, storage_plugin=storage) as writer:
        connections: dict[str, Any] = {}
        for topic, at, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], at, bytes(STORE.serialize_cdr(message, kind)))
    return path


def camera_bag(path: Path, frames: int = 30, storage: StoragePlugin = StoragePlugin.MCAP, extra: bool = True) -> Path:
    """A camera at 30 Hz with calibration, an instruction said once, a path at every tenth image."""
    messages: list[tuple[str, int, Any]] = []
    if extra:
        messages.append(("/instruction", BEGIN_NS, make("std_msgs/msg/String", "pick the red cube")))
    for k in range(frames):
        after = round(k * NS / 30)
        stamp, at = CAMERA_BEGIN_NS + after, BEGIN_NS + after + 2_000_000
        messages.append(("/head/camera_info", at, camera_info(stamp)))
        messages.append(("/head/image_raw", at, image(k, stamp)))
        if extra and k % 10 == 0:
            messages.append(("/plan", at, poses(stamp)))
    return write(path, messages, storage)
