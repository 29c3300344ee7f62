"""Truth out of a recording: every message type says what was written, and what can be no truth is refused in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bag_kit import NS, header, make
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from truth_kit import (
    TURN,
    bag,
    marker,
    markers,
    ns,
    path,
    pose_array,
    pose_stamped,
    tf,
    trajectory,
)

from thinkjepa_ros.data import typed
from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.truth import Truth, read_truth

NAN = float("nan")
P = np.array([[(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)], [(1.5, 2.5, 3.5), (4.5, 5.5, 6.5)], [(2.0, 3.0, 4.0), (5, 6, 7)]])


def truth_of(folder: Path, messages: list[tuple[float, Any]], **how: Any) -> Truth:
    """The truth of a recording of these messages (time of recording in seconds) on /t."""
    with Recording(bag(folder, [("/t", ns(at), message) for at, message in messages])) as recording:
        return read_truth(recording, "/t", **how)


def stamped(build: Any, count: int = 3) -> list[tuple[float, Any]]:
    return [(k / 10, build(k)) for k in range(count)]


# --- what each type says ---


def spread(k: int, joints: np.ndarray) -> Any:
    return pose_array(ns(k / 10), joints[k], "/world")


KINDS: dict[str, tuple[Any, dict[str, Any], np.ndarray, tuple[str, ...]]] = {
    "PoseArray": (lambda k: spread(k, P), {}, P, ("joint_00", "joint_01")),
    "PoseArray with names": (lambda k: spread(k, P), {"joint_names": ("a", "b")}, P, ("a", "b")),
    "PoseStamped": (lambda k: pose_stamped(ns(k / 10), P[k, 0]), {}, P[:, :1], ("joint_00",)),
    "Path": (
        # the last pose is the newest, and has a stamp of its own
        lambda k: path(ns(9 + k), [(ns(j / 10), P[j, 1]) for j in range(k + 1)]), {}, P[:, 1:], ("joint_00",)),
    "Path without inner stamps": (
        lambda k: path(ns(k / 10), [(0, (9, 9, 9)), (0, P[k, 1])]), {}, P[:, 1:], ("joint_00",)),
    "MultiDOFJointTrajectory": (
        lambda k: trajectory(ns(k / 10) - NS, [P[k], P[0] * 9], ("l", "r"), after_s=1.0), {}, P, ("l", "r")),
    "MarkerArray": (
        lambda k: markers(marker(ns(k / 10), "hand/left/7", P[k, 1]), marker(5, "other/1", (9, 9, 9), "mars"),
                          marker(ns(k / 10), "hand/left/3", P[k, 0])),
        {"links": ("hand/left/3", "hand/left/7")}, P, ("hand/left/3", "hand/left/7")),
    "TFMessage": (
        lambda k: tf((ns(k / 10), "world", "elbow", P[k, 0] - (0, 0, 1), (0, 0, 0.6, 0.8)),
                     (ns(k / 10), "elbow", "x", (9, 9, 9), TURN), (ns(k / 10), "world", "hand", P[k, 1], TURN)),
        {"links": ("tip", "hand")}, P, ("tip", "hand")),
}  # fmt: skip


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_says_where_the_joints_are(tmp_path: Path, kind: str, storage: StoragePlugin) -> None:
    build, how, expected, names = KINDS[kind]
    static = [("/tf_static", ns(0), tf((ns(0), "elbow", "tip", (0, 0, 1), TURN)))] if kind == "TFMessage" else []
    topic = "/tf" if kind == "TFMessage" else "/t"
    folder = bag(tmp_path / "bag", [(topic, ns(k / 10), build(k)) for k in range(3)], static, storage=storage)
    with Recording(folder) as recording:
        truth = read_truth(recording, topic, **how)
    assert truth.stamps_ns.dtype == np.int64 and truth.stamps_ns.tolist() == [ns(k / 10) for k in range(3)]
    assert truth.joints.dtype == np.float64 and np.allclose(truth.joints, expected, rtol=0, atol=1e-12)
    assert (truth.frame_id, truth.joint_names) == ("world", names)
    assert truth.source.startswith(topic + " (")


def test_what_is_unknown_is_nan_and_never_zero(tmp_path: Path) -> None:
    joints = P.copy()
    joints[1, 0] = NAN
    truth = truth_of(tmp_path / "a", stamped(lambda k: spread(k, joints)))
    assert np.array_equal(truth.joints, joints, equal_nan=True)
    # an empty array says that nothing is seen, before the first hand as well as after it
    rows = [P[0][:0], P[1], P[2][:0]]
    truth = truth_of(tmp_path / "b", stamped(lambda k: pose_array(ns(k / 10), rows[k], "world" if k == 1 else "")))
    assert np.isnan(truth.joints[[0, 2]]).all() and np.array_equal(truth.joints[1], P[1])
    # a marker that is deleted, or not there, is unknown
    steps = [
        markers(marker(ns(0), "h/0", P[0, 0]), marker(ns(0), "h/1", P[0, 1])),
        markers(marker(ns(0.1), "h/0", P[1, 0]), marker(ns(0.1), "h/1", (0, 0, 0), action=2)),
        markers(marker(ns(0.2), "h/9", (1, 1, 1))),
        markers(marker(ns(0.3), "h/1", P[2, 1])),
        markers(marker(ns(0.4), "x/0", (0, 0, 0), action=3)),
        markers(marker(0, "x/0", (0, 0, 0), action=3)),
    ]
    truth = truth_of(tmp_path / "c", [(k / 10, m) for k, m in enumerate(steps)], links=("h/0", "h/1"))
    assert [round((s - ns(0)) / 1e8) for s in truth.stamps_ns] == [0, 1, 3, 4]
    assert np.isnan(truth.joints).any(2).tolist() == [[False, False], [False, True], [True, False], [True, True]]


def test_markers_of_one_stamp_in_several_messages_are_one_row(tmp_path: Path) -> None:
    steps = [markers(marker(ns(k / 10), f"h/{j}", P[k, j])) for k in range(3) for j in range(2)]
    truth = truth_of(tmp_path / "a", [(k / 20, m) for k, m in enumerate(steps)], links=("h/0", "h/1"))
    assert np.array_equal(truth.joints, P)


def test_the_frame_of_the_headers_can_be_replaced(tmp_path: Path) -> None:
    messages = stamped(lambda k: pose_array(ns(k / 10), P[k], ""))
    assert truth_of(tmp_path / "a", messages, frame_id="/cam").frame_id == "cam"


def test_gaps_in_tf_are_unknown(tmp_path: Path) -> None:
    times = (0.0, 0.1, 5.0, 5.1)
    rows = [("/tf", ns(t), tf((ns(t), "w", "a", (t, 0, 0), TURN))) for t in times]
    rows += [("/tf", ns(t), tf((ns(t), "w", "b", (0, t, 0), TURN))) for t in (0.05, 3.0, 5.05)]
    with Recording(bag(tmp_path / "bag", rows)) as recording:
        truth = read_truth(recording, "/tf", links=("a", "b"), max_age_s=0.5)
        whole = read_truth(recording, "/tf", links=("a", "b"), max_age_s=9.0)
    assert np.isfinite(truth.joints).all(2).T.tolist() == [
        [True, True, True, False, True, True, True],
        [False, True, False, True, False, True, False],
    ]
    assert np.allclose(whole.joints[1:-1, 1, 1], [0.05, 0.1, 3.0, 5.0, 5.05])


# --- at other stamps ---

values = st.floats(-10, 10)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(1, 400_000_000), min_size=1, max_size=8),
    numbers=arrays(np.float64, (9, 2, 3), elements=values),
    unknown=arrays(np.bool_, (9, 2)),
    wanted=st.lists(st.integers(-10, 3_300_000_000), min_size=1, max_size=8),
    longest=st.integers(1, 400),
)
def test_between_two_stamps_it_is_linear_or_unknown(
    steps: list[int], numbers: np.ndarray, unknown: np.ndarray, wanted: list[int], longest: int
) -> None:
    stamps = BASE + np.concatenate([[0], np.cumsum(steps)])
    joints = np.where(unknown[..., None], NAN, numbers)[: len(stamps)]
    at = BASE + np.array([*wanted, 0, *np.cumsum(steps)])
    found = Truth(stamps, joints, "w", ("a", "b")).at(at, longest / 1000)
    assert found.shape == (len(at), 2, 3)
    for row, stamp in zip(found, at.tolist(), strict=True):
        later = int(np.searchsorted(stamps, stamp))
        if later < len(stamps) and stamps[later] == stamp:
            assert np.array_equal(row, joints[later], equal_nan=True)
        elif later in (0, len(stamps)) or stamps[later] - stamps[later - 1] > longest * 1_000_000:
            assert np.isnan(row).all()
        else:
            share = (stamp - int(stamps[later - 1])) / int(stamps[later] - stamps[later - 1])
            expected = joints[later - 1] * (1 - share) + joints[later] * share
            assert np.allclose(row, expected, atol=1e-9, equal_nan=True)


BASE = 1_700_000_000 * NS


def test_an_hour_at_once_is_the_same_as_numpy_says() -> None:
    rng = np.random.default_rng(3)
    stamps = BASE + np.cumsum(rng.integers(1, 100_000_000, 5000))
    joints, at = rng.normal(size=(5000, 1, 3)), np.sort(rng.integers(stamps[0], stamps[-1], 10_000))
    found = Truth(stamps, joints, "w", ("a",)).at(at, 1.0)
    expected = np.stack([np.interp(at - BASE, stamps - BASE, joints[:, 0, k]) for k in range(3)], 1)
    assert np.allclose(found[:, 0], expected, rtol=0, atol=1e-6)


# --- what is refused ---


def rows(*changed: tuple[int, Any]) -> list[tuple[float, Any]]:
    """Three good messages, some of them replaced."""
    out = stamped(lambda k: spread(k, P))
    for k, message in changed:
        out[k] = (k / 10, message)
    return out


BAD: dict[str, tuple[list[tuple[float, Any]], dict[str, Any], str]] = {
    "count": (rows((1, pose_array(ns(0.1), P[1][:1]))), {}, "message 1 on /t .* has 1 joints after 2; publish always"),
    "back": (rows((2, pose_array(ns(0.05), P[2]))), {}, r"go back by 0.050 s at message 2 .*; cut the recording"),
    "zero": (rows((0, pose_array(0, P[0]))), {}, r"message 0 on /t .* no time \(stamp 0\); fill header.stamp"),
    "frame": (rows((1, pose_array(ns(0.1), P[1], "base"))), {}, "changes from world to base; publish it in one"),
    "no frame": (rows((0, pose_array(ns(0), P[0], ""))), {}, r"does not say its frame; .*--truth-frame"),
    "infinite": (rows((1, pose_array(ns(0.1), P[1] * np.inf))), {}, "message 1 .* infinite position; write NaN"),
    "part": (rows((1, pose_array(ns(0.1), [(NAN, 1, 1)] * 2))), {}, "message 1 .* NaN in a part of a position"),
    "all NaN": ([(0.0, pose_array(ns(0), P[0] * NAN))], {}, r"knows no joint at any time \(all NaN or empty\)"),
    "all empty": ([(0.0, pose_array(ns(0), []))], {}, "knows no joint at any time"),
    "same stamp": (rows((1, pose_array(ns(0), P[1]))), {}, "message 1 .* has the stamp of the one before but other"),
    "too few names": (rows(), {"joint_names": ("a",)}, "1 joint names are given, but /t .* has 2 joints"),
    "one name twice": (rows(), {"joint_names": ("a", "a")}, "not different words: a, a; give others"),
    "links": (rows(), {"links": ("a", "b")}, "no named parts to choose by --links; .*--joints"),
    "names change": (
        stamped(lambda k: trajectory(ns(k / 10), [P[k]], ("l", "rx"[k // 2]))), {}, "message 2 .* other joint names"),
    "names and points": ([(0.0, trajectory(ns(0), [P[0]], ("l",)))], {}, "names 1 joints but holds 2 transforms"),
    "no markers": ([(0.0, markers(marker(ns(0), "h/0", (1, 1, 1))))], {}, r"which markers .* it has h/0"),
    "other markers": (
        [(0.0, markers(marker(ns(0), "h/0", (1, 1, 1))))], {"links": ("h/1",)}, "has none of h/1; it has h/0"),
    "torn markers": (
        [(0.0, markers(marker(ns(0), "h/0", (1, 1, 1)), marker(ns(1), "h/1", (1, 1, 1))))],
        {"links": ("h/0", "h/1")}, "differ in stamp or frame"),
    "no frames": ([(0.0, tf((ns(0), "w", "a", (0, 0, 0), TURN)))], {}, r"which frames .*--links a,b,c.; frames: a, w"),
    "other frames": (
        [(0.0, tf((ns(0), "w", "a", (0, 0, 0), TURN)))], {"links": ("b",)}, "no transform of the frame 'b'; take"
    ),
    "no truth": ([(0.0, make("std_msgs/msg/String", "x"))], {}, "is std_msgs/msg/String, which holds no truth .*PoseA"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_be_no_truth_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    messages, how, words = BAD[case]
    with pytest.raises(RecordingError, match=words) as refused:
        truth_of(tmp_path / "bag", messages, **how)
    assert "\n" not in str(refused.value)


def test_a_topic_that_is_missing_empty_or_static(tmp_path: Path) -> None:
    static = [("/tf_static", ns(0), tf((ns(0), "w", "a", (0, 0, 0), TURN)))]
    with Recording(bag(tmp_path / "bag", static)) as recording:
        with pytest.raises(
            RecordingError, match=r"has no topic /truth; topics in this bag:\n +/tf_static +1 x tf2_msgs"
        ):
            read_truth(recording, "/truth")
        with pytest.raises(RecordingError, match=r"nothing moves between w and a .*: only static"):
            read_truth(recording, "/tf_static", links=("a",))
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "empty", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/truth", "geometry_msgs/msg/PoseArray", typestore=store)
        other = writer.add_connection("/s", "std_msgs/msg/String", typestore=store)
        writer.write(other, ns(0), bytes(store.serialize_cdr(make("std_msgs/msg/String", "x"), "std_msgs/msg/String")))
        writer.write(other, ns(1), b"\x00\x01\x00\x00\xff\xff\xff\xff")
    with Recording(tmp_path / "empty") as recording:
        with pytest.raises(RecordingError, match="holds no message; was its publisher running"):
            read_truth(recording, "/truth")
        topic = recording.topic("/s")
        assert topic is not None
        with pytest.raises(RecordingError, match=r"a message on /s .* is damaged or not of type std_msgs/msg/String"):
            list(typed.read(recording, [topic]))


# --- types that the typestore does not know ---

FORECAST = (Path(__file__).resolve().parents[1] / "msg" / "Forecast.msg").read_text()


def test_a_type_that_only_the_bag_defines_is_read_by_its_definition(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = "thinkjepa_ros/msg/Forecast"
    store.register(get_types_from_msg(FORECAST, kind))
    plain = {name: 0 for name in store.types[kind].__dataclass_fields__ if not name.startswith("_")}

    def forecast(k: int, names: list[str]) -> Any:
        empty = np.zeros(0, np.float32)
        return store.types[kind](**plain | {
            "header": header(ns(k / 10), "cam"), "joint_names": names, "present": P[k].astype(np.float32).ravel(),
            "positions": empty, "sigma": empty, "anchored": True, "metric": True, "trained": True, "model_id": "m",
            "domain": "d",
        })  # fmt: skip

    def record(name: str, names: list[str]) -> Path:
        with Writer(tmp_path / name, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            connection = writer.add_connection("/t", kind, typestore=store)
            for k in range(3):
                writer.write(connection, ns(k / 10), bytes(store.serialize_cdr(forecast(k, names), kind)))
        return tmp_path / name

    with Recording(record("good", ["a", "b"])) as recording:
        truth = read_truth(recording, "/t")
    assert np.array_equal(truth.joints, P) and (truth.frame_id, truth.joint_names) == ("cam", ("a", "b"))
    with Recording(record("bad", ["a"])) as recording, pytest.raises(RecordingError, match="do not fit"):
        read_truth(recording, "/t")
    assert kind not in typed.known_types().types, "one bag's definitions must not reach the next bag"


def test_an_older_version_of_a_type_is_read_by_the_definition_of_the_bag(tmp_path: Path) -> None:
    foxy = get_typestore(Stores.ROS2_FOXY)
    kind = "visualization_msgs/msg/MarkerArray"
    assert (
        foxy.fielddefs["visualization_msgs/msg/Marker"]
        != typed.known_types().fielddefs["visualization_msgs/msg/Marker"]
    )
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/t", kind, typestore=foxy)
        for k in range(3):
            message = markers(marker(ns(k / 10), "h/0", P[k, 0], store=foxy), store=foxy)
            writer.write(connection, ns(k / 10), bytes(foxy.serialize_cdr(message, kind)))
    with Recording(tmp_path / "bag") as recording:
        assert np.array_equal(read_truth(recording, "/t", links=("h/0",)).joints[:, 0], P[:, 0])


@pytest.mark.parametrize(
    "form, text, words",
    [
        (MessageDefinitionFormat.NONE, "", "has the unknown type a/msg/B, and the bag does not define it"),
        (
            MessageDefinitionFormat.MSG,
            "this is no definition at all",
            "the definition of a/msg/B in the bag cannot be used",
        ),
        (MessageDefinitionFormat.MSG, "c/Missing inner", "the definition of a/msg/B in the bag cannot be used"),
    ],
)
def test_a_type_that_nobody_defines_is_refused(form: MessageDefinitionFormat, text: str, words: str) -> None:
    connection = SimpleNamespace(topic="/t", msgtype="a/msg/B", msgdef=MessageDefinition(form, text))
    recording = SimpleNamespace(path="x", _reader=SimpleNamespace(connections=[connection]))
    topic = SimpleNamespace(name="/t", type="a/msg/B")
    with pytest.raises(RecordingError, match=words):
        typed.store_for(recording, topic)  # type: ignore[arg-type]


def test_a_definition_is_never_code(tmp_path: Path) -> None:
    """rosbags makes Python code of definitions, and a recording may come from anywhere."""
    place = tmp_path / "ran"
    code = f"B:\n  open({str(place)!r}, 'w')\nclass C"
    definition = MessageDefinition(MessageDefinitionFormat.MSG, "int32 x\nstring S='\\'; open(1)'\n")
    for kind in (f"a/msg/{code}", "a/msg/B\nimport os", "a/msg/B(object)"):
        connection = SimpleNamespace(topic="/t", msgtype=kind, msgdef=definition)
        recording = SimpleNamespace(path="x", _reader=SimpleNamespace(connections=[connection]))
        with pytest.raises(RecordingError, match="in the bag cannot be used"):
            typed.store_for(recording, SimpleNamespace(name="/t", type=kind))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no name"):
        typed._checked({"a/msg/B\nimport os": ([], [])})
    assert not place.exists()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_truth_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    build, how, _, _ = KINDS[data.draw(st.sampled_from([k for k in KINDS if k != "TFMessage"]))]
    store = typed.known_types()
    good = [build(k) for k in range(3)]
    kind = good[0].__msgtype__
    blobs = [bytearray(store.serialize_cdr(m, kind)) for m in good]
    for _ in range(data.draw(st.integers(1, 4))):
        blob = blobs[data.draw(st.integers(0, 2))]
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blobs[1] = blobs[1][: data.draw(st.integers(len(blobs[1]) - 8, len(blobs[1])))]
    folder = tmp_path_factory.mktemp("fuzz") / "bag"
    with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/t", kind, typestore=store)
        for k, blob in enumerate(blobs):
            writer.write(connection, ns(k), bytes(blob))
    with Recording(folder) as recording:
        try:
            truth = read_truth(recording, "/t", **how)
        except RecordingError as error:
            assert str(error)
        else:
            assert (np.diff(truth.stamps_ns) > 0).all() and truth.stamps_ns[0] > 0 and not np.isinf(truth.joints).any()


# --- real recordings ---


@pytest.mark.parametrize("name, count", [("g1_pick_10", 290), ("g1_pick_40", 213)])
def test_the_hands_of_a_real_robot(shared: Path, name: str, count: int) -> None:
    store, expected = get_typestore(Stores.ROS2_JAZZY), []
    with Reader(shared / "data" / name) as reader:
        connections = [c for c in reader.connections if c.topic == "/hand_keypoints"]
        for connection, _, data in reader.messages(connections):
            message: Any = store.deserialize_cdr(data, connection.msgtype)
            stamp = message.header.stamp.sec * NS + message.header.stamp.nanosec
            expected.append((stamp, [[p.position.x, p.position.y, p.position.z] for p in message.poses]))
    with Recording(shared / "data" / name) as recording:
        truth = read_truth(recording, "/hand_keypoints")
    assert truth.joints.shape == (count, 12, 3) and truth.frame_id == "head_camera_optical"
    assert truth.stamps_ns.tolist() == [stamp for stamp, _ in expected]
    assert np.array_equal(truth.joints, np.array([points for _, points in expected]))


def test_a_recording_without_truth_says_what_it_has(shared: Path) -> None:
    with (
        Recording(shared / "data" / "human_hand") as recording,
        pytest.raises(
            RecordingError, match=r"no topic /hand_keypoints; topics in this bag:\n +/camera/image/compressed"
        ),
    ):
        read_truth(recording, "/hand_keypoints")
