"""The simulator: deterministic, its truth agrees with its images, and its files do not depend on how they were made."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("mujoco") is None:  # not importorskip: the scene must choose the renderer before mujoco is imported
    pytest.skip("the simulator needs mujoco: pip install mujoco", allow_module_level=True)

from thinkjepa_ros.data.episode import JOINT_NAMES, PHASES, Episode, EpisodeError, list_episodes
from thinkjepa_ros.data.sim import generate
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, TRAYS
from thinkjepa_ros.data.sim.play import Player, make_episode
from thinkjepa_ros.data.sim.scene import Scene
from thinkjepa_ros.data.sim.script import DISTRACTOR_RGB, LAMP_RGB, MIX, SIM_SPLITS, draw, mixed_split

RATE = 6.0


@pytest.fixture(scope="module")
def episodes() -> dict[str, Episode]:
    return {split: make_episode(split, seed, rate_hz=RATE) for seed, split in enumerate(SIM_SPLITS, start=20)}


def test_an_episode_says_everything(episodes: dict[str, Episode]) -> None:
    for split, e in episodes.items():
        assert e.split == split and e.domain == "simulation" and e.joint_names == JOINT_NAMES
        assert e.frames[0].shape == (128, 128, 3)
        assert e.camera.fx == pytest.approx(64 / np.tan(np.radians(31))) and e.camera.cx == 63.5
        assert np.isfinite(e.joints).all()
        assert e.intent is not None and e.intent["cube"] in CUBE_COLOURS and e.intent["tray"] in TRAYS
        assert e.intent["class"] == 2 * CUBE_COLOURS.index(e.intent["cube"]) + TRAYS.index(e.intent["tray"])
        assert (
            np.all(np.diff(e.phases.astype(int)) >= 0)
            and e.phase(0) == "idle"
            and e.phase(-1) in ("transport", "place")
        )
        assert (e.cue_ns is not None) == (split in ("lamp", "distractor"))
        assert (PHASES.index("cue") in e.phases) == (e.cue_ns is not None)
        named = f"put the {e.intent['cube']} cube in the {e.intent['tray']} tray"
        assert (e.instruction == named) == (split == "text")
        assert bool(e.details["flashes"]) == (split == "distractor")
        # integrating the actions gives the states back
        assert np.allclose(e.states[0, :3] + e.actions[:, :3].sum(0), e.states[-1, :3], atol=1e-5)


def test_the_cube_ends_in_its_tray_and_the_others_stay(episodes: dict[str, Episode]) -> None:
    for split in SIM_SPLITS:
        script = draw(split, 31)
        with Scene(script.look, 64, 64) as scene:
            player = Player(script, scene)
            player.set(0.0)
            before = {c: scene.position(f"cube_{c}") for c in CUBE_COLOURS}
            player.set(script.time.end)
            for i, c in enumerate(CUBE_COLOURS):
                moved = scene.position(f"cube_{c}") - before[c]
                if i == script.cube:
                    gap = scene.position(f"cube_{c}")[:2] - script.look.tray_xy[script.tray]
                    assert np.abs(gap).max() < script.look.tray_half
                else:
                    assert np.abs(moved).max() == 0


def test_nothing_jumps() -> None:
    """Hands, cubes and camera move continuously, also across the borders of the phases."""
    for seed in range(2):
        script = draw("lamp", seed)
        with Scene(script.look, 64, 64) as scene:
            player = Player(script, scene)
            dt, last = 1 / 120, None
            for t in np.arange(0.0, script.time.end, dt):
                player.set(float(t))
                parts = [scene.joints(), np.stack([scene.position(f"cube_{c}") for c in CUBE_COLOURS])]
                now = np.concatenate([*parts, scene.camera_pose()[None, :3, 3]])
                if last is not None:
                    assert np.linalg.norm(now - last, axis=-1).max() / dt < 3.0, f"faster than 3 m/s at {t:.3f} s"
                last = now


def test_the_fingers_hold_the_cube() -> None:
    """While it is carried, thumb and fingers touch opposite sides: the cube's centre lies between the tips."""
    for seed in range(8):
        script = draw("lamp", seed)
        with Scene(script.look, 64, 64) as scene:
            player = Player(script, scene)
            player.set((script.time.transport + script.time.place) / 2)
            at = dict(zip(JOINT_NAMES, scene.joints(), strict=True))
            fingers = (at["right_index_tip"] + at["right_middle_tip"]) / 2
            cube = scene.position(f"cube_{CUBE_COLOURS[script.cube]}")
            assert np.linalg.norm((fingers + at["right_thumb_tip"]) / 2 - cube) < 2e-3
            gap = np.linalg.norm(fingers - at["right_thumb_tip"]) - 2 * script.look.cube_half
            assert 0.01 < gap < 0.03  # two finger radii


@pytest.mark.parametrize("seed", [1, 4, 9])
def test_joints_project_onto_their_hands(seed: int) -> None:
    """K, camera pose and joints agree with the image: visible joints fall on their own hand (within a pixel)."""
    script = draw("lamp", seed)
    hits = total = 0
    with Scene(script.look, 256, 256) as scene:
        player = Player(script, scene)
        for t in np.linspace(0.1, script.time.end, 9):
            player.set(float(t))
            bodies, pose = scene.segment(), scene.camera_pose()
            pixels = scene.camera.project((scene.joints() - pose[:3, 3]) @ pose[:3, :3])
            for name, pixel, seen in zip(JOINT_NAMES, pixels, scene.visible(), strict=True):
                x, y = np.round(pixel).astype(int) if np.isfinite(pixel).all() else (-1, -1)
                if not seen or not (0 <= x < 256 and 0 <= y < 256):
                    continue
                side = name.split("_")[0]
                total += 1
                near = bodies[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                hits += bool(np.isin(near, [f"{side}_hand", f"{side}_arm"]).any())
    assert total > 120 and hits / total > 0.99


def test_hidden_joints_are_marked() -> None:
    """A joint behind the other hand, the sleeve or a cube is not visible; joints outside of the image neither."""
    script = draw("lamp", 3)
    with Scene(script.look, 128, 128) as scene:
        player = Player(script, scene)
        player.set(0.2)
        tip = JOINT_NAMES.index("right_index_tip")
        assert scene.visible()[tip]
        head = scene.camera_pose()[:3, 3]
        target = scene.joints()[tip].astype(np.float64)
        scene.place("cube_red", head + 0.8 * (target - head))
        scene.update()
        assert not scene.visible()[tip]
        scene.place("cube_red", np.array([0.0, 0.0, -0.5]))
        scene.place("head", np.array([0.0, 3.0, 0.5]))
        scene.update()
        assert not scene.visible().any()


def test_the_lit_lamp_shows_its_colour() -> None:
    """Whatever the light in the room: of all lamp colours, the one that is meant is the nearest to the pixel."""
    named = LAMP_RGB | DISTRACTOR_RGB
    directions = np.array(list(named.values()))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for seed in range(5):
        script = draw("distractor", seed)
        assert script.cue is not None
        with Scene(script.look, 128, 128) as scene:
            player = Player(script, scene)
            for flash in (script.cue, *script.distractors):
                player.set((flash.on + flash.off) / 2)
                pose = scene.camera_pose()
                for k, side in enumerate(TRAYS):
                    where = scene.data.geom(f"lamp_{side}").xpos
                    x, y = np.round(scene.camera.project((where - pose[:3, 3]) @ pose[:3, :3])).astype(int)
                    pixel = scene.render()[y, x] / 255
                    if k == flash.tray:
                        assert list(named)[int(np.argmax(directions @ pixel))] == flash.colour, (seed, flash, pixel)
                        assert pixel.max() > 0.9
                    elif not any(
                        f.tray == k and f.on <= (flash.on + flash.off) / 2 < f.off for f in script.distractors
                    ):
                        assert pixel.max() < 0.6, "the other lamp is off"


def test_times_follow_the_rules() -> None:
    for seed in range(300):
        s = draw("distractor", seed)
        t = s.time
        assert 0.3 <= t.cue <= 1.5 and 0.4 <= t.wait - t.cue <= 0.9 and 1.5 <= t.reach - t.wait <= 4.5
        assert (
            1.0 <= t.grasp - t.reach <= 1.8
            and 0.3 <= t.transport - t.grasp <= 0.5
            and 1.2 <= t.place - t.transport <= 2.0
        )
        assert t.end == pytest.approx(t.place + 0.1)
        assert s.distractors and all(f.colour not in CUBE_COLOURS for f in s.distractors)
        assert not any(f.on < t.wait and t.cue < f.off for f in s.distractors)


def test_some_distractors_fall_into_the_short_window() -> None:
    late = [
        any(s.time.reach - 0.7 < f.off <= s.time.reach for f in s.distractors)
        for s in (draw("distractor", k) for k in range(300))
    ]
    assert 0.3 < np.mean(late) < 0.95


def test_the_intent_changes_nothing_before_the_reach() -> None:
    """The strongest leak test: swap the intent of an episode and compare every pixel and joint before the reach."""
    for split, seed in (("none", 5), ("text", 6)):
        script = draw(split, seed)
        other = replace(script, cube=(script.cube + 1) % 3, tray=1 - script.tray)
        with Scene(script.look, 96, 96) as a, Scene(other.look, 96, 96) as b:
            one, two = Player(script, a), Player(other, b)
            for t in np.linspace(0, script.time.reach - 1e-3, 12):
                assert np.array_equal(one.set(float(t)), two.set(float(t)))
                assert np.array_equal(a.joints(), b.joints()) and np.array_equal(a.camera_pose(), b.camera_pose())
                assert np.array_equal(a.render(), b.render())
            one.set(script.time.grasp)
            two.set(script.time.grasp)
            assert np.abs(a.joints() - b.joints()).max() > 0.03


def test_the_lamp_is_the_only_trace_of_the_intent() -> None:
    """With a cue, episodes of different intent differ before the reach only while the cue is lit."""
    script = draw("distractor", 8)
    assert script.cue is not None
    other = replace(script, cube=(script.cube + 1) % 3, tray=1 - script.tray)
    other = replace(other, cue=replace(script.cue, tray=other.tray, colour=CUBE_COLOURS[other.cube]))
    with Scene(script.look, 96, 96) as a, Scene(other.look, 96, 96) as b:
        one, two = Player(script, a), Player(other, b)
        for t in (
            script.cue.on - 0.01,
            script.cue.off + 0.01,
            *np.linspace(script.cue.off + 0.1, script.time.reach - 1e-3, 10),
        ):
            one.set(float(t))
            two.set(float(t))
            assert np.array_equal(a.render(), b.render())
        one.set(script.cue.on + 0.1)
        two.set(script.cue.on + 0.1)
        assert not np.array_equal(a.render(), b.render())


def test_streams_of_one_seed_are_shared_by_all_splits() -> None:
    a, b = draw("lamp", 77), draw("none", 77)
    assert (a.cube, a.tray, a.time, a.look) == (b.cube, b.tray, b.time, b.look)
    assert draw("lamp", 77).look == a.look and draw("lamp", 78).look != a.look
    splits = [mixed_split(k) for k in range(2000)]
    for split, share in MIX.items():
        assert splits.count(split) / 2000 == pytest.approx(share, abs=0.04)
    with pytest.raises(ValueError, match="none of lamp"):
        draw("nonsense", 1)
    with pytest.raises(ValueError, match="negative"):
        draw("lamp", -1)


def test_files_depend_neither_on_workers_nor_on_interruption(tmp_path: Path) -> None:
    options = {"split": "mixed", "seed_start": 40, "size": "48", "rate_hz": 2.0, "quiet": True}
    assert generate.main(tmp_path / "one", 4, workers=1, **options) == 0
    assert generate.main(tmp_path / "two", 2, workers=1, **options) == 0
    damaged = list_episodes(tmp_path / "two")[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert generate.main(tmp_path / "two", 4, workers=2, **options) == 0
    one, two = list_episodes(tmp_path / "one"), list_episodes(tmp_path / "two")
    assert [p.name for p in one] == [p.name for p in two] and len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    stamp = two[0].stat().st_mtime_ns
    assert generate.main(tmp_path / "two", 4, workers=2, **options) == 0
    assert two[0].stat().st_mtime_ns == stamp, "a finished episode must not be made again"
    with pytest.raises(ValueError, match="other settings"):
        generate.main(tmp_path / "two", 5, workers=1, **(options | {"size": "64"}))


_WRONG = ({"size": "big"}, {"size": "5000"}, {"split": "x"}, {"episodes": 0}, {"workers": 0}, {"rate_hz": 0.0},
          {"seed_start": -1})  # fmt: skip


@pytest.mark.parametrize("wrong", _WRONG)
def test_wrong_options_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError):
        generate.main(tmp_path / "x", **({"quiet": True} | wrong))
    assert not (tmp_path / "x").exists()


def test_failures_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(EpisodeError, match=r"lamp of seed 7 failed.*apt-get install libegl1"):
        generate.main(tmp_path, 1, "lamp", seed_start=7, size="32", workers=1, quiet=True)
    monkeypatch.setattr(generate, "find_spec", lambda name: None)
    with pytest.raises(EpisodeError, match="pip install mujoco"):
        generate.main(tmp_path, 1, "lamp", quiet=True)


def test_sizes() -> None:
    assert generate.parse_size("640x480") == (640, 480) and generate.parse_size("96") == (96, 96)


_GO = """
import sys
from pathlib import Path
from thinkjepa_ros.data.sim.generate import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), 500, "lamp", size="48", rate_hz=4.0, workers=2))
"""


def _start(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A run in a process of its own that has finished at least one episode; also the ids of its workers."""
    script = folder / "go.py"
    script.write_text(_GO)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not list((folder / "data").glob("*.h5")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return process, [int(p) for p in children.split()]


def test_ctrl_c_ends_cleanly_and_leaves_whole_files(tmp_path: Path) -> None:
    process, workers = _start(tmp_path)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted" in text and "Traceback" not in errors
    made = list_episodes(tmp_path / "data")
    assert made and all(Episode.load(p).split == "lamp" for p in made)
    assert not list((tmp_path / "data").glob(".*.part")), "half files are left"
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["width"] == 48
    assert not any(map(_alive, workers))


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    process, workers = _start(tmp_path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(_alive, workers)):
        time.sleep(0.2)
    assert workers and not any(map(_alive, workers))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
