"""Watches the nodes and says what came of it: forecasts, latencies, counters, truth, pictures.

It changes nothing in the graph. What it saw is in the folder that it writes at the end (evaluation/runs.py); with
`window_s` it also scores forecasts as their truth comes (evaluation/rolling.py) and tells it once a second.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from thinkjepa_ros.bridge.images import ImageError, to_camera
from thinkjepa_ros.bridge.messages import MessageError, forecast_from_message, stamp_ns
from thinkjepa_ros.bridge.parameter import Parameters
from thinkjepa_ros.bridge.qos import IMAGES, LATCHED
from thinkjepa_ros.bridge.recorder import Recorder
from thinkjepa_ros.bridge.replay_parameters import EVALUATOR
from thinkjepa_ros.bridge.score_report import LiveScore
from thinkjepa_ros.bridge.transforms import TransformsError
from thinkjepa_ros.bridge.truth_input import TruthInput, make_sightings
from thinkjepa_ros.evaluation.rolling import Rolling
from thinkjepa_ros.evaluation.runs import Run, plain
from thinkjepa_ros.evaluation.sightings import MAX_KEPT, Sightings
from thinkjepa_ros.msg import Forecast, Guidance, NodeStatus
from thinkjepa_ros.values import Forecast as ForecastValue

#: Live rates and latencies are over the last seconds.
LIVE_S = 5.0
MAX_THOUGHTS = 2000
#: Rates and latencies of a long run are those of at least this many newest forecasts (nine hours at 30 Hz).
MAX_ARRIVALS = 1_000_000


class Evaluator(Node):
    """One executor thread does everything; `save` may be called when it has stopped."""

    def __init__(self) -> None:
        super().__init__("evaluator")
        self.get = Parameters(self, EVALUATOR, lambda changed: None).__getitem__
        self.statuses: dict[str, dict[str, Any]] = {}
        self.thoughts: deque[dict[str, Any]] = deque(maxlen=MAX_THOUGHTS)
        self.refused = 0
        self._began = time.monotonic()
        self._first_forecast: float | None = None
        self._arrivals: list[tuple[float, float]] = []  # monotonic receipt, latency
        self._images = self._count = 0
        self._newest: ForecastValue | None = None

        compressed = self.get("image_transport") == "compressed"
        image_type = CompressedImage if compressed else Image
        self._recorder = Recorder(image_type, self.get("picture_rate_hz"), make_sightings(self.get, kept=None))
        self._score: LiveScore | None = None
        if self.get("window_s") > 0:
            recent = make_sightings(self.get, kept=MAX_KEPT)
            self._score = LiveScore(self, Rolling(recent, self.get("window_s"), self.get("late_s")))
        self._truth = TruthInput(self, self.get, self._stores)
        predictor, thinker = self.get("predictor"), self.get("thinker")
        name = "image/compressed" if compressed else "image"
        if self.get("picture_rate_hz") > 0:
            self.create_subscription(image_type, name, self._on_image, IMAGES, raw=True)
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, IMAGES)
        self.create_subscription(Forecast, f"{predictor}/forecast", self._on_forecast, 30)
        self.create_subscription(Guidance, f"{thinker}/guidance", self._on_guidance, LATCHED)
        for node in (predictor, thinker):
            self.create_subscription(
                NodeStatus, f"{node}/status", lambda status, node=node: self._on_status(node, status), LATCHED
            )
        self.create_subscription(Header, f"{self.get('player')}/loop", self._on_loop, LATCHED)
        self.create_timer(1.0, self._tell, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ---- what comes in

    @property
    def _recording(self) -> bool:
        return self._first_forecast is None or time.monotonic() - self._first_forecast < self.get("record_s")

    def _stores(self) -> Iterable[Sightings]:
        """Who keeps truth and camera poses now."""
        if self._score is not None:
            yield self._score.rolling.sightings
        if self._recording:
            yield self._recorder.sightings

    def _on_image(self, cdr: bytes) -> None:
        self._images += 1
        if self._recording:
            self._recorder.image(cdr)

    def _on_camera_info(self, info: CameraInfo) -> None:
        if self._recorder.camera is None:
            try:
                self._recorder.camera = to_camera(info)
            except ImageError as error:
                self.get_logger().warning(str(error), once=True)

    def _on_loop(self, header: Header) -> None:
        self._recorder.begins_ns.append(stamp_ns(header.stamp))
        if self._score is not None:
            self._score.rolling.sightings.begins_ns.append(stamp_ns(header.stamp))

    def _on_status(self, node: str, status: NodeStatus) -> None:
        told = {name: getattr(status, name) for name in status.get_fields_and_field_types() if name != "header"}
        reasons = dict(zip(told.pop("reasons"), map(int, told.pop("reason_counts")), strict=False))
        self.statuses[node] = {**told, "reasons": reasons, "at": time.monotonic() - self._began}

    def _on_guidance(self, guidance: Guidance) -> None:
        now_ns = self.get_clock().now().nanoseconds
        newest = stamp_ns(guidance.header.stamp)
        self.thoughts.append(
            {
                "stamp_ns": newest,
                "delay_s": (now_ns - newest) * 1e-9,
                "text": guidance.text,
                "instruction": guidance.instruction,
                "model_id": guidance.model_id,
                "trained": guidance.trained,
                "sequence": guidance.sequence,
                "epoch": guidance.epoch,
            }
        )

    def _on_forecast(self, message: Forecast) -> None:
        now_ns, now = self.get_clock().now().nanoseconds, time.monotonic()
        try:
            forecast = forecast_from_message(message)
        except MessageError as error:
            self.refused += 1
            self.get_logger().error(f"refused a forecast: {error}")
            return
        self._count += 1
        latency_s = (now_ns - forecast.stamp_ns) * 1e-9
        self._arrivals.append((now, latency_s))
        if len(self._arrivals) > 2 * MAX_ARRIVALS:
            del self._arrivals[:MAX_ARRIVALS]
        if self._first_forecast is None:
            self._first_forecast = now
        if self._recording:
            self._recorder.forecast(forecast, now_ns, message.epoch)
        self._truth.forecast(forecast.stamp_ns, forecast.frame_id)
        self._newest = forecast
        if self._score is not None:
            self._score.rolling.forecast(forecast, message.epoch, latency_s, now)

    # ---- what goes out

    def _live(self) -> dict[str, Any]:
        now = time.monotonic()
        recent = [latency for at, latency in self._arrivals[-500:] if now - at < LIVE_S]
        told: dict[str, Any] = {
            "t": round(now - self._began, 2),
            "images": self._images,
            "forecasts": self._count,
            "rate_hz": len(recent) / min(LIVE_S, max(now - (self._first_forecast or now), 0.2)),
            "latency_s": _quantiles(recent),
            "statuses": self.statuses,
            "thoughts": len(self.thoughts),
            "thought": self.thoughts[-1] if self.thoughts else None,
            "loops": len(self._recorder.begins_ns),
        }
        newest = self._newest
        if newest is not None:
            told |= {
                "weight": newest.guidance_weight,
                "age_s": newest.guidance_age_s,
                "model_id": newest.model_id,
                "domain": newest.domain,
                "metric": newest.metric,
            }
        return told

    def _tell(self) -> None:
        self._truth.look_up()
        self._recorder.trim()
        if self._score is not None:
            self._score.tick(time.monotonic(), "" if self._newest is None else self._newest.model_id)
        if self.get("live"):
            print(json.dumps(plain(self._live())), flush=True)

    def run(self) -> Run:
        """Everything so far."""
        arrivals = np.array(self._arrivals).reshape(-1, 2)
        several = len(arrivals) > 1
        words = self._live() | {
            "thoughts": list(self.thoughts),
            "latency_s": _quantiles(arrivals[:, 1]),
            "rate_hz": (len(arrivals) - 1) / np.ptp(arrivals[:, 0]) if several else 0.0,
            "longest_gap_s": np.diff(arrivals[:, 0]).max() if several else None,
            "recorded_s": self.get("record_s"),
            "refused_forecasts": self.refused,
        }
        if self._score is not None:
            self._score.rolling.turn(time.monotonic())
            words["score"] = self._score.rolling.total()
        return self._recorder.run(plain(words))

    def save(self) -> None:
        """Write the results, if a folder was named."""
        if self.get("out"):
            self.run().save(Path(self.get("out")))


def _quantiles(values: Any) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    p50, p99, worst = np.quantile(values, [0.5, 0.99, 1.0])
    return {"p50": float(p50), "p99": float(p99), "max": float(worst)}


def main(args: list[str] | None = None) -> int:
    """Entry point: watches until SIGINT or SIGTERM, then writes its results; 1 with a sentence if it can not."""
    rclpy.init(args=args)
    evaluator: Evaluator | None = None
    try:
        evaluator = Evaluator()
        rclpy.spin(evaluator)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (InvalidParameterTypeException, InvalidParameterValueException, TransformsError) as error:
        print(f"evaluator: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = _finish(evaluator)
        rclpy.try_shutdown()
    return status


def _finish(evaluator: Evaluator | None) -> int:
    if evaluator is None:
        return 0
    try:
        evaluator.save()
    except OSError as error:
        print(f"evaluator: the results could not be written: {error}", file=sys.stderr)
        return 1
    finally:
        evaluator.destroy_node()
    return 0


if __name__ == "__main__":
    sys.exit(main())
