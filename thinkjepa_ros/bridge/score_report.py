"""What an evaluator says about forecasts while they come: numbers on ~/metrics, one verdict on /diagnostics.

Both are diagnostic_msgs/DiagnosticArray, which rqt, diagnostic_aggregator and PlotJuggler read.
"""

from __future__ import annotations

from collections.abc import Mapping

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from thinkjepa_ros.evaluation.rolling import Level, Rolling, Snapshot

from . import qos


def metrics_message(snapshot: Snapshot, stamp: Time, node: str) -> DiagnosticArray:
    """One status per method (its errors over the window), one for timing. Values are numbers in metres, seconds, Hz;
    "nan" is unknown.
    """
    rows = {
        name: {"ade_m": row.ade, "fde_m": row.fde, "ade_moving_m": row.ade_moving}
        for name, row in snapshot.rows.items()
    }
    level = bytes([snapshot.level])
    return _array(
        stamp,
        *(_status(level, f"{node}: {name}", snapshot.words, values) for name, values in rows.items()),
        _status(level, f"{node}: timing", snapshot.words, _timing(snapshot)),
    )


def verdict_message(snapshot: Snapshot, stamp: Time, node: str, hardware_id: str) -> DiagnosticArray:
    """One status with everything. hardware_id: id of the model."""
    values: dict[str, object] = {}
    for name, row in snapshot.rows.items():
        for what, metres in (("ADE", row.ade), ("FDE", row.fde), ("ADE of what moves", row.ade_moving)):
            values[f"{name} {what} (cm)"] = f"{100 * metres:.2f}"
    values |= {name: value if isinstance(value, int) else f"{value:.3f}" for name, value in _timing(snapshot).items()}
    values |= {f"not scored ({why})": count for why, count in snapshot.left_out.items()}
    status = _status(bytes([snapshot.level]), f"{node}: forecasts", snapshot.words, values)
    status.hardware_id = hardware_id
    return _array(stamp, status)


def _timing(snapshot: Snapshot) -> dict[str, float | int]:
    latency = snapshot.latency_s or dict.fromkeys(("p50", "p95", "p99", "max"), float("nan"))
    return {
        **{f"latency_{name}_s": value for name, value in latency.items()},
        "rate_hz": snapshot.rate_hz,
        "guidance_weight": snapshot.weight,
        "guidance_age_s": snapshot.age_s,
        "window_s": snapshot.window_s,
        "scored_in_window": snapshot.scored,
        "moving_in_window": snapshot.moving,
        "received": snapshot.received,
        "scored": snapshot.scored_total,
        "waiting_for_truth": snapshot.waiting,
        "not_scored": sum(snapshot.left_out.values()),
    }


def _status(level: bytes, name: str, words: str, values: Mapping[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=words, values=pairs)


def _array(stamp: Time, *statuses: DiagnosticStatus) -> DiagnosticArray:
    message = DiagnosticArray(status=list(statuses))
    message.header.stamp = stamp
    return message


class LiveScore:
    """Publishes what a Rolling says: numbers on ~/metrics, a verdict on /diagnostics; a verdict that gets worse is
    logged.
    """

    def __init__(self, node: Node, rolling: Rolling) -> None:
        self.rolling, self._node, self._name = rolling, node, node.get_fully_qualified_name().lstrip("/")
        self._level = Level.OK
        self._metrics = node.create_publisher(DiagnosticArray, "~/metrics", qos.RESULTS)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)

    def tick(self, now_s: float, model_id: str) -> Snapshot:
        """Score what can be scored and tell it; to be called once a second. now_s: monotonic."""
        self.rolling.turn(now_s)
        snapshot = self.rolling.snapshot(now_s)
        stamp = self._node.get_clock().now().to_msg()
        self._metrics.publish(metrics_message(snapshot, stamp, self._name))
        self._diagnostics.publish(verdict_message(snapshot, stamp, self._name, model_id))
        if snapshot.level != self._level:
            self._level = snapshot.level
            # two calls, since rclpy ties a line of code to one severity
            if snapshot.level is Level.OK:
                self._node.get_logger().info(snapshot.words)
            else:
                self._node.get_logger().warning(snapshot.words)
        return snapshot
