"""The demo of control: a robot does its tasks under real processes, somebody watches, and what there is stays."""

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
import numpy as np
import pytest
from rich.console import Console

from thinkjepa_ros.demo.control import demo_control, find_weights, line, render, report
from thinkjepa_ros.demo.run import DemoError
from thinkjepa_ros.evaluation.draw_plan import WIDTH, draw_control, way
from thinkjepa_ros.evaluation.film import Film, FilmError
from thinkjepa_ros.values import Camera, Plan

TEST = Path(__file__).parent
NS = 1_000_000_000


def plan(source="planner", steps=5) -> Plan:
    actions = np.zeros((steps, 4), np.float32)
    actions[:, 0] = 0.05
    return Plan(actions, 0.4, 0.7, np.array([0.4], np.float32), source, 10 * NS, 0.2)


def said(**changes):
    outcome = {"kind": "reach", "seed": 3, "epoch": 1, "success": True, "error_m": 0.021, "actions": 7,
               "most_actions": 20, "done_after": 7, "time_s": 2.0}  # fmt: skip
    planned = {"source": "both", "energy": 0.41, "hold_energy": None, "planning_s": 0.052, "guidance_age_s": None,
               "model_id": "m", "domain": "simulation", "trained": False}  # fmt: skip
    result = {**outcome, "seconds": 3.0, "plans": 15, "pace": 1.0, "timed_out": False}
    return {"t": 3.5, "doing": "running", "task": "reach:3", "tasks": 2, "outcome": outcome, "plan": planned,
            "plans": 9, "images": 90, "thought": "the red cube",
            "nodes": {"controller": {"words": "running", "state": 5}}, "results": [result], **changes}  # fmt: skip


# ---- what is shown


def test_what_is_left_of_a_plan_begins_where_the_gripper_is():
    here = np.array([0.0, 0.4, 0.1])
    assert np.allclose(way(plan(), here, 10 * NS)[:, 0], 0.05 * np.arange(6))
    half = way(plan(), here, 10 * NS + NS // 10)
    assert np.allclose(half[:, 0], [0, 0.025, 0.075, 0.125, 0.175, 0.225])
    assert np.allclose(way(plan(), here, 12 * NS), here), "nothing is left of it"


def test_the_plan_lies_where_it_leads_and_words_are_large():
    camera = Camera(128, 128, 106.5, 106.5, 63.5, 63.5)
    pose = np.eye(4)  # the camera looks along z of the base
    rgb, point = np.full((128, 128, 3), 90, np.uint8), np.array([-0.1, 0.0, 0.6])
    drawn = [
        draw_control(rgb, camera, pose, point, shown, 10 * NS, ["reach:3", "action 1 of 20"])
        for shown in (None, plan(), plan("hold"))
    ]
    assert all(d.shape == (WIDTH, WIDTH, 3) for d in drawn) and (rgb == 90).all()
    end = camera.project(np.array([[0.15, 0.0, 0.6]]))[0] * WIDTH / 128
    box = np.s_[int(end[1]) - 8 : int(end[1]) + 8, int(end[0]) - 8 : int(end[0]) + 8]
    assert np.abs(drawn[1][box].astype(int) - drawn[0][box]).max() > 80
    assert drawn[1][box][..., 0].max() > drawn[2][box][..., 0].max(), "orange, and grey where it stays"
    goal = np.full((64, 64, 3), (10, 20, 250), np.uint8)
    corner = draw_control(rgb, camera, pose, point, None, 0, goal=goal)[60:80, 60:80]
    assert (corner == goal[0, 0]).all(), "the goal image"
    loud = draw_control(rgb, camera, pose, point, None, 0, banner="UNTRAINED imagination and policy")
    changed = np.abs(loud.astype(int) - draw_control(rgb, camera, pose, point, None, 0)).max(-1) > 60
    rows, columns = np.nonzero(changed)
    assert np.ptp(columns) > 0.6 * WIDTH and np.ptp(rows) > 0.04 * WIDTH


def test_a_film_is_whole_or_not_there(tmp_path):
    path = tmp_path / "f" / "film.mp4"
    film = Film(path, 10.0)
    for k in range(5):
        film.add(np.full((48, 64, 3), 40 * k, np.uint8), times=2)
        assert not path.exists()
    film.add(np.zeros((96, 128, 3), np.uint8))
    film.close()
    film.discard()
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 11 and reader.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    reader.release()
    other = Film(tmp_path / "g" / "film.mp4", 10.0)
    other.add(np.zeros((48, 64, 3), np.uint8))
    other.discard()
    assert list((tmp_path / "g").iterdir()) == []
    with pytest.raises(FilmError, match="no frame"):
        Film(tmp_path / "film.mp4", 10.0).close()


def test_the_table_says_what_happens_and_what_is_untrained():
    console = Console(width=100, file=io.StringIO())
    console.print(render(said(), "control", ["live picture: there"]))
    text = console.file.getvalue()
    for words in (
        "reach:3",
        "action 7 of 20",
        "2.1 cm",
        "both in 52 ms",
        "UNTRAINED",
        "the red cube",
        "live picture",
        "done",
    ):
        assert words in text, text
    plain = line(said())
    assert "running" in plain and "UNTRAINED" in plain and "2.1 cm" in plain
    assert line({}) and line(said(plan={}, outcome={}, doing="resetting"))
    console.print(render({}, "control", []))


def test_the_report_names_failures_and_a_slow_machine(tmp_path):
    good, late = said()["results"][0], {**said()["results"][0], "success": False, "done_after": None, "pace": 0.5}
    lines = report([good, late], tmp_path, "UNTRAINED policy")
    assert lines[0].startswith("UNTRAINED policy") and "done after 7 actions" in lines[1] and "too slow" not in lines[1]
    assert "not done" in lines[2] and "0.50 of real time" in lines[2] and len(lines) == 3


def test_without_weights_there_is_a_sentence_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("thinkjepa_ros.demo.control.SHIPPED", Path("models", "not_there"))
    with pytest.raises(DemoError, match="--imagination FOLDER"):
        find_weights(None, None)
    with pytest.raises(DemoError, match=r"--imagination: .*no such folder"):
        find_weights(tmp_path / "none", None)
    console = Console(file=io.StringIO(), width=200)
    assert demo_control(out=tmp_path / "out", console=console) == 1
    assert "thinkjepa train world" in console.file.getvalue() and not (tmp_path / "out").exists()


# ---- with processes


@pytest.fixture
def commander(monkeypatch):
    """The module of a controller that knows what to do."""
    pytest.importorskip("mujoco")
    monkeypatch.setenv("PYTHONPATH", str(TEST))
    return "scripted_commander"


@pytest.mark.slow
@pytest.mark.alone
def test_a_robot_reaches_and_picks_and_places_while_somebody_watches(tmp_path, commander):
    console = Console(file=io.StringIO(), width=250)
    assert demo_control(out=tmp_path, thinker=None, controller=commander, controlling={}, console=console) == 0
    text = console.file.getvalue()
    results = json.loads((tmp_path / "result.json").read_text())["results"]
    assert [r["success"] for r in results] == [True, True], text
    assert [r["kind"] for r in results] == ["reach", "pick_place_text"] and all(r["plans"] > 5 for r in results)
    assert "live.jpg" in text and "done after" in text
    last = cv2.imread(str(tmp_path / "last.png"))
    assert last.shape == (WIDTH, WIDTH, 3) and cv2.imread(str(tmp_path / "live.jpg")).shape == last.shape
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    seconds = film.get(cv2.CAP_PROP_FRAME_COUNT) / film.get(cv2.CAP_PROP_FPS)
    film.release()
    assert seconds == pytest.approx(sum(r["seconds"] + 1.0 for r in results), rel=0.25), "at the speed it happened"


@pytest.mark.slow
@pytest.mark.alone
def test_ctrl_c_keeps_the_film_so_far_and_leaves_no_process(tmp_path, commander):
    script = (
        "import sys\nfrom pathlib import Path\nfrom thinkjepa_ros.demo.control import demo_control\n"
        f"sys.exit(demo_control(out=Path({str(tmp_path)!r}), thinker=None, controller={commander!r}, controlling={{}}))"
    )
    demo = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / ".film.part.mp4").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2.0)
        demo.send_signal(signal.SIGINT)
        text = demo.communicate(timeout=40)[0]
    finally:
        demo.kill()
    assert demo.returncode == 0 and "stopped after" in text, text
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.read()[0] and film.get(cv2.CAP_PROP_FRAME_COUNT) > 5
    film.release()
    assert (tmp_path / "last.png").is_file() and (tmp_path / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.alone
def test_a_controller_that_does_not_stay_alive_is_named(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("raise SystemExit('I have no model')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    console = Console(file=io.StringIO(), width=250)
    assert demo_control(out=tmp_path, thinker=None, controller="dying", controlling={}, console=console) == 1
    assert "controller does not stay alive" in console.file.getvalue() and "I have no model" in console.file.getvalue()
