"""Our action-conditioned world model g(z, a, l): what the scene will look like if the robot does this.

Made for planners that try many action sequences from one present. Two streams go through the same blocks:

- the context (latents of the last frames, the state of the robot) attends to itself only, never to an action, so its
  keys and values are computed once per control step, whatever the number of candidates;
- the plan of each candidate holds one action token and M query tokens per step, which become the pooled latent after
  that action. A step sees the context and the plan up to itself, so the whole horizon is one pass, and the prediction
  for step h depends on the actions up to h only. With `sight` "actions" it sees of earlier steps the actions alone, so
  that a planner that scores one step of eight pays for the queries of one.

Guidance l enters the plan stream alone, as in the predictor: one context serves any number of instructions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoints
from ..checkpoints import Manifest
from . import rope
from .encoder import pool
from .guidance import Film, Payload
from .layers import EPS, Block, Memory, initialise

KIND = "world_model"
#: What a step of the plan sees of earlier steps: their actions and queries, or their actions.
Sight = Literal["plan", "actions"]


@dataclass(frozen=True)
class WorldModelConfig:
    """The defaults fit the mini encoder. Times are in grid steps (mini: 0.1 s)."""

    latent_width: int = 128  #: D of the encoder
    grid: int = 8  #: tokens per image side of a full latent
    pooled: int = 4  #: a predicted latent has M = pooled x pooled tokens, and so has a past one
    context: int = 8  #: latents of the past, one per context_steps, the last one is now
    context_steps: int = 1
    horizon: int = 8  #: actions of the longest plan
    action_steps: int = 2  #: grid steps that an action lasts
    width: int = 128
    depth: int = 3
    heads: int = 4
    mlp_ratio: float = 4.0
    action_dim: int = 7
    state_dim: int = 7
    action_mean: tuple[float, ...] = ()  #: of the training data; empty: 0
    action_std: tuple[float, ...] = ()  #: empty: 1
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    guide_layers: int = 0  #: L of the thinker's pyramid; 0 builds a model without guidance
    guide_width: int = 0
    sight: Sight = "plan"

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that makes no sense."""
        bounds = {
            "latent_width": (1, 16384),
            "grid": (1, 256),
            "pooled": (1, 256),
            "context": (1, 256),
            "context_steps": (1, 256),
            "horizon": (1, 256),
            "action_steps": (1, 256),
            "width": (2, 16384),
            "depth": (1, 128),
            "heads": (1, 256),
            "action_dim": (1, 4096),
            "state_dim": (1, 4096),
            "guide_layers": (0, 128),
            "guide_width": (0, 16384),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, must be a whole number in {low} … {high}")
        if not isinstance(self.mlp_ratio, (int, float)) or not 0.1 <= self.mlp_ratio <= 64:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio!r}, must lie in 0.1 … 64")
        if self.grid % self.pooled:
            raise ValueError(f"a grid of {self.grid} cannot be pooled to {self.pooled}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} does not give {self.heads} heads of an even number of dimensions")
        if self.sight not in ("plan", "actions"):
            raise ValueError(f"sight is {self.sight!r}, must be 'plan' or 'actions'")
        if (self.guide_layers == 0) != (self.guide_width == 0):
            raise ValueError("guide_layers and guide_width go together: both 0, or neither")
        for name, size in (("action", self.action_dim), ("state", self.state_dim)):
            for part in ("mean", "std"):
                values = tuple(getattr(self, f"{name}_{part}"))  # JSON has no tuples
                object.__setattr__(self, f"{name}_{part}", values)
                if len(values) not in (0, size) or not all(
                    isinstance(x, (int, float)) and math.isfinite(x) for x in values
                ):
                    raise ValueError(f"{name}_{part} must be {size} finite numbers, or empty")
                if part == "std" and not all(x > 0 for x in values):
                    raise ValueError(f"{name}_std must be greater than 0")

    @property
    def tokens(self) -> int:
        """M, tokens of a predicted latent."""
        return self.pooled**2


class Context(NamedTuple):
    """The present, ready for any number of candidates: keys and values per layer, and the pooled newest latent."""

    memory: tuple[Memory, ...]
    now: Tensor  #: [B, M, D]


class Plan(NamedTuple):
    """Steps imagined so far: how many, and their keys and values per layer."""

    steps: int
    memory: tuple[Memory, ...]


class WorldModel(nn.Module):
    """Latents up to now and candidate actions -> pooled latents after every action."""

    context_cos: Tensor
    context_sin: Tensor
    plan_cos: Tensor
    plan_sin: Tensor
    action_mean: Tensor
    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: WorldModelConfig):
        super().__init__()
        self.config = c = config
        self.embed = nn.Linear(c.latent_width, c.width)
        self.state = nn.Linear(c.state_dim, c.width)
        self.action = nn.Linear(c.action_dim, c.width)
        self.query = nn.Parameter(torch.zeros(c.width))
        self.step = nn.Parameter(torch.zeros(c.horizon, c.width))
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.mlp_ratio) for _ in range(c.depth))
        self.film = None
        if c.guide_layers:
            self.film = Film(c.depth, c.width, (c.guide_width, c.guide_width))
        self.norm = nn.LayerNorm(c.width, eps=EPS)
        self.out = nn.Linear(c.width, c.latent_width)
        initialise(self.blocks)
        for weight in (self.query, self.step, self.out.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        for name, size in (("action", c.action_dim), ("state", c.state_dim)):
            for part, default in (("mean", 0.0), ("std", 1.0)):
                values = getattr(c, f"{name}_{part}") or (default,) * size
                self.register_buffer(f"{name}_{part}", torch.tensor(values, dtype=torch.float32), persistent=False)
        head_dim = c.width // c.heads
        for name, positions in (("context", self._context_positions()), ("plan", self._plan_positions())):
            for part, table in zip(("cos", "sin"), rope.table(positions, head_dim), strict=True):
                self.register_buffer(f"{name}_{part}", table, persistent=False)

    def forward(
        self, past: Tensor, now: Tensor, state: Tensor, actions: Tensor, payload: Payload | None = None
    ) -> Tensor:
        """See `remember` and `imagine`. Predicted pooled latents [S, H, M, D]."""
        return self.imagine(self.remember(past, now, state), actions, payload)

    def remember(self, past: Tensor, now: Tensor, state: Tensor) -> Context:
        """Once per control step: pooled latents of the older frames [B, context - 1, M, D], the full latent of the
        newest one [B, n, D], and the state of the robot [B, state_dim]. Usually B = 1.
        """
        c = self.config
        shapes = (list(past.shape[1:]), list(now.shape[1:]), list(state.shape[1:]))
        want = ([c.context - 1, c.tokens, c.latent_width], [c.grid**2, c.latent_width], [c.state_dim])
        if shapes != want:
            raise ValueError(f"past, now and state are [B, …] of {shapes}, this world model needs {want}")
        seen = self.embed(torch.cat((past.flatten(1, 2), now), 1))
        x = torch.cat((seen, self.state((state - self.state_mean) / self.state_std)[:, None]), 1)
        memory = []
        for i, block in enumerate(self.blocks):
            # of the last block, only keys and values are read
            finish = 0 if i + 1 < c.depth else x.shape[1]
            x, kv = block(x, (self.context_cos, self.context_sin), only_from=finish)
            memory.append(kv)
        return Context(tuple(memory), self.pool(now))

    def imagine(
        self, context: Context, actions: Tensor, payload: Payload | None = None, steps: tuple[int, ...] | None = None
    ) -> Tensor:
        """The latents [S, H, M, D] after each action of S candidate sequences [S, H, action_dim], all in one pass.

        context: of `remember`, with batch 1 for all candidates or one row each. payload: guidance, likewise with 1 or
        S rows; rows of weight 0, and no payload, give the unguided prediction bit for bit. Differentiable in actions.
        steps: which latents are wanted, [S, len(steps), M, D], from 0, rising; None for all. What only the others need
        is not computed.
        """
        if steps:
            actions = actions[:, : steps[-1] + 1]
        return self.extend(context, actions, payload, steps=steps)[0]

    def extend(
        self,
        context: Context,
        actions: Tensor,
        payload: Payload | None = None,
        plan: Plan | None = None,
        steps: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Plan]:
        """As `imagine`, for the actions that follow those of `plan`; steps count from there. The same numbers as in one
        pass.
        """
        c = self.config
        samples, length = actions.shape[:2]
        first = 0 if plan is None else plan.steps
        rows = context.now.shape[0]
        if actions.shape[2:] != (c.action_dim,) or first + length > c.horizon or rows not in (1, samples):
            raise ValueError(
                f"actions are {list(actions.shape)} after {first} steps and a context of {rows} rows, must be "
                f"[S, at most {c.horizon - first}, {c.action_dim}] and 1 or S rows"
            )
        wanted = tuple(range(length)) if steps is None else steps
        if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= length:
            raise ValueError(f"steps are {wanted}, must rise within 0 … {length - 1}")
        signals = None
        if payload is not None and not payload.empty:
            if self.film is None:
                raise ValueError("this world model was built without guidance")
            signals = self.film.prepare(payload)
        # queries are asked of every step, or of those that are wanted, behind all actions
        asked = wanted if c.sight == "actions" else tuple(range(length))
        action = self.action((actions - self.action_mean) / self.action_std) + self.step[first : first + length]
        query = (self.embed(context.now) + self.query)[:, None] + _picked(self.step[first:], asked)[:, None]
        query = query.expand(samples, -1, -1, -1)
        if c.sight == "actions":
            x = torch.cat((action, query.flatten(1, 2)), 1)
        else:
            x = torch.cat((action[:, :, None], query), 2).flatten(1, 2)
        table = (
            self._plan_table(self.plan_cos, first, length, asked),
            self._plan_table(self.plan_sin, first, length, asked),
        )
        shared = plan is None and rows == 1 < samples
        mask = self._mask(length, asked, x.device) if shared or c.sight == "actions" else None
        causal = 1 + c.tokens if mask is None else None
        begin = length if c.sight == "actions" else wanted[0] * (1 + c.tokens) + 1
        memory, done = [], 0
        for i, block in enumerate(self.blocks):
            if signals is not None and self.film is not None:
                x = self.film.inject(i, x, signals[i])
            seen = _usable(context.memory[i])
            if not shared:
                seen = _expanded(seen, samples)
            if plan is not None:
                seen = (torch.cat((seen[0], plan.memory[i][0]), 2), torch.cat((seen[1], plan.memory[i][1]), 2))
            sees = mask
            if mask is not None and not shared:
                sees = F.pad(mask, (seen[0].shape[2], 0), value=True)
            if i + 1 == c.depth and mask is not None:
                done = begin  # nobody reads what is before the first wanted query
            x, kv = block(x, table, seen, causal, only_from=done, mask=sees)
            if c.sight == "actions":
                kv = (kv[0][:, :, :length], kv[1][:, :, :length])
            if plan is not None:
                kv = (torch.cat((plan.memory[i][0], kv[0]), 2), torch.cat((plan.memory[i][1], kv[1]), 2))
            memory.append(kv)
        if c.sight == "actions":
            x = x.view(samples, len(asked), c.tokens, c.width)
        else:
            x = F.pad(x, (0, 0, 1, 0)) if done else x
            x = x.view(samples, -1, 1 + c.tokens, c.width)[:, :, 1:]
            left = length - x.shape[1]
            x = x if len(wanted) == x.shape[1] else torch.stack([x[:, h - left] for h in wanted], 1)
        change = self.out(self.norm(x))
        return context.now[:, None] + change, Plan(first + length, tuple(memory))

    def _plan_table(self, table: Tensor, first: int, length: int, asked: tuple[int, ...]) -> Tensor:
        """Rows of plan_cos or plan_sin for the tokens of `extend`, in their order."""
        size = 1 + self.config.tokens
        if self.config.sight == "plan":
            return table[first * size : (first + length) * size]
        steps = table.view(-1, size, table.shape[1])[first : first + length]
        return torch.cat((steps[:, 0], _picked(steps, asked)[:, 1:].flatten(0, 1)))

    def _mask(self, length: int, asked: tuple[int, ...], device: torch.device) -> Tensor:
        """bool [n, n] over the tokens of `extend`, in their order: True where a row sees a column."""
        every = torch.arange(length, device=device)
        if self.config.sight == "plan":
            time = every.repeat_interleave(1 + self.config.tokens)
            return time[:, None] >= time
        of_queries = _picked(every, asked).repeat_interleave(self.config.tokens)
        time = torch.cat((every, of_queries))
        see_actions = time[:, None] >= every
        among = (time[:, None] == of_queries) & (torch.arange(len(time), device=device) >= length)[:, None]
        return torch.cat((see_actions, among), 1)

    def pool(self, latents: Tensor) -> Tensor:
        """Full latents [..., n, D] to the form in which the future is predicted [..., M, D]."""
        return pool(latents, self.config.grid, self.config.pooled)

    def _context_positions(self) -> Tensor:
        """(time, row, column) of past, newest frame and state. Now is time 0; the state sits in the middle."""
        c = self.config
        step = c.grid / c.pooled
        times = torch.arange(1 - c.context, 1) * c.context_steps
        past = rope.grid(times[:-1], c.pooled, c.pooled, step, step)
        state = torch.tensor([[0.0, (c.grid - 1) / 2, (c.grid - 1) / 2]], dtype=torch.float64)
        return torch.cat((past, rope.grid(times[-1:], c.grid, c.grid), state))

    def _plan_positions(self) -> Tensor:
        """Of [action, M queries] per step: an action sits in the middle of the picture, at the time it leads to."""
        c = self.config
        step = c.grid / c.pooled
        times = torch.arange(1, c.horizon + 1) * c.action_steps
        queries = rope.grid(times, c.pooled, c.pooled, step, step).view(c.horizon, -1, 3)
        action = torch.full((c.horizon, 1, 3), (c.grid - 1) / 2, dtype=torch.float64)
        action[:, 0, 0] = times
        return torch.cat((action, queries), 1).flatten(0, 1)


def _expanded(memory: Memory, samples: int) -> Memory:
    """The same keys and values for all candidates, without a copy."""
    k, v = memory
    return k.expand(samples, -1, -1, -1), v.expand(samples, -1, -1, -1)


def _usable(memory: Memory) -> Memory:
    """Copies of keys and values made in inference mode, where a way back to the actions has to be kept."""
    k, v = memory
    return (k.clone(), v.clone()) if torch.is_grad_enabled() and k.is_inference() else memory


def _picked(table: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Rows of a table; one slice where they are neighbours, and never an index that a device would have to be sent."""
    if steps[-1] - steps[0] + 1 == len(steps):
        return table[steps[0] : steps[-1] + 1]
    return torch.stack([table[h] for h in steps])


def energy(predicted: Tensor, goal: Tensor) -> Tensor:
    """How far every imagined latent [S, H, M, D] is from the goal: mean L1 over tokens and width, [S, H].

    goal: [M, D], or anything that broadcasts, such as one sub-goal per step [H, M, D].
    """
    return (predicted - goal).abs().mean((-2, -1))


#: Write a checkpoint folder, see `checkpoints.save_module`.
save = functools.partial(checkpoints.save_module, KIND)


def load(folder: str | Path) -> tuple[WorldModel, Manifest]:
    """Load a checkpoint folder onto the CPU, in evaluation mode. Raises CheckpointError."""
    return checkpoints.load_module(folder, KIND, lambda config: WorldModel(WorldModelConfig(**config)))
