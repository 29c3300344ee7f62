"""Knows whether the predictor has answered an image, so that a replay can wait for it and repeat bit for bit."""

from __future__ import annotations

import threading

from rclpy.node import Node

from thinkjepa_ros.bridge.qos import LATCHED
from thinkjepa_ros.bridge.stamps import read_stamp
from thinkjepa_ros.msg import Forecast, NodeStatus


class Answers:
    """What the predictor has made of the images so far: a forecast, or a status that accounts for all of them.

    predictor: name of its node. The node given must be spinning in another thread than the one that waits.
    """

    def __init__(self, node: Node, predictor: str) -> None:
        self._changed = threading.Condition()
        self._stamp_ns = 0
        self._done = self._before = -1
        node.create_subscription(Forecast, f"{predictor}/forecast", self._on_forecast, 10, raw=True)
        node.create_subscription(NodeStatus, f"{predictor}/status", self._on_status, LATCHED)

    def _on_forecast(self, cdr: bytes) -> None:
        with self._changed:
            self._stamp_ns = read_stamp(cdr)
            self._changed.notify_all()

    def _on_status(self, status: NodeStatus) -> None:
        with self._changed:
            self._done = status.used + status.superseded + status.refused
            if self._before < 0:
                self._before = status.received  # with those still pending, which will be done too
            self._changed.notify_all()

    def ready(self, timeout_s: float) -> bool:
        """Wait for the predictor's first status, from which its accounts are counted; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._before >= 0, timeout_s)

    def wait(self, stamp_ns: int, sent: int, timeout_s: float) -> bool:
        """Wait until the image of `stamp_ns`, the `sent`-th one published, is answered; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stamp_ns == stamp_ns or self._done - self._before >= sent, timeout_s
            )
