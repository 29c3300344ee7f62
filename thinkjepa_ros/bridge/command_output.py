"""Commands of the guard as messages: a stream of twists, or short joint trajectories, each of which ends at rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float32
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ..control.arm_kinematics import Arm
from ..control.limits import Command
from . import qos
from .messages import NS


class CommandOutput:
    """Publishers of commands; `send` belongs to one thread.

    Not lifecycle publishers: a stop must leave while the node is being deactivated.
    arm: for trajectories, this thread's own; None for twists. Assign `joints`, which says where they are now.
    """

    def __init__(self, node: Node, base_frame: str, arm: Arm | None) -> None:
        self._node, self._base, self._arm = node, base_frame, arm
        self.joints: Callable[[], tuple[float, ...] | None] = lambda: None  #: None where nobody knows
        kind, name = (TwistStamped, "twist") if arm is None else (JointTrajectory, "trajectory")
        self._motion: Any = node.create_publisher(kind, f"command/{name}", qos.RESULTS)
        self._gripper: Any = node.create_publisher(Float32, "command/gripper", qos.RESULTS)
        self.reasons: tuple[str, ...] = ()  #: why the joints do not do all of the last command

    def close(self) -> None:
        for publisher in (self._motion, self._gripper):
            self._node.destroy_publisher(publisher)

    def send(self, command: Command) -> None:
        """Publish it. The gripper is left alone where its closedness was never known."""
        self._motion.publish(self._twist(command) if self._arm is None else self._trajectory(command, self._arm))
        if command.closedness is not None:
            self._gripper.publish(Float32(data=float(command.closedness)))

    def _twist(self, command: Command) -> TwistStamped:
        message = TwistStamped()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._base
        linear = message.twist.linear
        linear.x, linear.y, linear.z = (float(v) for v in command.velocity)
        return message

    def _trajectory(self, command: Command, arm: Arm) -> JointTrajectory:
        """Without points, which means stop, where nobody knows where the joints are."""
        message = JointTrajectory(joint_names=list(arm.joints))
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._base
        joints = self.joints()
        if joints is None:
            return message
        path = arm.trajectory(joints, command)
        self.reasons = tuple(reason.value for reason in path.reasons)
        for point in path.points:
            seconds, nanoseconds = divmod(round(point.age_s * NS), NS)
            message.points.append(
                JointTrajectoryPoint(
                    positions=[float(v) for v in point.positions],
                    velocities=[float(v) for v in point.velocities],
                    time_from_start=Duration(sec=seconds, nanosec=nanoseconds),
                )
            )
        return message
