"""One step of inference as functions of tensors with fixed shapes: what an accelerator can run without asking back.

No sizes, branches or copies depend on values; what may be absent is NaN, or guidance of weight zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .guidance import Payload
from .model import ForecastNet


class Look(nn.Module):
    """Images to latents and poses, in one of the two ways of `ModelConfig.clip`: all in all, or each alone."""

    def __init__(self, net: ForecastNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [k, S, S, 3] -> newest latent [n, D], pooled [c, p^2, D], joints float32 [c, J, 3].

        c is k for single frames, k / tubelet for a clip.
        """
        net = self.net
        return net.look(net.encoder(images[None])[0] if net.config.clip else net.encoder.frames(images))


class Foresee(nn.Module):
    """Latents and poses of a window to a forecast."""

    def __init__(self, net: ForecastNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        now: Tensor,
        pooled: Tensor,
        poses: Tensor,
        anchor: Tensor,
        expected: Tensor,
        pyramid: Tensor | None = None,
        present: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """now [n, D]; pooled [latents, p^2, D]; poses [latents, J, 3], the last is now; anchor [J, 3], observed joints
        now, NaN where the image has to do; expected [p^2, D], what had been predicted for the tubelet just completed,
        or NaN; pyramid [1, L, 2, D_vlm], present bool [1, 2], weight [1].

        Returns float32 numbers (see `unpack`) and the predicted latent [p^2, D] of the tubelet that follows.
        """
        observed = anchor.isfinite().all(-1)
        off = torch.where(observed[:, None], anchor, poses[-1]) - poses[-1]
        poses = poses + off  # what the estimate is off by now, it is taken to be off by all along
        payload = None
        if pyramid is not None and present is not None and weight is not None:
            payload = Payload.pooled(pyramid, present, weight)
        displacement, log_sigma, future = self.net.forecast(pooled[None, :-1], now[None], poses[None], payload)
        came = pooled[-self.net.config.latents_per_tubelet :].float().mean(0)
        surprise = (came - expected.float()).abs().mean()
        numbers = (poses[-1] + displacement[0], self.net.sigma(log_sigma[0], observed), poses[-1], surprise)
        return torch.cat([x.flatten() for x in numbers]), future[0, 0]


def unpack(numbers: Tensor, horizon: int, joints: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions [T, J, 3], sigma [T, J], joints now [J, 3], surprise []: one copy from the device brings them all."""
    sizes = (horizon * joints * 3, horizon * joints, joints * 3, 1)
    positions, sigma, present, surprise = numbers.split(sizes)
    return positions.view(horizon, joints, 3), sigma.view(horizon, joints), present.view(joints, 3), surprise[0]
