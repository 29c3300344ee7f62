"""Noise whose neighbouring steps are alike: sequences that go somewhere, where white noise stays on the spot.

Of iCEM (Pinneri et al., arXiv 2008.06389, section 3.1): the power spectral density of every sequence falls with the
frequency f as f^-beta. 0 is white; 2 to 3.5 is what they found good for manipulation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def amplitudes(steps: int, beta: float) -> Tensor:
    """float64 [steps // 2 + 1], of the frequencies 0, 1/steps, ..., such that every step has variance 1.

    The constant part has the power of the lowest frequency, since f^-beta has no value at 0.
    """
    frequency = torch.fft.rfftfreq(steps, dtype=torch.float64).clamp(min=1 / steps)
    power = frequency**-beta
    share = torch.full_like(power, 2.0)  # both signs of a frequency
    share[0] = 1.0
    if steps % 2 == 0:
        share[-1] = 1.0
    return (power / (share * power).sum()).sqrt()


def coloured(
    shape: tuple[int, ...],
    beta: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    window: int = 0,
) -> Tensor:
    """Gaussian float32 [..., steps, A]: variance 1 at every step, power falling as f^-beta along the steps.

    generator: of `device`; equal states give equal noise. window: make sequences of so many steps and keep the
    beginning. The noise is periodic in it, and slower than it nothing moves: with a window of the steps themselves (the
    default, as published) the last step is a neighbour of the first, and four steps are nearly white.
    """
    kept = shape[-2]
    steps = max(window, kept)
    if beta == 0 or steps == 1:
        return torch.randn(shape, generator=generator, device=device)
    size = amplitudes(steps, beta).to(device, torch.float32)
    parts = torch.randn((2, *shape[:-2], len(size), shape[-1]), generator=generator, device=device)
    real, imaginary = parts * (size[:, None] * steps)
    half = 0.5**0.5  # of a complex amplitude; the constant part and the highest frequency are real
    whole = torch.full_like(size, half)
    whole[0] = 1.0
    turning = torch.full_like(size, half)
    turning[0] = 0.0
    if steps % 2 == 0:
        whole[-1], turning[-1] = 1.0, 0.0
    spectrum = torch.complex(real * whole[:, None], imaginary * turning[:, None])
    return torch.fft.irfft(spectrum, n=steps, dim=-2)[..., :kept, :].contiguous()
