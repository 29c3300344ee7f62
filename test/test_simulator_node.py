"""The simulated robot: follows what it should, refuses the rest with a reason, and comes to rest by itself."""

from __future__ import annotations

import json
import math
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mujoco")

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, TwistStamped, Vector3
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_kit import LATCHED, NS, Peer, accounted, ask, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Float32, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from thinkjepa_ros.bridge.arm_commands import (
    MOST_SPEED,
    CommandError,
    JointReader,
    check_stamp,
    closedness_of,
    velocity_of,
)
from thinkjepa_ros.bridge.images import to_camera, to_rgb
from thinkjepa_ros.bridge.ledger import Ledger
from thinkjepa_ros.bridge.live_cell import MOST_BEHIND_S, Inbox, LiveCell, Order, Pace
from thinkjepa_ros.bridge.messages import make_header, stamp_ns
from thinkjepa_ros.bridge.truth import pose_matrix
from thinkjepa_ros.data.sim.arm import ARM_JOINTS, FINGER_JOINTS, FINGER_TRAVEL, HOME
from thinkjepa_ros.data.sim.tasks import WORKSPACE, draw_task
from thinkjepa_ros.data.sim.workcell import ACCELERATION, Workcell
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.nodes.simulator import SimulatorNode

TIMEOUT_S = 0.25
#: How late a message may be on a busy machine; a command counts from when it is heard.
LATE_S = 0.25
READER = JointReader()
SEED = 2_000_003


def twist(x: float = 0.0, y: float = 0.0, z: float = 0.0, ns: int = 0, frame: str = "base_link") -> TwistStamped:
    message = TwistStamped(header=make_header(ns, frame))
    message.twist.linear = Vector3(x=float(x), y=float(y), z=float(z))
    return message


def trajectory(rows, ages, names=ARM_JOINTS, frame: str = "") -> JointTrajectory:
    points = [
        JointTrajectoryPoint(
            positions=[float(v) for v in row], time_from_start=Duration(sec=int(age), nanosec=round(age % 1 * 1e9))
        )
        for row, age in zip(rows, ages, strict=True)
    ]
    return JointTrajectory(header=Header(frame_id=frame), joint_names=list(names), points=points)


def refused(reason: str, function, *args) -> None:
    with pytest.raises(CommandError) as caught:
        function(*args)
    assert caught.value.reason == reason and len(str(caught.value)) > 20


# ---- without ROS running


@pytest.fixture
def live():
    with Workcell(draw_task("reach", SEED), timeout_s=TIMEOUT_S) as cell:
        yield LiveCell(cell, TIMEOUT_S, 0)


def places(live: LiveCell, seconds: float) -> list[np.ndarray]:
    """Where the tool is every 20 ms."""
    found = [live.cell.state()[:3]]
    for _ in range(round(seconds / 0.02)):
        live.advance(0.02)
        found.append(live.cell.state()[:3])
    return found


def test_a_velocity_lives_its_time_however_often_the_gripper_is_told(live):
    side = -np.sign(live.cell.task.start[0])
    live.obey(Order(velocity=np.array([side * 0.2, 0.0, 0.0])))
    found = []
    for k in range(40):
        live.obey(Order(closedness=0.02 * k))
        found += places(live, 0.02)[1:]
    moved = np.abs(np.diff([p[0] for p in found]))
    still = round((TIMEOUT_S + 0.2 / ACCELERATION + 0.1) / 0.02)
    assert moved[:10].max() > 3e-3 and moved[still:].max() < 2e-4 and not live.moving
    assert abs(found[-1][0] - live.cell.task.start[0]) < 0.2 * (TIMEOUT_S + 0.05)
    assert live.cell.state()[3] > 0.5


def test_an_order_to_halt_ends_a_velocity_and_a_path(live):
    path = READER.path(trajectory([HOME], [3.0]), "base_link", live.cell.state()[:3])
    for order in (Order(velocity=np.array([0.0, 0.0, -0.2])), Order(path=path)):
        live.obey(order)
        places(live, 0.1)
        live.obey(Order())
        assert not live.moving
        found = places(live, 0.4)
        assert np.abs(found[-1] - found[-5]).max() < 2e-4


def test_joints_are_followed_to_the_end_where_the_arm_rests(live):
    with Workcell(draw_task("reach", SEED + 1)) as other:
        goal, end = other.joint_positions()[:6], other.state()[:3]
    start = live.cell.joint_positions()[:6]
    names = [*reversed(ARM_JOINTS), FINGER_JOINTS[0]]
    rows = [[*reversed(start + share * (goal - start)), FINGER_TRAVEL * (1 - share)] for share in (0.0, 0.5, 1.0)]
    path = READER.path(trajectory(rows, [0.0, 1.0, 2.0], names), "base_link", live.cell.state()[:3])
    live.obey(Order(path=path))
    found = np.array(places(live, 3.5))
    assert np.linalg.norm(found[-1] - end) < 3e-3 and not live.moving
    assert np.abs(np.diff(found[-10:], axis=0)).max() < 2e-4
    assert live.cell.state()[3] == pytest.approx(1.0, abs=0.02)
    away = [np.linalg.norm(p - path.at(0.02 * k)) for k, p in enumerate(found[:100])]
    assert max(away) < 0.03, "the tool is on the way that the joints describe"


def test_a_path_faster_than_the_arm_is_followed_at_its_own_speed(live):
    start = live.cell.state()[:3].astype(float)
    reader, angles = READER, np.array(HOME)
    to = reader._arm.pose(angles)[0]
    seconds = np.abs(to - start).max() / (0.9 * MOST_SPEED)
    live.obey(Order(path=reader.path(trajectory([angles], [seconds]), "base_link", start)))
    found = np.array(places(live, seconds + 1.5))
    assert np.abs(np.diff(found, axis=0)).max() / 0.02 < 0.37, "0.3 m/s, and what the servos swing"
    assert np.linalg.norm(found[-1] - np.clip(to, *WORKSPACE)) < 5e-3 and not live.moving


def test_a_task_is_judged_as_offline(live):
    goal, done = live.cell.task.goal, None
    assert live.outcome().actions == 0
    places(live, 0.5)
    assert live.outcome().actions == 0, "waiting is no action"
    for _ in range(20):
        delta = np.clip(0.85 * (goal - live.cell.state()[:3]), -0.06, 0.06)
        live.obey(Order(velocity=delta / 0.2))
        live.advance(0.2)
        if done is None and live.outcome().success:
            done = live.outcome().actions
    outcome = live.outcome()
    assert outcome.success and outcome.done_after == done <= 20 and outcome.error_m < 0.04
    assert outcome.actions == 20 == outcome.most_actions and (outcome.kind, outcome.seed) == ("reach", SEED)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["velocity", "grip", "halt", "take", "clear"]), max_size=30))
def test_every_command_is_accounted_for(steps):
    ledger, taken = Ledger(), 0
    inbox = Inbox(ledger)
    for step in steps:
        if step == "velocity":
            inbox.put(ledger.receive(0, None, "", 0), Order(velocity=np.zeros(3)))
        elif step == "grip":
            inbox.put(ledger.receive(0, None, "", 0), Order(closedness=0.5))
        elif step == "halt":
            inbox.put(None, Order())
        elif step == "take":
            taken += len(inbox.take())
        else:
            inbox.clear("reset")
        counts = ledger.counts()
        assert counts.received == counts.used + counts.superseded + counts.refused + counts.pending
        assert counts.pending <= 2 and counts.used <= taken
        assert counts.reasons.get("reset", 0) == counts.refused


class SlowClock:
    """A clock that only goes on when somebody works or waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Waiting(threading.Event):
    def __init__(self, clock: SlowClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return False


@pytest.mark.parametrize(("work_s", "achieved"), [(0.001, 2.0), (0.04, 0.5)])
def test_a_slow_machine_falls_behind_and_says_so(work_s, achieved):
    clock = SlowClock()
    pace, over = Pace(2.0, clock=clock), Waiting(clock)
    behind = []
    for k in range(500):
        behind.append(pace.wait(0.02 * k, over))
        clock.now += work_s
    assert pace.achieved == pytest.approx(achieved, rel=0.05) and pace.slow == (achieved < 1.9)
    assert max(behind) <= MOST_BEHIND_S and (pace.lost_s > 10.0) == pace.slow
    assert ("too slow" in pace.words) == pace.slow and f"{pace.achieved:.2f}" in pace.words


numbers = st.floats(width=64) | st.sampled_from([0.0, 0.1, -0.1, 1e9, math.nan, math.inf])


@settings(max_examples=300, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6), st.sampled_from(["base_link", "", "camera_optical"]), numbers)
def test_whatever_a_twist_holds_what_passes_is_a_velocity_that_an_arm_may_have(values, frame, grip):
    message = twist(*values[:3], frame=frame)
    message.twist.angular.x, message.twist.angular.y, message.twist.angular.z = values[3:]
    try:
        velocity = velocity_of(message, "base_link")
    except CommandError:
        assert frame != "base_link" or not np.isfinite(values).all() or np.abs(values[:3]).max() > MOST_SPEED
    else:
        assert frame == "base_link" and velocity.tolist() == values[:3] and np.abs(velocity).max() <= MOST_SPEED
    told = Float32()
    told._data = grip  # the setter of a field checks it, the bytes of a message do not
    try:
        assert 0.0 <= closedness_of(told) <= 1.0 and 0.0 <= grip <= 1.0
    except CommandError:
        assert not 0.0 <= grip <= 1.0


joint_rows = st.lists(
    st.lists(st.floats(-4, 4) | st.sampled_from([math.nan, 1e12]), min_size=4, max_size=9), min_size=0, max_size=4
)


joint_names = st.lists(st.sampled_from([*ARM_JOINTS, *FINGER_JOINTS, "nose"]), max_size=9)
joint_names |= st.just(list(ARM_JOINTS))


@settings(max_examples=150, deadline=None)
@given(joint_rows, st.lists(st.floats(0, 100), min_size=4, max_size=4), joint_names)
def test_whatever_a_trajectory_holds_it_is_a_path_or_refused(rows, ages, names):
    start = np.array([0.0, 0.4, 0.1])
    try:
        path = READER.path(trajectory(rows, ages[: len(rows)], names), "base_link", start)
    except CommandError:
        return
    if path is None:
        assert not rows
        return
    assert path.ages_s[0] == 0 and (np.diff(path.ages_s) > 0).all() and np.isfinite(path.points).all()
    if len(path.ages_s) > 1:
        assert (np.abs(np.diff(path.points, axis=0)).max(1) / np.diff(path.ages_s)).max() <= MOST_SPEED


def test_every_refusal_has_its_reason():
    path, here = READER.path, np.array([0.0, 0.4, 0.1])
    away = READER._arm.pose(np.array(HOME))[0]
    refused("wrong_frame", path, trajectory([HOME], [2.0], frame="world"), "base_link", here)
    refused("wrong_joints", path, trajectory([HOME[:5]], [2.0], ARM_JOINTS[:5]), "base_link", here)
    refused("wrong_joints", path, trajectory([[*HOME, 0]], [2.0], [*ARM_JOINTS, ARM_JOINTS[0]]), "base_link", here)
    refused("wrong_length", path, trajectory([HOME[:5]], [2.0]), "base_link", here)
    refused("not_finite", path, trajectory([[math.nan] * 6], [2.0]), "base_link", here)
    refused("times", path, trajectory([HOME, HOME], [2.0, 2.0]), "base_link", here)
    refused("too_long", path, trajectory([HOME], [61.0]), "base_link", here)
    refused("out_of_range", path, trajectory([[9.0, *HOME[1:]]], [2.0]), "base_link", here)
    refused("out_of_range", path, trajectory([[*HOME, 1.0]], [2.0], [*ARM_JOINTS, FINGER_JOINTS[0]]), "base_link", here)
    refused("too_fast", path, trajectory([HOME], [0.01]), "base_link", away - [0.1, 0, 0])
    now = 100 * NS
    refused("stale", check_stamp, make_header(now - NS // 2, ""), now, TIMEOUT_S, 0.5)
    refused("future_stamp", check_stamp, make_header(now + NS, ""), now, TIMEOUT_S, 0.5)
    for good in (0, now, now - NS // 5, now + NS // 5):
        check_stamp(make_header(good, ""), now, TIMEOUT_S, 0.5)


# ---- the node


class Robot:
    """The simulator in the process of the test, and what it says."""

    def __init__(self, peer: Peer, **parameters) -> None:
        self.peer = peer
        self.statuses = peer.collect(NodeStatus, "simulator/status", LATCHED)
        self.tools = peer.collect(PoseStamped, "ee_pose")
        self.outcomes = peer.collect(String, "simulator/outcome", LATCHED)
        overrides = [Parameter(name, value=value) for name, value in {"seed": SEED, **parameters}.items()]
        self.node = peer.host(SimulatorNode(parameter_overrides=overrides))
        wait_until(lambda: self.tools, "the arm's state")

    @property
    def place(self) -> np.ndarray:
        p = self.tools[-1].pose.position
        return np.array([p.x, p.y, p.z])

    def track(self, since: int) -> tuple[np.ndarray, np.ndarray]:
        """Stamps in s and speeds in m/s between poses from number `since` on."""
        poses = self.tools[since:]
        ages = np.array([stamp_ns(p.header.stamp) * 1e-9 for p in poses])
        at = np.array([[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in poses])
        return ages[1:], np.linalg.norm(np.diff(at, axis=0), axis=1) / np.diff(ages)

    def at_rest(self) -> bool:
        return len(self.tools) > 10 and bool((self.track(len(self.tools) - 8)[1] < 2e-3).all())

    def reset(self, **parameters) -> Trigger.Response:
        if parameters:
            client = self.peer.node.create_client(SetParameters, "simulator/set_parameters")
            wait_until(client.service_is_ready, "parameters")
            wanted = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
            assert all(result.successful for result in ask(client, SetParameters.Request(parameters=wanted)).results)
        client = self.peer.node.create_client(Trigger, "simulator/reset")
        wait_until(client.service_is_ready, "the reset service")
        return ask(client, Trigger.Request())

    def drive(self, publisher, seconds: float, velocity=(0.0, 0.0, 0.15), rate_hz: float = 20.0) -> float:
        """Publish a velocity for so long; the ROS time of the last one."""
        for _ in range(round(seconds * rate_hz)):
            last = time.time_ns()
            publisher.publish(twist(*velocity, ns=last))
            time.sleep(1 / rate_hz)
        return last * 1e-9


@pytest.fixture
def robot(peer):
    return Robot(peer)


def test_the_arm_follows_twists_and_stops_by_itself(robot, peer):
    twists = peer.publisher(TwistStamped, "command/twist")
    before, since = robot.place, len(robot.tools)
    side = -np.sign(before[0])
    last = robot.drive(twists, 0.6, velocity=(side * 0.15, 0.0, 0.0))
    wait_until(robot.at_rest, "rest")
    ages, speeds = robot.track(since)
    moved = abs(robot.place[0] - before[0])
    resting = ages[speeds > 5e-3].max() - last
    print(f"moved {moved * 100:.1f} cm; at rest {resting * 1e3:.0f} ms after the last command")
    assert moved > 0.05 and np.median(speeds[speeds > 5e-3]) == pytest.approx(0.15, abs=0.02)
    assert resting < TIMEOUT_S + 0.15 / ACCELERATION + LATE_S
    for a, b in pairwise(robot.tools[since:]):
        assert stamp_ns(b.header.stamp) > stamp_ns(a.header.stamp) and b.header.frame_id == "base_link"
    status = wait_until(lambda: robot.statuses[-1].used and robot.statuses[-1], "the account")
    assert status.state == NodeStatus.RUNNING and accounted(status) and not status.refused
    assert "of real time" in status.words


def test_bad_commands_are_refused_counted_and_stop_the_arm(robot, peer):
    twists, grips = peer.publisher(TwistStamped, "command/twist"), peer.publisher(Float32, "command/gripper")
    paths = peer.publisher(JointTrajectory, "command/trajectory")
    before = robot.place
    now = time.time_ns
    bad = {
        "not_finite": lambda: twists.publish(twist(math.nan, ns=now())),
        "too_fast": lambda: twists.publish(twist(1e6, ns=now())),
        "wrong_frame": lambda: twists.publish(twist(0.1, ns=now(), frame="camera_optical")),
        "stale": lambda: twists.publish(twist(0.1, ns=now() - 2 * NS)),
        "future_stamp": lambda: twists.publish(twist(0.1, ns=now() + 60 * NS)),
        "out_of_range": lambda: grips.publish(Float32(data=-3.0)),
        "wrong_length": lambda: paths.publish(trajectory([HOME[:3]], [1.0])),
        "wrong_joints": lambda: paths.publish(trajectory([HOME[:3]], [1.0], ARM_JOINTS[:3])),
    }
    for reason, send in bad.items():
        twists.publish(twist(z=0.05, ns=now()))  # a good one, which must not go on
        send()
        wait_until(lambda reason=reason: reason in robot.node.ledger.counts().reasons, f"a refusal: {reason}")
        wait_until(lambda: not robot.node._live.moving, "the end of the motion", 0.2)
    status = wait_until(lambda: robot.statuses[-1].refused == len(bad) and robot.statuses[-1], "all refusals")
    assert accounted(status) and status.state == NodeStatus.RUNNING and "arm comes to rest" in status.last_error
    wait_until(robot.at_rest, "rest")
    assert np.abs(robot.place - before).max() < 0.03


def test_a_reset_begins_the_task_again_and_parameters_take_effect_there(robot, peer):
    twists, grips = peer.publisher(TwistStamped, "command/twist"), peer.publisher(Float32, "command/gripper")
    goals = peer.collect(CompressedImage, "goal_image/compressed", LATCHED)
    told = peer.collect(String, "instruction", LATCHED)
    joints = peer.collect(JointState, "joint_states")
    wait_until(lambda: goals and told and joints, "what is latched")
    assert joints[0].name == [*ARM_JOINTS, *FINGER_JOINTS] and "goal image" in told[-1].data
    first, before = np.array(joints[0].position), robot.place
    with Workcell(draw_task("reach", SEED)) as cell:
        assert np.abs(to_rgb(goals[-1]).astype(int) - cell.goal_image()).mean() < 3.0, "JPEG"
        fresh = cell.joint_positions()
    assert np.abs(first - fresh).max() < 1e-3
    grips.publish(Float32(data=1.0))
    robot.drive(twists, 0.3)
    assert np.abs(robot.place - before).max() > 0.01
    answer = robot.reset()
    assert answer.success and f"reach:{SEED}" in answer.message
    seen = len(joints)
    wait_until(lambda: len(joints) > seen + 3, "states")
    assert np.abs(np.array(joints[seen + 2].position) - first).max() < 1e-6, "the same state as at the beginning"
    outcome = json.loads(robot.outcomes[-1].data)
    assert outcome["epoch"] == 1 and outcome["actions"] == 0 and outcome["success"] is False

    assert robot.reset(kind="pick_place_text", seed=7).success
    task = draw_task("pick_place_text", 7)
    wait_until(lambda: told[-1].data == task.instruction and not goals[-1].data, "a task without a goal image")
    wait_until(lambda: np.abs(robot.place - task.start).max() < 2e-3, "its start")
    client = peer.node.create_client(SetParameters, "simulator/set_parameters")
    wait_until(client.service_is_ready, "parameters")
    wrong = SetParameters.Request(parameters=[Parameter("kind", value="juggle").to_parameter_msg()])
    assert "must be one of" in ask(client, wrong).results[0].reason
    peer.call(robot.node.trigger_deactivate)
    answer = robot.reset()
    assert not answer.success and "activate" in answer.message


def test_the_camera_says_what_it_sees_from_where(peer):
    images = peer.collect(CompressedImage, "camera/image/compressed")
    infos = peer.collect(CameraInfo, "camera/camera_info")
    poses, ticks = peer.collect(PoseStamped, "camera/pose"), peer.collect(Clock, "/clock")
    Robot(peer, image_width_px=160, image_height_px=96, publish_clock=True, camera_rate_hz=20.0, jpeg_quality=95)
    wait_until(lambda: len(images) > 12 and len(ticks) > 30, "images")
    stamps = [stamp_ns(image.header.stamp) for image in images]
    assert set(stamps[:10]) <= {stamp_ns(p.header.stamp) for p in poses} & {stamp_ns(i.header.stamp) for i in infos}
    assert np.allclose(np.diff(stamps[:12]), 0.05 * NS, atol=NS * 3e-3), "on a grid of simulated time"
    assert stamps[0] < 100 * NS and all(b.clock.sec >= a.clock.sec for a, b in pairwise(ticks))
    with Workcell(draw_task("reach", SEED), 160, 96) as cell:
        camera = to_camera(infos[0])
        assert camera == cell.camera
        cell.advance((stamps[3] - stamps[0]) * 1e-9)
        p, q = poses[3].pose.position, poses[3].pose.orientation
        assert np.allclose(pose_matrix((p.x, p.y, p.z), (q.x, q.y, q.z, q.w)), cell.camera_pose(), atol=1e-3)
        assert poses[3].header.frame_id == "base_link" and images[3].header.frame_id == "camera_optical"
        assert np.abs(to_rgb(images[3]).astype(int) - cell.image()).mean() < 4.0


COMMANDER = """
import sys, time, rclpy
from geometry_msgs.msg import TwistStamped
rclpy.init()
node = rclpy.create_node("commander")
out = node.create_publisher(TwistStamped, "command/twist", 1)
while out.get_subscription_count() == 0:
    time.sleep(0.01)
while True:
    twist = TwistStamped()
    twist.header.stamp, twist.header.frame_id = node.get_clock().now().to_msg(), "base_link"
    twist.twist.linear.x = float(sys.argv[1])
    out.publish(twist)
    time.sleep(0.05)
"""


def test_a_commander_that_is_killed_in_motion_leaves_the_arm_at_rest(robot, processes):
    since, side = len(robot.tools), -np.sign(robot.place[0])
    commander = processes.start("-c", COMMANDER, str(side * 0.2))
    wait_until(lambda: len(robot.tools) > since + 20 and robot.track(len(robot.tools) - 6)[1].min() > 0.15, "motion")
    commander.kill()
    killed = time.time()
    wait_until(robot.at_rest, "rest")
    ages, speeds = robot.track(since)
    resting = ages[speeds > 5e-3].max() - killed
    print(f"at rest {resting * 1e3:.0f} ms after SIGKILL")
    assert resting < TIMEOUT_S + 0.2 / ACCELERATION + LATE_S


@pytest.mark.slow
def test_the_node_ends_with_status_0_and_a_bad_parameter_is_a_sentence(processes, peer):
    node = processes.node("simulator", "-p", "camera_rate_hz:=30.0")
    images = peer.collect(CompressedImage, "camera/image/compressed")
    wrong = processes.node("simulator", "-r", "__node:=other", "-p", "kind:=juggle")
    wait_until(lambda: len(images) > 3, "images")
    status, took = node.end()
    assert status == 0 and took < 5.0 and "Traceback" not in node.output, node.output
    wait_until(lambda: not wrong.running, "its end")
    assert wrong.status == 2 and "must be one of reach" in wrong.output
