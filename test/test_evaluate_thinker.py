"""Scoring a thinker: its own words decide, groups are what they are called, a probe finds no more than is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.data.told import UNKNOWN, Sample, answer
from thinkjepa_ros.evaluation import probe
from thinkjepa_ros.evaluation import thinker as scoring
from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.thinker.window import Pair
from thinkjepa_ros.train.clips import load_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated episodes at 10 Hz."""
    from thinkjepa_ros.data.sim.generate import main

    out = tmp_path_factory.mktemp("data")
    assert main(out, episodes=2, split="lamp", workers=1, rate_hz=10.0, seed_start=1_000_000, quiet=True) == 0
    return out


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return load_folder(folder)


def judged(seed: int, intent: int, said: int | None, *, told: str = "lamp", split: str = "lamp", phase: str = "wait"):
    one = np.zeros(1, np.int64)
    sample = Sample(0, one, (Pair(0, 0, 0),), one, False, "", intent, told, np.zeros((1, 2), np.int64), one)
    return scoring.Judged(sample, seed, split, phase, "", said)


def test_shares_are_means_over_episodes_and_cube_and_tray_are_told_apart() -> None:
    cases = [judged(1, 0, 0), judged(1, 0, 0), judged(1, 0, 1), judged(2, 4, 2)]  # 1: tray wrong; 2: cube wrong
    found = {row.kind.strip(): row for row in scoring.rows(cases)}
    assert found["told by the lamp"].right.mean == pytest.approx((2 / 3 + 0) / 2)
    assert found["cube alone"].right.mean == pytest.approx((1 + 0) / 2)
    assert found["tray alone"].right.mean == pytest.approx((2 / 3 + 1) / 2)
    assert (found["all windows"].windows, found["all windows"].episodes) == (4, 2)
    assert "told by the instruction" not in found and "newest frame in cue" not in found


def test_an_answer_that_is_not_understood_or_unknown_is_wrong_in_both_parts() -> None:
    found = {row.kind.strip(): row.right.mean for row in scoring.rows([judged(1, 1, None), judged(2, 1, UNKNOWN)])}
    assert found["all windows"] == found["cube alone"] == found["tray alone"] == 0


def test_where_all_are_right_the_interval_is_that_of_the_rule_of_three() -> None:
    many = scoring.sure(np.ones(100))
    assert (many.mean, many.low, many.high) == (1.0, pytest.approx(0.97), 1.0)
    assert scoring.sure(np.ones(2)).low == 0.0 and scoring.sure(np.zeros(30)).high == pytest.approx(0.1)
    some = scoring.sure(np.array([1.0, 1.0, 0.5, 1.0]))
    assert some.low < some.mean < some.high


def test_knowing_that_nothing_was_told_is_right() -> None:
    cases = [judged(1, UNKNOWN, UNKNOWN, told="none", phase="reach"), judged(2, UNKNOWN, 3, told="none", phase="idle")]
    found = {row.kind.strip(): row for row in scoring.rows(cases)}
    assert found["told by nothing"].right.mean == 0.5 and found["cue long gone"].right.mean == 1.0
    assert "told by the lamp" not in found


def test_windows_are_drawn_from_the_seed_of_the_episode_alone(episodes: list[Episode]) -> None:
    first, again = (scoring.windows(episodes[0], 0, 6) for _ in range(2))
    assert [s.frames.tolist() for s in first] == [s.frames.tolist() for s in again]
    assert [s.frames.tolist() for s in scoring.windows(episodes[1], 1, 6)] != [s.frames.tolist() for s in first]
    assert len({int(s.stamps_ns[0] - episodes[0].stamps_ns[s.frames[0]]) for s in first}) == 6, "phases differ"


def test_the_command_writes_what_it_shows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mini = tiny.build(tmp_path / "mini")
    figures = scoring.evaluate(mini, folder, probe=folder, per_episode=2, out=tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(figures))
    assert figures["model"].endswith("(untrained)") and figures["answers"][0]["windows"] == 4
    assert figures["answers"][0]["right"]["mean"] == 0.0, "an untrained thinker says nothing that is understood"
    shown = capsys.readouterr().out
    assert "(untrained)" in shown and "pooled over" in shown and "random" in shown
    assert set(figures["probe"]["trained"]) == set(probe.POOLS) and len(figures["probe"]["random"]["generated"]) == 4


def test_the_probe_compares_with_a_mini_of_the_same_shape_only(tmp_path: Path) -> None:
    thinker = Thinker.load(tiny.build(tmp_path / "mini"), layers=[0, 3])
    with pytest.raises(ValueError, match="another shape"):
        probe.untrained(thinker)


def test_the_probe_looks_at_windows_in_which_only_memory_helps(episodes: list[Episode]) -> None:
    for number, episode in enumerate(episodes):
        samples = probe.waiting(episode, number, 5)
        assert samples and all(s.told == "lamp" for s in samples)
        assert all(episode.stamps_ns[s.frames[-1]] >= episode.cue_ns[1] for s in samples)
        assert all(episode.phase(int(s.frames[-1])) == "wait" for s in samples)


def spoken(rng: np.random.Generator, count: int, signal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = np.repeat(np.arange(count // 4), 4)
    intents = rng.integers(UNKNOWN, size=count // 4)[groups]
    x = rng.normal(size=(count, 20)) + rng.normal(size=(count // 4, 20))[groups]  # rows of an episode are alike
    x[:, :UNKNOWN] += signal * np.eye(UNKNOWN)[intents]
    return x, intents, groups


def test_the_probe_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    for signal, low, high in ((8.0, 0.95, 1.0), (0.0, 0.0, 0.35)):
        x, intents, groups = spoken(rng, 400, signal)
        unseen, truth, _ = spoken(rng, 400, signal)
        share = (probe.classify(x, intents, groups, unseen) == truth).mean()
        assert low <= share <= high, (signal, share)


def test_a_column_that_never_changes_does_no_harm() -> None:
    x, intents, groups = spoken(np.random.default_rng(1), 200, 8.0)
    x[:, -1] = 3.0
    assert (probe.classify(x, intents, groups, x) == intents).mean() > 0.95


def test_words_of_a_thought_are_one_line() -> None:
    from thinkjepa_ros.values import Guidance

    thought, _, text = answer(1, "lamp").partition("\n</think>\n\n")
    guidance = Guidance(np.zeros((1, 2, 4), np.float32), (0,), 1, 1.0, text=text, thought=thought)
    assert scoring.words(guidance) == "right lamp red -> red cube, right tray"
