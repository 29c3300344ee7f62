"""The recipe of the shipped mini: `thinkjepa train all DATA --out models/mini`.

Stage `encoder` on single frames, then the latents and thoughts of every episode, then stage `forecast`. One command,
resumable at any
point, about as long as the figures in `model.json` say.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import WEIGHTS, CheckpointError, sha256_of
from ..data.episode import JOINT_NAMES, Episode
from ..jepa import model
from ..jepa.encoder import EncoderConfig
from ..jepa.predictor import PredictorConfig
from ..thinker.qwen import Thinker
from ..values import Camera, Frame, Guidance
from ..version import __version__
from . import clips, encoder, forecast, latents
from .run import threads as use_threads

MODEL_ID = f"thinkjepa-mini-{__version__}"
DOMAIN = "simulation"
LICENCE = "Apache-2.0"
#: Seconds between two thoughts in the training data, and the earliest one.
THINK_EVERY_S, FIRST_THOUGHT_S = 1.0, 0.5
#: As long as the thinker node lets a thought be.
MAX_NEW_TOKENS = 16


def canonical_camera(size: int) -> Camera:
    """The camera that the mini sees through: a square image, 62 degrees wide (the head camera of cue-reach)."""
    focal = size / 2 / math.tan(math.radians(62) / 2)
    return Camera(size, size, focal, focal, (size - 1) / 2, (size - 1) / 2)


def configuration(guide_layers: int, guide_width: int) -> model.ModelConfig:
    """The mini: what two cores without AVX-512 run at camera rate (a frame in 6 ms, a forecast in about 12)."""
    encoder_config = EncoderConfig()
    size = encoder_config.image_size
    predictor = PredictorConfig(guide_layers=guide_layers, guide_width=guide_width)
    return model.ModelConfig(encoder_config, predictor, JOINT_NAMES, canonical_camera(size))


def untrained(out: Path, seed: int = 0, guide_layers: int = 4, guide_width: int = 128) -> None:
    """Write a checkpoint with random weights: for tests and for measuring speed. Everything that shows it says so."""
    torch.manual_seed(seed)
    model.save(out, model.ForecastNet(configuration(guide_layers, guide_width)), MODEL_ID, trained=False, domain="none")


def thinker_over(thinker: Thinker) -> Callable[[Episode], list[Guidance]]:
    """Thoughts of an episode at a fixed rhythm, each over the frames up to its own time, never later."""

    def think(episode: Episode) -> list[Guidance]:
        thinker.forget()
        slots: dict[int, int] = {}
        for index, stamp in enumerate(episode.stamps_ns):
            slots.setdefault(thinker.window.slot(int(stamp)), index)
        sparse = [Frame(episode.frames[i], int(episode.stamps_ns[i])) for i in slots.values()]
        times = np.arange(
            episode.stamps_ns[0] + int(FIRST_THOUGHT_S * 1e9), episode.stamps_ns[-1], int(THINK_EVERY_S * 1e9)
        )
        return [
            thinker.think([f for f in sparse if f.stamp_ns <= t], episode.instruction, max_new_tokens=MAX_NEW_TOKENS)
            for t in times
        ]

    return think


def train_all(
    data: Path,
    out: Path,
    *,
    run: Path,
    thinker: Path,
    encoder_steps: int = 2400,
    forecast_steps: int = 900,
    batch_size: int = 32,
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
) -> None:
    """Train the mini on the episodes in `data` (folder train/) and write it to `out`. Work in progress lives in `run`.

    The same command after a kill or Ctrl-C goes on where it was. Raises run.Stopped, EpisodeError, ThinkerError,
    CheckpointError.
    """
    use_threads(threads)
    mind = Thinker.load(thinker)
    net = _fresh(len(mind.layers), mind.width, seed)
    episodes, common = _lessons(data / "train", limit, net, seed)
    net.train()
    first = encoder.train(
        episodes,
        net,
        run / "encoder",
        steps=encoder_steps,
        batch_size=batch_size,
        lr=1e-3,
        seed=seed,
        describe={**common, "steps": encoder_steps, "batch_size": batch_size},
    )
    training: dict[str, Any] = {
        "command": "thinkjepa train all",
        "encoder_steps": encoder_steps,
        "encoder_seconds": round(first.seconds),
        "encoder_cpu_seconds": round(first.cpu_seconds),
        "batch_size": batch_size,
    }
    describe = {**common, "encoder_steps": encoder_steps}
    training |= _forecast_stage(net, episodes, mind, thinker, run, forecast_steps, seed, describe)
    model.save(
        out, net, MODEL_ID, trained=True, domain=DOMAIN, training={**training, "threads": threads}, licence=LICENCE
    )


def train_forecast(
    data: Path,
    out: Path,
    *,
    init: Path,
    run: Path,
    thinker: Path,
    forecast_steps: int = 900,
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
) -> None:
    """The second half of `train_all` alone: guided predictor and motion readout, over the encoder of the model `init`.

    For another thinker: its states mean nothing to a predictor that was trained with a different one. With the encoder
    that `train_all` makes the result is the same as with `train_all`. Raises as it does.
    """
    use_threads(threads)
    mind = Thinker.load(thinker)
    known, manifest = model.load(init)
    net = _fresh(len(mind.layers), mind.width, seed)
    for part in ("encoder", "pose"):
        try:
            getattr(net, part).load_state_dict(getattr(known, part).state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"{init}: its {part} is not of the mini's shape ({error}).") from None
    episodes, common = _lessons(data / "train", limit, net, seed)
    describe = {**common, "init": manifest.sha256[WEIGHTS]}
    training = {k: v for k, v in manifest.training.items() if k.startswith("encoder_") or k == "batch_size"}
    training |= {"command": "thinkjepa train forecast", "init": f"{manifest.model_id} {manifest.sha256[WEIGHTS][:8]}"}
    training |= _forecast_stage(net, episodes, mind, thinker, run, forecast_steps, seed, describe)
    model.save(
        out, net, MODEL_ID, trained=True, domain=DOMAIN, training={**training, "threads": threads}, licence=LICENCE
    )


def _fresh(guide_layers: int, guide_width: int, seed: int) -> model.ForecastNet:
    torch.manual_seed(seed)
    return model.ForecastNet(configuration(guide_layers, guide_width))


def _lessons(
    folder: Path, limit: int | None, net: model.ForecastNet, seed: int
) -> tuple[list[Episode], dict[str, Any]]:
    """The episodes to learn from, and what tells a run on them from any other."""
    episodes = clips.load_folder(folder, limit)
    data = clips.data_hash(folder, limit)
    return episodes, {"seed": seed, "episodes": len(episodes), "data": data, "config": net.config.as_dict()}


def _forecast_stage(
    net: model.ForecastNet,
    episodes: list[Episode],
    mind: Thinker,
    thinker: Path,
    run: Path,
    steps: int,
    seed: int,
    describe: dict[str, Any],
) -> dict[str, Any]:
    """Latents and thoughts of all episodes, then the guided predictor and the motion readout. Returns the record."""
    began = time.monotonic()
    net.eval().requires_grad_(False)
    tracks = latents.build(
        episodes,
        net,
        run / "latents",
        thinker_over(mind),
        f"{mind.model_id} {sha256_of(Path(thinker) / WEIGHTS)}",
    )
    cache_s = time.monotonic() - began
    net.predictor.requires_grad_(True)
    net.motion.requires_grad_(True)
    second = forecast.train(
        tracks,
        net,
        run / "forecast",
        steps=steps,
        batch_size=48,
        lr=1e-3,
        seed=seed + 1,
        describe={**describe, "steps": steps, "thinker": mind.model_id},
    )
    return {
        "version": __version__,
        "seed": seed,
        "episodes": len(episodes),
        "data_sha256": describe["data"],
        "cache_seconds": round(cache_s),
        "forecast_steps": steps,
        "forecast_seconds": round(second.seconds),
        "forecast_cpu_seconds": round(second.cpu_seconds),
        "torch": torch.__version__,
        "hardware": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "thinker": mind.model_id,
        "mean_pose": mean_pose(tracks).round(5).tolist(),
    }


def mean_pose(tracks: list[latents.Track]) -> np.ndarray:
    """Mean of the true joints in the camera frame over the training data, float64 [J, 3]: the baseline of the
    present.
    """
    total, count = 0.0, 0.0
    for track in tracks:
        turn, place = track.camera_pose[:, :3, :3], track.camera_pose[:, None, :3, 3]
        points = np.einsum("gkj,gjl->gkl", track.joints - place, turn)
        known = np.isfinite(points).all(-1, keepdims=True)
        total = total + np.where(known, points, 0).sum(0)
        count = count + known.sum(0)
    return np.asarray(total / np.maximum(count, 1))
