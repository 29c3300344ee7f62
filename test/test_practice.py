"""Episodes that a policy drives while an expert says what it would have done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import policy_kit
import pytest

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control.policy import load_policy, save
from thinkjepa_ros.data.episode import Episode, list_episodes
from thinkjepa_ros.data.sim.tasks import STEP_LIMIT
from thinkjepa_ros.train import policy, practice

pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save(folder, policy_kit.policy(), "small", trained=False, domain="test")
    return folder


def test_a_policy_drives_within_the_bounds_and_the_expert_is_heard(checkpoint: Path, tmp_path: Path) -> None:
    options = {"seed_start": 7, "size": "64", "quiet": True}
    assert practice.main(tmp_path / "one", checkpoint, 2, workers=2, **options) == 0
    episodes = [Episode.load(path) for path in list_episodes(tmp_path / "one", "workcell")]
    assert [e.details["kind"] for e in episodes] == ["pick_place_lamp", "pick_place_text"]
    helped = 0
    for e in episodes:
        done, right = e.actions[:, [0, 1, 2, 6]], np.array(e.details["expert_actions"])
        assert e.details["behaviour"] == "policy" and right.shape == done.shape
        assert np.abs(done[:, :3]).max() <= np.float32(STEP_LIMIT) and done[:, 3].min() >= 0 and done[:, 3].max() <= 1
        same = np.isclose(done, right, atol=1e-4).all(1)
        assert not same.all(), "the policy drives"
        helped += int(same.sum())
    assert helped > 0, "now and then the expert takes over"
    # the same again, in another number of processes, and nothing of another policy among it
    assert practice.main(tmp_path / "two", checkpoint, 2, workers=1, **options) == 0
    for path in list_episodes(tmp_path / "one", "workcell"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    other = tmp_path / "other"
    save(other, policy_kit.policy(seed=5), "other", trained=False, domain="test")
    with pytest.raises(ValueError, match="other settings"):
        practice.main(tmp_path / "one", other, 2, **options)


def test_a_policy_learns_from_practice_too(checkpoint: Path, tmp_path: Path) -> None:
    data = policy_kit.write(tmp_path / "data" / "train", 2).parent
    practice.main(tmp_path / "practised", checkpoint, 1, seed_start=8, size="64", workers=1, quiet=True)
    options: dict = {"steps": 2, "batch_size": 4, "threads": 1, "dtype": "float32", "run": tmp_path / "run"}
    policy.train_policy(data, tmp_path / "out", start=checkpoint, more=[tmp_path / "practised"], **options)
    training = load_policy(tmp_path / "out")[1].training
    assert training["episodes"] == 3 and training["demonstrations"] == 3 and len(training["data_sha256"].split()) == 2


def test_bad_requests_are_refused_in_words(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cube and tray are told"):
        practice.main(tmp_path / "x", checkpoint, 1, kind="reach")
    with pytest.raises(ValueError, match="1 or more"):
        practice.main(tmp_path / "x", checkpoint, 0)
    with pytest.raises(ValueError, match="no image size"):
        practice.main(tmp_path / "x", checkpoint, 1, size="big")
    with pytest.raises(CheckpointError):
        practice.main(tmp_path / "x", tmp_path, 1)
    assert not (tmp_path / "x").exists()
