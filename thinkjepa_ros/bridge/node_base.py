"""What the thinker and the predictor have in common: camera in, one worker, honest status out, one life cycle."""

from __future__ import annotations

import abc
import sys
import time
from collections.abc import Iterable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile

from thinkjepa_ros.msg import NodeStatus

from . import qos
from .camera_input import CameraInput
from .ledger import Entry, Fate, Ledger
from .lifecycle import EXIT_HUNG, JOIN_S, LoadingNode
from .parameter import Parameter, Parameters
from .reports import Picture, diagnostics_message, status_message
from .worker import Pacer, Worker

_STATUS_S = 0.5
_SETTLING_S = 2.0  # discovery takes this long; before, a missing publisher is no news
_REMIND_S = 10.0
_ERRORS_IN_A_ROW = 5


class CameraNode(LoadingNode):
    """Base of the nodes that watch a camera.

    A subclass gives `table`, `period_s`, `hang_s`, `load`, `adopt`, and:
    prepare() before each activation, on_frame(entry) and on_jump(last_ns, backward) in the executor thread, loop() in
    the worker, wake() to end a wait inside loop().
    """

    table: Iterable[Parameter]
    task = "model"

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.parameters = Parameters(self, self.table, self._on_parameters)
        self.ledger = Ledger()
        self.input = CameraInput(
            self,
            self.ledger,
            self.parameters["image_transport"],
            self.parameters["future_tolerance_s"],
            self.on_frame,
            self.on_jump,
            self.notice,
        )
        self.pacer = Pacer(self.period_s)
        self.worker: Worker | None = None
        self._advertised: list[Any] = []
        self.model_id = ""
        self.trained = False
        self.warming = ""  # why there is no full window yet; set by the worker
        self._trouble_words = ""
        self._failures = 0
        self._last_error = ""
        self._due = False
        self._said: int | None = None
        self._reminded = 0.0
        self._ticks = 0
        self._status_pub = self.create_publisher(NodeStatus, "~/status", qos.LATCHED)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        # On the steady clock: a paused simulation must not silence the status.
        self.create_timer(_STATUS_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ---- for subclasses

    @property
    @abc.abstractmethod
    def period_s(self) -> float:
        """Shortest time between two turns of the worker."""

    @property
    @abc.abstractmethod
    def hang_s(self) -> float:
        """A model call longer than this is HUNG."""

    @property
    def give_up_s(self) -> float:
        """A model call longer than this ends the process; 0: never."""
        return 0.0

    def prepare(self) -> None:
        """Make ready for an activation: empty rings, fresh slots."""

    @abc.abstractmethod
    def on_frame(self, entry: Entry) -> None:
        """A good image has arrived."""

    @abc.abstractmethod
    def on_jump(self, last_ns: int | None, backward: bool) -> None:
        """A new epoch begins; forget the old one."""

    @abc.abstractmethod
    def loop(self) -> None:
        """The worker's life: `while self.pacer.wait(): ...`."""

    def wake(self) -> None:
        """End any wait inside `loop` other than the pacer's."""

    def pending(self) -> list[Entry]:
        """Entries that will never have their turn once the node is deactivated."""
        return []

    def on_parameters(self, changed: set[str]) -> str | None:
        """Values of these parameters have just changed. Returns why they cannot be taken after all."""
        return None

    def remark(self) -> str:
        """What ~/status should say while all is well."""
        return ""

    def picture_extras(self) -> dict[str, Any]:
        """Further fields of the Picture."""
        return {}

    def advertise(self, kind: type, topic: str, profile: QoSProfile) -> Any:
        """A publisher for results, from `adopt`: silent unless the node is active, gone when it is cleaned up."""
        publisher: Any = self.create_lifecycle_publisher(kind, topic, profile)
        self._advertised.append(publisher)
        return publisher

    # ---- life cycle

    def release(self) -> None:
        for publisher in self._advertised:
            self.destroy_lifecycle_publisher(publisher)
        self._advertised.clear()
        self.model_id, self.trained = "", False

    def start(self) -> None:
        if not self.worker_ended:
            raise RuntimeError(
                "the model call of the last activation has still not returned; end this process and start it again"
            )
        self.pacer = Pacer(self.period_s)
        self._failures = 0
        self.warming = "no image yet"
        self.prepare()
        self.worker = Worker(f"{self.get_name()} worker", self.loop, lambda error: self.fail("the worker ended", error))
        self.input.open()
        self.worker.start()

    def stop(self) -> None:
        self.input.close()
        self.pacer.close()
        self.wake()
        if self.worker is not None and not self.worker.join(JOIN_S):
            self.get_logger().error(f"the worker is still inside the model after {JOIN_S:g} s; it is left behind")
        self.ledger.settle_pending(self.pending(), Fate.REFUSED, "deactivated")

    @property
    def worker_ended(self) -> bool:
        return self.worker is None or not self.worker.alive

    @property
    def busy_s(self) -> float:
        """Seconds since the present model call began, 0 between calls."""
        return self.worker.busy_s if self.worker is not None and self.worker.alive else 0.0

    # ---- telling

    def notice(self, words: str = "") -> None:
        """Something happened that ~/status should show soon; `words` if it was an error. Any thread."""
        if words:
            self._last_error = words
        executor = self.executor
        if executor is not None and not self._due:
            self._due = True
            executor.create_task(self._report)

    def trouble(self, words: str) -> None:
        """A turn of the worker failed. Any thread."""
        self._failures += 1
        self._trouble_words = words
        self.get_logger().error(words, throttle_duration_sec=1.0)
        self.notice(words)

    def success(self) -> None:
        """A turn of the worker succeeded."""
        self._failures = 0
        if self._said != NodeStatus.RUNNING:
            self.notice()

    def changed(self) -> None:
        if self.failure:
            self._last_error = self.failure
        self.notice()

    def picture(self) -> Picture:
        """The state of the node now."""
        state, details = self._state()
        return Picture(
            state=state,
            details=details,
            model_id=self.model_id,
            trained=self.trained,
            counts=self.ledger.counts(),
            epoch=self.input.epoch,
            jumps=self.input.jumps,
            last_error=self._last_error,
            **self.picture_extras(),
        )

    def _state(self) -> tuple[int, str]:
        label = self.label
        if label == "finalized":
            return NodeStatus.FINALIZED, ""
        if self.loading or label == "configuring":
            return NodeStatus.LOADING, self.parameters["model"]
        if self.failure:
            return NodeStatus.ERROR, self.failure
        if self.busy_s > self.hang_s:
            return NodeStatus.HUNG, f"it began {self.busy_s:.1f} s ago"
        if label in ("unconfigured", "cleaningup"):
            return NodeStatus.UNCONFIGURED, ""
        if label != "active":
            return NodeStatus.INACTIVE, ""
        return self._active_state()

    def _active_state(self) -> tuple[int, str]:
        if self.worker_ended:
            return NodeStatus.ERROR, self._last_error
        if self._failures >= _ERRORS_IN_A_ROW:
            return NodeStatus.ERROR, self._trouble_words
        silent = self.input.silent_s
        if silent is None:
            return NodeStatus.WAITING, self.input.trouble() if self.input.open_s > _SETTLING_S else ""
        if silent > self.parameters["input_timeout_s"]:
            return NodeStatus.STALE, self.input.trouble()
        return (NodeStatus.WARMING, self.warming) if self.warming else (NodeStatus.RUNNING, self.remark())

    def _tick(self) -> None:
        picture = self._report()
        if picture.state == NodeStatus.HUNG and 0.0 < self.give_up_s < self.busy_s:
            words = f"a model call has not returned for {self.busy_s:.1f} s: the process ends, to be started again"
            self.get_logger().fatal(words)
            sys.exit(EXIT_HUNG)
        if picture.state in (NodeStatus.WAITING, NodeStatus.STALE) and picture.details:
            if time.monotonic() - self._reminded > _REMIND_S:
                self._reminded = time.monotonic()
                self.get_logger().warning(picture.words)
        else:
            self._reminded = 0.0
        self._ticks += 1
        if self._ticks % 2 == 0:
            stamp = self.get_clock().now().to_msg()
            name = self.get_fully_qualified_name().lstrip("/")
            self._diagnostics_pub.publish(diagnostics_message(picture, stamp, name, self.task))

    def _report(self) -> Picture:
        self._due = False
        picture = self.picture()
        if picture.state != self._said:
            self._said = picture.state
            # two calls, since rclpy ties a line of code to one severity
            if picture.state in (NodeStatus.ERROR, NodeStatus.HUNG):
                self.get_logger().error(picture.words)
            else:
                self.get_logger().info(picture.words)
        self._status_pub.publish(status_message(picture, self.get_clock().now().to_msg()))
        return picture

    def _on_parameters(self, changed: set[str]) -> str | None:
        refusal = self.on_parameters(changed)
        if refusal is None:
            self.pacer.set_period(self.period_s)
            self.notice()
        return refusal
