"""What a fine-tuned model is worth on the episodes that were held out, beside forecasts that need no model."""

from __future__ import annotations

import numpy as np

from ..jepa import model
from ..jepa.forecaster import Forecaster
from ..jepa.readout import SigmaScale
from ..thinker.qwen import Thinker
from ..train.fine_tune import Outcome
from ..train.mini import thinker_over
from ..train.recorded import Recorded
from . import calibration
from . import forecast as scoring


def judge(
    net: model.ForecastNet, name: str, found: Recorded, mean_pose: np.ndarray, mind: Thinker | None, show: bool
) -> tuple[Outcome, SigmaScale]:
    """Forecast the held-out episodes: what came of it, and the scale that makes sigma right on them.

    mean_pose: of the training data in the camera frame, [J, 3] metres. show: print the tables.
    """
    thoughts = None if mind is None else thinker_over(mind)
    origins = scoring.collect(Forecaster(net, name, found.domain, True), found.held, thoughts, controls=False)
    scale = calibration.fitted(origins)
    for method, curve in ((scoring.MODEL, scale.image_only), (scoring.ANCHORED, scale.anchored)):
        origins.sigma[method] = [sigma * np.array(curve)[:, None] for sigma in origins.sigma[method]]
    config = net.config
    result = scoring.report(origins, mean_pose, config.joint_names, (config.horizon,))
    if show:
        scoring.show(result)
    every, moving = (result.tables[f"{title}, {config.horizon} steps"] for title in ("all origins", "moving hand"))
    none_moves = not all(np.isfinite(row.ade.mean) for row in moving)
    errors = {row.method: float(row.ade.mean) for row in (every if none_moves else moving)}
    horizon_s = config.horizon * config.step_s
    return Outcome(tuple(found.held_names), result.origins, horizon_s, errors, none_moves), scale


def sentences(outcome: Outcome) -> list[str]:
    """The comparison in words: from images alone, then with an observed pose."""
    out = []
    for ours, words, suffix in (
        (scoring.MODEL, "from images alone", ""),
        (scoring.ANCHORED, "with an observed pose", scoring.TRUE),
    ):
        others = {name: outcome.errors[name + suffix] for name in (scoring.HOLD, scoring.VELOCITY, scoring.DAMPED)}
        best = min(others, key=others.__getitem__)
        verdict = "better than" if outcome.errors[ours] < others[best] else "NOT better than"
        beside = ", ".join(f"{name} {100 * error:.1f} cm" for name, error in others.items())
        out.append(
            f"Held out, {outcome.horizon_s:g} s ahead, {'all joints' if outcome.all_joints else 'joints that move'}, "
            f"{words}: {100 * outcome.errors[ours]:.1f} cm, {verdict} {best} ({beside})."
        )
    return out
