"""`thinkjepa evaluate compare`: what belongs together is compared, anything else is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_report_kit import EVIL, IMAGES, JOINTS, SECOND, STEPS, evaluation, hostile, replay
from typer.testing import CliRunner

from thinkjepa_ros import cli
from thinkjepa_ros.evaluation.bag.compare import compare
from thinkjepa_ros.evaluation.bag.pairing import MAIN, CompareError
from thinkjepa_ros.evaluation.bag.replay import Replay

BAG = Path("recordings/swing")
#: Forecasts whose horizon the truth covers: all but the last of both pieces.
WHOLE = IMAGES - 2 * STEPS


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation(tmp_path_factory.mktemp("first") / "coarse", replay(BAG, error_m=0.03))


def cell(figures: dict[str, Any], row: str, group: str = "moving") -> dict[str, Any]:
    return dict(figures["against_first"][0]["differences"][group][str(STEPS)][row])


def test_a_better_model_is_found_beyond_chance(first: Path, tmp_path: Path) -> None:
    other = evaluation(tmp_path / "fine", replay(BAG, error_m=0.01, seed=1))
    figures = compare([first, other], tmp_path / "compare.html")
    assert figures["against_first"][0]["pairs"] == IMAGES
    for row, gain in (("guided", 0.02), ("unguided", 0.04), (MAIN, 0.02)):
        mean, low, high = cell(figures, row)["ade"]
        assert low < mean < high < 0
        assert mean == pytest.approx(-1.6 * gain, rel=0.15)  # the mean length of a normal error in 3-D is 1.6 sigma
        assert cell(figures, row)["pairs"] <= WHOLE
    assert cell(figures, "hold")["ade"] == [0, 0, 0]
    assert "B (guided) is better than A (guided)" in figures["summary"][0]
    assert json.loads((tmp_path / "compare.json").read_text()) == figures
    text = (tmp_path / "compare.html").read_text()
    assert figures["summary"][0].split(":")[0] in text and "better" in text and "<script" not in text


def test_groups_are_those_of_the_figures_of_each(first: Path, tmp_path: Path) -> None:
    value = replay(BAG, error_m=0.01, seed=1)
    now = value.truth_present.copy()
    now[:15, :3] = np.nan  # the right hand is not known at first: nobody knows whether it moves
    other = evaluation(tmp_path / "fine", replace(value, truth_present=now))
    against = replace(replay(BAG, error_m=0.03), truth_present=now)
    figures = compare([evaluation(tmp_path / "coarse", against), other], tmp_path / "compare.html")
    tables = [one["metrics"]["tables"] for one in figures["folders"]]
    for group in ("moving", "resting", "all"):
        a, b = (table[group][str(STEPS)]["guided"]["ade"][0] for table in tables)
        assert cell(figures, "guided", group)["ade"][0] == pytest.approx(b - a, rel=1e-6)


def test_the_same_figures_the_other_way_round(first: Path, tmp_path: Path) -> None:
    other = evaluation(tmp_path / "fine", replay(BAG, error_m=0.01, seed=1))
    there = cell(compare([first, other], tmp_path / "a.html"), MAIN)["ade"]
    back = cell(compare([other, first], tmp_path / "b.html"), MAIN)["ade"]
    assert back == pytest.approx([-there[0], -there[2], -there[1]])


def test_what_the_surprise_is_worth_is_shown_for_each(first: Path, tmp_path: Path) -> None:
    value = replay(BAG, error_m=0.01, seed=1)
    blind = replace(value, surprise=np.full_like(value.surprise, 0.3))  # says the same everywhere
    page = tmp_path / "compare.html"
    figures = compare([first, evaluation(tmp_path / "blind", blind)], page)
    said = "with probability 1.00 in A, 0.50 in B (AUROC; 0.5 is chance)"
    assert said in figures["surprise"] and figures["surprise"].endswith("chance).") and said in page.read_text()
    other = replay(BAG, seed=1, events={"source": "labels.csv", "intervals": 1, "labelled": 4})
    figures = compare([first, evaluation(tmp_path / "table", other)], page)
    assert figures["surprise"].endswith("their labels are not of the same source.")
    bare = replace(value, event=None)
    figures = compare([first, evaluation(tmp_path / "bare", bare)], page)
    assert "1.00 in A, unknown in B" in figures["surprise"]
    nobody = [evaluation(tmp_path / name, bare) for name in ("one", "two")]
    assert compare(nobody, page)["surprise"] == "" and "labelled" not in page.read_text()


def test_no_difference_is_not_made_one(first: Path, tmp_path: Path) -> None:
    other = evaluation(tmp_path / "same", replay(BAG, error_m=0.03, seed=5))
    figures = compare([first, other], tmp_path / "compare.html")
    assert figures["summary"][0].startswith("No difference between B (guided) and A (guided) can be shown")


def test_only_forecasts_of_the_same_images_are_paired(first: Path, tmp_path: Path) -> None:
    every_third = np.arange(1, IMAGES, 3)
    other = evaluation(tmp_path / "sparse", replay(BAG, error_m=0.03).only(every_third))
    figures = compare([first, other], tmp_path / "compare.html")
    assert figures["against_first"][0]["pairs"] == len(every_third)
    assert cell(figures, MAIN, "all")["pairs"] == sum(
        1 for k in every_third if k + STEPS < SECOND or (k >= SECOND and k + STEPS < IMAGES)
    )
    assert cell(figures, MAIN)["ade"] == [0, 0, 0]  # the same forecasts, whatever their place in the folders


def test_joints_in_another_order_are_the_same_joints(first: Path, tmp_path: Path) -> None:
    value, turned = replay(BAG, error_m=0.03), np.array([5, 0, 4, 1, 3, 2])
    fields = ("guided", "unguided", "sigma", "present", "truth_present", "truth", "past")
    arrays = {n: getattr(value, n)[..., turned] if n == "sigma" else getattr(value, n)[..., turned, :] for n in fields}
    other = evaluation(tmp_path / "turned", replace(value, joint_names=tuple(JOINTS[k] for k in turned), **arrays))
    assert cell(compare([first, other], tmp_path / "compare.html"), MAIN)["ade"] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_model_without_a_thinker_is_compared_by_its_main_row(first: Path, tmp_path: Path) -> None:
    other = evaluation(tmp_path / "alone", replay(BAG, guided=False, error_m=0.005))
    third = evaluation(tmp_path / "other", replay(BAG, error_m=0.02, seed=3))
    figures = compare([first, other, third], tmp_path / "compare.html")
    assert "guided" not in figures["against_first"][0]["differences"]["moving"][str(STEPS)]
    assert figures["summary"][0].startswith("B (unguided) is better than A (guided)")
    assert len(figures["summary"]) == 2
    assert "main row of each" in (tmp_path / "compare.html").read_text()


def changed(**fields: Any) -> Callable[[Replay], Replay]:
    return lambda value: replace(value, **{k: v(value) if callable(v) else v for k, v in fields.items()})


def other_bag(value: Replay) -> dict[str, Any]:
    return {**value.about, "bags": [{**value.about["bags"][0], "sha256": "11" * 32}]}


@pytest.mark.parametrize(
    "change, sentence",
    [
        (changed(step_s=0.2), r"their steps are 0.1 s and 0.2 s; compare models with the same step"),
        (changed(joint_names=(*JOINTS[:-1], "nose")), r"other joints \(only one has left_index_tip, nose\)"),
        (changed(about=lambda v: {**v.about, "truth_source": "/tf"}), r"their truth is /hands \(PoseArray\) and /tf"),
        (changed(truth=lambda v: v.truth + 0.05), r"their truth lies up to 8.7 cm apart; evaluate both with the same"),
        (changed(about=other_bag), r"no forecast of the two is over the same image of the same recording; evaluate"),
        (changed(stamp_ns=lambda v: v.stamp_ns + 7), r"no forecast of the two is over the same image"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    first: Path, tmp_path: Path, change: Callable[[Replay], Replay], sentence: str
) -> None:
    other = evaluation(tmp_path / "other", change(replay(BAG)))
    with pytest.raises(CompareError, match=sentence):
        compare([first, other], tmp_path / "compare.html")
    assert not (tmp_path / "compare.html").exists() and not (tmp_path / "compare.json").exists()


def test_damaged_folders_are_refused_with_the_remedy(first: Path, tmp_path: Path) -> None:
    def refused(folder: Path, sentence: str) -> None:
        with pytest.raises(CompareError, match=sentence):
            compare([first, folder], tmp_path / "compare.html")

    refused(tmp_path / "nowhere", "holds no evaluation .* make it again with `thinkjepa evaluate bag`")
    other = evaluation(tmp_path / "other", replay(BAG))
    whole = {file: (other / file).read_bytes() for file in ("metrics.json", "replay.json", "replay.npz")}
    for file, data, sentence in (
        ("metrics.json", b'{"format": 1, "about": NaN}', "not readable as JSON"),
        ("metrics.json", b'{"format": 2}', "not of this version"),
        ("metrics.json", b"[]", "holds no JSON object"),
        ("metrics.json", whole["metrics.json"][:-9], "not readable as JSON"),
        ("replay.npz", whole["replay.npz"][: len(whole["replay.npz"]) // 2], "is damaged"),
        ("replay.json", b"{}", "of another version"),
    ):
        (other / file).write_bytes(data)
        refused(other, sentence)
        (other / file).write_bytes(whole[file])
    (other / "replay.npz").unlink()
    refused(other, "holds no replay")


def test_one_folder_is_nothing_to_compare(first: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="1 folders are given; name 2"):
        compare([first], tmp_path / "compare.html")
    with pytest.raises(CompareError, match="the same folder is given twice"):
        compare([first, first / ".." / first.name], tmp_path / "compare.html")


def test_words_from_outside_are_words(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / name, hostile(replay(BAG, error_m=error)))
        for name, error in (("<b>a", 0.03), ("b", 0.01))
    ]
    compare(folders, tmp_path / "compare.html")
    text = (tmp_path / "compare.html").read_text()
    assert "<script" not in text and "<b>a" not in text and EVIL.replace("<", "&lt;").replace(">", "&gt;") in text


def test_the_command_writes_both_files_and_fails_in_words(first: Path, tmp_path: Path) -> None:
    other = evaluation(tmp_path / "fine", replay(BAG, error_m=0.01, seed=1))
    page = tmp_path / "deep" / "compare.html"
    done = CliRunner().invoke(cli.app, ["evaluate", "compare", str(first), str(other), "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert (
        "is better than A" in done.output
        and "1.00 in A, 1.00 in B" in done.output
        and page.exists()
        and page.with_suffix(".json").exists()
    )
    for arguments, sentence in (
        ([str(first)], "name 2 to 26"),
        ([str(first), str(tmp_path / "no")], "holds no evaluation"),
        ([str(first), str(other), "--out", str(tmp_path / "page.json")], "give --out a name that ends in .html"),
        ([str(first), str(other), "--out", str(other / "replay.npz" / "c.html")], "cannot be written"),
    ):
        failed = CliRunner().invoke(cli.app, ["evaluate", "compare", *arguments])
        assert failed.exit_code == 1 and isinstance(failed.exception, SystemExit)
        assert sentence in str(failed.exception) + failed.output
