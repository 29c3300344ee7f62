"""The picture of a training's log, and trainings that cannot have one."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from thinkjepa_ros.train import figure
from thinkjepa_ros.train.run import Run, Stopped

LOG = "step,seconds,pose_cm,prediction_over_copy,grad\n50,1.0,13.6,85.2,5.7\n100,2.0,9.7,,3.5\n150,3.0,8.1,0.9\n"


def train(folder: Path, steps: int = 4, stop_at: int | None = None, quiet: bool = False) -> None:
    layer = torch.nn.Linear(2, 1)
    run = Run(folder, layer, steps, 1e-3, 0, {}, quiet=quiet)
    for step in run.steps("Training", every=2):
        run.note(loss=1.0 / (step + 1))
        run.update(layer(torch.ones(1, 2)).square().sum())
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)


def test_every_column_has_a_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.csv").write_text(LOG)
    path = figure.draw(tmp_path)
    with Image.open(path) as picture:
        assert path.name == "log.png" and picture.format == "PNG" and picture.width > picture.height > 400
    assert not list(tmp_path.glob(".*")), "nothing is left over"


def test_missing_cells_are_gaps(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    log = figure.read(tmp_path / "log.csv")
    assert log["step"] == [50, 100, 150] and log["pose_cm"] == [13.6, 9.7, 8.1]
    assert log["prediction_over_copy"][1] != log["prediction_over_copy"][1] and log["grad"][2] != log["grad"][2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not the log of a run"),
        ("step,seconds\n", "not the log of a run"),
        ("name,value\n1,2\n", "not the log of a run"),
        ("step,loss\n1,two\n", "not a number"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        figure.draw(tmp_path)


def test_a_run_is_drawn_when_it_ends_and_when_it_stops(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(tmp_path / "whole", quiet=True)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", stop_at=2, quiet=True)
    assert (tmp_path / "whole" / "log.png").exists() and (tmp_path / "cut" / "log.png").exists()


def test_a_run_that_stops_before_its_first_log_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=0, quiet=True)
    assert not (tmp_path / "log.png").exists()


def test_without_matplotlib_a_training_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(tmp_path)
    said = capsys.readouterr().out
    assert said.count("No figure of") == 1 and "pip install matplotlib" in said
    assert (tmp_path / "state.pt").exists() and not (tmp_path / "log.png").exists()
