"""`thinkjepa bench plan`: whole plans of both kinds, at the budgets that the rows are named after."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.benchmarks import plan, roofline
from thinkjepa_ros.benchmarks.timing import measure

CPU, PEAK = torch.device("cpu"), roofline.Peak(1e9, 1e9)
SMALL = plan.Shape(latent=24, side=4, width=24, depth=2, heads=2, context=2)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.ROWS, "mini", ((20, 1, 2), (24, 2, 3)))
    monkeypatch.setitem(plan.JUDGED, "mini", (24, 2, 3))
    monkeypatch.setitem(plan.SHAPES, "mini", SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_whole_plans_at_the_budget_of_their_name(dtype: torch.dtype) -> None:
    group = plan.compare(SMALL, "mini", CPU, dtype, PEAK, 0.02)
    published, patches, cem, short, judged, every = group.variants
    assert (
        published.name == "patch tokens, CEM 20x10x1" and "800x10x1" in published.note and "50 times" in published.note
    )
    assert judged.name == "ours 24x2x3" and every.name.startswith(judged.name) and short.name == "ours 20x1x2"
    measure(group, 0.001)
    for variant in group.variants:
        assert variant.times and math.isfinite(variant.scale)
    # 25 rows of 3 actions in 2 rounds; of patches each action brings its 16 patches, an action and a state
    tokens = {patches.name: 25 * 2 * 3 * 18, judged.name: 25 * 2 * (3 + 16), every.name: 25 * 2 * (3 + 48)}
    linear = 2 * 2 * 12 * 24**2  # two blocks, per token, without attention
    for name, count in tokens.items():
        assert 0.6 < group[name].work.flops / (count * linear) < 2.2, name
    assert cem.work.flops == judged.work.flops < min(every.work.flops, patches.work.flops)
    assert group.targets[0].value(group) == group.ratio(published.name, judged.name)


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "plan.json"
    arguments = ["bench", "plan", "--seconds", "0.01", "--share", "0.02", "--dtype", "float32", "--json", str(out)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "untrained" in done.output and "evaluate control" in done.output and "800x10x1" in done.output
    figures = json.loads(out.read_text())
    assert figures["complete"] and [v["name"] for v in figures["groups"][0]["variants"]][-1].endswith("steps scored")


@pytest.mark.parametrize(("option", "value", "words"), [
    ("--size", "huge", "mini, full"), ("--dtype", "half", "both, float32, bfloat16"), ("--share", "2", "0.02 … 1"),
])  # fmt: skip
def test_options_that_make_no_sense_are_named(option: str, value: str, words: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "plan", option, value])
    assert done.exit_code != 0 and words in str(done.exception)
