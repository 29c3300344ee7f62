"""`thinkjepa train encoder`: stage `encoder` alone, for comparing its recipes.

What it writes is a whole checkpoint of the mini whose encoder and pose readout are trained and whose predictor is not:
`thinkjepa train forecast --init` trains that over it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..jepa import model
from ..version import __version__
from . import clips, encoder, mini
from .distributed import group
from .recipes import RECIPES
from .record import made_by
from .run import threads as use_threads

MODEL_ID = f"thinkjepa-mini-encoder-{__version__}"


def train_encoder(
    data: Path,
    out: Path,
    *,
    run: Path,
    recipe: str = encoder.RECIPE,
    steps: int = 2400,
    batch_size: int = 32,
    lr: float = 1e-3,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train encoder and pose readout on the episodes in `data` (or its folder train/) and write them to `out`.

    Work in progress lives in `run`; the same command goes on where it was. Raises run.Stopped, EpisodeError,
    ValueError.
    """
    if recipe not in RECIPES:  # before the episodes are read
        raise ValueError(f"there is no recipe {recipe!r} for the encoder; choose one of {', '.join(RECIPES)}")
    where = model.torch_device(device)
    use_threads(threads)
    processes = group()  # chooses the GPU, too
    torch.manual_seed(seed)
    config = dataclasses.replace(mini.configuration(guide_layers=4, guide_width=128), guided_readout=False)
    net = model.ForecastNet(config).to(where)
    folder = data / "train" if (data / "train").is_dir() else data
    episodes = clips.load_folder(folder, limit)
    record: dict[str, Any] = {
        "seed": seed, "episodes": len(episodes), "data_sha256": clips.data_hash(folder, limit),
        "batch_size": batch_size, "encoder_lr": lr, "encoder_steps": steps, "encoder_recipe": recipe,
    }  # fmt: skip
    net.train()
    done = encoder.train(
        episodes,
        net,
        run,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        describe={**record, "config": net.config.as_dict()},
        recipe=recipe,
    )
    if processes.first:
        training = {
            **made_by("thinkjepa train encoder", threads),
            "stage": "encoder",
            **record,
            "encoder_seconds": round(done.seconds),
            "encoder_cpu_seconds": round(done.cpu_seconds),
            "processes": processes.world,
            "device": device,
        }
        # not trained: what forecasts is its predictor, and that has random weights
        model.save(out, net.cpu(), MODEL_ID, trained=False, domain=mini.DOMAIN, training=training, licence=mini.LICENCE)
    processes.wait()
