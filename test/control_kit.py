"""A robot for tests of the controller: a camera over a table and an arm that follows twists as a real one does.

It runs in threads of the test, on the steady clock, and remembers how fast the arm was at every moment.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import world_kit
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.parameter import Parameter
from ros_kit import LATCHED, RELIABLE, Peer, ask, wait_until
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, Float32
from std_srvs.srv import SetBool, Trigger

from thinkjepa_ros.bridge.cell_messages import camera_info_message, pose_message, tool_pose
from thinkjepa_ros.bridge.images import from_rgb
from thinkjepa_ros.bridge.messages import make_header
from thinkjepa_ros.control import imagination
from thinkjepa_ros.control.imagination import Imagination, ImaginationConfig
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.world_model import WorldModelConfig
from thinkjepa_ros.msg import NodeStatus, Plan
from thinkjepa_ros.nodes.controller import ControllerNode

NS = 1_000_000_000
#: What the receiver of a twist promises (see the simulator): a twist lives so long, then the arm brakes by itself.
LIFETIME_S, ACCELERATION = 0.25, 2.5
STOP_S = 0.5  # parameter stop_timeout_s
STEP_S = 0.005
START = (0.0, 0.35, 0.2)
CUBE = np.array([0.05, 0.4, 0.02])
#: So wide that nothing but what a test does brings the arm to rest.
WIDE = {f"workspace_{axis}_{end}_m": sign * 50.0 for axis in "xyz" for end, sign in (("min", -1), ("max", 1))}
SMALL = {"samples": 16, "iterations": 1, "dtype": "float32", "control_rate_hz": 10.0}


def small_net(horizon: int = 4, guide: tuple[int, int] = (0, 0)) -> Imagination:
    """Random weights, so that every action matters."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        size = world_kit.SIZE
        encoder = EncoderConfig(image_size=size, width=32, depth=1)
        world = WorldModelConfig(
            latent_width=16, grid=encoder.grid, pooled=2, context=2, horizon=horizon, width=32, depth=1, heads=2,
            action_dim=4, state_dim=4, action_std=(0.03, 0.03, 0.03, 0.5), action_steps=1, sight="actions",
            guide_layers=guide[0], guide_width=guide[1],
        )  # fmt: skip
        camera = imagination.canonical_camera(world_kit.CAMERA, size)
        net = Imagination(ImaginationConfig(encoder, world, camera))
        with torch.no_grad():
            for weight in net.world.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
    return net.eval()


def build_imagination(folder: Path) -> Path:
    imagination.save(folder, small_net(), "small", trained=False, domain="test")
    return folder


class Robot:
    """Publishes camera, state and goal; follows `command/twist`. Attributes switch faults on.

    images, states: whether they are published. lag_s: by which stamps are older than they should be. point_as: what is
    told in place of the point.
    """

    def __init__(self, peer: Peer, camera_hz: float = 15.0, state_hz: float = 50.0, follow: bool = True) -> None:
        self.peer, node = peer, peer.node
        self.images = self.states = True
        self.point_as: tuple[float, ...] | None = None
        self.image_lag_s = self.state_lag_s = 0.0
        self.point, self.velocity = np.array(START), np.zeros(3)
        self.speeds: list[tuple[float, float]] = []  # steady seconds, m/s
        self.twists: list[tuple[float, TwistStamped]] = []
        self.grips: list[float] = []
        self.last_image = self.last_state = 0.0  # when it was published, steady seconds
        self._wanted, self._until = np.zeros(3), 0.0
        self._camera_hz, self._state_hz = camera_hz, state_hz
        self._image = node.create_publisher(Image, "/image", RELIABLE)
        self._info = node.create_publisher(CameraInfo, "/camera_info", RELIABLE)
        self._place = node.create_publisher(PoseStamped, "/camera_pose", RELIABLE)
        self._pose = node.create_publisher(PoseStamped, "/ee_pose", RELIABLE)
        self._grip = node.create_publisher(Float32, "/gripper/state", RELIABLE)
        self._goal = node.create_publisher(Image, "/goal_image", LATCHED)
        self._e_stop = node.create_publisher(Bool, "/e_stop", RELIABLE)
        node.create_subscription(Float32, "/command/gripper", lambda m: self.grips.append(m.data), 10)
        if follow:
            node.create_subscription(TwistStamped, "/command/twist", self._on_twist, 1)
        self.plans = peer.collect(Plan, "/controller/plan")
        self.statuses = peer.collect(NodeStatus, "/controller/status", LATCHED)
        self._enable = node.create_client(SetBool, "/controller/enable")
        self._reset = node.create_client(Trigger, "/controller/reset_e_stop")
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._move, self._watch, self._tell)]

    def __enter__(self) -> Robot:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)

    # ---- the arm

    def _on_twist(self, message: TwistStamped) -> None:
        now, v = time.monotonic(), message.twist.linear
        self.twists.append((now, message))
        self._wanted, self._until = np.array([v.x, v.y, v.z]), now + LIFETIME_S

    def _move(self) -> None:
        last = time.monotonic()
        while not self._over.wait(STEP_S):
            now = time.monotonic()
            wanted = self._wanted if now < self._until else np.zeros(3)
            change, most = wanted - self.velocity, ACCELERATION * (now - last)
            length = float(np.linalg.norm(change))
            self.velocity = wanted if length <= most else self.velocity + change * (most / length)
            self.point = self.point + self.velocity * (now - last)
            self.speeds.append((now, float(np.linalg.norm(self.velocity))))
            last = now

    # ---- what it publishes

    def _now(self, lag_s: float = 0.0) -> int:
        return self.peer.node.get_clock().now().nanoseconds - round(lag_s * NS)

    def _tell(self) -> None:
        while not self._over.wait(1 / self._state_hz):
            if self.states:
                point = self.point if self.point_as is None else np.array(self.point_as)
                self._grip.publish(Float32(data=0.0))
                header = make_header(self._now(self.state_lag_s), "base_link")
                self._pose.publish(pose_message(tool_pose(point), header))
                self.last_state = time.monotonic()

    def _watch(self) -> None:
        pose = world_kit.camera_pose()
        while not self._over.wait(1 / self._camera_hz):
            if not self.images:
                continue
            ns, shown = self._now(self.image_lag_s), np.clip(self.point, (-0.4, 0.0, 0.0), (0.4, 0.8, 0.5))
            header = make_header(ns, "camera_optical")
            self._place.publish(pose_message(pose, make_header(ns, "base_link")))
            self._info.publish(camera_info_message(world_kit.CAMERA, header))
            self._image.publish(from_rgb(world_kit.picture(shown, 0.0, CUBE, pose), header))
            self.last_image = time.monotonic()

    def show_goal(self, point: tuple[float, float, float] = (0.2, 0.5, 0.1)) -> None:
        rgb = world_kit.picture(np.array(point), 0.0, CUBE, world_kit.camera_pose())
        self._goal.publish(from_rgb(rgb, make_header(self._now(), "camera_optical")))

    def heal(self) -> None:
        """All faults off, at the place where it began."""
        self.images = self.states = True
        self.point_as, self.image_lag_s, self.state_lag_s = None, 0.0, 0.0
        self.press(False)
        self.reset()

    def take_goal(self) -> None:
        self._goal.publish(Image())

    # ---- what people do

    def enable(self, on: bool = True) -> SetBool.Response:
        wait_until(self._enable.service_is_ready, "the service enable")
        return ask(self._enable, SetBool.Request(data=on))

    def reset(self) -> Trigger.Response:
        wait_until(self._reset.service_is_ready, "the service reset_e_stop")
        return ask(self._reset, Trigger.Request())

    def press(self, down: bool = True) -> float:
        """The emergency stop; when."""
        wait_until(lambda: self._e_stop.get_subscription_count() >= 1, "the controller listens to e_stop")
        self._e_stop.publish(Bool(data=down))
        return time.monotonic()

    # ---- what came of it

    @property
    def speed(self) -> float:
        return self.speeds[-1][1] if self.speeds else 0.0

    @property
    def words(self) -> str:
        return self.statuses[-1].words if self.statuses else "no status"

    def moving(self, faster_than: float = 0.04) -> float:
        """Wait until the arm is in motion; the time."""
        wait_until(lambda: self.speed > faster_than, lambda: f"motion; {self.words}")
        return time.monotonic()

    def rest_after(self, since: float, stays_s: float = 0.3) -> float:
        """Seconds from `since` until the arm rests, and it must go on resting for `stays_s`."""

        def rested() -> float | None:
            last = max((t for t, speed in list(self.speeds) if speed > 0.0), default=0.0)
            return max(last, since) if time.monotonic() - max(last, since) > stays_s else None

        took = float(wait_until(rested, lambda: f"rest; {self.speed:.3f} m/s, {self.words}")) - since
        print(f"at rest after {took:.3f} s")
        return took

    def says(self, words: str, state: int | None = None) -> NodeStatus:
        """The first status from now on with these words."""
        seen = len(self.statuses)

        def found() -> NodeStatus | None:
            news = self.statuses[max(0, seen - 1) :]
            return next((s for s in reversed(news) if words in s.words and state in (None, s.state)), None)

        return wait_until(found, lambda: f"{words!r} in the status; {self.words}")


def overrides(folder: Path, **parameters: Any) -> list[Parameter]:
    chosen = {"model": str(folder), **SMALL, **WIDE, **parameters}
    return [Parameter(name, value=value) for name, value in chosen.items()]


def hosted(peer: Peer, folder: Path, **parameters: Any) -> ControllerNode:
    """A controller in this process, once it is active."""
    node = peer.host(ControllerNode(parameter_overrides=overrides(folder, **parameters)))
    wait_until(lambda: node.label == "active", lambda: f"the controller active; {node.failure}", 60.0)
    return node
