"""Episodes as rosbag2 recordings: every topic says exactly what the episode says."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation
from test_episode import make

from thinkjepa_ros.data import bag
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.data.recording import Recording


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Messages by topic: (recording time in ns, message)."""
    store, found = get_typestore(Stores.ROS2_JAZZY), defaultdict(list)
    with Reader(path) as reader:
        for connection, stamp, data in reader.messages():
            found[connection.topic].append((stamp, store.deserialize_cdr(data, connection.msgtype)))
    return found


def nanoseconds(header: Any) -> int:
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_says_what_the_episode_says(tmp_path: Path, storage: str) -> None:
    e = make()
    assert bag.write_bag(tmp_path / "x", [e], storage) == len(e)
    topics = read(tmp_path / "x")
    assert [len(topics[t]) for t in (bag.IMAGE_TOPIC, bag.INFO_TOPIC, bag.POSE_TOPIC, bag.JOINTS_TOPIC)] == [len(e)] * 4
    assert [m.data for _, m in topics[bag.INSTRUCTION_TOPIC]] == [e.instruction]
    for i in range(len(e)):
        stamp = bag.START_NS + int(e.stamps_ns[i] - e.stamps_ns[0])
        for topic in (bag.IMAGE_TOPIC, bag.INFO_TOPIC, bag.POSE_TOPIC, bag.JOINTS_TOPIC):
            recorded, message = topics[topic][i]
            assert recorded == stamp == nanoseconds(message.header), topic
        image, info = topics[bag.IMAGE_TOPIC][i][1], topics[bag.INFO_TOPIC][i][1]
        pose, joints = topics[bag.POSE_TOPIC][i][1], topics[bag.JOINTS_TOPIC][i][1]
        assert image.format == "jpeg" and image.data.tobytes() == e.frames.jpeg(i)
        assert (info.width, info.height) == (32, 24) and np.array_equal(info.k.reshape(3, 3), e.camera.matrix)
        assert image.header.frame_id == info.header.frame_id == "camera_optical"
        assert pose.header.frame_id == joints.header.frame_id == "world"
        q, p = pose.pose.orientation, pose.pose.position
        assert np.allclose(Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), e.camera_pose[i, :3, :3])
        assert np.allclose([p.x, p.y, p.z], e.camera_pose[i, :3, 3])
        got = np.array([[v.position.x, v.position.y, v.position.z] for v in joints.poses], np.float32)
        assert np.array_equal(got, e.joints[i], equal_nan=True)
        assert all(v.orientation.w == 1.0 for v in joints.poses)
    with Recording(tmp_path / "x") as recording:
        instruction = recording.topic(bag.INSTRUCTION_TOPIC)
        assert instruction is not None and instruction.latched
        camera = recording.camera()
        info_topic = recording.camera_info(camera)
        assert info_topic is not None and (camera.name, info_topic.name) == (bag.IMAGE_TOPIC, bag.INFO_TOPIC)


def test_several_episodes_follow_with_a_gap(tmp_path: Path) -> None:
    bag.write_bag(tmp_path / "x", [make(4, seed=1), make(5, seed=2)], gap_s=6.0)
    topics = read(tmp_path / "x")
    stamps = np.array([s for s, _ in topics[bag.IMAGE_TOPIC]])
    gaps = np.diff(stamps)
    assert len(stamps) == 9 and gaps[3] == 6_000_000_000 and set(gaps.tolist()) == {33_333_333, 6_000_000_000}
    assert [s for s, _ in topics[bag.INSTRUCTION_TOPIC]] == [stamps[0], stamps[4]]


def test_a_bag_is_whole_or_absent(tmp_path: Path) -> None:
    def breaks() -> Any:
        yield make()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="fire"):
        bag.write_bag(tmp_path / "x", breaks())
    assert list(tmp_path.iterdir()) == []
    bag.write_bag(tmp_path / "x", [make()])
    with pytest.raises(EpisodeError, match="remove it"):
        bag.write_bag(tmp_path / "x", [make()])
    with pytest.raises(ValueError, match="storage"):
        bag.write_bag(tmp_path / "y", [make()], storage="tar")


def test_the_same_episode_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bag.write_bag(tmp_path / name / "bag", [make()])
    for file in sorted((tmp_path / "a" / "bag").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / "bag" / file.name).read_bytes()


def test_recompressed_images_are_smaller_and_alike() -> None:
    e = make()
    small = bag.recompress(e, 60)
    assert len(small.frames.blobs) < len(e.frames.blobs)
    assert np.abs(small.frames[2].astype(int) - e.frames[2]).mean() < 6


def test_files_become_a_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make().save(tmp_path / "lamp_1.h5")
    assert bag.main(tmp_path / "bag", files=[tmp_path / "lamp_1.h5"]) == 0
    assert "6 frames" in capsys.readouterr().out
    assert len(read(tmp_path / "bag")[bag.IMAGE_TOPIC]) == 6
    with pytest.raises(ValueError, match="quality"):
        bag.main(tmp_path / "other", quality=0)


def test_the_shipped_demo_bag() -> None:
    folder = Path(__file__).resolve().parents[1] / "models" / "demo" / "cue_reach"
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == ["cue_reach.mcap", "metadata.yaml"]
    assert sum(f.stat().st_size for f in files) < 10e6
    topics = read(folder)
    stamps = np.array([s for s, _ in topics[bag.IMAGE_TOPIC]])
    assert 6e9 < stamps[-1] - stamps[0] < 13e9 and abs(np.diff(stamps).mean() - 1e9 / 30) < 1e3
    info = topics[bag.INFO_TOPIC][0][1]
    assert (info.width, info.height) == (640, 480)
    assert info.k[0] == pytest.approx(240 / np.tan(np.radians(31)))  # the central square is the canonical view
    for _, message in topics[bag.IMAGE_TOPIC][::40]:
        assert cv2.imdecode(message.data, cv2.IMREAD_COLOR).shape == (480, 640, 3)
    assert len(topics[bag.JOINTS_TOPIC][0][1].poses) == 24
