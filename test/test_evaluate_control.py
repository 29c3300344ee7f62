"""The control table counts what happened, again and again the same, and says nothing of what it did not run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import control_table_kit as kit
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from thinkjepa_ros import checkpoints, cli
from thinkjepa_ros.data.sim import tasks
from thinkjepa_ros.data.sim.tasks import draw_task
from thinkjepa_ros.evaluation.control import claims, lockstep, report, rows, told
from thinkjepa_ros.evaluation.control.evaluate import JOURNAL, Plan, evaluate, settings_of, usable
from thinkjepa_ros.evaluation.control.journal import Journal, Key, key_of
from thinkjepa_ros.evaluation.control.models import Models, Sources
from thinkjepa_ros.evaluation.control.planned import Setting
from thinkjepa_ros.evaluation.control.statistics import compare, mcnemar, wilson
from thinkjepa_ros.evaluation.control.timing import measure
from thinkjepa_ros.thinker.qwen import Thinker

ROOT = Path(__file__).resolve().parents[1]
SEED = 1_000_000
ROWS = ("hold", "expert", "planner: pictures", "planner: shuffled pictures")
QUICK = Plan(kinds=("reach",), rows=ROWS, seeds=2, workers=1, runs=1, horizon=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an imagination and a policy."""
    folder = tmp_path_factory.mktemp("models")
    kit.world(folder / "world")
    kit.proposer(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def sources(made: Path) -> Sources:
    return Sources(imagination=made / "world", policy=made / "policy", untrained=True)


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """A reach may take 8 actions here; the expert needs half of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.MOST_ACTIONS, "reach", 8)
        yield


@pytest.fixture(scope="module")
def first(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A small table: its folder and its figures."""
    out = tmp_path_factory.mktemp("table")
    return out, evaluate(sources, out, QUICK, ["thinkjepa"], Console(quiet=True))


def of(figures: dict, row: str, kind: str = "reach") -> dict:
    return next(cell for cell in figures["cells"] if (cell["row"], cell["kind"]) == (row, kind))


# --- statistics, against numbers worked out by hand


def test_wilson_intervals_are_those_of_the_formula() -> None:
    for successes, count, low, high in ((8, 10, 0.49016, 0.94331), (0, 10, 0.0, 0.27753), (100, 100, 0.96301, 1.0)):
        found = wilson(successes, count)
        assert found.mean == successes / count
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))
    for count in range(1, 200):  # figures draw bars from the share to its bounds
        assert wilson(count, count)[2] == 1 == wilson(count, count)[0] and wilson(0, count)[1] == 0
    assert np.isnan(wilson(0, 0)).all()
    with pytest.raises(ValueError, match="make no sense"):
        wilson(3, 2)


def test_mcnemar_counts_only_the_seeds_on_which_one_of_two_succeeds() -> None:
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0


def test_rows_are_compared_on_the_seeds_that_both_have() -> None:
    a = {1: True, 2: True, 3: False, 4: True, 5: True}
    b = {1: True, 2: False, 3: False, 4: False, 9: True}
    found = compare(a, b)
    assert (found.seeds, found.both, found.only_a, found.only_b, found.neither) == (4, 1, 2, 0, 1)
    assert found.difference.mean == 0.5 and found.p == 0.5
    assert found.difference.low <= 0.5 <= found.difference.high


# --- the bench itself


def test_hold_never_succeeds_and_the_expert_does(first: tuple[Path, dict]) -> None:
    _, figures = first
    assert of(figures, "hold")["successes"] == 0 and of(figures, "hold")["distance_m"][0] > 0.1
    assert of(figures, "expert")["successes"] == 2 and of(figures, "expert")["actions"] < 12
    sane = [verdict for verdict in figures["verdicts"][:2]]
    assert [verdict["held"] for verdict in sane] == [True, True]


def test_the_expert_takes_the_cube_by_contact_and_what_happens_to_it_is_told() -> None:
    expert, hold = rows.choose(rows.table(), ["hold", "expert"])[::-1]
    key = Key("expert", "pick_place_text", SEED, "x")
    line, film = lockstep.run(expert, key, Models(Sources()), Setting())
    assert line["success"] and line["touched"] and line["lifted"] and not line["misplaced"]
    assert line["distance_m"] < 0.05 and len(film.images) == line["actions"] + 1
    assert hold.needs == ()


def test_a_table_says_what_is_untrained_and_judges_nothing_by_it(first: tuple[Path, dict]) -> None:
    out, figures = first
    assert of(figures, "planner: pictures")["untrained"] and not of(figures, "hold")["untrained"]
    words = (out / "table.md").read_text()
    assert "| planner: pictures (untrained) |" in words and "| hold |" in words
    assert json.loads((out / "metrics.json").read_text()) == figures
    verdict = next(v for v in figures["verdicts"] if v["claim"].startswith("reach: our best"))
    assert verdict["held"] is None
    assert (out / "success_reach.png").stat().st_size > 5000
    assert [t["row"] for t in figures["times"]] == ["planner: pictures", "planner: shuffled pictures"]
    assert all(t["imagined"] == 3 * 65 and 0 < t["wall_ms"][0] <= t["wall_ms"][1] for t in figures["times"])


def test_failures_leave_a_film(first: tuple[Path, dict]) -> None:
    out, figures = first
    films = sorted((out / "films" / "reach").glob("*.png"))
    failed = sum(cell["seeds"] - cell["successes"] for cell in figures["cells"])
    assert len(films) == failed >= 2 and films[0].stat().st_size > 10_000


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_table(
    first: tuple[Path, dict], sources: Sources, tmp_path: Path
) -> None:
    out, figures = first
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    # what a kill leaves: whole lines, and one that was being written
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:5]) + lines[5][:40])
    again = evaluate(sources, tmp_path, replace(QUICK, runs=0), ["thinkjepa"], Console(quiet=True))
    whole = {key_of(line): line for line in Journal(tmp_path / JOURNAL).lines.values()}
    before = Journal(out / JOURNAL).lines
    assert whole.keys() == before.keys()
    for key, line in whole.items():
        assert {k: v for k, v in line.items() if not k.endswith("_ms")} == {
            k: v for k, v in before[key].items() if not k.endswith("_ms")
        }
    for cell, old in zip(again["cells"], figures["cells"], strict=True):
        assert {k: v for k, v in cell.items() if not k.endswith("_ms")} == {
            k: v for k, v in old.items() if not k.endswith("_ms")
        }
    # and a third time there is nothing left to do
    size = (tmp_path / JOURNAL).stat().st_size
    evaluate(sources, tmp_path, replace(QUICK, runs=0), ["thinkjepa"], Console(quiet=True))
    assert (tmp_path / JOURNAL).stat().st_size == size


def test_episodes_of_other_weights_or_settings_do_not_count(sources: Sources, tmp_path: Path) -> None:
    other = replace(sources, imagination=kit.world(tmp_path / "other", seed=1))
    planner, hold = (rows.choose(rows.table(), [name])[0] for name in ("planner: pictures", "hold"))
    same = settings_of(planner, sources.known(), Setting())
    assert same == settings_of(planner, sources.known(), Setting())
    assert same != settings_of(planner, other.known(), Setting())
    assert same != settings_of(planner, sources.known(), Setting(energy="l2"))
    assert same != settings_of(replace(planner, samples=32), sources.known(), Setting())
    assert settings_of(hold, sources.known(), Setting()) == settings_of(hold, other.known(), Setting(energy="l2"))


# --- rows with a policy


def test_a_policy_proposes_alone_and_to_the_planner_at_equal_compute(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = SEED + 1  # the next task asks for another tray
    told.pictures("pick_place_text", seed)  # of the whole run
    monkeypatch.setitem(tasks.MOST_ACTIONS, "pick_place_text", 3)
    models, found = Models(sources), {}
    for name in ("policy: words", "planner: pictures", "policy + planner: pictures", "policy: shuffled words"):
        row = rows.choose(rows.table(), [name])[0]
        found[name], _ = lockstep.run(row, Key(name, "pick_place_text", seed, "x"), models, Setting())
    assert found["policy: words"]["sources"] == {"policy": 3} and found["policy: words"]["imagined"] == 0
    assert found["policy + planner: pictures"]["imagined"] == found["planner: pictures"]["imagined"] == 3 * 65
    digests = {name: line["digest"] for name, line in found.items()}
    both = digests.pop("policy + planner: pictures")
    assert len(set(digests.values())) == 3 and both != digests["planner: pictures"]
    # what untrained weights imagine is not better by enough to depart from what the policy would do
    assert found["policy + planner: pictures"]["sources"] == {"policy": 3} and both == digests["policy: words"]


def test_a_plan_s_time_is_that_of_moments_at_which_it_was_thought(sources: Sources) -> None:
    names = ["policy: words", "planner: pictures", "policy + planner: pictures"]
    times = measure(rows.choose(rows.table(horizon=2), names), ("pick_place_text",), Models(sources), Setting(), 1)
    moments = {one.row: (one.moments, one.imagined) for one in times}
    assert moments == {names[0]: (4, 0), names[1]: (8, 195), names[2]: (4, 195)}  # two actions of a chunk are done


def test_a_thinker_is_heard_an_action_later_and_never_sees_what_comes(sources: Sources) -> None:
    thinker = Thinker.load(ROOT / "models" / "mini" / "thinker")
    images = [np.full((64, 64, 3), 20 * k, np.uint8) for k in range(5)]
    mind = told.Mind(thinker, "put the red cube in the left tray")
    known = []
    for step, image in enumerate(images):
        known.append(mind.known)
        mind.show(step, image)
    assert known[:4] == [None] * 4 and known[4] is not None
    assert known[4].stamp_ns <= told.stamp_of(3) and known[4].instruction == "put the red cube in the left tray"


# --- what rows are told


def test_pictures_of_pick_and_place_are_those_of_the_expert_in_order() -> None:
    found = told.pictures("pick_place_text", SEED)
    assert len(found) >= 3 and found[-1].until == np.inf
    ends = [picture.until for picture in found]
    assert ends == sorted(ends) and ends[0] < draw_task("pick_place_text", SEED).most_actions
    assert told.shown(found, 0) is found[0].image and told.shown(found, 59) is found[-1].image
    assert told.shown((), 0) is None


def test_a_shuffled_row_is_told_what_belongs_to_the_next_task() -> None:
    row = rows.choose(rows.table(), ["planner: shuffled pictures"])[0]
    task = draw_task("reach", SEED)
    with lockstep.Workcell(task) as cell, lockstep.sights(row, Models(Sources()), task, cell) as sight:
        seen = sight.now()
    assert seen.picture is told.pictures("reach", SEED + 1)[0].image
    assert seen.state == pytest.approx([*task.start, 0], abs=5e-3)


def test_rows_and_budgets_are_chosen_by_name() -> None:
    table = rows.table(horizon=6)
    chosen = rows.choose(table, ["planner: p*", "hold"])
    assert [row.name for row in chosen] == ["hold", "planner: pictures"] and chosen[1].horizon == 6
    more = rows.with_budgets(chosen, rows.budgets_of("16x2, 64x3"))
    assert [(row.name, row.samples, row.rounds) for row in more][1:] == [
        ("planner: pictures", 64, 3), ("planner: pictures @16x2", 16, 2),
    ]  # fmt: skip
    assert {row.family for row in more} == {"hold", "planner: pictures"}
    for word in ("64", "4x1", "axb", "16x0"):
        with pytest.raises(ValueError, match="is no budget"):
            rows.budgets_of(word)
    with pytest.raises(ValueError, match="no row is called 'plan'"):
        rows.choose(table, ["plan"])


def test_all_rows_of_the_table_are_named_once_and_compared_by_their_names() -> None:
    names = [row.name for row in rows.table()]
    assert len(set(names)) == len(names)
    assert {name for pair in claims.PAIRS for name in pair} <= set(names)
    assert {name for _, *three in claims.TOGETHER for name in three} <= set(names)
    kinds = {row.name: row.kinds for row in rows.table()}
    assert all(kind in kinds[name] for kind, *three in claims.TOGETHER for name in three)
    assert all(kind in kinds[name] for found in claims.EVERYWHERE.values() for kind, name in found.items())


def test_claims_are_judged_on_the_figures() -> None:
    def cell(row: str, kind: str, share: float) -> dict:
        interval = [share, share - 0.05, min(1.0, share + 0.05)]
        return {"row": row, "kind": kind, "success": interval, "untrained": False}

    whole = {
        "cells": [
            cell("hold", "reach", 0.0), cell("expert", "reach", 1.0), cell("planner: pictures", "reach", 0.97),
            cell("planner: pictures @16x2", "reach", 0.96), cell("planner: pictures @8x1", "reach", 0.90),
            cell("cem, patch tokens: pictures", "reach", 0.95), cell("planner: pictures", "pick_place_text", 0.9),
            cell("policy: words", "pick_place_text", 0.6),
        ],
        "pairs": [],
        "times": [
            {"kind": "reach", "row": name, "wall_ms": [ms, ms]}
            for name, ms in (
                ("planner: pictures", 30.0), ("planner: pictures @16x2", 10.0), ("planner: pictures @8x1", 5.0),
                ("cem, patch tokens: pictures", 120.0),
            )
        ],
    }  # fmt: skip
    found = {verdict.claim: verdict for verdict in claims.verdicts(whole)}
    assert found["reach: our best row reaches 95 %"].held
    assert found["pick_place_text: our best row reaches 70 %"].held is False  # pictures of an expert do not count
    assert found["pick_place_lamp: our best row reaches 70 %"].held is None
    everything = [v for v in found.values() if v.claim.startswith("all kinds")]
    assert len(everything) == 1 and everything[0].held is None
    faster = next(verdict for claim, verdict in found.items() if "at equal success" in claim)
    assert faster.held and faster.measured.startswith("12.0 times")  # 8x1 is quicker still, and worse
    whole["cells"].append(cell("cem, patch tokens: pictures @8x1", "reach", 0.94))
    whole["times"].append({"kind": "reach", "row": "cem, patch tokens: pictures @8x1", "wall_ms": [40.0, 40.0]})
    faster = next(v for v in claims.verdicts(whole) if "at equal success" in v.claim)
    assert not faster.held and faster.measured.startswith("4.0 times") and "; 12.0 times that of" in faster.measured
    whole["cells"][5]["success"][0] = 1.0
    assert not next(v for v in claims.verdicts(whole) if "at equal success" in v.claim).held


def test_policy_and_planner_together_are_judged_on_all_kinds_of_tasks() -> None:
    def lines(row: str, kind: str, wins: int) -> list[dict]:
        same = {"settings": "x", "actions": 9, "distance_m": 0.1, "nearest_m": 0.1, "imagined": 0, "wall_ms": 1.0}
        return [
            {**same, "row": row, "kind": kind, "seed": SEED + k, "success": k < wins, "cpu_ms": 1.0, "sources": {}}
            for k in range(20)
        ]

    wins = {"policy + planner": (20, 19, 18), "policy": (0, 19, 18), "planner": (20, 0, 0)}
    found = [
        line
        for who, shares in wins.items()
        for (kind, row), count in zip(claims.EVERYWHERE[who].items(), shares, strict=True)
        for line in lines(row, kind, count)
    ]
    about = {"use": "val"}
    whole = report.contents(rows.table(), tasks.KINDS, found, [], about)
    pairs = {p["b"]: p for p in whole["pairs"] if p["kind"] == claims.EVERYTHING}
    assert pairs["policy"]["only_a"] == 20 and pairs["planner"]["only_a"] == 37 and pairs["policy"]["seeds"] == 60
    verdict = next(v for v in whole["verdicts"] if v["claim"].startswith("all kinds"))
    assert verdict["held"] and verdict["measured"].startswith("+33 points over policy")
    alone = report.contents(rows.table(), ("reach",), [x for x in found if x["kind"] == "reach"], [], about)
    assert not any(p["kind"] == claims.EVERYTHING for p in alone["pairs"])  # one kind is not all


# --- refusals


def test_untrained_weights_are_refused_unless_that_is_said(made: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.app, ["evaluate", "control", "--imagination", str(made / "world"), "--out", str(tmp_path)]
    )
    assert isinstance(done.exception, checkpoints.CheckpointError)
    assert "say that they are untrained" in str(done.exception) and "--untrained" in str(done.exception)
    assert not (tmp_path / JOURNAL).exists()


def test_rows_whose_weights_are_not_there_are_left_out_with_a_sentence() -> None:
    kept, sentences = usable(rows.table(), {}, ["reach"])
    assert [row.name for row in kept] == ["hold", "random", "expert"]
    assert 'row "planner: pictures" is left out: it needs --imagination' in sentences
    assert (
        'row "policy + planner: thinker" is left out: it needs --imagination and --policy and --thinker and --ahead'
        in sentences
    )


def test_what_makes_no_sense_is_refused_in_words(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind 'grasp' is none of reach"):
        Plan(kinds=("grasp",))
    with pytest.raises(ValueError, match="must be val"):
        Plan(use="train")
    with pytest.raises(checkpoints.CheckpointError, match="holds a 'policy', a 'imagination' is needed"):
        Sources(imagination=made / "policy").known()
    with pytest.raises(ValueError, match="there is no row to run"):
        evaluate(Sources(), tmp_path, replace(QUICK, rows=("planner: *",)), console=Console(quiet=True))
    done = CliRunner().invoke(cli.app, ["evaluate", "control", "--energy", "l7"])
    assert isinstance(done.exception, ValueError) and "there is no energy 'l7'" in str(done.exception)


def test_markdown_has_a_line_per_row_and_says_where_it_comes_from(first: tuple[Path, dict]) -> None:
    figures = first[1]
    table = report.tables(figures)[0]
    assert [row[0].removesuffix(" (untrained)") for row in table.rows] == list(ROWS)
    assert table.rows[0][2] == "0 [0, 66]" and table.rows[1][2] == "100 [34, 100]"
    assert "- imagination: tiny, " in report.markdown(figures)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_with_several_processes(made: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "thinkjepa_ros.cli", "evaluate", "control", "--imagination", str(made / "world"),
        "--untrained", "--kinds", "reach", "--rows", "hold", "--rows", "planner: pictures", "--seeds", "4", "--runs",
        "0", "--out", str(tmp_path / "a"), "--workers", "2",
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    journal = tmp_path / "a" / JOURNAL
    until = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = journal.read_bytes().count(b"\n")
    assert 3 <= before < 8
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=280)
    straight = [*command]
    straight[straight.index(str(tmp_path / "a"))] = str(tmp_path / "b")
    straight[-1] = "1"
    subprocess.run(straight, check=True, stdout=subprocess.DEVNULL, timeout=280)
    a, b = (Journal(tmp_path / name / JOURNAL).lines for name in "ab")
    assert {k: v["digest"] for k, v in a.items()} == {k: v["digest"] for k, v in b.items()} and len(a) == 8
