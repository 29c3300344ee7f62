"""`thinkjepa think`: videos, episodes and recordings in, thoughts over time out, pyramids that say what made them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bag_kit
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin
from safetensors import safe_open
from test_episode import make as make_episode
from test_thinker_video import write as write_video
from thinker_kit import fresh_thinker, mini_folder
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.bridge.footage import open_footage
from thinkjepa_ros.checkpoints import sha256_of
from thinkjepa_ros.commands.think import over
from thinkjepa_ros.data.bag import write_bag
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.data.recording import RecordingError
from thinkjepa_ros.thinker.video import VideoError
from thinkjepa_ros.thinker.window import Window

NS = 1_000_000_000


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Five seconds."""
    return write_video(tmp_path_factory.mktemp("films") / "film.avi", 150)


def run(*arguments: object, width: int = 200) -> str:
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(
        cli.app, ["think", *map(str, arguments), "--model", str(mini_folder()), "--max-new-tokens", "2"]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["thinkjepa"])  # noqa: SIM118


def test_a_video_is_thought_about_and_the_pyramids_say_what_made_them(film, tmp_path):
    out = tmp_path / "guidance.safetensors"
    shown = run(film, "--instruction", "go [there]", "--every", 1.5, "--out", out)
    assert "(untrained) over film.avi: video, 30 frames a second" in shown and "go [there]" in shown
    assert "4 pyramids in" in shown
    tensors, made_by = read(out)
    assert tensors["pyramids"].shape == (4, 4, 2, 128) and tensors["pyramids"].dtype == np.float32
    assert tensors["present"].all()
    assert tensors["stamps_ns"] == pytest.approx(np.array([1.5, 3.0, 4.5, 4.7667]) * NS, abs=0.02 * NS)
    assert made_by["model_id"].endswith("(untrained)") and made_by["trained"] is False
    assert made_by["weights_sha256"] == {"model.safetensors": sha256_of(mini_folder() / "model.safetensors")}
    assert (made_by["dtype"], made_by["layers"], made_by["how"]["quantization"]) == ("float32", [0, 1, 2, 3], "none")
    assert "<|vision_start|>" in made_by["pair_form"] and "{instruction}" in made_by["question"]
    assert len(made_by["thoughts"]) == 4 and {t["instruction"] for t in made_by["thoughts"]} == {"go [there]"}
    import transformers

    assert made_by["transformers"] == transformers.__version__


def test_a_thought_sees_its_window_and_nothing_later(film):
    """The same as asking the thinker by hand with the frames up to that moment."""
    thinker = fresh_thinker()
    steps = over(open_footage(film, thinker.window), thinker, "go", 2.0, {"max_new_tokens": 2})
    thoughts = [t for _, t in steps if t is not None]
    assert [round(t.at_s, 1) for t in thoughts] == [2.0, 4.0, 4.8]
    frames = [f for f, _ in open_footage(film, thinker.window).told]
    for thought in thoughts:
        past = [f for f in frames if f.stamp_ns <= thought.guidance.stamp_ns]
        by_hand = fresh_thinker().think(past, "go", max_new_tokens=2)
        assert np.array_equal(by_hand.pyramid, thought.guidance.pyramid)
    assert [t.guidance.sequence for t in thoughts] == [0, 1, 2]


def test_an_episode_brings_its_instruction(tmp_path):
    episode = make_episode(60)
    episode.save(tmp_path / "lamp_0000003.h5")
    shown = run(tmp_path / "lamp_0000003.h5", "--every", 1)
    assert "episode, 60 images" in shown and "put the red cube in the left tray" in shown
    told = list(open_footage(tmp_path / "lamp_0000003.h5", Window()).told)
    assert told[0][0].stamp_ns == NS and len(told) == 8
    assert np.array_equal(told[0][0].rgb, episode.frames[0])


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
def test_a_recording_is_read_by_the_stamps_of_its_camera(tmp_path, storage):
    bag = bag_kit.camera_bag(tmp_path / "bag", frames=90, storage=storage)
    footage = open_footage(bag, Window())
    told = list(footage.told)
    assert footage.title == "bag: 90 images of /head/image_raw" and 2.9 < footage.duration_s < 3.1
    assert {words for _, words in told} == {"pick the red cube"}
    begin = bag_kit.CAMERA_BEGIN_NS
    numbers = [round((f.stamp_ns - begin) * 30 / NS) for f, _ in told]
    slots = [Window().slot(begin + round(k * NS / 30)) for k in range(90)]
    assert numbers == [slots.index(s) for s in sorted(set(slots))]
    assert all(np.array_equal(f.rgb, bag_kit.pixels(n)) for (f, _), n in zip(told, numbers, strict=True))
    assert "pick the red cube" in run(bag, "--every", 1)


def test_each_episode_of_a_recording_is_a_scene_of_its_own(tmp_path):
    """Six seconds lie between them: no thought sees both, and each has its own instruction."""
    episodes = [make_episode(60), replace(make_episode(60, seed=4), instruction="wait")]
    write_bag(tmp_path / "two", episodes)
    thinker = fresh_thinker()
    steps = over(open_footage(tmp_path / "two", thinker.window), thinker, None, 1.0, {"max_new_tokens": 0})
    thoughts = [t for _, t in steps if t is not None]
    assert [t.guidance.instruction for t in thoughts] == ["put the red cube in the left tray"] + ["wait"] * 2
    assert max(t.report.pairs for t in thoughts[:2]) <= 4, "a second of pictures, not of two scenes"


def test_damaged_images_are_passed_over_and_told(tmp_path):
    messages = []
    for k in range(60):
        picture = bag_kit.image(k, bag_kit.CAMERA_BEGIN_NS + round(k * NS / 30))
        messages.append(
            ("/camera", bag_kit.BEGIN_NS + k, picture if k % 2 else replace(picture, data=picture.data[:9]))
        )
    bag = bag_kit.write(tmp_path / "bag", messages)
    footage = open_footage(bag, Window())
    assert len(list(footage.told)) >= 8
    assert footage.unreadable and "needs 2304 bytes, not 9" in footage.unreadable[0]
    assert "damaged images were passed over, the first: 32x24" in run(bag, "--instruction", "go")


def test_two_cameras_need_a_choice(tmp_path):
    messages = []
    for k in range(30):
        picture = bag_kit.image(k, bag_kit.CAMERA_BEGIN_NS + round(k * NS / 30))
        messages += [("/left", bag_kit.BEGIN_NS + k, picture), ("/right", bag_kit.BEGIN_NS + k, picture)]
    bag = bag_kit.write(tmp_path / "bag", messages)
    with pytest.raises(RecordingError, match="2 camera topics; choose one"):
        open_footage(bag, Window())
    assert len(list(open_footage(bag, Window(), "/right").told)) == 4


@pytest.mark.parametrize(
    ("name", "error"),
    [("no.mp4", VideoError), ("no.mcap", RecordingError), ("no.h5", EpisodeError), ("old.bag", RecordingError)],
)
def test_sources_that_cannot_be_read_are_refused(tmp_path, name, error):
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0")
    with pytest.raises(error, match=name):
        open_footage(tmp_path / name, Window())


def test_nothing_is_written_when_the_thinking_fails(film, tmp_path):
    out = tmp_path / "guidance.safetensors"
    with pytest.raises(Exception, match="at most 500 are allowed"):
        run(film, "--instruction", "x" * 600, "--out", out)
    assert not list(tmp_path.iterdir())
