"""What is done over topics is compared with lock step on the same tasks, and with nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from thinkjepa_ros.demo.agreement import AgreementError, agreement, lines, lock_step, tables
from thinkjepa_ros.demo.control import demo_control
from thinkjepa_ros.evaluation.control.evaluate import JOURNAL
from thinkjepa_ros.evaluation.cue_reach.report import NOTHING


def folder(path: Path, won: dict[int, bool]) -> Path:
    """As `thinkjepa evaluate control` leaves it; its journal holds episodes of other weights and of other rows, too."""
    same = {"kind": "reach", "row": "planner: pictures", "settings": "now"}
    rows = [{**same, "seed": seed, "success": ok} for seed, ok in won.items()]
    rows += [{**same, "seed": 1, "success": False, "settings": "before"}]
    rows += [{**same, "seed": 1, "success": False, "row": "hold"}]
    (path / JOURNAL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = [{k: v for k, v in same.items()}, {**same, "row": "hold"}]
    (path / "metrics.json").write_text(json.dumps({"cells": cells}))
    return path


def result(seed: int, success: bool, kind: str = "reach") -> dict:
    return {"kind": kind, "seed": seed, "success": success}


def test_only_the_same_tasks_and_weights_are_compared(tmp_path: Path) -> None:
    before = lock_step(folder(tmp_path, {1: True, 2: True, 3: False, 9: True}))
    assert before["reach"] == {1: True, 2: True, 3: False, 9: True}
    results = [result(1, True), result(2, False), result(3, True), result(4, True), result(1, True, "pick_place_text")]
    compared = agreement(results, before)
    assert list(compared) == ["reach"]
    reach = compared["reach"]
    assert (reach.seeds, reach.both, reach.only_a, reach.only_b, reach.neither) == (3, 1, 1, 1, 0)
    words = lines(results, compared)
    assert words[0].startswith("reach: 3 of 4 done over topics, 75 [30, 95] %; in lock step (planner: pictures) 2 of ")
    assert "only one 1 : 1, difference +0" in words[0] and words[1] == (
        "pick_place_text: 1 of 1 done over topics, 100 [21, 100] %"
    )


def test_documents_get_what_was_counted_and_a_dash_where_nothing_was(tmp_path: Path) -> None:
    results = [{**result(k, k > 1), "done_after": 5 + k if k > 1 else None, "pace": 1.0 - k / 10} for k in range(1, 4)]
    results.append({**result(1, False, "pick_place_text"), "done_after": None, "pace": 0.5})
    compared = agreement(results, lock_step(folder(tmp_path, {1: True, 2: True})))
    summary = {"results": results, "lock_step": {kind: c._asdict() for kind, c in compared.items()}}
    reach, text = tables(json.loads(json.dumps(summary)))[0].rows
    assert reach[:4] == ["reach", "2 of 3: 67 [21, 94]", "2 of 2", "0 : 1"] and reach[5:] == ["7.5", "0.70"]
    assert text == ["pick_place_text", "0 of 1: 0 [0, 79]", NOTHING, NOTHING, NOTHING, NOTHING, "0.50"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"cells": 3}', '{"cells": [{"row": 1}]}', '{"cells": []}'])
def test_a_folder_that_is_none_is_refused_before_anything_starts(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(AgreementError, match=str(tmp_path)):
        lock_step(tmp_path)
    said = io.StringIO()
    status = demo_control(out=tmp_path / "out", beside=tmp_path, console=Console(file=said))
    assert status == 1 and str(tmp_path) in said.getvalue().replace("\n", "") and not (tmp_path / "out").exists()
