"""Fine-tune a forecaster on recordings of another robot: `thinkjepa train fine-tune`.

Stages, each with its folder in `run`: encoder and pose readout (for the new joints; the encoder at a low rate or not at
all), latents of every episode and of variations of it, predictor and motion readout, with a thinker its guide. Then the
held-out episodes are forecast: that calibrates sigma, and says whether anything was gained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import MANIFEST, WEIGHTS, Manifest, read_manifest
from ..data.episode import Episode
from ..files import CheckpointError
from ..jepa import model
from ..jepa.readout import SigmaScale
from ..thinker.qwen import Thinker
from ..values import Camera
from . import cache, clips, defaults, distributed, encoder, forecast, recorded, transplant
from .mini import cache_maker, mean_pose, settled_dtype
from .record import made_by
from .recorded import Recorded
from .run import threads as use_threads
from .tracks import Tracks

COMMAND = "thinkjepa train fine-tune"
CAMERAS = ("keep", "from-data")
#: What the encoder learns beside the pose of the joints.
RECIPE = "end-to-end"


@dataclass(frozen=True)
class Outcome:
    """What the held-out episodes say. errors: mean distance in metres over the horizon, joints that move, by method."""

    recordings: tuple[str, ...]
    origins: int
    horizon_s: float
    errors: dict[str, float]
    all_joints: bool  #: nothing moved, so that the errors are those of all joints

    def as_dict(self) -> dict[str, Any]:
        return {
            "recordings": list(self.recordings),
            "origins": self.origins,
            "horizon_s": self.horizon_s,
            "joints": "all" if self.all_joints else "moving",
            "ade_m": {method: round(error, 5) for method, error in self.errors.items()},
        }


#: Forecasts the held-out episodes, as `evaluation.held_out.judge`: takes the net, its name, the episodes, the mean
#: pose, the thinker and whether to show the tables; returns what came of it, and the scale of sigma that is right
#: there. A parameter, since evaluation builds on training and not the other way round.
Judge = Callable[[model.ForecastNet, str, Recorded, np.ndarray, Thinker | None, bool], tuple[Outcome, SigmaScale]]


def fine_tune(
    data: Path,
    out: Path,
    *,
    init: Path,
    run: Path,
    judge: Judge,
    val: Path | None = None,
    held_out: float = defaults.HELD_OUT,
    joints: Sequence[str] = (),
    camera: str = "keep",
    thinker: Path | None = None,
    see_steps: int = defaults.TUNE_SEE_STEPS,
    see_batch: int = defaults.TUNE_SEE_BATCH,
    see_lr: float = defaults.TUNE_SEE_LR,
    encoder_lr: float = defaults.TUNE_ENCODER_LR,
    steps: int = defaults.TUNE_STEPS,
    batch_size: int = defaults.FORECAST_BATCH,
    lr: float = defaults.TUNE_LR,
    guide_steps: int = defaults.TUNE_GUIDE_STEPS,
    guide_lr: float = defaults.GUIDE_LR,
    variations: int | None = None,
    name: str = "",
    dtype: str = "auto",
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    device: str = "cpu",
) -> Outcome:
    """Train the model `init` on the episodes in `data` and write it to `out`; work in progress lives in `run`.

    judge: forecasts the held-out episodes at the end. val, held_out, joints, limit: see `recorded.load`. camera:
    "keep", what the model's images look like, or "from-data". thinker: whose guidance it learns to take; None: it will
    take none. see_*: of encoder and pose readout; encoder_lr 0 leaves the encoder as it is. variations: further ways to
    see every episode; None: as many as make TUNE_EPISODES. name: its model id, that of the folder if empty.

    Raises run.Stopped, EpisodeError, ThinkerError, CheckpointError, CacheError, ValueError.
    """
    if camera not in CAMERAS:
        raise ValueError(f"camera is {camera!r}, must be one of {', '.join(CAMERAS)}")
    where = model.torch_device(device)
    use_threads(threads)
    processes = distributed.group()  # chooses the GPU, too
    known, manifest = model.load(init)
    if not manifest.trained:
        raise CheckpointError(f"{init} is not trained; start from a model that is, such as models/mini.")
    if known.config.clip or known.config.frames_per_latent != 1:
        raise CheckpointError(
            f"{init} sees whole clips or a stream of them; fine-tuning is for models that see one frame at a time, "
            "such as models/mini."
        )
    found = recorded.load(data, val, held_out, known.config, joints, limit)
    view, words = _view(found, known.config.camera, camera)
    mind = None if thinker is None else Thinker.load(thinker, device)
    more = max(0, defaults.TUNE_EPISODES // len(found.train) - 1) if variations is None else variations
    common: dict[str, Any] = {
        "init": manifest.model_id, "init_sha256": manifest.sha256[WEIGHTS], "data": data.resolve().name,
        "data_sha256": found.sha256, "episodes": len(found.train), "held_out": found.held_names, "seed": seed,
        "camera": camera, "thinker": "" if mind is None else mind.model_id,
    }  # fmt: skip
    sizes = {
        "see_steps": see_steps, "see_batch_size": see_batch, "see_lr": see_lr, "encoder_lr": encoder_lr,
        "forecast_steps": steps, "forecast_batch_size": batch_size, "forecast_lr": lr, "variations": more,
    } | ({} if mind is None else {"guide_steps": guide_steps, "guide_lr": guide_lr})  # fmt: skip
    identity = _identity(common | sizes | {"joints": found.joint_names})
    _check_out(out, init, identity)
    if processes.first:
        for line in (*found.notes, *words):
            print(line)
        print(f"Learning from {len(found.train)} episodes; held out: {', '.join(found.held_names)}.")
    guide = None if mind is None else (len(mind.layers), mind.width)
    same_mind = mind is not None and manifest.training.get("thinker") == mind.model_id
    config = transplant.configuration(known.config, found.joint_names, view, guide)
    net = transplant.taken_over(known, config, seed, guide=same_mind).to(where)

    about = {**common, "config": net.config.as_dict()}
    seeing: dict[str, Any] = {"steps": see_steps, "batch_size": see_batch, "lr": see_lr}
    net.requires_grad_(True)
    see = encoder.train(
        found.train, net, run / "encoder", **seeing, seed=seed, describe={**about, **seeing},
        recipe=RECIPE if encoder_lr else "pose", encoder_rate=encoder_lr / see_lr if see_lr else 0.0,
    )  # fmt: skip
    net.eval().requires_grad_(False)
    record = {**sizes, "see_seconds": round(see.seconds), "see_cpu_seconds": round(see.cpu_seconds)}
    maker = cache.Maker(net) if mind is None or thinker is None else cache_maker(net, mind, thinker)
    tracks = _tracks(found.train, maker, more, run / "cache", processes)
    chosen = settled_dtype(dtype, where, config.predictor.width, run / "forecast" / "dtype", processes)
    stages = [("forecast", steps, lr)] + ([] if mind is None else [("guide", guide_steps, guide_lr)])
    for stage, many, highest in stages:
        settings = {"steps": many, "batch_size": batch_size, "lr": highest, "cache": maker.made_by, "variations": more}
        done = forecast.train(
            tracks, net, run / stage, steps=many, batch_size=batch_size, lr=highest, seed=seed + 1,
            describe={**about, **settings}, guided=stage == "guide", dtype=chosen,
        )  # fmt: skip
        record |= {f"{stage}_seconds": round(done.seconds), f"{stage}_cpu_seconds": round(done.cpu_seconds)}

    net.cpu()
    title = name or out.resolve().name
    mean = mean_pose(tracks)
    outcome, scale = judge(net, title, found, mean, mind, processes.first)
    if processes.first:
        net.config = dataclasses.replace(net.config, sigma_scale=scale)
        training = {
            **made_by(COMMAND, threads), "identity": identity, **common, **record,
            "init_domain": manifest.domain, "dtype": chosen, "mean_pose": mean.round(5).tolist(),
            "outcome": outcome.as_dict(),
            "sigma_calibration": {"method": "maximum likelihood", "data": found.held_names, "origins": outcome.origins},
            "processes": processes.world, "device": device,
        }  # fmt: skip
        model.save(out, net, title, trained=True, domain=found.domain, training=training, licence=manifest.licence)
    processes.wait()
    return outcome


def _view(found: Recorded, canonical: Camera, how: str) -> tuple[Camera, list[str]]:
    """The canonical camera, and what to say about it."""
    everything = [*found.train, *found.held]
    if how == "from-data":
        canonical = recorded.camera_for(everything, canonical.width)
    seen = recorded.seen_by(everything, canonical)
    if seen < recorded.LEAST_SEEN:
        raise ValueError(
            f"the model's field of view holds {seen:.0%} of the joints in the images; give --camera from-data, then it "
            "is made as wide as the images"
        )
    told = f"The model's view of the images holds {seen:.0%} of the joints in them"
    return canonical, [f"{told}." if seen > 0.95 or how != "keep" else f"{told}; --camera from-data makes it wider."]


def _identity(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _check_out(out: Path, init: Path, identity: str) -> None:
    """Raises CheckpointError if `out` holds anything but what this command would write."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.resolve() == init.resolve():
        raise CheckpointError(f"{out} is the model to start from; give another folder with --out.")
    if (out / MANIFEST).is_file():
        there: Manifest = read_manifest(out, model.KIND)
        if there.training.get("identity") == identity:
            return
        raise CheckpointError(
            f"{out} holds another model ({there.model_id}, or the same of other data or settings); give another folder "
            "with --out, or remove it."
        )
    raise CheckpointError(f"{out} is there and holds no model; give another folder with --out.")


def _tracks(
    episodes: list[Episode], maker: cache.Maker, variations: int, folder: Path, processes: distributed.Group
) -> Tracks:
    """All episodes as they are, then their variations, by way of the cache; thoughts are those of the episodes as they
    are.
    """
    shards: list[cache.Shard] = []
    seen: list[Episode] = []
    for number in range(variations + 1):
        made_by = maker if not number else cache.Maker(maker.net, variation=number)
        place, title = folder / str(number), f"Latents {number + 1} of {variations + 1}"
        cache.fill(episodes, made_by, place, rank=processes.rank, world=processes.world, title=title)
        processes.wait()
        found = cache.load(episodes, place, made_by.made_by)
        for episode, shard, known in zip(episodes, found, shards[: len(episodes)] or found, strict=True):
            pose = clips.Variation(episode.seed, number).camera_pose(episode.camera_pose, maker.net.config.camera)
            seen.append(dataclasses.replace(episode, camera_pose=pose))
            thoughts = {name: getattr(known, name) for name in ("thought_ns", "pyramids", "texts")}
            shards.append(dataclasses.replace(shard, **thoughts))
    return Tracks.of(seen, shards)
