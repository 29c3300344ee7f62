"""Joins a run with its truth by time, and scores the model beside forecasts that need none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinkjepa_ros.evaluation import baselines, metrics
from thinkjepa_ros.evaluation.bootstrap import Interval, bootstrap_mean, paired_bootstrap
from thinkjepa_ros.evaluation.runs import Run

NS = 1_000_000_000
#: Truth is interpolated over gaps up to this; a camera pose may be this far from the image it belongs to.
MAX_GAP_NS = 150_000_000
MAX_POSE_NS = 20_000_000
#: After a pause in the truth longer than this, another scene has begun.
NEW_SCENE_NS = 1_000_000_000
#: A forecast within this time of a (re)start of the scene looked at two scenes at once.
CONTEXT_NS = 800_000_000
#: Neighbouring forecasts are not independent: intervals are made over stretches of this length.
STRETCH_S = 2.0
MODEL, HOLD, VELOCITY, DAMPED = "model", "hold", "constant velocity", "damped velocity"


class NoTruthError(ValueError):
    """The run can not be scored; the text says what is missing."""


@dataclass(frozen=True)
class Joined:
    """The n forecasts that can be scored (the truth reaches to the end of the horizon), in the frame of each.

    index [n] into the run; truth [n, T, J, 3] and truth_present [n, J, 3], NaN = unknown; methods by name [n, T, J, 3];
    stretch [n]: which stretch of the recording a forecast belongs to (the same one in every loop).
    """

    index: np.ndarray
    truth: np.ndarray
    truth_present: np.ndarray
    methods: dict[str, np.ndarray]
    stretch: np.ndarray


@dataclass(frozen=True)
class Row:
    """One method: ADE and FDE in metres with their intervals, and how much larger its ADE is than the model's."""

    method: str
    ade: Interval
    fde: Interval
    behind_model: Interval


def interpolate(stamps: np.ndarray, values: np.ndarray, queries: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Values [M, ...] at `stamps` (ns, ascending) read at `queries` (any shape) -> [..., ...] by straight lines.

    NaN outside, over gaps above MAX_GAP_NS, and between two `parts` (ns at which a new scene begins).
    """
    queries = np.asarray(queries, np.int64)
    if len(stamps) == 0:
        return np.full((*queries.shape, *values.shape[1:]), np.nan)
    right = np.clip(np.searchsorted(stamps, queries), 0, len(stamps) - 1)
    exact = stamps[right] == queries
    left = np.where(exact, right, np.maximum(right - 1, 0))
    gap = stamps[right] - stamps[left]
    same = np.searchsorted(parts, stamps[left], "right") == np.searchsorted(parts, stamps[right], "right")
    good = (queries >= stamps[left]) & (queries <= stamps[right]) & (gap <= MAX_GAP_NS) & same
    share = (queries - stamps[left]) / np.maximum(gap, 1)
    share = share.reshape(share.shape + (1,) * (values.ndim - 1))
    result = np.where(share > 0, values[left] * (1 - share) + values[right] * share, values[left])
    return np.where(good.reshape(share.shape), result, np.nan)


def join(run: Run) -> Joined:
    """Forecasts, truth and baselines of a run. Raises NoTruthError, whose text says what a score would need."""
    if len(run) == 0:
        raise NoTruthError("no error can be computed: there was no forecast")
    if len(run.truth_ns) == 0:
        raise NoTruthError(
            "no error can be computed: this recording has no joint truth (/truth/joints, geometry_msgs/PoseArray)"
        )
    if run.truth.shape[1] != len(run.joint_names):
        raise NoTruthError(
            f"no error can be computed: the truth has {run.truth.shape[1]} points, the model has "
            f"{len(run.joint_names)} joints"
        )
    if len(run.pose_ns) == 0:
        raise NoTruthError("no error can be computed: the truth is in the world and there is no /camera/pose")
    if (np.diff(run.stamp_ns) <= 0).any() or (np.diff(run.truth_ns) <= 0).any():
        raise NoTruthError(
            "no error can be computed: the same stamps came again (a loop with clock:=bag); play it once"
        )
    nearest = np.abs(run.stamp_ns[:, None] - run.pose_ns[None]).argmin(1)
    posed = np.abs(run.pose_ns[nearest] - run.stamp_ns) <= MAX_POSE_NS
    world_from_camera = run.pose[nearest]
    rounds = run.begins_ns if len(run.begins_ns) else run.stamp_ns[:1]
    pauses = run.truth_ns[1:][np.diff(run.truth_ns) > NEW_SCENE_NS]  # several episodes in one recording
    begins = np.union1d(rounds, pauses)
    part = np.maximum(np.searchsorted(begins, run.stamp_ns, "right") - 1, 0)
    one_scene = (part == 0) | (run.stamp_ns - begins[part] >= CONTEXT_NS)

    steps_ns = (np.arange(1, run.positions.shape[1] + 1) * run.step_s * NS).round().astype(np.int64)
    targets = run.stamp_ns[:, None] + steps_ns
    ahead = interpolate(run.truth_ns, run.truth, targets, begins[1:])
    restarted = np.maximum(np.searchsorted(begins, targets, "right") - 1, 0) != part[:, None]
    ahead[restarted] = np.nan  # no horizon reaches across a restart, even where the stamps simply go on
    truth = _into_camera(world_from_camera, ahead)
    now = interpolate(run.truth_ns, run.truth, run.stamp_ns, begins[1:])
    # only whole horizons: one that is cut off would count its easy, near steps alone
    index = np.flatnonzero(posed & one_scene & np.isfinite(truth[:, -1]).all(-1).any(1))
    if len(index) == 0:
        raise NoTruthError(
            "no error can be computed: truth, camera pose and forecasts do not overlap over a whole horizon of "
            f"{run.step_s * run.positions.shape[1]:.1f} s"
        )
    past, past_s = _past_estimates(run, index, world_from_camera, posed, part)
    horizon, step_s = run.positions.shape[1], run.step_s
    methods = {
        MODEL: run.positions[index].astype(np.float64),
        HOLD: baselines.hold(past[:, -1], horizon),
        VELOCITY: baselines.constant_velocity(past, past_s, step_s, horizon),
        DAMPED: baselines.damped_velocity(past, past_s, step_s, horizon),
    }
    place = np.maximum(np.searchsorted(rounds, run.stamp_ns[index], "right") - 1, 0)
    stretch = (run.stamp_ns[index] - rounds[place]) // round(STRETCH_S * NS)
    return Joined(index, truth[index], _into_camera(world_from_camera, now)[index], methods, stretch)


def _into_camera(world_from_camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [n, ..., 3] in the optical frames of the poses [n, 4, 4]."""
    rotation, origin = world_from_camera[:, :3, :3], world_from_camera[:, :3, 3]
    moved = points - origin.reshape(len(points), *(1,) * (points.ndim - 2), 3)
    return np.einsum("n...i,nij->n...j", moved, rotation)


def _past_estimates(
    run: Run, index: np.ndarray, world_from_camera: np.ndarray, posed: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The model's estimates of the present up to each forecast, seen from its camera: [n, P, J, 3], seconds [n, P].

    The baselines get exactly the poses that the model may use. Missing ones (NaN) stand at made-up earlier times.
    """
    rotation, origin = world_from_camera[:, :3, :3], world_from_camera[:, :3, 3]
    world = np.einsum("nij,nkj->nki", rotation, run.present) + origin[:, None]
    period_s = max(0.01, float(np.median(np.diff(run.stamp_ns))) * 1e-9) if len(run) > 1 else 1.0
    count = 2 + int(np.ceil(baselines.VELOCITY_WINDOW_S / period_s))
    past = np.full((len(index), count, *run.present.shape[1:]), np.nan)
    seconds = np.tile(np.arange(-count, 0) * 10.0, (len(index), 1))
    for row, newest in enumerate(index):
        for back in range(min(count, newest + 1)):
            i = newest - back
            age_s = (run.stamp_ns[newest] - run.stamp_ns[i]) * 1e-9
            if age_s > 1.0 or not posed[i] or run.epoch[i] != run.epoch[newest] or part[i] != part[newest]:
                break
            past[row, -1 - back] = (world[i] - origin[newest]) @ rotation[newest]
            seconds[row, -1 - back] = -age_s
    return past, seconds


def score(joined: Joined, joints: np.ndarray | None = None, steps: int | None = None) -> list[Row]:
    """One row per method over the same entries. joints: bool [n, J], score only these; steps: horizon (or all)."""
    mask = np.isfinite(joined.truth).all(-1)
    mask = metrics.answered_by_all(mask, *joined.methods.values())
    errors = {name: metrics.displacement_errors(pred, joined.truth, mask) for name, pred in joined.methods.items()}
    if joints is not None:
        errors = {name: metrics.only(error, joints) for name, error in errors.items()}
    ades = {name: metrics.per_episode_mean(metrics.ade(error, steps), joined.stretch) for name, error in errors.items()}
    fdes = {name: metrics.per_episode_mean(metrics.fde(error, steps), joined.stretch) for name, error in errors.items()}
    return [
        Row(name, bootstrap_mean(ades[name]), bootstrap_mean(fdes[name]), paired_bootstrap(ades[name], ades[MODEL]))
        for name in errors
    ]


def moving(joined: Joined, joint_names: tuple[str, ...]) -> np.ndarray:
    """Joints of hands that really move within the horizon, bool [n, J]."""
    return metrics.moving_joints(joined.truth_present, joined.truth, metrics.joint_groups(joint_names))


def present_error_m(joined: Joined, run: Run) -> float:
    """Mean distance between the model's joints now and the true ones, metres."""
    distance = np.linalg.norm(run.present[joined.index] - joined.truth_present, axis=-1)
    return float(metrics.nanmean(distance))
