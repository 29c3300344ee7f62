"""Video files: one frame per slot with the file's own stamps, whatever the reader, and words for what is no video."""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from thinker_kit import fresh_thinker

from thinkjepa_ros.thinker import video
from thinkjepa_ros.thinker.video import Video, VideoError
from thinkjepa_ros.thinker.window import Window


def write(path: Path, count: int, rate_hz: float = 30.0, size: tuple[int, int] = (96, 64), codec: str = "MJPG") -> Path:
    """A video whose frames get brighter, again and again: see `grey`."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate_hz, size)
    assert writer.isOpened(), codec
    for k in range(count):
        writer.write(np.full((size[1], size[0], 3), grey(k), np.uint8))
    writer.release()
    return path


def grey(number: int) -> int:
    """Of frame `number`: far enough from its neighbours for what compression does to it."""
    return 10 * (number % 25)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("films") / "film.avi", 90)


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz"), [("a.avi", "MJPG", 30.0), ("a.mp4", "mp4v", 30.0), ("a.mkv", "FFV1", 12.5)]
)
def test_one_frame_per_slot_with_the_stamps_of_the_file(tmp_path, name, codec, rate_hz):
    film = Video(write(tmp_path / name, 60, rate_hz, codec=codec))
    assert film.duration_s == pytest.approx(60 / rate_hz) and film.rate_hz == pytest.approx(rate_hz)
    window = Window()
    frames = list(film.frames(window))
    stamps = [f.stamp_ns for f in frames]
    numbers = [round(s * 1e-9 * rate_hz) for s in stamps]
    assert stamps == pytest.approx([n / rate_hz * 1e9 for n in numbers], abs=1e6), "a frame of the file, not in between"
    slots = [window.slot(round(k / rate_hz * 1e9)) for k in range(60)]
    assert numbers == [slots.index(s) for s in sorted(set(slots))], "the first of every slot"
    for frame, number in zip(frames, numbers, strict=True):
        assert frame.rgb.shape == (64, 96, 3) and frame.rgb.dtype == np.uint8
        assert abs(float(frame.rgb.mean()) - grey(number)) < 5
    assert len(window.choose(stamps)) == len({s // 2 for s in slots}), "the window takes them all"


def test_samples_are_close_enough_for_a_short_cue(film):
    stamps = [f.stamp_ns for f in Video(film).frames(Window())]
    assert max(np.diff(stamps)) <= 0.3e9


def test_a_long_file_is_read_without_keeping_it(tmp_path):
    """Frames that nobody keeps are gone while the reading goes on."""
    film = Video(write(tmp_path / "long.avi", 1500))
    seen, most = [], 0
    for frame in film.frames(Window()):
        seen.append(weakref.ref(frame.rgb))
        most = max(most, sum(known() is not None for known in seen))
    assert len(seen) == 200 and most <= 3


def test_prepared_frames_are_all_a_thought_takes(film):
    thinker = fresh_thinker()
    frames = list(Video(film).frames(thinker.window))
    small = [thinker.prepare(f) for f in frames]
    assert {f.rgb.shape for f in small} == {(128, 128, 3)}
    one, other = (thinker.think(shown, "go", max_new_tokens=2) for shown in (frames, small))
    assert np.array_equal(one.pyramid, other.pyramid) and one.stamp_ns == frames[-1].stamp_ns


# ---------------------------------------------------------------- files that are no videos


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, r"no such file.*such as an mp4"),
        (lambda p: p.mkdir(), "a folder; give a video file"),
        (lambda p: p.touch(), r"empty \(0 bytes\)"),
        (lambda p: p.write_text("words " * 1000), "cannot be decoded: it is no video, or damaged"),
        (lambda p: p.write_bytes(np.random.default_rng(0).bytes(20_000)), "cannot be decoded"),
    ],
    ids=["missing", "folder", "empty", "text", "noise"],
)
def test_what_is_no_video_is_refused(tmp_path, make, words):
    path = tmp_path / "film.mp4"
    make(path)
    with pytest.raises(VideoError, match=rf"film\.mp4: {words}"):
        Video(path)


def test_a_video_without_its_index_is_refused(tmp_path):
    whole = write(tmp_path / "whole.mp4", 60, codec="mp4v").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4: cannot be decoded"):
        Video(tmp_path / "cut.mp4")


def test_a_video_that_was_cut_ends_there(tmp_path, film):
    path = tmp_path / "cut.avi"
    path.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    frames = list(Video(path).frames(Window()))
    assert 2 <= len(frames) < 10


def test_a_video_without_frames_is_refused(tmp_path, film):
    data = film.read_bytes()
    path = tmp_path / "none.avi"
    path.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(VideoError, match=r"none\.avi: (cannot be decoded|no frame in it can be decoded)"):
        list(Video(path).frames(Window()))


def test_pictures_too_large_to_look_at_are_refused(film, monkeypatch):
    monkeypatch.setattr(video, "MAX_SIDE", 90)
    with pytest.raises(VideoError, match="claims 96x64 pixels; 1x1 to 90x90 is accepted"):
        Video(film)


def test_an_address_is_no_file():
    with pytest.raises(VideoError, match="no such file"):
        Video("http://example.invalid/film.mp4")


def test_an_unknown_reader_is_refused(film):
    with pytest.raises(VideoError, match="reader 'ffmpeg' is not one of opencv, qwen-vl-utils"):
        next(Video(film).frames(Window(), "ffmpeg"))


# ---------------------------------------------------------------- qwen-vl-utils


@pytest.mark.skipif(importlib.util.find_spec("qwen_vl_utils") is not None, reason="qwen-vl-utils is installed here")
def test_qwen_vl_utils_that_is_absent_is_named(film):
    with pytest.raises(VideoError, match=r"'qwen-vl-utils' cannot be imported.*Use 'opencv', or install it"):
        next(Video(film).frames(Window(), "qwen-vl-utils"))


@pytest.fixture(scope="module")
def qwen_vl_utils():
    if importlib.util.find_spec("qwen_vl_utils") is None:
        pytest.skip("qwen-vl-utils is not installed (pip install qwen-vl-utils torchvision decord)")
    if not any(importlib.util.find_spec(name) for name in ("torchcodec", "decord")):
        pytest.skip("qwen-vl-utils has no decoder here (pip install decord)")


@pytest.mark.parametrize(("rate_hz", "count"), [(30.0, 300), (10.0, 100), (2.0, 20)])
def test_qwen_vl_utils_reads_the_same_film(qwen_vl_utils, tmp_path, rate_hz, count):
    film = Video(write(tmp_path / "film.avi", count, rate_hz))
    theirs, ours = (list(film.frames(Window(), reader)) for reader in ("qwen-vl-utils", "opencv"))
    assert [f.stamp_ns for f in theirs] == pytest.approx([f.stamp_ns for f in ours], abs=1e6)
    for one, other in zip(theirs, ours, strict=True):
        assert one.rgb.dtype == np.uint8 and abs(one.rgb.mean() - other.rgb.mean()) < 3


def test_qwen_vl_utils_says_what_it_cannot_read(qwen_vl_utils, tmp_path, film):
    path = tmp_path / "cut.avi"
    data = film.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(VideoError, match=r"cut\.avi: "):
        list(Video(path).frames(Window(), "qwen-vl-utils"))
