"""The predictor node on real topics, hosted in the test's process: what it publishes, what it refuses, what it says."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point, Pose, PoseArray
from rclpy.parameter import Parameter
from ros_kit import (
    LATCHED,
    NS,
    RELIABLE,
    SOON_S,
    TestCamera,
    accounted,
    joint_array,
    picture,
    wait_until,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from thinkjepa_ros.bridge.images import from_rgb
from thinkjepa_ros.bridge.messages import guidance_to_message, make_header, stamp_ns, to_stamp
from thinkjepa_ros.jepa.forecaster import ForecastError
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.nodes.predictor import PredictorNode
from thinkjepa_ros.values import Guidance

START = 1_000 * NS
STEP = NS // 10
CONTEXT = 8


def a_guidance(ns: int, sequence: int = 1, epoch: int = 7, valid_for_s: float = 2.0, scale: float = 1.0) -> Guidance:
    pyramid = np.random.default_rng(3).normal(0, scale, (4, 2, 128)).astype(np.float32)
    return Guidance(
        pyramid,
        (0, 1, 2, 3),
        ns,
        valid_for_s,
        epoch=epoch,
        sequence=sequence,
        model_id="a thinker",
        text="red to the left",
    )


@pytest.fixture
def host(peer, small_model):
    """Hosts a predictor with the given parameters and returns it once it is active."""

    def make(**parameters):
        parameters = {"model": str(small_model), "max_rate_hz": 240.0, "input_timeout_s": 30.0, **parameters}
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        node = peer.host(PredictorNode(parameter_overrides=overrides))
        wait_until(lambda: node.label == "active", "the predictor active")
        return node

    return make


@pytest.fixture
def camera(peer, host):
    """A camera in front of a predictor; nothing is ever lost between them."""
    node = host()
    camera = TestCamera(peer)
    camera.node = node
    yield camera
    assert all(accounted(status) for status in camera.statuses)


def replay(camera: TestCamera, count: int) -> list:
    """The same pictures at the same stamps again, as a bag that loops does; forecasts of the second round."""
    jumps = camera.status.jumps
    camera.send(START, 0)  # far behind: only the next image proves that time itself went back
    forecasts = camera.play(START + STEP, count - 1, first_index=1)
    assert camera.status.jumps == jumps + 1
    return forecasts


def same(a, b) -> bool:
    return all(
        np.array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
        for name in ("positions", "sigma", "present")
    )


def test_forecast_says_where_when_and_by_whom(camera):
    forecasts = camera.play(START, 12)
    assert len(forecasts) == 12 - (CONTEXT - 1), "a forecast for every image once the window is full"
    last = forecasts[-1]
    assert stamp_ns(last.header.stamp) == START + 11 * STEP and last.header.frame_id == "camera_optical"
    assert (last.steps, last.joints, len(last.joint_names)) == (32, 24, 24)
    assert (
        last.step_s == pytest.approx(0.1) and last.model_id == "small (untrained)" and not last.trained and last.metric
    )
    assert np.isfinite(joint_array(last)).all() and last.guidance_weight == 0 and math.isnan(last.guidance_age_s)
    status = camera.peer_status(NodeStatus.RUNNING)
    assert (status.received, status.used, status.published) == (12, 12, 5)


def test_lock_step_replay_is_bit_equal_also_after_loops(camera):
    first = camera.play(START, 14)
    for _ in range(3):
        again = replay(camera, 14)
        assert len(again) == len(first) and all(same(a, b) for a, b in zip(first, again, strict=True))
        assert len({f.epoch for f in again}) == 1
    assert again[0].epoch == first[0].epoch + 3


def test_guidance_changes_the_forecast_and_fades_to_exactly_the_unguided_one(camera):
    guidance = camera.peer.publisher(GuidanceMsg, "/thinker/guidance", LATCHED)
    unguided = camera.play(START, 30)
    camera.send(START)
    camera.play(START + STEP, 8, first_index=1)
    thought = a_guidance(START + 7 * STEP, valid_for_s=1.0)
    guidance.publish(guidance_to_message(thought))
    wait_until(lambda: camera.status.guidance_received == 1, "the guidance received")
    guided = camera.play(START + 9 * STEP, 21, first_index=9)
    plain = unguided[-21:]
    assert [stamp_ns(f.header.stamp) for f in guided] == [stamp_ns(f.header.stamp) for f in plain]
    for a, b in zip(guided, plain, strict=True):
        age = (stamp_ns(a.header.stamp) - thought.stamp_ns) * 1e-9
        assert a.guidance_weight == pytest.approx(thought.weight(stamp_ns(a.header.stamp)))
        if age < 0.99:
            assert (
                a.guidance_weight > 0 and a.guidance_sequence == 1 and a.guidance_age_s == pytest.approx(age, abs=1e-6)
            )
            assert np.abs(joint_array(a) - joint_array(b)).max() > 1e-6
        else:
            assert a.guidance_weight == 0 and math.isnan(a.guidance_age_s) and a.guidance_sequence == 0
            assert same(a, b)
    differences = [np.abs(joint_array(a) - joint_array(b)).max() for a, b in zip(guided, plain, strict=True)]
    assert differences[0] > differences[6] > 0, "it fades, it does not end at once"
    wait_until(lambda: camera.status.guidance_used == 1, "the guidance accounted for")


def test_guidance_from_before_a_clock_jump_is_refused(camera):
    guidance = camera.peer.publisher(GuidanceMsg, "/thinker/guidance", LATCHED)
    plain = camera.play(START, 20)
    replay(camera, 12)
    guidance.publish(guidance_to_message(a_guidance(START + 11 * STEP, 1, epoch=5)))
    wait_until(lambda: camera.status.guidance_received == 1, "guidance")
    assert camera.step(START + 12 * STEP, 12).guidance_weight == 1.0
    replay(camera, 12)
    # thought on the old time line about a stamp that the new one has already passed
    guidance.publish(guidance_to_message(a_guidance(START + 10 * STEP, 2, epoch=5)))
    wait_until(lambda: camera.status.guidance_refused == 1, "the first refused")
    # and one that it has not reached yet
    guidance.publish(guidance_to_message(a_guidance(START + 19 * STEP, 3, epoch=5)))
    wait_until(lambda: camera.status.guidance_refused == 2, "the second refused")
    again = camera.play(START + 12 * STEP, 8, first_index=12)
    assert all(f.guidance_weight == 0 and same(f, p) for f, p in zip(again, plain[-8:], strict=True))
    guidance.publish(guidance_to_message(a_guidance(START + 19 * STEP, 1, epoch=6)))
    wait_until(lambda: camera.status.guidance_received == 4, "guidance of the new epoch")
    assert camera.step(START + 20 * STEP, 20).guidance_weight == 1.0


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("layer_ids", lambda m: setattr(m, "layer_ids", [0, 1, 2])),
        ("dtype", lambda m: setattr(m, "dtype", 9)),
        ("data", lambda m: setattr(m, "data", m.data[:-2])),
        ("finite", lambda m: setattr(m, "data", m.data[:-2] + type(m.data)("B", b"\x00\x7e"))),
        ("stamp", lambda m: setattr(m.header.stamp, "sec", 0)),
        ("pyramid", lambda m: None),
    ],
)
def test_guidance_that_does_not_fit_is_refused_with_its_field(camera, field, change):
    guidance = camera.peer.publisher(GuidanceMsg, "/thinker/guidance", LATCHED)
    camera.play(START, 8)
    thought = a_guidance(START + 7 * STEP)
    if field == "pyramid":
        thought = Guidance(np.zeros((2, 2, 64), np.float32), (0, 1), thought.stamp_ns, 2.0)
    message = guidance_to_message(thought)
    change(message)
    if field == "stamp":
        message.header.stamp.nanosec = 0
    guidance.publish(message)
    wait_until(lambda: camera.status.guidance_refused == 1, "the refusal")
    assert field in camera.status.last_error
    assert camera.step(START + 8 * STEP, 8).guidance_weight == 0


def test_bad_stamps_are_counted_and_not_used(camera):
    good = camera.play(START, 16)
    for ns in (START + 15 * STEP, START + 14 * STEP, START + 11 * STEP, 0, 2**31 * NS - NS):
        camera.send(ns, 3)
        wait_until(lambda: camera.idle, "the refusal")
    assert len(camera.forecasts) == len(good), "none of them made a forecast"
    reasons = dict(zip(camera.status.reasons, camera.status.reason_counts, strict=True))
    assert reasons == {"duplicate": 1, "out_of_order": 2, "zero_stamp": 1, "future_stamp": 1}
    assert camera.status.used == 16 and camera.status.jumps == 0
    after = camera.step(START + 16 * STEP, 16)
    assert after is not None and same(after, replay(camera, 17)[-1]), "they left no trace in the window"
    assert len(good) == 9


def test_one_image_far_behind_is_out_of_order_not_a_jump(camera):
    camera.play(START, 10)
    camera.send(START - 50 * NS, 0)
    assert camera.step(START + 10 * STEP, 10) is not None
    reasons = dict(zip(camera.status.reasons, camera.status.reason_counts, strict=True))
    assert reasons == {"out_of_order": 1} and camera.status.jumps == 0


def broken_images() -> dict[str, Image]:
    def image(**changes) -> Image:
        message = from_rgb(picture(0), make_header(1, "camera_optical"))
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    whole = image()
    return {
        "unknown encoding": image(encoding="rgb99"),
        "no encoding": image(encoding=""),
        "depth": image(encoding="32FC1"),
        "cut": image(data=whole.data[:-1]),
        "no data": image(data=whole.data[:0]),
        "step too small": image(step=1),
        "height too large": image(height=100),
        "no pixels": image(height=0, width=0, step=0),
        "huge": image(width=100_000, step=300_000),
    }


def test_broken_images_are_refused_with_a_reason_and_the_next_good_one_works(camera):
    camera.play(START, 8)
    now = START + 7 * STEP
    for kind, message in broken_images().items():
        now += STEP // 2
        message.header = make_header(now, "camera_optical")
        assert camera.step(now, message=message) is None, kind
        assert camera.status.last_error, kind
    reasons = dict(zip(camera.status.reasons, camera.status.reason_counts, strict=True))
    assert reasons == {"bad_image": len(broken_images())}
    assert len(camera.play(now + 8 * STEP, 9)) >= 1


def test_an_image_found_broken_in_a_window_moves_from_superseded_to_refused(camera, monkeypatch):
    """Images that came while the model was busy are decoded only when a later window needs them."""
    from thinkjepa_ros.bridge import window

    def to_rgb(message, real=window.to_rgb):
        if stamp_ns(message.header.stamp) == START + 9 * STEP:
            raise window.ImageError("its last bytes are missing")
        return real(message)

    monkeypatch.setattr(window, "to_rgb", to_rgb)
    camera.play(START, 9)
    forecaster = camera.node._forecaster
    gate, observe = threading.Event(), forecaster.observe
    entered = threading.Event()

    def slow(*args):
        entered.set()
        gate.wait(SOON_S)
        return observe(*args)

    monkeypatch.setattr(forecaster, "observe", slow)
    camera.send(START + 9 * STEP - STEP // 2, 40)
    wait_until(entered.is_set, "the model busy")
    for k in (9, 10, 11):
        camera.send(START + k * STEP, k)
    wait_until(lambda: camera.node.ledger.counts().superseded == 2, "two superseded")
    gate.set()
    wait_until(lambda: camera.idle, "all images settled")
    reasons = dict(zip(camera.status.reasons, camera.status.reason_counts, strict=True))
    assert reasons == {"bad_image": 1} and camera.status.superseded == 1
    assert camera.play(START + 12 * STEP, 8, first_index=12), "the window fills again"


def test_simulated_time_that_jumps_begins_one_epoch(peer, host):
    host(use_sim_time=True)
    clock = peer.publisher(Clock, "/clock")
    camera = TestCamera(peer)

    def play(start: int) -> list:
        answers = []
        for k in range(10):
            clock.publish(Clock(clock=to_stamp(start + k * STEP)))
            wait_until(lambda k=k: abs(camera_time() - (start + k * STEP)) < NS // 1000, "simulated time")
            answers.append(camera.step(start + k * STEP, k))
        return [a for a in answers if a is not None]

    def camera_time() -> int:
        return peer.hosted[0].get_clock().now().nanoseconds

    first = play(START)
    for jumps in (1, 2):
        again = play(START)
        assert camera.status.jumps == jumps and len(again) == len(first) == 3
        assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert camera.status.refused == 0 and first[0].latency_s < 1.0


def test_silent_camera_is_stale_within_its_time_and_recovers(peer, host):
    host(input_timeout_s=0.5)
    camera = TestCamera(peer)
    camera.play(START, 9, step_ns=STEP)
    silent = time.monotonic()
    wait_until(lambda: camera.status.state == NodeStatus.STALE, "STALE")
    assert time.monotonic() - silent < 1.5
    published, quiet = camera.status.published, time.monotonic()
    assert "no message on topic /image" in camera.status.words
    wait_until(lambda: time.monotonic() - quiet > 0.7, "a while")
    assert camera.status.published == published == len(camera.forecasts)
    assert camera.step(START + 9 * STEP, 9) is not None
    wait_until(lambda: camera.status.state == NodeStatus.RUNNING, "RUNNING again")


def test_an_overloaded_worker_keeps_to_windows_it_knows(camera, monkeypatch):
    """Three images per grid step, a model too slow for them: it must not encode a whole window per forecast."""
    forecaster, observed = camera.node._forecaster, []
    observe = forecaster.observe

    def slow(frame, *args):
        time.sleep(0.06)
        observed.append(frame.stamp_ns)
        return observe(frame, *args)

    monkeypatch.setattr(forecaster, "observe", slow)
    began = time.monotonic()
    for k in range(150):
        camera.send(START + k * NS // 30, k)
        wait_until(lambda k=k: time.monotonic() > began + k / 30, "the camera's time")
    wait_until(lambda: camera.idle, "all images settled")
    used = camera.status.used
    assert 10 <= used < 120 and len(observed) < 3 * used, f"{len(observed)} images encoded for {used} turns"
    late = camera.forecasts[len(camera.forecasts) // 2 :]
    steps = {stamp_ns(b.header.stamp) - stamp_ns(a.header.stamp) for a, b in pairwise(late)}
    assert all(step > 0 for step in steps), "forecasts never go back in time"


def test_without_a_publisher_it_says_so(peer, host):
    node = host()
    statuses = peer.collect(NodeStatus, "/predictor/status", LATCHED)
    wait_until(lambda: statuses and "no publisher on topic /image" in statuses[-1].words, "the words")
    assert statuses[-1].state == NodeStatus.WAITING and node.label == "active"


def test_max_rate_wakes_a_sleeping_worker(camera):
    camera.play(START, 9)
    node = camera.node
    assert camera.peer.call(node.set_parameters, [Parameter("max_rate_hz", value=0.1)])[0].successful
    camera.step(START + 9 * STEP, 9)  # alone: two at once may share the turn that the worker still had
    camera.send(START + 10 * STEP, 10)
    wait_until(lambda: camera.node.ledger.counts().pending == 1, "an image that waits for its turn")
    began = time.monotonic()
    assert camera.peer.call(node.set_parameters, [Parameter("max_rate_hz", value=200.0)])[0].successful
    wait_until(lambda: camera.idle, "its turn")
    assert time.monotonic() - began < 2.0
    assert camera.answer(START + 10 * STEP) is not None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_rate_hz", [0.0, -1.0, 1e9, math.nan, math.inf, 5, "fast", [1.0], True]),
        ("input_timeout_s", [0.0, math.nan, "soon"]),
        ("camera_fx_px", [-1.0, math.inf]),
        ("model", ["elsewhere"]),
        ("device", ["cuda"]),
        ("autostart", [False]),
        ("image_transport", ["compressed"]),
    ],
)
def test_wrong_parameters_are_refused_and_nothing_changes(camera, name, values):
    before = camera.node.get_parameter(name).value
    for value in values:
        result = camera.peer.call(camera.node.set_parameters, [Parameter(name, value=value)])[0]
        assert not result.successful and result.reason, value
        mixed = [Parameter("overlay_max_rate_hz", value=1.0), Parameter(name, value=value)]
        assert not camera.peer.call(camera.node.set_parameters_atomically, mixed).successful
        assert camera.node.get_parameter(name).value == before == camera.node.parameters[name]
        assert camera.node.parameters["overlay_max_rate_hz"] == 10.0


def test_life_cycles_leave_one_worker_and_a_working_node(camera):
    node = camera.node
    camera.play(START, 8)
    for _ in range(10):
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            task = camera.peer.executor.create_task(node.transition, transition)
            wait_until(task.done, transition)
            assert task.result(), transition
    assert [t.name for t in threading.enumerate()].count("predictor worker") == 1
    wait_until(lambda: node.input.publishers == 1 and camera.subscribers == 1, "the new subscription")
    assert len(camera.play(START + 20 * STEP, 9)) == 2


def test_a_missing_model_leaves_the_node_unconfigured_and_saying_why(peer, tmp_path):
    node = peer.host(PredictorNode(parameter_overrides=[Parameter("model", value=str(tmp_path / "nowhere"))]))
    statuses = peer.collect(NodeStatus, "/predictor/status", LATCHED)
    wait_until(lambda: statuses and statuses[-1].state == NodeStatus.ERROR, "ERROR")
    assert (
        node.label == "unconfigured" and "nowhere" in statuses[-1].words and "no such folder" in statuses[-1].last_error
    )


def test_a_node_that_was_never_configured_can_be_shut_down(peer):
    node = peer.host(PredictorNode(), autostart=False)
    task = peer.executor.create_task(node.transition, "shutdown")
    wait_until(task.done, "the transition")
    assert task.result() and node.label == "finalized"


def test_answers_while_it_loads(peer, small_model, monkeypatch):
    gate = threading.Event()
    real = PredictorNode.load
    monkeypatch.setattr(PredictorNode, "load", lambda self: (gate.wait(SOON_S), real(self))[1])
    node = peer.host(PredictorNode(parameter_overrides=[Parameter("model", value=str(small_model))]))
    statuses = peer.collect(NodeStatus, "/predictor/status", LATCHED)
    wait_until(lambda: statuses and statuses[-1].state == NodeStatus.LOADING, "LOADING")
    assert peer.call(node.set_parameters, [Parameter("max_rate_hz", value=7.0)])[0].successful
    task = peer.executor.create_task(node.transition, "activate")
    wait_until(task.done, "the answer to an impossible transition")
    assert not task.result()
    gate.set()
    wait_until(lambda: node.label == "active", "active")


def test_values_that_are_not_finite_are_never_published(camera, monkeypatch):
    camera.play(START, 9)
    forecaster = camera.node._forecaster
    real = forecaster.forecast

    def broken(*_):
        raise ForecastError("small gave values that are not finite")

    monkeypatch.setattr(forecaster, "forecast", broken)
    for k in range(6):
        assert camera.step(START + (9 + k) * STEP, k) is None
        assert camera.status.state == (NodeStatus.ERROR if k >= 4 else NodeStatus.RUNNING)
    assert "not finite" in camera.status.words
    monkeypatch.setattr(forecaster, "forecast", real)
    assert camera.step(START + 15 * STEP, 15) is not None
    wait_until(lambda: camera.status.state == NodeStatus.RUNNING, "RUNNING again")


def test_standard_messages_carry_the_same_forecast(camera):
    trajectories = camera.peer.collect(MultiDOFJointTrajectory, "/predictor/trajectory", RELIABLE)
    markers = camera.peer.collect(MarkerArray, "/predictor/markers", RELIABLE)
    overlays = camera.peer.collect(Image, "/predictor/overlay", RELIABLE)
    for publisher in ("_trajectory_pub", "_markers_pub", "_overlay_pub"):
        wait_until(lambda p=publisher: getattr(camera.node, p).get_subscription_count() == 1, f"{publisher} matched")
    forecast = camera.play(START, 8)[-1]
    wait_until(lambda: trajectories and markers and overlays, "all three")
    positions = joint_array(forecast)
    trajectory = trajectories[-1]
    assert trajectory.header == forecast.header and list(trajectory.joint_names) == list(forecast.joint_names)
    got = [[(t.translation.x, t.translation.y, t.translation.z) for t in p.transforms] for p in trajectory.points]
    assert np.allclose(got, positions) and all(t.rotation.w == 1.0 for t in trajectory.points[0].transforms)
    times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in trajectory.points]
    assert np.allclose(times, 0.1 * np.arange(1, 33))
    lines = [m for m in markers[-1].markers if m.type == Marker.LINE_STRIP]
    assert len(lines) == 12 and len({(m.ns, m.id) for m in markers[-1].markers}) == 13
    wrist = next(m for m in lines if m.ns == "path/right_wrist")
    assert len(wrist.points) == len(wrist.colors) == 33 and wrist.colors[0].a > wrist.colors[-1].a > 0
    assert np.allclose([wrist.points[-1].x, wrist.points[-1].y, wrist.points[-1].z], positions[-1, 0])
    assert overlays[-1].header == forecast.header and (overlays[-1].width, overlays[-1].height) == (96, 72)


def test_observed_joints_anchor_the_forecast(camera):
    joints = camera.peer.publisher(PoseArray, "/joints_observed")
    camera.play(START, 8)
    observed = np.linspace(-0.3, 0.6, 72).reshape(24, 3)
    message = PoseArray(header=make_header(START + 8 * STEP, "camera_optical"))
    message.poses = [Pose(position=Point(x=x, y=y, z=z)) for x, y, z in observed]
    message.poses[5].position.x = math.nan
    joints.publish(message)
    wait_until(lambda: camera.node._anchor is not None, "the anchor")
    forecast = camera.step(START + 8 * STEP, 8)
    present = np.frombuffer(forecast.present, np.float32).reshape(24, 3)
    known = np.arange(24) != 5
    assert forecast.anchored and np.allclose(present[known], observed[known]) and np.isfinite(present).all()
    assert not camera.play(START + 9 * STEP, 3, first_index=9)[-1].anchored, "an old pose anchors nothing"
    message.header.frame_id = "world"
    joints.publish(message)
    wait_until(lambda: "'world'" in camera.status.last_error, "the refusal of another frame")


def test_intrinsics_from_parameters_make_it_metric(peer, host):
    node = host()
    camera = TestCamera(peer, info=False)
    assert not camera.play(START, 8)[-1].metric
    assert peer.call(node.set_parameters, [Parameter("camera_fx_px", value=80.0)])[0].successful
    assert camera.play(START + 8 * STEP, 8, first_index=8)[-1].metric


def test_diagnostics_and_status_come_in_every_state(peer):
    """REP-107: /diagnostics at 1 Hz with a level; the status twice as often, also before anything is configured."""
    statuses = peer.collect(NodeStatus, "/predictor/status", LATCHED)
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics", RELIABLE)
    idle = peer.host(PredictorNode(), autostart=False)
    wait_until(lambda: len(statuses) >= 3 and len(diagnostics) >= 2, "reports of a node without a model")
    assert {s.state for s in statuses} == {NodeStatus.UNCONFIGURED}
    status = diagnostics[-1].status[0]
    assert (
        status.name == "predictor: forecast"
        and status.level == DiagnosticStatus.WARN
        and status.message == "unconfigured"
    )
    times = [stamp_ns(d.header.stamp) for d in diagnostics]
    assert all(0.5 < (b - a) / NS < 3.0 for a, b in pairwise(times))
    assert peer.call(idle.stop) is None


def test_diagnostics_carry_the_counters(camera):
    diagnostics = camera.peer.collect(DiagnosticArray, "/diagnostics", RELIABLE)
    camera.play(START, 9)
    camera.send(START, 0)
    wait_until(lambda: camera.idle, "the refusal")
    camera.step(START + 9 * STEP, 9)
    wait_until(lambda: diagnostics and diagnostics[-1].status[0].level == DiagnosticStatus.OK, "OK")
    values = wait_until(lambda: has(diagnostics[-1], "received", "11"), "all images counted")
    assert values["used"] == "10" and values["refused (out_of_order)"] == "1" and values["published"] == "3"
    assert diagnostics[-1].status[0].hardware_id == "small (untrained)"


def has(diagnostics: DiagnosticArray, key: str, value: str) -> dict[str, str] | None:
    values = {v.key: v.value for v in diagnostics.status[0].values}
    return values if values.get(key) == value else None
