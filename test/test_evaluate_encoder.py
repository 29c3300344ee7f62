"""What `thinkjepa evaluate encoder` says of frozen encoders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa_ros.data.episode import Episode, EpisodeError
from thinkjepa_ros.data.sim.play import make_episode
from thinkjepa_ros.evaluation import encoders
from thinkjepa_ros.jepa import model

MINI = Path(__file__).resolve().parents[1] / "models" / "mini"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six training and three test episodes."""
    root = tmp_path_factory.mktemp("episodes")
    for name, seeds in (("train", range(6)), ("test", range(2_000_000, 2_000_003))):
        for seed in seeds:
            episode = make_episode("none", seed, rate_hz=3.0)
            episode.save(root / name / f"none_{seed}.h5")
    return root / "train", root / "test"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net, _ = model.load(MINI)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untrained")
    model.save(folder, model.ForecastNet(net.config), "untrained", trained=False, domain="none")
    return folder


def test_a_trained_encoder_is_told_from_an_untrained_one_and_the_first_is_compared_with(
    folders: tuple[Path, Path], untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "STEPS", 40)
    train, test = folders
    trained, random = encoders.evaluate([MINI, untrained], test, train, out=tmp_path / "encoders.json")
    assert trained.joints.mean < 0.08 < random.joints.mean
    assert trained.joints_minus_first == (0, 0, 0) and random.joints_minus_first.low > 0
    assert trained.weights != random.weights and trained.spread > 0 and trained.rank > 1
    told = json.loads((tmp_path / "encoders.json").read_text())
    assert told[1]["joints"]["mean"] == pytest.approx(random.joints.mean)


def test_the_readout_of_things_learns_where_they_are(folders: tuple[Path, Path]) -> None:
    net, _ = model.load(MINI)
    episodes = [Episode.load(path) for path in sorted(folders[0].glob("*.h5"))]
    seen = encoders.look(net, episodes, "")
    with torch.inference_mode():
        mean = (seen.things - seen.things.mean(0)).norm(dim=-1).mean()
    readout = encoders.fit_things(net, seen, steps=120)
    with torch.inference_mode():
        off = (readout(seen.latents) - seen.things).norm(dim=-1).mean()
    assert off < 0.6 * mean


def test_places_are_in_the_camera_frame_of_their_own_frame(folders: tuple[Path, Path]) -> None:
    net, _ = model.load(MINI)
    episode = Episode.load(sorted(folders[1].glob("*.h5"))[0])
    seen = encoders.look(net, [episode], "")
    frames = np.linspace(0, len(episode) - 1, encoders.FRAMES).astype(int)
    for n, frame in enumerate(frames):
        pose = np.linalg.inv(episode.camera_pose[frame])
        for k, name in enumerate(sorted(episode.objects)):
            place = pose @ [*episode.objects[name][frame], 1.0]
            np.testing.assert_allclose(seen.things[n, k], place[:3], atol=1e-5)


def test_episodes_without_known_things_are_refused(folders: tuple[Path, Path]) -> None:
    net, _ = model.load(MINI)
    episode = replace(Episode.load(sorted(folders[1].glob("*.h5"))[0]), objects={})
    with pytest.raises(EpisodeError, match="nothing is known of the things"):
        encoders.look(net, [episode], "")
