"""The predictor node: camera images and guidance in, 3-D hand trajectories out, at camera rate.

The callbacks only file what arrives; one worker thread converts, encodes and forecasts, always from the newest image
and the images that lie on the model's time grid before it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from geometry_msgs.msg import PoseArray
from sensor_msgs.msg import Image
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from thinkjepa_ros.bridge import messages, parameters, qos
from thinkjepa_ros.bridge.drawings import TrajectoryMessage, marker_message
from thinkjepa_ros.bridge.guidance import GuidanceBox
from thinkjepa_ros.bridge.images import from_rgb
from thinkjepa_ros.bridge.ledger import Entry, Fate
from thinkjepa_ros.bridge.lifecycle import run
from thinkjepa_ros.bridge.node_base import CameraNode
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.bridge.window import BrokenImage, FrameWindow
from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.evaluation.draw import assumed_camera, draw_forecast
from thinkjepa_ros.msg import Forecast as ForecastMsg
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.stream.frames import Gap
from thinkjepa_ros.stream.slot import NewestWins
from thinkjepa_ros.values import Camera, Forecast, Guidance

if TYPE_CHECKING:
    from thinkjepa_ros.jepa.forecaster import Forecaster


class PredictorNode(CameraNode):
    """See docs/parameters.md for its parameters and msg/Forecast.msg for what it says."""

    table = parameters.PREDICTOR
    task = "forecast"
    explained = (CheckpointError, FileNotFoundError, ValueError)

    def __init__(self, **kwargs: Any) -> None:
        """kwargs: those of rclpy.node.Node."""
        super().__init__("predictor", **kwargs)
        self._forecaster: Forecaster | None = None
        self._slot: NewestWins[Entry] = NewestWins()
        self._window: FrameWindow | None = None
        self._guidance: GuidanceBox | None = None
        self._guidance_age_s = float("nan")
        self._anchor: tuple[int, np.ndarray] | None = None
        self._subscriptions_active: list[Any] = []
        self._overlay_at = 0.0

    # ---- life cycle

    @property
    def period_s(self) -> float:
        return 1.0 / self.parameters["max_rate_hz"]

    @property
    def hang_s(self) -> float:
        return self.parameters["hang_timeout_s"]

    def load(self) -> Forecaster:
        import cv2
        import torch

        from thinkjepa_ros.jepa.forecaster import Forecaster

        torch.set_num_threads(self.parameters["cpu_threads"])
        cv2.setNumThreads(self.parameters["cpu_threads"])
        forecaster = Forecaster.load(
            model_folder(self.parameters["model"]),
            self.parameters["device"],
            self.parameters["dtype"],
            self.parameters["compile"],
        )
        forecaster.warm_up()
        self.get_logger().info(f"{forecaster.model_id} computes on {forecaster.words}")
        return forecaster

    def adopt(self, model: Forecaster) -> None:
        self._forecaster = model
        self.model_id, self.trained = model.model_id, model.trained
        self._guidance = GuidanceBox(model.check_guidance)
        self._trajectory = TrajectoryMessage()
        self._forecast_pub = self.advertise(ForecastMsg, "~/forecast", qos.RESULTS)
        self._trajectory_pub = self.advertise(MultiDOFJointTrajectory, "~/trajectory", qos.RESULTS)
        self._markers_pub = self.advertise(MarkerArray, "~/markers", qos.RESULTS)
        self._overlay_pub = self.advertise(Image, "~/overlay", qos.RESULTS)

    def prepare(self) -> None:
        assert self._forecaster is not None and self._guidance is not None
        self._slot = NewestWins()
        self._window = FrameWindow(self._forecaster, self.ledger, self.notice)
        self._anchor = None
        self._guidance.clear()
        self._subscriptions_active = [
            self.create_subscription(GuidanceMsg, "thinker/guidance", self._on_guidance, qos.LATCHED),
            self.create_subscription(PoseArray, "joints_observed", self._on_joints, qos.OBSERVATIONS),
        ]

    def stop(self) -> None:
        for subscription in self._subscriptions_active:
            self.destroy_subscription(subscription)
        self._subscriptions_active = []
        super().stop()

    def release(self) -> None:
        super().release()
        self._forecaster = self._window = None

    def wake(self) -> None:
        self._slot.close()

    def pending(self) -> list[Entry]:
        return self._slot.clear()

    # ---- callbacks (executor thread)

    def on_frame(self, entry: Entry) -> None:
        assert self._window is not None
        self._window.add(entry)
        displaced = self._slot.put(entry)
        if displaced is not None:
            self.ledger.settle(displaced, Fate.SUPERSEDED)

    def on_jump(self, last_ns: int | None, backward: bool) -> None:
        self.ledger.settle_pending(self._slot.clear(), Fate.SUPERSEDED)
        self._anchor = None
        if self._window is not None and self._guidance is not None:
            self._window.clear()
            self._guidance.jump(last_ns, backward)

    def _on_guidance(self, message: GuidanceMsg) -> None:
        assert self._guidance is not None and self._forecaster is not None
        try:
            guidance = messages.guidance_from_message(message)
        except messages.MessageError as error:
            self._guidance.refuse("malformed")
            refusal: str | None = str(error)
        else:
            refusal = self._guidance.offer(guidance, self.input.newest_ns)
        if refusal is not None:
            self.get_logger().warning(f"guidance refused: {refusal}", throttle_duration_sec=1.0)
            self.notice(f"guidance refused: {refusal}")
        elif not self._forecaster.knows_thinker(message.model_id):
            # Of the right shape, and still another language: it may make forecasts worse.
            words = f"trained with the thinker {self._forecaster.thinker}, guided by {message.model_id}"
            self.get_logger().warning(f"{words}: see `thinkjepa train forecast`", once=True)

    def _on_joints(self, message: PoseArray) -> None:
        assert self._window is not None and self._forecaster is not None
        frame_id = self._window.frame_id
        if frame_id is None:
            return
        try:
            joints = messages.joints_from_poses(message, len(self._forecaster.joint_names), frame_id)
        except messages.MessageError as error:
            self.get_logger().warning(f"observed joints refused: {error}", throttle_duration_sec=5.0)
            self.notice(f"observed joints refused: {error}")
            return
        self._anchor = (messages.stamp_ns(message.header.stamp), joints)

    # ---- worker thread

    def loop(self) -> None:
        assert self.worker is not None
        while self.pacer.wait():
            entry = self._slot.get()
            if entry is None:
                return
            self.pacer.begin()
            if time.monotonic() - entry.arrived > self.parameters["input_timeout_s"]:
                self._refuse(entry, "stale", "an image waited longer than input_timeout_s for its turn")
                continue
            assert self._window is not None
            chosen = self._window.affordable(entry)
            if chosen is not entry:
                self.ledger.settle(entry, Fate.SUPERSEDED)
            try:
                with self.worker.busy():
                    self._turn(chosen)
            except BrokenImage as error:
                self._refuse(chosen, "bad_image", f"image refused: {error}")
                self.get_logger().warning(f"image refused: {error}", throttle_duration_sec=1.0)
            except Exception as error:  # out of memory, a driver, values that are not finite: the next image may work
                if chosen.fate is not Fate.USED:
                    self.ledger.settle(chosen, Fate.REFUSED, "model_error")
                if not self.pacer.closed:
                    self.trouble(f"no forecast: {type(error).__name__}: {error}")

    def _refuse(self, entry: Entry, reason: str, words: str) -> None:
        """The newest image is not to be used, neither now nor in a later window."""
        assert self._window is not None
        self._window.discard(entry)
        self.ledger.settle(entry, Fate.REFUSED, reason)
        self.notice(words)

    def _turn(self, entry: Entry) -> None:
        assert self._window is not None
        stamps = self._window.end_at(entry, self._camera)
        if entry.epoch != self.input.epoch:  # the clock jumped meanwhile
            self.ledger.settle_pending([entry], Fate.SUPERSEDED)
        elif isinstance(stamps, Gap):
            self.warming = stamps.reason
            self.ledger.settle(entry, Fate.USED)
            self.notice()
        else:
            self.warming = ""
            self._forecast(entry, stamps)
        entry.rgb = None

    def _camera(self, width: int, height: int) -> Camera | None:
        """From CameraInfo, else from the parameters, else unknown."""
        fx, fy, cx, cy = (self.parameters[f"camera_{name}_px"] for name in ("fx", "fy", "cx", "cy"))
        if self.input.camera is not None or fx == 0.0:
            return self.input.camera
        return Camera(width, height, fx, fy or fx, cx or (width - 1) / 2, cy or (height - 1) / 2)

    def _forecast(self, entry: Entry, stamps: Sequence[int]) -> None:
        assert self._guidance is not None and self._forecaster is not None
        self._forecaster.guide(self._guidance.current(entry.stamp_ns))
        forecast = self._forecaster.forecast(stamps, self._anchor_for(entry.stamp_ns))
        guidance = self._forecaster.guidance if forecast.guidance_weight > 0.0 else None
        if self.pacer.closed or entry.epoch != self.input.epoch:
            self.ledger.settle_pending([entry], Fate.SUPERSEDED)  # the result belongs to a life that is over
            return
        self._publish(entry, forecast, guidance)
        self._guidance_age_s = forecast.guidance_age_s
        if guidance is not None:
            self._guidance.used(guidance)
        self.ledger.settle(entry, Fate.USED)
        self.success()

    def _anchor_for(self, stamp_ns: int) -> np.ndarray | None:
        anchor, tolerance_s = self._anchor, self.parameters["anchor_topic_timeout_s"]
        if anchor is None or tolerance_s == 0.0 or abs(stamp_ns - anchor[0]) > tolerance_s * 1e9:
            return None
        return anchor[1] if bool(np.isfinite(anchor[1]).any()) else None

    def _publish(self, entry: Entry, forecast: Forecast, guidance: Guidance | None) -> None:
        latency_s = (self.get_clock().now().nanoseconds - entry.stamp_ns) * 1e-9
        message = messages.forecast_to_message(
            forecast,
            guidance_sequence=0 if guidance is None else guidance.sequence,
            latency_s=latency_s,
            epoch=entry.epoch,
            trained=self.trained,
        )
        self._forecast_pub.publish(message)
        self.ledger.publish(latency_s)
        if self._trajectory_pub.get_subscription_count():
            self._trajectory_pub.publish(self._trajectory(message.header, forecast))
        if self._markers_pub.get_subscription_count():
            self._markers_pub.publish(marker_message(message.header, forecast))
        now = time.monotonic()
        if (
            self._overlay_pub.get_subscription_count()
            and now - self._overlay_at >= 1.0 / self.parameters["overlay_max_rate_hz"]
        ):
            self._overlay_at = now
            self._overlay_pub.publish(from_rgb(self._draw(entry, forecast, guidance), message.header))

    def _draw(self, entry: Entry, forecast: Forecast, guidance: Guidance | None) -> np.ndarray:
        assert entry.rgb is not None and self._forecaster is not None
        height, width = entry.rgb.shape[:2]
        camera = self._camera(width, height) or assumed_camera(self._forecaster.camera, width, height)
        return draw_forecast(entry.rgb, camera, forecast, text="" if guidance is None else guidance.text)

    # ---- telling

    def picture_extras(self) -> dict[str, Any]:
        if self._guidance is None:
            return {}
        return {"guidance": self._guidance.counts(), "guidance_age_s": self._guidance_age_s}


def main(args: list[str] | None = None) -> int:
    """Run the predictor until SIGINT or SIGTERM."""
    return run(PredictorNode, args)


if __name__ == "__main__":
    sys.exit(main())
