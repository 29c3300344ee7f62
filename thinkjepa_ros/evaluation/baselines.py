"""Forecasts that need no model: nothing moves, it goes on like this, it comes to rest.

A model is only called useful beside them. They see what the model may see (poses up to now, measured or estimated) and
work in physical time: stamps may be irregular and poses may be missing (NaN).

Shapes: N samples, P past poses, J joints, T future steps; step k of the result is at newest stamp + (k + 1) * step_s.
"""

from __future__ import annotations

import numpy as np

#: Time constant of `damped_velocity` in seconds; about the 0.85 per frame at 15 Hz that did best on real hands.
DAMPING_S = 0.4
#: How far back the velocity looks, in seconds.
VELOCITY_WINDOW_S = 0.35


def hold(present: np.ndarray, T: int) -> np.ndarray:
    """Everything stays where it is: [N, T, J, 3] from the present poses [N, J, 3]."""
    present = np.asarray(present)
    if present.ndim != 3 or present.shape[-1] != 3:
        raise ValueError(f"present poses must be [N, J, 3], got {present.shape}")
    return np.repeat(present[:, None], T, axis=1)


def velocity(past: np.ndarray, past_times_s: np.ndarray, window_s: float = VELOCITY_WINDOW_S) -> np.ndarray:
    """Velocity of every joint at the newest pose, [N, J, 3] in m/s: the least-squares slope over the last `window_s`.

    past: [N, P, J, 3], oldest first; past_times_s: [N, P], strictly ascending. The newest two known poses always count,
    so that a slow camera still has a velocity. A joint known fewer than twice has velocity 0.
    """
    past = np.asarray(past, np.float64)
    times = np.asarray(past_times_s, np.float64)
    if past.ndim != 4 or past.shape[-1] != 3 or times.shape != past.shape[:2]:
        raise ValueError(f"past poses must be [N, P, J, 3] with stamps [N, P], got {past.shape} and {times.shape}")
    if not np.isfinite(times).all() or (np.diff(times, axis=1) <= 0).any():
        raise ValueError("the stamps of past poses must be finite and strictly ascending")
    since = times - times[:, -1:]  # <= 0; relative, so that stamps of 1.7e9 s keep their precision
    known = np.isfinite(past).all(-1)
    newest_two = np.flip(np.cumsum(np.flip(known, 1), 1), 1) <= 2
    weight = (known & ((since[:, :, None] >= -window_s - 1e-9) | newest_two)).astype(np.float64)
    count = np.maximum(weight.sum(1), 1.0)
    centred_t = since[:, :, None] - (weight * since[:, :, None]).sum(1, keepdims=True) / count[:, None]
    values = np.where(known[..., None], past, 0.0)
    centred_x = values - (weight[..., None] * values).sum(1, keepdims=True) / count[:, None, :, None]
    spread = (weight * centred_t**2).sum(1)
    slope = (weight[..., None] * centred_t[..., None] * centred_x).sum(1) / np.where(spread > 0, spread, 1.0)[..., None]
    return np.where(spread[..., None] > 0, slope, 0.0)


def constant_velocity(
    past: np.ndarray, past_times_s: np.ndarray, step_s: float, T: int, window_s: float = VELOCITY_WINDOW_S
) -> np.ndarray:
    """Everything goes on as it moved: [N, T, J, 3]. NaN for joints whose newest pose is unknown."""
    speed = velocity(past, past_times_s, window_s)
    ahead = step_s * np.arange(1, T + 1)
    return np.asarray(past, np.float64)[:, -1][:, None] + ahead[None, :, None, None] * speed[:, None]


def damped_velocity(
    past: np.ndarray,
    past_times_s: np.ndarray,
    step_s: float,
    T: int,
    damping_s: float = DAMPING_S,
    window_s: float = VELOCITY_WINDOW_S,
) -> np.ndarray:
    """Everything goes on and comes to rest: the velocity decays as exp(-t / damping_s). [N, T, J, 3].

    NaN for joints whose newest pose is unknown.
    """
    if not damping_s > 0:
        raise ValueError(f"damping_s must be above 0 s, got {damping_s}")
    speed = velocity(past, past_times_s, window_s)
    travel = damping_s * -np.expm1(-step_s * np.arange(1, T + 1) / damping_s)
    return np.asarray(past, np.float64)[:, -1][:, None] + travel[None, :, None, None] * speed[:, None]
