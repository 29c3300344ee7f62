"""A controller without a model: it knows the simulator's task and drives to it, so that everything around a controller
can be tested with real processes. Run as `python -m scripted_commander`; its node is called controller.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from ros_kit import LATCHED
from std_msgs.msg import Float32, String
from std_srvs.srv import SetBool

from thinkjepa_ros.bridge.ledger import Ledger
from thinkjepa_ros.bridge.lifecycle import LoadingNode, run
from thinkjepa_ros.bridge.messages import stamp_ns
from thinkjepa_ros.bridge.plans import plan_to_message
from thinkjepa_ros.bridge.reports import Picture, status_message
from thinkjepa_ros.data.sim.tasks import Task, draw_task
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.msg import Plan as PlanMsg
from thinkjepa_ros.values import Plan


def waypoints(task: Task) -> list[tuple[np.ndarray, float, float]]:
    """(where to go [3], closedness, how long to stay there in s) for a task; nothing is looked at on the way."""
    if task.goal is not None:
        return [(task.goal, 0.0, 99.0)]
    cube, tray = task.cube_xy[task.cube], np.array(task.look.tray_xy[task.tray])
    return [
        (np.array([*cube, 0.12]), 0.0, 0.2), (np.array([*cube, 0.016]), 0.0, 0.2), (np.array([*cube, 0.016]), 1.0, 0.6),
        (np.array([*cube, 0.13]), 1.0, 0.1), (np.array([*tray, 0.13]), 1.0, 0.3), (np.array([*tray, 0.05]), 1.0, 0.2),
        (np.array([*tray, 0.05]), 0.0, 0.4), (np.array([*tray, 0.15]), 0.0, 99.0),
    ]  # fmt: skip


class Commander(LoadingNode):
    def __init__(self) -> None:
        super().__init__("controller", automatically_declare_parameters_from_overrides=True)
        if not self.has_parameter("autostart"):
            self.declare_parameter("autostart", True)
        self._enabled, self._task, self._place = False, None, None
        self._stage, self._since = 0, None
        self._twists = self.create_publisher(TwistStamped, "command/twist", 1)
        self._grips = self.create_publisher(Float32, "command/gripper", 1)
        self._plans = self.create_publisher(PlanMsg, "~/plan", 1)
        self._statuses = self.create_publisher(NodeStatus, "~/status", LATCHED)
        self.create_subscription(String, "simulator/outcome", self._on_outcome, LATCHED)
        self.create_subscription(PoseStamped, "ee_pose", self._on_pose, 5)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_timer(0.05, self._command)
        self.create_timer(0.5, self._tell)

    def load(self):
        return None

    def adopt(self, model):
        pass

    def start(self):
        self._enabled = False

    def stop(self):
        self._enabled = False

    def release(self):
        pass

    def _on_outcome(self, message):
        outcome = json.loads(message.data)
        named = outcome["kind"], outcome["seed"], outcome["epoch"]
        if self._task is None or named != self._task[0]:
            self._task, self._stage, self._since = (named, waypoints(draw_task(*named[:2]))), 0, None

    def _on_pose(self, message):
        p = message.pose.position
        self._place = np.array([p.x, p.y, p.z]), stamp_ns(message.header.stamp)

    def _on_enable(self, request, response):
        ready = self._task is not None and self._place is not None and self.label == "active"
        self._enabled = bool(request.data and ready)
        response.success, response.message = bool(ready or not request.data), "" if ready else "nothing is known yet"
        return response

    def _command(self):
        if not self._enabled:
            return
        place, ns = self._place
        target, closedness, stay = self._task[1][self._stage]
        away = target - place
        if np.abs(away).max() < 0.012 and self._since is None:
            self._since = ns
        if self._since is not None and (ns - self._since) * 1e-9 > stay:
            self._stage, self._since = self._stage + 1, None
        velocity = np.clip(3.0 * away, -0.25, 0.25)
        twist = TwistStamped()
        twist.header.stamp, twist.header.frame_id = self.get_clock().now().to_msg(), "base_link"
        twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z = map(float, velocity)
        self._twists.publish(twist)
        self._grips.publish(Float32(data=closedness))
        actions = np.array([[*(velocity * 0.2), closedness]] * 5, np.float32)
        plan = Plan(actions, 0.5, 0.7, np.array([0.5], np.float32), "policy", ns, 0.2)
        self._plans.publish(plan_to_message(plan, "base_link", planning_s=0.001, model_id="script", trained=True))

    def _tell(self):
        state = NodeStatus.RUNNING if self.label == "active" else NodeStatus.INACTIVE
        words = "enabled" if self._enabled else "disabled"
        picture = Picture(state, words, "script", True, Ledger().counts(), 0, 0, "")
        self._statuses.publish(status_message(picture, self.get_clock().now().to_msg()))


if __name__ == "__main__":
    sys.exit(run(Commander))
