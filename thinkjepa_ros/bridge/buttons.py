"""What people say to a controller: the emergency stop (a topic), enable and reset (services). Alive in every state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from ..control.watch import Watch


class Buttons:
    """pressed: called after each, so that the status can tell. label: lifecycle state of the node.

    A stop must be heard whatever its publisher offers. Best effort matches every publisher; where one offers to repeat
    what was lost, or to tell what was pressed before we came, `match` takes that up, too.
    """

    def __init__(self, node: Node, watch: Watch, label: Callable[[], str], pressed: Callable[[], None]) -> None:
        self._node, self._watch, self._label, self._pressed = node, watch, label, pressed
        self._topic = node.resolve_topic_name("e_stop")
        self._heard: dict[tuple[Any, Any], Any] = {}
        self._listen(ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
        serve: Any = node.create_service
        serve(SetBool, "~/enable", self._on_enable)
        serve(Trigger, "~/reset_e_stop", self._on_reset)

    def _listen(self, reliability: ReliabilityPolicy, durability: DurabilityPolicy) -> None:
        if (reliability, durability) not in self._heard:
            profile = QoSProfile(depth=10, reliability=reliability, durability=durability)
            subscribe: Any = self._node.create_subscription
            self._heard[reliability, durability] = subscribe(Bool, "e_stop", self._on_e_stop, profile)

    def match(self) -> None:
        """Call it now and then: listen as each publisher of the stop offers."""
        try:
            publishers = self._node.get_publishers_info_by_topic(self._topic)
        except RuntimeError:  # of rclpy, while the graph changes; best effort hears the button meanwhile
            return
        for publisher in publishers:
            offered = publisher.qos_profile
            if offered.reliability == ReliabilityPolicy.RELIABLE:
                self._listen(offered.reliability, offered.durability)

    def _on_e_stop(self, message: Bool) -> None:
        self._watch.emergency_stop(bool(message.data))
        self._pressed()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if not request.data:
            self._watch.disable()
            response.success, response.message = True, "the controller is disabled"
        elif self._label() != "active":
            response.message = f"the controller is {self._label()}; activate it first"
        else:
            response.message = self._watch.enable()
            response.success = not response.message
        self._pressed()
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = self._watch.reset()
        response.success = not response.message
        self._pressed()
        return response
