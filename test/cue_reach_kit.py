"""Small made-up truths and predictions of the cue-reach benchmark, with every odd case in them."""

from __future__ import annotations

import numpy as np

from thinkjepa_ros.evaluation.cue_reach.origins import GROUPS, Truth
from thinkjepa_ros.evaluation.cue_reach.rows import IMAGE, Prediction

NAMES = ("right_wrist", "right_palm", "left_wrist", "left_palm")
TUBELETS, TOKENS, WIDTH = 4, 3, 5


def make_truth(episodes: int = 12, steps: int = 8, seed: int = 0, holes: bool = True) -> Truth:
    """Every episode has a "before" origin, several of "ready" and one each of reach and transport. The right hand moves
    at most of them; every fifth episode was told nothing. With `holes`: futures that end early and unknown joints.
    """
    rng = np.random.default_rng(seed)
    episode, group = [], []
    for number in range(episodes):
        kinds = ["before", *["ready"] * int(rng.integers(1, 5)), "reach", "transport"]
        episode += [number] * len(kinds)
        group += [GROUPS.index(kind) for kind in kinds]
    n = len(episode)
    told = np.array(episode) % 5 != 4
    present = rng.normal(size=(n, len(NAMES), 3)).astype(np.float32)
    future = present[:, None] + 0.001 * rng.normal(size=(n, steps, len(NAMES), 3)).astype(np.float32)
    future[rng.random(n) < 0.8, :, :2] += np.linspace(0.0, 0.3, steps, dtype=np.float32)[:, None, None]
    known = rng.random((n, TUBELETS)) < 0.8
    latents = rng.normal(size=(n, TUBELETS, TOKENS, WIDTH)).astype(np.float16)
    if holes:
        for i in range(0, n, 3):
            future[i, int(rng.integers(0, steps)) :] = np.nan
        future[rng.random(future.shape[:3]) < 0.1] = np.nan
        latents[~known] = np.nan
    return Truth(
        sample=np.arange(n),
        episode=np.array(episode, np.int64),
        group=np.array(group, np.int64),
        told=told,
        split=np.where(told, "lamp", "none"),
        present=present,
        future=future,
        latents=latents,
        latents_known=known,
        steps_per_tubelet=2,
        joint_names=NAMES,
        step_s=0.1,
    )


def make_prediction(
    truth: Truth,
    row: str = "guided",
    error_m: float = 0.03,
    inputs: str = IMAGE,
    seed: int = 0,
    no_cue_m: float | None = None,
    full: bool = True,
) -> Prediction:
    """The truth and errors of about `error_m`; of `no_cue_m` where nothing was told. full: with sigma and latents."""
    rng = np.random.default_rng([*f"{row} {inputs}".encode(), seed])
    shape = truth.future.shape
    size = np.where(truth.told, error_m, error_m if no_cue_m is None else no_cue_m).astype(np.float32)
    away = rng.normal(size=shape).astype(np.float32)
    away *= size[:, None, None, None] / np.linalg.norm(away, axis=-1, keepdims=True)
    away *= rng.uniform(0.9, 1.1, (shape[0], 1, 1, 1)).astype(np.float32)
    base = np.where(np.isfinite(truth.future), truth.future, 0).astype(np.float32)
    sigma = rng.uniform(0.01, 0.05, shape[:3]).astype(np.float32) if full else None
    latents = rng.normal(size=truth.latents.shape).astype(np.float16) if full else None
    return Prediction(row, inputs, seed, base + away, sigma, latents)
