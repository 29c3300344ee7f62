"""V-JEPA 2-AC (arXiv 2506.09985, section 3): the published action-conditioned world model, exactly.

Every step of 0.25 s holds an action token, a state token and the patch tokens of one frame, which was encoded alone and
layer-normed. A token sees everything of its own step and of earlier ones; the frame of step k + 1 is read where the
patches of step k stand. The rotary encoding is the tiled one (see `rope`), so steps count from 0 and should stay below
the number of frames of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from . import rope
from .layers import EPS, Block, Memory, initialise
from .pose import compute_new_pose
from .rope import Rope

KIND = "ac_predictor"
#: x, y, z, three Euler angles, gripper: what `rollout` can integrate.
POSE = 7
#: Rotary tables kept, one per first step and number of steps.
_TABLES = 64


@dataclass(frozen=True)
class ACConfig:
    """The defaults are those of the published weights (305 M parameters)."""

    latent_width: int = 1408
    width: int = 1024
    depth: int = 24
    heads: int = 16
    rows: int = 16  #: of patches
    columns: int = 16
    mlp_ratio: float = 4.0
    action_dim: int = POSE  #: of an action and of a state
    extrinsics: bool = False  #: a third token per step: the camera's pose, action_dim - 1 numbers
    rotary: bool = True  #: False: no encoding of position at all
    norm_eps: float = EPS  #: of every layer norm

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ACConfig:
        """Raises ValueError or TypeError on anything but a complete, sane configuration."""
        config = ACConfig(**values)
        bounds = {
            "latent_width": (config.latent_width, 1, 16384),
            "width": (config.width, 2, 16384),
            "depth": (config.depth, 1, 128),
            "heads": (config.heads, 1, 256),
            "rows": (config.rows, 1, 256),
            "columns": (config.columns, 1, 256),
            "mlp_ratio": (config.mlp_ratio, 0.1, 64),
            "action_dim": (config.action_dim, 2, 4096),
            "norm_eps": (config.norm_eps, 1e-12, 1e-2),
        }
        for name, (value, low, high) in bounds.items():
            kinds: tuple[type, ...] = (int, float) if name in ("mlp_ratio", "norm_eps") else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, must lie in {low} … {high}")
        if config.width % (2 * config.heads):
            raise ValueError(f"width {config.width} does not give {config.heads} heads of an even number of dimensions")
        return config


class Cache(NamedTuple):
    """What later steps need of earlier ones: keys and values per segment of steps and per layer.

    A segment of batch 1 serves any number of candidates: it is held once and expanded when it is read.
    """

    steps: int
    segments: tuple[tuple[Memory, ...], ...]

    def memory(self, layer: int, batch: int) -> Memory | None:
        """Keys and values [batch, heads, n, head_dim] of one layer, or None where nothing was seen yet."""
        if not self.segments:
            return None
        k, v = zip(*(segment[layer] for segment in self.segments), strict=True)
        if len(k) == 1:
            return k[0].expand(batch, -1, -1, -1), v[0].expand(batch, -1, -1, -1)
        return (
            torch.cat([x.expand(batch, -1, -1, -1) for x in k], 2),
            torch.cat([x.expand(batch, -1, -1, -1) for x in v], 2),
        )


EMPTY = Cache(0, ())


class Rollout(NamedTuple):
    latents: Tensor  #: [S, H, n, D], the frame after each action
    states: Tensor  #: [S, H, 7], the pose after each action
    cache: Cache  #: all steps, to go on from


class ACPredictor(nn.Module):
    """Latents, actions and states up to now -> the latents of the next step, at every step."""

    def __init__(self, config: ACConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.latent_width, config.width)
        self.action = nn.Linear(config.action_dim, config.width)
        self.state = nn.Linear(config.action_dim, config.width)
        self.extrinsics = nn.Linear(config.action_dim - 1, config.width)  # in the published weights, used or not
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.latent_width)
        for layer in (self.embed, self.action, self.state, self.extrinsics, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        initialise(self.blocks)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
        self._tables: dict[tuple[int, int, torch.dtype, torch.device], Rope] = {}

    @property
    def extra(self) -> int:
        """Tokens per step beside the patches."""
        return 3 if self.config.extrinsics else 2

    @property
    def size(self) -> int:
        """Tokens per step."""
        return self.extra + self.config.rows * self.config.columns

    def forward(self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        """Teacher forcing: latents [B, T, n, D] (layer-normed), actions and states [B, T, 7] -> [B, T, n, D].

        Entry k predicts frame k + 1 from steps 0 … k. extrinsics: [B, T, 6], for a model made with them.
        """
        x, _ = self._run(self._tokens(latents, actions, states, extrinsics), EMPTY)
        return self._read(x, latents.shape[1])

    def start(
        self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None, cache: Cache = EMPTY
    ) -> Cache:
        """Remember steps that are over (frame, the action taken then, state): shapes as in `forward`, usually B = 1."""
        return self._run(self._tokens(latents, actions, states, extrinsics), cache)[1]

    def step(
        self, z: Tensor, action: Tensor, state: Tensor, cache: Cache = EMPTY, extrinsics: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """One step on: z [S, n, D], action and state [S, 7] -> the next frame's latents [S, n, D] and the longer cache.

        z, state and extrinsics may have batch 1 for all S actions, and so may what the cache holds. Equal to the last
        entry of `forward` over all steps.
        """
        x, cache = self._run(
            self._tokens(
                z[:, None], action[:, None], state[:, None], None if extrinsics is None else extrinsics[:, None]
            ),
            cache,
        )
        return self._read(x, 1)[:, 0], cache

    def rollout(
        self,
        z: Tensor,
        actions: Tensor,
        state: Tensor,
        cache: Cache = EMPTY,
        *,
        normalize_reps: bool = True,
        extrinsics: Tensor | None = None,
    ) -> Rollout:
        """Imagine S candidate action sequences [S, H, 7] from the newest frame z [1 or S, n, D] (layer-normed).

        state: [1 or S, 7], the pose at z; later poses come from `pose.compute_new_pose`. cache: steps before z, of
        `start`. normalize_reps: predictions are layer-normed (without parameters) before they are returned and fed
        back, as in training. extrinsics [1 or S, 6]: a camera that stays where it is. Differentiable in every input.
        """
        if actions.shape[-1] != POSE:
            raise ValueError(f"a rollout integrates poses and needs actions of {POSE} numbers, not {actions.shape[-1]}")
        latents, states = [], []
        for action in actions.unbind(1):
            z, cache = self.step(z, action, state, cache, extrinsics)
            if normalize_reps:
                z = F.layer_norm(z, z.shape[-1:])
            state = compute_new_pose(state, action)
            latents.append(z)
            states.append(state)
        return Rollout(torch.stack(latents, 1), torch.stack(states, 1), cache)

    def _tokens(self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        """[B, T, size, width]: action, state, (camera,) patches of every step."""
        config = self.config
        n = config.rows * config.columns
        if latents.dim() != 4 or latents.shape[2:] != (n, config.latent_width):
            raise ValueError(f"latents are {list(latents.shape)}, must be [B, T, {n}, {config.latent_width}]")
        if (extrinsics is not None) != config.extrinsics:
            wants = "needs" if config.extrinsics else "was made without"
            raise ValueError(f"this predictor {wants} camera extrinsics")
        singles = [self.action(actions), self.state(states)]
        if extrinsics is not None:
            singles.append(self.extrinsics(extrinsics))
        parts = [single[:, :, None] for single in singles] + [self.embed(latents)]
        batch = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(batch, -1, -1, -1) for part in parts], 2)

    def _run(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Tokens of T steps after those of the cache, through all blocks."""
        batch, steps = tokens.shape[:2]
        table = self._rope(cache.steps, steps, tokens)
        x, segment = tokens.flatten(1, 2), []
        for layer, block in enumerate(self.blocks):
            # a single new step sees all there is
            causal = self.size if steps > 1 else None
            x, memory = block(x, table, cache.memory(layer, batch), causal)
            segment.append(memory)
        return x, Cache(cache.steps + steps, (*cache.segments, tuple(segment)))

    def _read(self, x: Tensor, steps: int) -> Tensor:
        patches = x.view(x.shape[0], steps, self.size, self.config.width)[:, :, self.extra :]
        return self.out(self.norm(patches))

    def _rope(self, first: int, steps: int, like: Tensor) -> Rope:
        """Table of steps first … first + steps - 1 in the type of `like`, made once per shape."""
        key = (first, steps, like.dtype, like.device)
        if key not in self._tables:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            with torch.inference_mode(False):  # made while planning, it must serve training, too
                cos, sin = rope.table(self._positions(first, steps), self.config.width // self.config.heads, "tiled")
                self._tables[key] = (cos.to(like), sin.to(like))
        return self._tables[key]

    def _positions(self, first: int, steps: int) -> Tensor:
        """(step, row, column) of all tokens [steps * size, 3]; those of action, state and camera are (step, 0, 0)."""
        config = self.config
        times = torch.arange(first, first + steps, dtype=torch.float64)
        positions = torch.zeros(steps, self.size, 3, dtype=torch.float64)
        if config.rotary:
            positions[..., 0] = times[:, None]
            positions[:, self.extra :] = rope.grid(times, config.rows, config.columns).view(steps, -1, 3)
            # the published code measures both axes by the height of the grid
            positions[:, self.extra :, 2] *= config.rows / config.columns
        return positions.flatten(0, 1)


def load(folder: str | Path) -> tuple[ACPredictor, Manifest]:
    """An imported predictor, on the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: ACPredictor(ACConfig.from_dict(config)))
