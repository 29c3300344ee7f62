"""Moments that somebody labelled as surprising, from a topic of the recordings or from a table: `--events`.

A topic is std_msgs/Bool: from a True until the next False, or the end. It has no stamp, so that an image is labelled
where the last message recorded before it says True, whatever the clocks of camera and recorder. A table is a file that
ends in .csv, with the header from_s,to_s (seconds after the first image of the recording) or from_ns,to_ns (stamps of
images), and `bag` where there are several recordings: the name of a folder, or its number from 0.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinkjepa_ros.data.recording import Recording, RecordingError, Topic
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.data.typed import NS, read, some, stamp_ns

from .replay import Replay

BOOL = "std_msgs/msg/Bool"
_HEADERS = (("from_s", "to_s"), ("from_ns", "to_ns"))
_FAR, _FAR_S = 2**62, 1e9  # times beyond all stamps, in ns and in seconds after the first image

Span = tuple[int, int]


class EventsError(ValueError):
    """Labels that cannot be used; the text names the file and line or the topic, and the remedy."""


@dataclass(frozen=True)
class Labels:
    """spans: by the resolved path of a recording, its labelled intervals in stamps of images (ns), both ends within.

    beside: how many lines of the table lie beside all images.
    """

    source: str
    spans: Mapping[Path, tuple[Span, ...]]
    beside: int = 0


@dataclass(frozen=True)
class _Row:
    """One line of a table: which recording (None: all), and two times in `unit` nanoseconds."""

    line: int
    bag: int | None
    begin: float | int
    end: float | int


def read_labels(source: str, bags: Sequence[str | Path], settings: Settings) -> Labels:
    """The labels of recordings. source: a topic, or a file that ends in .csv. settings: where the camera is.

    A recording that cannot be read has no labels; the evaluation says what is wrong with it. Raises EventsError.
    """
    table = Path(source)
    if table.suffix.lower() != ".csv":
        return _from_topic(source, bags, settings)
    unit, rows = _rows(table, bags)
    return _from_rows(table, unit, rows, bags, settings)


def label(replay: Replay, labels: Labels) -> Replay:
    """The replay with `event`: a forecast is labelled where the stamp of its image lies in an interval."""
    event = np.zeros(len(replay), bool)
    for number, bag in enumerate(replay.about.get("bags", [])):
        mine = replay.bag == number
        for begin, end in labels.spans.get(Path(bag["path"]).resolve(), ()):
            event |= mine & (replay.stamp_ns >= begin) & (replay.stamp_ns <= end)
    known = np.isfinite(replay.surprise)
    count, yes, total = sum(map(len, labels.spans.values())), int((event & known).sum()), int(known.sum())
    words = f"labels from {labels.source}, intervals: {count}; {yes} of {total} forecasts with a surprise lie in them"
    if labels.beside:
        words += f"; lines beside all images: {labels.beside}"
    if yes in (0, total):
        words += "; an AUROC needs forecasts of both kinds, so none can be said"
    told = {"source": labels.source, "intervals": count, "labelled": yes}
    about = {**replay.about, "events": told, "notes": [*replay.about.get("notes", []), words]}
    return replace(replay, event=event, about=about)


# --- a topic ---


def _from_topic(name: str, bags: Sequence[str | Path], settings: Settings) -> Labels:
    spans: dict[Path, tuple[Span, ...]] = {}
    for bag in bags:
        try:
            with Recording(bag) as recording:
                camera = recording.camera(settings.image_topic)
                spans[Path(bag).resolve()] = _told(recording, camera, _bool_topic(recording, name))
        except RecordingError:
            continue
    return Labels(f"{name} ({BOOL})", spans)


def _bool_topic(recording: Recording, name: str) -> Topic:
    topic = recording.topic(name)
    if topic is None:
        raise EventsError(
            f"{recording.path} has no topic {name}; give --events a topic of type {BOOL}, or a file that ends in "
            f".csv; {recording.describe()}"
        )
    if topic.type != BOOL:
        raise EventsError(
            f"{name} of {recording.path} is {topic.type} and labels are {BOOL}; republish it so, or give --events a "
            f"file that ends in .csv; {recording.describe()}"
        )
    if not topic.count:
        raise EventsError(f"{name} of {recording.path} holds no message; was its publisher running while recording?")
    return topic


def _told(recording: Recording, camera: Topic, topic: Topic) -> tuple[Span, ...]:
    """Intervals of images at which the topic says True; cut where the clock of the camera steps back."""
    stamps: list[int] = []
    told: list[bool] = []
    now = heard = in_time = False
    for found, _, message in read(recording, [camera, topic]):
        if found == topic:
            now, heard = bool(message.data), True
        else:
            stamps.append(stamp_ns(message.header))
            told.append(now)
            in_time = heard
    if stamps and not in_time:
        raise EventsError(
            f"{topic.name} of {recording.path} and its images do not overlap: the first message was recorded after the "
            "last image; publish a first False before the camera ends, or give --events a file that ends in .csv"
        )
    at, on = np.array(stamps, np.int64), np.array(told, bool)
    runs = np.split(np.arange(len(at)), np.flatnonzero((np.diff(on) != 0) | (np.diff(at) < 0)) + 1)
    return tuple((int(at[run[0]]), int(at[run[-1]])) for run in runs if len(run) and on[run[0]])


# --- a table ---


def _rows(table: Path, bags: Sequence[str | Path]) -> tuple[int, list[_Row]]:
    """(nanoseconds of a unit of its times, lines). Raises EventsError."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    except OSError as error:
        raise EventsError(f"{table} cannot be read ({error.strerror}); give --events a CSV file or a topic") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise EventsError(f"{table} is no table ({error}); save it as CSV with commas, in UTF-8") from None
    header = lines[0][1] if lines else []
    names = next((pair for pair in _HEADERS if set(pair) <= set(header)), None)
    if names is None or not set(header) <= {*names, "bag"} or len(set(header)) != len(header):
        raise EventsError(
            f"the first line of {table} is {','.join(header)[:80]!r}; it must name from_s,to_s or from_ns,to_ns, and "
            "bag where there are several recordings, with commas between them and nothing else"
        )
    if len(lines) == 1:
        raise EventsError(f"{table} holds no interval below its first line; label one, or leave --events out")
    rows = [_row(table, number, line, header, names, bags) for number, line in lines[1:]]
    return (NS if names[0] == "from_s" else 1), rows


def _row(
    table: Path, number: int, line: Sequence[str], header: Sequence[str], names: Sequence[str],
    bags: Sequence[str | Path],
) -> _Row:  # fmt: skip
    where = f"{table}, line {number}"
    if len(line) != len(header):
        raise EventsError(f"{where} has {len(line)} cells, the first line has {len(header)}; write one under each name")
    cells = dict(zip(header, line, strict=True))
    begin, end = (_number(cells[name], name, where) for name in names)
    if end < begin:
        raise EventsError(f"{where}: {names[1]} is {cells[names[1]]}, before {names[0]} {cells[names[0]]}; swap them")
    bag = _bag(cells.get("bag", ""), where, bags)
    if bag is None and len(bags) > 1 and names[0] == "from_s":
        raise EventsError(
            f"{where} does not say which of the {len(bags)} recordings it is about; add a column bag with the name of "
            "the folder or its number from 0"
        )
    return _Row(number, bag, begin, end)


def _number(text: str, name: str, where: str) -> float | int:
    try:
        value: float | int = float(text) if name.endswith("_s") else int(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        like = "a number of seconds, such as 12.5"
        if name.endswith("_ns"):
            like = "a whole number of nanoseconds; spreadsheets round long numbers, from_s,to_s are short"
        raise EventsError(f"{where}: {name} is {text!r}; write {like}")
    return max(-_FAR_S, min(_FAR_S, value)) if name.endswith("_s") else max(-_FAR, min(_FAR, value))


def _bag(text: str, where: str, bags: Sequence[str | Path]) -> int | None:
    """The recording that a cell names; None for an empty one."""
    if not text:
        return None
    names = [Path(bag).resolve().name for bag in bags]
    if names.count(text) > 1:
        raise EventsError(
            f"{where}: {names.count(text)} recordings are called {text!r}; give the number of one, from 0"
        )
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(bags):
        return int(text)
    raise EventsError(
        f"{where}: there is no recording {text!r}; name one of {some(names)}, or give its number, 0 to {len(bags) - 1}"
    )


def _from_rows(table: Path, unit: int, rows: Sequence[_Row], bags: Sequence[str | Path], settings: Settings) -> Labels:
    images = {number: stamps for number, bag in enumerate(bags) if len(stamps := _stamps(bag, settings))}
    spans: dict[int, list[Span]] = {}
    beside: list[int] = []
    asked = 0
    for row in rows:
        targets = [number for number in images if row.bag in (None, number)]
        asked += bool(targets)
        hit = False
        for number in targets:
            stamps = images[number]
            zero = int(stamps[0]) if unit == NS else 0
            begin, end = (zero + round(value * unit) for value in (row.begin, row.end))
            if ((stamps >= begin) & (stamps <= end)).any():
                spans.setdefault(number, []).append((begin, end))
                hit = True
        if targets and not hit:
            beside.append(row.line)
    if beside and len(beside) == asked:
        raise EventsError(
            f"no interval of {table} holds an image; {_ranges(images, bags, unit)}. Write the times so "
            "(from_s,to_s: seconds after the first image; from_ns,to_ns: stamps of images), and to_ after from_"
        )
    return Labels(
        table.name, {Path(bags[number]).resolve(): tuple(found) for number, found in spans.items()}, len(beside)
    )


def _ranges(images: Mapping[int, np.ndarray], bags: Sequence[str | Path], unit: int) -> str:
    """From when to when there are images, in the words of the table."""
    words = []
    for number, stamps in images.items():
        first, last = int(stamps.min()), int(stamps.max())
        zero = int(stamps[0])
        span = f"{(first - zero) / NS:g} to {(last - zero) / NS:g} s" if unit == NS else f"{first} to {last} ns"
        words.append(f"those of {Path(bags[number]).resolve().name} are at {span}")
    return some(words, 4)


def _stamps(bag: str | Path, settings: Settings) -> np.ndarray:
    """Stamps of the images in the order of recording, int64 [n]; none where the recording cannot be read."""
    try:
        with Recording(bag) as recording:
            found = read(recording, [recording.camera(settings.image_topic)])
            return np.array([stamp_ns(message.header) for *_, message in found], np.int64)
    except RecordingError:
        return np.zeros(0, np.int64)
