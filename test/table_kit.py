"""What the cue-reach table is tested with: a simulated episode of every split, a small network, noise as thoughts."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_kit import CAMERA, think

from thinkjepa_ros.data.episode import JOINT_NAMES, Episode
from thinkjepa_ros.evaluation.cue_reach.origins import Truth, truth_of
from thinkjepa_ros.evaluation.cue_reach.rows import Prediction, Scene
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train import cache
from thinkjepa_ros.train.run import Run, Stopped
from thinkjepa_ros.train.table import Lessons, Trial, train_table
from thinkjepa_ros.train.tracks import Tracks

CONTEXT, TUBELETS, STEPS, STEP_S = 8, 8, 4, 0.1
HORIZON = TUBELETS * STEPS
EPISODES = (("lamp", 1), ("distractor", 2), ("text", 3), ("none", 4), ("lamp", 5), ("none", 6))


@functools.cache
def episode(split: str, seed: int) -> Episode:
    """64 pixels, 10 Hz."""
    from thinkjepa_ros.data.sim.play import make_episode

    return make_episode(split, seed, 64, 64, 10.0)


def episodes(count: int = 4) -> list[Episode]:
    return [episode(*which) for which in EPISODES[:count]]


def small_net(seed: int = 0, **predictor: object) -> model.ForecastNet:
    """A network that is not trained but moves joints, and listens to its guide."""
    torch.manual_seed(seed)
    sizes = {"context": CONTEXT, "tubelets": TUBELETS, "tubelet_steps": STEPS, "pooled": 2, "width": 24, "depth": 3}
    guide = {"heads": 2, "guide_layers": 2, "guide_width": 6}
    config = PredictorConfig(**{**sizes, **guide, **predictor})  # type: ignore[arg-type]
    encoder = EncoderConfig(image_size=64, width=24, depth=1, heads=2)
    second = config.guide_layers > 0
    net = model.ForecastNet(model.ModelConfig(encoder, config, JOINT_NAMES, CAMERA, guided_readout=second))
    for readout in (net.motion, net.guided_motion):
        if readout is not None:
            torch.nn.init.normal_(readout.out.weight, std=0.1)
    if net.predictor.guide is not None:
        torch.nn.init.constant_(net.predictor.guide.gate, 0.5)
    return net.eval().requires_grad_(False)


@functools.cache
def shard(split: str, seed: int) -> cache.Shard:
    return cache.Maker(small_net(), think, "noise").make(episode(split, seed))


def shards(count: int = 4) -> list[cache.Shard]:
    return [shard(*which) for which in EPISODES[:count]]


def make_scene(some: Sequence[Episode], tracks: Tracks) -> Scene:
    return Scene(tracks, make_truth(some, tracks), CONTEXT)


def make_truth(some: Sequence[Episode], tracks: Tracks) -> Truth:
    return truth_of(
        some, tracks, context=CONTEXT, tubelets=TUBELETS, steps=STEPS, joint_names=JOINT_NAMES, step_s=STEP_S
    )


def with_tracks(scene: Scene, **changes: object) -> Scene:
    """The same origins over tracks of which something is changed."""
    return dataclasses.replace(scene, tracks=dataclasses.replace(scene.tracks, **changes))  # type: ignore[arg-type]


def pack(tracks: Tracks) -> dict[str, object]:
    """Tracks as plain arrays, to be given to another process."""
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in vars(tracks).items()}


def train_table_in_a_process(
    out: Path, packed: dict[str, Any], trials: Sequence[Trial], steps: int, pause_s: float
) -> None:
    """`table.train_table` that saves after every step and takes its time. Exit code 3: it was asked to stop."""
    torch.set_num_threads(1)
    tracks = Tracks(**{
        name: torch.from_numpy(value) if Tracks.__annotations__[name] == "Tensor" else value
        for name, value in packed.items()
    })  # fmt: skip
    begin, update = Run.__post_init__, Run.update

    def prepared(run: Run) -> None:
        run.save_every_s = 0.0
        begin(run)

    def slow(run: Run, loss: torch.Tensor) -> float:
        time.sleep(pause_s)
        return update(run, loss)

    Run.__post_init__, Run.update = prepared, slow  # type: ignore[method-assign]
    try:
        train_trials(out, tracks, trials, steps)
    except Stopped:
        sys.exit(3)


def train_trials(out: Path, tracks: Tracks, trials: Sequence[Trial], steps: int, **changes: Any) -> None:
    """`table.train_table` over one small encoder; the oracle's words come from `tracks` as they are."""
    lesson = Lessons(small_net(), tracks, tracks)
    options = {"steps": steps, "guide_steps": steps, "batch_size": 4, "lr": 1e-3, "guide_lr": 1e-3}
    train_table(lambda _: lesson, out, trials, **{**options, "describe": {"data": "x"}, "dtype": "float32", **changes})


def same(one: Sequence[Prediction], other: Sequence[Prediction], where: np.ndarray | slice = slice(None)) -> bool:
    """Bit-equal at these origins, whatever the rows are called."""
    return all(
        np.array_equal(getattr(a, name)[where], getattr(b, name)[where], equal_nan=True)
        for a, b in zip(one, other, strict=True)
        for name in ("positions", "sigma", "latents")
        if getattr(a, name) is not None
    )
