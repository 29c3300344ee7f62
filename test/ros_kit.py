"""What the tests of nodes share: a domain per test, processes that do not stay behind, waits with a deadline."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from thinkjepa_ros.bridge.images import from_rgb
from thinkjepa_ros.bridge.messages import make_header, stamp_ns
from thinkjepa_ros.msg import Forecast, NodeStatus

NS = 1_000_000_000
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
#: For a state that is promised "soon": generous, because other tests may share the machine.
SOON_S = 30.0


@contextlib.contextmanager
def reserved_domain() -> Iterator[int]:
    """A domain number held by a bound port, so that tests running beside each other never meet."""
    numbers = list(range(1, 100))
    random.SystemRandom().shuffle(numbers)
    for number in numbers:
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", 27000 + number))
        except OSError:
            lock.close()
            continue
        before = os.environ.get("ROS_DOMAIN_ID")
        os.environ["ROS_DOMAIN_ID"] = str(number)
        try:
            yield number
        finally:
            lock.close()
            os.environ.pop("ROS_DOMAIN_ID")
            if before is not None:
                os.environ["ROS_DOMAIN_ID"] = before
        return
    raise RuntimeError("every ROS domain from 1 to 99 is in use on this machine")


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = SOON_S) -> Any:
    """The first true value of condition(), asked every few milliseconds; AssertionError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what() if callable(what) else what}"
        time.sleep(0.004)


def ask(client: Any, request: Any) -> Any:
    """The answer of a service that is ready.

    Asked again where none comes: a server that has not discovered the client's end yet throws its answer away.
    """
    for seconds in (5.0, 5.0, 5.0, 60.0):
        future = client.call_async(request)
        with contextlib.suppress(AssertionError):
            wait_until(future.done, "an answer", seconds)
            return future.result()
    raise AssertionError(f"{client.srv_name} does not answer")


class Processes:
    """Processes of one test, with their output in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Process] = []

    def start(self, *command: str, env: dict[str, str] | None = None) -> Process:
        """`command` is what follows `python`."""
        process = Process(command, self._folder / f"{len(self._all)}.log", env or {})
        self._all.append(process)
        return process

    def node(self, name: str, *ros_args: str, **kwargs: Any) -> Process:
        """A node of the package: node("predictor", "-p", "max_rate_hz:=5.0")."""
        return self.start(
            "-m", f"thinkjepa_ros.nodes.{name}", *(["--ros-args", *ros_args] if ros_args else []), **kwargs
        )

    def close(self) -> None:
        """End what still runs, politely first: a killed process leaves its shared memory behind."""
        for process in self._all:
            if process.running:
                process.send(signal.SIGINT)
        deadline = time.monotonic() + 6.0
        for process in self._all:
            process.kill(deadline)
            print(f"---- {process}\n{process.output}")


class Process:
    def __init__(self, command: tuple[str, ...], log: Path, env: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._popen.poll()

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def end(self, number: int = signal.SIGINT, timeout_s: float = 15.0) -> tuple[int, float]:
        """Signal, wait; exit status and how long it took."""
        began = time.monotonic()
        self._popen.send_signal(number)
        return self._popen.wait(timeout_s), time.monotonic() - began

    def kill(self, deadline: float = 0.0) -> None:
        """SIGKILL, unless it ends by itself before the monotonic time `deadline`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, deadline - time.monotonic()))
            return
        self._popen.kill()
        self._popen.wait(10)

    def __str__(self) -> str:
        return " ".join(self._popen.args[1:])


class Peer:
    """A node in this process with its own executor thread: publishes cameras, collects what others say."""

    def __enter__(self) -> Peer:
        rclpy.init()
        self.node = rclpy.create_node("peer")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self.hosted: list[Any] = []
        self._over = threading.Event()
        self._thread.start()
        return self

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            while not self._over.is_set():
                self.executor.spin_once(timeout_sec=0.1)

    def __exit__(self, *_: object) -> None:
        for node in self.hosted:
            self.call(node.stop)  # where the executor does not wait for what it takes away
        self._over.set()
        self._thread.join(10)
        for node in [*self.hosted, self.node]:
            node.destroy_node()
        rclpy.try_shutdown()

    def host(self, node: Any, autostart: bool = True) -> Any:
        """Run a node of ours in this process, in the peer's executor thread."""
        self.hosted.append(node)
        self.executor.add_node(node)
        if autostart:
            self.executor.create_task(node.bring_up)
        return node

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run function(*args) in the executor thread and return its result."""
        task = self.executor.create_task(function, *args)
        wait_until(task.done, f"{function} in the executor")
        return task.result()

    def collect(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> list[Any]:
        """A list that grows with every message on `topic`."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def publisher(self, kind: type, topic: str, qos: QoSProfile = RELIABLE, matched: int = 1) -> Any:
        """A publisher that `matched` subscriptions have found."""
        publisher = self.node.create_publisher(kind, topic, qos)
        wait_until(lambda: publisher.get_subscription_count() >= matched, f"{matched} subscriptions on {topic}")
        return publisher


def picture(index: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A different picture for every index, uint8 [H, W, 3]; the same one each time."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([(x * 3 + index * 7) % 256, (y * 3 + index * 5) % 256, (x + y + index * 11) % 256], -1).astype(
        np.uint8
    )
    rgb[10:30, (index * 3) % 60 : (index * 3) % 60 + 20] = (250, 40, 40)
    return rgb


class TestCamera:
    """Publishes pictures at the stamps asked for, and knows what the node made of them."""

    __test__ = False

    def __init__(self, peer: Peer, namespace: str = "", node: str = "predictor", info: bool = True) -> None:
        self.peer = peer
        self.sent = 0
        self.statuses = peer.collect(NodeStatus, f"{namespace}/{node}/status", LATCHED)
        self.forecasts = peer.collect(Forecast, f"{namespace}/{node}/forecast")
        self._images = peer.publisher(Image, f"{namespace}/image")
        if info:
            camera_info = peer.publisher(CameraInfo, f"{namespace}/camera_info")
            camera_info.publish(calibration())
            self.info = camera_info

    @property
    def status(self) -> NodeStatus:
        return self.statuses[-1]

    def peer_status(self, state: int) -> NodeStatus:
        """The first status from now on with this state that has settled everything."""
        wait_until(lambda: self.status.state == state and self.idle, lambda: f"state {state}; {self.status.words}")
        return self.status

    def send(self, ns: int, index: int = 0, message: Image | None = None) -> None:
        """Publish one image without waiting."""
        image = message or from_rgb(picture(index), make_header(ns, "camera_optical"))
        self._images.publish(image)
        self.sent += 1

    def step(self, ns: int, index: int = 0, message: Image | None = None) -> Forecast | None:
        """Publish one image and wait until the node has settled it; its forecast, or None if it gave none."""
        seen = len(self.forecasts)
        self.send(ns, index, message)
        wait_until(
            lambda: self.answer(ns, seen) or self.idle,
            lambda: f"an answer to the image at {ns} ns; last status: {self.statuses[-1:]}",
        )
        return self.answer(ns, seen)

    @property
    def subscribers(self) -> int:
        return self._images.get_subscription_count()

    def answer(self, ns: int, since: int = 0) -> Forecast | None:
        """The forecast for the image at `ns`, among those after the first `since`."""
        return next((f for f in reversed(self.forecasts[since:]) if stamp_ns(f.header.stamp) == ns), None)

    @property
    def idle(self) -> bool:
        """The node has received and settled every image, and every forecast it tells of is here."""
        if not self.statuses:
            return False
        s = self.status
        return s.received >= self.sent and s.pending == 0 and s.published <= len(self.forecasts)

    def play(self, start_ns: int, count: int, step_ns: int = NS // 10, first_index: int = 0) -> list[Forecast]:
        """`count` images in lock step; the forecasts they gave."""
        answers = [self.step(start_ns + k * step_ns, first_index + k) for k in range(count)]
        return [forecast for forecast in answers if forecast is not None]


def calibration(width: int = 96, height: int = 72, focal: float = 80.0) -> CameraInfo:
    info = CameraInfo(
        header=Header(frame_id="camera_optical"), width=width, height=height, distortion_model="plumb_bob"
    )
    info.k = [focal, 0.0, (width - 1) / 2, 0.0, focal, (height - 1) / 2, 0.0, 0.0, 1.0]
    return info


def build_small_model(folder: Path, guide_layers: int = 4, guide_width: int = 128) -> Path:
    """A small checkpoint of the real classes; random weights with every gate open, so that everything has an effect."""
    import torch

    from thinkjepa_ros.jepa import model
    from thinkjepa_ros.jepa.encoder import EncoderConfig
    from thinkjepa_ros.jepa.predictor import PredictorConfig
    from thinkjepa_ros.values import Camera

    joints = (
        "wrist",
        "palm",
        *(f"{f}_{p}" for p in ("base", "tip") for f in ("thumb", "index", "middle", "ring", "pinky")),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = model.ForecastNet(
            model.ModelConfig(
                EncoderConfig(width=32, depth=1),
                PredictorConfig(width=32, depth=1, guide_layers=guide_layers, guide_width=guide_width),
                tuple(f"{side}_{joint}" for side in ("right", "left") for joint in joints),
                Camera(128, 128, 110.0, 110.0, 63.5, 63.5),
            )
        )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save(folder, net, "small", trained=False, domain="test")
    return folder


def joint_array(forecast: Forecast) -> np.ndarray:
    """Positions, float32 [T, J, 3]."""
    return np.frombuffer(forecast.positions, np.float32).reshape(forecast.steps, forecast.joints, 3)


def accounted(status: NodeStatus) -> bool:
    """The sum that always comes out."""
    return (
        status.received == status.used + status.superseded + status.refused + status.pending
        and sum(status.reason_counts) == status.refused
    )
