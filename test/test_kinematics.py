"""Truth out of joint states: forward kinematics of a URDF, beside the same written out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import header, make
from truth_kit import bag, joint_state, ns

from thinkjepa_ros.data.kinematics import Kinematics
from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.truth import Truth, read_truth

NAN = float("nan")


def truth_of(folder: Path, messages: list[tuple[float, Any]], **how: Any) -> Truth:
    """The truth of a recording of these messages (time of recording in seconds) on /t."""
    with Recording(bag(folder, [("/t", ns(at), message) for at, message in messages])) as recording:
        return read_truth(recording, "/t", **how)


URDF = """<?xml version="1.0"?>
<robot name="arm">
  <material name="grey"/>
  <link name="world"/>
  <joint name="mount" type="fixed"><parent link="world"/><child link="base"/><origin xyz="0.1 0.2 0.3" rpy="0.4 0.5 0.6"/></joint>
  <link name="base"><visual><geometry><mesh filename="package://not_installed/base.stl"/></geometry></visual></link>
  <joint name="shoulder/pan" type="revolute">
    <parent link="base"/><child link="upper"/><origin xyz="0 0 0.5" rpy="0.1 -0.2 0.3"/><axis xyz="0 0.6 0.8"/>
    <limit lower="-0.1" upper="0.1" effort="1" velocity="1"/>
  </joint>
  <link name="upper"/>
  <joint name="elbow" type="continuous">
    <parent link="upper"/><child link="lower"/><origin xyz="0.3 0 0"/><axis xyz="0 1 0"/>
  </joint>
  <link name="lower"/>
  <joint name="slide" type="prismatic">
    <parent link="lower"/><child link="finger"/><origin xyz="0.2 0 0.05" rpy="0 0 1"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.1" effort="1" velocity="1"/>
  </joint>
  <link name="finger"/>
  <joint name="other_slide" type="prismatic">
    <parent link="lower"/><child link="other_finger"/><axis xyz="0 1 0"/><mimic joint="slide" multiplier="-2" offset="0.01"/>
    <limit lower="0" upper="0.1" effort="1" velocity="1"/>
  </joint>
  <link name="other_finger"/>
  <joint name="drift" type="floating"><parent link="base"/><child link="cable"/></joint>
  <link name="cable"/>
  <gazebo reference="base"><turnGravityOff/></gazebo>
</robot>
"""  # noqa: E501
LINKS = ("world", "base", "lower", "finger", "other_finger")
ARM = ("shoulder/pan", "elbow", "slide")


def by_hand(pan: float, elbow: float, slide: float) -> np.ndarray:
    """Forward kinematics of that arm, written out: positions [L, 3] of LINKS."""

    def rpy(r: float, p: float, y: float) -> np.ndarray:
        return about((0, 0, 1), y) @ about((0, 1, 0), p) @ about((1, 0, 0), r)

    def about(axis: tuple[float, float, float], angle: float) -> np.ndarray:
        x, y, z = axis
        k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k

    base, turn = np.array([0.1, 0.2, 0.3]), rpy(0.4, 0.5, 0.6)
    upper = base + turn @ (0, 0, 0.5)
    turn = turn @ rpy(0.1, -0.2, 0.3) @ about((0, 0.6, 0.8), pan)
    lower = upper + turn @ (0.3, 0, 0)
    turn = turn @ about((0, 1, 0), elbow)
    finger = lower + turn @ (np.array([0.2, 0, 0.05]) + rpy(0, 0, 1) @ (slide, 0, 0))
    other = lower + turn @ (0, -2 * slide + 0.01, 0)
    return np.array([(0, 0, 0), base, lower, finger, other])


@pytest.fixture
def urdf(tmp_path: Path) -> Path:
    (tmp_path / "arm.urdf").write_text(URDF)
    return tmp_path / "arm.urdf"


def test_links_are_where_forward_kinematics_written_out_puts_them(tmp_path: Path, urdf: Path) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    rng = np.random.default_rng(1)
    rows = rng.uniform(-3, 3, (12, 3))  # beyond the limits, too: the robot stood where it says
    robot = Kinematics(urdf, LINKS)
    assert (robot.root, robot.joints) == ("world", ARM)
    expected = np.stack([by_hand(*row) for row in rows])
    assert np.allclose(robot.positions(rows), expected, rtol=0, atol=1e-9)
    rows[3, 1] = NAN
    assert np.isnan(robot.positions(rows)[3]).all() and np.isfinite(robot.positions(rows)[4]).all()
    # names in any order, other joints among them; arm and gripper in messages of their own
    stamps = [ns(k / 10) for k in range(12)]
    messages = []
    for k, (stamp, row) in enumerate(zip(stamps, rows, strict=True)):
        arm = {"wheel": 9.0, "elbow": row[1], "shoulder/pan": row[0]}
        if k % 2:
            messages += [(k / 10, joint_state(stamp, {**arm, "slide": row[2]}))]
        else:
            messages += [(k / 10, joint_state(stamp, arm)), (k / 10 + 0.01, joint_state(stamp, {"slide": row[2]}))]
    truth = truth_of(tmp_path / "bag", messages, urdf=urdf, links=LINKS[1:])
    assert (truth.frame_id, truth.joint_names, truth.stamps_ns.tolist()) == ("world", LINKS[1:], stamps)
    good = np.arange(12) != 3
    assert np.allclose(truth.joints[good], expected[good, 1:], rtol=0, atol=1e-9)
    assert np.isnan(truth.joints[3]).all()


@pytest.mark.parametrize(
    "change, links, words",
    [
        ((), ("hand",), "has no link 'hand'; its links: world, base"),
        ((), (), r"say which links of .* \(--links a,b,c\)"),
        ((), ("cable",), "joint 'drift' of .* is 'floating'"),
        ((), ("base",), "never move"),
        (("<?xml", "<!xml"), ("finger",), "not readable as XML"),
        (("robot", "sdf"), ("finger",), "no URDF: it begins with <sdf>"),
        (('<parent link="lower"/>', ""), ("finger",), "lacks its name, parent or child"),
        (('<parent link="base"/>', '<parent link="finger"/>'), ("finger",), "form a circle"),
        (('<mimic joint="slide"', '<mimic joint="none"'), ("other_finger",), "'other_slide' of .* mimics 'none'"),
        (('<mimic joint="slide"', '<mimic joint="other_slide"'), ("other_finger",), "mimics 'other_slide'"),
        (('multiplier="-2"', 'multiplier="x"'), ("other_finger",), "is no number"),
        (('xyz="0 0.6 0.8"', 'xyz="0 0 0"'), ("finger",), "cannot be used as a robot"),
        (('name="slide"', 'name="glide"'), ("finger",), "joint glide of .* is not on /t .*; its joints: shoulder/pan"),
    ],
)
def test_a_urdf_that_cannot_be_used(
    tmp_path: Path, urdf: Path, change: tuple[str, str], links: tuple[str, ...], words: str
) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    urdf.write_text(URDF.replace(*change) if change else URDF)
    messages = [(k / 10, joint_state(ns(k / 10), dict.fromkeys(ARM, 0.1 * k))) for k in range(3)]
    with pytest.raises(RecordingError, match=words):
        truth_of(tmp_path / "bag", messages, urdf=urdf, links=links)


def test_what_joint_states_must_say(tmp_path: Path, urdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, words: str, *messages: Any, **how: Any) -> None:
        with pytest.raises(RecordingError, match=words):
            truth_of(tmp_path / name, [(k / 10, m) for k, m in enumerate(messages)], **{"links": ("finger",)} | how)

    good = joint_state(ns(1), dict.fromkeys(ARM, 0.0))
    refused("a", r"give the robot's URDF \(--urdf FILE\)", good)
    refused("b", "cannot be read: No such file", good, urdf=tmp_path / "none.urdf")
    (tmp_path / "arm.xacro").write_text('<robot xmlns:xacro="http://www.ros.org/wiki/xacro"/>')
    refused("c", "is xacro; expand it", good, urdf=tmp_path / "arm.xacro")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    refused("d", "need MuJoCo, which is not installed: pip install mujoco", good, urdf=urdf)
    monkeypatch.undo()
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    refused("e", "no time .stamp 0.; fill", joint_state(0, dict.fromkeys(ARM, 0.0)), urdf=urdf)
    refused("f", "joint shoulder/pan .* go back by 0.500 s", good, joint_state(ns(0.5), {"shoulder/pan": 0}), urdf=urdf)
    refused("g", "joint elbow .* is infinite", joint_state(ns(1), {"elbow": np.inf}), urdf=urdf)
    odd = make("sensor_msgs/msg/JointState", header(ns(1)), ["elbow", "slide"], np.zeros(1), np.zeros(0), np.zeros(0))
    refused("h", "names 2 joints but has 1 positions", odd, urdf=urdf)
    refused("i", "knows no joint at any time", joint_state(ns(1), dict.fromkeys(ARM, NAN)), urdf=urdf)
