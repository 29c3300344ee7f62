"""What the simulated robot says: its camera, its joints and its task as ROS messages."""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Float32, Header, String

from ..data.episode import encode_jpeg
from ..values import Camera
from . import qos
from .live_cell import LiveCell, Outcome
from .messages import make_header, to_stamp
from .stamps import message_class

#: Reliable publishers fit every subscriber, and these messages are small.
_STREAM = QoSProfile(depth=5)


def jpeg_message(rgb: np.ndarray, header: Header, quality: int) -> CompressedImage:
    """A JPEG of uint8 RGB [H, W, 3]."""
    return CompressedImage(header=header, format="jpeg", data=array("B", encode_jpeg(rgb, quality, subsample=True)))


def camera_info_message(camera: Camera, header: Header) -> CameraInfo:
    """The intrinsics of a camera as CameraInfo; the inverse of images.to_camera."""
    info = CameraInfo(header=header, width=int(camera.width), height=int(camera.height))
    info.distortion_model = camera.distortion_model
    info.d = [float(v) for v in camera.distortion or (0.0,) * 5]
    info.k = [float(v) for v in camera.matrix.ravel()]
    info.r = [float(v) for v in np.eye(3).ravel()]
    info.p = [float(v) for v in np.hstack([camera.matrix, np.zeros((3, 1))]).ravel()]
    return info


def pose_message(pose: np.ndarray, header: Header) -> PoseStamped:
    """A pose [4, 4] in the frame of the header."""
    message = PoseStamped(header=header)
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(v) for v in pose[:3, 3])
    q.x, q.y, q.z, q.w = (float(v) for v in Rotation.from_matrix(pose[:3, :3]).as_quat())
    return message


def tool_pose(point: np.ndarray) -> np.ndarray:
    """The tool's pose [4, 4] at a point [3]: the gripper always points down, its frame parallel to the base."""
    pose = np.eye(4)
    pose[:3, 3] = point
    return pose


def joint_message(names: tuple[str, ...], positions: np.ndarray, header: Header) -> JointState:
    return JointState(header=header, name=list(names), position=[float(v) for v in positions])


def outcome_message(outcome: Outcome) -> String:
    """JSON, one object."""
    return String(data=json.dumps(asdict(outcome)))


#: tf2_msgs comes with an installed ROS 2 and is no Python wheel.
TF_MESSAGE: Any = message_class("tf2_msgs/msg/TFMessage")


def tf_message(pose: PoseStamped, child: str) -> Any:
    """The transform of a pose: from the frame of its header to `child`. To be called where TF_MESSAGE is there."""
    transform = TransformStamped(header=pose.header, child_frame_id=child)
    at, place = transform.transform.translation, pose.pose.position
    at.x, at.y, at.z = place.x, place.y, place.z
    transform.transform.rotation = pose.pose.orientation
    return TF_MESSAGE(transforms=[transform])


class CellOutputs:
    """The topics of a simulated robot. The publishers may be used in the thread of the simulation.

    node: a lifecycle node; what it publishes goes out only while it is active. outcomes: publisher of the outcome,
    which lives longer than these. settings: values of the parameters of the simulator.
    """

    def __init__(self, node: Any, outcomes: Any, settings: Any) -> None:
        self._node, self._settings, self._outcomes = node, settings, outcomes
        self._all: list[Any] = []
        self._image = self._advertise(CompressedImage, "camera/image/compressed")
        self._info = self._advertise(CameraInfo, "camera/camera_info")
        self._camera_pose = self._advertise(PoseStamped, "camera/pose")
        self._joints = self._advertise(JointState, "joint_states")
        self._tool = self._advertise(PoseStamped, "ee_pose")
        self._grip = self._advertise(Float32, "gripper/state")
        self._goal = self._advertise(CompressedImage, "goal_image/compressed", qos.LATCHED)
        self._instruction = self._advertise(String, "instruction", qos.LATCHED)
        self._tf = self._advertise(TF_MESSAGE, "/tf") if TF_MESSAGE else None
        self._clock = self._advertise(Clock, "/clock") if settings["publish_clock"] else None
        self._told: tuple[int, int, bool] | None = None

    def _advertise(self, kind: Any, topic: str, profile: QoSProfile = _STREAM) -> Any:
        self._all.append(self._node.create_lifecycle_publisher(kind, topic, profile))
        return self._all[-1]

    def destroy(self) -> None:
        """Take the topics away."""
        for publisher in self._all:
            self._node.destroy_lifecycle_publisher(publisher)
        self._all.clear()

    def announce(self, live: LiveCell, ns: int) -> None:
        """Say what the task is. A goal image without data says that there is no goal any more."""
        live.cell.image()  # making a renderer takes a while, for which the simulation must not stand still later
        header = make_header(ns, self._settings["camera_frame"])
        goal = CompressedImage(header=header)
        if live.cell.task.goal is not None:
            goal = jpeg_message(live.cell.goal_image(), header, self._settings["jpeg_quality"])
        self._goal.publish(goal)
        self._instruction.publish(String(data=live.cell.task.instruction))
        self._outcome(live)

    def _outcome(self, live: LiveCell) -> None:
        outcome = live.outcome()
        told = (outcome.epoch, outcome.actions, outcome.success)
        if told != self._told:
            self._told = told
            self._outcomes.publish(outcome_message(outcome))

    def state(self, live: LiveCell, ns: int) -> None:
        """Joints, gripper, clock and outcome."""
        header, state = make_header(ns, self._settings["base_frame"]), live.cell.state()
        if self._clock is not None:
            self._clock.publish(Clock(clock=to_stamp(ns)))
        self._joints.publish(joint_message(live.cell.joint_names(), live.cell.joint_positions(), header))
        self._tool.publish(pose_message(tool_pose(state[:3]), header))
        self._grip.publish(Float32(data=float(state[3])))
        self._outcome(live)

    def image(self, live: LiveCell, ns: int) -> None:
        """The pose and the intrinsics first: they are there when the image comes."""
        settings, rgb = self._settings, live.cell.image()
        pose = pose_message(live.cell.camera_pose(), make_header(ns, settings["base_frame"]))
        header = make_header(ns, settings["camera_frame"])
        self._camera_pose.publish(pose)
        if self._tf is not None:
            self._tf.publish(tf_message(pose, settings["camera_frame"]))
        self._info.publish(camera_info_message(live.cell.camera, header))
        self._image.publish(jpeg_message(rgb, header, settings["jpeg_quality"]))
