"""The command line: it teaches, answers at once, and turns errors with words into a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.commands.options import MINI, shipped

runner = CliRunner()

COMMANDS = [
    ["demo"], ["demo-control"], ["import"], ["think"],
    ["data", "sim"], ["data", "bag"], ["data", "from-bag"], ["data", "sheet"],
    ["data", "rollouts"],
    ["train", "all"], ["train", "encoder"], ["train", "thinker"], ["train", "cache"], ["train", "forecast"],
    ["train", "subgoal"], ["train", "table"], ["train", "pretrain"], ["train", "untrained"], ["train", "fine-tune"],
    ["train", "world"], ["train", "policy"], ["train", "score"], ["train", "ahead"], ["evaluate", "world"],
    ["evaluate", "cue-reach"], ["evaluate", "encoder"], ["evaluate", "thinker"], ["evaluate", "forecast"],
    ["evaluate", "calibrate"], ["evaluate", "bag"], ["evaluate", "compare"], ["evaluate", "control"],
    ["bench", "transport"], ["bench", "graph"], ["bench", "jepa"], ["bench", "thinker"],
    ["bench", "plan"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_explains_itself(command: list[str]) -> None:
    import typer

    group = typer.main.get_command(cli.app)
    for name in command:
        group = group.commands[name]  # type: ignore[attr-defined]
    assert group.help and len(group.help) > 30
    for parameter in group.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{parameter.name} of {' '.join(command)} has no help"
    assert runner.invoke(cli.app, [*command, "--help"]).exit_code == 0


def test_no_command_is_missing_from_the_list_above() -> None:
    import typer

    found = []
    for name, group in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(group, "commands", None)
        found += [[name, one] for one in inner] if inner else [[name]]
    assert sorted(found) == sorted(COMMANDS)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinkjepa_ros.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_an_error_with_words_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = run("evaluate", "forecast", str(tmp_path / "no"), "--model", str(tmp_path / "nothing"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("thinkjepa: ") and "no such folder" in done.stderr
    assert "Traceback" in run("evaluate", "forecast", "x", "--model", "y", THINKJEPA_TRACEBACK="1").stderr


def test_the_shipped_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (shipped(MINI / "thinker") / "model.json").is_file()
    assert shipped(Path("mine")) == Path("mine")


def test_help_answers_without_loading_torch_or_ros() -> None:
    code = (
        "import sys; sys.argv = ['thinkjepa', '--help']\n"
        "from thinkjepa_ros import cli\n"
        "try: cli.app()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'rclpy', 'transformers', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_an_untrained_checkpoint_says_so(tmp_path: Path) -> None:
    from thinkjepa_ros.jepa.forecaster import Forecaster

    assert runner.invoke(cli.app, ["train", "untrained", str(tmp_path / "m")]).exit_code == 0
    f = Forecaster.load(tmp_path / "m")
    assert not f.trained and f.model_id.endswith("(untrained)") and f.horizon == 32
