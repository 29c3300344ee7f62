"""The whole forecaster network: encoder, pose readout, guided predictor, motion readout, and its checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import CheckpointError, Manifest
from ..values import Camera
from .encoder import Encoder, EncoderConfig
from .guidance import Payload
from .predictor import Predictor, PredictorConfig
from .readout import MotionReadout, PoseReadout

KIND = "forecaster"


@dataclass(frozen=True)
class ModelConfig:
    encoder: EncoderConfig
    predictor: PredictorConfig
    joint_names: tuple[str, ...]
    camera: Camera  #: the canonical camera: what the encoder's image must look like
    step_s: float = 0.1  #: grid step

    @property
    def horizon(self) -> int:
        return self.predictor.tubelets * self.predictor.tubelet_steps

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Raises ValueError or TypeError on anything but a complete, sane configuration."""
        values = dict(values)
        encoder = EncoderConfig(**values.pop("encoder"))
        predictor = PredictorConfig(**values.pop("predictor"))
        camera = values.pop("camera")
        camera = Camera(**{**camera, "distortion": tuple(camera.get("distortion", ()))})
        names = tuple(values.pop("joint_names"))
        config = ModelConfig(encoder, predictor, names, camera, **values)
        bounds = {
            "encoder.image_size": (encoder.image_size, 16, 1024),
            "encoder.patch_size": (encoder.patch_size, 4, 64),
            "encoder.width": (encoder.width, 16, 4096),
            "encoder.depth": (encoder.depth, 1, 64),
            "encoder.heads": (encoder.heads, 1, 64),
            "predictor.context": (predictor.context, 2, 64),
            "predictor.tubelets": (predictor.tubelets, 1, 256),
            "predictor.tubelet_steps": (predictor.tubelet_steps, 1, 64),
            "predictor.pooled": (predictor.pooled, 1, 64),
            "predictor.width": (predictor.width, 16, 4096),
            "predictor.depth": (predictor.depth, 1, 64),
            "predictor.heads": (predictor.heads, 1, 64),
            "predictor.guide_layers": (predictor.guide_layers, 0, 128),
            "predictor.guide_width": (predictor.guide_width, 0, 16384),
            "joints": (len(names), 1, 512),
            "step_s": (config.step_s, 0.001, 10.0),
        }
        for name, (value, low, high) in bounds.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, must lie in {low} … {high}")
        if not all(isinstance(n, str) and 0 < len(n) < 100 for n in names) or len(set(names)) != len(names):
            raise ValueError("joint_names must be different, non-empty strings")
        if (camera.width, camera.height) != (encoder.image_size, encoder.image_size) or not (
            camera.fx > 0 and camera.fy > 0
        ):
            raise ValueError("the canonical camera must have the encoder's image size and a positive focal length")
        return config


class ForecastNet(nn.Module):
    """See the parts. `forecast` is what both training and inference call."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        e, p, joints = config.encoder, config.predictor, len(config.joint_names)
        self.encoder = Encoder(e)
        self.pose = PoseReadout(joints, e.grid, e.width, config.camera)
        self.predictor = Predictor(p, e.grid, e.width)
        self.motion = MotionReadout(joints, p.context, p.tubelets, p.tubelet_steps, p.pooled**2, e.width)

    def forecast(
        self,
        past: Tensor,
        now: Tensor,
        poses: Tensor,
        payload: Payload | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled past latents [B, context-1, p^2, D], newest latent [B, n, D], poses [B, context, J, 3] (the last one
        is now or the anchor).

        Returns displacement [B, T, J, 3] in metres, log sigma [B, T, J], future latents [B, tubelets, p^2, D].
        """
        future = self.predictor(past, now, payload)
        displacement, log_sigma = self.motion(future, poses)
        return displacement, log_sigma, future


def save(
    folder: str | Path,
    net: ForecastNet,
    model_id: str,
    *,
    trained: bool,
    domain: str,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder."""
    manifest = Manifest(KIND, model_id, net.config.as_dict(), trained, domain, training or {})
    checkpoints.save(folder, manifest, net.state_dict())


def load(folder: str | Path) -> tuple[ForecastNet, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    manifest = checkpoints.read_manifest(folder, KIND)
    try:
        config = ModelConfig.from_dict(manifest.config)
        net = ForecastNet(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{Path(folder) / checkpoints.MANIFEST}: the configuration is not usable ({error})."
        ) from None
    checkpoints.fill(net, checkpoints.load_state(folder, manifest), folder)
    return net.eval().requires_grad_(False), manifest


def torch_device(name: str) -> torch.device:
    """A usable device, or ValueError with the remedy."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not a torch device; use 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name!r}: this torch sees no CUDA GPU; use device 'cpu' or install the CUDA build (TORCH=cuda)"
        )
    return device
