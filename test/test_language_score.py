"""The language score: it prefers what was asked for, grows on the way there, and belongs to a planner's energy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import policy_kit
import pytest
import torch
from policy_kit import demonstrations

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control import imagination
from thinkjepa_ros.control.energy import Energy
from thinkjepa_ros.control.score import LanguageScore, ScoreConfig, load_score, save
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.train import score, world
from thinkjepa_ros.train.score import EVERY, draw, loss_of, train_score


def net() -> LanguageScore:
    torch.manual_seed(0)
    return LanguageScore(ScoreConfig(4, 12, width=32, told_width=16))


def test_it_learns_which_latent_is_which_task_and_how_far_it_is() -> None:
    """Latents of six tasks, from a start that is the same for all to an end of its own."""
    one = net()
    generator = torch.Generator().manual_seed(1)
    ends = torch.randn(6, 4, 12, generator=generator)
    optimizer = torch.optim.Adam(one.parameters(), lr=3e-3)
    for _ in range(200):
        told, done = torch.randint(6, (64,), generator=generator), torch.rand(64, generator=generator)
        done[:32] = 1.0
        loss, notes = loss_of(one, ends[told] * done[:, None, None], told, done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert notes["right"] > 0.95
    with torch.no_grad():
        cosine, progress = one(ends[:, None], one.tell(EVERY))
        assert cosine.argmax(1).tolist() == list(range(6)) and progress.argmax(1).tolist() == list(range(6))
        way = torch.linspace(0, 1, 5)[:, None, None] * ends[2]
        assert (one(way, one.tell(EVERY[2]))[1].diff() > 0).all()


def test_a_planner_is_told_the_score_of_the_last_scored_step() -> None:
    one = net()
    energy = Energy((one.term((1, 0), weight=2.0),), (1, 3))
    latents, actions = torch.randn(5, 2, 4, 12), torch.zeros(5, 4, 4)
    with torch.no_grad():
        total, parts = energy.evaluate(latents, actions, energy.pack(torch.device("cpu")))
        cosine, progress = one(latents[:, 1], one.tell(torch.tensor((1, 0))))
        torch.testing.assert_close(total, -2 * (cosine + progress))
        assert parts.shape == (5, 1)
        changed = latents.clone()
        changed[:, 0] += 1
        assert torch.equal(energy.evaluate(changed, actions, energy.pack(torch.device("cpu")))[0], total)
    assert energy.key == Energy((one.term((2, 1)),), (1, 3)).key  # another task is no other graph


def test_half_of_the_frames_are_of_tasks_that_are_done() -> None:
    found = demonstrations(2, done_after=9)
    images, told, done = draw(found, 200, np.random.default_rng(0))
    assert images.shape == (200, 32, 32, 3) and set(told.tolist()) == {0, 4}
    assert 70 < int((done == 1).sum()) < 130 and done.min() == 0


def test_the_stage_writes_a_score_that_loads(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config, _ = world.configuration(
        [policy_kit.demonstration(0)], policy_kit.ENCODER, latent=12, pooled=2, horizon=4, width=24, depth=1
    )
    imagination.save(tmp_path / "world", imagination.Imagination(config), "w", trained=True, domain="none")
    for seed in range(2):
        policy_kit.demonstration(seed, done_after=9).save(tmp_path / "data" / f"workcell_{seed:07d}.h5")
    options: dict = {"world": tmp_path / "world", "steps": 3, "batch_size": 8, "threads": 1}
    train_score(tmp_path / "data", tmp_path / "score", run=tmp_path / "run", **options)
    one, manifest = load_score(tmp_path / "score")
    assert one.config.imagination.startswith("w ") and manifest.training["command"] == "thinkjepa train score"
    again = train_score(tmp_path / "data", tmp_path / "again", run=tmp_path / "run", **options)
    assert (
        again is None
        and (tmp_path / "again" / "model.safetensors").read_bytes()
        == (tmp_path / "score" / "model.safetensors").read_bytes()
    )
    with pytest.raises(EpisodeError, match="no episode tells when"):
        train_score(policy_kit.write(tmp_path / "none", 2), tmp_path / "x", run=tmp_path / "run2", **options)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens is 0"):
        ScoreConfig(0, 4)
    save(tmp_path / "s", net(), "s", trained=False, domain="none")
    assert score.progress(10, 5) == 0.5 and score.progress(10, 14) == 1.0
    (tmp_path / "s" / "model.json").write_text("{}")
    with pytest.raises(CheckpointError):
        load_score(tmp_path / "s")
