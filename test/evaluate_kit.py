"""Recordings of two joints that move evenly before a small camera, for the tests of `evaluate bag`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from truth_kit import Message, bag, camera, compressed, jpeg, ns, pose_array

from thinkjepa_ros.data.survey import Settings

START = np.array([[0.0, 0.0, 0.5], [0.1, 0.1, 0.6]])
SPEED = np.array([[0.1, -0.05, 0.02], [0.0, 0.0, 0.0]])
NAMES = ("right_1", "right_3")
SETTINGS = Settings("/truth", joints=NAMES)
STEP_NS, WINDOW, HORIZON = 100_000_000, 4, 6


def hands(seconds: float | np.ndarray) -> np.ndarray:
    """Two joints, one of which moves evenly, float64 [..., 2, 3]."""
    return START + np.asarray(seconds)[..., None, None] * SPEED


def every(rate_hz: float, seconds: float, begin: float = 0.0) -> np.ndarray:
    return begin + np.arange(round(seconds * rate_hz)) / rate_hz


def truth(times: np.ndarray) -> list[Message]:
    return [("/truth", ns(t), pose_array(ns(t), hands(t), "camera_optical")) for t in times.tolist()]


def images(times: np.ndarray, other: float = 9e9) -> list[Message]:
    """From second `other` on the pictures are different ones."""
    made = camera([ns(t) for t in times.tolist()])
    if other < 9e9:
        made = [
            (topic, at, compressed(at, jpeg(90 + k)) if "compressed" in topic and at >= ns(other) else message)
            for k, (topic, at, message) in enumerate(made)
        ]
    return made


def recording(folder: Path, seconds: float = 3.0, other: float = 9e9) -> Path:
    return bag(folder, images(every(30, seconds), other), truth(every(50, seconds)))


def same(a: Any, b: Any, upto: int = 9**9) -> list[str]:
    """Names of the arrays that differ in the first forecasts; how long something took does not count."""
    names = ("stamp_ns", "guided", "unguided", "sigma", "present", "past", "surprise", "weight", "age_s", "truth")
    return [n for n in names if not np.array_equal(getattr(a, n)[:upto], getattr(b, n)[:upto], equal_nan=True)]
