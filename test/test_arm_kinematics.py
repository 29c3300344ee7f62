"""Joint velocities for a wanted tip velocity: right, within the joints' limits, and in the wanted direction."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.control.arm_kinematics import Arm, ArmError, JointReason
from thinkjepa_ros.control.limits import Command

pytest.importorskip("mujoco", reason="MuJoCo is not installed")

#: name, type, parent, child, xyz, rpy, axis, lower, upper, velocity
JOINTS: list[Any] = [
    ("mount", "fixed", "world", "base", (0.1, -0.2, 0.3), (0.2, -0.3, 0.9), None, 0, 0, 0),
    ("pan", "revolute", "base", "b1", (0, 0, 0.15), (0, 0, 0), (0, 0, 1), -3, 3, 2.0),
    ("lift", "revolute", "b1", "b2", (0, 0.05, 0.1), (0.1, 0, 0), (0, 1, 0), -2, 2, 1.5),
    ("elbow", "revolute", "b2", "b3", (0.4, 0, 0), (0, 0, 0), (0, 1, 0), -2.6, 2.6, 2.5),
    ("roll", "continuous", "b3", "b4", (0.2, 0, 0.02), (0, 0.1, 0.2), (1, 0, 0), None, None, 3.0),
    ("pitch", "revolute", "b4", "b5", (0.15, 0, 0), (0, 0, 0), (0, 0.6, 0.8), -2.1, 2.1, 3.0),
    ("turn", "revolute", "b5", "b6", (0.05, 0, 0), (0.3, 0, 0), None, -3, 3, 3.0),
    ("finger", "fixed", "b6", "tip", (0.1, 0, 0.01), (0, 0.5, 0), None, 0, 0, 0),
    ("slide", "prismatic", "b6", "jaw", (0.1, 0, 0), (0, 0, 0), (0, 1, 0), 0, 0.04, 0.1),
]
NAMES = ("pan", "lift", "elbow", "roll", "pitch", "turn")
BENT = np.array([0.3, -0.7, 1.4, 0.2, 0.9, -0.5])


def urdf() -> str:
    def words(values: Any) -> str:
        return " ".join(map(str, values))

    lines = ["<robot name='six'>"]
    lines += [f"<link name='{name}'/>" for name in ("world", *(joint[3] for joint in JOINTS))]
    for name, kind, parent, child, xyz, rpy, axis, lower, upper, velocity in JOINTS:
        lines.append(f"<joint name='{name}' type='{kind}'><parent link='{parent}'/><child link='{child}'/>")
        lines.append(f"<origin xyz='{words(xyz)}' rpy='{words(rpy)}'/>")
        lines.append(f"<axis xyz='{words(axis)}'/>" if axis else "")
        span = f"lower='{lower}' upper='{upper}' " if kind in ("revolute", "prismatic") else ""
        lines.append(f"<limit {span}effort='1' velocity='{velocity}'/>" if kind != "fixed" else "")
        lines.append("</joint>")
    return "\n".join([*lines, "</robot>"])


def by_hand(values: Any, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forward kinematics of the tip, written out; `first`: the joint at which the chain begins."""

    def about(axis: Any, angle: float) -> np.ndarray:
        x, y, z = axis
        k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k)

    point, turn, rest = np.zeros(3), np.eye(3), list(values)
    for _, kind, _, _, xyz, rpy, axis, *_ in JOINTS[first:8]:
        point = point + turn @ xyz
        turn = turn @ about((0, 0, 1), rpy[2]) @ about((0, 1, 0), rpy[1]) @ about((1, 0, 0), rpy[0])
        if kind != "fixed":
            turn = turn @ about(axis or (1, 0, 0), rest.pop(0))
    return point, turn


ARM = Arm(urdf(), "tip")


def test_the_chain_is_read_from_the_urdf() -> None:
    assert (ARM.joints, ARM.tip) == (NAMES, "tip")
    assert ARM.max_velocity.tolist() == [2.0, 1.5, 2.5, 3.0, 3.0, 3.0]
    assert ARM.lower.tolist() == [-3, -2, -2.6, -math.inf, -2.1, -3]
    assert ARM.upper.tolist() == [3, 2, 2.6, math.inf, 2.1, 3]
    jaw = Arm(urdf(), "jaw", base="b4")
    assert jaw.joints == ("pitch", "turn", "slide") and jaw.upper[2] == 0.04


@pytest.mark.parametrize("seed", range(10))
def test_pose_and_jacobian_are_those_written_out(seed: int) -> None:
    q = np.random.default_rng(seed).uniform(-2, 2, 6)
    for arm, first in ((ARM, 0), (Arm(urdf(), "tip", base="base"), 1)):
        point, turn = arm.pose(q)
        expected = by_hand(q, first)
        assert np.allclose(point, expected[0], atol=1e-9) and np.allclose(turn, expected[1], atol=1e-9)
        jacobian = arm.jacobian(q)
        for k, small in enumerate(1e-6 * np.eye(6)):
            ahead, behind = by_hand(q + small, first), by_hand(q - small, first)
            spin = (ahead[1] - behind[1]) / 2e-6 @ turn.T
            slope = [*((ahead[0] - behind[0]) / 2e-6), spin[2, 1], spin[0, 2], spin[1, 0]]
            assert np.allclose(jacobian[:, k], slope, atol=1e-6)


@pytest.mark.parametrize("twist", [*np.eye(6), -np.eye(6)[2], np.array([1, -1, 2, 0, 0, 0])])
def test_the_joints_do_what_the_tip_shall_do(twist: np.ndarray) -> None:
    motion = ARM.velocities(BENT, 0.05 * twist[:3], 0.05 * twist[3:])
    assert motion.reasons == () and motion.share == 1.0
    assert np.allclose(ARM.jacobian(BENT) @ motion.velocities, 0.05 * twist, atol=1e-9)


def test_what_is_too_fast_is_scaled_as_a_whole() -> None:
    for size in (5.0, 50.0, 1e300):
        motion = ARM.velocities(BENT, (size, 0, 0), going_s=0.01)
        assert motion.reasons == (JointReason.JOINT_VELOCITY,) and 0 < motion.share < 1
        assert (np.abs(motion.velocities) / ARM.max_velocity).max() == pytest.approx(1.0)
        done = ARM.jacobian(BENT) @ motion.velocities
        assert done[0] == pytest.approx(motion.share * size) and np.allclose(done[1:], 0, atol=1e-9)


def test_a_joint_at_its_limit_lets_only_the_way_back() -> None:
    for k, edge in ((1, ARM.lower[1]), (2, ARM.upper[2]), (4, ARM.upper[4])):
        q = BENT.copy()
        q[k] = edge
        outward = 0.1 * np.sign(edge) * ARM.jacobian(q)[:, k]
        out, back = ARM.velocities(q, outward[:3], outward[3:]), ARM.velocities(q, -outward[:3], -outward[3:])
        assert not out.velocities.any() and out.reasons == (JointReason.JOINT_LIMIT,) and out.share == 0
        assert back.velocities[k] == pytest.approx(-0.1 * np.sign(edge)) and back.reasons == ()
        q[k] -= 0.01 * np.sign(edge)  # a little before: slow enough to stay inside as long as it goes
        near = ARM.velocities(q, outward[:3], outward[3:], going_s=0.5)
        assert near.velocities[k] * 0.5 == pytest.approx(0.01 * np.sign(edge))
        q[k] = edge * 1.01  # beyond: the same
        assert not ARM.velocities(q, outward[:3], outward[3:]).velocities.any()


def test_at_a_singular_pose_the_joints_stay_slow() -> None:
    straight = Arm(urdf(), "b5")  # four joints for six wishes: always singular, one way or the other
    for q in ([0.3, -0.7, 1.4, 0.2], [0, 0, 0, 0]):
        motion = straight.velocities(q, (0.05, 0.05, 0.05))
        assert np.abs(motion.velocities).max() < 3 and np.isfinite(motion.velocities).all()
    stretched = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    worst, told = 0.0, False
    for bend in np.geomspace(1e-9, 0.3, 60):
        stretched[2] = bend
        far = ARM.pose(stretched)[0] - ARM.pose(np.zeros(6))[0] + [0.02, 0, 0]
        motion = ARM.velocities(stretched, far)
        worst, told = max(worst, np.abs(motion.velocities).max()), told or JointReason.SINGULAR in motion.reasons
    assert worst < 2 and told


numbers = st.floats(allow_nan=True, allow_infinity=True)
anything = st.one_of(st.none(), st.text(), numbers, st.lists(numbers, max_size=7))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(-4, 4), min_size=6, max_size=6) | anything,
    st.tuples(*[st.floats(-3, 3)] * 3) | st.tuples(numbers, numbers, numbers) | anything,
    st.tuples(*[st.floats(-3, 3)] * 3) | anything,
)
def test_whatever_is_wanted_the_joints_keep_their_limits(q: Any, linear: Any, angular: Any) -> None:
    motion = ARM.velocities(q, linear, angular, going_s=0.25)
    assert motion.velocities.shape == (6,) and np.isfinite(motion.velocities).all() and 0 <= motion.share <= 1
    assert (np.abs(motion.velocities) <= ARM.max_velocity * (1 + 1e-9)).all()
    if motion.velocities.any():
        after = np.array(q) + 0.25 * motion.velocities
        assert (after <= np.maximum(ARM.upper, q) + 1e-6).all() and (after >= np.minimum(ARM.lower, q) - 1e-6).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rest_with_a_reason(bad: float) -> None:
    for wish in ((BENT, (0, bad, 0), (0, 0, 0)), (BENT, (0, 0, 0), (bad, 0, 0)), (BENT * bad, (0.1, 0, 0), (0, 0, 0))):
        motion = ARM.velocities(*wish)
        assert motion.reasons == (JointReason.NOT_FINITE,) and not motion.velocities.any()


def test_the_orientation_does_not_drift_on_the_way() -> None:
    command = Command((0.15, -0.1, 0.05), 0.5, 0, hold_s=0.8, ramp_s=0.1)
    path = ARM.trajectory(BENT, command, step_s=0.05)
    drift = np.trace(ARM.pose(path.points[-1].positions)[1] @ ARM.pose(BENT)[1].T)
    assert path.reasons == () and 3 - drift < 1e-6


def test_a_command_becomes_a_trajectory_that_ends_at_rest_where_it_shall() -> None:
    command = Command((0.15, -0.1, 0.05), 0.5, 0, hold_s=0.25, ramp_s=0.1)
    path = ARM.trajectory(BENT, command, step_s=0.02)
    assert path.reasons == () and path.points[-1].age_s == pytest.approx(0.35)
    assert not path.points[-1].velocities.any() and path.points[3].velocities.any()
    begin, upright = ARM.pose(BENT)
    for point in path.points:
        at, turn = ARM.pose(point.positions)
        assert at - begin == pytest.approx(command.displacement_at(point.age_s), abs=1e-3)
        assert np.trace(turn @ upright.T) > 3 - 1e-5  # within 3 mrad
    for a, b in pairwise(path.points):
        assert 0 < b.age_s - a.age_s < 0.021
        mean = (b.positions - a.positions) / (b.age_s - a.age_s)
        assert np.allclose(mean, (a.velocities + b.velocities) / 2, atol=0.02)


def test_a_trajectory_keeps_the_joints_inside_and_says_so() -> None:
    q = BENT.copy()
    q[2] = ARM.upper[2] - 0.02
    push = Command(tuple(0.3 * ARM.jacobian(q)[:3, 2]), 0.5, 0, 0.25, 0.1)
    path = ARM.trajectory(q, push)
    assert JointReason.JOINT_LIMIT in path.reasons and not path.points[-1].velocities.any()
    for point in path.points:
        assert (point.positions <= ARM.upper).all() and (point.positions >= ARM.lower).all()


def test_rest_is_a_trajectory_of_one_point() -> None:
    (point,) = ARM.trajectory(BENT, Command((0.0, 0.0, 0.0), None, 0, 0.0, 0.0), step_s=0.05).points
    assert point.age_s == 0.05 and point.positions.tolist() == BENT.tolist() and not point.velocities.any()
    with pytest.raises(ValueError, match="joint positions must be 6 finite numbers"):
        ARM.trajectory([math.nan] * 6, Command((0.1, 0.0, 0.0), None, 0, 0.1, 0.1))


@pytest.mark.parametrize(
    "change, tip, base, words",
    [
        (("<robot", "<!robot"), "tip", None, "not readable as XML"),
        (("robot", "sdf"), "tip", None, "no URDF: it begins with <sdf>"),
        (("", ""), "hand", None, "no link 'hand'; its links: world, base, b1"),
        (("", ""), "tip", "hand", "no link 'hand'"),
        (("", ""), "tip", "jaw", "link 'tip' does not hang below link 'jaw'; its root is 'world'"),
        (("", ""), "base", None, "no joint moves link 'base' against 'the root'"),
        (("continuous", "floating"), "tip", None, "joint 'roll' is 'floating'; choose a base below it"),
        (("<parent link='base'/>", "<parent link='b6'/>"), "tip", None, "circle through link"),
        (("<axis xyz='0 0 1'/>", "<mimic joint='lift'/>"), "tip", None, "joint 'pan' mimics another one"),
        (("effort='1' velocity='2.0'", "effort='1'"), "tip", None, "joint 'pan' has no velocity limit"),
        (("velocity='2.0'", "velocity='fast'"), "tip", None, "a limit of joint 'pan' is no number"),
        (("lower='-3' upper='3' effort='1' velocity='2.0'", "velocity='2.0'"), "tip", None, "not 0 and 0"),
        (("xyz='0.4 0 0'", "xyz='0.4 0'"), "tip", None, "xyz of <origin> of joint 'elbow' is not three numbers"),
        (("xyz='0 0.6 0.8'", "xyz='0 0 0'"), "tip", None, "cannot be used as an arm"),
    ],
)
def test_a_urdf_that_cannot_be_used_is_refused_with_words(
    change: tuple[str, str], tip: str, base: str | None, words: str
) -> None:
    text = urdf().replace(*change) if change[0] else urdf()
    with pytest.raises(ArmError, match=words):
        Arm(text, tip, base)


def test_without_mujoco_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ArmError, match="pip install mujoco"):
        Arm(urdf(), "tip")
