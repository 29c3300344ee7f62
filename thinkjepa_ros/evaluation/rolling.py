"""How good the forecasts of a running robot have been during the last seconds.

Forecasts wait here until their truth has come, for a whole horizon; then they are scored by the functions that score a
recording (evaluation/score.py), beside hold and constant velocity. Nothing here knows ROS; times are given by the
caller. What waits is bounded, and whatever is left out is counted with the reason.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation import metrics, score
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.evaluation.sightings import Sightings
from thinkjepa_ros.values import Forecast

NS = 1_000_000_000
#: What is compared, best known name first.
ROWS = (score.MODEL, score.HOLD, score.VELOCITY)
#: Baselines see the model's estimates of the last second.
PAST_NS = 1_050_000_000
#: No more than this many forecasts wait for their truth, and no more are scored in one turn.
MAX_WAITING, MAX_AT_ONCE = 2000, 300
#: No more arrivals than this many are kept for rates and latencies.
MAX_ARRIVALS = 20_000
#: Without a forecast for this long something has stopped.
SILENT_S = 2.0
#: So many forecasts of something that moves are asked for before the model is called worse than hold.
MIN_MOVING = 10
#: Truth whose newest stamp is farther than this from that of the newest forecast comes from another clock.
CLOCK_NS = 30 * NS


class Level(IntEnum):
    """As in diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class RowNow:
    """Mean errors of one method over a window, metres: ADE, FDE, and ADE of what moves (NaN: nothing to say)."""

    ade: float
    fde: float
    ade_moving: float


@dataclass(frozen=True)
class Snapshot:
    """What can be said now. scored, moving: forecasts in the window that have errors, and that have them of something
    that moves. latency_s: p50, p95, p99, max of the window, None without a forecast. weight, age_s: of the guidance of
    the newest forecast. received, scored_total, waiting, left_out: since the beginning.
    """

    level: Level
    words: str
    window_s: float
    rows: dict[str, RowNow]
    scored: int
    moving: int
    rate_hz: float
    latency_s: dict[str, float] | None
    weight: float
    age_s: float
    received: int
    scored_total: int
    waiting: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Scored:
    """Errors of one forecast: when it was scored, and ADE, FDE, ADE of what moves for each row, [rows, 3] metres."""

    at_s: float
    errors: np.ndarray


@dataclass
class Rolling:
    """Scores forecasts as their truth comes. Call `turn` about once a second; one thread only.

    sightings: truth and camera poses, filled by whoever receives them. window_s: what a snapshot looks back on, by the
    clock of `now_s`. late_s: latencies (p95) above it are a warning.
    """

    sightings: Sightings
    window_s: float = 10.0
    late_s: float = 0.25
    max_waiting: int = MAX_WAITING
    received: int = 0
    scored_total: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    _waiting: deque[tuple[Forecast, int]] = field(default_factory=deque)
    _past: deque[tuple[Forecast, int]] = field(default_factory=deque)
    _arrivals: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_ARRIVALS))
    _scored: deque[_Scored] = field(default_factory=deque)
    _sums: np.ndarray = field(default_factory=lambda: np.zeros((2, len(ROWS), 3)))
    _first_s: float | None = None
    _newest: Forecast | None = None
    _began_ns: int = 0
    _trouble: str = ""

    def forecast(self, forecast: Forecast, epoch: int, latency_s: float, now_s: float) -> None:
        """A forecast has arrived, `latency_s` seconds after its image. now_s: any clock that goes on steadily."""
        self._notice_restart()
        newest = self._newest
        if newest is not None:
            other = _kind(forecast) != _kind(newest)
            if forecast.stamp_ns == newest.stamp_ns and not other:
                self.received += 1
                self.left_out["of an image that had one"] += 1
                return
            if other or forecast.stamp_ns <= newest.stamp_ns or (self._past_epoch() not in (None, epoch)):
                self._forget("another model" if other else "before a jump of the clock")
        self.received += 1
        self._began_ns = self._began_ns or forecast.stamp_ns
        self._newest = forecast
        self._first_s = now_s if self._first_s is None else self._first_s
        self._arrivals.append((now_s, latency_s))
        self._waiting.append((forecast, epoch))
        while len(self._waiting) > self.max_waiting:
            self._leave(self._waiting.popleft(), "its truth did not come")

    def _past_epoch(self) -> int | None:
        known = self._waiting or self._past
        return known[-1][1] if known else None

    def _notice_restart(self) -> None:
        if self.sightings.restarted:  # the truth's clock went back: what waits will never be answered
            self.sightings.restarted = False
            self._forget("before a jump of the clock")

    def _forget(self, why: str) -> None:
        self.left_out[why] += len(self._waiting)
        self._waiting.clear()
        self._past.clear()
        self._began_ns = 0

    def _leave(self, item: tuple[Forecast, int], why: str) -> None:
        self.left_out[why] += 1
        self._past.append(item)

    # ---- scoring

    def turn(self, now_s: float) -> None:
        """Score what can be scored by now, and forget what is too old."""
        self._notice_restart()
        due = self._due()
        if due:
            self._trouble = self._score(due, now_s)
        first = self._waiting[0][0].stamp_ns if self._waiting else self._newest.stamp_ns if self._newest else None
        if first is not None:
            while self._past and self._past[0][0].stamp_ns < first - PAST_NS:
                self._past.popleft()
            self.sightings.forget_before(first - PAST_NS)
        while self._scored and self._scored[0].at_s < now_s - self.window_s:
            self._scored.popleft()

    def _due(self) -> list[tuple[Forecast, int]]:
        """Taken out of those that wait: the forecasts whose horizon the truth has reached."""
        newest = self.sightings.newest_ns
        due: list[tuple[Forecast, int]] = []
        while newest is not None and self._waiting and len(due) < MAX_AT_ONCE:
            forecast = self._waiting[0][0]
            horizon_ns = round(len(forecast.positions) * forecast.step_s * NS)  # a float cannot hold a stamp
            if forecast.stamp_ns + horizon_ns > newest:
                break
            due.append(self._waiting.popleft())
        return due

    def _score(self, due: list[tuple[Forecast, int]], now_s: float) -> str:
        """Score these; why that cannot be done, in a sentence."""
        before = list(self._past)
        try:
            run = as_run([*before, *due], self.sightings, self._began_ns)
            joined = score.join(run)
        except score.NoTruthError as error:
            for item in due:
                self._leave(item, "its truth cannot be used")
            return str(error)
        self._past.extend(due)
        chosen = joined.index >= len(before)
        methods = {name: joined.methods[name][chosen] for name in ROWS}
        truth = joined.truth[chosen]
        mask = metrics.answered_by_all(np.isfinite(truth).all(-1), *methods.values())
        moving = score.moving(joined, run.joint_names)[chosen]
        errors = np.full((len(ROWS), len(truth), 3), np.nan)
        for row, predicted in enumerate(methods.values()):
            distance = metrics.displacement_errors(predicted, truth, mask)
            errors[row, :, 0], errors[row, :, 1] = metrics.ade(distance), metrics.fde(distance)
            errors[row, :, 2] = metrics.ade(metrics.only(distance, moving))
        for one in errors.swapaxes(0, 1):
            self._scored.append(_Scored(now_s, one))
            self._sums += np.stack([np.nan_to_num(one), np.isfinite(one)])
        self.scored_total += len(truth)
        self.left_out["truth or pose with gaps"] += len(due) - len(truth)
        return ""

    # ---- what can be said

    def _means(self, sums: np.ndarray) -> dict[str, RowNow]:
        """Rows of [sum, count] x [rows, 3]."""
        means = np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), np.nan)
        return {name: RowNow(*map(float, means[row])) for row, name in enumerate(ROWS)}

    def total(self) -> dict[str, Any]:
        """Everything since the beginning, for a file."""
        rows = self._means(self._sums)
        return {
            "scored": self.scored_total,
            "moving": int(self._sums[1, 0, 2]),
            "left_out": {why: count for why, count in self.left_out.items() if count},
            "waiting": len(self._waiting),
            "refused_truth": dict(self.sightings.refused),
            "rows": {name: vars(row) for name, row in rows.items()} if self.scored_total else {},
            "not_scored": "" if self.scored_total else self._why_not(),
        }

    def snapshot(self, now_s: float) -> Snapshot:
        """The state now; call `turn` first."""
        recent = [(at, latency) for at, latency in self._arrivals if at >= now_s - self.window_s]
        latency = _quantiles([latency for _, latency in recent])
        since = 0.0 if self._first_s is None else min(self.window_s, max(now_s - self._first_s, 0.2))
        window = np.array([one.errors for one in self._scored]).reshape(-1, len(ROWS), 3)
        rows = self._means(np.stack([np.nan_to_num(window).sum(0), np.isfinite(window).sum(0)]))
        moving, newest = int(np.isfinite(window[:, 0, 2]).sum()), self._newest
        level, words = self._verdict(rows, len(window), moving, latency, now_s)
        return Snapshot(
            level=level,
            words=words,
            window_s=self.window_s,
            rows=rows,
            scored=len(window),
            moving=moving,
            rate_hz=len(recent) / since if since else 0.0,
            latency_s=latency,
            weight=newest.guidance_weight if newest else 0.0,
            age_s=newest.guidance_age_s if newest else float("nan"),
            received=self.received,
            scored_total=self.scored_total,
            waiting=len(self._waiting),
            left_out={why: count for why, count in self.left_out.items() if count},
        )

    def _verdict(
        self, rows: dict[str, RowNow], scored: int, moving: int, latency: dict[str, float] | None, now_s: float
    ) -> tuple[Level, str]:
        if not self._arrivals:
            return Level.STALE, "no forecast has come yet"
        silent = now_s - self._arrivals[-1][0]
        if silent > SILENT_S:
            return Level.STALE, f"no forecast for {silent:.1f} s"
        told, worries = [], []
        model, hold = rows[score.MODEL], rows[score.HOLD]
        if scored:
            told.append(f"ADE {100 * model.ade:.1f} cm, hold {100 * hold.ade:.1f} cm")
        if moving >= MIN_MOVING and model.ade_moving > hold.ade_moving:
            worries.append(
                f"worse than hold where something moves: ADE {100 * model.ade_moving:.1f} cm, "
                f"hold {100 * hold.ade_moving:.1f} cm"
            )
        if latency is not None and latency["p95"] > self.late_s:
            worries.append(f"forecasts come late: {latency['p95']:.2f} s (p95), {self.late_s:g} s is the limit")
        if self.sightings.trouble:
            worries.append(self.sightings.trouble)
        if not scored:
            told.append(f"not scored: {self._why_not()}")
            if self._clocks_differ() or self._trouble:
                worries.append(told.pop())
        return (Level.WARN if worries else Level.OK), "; ".join([*worries, *told]) or "forecasts come"

    def _clocks_differ(self) -> bool:
        truth, newest = self.sightings.newest_ns, self._newest
        return truth is not None and newest is not None and abs(truth - newest.stamp_ns) > CLOCK_NS

    def _why_not(self) -> str:
        truth, newest = self.sightings.newest_ns, self._newest
        if newest is None:
            return "there was no forecast"
        if truth is None:
            return "no truth has come"
        if self._clocks_differ():
            apart = (truth - newest.stamp_ns) / NS
            return (
                f"the truth is stamped {abs(apart):.0f} s {'after' if apart > 0 else 'before'} the images; let both "
                "use the clock of ROS"
            )
        return self._trouble or "no horizon is complete yet"


def as_run(items: Sequence[tuple[Forecast, int]], sightings: Sightings, began_ns: int) -> Run:
    """Forecasts with their epochs, and the truth around them, as a run that can be scored. began_ns: stamp of the very
    first forecast, from which stretches are counted where nobody says when the scene began.

    Raises NoTruthError where the truth cannot be brought to the joints and the camera of the forecasts.
    """
    values = [forecast for forecast, _ in items]
    last = values[-1]
    truth_ns, truth, pose_ns, pose = sightings.placed(last.joint_names, last.frame_id, [f.stamp_ns for f in values])
    nothing = np.zeros(0, np.int64)
    unknown = np.full(len(values), np.nan, np.float32)
    return Run(
        stamp_ns=np.array([f.stamp_ns for f in values], np.int64), receipt_ns=nothing,
        positions=np.array([f.positions for f in values]), sigma=np.array([f.sigma for f in values]),
        present=np.array([f.present for f in values]), weight=unknown, age_s=unknown, surprise=unknown,
        epoch=np.array([epoch for _, epoch in items], np.int64), truth_ns=truth_ns, truth=truth, pose_ns=pose_ns,
        pose=pose, picture_ns=nothing, pictures=[], begins_ns=np.array(sightings.begins_ns or [began_ns], np.int64),
        joint_names=last.joint_names, step_s=last.step_s,
    )  # fmt: skip


def _kind(forecast: Forecast) -> tuple[Any, ...]:
    """What must not change between forecasts that belong together."""
    return forecast.model_id, forecast.joint_names, forecast.positions.shape, forecast.step_s, forecast.frame_id


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.quantile(values, [0.5, 0.95, 0.99, 1.0])
    return dict(zip(("p50", "p95", "p99", "max"), map(float, found), strict=True))
