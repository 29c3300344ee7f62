"""What the documents say is what was measured, and what they point to exists."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from thinkjepa_ros import checkpoints
from thinkjepa_ros.jepa import model

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "models" / "mini"
MARK = re.compile(r"<!-- table ([\w/]+): (.+?) -->")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")]


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((MINI / "evaluation.json").read_text())


def test_the_tables_in_the_documents_are_those_of_the_evaluations() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    marked = {document: set(MARK.findall(document.read_text())) for document in DOCUMENTS}
    assert {("evaluation", "joints now"), ("evaluation", "moving hand, 32 steps")} <= marked[ROOT / "README.md"]
    assert {("evaluation", "all"), ("evaluation", "sigma")} <= marked[MINI / "README.md"]
    results = marked[ROOT / "docs" / "cue_reach_results.md"]
    assert {("cue_reach", "verdicts"), ("cue_reach", "all"), ("cue_reach_live", "all"), ("encoders", "all")} <= results
    assert {("thinker/evaluation", "answers"), ("thinker/evaluation", "probe")} <= marked[
        MINI / "thinker" / "README.md"
    ]


def test_a_table_that_was_edited_by_hand_is_noticed() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_tables.py"))
    text = (ROOT / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| hold |"))
    assert script["filled"](text) == text
    assert script["filled"](text.replace(row, row.replace("| hold | ", "| hold | 9"))) == text
    with pytest.raises(KeyError):
        script["filled"]("<!-- table evaluation: no such table -->\n<!-- end -->")


def test_the_figures_belong_to_the_weights_that_ship(figures: dict) -> None:
    manifest = checkpoints.read_manifest(MINI, model.KIND)
    assert figures["weights_sha256"] == manifest.sha256[checkpoints.WEIGHTS]
    assert manifest.trained and manifest.domain == "simulation"


@pytest.mark.parametrize("name", ["cue_reach", "cue_reach_live"])
def test_the_benchmark_was_run_with_the_weights_that_ship(name: str) -> None:
    found = json.loads((MINI / f"{name}.json").read_text())
    about = found.get("about", found)
    assert about["weights_sha256"] == checkpoints.read_manifest(MINI, model.KIND).sha256[checkpoints.WEIGHTS]
    assert about["thinker_sha256"] == checkpoints.sha256_of(MINI / "thinker" / checkpoints.WEIGHTS)
    assert "thinkjepa evaluate cue-reach data/test" in about["command"]
    assert found["episodes"] >= (500 if name == "cue_reach" else 60)


def test_the_shipped_model_does_what_is_claimed_of_it(figures: dict) -> None:
    """Every claim is an interval that excludes zero, on episodes that nothing was chosen on."""
    present = figures["present_error_m"]
    for which in ("visible", "all"):
        assert present[f"model minus a third of mean pose, {which} joints"]["high"] < 0
        for control in ("black frames", "frames of another episode"):
            assert present[f"model, {control} minus model, {which} joints"]["low"] > 0
    for title in ("all origins, 32 steps", "moving hand, 32 steps"):
        rows = {row["method"]: row for row in figures["forecasts"][title]}
        for method, row in rows.items():
            if method.startswith(("hold", "constant velocity", "damped velocity")) or "frames" in method:
                assert row["minus_model_m"]["low"] > 0, (title, method)


def test_the_shipped_sigma_is_a_standard_deviation(figures: dict) -> None:
    """Calibrated on validation episodes, it holds at every step on those of the test."""
    manifest = checkpoints.read_manifest(MINI, model.KIND)
    assert manifest.training["sigma_calibration"]["seeds"][1] < 2_000_000 and "sigma_scale" in manifest.config
    lines = [line for line in figures["sigma"] if line["joints"] == "all"]
    assert {line["pose"] for line in lines} == {"image only", "anchored"}
    for line in lines:
        assert 0.9 < line["rms"] < 1.1, line
        assert line["within_1_sigma"]["mean"] > 0.68 and line["within_2_sigma"]["mean"] > 0.92, line


@pytest.fixture(scope="module")
def thinker_figures() -> dict:
    return json.loads((MINI / "thinker" / "evaluation.json").read_text())


def test_the_figures_of_the_thinker_belong_to_the_weights_that_ship(thinker_figures: dict) -> None:
    manifest = checkpoints.read_manifest(MINI / "thinker", "thinker")
    assert manifest.trained and thinker_figures["model"].endswith(manifest.sha256[checkpoints.WEIGHTS][:8])


def test_the_shipped_thinker_does_what_is_claimed_of_it(thinker_figures: dict) -> None:
    """At least 95 % right, with the whole interval, on episodes that nothing was chosen on."""
    answers = {row["kind"]: row["right"] for row in thinker_figures["answers"]}
    for kind in ("all windows", "told by the lamp"):
        assert answers[kind]["low"] >= 0.95, kind
    # without a single miss in fewer than 60 episodes the rule of three cannot say 95 %
    assert answers["with distractor lamps"]["mean"] >= 0.99 and answers["with distractor lamps"]["low"] >= 0.93
    assert min(answers[kind]["mean"] for kind in ("told by the instruction", "told by nothing")) >= 0.95
    probe = thinker_figures["probe"]
    for pool in ("prompt, all", "generated"):
        assert probe["trained"][pool][-1]["low"] > max(cell["high"] for cell in probe["random"][pool]), pool


def test_the_shipped_predictor_was_trained_with_the_shipped_thinker() -> None:
    thinker = checkpoints.read_manifest(MINI / "thinker", "thinker")
    predictor = checkpoints.read_manifest(MINI, model.KIND)
    assert predictor.training["thinker"] == f"{thinker.model_id}-{thinker.sha256[checkpoints.WEIGHTS][:8]}"


def test_registry_and_checkpoints_agree() -> None:
    import yaml

    for entry in yaml.safe_load((ROOT / "models" / "registry.yaml").read_text())["models"]:
        weights = ROOT / "models" / entry["path"] / checkpoints.WEIGHTS
        assert checkpoints.sha256_of(weights) == entry["sha256"] and weights.stat().st_size == entry["size_bytes"]
        manifest = json.loads((weights.parent / checkpoints.MANIFEST).read_text())
        assert manifest["trained"] is entry["trained"] and manifest["domain"] in entry["domain"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text()
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (document.parent / target).exists(), target


def test_commands_in_the_readme_exist() -> None:
    import typer

    from thinkjepa_ros.cli import app

    for words in re.findall(r"^ +thinkjepa ([a-z ]+?)(?= [^a-z]|  |$)", (ROOT / "README.md").read_text(), re.M):
        command = typer.main.get_command(app)
        for word in words.split():
            inner = getattr(command, "commands", None)
            if inner is None:
                break  # an argument
            assert word in inner, words
            command = inner[word]
