"""What the controller node is told and how it is set: poses, joints, limits that contradict, trajectories."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_kit import WIDE, build_imagination, hosted, overrides
from rclpy.parameter import Parameter
from ros_kit import Peer, reserved_domain, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float32
from trajectory_msgs.msg import JointTrajectory

from thinkjepa_ros.bridge.camera_place import fixed_pose
from thinkjepa_ros.bridge.command_output import CommandOutput
from thinkjepa_ros.bridge.messages import make_header
from thinkjepa_ros.bridge.robot_input import RobotInput, make_arm
from thinkjepa_ros.control.arm_kinematics import ArmError
from thinkjepa_ros.control.drive import Drive
from thinkjepa_ros.control.limits import Command, Limits
from thinkjepa_ros.control.watch import Cause, Input, Timeouts, Watch
from thinkjepa_ros.data.sim.arm import ARM_JOINTS, TOOL, urdf
from thinkjepa_ros.nodes.controller import ControllerNode

pytestmark = pytest.mark.alone

JOINTS = (0.1, 0.4, -0.3, 0.2, 0.5, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_imagination(tmp_path_factory.mktemp("models") / "imagination")


@pytest.fixture(scope="module")
def arm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("robot") / "arm.urdf"
    file.write_text(urdf())
    return file


@pytest.fixture(scope="module")
def shared_peer() -> Iterator[Peer]:
    with reserved_domain(), Peer() as peer:
        yield peer


def settings(**changes: Any) -> dict[str, Any]:
    defaults = {
        "state_source": "ee_pose",
        "command_type": "twist",
        "urdf": "",
        "tip_link": "",
        "base_frame": "base_link",
    }
    return {**defaults, **changes}


def test_seven_numbers_are_a_pose_and_nothing_else_is() -> None:
    pose = fixed_pose("0.1 -0.2 0.3  0 0 0.7071 0.7071")
    np.testing.assert_allclose(pose[:3, 3], (0.1, -0.2, 0.3))
    np.testing.assert_allclose(pose[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
    for wrong in ("", "1 2 3", "a b c d e f g", "0 0 0 0 0 0 0", "nan 0 0 0 0 0 1", "1 2 3 4 5 6 7 8"):
        with pytest.raises(ValueError, match="camera_pose must be seven finite numbers"):
            fixed_pose(wrong)


def test_an_arm_is_made_only_where_it_can_be(arm_file: Path) -> None:
    assert make_arm(settings().__getitem__) is None
    joints = {"state_source": "joint_states", "urdf": str(arm_file), "tip_link": TOOL}
    arm = make_arm(settings(**joints).__getitem__)
    assert arm is not None and arm.joints == tuple(ARM_JOINTS)
    for wrong, words in (
        ({"command_type": "trajectory"}, "set state_source to joint_states"),
        ({**joints, "urdf": ""}, "urdf"),
        ({**joints, "tip_link": ""}, "tip_link"),
        ({**joints, "urdf": "/no/such/file"}, "cannot be read"),
        ({**joints, "tip_link": "nose"}, "no link 'nose'"),
    ):
        with pytest.raises((ValueError, ArmError), match=words):
            make_arm(settings(**wrong).__getitem__)


def test_joints_become_a_state_and_what_is_no_number_takes_it_away(shared_peer: Peer, arm_file: Path) -> None:
    joined = settings(state_source="joint_states", urdf=str(arm_file), tip_link=TOOL)
    arm = make_arm(joined.__getitem__)
    assert arm is not None
    watch, node = Watch(Timeouts(guidance_s=None)), shared_peer.node
    drive = Drive(Limits((-9, -9, -9), (9, 9, 9)), watch, lambda command: None)
    robot = shared_peer.call(RobotInput, node, joined.__getitem__, watch, drive, arm)
    now = node.get_clock().now().nanoseconds
    states = iter(range(1, 100))

    def tell(joints: tuple[float, ...], names: Any = arm.joints, late_ns: int = 0) -> None:
        header = make_header(now + next(states) - late_ns, "base_link")
        robot._on_joints(JointState(header=header, name=list(names), position=list(joints)))

    tell(JOINTS)
    assert drive.state is None and "gripper/state" in robot.trouble
    robot._on_gripper(Float32(data=0.25))
    tell(JOINTS)
    assert drive.state is not None and robot.trouble == "" and robot.joints == JOINTS
    np.testing.assert_allclose(drive.state.point, arm.pose(JOINTS)[0])
    state = robot.at(now)
    assert state is not None and state.dtype == np.float32 and state[3] == pytest.approx(0.25)
    assert robot.at(now + 10**9) is None
    tell((*JOINTS[::-1], 1.0), (*arm.joints[::-1], "finger"))  # another order, and more joints
    assert robot.joints == JOINTS
    tell((1.0,), ("wheel",))  # another part of the robot
    assert drive.state is not None
    before = drive.state
    tell(JOINTS, late_ns=10**9)  # an older one that came late
    assert drive.state is before
    for wrong in ((math.nan, *JOINTS[1:]), JOINTS[:3]):
        tell(JOINTS)
        assert drive.state is not None
        tell(wrong)
        assert drive.state is None and "no finite position" in robot.trouble and robot.joints is None
    tell(JOINTS)
    robot._on_gripper(Float32(data=math.nan))
    assert drive.state is None and "gripper/state is no number" in robot.trouble
    robot._on_gripper(Float32(data=0.5))
    robot._on_joints(JointState(name=list(arm.joints), position=list(JOINTS)))
    assert drive.state is None and "no stamp" in robot.trouble
    tell(JOINTS, late_ns=-10 * 10**9)
    assert any(h.cause is Cause.FUTURE and h.input is Input.STATE for h in watch.verdict().halts)
    shared_peer.call(robot.close)


def test_a_trajectory_ends_at_rest_and_one_without_points_means_stop(shared_peer: Peer, arm_file: Path) -> None:
    joined = settings(state_source="joint_states", command_type="trajectory", urdf=str(arm_file), tip_link=TOOL)
    arm = make_arm(joined.__getitem__)
    assert arm is not None
    sent = shared_peer.collect(JointTrajectory, "/command/trajectory")
    output = shared_peer.call(CommandOutput, shared_peer.node, "base_link", arm)
    wait_until(lambda: output._motion.get_subscription_count(), "the listener")
    command = Command((0.1, 0.05, 0.0), 0.5, 0, 0.25, 0.05)
    output.send(command)
    wait_until(lambda: len(sent) == 1, "a trajectory")
    assert not sent[0].points  # nobody knows where the joints are
    output.joints = lambda: JOINTS
    output.send(command)
    wait_until(lambda: len(sent) == 2, "a trajectory")
    points = sent[1].points
    assert sent[1].joint_names == list(arm.joints) and len(points) > 3
    assert all(v == 0.0 for v in points[-1].velocities) and any(points[0].velocities)
    ages = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in points]
    assert ages == sorted(set(ages)) and ages[-1] == pytest.approx(0.3)
    moved = arm.pose(list(points[-1].positions))[0] - arm.pose(JOINTS)[0]
    np.testing.assert_allclose(moved, command.displacement_at(1.0), atol=3e-4)
    output.send(Command((0.0, 0.0, 0.0), None, 0, 0.0, 0.0))
    wait_until(lambda: len(sent) == 3, "rest")
    np.testing.assert_allclose(sent[2].points[-1].positions, JOINTS)
    shared_peer.call(output.close)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_speed_mps": 5.0}, "cannot be stopped in time"),
        ({"workspace_x_min_m": 1.0, "workspace_x_max_m": 0.5}, "workspace_max_m must lie above"),
        ({"command_lifetime_s": 0.6}, "stop_timeout_s"),
        ({"horizon": 9}, "this imagination knows 4"),
        ({"mode": "policy"}, "needs a policy"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"command_type": "trajectory"}, "state_source"),
    ],
)
def test_what_contradicts_is_said_and_not_configured(
    shared_peer: Peer, folder: Path, wrong: dict[str, Any], words: str
) -> None:
    node = shared_peer.host(ControllerNode(parameter_overrides=overrides(folder, **{**WIDE, **wrong})))
    wait_until(lambda: node.failure, "the failure", 60.0)
    wait_until(lambda: node.label == "unconfigured", "the end of the transition")
    assert words in node.failure
    shared_peer.call(shared_peer.executor.remove_node, node)
    shared_peer.hosted.remove(node)
    node.destroy_node()


def test_it_says_how_to_get_the_pose_without_tf(shared_peer: Peer, folder: Path) -> None:
    """tf2_ros is no wheel: where it is missing the node stays inactive, and says what to do."""
    node = ControllerNode(parameter_overrides=overrides(folder, camera_pose_from="tf"))
    try:
        import tf2_ros  # noqa: F401

        pytest.skip("tf2_ros is installed here")
    except ImportError:
        pass
    shared_peer.host(node)
    wait_until(lambda: node.failure, "the failure", 60.0)
    wait_until(lambda: node.label == "inactive", "the end of the transition")
    assert "tf2_ros is not installed" in node.failure
    shared_peer.call(shared_peer.executor.remove_node, node)
    shared_peer.hosted.remove(node)
    node.destroy_node()


def test_a_stop_that_was_pressed_before_it_came_up_holds(shared_peer: Peer, folder: Path) -> None:
    """Of a latched publisher, and of one that is best effort; and updates that make no sense are refused."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from ros_kit import LATCHED

    latched = shared_peer.node.create_publisher(Bool, "/e_stop", LATCHED)
    latched.publish(Bool(data=True))
    node = hosted(shared_peer, folder)
    wait_until(lambda: not node._watch.verdict().may_move and "emergency" in node._watch.verdict().words, "the stop")
    latched.publish(Bool(data=False))
    wait_until(lambda: not node._watch.reset(), "the release")
    weak = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    button = shared_peer.publisher(Bool, "/e_stop", weak)
    wait_until(
        lambda: button.publish(Bool(data=True)) or "emergency" in node._watch.verdict().words, "the stop, best effort"
    )
    for name, value, words in (
        ("horizon", 9, "knows 4"),
        ("samples", 5, "range"),
        ("margin", -1.0, "range"),
        ("input_timeout_s", 0.0, "range"),
    ):
        result = shared_peer.call(node.set_parameters, [Parameter(name, value=value)])[0]
        assert not result.successful and words in result.reason
    assert node.parameters["horizon"] == 4
