"""Recordings become episodes: the same pictures, the joints where the truth says, the camera where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import NS, camera_info, make, write
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation
from truth_kit import TURN, Message, bag, camera, compressed, jpeg, ns, pose_array, pose_stamped, tf
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.data.bag import write_bag
from thinkjepa_ros.data.cutting import Settings, make_plan
from thinkjepa_ros.data.episode import Episode, list_episodes
from thinkjepa_ros.data.from_bag import convert
from thinkjepa_ros.data.recording import Recording, RecordingError

SPEED = np.array([0.1, -0.05, 0.02])
START = np.array([[0.0, 0.0, 0.5], [0.1, 0.1, 0.6]])
CAMERA = "camera_optical"


def hands(seconds: float) -> np.ndarray:
    """Two joints that move evenly, float64 [2, 3], in front of a camera at the origin."""
    return START + np.multiply.outer([1.0, 2.0], SPEED * seconds)


def truth(times: np.ndarray, frame: str = CAMERA, skip: tuple[float, float] = (9e9, 9e9)) -> list[Message]:
    return [
        ("/truth", ns(t), pose_array(ns(t), hands(t) if not skip[0] < t < skip[1] else hands(t) * np.nan, frame))
        for t in times.tolist()
    ]


def every(rate_hz: float, seconds: float, begin: float = 0.0) -> np.ndarray:
    return begin + np.arange(round(seconds * rate_hz)) / rate_hz


def images(times: np.ndarray, **how: Any) -> list[Message]:
    return camera([ns(t) for t in times.tolist()], **how)


def episodes(folder: Path, out: Path, **settings: Any) -> list[Episode]:
    settings = {"truth": "/truth", "min_seconds": 0.0} | settings
    assert convert([folder], out, Settings(**settings), quiet=True) == 0
    return [Episode.load(path) for path in list_episodes(out)]


def seconds(episode: Episode) -> np.ndarray:
    return (episode.stamps_ns - ns(0)) / NS


# --- what an episode says ---


def test_truth_in_the_camera_frame_needs_no_pose(tmp_path: Path) -> None:
    at = every(15, 3.0, 0.013)
    folder = bag(tmp_path / "bag", images(at), truth(every(50, 4.0)))
    (e,) = episodes(folder, tmp_path / "out", joints=("thumb", "index"), instruction="wave")
    assert [e.frames.jpeg(k) for k in range(len(e))] == [jpeg(k) for k in range(45)], "JPEG stays the bytes it is"
    assert e.stamps_ns.tolist() == [ns(t) for t in at]
    assert np.allclose(e.joints, [hands(t) for t in at], rtol=0, atol=1e-6), "linear motion is interpolated exactly"
    assert np.array_equal(e.camera_pose, np.tile(np.eye(4), (45, 1, 1)))
    assert (e.joint_names, e.instruction, e.split, e.seed) == (("thumb", "index"), "wave", "recorded", 0)
    assert (e.camera.width, e.camera.height, e.camera.fx, e.camera.cx) == (32, 24, 40.0, 15.5)
    assert e.intent is None and e.domain == "recordings" and e.details["rate_hz"] == pytest.approx(15)
    assert "occluded is not known" in e.details["visible"] and e.details["world"] == CAMERA
    assert not e.states.any() and "not known" in e.details["states"]
    pixels = e.camera.project(e.joints)
    inside = (np.abs(pixels[..., 0] - 15.5) <= 16) & (np.abs(pixels[..., 1] - 11.5) <= 12)
    assert np.array_equal(e.visible, inside) and inside.any() and not inside.all()


def moving(stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A base that drives and turns evenly: positions [N, 3], quaternions [N, 4] at times in seconds."""
    turn = Rotation.from_rotvec(np.multiply.outer(stamps, [0.0, 0.0, 0.3]))
    return np.multiply.outer(stamps, [0.2, 0.0, 0.0]), turn.as_quat()


@pytest.mark.parametrize("frame", ["odom", "base", CAMERA])
def test_a_moving_camera_is_followed_by_its_transforms(tmp_path: Path, frame: str) -> None:
    """The joints rest or move in `frame`; wherever that is, the episode has them in odom, which does not move."""
    at, said = every(15, 2.0, 0.21), every(20, 3.0)
    drive = [("/tf", ns(t), tf((ns(t), "odom", "base", p, q))) for t, p, q in zip(said, *moving(said), strict=True)]
    mount = Rotation.from_euler("xyz", [-2.0, 0.1, -1.5])
    fixed = [("/tf_static", ns(0), tf((ns(0), "base", CAMERA, (0.1, 0.0, 1.2), mount.as_quat())))]
    folder = bag(tmp_path / "bag", images(at), truth(said, frame), drive, fixed)
    (e,) = episodes(folder, tmp_path / "out", world_frame="odom" if frame == CAMERA else "")
    position, quaternion = moving(at)
    base = Rotation.from_quat(quaternion)
    pose = np.tile(np.eye(4), (len(at), 1, 1))
    pose[:, :3, :3] = (base * mount).as_matrix()
    pose[:, :3, 3] = position + base.apply([0.1, 0.0, 1.2])
    assert np.allclose(e.camera_pose, pose, rtol=0, atol=1e-9) and e.details["world"] == "odom"
    local = np.array([hands(t) for t in at])
    if frame == "odom":
        expected = local
    elif frame == "base":
        expected = np.einsum("nij,nkj->nki", base.as_matrix(), local) + position[:, None]
    else:
        expected = np.einsum("nij,nkj->nki", pose[:, :3, :3], local) + pose[:, None, :3, 3]
    # between two stamps of the truth a turning frame moves on an arc, the interpolation on its chord
    assert np.abs(e.joints - expected).max() < (1e-6 if frame == "odom" else 2e-4)
    pixels = e.camera.project(np.einsum("nji,nkj->nki", pose[:, :3, :3], expected - pose[:, None, :3, 3]))
    inside = (np.abs(pixels[..., 0] - 15.5) <= 16) & (np.abs(pixels[..., 1] - 11.5) <= 12)
    assert np.array_equal(e.visible, inside) and (frame != CAMERA or inside.any())
    assert np.allclose(e.points_in_camera(3, 3), (expected[3] - pose[3, :3, 3]) @ pose[3, :3, :3], atol=3e-4)


def test_a_camera_that_may_move_although_it_is_taken_as_still_is_told(tmp_path: Path) -> None:
    at = every(10, 2.0)
    drive = [("/tf", ns(t), tf((ns(t), "odom", CAMERA, (t, 0, 0), TURN))) for t in at]
    with Recording(bag(tmp_path / "bag", images(at), truth(at), drive)) as recording:
        assert make_plan(recording, Settings("/truth")).notes == [
            "the camera is taken as if it stood still; where it moves, give --world-frame (transforms were recorded)"
        ]
        plan = make_plan(recording, Settings("/truth", world_frame="odom"))
        assert plan.notes == [] and plan.pieces[0].camera_pose[-1, 0, 3] == pytest.approx(1.9)


def test_a_rectified_topic_takes_the_projection_matrix(tmp_path: Path) -> None:
    at = every(10, 2.0)
    rows = [(topic.replace("image/compressed", "image_rect/compressed"), at, m) for topic, at, m in images(at)]
    for _, _, message in rows[::2]:
        message.p, message.d = np.array([33.0, 0, 15, 0, 0, 34, 11, 0, 0, 0, 1, 0]), np.full(5, 0.1)
    (e,) = episodes(bag(tmp_path / "bag", rows, truth(at)), tmp_path / "out")
    assert (e.camera.fx, e.camera.fy, e.camera.cx, e.camera.cy, e.camera.distortion) == (33.0, 34.0, 15.0, 11.0, ())


def test_the_hand_itself_may_be_a_frame(tmp_path: Path) -> None:
    at = every(10, 2.0)
    robot = [
        ("/tf", ns(t), tf((ns(t), "odom", "base", (t, 0, 0), TURN), (ns(t), "base", "hand", (0, t, 0), TURN)))
        for t in at
    ]
    fixed = [
        ("/tf_static", ns(0), tf((ns(0), "base", CAMERA, (0, 0, -1), TURN), (ns(0), "hand", "tip", (0, 0, 1), TURN)))
    ]
    (e,) = episodes(
        bag(tmp_path / "bag", images(at), robot, fixed), tmp_path / "out", truth="/tf", links=("tip", "hand")
    )
    expected = np.stack([np.stack([at, at, at * 0 + z], 1) for z in (1, 0)], 1)
    assert np.allclose(e.joints, expected, atol=1e-6) and e.joint_names == ("tip", "hand")
    assert np.allclose(e.camera_pose[:, :3, 3], np.stack([at, at * 0, at * 0 - 1], 1), atol=1e-9)


def test_a_pose_topic_takes_the_place_of_transforms(tmp_path: Path) -> None:
    at = every(10, 2.0)
    poses = [("/pose", ns(t), pose_stamped(ns(t), (t, 0, 0), frame="map")) for t in every(5, 1.61)]
    folder = bag(tmp_path / "bag", images(at), truth(at, "map"), poses)
    (e,) = episodes(folder, tmp_path / "out", pose_topic="/pose")
    assert np.allclose(seconds(e), at[at <= 1.4 + 1e-9]), "images after the last pose are left out"
    assert np.allclose(e.camera_pose[:, 0, 3], seconds(e), atol=1e-7) and e.details["world"] == "map"
    with pytest.raises(RecordingError, match=r"in 'map', its images are from 'camera_optical', .* topics: /pose\)"):
        episodes(folder, tmp_path / "other")
    (e,) = episodes(folder, tmp_path / "third", truth_frame=CAMERA)
    assert len(e) == 20 and e.details["camera"]["pose"].startswith("identity")


def test_gaps_in_the_truth_are_nan_and_its_ends_are_cut_off(tmp_path: Path) -> None:
    at = every(10, 4.0)
    folder = bag(tmp_path / "bag", images(at), truth(every(10, 2.5, 0.5), skip=(1.05, 1.95)))
    (e,) = episodes(folder, tmp_path / "out")
    assert np.allclose(seconds(e)[[0, -1]], (0.5, 2.9))
    unknown = ~np.isfinite(e.joints).all(2)
    assert unknown.all(1).tolist() == unknown.any(1).tolist() == [1.05 < t < 1.95 for t in seconds(e)]
    assert not e.visible[unknown].any()


def test_the_instruction_in_force_is_said_and_a_new_one_begins_an_episode(tmp_path: Path) -> None:
    at = every(10, 3.0)
    said = [(0.35, "wait"), (1.0, "wait"), (1.95, "pick the cup"), (2.4, "pick the cup")]  # the first came late
    words = [("/instruction", ns(t), make("std_msgs/msg/String", text)) for t, text in said]
    found = episodes(bag(tmp_path / "bag", images(at), truth(at), words), tmp_path / "out")
    assert [(e.instruction, len(e)) for e in found] == [("wait", 20), ("pick the cup", 10)]


# --- cutting ---


def test_episodes_end_at_their_length_at_gaps_and_where_the_clock_jumps(tmp_path: Path) -> None:
    times = np.concatenate([every(10, 5.0), every(10, 2.0, 8.0), every(10, 3.0, 6.0), every(10, 0.4, 20.0)])
    rows = [m for m in images(times)]
    for k, (topic, _, message) in enumerate(rows):  # recorded in this order, whatever their stamps say
        rows[k] = (topic, ns(0) + k * NS // 100, message)
    folder = write(tmp_path / "bag", [*rows, *truth(every(10, 30.0))])
    found = episodes(folder, tmp_path / "out", seconds=2.0, min_seconds=0.95)
    spans = [(round(float(seconds(e)[0]), 3), len(e)) for e in found]
    assert spans == [(0.0, 20), (2.0, 20), (4.0, 10), (8.0, 20), (6.0, 20), (8.0, 10)], "the rest of 0.4 s is left out"
    assert [e.seed for e in found] == list(range(6))
    assert [p.name for p in list_episodes(tmp_path / "out")][-1] == "recorded_0000005.h5"


def test_a_small_step_back_of_the_clock_begins_an_episode(tmp_path: Path) -> None:
    times = np.concatenate([every(10, 1.0), every(10, 1.0, 0.65)])
    rows = [(topic, ns(0) + k * NS // 100, message) for k, (topic, _, message) in enumerate(images(times))]
    found = episodes(write(tmp_path / "bag", [*rows, *truth(every(10, 3.0))]), tmp_path / "out")
    assert [(round(float(seconds(e)[0]), 3), len(e)) for e in found] == [(0.0, 10), (0.65, 10)]


def test_a_limit_is_a_beginning_and_every_image_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poses = [("/tf", ns(t), tf((ns(t), "map", CAMERA, (0, 0, 0), TURN))) for t in every(10, 7.0)]
    folder = bag(tmp_path / "bag", images(every(10, 8.0)), truth(every(10, 5.5, 0.3), "map"), poses)
    settings = Settings("/truth", seconds=2.0, min_seconds=2.0)
    assert convert([folder], tmp_path / "out", settings, limit=1) == 0
    words = capsys.readouterr().out
    assert "1 episodes (1 new, 0 kept), 40 of 80 images, 2 joints in map: 100% known" in words
    for line in (
        "1 more episodes are beyond the limit", "10 images without a camera pose", "15 images without truth",
        "15 images in rests that are too short", "map -> camera_optical is unknown at 10 of 80 times",
    ):  # fmt: skip
        assert line in words
    first = (tmp_path / "out" / "recorded_0000000.h5").read_bytes()
    assert convert([folder], tmp_path / "out", settings) == 0
    assert "2 episodes (1 new, 1 kept)" in capsys.readouterr().out
    assert (tmp_path / "out" / "recorded_0000000.h5").read_bytes() == first


# --- recordings that exist ---


def as_recorded(folder: Path, topic: str) -> list[Any]:
    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(folder) as reader:
        chosen = [c for c in reader.connections if c.topic == topic]
        return [store.deserialize_cdr(data, c.msgtype) for c, _, data in reader.messages(chosen)]


@pytest.mark.parametrize("name, lengths, size", [("g1_pick_10", [290], 640), ("g1_pick_40", [180, 33], 320)])
def test_a_real_robot(shared: Path, tmp_path: Path, name: str, lengths: list[int], size: int) -> None:
    folder, out = shared / "data" / name, tmp_path / "out"
    runner = CliRunner().invoke(
        cli.app, ["data", "from-bag", str(folder), "--out", str(out), "--truth", "/hand_keypoints"]
    )
    assert runner.exit_code == 0, runner.output
    found = [Episode.load(path) for path in list_episodes(out)]
    assert [len(e) for e in found] == lengths
    pictures = [m.data.tobytes() for m in as_recorded(folder, "/head_camera/image/compressed")]
    assert [e.frames.jpeg(k) for e in found for k in range(len(e))] == pictures
    points = as_recorded(folder, "/hand_keypoints")
    expected = np.array([[[p.position.x, p.position.y, p.position.z] for p in m.poses] for m in points])
    joints, visible = (np.concatenate([getattr(e, field) for e in found]) for field in ("joints", "visible"))
    assert np.allclose(joints, expected, rtol=0, atol=1e-6)
    focal = 605 * size / 640
    u, v = (focal * expected[..., k] / expected[..., 2] + size * (0.5, 0.375)[k] for k in (0, 1))
    inside = (u >= -0.5) & (u <= size - 0.5) & (v >= -0.5) & (v <= 0.75 * size - 0.5)
    assert np.array_equal(visible, inside) and 0.9 < inside.mean() < 1
    assert found[0].frames[0].shape == (size * 3 // 4, size, 3)


def test_a_recording_without_truth_says_what_it_has(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no topic /truth; topics in this bag:\n +/camera/image/compressed"):
        episodes(shared / "data" / "human_hand", tmp_path / "out")


def test_an_episode_of_the_simulator_comes_back_from_its_recording(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    from thinkjepa_ros.data.sim.play import make_episode

    made = make_episode("lamp", 5, 64, 64, 4.0)
    write_bag(tmp_path / "bag", [made, made], gap_s=6.0)
    found = episodes(tmp_path / "bag", tmp_path / "out", truth="/truth/joints", pose_topic="/camera/pose")
    assert len(found) == 2 and [len(e) for e in found] == [len(made)] * 2
    for e in found:
        assert np.array_equal(np.diff(e.stamps_ns), np.diff(made.stamps_ns))
        assert np.allclose(e.joints, made.joints, rtol=0, atol=1e-6, equal_nan=True)
        assert np.allclose(e.camera_pose, made.camera_pose, rtol=0, atol=1e-9)
        assert e.camera == made.camera and e.instruction == made.instruction
        assert all(e.frames.jpeg(k) == made.frames.jpeg(k) for k in range(len(made)))
        assert not (made.visible & ~e.visible).any(), "what the simulator sees lies in the image"


# --- recordings that can not be used ---


def spoiled(what: str) -> tuple[list[Message], dict[str, Any]]:
    """A recording of two seconds with something wrong, and settings."""
    at = every(10, 2.0)
    rows, said = images(at), truth(at)
    others: dict[str, tuple[list[Message], dict[str, Any]]] = {
        "no camera": (said, {}),
        "two cameras": ([*rows, *said, ("/left/image", ns(0), compressed(ns(0), jpeg(0)))], {}),
        "no calibration": ([*images(at, info=False), *said], {}),
        "no truth": (rows, {}),
        "other camera": ([*rows, *said], {"image_topic": "/right/image"}),
        "no overlap": ([*rows, *truth(every(10, 2.0, 50.0))], {}),
        "no time": ([*images(at[:3]), *said, ("/camera/image/compressed", ns(1), compressed(0, jpeg(0)))], {}),
        "no frame": ([*images(at, frame=""), *said], {}),
        "frames": ([*rows, *said, ("/camera/image/compressed", ns(3), compressed(ns(3), jpeg(0), "other"))], {}),
        "no pose": ([*rows, *truth(at, "map"), ("/tf", ns(0), tf((ns(0), "map", "base", (0, 0, 0), TURN)))], {}),
        "no pose in time": ([*rows, *truth(at, "m"), ("/tf", ns(9), tf((ns(9), "m", CAMERA, (0, 0, 0), TURN)))], {}),
        "depth": ([*said, ("/camera/image/compressed", ns(0), compressed(ns(0), b"", kind="compressedDepth"))], {}),
        "all damaged": ([*said, ("/camera/image/compressed", ns(0), compressed(ns(0), jpeg(0)[:100]))], {}),
        "another size": (
            [*said, *rows, ("/camera/image/compressed", ns(0.05), compressed(ns(0.05), jpeg(0, 16, 16)))], {}),
        "calibrated for another": (
            [*images(at, info=False), *said, ("/camera/camera_info", ns(0), camera_info(ns(0), 64, 48))], {}),
        "zoom": ([*rows, *said, ("/camera/camera_info", ns(3), camera_info(ns(3), 34, 24))], {}),
        "short": ([*rows, *said], {"min_seconds": 3.0}),
    }  # fmt: skip
    return others[what]


@pytest.mark.parametrize(
    "what, words",
    [
        ("no camera", r"has no camera topic .*; topics in this bag:\n +/truth"),
        ("two cameras", r"has 2 camera topics; choose one \(image_topic: /camera/image/compressed or /left/image\)"),
        (
            "no calibration",
            r"there is no sensor_msgs/msg/CameraInfo beside it; give --intrinsics .*for 32x24\); topics",
        ),
        ("no truth", r"has no topic /truth; topics in this bag:"),
        ("other camera", r"has no images on /right/image; topics in this bag:"),
        ("no overlap", r"do not overlap in time: /truth .* says .* let both use the clock of ROS"),
        ("no time", r"have no time \(stamp 0\); make the driver fill header.stamp"),
        ("no frame", r"do not say their frame; give it with --camera-frame"),
        ("frames", r"changes from camera_optical to other; say which one is right \(--camera-frame\)"),
        ("no pose", r"no transform of the frame 'camera_optical'; take .*; frames: base, map"),
        (
            "no pose in time",
            r"no episode can be made .*: 20 images without a camera pose; m -> camera_optical is unknown",
        ),
        ("depth", r"/camera/image/compressed .*: format 'compressedDepth' is a depth image; choose a colour topic"),
        ("all damaged", r"no image on /camera/image/compressed .* can be decoded"),
        ("another size", r"image 1 on .* is 16x16 and not 32x24 as before; record each camera mode on its own"),
        ("calibrated for another", r"are 32x24, but CameraInfo is for 64x48; give --intrinsics"),
        ("zoom", r"the calibration on /camera/camera_info .* changes within the recording; cut it there"),
        ("short", r"no episode can be made .*: 20 images in rests that are too short"),
    ],
)
def test_what_gives_no_episode_is_told_with_the_remedy(tmp_path: Path, what: str, words: str) -> None:
    rows, settings = spoiled(what)
    with pytest.raises(RecordingError, match=words):
        episodes(bag(tmp_path / "bag", rows), tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*.h5"))


def test_intrinsics_take_the_place_of_camera_info(tmp_path: Path) -> None:
    at = every(10, 2.0)
    (e,) = episodes(
        bag(tmp_path / "bag", images(at, info=False), truth(at)), tmp_path / "out", intrinsics=(50.0, 51.0, 15.0, 11.0)
    )
    assert (e.camera.fx, e.camera.fy, e.camera.cx, e.camera.cy, e.camera.distortion) == (50.0, 51.0, 15.0, 11.0, ())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seconds": 0.0}, "seconds is 0"),
        ({"truth_gap_s": float("nan")}, "truth_gap_s is nan"),
        ({"min_seconds": 13.0}, "min_seconds is 13"),
        ({"intrinsics": (1.0,)}, "fx,fy,cx,cy"),
        ({"quality": 101}, "quality is 101"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings("/truth", **change)
