"""The controller node against a robot that follows its commands: whatever goes wrong, the arm rests in time.

Times are those of the steady clock, measured at the arm. The promises are in docs/controller.md.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from control_kit import (
    ACCELERATION,
    LIFETIME_S,
    SMALL,
    STOP_S,
    WIDE,
    Robot,
    build_imagination,
    hosted,
)
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from ros_kit import LATCHED, Peer, Processes, reserved_domain, wait_until
from std_srvs.srv import Trigger

from thinkjepa_ros.bridge.messages import NS, make_header, stamp_ns
from thinkjepa_ros.bridge.plans import plan_from_message
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.nodes.controller import ControllerNode

pytestmark = pytest.mark.alone

IMAGE_S, STATE_S, PLAN_S = 0.5, 0.2, 0.6  # the defaults of the timeouts
FASTEST = 0.5  # m/s, the default of max_speed_mps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_imagination(tmp_path_factory.mktemp("models") / "imagination")


@pytest.fixture(scope="module")
def cell(folder: Path) -> Iterator[tuple[Robot, ControllerNode]]:
    """A robot and a controller that serve all quick tests, one after the other."""
    with reserved_domain(), Peer() as peer, Robot(peer) as robot:
        yield robot, hosted(peer, folder)


@pytest.fixture
def running(cell: tuple[Robot, ControllerNode]) -> Iterator[tuple[Robot, ControllerNode]]:
    """In motion, whatever the test before has left behind."""
    robot, node = cell
    robot.heal()
    robot.show_goal()
    assert robot.enable().success
    robot.moving()
    yield robot, node
    robot.heal()
    robot.enable(False)


def put(robot: Robot, node: ControllerNode, **values: object) -> None:
    wanted = [Parameter(name, value=value) for name, value in values.items()]
    results = robot.peer.call(node.set_parameters, wanted)
    assert all(result.successful for result in results), results


# ---------------------------------------------------------------- quick: one life of a node in this process


def test_it_moves_only_when_it_was_enabled(cell: tuple[Robot, ControllerNode]) -> None:
    robot, _ = cell
    robot.show_goal()
    wait_until(lambda: robot.plans, "plans while disabled")
    robot.says("disabled", NodeStatus.HALTED)
    assert robot.speed == 0.0 and robot.twists == []  # others may drive the robot
    assert robot.enable().success
    robot.moving()
    plan = plan_from_message(robot.plans[-1])
    assert plan.energy < plan.hold_energy and robot.plans[-1].header.frame_id == "base_link"
    assert not robot.plans[-1].trained and robot.plans[-1].model_id == "small (untrained)"
    status = robot.says("moving", NodeStatus.RUNNING)
    assert status.used > 0 and status.published > 0
    asked = time.monotonic()
    assert robot.enable(False).success
    assert robot.rest_after(asked) < STOP_S
    wait_until(lambda: time.monotonic() - robot.twists[-1][0] > 2 * STOP_S, "silence")


def test_the_emergency_stop_latches_until_it_was_released_and_reset(running: tuple[Robot, ControllerNode]) -> None:
    robot, _ = running
    assert robot.rest_after(robot.press()) < STOP_S
    robot.says("emergency stop is pressed", NodeStatus.HALTED)
    assert not robot.enable().success and not robot.reset().success  # it is still pressed
    robot.press(False)
    robot.says("emergency stop is latched; call reset")
    assert "reset" in robot.enable().message and robot.speed == 0.0
    assert robot.reset().success
    robot.says("the controller is disabled")
    assert robot.rest_after(time.monotonic()) == 0.0  # a reset alone sets nothing in motion
    assert robot.enable().success
    robot.moving()


def test_stale_images_stop_the_robot(running: tuple[Robot, ControllerNode]) -> None:
    robot, _ = running
    robot.images = False
    assert robot.rest_after(robot.last_image) < IMAGE_S + STOP_S
    robot.says("the image is")
    robot.images = True
    robot.moving()  # it goes on by itself


def test_a_stale_state_stops_the_robot(running: tuple[Robot, ControllerNode]) -> None:
    robot, _ = running
    robot.states = False
    assert robot.rest_after(robot.last_state) < STATE_S + STOP_S
    robot.says("the state is")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_no_number_stops_the_robot_at_once(running: tuple[Robot, ControllerNode], value: float) -> None:
    robot, _ = running
    began = time.monotonic()
    robot.point_as = (0.0, value, 0.2)
    assert robot.rest_after(began) < STOP_S
    robot.says("no number", NodeStatus.HALTED)


def test_a_plan_that_does_not_beat_holding_holds_and_asks_the_thinker(running: tuple[Robot, ControllerNode]) -> None:
    robot, node = running
    asked: list[Trigger.Request] = []

    def think(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        asked.append(request)
        response.success = True
        return response

    service = robot.peer.call(robot.peer.node.create_service, Trigger, "/thinker/think", think)
    began = time.monotonic()
    put(robot, node, margin=1e6, ask_period_s=0.2)
    assert robot.rest_after(began) < 0.2 + STOP_S  # the margin is looked at with the next plan
    robot.says("does not beat holding still", NodeStatus.HALTED)
    wait_until(lambda: len(asked) >= 2, "the thinker asked")
    put(robot, node, margin=0.0, ask_period_s=1.0)
    robot.moving()
    robot.peer.call(robot.peer.node.destroy_service, service)


def test_without_a_goal_it_stops(running: tuple[Robot, ControllerNode]) -> None:
    robot, _ = running
    began = time.monotonic()
    robot.take_goal()
    assert robot.rest_after(began) < 0.2 + STOP_S
    robot.says("no goal image", NodeStatus.HALTED)


def test_a_planner_that_is_stuck_does_not_keep_the_robot_from_stopping(
    running: tuple[Robot, ControllerNode],
) -> None:
    """A budget that takes seconds: the worker is inside the model, and the drive goes on."""
    robot, node = running
    put(robot, node, samples=4096, iterations=60, hang_timeout_s=1.0)
    wait_until(lambda: node.busy_s > 0.1, "a long plan")
    newest = stamp_ns(robot.plans[-1].header.stamp)
    began = time.monotonic() - (robot.peer.node.get_clock().now().nanoseconds - newest) / NS
    assert robot.rest_after(began) < PLAN_S + STOP_S
    robot.says("the plan is")
    robot.says("does not return", NodeStatus.HUNG)
    gaps = np.diff([t for t, _ in robot.twists[-40:]])
    assert np.median(gaps) < 0.1  # rest is said all the time meanwhile
    put(robot, node, samples=16, iterations=1, hang_timeout_s=5.0)


def test_every_reason_is_in_the_diagnostics(running: tuple[Robot, ControllerNode]) -> None:
    robot, _ = running
    arrays = robot.peer.collect(DiagnosticArray, "/diagnostics")
    robot.states = False

    def told() -> dict[str, str] | None:
        for array in arrays[-3:]:
            for status in array.status:
                values = {pair.key: pair.value for pair in status.values}
                if status.name.endswith("controller: control") and "the state is" in values["stopped because"]:
                    return values
        return None

    values = wait_until(told, lambda: f"the reason in {arrays[-1:]}")
    assert float(values["age of state (s)"]) > STATE_S and values["commands"] == "sent"


def test_deactivation_stops_the_robot_first(running: tuple[Robot, ControllerNode]) -> None:
    robot, node = running
    began = time.monotonic()
    task = robot.peer.executor.create_task(node.transition, "deactivate")
    assert robot.rest_after(began) < STOP_S
    wait_until(task.done, "deactivation")
    last = robot.twists[-1][1].twist.linear
    assert (last.x, last.y, last.z) == (0.0, 0.0, 0.0)
    assert "activate it first" in robot.enable().message
    task = robot.peer.executor.create_task(node.transition, "activate")
    wait_until(lambda: task.done() and node.label == "active", "activation")
    robot.says("disabled")  # it begins disabled, whatever it was before
    assert robot.speed == 0.0


# ---------------------------------------------------------------- slow: processes


def started(processes: Processes, robot: Robot, folder: Path, *arguments: str) -> object:
    """A controller of its own process that moves the robot."""
    options = {"model": folder, **SMALL, **WIDE}
    flags = [word for name, value in options.items() for word in ("-p", f"{name}:={value}")]
    process = processes.node("controller", *flags, *arguments)
    wait_until(lambda: robot.statuses and robot.statuses[-1].state == NodeStatus.HALTED, lambda: process.output, 90.0)
    robot.show_goal()
    wait_until(lambda: robot.plans, lambda: f"plans; {robot.words}", 30.0)
    assert robot.enable().success
    robot.moving(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM])
def test_the_arm_rests_when_the_controller_is_killed_in_motion(
    processes: Processes, peer: Peer, folder: Path, number: signal.Signals
) -> None:
    with Robot(peer) as robot:
        process = started(processes, robot, folder)
        began = time.monotonic()
        process.send(number)
        rest = robot.rest_after(began, stays_s=1.0)
        assert rest < STOP_S
        # the commands that were under way, then what the last one promised
        assert rest < 0.06 + LIFETIME_S + FASTEST / ACCELERATION + 0.05
        if number in (signal.SIGINT, signal.SIGTERM):
            last = robot.twists[-1][1].twist.linear
            assert (last.x, last.y, last.z) == (0.0, 0.0, 0.0), "a stop is the last thing that it says"
            status, took = process.end(number)
            assert status == 0 and took < 5.0 and "Traceback" not in process.output, process.output
        elif number == signal.SIGSTOP:
            process.send(signal.SIGCONT)
            robot.says("moving")


@pytest.mark.slow
def test_stale_guidance_stops_the_robot(peer: Peer, folder: Path) -> None:
    from thinkjepa_ros.bridge.messages import guidance_to_message
    from thinkjepa_ros.msg import Guidance as GuidanceMsg
    from thinkjepa_ros.values import Guidance

    with Robot(peer) as robot:
        hosted(peer, folder, guidance_timeout_s=1.0)
        thoughts = peer.publisher(GuidanceMsg, "/guidance", LATCHED)
        robot.show_goal()
        assert robot.enable().success
        robot.says("no guidance has come yet", NodeStatus.HALTED)
        assert robot.speed == 0.0
        wait_until(lambda: robot.plans, "plans")
        seen = stamp_ns(robot.plans[-1].header.stamp)
        thought = Guidance(np.zeros((2, 2, 8), np.float32), (0, 1), seen, 30.0, sequence=1, instruction="")
        thoughts.publish(guidance_to_message(thought))
        robot.moving()
        born = time.monotonic() - (peer.node.get_clock().now().nanoseconds - seen) / NS
        assert robot.rest_after(born) < 1.0 + STOP_S
        robot.says("the guidance is", NodeStatus.HALTED)


@pytest.mark.slow
def test_a_clock_that_jumps_stops_the_robot_until_all_is_known_again(peer: Peer, folder: Path) -> None:
    """Images and states of two seconds ago, as of a recording that begins again."""
    with Robot(peer) as robot:
        node = hosted(peer, folder)
        robot.show_goal()
        assert robot.enable().success
        robot.moving()
        robot.image_lag_s = robot.state_lag_s = 30.0
        began = time.monotonic()
        assert robot.rest_after(began) < STATE_S + STOP_S
        wait_until(lambda: node.input.jumps == 1, "the jump")
        robot.image_lag_s = robot.state_lag_s = 0.0
        robot.moving()
        assert node.input.jumps == 2


@pytest.mark.slow
def test_a_pose_in_another_frame_is_no_state(peer: Peer, folder: Path) -> None:
    with Robot(peer) as robot:
        hosted(peer, folder)
        robot.show_goal()
        assert robot.enable().success
        robot.moving()
        robot.states = False
        began = time.monotonic()
        from thinkjepa_ros.bridge.cell_messages import pose_message, tool_pose

        ns = peer.node.get_clock().now().nanoseconds
        robot._pose.publish(pose_message(tool_pose(robot.point), make_header(ns, "map")))
        assert robot.rest_after(began) < STOP_S
        robot.says("publish it in 'base_link'")


@pytest.mark.slow
def test_it_never_leaves_the_workspace(peer: Peer, folder: Path) -> None:
    box = {"workspace_x_min_m": -0.05, "workspace_x_max_m": 0.05, "workspace_y_min_m": 0.3, "workspace_y_max_m": 0.4,
           "workspace_z_min_m": 0.15, "workspace_z_max_m": 0.25}  # fmt: skip
    with Robot(peer) as robot:
        hosted(peer, folder, **box)
        robot.show_goal()
        assert robot.enable().success
        robot.moving(0.02)
        low, high = (np.array([box[f"workspace_{axis}_{end}_m"] for axis in "xyz"]) for end in ("min", "max"))
        end = time.monotonic() + 6.0
        reached = np.zeros(3)
        while time.monotonic() < end:
            point = robot.point
            reached = np.maximum(reached, np.abs(point - (low + high) / 2))
            assert (point > low - 0.002).all() and (point < high + 0.002).all()
            time.sleep(0.005)
        assert reached.max() > 0.03


@pytest.mark.slow
def test_the_simulated_arm_rests_when_the_controller_is_killed_in_motion(
    processes: Processes, peer: Peer, folder: Path
) -> None:
    """The same with contacts, servos and a camera that is rendered: three processes over real topics."""
    pytest.importorskip("mujoco")
    processes.node("simulator", "-p", "kind:=reach", "-p", "seed:=1000003")
    options = {"model": folder, **SMALL, "image_transport": "compressed"}
    flags = [word for name, value in options.items() for word in ("-p", f"{name}:={value}")]
    names = {"image": "camera/image", "camera_info": "camera/camera_info", "camera_pose": "camera/pose"}
    controller = processes.node("controller", *flags, *(w for a, b in names.items() for w in ("-r", f"{a}:={b}")))
    places: list[tuple[float, np.ndarray]] = []

    def arrived(message: PoseStamped) -> None:
        p = message.pose.position
        places.append((time.monotonic(), np.array([p.x, p.y, p.z])))

    peer.node.create_subscription(PoseStamped, "/ee_pose", arrived, 10)
    robot = Robot(peer, follow=False)  # it only enables and listens: its threads are not started
    wait_until(lambda: robot.plans and robot.statuses, lambda: f"{robot.words}; {controller.output}", 90.0)
    assert robot.enable().success

    def speed(over_s: float = 0.1) -> float:
        recent = [item for item in places[-50:] if item[0] > time.monotonic() - over_s]
        if len(recent) < 3:
            return 0.0
        return float(np.linalg.norm(recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]))

    wait_until(lambda: speed() > 0.08, lambda: f"motion; {robot.words}")
    killed = time.monotonic()
    controller.send(signal.SIGKILL)
    time.sleep(STOP_S + 1.0)
    after = [item for item in places if item[0] > killed]
    still = [np.linalg.norm(place - after[-1][1]) < 0.002 for _, place in after]
    rested = after[len(still) - 1 - still[::-1].index(False) + 1][0] - killed if not all(still) else 0.0
    print(f"the simulated arm was at rest {rested:.3f} s after the controller was killed")
    assert rested < STOP_S + 0.1  # what the servos need to come to a stand, and one period of the state
