"""The workcell: deterministic, held by friction alone, at rest without commands, and its experts do what is asked."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("mujoco") is None:  # not importorskip: the scene must choose the renderer before mujoco is imported
    pytest.skip("the simulator needs mujoco: pip install mujoco", allow_module_level=True)

from thinkjepa_ros.data.episode import Episode, EpisodeError, list_episodes
from thinkjepa_ros.data.kinematics import Kinematics
from thinkjepa_ros.data.sim import rollouts
from thinkjepa_ros.data.sim.arm import FINGER_JOINTS, KEYPOINTS, LINKS, TOOL, urdf
from thinkjepa_ros.data.sim.behaviour import Expert, Perturbed, Random, bounded
from thinkjepa_ros.data.sim.script import stream
from thinkjepa_ros.data.sim.tasks import ACTION_S, CUE_S, KINDS, STEP_LIMIT, WORKSPACE, Task, draw_task, use_of
from thinkjepa_ros.data.sim.workcell import SPEED_LIMIT, Workcell


def drive(cell: Workcell, driver: Expert | Perturbed | Random, actions: int) -> int | None:
    """Let a behaviour act; the number of actions until the task is done, or None."""
    for k in range(actions):
        cell.act(driver.act(cell))
        if cell.success():
            return k + 1
    return None


def grasped(seed: int) -> tuple[Workcell, Task]:
    """A cell whose cube was just lifted by the expert."""
    task = draw_task("pick_place_text", seed)
    cell, expert = Workcell(task), Expert(task)
    for _ in range(40):
        cell.act(expert.act(cell))
        if cell.cube_position()[2] > 0.10:
            return cell, task
    raise AssertionError("the expert lifted nothing")


def test_a_task_is_a_function_of_kind_and_seed() -> None:
    for kind in KINDS:
        a, b = draw_task(kind, 5), draw_task(kind, 5)
        assert a.look == b.look and np.array_equal(a.start, b.start) and np.array_equal(a.cube_xy, b.cube_xy)
    assert draw_task("reach", 5).look != draw_task("reach", 6).look
    text, lamp = draw_task("pick_place_text", 9), draw_task("pick_place_lamp", 9)
    assert (text.cube, text.tray) == (lamp.cube, lamp.tray), "the kinds tell the same intent in different ways"
    assert lamp.instruction == draw_task("pick_place_lamp", 10).instruction, "the lamp alone may tell it"
    assert text.lamp_rgb is None and text.goal is None and draw_task("reach", 9).intent is None
    assert [use_of(s) for s in (0, 999_999, 1_000_000, 2_999_999)] == ["train", "train", "val", "test"]
    with pytest.raises(ValueError, match="in no split"):
        draw_task("reach", 3_000_000)
    with pytest.raises(ValueError, match="none of reach"):
        draw_task("juggle", 1)


def test_the_same_commands_give_the_same_bits_however_time_is_cut_and_whoever_looks() -> None:
    task = draw_task("pick_place_text", 3)
    cell, expert, actions, states = Workcell(task), Expert(task), [], []
    for _ in range(12):
        actions.append(expert.act(cell))
        cell.act(actions[-1])
        states.append((cell.state(), cell.joint_positions(), cell.cube_position()))
    with Workcell(task) as other:
        for repeat in range(2):  # a reset leaves no trace
            for action, wanted in zip(actions, states, strict=True):
                if repeat:
                    other.image(), other.visible()
                other.apply(action[:3].astype(float) / ACTION_S, float(action[3]))
                for seconds in (0.033, 0.05, 0.0171, 0.0999):
                    other.advance(seconds)
                for a, b in zip((other.state(), other.joint_positions(), other.cube_position()), wanted, strict=True):
                    assert np.array_equal(a, b)
            other.reset()
        assert other.time == 0.0 and np.allclose(other.state(), [*task.start, 0.0], atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_gripper_goes_where_it_is_told(seed: int) -> None:
    task = draw_task("reach", seed)
    with Workcell(task) as cell:
        for delta in ([0.05, 0.02, 0.04], [-0.06, 0.03, 0.0], [0.0, -0.04, 0.03]):
            before = cell.state()
            cell.act(np.array([*delta, 0.5]))
            cell.act(np.array([0.0, 0.0, 0.0, 0.5]))  # the way that braking takes
            assert np.allclose(cell.state()[:3] - before[:3], delta, atol=2e-3)
        assert cell.state()[3] == pytest.approx(0.5, abs=0.01)
        hand = cell._data.body("hand").xmat.reshape(3, 3)
        assert np.allclose(hand, np.eye(3), atol=0.01), "the gripper points down and keeps its yaw"


def test_commands_are_bounded_and_the_workspace_has_walls() -> None:
    with Workcell(draw_task("reach", 2)) as cell:
        last = cell.state()
        for _ in range(15):
            cell.act(np.array([9.0, -9.0, -9.0, 7.0]))
            now = cell.state()
            assert np.abs(now[:3] - last[:3]).max() < STEP_LIMIT + 0.01
            last = now
        wall = np.array([WORKSPACE[1, 0], WORKSPACE[0, 1], WORKSPACE[0, 2]])
        assert np.allclose(last[:3], wall, atol=0.01) and last[3] == pytest.approx(1.0, abs=0.01)
        for wrong in ([np.nan, 0, 0], [0, np.inf, 0], [0, 0]):
            with pytest.raises(ValueError, match="three finite"):
                cell.apply(np.array(wrong), 0.0)
        with pytest.raises(ValueError, match="three finite"):
            cell.apply(np.zeros(3), float("nan"))
    with pytest.raises(ValueError, match="positive"):
        Workcell(draw_task("reach", 2), timeout_s=0.0)


def test_an_arm_that_hears_nothing_stops() -> None:
    task = draw_task("reach", 0)
    with Workcell(task, timeout_s=0.3) as cell:
        side = -np.sign(task.start[0])
        cell.apply(np.array([side * SPEED_LIMIT, 0.0, 0.0]), 0.8)
        cell.advance(0.3)
        moving = cell.state()
        cell.advance(0.15)
        stopped = cell.state()
        cell.advance(1.0)
        assert abs(moving[0] - task.start[0]) > 0.07
        assert np.abs(cell.state()[:3] - stopped[:3]).max() < 1e-3 and abs(stopped[0] - moving[0]) < 0.03
        assert cell.state()[3] == pytest.approx(0.8, abs=0.01), "the grip is kept"


def test_a_cube_is_held_by_friction_and_falls_when_the_gripper_opens() -> None:
    cell, task = grasped(4)
    with cell:
        assert cell.touched() and not cell.success()
        height = cell.cube_position()[2] - cell.state()[2]
        for delta in ([0.06, 0, 0], [-0.06, 0.03, 0], [0.0, -0.03, 0.03], [0.0, 0.0, 0.0]):
            cell.act(np.array([*delta, 1.0]))
        assert cell.cube_position()[2] - cell.state()[2] == pytest.approx(height, abs=2e-3), "it slipped"
        expected = 1 - 2 * task.look.cube_half / 0.09
        assert cell.state()[3] == pytest.approx(expected, abs=0.06), "the cube keeps the fingers apart"
        for _ in range(3):
            cell.act(np.array([0.0, 0.0, 0.0, 0.0]))
        assert not cell.touched()
        assert cell.cube_position()[2] == pytest.approx(task.look.cube_half, abs=0.01)


def test_without_friction_and_without_welds_nothing_is_lifted() -> None:
    task = draw_task("pick_place_text", 4)
    with Workcell(task) as cell:
        model = cell._model
        assert [int(kind) for kind in model.eq_type] == [2], "the gear of the fingers (mjEQ_JOINT) is the only equality"
        model.geom_friction[:] = 1e-5
        assert drive(cell, Expert(task), 40) is None and cell.cube_position()[2] < 2 * task.look.cube_half


def test_the_urdf_agrees_with_the_simulation(tmp_path: Path) -> None:
    path = tmp_path / "arm.urdf"
    path.write_text(urdf())
    links = [link.name for link in LINKS]
    with Workcell(draw_task("pick_place_text", 6)) as cell:
        kinematics = Kinematics(path, links)
        assert set(kinematics.joints) == set(cell.joint_names()) - {FINGER_JOINTS[1]}
        rng = np.random.default_rng(0)
        for _ in range(6):
            cell.act(np.array([*rng.uniform(-0.06, 0.06, 3), rng.random()]))
            at = dict(zip(cell.joint_names(), cell.joint_positions(), strict=True))
            at[FINGER_JOINTS[0]] = at[FINGER_JOINTS[1]] = (at[FINGER_JOINTS[0]] + at[FINGER_JOINTS[1]]) / 2
            found = kinematics.positions(np.array([at[name] for name in kinematics.joints]))[0]
            for name, place in zip(links, found, strict=True):
                if "finger" not in name:
                    true = cell._data.site(TOOL).xpos if name == TOOL else cell._data.body(name).xpos
                    assert np.allclose(place, true, atol=1e-6), name
            left, right = found[links.index("left_finger")], found[links.index("right_finger")]
            opening = (1 - cell.state()[3]) * 0.09
            assert np.linalg.norm(left - right) == pytest.approx(opening, abs=1e-6)


def test_a_goal_image_shows_the_goal_and_touches_nothing() -> None:
    task = draw_task("reach", 7)
    assert task.goal is not None
    with Workcell(task) as cell, Workcell(task) as other:
        for k in range(6):
            action = np.array([0.02, -0.01, 0.01, 0.3 * (k % 2)])
            goal = cell.goal_image()
            before = cell.image()
            assert np.array_equal(before, cell.image()) and goal.shape == (128, 128, 3) and goal.dtype == np.uint8
            cell.act(action), other.act(action)
            assert np.array_equal(cell.joint_positions(), other.joint_positions())
        drive(cell, Expert(task), 12)
        arrived, away = cell.image().astype(int), other.image().astype(int)
        assert np.abs(arrived - goal).mean() < 0.3 * np.abs(away - goal).mean()
    with pytest.raises(ValueError, match="no goal image"):
        Workcell(draw_task("pick_place_text", 7)).goal_image()


def test_the_lamp_tells_its_colour_for_a_while_and_is_not_hidden() -> None:
    for seed in range(2):
        lamp, text = draw_task("pick_place_lamp", seed), draw_task("pick_place_text", seed)
        with Workcell(lamp) as cell, Workcell(text) as dark:
            differs = np.abs(cell.image().astype(int) - dark.image()).max(-1) > 40
            assert differs.sum() > 30
            side = np.nonzero(differs)[1].mean() - 64
            assert (side > 0) == (lamp.tray == 1)
            while cell.time < CUE_S:
                cell.advance(0.1), dark.advance(0.1)
            assert np.array_equal(cell.image(), dark.image())


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_does_the_task(kind: str) -> None:
    for seed in range(1_000_000, 1_000_002):
        task = draw_task(kind, seed)
        with Workcell(task) as cell:
            assert not cell.success()
            assert drive(cell, Expert(task), task.most_actions) is not None
            if task.goal is not None:
                assert cell.reached_error() < 0.04
            else:
                aside = cell.cube_position()[:2] - task.look.tray_xy[task.tray]
                assert np.abs(aside).max() < task.look.tray_half and not cell.touched()


def test_a_reach_counts_after_two_actions_at_the_goal() -> None:
    task = draw_task("reach", 11)
    assert task.goal is not None
    with Workcell(task) as cell:
        near = []
        expert = Expert(task)
        while not cell.success():
            cell.act(expert.act(cell))
            near.append(cell.reached_error() < 0.04)
        assert near[-2:] == [True, True] and not any(near[:-2])


def test_every_behaviour_keeps_the_bounds_and_random_ones_touch_cubes() -> None:
    moved = 0
    for seed in range(3):
        task = draw_task("pick_place_text", seed)
        for make in (Perturbed, Random):
            driver = make(task, stream(seed, "test"))
            with Workcell(task) as cell:
                for _ in range(15):
                    action = driver.act(cell)
                    assert action.shape == (4,) and action.dtype == np.float32
                    assert np.abs(action[:3]).max() <= np.float32(STEP_LIMIT) and 0 <= action[3] <= 1
                    cell.act(action)
                if make is Random:
                    moved += any(np.abs(cell.cube_position(k)[:2] - task.cube_xy[k]).max() > 0.005 for k in range(3))
    assert moved >= 1
    assert np.allclose(bounded(np.array([0.3, -0.1, 0.0]), 2.0), [0.06, -0.02, 0.0, 1.0])


def test_an_episode_says_everything() -> None:
    e = rollouts.make_rollout("pick_place_lamp", "expert", 12, 64, 64)
    task = draw_task("pick_place_lamp", 12)
    assert e.split == "workcell" and e.intent == task.intent and e.instruction == task.instruction
    assert e.details["success"] is True and e.details["done_after"] < len(e) and e.details["use"] == "train"
    assert np.all(np.diff(e.stamps_ns) == 200_000_000) and e.frames[0].shape == (64, 64, 3)
    assert e.cue_ns == (e.stamps_ns[0], e.stamps_ns[0] + 700_000_000)
    assert [e.phase(i) for i in range(5)] == ["cue"] * 4 + [e.phase(4)] and e.phase(4) != "cue"
    assert {"reach", "grasp", "transport", "place"} <= {e.phase(i) for i in range(len(e))}
    assert e.joint_names == tuple(name for name, _, _ in KEYPOINTS)
    assert not e.states[:, 3:6].any() and not e.actions[:, 3:6].any()
    tips = [e.joint_names.index(f"{side}_finger_tip") for side in ("left", "right")]
    assert np.allclose(e.joints[:, tips].mean(1), e.states[:, :3], atol=2e-3), "the state is the point between the tips"
    moved = np.diff(e.states[:, :3], axis=0).sum(0)
    assert np.allclose(moved, e.actions[:, :3].sum(0), atol=0.02), "actions are what was commanded"
    cube, tray = e.objects[f"cube_{task.intent['cube']}"], e.objects[f"tray_{task.intent['tray']}"]  # type: ignore[index]
    assert np.abs(cube[-1, :2] - tray[-1, :2]).max() < e.details["tray_half_m"]
    pixels = e.camera.project(e.joints_in_camera(0))[tips]
    assert np.all((pixels > 0) & (pixels < 64)) and e.visible[0][tips].all()


def test_an_episode_tells_what_the_expert_would_have_done() -> None:
    """Of a disturbed expert, too: that is what a policy learns from; random motion has no right action."""
    own = rollouts.make_rollout("pick_place_text", "expert", 3, 32, 32)
    np.testing.assert_allclose(own.details["expert_actions"], own.actions[:, [0, 1, 2, 6]], atol=1e-5)
    other = rollouts.make_rollout("pick_place_text", "perturbed", 3, 32, 32)
    labels = np.array(other.details["expert_actions"])
    assert labels.shape == (len(other.actions), 4) and np.abs(labels - other.actions[:, [0, 1, 2, 6]]).max() > 0.01
    assert "expert_actions" not in rollouts.make_rollout("reach", "random", 3, 32, 32).details


def test_files_depend_neither_on_workers_nor_on_interruption(tmp_path: Path) -> None:
    options = {"seed_start": 40, "kind": "reach", "size": "32", "quiet": True}
    here = tmp_path / "here.h5"
    rollouts.make_rollout("reach", rollouts.mixed(40)[1], 40, 32, 32).save(here)
    whole = here.read_bytes()
    damaged = tmp_path / "one" / "workcell_0000040.h5"
    damaged.parent.mkdir()
    damaged.write_bytes(whole[:-5])
    assert rollouts.main(tmp_path / "one", 2, workers=2, **options) == 0
    assert list_episodes(tmp_path / "one", "workcell")[0] == damaged
    assert damaged.read_bytes() == whole and len(Episode.load(damaged)) >= 21
    with pytest.raises(ValueError, match="other settings"):
        rollouts.main(tmp_path / "one", 2, workers=1, **(options | {"kind": "mix"}))
    for wrong in ({"kind": "x"}, {"behaviour": "x"}, {"episodes": 0}, {"size": "big"}, {"seed_start": 2_999_999}):
        with pytest.raises(ValueError):
            rollouts.main(tmp_path / "x", **({"episodes": 2, "quiet": True} | wrong))
    assert not (tmp_path / "x").exists()


def test_a_missing_simulator_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkjepa_ros.data.sim.generate.find_spec", lambda name: None)
    with pytest.raises(EpisodeError, match="pip install mujoco"):
        rollouts.main(tmp_path, 1, quiet=True)


def test_the_mix_has_its_shares() -> None:
    drawn = [rollouts.mixed(seed) for seed in range(3000)]
    for column, shares in enumerate((rollouts.KIND_SHARES, rollouts.SHARES)):
        for name, share in shares.items():
            assert np.mean([words[column] == name for words in drawn]) == pytest.approx(share, abs=0.03)
    assert rollouts.mixed(1, "reach", "random") == ("reach", "random")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_succeeds_on_97_of_100(kind: str) -> None:
    done = 0
    for seed in range(1_000_000, 1_000_100):
        task = draw_task(kind, seed)
        with Workcell(task) as cell:
            done += drive(cell, Expert(task), task.most_actions) is not None
    assert done >= 97


@pytest.mark.slow
def test_the_disturbed_expert_often_recovers() -> None:
    done = 0
    for seed in range(1_000_000, 1_000_060):
        task = draw_task("pick_place_text", seed)
        with Workcell(task) as cell:
            done += drive(cell, Perturbed(task, stream(seed, "test")), task.most_actions) is not None
    assert done >= 36
