"""The whole way on the recording of a real robot: evaluate, look at the report and the film, compare."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from browser_kit import Browser
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.evaluation.bag import page

SHOTS = Path(__file__).parents[1] / "out" / "test_artefacts"
#: The points of /hand_keypoints by the names of the model's joints.
NAMES = ",".join(
    f"{side}_{part}" for side in ("left", "right")
    for part in ("wrist", "thumb_tip", "index_tip", "middle_tip", "ring_tip", "pinky_tip")
)  # fmt: skip


def evaluated(bag: Path, out: Path, *options: str) -> dict:
    command = ["evaluate", "bag", str(bag), "--truth", "/hand_keypoints", "--joints", NAMES, "--no-thinker"]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A report of g1_pick_10, and the figures of every second forecast."""
    out = tmp_path_factory.mktemp("real")
    evaluated(shared / "data" / "g1_pick_10", out / "all", "--stride", "0.5")
    evaluated(shared / "data" / "g1_pick_10", out / "half", "--stride", "1.0", "--no-report", "--no-video")
    return out / "all", out / "half"


def test_a_real_recording_has_a_report_and_a_film(folders: tuple[Path, Path]) -> None:
    out = folders[0]
    text = (out / "report.html").read_text()
    assert text.count("data:image/jpeg") >= page.STRIP and len(text) < 1_500_000
    assert "g1_pick_10" in text and "trained on simulation" in text and "head_camera" in text
    film = cv2.VideoCapture(str(out / "forecast.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(2.0, abs=0.1)
    assert film.read()[0]


def test_an_evaluation_is_no_better_than_itself(folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["evaluate", "compare", *map(str, folders), "--out", str(tmp_path / "c.html")])
    assert done.exit_code == 0, done.output
    assert "No difference between B (unguided) and A (unguided) can be shown: ADE +0.00 cm" in done.output
    figures = json.loads((tmp_path / "c.json").read_text())
    half = figures["folders"][1]["metrics"]["counts"]["forecasts"]
    assert 0 < figures["against_first"][0]["pairs"] <= half


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_of_a_real_recording_fits_the_window(folders: tuple[Path, Path], tmp_path: Path, width: int) -> None:
    browser = Browser(tmp_path)
    try:
        browser.open(folders[0] / "report.html", width)
        browser.shoot(SHOTS / f"real_{width}.png")
        assert browser.ask("document.documentElement.scrollWidth") <= width
    finally:
        browser.close()
