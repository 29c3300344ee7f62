"""The recipe of the shipped mini: what it is, and the stages `cache`, `forecast` and `guide` around it.

`stages` puts them in a row with those of the encoder and the thinker.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import WEIGHTS, CheckpointError, Manifest, sha256_of, write_atomically
from ..data.episode import JOINT_NAMES, Episode, EpisodeError
from ..jepa import model, precision
from ..jepa.encoder import EncoderConfig
from ..jepa.predictor import PredictorConfig
from ..thinker.qwen import Thinker
from ..values import Camera, Frame, Guidance
from ..version import __version__
from . import cache, clips, defaults, distributed, forecast
from .record import made_by
from .run import threads as use_threads
from .tracks import Tracks

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
    return model.ModelConfig(
        encoder_config, predictor, JOINT_NAMES, canonical_camera(size), guided_readout=guide_layers > 0
    )


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


def cache_maker(net: model.ForecastNet, mind: Thinker, thinker: Path) -> cache.Maker:
    """What fills the cache of stage `forecast`. thinker: the folder that `mind` was loaded from."""
    rhythm = f"every {THINK_EVERY_S} s from {FIRST_THOUGHT_S} s, at most {MAX_NEW_TOKENS} tokens"
    return cache.Maker(net, thinker_over(mind), f"{mind.model_id} {sha256_of(Path(thinker) / WEIGHTS)} {rhythm}")


def folder_of(data: Path) -> Path:
    """The episodes to learn from: DATA/train, or DATA itself where it has no such folder."""
    return data / "train" if (data / "train").is_dir() else data


def fill_cache(
    data: Path,
    out: Path,
    *,
    init: Path,
    thinker: Path,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    threads: int = 2,
    device: str = "cpu",
) -> tuple[int, int]:
    """`thinkjepa train cache`: the shards of every world-th episode of `data`, from number `rank` on.

    init: checkpoint folder whose encoder and pose readout are used. Returns how many were made, and of how many.
    Raises EpisodeError, ThinkerError, CheckpointError, CacheError.
    """
    where = model.torch_device(device)
    use_threads(threads)
    net = model.load(init)[0].to(where).eval().requires_grad_(False)
    maker = cache_maker(net, Thinker.load(thinker, device), thinker)
    episodes = clips.load_folder(folder_of(data), limit)
    return cache.fill(episodes, maker, out, rank=rank, world=world), len(episodes[rank::world])


def cached(episodes: list[Episode], maker: cache.Maker, folder: Path, processes: distributed.Group) -> Tracks:
    """The tracks of all episodes, by way of the cache in `folder`: each process makes its part of what is missing."""
    cache.fill(episodes, maker, folder, rank=processes.rank, world=processes.world)
    processes.wait()
    return Tracks.of(episodes, cache.load(episodes, folder, maker.made_by))


def train_forecast(
    data: Path,
    out: Path,
    *,
    init: Path,
    run: Path,
    thinker: Path,
    latents: Path | None = None,
    keep: bool = False,
    steps: int = defaults.FORECAST_STEPS,
    guide_steps: int = defaults.GUIDE_STEPS,
    batch_size: int = defaults.FORECAST_BATCH,
    lr: float = defaults.FORECAST_LR,
    guide_lr: float = defaults.GUIDE_LR,
    dtype: str = "auto",
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    device: str = "cpu",
    command: str = "thinkjepa train forecast",
) -> None:
    """Predictor and motion readout over the encoder and pose readout of the model `init`, then what a thinker changes
    in them: stages `forecast` and `guide`.

    keep: the predictor of `init` stays, too; only the guide is trained, for another thinker. latents: folder of the
    cache, made where it is missing; default `run`/cache. Under torchrun all processes fill it. Raises run.Stopped,
    EpisodeError, ThinkerError, CheckpointError, CacheError, ValueError.
    """
    where = model.torch_device(device)
    use_threads(threads)
    processes = distributed.group()  # chooses the GPU, too
    mind = Thinker.load(thinker, device)
    net, manifest = _over(init, len(mind.layers), mind.width, seed, keep)
    net.to(where).eval().requires_grad_(False)
    source = folder_of(data)
    episodes = clips.load_folder(source, limit)
    for e in episodes:
        if e.joint_names != net.config.joint_names:
            raise EpisodeError(
                f"{source}: the joints of {e.split}_{e.seed} are not those of {init} ({e.joint_names[0]}, … and "
                f"{net.config.joint_names[0]}, …); `thinkjepa train fine-tune {data}` makes a model for them."
            )
    began = time.monotonic()
    maker = cache_maker(net, mind, thinker)
    tracks = cached(episodes, maker, latents or run / "cache", processes)
    cache_s = time.monotonic() - began
    base = manifest.name
    common: dict[str, Any] = {"seed": seed, "episodes": len(episodes), "data_sha256": clips.data_hash(source, limit)}
    chosen = settled_dtype(dtype, where, net.config.predictor.width, run / "forecast" / "dtype", processes)
    kept = {
        k: v for k, v in manifest.training.items() if k.startswith(("encoder_", "forecast_") if keep else "encoder_")
    }
    record = {**kept, "batch_size": manifest.training.get("batch_size"), **common, "init": base}
    stages = [(True, guide_steps, guide_lr)] if keep else [(False, steps, lr), (True, guide_steps, guide_lr)]
    for guided, many, highest in stages:
        name = "guide" if guided else "forecast"
        settings = {f"{name}_steps": many, f"{name}_batch_size": batch_size, f"{name}_lr": highest}
        about = {**common, **settings, "config": net.config.as_dict(), "cache": maker.made_by, "init": base}
        done = forecast.train(
            tracks,
            net,
            run / name,
            steps=many,
            batch_size=batch_size,
            lr=highest,
            seed=seed + 1,
            describe=about,
            guided=guided,
            dtype=chosen,
        )
        times = {f"{name}_seconds": round(done.seconds), f"{name}_cpu_seconds": round(done.cpu_seconds)}
        record |= {**settings, f"{name}_dtype": chosen, **times}
    if processes.first:
        training = {
            **record,
            **made_by(command, threads),
            "cache_seconds": round(cache_s),
            "thinker": mind.model_id,
            "mean_pose": mean_pose(tracks).round(5).tolist(),
            "processes": processes.world,
            "device": device,
        }
        model.save(out, net.cpu(), MODEL_ID, trained=True, domain=DOMAIN, training=training, licence=LICENCE)
    processes.wait()


def settled_dtype(
    want: str, device: torch.device, width: int, file: Path, processes: distributed.Group = distributed.ALONE
) -> str:
    """The type to train in, one for all processes. "auto" times the machine, which may come out differently when the
    run goes on after a stop: so the first answer is written to `file` and holds.
    """
    if want != "auto":
        return want
    known = file.read_text().strip() if file.exists() else ""
    if known not in precision.WANTED or known == "auto":
        known = precision.choose(device, want, width).name
    known = str(processes.gather(known)[0])
    if processes.first:
        write_atomically(file, known.encode())
    processes.wait()
    return known


def _over(init: Path, guide_layers: int, guide_width: int, seed: int, keep: bool) -> tuple[model.ForecastNet, Manifest]:
    """A fresh mini with the encoder and the pose readout of the model `init`, whose manifest goes with it. keep: its
    predictor and motion readout, too.
    """
    known, manifest = model.load(init)
    torch.manual_seed(seed)
    config = configuration(guide_layers, guide_width)
    if keep:  # its sigma without guidance stays right
        config = dataclasses.replace(config, sigma_scale=known.config.sigma_scale)
    net = model.ForecastNet(config)
    parts = ("encoder", "pose", "motion") if keep else ("encoder", "pose")
    try:
        for part in parts:
            getattr(net, part).load_state_dict(getattr(known, part).state_dict())
        if keep:
            part = "predictor"
            net.predictor.take(known.predictor)
    except RuntimeError as error:
        raise CheckpointError(f"{init}: its {part} is not of the mini's shape ({error}).") from None
    return net, manifest


def mean_pose(tracks: Tracks) -> np.ndarray:
    """Mean of the true joints in the camera frame over the training data, float64 [J, 3]: the baseline of the
    present.
    """
    points = torch.einsum("gkj,gjl->gkl", tracks.joints - tracks.place[:, None], tracks.rotation).double()
    known = points.isfinite().all(-1, keepdim=True)
    return np.asarray(torch.where(known, points, 0.0).sum(0) / known.sum(0).clamp(min=1))
