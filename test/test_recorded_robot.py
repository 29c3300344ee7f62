"""Record, convert, fine-tune, evaluate, with the commands of docs/recordings.md, on recordings of a real robot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinkjepa_ros import cli

PARTS = ("base", "thumb", "index", "middle", "ring", "little")
JOINTS = ",".join(f"{side}_{part}" for side in ("left", "right") for part in PARTS)
TRUTH = ("--truth", "/hand_keypoints", "--joints", JOINTS)
LEARN, HELD = ("g1_pick_10", "g1_pick_25", "g1_pick_40", "g1_pick_55"), "g1_pick_70"


def run(*command: str | Path) -> str:
    done = CliRunner().invoke(cli.app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_few_recordings_make_a_model_that_beats_what_sees_the_same_on_another(shared: Path, tmp_path: Path) -> None:
    """Real images of a Unitree G1, unlike any the mini has seen: four recordings to learn from, a fifth to score on,
    beside ridge that was fitted on the same four.
    """
    bags = [shared / "data" / name for name in LEARN]
    episodes, mine = tmp_path / "episodes", tmp_path / "mine"
    run("data", "from-bag", *bags, "--out", episodes, *TRUTH, "--seconds", "60", "--domain", "recordings: g1_pick")
    run("train", "fine-tune", episodes, "--out", mine, "--run", tmp_path / "run", "--held-out", "0.25")
    held = ("evaluate", "bag", shared / "data" / HELD, *TRUTH, "--model", mine, "--no-thinker", "--ridge", episodes)
    found = {}
    for inputs, options in (("image only", ()), ("observed pose", ("--anchor",))):
        out = tmp_path / inputs.replace(" ", "_")
        print(run(*held, *options, "--stride", "0.3", "--no-video", "--out", out))
        figures = json.loads((out / "metrics.json").read_text())
        assert figures["about"]["domain"] == "recordings: g1_pick" and figures["about"]["trained"]
        assert figures["rows"] == ["hold", "constant velocity", "damped velocity", "ridge on past joints", "unguided"]
        assert (out / "report.html").stat().st_size > 100_000
        found[inputs] = {row: cell["ade"][0] for row, cell in figures["tables"]["moving"]["32"].items()}
    ours = found["image only"].pop("unguided")
    assert ours < 0.9 * min(found["image only"].values()), "it beats all that see images only, ridge among them"
    ours = found["observed pose"].pop("unguided")
    assert ours < 0.9 * min(value for row, value in found["observed pose"].items() if not row.startswith("ridge"))
