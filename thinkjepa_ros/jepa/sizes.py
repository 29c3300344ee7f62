"""The full size. The mini's configuration is that of its recipe (`train.mini`); both run through the same code."""

from __future__ import annotations

from ..values import Camera
from .encoder import EncoderConfig
from .model import ModelConfig
from .predictor import PredictorConfig


def full(
    joint_names: tuple[str, ...],
    focal_px: float = 267.0,
    step_s: float = 0.1,
    guide_layers: int = 8,
    guide_width: int = 2048,
) -> ModelConfig:
    """The released V-JEPA 2 ViT-L (`facebook/vjepa2-vitl-fpc64-256`) on clips of 32 frames of 256 px: 3.2 s seen, 3.2 s
    forecast on the full grid of tokens, and the predictor of ThinkJEPA (arXiv 2603.22281).

    focal_px: of the canonical camera, 51 degrees wide by default. guide_layers, guide_width: what the thinker exports;
    the default is that of Qwen3-VL-2B.
    """
    size, patch, frames, tubelet = 256, 16, 32, 2
    encoder = EncoderConfig(
        size, patch, width=1024, depth=24, heads=16, tubelet=tubelet, rope="tiled", attention="full"
    )
    predictor = PredictorConfig(
        context=frames,
        tubelets=frames // tubelet,
        tubelet_steps=tubelet,
        pooled=size // patch,
        width=384,
        depth=12,
        heads=6,
        guide_layers=guide_layers,
        guide_width=guide_width,
        context_steps=tubelet,
    )
    camera = Camera(size, size, focal_px, focal_px, (size - 1) / 2, (size - 1) / 2)
    return ModelConfig(encoder, predictor, joint_names, camera, step_s, clip=True, readout="attentive")
