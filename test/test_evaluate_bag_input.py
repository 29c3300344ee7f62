"""Recordings as people have them (damaged, split, compressed, without this or that) are read, or refused in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import BEGIN_NS, NS, STORE
from evaluate_kit import HORIZON, SETTINGS, STEP_NS, WINDOW, every, hands, images, recording, same, truth
from jepa_kit import small_net
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from ruamel.yaml import YAML
from truth_kit import bag, compressed, jpeg, ns, pose_array, tf
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.evaluation.bag import run
from thinkjepa_ros.evaluation.bag.footage import pictures
from thinkjepa_ros.evaluation.bag.ground import open_ground
from thinkjepa_ros.evaluation.bag.metrics import measure
from thinkjepa_ros.evaluation.bag.origins import Rhythm, find_origins
from thinkjepa_ros.evaluation.bag.replay import Replay
from thinkjepa_ros.evaluation.bag.run import Models, offline
from thinkjepa_ros.evaluation.bag.twin import Paired


@pytest.fixture(scope="module")
def plain() -> Models:
    return Models(Paired(small_net(), "small", "test", True), None, {"model": "m", "thinker": None})


# --- what may be wrong ---


def test_an_image_that_cannot_be_decoded_costs_its_windows_only(tmp_path: Path, plain: Models) -> None:
    made = images(every(10, 3.0))
    broken = [(t, at, compressed(at, jpeg(3)[:200]) if at == ns(1.5) and "compressed" in t else m) for t, at, m in made]
    replay = offline([bag(tmp_path / "bag", broken, truth(every(50, 3.0)))], SETTINGS, plain).replay
    at = ((replay.stamp_ns - ns(0)) / NS).round(3).tolist()
    assert replay.about["left_out"]["images that cannot be decoded"] == 1
    assert 1.4 in at and 1.9 in at and not {1.5, 1.6, 1.7, 1.8} & set(at) and len(at) == 27 - 4


def test_images_that_repeat_a_stamp_or_have_no_pose_are_left_out(tmp_path: Path, plain: Models) -> None:
    at = every(10, 3.0)
    doubled = images(at) + [("/camera/image/compressed", ns(1.0) + 5, compressed(ns(1.0), jpeg(7)))]
    replay = offline([bag(tmp_path / "double", doubled, truth(every(50, 3.0)))], SETTINGS, plain).replay
    assert replay.about["left_out"] == {"images with the stamp of the image before": 1} and len(replay) == 27
    moving = [
        ("/tf", ns(t), tf((ns(t), "world", "camera_optical", (0.1 * t, 0, 0), (0, 0, 0, 1)))) for t in every(20, 2.0)
    ]
    world = [("/truth", ns(t), pose_array(ns(t), hands(t), "world")) for t in every(50, 3.0).tolist()]
    lost = offline([bag(tmp_path / "lost", images(at), world, moving)], SETTINGS, plain).replay
    assert lost.about["left_out"]["images without a camera pose"] == 10 and lost.stamp_ns.max() < ns(2.0)
    seconds = ((lost.stamp_ns - ns(0)) / NS)[:, None]
    ahead = seconds + 0.1 * np.arange(1, HORIZON + 1)
    expected = hands(ahead) - np.array([0.1, 0, 0]) * seconds[:, :, None, None]
    known = np.isfinite(lost.truth)
    assert np.allclose(lost.truth[known], expected[known], rtol=0, atol=1e-6), "in the camera of the origin"


def bad(name: str, folder: Path) -> tuple[Path, Settings]:
    """A recording that cannot be evaluated."""
    at = every(30, 1.0)
    if name == "missing":
        return folder, SETTINGS
    if name == "no metadata":
        recording(folder, 1.0)
        (folder / "metadata.yaml").unlink()
    elif name == "truncated":
        recording(folder, 1.0)
        file = next(folder.glob("*.mcap"))
        file.write_bytes(file.read_bytes()[:-2000])
    elif name == "two cameras":
        more = [("/other/image/compressed", a, m) for t, a, m in images(at) if "compressed" in t]
        bag(folder, images(at), more, truth(at))
    elif name == "no image":
        bag(folder, truth(at))
    elif name == "another clock":
        bag(folder, images(at), truth(at + 1000.0))
    elif name == "another frame":
        bag(folder, images(at), [("/truth", ns(t), pose_array(ns(t), hands(t), "base")) for t in at.tolist()])
    elif name == "all unknown":
        bag(folder, images(at), [("/truth", ns(t), pose_array(ns(t), hands(t) * np.nan)) for t in at.tolist()])
    elif name == "too short":
        recording(folder, 0.2)
    elif name == "too slow":
        bag(folder, images(every(4, 3.0)), truth(every(50, 3.0)))
    else:
        recording(folder, 1.0)
        return folder, replace(SETTINGS, truth="/nothing")
    return folder, SETTINGS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "does not exist; give the folder"),
        ("no metadata", "has no metadata.yaml .*play its file directly"),
        ("truncated", "is cut off .*repair it with|is damaged .*repair it with"),
        ("two cameras", "has 2 camera topics; choose one"),
        ("no image", "has no camera topic"),
        ("another clock", "do not overlap in time: .*clock of ROS"),
        ("another frame", r"no transforms were recorded; give the camera's pose \(--pose-topic"),
        ("all unknown", "knows no joint at any time"),
        ("too short", "lasts 0.17 s, small looks at 0.30 s; record for longer"),
        ("too slow", "no window of 4 images 0.1 s apart is whole; small needs a camera of 10 Hz or more"),
        ("no topic", "has no topic /nothing; topics in this bag"),
    ],
)
def test_what_is_wrong_with_a_recording_is_one_sentence_with_the_remedy(
    tmp_path: Path, plain: Models, name: str, words: str
) -> None:
    folder, settings = bad(name, tmp_path / "bag")
    with pytest.raises(RecordingError, match=words):
        offline([folder], settings, plain)


def test_of_several_recordings_the_good_ones_are_evaluated(tmp_path: Path, plain: Models) -> None:
    good, other = recording(tmp_path / "good", 1.0), recording(tmp_path / "other", 1.5)
    cut, _ = bad("truncated", tmp_path / "cut")
    slow, _ = bad("too slow", tmp_path / "slow")
    result = offline([good, cut, slow, other], SETTINGS, plain)
    assert len(result.failed) == 2 and "cut" in result.failed[0] and "slow" in result.failed[1]
    names = [b["name"] for b in result.replay.about["bags"]]
    assert names == ["good", "slow", "other"] and np.unique(result.replay.bag).tolist() == [0, 2]
    assert sum("left out" in note for note in result.replay.about["notes"]) == 2
    alone = offline([other], SETTINGS, plain).replay
    mine = result.replay.only(result.replay.bag == 2)
    assert same(replace(alone, guided=alone.unguided), replace(mine, guided=mine.unguided)) == []
    with pytest.raises(ValueError, match="is given twice"):
        offline([good, good], SETTINGS, plain)


def test_ctrl_c_leaves_what_was_done(tmp_path: Path, plain: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def task(self: Any, words: str, total: int | None = None) -> Iterator[Any]:
        seen = [0]

        def advance(count: int) -> None:
            seen[0] += count
            if seen[0] == 12 and not words.startswith("reading"):
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(run.Bar, "task", task)
    result = offline([recording(tmp_path / "bag")], SETTINGS, plain)
    assert result.interrupted and 0 < len(result.replay) < 12 and result.replay.about["partial"]
    assert "interrupted" in result.replay.about["notes"][0] and measure(result.replay)["counts"]["forecasts"] > 0


# --- moments and files ---


def test_forecasts_stand_on_the_grid_whatever_the_rate_of_the_camera(tmp_path: Path) -> None:
    for rate, stride, count in ((30.0, 0.1, 27), (15.0, 0.1, 27), (10.0, 0.5, 6), (60.0, 0.05, 53)):
        ground = open_ground(bag(tmp_path / f"at{rate:g}", images(every(rate, 3.0))), Settings())
        found = find_origins(ground, WINDOW, STEP_NS, stride)
        assert abs(len(found) - count) <= 1 and not found.gaps
        stamps = ground.course.stamps_ns
        off = stamps[found.window] - (stamps[found.image, None] + STEP_NS * np.arange(1 - WINDOW, 1))
        assert (np.abs(off) <= STEP_NS // 2).all() and np.array_equal(found.window[:, -1], found.image)
        assert (np.diff(stamps[found.image]) > 0).all()
    for odd in ({"stride_s": 0.0}, {"stride_s": 0.1, "think_period_s": -1.0}, {"stride_s": 0.1, "think_delay_s": -0.1}):
        with pytest.raises(ValueError, match="give"):
            Rhythm(**odd)


def packed(folder: Path, storage: StoragePlugin, mode: CompressionMode) -> Path:
    """The recording, compressed."""
    writer = Writer(folder, version=8, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, at, message in sorted([*images(every(10, 1.0)), *truth(every(50, 1.0))], key=lambda m: m[1]):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], at, bytes(STORE.serialize_cdr(message, kind)))
    return folder


def split(folder: Path) -> Path:
    """One recording in two files, as `ros2 bag record --max-bag-duration` leaves it."""
    everything = [*images(every(10, 1.0)), *truth(every(50, 1.0))]
    halves = ([m for m in everything if (m[1] < ns(0.5)) is early] for early in (True, False))
    parts = [bag(folder.parent / f"{folder.name}_{k}", half) for k, half in enumerate(halves)]
    folder.mkdir()
    yaml, infos = YAML(typ="safe"), []
    for part in parts:
        shutil.copy(next(part.glob("*.mcap")), folder)
        infos.append(yaml.load(part / "metadata.yaml")["rosbag2_bagfile_information"])
    whole = infos[0]
    whole["relative_file_paths"] += infos[1]["relative_file_paths"]
    whole["files"] += infos[1]["files"]
    whole["message_count"] += infos[1]["message_count"]
    whole["duration"]["nanoseconds"] = int(NS)
    for mine, other in zip(whole["topics_with_message_count"], infos[1]["topics_with_message_count"], strict=True):
        mine["message_count"] += other["message_count"]
    yaml.dump({"rosbag2_bagfile_information": whole}, folder / "metadata.yaml")
    return folder


def test_any_storage_is_read(tmp_path: Path) -> None:
    reference = open_ground(bag(tmp_path / "plain", images(every(10, 1.0)), truth(every(50, 1.0))), SETTINGS)
    stamps = reference.course.stamps_ns.tolist()
    shots = [rgb for *_, rgb in pictures([reference.path], SETTINGS, [(0, s) for s in stamps])]
    assert len(shots) == 10
    made = [
        packed(tmp_path / "by_message", StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        packed(tmp_path / "by_file", StoragePlugin.SQLITE3, CompressionMode.FILE),
        packed(tmp_path / "in_mcap", StoragePlugin.MCAP, CompressionMode.STORAGE),
        split(tmp_path / "split"),
        next((tmp_path / "plain").glob("*.mcap")),
    ]
    for folder in made:
        ground = open_ground(folder, SETTINGS)
        assert ground.course.stamps_ns.tolist() == stamps, folder
        everything = np.arange(2)
        found = ground.now(ground.pieces[0], everything)
        assert np.array_equal(found, reference.now(reference.pieces[0], everything)), folder
        again = [rgb for *_, rgb in pictures([folder], SETTINGS, [(0, s) for s in stamps[::3]])]
        assert all(np.array_equal(a, b) for a, b in zip(again, shots[::3], strict=True)), folder
    assert ground.sha256 != reference.sha256 and BEGIN_NS in stamps


# --- the command ---


@pytest.mark.parametrize(("name", "images"), [("g1_pick_10", 290), ("g1_pick_40", 213)])
def test_a_real_robot_gives_a_folder_of_figures(shared: Path, tmp_path: Path, name: str, images: int) -> None:
    """With the shipped model and, in one of the two, a recording beside it that cannot be used."""
    folder, out, cut = shared / "data" / name, tmp_path / "out", tmp_path / "cut"
    bags = [str(folder)]
    if name == "g1_pick_40":
        bags.append(str(bad("truncated", cut)[0]))
    options = ["--truth", "/hand_keypoints", "--no-thinker", "--stride", "0.5", "--no-video", "--out", str(out)]
    done = CliRunner().invoke(cli.app, ["evaluate", "bag", *bags, *options])
    assert done.exit_code == (1 if len(bags) == 2 else 0), done.output
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.json", "per_frame.csv", "replay.json", "replay.npz", "report.html",
    ]  # fmt: skip
    replay = Replay.load(out)
    assert replay.about["bags"][0]["images"] == images and replay.truth.shape[2] == 12
    assert "of the baselines" in done.output and replay.about["speed"]["times_real_time"] > 0
    again = CliRunner().invoke(cli.app, ["evaluate", "bag", str(tmp_path / "none"), *options])
    assert again.exit_code == 1 and len((out / "metrics.json").read_text()) > 1000, "what was there stays"
