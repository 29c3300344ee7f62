"""Labelled moments: read from a topic or a table, laid on the forecasts, and told; what is wrong is one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import BEGIN_NS, NS, image, make
from bag_report_kit import IMAGES, SECOND, replay
from bag_report_kit import recording as swing
from evaluate_kit import every, images, truth
from hypothesis import given
from hypothesis import strategies as st
from test_episode import make as make_episode
from truth_kit import bag, ns
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.data.bag import BALL_TOPIC, write_bag
from thinkjepa_ros.data.sim import ball
from thinkjepa_ros.data.sim.script import SCENE_VERSION, draw
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.evaluation.bag.events import EventsError, Labels, label, read_labels
from thinkjepa_ros.evaluation.bag.metrics import measure
from thinkjepa_ros.evaluation.bag.replay import Replay

#: A seed with a ball and one without.
WITH, WITHOUT = 2_000_005, 2_000_000


def said(seconds: float, value: bool) -> tuple[str, int, Any]:
    return ("/odd", ns(seconds), make("std_msgs/msg/Bool", value))


def spans_s(labels: Labels, folder: Path) -> list[tuple[float, float]]:
    return [((a - BEGIN_NS) / NS, (b - BEGIN_NS) / NS) for a, b in labels.spans[folder.resolve()]]


def table(tmp_path: Path, text: str) -> str:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a camera at 10 Hz, a topic of labels, and some that are none."""
    messages = [said(0.45, True), said(0.5, True), said(0.72, False), said(0.73, True), said(0.74, False)]
    messages += [said(2.55, True), ("/late", ns(5.0), make("std_msgs/msg/Bool", True))]
    messages += [("/words", ns(0.0), make("std_msgs/msg/String", "odd"))]
    return bag(tmp_path_factory.mktemp("bags") / "monday", images(every(10, 3.0)), messages)


# --- a topic ---


def test_a_topic_labels_from_true_to_the_next_false_or_the_end(folder: Path) -> None:
    labels = read_labels("/odd", [folder], Settings())
    assert np.allclose(spans_s(labels, folder), [(0.5, 0.7), (2.6, 2.9)], atol=1e-8)
    assert labels.source == "/odd (std_msgs/msg/Bool)"


def test_a_camera_with_a_clock_of_its_own_is_labelled_when_it_was_recorded(tmp_path: Path) -> None:
    """Header stamps lie years before the times of the recorder, and step back in the middle."""
    own = [5 * NS + k * NS // 10 for k in range(10)] + [2 * NS + k * NS // 10 for k in range(10)]
    shots = [("/camera/image_raw", ns(k / 10), image(k, at)) for k, at in enumerate(own)]
    path = bag(tmp_path / "own", shots, [said(0.75, True), said(1.25, False)])
    labels = read_labels("/odd", [path], Settings())
    assert labels.spans[path.resolve()] == ((own[8], own[9]), (own[10], own[12]))


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("/nothing", r"has no topic /nothing; give --events a topic of type std_msgs/msg/Bool, or a file .*/late "),
        ("labels.txt", r"has no topic labels.txt; .* a file that ends in \.csv"),
        ("/words", r"/words of .* is std_msgs/msg/String and labels are std_msgs/msg/Bool; republish it so"),
        ("/late", r"do not overlap: the first message was recorded after the last image"),
    ],
)
def test_a_topic_that_labels_nothing_is_refused(folder: Path, topic: str, sentence: str) -> None:
    with pytest.raises(EventsError, match=re.compile(sentence, re.S)):
        read_labels(topic, [folder], Settings())


def test_a_recording_that_cannot_be_read_is_left_to_the_evaluation(folder: Path, tmp_path: Path) -> None:
    for source in ("/odd", table(tmp_path, "from_ns,to_ns\n" + f"{ns(0.1)},{ns(0.5)}")):
        labels = read_labels(source, [tmp_path / "none", folder], Settings())
        assert list(labels.spans) == [folder.resolve()]


# --- a table ---


def test_seconds_are_after_the_first_image_and_stamps_are_stamps(folder: Path, tmp_path: Path) -> None:
    seconds = "\ufeffto_s, from_s\n1.05,0.5\n\n2, 1.5\n"  # as a spreadsheet writes it, columns in any order
    for text in (seconds, f"from_ns,to_ns\n{ns(0.5)},{ns(1.05)}\n{ns(1.5)},{ns(2.0)}\n"):
        labels = read_labels(table(tmp_path, text), [folder], Settings())
        assert np.allclose(spans_s(labels, folder), [(0.5, 1.05), (1.5, 2.0)], atol=1e-8)
        assert labels.source == "labels.csv" and labels.beside == 0


def test_a_line_names_its_recording_by_folder_or_number(folder: Path, tmp_path: Path) -> None:
    other = bag(tmp_path / "tuesday", images(every(10, 2.0)))
    text = "bag,from_s,to_s\ntuesday,0,0.5\n0,1,2\n1,99,100\n"
    labels = read_labels(table(tmp_path, text), [folder, other], Settings())
    assert spans_s(labels, folder) == [(1, 2)] and spans_s(labels, other) == [(0, 0.5)] and labels.beside == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"the first line of .*labels.csv is ''; it must name from_s,to_s or from_ns,to_ns"),
        ("from_s;to_s\n1;2", r"is 'from_s;to_s'; .*with commas"),
        ("from_s,to_ns\n1,2", "it must name from_s,to_s"),
        ("from_s,to_s,bags\n1,2,0", "it must name .* and nothing else"),
        ("from_s,to_s,to_s\n1,2,3", "it must name"),
        ("from_s,to_s\n", "holds no interval below its first line"),
        ("from_s,to_s\n1", "line 2 has 1 cells, the first line has 2"),
        ("from_s,to_s\n\n1,two", r"line 3: to_s is 'two'; write a number of seconds, such as 12.5"),
        ("from_s,to_s\nnan,2", "from_s is 'nan'; write a number"),
        ("from_s,to_s\n0,inf", "to_s is 'inf'; write a number"),
        ("from_s,to_s\n,2", "from_s is ''; write a number"),
        ("from_ns,to_ns\n1.6E+18,1.7E+18", "write a whole number of nanoseconds; spreadsheets round"),
        ("from_s,to_s\n2,1.5", r"line 2: to_s is 1.5, before from_s 2; swap them"),
        ("from_s,to_s,bag\n1,2,friday", r"there is no recording 'friday'; name one of monday, or give its number"),
        ("from_s,to_s,bag\n1,2,1", r"there is no recording '1'"),
        ("from_s,to_s\n50,60", r"no interval of .* holds an image; those of monday are at 0 to 2.9 s"),
        ("from_ns,to_ns\n50,60", rf"holds an image; those of monday are at {ns(0)} to {ns(2.9)} ns"),
        ("from_s,to_s\n1e300,1e301", "holds an image"),
    ],
)
def test_a_table_that_is_wrong_is_one_sentence(folder: Path, tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(EventsError, match=sentence) as caught:
        read_labels(table(tmp_path, text), [folder], Settings())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EventsError, match=r"cannot be read .*give --events a CSV file or a topic"):
        read_labels(str(tmp_path / "none.csv"), [folder], Settings())
    (tmp_path / "x.CSV").write_bytes(b"from_s,to_s\n\xff\xfe")
    with pytest.raises(EventsError, match="save it as CSV with commas, in UTF-8"):
        read_labels(str(tmp_path / "x.CSV"), [folder], Settings())


def test_of_two_recordings_a_line_must_say_which(folder: Path, tmp_path: Path) -> None:
    twin = bag(tmp_path / "monday", images(every(10, 1.0)))
    with pytest.raises(EventsError, match=r"does not say which of the 2 recordings .* column bag"):
        read_labels(table(tmp_path, "from_s,to_s\n0,1"), [folder, twin], Settings())
    with pytest.raises(EventsError, match="2 recordings are called 'monday'; give the number"):
        read_labels(table(tmp_path, "from_s,to_s,bag\n0,1,monday"), [folder, twin], Settings())


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.booleans())
def test_no_table_fails_but_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str, headed: bool) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    source = table(folder, "from_s,to_s,bag\n" + text if headed else text)
    try:
        assert not read_labels(source, [folder / "none"], Settings()).spans
    except EventsError as error:
        assert "labels.csv" in str(error)


# --- on the forecasts ---


def test_a_forecast_is_labelled_where_its_image_is(tmp_path: Path) -> None:
    path = swing(tmp_path / "swing")
    source = table(tmp_path, "from_s,to_s\n1.0,1.95\n5.5,5.5\n3.01,3.09\n")
    labels = read_labels(source, [path], Settings())
    value = label(replace(replay(path), event=None), labels)
    assert value.event is not None and value.event.dtype == bool
    assert np.flatnonzero(value.event).tolist() == [*range(10, 20), 55]
    assert value.about["events"] == {"source": "labels.csv", "intervals": 2, "labelled": 11}
    note = value.about["notes"][-1]
    assert f"intervals: 2; 11 of {IMAGES - 1} forecasts with a surprise lie in them" in note
    assert "lines beside all images: 1" in note and "AUROC" not in note
    other = replace(value, bag=np.ones(IMAGES, np.int64), about={**value.about, "bags": [{"path": "x"}, {"path": "y"}]})
    assert not label(other, labels).event.any(), "labels of a recording are not those of another"


def test_the_auroc_is_that_of_every_pair_and_needs_both_kinds(tmp_path: Path) -> None:
    path = swing(tmp_path / "swing")
    value = replay(path)
    surprise = np.round(np.random.default_rng(3).random(IMAGES), 1).astype(np.float32)
    surprise[[0, 12, SECOND]] = np.nan  # no forecast one tubelet earlier
    value = replace(value, surprise=surprise)
    source = table(tmp_path, "from_s,to_s\n1.0,2.45\n")
    value = label(value, read_labels(source, [path], Settings()))
    assert value.event is not None
    pairs = [
        (a > b) + (a == b) / 2
        for a in surprise[value.event] for b in surprise[~value.event] if np.isfinite(a) and np.isfinite(b)
    ]  # fmt: skip
    assert measure(value)["surprise"]["auroc"] == pytest.approx(float(np.mean(pairs)), abs=1e-9)
    everywhere = label(value, read_labels(table(tmp_path, "from_s,to_s\n0,9\n"), [path], Settings()))
    assert measure(everywhere)["surprise"]["auroc"] is None
    assert "needs forecasts of both kinds" in everywhere.about["notes"][-1]


def test_the_command_labels_what_it_made(tmp_path: Path, small: Path) -> None:
    odd = [said(0.0, False), said(1.05, True), said(1.95, False)]
    path = bag(tmp_path / "bag", images(every(30, 3.0)), truth(every(50, 3.0)), odd)
    run = ["evaluate", "bag", str(path), "--truth", "/truth", "--joints", "right_1,right_3", "--model", str(small)]
    run += ["--no-thinker", "--no-video", "--no-report", "--out", str(tmp_path / "out"), "--events"]
    done = CliRunner().invoke(cli.app, [*run, "/odd"])
    assert done.exit_code == 0, done.output
    made = Replay.load(tmp_path / "out")
    at = (made.stamp_ns - ns(0)) / NS
    assert made.event is not None and np.array_equal(made.event, (at > 1.05) & (at < 1.95))
    auroc = measure(made)["surprise"]["auroc"]
    assert f"surprise is higher at labelled moments than elsewhere with probability {auroc:.2f}" in done.output
    for option, sentence in (("/truth", "labels are std_msgs/msg/Bool"), ("no.csv", "cannot be read")):
        failed = CliRunner().invoke(cli.app, [*run, option])
        assert isinstance(failed.exception, EventsError) and sentence in str(failed.exception)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that is quick."""
    from jepa_kit import small_net

    from thinkjepa_ros.jepa import model

    path = tmp_path_factory.mktemp("models") / "small"
    model.save(path, small_net(), model_id="small", domain="test", trained=True, training={})
    return path


# --- the ball of the simulation ---


def test_the_ball_is_in_view_where_it_is_in_the_picture() -> None:
    """By pictures of the same moments with and without it."""
    pytest.importorskip("mujoco")
    from thinkjepa_ros.data.sim.play import make_episode as simulate
    from thinkjepa_ros.data.sim.play import play
    from thinkjepa_ros.data.sim.scene import Scene

    episode, script = simulate("lamp", WITH, 96, 96, rate_hz=2.0, quality=100), draw("lamp", WITH)
    seen = ball.in_view(episode)
    assert seen is not None and script.ball is not None and 0 < seen.sum() < len(seen)
    with Scene(script.look, 96, 96) as scene:
        without = [scene.render().astype(int) for _ in play(replace(script, ball=None), scene, 2.0)]
    changed = np.array([(np.abs(a - b).max(-1) > 20).sum() for a, b in zip(episode.frames, without, strict=True)])
    edge = np.zeros(len(seen), bool)  # half of it is in the picture: either is right
    edge[1:] |= seen[1:] != seen[:-1]
    edge[:-1] |= seen[1:] != seen[:-1]
    assert (changed[seen & ~edge] > 3).all() and (changed[~seen & ~edge] == 0).all()


def simulated(seed: int, n: int) -> Any:
    """An episode whose pictures are nonsense and whose times, camera and script are those of the simulation at 3 Hz."""
    pose = np.tile(np.eye(4), (n, 1, 1))
    pose[:, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along y
    pose[:, :3, 3] = (0.0, -0.3, 0.05)
    return replace(
        make_episode(n), seed=seed, camera_pose=pose, stamps_ns=np.arange(n, dtype=np.int64) * NS // 3 + NS,
        details={"scene_version": SCENE_VERSION},
    )  # fmt: skip


def test_a_simulated_recording_tells_when_the_ball_is_in_view(tmp_path: Path) -> None:
    episodes = [simulated(WITHOUT, 8), simulated(WITH, 8), simulated(WITHOUT, 8)]
    seen = [ball.in_view(episode) for episode in episodes]
    assert [one.tolist() for one in seen[::2]] == [[False] * 8] * 2
    assert seen[1] is not None and not seen[1][0] and seen[1][-1], "it comes in, and is there at the end"
    write_bag(tmp_path / "sim", episodes)
    labels = read_labels(BALL_TOPIC, [tmp_path / "sim"], Settings())
    ((begin, end),) = labels.spans[(tmp_path / "sim").resolve()]
    assert [begin <= at <= end for at in _image_stamps(tmp_path / "sim")] == [bool(on) for one in seen for on in one]


def _image_stamps(path: Path) -> list[int]:
    from thinkjepa_ros.data.recording import Recording
    from thinkjepa_ros.data.typed import read, stamp_ns

    with Recording(path) as opened:
        return [stamp_ns(message.header) for *_, message in read(opened, [opened.camera()])]


def test_where_nobody_knows_of_a_ball_nothing_is_said(tmp_path: Path) -> None:
    unknown = replace(simulated(WITH, 4), details={})
    recorded = replace(simulated(WITH, 4), split="recorded")
    assert ball.in_view(unknown) is None and ball.in_view(recorded) is None
    write_bag(tmp_path / "real", [unknown])
    with pytest.raises(EventsError, match=f"has no topic {BALL_TOPIC}"):
        read_labels(BALL_TOPIC, [tmp_path / "real"], Settings())
