"""Training: resumable to the bit, stage by stage and as a whole."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from group_kit import free_port
from safetensors.torch import load_file
from training_kit import CAMERA, save_every_step, saved_step, simulate, small_net

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.data.episode import Episode, EpisodeError
from thinkjepa_ros.jepa import model
from thinkjepa_ros.thinker import subgoal, tiny
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.train import clips, encoder
from thinkjepa_ros.train.mini import canonical_camera, configuration, train_forecast, untrained
from thinkjepa_ros.train.run import Run, Stopped, schedule
from thinkjepa_ros.train.stages import train_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/train with three short episodes, and data/val with two."""
    data = tmp_path_factory.mktemp("data")
    simulate(data / "val", 2, 1_000_000, size="128")
    return simulate(data / "train", 3, size="128")


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return clips.load_folder(folder)


def train_encoder(episodes: list[Episode], net: model.ForecastNet, folder: Path, steps: int = 6) -> Run:
    return encoder.train(episodes, net, folder, steps=steps, batch_size=2, lr=1e-3, seed=5, describe={"a": 1})


def test_the_canonical_camera_of_the_mini_is_the_head_camera_of_the_scene() -> None:
    from thinkjepa_ros.data.sim.scene import camera_of

    config = configuration(4, 128)
    assert config.camera == camera_of(128, 128) and config.horizon == 32


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    episodes: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_net()
    train_encoder(episodes, whole, tmp_path / "whole")

    class Killed(Exception):
        pass

    steps_done = 0
    real = Run.update

    def update(run: Run, loss: torch.Tensor) -> float:
        nonlocal steps_done
        steps_done += 1
        if steps_done == 4:
            raise Killed
        return real(run, loss)

    save_every_step(monkeypatch)
    monkeypatch.setattr(Run, "update", update)
    cut = small_net()
    with pytest.raises(Killed):
        train_encoder(episodes, cut, tmp_path / "cut")
    assert saved_step(tmp_path / "cut") == 3
    monkeypatch.setattr(Run, "update", real)
    again = small_net()
    train_encoder(episodes, again, tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    log = (tmp_path / "cut" / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,seconds,pose_cm") and [r.split(",")[0] for r in log[1:]] == ["6"]


def test_a_run_with_other_settings_is_not_resumed(episodes: list[Episode], tmp_path: Path) -> None:
    train_encoder(episodes, small_net(), tmp_path, steps=1)
    with pytest.raises(ValueError, match="other settings"):
        encoder.train(episodes, small_net(), tmp_path, steps=1, batch_size=2, lr=1e-3, seed=5, describe={"a": 2})


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    run = Run(tmp_path, layer, 3, 1e-3, 0, {}, quiet=True)
    with pytest.raises(RuntimeError, match="not finite"):
        run.update(layer(torch.full((1, 2), torch.nan)).sum())
    assert torch.equal(layer.weight, before)


def test_ctrl_c_saves_the_last_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    run = Run(tmp_path, layer, 10, 1e-3, 0, {}, quiet=True)
    with pytest.raises(Stopped, match="step 3 of 10"):
        for step in run.steps("test"):
            run.update(layer(torch.ones(1, 2)).square().sum())
            if step == 2:
                signal.raise_signal(signal.SIGINT)
    resumed = Run(tmp_path, torch.nn.Linear(2, 1), 10, 1e-3, 0, {}, quiet=True)
    assert resumed.step == 3 and torch.equal(resumed.net.weight, layer.weight)


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [schedule(s, 100, 10) for s in range(101)]
    assert rates[0] == 0.1 and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_place_loss_is_least_where_the_joint_is() -> None:
    joints = torch.tensor([[[0.1, -0.05, 0.5]]])
    pixel = CAMERA.project(joints.numpy())[0, 0]
    cell = ((pixel + 0.5) / 16).astype(int)
    visible = torch.ones(1, 1, dtype=torch.bool)
    losses = []
    for index in range(16):
        logits = torch.zeros(1, 16, 1)
        logits[0, index] = 4
        losses.append(float(encoder.place_loss(logits, joints, visible, CAMERA, 4)))
    assert int(np.argmin(losses)) == cell[1] * 4 + cell[0]
    behind = torch.tensor([[[0.0, 0.0, -1.0]]])
    assert float(encoder.place_loss(torch.zeros(1, 16, 1), behind, visible, CAMERA, 4)) == 0


def test_pose_loss_leaves_out_unknown_joints() -> None:
    joints = torch.tensor([[[0.0, 0.0, 1.0], [torch.nan] * 3]])
    found = torch.tensor([[[0.0, 0.3, 1.4], [9.0, 9.0, 9.0]]], requires_grad=True)
    loss = encoder.pose_loss(found, joints, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-4) and found.grad is not None and found.grad.isfinite().all()


def test_turning_the_camera_moves_image_and_points_alike() -> None:
    camera = canonical_camera(128)
    points = np.array([[0.05, -0.02, 0.6], [-0.08, 0.06, 0.7]], np.float32)
    image = np.zeros((128, 128, 3), np.uint8)
    for u, v in camera.project(points):
        cv2.circle(image, (round(u * 16), round(v * 16)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    for seed in range(20):
        moved, turned = clips.turned(image, points, camera, np.random.default_rng(seed))
        assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1), atol=1e-5)
        for u, v in camera.project(turned):
            if 4 < u < 123 and 4 < v < 123:
                assert moved[round(v), round(u), 0] > 200


def test_grid_takes_the_nearest_frame_of_an_uneven_camera() -> None:
    stamps = np.array([0, 90, 210, 290, 420, 500])
    assert clips.Grid.of(stamps, 100).index.tolist() == [0, 1, 2, 3, 4, 5]
    assert clips.Grid.of(stamps, 100, 60).index.tolist() == [1, 2, 3, 4, 4]


def all_stages(data: Path, folder: Path, thinker: Path | None = None, encoder_steps: int = 1) -> None:
    """`train all` with a step of each stage."""
    steps = {"see_steps": 1, "thinker_steps": 1, "forecast_steps": 2, "guide_steps": 2, "subgoal_steps": 2}
    train_all(
        data, folder / "model", run=folder / "run", mind=thinker, encoder_steps=encoder_steps, encoder_batch=2,
        thinker_batch=2, forecast_batch=4, threads=1, limit=1, val_limit=2, dtype="float32", **steps,
    )  # fmt: skip


@pytest.fixture(scope="module")
def everything(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train all` leaves, and the folder of its work."""
    out = tmp_path_factory.mktemp("all")
    all_stages(folder.parent, out)
    return out


def test_all_leaves_a_predictor_its_thinker_and_a_sub_goal_head_that_fit(everything: Path) -> None:
    net, manifest = model.load(everything / "model")
    mind = Thinker.load(everything / "model" / "thinker", subgoal=everything / "model" / "thinker" / "subgoal")
    assert manifest.trained and mind.trained and net.config.horizon == 32
    assert (net.config.predictor.guide_layers, net.config.predictor.guide_width) == (len(mind.layers), mind.width)
    record = manifest.training
    assert record["command"] == "thinkjepa train all" and record["thinker"] == mind.model_id
    assert (record["encoder_steps"], record["forecast_steps"], record["episodes"]) == (1, 2, 1)
    assert np.array(record["mean_pose"]).shape == (24, 3)
    head, about = subgoal.load(everything / "model" / "thinker" / "subgoal")
    assert head.config.space == manifest.model_id and about.trained
    assert about.training["reading"]["episodes"] == 2, "those of data/val"
    first, _ = model.load(everything / "run" / "encoder_model")
    for part in ("encoder", "pose"):
        kept = getattr(first, part).state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in getattr(net, part).state_dict().items())


def test_what_is_done_is_not_done_again(
    folder: Path, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in (everything / "model").rglob("*.safetensors")}
    assert len(before) == 3

    def update(run: Run, loss: torch.Tensor) -> float:
        raise AssertionError("a stage was trained again")

    monkeypatch.setattr(Run, "update", update)
    monkeypatch.setattr("thinkjepa_ros.train.cache.Maker.make", update)
    all_stages(folder.parent, everything)
    assert {p: p.read_bytes() for p in (everything / "model").rglob("*.safetensors")} == before


def test_a_thinker_that_is_given_is_used_and_none_is_trained(folder: Path, everything: Path, tmp_path: Path) -> None:
    given = everything / "model" / "thinker"
    all_stages(folder.parent, tmp_path, thinker=given)
    assert not (tmp_path / "run" / "thinker").exists() and not (tmp_path / "model" / "thinker" / "config.json").exists()
    mine, theirs = (model.load(place / "model")[0].state_dict() for place in (tmp_path, everything))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items()), "the same thinker, the same result"


def test_what_is_missing_is_said_before_the_first_stage(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="has no folder train/; make it with `thinkjepa data sim"):
        all_stages(tmp_path, tmp_path)
    with pytest.raises(ThinkerError):
        all_stages(folder.parent, tmp_path, thinker=tmp_path / "nobody")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_trains_stops_on_sigterm_and_resumes(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "thinkjepa_ros.cli", "train", "all", str(folder.parent), "--out", str(tmp_path / "m"),
        "--run", str(tmp_path / "run"), "--encoder-steps", "300", "--forecast-steps", "3", "--encoder-batch", "2",
        "--guide-steps", "2",
        "--see-steps", "1", "--thinker-steps", "1", "--thinker-batch", "2", "--subgoal-steps", "2", "--val-limit", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "encoder" / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "continues from here" in err
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    net, manifest = model.load(tmp_path / "m")
    assert manifest.trained and manifest.training["encoder_steps"] == 300 and net.config.horizon == 32
    assert net.config.sigma_scale is not None, "calibrated on val/"
    assert "copying the latent of now" in done.stdout


@pytest.mark.slow
def test_two_processes_of_torchrun_leave_what_one_does(folder: Path, tmp_path: Path) -> None:
    """Every stage of `train all`, and `train cache` before it, by two processes that share the work."""

    def run(name: str, *launcher: str) -> Path:
        out = tmp_path / name
        common = ["--threads", "1"]
        stages = [
            "train", "all", str(folder.parent), "--out", str(out), "--run", str(out / "run"), "--encoder-steps", "4",
            "--encoder-batch", "4", "--see-steps", "1", "--thinker-steps", "1", "--thinker-batch", "2",
            "--forecast-steps", "4", "--guide-steps", "4", "--forecast-batch", "4", "--subgoal-steps", "2",
            "--val-limit", "2", "--dtype", "float32",
        ]  # fmt: skip
        cache = ["train", "cache", str(folder), "--model", str(out), "--thinker", str(out / "thinker"), "--out",
                 str(out / "again")]  # fmt: skip
        for words in (stages, cache):
            # without "--" torchrun takes our --run for an abbreviation of its own --run-path
            command = [
                sys.executable,
                *launcher,
                "-m",
                *(["--"] if launcher else []),
                "thinkjepa_ros.cli",
                *words,
                *common,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
            assert done.returncode == 0, done.stderr
        return out

    one = run("one")
    two = run("two", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    for part in (".", "thinker", "thinker/subgoal"):
        mine, theirs = (load_file(place / part / "model.safetensors") for place in (one, two))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4, msg=f"{part}: {name}")
    shards = [sorted(path.name for path in (place / "again").iterdir()) for place in (one, two)]
    assert shards[0] == shards[1] and len(shards[0]) == 3


def test_the_second_half_alone_keeps_the_encoder_and_names_its_thinker(folder: Path, tmp_path: Path) -> None:
    thinker = tiny.build(tmp_path / "thinker")
    untrained(tmp_path / "init", seed=4)
    train_forecast(
        folder.parent, tmp_path / "out", init=tmp_path / "init", run=tmp_path / "run", thinker=thinker,
        steps=2, guide_steps=2, batch_size=4, dtype="float32", threads=1, limit=1,
    )  # fmt: skip
    before, after = model.load(tmp_path / "init")[0].state_dict(), model.load(tmp_path / "out")[0].state_dict()
    manifest = model.load(tmp_path / "out")[1]
    assert manifest.training["thinker"].startswith("thinkjepa-mini-thinker-")
    assert manifest.training["forecast_steps"] == 2
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"predictor", "motion", "guided_motion"}
    train_forecast(
        folder.parent, tmp_path / "other", init=tmp_path / "out", run=tmp_path / "run_2", thinker=thinker, keep=True,
        guide_steps=2, batch_size=4, dtype="float32", threads=1, limit=1, seed=3,
    )  # fmt: skip
    third, record = model.load(tmp_path / "other")[0].state_dict(), model.load(tmp_path / "other")[1].training
    changed = {name for name in after if not torch.equal(third[name], after[name])}
    assert changed and all(name.startswith(("predictor.film.", "guided_motion.")) for name in changed)
    assert record["forecast_steps"] == 2 and record["guide_steps"] == 2 and record["seed"] == 3


def test_an_encoder_of_another_shape_cannot_be_kept(folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "small", small_net(), "small", trained=False, domain="none")
    with pytest.raises(CheckpointError, match="encoder is not of the mini's shape"):
        train_forecast(
            folder.parent, tmp_path / "out", init=tmp_path / "small", run=tmp_path / "run",
            thinker=tiny.build(tmp_path / "thinker"), steps=1, threads=1,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
