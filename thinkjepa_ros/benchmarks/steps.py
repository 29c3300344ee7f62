"""Whole steps of the Forecaster, from images of a 640x480 camera to a forecast: what a camera's period must hold."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch

from ..jepa import sizes
from ..jepa.forecaster import Forecaster
from ..jepa.model import ForecastNet
from ..jepa.precision import Choice
from ..values import Camera, Frame, Guidance
from . import roofline
from .roofline import Peak, Work
from .timing import Group, Target, Variant

CAMERA = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
FULL, NEWEST = "full step", "streaming step"
NOTES = {
    FULL: "the newest image brought to the model's view, every frame of the window encoded, a forecast",
    NEWEST: "the newest image brought to the model's view and encoded, a forecast",
}
#: Milliseconds on one processor core at mini size: full step and streaming step.
MINI_LIMITS = {torch.bfloat16: (20.0, 12.0), torch.float32: (40.0, 20.0)}
#: Milliseconds on a GPU for 32 frames through a ViT-L in bfloat16, of 99 steps in 100.
VITL_LIMIT = 15.0


class Drive:
    """A Forecaster behind a camera: a window of frames, of which only the newest still has to be brought to the model's
    view, and guidance that stays fresh, or none.
    """

    def __init__(self, net: ForecastNet, device: torch.device, choice: Choice, guided: bool):
        self.forecaster = Forecaster(net, "benchmark", "none", True, str(device), choice=choice)
        rng = np.random.default_rng(0)
        f = self.forecaster
        side = f.camera.width
        older = rng.integers(0, 256, (f.window - 1, side, side, 3), dtype=np.uint8)
        newest = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        self.frames = [Frame(image, i * f.step_ns) for i, image in enumerate([*older, newest])]
        self.guidance: Guidance | None = None
        if guided and f.guidance_shape:
            layers, width = f.guidance_shape
            pyramid = rng.normal(size=(layers, 2, width)).astype(np.float32)
            self.guidance = Guidance(pyramid, tuple(range(layers)), self.frames[-1].stamp_ns, valid_for_s=1e6)
        self(f.window)

    def warm_up(self) -> None:
        """From here on captured, where the device can."""
        self.forecaster.warm_up()
        self(self.forecaster.window)

    def __call__(self, newest: int) -> object:
        """Observe the newest frames, then forecast."""
        f = self.forecaster
        for frame in self.frames[-newest:]:
            f.observe(frame, CAMERA if frame is self.frames[-1] else f.camera)
        f.guide(self.guidance)
        return torch.from_numpy(f.forecast([frame.stamp_ns for frame in self.frames]).positions)


def steps(
    net: ForecastNet, title: str, device: torch.device, choice: Choice, peak: Peak, targets: Sequence[Target] = ()
) -> Group:
    """The full step and, where frames are not encoded as one clip, the streaming step; each unguided and guided."""
    weights = roofline.moved(net)
    variants = []
    drives = [Drive(net, device, choice, guided) for guided in ((False, True) if net.predictor.guide else (False,))]
    for name, newest in ((FULL, drives[0].forecaster.window), (NEWEST, 1)):
        if name == NEWEST and net.config.clip:
            continue
        for drive in drives:
            call = functools.partial(drive, newest)
            work = Work(roofline.counted(call), weights + drive.frames[-1].rgb.nbytes)
            guided = drive.guidance is not None
            variants.append(
                Variant(f"{name}, guided" if guided else name, call, work, note="" if guided else NOTES[name])
            )
    for drive in drives:
        drive.warm_up()
    for variant in variants:
        variant.note = f"{variant.note}; {drives[0].forecaster.words}" if variant.note else ""
    return Group(f"whole steps, {title}", choice.dtype, variants, peak, device, targets=targets)


def mini_targets(net: ForecastNet, device: torch.device, dtype: torch.dtype) -> list[Target]:
    """Of the shipped size on a processor, for guided steps, where the model takes guidance."""
    if device.type != "cpu":
        return []
    guided = ", guided" if net.config.predictor.guide_layers else ""
    full, newest = MINI_LIMITS[dtype]
    return [Target(FULL + guided, full), Target(NEWEST + guided, newest)]


def vitl(layers: int | None) -> ForecastNet:
    """Random weights in the full size: 32 frames of 256 px as one clip through ViT-L, 12 blocks of width 384, attentive
    readouts, guidance of Qwen3-VL-2B's shape.
    """
    torch.manual_seed(0)
    config = sizes.full(tuple(f"joint_{i}" for i in range(52)))
    if layers:
        config = dataclasses.replace(
            config,
            encoder=dataclasses.replace(config.encoder, depth=layers),
            predictor=dataclasses.replace(config.predictor, depth=min(layers, config.predictor.depth)),
        )
    return ForecastNet(config)
