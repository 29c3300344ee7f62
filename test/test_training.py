"""Training: resumable to the bit, never fed the future, gauges that notice a collapse."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from thinkjepa_ros.data.episode import JOINT_NAMES, Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train import clips, encoder, forecast, latents
from thinkjepa_ros.train.mini import canonical_camera, configuration, mean_pose
from thinkjepa_ros.train.run import Run, Stopped, schedule

CAMERA = canonical_camera(64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short simulated episodes at 10 Hz."""
    from thinkjepa_ros.data.sim.generate import main

    out = tmp_path_factory.mktemp("data") / "train"
    assert main(out, episodes=3, split="lamp", size="64", workers=1, rate_hz=10.0, quiet=True) == 0
    return out


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return clips.load_folder(folder)


def small_net() -> model.ForecastNet:
    torch.manual_seed(0)
    predictor = PredictorConfig(
        context=4, tubelets=3, tubelet_steps=2, width=24, depth=1, heads=2, guide_layers=2, guide_width=6
    )
    config = EncoderConfig(image_size=64, width=24, depth=1, heads=2)
    return model.ForecastNet(model.ModelConfig(config, predictor, JOINT_NAMES, CAMERA))


def tracks_of(episodes: list[Episode], net: model.ForecastNet, folder: Path) -> list[latents.Track]:
    return latents.build(episodes, net.eval(), folder)


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

    monkeypatch.setattr(Run, "save_every_s", 0.0)
    monkeypatch.setattr(Run, "update", update)
    cut = small_net()
    with pytest.raises(Killed):
        train_encoder(episodes, cut, tmp_path / "cut")
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


def test_latents_are_cached_checked_and_remade_when_the_encoder_changes(
    episodes: list[Episode], tmp_path: Path
) -> None:
    net = small_net().eval()
    first = tracks_of(episodes[:1], net, tmp_path)[0]
    path = next(tmp_path.glob("*.safetensors"))
    made = path.stat().st_mtime_ns
    assert torch.equal(tracks_of(episodes[:1], net, tmp_path)[0].full, first.full)
    assert path.stat().st_mtime_ns == made
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(tracks_of(episodes[:1], net, tmp_path)[0].full, first.full)
    with torch.no_grad():
        net.encoder.norm.weight.mul_(2)
    assert not torch.equal(tracks_of(episodes[:1], net, tmp_path)[0].full, first.full)


def test_targets_are_the_true_future_in_the_camera_of_now(episodes: list[Episode], tmp_path: Path) -> None:
    net = small_net().eval()
    track = tracks_of(episodes[:1], net, tmp_path)[0]
    b = forecast.batch([track], net, 16, np.random.default_rng(0))
    horizon, context = net.config.horizon, net.config.predictor.context
    assert b.target.shape == (16, horizon, len(JOINT_NAMES), 3)
    matched = 0
    for row in range(16):
        for now in range(context - 1, len(track.stamps_ns) - 1):
            if torch.allclose(b.now[row], track.full[now].float()):
                known = min(horizon, len(track.stamps_ns) - 1 - now)
                truth = track.joints_seen_from(now, slice(now + 1, now + 1 + known))
                assert np.allclose(b.poses[row, -1].numpy() + b.target[row, :known].numpy(), truth, atol=1e-5)
                assert b.target[row, known:].isnan().all()
                assert int(b.latent_known[row].sum()) == known // net.config.predictor.tubelet_steps
                matched += 1
    assert matched == 16


def test_thoughts_of_the_future_are_never_used(episodes: list[Episode], tmp_path: Path) -> None:
    net = small_net().eval()
    track = tracks_of(episodes[:1], net, tmp_path)[0]
    stamps = track.stamps_ns
    late = latents.Track(**{**vars(track), "thought_ns": stamps[10:11], "pyramids": torch.ones(1, 2, 2, 6)})
    rng = np.random.default_rng(0)
    for now in range(len(stamps)):
        _, weight = forecast._guidance(late, now, net, rng)
        if stamps[now] - stamps[10] < 200_000_000:
            assert weight == 0
    assert any(forecast._guidance(late, len(stamps) - 1, net, rng)[1] > 0 for _ in range(20))


def test_losses_teach_every_trainable_part(episodes: list[Episode], tmp_path: Path) -> None:
    net = small_net().eval()
    track = tracks_of(episodes[:1], net, tmp_path)[0]
    thoughtful = latents.Track(
        **{**vars(track), "thought_ns": track.stamps_ns[:1], "pyramids": torch.randn(1, 2, 2, 6)}
    )
    part = forecast.Future(net)
    assert net.predictor.film is not None
    torch.nn.init.constant_(net.predictor.film.gate, 0.1)
    loss, notes = forecast.losses(net, forecast.batch([thoughtful], net, 8, np.random.default_rng(0)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert set(notes) == {"ade_cm", "over_hold", "prediction_over_copy"}
    assert mean_pose([track]).shape == (24, 3)


@pytest.mark.slow
def test_the_command_trains_stops_on_sigterm_and_resumes(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "thinkjepa_ros.cli", "train", "all", str(folder.parent), "--out", str(tmp_path / "m"),
        "--run", str(tmp_path / "run"), "--encoder-steps", "300", "--forecast-steps", "3", "--batch-size", "2",
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


def test_the_second_half_alone_keeps_the_encoder_and_names_its_thinker(folder: Path, tmp_path: Path) -> None:
    from thinkjepa_ros.thinker import tiny
    from thinkjepa_ros.train.mini import train_forecast, untrained

    thinker = tiny.build(tmp_path / "thinker")
    untrained(tmp_path / "init", seed=4)
    train_forecast(
        folder.parent, tmp_path / "out", init=tmp_path / "init", run=tmp_path / "run", thinker=thinker,
        forecast_steps=2, threads=1, limit=1,
    )  # fmt: skip
    before, after = model.load(tmp_path / "init")[0].state_dict(), model.load(tmp_path / "out")[0].state_dict()
    manifest = model.load(tmp_path / "out")[1]
    assert manifest.training["thinker"].startswith("thinkjepa-mini-thinker-")
    assert manifest.training["forecast_steps"] == 2
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"predictor", "motion"}


def test_an_encoder_of_another_shape_cannot_be_kept(folder: Path, tmp_path: Path) -> None:
    from thinkjepa_ros.checkpoints import CheckpointError
    from thinkjepa_ros.thinker import tiny
    from thinkjepa_ros.train.mini import train_forecast

    model.save(tmp_path / "small", small_net(), "small", trained=False, domain="none")
    with pytest.raises(CheckpointError, match="encoder is not of the mini's shape"):
        train_forecast(
            folder.parent, tmp_path / "out", init=tmp_path / "small", run=tmp_path / "run",
            thinker=tiny.build(tmp_path / "thinker"), forecast_steps=1, threads=1,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
