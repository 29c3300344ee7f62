"""The offline evaluation: every method sees what it may see, and the tables say what the errors are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.data.episode import JOINT_NAMES, Episode, JpegFrames
from thinkjepa_ros.evaluation import forecast as evaluation
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train.mini import canonical_camera
from thinkjepa_ros.values import Guidance

CAMERA = canonical_camera(32)
SPEED = np.array([0.1, 0.0, -0.05])  # m/s, of every joint, in a resting camera


def episode(seed: int, seconds: float = 3.0) -> Episode:
    """Joints that move at constant speed in front of a camera that does not."""
    rng = np.random.default_rng(seed)
    stamps = (np.arange(round(seconds * 20)) * 50_000_000).astype(np.int64)
    n = len(stamps)
    start = rng.uniform((-0.1, -0.1, 0.5), (0.1, 0.1, 0.7), (len(JOINT_NAMES), 3))
    joints = (start + SPEED * (stamps * 1e-9)[:, None, None]).astype(np.float32)
    return Episode(
        frames=JpegFrames.encode(list(rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8))),
        stamps_ns=stamps, camera=CAMERA, camera_pose=np.tile(np.eye(4), (n, 1, 1)), joints=joints,
        visible=np.ones((n, len(JOINT_NAMES)), bool), states=np.zeros((n, 7), np.float32),
        actions=np.zeros((n - 1, 7), np.float32), phases=np.full(n, 3, np.uint8), instruction="",
        split="none", seed=seed,
    )  # fmt: skip


def network() -> model.ForecastNet:
    torch.manual_seed(0)
    config = model.ModelConfig(
        EncoderConfig(image_size=32, patch_size=16, width=24, depth=1, heads=2),
        PredictorConfig(
            context=4, tubelets=2, tubelet_steps=2, pooled=2, width=24, depth=1, heads=2, guide_layers=2, guide_width=6
        ),
        JOINT_NAMES,
        CAMERA,
    )
    net = model.ForecastNet(config)
    assert net.predictor.film is not None
    torch.nn.init.constant_(net.predictor.film.gate, 1.0)
    return net.eval()


@pytest.fixture(scope="module")
def origins() -> evaluation.Origins:
    def thoughts(e: Episode) -> list[Guidance]:
        return [Guidance(np.ones((2, 2, 6), np.float32), (0, 1), int(e.stamps_ns[30]), 10.0)]

    return evaluation.collect(
        Forecaster(network(), "small", "test", True), [episode(1), episode(2), episode(3)], thoughts
    )


def table(report: evaluation.Report, name: str) -> dict[str, evaluation.Row]:
    return {row.method: row for row in report.tables[name]}


def test_baselines_with_the_observed_pose_know_exactly_the_true_motion(origins: evaluation.Origins) -> None:
    report = evaluation.report(origins, np.zeros((24, 3)), JOINT_NAMES, (2, 4))
    rows = table(report, "all origins, 4 steps")
    assert rows["constant velocity, observed pose"].ade.mean == pytest.approx(0, abs=1e-5)
    speed = np.linalg.norm(SPEED)
    assert rows["hold, observed pose"].fde.mean == pytest.approx(speed * 0.4, rel=1e-3)
    short = table(report, "all origins, 2 steps")["hold, observed pose"]
    assert short.fde.mean == pytest.approx(speed * 0.2, rel=1e-3)
    assert report.episodes == 3 and "reach, 4 steps" in report.tables and "wait, 4 steps" not in report.tables


def test_image_only_baselines_hold_the_models_own_estimate(origins: evaluation.Origins) -> None:
    for found, held in zip(origins.found, origins.methods[evaluation.HOLD], strict=True):
        assert np.array_equal(held, np.broadcast_to(found, held.shape))


def test_the_end_of_an_episode_is_masked_not_scored_as_zero(origins: evaluation.Origins) -> None:
    ends = [t for t in origins.truth if np.isnan(t).any()]
    assert ends and all(np.isnan(t[-1]).all() for t in ends)


def test_a_thought_of_the_future_guides_nothing(origins: evaluation.Origins) -> None:
    same = [
        np.array_equal(g, f)
        for g, f in zip(origins.methods[evaluation.GUIDED], origins.methods[evaluation.MODEL], strict=True)
    ]
    # the thought is about frame 30 (1.5 s) and counts from 0.2 s later on; origins are 0.5 s apart from 0.3 s on
    assert same[:3] == [True, True, True] and not any(same[3:5])


def test_controls_differ_from_the_model(origins: evaluation.Origins) -> None:
    for name in (evaluation.BLACK, evaluation.FOREIGN):
        assert len(origins.methods[name]) == len(origins.methods[evaluation.MODEL])
        assert not np.allclose(origins.methods[name][0], origins.methods[evaluation.MODEL][0], atol=1e-6)


def test_the_command_writes_its_figures_and_refuses_a_model_it_cannot_score(tmp_path: Path) -> None:
    for seed in (1, 2):
        episode(seed).save(tmp_path / "data" / f"none_{seed:07d}.h5")
    model.save(tmp_path / "m", network(), "small", trained=True, domain="test")
    with pytest.raises(CheckpointError, match="no mean pose"):
        evaluation.evaluate(tmp_path / "m", tmp_path / "data")
    record = {"mean_pose": np.zeros((24, 3)).tolist()}
    model.save(tmp_path / "m", network(), "small", trained=True, domain="test", training=record)
    evaluation.evaluate(tmp_path / "m", tmp_path / "data", out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["episodes"] == 2 and {"ade_m", "fde_m", "method", "minus_model_m"} <= set(
        figures["forecasts"]["all origins, 4 steps"][0]
    )
