"""The policy: what to do next, from what is seen, the robot's state and what was asked for; chunks of actions by flow
matching.

    frames -> encoder, fine map (`eye`) -> reader: queries that look, told by words or guided by a thinker
           -> tokens of the present -> decoder: noise [N, H, 4] -> N proposals of H actions

As VLA-JEPA (arXiv 2602.10098): one set of the reader's queries ends as latent actions, which in training must tell a
world model what will be seen (`train.policy_objective`); all of them are what the decoder attends to. The decoder
integrates a velocity field from noise to actions in a few Euler steps; keys and values of the present are computed once
for all proposals. Every frame is encoded alone and later ones do not exist here.

States and actions are those of `space`: in the optical frame of the camera. Closedness is a command, not a change.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from ..jepa.encoder import Encoder, EncoderConfig, pool
from ..jepa.guidance import Film, Payload
from ..jepa.layers import EPS, Block, Memory, initialise
from ..stream.geometry import CanonicalView
from ..values import Camera
from . import space
from .eye import STRIDE, Detail, Look, Seen, rays

KIND = "policy"
#: What can be told in words; behind the last of each list comes "not told".
CUBES, TRAYS = ("red", "green", "blue"), ("left", "right")
UNTOLD = (len(CUBES), len(TRAYS))
#: Queries that end as the places of the named cube and the named tray.
PLACES = 2
#: Unit of places relative to the gripper, metres.
PLACE_M = 0.1
EULER_STEPS = 4
#: A look is this much sharper where a place is read from it: little of what lies elsewhere is averaged in.
SHARPER = 2.0
CORRECTION_M = 0.03
_TIME = 64  # width of the sinusoids of the flow's time


@dataclass(frozen=True)
class PolicyConfig:
    """Raises ValueError naming what makes no sense. Means and standard deviations are of the training data."""

    encoder: EncoderConfig
    camera: Camera  #: the canonical camera: what the images must look like; the encoder may take smaller ones
    action_s: float = 0.2
    horizon: int = 8  #: actions of a chunk
    frames: int = 1  #: newest frames that are looked at, `action_s` apart; older ones through the encoder only
    pooled: int = 4  #: an older frame is pooled to so many tokens squared
    width: int = 128
    heads: int = 4
    reader_depth: int = 2
    depth: int = 3
    queries: int = 8  #: of the reader, beside one latent action per step
    features: int = 64  #: of every place that is looked at
    detail: int = 48  #: channels of the fine map; 0: none
    guide_layers: int = 0
    guide_width: int = 0
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        bounds = {
            "horizon": (1, 256), "frames": (1, 16), "pooled": (1, 64), "width": (8, 4096), "heads": (1, 64),
            "reader_depth": (1, 64), "depth": (1, 64), "queries": (PLACES, 256), "features": (8, 4096),
            "detail": (0, 1024), "guide_layers": (0, 128), "guide_width": (0, 16384),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, must be a whole number in {low} … {high}")
        if not 0.01 <= self.action_s <= 10:
            raise ValueError(f"action_s is {self.action_s!r}, must lie in 0.01 … 10")
        size, small = self.camera.width, self.encoder.image_size
        if self.camera.height != size or self.camera.distortion or size % STRIDE or size % small:
            raise ValueError(
                f"the canonical camera must be a square pinhole of a multiple of {STRIDE} and of the encoder's {small} "
                f"pixels, not {size}x{self.camera.height}"
            )
        if self.encoder.grid % self.pooled:
            raise ValueError(f"a grid of {self.encoder.grid} cannot be pooled to {self.pooled}")
        if self.width % (2 * self.heads) or self.features % self.heads:
            raise ValueError(
                f"width {self.width} and features {self.features} do not give {self.heads} heads, the former of an "
                "even number of dimensions"
            )
        if (self.guide_layers == 0) != (self.guide_width == 0):
            raise ValueError("guide_layers and guide_width go together: both 0, or neither")
        for name in ("action_mean", "action_std", "state_mean", "state_std"):
            values = tuple(getattr(self, name))  # JSON has no tuples
            object.__setattr__(self, name, values)
            sane = all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
            if len(values) not in (0, space.DIM) or not sane or (name.endswith("std") and any(x <= 0 for x in values)):
                raise ValueError(f"{name} must be {space.DIM} finite numbers, of a std above 0, or empty")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> PolicyConfig:
        """Raises ValueError, TypeError or KeyError on anything but a complete, sane configuration."""
        values = dict(values)
        camera = values.pop("camera")
        return PolicyConfig(
            EncoderConfig(**values.pop("encoder")),
            Camera(**{**camera, "distortion": tuple(camera.get("distortion", ()))}),
            **values,
        )


def named(words: tuple[int, int]) -> bool:
    """Whether both, cube and tray, are told."""
    return words[0] < UNTOLD[0] and words[1] < UNTOLD[1]


def words_of(instruction: str) -> tuple[int, int]:
    """(cube, tray) as an instruction names them, indices into CUBES and TRAYS; their lengths where it does not."""
    found = []
    heard = instruction.lower().replace(",", " ").replace(".", " ").split()
    for known in (CUBES, TRAYS):
        named = {known.index(word) for word in heard if word in known}
        found.append(named.pop() if len(named) == 1 else len(known))
    return found[0], found[1]


class Present(NamedTuple):
    """The present, ready for any number of proposals.

    memory: keys and values per block of the decoder. latent_actions: [B, H, width], one per step. places: [B, 2, 3],
    where the named cube and tray are believed to be, from the gripper, in the optical frame, metres. looks: by layer of
    the reader, where the queries of these two look, logits [B, 2, n] over what is seen.
    """

    memory: tuple[Memory, ...]
    latent_actions: Tensor
    places: Tensor
    looks: tuple[Tensor, ...]


class Policy(nn.Module):
    """See the head of this file."""

    action_mean: Tensor
    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor
    coarse_rays: Tensor
    fine_rays: Tensor

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c.encoder)
        self.embed = nn.Linear(c.encoder.width, c.features)
        self.age = nn.Parameter(torch.zeros(c.frames, c.features))
        self.detail = Detail(c.detail) if c.detail else None
        self.embed_detail = nn.Linear(c.detail, c.features) if c.detail else None
        self.embed_ray = nn.Linear(2, c.features)
        self.state = nn.Linear(space.DIM + 2, c.width)
        self.cube = nn.Embedding(len(CUBES) + 1, c.width)
        self.tray = nn.Embedding(len(TRAYS) + 1, c.width)
        self.query = nn.Parameter(torch.zeros(3 + c.queries + c.horizon, c.width))
        self.looks = nn.ModuleList(Look(c.width, c.heads, c.features) for _ in range(c.reader_depth))
        self.reader = nn.ModuleList(Block(c.width, c.heads, 2.0) for _ in range(c.reader_depth))
        self.film = None
        if c.guide_layers:
            self.film = Film(c.reader_depth, c.width, (c.guide_width, c.guide_width))
        self.depth = nn.Linear(c.width, 1)
        self.place = nn.Linear(c.width, 3)
        self.know = nn.Sequential(nn.Linear(3 * PLACES + space.DIM, c.width), nn.GELU(), nn.Linear(c.width, c.width))
        self.latent = nn.Linear(c.width, c.width)
        self.action = nn.Linear(space.DIM, c.width)
        self.step = nn.Parameter(torch.zeros(c.horizon, c.width))
        self.time = nn.Sequential(nn.Linear(_TIME, c.width), nn.SiLU(), nn.Linear(c.width, c.width), nn.SiLU())
        self.modulate = nn.ModuleList(nn.Linear(c.width, 2 * c.width) for _ in range(c.depth))
        self.decoder = nn.ModuleList(Block(c.width, c.heads, 2.0) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=EPS)
        self.out = nn.Linear(c.width, space.DIM)
        initialise(self.reader)
        initialise(self.decoder)
        for weight in (self.query, self.step, self.age):
            nn.init.trunc_normal_(weight, std=0.2)
        nn.init.normal_(self.embed_ray.weight, std=0.1)  # looks come first, places are in what a look brings back
        for part in (*self.modulate, self.depth, self.place, self.out):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        for name in ("action", "state"):
            for part, default in (("mean", 0.0), ("std", 1.0)):
                values = getattr(c, f"{name}_{part}") or (default,) * space.DIM
                self.register_buffer(f"{name}_{part}", torch.tensor(values, dtype=torch.float32), persistent=False)
        grid = [rays(c.camera, c.encoder.grid), rays(c.camera, c.pooled).repeat(c.frames - 1, 1)]
        self.register_buffer("coarse_rays", torch.cat(grid), persistent=False)
        self.register_buffer("fine_rays", rays(c.camera, c.camera.width // STRIDE), persistent=False)

    def view(self, camera: Camera | None) -> CanonicalView:
        """What turns images of `camera` (None: unknown) into those that `see` takes."""
        return CanonicalView(camera, self.config.camera)

    def see(self, frames: Tensor, latents: Tensor | None = None) -> Seen:
        """frames: uint8 [B, F, S, S, 3] as the canonical camera sees them, oldest first. latents [B, F, n, D]: of the
        encoder for them, where they are known already.
        """
        c = self.config
        if frames.shape[1] != c.frames:
            raise ValueError(f"this policy looks at {c.frames} frames, not {frames.shape[1]}")
        if latents is None:
            frozen = not any(p.requires_grad for p in self.encoder.parameters())
            with torch.no_grad() if frozen else torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad():
                latents = self.encoder.frames(self.smaller(frames.flatten(0, 1))).unflatten(0, (-1, c.frames))
        tokens = self.embed(latents)
        now = tokens[:, -1] + self.age[0]
        past = pool(tokens[:, :-1], c.encoder.grid, c.pooled) + self.age[1:].flip(0)[:, None]
        parts, places = [now, past.flatten(1, 2)], [self.coarse_rays]
        if self.detail is not None and self.embed_detail is not None:
            parts.append(self.embed_detail(self.detail(frames[:, -1])))
            places.append(self.fine_rays)
        where = torch.cat(places)
        return Seen(torch.cat(parts, 1) + self.embed_ray(where), where)

    def smaller(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] as the encoder takes them: means of squares of pixels, where it takes smaller ones."""
        step = self.config.camera.width // self.config.encoder.image_size
        return images if step == 1 else shrunk(images, step)

    def remember(
        self, seen: Seen, state: Tensor, words: Tensor | None = None, payload: Payload | None = None
    ) -> Present:
        """Once per control step. state [B, 4] of the robot in the optical frame. words: int64 [B, 2], see `words_of`;
        None: nothing is told. payload: guidance by a thinker; rows of weight 0, and no payload, are unguided.
        """
        c = self.config
        rows = len(state)
        if words is None:
            words = torch.tensor([[len(CUBES), len(TRAYS)]], device=state.device).expand(rows, 2)
        cube, tray = self.cube(words[:, 0]), self.tray(words[:, 1])
        ray = state[:, :2] / state[:, 2:3].clamp(min=0.05)
        told = self.state(torch.cat(((state - self.state_mean) / self.state_std, ray), -1))
        x = self.query + (cube + tray)[:, None]
        x = torch.cat((x[:, :3] + torch.stack((told, cube, tray), 1), x[:, 3:]), 1)
        signals = None
        if payload is not None and not payload.empty:
            if self.film is None:
                raise ValueError("this policy was built without guidance")
            signals = self.film.prepare(payload)
        still = self._no_turn(x)
        looks = []
        for i, (look, block) in enumerate(zip(self.looks, self.reader, strict=True)):
            if signals is not None and self.film is not None:
                x = self.film.inject(i, x, signals[i])
            x, at = look(x, seen)
            looks.append(at[:, 3 : 3 + PLACES])
            x, _ = block(x, still)
        places = self._placed(x[:, 3 : 3 + PLACES], looks[-1], seen.rays, state)
        standard = (state - self.state_mean) / self.state_std
        x = x + self.know(torch.cat((places.flatten(1) / PLACE_M, standard), -1))[:, None]
        latent_actions = x[:, 3 + c.queries :]
        memory = []
        for i, block in enumerate(self.decoder):
            x, kv = block(x, still, only_from=0 if i + 1 < c.depth else x.shape[1])
            memory.append(kv)
        return Present(tuple(memory), latent_actions, places, tuple(looks))

    def _placed(self, x: Tensor, logits: Tensor, where: Tensor, state: Tensor) -> Tensor:
        """Places [B, 2, 3] from the gripper of what the two queries look at: the ray of the look times a depth, which
        is about that of the gripper, and a small correction.
        """
        ray = (SHARPER * logits).float().softmax(-1) @ where
        depth = state[:, None, 2:3] + PLACE_M * self.depth(x).float()
        there = torch.cat((ray * depth, depth), -1)
        return there - state[:, None, :3] + CORRECTION_M * self.place(x).float()

    def velocity(self, present: Present, noisy: Tensor, time: Tensor) -> Tensor:
        """The flow's field at standardised actions [S, H, 4] at times [S] (0 noise, 1 actions). The present has S rows,
        or one for all.
        """
        turns = torch.exp(torch.arange(_TIME // 2, device=time.device) * (-math.log(1000.0) / (_TIME // 2 - 1)))
        angle = time[:, None] * 1000 * turns
        when = self.time(torch.cat((angle.sin(), angle.cos()), -1))
        x = self.action(noisy) + self.step + self.latent(present.latent_actions)
        still = self._no_turn(x)
        for i, (modulate, block) in enumerate(zip(self.modulate, self.decoder, strict=True)):
            scale, shift = modulate(when)[:, None].chunk(2, -1)
            x, _ = block(torch.addcmul(shift, x, 1 + scale), still, present.memory[i])
        field: Tensor = self.out(self.norm(x))
        return field

    @torch.no_grad()
    def propose(
        self, present: Present, count: int, seed: int, steps: int = EULER_STEPS, temperature: float | Tensor = 1.0
    ) -> Tensor:
        """`count` chunks [N, H, 4] for a present of one row, in the optical frame; the same for the same seed.

        temperature, one or [N], scales the noise that they start from: 0 gives one chunk, about the mean of what is
        near.
        Displacements are not clipped: limits belong to the base frame (`space.clipped`).
        """
        if len(present.places) != 1 or count < 1:
            raise ValueError(f"proposals are for one present, at least one; not {len(present.places)}, {count}")
        like = present.places
        noise = torch.randn(
            count, self.config.horizon, space.DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        )
        x = noise.to(like.device) * torch.as_tensor(temperature, device=like.device).view(-1, 1, 1)
        for i in range(steps):
            x = x + self.velocity(present, x, x.new_full((count,), i / steps)) / steps
        actions = x * self.action_std + self.action_mean
        return torch.cat((actions[..., :3], actions[..., 3:].clamp(0.0, 1.0)), -1)

    def standard(self, actions: Tensor) -> Tensor:
        """Actions in the optical frame, in standard deviations of the training data."""
        return (actions - self.action_mean) / self.action_std

    def _no_turn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary table that leaves queries and keys as they are: places are in the features."""
        shape = (x.shape[1], self.config.width // self.config.heads)
        return x.new_ones(shape), x.new_zeros(shape)


def shrunk(images: Tensor, step: int) -> Tensor:
    """uint8 [B, S, S, 3] -> [B, S / step, S / step, 3]."""
    batch, size = images.shape[:2]
    squares = images.view(batch, size // step, step, size // step, step, 3).float()
    return squares.mean((2, 4)).round().to(torch.uint8)


def flow_loss(policy: Policy, present: Present, actions: Tensor, weight: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Conditional flow matching on straight paths: x = (1 - t) noise + t actions, whose velocity is actions - noise.

    actions [B, H, 4] in the optical frame, weight [B, H] of each. noise [B, K, H, 4] and time [B, K]: K draws per row.
    Mean squared error over what counts.
    """
    rows, draws = time.shape
    target = policy.standard(actions)[:, None]
    at = time[..., None, None]
    noisy = (1 - at) * noise + at * target
    memory = tuple((k.repeat_interleave(draws, 0), v.repeat_interleave(draws, 0)) for k, v in present.memory)
    latent = present.latent_actions.repeat_interleave(draws, 0)
    found = policy.velocity(present._replace(memory=memory, latent_actions=latent), noisy.flatten(0, 1), time.flatten())
    error = F.mse_loss(found.unflatten(0, (rows, draws)), target - noise, reduction="none").mean((1, 3))
    return (error * weight).sum() / weight.sum().clamp(min=1)


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load_policy(folder: str | Path) -> tuple[Policy, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode, its SHA-256 checked. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: Policy(PolicyConfig.from_dict(config)))
