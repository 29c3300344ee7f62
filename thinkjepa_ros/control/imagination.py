"""What a planner imagines with: an encoder, the latents it plans in, and the world model over them. One checkpoint.

    image -> `see` -> latents [n, Z] -> `world.remember` -> `world.imagine(actions)` -> latents after every action
                                   `pool` of the goal image's latents <- `energy` -> how far from the goal

Every frame is encoded alone, as in V-JEPA 2-AC (arXiv 2506.09985). The latents are a linear map of the encoder's
tokens: a layer norm ends the encoder, and what it leaves has not the freedom that the penalty against collapse asks
for. A token of a small encoder covers several centimetres, and pooling blurs it further: `points` (soft argmaxes over a
finer map) tell every latent where things are, in dimensions of their own.
States and actions are those of `space`: in the orientation of the camera.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from ..jepa.encoder import Encoder, EncoderConfig
from ..jepa.world_model import WorldModel, WorldModelConfig
from ..stream.geometry import CanonicalView
from ..values import Camera
from . import space
from .eye import STRIDE, Points

KIND = "imagination"
#: How far a latent is from the goal, see `Imagination.energy`.
ENERGIES = ("l1", "l2", "likelihood", "place")


@dataclass(frozen=True)
class ImaginationConfig:
    """Raises ValueError where encoder, world model and camera do not fit together."""

    encoder: EncoderConfig
    world: WorldModelConfig
    camera: Camera  #: the canonical camera: what the encoder's image must look like
    action_s: float = 0.2  #: seconds that an action lasts, and from one context latent to the next
    points: int = 0  #: see the head of this file
    points_width: int = 0  #: how many dimensions of a latent are theirs

    def __post_init__(self) -> None:
        size = self.encoder.image_size
        if self.world.grid != self.encoder.grid:
            raise ValueError(f"the world model's grid is {self.world.grid}, the encoder's {self.encoder.grid}")
        if (self.world.action_dim, self.world.state_dim) != (space.DIM, space.DIM):
            raise ValueError(f"states and actions have {space.DIM} numbers; set action_dim and state_dim to that")
        if (self.camera.width, self.camera.height) != (size, size) or self.camera.distortion:
            raise ValueError(f"the canonical camera must be a pinhole of {size}x{size} pixels")
        if not 0.01 <= self.action_s <= 10:
            raise ValueError(f"action_s is {self.action_s!r}, must lie in 0.01 … 10")
        if type(self.points) is not int or not 0 <= self.points <= 1024:
            raise ValueError(f"points is {self.points!r}, must be a whole number in 0 … 1024")
        if self.points and size % STRIDE:
            raise ValueError(f"points need images of a multiple of {STRIDE} pixels, not {size}")
        low, high = (1, self.world.latent_width - 1) if self.points else (0, 0)
        if type(self.points_width) is not int or not low <= self.points_width <= high:
            raise ValueError(
                f"points_width is {self.points_width!r}, must be in {low} … {high}: below the latents' width, and 0 if "
                "there are no points"
            )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ImaginationConfig:
        """Raises ValueError, TypeError or KeyError on anything but a complete, sane configuration."""
        values = dict(values)
        camera = values.pop("camera")
        return ImaginationConfig(
            EncoderConfig(**values.pop("encoder")),
            WorldModelConfig(**values.pop("world")),
            Camera(**{**camera, "distortion": tuple(camera.get("distortion", ()))}),
            **values,
        )


class Imagination(nn.Module):
    """See the head of this file. `place` reads the robot's state from pooled latents; it is trained with them, so that
    they know where the gripper is.
    """

    likelihood_scale: Tensor

    def __init__(self, config: ImaginationConfig):
        super().__init__()
        self.config = config
        w = config.world
        self.encoder = Encoder(config.encoder)
        self.project = nn.Linear(config.encoder.width, w.latent_width - config.points_width)
        nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.points = Points(config.camera, config.points, config.points_width) if config.points else None
        self.world = WorldModel(w)
        self.place = nn.Linear(w.tokens * w.latent_width, w.state_dim)
        #: Mean absolute error of the predictions on training data, by token and width.
        self.register_buffer("likelihood_scale", torch.ones(w.tokens, w.latent_width))

    def view(self, camera: Camera | None) -> CanonicalView:
        """What turns images of `camera` (None: unknown) into those that `see` takes."""
        return CanonicalView(camera, self.config.camera)

    def see(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] as the canonical camera sees them -> latents [B, n, Z], each image alone."""
        return seen_by(self.eye, images)

    @property
    def eye(self) -> tuple[nn.Module, ...]:
        """What `see` computes with, for `seen_by`."""
        return (self.encoder, self.project) if self.points is None else (self.encoder, self.project, self.points)

    def pool(self, latents: Tensor) -> Tensor:
        """[..., n, Z] -> [..., M, Z]: the form of goals, of the past, and of what is imagined."""
        return self.world.pool(latents)

    def unpool(self, pooled: Tensor) -> Tensor:
        """[..., M, Z] -> [..., n, Z], each token at all its places: so an imagined latent can be looked on as seen."""
        c = self.config.world
        *lead, _, width = pooled.shape
        step = c.grid // c.pooled
        cells = pooled.reshape(*lead, c.pooled, 1, c.pooled, 1, width)
        cells = cells.expand(*lead, c.pooled, step, c.pooled, step, width)
        return cells.reshape(*lead, c.grid**2, width)

    def read_state(self, pooled: Tensor) -> Tensor:
        """The robot's state in the optical frame [..., 4], as pooled latents [..., M, Z] show it."""
        return self.standard_state(pooled) * self.world.state_std + self.world.state_mean

    def standard_state(self, pooled: Tensor) -> Tensor:
        """`read_state` in standard deviations of the training data."""
        state: Tensor = self.place(pooled.flatten(-2))
        return state

    def energy(self, predicted: Tensor, goal: Tensor, kind: str = "l1") -> Tensor:
        """How far imagined latents [..., M, Z] are from the goal, [...]. goal: [M, Z] or anything that broadcasts.

        - "l1", "l2": mean absolute difference, root of the mean squared one.
        - "likelihood": absolute differences in units of what the model is usually wrong by, mean. Up to a constant the
          negative logarithm of a Laplace density: what cannot be foretold counts little.
        - "place": distance of the states that `read_state` sees in both, in standard deviations.
        """
        if kind == "place":
            return (self.standard_state(predicted) - self.standard_state(goal)).norm(dim=-1)
        difference = predicted - goal
        if kind == "l1":
            return difference.abs().mean((-2, -1))
        if kind == "l2":
            return difference.square().mean((-2, -1)).sqrt()
        if kind == "likelihood":
            return (difference.abs() / self.likelihood_scale).mean((-2, -1))
        raise ValueError(f"there is no energy {kind!r}; choose one of {', '.join(ENERGIES)}")


def seen_by(eye: Iterable[nn.Module], images: Tensor) -> Tensor:
    """`Imagination.see` with these parts: its own, or a moving average of them."""
    encoder, project, *points = eye
    latents: Tensor = project(encoder.frames(images))  # type: ignore[operator]
    if not points:
        return latents
    told = points[0](images)[:, None].expand(-1, latents.shape[1], -1)
    return torch.cat((latents, told.to(latents.dtype)), -1)


def canonical_camera(camera: Camera, size: int) -> Camera:
    """A square pinhole of `size` pixels that sees what the shorter side of `camera` does."""
    focal = (camera.fx + camera.fy) / 2 * size / min(camera.width, camera.height)
    return Camera(size, size, focal, focal, (size - 1) / 2, (size - 1) / 2)


def images_of(net: Imagination, rgb: np.ndarray, camera: Camera | None) -> Tensor:
    """uint8 RGB [H, W, 3] of a camera -> [1, S, S, 3] for `see`."""
    return torch.from_numpy(np.ascontiguousarray(net.view(camera).apply(rgb)))[None]


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load_imagination(folder: str | Path) -> tuple[Imagination, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode, its SHA-256 checked. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: Imagination(ImaginationConfig.from_dict(config)))
