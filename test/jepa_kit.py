"""Small real networks and what goes into them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train.mini import canonical_camera
from thinkjepa_ros.values import Frame, Guidance

JOINTS = tuple(f"right_{i}" for i in range(5))


def config(encoder: dict[str, Any] | None = None, predictor: dict[str, Any] | None = None, **rest: Any):
    """A configuration of a network that computes in no time."""
    shape = {"image_size": 64, "patch_size": 16, "width": 48, "depth": 2, "heads": 2}
    future = {"context": 4, "tubelets": 3, "tubelet_steps": 2, "pooled": 2, "width": 48, "depth": 2, "heads": 2}
    return model.ModelConfig(
        EncoderConfig(**{**shape, **(encoder or {})}),
        PredictorConfig(**{**future, "guide_layers": 3, "guide_width": 20, **(predictor or {})}),
        JOINTS,
        canonical_camera(64),
        **rest,
    )


def small_net(seed: int = 0, gate: float = 0.7, made_as: model.ModelConfig | None = None) -> model.ForecastNet:
    """A real network, small, with open gates and no zero-initialised ends."""
    torch.manual_seed(seed)
    net = model.ForecastNet(made_as or config())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, parameter in net.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(gate)
    return net.eval().requires_grad_(False)


def guidance(seed: int = 0, **changes: object) -> Guidance:
    """One that fits `small_net`, stamped 0, valid for 10 s."""
    pyramid = np.random.default_rng(seed).normal(size=(3, 2, 20)).astype(np.float32)
    return dataclasses.replace(Guidance(pyramid, (0, 1, 2), 0, 10.0), **changes)


def images(net: model.ForecastNet, count: int, seed: int = 3) -> list[np.ndarray]:
    size = net.config.encoder.image_size
    return list(np.random.default_rng(seed).integers(0, 255, (count, size, size, 3), dtype=np.uint8))


def forecaster(net: model.ForecastNet, **options: Any) -> Forecaster:
    return Forecaster(net, "small", "test", trained=True, **options)


def fill(f: Forecaster, pictures: list[np.ndarray], start: int = 0) -> list[int]:
    """Observe the pictures one grid step apart from `start` (in steps) on, as the canonical camera; their stamps."""
    stamps = [(start + k) * f.step_ns for k in range(len(pictures))]
    for stamp, picture in zip(stamps, pictures, strict=True):
        f.observe(Frame(picture, stamp, "camera"), f.camera)
    return stamps
