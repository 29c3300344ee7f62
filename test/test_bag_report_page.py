"""report.html: whole, safe, and honest about what it shows."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_report_kit import EVIL, IMAGES, STEPS, frames_of, hostile, recording, replay, stamp

from thinkjepa_ros.evaluation.bag import cells, page, plots, scenes
from thinkjepa_ros.evaluation.bag.markup import Safe, safe, tag
from thinkjepa_ros.evaluation.bag.metrics import measure
from thinkjepa_ros.evaluation.bag.replay import Replay
from thinkjepa_ros.evaluation.draw import PREDICTED, TRUE

EMPTY = {"meta", "br", "img"}


class Reader(HTMLParser):
    """What stands in a page: elements, attributes and words; raises where it is not well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))
        if name not in EMPTY:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open and self.open.pop() == name, name

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("bags") / "swing")


def made(value: Replay, out: Path, folder: Path | None) -> str:
    page.write(measure(value), value, None if folder is None else frames_of(folder), out / "report.html")
    return (out / "report.html").read_text()


def test_a_report_is_one_small_file_that_fetches_nothing(folder: Path, tmp_path: Path) -> None:
    text = made(replay(folder), tmp_path, folder)
    read = Reader(text)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert len(text) < 1_500_000
    addresses = [v for _, a in read.found for k, v in a.items() if k in ("src", "href", "action", "data", "srcset")]
    assert addresses and all(value is not None and value.startswith("data:image/jpeg") for value in addresses)
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in read.found}
    policy = [a.get("content") for name, a in read.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in str(policy[0])
    assert not re.search(r"url\(|@import|http", text.split("</style>")[0].split("<style>")[1])


def test_a_report_says_things_in_their_order(folder: Path, tmp_path: Path) -> None:
    value = replay(folder)
    text = Reader(made(value, tmp_path, folder)).text
    parts = [
        measure(value)["summary"].split(".")[0], "trained on simulation", "Joints that move", "Joints at rest",
        "Error by time ahead", "Error by joint", "Is sigma right?", "Stability", "computing one forecast",
        "elsewhere with probability 1.00 (AUROC; 0.5 is chance)",
        "What it saw and said", "Worst moments", "“pick the red cube”", "Best moments",
        "What was left out, and why",
        "3 × images without a camera pose", "To repeat it", "thinkjepa evaluate bag", "ab" * 32,
        value.about["bags"][0]["sha256"],
    ]  # fmt: skip
    place = 0
    for part in parts:
        assert part in text[place:], part
        place = text.index(part, place)


def test_labelled_moments_are_shaded_where_they_are(folder: Path, tmp_path: Path) -> None:
    event = np.isin(np.arange(IMAGES), [20, 21, 22, 23, 38, 39, 40, 41])  # the second run crosses two pieces
    value = replay(folder, events={"source": EVIL, "intervals": 2, "labelled": 8})
    text = made(replace(value, event=event), tmp_path, None)
    wide = text.split("Surprise over time")[1].split("</svg>")[0]
    boxes = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="event">', wide)
    left, per_s = plots._LEFT, (plots.WIDE - plots._LEFT - plots._RIGHT) / 5.9
    begins = np.array([[float(x) - left, float(width)] for x, width in boxes]) / per_s
    assert np.allclose(begins, [[1.95, 0.4], [3.75, 0.2], [3.95, 0.2]], atol=0.02)
    assert "Labelled moments are shaded" in text and EVIL in Reader(text).text
    unlabelled = made(replace(value, event=None), tmp_path, None)
    assert 'class="event"' not in unlabelled and "abelled moments" not in Reader(unlabelled).text


def test_words_from_outside_are_words(folder: Path, tmp_path: Path) -> None:
    text = made(hostile(replay(folder)), tmp_path, folder)
    read = Reader(text)
    assert "<script" not in text and "<img src=x" not in text
    assert not any(key.startswith("on") for _, attributes in read.found for key in attributes)
    assert read.text.count(EVIL) >= 8  # shown as what it is
    assert "\x00" not in text


def test_an_untrained_model_is_called_so_in_red(folder: Path, tmp_path: Path) -> None:
    value = replay(folder, trained=False)
    text = made(value, tmp_path, None)
    assert '<span class="alarm">untrained</span>' in text and "trained on simulation" not in text
    assert "alarm" not in made(replay(folder), tmp_path, None).split("</style>")[1]


def test_pictures_show_prediction_and_truth(folder: Path, tmp_path: Path) -> None:
    text = made(replay(folder), tmp_path, folder)
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(data) == page.STRIP + 2 * min(page.SHOWN, 3)
    for one in data[: page.STRIP]:
        rgb = cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        assert rgb.shape == (page.PICTURE_WIDTH * 3 // 4, page.PICTURE_WIDTH, 3)
        body = rgb[: rgb.shape[0] * 3 // 4]  # above the legend
        for colour in (PREDICTED, TRUE):
            assert (np.abs(body - colour).max(-1) < 60).sum() > 20


def test_a_forecast_is_shown_with_the_thought_that_guides_it(folder: Path) -> None:
    value = replay(folder)
    first, second = (
        {"bag": 0, "stamp_ns": stamp(k), "text": text, "delay_s": None} for k, text in ((3, " a\nb"), (9, ""))
    )
    age = np.where(np.arange(IMAGES) < 12, value.age_s, value.age_s - 0.6)  # the second takes over at image 12
    value = replace(value, thoughts=[second, first], age_s=age.astype(np.float32))
    said = [scenes.thought_at(value, k) for k in range(IMAGES)]
    assert said == [""] * 5 + ["a b"] * 7 + ["(no words)"] * (IMAGES - 12)


def test_chosen_moments_are_where_the_hands_have_a_way_to_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = replay(folder)
    far = scenes.ways(value)
    monkeypatch.setattr(scenes, "_BLOCK", 5)
    assert np.array_equal(far, scenes.ways(value), equal_nan=True), "an hour is looked at in blocks"
    chosen = scenes.choose(value, 4)
    assert len(chosen) == 4 and chosen == sorted(chosen)
    assert np.isfinite(far[chosen]).all()
    assert far[chosen].mean() > np.nanmean(far)


@pytest.mark.parametrize("guided", [True, False])
def test_without_truth_the_rest_is_there(folder: Path, tmp_path: Path, guided: bool) -> None:
    value = replay(folder, guided, truth_source=None)
    value = replace(
        value, truth=np.full_like(value.truth, np.nan), truth_present=np.full_like(value.truth_present, np.nan)
    )
    read = Reader(made(value, tmp_path, folder))
    assert "No error can be said" in read.text and "Surprise over time" in read.text
    assert sum(name == "img" for name, _ in read.found) == page.STRIP
    assert ("pick the red cube" in read.text) == guided


def test_nothing_at_all_is_a_page_too(folder: Path, tmp_path: Path) -> None:
    value = replay(folder).only(np.zeros(0, np.int64))
    read = Reader(made(replace(value, thoughts=[]), tmp_path, folder))
    assert "No pictures: there is no forecast" in read.text


def test_a_model_without_the_joints_of_the_truth_shows_baselines(folder: Path, tmp_path: Path) -> None:
    value = replace(replay(folder), guided=None, unguided=None)
    read = Reader(made(value, tmp_path, folder))
    assert "No pictures: the model shares no joint with the truth" in read.text
    assert "(--joints, --match), or leave --truth out to see the model's own joints" in read.text
    assert "constant velocity" in read.text


def test_frames_that_are_gone_are_said(folder: Path, tmp_path: Path) -> None:
    value = replay(folder)
    page.write(measure(value), value, lambda wanted: iter(()), tmp_path / "report.html")
    assert "No pictures: no frame could be read" in Reader((tmp_path / "report.html").read_text()).text


def test_an_interrupted_evaluation_is_not_shown_as_whole(folder: Path, tmp_path: Path) -> None:
    assert "only a part was evaluated" in Reader(made(replay(folder, partial=True), tmp_path, None)).text


@pytest.mark.parametrize(
    "rows, expected",
    [
        ({"hold": [0.10, 0.09, 0.11], "guided": [0.05, 0.04, 0.06]}, "guided"),
        ({"hold": [0.10, 0.05, 0.11], "guided": [0.05, 0.04, 0.06]}, None),  # the intervals touch
        ({"hold": [0.10, 0.09, 0.11], "unguided": [0.06, 0.05, 0.07], "guided": [0.05, 0.04, 0.06]}, None),
        ({"hold": [0.10, None, None], "guided": [0.05, None, None]}, None),  # one stretch: nobody knows
        ({"guided": [0.05, 0.04, 0.06]}, None),  # no rival
        ({"hold": [None, None, None], "guided": [0.05, 0.04, 0.06]}, None),
    ],
)
def test_bold_is_only_what_is_apart(rows: dict[str, list[float]], expected: str | None) -> None:
    measured = {name: {"ade": value} for name, value in rows.items()}
    assert cells.best(measured, "ade") == expected
    shown = cells.error_table(measured, "")
    assert ("<b>" in shown) == (expected is not None)


@pytest.mark.parametrize(
    "value, word",
    [
        ([-0.02, -0.03, -0.01], "better"),
        ([0.02, 0.01, 0.03], "worse"),
        ([-0.02, -0.03, 0.001], ""),
        ([-0.02, None, None], ""),
        (None, ""),
    ],
)
def test_a_difference_is_called_one_only_beside_its_interval(value: list[float] | None, word: str) -> None:
    shown = cells.difference(value)
    assert ("better" in shown, "worse" in shown) == (word == "better", word == "worse")


def test_figures_round_without_a_lost_sign() -> None:
    assert cells.figure([-0.00001, -0.02, 0.01], 100.0, 2, "+") == "0.00 <small>[-2.00, +1.00]</small>"
    assert cells.figure(None) == cells.NOTHING == cells.figure([None, None, None]) == cells.figure(float("nan"))
    assert cells.figure(0.5, 100, 1) == "50.0"


def test_a_curve_is_broken_where_nothing_is_known() -> None:
    shown = plots.lines([plots.Series("guided", [0, 1, 2, 3, 4], [1.0, 2.0, None, 1.0, float("nan")])], "s", "cm")
    assert shown.count("<polyline") == 1 and shown.count("<circle") == 1
    assert plots.lines([plots.Series("guided", [0, 1], [None, None])], "s", "cm") == ""
    assert "nan" not in shown


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (0.0, 1e-9), (-3.0, 7.0), (1e5, 1e6), (0.0, 0.30000000000000004)])
def test_ticks_span_what_is_shown(bounds: tuple[float, float]) -> None:
    marks = plots.ticks(*bounds)
    assert 2 <= len(marks) <= 9 and marks == sorted(set(marks))
    assert marks[0] <= bounds[0] and marks[-1] >= bounds[1] * (1 - 1e-9)


def test_only_markup_of_ours_is_markup() -> None:
    assert tag("p", "<b>", tag("i", "&"), cls='"') == '<p class="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert safe(Safe("<b>")) == "<b>" and safe("\x1b[0m") == "\N{REPLACEMENT CHARACTER}[0m"


def test_horizons_are_named_by_their_seconds(folder: Path) -> None:
    assert cells.horizons_of(measure(replay(folder))) == [(str(STEPS), "0.8 s ahead (8 steps)")]
