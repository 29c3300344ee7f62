"""The folder of episodes: killed, interrupted, repeated, shared; several recordings; memory."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import write
from rosbags.rosbag2 import StoragePlugin
from test_from_bag import CAMERA, every, hands, images, truth
from truth_kit import bag, compressed, jpeg, ns, pose_array, pose_stamped
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.data.cutting import Settings
from thinkjepa_ros.data.episode import Episode, EpisodeError
from thinkjepa_ros.data.from_bag import convert
from thinkjepa_ros.data.recording import RecordingError

SETTINGS = Settings("/truth", seconds=1.0, min_seconds=0.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Four seconds: four episodes."""
    at = every(10, 4.0)
    return bag(tmp_path / "rec", images(at), truth(at))


@pytest.fixture
def whole(recording: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run makes."""
    assert convert([recording], tmp_path / "whole", SETTINGS, quiet=True) == 0
    found = contents(tmp_path / "whole")
    assert len(found) == 5
    return found


def test_two_runs_give_the_same_bytes_from_either_storage(
    recording: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    convert([recording], tmp_path / "again", SETTINGS, quiet=True)
    assert contents(tmp_path / "again") == whole
    at = every(10, 4.0)
    other = bag(tmp_path / "sqlite" / "rec", images(at), truth(at), storage=StoragePlugin.SQLITE3)
    convert([other], tmp_path / "third", SETTINGS, quiet=True)
    assert contents(tmp_path / "third") == whole


def _killed(recording: Path, out: Path, when: int) -> None:
    """Convert, and be killed when the file number `when` (the manifest is 1) is written but has not got its name."""
    count, real = 0, os.fsync

    def sync(handle: int) -> None:
        nonlocal count
        count += 1
        if count == when:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = sync
    convert([recording], out, SETTINGS, quiet=True)


@pytest.mark.parametrize("when", [1, 2, 4])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    recording: Path, tmp_path: Path, whole: dict[str, bytes], when: int
) -> None:
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(recording, out, when))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = contents(out)
    done = [name for name in before if name.endswith(".h5") and not name.startswith(".")]
    assert len(done) == max(0, when - 2) and any(name.startswith(".") for name in before)
    times = {name: (out / name).stat().st_mtime_ns for name in done}
    assert convert([recording], out, SETTINGS, quiet=True) == 0
    assert contents(out) == whole
    assert times == {name: (out / name).stat().st_mtime_ns for name in done}, "what is whole is kept"


def test_ctrl_c_leaves_whole_episodes_and_says_how_to_go_on(
    recording: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save, out = Episode.save, tmp_path / "out"

    def interrupted(self: Episode, path: Path) -> None:
        if self.seed == 2:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(Episode, "save", interrupted)
    assert convert([recording], out, SETTINGS) == 130
    assert "Interrupted: 2 episodes are in" in capsys.readouterr().out
    assert sorted(contents(out)) == ["dataset.json", "recorded_0000000.h5", "recorded_0000001.h5"]
    monkeypatch.undo()
    assert convert([recording], out, SETTINGS, quiet=True) == 0 and contents(out) == whole


def test_a_damaged_episode_is_made_again(recording: Path, tmp_path: Path, whole: dict[str, bytes], capsys: Any) -> None:
    out = tmp_path / "whole"
    data = bytearray((out / "recorded_0000001.h5").read_bytes())
    data[5000] ^= 1
    (out / "recorded_0000001.h5").write_bytes(data)
    (out / "recorded_0000003.h5").write_bytes(b"")
    (out / "recorded_0000002.h5").write_bytes(whole["recorded_0000000.h5"])  # whole, but another one
    assert convert([recording], out, SETTINGS) == 0
    assert "4 episodes (3 new, 1 kept)" in capsys.readouterr().out and contents(out) == whole


def test_a_full_disk_is_told(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EpisodeError, match=r"cannot be written \(No space left on device\); make room"):
        convert([recording], tmp_path / "out", SETTINGS, quiet=True)
    assert contents(tmp_path / "out") == {}


def test_a_folder_of_something_else_is_left_alone(recording: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "whole"
    with pytest.raises(EpisodeError, match=r"of other settings \(truth_gap_s\); take another folder"):
        convert([recording], out, Settings("/truth", seconds=1.0, min_seconds=0.0, truth_gap_s=0.2), quiet=True)
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(EpisodeError, match="another process writes episodes into"):
        convert([recording], out, SETTINGS, quiet=True)
    os.close(handle)
    (out / "dataset.json").write_text('{"scene_version": 2}')
    with pytest.raises(EpisodeError, match="was not written by `data from-bag`"):
        convert([recording], out, SETTINGS, quiet=True)
    (out / "dataset.json").unlink()
    with pytest.raises(EpisodeError, match="that were not made from recordings"):
        convert([recording], out, SETTINGS, quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(EpisodeError, match="cannot be used as a folder"):
        convert([recording], tmp_path / "file", SETTINGS, quiet=True)
    assert {n: b for n, b in contents(out).items() if n.endswith(".h5")} == {
        n: b for n, b in whole.items() if n != "dataset.json"
    }
    with pytest.raises(ValueError, match="given twice"):
        convert([recording, recording], tmp_path / "out", SETTINGS, quiet=True)


def test_recordings_have_numbers_of_their_own_and_those_that_cannot_be_used_are_told(
    recording: Path, tmp_path: Path, capsys: Any
) -> None:
    at = every(10, 2.0, 100.0)
    second, blind = bag(tmp_path / "b", images(at), truth(at)), bag(tmp_path / "c", images(at))
    out = tmp_path / "out"
    assert convert([recording, blind, second], out, SETTINGS) == 1
    said = capsys.readouterr()
    assert "6 episodes in" in said.out and "left out: " in said.err and "has no topic /truth" in said.err
    names = [f"recorded_{n:07d}.h5" for n in (0, 1, 2, 3, 10_000, 10_001)]
    assert sorted(contents(out)) == ["dataset.json", *names]
    assert convert([second], out, SETTINGS) == 0, "also alone, a recording keeps its numbers"
    assert "2 episodes (0 new, 2 kept)" in capsys.readouterr().out
    assert [r["name"] for r in json.loads((out / "dataset.json").read_text())["recordings"]] == ["rec", "b"]
    with pytest.raises(RecordingError, match=r"(?s)has no topic /truth.*none does not exist"):
        convert([blind, tmp_path / "none"], tmp_path / "other", SETTINGS, quiet=True)
    assert convert([recording, second], tmp_path / "few", SETTINGS, limit=5, quiet=True) == 0
    assert sorted(contents(tmp_path / "few"))[1:] == names[:5]


def test_a_damaged_image_is_left_out_and_counted(tmp_path: Path, capsys: Any) -> None:
    at = every(10, 3.0)
    rows = images(at)
    for k in [5, *range(20, 30)]:
        topic, stamp, _ = rows[2 * k + 1]
        rows[2 * k + 1] = (topic, stamp, compressed(stamp, jpeg(k)[:-30]))
    poses = [("/pose", ns(t), pose_stamped(ns(t), (t, 0, 0), frame="map")) for t in at]
    folder, out = bag(tmp_path / "rec", rows, truth(at, "map"), poses), tmp_path / "out"
    settings = Settings("/truth", seconds=1.0, min_seconds=0.0, pose_topic="/pose")
    for _ in range(2):
        assert convert([folder], out, settings) == 0
        words = capsys.readouterr().out
        assert "2 episodes" in words and "left out: 11 images that cannot be decoded" in words
        assert "1 episodes without a single image" in words
    e = Episode.load(out / "recorded_0000000.h5")
    assert len(e) == 9 and e.details["damaged_images"] == 1 and ns(0.5) not in e.stamps_ns
    assert np.allclose(e.camera_pose[:, 0, 3], (e.stamps_ns - ns(0)) / 1e9)
    assert [e.frames.jpeg(k) for k in range(9)] == [jpeg(k) for k in range(10) if k != 5]
    assert np.allclose(e.joints, [hands((s - ns(0)) / 1e9) for s in e.stamps_ns], atol=1e-6)


def test_raw_images_become_jpeg(tmp_path: Path) -> None:
    from bag_kit import camera_info, image, pixels

    rows: list[tuple[str, int, Any]] = []
    for k in range(10):
        stamp = ns(k / 10)
        rows += [("/cam/image_raw", stamp, image(k, stamp)), ("/cam/camera_info", stamp, camera_info(stamp))]
        rows.append(("/truth", stamp, pose_array(stamp, hands(k / 10), CAMERA)))
    assert convert([write(tmp_path / "rec", rows)], tmp_path / "out", SETTINGS, quiet=True) == 0
    e = Episode.load(tmp_path / "out" / "recorded_0000000.h5")
    assert len(e) == 10 and np.abs(e.frames[3].astype(int) - pixels(3)).mean() < 10


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Four times the images: the peak is that of one episode, not of the recording."""
    from truth_kit import camera

    padding = bytes(40_000)  # behind the end marker, where cameras pad, too

    def peak(seconds: float) -> int:
        at = every(10, seconds)
        rows = camera([ns(t) for t in at])
        for k in range(1, len(rows), 2):
            topic, stamp, message = rows[k]
            rows[k] = (topic, stamp, compressed(stamp, message.data.tobytes() + padding))
        folder = bag(tmp_path / f"{seconds}", rows, truth(at))
        del rows
        tracemalloc.start()
        try:
            assert convert([folder], tmp_path / f"out{seconds}", SETTINGS, quiet=True) == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(5.0), peak(20.0)
    assert many < few + 2_000_000, f"{few} bytes for 50 images, {many} for 200 (8 MB)"


def test_the_command_says_what_it_did(recording: Path, tmp_path: Path) -> None:
    arguments = ["data", "from-bag", str(recording), "--out", str(tmp_path / "out"), "--truth", "/truth"]
    done = CliRunner().invoke(cli.app, [*arguments, "--joints", "a, b", "--seconds", "2", "--limit", "1"])
    assert done.exit_code == 0, done.output
    assert "rec: 1 episodes (1 new, 0 kept), 40 of 40 images, 2 joints in camera_optical" in done.output
    assert Episode.load(tmp_path / "out" / "recorded_0000000.h5").joint_names == ("a", "b")
    odd = CliRunner().invoke(cli.app, [*arguments, "--intrinsics", "1,x,2,3"])
    assert odd.exit_code == 1 and isinstance(odd.exception, ValueError) and "--intrinsics" in str(odd.exception)
    words = CliRunner().invoke(cli.app, ["data", "from-bag", "--help"]).output
    for word in ("--truth", "--links", "--pose-topic", "Example"):
        assert word in words
