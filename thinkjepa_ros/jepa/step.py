"""One step of inference as functions of tensors with fixed shapes: what an accelerator can run without asking back.

No sizes, branches or copies depend on values; what may be absent is NaN, or guidance of weight zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .guidance import Payload, Ready
from .model import ForecastNet


class Look(nn.Module):
    """Images uint8 [k, S, S, 3] to latents [k, n, D], each alone, or, as a clip, [k / tubelet, n, D]; and what is in
    them, see `ForecastNet.look`.
    """

    def __init__(self, net: ForecastNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoder = self.net.encoder
        latents = encoder(images[None])[0] if self.net.config.clip else encoder.frames(images)
        return (latents, *self.net.look(latents))


class Foresee(nn.Module):
    """The latents of a window to a forecast."""

    def __init__(self, net: ForecastNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        now: Tensor,
        pooled: Tensor,
        seen: Tensor,
        anchor: Tensor,
        expected: Tensor,
        *signals: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """now [n, D], the newest latent; pooled [k, p^2, D] and joints [k, J, 3] of all, now included; anchor [J, 3],
        observed joints now, NaN where the image has to do; expected [p^2, D], what had been predicted for the tubelet
        just completed, or NaN; signals: guidance as `ready` gives it, or none.

        Returns float32 numbers (see `Numbers`) and the predicted latent, float32 [p^2, D], of the tubelet that follows.
        """
        net = self.net
        observed = anchor.isfinite().all(-1)
        off = torch.where(observed[:, None], anchor, seen[-1]) - seen[-1]
        poses = seen + off  # what the estimate is off by now, it is taken to be off by all along
        guide = net.predictor.guide
        ready = Ready(guide.unpack(signals[:-1]), signals[-1]) if signals and guide is not None else None
        displacement, log_sigma, future = net.forecast(pooled[None, :-1], now[None], poses[None], ready)
        came = pooled[-net.config.latents_per_tubelet :].float().mean(0)
        surprise = (came - expected).abs().mean()
        sigma = net.sigma(log_sigma[0], observed)
        numbers = Numbers(poses[-1] + displacement[0], sigma, poses[-1], seen, surprise)
        return torch.cat([x.flatten() for x in numbers]), future[0, 0].float()

    def ready(self, payload: Payload) -> tuple[Tensor, ...]:
        """Guidance of one row, prepared for any number of forecasts. Every stream of it comes with a mask."""
        guide, ready = self.net.predictor.guide, self.net.predictor.ready(payload)
        return () if guide is None or ready is None else (*guide.pack(ready.signals), ready.amount)


class Numbers(NamedTuple):
    """What leaves the device, in one piece: one copy brings all of it."""

    positions: Tensor  # [T, J, 3]
    sigma: Tensor  # [T, J]
    present: Tensor  # [J, 3], the anchor where there is one
    seen: Tensor  # [k, J, 3], joints at each latent as the model sees them
    surprise: Tensor  # []

    @staticmethod
    def of(flat: Tensor, horizon: int, joints: int) -> Numbers:
        """The inverse of flattening and concatenating."""
        sizes = [horizon * joints * 3, horizon * joints, joints * 3]
        positions, sigma, present, seen, surprise = flat.split([*sizes, len(flat) - sum(sizes) - 1, 1])
        shape = (joints, 3)
        return Numbers(
            positions.view(horizon, *shape),
            sigma.view(horizon, joints),
            present.view(shape),
            seen.view(-1, *shape),
            surprise[0],
        )
