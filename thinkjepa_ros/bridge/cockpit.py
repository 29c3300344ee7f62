"""All that a controller has between activation and deactivation: the robot's state, the camera's place, what is wanted,
and the drive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from ..control.drive import Drive
from ..control.watch import Watch
from .camera_place import CameraPlace
from .command_output import CommandOutput
from .control_parameters import limits_of
from .robot_input import RobotInput, make_arm
from .wishes import Wishes


class Cockpit:
    """Subscribes and begins to drive (to rest, until there is a plan). Raises ValueError where it cannot.

    complain: told in words what is wrong with a message. crashed: of an exception that ended the drive.
    """

    def __init__(
        self,
        node: Node,
        values: Any,
        watch: Watch,
        output: CommandOutput,
        complain: Callable[[str], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        get = values.__getitem__
        limits, arm = limits_of(values), make_arm(get)
        self.place = CameraPlace(node, get)
        self.drive = Drive(limits, watch, output.send)
        self.robot = RobotInput(node, get, watch, self.drive, arm)
        self.wishes = Wishes(node, get("image_transport") == "compressed", complain)
        output.joints = lambda: self.robot.joints
        self.drive.start(crashed)

    def forget(self, reason: str) -> None:
        """The clock jumped: nothing that was measured holds, no plan either."""
        self.robot.forget()
        self.place.forget()
        self.drive.hold(reason)

    def close(self) -> None:
        """Stop listening. (The drive was closed before.)"""
        for part in (self.robot, self.place, self.wishes):
            part.close()

    @property
    def stopped(self) -> str:
        """Why the robot is kept from moving, in words; empty while it may move."""
        report = self.drive.report
        return "; ".join(filter(None, ("" if report is None else report.stopped, self.robot.trouble)))

    def no_plan(self, reason: str) -> None:
        """There is no plan to follow. What is wrong with the messages that it needs goes before `reason`."""
        self.drive.hold(f"no plan: {self.place.trouble or self.robot.trouble or reason}")
