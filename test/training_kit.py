"""A small network, simulated episodes and thoughts about them: what the stages are tested with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa_ros.data.episode import JOINT_NAMES, Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train import cache, clips, forecast
from thinkjepa_ros.train.mini import canonical_camera
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.tracks import Tracks
from thinkjepa_ros.values import Guidance

CAMERA = canonical_camera(64)
#: From thought to thought.
EVERY_NS = 600_000_000


def simulate(folder: Path, episodes: int = 2, seed_start: int = 0, size: str = "64") -> Path:
    """`folder` with short simulated episodes at 10 Hz."""
    from thinkjepa_ros.data.sim.generate import main

    assert main(folder, episodes, "lamp", seed_start, size=size, workers=1, rate_hz=10.0, quiet=True) == 0
    return folder


def small_net(seed: int = 0) -> model.ForecastNet:
    torch.manual_seed(seed)
    predictor = PredictorConfig(
        context=4, tubelets=3, tubelet_steps=2, width=24, depth=1, heads=2, guide_layers=2, guide_width=6
    )
    config = EncoderConfig(image_size=64, width=24, depth=1, heads=2)
    return model.ForecastNet(model.ModelConfig(config, predictor, JOINT_NAMES, CAMERA, guided_readout=True))


def think(episode: Episode) -> list[Guidance]:
    """Thoughts of noise that fit `small_net`, one per EVERY_NS."""
    times = range(int(episode.stamps_ns[0]) + EVERY_NS // 2, int(episode.stamps_ns[-1]), EVERY_NS)
    rng = np.random.default_rng(episode.seed)
    return [
        Guidance(rng.normal(size=(2, 2, 6)).astype(np.float32), (0, 1), t, 9.0, text=f"{episode.seed}: {k}")
        for k, t in enumerate(times)
    ]


def maker(net: model.ForecastNet | None = None, words: str = "noise") -> cache.Maker:
    return cache.Maker((net or small_net()).eval(), think, words)


def tracks_of(episodes: Sequence[Episode]) -> Tracks:
    return Tracks.of(episodes, [maker().make(e) for e in episodes])


def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run save after each step, as if a minute had gone by."""
    begin = Run.__post_init__

    def prepared(run: Run) -> None:
        run.save_every_s = 0.0
        begin(run)

    monkeypatch.setattr(Run, "__post_init__", prepared)


def saved_step(folder: Path) -> int:
    return int(torch.load(folder / "state.pt", weights_only=True)["step"])


def train(
    tracks: Tracks, folder: Path, steps: int = 4, dtype: str = "float32", batch_size: int = 8, guided: bool = False
):
    """A short training of stage `forecast`, or of `guide`: its network and its run."""
    net = small_net().eval()
    assert net.predictor.film is not None
    torch.nn.init.constant_(net.predictor.film.gate, 0.3)
    options = {"steps": steps, "batch_size": batch_size, "lr": 1e-3, "seed": 5, "describe": {"a": 1}}
    run: Run = forecast.train(tracks, net, folder, guided=guided, dtype=dtype, quiet=True, **options)
    return net, run


def train_in_a_process(data: Path, folder: Path, guided: bool, variables: dict[str, str]) -> None:
    """`train` as one of several processes; the weights it ends with go to weights.<rank>.pt."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    net, _ = train(tracks_of(clips.load_folder(data)), folder, guided=guided)
    torch.save(net.state_dict(), folder / f"weights.{os.environ['RANK']}.pt")
