"""Has a simulated robot do tasks, one after the other, under a controller, and says what came of each.

For each task: the controller is disabled, nodes that remember are made to forget, the simulator is reset to the task,
the controller is enabled, and the outcome awaited. One line of JSON goes to the standard output four times a second,
pictures and a film into the folder `out`.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from thinkjepa_ros.bridge.control_view import ControlView
from thinkjepa_ros.bridge.parameter import Parameters
from thinkjepa_ros.bridge.simulator_parameters import CONDUCTOR, KINDS
from thinkjepa_ros.msg import NodeStatus

_TELL_S, _POLL_S = 0.25, 0.02
_ANSWER_S = 5.0  # longest wait for one answer of a service; then it is asked again
_SETTLE_S = 2.0  # longest wait for what nodes know of each other
_AFTER_S = 1.0  # how long a task that was done is still shown
_ACTIVE = (
    NodeStatus.WAITING, NodeStatus.WARMING, NodeStatus.RUNNING, NodeStatus.STALE, NodeStatus.HALTED
)  # fmt: skip


class ConductError(RuntimeError):
    """The tasks cannot be done; the text says why."""


class _Stopped(Exception):
    """Somebody wants an end."""


def parse_tasks(words: str) -> list[tuple[str, int]]:
    """kind and seed of each task in "kind:seed,kind:seed". Raises ConductError."""
    tasks = []
    for word in filter(None, map(str.strip, words.split(","))):
        kind, _, seed = word.partition(":")
        if kind not in KINDS or not seed.isdigit():
            raise ConductError(f"{word!r} is no task; write kind:seed with a kind of {', '.join(KINDS)}")
        tasks.append((kind, int(seed)))
    if not tasks:
        raise ConductError("there is no task; name some: -p tasks:=reach:2000000")
    return tasks


class Conductor(Node):
    """`conduct` runs in one thread while another spins. Raises ConductError."""

    def __init__(self) -> None:
        super().__init__("conductor")
        self.get = get = Parameters(self, CONDUCTOR, lambda changed: None).__getitem__
        self.tasks = parse_tasks(get("tasks"))
        self.results: list[dict[str, Any]] = []
        self._stop, self._began, self._doing = threading.Event(), time.monotonic(), "starting"
        names = list(dict.fromkeys(filter(None, map(str.strip, get("forgetful").split(",")))))
        simulator, controller = get("simulator"), get("controller")
        self._nodes = list(dict.fromkeys([simulator, controller, *names]))
        out = Path(get("out")).expanduser().resolve() if get("out") else None
        picture_s, film_hz = 1.0 / get("picture_rate_hz"), get("film_rate_hz")
        self.view = ControlView(self, simulator, controller, names, out, picture_s, film_hz)
        self.view.note = get("note")
        self._set: Any = self.create_client(SetParameters, f"{simulator}/set_parameters")
        self._reset: Any = self.create_client(Trigger, f"{simulator}/reset")
        self._enable: Any = self.create_client(SetBool, f"{controller}/enable")
        self._forgetful: dict[str, Any] = {
            name: self.create_client(ChangeState, f"{name}/change_state") for name in names
        }
        self.create_timer(_TELL_S, self.tell, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stop(self) -> None:
        """End soon; thread-safe."""
        self._stop.set()

    def tell(self) -> None:
        """One line of JSON about now."""
        view = self.view
        told = {
            "t": round(time.monotonic() - self._began, 2),
            "doing": self._doing,
            "task": view.task,
            "tasks": len(self.tasks),
            "outcome": view.outcome,
            "plan": view.plan if view.fresh else {},
            "plans": view.plans,
            "images": view.images,
            "thought": view.text,
            "nodes": {name: {"words": s.words, "state": s.state} for name, s in view.statuses.items()},
            "results": self.results,
        }
        print(json.dumps(_plain(told)), flush=True)

    # ---- the thread that conducts

    def conduct(self) -> None:
        """Do all tasks, or as many as there are until `stop`. Raises ConductError."""
        with contextlib.suppress(_Stopped):
            self._await_nodes()
            for kind, seed in self.tasks:
                self._do(kind, seed)
                self.tell()
            self._doing = "over"

    def _pause(self) -> None:
        if self._stop.wait(_POLL_S):
            raise _Stopped

    def _wait(self, condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ConductError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
            self._check()
            self._pause()

    def _check(self) -> None:
        """A node that says it does not work will not do so by waiting. Raises ConductError."""
        for name, status in self.view.statuses.items():
            if status.state == NodeStatus.ERROR:
                raise ConductError(f"the {name} does not work: {status.words}")

    def _ask(self, client: Any, request: Any) -> Any:
        """The answer of a service. Asked again where none comes: an answer may be lost while nodes find each other."""
        deadline = time.monotonic() + self.get("ready_timeout_s")
        self._wait(client.service_is_ready, f"the service {client.srv_name}", self.get("ready_timeout_s"))
        while True:
            future, asked = client.call_async(request), time.monotonic()
            while not future.done() and time.monotonic() - asked < _ANSWER_S:
                self._pause()
            if future.done():
                return future.result()
            client.remove_pending_request(future)
            if time.monotonic() > deadline:
                raise ConductError(f"no answer from the service {client.srv_name}")

    def _await_nodes(self) -> None:
        self._doing = "waiting for the nodes"

        def missing() -> list[str]:
            statuses = self.view.statuses
            return [name for name in self._nodes if name not in statuses or statuses[name].state not in _ACTIVE]

        def words() -> str:
            said = (f"{n}: {self.view.statuses[n].words if n in self.view.statuses else 'silent'}" for n in missing())
            return f"nodes that are active ({', '.join(said)})"

        self._wait(lambda: not missing(), words, self.get("ready_timeout_s"))

    def _do(self, kind: str, seed: int) -> None:
        """One task, with its result."""
        self._doing = "resetting"
        self.view.begin(f"{kind}:{seed}")
        self._ask(self._enable, SetBool.Request(data=False))
        self._forget()
        wanted = [Parameter("kind", value=kind).to_parameter_msg(), Parameter("seed", value=seed).to_parameter_msg()]
        for result in self._ask(self._set, SetParameters.Request(parameters=wanted)).results:
            if not result.successful:
                raise ConductError(f"the simulator does not take {kind}:{seed}: {result.reason}")
        epoch = self.view.outcome.get("epoch")
        answer = self._ask(self._reset, Trigger.Request())
        if not answer.success:
            raise ConductError(f"the simulator does not begin {kind}:{seed}: {answer.message}")
        self._wait(lambda: self.view.outcome.get("epoch") != epoch, "the outcome after a reset", _ANSWER_S)
        self.view.begin(answer.message)
        self._doing = "enabling the controller"
        deadline = time.monotonic() + self.get("ready_timeout_s")
        while not (answer := self._ask(self._enable, SetBool.Request(data=True))).success:
            self._doing = f"enabling the controller: {answer.message}"
            if time.monotonic() > deadline:
                raise ConductError(f"the controller cannot be enabled: {answer.message}")
            self._check()
            self._pause()
        self.view.filming = True
        self._await_outcome(kind, seed)
        self.view.filming = False
        self._ask(self._enable, SetBool.Request(data=False))

    def _forget(self) -> None:
        """Nodes that remember begin anew, and listen again when this returns: a lamp is lit for less than 1 s."""
        for transition, listening in (
            (Transition.TRANSITION_DEACTIVATE, False),
            (Transition.TRANSITION_ACTIVATE, True),
        ):
            for name, client in self._forgetful.items():
                if not self._ask(client, ChangeState.Request(transition=Transition(id=transition))).success:
                    raise ConductError(f"the {name} cannot be made to forget: transition {transition} is refused")
            deadline = time.monotonic() + _SETTLE_S
            while time.monotonic() < deadline and any(self._listens(n) != listening for n in self._forgetful):
                self._pause()

    def _listens(self, name: str) -> bool:
        """Whether a node is subscribed to the camera, as far as is known here."""
        return name in {info.node_name for info in self.get_subscriptions_info_by_topic("camera/image/compressed")}

    def _await_outcome(self, kind: str, seed: int) -> None:
        self._doing, began, plans = "running", time.monotonic(), self.view.plans
        outcome, over = self.view.outcome, False
        began_sim_s = outcome["time_s"]
        while not over:
            outcome = dict(self.view.outcome)
            late = time.monotonic() - began > self.get("task_timeout_s")
            over = late or outcome["done_after"] is not None or outcome["actions"] > outcome["most_actions"]
            self._check()
            self._pause()
        done, seconds = outcome["done_after"], time.monotonic() - began
        self.results.append(
            {
                **outcome,
                "kind": kind,
                "seed": seed,
                "success": done is not None and done <= outcome["most_actions"],
                "seconds": round(seconds, 2),
                "pace": round((outcome["time_s"] - began_sim_s) / seconds, 3),  # simulated seconds per second
                "model_id": self.view.plan.get("model_id", ""),
                "plans": self.view.plans - plans,
                "timed_out": late,
            }
        )
        until = time.monotonic() + _AFTER_S
        while time.monotonic() < until:
            self._pause()


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(args: list[str] | None = None) -> int:
    """Entry point: 0 when all tasks were tried or it was stopped, 1 with a sentence when they cannot be."""
    rclpy.init(args=args)
    conductor: Conductor | None = None
    executor = SingleThreadedExecutor()
    thread = threading.Thread(target=_spin, args=(executor,), name="spin", daemon=True)
    status = 0
    try:
        conductor = Conductor()
        executor.add_node(conductor)
        thread.start()
        rclpy.get_default_context().on_shutdown(conductor.stop)
        conductor.conduct()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (ConductError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"conductor: {error}", file=sys.stderr)
        status = 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # the context first: it wakes the spinning thread, which must be gone before what it waits on is taken away
        rclpy.try_shutdown()
        if thread.is_alive():
            thread.join(2.0)
        executor.shutdown()
        if conductor is not None:
            conductor.view.close()
            if conductor.view.trouble:
                print(f"conductor: no film: {conductor.view.trouble}", file=sys.stderr)
            conductor.destroy_node()
    return status


def _spin(executor: SingleThreadedExecutor) -> None:
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    sys.exit(main())
