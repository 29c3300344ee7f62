"""The simulator node: the MuJoCo workcell as a robot with a camera, so that control runs over real topics.

One worker thread owns the simulation, its renderer included, and keeps it at `real_time_factor`. Commands are checked
where they arrive; one that no arm should follow is refused, counted, and brings the arm to rest.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.task import Future
from std_msgs.msg import Float32, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from thinkjepa_ros.bridge import qos
from thinkjepa_ros.bridge.arm_commands import CommandError, JointReader, check_stamp, closedness_of, velocity_of
from thinkjepa_ros.bridge.cell_messages import CellOutputs
from thinkjepa_ros.bridge.ledger import Fate, Ledger
from thinkjepa_ros.bridge.lifecycle import JOIN_S, LoadingNode, run
from thinkjepa_ros.bridge.live_cell import Inbox, LiveCell, Order, Pace
from thinkjepa_ros.bridge.messages import NS, stamp_ns
from thinkjepa_ros.bridge.parameter import Parameters
from thinkjepa_ros.bridge.reports import Picture, diagnostics_message, status_message
from thinkjepa_ros.bridge.simulator_parameters import SIMULATOR
from thinkjepa_ros.bridge.worker import Worker
from thinkjepa_ros.msg import NodeStatus

if TYPE_CHECKING:
    from thinkjepa_ros.data.sim.workcell import Workcell

_STATUS_S, _HANG_S = 0.5, 5.0
_RESET_GAP_S = 6.0  # of a simulated clock: more than 5 s is another epoch for nodes that remember


class SimulatorNode(LoadingNode):
    """See docs/parameters.md for its parameters, CellOutputs for what it publishes."""

    explained = (ValueError, ImportError)

    def __init__(self, **kwargs: Any) -> None:
        """kwargs: those of rclpy.node.Node."""
        super().__init__("simulator", **kwargs)
        self.parameters = Parameters(self, SIMULATOR, lambda changed: None)
        self.ledger = Ledger()
        self._inbox = Inbox(self.ledger)
        self._live: LiveCell | None = None
        self._reader: JointReader | None = None
        self._pace: Pace | None = None
        self._worker: Worker | None = None
        self._over = threading.Event()
        self._resets: deque[Future[tuple[bool, str]]] = deque()
        self._commands: list[Any] = []
        self._outputs: CellOutputs | None = None
        self._sim_ns = NS  # of the simulated clock; a stamp of 0 would be no time
        self._here: Any = None  # where the tool is [3], for the path of a trajectory
        self._last_error = ""
        self._said: tuple[int, bool] | None = None
        self._ticks = 0
        self._status_pub = self.create_publisher(NodeStatus, "~/status", qos.LATCHED)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._outcome_pub = self.create_publisher(String, "~/outcome", qos.LATCHED)
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=ReentrantCallbackGroup())
        self.create_timer(_STATUS_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ---- life cycle

    def load(self) -> Workcell:
        if find_spec("mujoco") is None:
            raise ImportError("the simulator needs MuJoCo, which is not installed: pip install mujoco")
        import cv2

        cv2.setNumThreads(1)
        self._reader = JointReader()
        return self._make()

    def _make(self) -> Workcell:
        """The workcell of the task that the parameters name. Raises ValueError."""
        from thinkjepa_ros.data.sim.tasks import draw_task
        from thinkjepa_ros.data.sim.workcell import Workcell

        p = self.parameters
        size = p["image_width_px"], p["image_height_px"]
        return Workcell(draw_task(p["kind"], p["seed"]), *size, timeout_s=p["command_timeout_s"])

    def adopt(self, model: Workcell) -> None:
        self._live = LiveCell(model, self.parameters["command_timeout_s"], epoch=0)
        self._outputs = CellOutputs(self, self._outcome_pub, self.parameters)

    def start(self) -> None:
        if not self.worker_ended:
            raise RuntimeError("the renderer of the last activation has still not returned; start this process again")
        self._over = threading.Event()
        self._inbox = Inbox(self.ledger)
        heard = (TwistStamped, "twist", self._on_twist), (Float32, "gripper", self._on_gripper)
        for kind, name, callback in (*heard, (JointTrajectory, "trajectory", self._on_trajectory)):
            self._commands.append(self.create_subscription(kind, f"command/{name}", callback, qos.RESULTS))
        self._worker = Worker("simulation", self._loop, lambda error: self.fail("the simulation ended", error))
        self._worker.start()

    def stop(self) -> None:
        for subscription in self._commands:
            self.destroy_subscription(subscription)
        self._commands = []
        self._over.set()
        if self._worker is not None and not self._worker.join(JOIN_S):
            self.get_logger().error(f"the simulation does not return after {JOIN_S:g} s; it is left behind")
        self._inbox.clear("deactivated")
        while self._resets:
            self._resets.popleft().set_result((False, "the simulator was deactivated"))

    def release(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        self._live = self._pace = self._outputs = None

    @property
    def worker_ended(self) -> bool:
        return self._worker is None or not self._worker.alive

    # ---- commands (executor thread)

    def _on_twist(self, message: TwistStamped) -> None:
        frame = self.parameters["base_frame"]
        self._hear(message.header, lambda: Order(velocity=velocity_of(message, frame)))

    def _on_gripper(self, message: Float32) -> None:
        self._hear(None, lambda: Order(closedness=closedness_of(message)))

    def _on_trajectory(self, message: JointTrajectory) -> None:
        def read() -> Order:
            if self._reader is None or self._here is None:
                raise CommandError("not_ready", "a trajectory came before the arm's first state was known")
            return Order(path=self._reader.path(message, self.parameters["base_frame"], self._here))

        self._hear(message.header, read)

    def _hear(self, header: Any, read: Callable[[], Order]) -> None:
        p, live = self.parameters, self._live
        stamp = 0 if header is None else stamp_ns(header.stamp)
        entry = self.ledger.receive(stamp, None, "", live.epoch if live is not None else 0)
        try:
            if header is not None:
                check_stamp(header, self._now_ns(), p["command_timeout_s"], p["future_tolerance_s"])
            order = read()
        except CommandError as error:
            self.ledger.settle(entry, Fate.REFUSED, error.reason)
            self._inbox.put(None, Order())  # whoever sends such a thing may not be believed in what it sent before
            self._last_error = f"command refused, the arm comes to rest: {error}"
            self.get_logger().warning(self._last_error, throttle_duration_sec=1.0)
            return
        self._inbox.put(entry, order)

    def _now_ns(self) -> int:
        return self._sim_ns if self.parameters["publish_clock"] else self.get_clock().now().nanoseconds

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.label != "active" or self.worker_ended:
            response.success, response.message = False, f"the simulator is {self.label}; activate it first"
            return response
        done: Future[tuple[bool, str]] = Future(executor=self.executor)
        self._resets.append(done)
        response.success, response.message = await done  # type: ignore[misc]
        return response

    # ---- simulation (worker thread)

    def _loop(self) -> None:
        try:
            self._simulate()
        except RuntimeError:
            if self.context.ok():  # else a signal has ended ROS while a message was published
                raise
        finally:
            if self._live is not None:
                self._live.cell.close()  # the GL context belongs to this thread

    def _simulate(self) -> None:
        assert self._live is not None and self._worker is not None and self._outputs is not None
        live, outputs, p = self._live, self._outputs, self.parameters
        state_s, image_s = 1.0 / p["state_rate_hz"], 1.0 / p["camera_rate_hz"]
        next_state = next_image = done = 0.0  # simulated seconds of this activation
        outputs.announce(live, self._now_ns())
        self._pace = Pace(p["real_time_factor"])
        while not self._over.is_set():
            due = min(next_state, next_image)
            behind_s = self._pace.wait(due, self._over)
            with self._worker.busy():
                if self._resets:
                    live = self._reset(live, outputs)
                    self._pace, behind_s = Pace(p["real_time_factor"], due), 0.0
                for order in self._inbox.take():
                    live.obey(order)
                live.advance(due - done)
                self._sim_ns += round((due - done) * NS)
                done, self._here = due, live.cell.state()[:3].astype(float)
                stamp = self._now_ns() - (0 if p["publish_clock"] else round(behind_s * NS))
                if due == next_state:
                    next_state += state_s
                    outputs.state(live, stamp)
                if due == next_image:
                    next_image += image_s
                    outputs.image(live, stamp)
                    self.ledger.publish((self._now_ns() - stamp) / NS)

    def _reset(self, live: LiveCell, outputs: CellOutputs) -> LiveCell:
        """Begin the task of the parameters kind and seed; orders that were given before it are not followed."""
        waiting = [self._resets.popleft() for _ in range(len(self._resets))]
        p, cell = self.parameters, live.cell
        self._inbox.clear("reset")
        try:
            if (cell.task.kind, cell.task.seed) == (p["kind"], p["seed"]):
                cell.reset()
            else:
                cell = self._make()
                live.cell.close()
            live = self._live = LiveCell(cell, p["command_timeout_s"], live.epoch + 1)
            self._sim_ns += round(_RESET_GAP_S * NS)
            outputs.announce(live, self._now_ns())
            answer = True, f"{cell.task.kind}:{cell.task.seed}: {cell.task.instruction}"
        except ValueError as error:
            answer = False, str(error)
        if self.executor is not None:
            for done in waiting:
                self.executor.create_task(done.set_result, answer)
        return live

    # ---- telling

    def changed(self) -> None:
        if self.failure:
            self._last_error = self.failure
        if self.executor is not None:
            self.executor.create_task(self._report)

    def _state(self) -> tuple[int, str]:
        label, live, pace, worker = self.label, self._live, self._pace, self._worker
        if self.loading or label == "configuring":
            return NodeStatus.LOADING, ""
        if self.failure or (label == "active" and self.worker_ended):
            return NodeStatus.ERROR, self.failure or "the simulation ended"
        if worker is not None and worker.alive and worker.busy_s > _HANG_S:
            return NodeStatus.HUNG, f"the simulation stands still for {worker.busy_s:.1f} s"
        if label != "active" or live is None or pace is None:
            states = {"unconfigured": NodeStatus.UNCONFIGURED, "finalized": NodeStatus.FINALIZED}
            return states.get(label, NodeStatus.INACTIVE), ""
        return NodeStatus.RUNNING, f"{live.cell.task.kind}:{live.cell.task.seed}, {pace.words}"

    def picture(self) -> Picture:
        """The state of the node now. The counts are of commands; what is published are images."""
        (state, details), live = self._state(), self._live
        return Picture(
            state=state,
            details=details,
            model_id="" if live is None else "workcell",
            trained=live is not None,  # there is nothing in it that had to be
            counts=self.ledger.counts(),
            epoch=0 if live is None else live.epoch,
            jumps=0,
            last_error=self._last_error,
            extra={} if self._pace is None else {"time lost (s)": f"{self._pace.lost_s:.2f}"},
        )

    def _tick(self) -> None:
        picture = self._report()
        self._ticks += 1
        if self._ticks % 2 == 0:
            name, stamp = self.get_fully_qualified_name().lstrip("/"), self.get_clock().now().to_msg()
            self._diagnostics_pub.publish(diagnostics_message(picture, stamp, name, "simulation"))

    def _report(self) -> Picture:
        picture = self.picture()
        slow = self._pace is not None and self._pace.slow
        if (picture.state, slow) != self._said:
            self._said = picture.state, slow
            # two calls, since rclpy ties a line of code to one severity
            if slow or picture.state in (NodeStatus.ERROR, NodeStatus.HUNG):
                self.get_logger().warning(picture.words)
            else:
                self.get_logger().info(picture.words)
        self._status_pub.publish(status_message(picture, self.get_clock().now().to_msg()))
        return picture


def main(args: list[str] | None = None) -> int:
    """Run the simulator until SIGINT or SIGTERM."""
    return run(SimulatorNode, args)


if __name__ == "__main__":
    sys.exit(main())
