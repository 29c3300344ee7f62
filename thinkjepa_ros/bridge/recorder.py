"""Collects messages during a run and makes a `Run` of them. Messages that are only needed later stay serialized."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from thinkjepa_ros.bridge.images import ImageError, to_rgb
from thinkjepa_ros.bridge.stamps import read_stamp
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.evaluation.score import NoTruthError
from thinkjepa_ros.evaluation.sightings import Sightings
from thinkjepa_ros.values import Camera, Forecast

#: Images wait this long for the forecast that is made from them.
MAX_WAITING, MAX_WAITING_BYTES = 60, 64 << 20
#: How much truth is kept from before the first forecast.
BEFORE_NS = 10_000_000_000
MAX_PICTURE_WIDTH = 960


@dataclass
class Recorder:
    """Everything of a run that is kept. image_type: Image or CompressedImage; picture_rate_hz: at most so many.

    sightings: truth and camera poses, to be filled by whoever receives them.
    """

    image_type: Any
    picture_rate_hz: float
    sightings: Sightings
    camera: Camera | None = None
    begins_ns: list[int] = field(default_factory=list)
    forecasts: list[tuple[Forecast, int, int]] = field(default_factory=list)  # with receipt in ns and epoch
    _waiting: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _pictures: list[tuple[int, bytes]] = field(default_factory=list)

    def image(self, cdr: bytes) -> None:
        """A serialized image; it is kept if a forecast of the same stamp comes soon and a picture is due."""
        self._waiting[read_stamp(cdr)] = cdr
        while len(self._waiting) > 1 and (
            len(self._waiting) > MAX_WAITING or len(self._waiting) * len(cdr) > MAX_WAITING_BYTES
        ):
            self._waiting.popitem(last=False)

    def trim(self) -> None:
        """Before the first forecast only the truth of the last seconds can matter: let go of what is older."""
        if not self.forecasts and self.sightings.newest_ns is not None:
            self.sightings.forget_before(self.sightings.newest_ns - BEFORE_NS)

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
        truth_ns, truth, pose_ns, pose = self._truth(values, words)
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
            truth_ns=truth_ns,
            truth=truth,
            pose_ns=pose_ns,
            pose=pose,
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

    def _truth(self, values: list[Forecast], words: dict[str, Any]) -> tuple[np.ndarray, ...]:
        """Truth in a frame that does not move, for the joints of the forecasts, and camera poses: as in Run.

        Where that cannot be, everything as it came; why is added to `words`.
        """
        if values and self.sightings.newest_ns is not None:
            try:
                return self.sightings.placed(values[-1].joint_names, values[-1].frame_id, [f.stamp_ns for f in values])
            except NoTruthError as error:
                words["truth"] = str(error)
        return self.sightings.all()


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
