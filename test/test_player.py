"""The player: real processes playing recordings that the tests make, and bags that are broken in every usual way."""

from __future__ import annotations

import shutil
import signal
import struct
import time

import bag_kit
import numpy as np
import pytest
from bag_kit import BEGIN_NS, CAMERA_BEGIN_NS, NS, camera_bag
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin

from thinkjepa_ros.data.playback import Schedule
from thinkjepa_ros.data.recording import Recording, RecordingError

rclpy = pytest.importorskip("rclpy")

from nav_msgs.msg import Path as PathMessage  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from ros_kit import LATCHED, joint_array, wait_until  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

from thinkjepa_ros.bridge.messages import stamp_ns  # noqa: E402
from thinkjepa_ros.bridge.stamps import Restamper, read_stamp, write_stamp  # noqa: E402
from thinkjepa_ros.msg import Forecast, NodeStatus  # noqa: E402


def play(processes, bag, **parameters):
    arguments = [f"bag:={bag}", *(f"{name}:={value}" for name, value in parameters.items())]
    return processes.node("player", *(part for argument in arguments for part in ("-p", argument)))


def ended(player, timeout_s=30.0):
    wait_until(lambda: not player.running, lambda: f"the end of the player; it said {player.output}", timeout_s)
    return player.end(0)[0] if player.running else player._popen.returncode


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_plays_as_if_it_happened_now(processes, peer, tmp_path, storage):
    bag = camera_bag(tmp_path / "bag", storage=storage)
    images, infos = peer.collect(Image, "image"), peer.collect(CameraInfo, "camera_info")
    paths = peer.collect(PathMessage, "plan")
    received = []
    peer.node.create_subscription(Image, "image", lambda m: received.append(time.monotonic()), 100)
    player = play(processes, bag, image_reliability="reliable", wait_for_subscribers=2)
    wait_until(lambda: len(images) == 30 and len(infos) == 30 and len(paths) == 3, "all messages")
    assert ended(player) == 0, player.output
    stamps = np.array([stamp_ns(m.header.stamp) for m in images])
    recorded = np.array([round(k * NS / 30) for k in range(30)])
    np.testing.assert_array_equal(stamps - stamps[0], recorded)  # to the nanosecond
    assert abs(time.time_ns() - stamps[-1]) < 20 * NS
    for k, message in enumerate(images):
        np.testing.assert_array_equal(np.asarray(message.data), bag_kit.pixels(k).ravel())
        assert message.header.frame_id == "camera_optical"
    assert [stamp_ns(m.header.stamp) for m in infos] == stamps.tolist()
    # headers inside of messages move along, and keep their distance
    for message, k in zip(paths, (0, 10, 20), strict=True):
        assert stamp_ns(message.header.stamp) == stamps[k]
        assert [stamp_ns(p.header.stamp) for p in message.poses] == [stamps[k], stamps[k] + NS]
        assert message.poses[1].pose.position.z == 3.0
    assert received[-1] - received[0] == pytest.approx(29 / 30, abs=0.3)  # real speed


def test_latency_is_real(processes, peer, tmp_path):
    """The first image is stamped with the moment it is published, later ones with when they are due."""
    ages = []
    peer.node.create_subscription(Image, "image", lambda m: ages.append(time.time_ns() - stamp_ns(m.header.stamp)), 100)
    play(processes, camera_bag(tmp_path / "bag", extra=False), image_reliability="reliable", wait_for_subscribers=1)
    wait_until(lambda: len(ages) == 30, "all images")
    assert min(ages) > -5_000_000 and np.median(ages) < 0.2 * NS


def test_bag_clock_keeps_stamps_and_ticks(processes, peer, tmp_path):
    bag = camera_bag(tmp_path / "bag", frames=31)
    images = peer.collect(Image, "image")
    ticks = peer.collect(Clock, "/clock")
    player = play(processes, bag, clock="bag", image_reliability="reliable", wait_for_subscribers=1)
    wait_until(lambda: len(images) == 31, "all images")
    assert ended(player) == 0
    assert [stamp_ns(m.header.stamp) for m in images] == [CAMERA_BEGIN_NS + round(k * NS / 30) for k in range(31)]
    clock = np.array([stamp_ns(m.clock) for m in ticks])
    assert (np.diff(clock) >= 0).all() and clock[0] >= CAMERA_BEGIN_NS - NS and clock[-1] <= CAMERA_BEGIN_NS + 1.2 * NS
    assert len(np.unique(clock)) >= 80, "the clock ticks at 200 Hz for a second; 100 Hz is promised"


def test_loop_goes_on_in_time_and_tells_where_the_scene_restarts(processes, peer, tmp_path):
    images = peer.collect(Image, "image")
    loops = peer.collect(Header, "player/loop", LATCHED)
    player = play(
        processes, camera_bag(tmp_path / "bag", 10), loop="true", image_reliability="reliable", wait_for_subscribers=1
    )
    wait_until(lambda: len(images) >= 25 and len(loops) >= 3, "three rounds")
    stamps = np.array([stamp_ns(m.header.stamp) for m in images])
    gaps = np.diff(stamps) / NS
    assert (gaps > 0).all()
    assert gaps[9] == pytest.approx(1 / 30, abs=0.002)  # the seam looks like any other two images
    assert [stamp_ns(h.stamp) for h in loops[:2]] == [stamps[0], stamps[10]]
    assert [h.frame_id for h in loops[:2]] == ["0", "1"]
    status, seconds = player.end(signal.SIGINT)
    assert status == 0 and seconds < 3 and "Traceback" not in player.output


def test_what_was_said_once_reaches_a_late_listener(processes, peer, tmp_path):
    images = peer.collect(Image, "image")
    play(processes, camera_bag(tmp_path / "bag", 60), start_offset_s=1.0, loop="true", image_reliability="reliable")
    wait_until(lambda: images, "an image")
    told = peer.collect(String, "/instruction", LATCHED)  # said at 0 s, and we begin at 1 s
    wait_until(lambda: told, "the instruction")
    assert told[0].data == "pick the red cube"


def test_choice_of_topics_offset_and_names(processes, peer, tmp_path):
    images, paths = peer.collect(Image, "eye"), peer.collect(PathMessage, "plan")
    infos = peer.collect(CameraInfo, "eye_info")
    player = play(
        processes, camera_bag(tmp_path / "bag"), topics="/instruction", image_to="eye", camera_info_to="eye_info",
        start_offset_s=0.5, image_reliability="reliable", wait_for_subscribers=1,
    )  # fmt: skip
    assert ended(player) == 0, player.output
    wait_until(lambda: len(images) == 15 and len(infos) == 15, "the second half")
    np.testing.assert_array_equal(np.asarray(images[0].data), bag_kit.pixels(15).ravel())
    assert not paths


@pytest.mark.slow
def test_lock_step_replays_are_equal_to_the_last_bit(processes, peer, tmp_path, small_model):
    """Round after round and run after run: without lock step images would be superseded, differently each time.

    That every image is answered is what the player counts. This reader of a topic of depth 1 may be too slow for a few
    answers on a busy machine, so it compares those it has, by stamp.
    """
    bag = camera_bag(tmp_path / "bag", 40, extra=False)
    per_round = 40 - 20  # 8 frames at 10 Hz (within half a step) fill the window at 0.67 s, then all are answered
    forecasts = peer.collect(Forecast, "predictor/forecast")
    processes.node("predictor", "-p", f"model:={small_model}", "-p", "max_rate_hz:=240.0")
    in_step = {
        "clock": "bag", "lockstep": "true", "rate": 2.0, "image_reliability": "reliable", "wait_for_subscribers": 1,
    }  # fmt: skip
    alone = play(processes, bag, **in_step)
    assert ended(alone, 60.0) == 0, alone.output
    assert "0 of 40 images went unanswered" in alone.output
    enough = round(0.7 * per_round)
    wait_until(lambda: len(forecasts) >= enough, lambda: f"the forecasts; {len(forecasts)} came")
    once = {stamp_ns(f.header.stamp): joint_array(f).tobytes() for f in forecasts}
    assert len(set(once.values())) == len(once) <= per_round

    forecasts.clear()
    looping = play(processes, bag, loop="true", **in_step)
    wait_until(lambda: len(forecasts) >= 3 * per_round, lambda: f"three rounds; {len(forecasts)} came", 60.0)
    assert looping.end(signal.SIGINT)[0] == 0, looping.output
    again = [(stamp_ns(f.header.stamp), joint_array(f).tobytes()) for f in forecasts]
    assert all(once.setdefault(stamp, positions) == positions for stamp, positions in again)
    assert len(once) <= per_round  # the rounds have the same stamps


def test_lock_step_goes_on_when_images_are_refused(processes, peer, tmp_path, small_model):
    """A refused image is an answer too, told by the status: no timeout is waited for."""
    statuses = peer.collect(NodeStatus, "predictor/status", LATCHED)
    processes.node("predictor", "-p", f"model:={small_model}")
    messages = [("/head/image_raw", BEGIN_NS + k * NS // 30, bag_kit.image(k, 7 * NS)) for k in range(4)]
    bag = bag_kit.write(tmp_path / "bag", messages)  # four times the same stamp
    player = play(
        processes, bag, clock="bag", lockstep="true", lockstep_timeout_s=60.0, image_reliability="reliable",
        wait_for_subscribers=1,
    )  # fmt: skip
    assert ended(player, 50.0) == 0, player.output
    assert "0 of 4 images went unanswered" in player.output
    wait_until(lambda: statuses[-1].received == 4, "the accounts")
    assert list(statuses[-1].reasons) == ["duplicate"] and list(statuses[-1].reason_counts) == [3]


# ---- broken recordings


def broken(kind, folder):
    bag = folder / "bag"
    if kind == "not there":
        return bag
    if kind == "no camera":
        return bag_kit.write(bag, [("/plan", BEGIN_NS, bag_kit.poses(BEGIN_NS))])
    if kind == "two cameras":
        return bag_kit.write(
            bag, [(f"/{side}/image", BEGIN_NS, bag_kit.image(0, BEGIN_NS)) for side in ("left", "right")]
        )
    storage = StoragePlugin.SQLITE3 if kind == "cut db3" else StoragePlugin.MCAP
    camera_bag(bag, storage=storage)
    file = next(f for f in bag.iterdir() if f.suffix in (".mcap", ".db3"))
    if kind in ("cut mcap", "cut db3"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "empty file":
        file.write_bytes(b"")
    elif kind == "file missing":
        file.unlink()
    elif kind == "no metadata":
        (bag / "metadata.yaml").unlink()
    elif kind == "bad metadata":
        (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    elif kind == "empty folder":
        shutil.rmtree(bag)
        bag.mkdir()
    elif kind == "noise":
        data = bytearray(file.read_bytes())
        middle = len(data) // 3
        data[middle : middle + 20_000] = np.random.default_rng(0).bytes(20_000)
        file.write_bytes(data)
    elif kind == "ros 1":
        bag = folder / "old.bag"
        bag.write_bytes(b"#ROSBAG V2.0\n")
    elif kind == "text":
        bag = folder / "notes.txt"
        bag.write_text("hello")
    return bag


BROKEN = {
    "not there": "does not exist; give the folder",
    "no camera": "no camera topic.*topics in this bag:.*/plan +1 x nav_msgs/msg/Path",
    "two cameras": "2 camera topics; choose one .image_topic: /left/image or /right/image.",
    "cut mcap": "cut off.*mcap recover",
    "cut db3": "damaged",
    "empty file": "empty .0 bytes.; copy or record it again",
    "file missing": "incomplete.*copy the missing files",
    "no metadata": "no metadata.yaml.*play its file directly: .*bag.mcap.*ros2 bag reindex",
    "bad metadata": "metadata.yaml of .* is damaged.*ros2 bag reindex",
    "empty folder": "no recording",
    "noise": "damaged|cut off",
    "ros 1": "ROS 1 bag; convert it: rosbags-convert",
    "text": "no rosbag2 file",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_recording_is_one_sentence_with_a_remedy(kind, tmp_path):
    with pytest.raises(RecordingError, match=f"(?s){BROKEN[kind]}"):  # noqa: SIM117
        with Recording(broken(kind, tmp_path)) as recording:
            recording.camera()
            list(recording.messages())


def test_a_file_without_its_folder_plays(tmp_path):
    bag = camera_bag(tmp_path / "bag")
    (bag / "metadata.yaml").unlink()
    with Recording(bag / "bag.mcap") as recording:
        camera = recording.camera()
        assert (camera.name, camera.count) == ("/head/image_raw", 30)
        assert recording.camera_info(camera).name == "/head/camera_info"
        assert len(list(recording.messages([camera], 0.5))) == 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bag": "cut"}, "cut off"),
        ({"bag": "good", "image_topic": "/tail"}, "no images on /tail; topics in this bag"),
        ({"bag": "good", "topics": "/none"}, "has no topic /none"),
        ({"bag": "good", "start_offset_s": 100.0}, "no image is left after 100 s"),
        ({"bag": "good", "rate": 0.0}, "rate"),
        ({"bag": "good", "rate": 2}, "rate.*2.0"),
        ({"bag": "good", "clock": "sundial"}, "clock must be one of wall, bag"),
        ({}, "nothing to play"),
    ],
)
def test_the_player_says_why_and_ends_with_1(processes, tmp_path, arguments, words):
    import re

    bags = {"good": lambda: camera_bag(tmp_path / "bag", 5), "cut": lambda: broken("cut mcap", tmp_path)}
    if "bag" in arguments:
        arguments = {**arguments, "bag": bags[arguments["bag"]]()}
    pairs = [f"{name}:={value}" for name, value in arguments.items()]
    player = processes.node("player", *(part for pair in pairs for part in ("-p", pair)))
    assert ended(player) == 1
    assert "Traceback" not in player.output
    assert re.search(rf"(?m)^player: .*{words}", player.output), player.output


# ---- time stamps


@given(st.integers(0, 2**31 - 1), st.integers(0, NS - 1), st.integers(1, (2**31 - 1) * NS))
@settings(max_examples=100, deadline=None)
def test_only_the_stamp_of_a_serialized_message_changes(seconds, nanoseconds, new):
    message = Image(encoding="rgb8", height=1, width=1, step=3, data=[1, 2, 3])
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
    before = serialize_message(message)
    assert read_stamp(before) == seconds * NS + nanoseconds
    after = write_stamp(before, new)
    assert read_stamp(after) == new and after[:4] + after[12:] == before[:4] + before[12:]
    assert stamp_ns(deserialize_message(after, Image).header.stamp) == new


def test_big_endian_and_short_messages():
    big = b"\x00\x00\x00\x00" + struct.pack(">iI", 7, 9) + b"rest"
    assert read_stamp(big) == 7 * NS + 9
    assert write_stamp(big, 8 * NS + 1) == b"\x00\x00\x00\x00" + struct.pack(">iI", 8, 1) + b"rest"
    with pytest.raises(ValueError, match="at least 12 bytes"):
        read_stamp(b"\x00\x01\x00\x00")


def test_messages_without_a_time_stay_as_they_are():
    said = serialize_message(String(data="hello"))
    assert Restamper(String)(said, lambda t: t + NS) == said
    unset = serialize_message(JointState(name=["a"]))
    assert Restamper(JointState)(unset, lambda t: t + NS) == unset
    assert not Restamper(String).leading and Restamper(JointState).leading


@given(
    rate=st.floats(0.1, 10.0),
    clocks=st.integers(-10 * NS, 10**18),
    after=st.lists(st.integers(0, 100 * NS), min_size=2, max_size=5).map(sorted),
)
@settings(max_examples=100, deadline=None)
def test_schedule(rate, clocks, after):
    """Order is kept, the first image carries the moment it is due, and the clock agrees with the stamps."""
    begin = 10**18
    schedule = Schedule(begin, begin + NS, begin + clocks, rate).starting(50.0, 2 * 10**18)
    due = [schedule.due_s(begin + a) for a in after]
    stamps = [schedule.wall_stamp(begin + clocks + a) for a in after]
    assert due == sorted(due) and stamps == sorted(stamps)
    first_due = schedule.due_s(begin + NS)
    assert schedule.wall_stamp(begin + clocks) == pytest.approx(2 * 10**18 + (first_due - 50.0) * NS, abs=1e3)
    assert schedule.stamp_now(first_due) == pytest.approx(begin + clocks, abs=1e3 * rate)
    later = schedule.later(3.0)
    assert later.due_s(begin) == pytest.approx(schedule.due_s(begin) + 3.0)
    assert later.wall_stamp(begin + clocks) == schedule.wall_stamp(begin + clocks) + 3 * NS


# ---- real recordings


@pytest.mark.parametrize(("name", "images"), [("g1_pick_25", 155), ("g1_pick_40", 213), ("human_hand", 360)])
def test_real_recordings_play(processes, peer, shared, name, images):
    received = peer.collect(CompressedImage, "image/compressed")
    player = play(
        processes, shared / "data" / name, rate=4.0, image_reliability="reliable", wait_for_subscribers=1
    )  # fmt: skip
    assert ended(player, 60.0) == 0, player.output
    wait_until(lambda: len(received) == images, lambda: f"{images} images, {len(received)} came")
    stamps = [stamp_ns(m.header.stamp) for m in received]
    assert stamps == sorted(set(stamps)) and abs(stamps[0] - time.time_ns()) < 60 * NS
