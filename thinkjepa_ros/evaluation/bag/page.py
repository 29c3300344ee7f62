"""report.html: what came of an evaluation, for people, in one file that opens anywhere and fetches nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import plots, scenes
from .cells import EXPLAINED, GROUPS, NOTHING, figure, group_tables, triple
from .markup import Safe, facts, folded, join, picture, said, section, table, tag, write_page
from .metrics import times_s
from .plots import Series, known
from .replay import Replay
from .scenes import Frames
from .words import surprise_told

#: Pictures of a report: moments spread over the recording, and their width in pixels.
STRIP, PICTURE_WIDTH = 6, 560
#: Of the worst and of the best moments as many have pictures.
SHOWN = 3
_MAIN_ROWS = ("guided", "unguided")


def write(metrics: dict[str, Any], replay: Replay, pictures: Frames | None, path: Path) -> None:
    """Write the report of `metrics` (measure(replay), or metrics.json read back). Raises OSError.

    pictures: where the frames come from (scenes.Frames); None where there are none.
    """
    about = metrics.get("about", {}) or replay.about
    moments = metrics.get("moments", {})
    chosen = scenes.choose(replay, STRIP)
    shown = [*chosen, *(int(m["index"]) for kind in ("worst", "best") for m in moments.get(kind, [])[:SHOWN])]
    trouble = scenes.obstacle(replay) or ("" if pictures is not None else "the frames were not asked for")
    drawn = {} if trouble or pictures is None else scenes.pictures_of(replay, pictures, shown, PICTURE_WIDTH)
    if not trouble and not drawn:
        trouble = "no frame could be read from the recordings"
    names = ", ".join(str(bag.get("name", "?")) for bag in about.get("bags", [])) or "no recording"
    write_page(
        path,
        f"{names} – forecasts evaluated",
        tag("h1", "Forecasts over ", said(names)),
        tag("p", metrics.get("summary") or "Nothing could be scored.", cls="lead"),
        tag("p", tag("span", "interrupted: only a part was evaluated", cls="alarm")) if about.get("partial") else "",
        _who(about, metrics),
        _errors(metrics),
        _charts(metrics, replay),
        _strip(replay, chosen, drawn, trouble),
        _moments(replay, moments, drawn),
        _left_out(about, metrics),
        _repeat(about),
    )


def _who(about: Mapping[str, Any], metrics: Mapping[str, Any]) -> Safe:
    model = said(about.get("model_id") or NOTHING)
    trained = about.get("trained", True)
    domain = said(f"trained on {about['domain']}" if about.get("domain") else "not said")
    cameras = about.get("camera") or {}
    bags = about.get("bags", [])
    speed, counts = about.get("speed") or {}, metrics.get("counts", {})
    live = about.get("mode") == "live"
    mode = f"live, at {_number(about.get('rate'))} times real time" if live else "offline, in lock step"
    truth = about.get("truth_source") or "none: nothing is scored"
    pairs: list[tuple[str, object]] = [
        ("model", join([model, " ", tag("span", "untrained", cls="alarm")]) if not trained else model),
        ("domain", "untrained: what it says means nothing yet" if not trained else domain),
        ("thinker", said(about["thinker_id"]) if about.get("thinker_id") else "none: every forecast is unguided"),
        ("recording" if len(bags) == 1 else f"{len(bags)} recordings", join((_bag(bag) for bag in bags), "; ")),
        ("truth", said(truth)),
        *([("labels", said(about["events"]["source"]))] if about.get("events") else []),
        ("joints now", "given (anchored)" if about.get("anchored") else "from the images alone"),
        ("mode", mode),
        ("a forecast every", f"{_number(about.get('stride_s'))} s, {_number(about.get('horizon_s'))} s ahead"),
        ("forecasts", f"{counts.get('forecasts', NOTHING)}, of them scored {counts.get('scored', NOTHING)}"),
        ("camera", _camera(about.get("image_topic"), cameras)),
    ]
    if known(speed.get("times_real_time")):
        words = f"{_number(speed.get('bag_s'))} s in {_number(speed.get('wall_s'))} s"
        pairs.append(("speed", f"{words}, {speed['times_real_time']:.1f} times real time"))
    return facts(pairs)


def _bag(bag: Mapping[str, Any]) -> Safe:
    words = f" ({_number(bag.get('duration_s'))} s, {bag.get('used', '?')} of {bag.get('images', '?')} images used)"
    return join([said(bag.get("name", "?")), words])


def _camera(topic: object, camera: Mapping[str, Any]) -> Safe:
    size = f"{camera['width']}×{camera['height']}" if "width" in camera and "height" in camera else "size not known"
    return join([said(topic or "topic not known"), f", {size}"])


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) and known(value) else NOTHING


def _errors(metrics: Mapping[str, Any]) -> Safe:
    groups = {group: group_tables(metrics, group) for group in GROUPS}
    present = metrics.get("present_error")
    now = []
    if triple(present) is not None:
        now = [tag("p", "Joints now, as the model sees them, lie ", figure(present, 100.0), " cm from the truth.")]
    if not any(groups.values()):
        words = "No error can be said: no whole horizon has truth for joints that the model has too."
        return section("Errors beside the truth", tag("p", words), *now)
    moving = groups["moving"] or [tag("p", "No joint moves more than 3 cm within a horizon.")]
    others = [folded(GROUPS[group], *groups[group]) for group in ("resting", "all") if groups[group]]
    return section(
        "Errors beside the truth", tag("h3", GROUPS["moving"]), *moving, *others, tag("p", EXPLAINED, cls="soft"), *now
    )


def _charts(metrics: dict[str, Any], replay: Replay) -> Safe:
    made = [
        _by_step(metrics, replay.step_s),
        _by_joint(metrics),
        _calibration(metrics, replay.step_s),
        _stability(metrics),
    ]
    made = [one for one in made if one]
    charts = [tag("div", *made, cls="charts")] if made else []
    return section("How it behaves", *charts, _times(metrics), _surprise(metrics, replay))


def _by_step(metrics: Mapping[str, Any], step_s: float) -> Safe:
    curves = metrics.get("by_step", {})
    series = [
        Series(
            row, [(k + 1) * step_s for k in range(len(values))], [_times_100(v) for v in values], row not in _MAIN_ROWS
        )
        for row, values in curves.items()
    ]
    drawn = plots.lines(series, "seconds ahead", "mean error, cm")
    return plots.chart("Error by time ahead", plots.names_of(series), drawn) if drawn else Safe("")


def _by_joint(metrics: Mapping[str, Any]) -> Safe:
    rows = metrics.get("by_joint", {})
    order = [row for row in (*_MAIN_ROWS[:1], "unguided", "hold") if row in rows]
    joints = list(dict.fromkeys(joint for row in order for joint in rows[row]))
    values = {joint: {row: _times_100(rows[row].get(joint)) for row in order} for joint in joints}
    drawn = plots.bars(values, "cm")
    if not drawn:
        return Safe("")
    return plots.chart("Error by joint", plots.key([(row, plots.row_class(row)) for row in order]), drawn)


def _calibration(metrics: Mapping[str, Any], step_s: float) -> Safe:
    shares = metrics.get("calibration") or {}
    x = [step * step_s for step in shares.get("steps", [])]
    wanted = [(68.3, "68 %: should lie within 1 sigma"), (95.4, "95 %: within 2 sigma")]
    series = [
        Series(name, x, [_times_100(v) for v in shares.get(key, [])])
        for name, key in (("within 1 sigma", "within_1_sigma"), ("within 2 sigma", "within_2_sigma"))
        if len(shares.get(key, [])) == len(x)
    ]
    drawn = plots.lines(series, "seconds ahead", "share of errors, %", wanted, top=100.0)
    note = "Per axis. Below the dashed line the model is surer of itself than it may be."
    return plots.chart("Is sigma right?", plots.names_of(series, wanted), drawn, note=note) if drawn else Safe("")


def _stability(metrics: Mapping[str, Any]) -> Safe:
    found = metrics.get("stability") or {}
    values = {row: {row: _times_100(first[0])} for row, value in found.items() if (first := triple(value)) is not None}
    drawn = plots.bars(values, "cm")
    note = "Mean distance between what two forecasts in a row say about the same moment; less is steadier."
    return plots.chart("Stability", drawn, note=note) if drawn else Safe("")


def _times_100(value: object) -> float | None:
    return 100.0 * float(value) if isinstance(value, (int, float)) and known(value) else None


def _times(metrics: Mapping[str, Any]) -> Safe:
    """Latency and age of the guidance in a table, rate and weight in words."""
    live = metrics.get("about", {}).get("mode") == "live"
    rows = []
    for name, key, factor, unit in (
        ("from image to forecast" if live else "computing one forecast", "latency_s", 1000.0, "ms"),
        ("age of the guidance", "age_s", 1.0, "s"),
    ):
        values = metrics.get(key) or {}
        cells = [values.get(part) for part in ("p50", "p95", "p99", "max")]
        if any(known(cell) for cell in cells):
            rows.append([f"{name}, {unit}", *(figure(cell, factor, 1 if unit == "ms" else 2) for cell in cells)])
    words = []
    if known(metrics.get("rate_hz")):
        words.append(f"{metrics['rate_hz']:.1f} forecasts per second")
    if known(metrics.get("weight_mean")):
        words.append(f"guidance counted {metrics['weight_mean']:.0%} on average")
    shown = [table(["", "p50", "p95", "p99", "most"], rows)] if rows else []
    if not shown and not words:
        return Safe("")
    return join([tag("h3", "Time"), *shown, tag("p", "; ".join(words) + ".") if words else ""])


def _surprise(metrics: dict[str, Any], replay: Replay) -> Safe:
    """Surprise over the recordings, one behind the other, with the thoughts and the labelled moments."""
    if not np.isfinite(replay.surprise).any():
        return Safe("")
    series, marks, spans, begin = [], [], [], 0.0
    x: list[float] = []
    y: list[float | None] = []
    step = float(np.median(np.diff(replay.stamp_ns))) / scenes.NS if len(replay) > 1 else 0.5
    gap = 2.0 * step  # between two recordings
    times = times_s(replay)
    for bag in np.unique(replay.bag):
        there = np.flatnonzero(replay.bag == bag)
        since = times[there] + begin
        for n, (index, at) in enumerate(zip(there, since, strict=True)):
            if n and replay.piece[index] != replay.piece[there[n - 1]]:
                x.append(float(at))
                y.append(None)
            x.append(float(at))
            y.append(float(replay.surprise[index]))
        first = int(replay.stamp_ns[there[0]]) - round(times[there[0]] * scenes.NS)
        marks += [
            ((int(t["stamp_ns"]) - first) / scenes.NS + begin, str(t.get("text") or "(no words)"))
            for t in replay.thoughts
            if int(t["bag"]) == bag
        ]
        spans += [
            (float(since[run[0]]) - step / 2, float(since[run[-1]]) + step / 2) for run in _labelled(replay, there)
        ]
        begin = float(since[-1]) + gap
        x.append(begin)
        y.append(None)
    series = [Series("surprise", x, y)]
    drawn = plots.both(
        lambda width: plots.lines(series, "seconds", "surprise", spans=spans, marks=marks, width=width, height=200)
    )
    words = ["Labelled moments are shaded. "] if spans else []
    if told := surprise_told(metrics):
        words.append(f"{told[:1].upper()}{told[1:]}. ")
    if len(np.unique(replay.bag)) > 1:
        words.append("Recordings follow one another. ")
    words.append("Triangles are thoughts." if marks else "")
    return plots.chart("Surprise over time", drawn, note="".join(words).strip() or None)


def _labelled(replay: Replay, there: np.ndarray) -> list[np.ndarray]:
    """Runs of labelled forecasts among `there`, the forecasts of one recording: places in it, cut between pieces."""
    if replay.event is None:
        return []
    on, piece = replay.event[there], replay.piece[there]
    runs = np.split(np.arange(len(there)), np.flatnonzero(np.diff(on) | (np.diff(piece) != 0)) + 1)
    return [run for run in runs if on[run[0]]]


def _strip(replay: Replay, chosen: Sequence[int], drawn: Mapping[int, np.ndarray], trouble: str) -> Safe:
    title = "What it saw and said"
    if trouble:
        return section(title, tag("p", f"No pictures: {trouble}."))
    entries = [("now", "now"), (f"predicted, {replay.step_s * replay.truth.shape[1]:.1f} s ahead", "predicted")]
    entries += [("true", "true")] if np.isfinite(replay.truth[:, :1]).any() else []
    entries += (
        [("without any thought", "baseline")] if replay.guided is not None and replay.unguided is not None else []
    )
    figures = [_shot(replay, index, drawn[index], "") for index in chosen if index in drawn]
    return section(title, plots.key(entries), tag("div", *figures, cls="strip"))


def _shot(replay: Replay, index: int, rgb: np.ndarray | None, more: str) -> Safe:
    at = scenes.label(replay, index)
    thought = scenes.thought_at(replay, index)
    words = [
        tag("b", at),
        tag("span", f", {more}") if more else "",
        tag("br"),
        said(f"“{thought}”") if thought else "no thought",
    ]
    image = [picture(rgb, f"forecast at {at}")] if rgb is not None else []
    return tag("figure", *image, tag("figcaption", *words))


def _moments(replay: Replay, moments: Mapping[str, Any], drawn: Mapping[int, np.ndarray]) -> Safe:
    parts = []
    for kind, title in (("worst", "Worst moments"), ("best", "Best moments")):
        found = [m for m in moments.get(kind, []) if 0 <= int(m["index"]) < len(replay)]
        shots = []
        for moment in found[:SHOWN]:
            index, words = int(moment["index"]), f"error {_centimetres(moment.get('ade'))} over the horizon"
            shots.append(_shot(replay, index, drawn.get(index), words))
        if not shots:
            continue
        parts += [tag("h3", title), tag("div", *shots, cls="strip")]
        rows = [
            [scenes.label(replay, int(m["index"])), _centimetres(m.get("ade")), said(m.get("thought") or NOTHING)]
            for m in found[SHOWN:]
        ]
        if rows:
            parts.append(folded(f"{len(rows)} more", table(["", "error", "thought"], rows)))
    return section("Where it is far off, and where it is right", *parts) if parts else Safe("")


def _centimetres(value: object) -> str:
    return f"{100 * float(value):.1f} cm" if isinstance(value, (int, float)) and math.isfinite(value) else NOTHING


def _left_out(about: Mapping[str, Any], metrics: Mapping[str, Any]) -> Safe:
    left = [(reason, count) for reason, count in (about.get("left_out") or {}).items()]
    lines = [tag("li", said(f"{count} × {reason}")) for reason, count in left]
    for words, key in (
        ("joints of the model without truth", "joints_without_truth"),
        ("points of the truth that the model does not have", "truth_without_joint"),
    ):
        if about.get(key):
            lines.append(tag("li", f"{words}: ", said(", ".join(map(str, about[key])))))
    for name, count in (about.get("dropped") or {}).items():
        lines.append(tag("li", said(f"live, {name}: {count}")))
    lines += [tag("li", said(note)) for note in about.get("notes") or []]
    body = tag("ul", *lines) if lines else tag("p", "Nothing was left out.")
    return section("What was left out, and why", body)


def _repeat(about: Mapping[str, Any]) -> Safe:
    pairs = [("model", _hashed(about.get("model_id"), about.get("weights_sha256")))]
    if about.get("thinker_id"):
        pairs.append(("thinker", _hashed(about["thinker_id"], about.get("thinker_sha256"))))
    pairs += [
        ("recording", _hashed(bag.get("path") or bag.get("name"), bag.get("sha256"))) for bag in about.get("bags", [])
    ]
    command = about.get("command") or ""
    again = [tag("p", "The command:"), tag("pre", tag("code", command))] if command else []
    return section(
        "To repeat it", *again, tag("p", "Which files these figures are of (SHA-256):"), facts(pairs, whole=True)
    )


def _hashed(name: object, digest: object) -> Safe:
    return join([said(name or "?"), tag("br"), tag("code", digest or "hash not known")])
