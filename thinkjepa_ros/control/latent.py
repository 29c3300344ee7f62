"""The world model as a planner sees it: actions of the base frame in, latents of the scored steps out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..jepa.guidance import Payload
from ..jepa.world_model import Context, WorldModel

#: Tokens of candidates that a processor takes at once: their activations fit its cache. A sixth faster than all of 64
#: candidates with 68 tokens each.
_TOKENS = 2048


class World(Protocol):
    """What a planner plans in: a pure function of tensors with fixed shapes, differentiable in the actions."""

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        """Latents [S, K, ...] after the actions numbered `steps` (from 0) of S sequences [S, H, A]. known: the
        present, the same for all sequences.
        """
        ...


class LatentWorld:
    """A `WorldModel` that was trained on actions in the camera's orientation, behind actions in the base frame."""

    def __init__(self, net: WorldModel, dtype: torch.dtype = torch.float32) -> None:
        """dtype: what to compute in; latents come back in float32."""
        self.net, self.dtype = net.eval().requires_grad_(False).to(dtype), dtype

    def known(
        self, context: Context, payload: Payload | None = None, rotation: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The present as tensors: the context of `net.remember` (batch 1), guidance of one row, and the rotation [3, 3]
        base from camera; None where actions are of the model's frame already.

        A model that takes guidance is told of its absence by a row of weight 0, so that shapes never change: the
        prediction is the unguided one, bit for bit. Guidance is pooled (`Payload.pooled`).
        """
        if context.now.shape[0] != 1:
            raise ValueError(f"a plan starts from one present; the context has {context.now.shape[0]} rows")
        like = context.now
        turn = torch.eye(3, device=like.device) if rotation is None else rotation.to(like.device, torch.float32)
        parts = [turn, like, *(part for kv in context.memory for part in kv)]
        c = self.net.config
        if c.guide_layers:
            if payload is None or payload.empty:
                payload = Payload.pooled(
                    torch.zeros(1, c.guide_layers, 2, c.guide_width),
                    torch.zeros(1, 2, dtype=torch.bool),
                    torch.zeros(1),
                )
            if any(part is None for part in payload):
                raise ValueError("guidance for a planner needs both streams, their masks and a weight: Payload.pooled")
            parts += [part for part in payload.to(like.device, self.dtype) if part is not None]
        elif payload is not None and not payload.empty:
            raise ValueError("this world model was built without guidance")
        return tuple(parts)

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        """See `World`. Latents float32 [S, K, M, D]."""
        turn, now, *rest = known
        depth = self.net.config.depth
        memory = tuple((rest[2 * i], rest[2 * i + 1]) for i in range(depth))
        payload = Payload(*rest[2 * depth :]) if len(rest) > 2 * depth else None
        turned = torch.cat((actions[..., :3] @ turn, actions[..., 3:]), -1).to(self.dtype)  # rows: R^T applied to each
        pieces = turned.split(self._at_once(len(steps)) if turned.is_cpu else len(turned))
        return torch.cat([self.net.imagine(Context(memory, now), x, payload, steps) for x in pieces]).float()

    def _at_once(self, steps: int) -> int:
        """How many candidates a processor imagines at once: as many as its cache holds, never one alone."""
        c = self.net.config
        tokens = c.horizon + steps * c.tokens if c.sight == "actions" else c.horizon * (1 + c.tokens)
        return max(2, _TOKENS // tokens)
