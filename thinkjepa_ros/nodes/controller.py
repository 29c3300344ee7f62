"""The controller node: images, state and a goal in; plans and guarded commands out.

Three threads. The executor files what arrives. The worker plans from the newest image. The drive commands the robot: on
steady time, through the guard, and whatever the other two do (`control.drive`). docs/controller.md says what stops the
robot and when.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from rclpy.clock import Clock, ClockType

from thinkjepa_ros.bridge import control_report, messages, parameters, qos
from thinkjepa_ros.bridge.buttons import Buttons
from thinkjepa_ros.bridge.cockpit import Cockpit
from thinkjepa_ros.bridge.command_output import CommandOutput
from thinkjepa_ros.bridge.control_parameters import limits_of, options_of, timeouts_of
from thinkjepa_ros.bridge.guidance import GuidanceBox
from thinkjepa_ros.bridge.ledger import Entry, Fate
from thinkjepa_ros.bridge.lifecycle import run
from thinkjepa_ros.bridge.node_base import CameraNode
from thinkjepa_ros.bridge.plans import plan_to_message
from thinkjepa_ros.bridge.robot_input import make_arm
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.bridge.window import BrokenImage, FrameWindow
from thinkjepa_ros.bridge.wishes import Asking
from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control.drive import Report
from thinkjepa_ros.control.watch import Cause, Input, Watch
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.msg import Plan as PlanMsg
from thinkjepa_ros.stream.frames import Gap
from thinkjepa_ros.stream.slot import NewestWins
from thinkjepa_ros.values import Plan

if TYPE_CHECKING:
    from thinkjepa_ros.control.controller import Controller
    from thinkjepa_ros.control.outcome import Outcome


class ControllerNode(CameraNode):
    """See docs/parameters.md for its parameters and msg/Plan.msg for what it says."""

    table = parameters.CONTROLLER
    task = "control"
    explained = (CheckpointError, FileNotFoundError, ValueError)

    def __init__(self, **kwargs: Any) -> None:
        """kwargs: those of rclpy.node.Node."""
        super().__init__("controller", **kwargs)
        self._controller: Controller | None = None
        self._slot: NewestWins[Entry] = NewestWins()
        self._window: FrameWindow | None = None
        self._guidance: GuidanceBox | None = None
        self._guidance_sub: Any = None
        self._output: CommandOutput | None = None
        self._cockpit: Cockpit | None = None
        self._outcome: Outcome | None = None
        self._changed = False  # options that the worker has not seen
        self._asking = Asking(self)
        # Of the whole life of the process: a stop that was pressed while the node was inactive holds.
        self._watch = Watch(timeouts_of(self.parameters))
        self._buttons = Buttons(self, self._watch, lambda: self.label, self.notice)
        self.create_timer(self.period_s, self._every_cycle, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ---- life cycle

    @property
    def period_s(self) -> float:
        return 1.0 / self.parameters["control_rate_hz"]

    @property
    def hang_s(self) -> float:
        return self.parameters["hang_timeout_s"]

    def load(self) -> Controller:
        import cv2
        import torch

        from thinkjepa_ros.control.controller import Controller

        p = self.parameters
        limits_of(p)  # what contradicts is said before anything is loaded
        make_arm(p.__getitem__)
        torch.set_num_threads(p["cpu_threads"])
        cv2.setNumThreads(p["cpu_threads"])
        policy, score, ahead = (model_folder(p[x], x) if p[x] else None for x in ("policy", "score", "ahead"))
        parts = (policy, p["device"], p["dtype"], score, ahead)
        controller = Controller.load(model_folder(p["model"], "imagination"), options_of(p), *parts)
        controller.warm_up()
        self.get_logger().info(f"{controller.model_id} imagines on {controller.words}")
        return controller

    def adopt(self, model: Controller) -> None:
        self._controller = model
        self.model_id, self.trained, self._domain = model.model_id, model.trained, model.domain
        self._guidance = GuidanceBox(model.check_guidance)
        self._plan_pub = self.advertise(PlanMsg, "~/plan", qos.RESULTS)
        p = self.parameters
        arm = make_arm(p.__getitem__) if p["command_type"] == "trajectory" else None
        self._output = CommandOutput(self, p["base_frame"], arm)

    def prepare(self) -> None:
        assert self._controller is not None and self._guidance is not None and self._output is not None
        self._watch.disable()
        self._watch.forget()
        self._slot, self._outcome, self._changed = NewestWins(), None, True
        self._window = FrameWindow(self._controller, self.ledger, self.notice)
        self._guidance.clear()
        self._cockpit = Cockpit(
            self, self.parameters, self._watch, self._output, self._complain, lambda error: self.fail("no drive", error)
        )
        self._guidance_sub = self.create_subscription(GuidanceMsg, "guidance", self._on_guidance, qos.LATCHED)

    def stop(self) -> None:
        """First of all the robot; then what moved it."""
        cockpit, self._cockpit = self._cockpit, None
        if cockpit is not None and not cockpit.drive.close():
            self.get_logger().error("the drive does not return; the last command ends at rest by itself")
        super().stop()
        if cockpit is not None:
            cockpit.close()
        if self._guidance_sub is not None:
            self.destroy_subscription(self._guidance_sub)
            self._guidance_sub = None

    def release(self) -> None:
        super().release()
        if self._output is not None:
            self._output.close()
        self._controller = self._window = self._output = None

    def wake(self) -> None:
        self._slot.close()

    def pending(self) -> list[Entry]:
        return self._slot.clear()

    # ---- callbacks (executor thread)

    def on_frame(self, entry: Entry) -> None:
        assert self._window is not None
        self._watch.saw(Input.IMAGE, self._age(entry.stamp_ns))
        self._window.add(entry)
        displaced = self._slot.put(entry)
        if displaced is not None:
            self.ledger.settle(displaced, Fate.SUPERSEDED)

    def on_jump(self, last_ns: int | None, backward: bool) -> None:
        self._watch.forget()
        self.ledger.settle_pending(self._slot.clear(), Fate.SUPERSEDED)
        if self._cockpit is not None:
            self._cockpit.forget("the clock jumped, no plan has come since")
        if self._window is not None and self._guidance is not None:
            self._window.clear()
            self._guidance.jump(last_ns, backward)

    def on_parameters(self, changed: set[str]) -> str | None:
        try:
            if self._controller is not None:
                self._controller.check_options(options_of(self.parameters))
            self._watch.timeouts = timeouts_of(self.parameters)
        except ValueError as error:
            return str(error)
        self._changed = True
        return None

    def _on_guidance(self, message: GuidanceMsg) -> None:
        assert self._guidance is not None
        try:
            guidance = messages.guidance_from_message(message)
        except messages.MessageError as error:
            self._guidance.refuse("malformed")
            return self._complain(f"guidance refused: {error}")
        if refusal := self._guidance.offer(guidance, self.input.newest_ns):
            return self._complain(f"guidance refused: {refusal}")
        self._watch.saw(Input.GUIDANCE, self._age(guidance.stamp_ns))

    def _every_cycle(self) -> None:
        self._buttons.match()
        if self.label == "active":
            self.notice()
            verdict = self._watch.verdict()
            if verdict.ask_thinker and Cause.DISABLED not in {halt.cause for halt in verdict.halts}:
                self._complain(self._asking.ask(self.parameters["ask_period_s"]))

    def _complain(self, words: str) -> None:
        if words:
            self.get_logger().warning(words, throttle_duration_sec=5.0)
            self.notice(words)

    def _age(self, ns: int) -> float:
        """Seconds by the ROS clock."""
        return (self.get_clock().now().nanoseconds - ns) / messages.NS

    # ---- worker thread

    def loop(self) -> None:
        cockpit = self._cockpit
        assert self.worker is not None and self._window is not None and cockpit is not None
        while self.pacer.wait():
            entry = self._slot.get()
            if entry is None:
                return
            self.pacer.begin()
            try:
                with self.worker.busy():
                    self._turn(entry, cockpit)
            except BrokenImage as error:
                self._window.discard(entry)
                self.ledger.settle_pending([entry], Fate.REFUSED, "bad_image")
                self._complain(f"image refused: {error}")
            except Exception as error:  # out of memory, a driver: the next plan may work, this one never leaves
                self.ledger.settle_pending([entry], Fate.REFUSED, "model_error")
                if not self.pacer.closed:
                    self.trouble(f"no plan: {type(error).__name__}: {error}")

    def _turn(self, entry: Entry, cockpit: Cockpit) -> None:
        controller, window, guidance = self._controller, self._window, self._guidance
        assert controller is not None and window is not None and guidance is not None
        if self._changed:
            self._changed = False
            controller.set_options(options_of(self.parameters))
        stamps = window.end_at(entry, lambda width, height: self.input.camera)
        entry.rgb, ns = None, entry.stamp_ns
        if isinstance(stamps, Gap):
            self.warming = stamps.reason
            self.ledger.settle_pending([entry], Fate.USED)
            return
        cockpit.wishes.show(controller, self.input.camera)
        thought = guidance.current(ns)
        controller.guide(thought)
        pose = cockpit.place.at(ns, entry.frame_id)
        grip = cockpit.drive.closedness
        outcome = controller.plan(stamps, cockpit.robot.at(ns), pose, lambda: self.pacer.closed, grip)
        if self.pacer.closed or entry.epoch != self.input.epoch:
            self.ledger.settle_pending([entry], Fate.SUPERSEDED)  # the plan belongs to a life that is over
            return
        self._outcome, self.warming = outcome, ""
        if self.parameters["guidance_timeout_s"] and thought is not None and not controller.heeds(thought):
            cockpit.no_plan("the thinker has not thought about this instruction yet")
        elif outcome.plan is None:
            cockpit.no_plan(outcome.reason)
        else:
            self._follow(outcome, outcome.plan, cockpit, ns)
            if thought is not None and not math.isnan(outcome.plan.guidance_age_s):
                guidance.used(thought)
        self.ledger.settle(entry, Fate.USED)
        self.success()

    def _follow(self, outcome: Outcome, plan: Plan, cockpit: Cockpit, seen_ns: int) -> None:
        age = self._age(seen_ns)  # what is left of an older plan keeps its own time
        if plan.source == "policy" and math.isnan(plan.energy):  # nothing was imagined
            self._watch.saw(Input.PLAN, age)
        else:
            self._watch.planned(plan.energy, plan.hold_energy, age)
        cockpit.drive.follow(plan, self._age(plan.stamp_ns))
        message = plan_to_message(plan, self.parameters["base_frame"], planning_s=outcome.planning_s)
        message.model_id, message.domain, message.trained = self.model_id, self._domain, bool(self.trained)
        self._plan_pub.publish(message)
        self.ledger.publish(age)

    # ---- telling

    def _state(self) -> tuple[int, str]:
        state, details = super()._state()
        stopped = self._cockpit.stopped if self._cockpit is not None and self.label == "active" else ""
        if state == NodeStatus.RUNNING and stopped:
            return NodeStatus.HALTED, stopped
        return state, "; ".join(filter(None, (details, stopped)))

    @property
    def _driven(self) -> Report | None:
        return self._cockpit.drive.report if self._cockpit is not None else None

    def remark(self) -> str:
        return control_report.remark(self._driven, self._output.reasons if self._output is not None else ())

    def picture_extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {"extra": control_report.figures(self._driven, self._outcome, self._asking.count)}
        if self._guidance is not None:
            extras["guidance"] = self._guidance.counts()
        if self._outcome is not None and self._outcome.plan is not None:
            extras["guidance_age_s"] = self._outcome.plan.guidance_age_s
        return extras


def main(args: list[str] | None = None) -> int:
    """Run the controller until SIGINT or SIGTERM."""
    return run(ControllerNode, args, last_words=True)


if __name__ == "__main__":
    sys.exit(main())
