"""The report of the cue-reach table: the tables say what the JSON says, and the pictures are pictures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from cue_reach_kit import make_prediction, make_truth
from PIL import Image

from thinkjepa_ros.evaluation.cue_reach import figures as pictures
from thinkjepa_ros.evaluation.cue_reach import report
from thinkjepa_ros.evaluation.cue_reach.claims import CLAIMS
from thinkjepa_ros.evaluation.cue_reach.rows import IMAGE, POSE
from thinkjepa_ros.evaluation.cue_reach.score import score

ERRORS = {
    "hold": 0.1,
    "unguided": 0.06,
    "guided": 0.03,
    "oracle intent": 0.025,
    "shuffled guidance": 0.061,
    "stale guidance, 1 s": 0.035,
    "stale guidance, 2.5 s": 0.045,
}


@pytest.fixture(scope="module")
def contents():
    """Every row, observed pose for two of them, three seeds of guided, and a row that leaves origins out."""
    truth = make_truth(episodes=15, steps=32, seed=11)
    rows = [make_prediction(truth, row, error, full=row in ("guided", "hold")) for row, error in ERRORS.items()]
    rows += [make_prediction(truth, "guided", 0.03 + 0.001 * seed, seed=seed) for seed in (1, 2)]
    rows += [make_prediction(truth, row, ERRORS[row], POSE, full=False) for row in ("unguided", "guided")]
    part = make_prediction(truth, "removed cue", 0.06, full=False)
    part.positions[::4] = np.nan
    return report.contents(score(truth, [*rows, part]), {"command": "thinkjepa evaluate cue-reach", "seeds": [0, 1, 2]})


def find(contents, row, inputs=IMAGE):
    return next(r for r in contents["rows"] if (r["row"], r["inputs"]) == (row, inputs))


def lines_of(markdown, title):
    """Rows of the table under a title, by their first cell."""
    part = markdown.split(f"**{title}")[1].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    return {line[0]: line[1:] for line in cells[2:]}, cells[0]


def test_the_file_holds_what_was_reported_in_strict_json(contents, tmp_path):
    path = tmp_path / "deep" / "cue_reach.json"
    report.write(contents, path)
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == contents
    assert len([line for line in text.splitlines() if line.startswith('  {"row"')]) == len(contents["rows"])
    assert report.markdown(json.loads(text)) == report.markdown(contents)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_main_table_is_first_and_says_what_the_json_says(contents):
    markdown = report.markdown(contents)
    title = "Told, cue gone, ready, reach not begun: the hand that moves (image only"
    assert markdown.startswith(f"**{title}")
    rows, header = lines_of(markdown, title)
    assert header == ["row", "ADE 8", "ADE 16", "ADE 32", "FDE 32", "within 5 cm, %", "minus unguided, cm"]
    assert list(rows)[:-1] == list(ERRORS)
    for name in ERRORS:
        places = find(contents, name)["cells"]["ready"]["moving"]
        values = [100 * x for k in ("8", "16", "32") for x in places[k]["ade"][:3]]
        values += [100 * x for metric in ("fde", "within_5") for x in places["32"][metric][:3]]
        values += [100 * x for x in places["32"].get("ade_minus_unguided", [])]
        shown = [float(x) for cell in rows[name] for x in re.findall(r"[-+]?\d+\.\d+", cell)]
        np.testing.assert_allclose(shown, values, atol=0.051)
    assert rows["unguided"][-1] == report.NOTHING
    answered = find(contents, "removed cue")["answered"]["ready"]
    assert list(rows)[-1] == f"removed cue (at {answered} of the origins)"


def test_a_changed_number_changes_the_text(contents):
    other = json.loads(json.dumps(contents))
    find(other, "guided")["cells"]["ready"]["moving"]["32"]["ade"][0] += 0.01
    assert report.markdown(other) != report.markdown(contents)


def test_latents_and_sigma_stand_only_where_a_row_has_them(contents):
    rows, _ = lines_of(report.markdown(contents), "Accuracy, velocities, latents and sigma over 32 steps (image only")
    assert report.NOTHING not in rows["guided"] and rows["unguided"][-4:] == [report.NOTHING] * 4
    assert report.NOTHING not in rows["unguided"][:3]


def test_inputs_phases_verdicts_and_seeds_have_their_tables(contents):
    found = {table.key: table for table in report.tables(contents)}
    for key in ("ready, resting", "ready, no cue, moving", "before, moving", "reach, moving", "gap"):
        assert f"{IMAGE}: {key}" in found, key
    assert [row[0] for row in found[f"{POSE}: ready, moving"].rows] == ["unguided", "guided"]
    assert f"{POSE}: gap" not in found  # no oracle
    seeds = found[f"{IMAGE}: seeds"].rows
    spread = find(contents, "guided")["cells"]["ready"]["moving"]["32"]["ade"][3:]
    assert seeds[0][:3] == ["guided", "0, 1, 2", " to ".join(f"{100 * x:.2f}" for x in spread)] and len(seeds) == 1
    verdicts = found["verdicts"].rows
    assert len(verdicts) == 2 * len(CLAIMS) and {row[1] for row in verdicts} == {IMAGE, POSE}
    assert [row[2] for row in verdicts[:3]] == ["yes", "yes", "yes"] and verdicts[5][2] == "not measured"
    for table in found.values():
        assert all(len(row) == len(table.header) for row in table.rows) and not any("nan" in str(r) for r in table.rows)


def test_every_markdown_table_has_as_many_cells_in_each_line(contents):
    for table in report.tables(contents):
        assert len({line.count("|") for line in table.markdown().splitlines()}) == 1, table.key


def test_the_console_shows_every_table(contents, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    report.show(contents)
    printed = capsys.readouterr().out
    for name in ERRORS:
        assert name in printed
    assert "What the protocol claims" in printed and "oracle intent" in printed


def test_pictures_are_real_and_readable_on_a_phone(contents, tmp_path):
    made = pictures.draw(json.loads(json.dumps(contents)), tmp_path / "images")
    names = ["bars_image_only", "steps_image_only", "stale_image_only", "bars_observed_pose", "steps_observed_pose"]
    assert [path.stem for path in made] == names
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(path.name for path in made)
    for path in made:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and 900 <= image.width <= 1200 and 300 <= image.height <= 1600
            assert np.asarray(image.convert("L")).std() > 10, f"{path.name} is nearly empty"
        assert path.stat().st_size < 200_000


def test_nothing_measured_is_no_table_and_no_picture(tmp_path):
    truth = make_truth(steps=32)
    truth.future[:] = np.nan
    empty = report.contents(score(truth, [make_prediction(truth, full=False)]))
    assert [table.key for table in report.tables(empty)] == ["verdicts"]
    assert pictures.draw(empty, tmp_path) == []
