"""Evaluation beside running nodes: what was published is joined with the truth of the recording, errors are told while
the truth comes, and what was seen is kept however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import BEGIN_NS, NS
from test_score import make_run, world_joints
from truth_kit import bag, camera, ns, pose_array, pose_stamped

from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.evaluation import score
from thinkjepa_ros.evaluation.bag.ground import open_ground
from thinkjepa_ros.evaluation.bag.live import LiveBagError, Played, live_replay
from thinkjepa_ros.evaluation.runs import Run

ROOT = Path(__file__).resolve().parents[1]
STATUS = {
    "state": 5, "words": "running", "model_id": "by hand", "trained": True, "received": 58, "used": 50, "superseded": 7,
    "refused": 1, "reasons": {"bad_image": 1}, "pending": 0, "published": 30, "last_error": "",
}  # fmt: skip
NAMES = ("right_wrist", "right_palm", "left_wrist")


# ---- joined with a recording


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Six seconds of a camera at 10 Hz that stands still, with three joints at 30 Hz in its own frame."""
    truth = [
        ("/hands", ns(at), pose_array(ns(at), world_joints([at])[0], frame="camera_optical"))
        for at in np.arange(0, 6, 1 / 30).tolist()
    ]
    path = bag(tmp_path_factory.mktemp("bags") / "hands", camera(ns(k / 10) for k in range(60)), truth)
    return open_ground(path, Settings(truth="/hands", joints=NAMES))


def seen(skip=(), count=40, first=7, **changes) -> Run:
    """Forecasts of the images from `first` on, 1 cm off along x; those in `skip` gave way to newer ones."""
    images = np.array([k for k in range(first, first + count) if k not in skip])
    at = images / 10
    n, steps = len(at), 8
    ahead = np.array([world_joints(s + 0.1 * np.arange(1, steps + 1)) for s in at])
    words = {
        "statuses": {"predictor": STATUS, "thinker": {**STATUS, "model_id": "a thinker", "published": 2}},
        "forecasts": n, "refused_forecasts": 0,
        "thoughts": [
            {"stamp_ns": ns(1.0), "delay_s": 0.3, "text": "blue"}, {"stamp_ns": ns(-9.0), "delay_s": 0.3, "text": "x"},
        ],
    }  # fmt: skip
    stamps = np.array([ns(s) for s in at.tolist()], np.int64)
    fields: dict[str, Any] = {
        "stamp_ns": stamps, "receipt_ns": stamps + 25_000_000,
        "positions": (ahead + [0.01, 0, 0]).astype(np.float32), "sigma": np.full((n, steps, 3), 0.01, np.float32),
        "present": world_joints(at).astype(np.float32), "weight": np.linspace(0, 1, n, dtype=np.float32),
        "age_s": np.full(n, 0.4, np.float32), "surprise": np.full(n, 0.2, np.float32),
        "epoch": np.zeros(n, np.int64), "begins_ns": np.zeros(0, np.int64), "words": words,
    }  # fmt: skip
    return replace(make_run(n), **{**fields, **changes})


def test_what_was_published_is_joined_with_the_truth_of_the_recording(ground):
    run = seen(skip=(12, 13, 20))
    out = live_replay([ground], [Played(run, 6.2, ("a note",))], guided=True, about={"rate": 1.0})
    assert len(out) == len(run) == 37 and out.unguided is None and out.joint_names == NAMES
    np.testing.assert_array_equal(out.stamp_ns, run.stamp_ns)
    np.testing.assert_array_equal(out.guided, run.positions)
    seconds = (out.stamp_ns - BEGIN_NS) * 1e-9
    for row in (0, 10, 30):
        expected = world_joints(seconds[row] + 0.1 * np.arange(1, 9))
        inside = seconds[row] + 0.1 * np.arange(1, 9) <= 5.9 + 1e-9
        np.testing.assert_allclose(out.truth[row][inside], expected[inside], atol=1e-6)
        assert np.isnan(out.truth[row][~inside]).all()
    np.testing.assert_allclose(out.latency_s, 0.025, atol=1e-6)
    np.testing.assert_array_equal(out.weight, run.weight)
    # the past: what was forecast of each image, and nothing where the image was skipped
    at = int(np.flatnonzero(np.isclose(seconds, 1.4))[0])
    np.testing.assert_allclose(out.past_s[at], np.arange(1 - out.past.shape[1], 1) / 10, atol=1e-6)
    unknown = np.isnan(out.past[at]).all((1, 2))
    assert unknown[-3:-1].all() and not unknown[-1] and not unknown[-4]
    np.testing.assert_allclose(out.past[at][~unknown], world_joints(1.4 + out.past_s[at][~unknown]), atol=1e-5)
    about = out.about
    assert about["mode"] == "live" and about["rate"] == 1.0 and about["notes"][0] == "a note"
    assert about["thinker_id"] == "a thinker" and about["model_id"] == "by hand" and about["stride_s"] == 0.1
    assert out.thoughts == [{"bag": 0, "stamp_ns": ns(1.0), "text": "blue", "delay_s": 0.3}]
    assert about["dropped"] == {
        "images played": 60, "images that did not reach the predictor": 2, "images that gave way to newer ones": 7,
        "images refused by the predictor (bad_image)": 1, "images used without a forecast (filling the window)": 20,
        "forecasts received": 37, "thoughts published": 2,
    }  # fmt: skip
    assert about["speed"]["times_real_time"] == pytest.approx(ground.duration_s / 6.2)
    json.dumps(about, allow_nan=False)
    alone = live_replay([ground], [Played(run, 6.0)], guided=False, about={})
    assert alone.guided is None and alone.unguided is not None


def test_forecasts_of_no_image_and_of_other_models_are_not_passed_off(ground):
    astray = seen()
    astray.stamp_ns[5:8] += 1_000_000
    astray.stamp_ns[9] = astray.stamp_ns[8]
    out = live_replay([ground], [Played(astray, 6.0)], guided=False, about={})
    assert len(out) == 36
    assert out.about["left_out"] == {
        "forecasts of images that are left out": 3, "forecasts of an image that was played twice": 1,
    }  # fmt: skip
    elsewhere = seen()
    elsewhere.stamp_ns += NS * 1000
    with pytest.raises(LiveBagError, match="none of the forecasts belongs to an image"):
        live_replay([ground], [Played(elsewhere, 6.0)], guided=False, about={})
    with pytest.raises(LiveBagError, match="different models"):
        both = [Played(seen(), 6.0), Played(seen(model_id="another"), 6.0)]
        live_replay([ground, ground], both, guided=False, about={})
    fields = ("stamp_ns", "receipt_ns", "positions", "sigma", "present", "weight", "age_s", "surprise", "epoch")
    mute = seen(**{name: getattr(seen(), name)[:0] for name in fields})
    mute.words["statuses"]["predictor"] = {**STATUS, "words": "no usable images: too dark"}
    with pytest.raises(LiveBagError, match="no forecast; it says: no usable images: too dark"):
        live_replay([ground], [Played(mute, 6.0)], guided=False, about={})


def test_two_recordings_are_one_replay(ground):
    out = live_replay([ground, ground], [Played(seen(), 6.0), Played(seen(), 6.0)], guided=False, about={})
    assert len(out) == 80 and out.bag.tolist() == [0] * 40 + [1] * 40
    assert set(out.piece[:40]) == {0} and set(out.piece[40:]) == {1}
    np.testing.assert_array_equal(out.truth[:40], out.truth[40:])
    assert out.about["dropped"]["images played"] == 120


def test_what_can_not_be_played_is_refused_before_a_node_starts(tmp_path, ground):
    from thinkjepa_ros.demo.live_bag import replay_live

    settings = Settings(truth="/hands", joints=NAMES)
    for rate in (0.0, 50.0, float("nan")):
        with pytest.raises(LiveBagError, match="the rate is"):
            replay_live([ground.path], settings, rate=rate, out=tmp_path)
    with pytest.raises(LiveBagError, match="cannot compute in 'float8'; give --dtype one of auto, float32, bfloat16"):
        replay_live([ground.path], settings, out=tmp_path, dtype="float8")
    with pytest.raises(LiveBagError, match="no recording"):
        replay_live([], settings, out=tmp_path)
    with pytest.raises(LiveBagError, match=r"anchored by all of its 24 joints, the truth of .* has 3"):
        replay_live([ground.path], settings, out=tmp_path, anchor=True)
    still = [("/pose", ns(k), pose_stamped(ns(k), (0, 0, 0))) for k in range(2)]
    world = bag(tmp_path / "w", camera([ns(0), ns(1)]), still, [("/t", ns(0), pose_array(ns(0), [(0, 0, 1)]))])
    with pytest.raises(LiveBagError, match="only by a PoseArray in the frame of the camera"):
        replay_live([world], Settings(truth="/t", pose_topic="/pose"), out=tmp_path, anchor=True)


# ---- messages


def test_positions_are_read_from_the_bytes_of_a_pose_array():
    pytest.importorskip("rclpy")
    from geometry_msgs.msg import Point, Pose, PoseArray
    from rclpy.serialization import serialize_message

    from thinkjepa_ros.bridge.truth import read_pose_array

    rng = np.random.default_rng(0)
    for frame in ("", "w", "map", "odom", "camera_optical", "Kürbis"):
        for count in (0, 1, 24):
            points = rng.normal(size=(count, 3))
            points[:1] = np.nan
            message = PoseArray(poses=[Pose(position=Point(x=x, y=y, z=z)) for x, y, z in points.tolist()])
            message.header.frame_id, message.header.stamp.sec, message.header.stamp.nanosec = frame, 12, 345
            cdr = serialize_message(message)
            stamp, name, read = read_pose_array(cdr)
            assert (stamp, name) == (12 * NS + 345, frame)
            np.testing.assert_array_equal(read, points)
            if count:
                with pytest.raises(ValueError):
                    read_pose_array(cdr[: len(cdr) // 2])
    with pytest.raises(ValueError):
        read_pose_array(b"\x00\x01\x00\x00")


# ---- the evaluator beside a running robot


def pose_messages(stamps, points, frame="world"):
    from geometry_msgs.msg import Point, Pose, PoseArray

    from thinkjepa_ros.bridge.messages import make_header

    for stamp, row in zip(stamps.tolist(), points.tolist(), strict=True):
        poses = [Pose(position=Point(x=x, y=y, z=z)) for x, y, z in row]
        yield PoseArray(header=make_header(stamp, frame), poses=poses)


def until_heard(node, publisher, message, words: str) -> None:
    """Publish something that is refused until the node says so."""
    from ros_kit import wait_until

    wait_until(lambda: publisher.publish(message) or time.sleep(0.1) or words in node.output, words)


def timing(told) -> dict[str, float]:
    return values(next(status for status in told[-1].status if status.name == "evaluator: timing"))


def values(status) -> dict[str, float]:
    return {pair.key: float(pair.value) for pair in status.values}


def test_a_running_evaluator_tells_the_errors_that_are_so_and_keeps_them(processes, peer, tmp_path):
    """Forecasts, camera poses and truth as of a robot, with wrong messages between; then launch's SIGTERM."""
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseArray, PoseStamped
    from ros_kit import RELIABLE, wait_until

    from thinkjepa_ros.bridge.messages import forecast_to_message, make_header
    from thinkjepa_ros.msg import Forecast

    run = make_run(25, 130, step_s=float(np.float32(0.1)))  # as it travels
    for name in ("truth_ns", "truth", "pose_ns", "pose"):
        setattr(run, name, getattr(run, name)[::3])  # 44 of each at 10 Hz: less than the queues of the node hold
    shift = time.time_ns() - int(run.stamp_ns[-1])  # the newest image is of now
    for name in ("stamp_ns", "truth_ns", "pose_ns", "begins_ns"):
        setattr(run, name, getattr(run, name) + shift)
    run.truth[16:20, 1] = np.nan
    node = processes.node(
        "evaluator", "-p", f"out:={tmp_path / 'out'}", "-p", "window_s:=60.0", "-p", "picture_rate_hz:=0.0",
        "-p", "truth_topic:=/hands", "-p", "late_s:=30.0",
    )  # fmt: skip
    told = peer.collect(DiagnosticArray, "/evaluator/metrics")
    verdicts = peer.collect(DiagnosticArray, "/diagnostics")
    truth, poses = peer.publisher(PoseArray, "/hands"), peer.publisher(PoseStamped, "/camera/pose")
    forecasts = peer.publisher(Forecast, "/predictor/forecast", RELIABLE)
    # what is refused is said: then the node hears us, and nothing of what follows is lost
    until_heard(node, poses, PoseStamped(), "camera pose refused: a pose of the camera has no time (stamp 0)")
    until_heard(node, truth, PoseArray(), "truth refused: the truth has no time (stamp 0)")
    until_heard(node, forecasts, Forecast(), "refused a forecast")
    for stamp, matrix in zip(run.pose_ns.tolist(), run.pose, strict=True):
        message = PoseStamped(header=make_header(stamp, "world"))
        angle = np.arctan2(matrix[0, 2], matrix[0, 0])
        message.pose.orientation.y, message.pose.orientation.w = float(np.sin(angle / 2)), float(np.cos(angle / 2))
        message.pose.position.y = float(matrix[1, 3])
        poses.publish(message)
    for i in range(len(run)):
        forecasts.publish(forecast_to_message(replace(run.forecast(i), frame_id="camera_optical")))
    wait_until(lambda: told and timing(told)["received"] == 25, lambda: told[-1:])
    wait_until(lambda: any("no truth has come" in verdict.status[0].message for verdict in verdicts), "no truth yet")
    good = list(pose_messages(run.truth_ns, run.truth))
    wrong = [
        PoseArray(header=make_header(int(run.truth_ns[20]), "world"), poses=good[0].poses[:2]),
        PoseArray(header=good[19].header, poses=good[0].poses),
    ]
    for k, message in enumerate(good):
        truth.publish(message)
        if k == 20:
            for one in wrong:
                truth.publish(one)

    joined = score.join(run)
    error = {name: np.linalg.norm(joined.methods[name] - joined.truth, axis=-1) for name in joined.methods}
    wait_until(lambda: timing(told)["scored"] == len(joined.index), lambda: told[-1:])
    statuses = {status.name: status for status in told[-1].status}
    for name in ("model", "hold", "constant velocity"):
        found = values(statuses[f"evaluator: {name}"])
        assert found["ade_m"] == pytest.approx(np.nanmean(error[name], (1, 2)).mean(), abs=1e-5), name
        assert found["fde_m"] == pytest.approx(np.nanmean(error[name][:, -1], 1).mean(), abs=1e-5), name
    wait_until(lambda: any("ADE" in verdict.status[0].message for verdict in verdicts), "a verdict")
    assert verdicts[-1].status[0].hardware_id == "by hand" and verdicts[-1].status[0].name == "evaluator: forecasts"
    assert node.end(signal.SIGTERM)[0] == 0
    kept = Run.load(tmp_path / "out")
    assert len(kept) == 25 and len(kept.truth_ns) == len(run.truth_ns) and len(kept.pose_ns) == len(run.pose_ns)
    assert kept.words["score"]["scored"] == len(joined.index)
    refused = kept.words["score"]["refused_truth"]
    assert refused["joint count"] == refused["order"] == 1 and refused["no time"] >= 1
    again = score.join(replace(kept, begins_ns=run.begins_ns))
    np.testing.assert_array_equal(again.index, joined.index)
    np.testing.assert_allclose(again.truth, joined.truth, atol=1e-5)


@pytest.mark.skipif(find_spec("tf2_ros") is not None, reason="tf2_ros is installed")
def test_tf_without_its_library_is_refused_in_words(processes):
    from ros_kit import wait_until

    process = processes.node("evaluator", "-p", "camera_pose_from:=tf")
    wait_until(lambda: not process.running, "the end", 60.0)
    assert process.status == 1 and "tf2_ros is not installed" in process.output and "camera_pose_from" in process.output
    assert "Traceback" not in process.output


# ---- a recording through the real nodes


def copy_of(source: Path, folder: Path, seconds: float) -> Path:
    """The beginning of a recording."""
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer

    with Reader(source) as reader, Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        known: dict[str, Any] = {}
        for connection, at, data in reader.messages():
            if at > reader.start_time + round(seconds * NS):
                break
            if connection.topic not in known:
                known[connection.topic] = writer.add_connection(
                    connection.topic, connection.msgtype, msgdef=connection.msgdef.data, rihs01=connection.digest,
                    offered_qos_profiles=connection.ext.offered_qos_profiles,
                )  # fmt: skip
            writer.write(known[connection.topic], at, data)
    return folder


SHIPPED = Settings(truth="/truth/joints", pose_topic="/camera/pose")


@pytest.mark.slow
@pytest.mark.alone
def test_a_recording_through_the_nodes_gives_what_the_model_says_of_its_images(tmp_path):
    from thinkjepa_ros.demo.live_bag import replay_live
    from thinkjepa_ros.evaluation.bag.footage import pictures
    from thinkjepa_ros.jepa.forecaster import Forecaster
    from thinkjepa_ros.values import Frame

    short = copy_of(ROOT / "models" / "demo" / "cue_reach", tmp_path / "short", 2.5)
    out = replay_live([short], SHIPPED, thinker=None, out=tmp_path / "out", dtype="float32")
    log = (tmp_path / "out" / "recording_0" / "logs" / "predictor.log").read_text()
    assert "float32 (asked for)" in log, "what the node takes by itself is auto"
    ground = open_ground(short, SHIPPED)
    assert out.guided is None and len(out) > 3 and np.isin(out.stamp_ns, ground.course.stamps_ns).all()
    assert (out.latency_s > -0.02).all() and np.median(out.latency_s) < 2.0
    counts = out.about["dropped"]
    assert counts["images played"] == len(ground.course.stamps_ns) and counts["forecasts received"] == len(out)
    assert out.about["rate"] == 1.0 and len(out.about["weights_sha256"]) == 64 and out.about["thinker_id"] is None
    assert 0.5 < out.about["speed"]["times_real_time"] < 1.02
    # the truth now is exact, and what the model says is what it says of these very images
    np.testing.assert_allclose(out.truth_present, ground.now(_images(ground, out.stamp_ns), np.arange(24)), atol=1e-9)
    forecaster = Forecaster.load(ROOT / "models" / "mini")
    wanted = [(0, int(at)) for at in ground.course.stamps_ns if at <= out.stamp_ns[-1]]
    for _, stamp, rgb in pictures([short], SHIPPED, wanted):
        forecaster.observe(Frame(rgb, stamp), ground.course.camera)
    np.testing.assert_allclose(out.unguided[-1], forecaster.forecast().positions, atol=2e-3)
    assert not _nodes(), "no process is left"


def _images(ground, stamps) -> np.ndarray:
    return np.searchsorted(ground.course.stamps_ns, stamps)


def _nodes() -> dict[str, int]:
    """The nodes that this process has started and that live: name -> process id."""
    import psutil

    found = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            modules = [word for word in child.cmdline() if word.startswith("thinkjepa_ros.nodes.")]
            found.update({module.rpartition(".")[2]: child.pid for module in modules})
    return found


def _when(condition, act, timeout_s=120.0) -> None:
    """Do something once, in a thread, as soon as a condition holds."""

    def watch() -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        act()

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.slow
@pytest.mark.alone
def test_guidance_its_age_and_half_the_speed(tmp_path):
    from thinkjepa_ros.demo.live_bag import replay_live

    short = copy_of(ROOT / "models" / "demo" / "cue_reach", tmp_path / "short", 6.0)
    out = replay_live([short, short], SHIPPED, rate=0.5, out=tmp_path / "out")
    assert out.unguided is None and set(out.bag) == {0, 1} and len(out.thoughts) >= 2
    guided = out.weight > 0
    # whether a forecast comes before the first thought depends on the machine
    assert guided.any() and (out.age_s[guided] > 0).all() and not guided[np.isnan(out.age_s)].any()
    assert np.isfinite(out.truth[:, -1]).any(), "some horizons are whole"
    assert out.about["speed"]["times_real_time"] < 0.7
    assert any("0.5 times real time" in note for note in out.about["notes"])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluator_that_is_ended_early_keeps_what_came_until_then(tmp_path, number):
    from thinkjepa_ros.demo.live_bag import replay_live

    short = copy_of(ROOT / "models" / "demo" / "cue_reach", tmp_path / "short", 9.0)
    began = []

    def playing() -> bool:
        log = tmp_path / "out" / "recording_0" / "logs" / "predictor.log"
        if not began and log.is_file() and "running" in log.read_text():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > 2.0

    _when(playing, lambda: os.kill(_nodes()["evaluator"], number))
    out = replay_live([short], SHIPPED, thinker=None, out=tmp_path / "out")
    assert 0 < len(out) < 9 * 30 and "the evaluator was ended before short was" in out.about["notes"][0]
    assert not _nodes()


@pytest.mark.slow
@pytest.mark.alone
def test_ctrl_c_ends_all_processes(tmp_path):
    from thinkjepa_ros.demo.live_bag import LiveBagStopped, replay_live

    short = copy_of(ROOT / "models" / "demo" / "cue_reach", tmp_path / "short", 9.0)
    log = tmp_path / "out" / "recording_0" / "logs" / "predictor.log"
    _when(lambda: log.is_file() and "running" in log.read_text(), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(LiveBagStopped, match="stopped while short was played; what came until then is in"):
        replay_live([short], SHIPPED, thinker=None, out=tmp_path / "out")
    assert len(Run.load(tmp_path / "out" / "recording_0").stamp_ns) >= 0
    assert not _nodes()


@pytest.mark.slow
@pytest.mark.alone
def test_a_model_that_is_none_ends_it_with_a_sentence(tmp_path):
    from thinkjepa_ros.demo.live_bag import replay_live

    short = copy_of(ROOT / "models" / "demo" / "cue_reach", tmp_path / "short", 2.0)
    with pytest.raises(LiveBagError, match=r"the predictor does not work: .*no_model.*the logs are in"):
        replay_live([short], SHIPPED, model=tmp_path / "no_model", thinker=None, out=tmp_path / "out")
    assert not _nodes()
