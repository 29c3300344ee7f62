"""The nodes as processes of their own: signals, crashes, restarts, namespaces, life cycle services."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_kit import (
    LATCHED,
    NS,
    TestCamera,
    accounted,
    ask,
    joint_array,
    picture,
    wait_until,
)
from sensor_msgs.msg import Image

from thinkjepa_ros.bridge.images import from_rgb
from thinkjepa_ros.bridge.messages import make_header, stamp_ns
from thinkjepa_ros.msg import Forecast, NodeStatus

HANGING = str(Path(__file__).with_name("hanging_node.py"))
START = 1_000 * NS


class LiveCamera:
    """A camera that runs in a thread at real speed."""

    def __init__(self, peer, stamps, hz=30.0, namespace="", until_stopped=False):
        self._publisher = peer.publisher(Image, f"{namespace}/image")
        self._stop = threading.Event()
        self._stamps, self._hz, self._endless = stamps, hz, until_stopped
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(10)

    def join(self):
        self._thread.join(60)

    def _run(self):
        due = time.monotonic()
        for ns in self._stamps:
            self._publisher.publish(from_rgb(picture(ns // (NS // 30) % 50), make_header(ns, "camera_optical")))
            self.sent += 1
            due += 1.0 / self._hz
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return


def endless(start=START, hz=30):
    k = 0
    while True:
        yield start + k * NS // hz
        k += 1


def active(peer, name: str):
    """Statuses of a node that has become active."""
    statuses = peer.collect(NodeStatus, f"{name}/status", LATCHED)
    wait_until(
        lambda: statuses and statuses[-1].state in (NodeStatus.WAITING, NodeStatus.RUNNING, NodeStatus.WARMING),
        lambda: f"{name} active; last status: {statuses[-1:]}",
        120.0,
    )
    return statuses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_nodes_with_status_0(processes, peer, number):
    started = {
        "predictor": processes.node("predictor"),
        "thinker": processes.node("thinker", "-p", "window_s:=1.0"),
    }
    for name in started:
        active(peer, f"/{name}")
    for process in started.values():
        status, took = process.end(number)
        assert status == 0 and took < 5.0, process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("name", "where", "number"),
    [
        ("predictor", "call", signal.SIGINT),
        ("predictor", "load", signal.SIGTERM),
        pytest.param("thinker", "call", signal.SIGTERM, marks=pytest.mark.slow),
        ("thinker", "load", signal.SIGINT),
    ],
)
def test_signals_end_a_node_whose_model_hangs(processes, peer, small_model, name, where, number):
    arguments = (
        ["-p", f"model:={small_model}", "-p", "hang_timeout_s:=0.5"]
        if name == "predictor"
        else ["-p", "think_timeout_s:=0.5"]
    )
    process = processes.start(HANGING, name, where, "--ros-args", *arguments)
    statuses = peer.collect(NodeStatus, f"/{name}/status", LATCHED)
    if where == "load":
        wait_until(lambda: "the model hangs" in process.output, lambda: process.output, 60.0)
        wait_until(lambda: statuses and statuses[-1].state == NodeStatus.LOADING, "LOADING")
    else:
        active(peer, f"/{name}")
        with LiveCamera(peer, endless()):
            wait_until(
                lambda: statuses and statuses[-1].state == NodeStatus.HUNG, lambda: f"HUNG; {statuses[-1:]}", 60.0
            )
    status, took = process.end(number)
    assert status == 0 and took < 5.0, process.output


@pytest.mark.slow
def test_a_thinker_that_hangs_for_too_long_ends_for_whoever_restarts_it(processes, peer):
    options = ["-p", "think_timeout_s:=0.1", "-p", "exit_when_hung_s:=1.5", "-p", "window_s:=1.0"]
    process = processes.start(HANGING, "thinker", "call", "--ros-args", *options)
    statuses = active(peer, "/thinker")
    with LiveCamera(peer, endless()):
        wait_until(lambda: statuses[-1].state == NodeStatus.HUNG, lambda: f"HUNG; {statuses[-1:]}")
        assert process.running
        wait_until(lambda: not process.running, lambda: process.output)
    assert process.status == 3 and "to be started again" in process.output and "Traceback" not in process.output


def test_a_second_signal_changes_nothing(processes, peer, small_model):
    process = processes.start(HANGING, "predictor", "call", "--ros-args", "-p", f"model:={small_model}")
    active(peer, "/predictor")
    with LiveCamera(peer, endless()):
        wait_until(lambda: "the model hangs" in process.output, lambda: process.output)
    process.send(signal.SIGINT)
    wait_until(lambda: not process.running or not process.send(signal.SIGINT), "the end")
    status, took = process.end(signal.SIGTERM)
    assert status == 0 and took < 5.0, process.output


def test_a_killed_thinker_costs_the_predictor_nothing_and_its_guidance_returns(processes, peer, small_model):
    processes.node("predictor", "-p", f"model:={small_model}", "-p", "max_rate_hz:=60.0")
    options = ["-p", "think_period_s:=0.2", "-p", "guidance_valid_for_s:=2.0", "-p", "window_s:=1.0"]
    thinker = processes.node("thinker", *options)
    statuses = active(peer, "/predictor")
    active(peer, "/thinker")
    arrivals: list[tuple[float, Forecast]] = []
    peer.node.create_subscription(
        Forecast, "/predictor/forecast", lambda f: arrivals.append((time.monotonic(), f)), 100
    )
    with LiveCamera(peer, endless(hz=15), hz=15.0):
        wait_until(lambda: arrivals and arrivals[-1][1].guidance_weight == 1.0, "guided forecasts")
        thinker.kill()
        killed = time.monotonic()
        wait_until(lambda: arrivals[-1][1].guidance_weight == 0.0, "guidance faded")
        assert time.monotonic() - killed < 10.0
        after = [t for t, _ in arrivals if t >= killed - 0.5]
        # one period of the camera, and what a loaded machine adds to any two messages
        assert max(np.diff(after)) < 1 / 15 + 0.25, max(np.diff(after))
        processes.node("thinker", *options)
        wait_until(lambda: arrivals[-1][1].guidance_weight == 1.0, "guidance of the new thinker", 60.0)
    assert all(accounted(s) for s in statuses)
    wait_until(lambda: statuses[-1].guidance_used >= 2, "guidance of both thinkers accounted for")
    assert statuses[-1].guidance_refused == 0


@pytest.mark.slow
def test_a_live_loop_repeats_itself(processes, peer, small_model):
    """A stamp that is forecast again in a later round gives the same within 0.1 mm.

    At the rate of the model's grid: an image lost on the way then leaves a gap and no forecast, never another window.
    """
    processes.node("predictor", "-p", f"model:={small_model}", "-p", "max_rate_hz:=60.0")
    statuses = active(peer, "/predictor")
    forecasts = peer.collect(Forecast, "/predictor/forecast")
    stamps = [START + k * NS // 10 for k in range(30)]

    def repeated() -> list[list[Forecast]]:
        by_stamp: dict[int, dict[int, Forecast]] = {}
        for forecast in list(forecasts):
            by_stamp.setdefault(stamp_ns(forecast.header.stamp), {})[forecast.epoch] = forecast
        return [list(rounds.values()) for rounds in by_stamp.values() if len(rounds) > 1]

    with LiveCamera(peer, cycle(stamps), hz=10.0):
        wait_until(lambda: len(repeated()) >= 15, lambda: f"15 stamps forecast twice; {statuses[-1]}", 60.0)
    for first, *later in repeated():
        assert all(np.allclose(joint_array(first), joint_array(again), atol=1e-4) for again in later)
    assert statuses[-1].jumps >= 1 and all(accounted(s) for s in statuses)


@pytest.mark.slow
def test_two_namespaces_do_not_hear_each_other(processes, peer, small_model):
    for robot in ("/left_robot", "/right_robot"):
        processes.node("predictor", "-r", f"__ns:={robot}", "-p", f"model:={small_model}")
    processes.node("thinker", "-r", "__ns:=/left_robot", "-p", "window_s:=1.0", "-p", "think_period_s:=0.1")
    for name in ("/left_robot/predictor", "/right_robot/predictor", "/left_robot/thinker"):
        active(peer, name)
    other = TestCamera(peer, "/right_robot")
    camera = TestCamera(peer, "/left_robot")
    assert len(camera.play(START, 12)) == 5
    wait_until(lambda: camera.statuses[-1].guidance_received > 0, "guidance of its own thinker")
    mark = len(other.statuses)
    wait_until(lambda: len(other.statuses) > mark + 1, "two reports of the other robot")
    silent = other.status
    assert (silent.received, silent.guidance_received, len(other.forecasts)) == (0, 0, 0)


def test_life_cycle_over_services(processes, peer, small_model):
    """What `ros2 lifecycle set` does, and the state it reports."""
    defaults = Path(__file__).parents[1] / "config" / "predictor.yaml"
    processes.node("predictor", "--params-file", str(defaults), "-p", f"model:={small_model}", "-p", "autostart:=false")
    change = peer.node.create_client(ChangeState, "/predictor/change_state")
    state = peer.node.create_client(GetState, "/predictor/get_state")
    wait_until(change.service_is_ready, "the services", 60.0)
    wait_until(state.service_is_ready, "the services")

    def transition(number):
        return ask(change, ChangeState.Request(transition=Transition(id=number))).success

    def now():
        return ask(state, GetState.Request()).current_state.id

    assert now() == State.PRIMARY_STATE_UNCONFIGURED and not transition(Transition.TRANSITION_ACTIVATE)
    assert transition(Transition.TRANSITION_CONFIGURE) and now() == State.PRIMARY_STATE_INACTIVE
    assert transition(Transition.TRANSITION_ACTIVATE) and now() == State.PRIMARY_STATE_ACTIVE
    assert transition(Transition.TRANSITION_DEACTIVATE) and transition(Transition.TRANSITION_CLEANUP)
    assert now() == State.PRIMARY_STATE_UNCONFIGURED and not transition(99)
    assert transition(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN) and now() == State.PRIMARY_STATE_FINALIZED
    statuses = peer.collect(NodeStatus, "/predictor/status", LATCHED)
    wait_until(lambda: statuses and statuses[-1].state == NodeStatus.FINALIZED, "the status in its last state")


def test_a_wrong_parameter_at_start_ends_with_a_sentence(processes):
    process = processes.node("predictor", "-p", "max_rate_hz:=-1.0")
    wait_until(lambda: not process.running, "the end", 60.0)
    assert process.status == 2 and "refused to start" in process.output and "max_rate_hz" in process.output
    assert "Traceback" not in process.output


def test_incompatible_qos_is_said_in_words(processes, peer, small_model):
    process = processes.node(
        "predictor", "-p", f"model:={small_model}", "-p", "qos_overrides./image.subscription.reliability:=reliable"
    )
    statuses = active(peer, "/predictor")
    peer.node.create_publisher(Image, "/image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    wait_until(lambda: "RELIABILITY" in statuses[-1].last_error and "/image" in statuses[-1].last_error, "the words")
    assert "qos_overrides./image.subscription.reliability" in process.output


def test_thoughts_stand_back_and_the_graph_is_answered_as_ever(peer, processes):
    process = processes.node("thinker", "-p", "niceness:=7", "-p", "window_s:=1.0")
    active(peer, "/thinker")

    def niceness() -> dict[str, int]:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return {task.name: int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in tasks}

    wait_until(lambda: 7 in niceness().values(), lambda: f"a thread with niceness 7, not {niceness()}", 10.0)
    assert niceness()[str(process.pid)] == niceness_of_this_process()


def niceness_of_this_process() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
