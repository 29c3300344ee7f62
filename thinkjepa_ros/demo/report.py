"""What came of a run, in words, numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.demo import thought as thoughts
from thinkjepa_ros.demo.pictures import Album
from thinkjepa_ros.evaluation import score as scoring
from thinkjepa_ros.evaluation.bootstrap import Interval
from thinkjepa_ros.evaluation.runs import Run, plain
from thinkjepa_ros.values import Camera

#: Groups of stamps, the most important first -> positions [T, J, 3] without any thought, by stamp (demo/unguided.py).
Unguided = Callable[[Sequence[Sequence[int]]], dict[int, np.ndarray]]
COUNTERS = ("used", "superseded", "refused", "pending")


@dataclass
class Report:
    """lines: the report for people. numbers: the same for programs. files: what was written, by kind."""

    lines: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def say(self, words: str = "") -> None:
        self.lines.append(words)


def make_report(
    run: Run,
    out: Path,
    source: str = "",
    canonical: Camera | None = None,
    film: bool = True,
    poses: Sequence[str] = (),
    unguided: Unguided | None = None,
) -> Report:
    """Score a run and draw it; writes report.txt, report.json, forecast.png and forecast.mp4 into `out`.

    source: what was played. canonical: the model's camera, for recordings without calibration. poses: topics of the
    recording that hold poses but no truth in the model's joints. unguided: asked for forecasts without any thought, if
    a thought guided any.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    report.say(f"run of {source}" if source else "run")
    _say_models(report, run)
    _say_speed(report, run)
    _say_accounts(report, run)
    joined = _say_errors(report, run, poses)
    without: dict[int, np.ndarray] = {}
    album = Album(run, joined, canonical, without)
    thought = thoughts.main_thought(run)
    if thought is not None:
        stamps = album.stamps()
        without |= unguided(stamps) if unguided is not None else {}
        even = {at: without[at] for at in stamps[1] if at in without}  # however many there was time for
        effect = None if joined is None else thoughts.effect(run, joined, thought, even)
        report.say()
        report.say(thoughts.sentence(run, thought, effect))
        report.numbers["thought"] = thoughts.numbers(thought, effect)
    _say_pictures(report, album, run, out, film)
    for name, text in (
        ("text", "\n".join(report.lines) + "\n"),
        ("numbers", json.dumps(plain(report.numbers), indent=1)),
    ):
        path = out / ("report.txt" if name == "text" else "report.json")
        path.write_text(text)
        report.files[name] = path
    return report


def _say_models(report: Report, run: Run) -> None:
    for name, status in run.words.get("statuses", {}).items():
        if not status["model_id"]:
            report.say(f"{name}: no model was running ({status['words']})")
            continue
        model = status["model_id"].removesuffix(" (untrained)")
        if not status["trained"]:
            about = "UNTRAINED: what it says means nothing yet"
        elif name == "predictor" and run.domain:
            about = f"trained on {run.domain}"
        else:
            about = "trained"
        report.say(f"{name}: {model}, {about}")
    if len(run) and not run.metric:
        report.say("camera: not calibrated, so positions are only right up to an unknown scale")


def _say_speed(report: Report, run: Run) -> None:
    words = run.words
    latency = words.get("latency_s")
    if not latency:
        report.say("forecasts: none")
        for name, status in words.get("statuses", {}).items():
            error = status["last_error"]
            report.say(
                f"  {name} said: {status['words']}" + (f" ({error})" if error and error not in status["words"] else "")
            )
        report.numbers |= {"forecasts": 0}
        return
    received = words["statuses"].get("predictor", {}).get("received", words["images"])
    report.say(
        f"forecasts: {words['forecasts']} from {received} images, {words['rate_hz']:.1f} per second; "
        f"from image to forecast {latency['p50'] * 1e3:.0f} ms (p50), {latency['p99'] * 1e3:.0f} ms (p99), "
        f"{latency['max'] * 1e3:.0f} ms at most"
    )
    guided = run.weight > 0
    thoughts = words.get("thoughts", [])
    if thoughts:
        text = f"thoughts: {len(thoughts)}; {guided.mean():.0%} of the forecasts were guided"
        if guided.any():
            ages = run.age_s[guided]
            text += f", by a thought {np.median(ages):.1f} s old (p50; {np.quantile(ages, 0.99):.1f} s p99)"
        report.say(text)
    else:
        report.say("thoughts: none, every forecast is unguided")
    report.numbers |= {
        "forecasts": words["forecasts"],
        "images": received,
        "rate_hz": words["rate_hz"],
        "latency_s": latency,
        "thoughts": len(thoughts),
        "guided_share": float(guided.mean()),
    }


def account(status: dict[str, Any]) -> str:
    """The balance of a node: what became of every image it received, and whether that adds up."""
    total = sum(status[key] for key in COUNTERS)
    parts = ", ".join(f"{status[key]} {key}" for key in COUNTERS)
    reasons = ", ".join(f"{number} x {reason}" for reason, number in status["reasons"].items())
    verdict = "adds up" if total == status["received"] else f"DOES NOT ADD UP ({total})"
    return f"{status['received']} images = {parts}: {verdict}" + (f" (refused: {reasons})" if reasons else "")


def _say_accounts(report: Report, run: Run) -> None:
    statuses = run.words.get("statuses", {})
    for name, status in statuses.items():
        report.say(f"account of the {name}: {account(status)}")
    report.numbers["accounts"] = {
        name: {key: status[key] for key in ("received", *COUNTERS)} for name, status in statuses.items()
    }


def _say_errors(report: Report, run: Run, poses: Sequence[str]) -> scoring.Joined | None:
    try:
        joined = scoring.join(run)
    except scoring.NoTruthError as reason:
        report.say(str(reason))
        if poses and not len(run.truth_ns):
            report.say(
                f"  {', '.join(poses)}: poses of other points than the model's joints; this release does not score them"
            )
        report.numbers["error"] = str(reason)
        return None
    moving = scoring.moving(joined, run.joint_names)
    now_cm = scoring.present_error_m(joined, run) * 100
    seconds = run.step_s * run.positions.shape[1]
    stretches = len(np.unique(joined.stretch))
    report.say()
    report.say(
        f"error over {len(joined.index)} forecasts, {seconds:.1f} s ahead, in cm "
        f"(ADE: mean over the horizon, FDE: at its end; [95 % interval] over {stretches} stretches of "
        f"{scoring.STRETCH_S:g} s of one recording)"
    )
    report.say(f"  joints now, from the images alone: {now_cm:.1f}")
    report.numbers["present_error_m"] = now_cm / 100
    groups = (("moving hand", moving), ("resting hand", ~moving), ("all joints", None))
    for name, joints in groups:
        rows = scoring.score(joined, joints)
        if np.isnan(rows[0].ade.mean):
            continue
        report.say(f"  {name:<28}{'ADE':>20}{'FDE':>22}{'ADE behind the model':>30}")
        for row in rows:
            behind = "" if row.method == scoring.MODEL else _cm(row.behind_model, sign=True)
            report.say(f"    {row.method:<24}{_cm(row.ade):>22}{_cm(row.fde):>22}{behind:>28}")
        report.say(f"    {verdict(rows)}")
        report.numbers.setdefault("errors_m", {})[name] = {
            row.method: {"ade": list(row.ade), "fde": list(row.fde), "behind_model": list(row.behind_model)}
            for row in rows
        }
    report.say("  hold and the velocities start from the model's own idea of where the joints are now")
    return joined


def verdict(rows: Sequence[scoring.Row]) -> str:
    """The comparison in words: where the model's error is smaller or larger, and where no difference can be shown."""
    sides: dict[str, list[str]] = {"smaller": [], "larger": [], "": []}
    for row in rows:
        if row.method != scoring.MODEL:
            difference = row.behind_model
            side = "" if not difference.excludes_zero else "smaller" if difference.mean > 0 else "larger"
            sides[side].append(row.method)
    parts = [
        f"its error is {side} than that of {' and '.join(names)}" for side, names in sides.items() if side and names
    ]
    if sides[""]:
        parts.append(f"no difference to {' and '.join(sides[''])} can be shown")
    return "the model: " + "; ".join(parts)


def _cm(interval: Interval, sign: bool = False) -> str:
    """A value in cm with its interval."""
    mark = "+" if sign else ""
    text = f"{interval.mean * 100:{mark}.1f}"
    return (
        text if np.isnan(interval.low) else f"{text} [{interval.low * 100:{mark}.1f}, {interval.high * 100:{mark}.1f}]"
    )


def _say_pictures(report: Report, album: Album, run: Run, out: Path, film: bool) -> None:
    report.say()
    if album.sheet(out / "forecast.png"):
        report.files["picture"] = out / "forecast.png"
        report.say(f"picture: {report.files['picture']}")
    else:
        reason = "there was no forecast" if not len(run) else "no image with a forecast of the same stamp was kept"
        report.say(f"picture: none, {reason}")
    if film:
        trouble = album.film(out / "forecast.mp4")
        if trouble:
            (out / "forecast.mp4").unlink(missing_ok=True)
            report.say(f"film: none, {trouble}")
        else:
            report.files["film"] = out / "forecast.mp4"
            report.say(f"film: {report.files['film']}")
