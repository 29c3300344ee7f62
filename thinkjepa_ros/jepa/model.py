"""The whole forecaster network: encoder, pose readout, guided predictor, motion readout, and its checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from ..values import Camera
from .attentive import AttentiveMotion, AttentivePose
from .encoder import Encoder, EncoderConfig
from .guidance import Payload, Ready
from .predictor import Predictor, PredictorConfig
from .readout import MotionReadout, PoseReadout, SigmaScale

KIND = "forecaster"
#: Frames of the longest window.
MAX_FRAMES = 512
#: The optical frame of the camera at the newest image: x right, y down, z forward.
FRAME = "camera_optical"
READOUTS = ("soft_argmax", "attentive")
#: Bounds of what a checkpoint may ask for: a wrong number must not become gigabytes.
_BOUNDS = {
    "encoder.image_size": (16, 1024),
    "encoder.patch_size": (4, 64),
    "encoder.width": (16, 4096),
    "encoder.depth": (1, 64),
    "encoder.heads": (1, 64),
    "encoder.mlp_ratio": (0.5, 16.0),
    "encoder.tubelet": (1, 16),
    "encoder.rope_grid": (0, 256),
    "encoder.window": (0, 256),
    "predictor.context": (2, 64),
    "predictor.context_steps": (1, 16),
    "predictor.tubelets": (1, 256),
    "predictor.tubelet_steps": (1, 64),
    "predictor.pooled": (1, 64),
    "predictor.width": (16, 4096),
    "predictor.depth": (1, 64),
    "predictor.heads": (1, 64),
    "predictor.mlp_ratio": (0.5, 16.0),
    "predictor.guide_layers": (0, 128),
    "predictor.guide_width": (0, 16384),
    "joints": (1, 512),
    "step_s": (0.001, 10.0),
}


@dataclass(frozen=True)
class ModelConfig:
    """clip and `encoder.attention` say how a window is seen:

    - clip: as one clip, encoded anew for every forecast.
    - attention "causal" without clip: as a stream of tubelets, each encoded once; a latent depends on `reach` of them.
    - else: every frame alone.
    """

    encoder: EncoderConfig
    predictor: PredictorConfig
    joint_names: tuple[str, ...]
    camera: Camera  #: the canonical camera: what the encoder's image must look like
    step_s: float = 0.1  #: grid step
    clip: bool = False
    readout: str = "soft_argmax"  #: one of READOUTS
    #: A second motion readout for guided forecasts, so that training with a thinker leaves the first one as it is.
    guided_readout: bool = False
    frame: str = FRAME  #: in which positions are given, in metres
    sigma_scale: SigmaScale | None = None  #: None where sigma is not calibrated

    @property
    def horizon(self) -> int:
        """Grid steps of a forecast."""
        return self.predictor.tubelets * self.predictor.tubelet_steps

    @property
    def streaming(self) -> bool:
        return self.encoder.attention == "causal" and not self.clip

    @property
    def frames_per_latent(self) -> int:
        return self.encoder.tubelet if self.clip or self.streaming else 1

    @property
    def reach(self) -> int:
        """Tubelets that a streamed latent depends on, its own included: `window` of them in each block."""
        return self.encoder.depth * (self.encoder.window - 1) + 1 if self.streaming else 1

    @property
    def frames(self) -> int:
        """Frames that a forecast depends on, one per grid step."""
        return self.predictor.context + (self.reach - 1) * self.frames_per_latent

    @property
    def latents_per_tubelet(self) -> int:
        """Context latents in the time of one predicted tubelet."""
        return self.predictor.tubelet_steps // self.frames_per_latent

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
        scale = values.pop("sigma_scale", None)
        config = ModelConfig(encoder, predictor, tuple(values.pop("joint_names")), camera, **values)
        config._check()
        if scale is not None:
            config = dataclasses.replace(config, sigma_scale=SigmaScale.from_dict(scale, config.horizon))
        return config

    def _check(self) -> None:
        encoder, predictor, names, camera = self.encoder, self.predictor, self.joint_names, self.camera
        for name, (low, high) in _BOUNDS.items():
            value: Any = len(names) if name == "joints" else self
            for part in name.split(".") if name != "joints" else ():
                value = getattr(value, part)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, must lie in {low} … {high}")
        if not all(isinstance(n, str) and 0 < len(n) < 100 for n in names) or len(set(names)) != len(names):
            raise ValueError("joint_names must be different, non-empty strings")
        if (camera.width, camera.height) != (encoder.image_size, encoder.image_size) or not (
            camera.fx > 0 and camera.fy > 0
        ):
            raise ValueError("the canonical camera must have the encoder's image size and a positive focal length")
        if not isinstance(self.clip, bool):
            raise ValueError(f"clip is {self.clip!r}, must be true or false")
        if self.frame != FRAME:
            raise ValueError(f"frame is {self.frame!r}; positions are known in {FRAME!r} only")
        if self.readout not in READOUTS:
            raise ValueError(f"readout is {self.readout!r}, must be one of {', '.join(READOUTS)}")
        if not isinstance(self.guided_readout, bool) or (self.guided_readout and not predictor.guide_layers):
            raise ValueError(f"guided_readout is {self.guided_readout!r}; must be true or false, without a guide false")
        if self.streaming and not encoder.window:
            raise ValueError(
                "a causal encoder that streams needs a window; set encoder.window, or clip for all to see all"
            )
        if predictor.context_steps != self.frames_per_latent:
            raise ValueError(
                f"predictor.context_steps is {predictor.context_steps}, "
                f"a latent of this encoder covers {self.frames_per_latent} grid steps"
            )
        if predictor.tubelet_steps % self.frames_per_latent:
            raise ValueError(
                f"predictor.tubelet_steps is {predictor.tubelet_steps}, must be a multiple of {self.frames_per_latent}"
            )
        if self.frames > MAX_FRAMES:
            raise ValueError(f"a forecast would need {self.frames} frames, at most {MAX_FRAMES} are kept")


class ForecastNet(nn.Module):
    """See the parts. `forecast` is what both training and inference call."""

    sigma_scale: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        e, p, joints = config.encoder, config.predictor, len(config.joint_names)
        attentive = config.readout == "attentive"
        self.encoder = Encoder(e)
        self.pose: PoseReadout | AttentivePose
        self.pose = (
            AttentivePose(joints, e.grid, e.width) if attentive else PoseReadout(joints, e.grid, e.width, config.camera)
        )
        self.predictor = Predictor(p, e.grid, e.width)
        self.motion: MotionReadout | AttentiveMotion
        sizes = (joints, p.latents, p.tubelets, p.tubelet_steps, p.pooled**2, e.width)
        motion = lambda: AttentiveMotion(*sizes) if attentive else MotionReadout(*sizes, e.grid, config.camera)  # noqa: E731
        self.motion = motion()
        self.guided_motion: MotionReadout | AttentiveMotion | None = motion() if config.guided_readout else None
        scale = config.sigma_scale
        curves = torch.tensor([scale.image_only, scale.anchored]) if scale else torch.ones(2, config.horizon)
        self.register_buffer("sigma_scale", curves, persistent=False)

    def compute_in(self, dtype: torch.dtype) -> ForecastNet:
        """Let encoder and predictor compute in `dtype`. The readouts stay in float32: they speak in metres."""
        self.encoder.to(dtype)
        self.predictor.to(dtype)
        return self

    def look(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [k, n, D] pooled [k, p^2, D], and the joints in them, float32 [k, J, 3]."""
        return self.predictor.pool(latents), self.pose(latents.float())

    def forecast(
        self, past: Tensor, now: Tensor, poses: Tensor, payload: Payload | Ready | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled past latents [B, latents-1, p^2, D], newest latent [B, n, D], poses [B, latents, J, 3] (the last one
        is now or the anchor).

        Returns displacement [B, T, J, 3] in metres, log sigma [B, T, J], future latents [B, tubelets, p^2, D].
        """
        ready = self.predictor.ready(payload) if isinstance(payload, Payload) else payload
        future = self.predictor(past, now, ready)
        return (*self.read(future.float(), now.float(), poses, ready), future)

    def read(self, future: Tensor, now: Tensor, poses: Tensor, ready: Ready | None = None) -> tuple[Tensor, Tensor]:
        """Displacement [B, T, J, 3] and log sigma [B, T, J] of predicted latents, see `forecast`.

        The readout for guided forecasts counts as much as the guidance of a row does. Rows without any are those of the
        other one, bit by bit.
        """
        return read_motion(self.motion, self.guided_motion, future, now, poses, None if ready is None else ready.amount)

    def sigma(self, log_sigma: Tensor, observed: Tensor) -> Tensor:
        """Calibrated sigma [T, J] in metres of log sigma [T, J]. observed: bool [J], which joints are known now."""
        image_only, anchored = self.sigma_scale[:, :, None]
        return log_sigma.exp() * torch.where(observed, anchored, image_only)


def read_motion(
    motion: nn.Module, guided: nn.Module | None, future: Tensor, now: Tensor, poses: Tensor, amount: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`ForecastNet.read` from its parts. amount [B] of the guidance; None: there is none."""
    if guided is None or amount is None:
        return motion(future, now, poses)
    moved, its_sigma = guided(future, now, poses)
    # Fresh guidance counts fully, and then the other readout not at all. Only a processor may look and branch.
    if amount.device.type == "cpu" and not torch.compiler.is_compiling() and bool((amount == 1).all()):
        return moved, its_sigma
    displacement, log_sigma = motion(future, now, poses)
    share = amount.to(displacement.dtype)[:, None, None]
    return torch.lerp(displacement, moved, share[..., None]), torch.lerp(log_sigma, its_sigma, share)


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load(folder: str | Path) -> tuple[ForecastNet, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: ForecastNet(ModelConfig.from_dict(config)))


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
