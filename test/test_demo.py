"""The demo as a newcomer runs it: a supervisor that brings nodes back and leaves none, a table, a report."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import psutil
import pytest
from rich.console import Console
from test_score import make_run

from thinkjepa_ros.demo.bench_graph import Phases, measure
from thinkjepa_ros.demo.report import account, make_report
from thinkjepa_ros.demo.run import DemoError, demo, open_source, ros_arguments
from thinkjepa_ros.demo.supervisor import Child, Supervisor
from thinkjepa_ros.demo.table import LiveView, line, render

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[1]
NS = 1_000_000_000

SLEEPER = "import time\nprint('here', flush=True)\ntime.sleep(600)\n"
STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\ntime.sleep(600)\n"
)
SHORT = "import sys\nprint('I can not work', file=sys.stderr)\nsys.exit(3)\n"


@pytest.fixture
def modules(tmp_path):
    """Modules for `python -m`, and the environment in which they are found."""
    for name, text in (("sleeper", SLEEPER), ("stubborn", STUBBORN), ("short", SHORT)):
        (tmp_path / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def until(condition, what, timeout_s=30.0, turn=lambda: None):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        turn()
        time.sleep(0.02)


def lives(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_child_comes_back_and_waits_longer_each_time(modules):
    events, heard = [], []
    with Supervisor(modules, events.append) as supervisor:
        child = Child("node", "sleeper", on_line=heard.append)
        supervisor.start(child)
        for expected_wait in (1.0, 2.0):
            until(lambda: heard, "its first words")
            first, began = child.pid, time.monotonic()
            heard.clear()
            os.kill(first, signal.SIGKILL)
            until(lambda first=first: child.alive and child.pid != first, "another process", turn=supervisor.look_after)
            assert expected_wait <= time.monotonic() - began < expected_wait + 5
        assert child.deaths == 2
        last = child.pid
    assert not lives(last)
    assert events[0] == "node was killed by SIGKILL; it starts again in 1 s" and "in 2 s" in events[2]


def test_a_child_that_need_not_live_is_not_started_again(modules, tmp_path):
    with Supervisor(modules) as supervisor:
        child = Child("node", "short", keep=False, log=tmp_path / "node.log")
        supervisor.start(child)
        until(lambda: child.status is not None, "its end", turn=supervisor.look_after)
        time.sleep(1.2)
        supervisor.look_after()
        assert child.status == 3 and child.deaths == 0 and child.tail() == "I can not work"


def test_a_child_that_ignores_signals_is_killed_with_all_it_started(modules):
    heard = []
    supervisor = Supervisor(modules)
    supervisor.start(Child("stubborn", "stubborn", on_line=heard.append))
    supervisor.start(Child("node", "sleeper"))
    until(lambda: heard, "its first words")
    began = time.monotonic()
    assert supervisor.stop(step_s=0.5) is False
    assert 0.9 < time.monotonic() - began < 5
    until(lambda: not lives(int(heard[0])), "the end of the grandchild", 5)
    assert not any(child.alive for child in supervisor.children.values())


def test_even_a_killed_supervisor_leaves_no_orphan(modules, tmp_path):
    script = (
        "import os, sys, time\n"
        "from thinkjepa_ros.demo.supervisor import Child, Supervisor\n"
        "supervisor = Supervisor(os.environ)\n"
        "children = [Child(f'n{i}', 'sleeper') for i in range(3)]\n"
        "[supervisor.start(child) for child in children]\n"
        "print(*[child.pid for child in children], flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=modules, cwd=ROOT)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 3 and all(map(lives, pids))
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not any(map(lives, pids)), "the end of the children", 5)


# ---- table and report


def told(**changes):
    status = {
        "state": 5, "words": "running", "model_id": "mini", "trained": True, "received": 300, "used": 240,
        "superseded": 58, "refused": 1, "pending": 1, "rate_hz": 24.0, "latency_p50_s": 0.03, "latency_p99_s": 0.09,
        "reasons": {"bad_image": 1}, "last_error": "",
    }  # fmt: skip
    thinker = {**status, "model_id": "tiny (untrained)", "trained": False, "rate_hz": 1.0}
    thought = {"text": "the red cube", "sequence": 7, "trained": False, "epoch": 1}
    return {
        "t": 12.0, "images": 300, "forecasts": 240, "rate_hz": 24.2, "latency_s": {"p50": 0.034, "p99": 0.088},
        "statuses": {"predictor": status, "thinker": thinker}, "weight": 0.8, "age_s": 1.24, "domain": "simulation",
        "thought": thought, **changes,
    }  # fmt: skip


def shown(renderable, width=120):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_says_everything():
    text = shown(render(told(), "cue_reach", ["thinker was killed by SIGKILL"]))
    for words in (
        "cue_reach", "predictor", "running", "24.2 per second", "34 ms (p50), 88 ms (p99)", "300",
        "240", "58", "mini trained on simulation",
        "tiny untrained", "weight 0.80", "1.2 s old", "#7 (untrained thinker) the red cube", "1 x bad_image",
        "thinker was killed by SIGKILL", "Ctrl-C",
    ):  # fmt: skip
        assert words in text, words
    narrow = shown(render(told(), "cue_reach", []), 80)
    assert all(f"{key} " in narrow for key in ("received", "used", "superseded", "refused", "pending", "latency"))
    for partial in ({}, {"t": 1.0}, told(latency_s=None, weight=None, age_s=None, thought=None, statuses={})):
        assert "not there yet" in shown(render(partial, "x", [])) and line(partial)
    assert "unguided" in shown(render(told(weight=0.0, age_s=None), "x", []))


def test_plain_lines_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=80)
    with LiveView("cue_reach", console) as view:
        for _ in range(5):
            view.update(told())
        view.event("thinker has been started again")
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3, "at most one line every two seconds"
    assert lines[0] == "cue_reach" and lines[2] == "thinker has been started again"
    assert "predictor [running] 24.2 Hz, received 300 used 240 superseded 58 refused 1 pending 1" in lines[1]


def test_accounts():
    status = told()["statuses"]["predictor"]
    assert account(status).endswith("1 pending: adds up (refused: 1 x bad_image)")
    assert "DOES NOT ADD UP (301)" in account({**status, "used": 241})


def pictured(**changes):
    run = make_run(**changes)
    jpeg = cv2.imencode(".jpg", 120 + 0 * cv2.UMat(240, 320, cv2.CV_8UC3).get())[1].tobytes()
    run.pictures, run.picture_ns = [jpeg] * len(run), run.stamp_ns
    status = told()["statuses"]
    run.words = {
        "statuses": status, "thoughts": [], "forecasts": len(run), "images": 90, "rate_hz": 10.0,
        "latency_s": {"p50": 0.02, "p99": 0.02, "max": 0.02},
    }  # fmt: skip
    return run


def test_report_with_truth(tmp_path):
    report = make_report(pictured(), tmp_path, "by hand")
    text = (tmp_path / "report.txt").read_text()
    assert text.splitlines() == report.lines
    for words in (
        "predictor: mini, trained on simulation", "thinker: tiny, UNTRAINED", "30 from 300 images", "adds up",
        "moving hand", "resting hand", "the model: its error is smaller than that of hold", "constant velocity",
        "joints now, from the images alone: 0.0",
    ):  # fmt: skip
        assert words in text, words
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["errors_m"]["all joints"]["model"]["ade"][0] == pytest.approx(0.03, abs=1e-4)
    assert numbers["errors_m"]["moving hand"]["hold"]["fde"][0] == pytest.approx(0.16, abs=1e-3)
    sheet = cv2.imread(str(report.files["picture"]))
    assert sheet.shape[1] > 1900
    film = cv2.VideoCapture(str(report.files["film"]))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 30 and film.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    film.release()


def test_report_without_truth_or_calibration_or_forecasts(tmp_path):
    run = pictured(camera=None, metric=False)
    run.truth_ns, run.truth = run.truth_ns[:0], run.truth[:0, :0]
    report = make_report(run, tmp_path / "a", poses=("/hand_keypoints",))
    text = "\n".join(report.lines)
    assert "no error can be computed: this recording has no joint truth" in text
    assert "/hand_keypoints" in text and "this release does not score them" in text
    assert "not calibrated" in text and "picture: none" in text  # without the model's camera nothing can be projected
    nothing = {
        name: getattr(run, name)[:0]
        for name in ("stamp_ns", "receipt_ns", "positions", "sigma", "present", "weight", "age_s", "surprise", "epoch")
    }
    run.__dict__.update(nothing)
    run.words = {"statuses": told()["statuses"], "thoughts": []}
    report = make_report(run, tmp_path / "b")
    assert "forecasts: none" in report.lines and not {"picture", "film"} & set(report.files)


def test_bench_figures_by_hand():
    run = pictured(count=200, truth_count=10)
    run.receipt_ns = run.stamp_ns + 40_000_000
    run.receipt_ns[60:] += 15_000_000  # from here on there is a thinker
    killed = int(run.receipt_ns[150]) + 10_000_000
    run.receipt_ns[151:] += 250_000_000  # a gap of 350 ms right after the kill
    first = int(run.receipt_ns[0])
    phases = Phases((first - 1, first + 5 * NS + 1), (int(run.receipt_ns[100]) - 1, killed), killed)
    thoughts = [{"stamp_ns": phases.busy[0] + i * NS // 2, "delay_s": 0.5, "epoch": 4} for i in range(-5, 10)]
    run.words["thoughts"] = [*thoughts, {"stamp_ns": killed + 2 * NS, "delay_s": 0.5, "epoch": 5}]
    figures = measure(run, phases)
    numbers = figures.numbers
    alone, busy = numbers["alone"], numbers["busy"]
    assert alone["hz"] == pytest.approx(10.0) and alone["p50_s"] == pytest.approx(0.04) and alone["count"] == 51
    assert busy["hz"] == pytest.approx(10.0) and busy["p99_s"] == pytest.approx(0.055) and busy["count"] == 51
    assert numbers["rate_kept"] == pytest.approx(1.0)
    assert numbers["thoughts_hz"] == pytest.approx(2.0) and numbers["thought_age_p50_s"] == pytest.approx(0.5)
    assert numbers["gap_at_kill_s"] == pytest.approx(0.35) and numbers["guidance_back_s"] == pytest.approx(2.5)
    verdicts = {what: held for what, _, _, held in figures.lines}
    assert verdicts["forecasts per second, while it thinks"] is False  # 15 are wanted
    assert verdicts["share of the rate that is kept"] is True
    assert verdicts["age of a forecast, p50"] is True
    assert verdicts["longest gap when the thinker is killed"] is False
    slow = Phases(phases.alone, (phases.busy[0], killed + NS), killed)
    assert measure(run, slow).numbers["rate_kept"] < 0.97
    with pytest.raises(DemoError, match="only 0 forecasts came before there was a thinker"):
        measure(run, Phases((0, 1), phases.busy, killed))
    with pytest.raises(DemoError, match="only 5 forecasts came while it thought"):
        measure(run, Phases(phases.alone, (int(run.receipt_ns[0]) - 1, int(run.receipt_ns[5])), killed))


# ---- the whole thing


def test_a_wrong_recording_ends_with_a_sentence(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    assert demo(tmp_path / "none", tmp_path / "out", console=console) == 1
    assert "none does not exist; give the folder of a recording" in console.file.getvalue()
    with pytest.raises(DemoError, match="does not exist"):
        open_source(tmp_path / "none")


def test_values_reach_the_nodes_as_they_are():
    arguments = ros_arguments({"/a": "/b"}, bag="/my bags/a: b #1", loop=True, n=3, rate=2.0)
    assert arguments == [
        "--ros-args", "-p", 'bag:="/my bags/a: b #1"', "-p", "loop:=true", "-p", "n:=3", "-p", "rate:=2.0",
        "-r", "/a:=/b",
    ]  # fmt: skip


class Demo:
    """`thinkjepa demo` as a process, and every process it has ever had."""

    def __init__(self, out, model, bag, *arguments):
        self.out = out
        code = f"""
from pathlib import Path
from thinkjepa_ros.demo.run import demo
raise SystemExit(demo(Path({str(bag)!r}), Path({str(out)!r}), model={str(model)!r}, {", ".join(arguments)}))
"""
        out.mkdir(parents=True)
        self._output = (out / "output.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=self._output, stderr=subprocess.STDOUT, cwd=ROOT
        )
        self.seen = {}

    def look(self):
        for child in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []:
            self.seen[child.pid] = child

    @property
    def output(self):
        return (self.out / "output.txt").read_text()

    def wait(self, condition, what, timeout_s=90.0):
        until(lambda: condition() or self.process.poll() is not None, f"{what}; {self.output}", timeout_s, self.look)
        assert condition(), f"{what}; {self.output}"

    def end(self, timeout_s=60.0):
        try:
            status = self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self._output.close()
        until(lambda: not any(child.is_running() for child in self.seen.values()), "the end of all its processes", 5)
        return status


@pytest.fixture
def cue_reach():
    bag = ROOT / "models" / "demo" / "cue_reach"
    if not bag.is_dir():
        pytest.skip(f"no recording at {bag}; it is made by `thinkjepa data bag`")
    return bag


def counts(report):
    return json.loads((report / "report.json").read_text())


def test_demo_from_start_to_picture(tmp_path, small_model, cue_reach):
    run = Demo(tmp_path / "out", small_model, cue_reach, "seconds=6.0")
    run.wait(lambda: "predictor [running]" in run.output, "a running predictor")
    assert run.end() == 0, run.output
    assert len(run.seen) == 4, "player, predictor, thinker, evaluator"
    numbers = counts(run.out)
    assert numbers["forecasts"] > 10 and numbers["thoughts"] >= 1 and numbers["guided_share"] > 0
    for status in numbers["accounts"].values():
        assert status["received"] == sum(status[key] for key in ("used", "superseded", "refused", "pending")) > 0
    assert 0 < numbers["latency_s"]["p50"] < 2.0
    for words in ("UNTRAINED", "adds up", "ADE behind the model", "picture: ", "film: "):
        assert words in run.output, words
    assert cv2.imread(str(run.out / "forecast.png")) is not None
    assert f"picture: {run.out / 'forecast.png'}" in run.output


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_still_reports(tmp_path, small_model, cue_reach):
    run = Demo(tmp_path / "out", small_model, cue_reach, "loop=True", "record_video=False")
    run.wait(lambda: "predictor [running]" in run.output, "a running predictor")
    thinker = next(child for child in run.seen.values() if "thinkjepa_ros.nodes.thinker" in child.cmdline())
    thinker.kill()
    run.wait(lambda: "thinker has been started again" in run.output, "another thinker")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 0, run.output
    assert "Traceback" not in run.output
    assert counts(run.out)["forecasts"] > 0 and (run.out / "forecast.png").is_file()


def test_a_killed_demo_leaves_no_orphan(tmp_path, small_model, cue_reach):
    run = Demo(tmp_path / "out", small_model, cue_reach, "loop=True")
    run.wait(lambda: len(run.seen) == 4, "all processes")
    run.process.kill()
    run.end(5.0)


def test_a_model_that_can_not_be_loaded_ends_the_demo(tmp_path, cue_reach):
    run = Demo(tmp_path / "out", tmp_path / "no_model", cue_reach)
    assert run.end(90.0) == 1
    assert "the predictor does not work" in run.output and "no_model" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g1_pick_40", "g1_pick_25", "human_hand"])
def test_demo_on_real_recordings(tmp_path, small_model, shared, name):
    """mcap and sqlite3, with and without calibration: rates and pictures, no error, and said why."""
    thinker = "thinker=True" if name == "g1_pick_40" else "thinker=False"  # two of the three without, to be quicker
    run = Demo(tmp_path / "out", small_model, shared / "data" / name, "seconds=4.0", "record_video=False", thinker)
    run.wait(lambda: "predictor [running]" in run.output, "a running predictor")
    assert run.end() == 0, run.output
    assert "no error can be computed: this recording has no joint truth" in run.output
    assert ("/hand_keypoints" in run.output) == name.startswith("g1")
    assert ("not calibrated" in run.output) == (name == "human_hand")
    assert cv2.imread(str(run.out / "forecast.png")) is not None
