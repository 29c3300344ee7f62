"""What is wanted of the robot, from topics: a goal image, an instruction; and whom to ask when there is no way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from ..values import Camera
from . import qos
from .common_parameters import MAX_INSTRUCTION
from .images import ImageError, to_rgb

if TYPE_CHECKING:
    from ..control.controller import Controller


class Wishes:
    """Holds the newest goal image and instruction; `show` hands them to the controller, in its thread.

    complain: told in words what is wrong with a message. A goal image without data takes the goal back.
    """

    def __init__(self, node: Node, compressed: bool, complain: Callable[[str], None]) -> None:
        self._node, self._complain = node, complain
        self._goal: np.ndarray | None = None
        self._shown: tuple[Any, Camera | None] | None = None
        self.instruction = ""
        kind, topic = (CompressedImage, "goal_image/compressed") if compressed else (Image, "goal_image")
        subscribe: Any = node.create_subscription
        self._subscriptions = [
            subscribe(kind, topic, self._on_goal, qos.LATCHED),
            subscribe(String, "instruction", self._on_instruction, qos.LATCHED),
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def show(self, controller: Controller, camera: Camera | None) -> None:
        """camera: the newest calibration, believed of a goal image of the same size. Worker thread."""
        goal = self._goal
        fits = goal is not None and camera is not None and goal.shape[:2] == (camera.height, camera.width)
        wanted = (goal, camera if fits else None)
        if self._shown is None or self._shown[0] is not wanted[0] or self._shown[1] != wanted[1]:
            self._shown = wanted
            controller.show_goal(*wanted)
        if controller.instruction != self.instruction:
            controller.instruct(self.instruction)

    def _on_goal(self, message: Any) -> None:
        try:
            self._goal = to_rgb(message) if len(message.data) else None
        except ImageError as error:
            self._goal = None  # what was wanted before is not wanted any more
            self._complain(f"goal image refused, there is no goal now: {error}")

    def _on_instruction(self, message: String) -> None:
        if len(message.data) > MAX_INSTRUCTION:
            self._complain(f"instruction refused: {len(message.data)} characters, {MAX_INSTRUCTION} is the most")
        else:
            self.instruction = message.data


class Asking:
    """Asks the thinker for a thought, at most once per period. Executor thread."""

    def __init__(self, node: Node) -> None:
        self._client: Any = node.create_client(Trigger, "thinker/think")
        self._last_s = -float("inf")
        self.count = 0

    def ask(self, period_s: float) -> str:
        """Ask, unless it is too soon. Returns why nobody could be asked."""
        now = time.monotonic()
        if now - self._last_s < period_s:
            return ""
        self._last_s = now
        if not self._client.service_is_ready():
            return f"nothing beats staying, and there is no thinker to ask (service {self._client.srv_name})"
        self._client.call_async(Trigger.Request())
        self.count += 1
        return ""
