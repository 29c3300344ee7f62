"""How hands move: minimum-jerk segments, idle wandering, natural orientations. Positions in metres, angles in rad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Hand frame (see mjcf.py) in the world at yaw = pitch = roll = 0: palm down, fingers away from the person.
NEUTRAL = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def min_jerk(u: float) -> float:
    """Progress 0..1 along a minimum-jerk movement at relative time `u` (clipped to 0..1); Flash and Hogan 1985."""
    u = min(max(u, 0.0), 1.0)
    return u * u * u * (10 - 15 * u + 6 * u * u)


def bump(u: float) -> float:
    """A smooth hill: 0 at both ends with zero slope there, 1 in the middle."""
    u = min(max(u, 0.0), 1.0)
    return 16 * u * u * (1 - u) * (1 - u)


def rotation_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def tilt(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation [3, 3] from the neutral hand: left by `yaw`, fingers up by `pitch`, left edge up by `roll`."""
    cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    rx = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
    ry = np.array([[cr, 0.0, sr], [0.0, 1.0, 0.0], [-sr, 0.0, cr]])
    return np.asarray(rotation_z(yaw) @ rx @ ry)


def natural_yaw(wrist: np.ndarray, elbow: np.ndarray) -> float:
    """A relaxed hand turns with its forearm, but less."""
    d = wrist - elbow
    return 0.6 * float(np.arctan2(-d[0], d[1]))


def head_rotation(position: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """Rotation [3, 3] of a MuJoCo camera (looks along -z, y up) at `position` that looks at `target`."""
    z = (position - target) / np.linalg.norm(position - target)
    x = np.cross([0.0, 0.0, 1.0], z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * x + s * y, c * y - s * x, z], 1)


@dataclass(frozen=True)
class Sway:
    """A smooth quasi-random motion: per axis a sum of sines. amplitude, frequency (rad/s), phase: [K, 3]."""

    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, amplitude: float, low: float, high: float, terms: int = 3) -> Sway:
        """A sway of about `amplitude` with frequencies between `low` and `high` rad/s."""
        shape = (terms, 3)
        share = rng.uniform(0.4, 1.0, shape) / terms
        return cls(amplitude * 1.5 * share, rng.uniform(low, high, shape), rng.uniform(0, 2 * np.pi, shape))

    def at(self, t: float) -> np.ndarray:
        return np.asarray((self.amplitude * np.sin(self.frequency * t + self.phase)).sum(0))


@dataclass(frozen=True)
class Wander:
    """An idle hand: it rests, hops to another resting place now and then, and is never quite still.

    stops: resting places [S + 1, 3]; hops: S pairs (start, duration) in seconds, ascending and not overlapping.
    """

    stops: np.ndarray
    hops: tuple[tuple[float, float], ...]
    fidget: Sway
    lift: float = 0.03

    def at(self, t: float) -> np.ndarray:
        """Wrist position [3] at time `t`."""
        position = self.stops[0].copy()
        for (start, duration), a, b in zip(self.hops, self.stops[:-1], self.stops[1:], strict=True):
            u = (t - start) / duration
            position += (b - a) * min_jerk(u)
            position[2] += self.lift * bump(u)
        return position + self.fidget.at(t)

    @classmethod
    def draw(
        cls, rng: np.random.Generator, centre: np.ndarray, spread: np.ndarray, hops: int, until: float, fidget: float
    ) -> Wander:
        """Rest within centre +- spread, with up to `hops` hops that all end before `until` seconds."""
        times: list[tuple[float, float]] = []
        for _ in range(hops):
            duration = rng.uniform(0.5, 1.1)
            start = rng.uniform(0.0, max(until - duration - 0.05, 0.01))
            if start + duration < until and all(start + duration < a or start > a + b for a, b in times):
                times.append((start, duration))
        stops = centre + rng.uniform(-spread, spread, (len(times) + 1, 3))
        return cls(stops, tuple(sorted(times)), Sway.draw(rng, fidget, 1.0, 4.5))
