"""forecast.mp4 and forecast.rrd: files that others can read, made frame by frame."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_report_kit import EVIL, HEIGHT, IMAGES, RATE_HZ, SECOND, WIDTH, frames_of, hostile, recording, replay
from rich.console import Console

from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.evaluation.bag import output, rerun, run, video
from thinkjepa_ros.evaluation.draw import PREDICTED, TRUE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("bags") / "swing")


def frames(path: Path) -> list[np.ndarray]:
    """All frames of a film, RGB."""
    reader, found = cv2.VideoCapture(str(path)), []
    while (got := reader.read())[0]:
        found.append(got[1][..., ::-1])
    reader.release()
    return found


def test_a_film_shows_the_recording_at_its_speed(folder: Path, tmp_path: Path) -> None:
    drawn: list[int] = []
    path = tmp_path / "out" / "forecast.mp4"
    value = replay(folder).only(np.arange(25))
    assert video.write(value, frames_of(folder), path, drawn.append) == ""
    found = frames(path)
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    assert rate == pytest.approx(RATE_HZ)
    assert len(found) / rate == pytest.approx(25 / RATE_HZ + video.MOST_REST_S, abs=0.2)
    assert sum(drawn) == 25
    assert found[0].shape == (video.WIDTH * HEIGHT // WIDTH + video._BAND, video.WIDTH, 3)
    picture = found[10][: video.WIDTH * HEIGHT // WIDTH * 3 // 4].astype(int)
    for colour in (PREDICTED, TRUE):
        assert (np.abs(picture - colour).max(-1) < 70).sum() > 50
    assert [p.name for p in path.parent.iterdir()] == ["forecast.mp4"]


def test_a_long_rest_is_cut_and_a_lost_frame_is_held(folder: Path, tmp_path: Path) -> None:
    value = replay(folder).only(np.arange(SECOND - 15, SECOND + 5))
    late = value.stamp_ns + (np.arange(20) >= 15) * 60 * 10**9
    place = dict(zip(late.tolist(), value.stamp_ns.tolist(), strict=True))

    def some(wanted: list[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray]]:
        back = {old: new for new, old in place.items()}
        for bag, stamp, rgb in frames_of(folder)([(bag, place[stamp]) for bag, stamp in wanted]):
            if stamp != value.stamp_ns[10]:  # one that cannot be read
                yield bag, back[stamp], rgb

    assert video.write(replace(value, stamp_ns=late), some, tmp_path / "f.mp4") == ""
    assert len(frames(tmp_path / "f.mp4")) == pytest.approx(20 + 2 * RATE_HZ, abs=2)


def test_memory_does_not_grow_with_the_film(folder: Path, tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def watched(wanted: list[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray]]:
        for bag, stamp, rgb in frames_of(folder)(wanted):
            alive.append(weakref.ref(rgb))
            assert sum(one() is not None for one in alive) <= 3
            yield bag, stamp, rgb

    assert video.write(replay(folder).only(np.arange(20)), watched, tmp_path / "f.mp4") == ""
    assert len(alive) == 20


def test_words_from_outside_do_not_break_a_film(folder: Path, tmp_path: Path) -> None:
    value = replace(hostile(replay(folder)), thoughts=[{"bag": 0, "stamp_ns": 0, "text": "עברית 手", "delay_s": None}])
    assert video.write(value.only(np.arange(8)), frames_of(folder), tmp_path / "f.mp4") == ""
    assert frames(tmp_path / "f.mp4")


def test_no_film_is_said_with_its_reason(folder: Path, tmp_path: Path) -> None:
    value, path = replay(folder), tmp_path / "f.mp4"
    none = value.only(np.zeros(0, np.int64))
    assert video.write(none, frames_of(folder), path) == "there is no forecast"
    assert "shares no joint" in video.write(replace(value, guided=None, unguided=None), frames_of(folder), path)
    assert "no frame could be read" in video.write(value, lambda wanted: iter(()), path)
    unknown = replay(folder, bags=[{"name": EVIL}], camera={"width": 160})
    assert "is not known" in video.write(unknown, frames_of(folder), path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert "could not be written" in video.write(value, frames_of(folder), tmp_path / "file" / "f.mp4")


def test_making_a_film_shows_how_far_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int | None, list[int]]] = []

    @contextmanager
    def task(self: run.Bar, words: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        told.append((words, total, []))
        yield told[-1][2].append

    monkeypatch.setattr(run.Bar, "task", task)
    value = replay(folder).only(np.arange(25))
    output.write(value, tmp_path, [folder], Settings(), Console(quiet=True), report=False)
    assert told == [("drawing forecast.mp4", 25, [1] * 25)]


def test_a_recording_for_rerun_holds_everything(folder: Path, tmp_path: Path) -> None:
    chunk = pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed (the extra viz), or older than 0.41")
    value, path = hostile(replay(folder)), tmp_path / "forecast.rrd"
    assert rerun.write(value, frames_of(folder), path) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["forecast.rrd"]
    count: dict[str, int] = {}
    for one in chunk.RrdReader(path).stream():
        name = str(one.entity_path).replace("\\", "")
        count[name] = count.get(name, 0) + one.num_rows
    here = "/camera/_script_alert_1___script_"
    assert {name: count[f"{here}/{name}"] for name in ("guided", "unguided", "truth", "now")} == dict.fromkeys(
        ("guided", "unguided", "truth", "now"), IMAGES
    )
    assert count[here] >= IMAGES  # pictures
    assert count["/plots/surprise"] == IMAGES - 1 and count["/thoughts"] == 1


def test_without_rerun_one_line_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert rerun.write(replay(folder), None, tmp_path / "f.rrd") == rerun.MISSING
    assert "\n" not in rerun.MISSING and "pip install rerun-sdk" in rerun.MISSING
    assert not list(tmp_path.iterdir())
