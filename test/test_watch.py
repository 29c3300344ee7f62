"""The watchdog: every stale, missing or impossible input stops the robot in the promised time, with its reason."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from guard_kit import BOX, NS, Inspector
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from thinkjepa_ros.control.guard import Guard
from thinkjepa_ros.control.limits import Limits, State
from thinkjepa_ros.control.watch import Cause, Input, Timeouts, Watch

TIMES = Timeouts(image_s=0.5, state_s=0.2, guidance_s=4.0, plan_s=0.6, future_s=0.05, margin=0.1)


class Clock:
    def __init__(self) -> None:
        self.ns = 50 * NS

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * NS)


def ready(times: Timeouts = TIMES) -> tuple[Watch, Clock]:
    """A watch that lets the robot move."""
    clock = Clock()
    watch = Watch(times, clock)
    feed(watch)
    assert watch.enable() == "" and watch.verdict().may_move
    return watch, clock


def feed(watch: Watch, but: Input | None = None) -> None:
    for what in (Input.IMAGE, Input.STATE, Input.GUIDANCE):
        if what is not but:
            watch.saw(what)
    if but is not Input.PLAN:
        watch.planned(1.0, 2.0)


def causes(watch: Watch) -> set[tuple[Cause, Input | None]]:
    return {(halt.cause, halt.input) for halt in watch.verdict().halts}


def test_it_begins_disabled_with_nothing_received() -> None:
    watch = Watch(TIMES, Clock())
    assert causes(watch) == {(Cause.DISABLED, None), *((Cause.NEVER, what) for what in Input)}
    assert "no image has come yet" in watch.verdict().words and not watch.verdict().may_move
    assert all(math.isnan(age) for age in watch.verdict().ages_s.values())
    feed(watch)
    assert causes(watch) == {(Cause.DISABLED, None)}
    assert watch.enable() == "" and watch.verdict().may_move and watch.verdict().words == ""
    watch.disable()
    assert causes(watch) == {(Cause.DISABLED, None)}


@pytest.mark.parametrize("what", list(Input))
def test_each_input_stops_the_robot_when_it_gets_stale_and_only_then(what: Input) -> None:
    watch, clock = ready()
    most = TIMES.of(what)
    assert most is not None
    for _ in range(40):
        clock.wait(most / 40)
        feed(watch, but=what)
        assert watch.verdict().may_move
    clock.wait(1e-6)
    feed(watch, but=what)
    assert causes(watch) == {(Cause.STALE, what)}
    assert watch.verdict().ages_s[what] == pytest.approx(most, abs=1e-5)
    assert f"the {what.value} is {most:.2f} s old" in watch.verdict().words
    feed(watch)
    assert watch.verdict().may_move  # fresh again


@pytest.mark.parametrize("what", list(Input))
def test_the_age_counts_from_the_stamp_not_from_the_arrival(what: Input) -> None:
    watch, clock = ready()
    most = TIMES.of(what)
    assert most is not None
    clock.wait(most + 0.01)
    feed(watch, but=what)
    watch.saw(what, most + 0.005)  # delivered now, but old
    assert causes(watch) == {(Cause.STALE, what)}
    watch.saw(what, 0.0)
    watch.saw(what, 1000.0)  # an old one that comes late
    assert watch.verdict().may_move and watch.verdict().ages_s[what] == 0.0


@pytest.mark.parametrize("what, age", list(product(Input, (-0.06, -1e300, -math.inf, math.inf, math.nan))))
def test_a_stamp_from_the_future_stops_until_a_good_one_comes(what: Input, age: float) -> None:
    watch, _ = ready()
    watch.saw(what, -0.04)  # the clocks of two machines
    assert watch.verdict().may_move
    watch.saw(what, age)
    assert causes(watch) == {(Cause.FUTURE, what)} and "set the clocks right" in watch.verdict().words
    watch.saw(what)
    assert watch.verdict().may_move


def test_a_clock_that_goes_back_stops_until_everything_is_new() -> None:
    for noticed_by in ("verdict", "input"):
        watch, clock = ready()
        clock.wait(-0.25)
        if noticed_by == "input":
            watch.saw(Input.STATE)
        everything = {(Cause.CLOCK, None), *((Cause.NEVER, what) for what in Input)}
        assert causes(watch) == everything - ({(Cause.NEVER, Input.STATE)} if noticed_by == "input" else set())
        assert "went back by 0.250 s" in watch.verdict().words
        feed(watch)
        assert watch.verdict().may_move
        watch.forget()  # of one's own will: no fault
        assert causes(watch) == {(Cause.NEVER, what) for what in Input}


@pytest.mark.parametrize(
    "energy, hold, cause",
    [
        (1.0, 1.11, None),
        (1.0, 1.09, Cause.HOLD_IS_BETTER),
        (1.0, 1.0, Cause.HOLD_IS_BETTER),
        (2.0, 1.0, Cause.HOLD_IS_BETTER),
        (math.nan, 1.0, Cause.NOT_FINITE),
        (1.0, math.nan, Cause.NOT_FINITE),
        (-math.inf, 1.0, Cause.NOT_FINITE),
        (1.0, math.inf, Cause.NOT_FINITE),
    ],
)
def test_a_plan_must_beat_holding_still(energy: float, hold: float, cause: Cause | None) -> None:
    watch, _ = ready()
    watch.planned(energy, hold)
    assert causes(watch) == ({(cause, None)} if cause else set())
    assert watch.verdict().ask_thinker == (cause is not None)
    watch.planned(0.0, 9.0, age_s=0.3)  # an older plan changes nothing
    assert watch.verdict().ask_thinker == (cause is not None)
    pure_policy, _ = ready(replace(TIMES, margin=None))
    pure_policy.planned(energy, hold)
    assert pure_policy.verdict().may_move


def test_the_emergency_stop_latches_and_a_reset_does_not_start_the_robot() -> None:
    watch, _ = ready()
    watch.emergency_stop()
    assert causes(watch) == {(Cause.EMERGENCY_STOP, None), (Cause.DISABLED, None)}
    assert "latched" in watch.enable() and "still pressed" in watch.reset()
    watch.emergency_stop(False)
    assert (Cause.EMERGENCY_STOP, None) in causes(watch) and "latched; call reset" in watch.verdict().words
    assert "latched" in watch.enable()
    assert watch.reset() == "" and causes(watch) == {(Cause.DISABLED, None)}
    assert watch.enable() == "" and watch.verdict().may_move
    watch.emergency_stop(False)  # a button that reports itself released
    assert watch.verdict().may_move


def test_without_a_thinker_guidance_is_not_needed() -> None:
    clock = Clock()
    watch = Watch(replace(TIMES, guidance_s=None), clock)
    feed(watch, but=Input.GUIDANCE)
    watch.enable()
    assert watch.verdict().may_move


def test_all_reasons_are_told_at_once() -> None:
    watch, clock = ready()
    watch.planned(2.0, 1.0)
    watch.saw(Input.IMAGE, -1.0)
    clock.wait(0.55)
    watch.emergency_stop()
    assert causes(watch) == {
        (Cause.EMERGENCY_STOP, None), (Cause.DISABLED, None), (Cause.FUTURE, Input.IMAGE), (Cause.STALE, Input.IMAGE),
        (Cause.STALE, Input.STATE), (Cause.HOLD_IS_BETTER, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image_s": 0}, "image_s must be a finite number of seconds above 0, not 0"),
        ({"state_s": None}, "state_s must be a finite number of seconds above 0, not None"),
        ({"guidance_s": math.nan}, "guidance_s must be a finite number of seconds above 0, not nan"),
        ({"plan_s": "1"}, "plan_s must be a finite number of seconds above 0, not '1'"),
        ({"future_s": -0.1}, "future_s must be a finite number, at least 0, not -0.1"),
        ({"margin": math.inf}, "margin must be a finite number, at least 0, not inf"),
        ({"plan_s": True}, "plan_s must be a finite number of seconds above 0, not True"),
    ],
)
def test_timeouts_that_mean_nothing_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TIMES, **change)


LIMITS = Limits(*BOX)


@pytest.mark.parametrize("fault", ["image", "state", "guidance", "plan", "emergency", "disable", "energy", "clock"])
def test_every_fault_brings_the_moving_arm_to_rest_in_the_promised_time(fault: str) -> None:
    """Watch and guard together: rest at most stop_timeout_s after the timeout of the input (now, for the others)."""
    watch, clock = ready(replace(TIMES, guidance_s=1.0))
    guard, inspector, point = Guard(LIMITS), Inspector(LIMITS), (0.0, 0.4, 0.25)
    speeds: list[tuple[float, float]] = []
    begin, seen = 0, clock.ns
    for k in range(60):
        clock.wait(LIMITS.period_s)
        if k == 10:
            begin = clock.ns - round(LIMITS.period_s * NS)  # when the last input came
            {"emergency": watch.emergency_stop, "disable": watch.disable, "clock": lambda: clock.wait(-0.3)}.get(
                fault, int
            )()
            begin = min(begin, clock.ns)
        off = Input(fault) if k >= 10 and fault in {what.value for what in Input} else None
        if fault != "clock" or k < 10:
            feed(watch, but=off)
        if fault == "energy" and k >= 10:
            watch.planned(3.0, 2.0)
        seen = seen if off is Input.STATE else clock.ns
        verdict, state = watch.verdict(), State(point, 0.5, seen)
        wish = (0.28, 0.0, 0.0) if k // 4 % 2 else (-0.28, 0.0, 0.0)
        command = guard.command(wish, 0.5, state, clock.ns, stop=not verdict.may_move)
        inspector.look(command, wish, 0.5, state, clock.ns, not verdict.may_move)
        speeds.append(((clock.ns - begin) / NS if k >= 10 else -1, math.hypot(*command.velocity)))
    times = {"image": 0.5, "state": 0.2, "guidance": 1.0, "plan": 0.6}
    promised = times.get(fault, LIMITS.period_s) + LIMITS.period_s + LIMITS.stop_timeout_s
    assert max(speed for at, speed in speeds if at < 0) > 0.2
    assert all(speed == 0 for at, speed in speeds if at > promised)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: motion needs everything, and every missing thing has its reason."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.watch = Watch(TIMES, self.clock)
        self.good_ns: dict[Input, int] = {}
        self.enabled = self.latched = self.pressed = False

    @rule(what=st.sampled_from(list(Input)), age=st.floats(0, 3))
    def arrives(self, what: Input, age: float) -> None:
        self.watch.planned(1.0, 2.0, age) if what is Input.PLAN else self.watch.saw(what, age)
        self.good_ns[what] = max(self.good_ns.get(what, 0), self.clock.ns - int(age * NS))

    @rule(seconds=st.floats(0, 1))
    def waits(self, seconds: float) -> None:
        self.clock.wait(seconds)

    @rule(back=st.integers(1, NS))
    def clock_goes_back(self, back: int) -> None:
        self.clock.ns -= back
        self.good_ns = {}

    @rule()
    def everything_comes(self) -> None:
        feed(self.watch)
        self.good_ns = dict.fromkeys(Input, self.clock.ns)

    @rule()
    def enable(self) -> None:
        self.enabled |= self.watch.enable() == ""

    @rule(pressed=st.booleans())
    def button(self, pressed: bool) -> None:
        self.watch.emergency_stop(pressed)
        self.pressed, self.latched, self.enabled = pressed, self.latched or pressed, self.enabled and not pressed

    @rule()
    def reset(self) -> None:
        self.latched &= self.watch.reset() != ""

    @invariant()
    def motion_needs_everything(self) -> None:
        verdict = self.watch.verdict()
        fresh = {what for what, at in self.good_ns.items() if self.clock.ns - at <= (TIMES.of(what) or 0) * NS}
        assert verdict.may_move == (self.enabled and not self.latched and fresh == set(Input))
        assert {halt.input for halt in verdict.halts if halt.input} == set(Input) - fresh
        assert all(halt.words in verdict.words for halt in verdict.halts)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_many_threads_may_use_it() -> None:
    watch, stop, broken = Watch(TIMES), threading.Event(), []

    def use() -> None:
        try:
            while not stop.is_set():
                feed(watch)
                if (verdict := watch.verdict()).halts and verdict.halts[0].cause is not Cause.DISABLED:
                    broken.append(verdict)
        except Exception as error:
            broken.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert not broken
