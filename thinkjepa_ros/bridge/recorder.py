"""Collects messages during a run and makes a `Run` of them. Messages that are only needed later stay serialized."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from thinkjepa_ros.bridge.images import ImageError, to_rgb
from thinkjepa_ros.bridge.stamps import read_stamp
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.values import Camera, Forecast

#: Images wait this long for the forecast that is made from them.
MAX_WAITING, MAX_WAITING_BYTES = 60, 64 << 20
#: Before the first forecast only the last truths and poses can matter.
MAX_BEFORE = 300
MAX_PICTURE_WIDTH = 960


@dataclass
class Recorder:
    """Everything of a run that is kept. image_type: Image or CompressedImage; picture_rate_hz: at most so many."""

    image_type: Any
    picture_rate_hz: float
    camera: Camera | None = None
    begins_ns: list[int] = field(default_factory=list)
    forecasts: list[tuple[Forecast, int, int]] = field(default_factory=list)  # with receipt in ns and epoch
    _waiting: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _pictures: list[tuple[int, bytes]] = field(default_factory=list)
    _truth: list[bytes] = field(default_factory=list)
    _poses: list[bytes] = field(default_factory=list)

    def image(self, cdr: bytes) -> None:
        """A serialized image; it is kept if a forecast of the same stamp comes soon and a picture is due."""
        self._waiting[read_stamp(cdr)] = cdr
        while len(self._waiting) > 1 and (
            len(self._waiting) > MAX_WAITING or len(self._waiting) * len(cdr) > MAX_WAITING_BYTES
        ):
            self._waiting.popitem(last=False)

    def truth(self, cdr: bytes) -> None:
        """A serialized PoseArray of true joints."""
        self._append(self._truth, cdr)

    def pose(self, cdr: bytes) -> None:
        """A serialized PoseStamped of the camera."""
        self._append(self._poses, cdr)

    def _append(self, store: list[bytes], cdr: bytes) -> None:
        store.append(cdr)
        if not self.forecasts:
            del store[:-MAX_BEFORE]

    def forecast(self, forecast: Forecast, receipt_ns: int, epoch: int) -> None:
        """A forecast and when it was received."""
        self.forecasts.append((forecast, receipt_ns, epoch))
        stamp = forecast.stamp_ns
        cdr = self._waiting.get(stamp)
        if cdr is None or (self._pictures and abs(stamp - self._pictures[-1][0]) < 0.95e9 / self.picture_rate_hz):
            return
        message = deserialize_message(cdr, self.image_type)
        data = bytes(message.data) if self.image_type is CompressedImage else _encode(message)
        if data:
            self._pictures.append((stamp, data))

    def run(self, words: dict[str, Any]) -> Run:
        """The run so far; forecasts of another model than the newest one are left out."""
        kept = self.forecasts
        if kept:
            newest = kept[-1][0]
            same = (newest.positions.shape, newest.model_id)
            kept = [k for k in kept if (k[0].positions.shape, k[0].model_id) == same]
        values = [forecast for forecast, _, _ in kept]
        last = values[-1] if values else None
        steps, joints = last.positions.shape[:2] if last else (0, 0)
        truth = [(read_stamp(cdr), deserialize_message(cdr, PoseArray).poses) for cdr in self._truth]
        points = max((len(poses) for _, poses in truth), default=0)
        truth = [(at, poses) for at, poses in truth if len(poses) == points]
        places = [[(p.position.x, p.position.y, p.position.z) for p in poses] for _, poses in truth]
        return Run(
            stamp_ns=np.array([f.stamp_ns for f in values], np.int64),
            receipt_ns=np.array([receipt for _, receipt, _ in kept], np.int64),
            positions=_stack([f.positions for f in values], steps, joints, 3),
            sigma=_stack([f.sigma for f in values], steps, joints),
            present=_stack([f.present for f in values], joints, 3),
            weight=np.array([f.guidance_weight for f in values], np.float32),
            age_s=np.array([f.guidance_age_s for f in values], np.float32),
            surprise=np.array([f.surprise for f in values], np.float32),
            epoch=np.array([epoch for _, _, epoch in kept], np.int64),
            truth_ns=np.array([at for at, _ in truth], np.int64),
            truth=_stack(places, points, 3),
            pose_ns=np.array([read_stamp(cdr) for cdr in self._poses], np.int64),
            pose=np.array([_matrix(cdr) for cdr in self._poses], np.float64).reshape(len(self._poses), 4, 4),
            picture_ns=np.array([at for at, _ in self._pictures], np.int64),
            pictures=[data for _, data in self._pictures],
            begins_ns=np.array(self.begins_ns, np.int64),
            joint_names=last.joint_names if last else (),
            step_s=last.step_s if last else 0.0,
            camera=self.camera,
            metric=all(f.metric for f in values),
            model_id=last.model_id if last else "",
            domain=last.domain if last else "",
            words=words,
        )


def _stack(items: list[Any], *shape: int) -> np.ndarray:
    """float32 [N, *shape], also when N or a size is 0."""
    return np.array(items, np.float32).reshape(len(items), *shape)


def _encode(message: Image) -> bytes:
    """A raw image as JPEG, made smaller if it is large; empty for an image that can not be read."""
    try:
        rgb = to_rgb(message)
    except ImageError:
        return b""
    scale = MAX_PICTURE_WIDTH / rgb.shape[1]
    if scale < 1:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _matrix(cdr: bytes) -> np.ndarray:
    """A serialized pose as [4, 4] world_from_camera; NaN where the quaternion has length 0."""
    pose = deserialize_message(cdr, PoseStamped).pose
    q = np.array([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w])
    x, y, z, w = q / (np.linalg.norm(q) or np.nan)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = [pose.position.x, pose.position.y, pose.position.z]
    return matrix
