"""Fine-tuning on recordings of another robot: from a bag to a model that forecasts, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import arm_kit
import numpy as np
import pytest
import torch
import typer
from training_kit import save_every_step, saved_step, simulate, small_net
from typer.testing import CliRunner

from thinkjepa_ros.checkpoints import CheckpointError, sha256_of
from thinkjepa_ros.commands.train_fine_tune import train_fine_tune
from thinkjepa_ros.data.episode import JOINT_NAMES, Episode, EpisodeError, list_episodes
from thinkjepa_ros.evaluation.forecast import ANCHORED, DAMPED, HOLD, MODEL, TRUE, VELOCITY
from thinkjepa_ros.evaluation.held_out import judge, sentences
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.train import recorded
from thinkjepa_ros.train.clips import Grid, Variation, canonical_images
from thinkjepa_ros.train.fine_tune import Outcome, fine_tune
from thinkjepa_ros.train.mini import train_forecast, untrained
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.values import Camera, Frame

SHORT: dict[str, Any] = {"see_steps": 3, "see_batch": 2, "steps": 3, "batch_size": 4, "variations": 1}


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of four recordings of the arm, one each."""
    return arm_kit.episodes(tmp_path_factory.mktemp("arm"), range(4))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of two hands that counts as trained; a forecast takes 0.3 s of images and reaches 0.6 s ahead."""
    out = tmp_path_factory.mktemp("models") / "init"
    training = {"thinker": "somebody"}
    model.save(out, small_net(), "small", trained=True, domain="simulation", training=training, licence="Apache-2.0")
    return out


@pytest.fixture(scope="module")
def quick(arm: Path, init: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a few steps leave: folders mine and run."""
    out = tmp_path_factory.mktemp("quick")
    tune(arm, out, init)
    return out


def tune(data: Path, out: Path, init: Path, **options: Any) -> Outcome:
    return fine_tune(
        data, out / "mine", init=init, judge=judge, run=out / "run", threads=1, dtype="float32", **SHORT | options
    )


@pytest.fixture(scope="module")
def tuned(arm: Path, init: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A model that learnt for some seconds, and what it says of itself."""
    out = tmp_path_factory.mktemp("tuned")
    learn = {"encoder_lr": 1e-3, "lr": 2e-3}
    return out, tune(arm, out, init, see_steps=100, see_batch=6, steps=120, batch_size=16, variations=2, **learn)


# ---------------------------------------------------------------- what comes of it


def test_it_forecasts_an_arm_it_did_not_know_better_than_what_needs_no_model(tuned: tuple[Path, Outcome]) -> None:
    errors = tuned[1].errors
    assert tuned[1].recordings == ("arm_3",) and not tuned[1].all_joints and tuned[1].origins >= 6
    for ours, others in ((MODEL, ""), (ANCHORED, TRUE)):
        assert errors[ours] < 0.9 * min(errors[name + others] for name in (HOLD, VELOCITY, DAMPED)), ours
    for sentence in sentences(tuned[1]):
        assert "better than" in sentence and "NOT" not in sentence


def test_both_stages_learn_and_leave_a_log_and_a_figure(tuned: tuple[Path, Outcome]) -> None:
    for stage, column in (("encoder", "pose_cm"), ("forecast", "ade_cm")):
        rows = [line.split(",") for line in (tuned[0] / "run" / stage / "log.csv").read_text().splitlines()]
        values = [float(row[rows[0].index(column)]) for row in rows[1:]]
        assert len(values) >= 2 and values[-1] < 0.9 * values[0], stage
        assert (tuned[0] / "run" / stage / "log.png").stat().st_size > 1000


def test_the_model_says_what_it_is(tuned: tuple[Path, Outcome], init: Path) -> None:
    net, manifest = model.load(tuned[0] / "mine")
    assert manifest.trained and manifest.model_id == "mine" and manifest.domain == "recordings: episodes"
    assert manifest.licence == "Apache-2.0" and net.config.joint_names == arm_kit.JOINTS
    record = manifest.training
    assert record["init"] == "small" and record["init_sha256"] == sha256_of(init / "model.safetensors")
    assert record["init_domain"] == "simulation" and record["thinker"] == "" and record["held_out"] == ["arm_3"]
    assert (record["see_steps"], record["forecast_steps"], record["seed"], record["episodes"]) == (100, 120, 0, 3)
    assert len(record["data_sha256"]) == 16 and np.array(record["mean_pose"]).shape == (3, 3)
    assert record["sigma_calibration"]["data"] == ["arm_3"] and net.config.sigma_scale is not None
    assert record["outcome"]["ade_m"][MODEL] == pytest.approx(tuned[1].errors[MODEL], abs=1e-5)
    assert net.predictor.guide is None and net.guided_motion is None, "nobody told it what a thinker says"


def test_what_was_written_forecasts_from_a_stream_of_images(tuned: tuple[Path, Outcome], arm: Path) -> None:
    forecaster, episode = Forecaster.load(tuned[0] / "mine"), Episode.load(list_episodes(arm)[3])
    grid = episode.stamps_ns[0] + np.arange(20) * forecaster.step_ns
    frames = Grid.of(episode.stamps_ns, forecaster.step_ns).index[:20]
    for stamp, index in zip(grid, frames, strict=True):
        forecaster.observe(Frame(episode.frames[int(index)], int(stamp)), episode.camera)
    forecast = forecaster.forecast([int(s) for s in grid[-forecaster.window :]])
    assert forecast.joint_names == arm_kit.JOINTS and forecast.positions.shape == (6, 3, 3)
    assert forecast.domain == "recordings: episodes" and forecast.guidance_weight == 0
    off = np.linalg.norm(forecast.present - episode.joints_in_camera(int(frames[-1])), axis=-1)
    assert off.max() < 0.3 and forecast.present[:, 2].min() > 0.4, "in front of that camera, where the arm is"
    assert forecaster.guidance_shape is None


# ---------------------------------------------------------------- how it gets there


def test_a_run_that_was_killed_anywhere_ends_with_the_same_weights(
    arm: Path, init: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    real, done = Run.update, 0

    def update(run: Run, loss: torch.Tensor) -> float:
        nonlocal done
        done += 1
        if done in (3, 6):
            raise Killed
        return real(run, loss)

    save_every_step(monkeypatch)
    monkeypatch.setattr(Run, "update", update)
    for stage in ("encoder", "forecast"):
        with pytest.raises(Killed):
            tune(arm, tmp_path / "cut", init)
        assert 0 < saved_step(tmp_path / "cut" / "run" / stage) < 3
        assert not (tmp_path / "cut" / "mine").exists()
    tune(arm, tmp_path / "cut", init)
    whole, cut = (model.load(folder / "mine")[0] for folder in (quick, tmp_path / "cut"))
    assert whole.config == cut.config, "sigma, too"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, cut.state_dict()[name]), name


def test_a_model_that_is_there_is_kept_and_its_command_may_be_given_again(
    arm: Path, init: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (quick / "mine" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds another model .*give another folder with --out"):
        tune(arm, quick, init, seed=1)
    with pytest.raises(CheckpointError, match="is the model to start from"):
        fine_tune(arm, init, init=init, judge=judge, run=tmp_path / "other", threads=1, **SHORT)
    with pytest.raises(CheckpointError, match="holds no model"):
        fine_tune(arm, arm, init=init, judge=judge, run=tmp_path / "other", threads=1, **SHORT)

    def update(run: Run, loss: torch.Tensor) -> float:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(Run, "update", update)
    tune(arm, quick, init)
    assert (quick / "mine" / "model.safetensors").read_bytes() == before
    for other in ({"see_steps": 4}, {"steps": 4}, {"seed": 1}):
        with pytest.raises(ValueError, match="other settings"):
            fine_tune(arm, tmp_path / "new", init=init, judge=judge, run=quick / "run", threads=1, **SHORT | other)


def test_a_frozen_encoder_stays_as_it_was_and_a_tuned_one_learns_slowly(
    arm: Path, init: Path, quick: Path, tmp_path: Path
) -> None:
    tune(arm, tmp_path, init, encoder_lr=0.0)
    before, moved = model.load(init)[0], []
    for folder in (tmp_path, quick):
        after = model.load(folder / "mine")[0]
        first, fresh = ((net.encoder.state_dict(), net.predictor.state_dict()) for net in (before, after))
        moved.append([max(float((b[n] - a[n]).abs().max()) for n in b) for a, b in zip(first, fresh, strict=True)])
    assert moved[0][0] == 0 and 0 < moved[1][0] < 0.5 * moved[1][1], "a fifth of the rate of the predictor"


def test_with_a_thinker_its_guidance_is_learnt_and_forecasts_without_it_stay(
    arm: Path, init: Path, quick: Path, tmp_path: Path
) -> None:
    tune(arm, tmp_path, init, thinker=tiny.build(tmp_path / "thinker"), guide_steps=3)
    alone, (net, manifest) = model.load(quick / "mine")[0], model.load(tmp_path / "mine")
    assert manifest.training["thinker"].startswith("thinkjepa-mini-thinker") and manifest.training["guide_steps"] == 3
    assert net.predictor.guide is not None and net.guided_motion is not None
    state = net.state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert any(not torch.equal(p, net.motion.state_dict()[n]) for n, p in net.guided_motion.state_dict().items())


def test_the_command_does_all_of_it(arm: Path, init: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train_fine_tune)
    sizes = ["--see-steps", "1", "--see-batch", "2", "--steps", "1", "--batch-size", "2", "--variations", "0"]
    places = ["--init", str(init), "--out", str(tmp_path / "mine"), "--run", str(tmp_path / "run")]
    command = [str(arm), *places, *sizes, "--joints", "tip, elbow", "--camera", "from-data", "--threads", "1"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "held out: arm_3" in done.output and "model:=" in done.output
    assert done.output.count("Held out, 0.6 s ahead") == 2
    net, _ = model.load(tmp_path / "mine")
    assert net.config.joint_names == ("tip", "elbow")
    half = np.arctan((net.config.camera.width / 2) / net.config.camera.fx)
    assert half == pytest.approx(np.arctan(80 / arm_kit.FOCAL)), "as wide as the images of the arm"


# ---------------------------------------------------------------- what is refused


def changed(data: Path, out: Path, numbers: tuple[int, ...] = (0, 1, 2, 3), **change: Any) -> Path:
    """The episodes of `data` with the first of them changed, as a new folder."""
    out.mkdir(parents=True)
    for k, path in enumerate(list_episodes(data)):
        if k == 0:
            made = {name: value(Episode.load(path)) for name, value in change.items()}
            dataclasses.replace(Episode.load(path), **made).save(out / path.name)
        elif k in numbers:
            shutil.copy(path, out / path.name)
    return out


def thinned(data: Path, out: Path, keep: slice) -> Path:
    """The episodes with some of their frames only."""
    out.mkdir(parents=True)
    for path in list_episodes(data):
        e = Episode.load(path)
        rows = {name: getattr(e, name)[keep] for name in ("stamps_ns", "camera_pose", "joints", "visible", "states")}
        jpegs = [e.frames.jpeg(k) for k in range(len(e))[keep]]
        rows |= {"frames": type(e.frames).from_jpegs(jpegs), "phases": e.phases[keep]}
        dataclasses.replace(e, **rows, actions=np.zeros((len(jpegs) - 1, 7), np.float32)).save(out / path.name)
    return out


def test_data_that_cannot_be_learnt_from_is_refused_before_anything_is_done(
    arm: Path, init: Path, tmp_path: Path
) -> None:
    nan = {"joints": lambda e: e.joints * np.nan}
    names = {"joint_names": lambda e: ("a", "b", "c")}
    (tmp_path / "empty").mkdir()
    for data, options, words in (
        (tmp_path / "nowhere", {}, "there are no episodes in .*nowhere; make some .*data from-bag"),
        (tmp_path / "empty", {}, "there are no episodes"),
        (changed(arm, tmp_path / "one", (), **names), {}, "holds one episode; one to learn from and one to hold out"),
        (changed(arm, tmp_path / "names", **names), {}, "differ in their joints .*a, b, c in arm_0"),
        (
            thinned(arm, tmp_path / "slow", slice(None, None, 3)),
            {},
            r"come every 0.2 s, the model takes a step of 0.1 s",
        ),
        (
            thinned(arm, tmp_path / "short", slice(0, 10)),
            {},
            "no episode to learn from .* long enough: .* 0.3 s of images",
        ),
        (changed(arm, tmp_path / "nan", (1,), **nan), {"held_out": 0.5}, "no episode to learn from"),
        (arm, {"joints": ["knee"]}, "has no joint 'knee'; it has elbow, wrist, tip"),
        (arm, {"joints": ["tip", "tip"]}, "names a joint twice"),
        (arm, {"val": arm}, "holds an episode that is learnt from, too"),
        (arm, {"val": tmp_path / "nowhere"}, "there are no episodes in"),
        (arm, {"limit": 1}, "holds one episode"),
    ):
        with pytest.raises(EpisodeError, match=words):
            tune(data, tmp_path / "out", init, **options)
    everything = changed(arm, tmp_path / "dark", (), **nan)
    with pytest.raises(EpisodeError, match=r"no joint is ever known .*NaN everywhere"):
        tune(everything, tmp_path / "out", init, val=thinned(everything, tmp_path / "darker", slice(1, None)))
    for options, words in (
        ({"camera": "mine"}, "must be one of keep, from-data"),
        ({"held_out": 1.0}, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            tune(arm, tmp_path / "out", init, **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_tuned_is_refused(arm: Path, init: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "untrained")
    clip = small_net()
    clip.config = dataclasses.replace(clip.config, clip=True)
    model.save(tmp_path / "clip", clip, "clip", trained=True, domain="simulation")
    tiny.build(tmp_path / "thinker")
    for folder, words in (
        ("untrained", "is not trained; start from a model that is"),
        ("clip", "sees whole clips or a stream of them"),
        ("thinker", "model.json|format|forecaster"),
        ("nobody", "no such folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            tune(arm, tmp_path / "out", tmp_path / folder)
    assert not (tmp_path / "out").exists()


def test_stage_forecast_sends_other_joints_to_fine_tuning(arm: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "init")
    with pytest.raises(EpisodeError, match=r"are not those of .*; `thinkjepa train fine-tune"):
        train_forecast(
            arm, tmp_path / "out", init=tmp_path / "init", run=tmp_path / "run",
            thinker=tiny.build(tmp_path / "thinker"), steps=1, threads=1,
        )  # fmt: skip


# ---------------------------------------------------------------- its data


def test_whole_recordings_are_held_out_and_of_one_its_last_episodes(arm: Path) -> None:
    every = [Episode.load(path) for path in list_episodes(arm)]
    names = lambda part: [e.details["recording"]["name"] for e in part]  # noqa: E731
    for share, count in ((0.01, 1), (0.25, 1), (0.5, 2), (0.99, 3)):
        train, held = recorded.split(every, share, arm)
        assert names(train) == [f"arm_{k}" for k in range(4 - count)], share
        assert names(held) == [f"arm_{k}" for k in range(4 - count, 4)]
    together = [dataclasses.replace(e, details={"recording": {"name": "long"}}) for e in every]
    train, held = recorded.split(together, 0.2, arm)
    assert [e.seed for e in held] == [every[3].seed] and len(train) == 3


def test_joints_that_are_never_known_are_left_out_and_told(arm: Path, tmp_path: Path, init: Path) -> None:
    out = tmp_path / "part"
    out.mkdir()
    for path in list_episodes(arm):
        e = Episode.load(path)
        joints = e.joints.copy()
        joints[:, 1] = np.nan
        dataclasses.replace(e, joints=joints, domain="the bench").save(out / path.name)
    config = model.load(init)[0].config
    found = recorded.load(out, None, 0.2, config)
    assert found.joint_names == ("elbow", "tip") and found.notes == ("left out, because they are never known: wrist",)
    assert found.train[0].joints.shape[1] == 2 and found.domain == "the bench"
    with pytest.raises(EpisodeError, match="wrist is never known"):
        recorded.load(out, None, 0.2, config, joints=["wrist"])


def test_a_view_that_loses_most_joints_is_refused_and_may_be_taken_from_the_data(arm: Path) -> None:
    every = [Episode.load(path) for path in list_episodes(arm)]
    narrow = Camera(64, 64, 600.0, 600.0, 31.5, 31.5)
    assert recorded.seen_by(every, narrow) < recorded.LEAST_SEEN
    wide = recorded.camera_for(every, 64)
    assert recorded.seen_by(every, wide) == 1 and wide.fx == pytest.approx(32 / (80 / arm_kit.FOCAL))
    with pytest.raises(EpisodeError, match="no joint ever lies in its image"):
        recorded.seen_by([dataclasses.replace(e, visible=np.zeros_like(e.visible)) for e in every], wide)


def test_a_variation_is_an_exact_view_of_the_same_scene(arm: Path) -> None:
    episode, camera = Episode.load(list_episodes(arm)[0]), Camera(64, 64, 80.0, 80.0, 31.5, 31.5)
    plain = canonical_images(episode, [3], camera)
    assert Variation(5, 0).images(plain, camera) is plain
    poses = [Variation(5, number).camera_pose(episode.camera_pose, camera) for number in range(3)]
    assert poses[0] is episode.camera_pose and not np.allclose(poses[1], poses[2], atol=1e-3)
    seen = dataclasses.replace(episode, camera_pose=poses[1])  # refuses what is no rotation
    assert np.array_equal(poses[1][:, :3, 3], episode.camera_pose[:, :3, 3]), "it turns about its centre"
    dots = np.zeros((1, 64, 64, 3), np.uint8)
    pixel = camera.project(episode.joints_in_camera(3))[0]
    column, row = np.round(pixel).astype(int)
    dots[0, row - 1 : row + 2, column - 1 : column + 2] = 255
    moved = Variation(5, 1).images(dots, camera)[0].astype(float).sum(-1)
    bright = np.array(np.unravel_index(moved.argmax(), moved.shape))[::-1]
    assert np.abs(bright - camera.project(seen.joints_in_camera(3))[0]).max() < 2.5
    assert np.array_equal(Variation(5, 1).images(plain, camera), Variation(5, 1).images(plain, camera))


@pytest.mark.slow
def test_the_shipped_mini_learns_the_arm(tmp_path: Path) -> None:
    """The real start, minutes: it must beat what needs no model over its whole horizon of 3.2 s."""
    from thinkjepa_ros import resources

    data = arm_kit.episodes(tmp_path, range(8), seconds=9.0)
    outcome = fine_tune(
        data, tmp_path / "mine", init=resources.find(Path("models/mini")), run=tmp_path / "run", judge=judge, threads=2,
        see_steps=200, see_batch=8, steps=400, variations=5,
    )  # fmt: skip
    errors = outcome.errors
    for ours, suffix in ((MODEL, ""), (ANCHORED, TRUE)):
        assert errors[ours] < 0.8 * min(errors[name + suffix] for name in (HOLD, VELOCITY, DAMPED)), ours


def test_the_simulated_robot_itself_can_be_tuned_on(init: Path, tmp_path: Path) -> None:
    """Episodes of the same joints keep all their rows: a model that learns nothing is the one it started from."""
    data = simulate(tmp_path / "data" / "train", 1).parent
    simulate(data / "val", 1, seed_start=1_000_000)
    tune(data, tmp_path, init, encoder_lr=0.0, lr=0.0, see_steps=1, steps=1, variations=0)
    before, after = model.load(init)[0].state_dict(), model.load(tmp_path / "mine")[0]
    assert after.config.joint_names == JOINT_NAMES
    for name, tensor in after.motion.state_dict().items():
        assert torch.equal(tensor, before[f"motion.{name}"]), name
    about = json.loads((tmp_path / "mine" / "model.json").read_text())
    assert about["domain"] == "simulation" and about["training"]["held_out"] == ["lamp_1000000"]
