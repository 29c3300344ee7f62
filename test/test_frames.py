"""The transforms of a recording: composed, interpolated, NaN where nothing is known, and wrong ones told in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bag_kit import NS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp
from truth_kit import bag, ns, pose_stamped, tf

from thinkjepa_ros.data.frames import Frames, slerp
from thinkjepa_ros.data.recording import Recording, RecordingError

TURN = (0.0, 0.0, 0.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


def rigid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random position and unit quaternion."""
    q = rng.normal(size=4)
    return rng.normal(size=3), q / np.linalg.norm(q)


def matrix(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """4 x 4 of a position and a quaternion, written out."""
    x, y, z, w = q
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = p
    return out


@settings(max_examples=30, deadline=None)
@given(seed=seeds, count=st.integers(1, 6))
def test_any_two_frames_of_any_tree_are_as_far_apart_as_their_chains_say(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    frames, world = Frames(), {"f0": np.eye(4)}
    for k in range(1, count + 1):
        parent, (p, q) = f"f{rng.integers(k)}", rigid(rng)
        scale = rng.uniform(0.9, 1.1)  # publishers round; the direction of the quaternion counts
        static = bool(rng.random() < 0.5)
        for stamp in (1 * NS, 2 * NS) if not static else (7,):
            frames.add(parent, f"/f{k}", stamp, p, scale * q, static)
        world[f"f{k}"] = world[parent] @ matrix(p, q)
    a, b = (f"f{rng.integers(count + 1)}" for _ in range(2))
    at = np.array([NS, 3 * NS // 2, 2 * NS])
    found = frames.lookup(a, b, at)
    assert np.allclose(found, np.linalg.inv(world[a]) @ world[b], atol=1e-12)
    assert np.allclose(found @ frames.lookup(b, a, at), np.eye(4), atol=1e-12)
    assert not frames.told(a, b, at)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, size=st.floats(0.0, 3.1))
def test_between_two_stamps_the_position_is_linear_and_the_turn_slerp(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    (p, q), (to, axis) = rigid(rng), rigid(rng)
    axis = axis[:3] / np.linalg.norm(axis[:3])
    other = (Rotation.from_quat(q) * Rotation.from_rotvec(size * axis)).as_quat()
    sign = rng.choice([-1.0, 1.0])  # q and -q are one rotation
    frames = Frames()
    frames.add("w", "c", 10 * NS, p, q)
    frames.add("w", "c", 11 * NS, to, sign * other)
    share = np.sort(rng.random(5))
    at = np.round((10 + share) * NS).astype(np.int64)
    share = (at - 10 * NS) / NS
    found = frames.lookup("w", "c", at)
    assert np.allclose(found[:, :3, 3], p + share[:, None] * (to - p), atol=1e-12)
    expected = Slerp([0, 1], Rotation.from_quat([q, other]))(share).as_matrix()
    assert np.allclose(found[:, :3, :3], expected, atol=1e-9)
    ends = frames.lookup("w", "c", np.array([10 * NS, 11 * NS]))
    assert np.array_equal(ends[0, :3, 3], p) and np.allclose(ends[1, :3, 3], to, atol=1e-15)


def test_slerp_of_the_same_and_of_opposite_rotations_is_finite() -> None:
    q = np.array([[0.0, 0.0, 0.0, 1.0]])
    for other in (q, -q, np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[1e-12, 0.0, 0.0, 1.0]])):
        out = slerp(q, other, np.array([[0.5]]))
        assert np.isfinite(out).all() and np.linalg.norm(out) == pytest.approx(1)


def test_what_was_never_said_is_nan_and_told() -> None:
    frames = Frames("my_bag", max_age_s=0.5)
    for second in (1.0, 1.4, 3.4, 3.6):
        frames.add("odom", "base", round(second * NS), (second, 0, 0), TURN)
    frames.add("base", "camera", 0, (0, 0, 1), TURN, static=True)
    at = np.array([0.9, 1.0, 1.2, 1.4, 2.0, 3.4, 3.5, 3.6, 3.7])
    stamps = np.round(at * NS).astype(np.int64)
    found = frames.lookup("odom", "camera", stamps)
    known = np.isfinite(found).all((1, 2))
    assert known.tolist() == [False, True, True, True, False, True, True, True, False]
    assert np.isnan(found[~known]).all() and np.allclose(found[known, 0, 3], at[known])
    assert np.array_equal(np.isnan(frames.lookup("camera", "odom", stamps)), np.isnan(found))
    assert frames.told("odom", "camera", stamps) == [
        "odom -> base is unknown at 3 of 9 times: 2 before its first or after its last and 1 in gaps of more than "
        "0.5 s, the longest 2.0 s"
    ]
    assert frames.stamps_between("odom", "camera").tolist() == [round(s * NS) for s in (1.0, 1.4, 3.4, 3.6)]
    assert len(frames.stamps_between("base", "camera")) == 0
    assert np.array_equal(frames.lookup("nowhere", "nowhere", stamps), np.tile(np.eye(4), (9, 1, 1)))


GOOD = ("w", "a", NS, (0, 0, 0), TURN)
NAN = float("nan")


@pytest.mark.parametrize(
    "links, words",
    [
        ([("a", "b", NS, (0, 0, 0), TURN), ("b", "a", NS, (0, 0, 0), TURN)], "form a circle: .*; fix"),
        ([("a", "a", NS, (0, 0, 0), TURN)], "form a circle: a -> a; fix"),
        ([GOOD, ("v", "a", NS, (0, 0, 0), TURN)], "a has two parents in bag, w and v; leave out"),
        ([("w", "b", NS, (0, 0, 0), TURN)], "no transform of the frame 'a'; take .*; frames: b, w"),
        ([GOOD, ("u", "b", NS, (0, 0, 0), TURN)], "between a and b: they hang below u and w, .*; record"),
        ([("w", "a", 0, (0, 0, 0), TURN)], "w -> a of bag has no time .* fill header.stamp"),
        (
            [("w", "a", 20 * NS, (0, 0, 0), TURN), ("w", "a", 10 * NS, (0, 0, 0), TURN)],
            r"go back by 10.0 s .*; cut the recording",
        ),
        ([("w", "a", NS, (NAN, 0, 0), TURN)], "w -> a of bag is no transform"),
        ([("w", "a", NS, (0, 0, 0), (0, 0, 0, 0))], "w -> a of bag is no transform"),
        ([("", "a", NS, (0, 0, 0), TURN)], "does not name its frames"),
        ([(*GOOD, True), GOOD], "w -> a is on /tf and on /tf_static of bag"),
        ([(*GOOD, True), ("w", "a", NS, (0, 0, 1e-3), TURN, True)], "is static in bag but changes"),
        ([(*GOOD, True), ("w", "a", NS, (0, 0, 0), (0, 0, 1e-3, 1), True)], "is static in bag but changes"),
    ],
)
def test_a_frame_that_cannot_be_used_is_told_when_it_is_asked_for(links: list[tuple], words: str) -> None:
    frames = Frames("bag")
    for link in links:
        frames.add(*link)
    target = "b" if any("b" in link[:2] for link in links) else "v" if links[0][0] == "a" else "w"
    with pytest.raises(RecordingError, match=words):
        frames.lookup("a", target, np.array([NS]))
    frames.add("house", "lamp", NS, (1, 2, 3), TURN)  # and not when other frames are
    assert frames.lookup("house", "lamp", np.array([NS]))[0, :3, 3].tolist() == [1, 2, 3]


def test_of_two_transforms_with_one_stamp_the_later_counts() -> None:
    frames = Frames()
    for stamp, x in ((NS, 1.0), (2 * NS, 5.0), (2 * NS, 2.0), (3 * NS, 3.0)):
        frames.add("w", "a", stamp, (x, 0, 0), TURN)
    assert frames.lookup("w", "a", np.array([3 * NS // 2, 2 * NS, 5 * NS // 2]))[:, 0, 3].tolist() == [1.5, 2.0, 2.5]


def test_a_static_transform_may_be_said_twice_and_by_either_quaternion() -> None:
    frames = Frames()
    for quaternion in ((0, 0, 0.6, 0.8), (0, 0, -0.6, -0.8)):
        frames.add("w", "a", 5, (1, 0, 0), quaternion, True)
    assert frames.lookup("w", "a", np.array([0, 10**18]))[1, 0, 3] == 1.0


def test_the_transforms_of_a_bag(tmp_path: Path) -> None:
    moving = [
        ("/tf", ns(k), tf((ns(k), "odom", "/base", (k, 0, 0), TURN), (ns(0.5) + k, "x", "y", (0, 0, 0), TURN)))
        for k in (0, 1, 2)
    ]
    late = [("/tf", ns(2.01), tf((ns(1.5), "odom", "base", (1.5, 1, 0), TURN)))]
    fixed = [("/tf_static", ns(0), tf((ns(0), "base", "camera", (0, 0, 1), TURN)))]
    other = [("/robot2/tf", ns(0), tf((ns(0), "mars", "base", (9, 9, 9), TURN)))]
    poses = [("/tracker", ns(k), pose_stamped(ns(k), (0, k, 0), frame="map")) for k in (0, 1)]
    folder = bag(tmp_path / "a", moving, late, fixed, other, poses)
    with Recording(folder) as recording:
        frames = Frames.of(recording)
        assert frames.names == ("base", "camera", "odom", "x", "y")
        found = frames.lookup("odom", "camera", np.array([ns(0.5), ns(1.5), ns(1.75)]))
        assert np.allclose(found[:, :3, 3], [(0.5, 0, 1), (1.5, 1, 1), (1.75, 0.5, 1)], atol=1e-6)
        assert Frames.of(recording, ["/robot2/tf"]).names == ("base", "mars")
        with pytest.raises(RecordingError, match=r"has no topic /tff; topics in this bag"):
            Frames.of(recording, ["/tff"])
        with pytest.raises(RecordingError, match=r"/tracker .* is geometry_msgs/msg/PoseStamped and not tf2_msgs"):
            Frames.of(recording, ["/tracker"])
        assert frames.add_poses(recording, "/tracker", "camera") == "map"  # takes the place of what /tf says
        assert frames.lookup("map", "camera", np.array([ns(0.25)]))[0, :3, 3].tolist() == [0, 0.25, 0]
        with pytest.raises(RecordingError, match="hang below map and odom"):
            frames.lookup("odom", "camera", np.array([ns(0)]))
    with Recording(bag(tmp_path / "b", other)) as recording:
        assert Frames.of(recording).names == ("base", "mars")  # the transforms of the only robot there is
    with Recording(bag(tmp_path / "c", poses, [("/p", ns(0), pose_stamped(ns(0), (0, 0, 0), frame=""))])) as recording:
        assert Frames.of(recording).names == ()
        with pytest.raises(RecordingError, match="does not say its frame"):
            Frames().add_poses(recording, "/p", "camera")
