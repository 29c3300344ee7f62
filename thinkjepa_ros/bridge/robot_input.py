"""Where the robot is: the gripper's point and closedness, on the ROS clock for planning and now for the guard.

Everything here runs in the executor thread, save `at` and `joints`, which any thread may ask.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32

from ..control.arm_kinematics import Arm
from ..control.drive import Drive
from ..control.limits import State
from ..control.watch import Input, Watch
from . import qos
from .messages import NS, stamp_ns

_KEPT = 200  # states: 4 s at 50 Hz
_APART_S = 0.1  # the state for an image was measured at most so long before or after it


def make_arm(get: Callable[[str], Any]) -> Arm | None:
    """The arm of the parameters urdf and tip_link; None where nobody needs one. Raises ValueError with the remedy."""
    by_joints = get("state_source") == "joint_states"
    if get("command_type") == "trajectory" and not by_joints:
        raise ValueError("command_type trajectory needs the joints: set state_source to joint_states")
    if not by_joints:
        return None
    if not get("urdf") or not get("tip_link"):
        raise ValueError("state_source joint_states needs the parameters urdf (a file) and tip_link")
    try:
        text = Path(get("urdf")).expanduser().read_text()
    except OSError as error:
        raise ValueError(f"the parameter urdf names a file that cannot be read: {error}") from None
    base = get("base_frame")
    return Arm(text, get("tip_link"), base if f'link name="{base}"' in text else None)


class RobotInput:
    """Tells `watch` and `drive` of every good state; `trouble` says what was wrong with the last one.

    A state that is no number takes the known one away, so that the guard brakes at once. arm: for joint states.
    """

    def __init__(self, node: Node, get: Callable[[str], Any], watch: Watch, drive: Drive, arm: Arm | None) -> None:
        self._node, self._get, self._watch, self._drive, self._arm = node, get, watch, drive, arm
        self._states: deque[tuple[int, np.ndarray]] = deque(maxlen=_KEPT)
        self._closedness: tuple[float, float] | None = None  # value, monotonic seconds of its arrival
        self._joints: tuple[float, ...] | None = None
        self.trouble = ""
        subscribe: Any = node.create_subscription
        self._subscriptions = [subscribe(Float32, "gripper/state", self._on_gripper, qos.OBSERVATIONS)]
        if arm is None:
            self._subscriptions.append(subscribe(PoseStamped, "ee_pose", self._on_pose, qos.OBSERVATIONS))
        else:
            self._subscriptions.append(subscribe(JointState, "joint_states", self._on_joints, qos.OBSERVATIONS))

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def forget(self) -> None:
        """The clock jumped."""
        self._states.clear()
        self._drive.state = None

    def at(self, ns: int) -> np.ndarray | None:
        """x, y, z, closedness, float32 [4], measured nearest to this stamp; None if there is none near enough."""
        near = min(tuple(self._states), key=lambda item: abs(item[0] - ns), default=None)
        return None if near is None or abs(near[0] - ns) > _APART_S * NS else near[1]

    @property
    def joints(self) -> tuple[float, ...] | None:
        """Positions in the order of the arm's joints, None where they are not known."""
        return self._joints

    # ---- callbacks

    def _on_gripper(self, message: Float32) -> None:
        value = float(message.data)
        if math.isfinite(value):
            self._closedness = (min(max(value, 0.0), 1.0), time.monotonic())
        else:
            self._closedness = None
            self._lost("gripper/state is no number")

    def _on_pose(self, message: PoseStamped) -> None:
        frame, p = self._get("base_frame"), message.pose.position
        if message.header.frame_id != frame:
            return self._lost(f"ee_pose is given in {message.header.frame_id!r}; publish it in {frame!r}")
        self._take(stamp_ns(message.header.stamp), (p.x, p.y, p.z), "ee_pose")

    def _on_joints(self, message: JointState) -> None:
        assert self._arm is not None
        places = dict(zip(message.name, message.position, strict=False))
        missing = [name for name in self._arm.joints if name not in places]
        if len(missing) == len(self._arm.joints):  # of another part of the robot
            return
        joints = tuple(float(places.get(name, math.nan)) for name in self._arm.joints)
        if not all(map(math.isfinite, joints)):
            self._joints = None
            return self._lost(f"joint_states has no finite position of {', '.join(missing) or 'all joints'}")
        x, y, z = (float(v) for v in self._arm.pose(joints)[0])
        if self._take(stamp_ns(message.header.stamp), (x, y, z), "joint_states"):
            self._joints = joints

    def _take(self, ns: int, point: tuple[float, float, float], topic: str) -> bool:
        """A point measured at `ns`. False if it does not count."""
        now = time.monotonic()
        if not all(map(math.isfinite, point)):
            self._lost(f"{topic} holds a position that is no number")
            return False
        if ns <= 0:
            self._lost(f"{topic} has no stamp")
            return False
        if self._closedness is None:
            self._lost("nothing has come on gripper/state")
            return False
        if self._states and ns <= self._states[-1][0]:
            return False  # an older one that came late
        age = (self._node.get_clock().now().nanoseconds - ns) / NS
        closedness, arrived = self._closedness
        self._watch.saw(Input.STATE, age if age < 0 else max(age, now - arrived))
        if age < -self._watch.timeouts.future_s:
            return False
        self._states.append((ns, np.array([*point, closedness], np.float32)))
        self._drive.state = State(point, closedness, time.monotonic_ns() - round(max(age, 0.0) * NS))
        self.trouble = ""
        return True

    def _lost(self, words: str) -> None:
        """Nobody knows where the robot is now."""
        self._drive.state, self.trouble = None, words
        self._node.get_logger().warning(f"state refused: {words}", throttle_duration_sec=5.0)
