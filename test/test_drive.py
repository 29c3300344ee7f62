"""The thread that commands the robot, without ROS: it follows plans, stops for every reason, and waits for nobody."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from thinkjepa_ros.control.drive import Drive, Motion
from thinkjepa_ros.control.limits import REST, Command, Limits, State
from thinkjepa_ros.control.watch import Input, Timeouts, Watch
from thinkjepa_ros.values import Plan

NS = 1_000_000_000
LIMITS = Limits((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0))
PERIOD = round(LIMITS.period_s * NS)
AWAY = Plan(
    np.array([[0.02, 0.0, 0.0, 0.0], [0.0, 0.04, 0.0, 0.5], [0.0, 0.0, -0.02, 1.0]], np.float32),
    1.0, 2.0, np.array([1.0], np.float32), "planner", 5 * NS, 0.2,
)  # fmt: skip


class Bench:
    """A drive on a clock that the test turns, with inputs that are fresh until it says otherwise."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.now = 100 * NS
        self.sent: list[Command] = []
        self.watch = Watch(timeouts or Timeouts(guidance_s=None), lambda: self.now)
        self.drive = Drive(LIMITS, self.watch, self.sent.append, lambda: self.now)

    def fresh(self) -> None:
        for what in (Input.IMAGE, Input.STATE):
            self.watch.saw(what)
        self.drive.state = State((0.0, 0.0, 0.0), 0.25, self.now)

    def go(self, seconds: float, fresh: bool = True) -> None:
        for _ in range(round(seconds / LIMITS.period_s)):
            self.now += PERIOD
            if fresh:
                self.fresh()
            self.drive.cycle()

    def plan(self, plan: Plan = AWAY, age_s: float = 0.0) -> None:
        self.watch.planned(plan.energy, plan.hold_energy, age_s)
        self.drive.follow(plan, age_s)

    @property
    def velocity(self) -> tuple[float, ...]:
        return self.sent[-1].velocity


def moving() -> Bench:
    bench = Bench()
    bench.fresh()
    assert not bench.watch.enable()
    bench.plan()
    bench.go(0.15)
    assert bench.velocity == pytest.approx((0.1, 0.0, 0.0))
    return bench


def test_a_plan_is_followed_by_its_own_time_and_ends_at_rest() -> None:
    motion = Motion(AWAY, 10 * NS)
    assert motion.at(10 * NS) == (pytest.approx((0.1, 0, 0)), 0.0)
    assert motion.at(10 * NS + 399_999_999) == (pytest.approx((0, 0.2, 0)), 0.5)
    assert motion.at(10 * NS + 400_000_000)[0] == pytest.approx((0, 0, -0.1))
    assert motion.at(10 * NS + 600_000_000) == (REST, 1.0)  # over: rest, and the gripper as it was commanded last
    assert motion.at(9 * NS) == (REST, 0.0)


def test_what_planning_took_is_left_out_of_the_plan() -> None:
    bench = Bench()
    bench.fresh()
    bench.watch.enable()
    bench.plan(age_s=0.2)
    bench.go(0.15)
    assert bench.velocity == pytest.approx((0.0, 0.2, 0.0))


def test_nothing_is_sent_before_it_is_enabled_and_others_may_drive_after_it_was_disabled() -> None:
    bench = Bench()
    bench.plan()
    bench.go(1.0)
    assert bench.sent == []
    bench.watch.enable()
    bench.plan()
    bench.go(0.15)
    assert math.hypot(*bench.velocity) > 0.05
    bench.watch.disable()
    bench.go(2.0)
    assert bench.sent[-1].velocity == REST
    count = len(bench.sent)
    bench.go(2.0)
    assert len(bench.sent) == count


def test_the_gripper_begins_where_others_left_it() -> None:
    bench = moving()
    bench.watch.disable()
    bench.go(2.0)
    bench.watch.enable()
    bench.now += PERIOD
    bench.fresh()
    bench.drive.state = State((0.0, 0.0, 0.0), 0.8, bench.now)
    bench.drive.cycle()
    assert bench.sent[-1].closedness == pytest.approx(0.8)


def test_a_latched_emergency_stop_is_said_again_and_again_even_to_a_robot_that_others_drive() -> None:
    bench = Bench()
    bench.watch.emergency_stop()
    bench.go(3.0)
    assert len(bench.sent) == 60 and all(command.velocity == REST for command in bench.sent)


STOPS = {
    "emergency stop": lambda b: b.watch.emergency_stop(),
    "disabled": lambda b: b.watch.disable(),
    "no plan": lambda b: b.drive.hold("no plan: the goal is gone"),
    "stale plan": lambda b: None,
    "hold is better": lambda b: b.watch.planned(2.0, 2.0),
    "energy not finite": lambda b: b.watch.planned(math.nan, 2.0),
    "no state": lambda b: setattr(b.drive, "state", None),
    "state no number": lambda b: setattr(b.drive, "state", State((math.nan, 0.0, 0.0), 0.0, b.now)),
}


@pytest.mark.parametrize("why", STOPS)
def test_it_brakes_within_the_limits_and_rests_in_time(why: str) -> None:
    bench = moving()
    STOPS[why](bench)
    endless = why not in ("stale plan",)
    began, before = bench.now, bench.velocity
    late = 0.0 if endless else bench.watch.timeouts.plan_s
    while bench.now - began < (late + LIMITS.stop_timeout_s) * NS:
        bench.now += PERIOD
        for what in (Input.IMAGE, Input.STATE):
            bench.watch.saw(what)
        if "state" not in why:
            bench.drive.state = State((0.0, 0.0, 0.0), 0.25, bench.now)
        if endless and why not in ("hold is better", "energy not finite"):
            bench.watch.planned(1.0, 2.0)
        bench.drive.cycle()
        assert math.dist(before, bench.velocity) <= LIMITS.max_acceleration_mps2 * LIMITS.period_s + 1e-9
        before = bench.velocity
    assert bench.velocity == REST
    if "state" not in why:
        assert bench.drive.report is not None and bench.drive.report.stopped


def test_it_goes_on_when_the_reason_is_gone() -> None:
    bench = moving()
    bench.drive.hold("no plan: the goal is gone")
    bench.go(0.5)
    assert bench.velocity == REST and "the goal is gone" in bench.drive.report.stopped  # type: ignore[union-attr]
    bench.plan()
    bench.go(0.15)
    assert math.hypot(*bench.velocity) > 0.05


def live(send: object = None) -> tuple[Drive, Watch, list[Command]]:
    """A drive in motion on the real clock."""
    sent: list[Command] = []
    watch = Watch(Timeouts(image_s=60.0, state_s=60.0, guidance_s=None, plan_s=60.0))
    drive = Drive(LIMITS, watch, send or sent.append)  # type: ignore[arg-type]
    watch.enable()
    for what in (Input.IMAGE, Input.STATE):
        watch.saw(what)
    watch.planned(1.0, 2.0)
    far = np.tile(np.array([[0.06, 0.0, 0.0, 0.0]], np.float32), (50, 1))
    drive.follow(Plan(far, 1.0, 2.0, np.zeros(0, np.float32), "planner", 1, 0.2), 0.0)
    drive.state = State((0.0, 0.0, 0.0), 0.0, time.monotonic_ns())
    return drive, watch, sent


def test_closing_brakes_says_rest_and_ends() -> None:
    drive, _, sent = live()
    drive.start(lambda error: None)
    deadline = time.monotonic() + 10
    while not sent or math.hypot(*sent[-1].velocity) < 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    began = time.monotonic()
    assert drive.close() and time.monotonic() - began < LIMITS.stop_timeout_s
    assert sent[-1].velocity == REST and len(sent) > 3
    for before, after in pairwise(sent):
        apart = max((after.stamp_ns - before.stamp_ns) / NS, LIMITS.period_s)  # a busy machine may come late
        assert math.dist(before.velocity, after.velocity) <= LIMITS.max_acceleration_mps2 * apart + 1e-9
    with pytest.raises(RuntimeError, match="started once"):
        drive.start(lambda error: None)


def test_a_sender_that_fails_is_told_and_tried_again() -> None:
    calls = []

    def send(command: Command) -> None:
        calls.append(command)
        raise OSError("no network")

    drive, _, _ = live(send)
    drive.cycle()
    drive.cycle()
    assert len(calls) == 2 and "no network" in drive.report.trouble  # type: ignore[union-attr]


def test_it_keeps_its_pace_while_others_plan() -> None:
    """A worker that computes all the time, as a planner does, and hands over a plan after the other."""
    drive, watch, sent = live()
    over = threading.Event()

    def work() -> None:
        matrix = np.random.default_rng(0).normal(size=(200, 200))
        while not over.is_set():
            matrix = np.tanh(matrix @ matrix * 0.01)
            watch.planned(1.0, 2.0)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    drive.start(lambda error: None)
    time.sleep(1.0)
    over.set()
    worker.join(5)
    assert drive.close()
    gaps = np.diff([command.stamp_ns for command in sent[:-4]]) / NS
    # the median: how late a single cycle comes is for the machine to say, and for the lifetime of commands to bear
    assert np.median(gaps) == pytest.approx(LIMITS.period_s, rel=0.2) and len(gaps) > 10


def test_what_ends_the_thread_is_told() -> None:
    drive, watch, _ = live()
    told: list[BaseException] = []
    watch.verdict = None  # type: ignore[assignment,method-assign]
    drive.start(told.append)
    assert drive.close() and isinstance(told[0], TypeError)
