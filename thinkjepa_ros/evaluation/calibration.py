"""`thinkjepa evaluate calibrate`: make sigma the standard deviation that it claims to be, on validation episodes.

A readout trained for minutes on its training episodes is surer of itself than it may be, and it is not told whether the
pose it starts from was observed. So sigma gets a factor per step, one curve for joints seen in the image only and one
for observed ones. A curve has few parameters: log-factors at steps 1, 2, 4, 8 … and the last, straight lines over the
log of the step between. They maximise the likelihood of normally distributed errors: the root mean square of
error / sigma becomes 1. Positions do not change, nor do the weights: the curves are written to `model.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoints
from ..data.episode import Episode, EpisodeError
from ..data.sim.script import VAL_SEEDS
from ..jepa import model as jepa_model
from ..jepa.forecaster import Forecaster
from ..jepa.readout import SigmaScale
from ..train.clips import data_hash, load_folder
from ..version import __version__
from .coverage import Coverage, scores, show
from .forecast import ANCHORED, MODEL, Origins, collect, sigma_coverage

#: A number that will be multiplied with sigma needs no more digits.
_DIGITS = 4


def knots(steps: int) -> np.ndarray:
    """Numbers of the steps at which a curve has parameters: 1, 2, 4, 8 … and the last."""
    return np.unique([*(2**i for i in range(steps.bit_length()) if 2**i < steps), steps])


def fit(values: np.ndarray) -> np.ndarray:
    """The factor of sigma at every step, [T], from the scores |error| / sigma [N, T, J, 3] (NaN: unknown).

    Maximum likelihood: the mean of log(factor) + score^2 / (2 factor^2) is least. It is convex in the log-factors at
    the knots, and Newton's method finds them. Raises ValueError where a step has no score.
    """
    known = np.isfinite(values)
    count = known.sum((0, 2, 3)).astype(np.float64)
    square = np.square(np.where(known, values, 0.0)).sum((0, 2, 3))
    if not (square > 0).all():
        step = int(np.argmin(square > 0)) + 1
        raise ValueError(f"there is no truth at step {step}: the episodes are too short, or too few, to calibrate with")
    steps = np.arange(1, values.shape[1] + 1)
    at = knots(len(steps))
    lines = np.stack([np.interp(np.log(steps), np.log(at), one) for one in np.eye(len(at))], 1)  # [T, knots]
    share = count / count.sum()
    mean = square / count
    log_factor = 0.5 * np.log(mean)[at - 1]
    for _ in range(50):
        pull = mean * np.exp(-2 * lines @ log_factor)
        change = np.linalg.solve(lines.T @ (2 * (share * pull)[:, None] * lines), lines.T @ (share * (1 - pull)))
        log_factor = log_factor - np.clip(change, -1, 1)
        if np.abs(change).max() < 1e-9:
            break
    return np.exp(lines @ log_factor)


def fitted(origins: Origins) -> SigmaScale:
    """Both curves from the origins of a forecaster whose sigma is not scaled."""
    truth = np.stack(origins.truth)
    known = np.isfinite(truth).all(-1)
    curves = []
    for method in (MODEL, ANCHORED):
        sigma = np.stack(origins.sigma[method])
        curve = fit(scores(np.stack(origins.methods[method]), truth, sigma, known))
        curves.append(tuple(float(f"{factor:.{_DIGITS}g}") for factor in curve))
    return SigmaScale(*curves)


def calibrate(model: Path, data: Path, *, limit: int | None = None) -> tuple[list[Coverage], list[Coverage]]:
    """Fit the factors on validation episodes, write them into the model's `model.json`, print and return the coverage
    before and after.

    What was calibrated before is forgotten: the same data gives the same curves again. Raises EpisodeError for episodes
    that are not of the validation seeds: those of training are too easy, those of the test are for nothing but scoring.
    """
    net, manifest = jepa_model.load(model)
    episodes = load_folder(data, limit)
    _check(episodes, data)
    net.sigma_scale.fill_(1.0)
    forecaster = Forecaster(net, manifest.model_id, manifest.domain, manifest.trained)
    origins = collect(forecaster, episodes, controls=False)
    scale = fitted(origins)
    before = sigma_coverage(origins, net.config.joint_names)
    for method, curve in ((MODEL, scale.image_only), (ANCHORED, scale.anchored)):
        origins.sigma[method] = [sigma * np.array(curve)[:, None] for sigma in origins.sigma[method]]
    after = sigma_coverage(origins, net.config.joint_names)
    show(before, f"Before ({len(episodes)} episodes of {data.name}, {len(origins.episode)} origins)")
    show(after, "After, on the same episodes")
    record = {
        "command": "thinkjepa evaluate calibrate",
        "version": __version__,
        "method": "maximum likelihood",
        "data": data.name,
        "data_sha256": data_hash(data, limit),
        "seeds": [min(e.seed for e in episodes), max(e.seed for e in episodes)],
        "episodes": len(episodes),
        "origins": len(origins.episode),
        "torch": torch.__version__,
    }
    _write(model / checkpoints.MANIFEST, scale, record)
    return before, after


def _check(episodes: list[Episode], data: Path) -> None:
    odd = [e.seed for e in episodes if e.seed not in VAL_SEEDS]
    if odd:
        raise EpisodeError(
            f"{data}: holds an episode of seed {odd[0]}; sigma is calibrated on validation episodes only, seeds "
            f"{VAL_SEEDS.start} to {VAL_SEEDS.stop - 1}. Make some with "
            f"`thinkjepa data sim --seed-start {VAL_SEEDS.start}`."
        )


def _write(path: Path, scale: SigmaScale, record: dict[str, Any]) -> None:
    """Change two entries of `model.json`, nothing else."""
    contents = json.loads(path.read_bytes())
    contents["config"]["sigma_scale"] = {"image_only": scale.image_only, "anchored": scale.anchored}
    contents["training"]["sigma_calibration"] = record
    jepa_model.ModelConfig.from_dict(contents["config"])  # what will be refused is not written
    checkpoints.write_atomically(path, (json.dumps(contents, indent=1, sort_keys=True) + "\n").encode())
