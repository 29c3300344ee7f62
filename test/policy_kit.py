"""Demonstrations in the tiny work cell of `world_kit`: go to the cube that is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import world_kit

from thinkjepa_ros.control.policy import Policy, PolicyConfig
from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.train.policy_data import Demonstration
from thinkjepa_ros.values import Camera

ENCODER = EncoderConfig(image_size=32, patch_size=8, width=24, depth=1, heads=2)
CAMERA = Camera(32, 32, 30.0, 30.0, 15.5, 15.5)
CONFIG = PolicyConfig(
    ENCODER, CAMERA, horizon=4, width=24, heads=2, reader_depth=1, depth=2, queries=3, features=16, detail=6
)


def demonstration(seed: int, frames: int = 12, **details: object) -> Episode:
    """details: beside those of an expert that succeeded."""
    one = world_kit.episode(seed, frames)
    cube = one.objects["cube"]
    tray = np.repeat(np.array([[0.2, 0.3, 0.0]], np.float32), frames, 0)
    return dataclasses.replace(
        one,
        objects={"cube_red": cube, "cube_blue": cube + np.float32(0.1), "tray_left": tray, "tray_right": -tray},
        intent={"cube": ("red", "blue")[seed % 2], "tray": "left", "class": 4 * (seed % 2)},
        details={"behaviour": "expert", "success": True, **details},
        split="workcell",
    )


def write(folder: Path, count: int, frames: int = 12) -> Path:
    for seed in range(count):
        demonstration(seed, frames).save(folder / f"workcell_{seed:07d}.h5")
    return folder


def demonstrations(count: int = 3, **details: object) -> list[Demonstration]:
    return [Demonstration.of(demonstration(seed, **details), CAMERA, 0.2) for seed in range(count)]


def policy(seed: int = 0, **changes: object) -> Policy:
    """With weights in all layers, also in those that begin at zero."""
    import torch

    torch.manual_seed(seed)
    net = Policy(dataclasses.replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]
    for part in (*net.modulate, net.out):
        torch.nn.init.normal_(part.weight, std=0.1)
    if net.film is not None:
        torch.nn.init.constant_(net.film.gate, 0.5)
    return net
