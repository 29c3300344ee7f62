"""What the tests of the thinker node share: a hosted node, its camera, what it says, and ways to slow its model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rclpy.parameter import Parameter
from ros_kit import LATCHED, NS, SOON_S, Peer, TestCamera, ask, wait_until
from std_msgs.msg import String
from std_srvs.srv import Trigger

from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.nodes.thinker import ThinkerNode
from thinkjepa_ros.thinker import qwen  # noqa: F401  (takes seconds; the node would import it while it loads)

START = 100_000 * NS  # far from zero: in long tests the camera jumps back again and again
STEP = NS // 10


def hosted(peer: Peer, kind: type[ThinkerNode] = ThinkerNode, **parameters: Any) -> ThinkerNode:
    """A thinker with the given parameters in this process, once it is active."""
    defaults = {
        "think_period_s": 0.05,
        "window_s": 2.0,
        "input_timeout_s": 30.0,
        "max_new_tokens": 2,
        "niceness": 0,  # other tests may share the machine
    }
    overrides = [Parameter(name, value=value) for name, value in {**defaults, **parameters}.items()]
    node = peer.host(kind(parameter_overrides=overrides))
    wait_until(lambda: node.label == "active", lambda: f"the thinker active; {node.failure}", 90.0)
    return node


class Watched:
    """A thinker, its camera, and what it says."""

    def __init__(self, peer: Peer, node: ThinkerNode) -> None:
        self.peer, self.node = peer, node
        if node.parameters["image_transport"] == "raw":
            self.camera = TestCamera(peer, node="thinker", info=False)
        self.guidance = peer.collect(GuidanceMsg, "/thinker/guidance", LATCHED)
        self.texts = peer.collect(String, "/thinker/text", LATCHED)
        self.instruct = peer.publisher(String, "/thinker/instruction", LATCHED)

    def play(self, count: int, start: int = START, step: int = STEP) -> None:
        """Images that have all arrived."""
        before = self.node.ledger.counts().received
        for k in range(count):
            self.camera.send(start + k * step, k)
            wait_until(lambda k=k: self.node.ledger.counts().received == before + k + 1, "the image received")

    def next_guidance(self, accept=lambda g: True) -> GuidanceMsg:
        """The first guidance from now on that `accept` takes."""
        seen = len(self.guidance)
        return wait_until(lambda: next((g for g in self.guidance[seen:] if accept(g)), None), "guidance")

    def set(self, **values: Any) -> Any:
        """Set parameters; the result of the first."""
        wanted = [Parameter(name, value=value) for name, value in values.items()]
        return self.peer.call(self.node.set_parameters, wanted)[0]

    def request(self) -> Trigger.Response:
        """Call the service."""
        client = self.peer.node.create_client(Trigger, "/thinker/think")
        wait_until(client.service_is_ready, "the service")
        response = ask(client, Trigger.Request())
        self.peer.node.destroy_client(client)
        return response

    def transition(self, name: str) -> bool:
        """Change the state of the life cycle."""
        task = self.peer.executor.create_task(self.node.transition, name)
        wait_until(task.done, name)
        return task.result()

    @property
    def last_error(self) -> str:
        return self.camera.status.last_error if self.camera.statuses else ""


@contextlib.contextmanager
def within_the_model(node: ThinkerNode, act: Callable[[], None]) -> Iterator[None]:
    """Runs `act` in every forward pass of the real model: at the begin of the prompt, and of each token."""
    layer = node._thinker._model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda *_: act())
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds the model in the middle of a call, as a driver that does not return would."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(SOON_S)


def slow(seconds: float) -> Callable[[], None]:
    """For `within_the_model`: every pass takes so much longer."""
    return lambda: time.sleep(seconds)
