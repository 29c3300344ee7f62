"""The whole table on a few episodes with the shipped pair, and live forecasts beside those in lock step."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from table_kit import episodes

from thinkjepa_ros.data.episode import JOINT_NAMES
from thinkjepa_ros.evaluation import metrics
from thinkjepa_ros.evaluation.cue_reach import against_live, rows
from thinkjepa_ros.evaluation.cue_reach import evaluate as evaluation
from thinkjepa_ros.evaluation.cue_reach.evaluate import Bench, Sources, evaluate
from thinkjepa_ros.evaluation.cue_reach.live import LiveEpisode, LiveError, LiveRun, at_origins
from thinkjepa_ros.jepa import model
from thinkjepa_ros.train import table
from thinkjepa_ros.train.run import Run

MINI = Path(__file__).resolve().parents[1] / "models" / "mini"
TRAINED = ("unguided_1", "oracle_intent_0", "thinker_only_0", "random_encoder_unguided_0")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("cue_reach")
    for name, count in (("test", 6), ("train", 2)):
        for episode in episodes(count):
            episode.save(folder / name / f"{episode.split}_{episode.seed:07d}.h5")
    return Sources(folder / "test", folder / "train", MINI, MINI / "thinker", folder / "table", folder / "cache")


@pytest.fixture(scope="module")
def bench(sources: Sources) -> Bench:
    """With some trials that were trained for a step."""
    bench = Bench(sources)
    torch.manual_seed(1)
    random = model.ForecastNet(bench.net.config).eval().requires_grad_(False)
    options = {"steps": 1, "batch_size": 2, "lr": 1e-3, "describe": {}, "dtype": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_draw", lambda _: None)
        for trial in table.TRIALS:
            if trial.folder not in TRAINED:
                continue
            base = bench.net if trial.encoder == "shipped" else random
            tracks = bench.tracks
            if trial.source == "oracle":
                tracks = bench.oracle.tracks
            if trial.encoder == "random":
                tracks = bench._tracks(bench.episodes, "test", random)
            table.train_trial(trial, base, tracks, sources.table, **options)  # type: ignore[arg-type]
    return bench


# ---------------------------------------------------------------- the table


def test_the_table_has_every_row_that_can_be_made_and_says_which_can_not(
    sources: Sources, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = evaluate(sources, tmp_path / "a" / "table.json", ["thinkjepa", "evaluate", "cue-reach", "x"])
    words = " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "a" / "table.json").read_text()
    found = json.loads(text)
    assert found["rows"] == json.loads(json.dumps(contents["rows"]))
    made = {row["row"]: row for row in found["rows"] if row["inputs"] == "image only"}
    assert list(made) == [
        "hold", "constant velocity", "damped velocity", "mean displacement", "mean displacement, same phase",
        "ridge on past joints", "unguided", "unguided, rollout by 8 steps", "guided", "guided, thinker silent",
        "shuffled guidance", "shuffled guidance, any time", "stale guidance, 1 s", "stale guidance, 2 s",
        "stale guidance, 4 s", "stale guidance, 6 s", "removed cue", "guided, rollout by 8 steps", "oracle intent",
        "best of 6 intents", "thinker only", "random encoder, unguided",
    ]  # fmt: skip
    assert [row["row"] for row in found["rows"] if row["inputs"] == "observed pose"] == list(made)
    main = int(((bench.truth.group == 2) & bench.truth.told).sum())
    assert found["groups"]["ready"]["origins"] == main > 0 and found["episodes"] == 6
    for name, row in made.items():
        lamps = np.isin(bench.truth.split, ("lamp", "distractor")) & (bench.truth.group == 2)
        assert row["answered"]["ready"] == (lamps.sum() if name == "removed cue" else main), name
        only_main = name not in (*list(made)[:7], "guided", "guided, thinker silent", "oracle intent", "thinker only")
        assert (row["answered"]["wait"] == 0) == only_main, name
        assert row["cells"]["ready"]["moving"]["32"]["ade"][0] > 0, name
    assert "latents" in made["guided"] and "latents" not in made["random encoder, unguided"]
    for missing in ("guided, AdaLN", "random encoder, guided", "guided, last layer"):
        assert missing not in made and f'row "{missing}", seed 0:' in words
    assert 'row "unguided", seed 2' in words and "is not trained yet, left out" in words
    assert 'row "guided", seed 0' not in words, "that is the shipped model"
    about = found["about"]
    assert about["command"] == "thinkjepa evaluate cue-reach x" and 0 <= about["told_rightly"] <= 1
    assert sorted((tmp_path / "a").glob("*.png"))

    def no_matplotlib(*_: object) -> None:
        raise ImportError("there is no matplotlib here")

    monkeypatch.setattr(evaluation.pictures, "draw", no_matplotlib)
    evaluate(sources, tmp_path / "b" / "table.json", ["thinkjepa", "evaluate", "cue-reach", "x"])
    assert (tmp_path / "b" / "table.json").read_text() == text, "twice the same, and without pictures"
    assert "there is no matplotlib here" in capsys.readouterr().out


def test_the_share_of_right_thoughts_is_counted_at_the_main_origins(bench: Bench) -> None:
    right = []
    for n in np.flatnonzero((bench.truth.group == 2) & bench.truth.told):
        episode, sample = bench.episodes[bench.truth.episode[n]], bench.truth.sample[n]
        of = range(bench.tracks.thoughts[bench.truth.episode[n]], bench.tracks.thoughts[bench.truth.episode[n] + 1])
        k = max(k for k in of if bench.tracks.stamps_ns[sample] - bench.tracks.thought_ns[k] >= rows.AGE_NS)
        assert episode.intent is not None
        right.append(bench.tracks.texts[k] == f"{episode.intent['cube']} cube, {episode.intent['tray']} tray")
    assert evaluation.thoughts_right(bench) == pytest.approx(np.mean(right))
    untold = copy.copy(bench)
    untold.truth = dataclasses.replace(bench.truth, told=np.zeros_like(bench.truth.told))
    assert evaluation.thoughts_right(untold) is None, "a JSON file has no NaN"


def test_only_what_the_thinker_said_about_the_cue_is_removed(bench: Bench) -> None:
    lamp, guide = bench._without_cue
    main = (bench.truth.group == 2) & np.isin(bench.truth.split, ("lamp", "distractor"))
    assert lamp.tolist() == np.flatnonzero(main).tolist()
    with_cue, without = rows.by_thinker(bench.scene)(lamp), guide(lamp)
    assert with_cue is not None and without is not None and with_cue.prompt is not None
    assert without.prompt is not None and without.weight is not None and (without.weight == 1).all()
    assert (without.prompt - with_cue.prompt).abs().amax((1, 2, 3)).min() > 0.1


# ---------------------------------------------------------------- beside live forecasts


def mains(bench: Bench, number: int) -> np.ndarray:
    return np.flatnonzero((bench.truth.group == 2) & (bench.truth.episode == number))


def live_run(bench: Bench, numbers: list[int], guided: bool) -> LiveRun:
    """As if the nodes had published what is forecast in lock step, at the main origins and nowhere else."""
    name, guide = ("guided", rows.by_thinker(bench.scene)) if guided else ("thinker silent", rows.nobody)
    where = np.concatenate([mains(bench, number) for number in numbers])
    offline = rows.forecasts(bench.scene, bench.net, name, 0, guide, where)[0]
    assert offline.sigma is not None
    made = []
    for number in numbers:
        at = mains(bench, number)
        n = len(at)
        made.append(
            LiveEpisode(
                name=str(number),
                stamps_ns=bench.tracks.stamps_ns[bench.truth.sample[at]],
                positions=offline.positions[at],
                sigma=offline.sigma[at],
                present=np.zeros((n, 24, 3), np.float32),
                weight=np.full(n, float(guided)),
                age_s=np.full(n, 0.4 if guided else np.nan),
                latency_s=np.full(n, 0.03),
            )
        )
    return LiveRun(made)


@pytest.fixture(scope="module")
def played(bench: Bench) -> list[int]:
    return against_live.chosen(bench, 3)


def errors(bench: Bench, run: LiveRun, numbers: list[int], skip: int = -1) -> np.ndarray:
    """ADE at 32 steps of the moving hand by hand, mean over the main origins of each episode but origin `skip`."""
    out = []
    for episode, number in zip(run.episodes, numbers, strict=True):
        mean = []
        for k, n in enumerate(mains(bench, number)):
            truth, present = bench.truth.future[n], bench.truth.present[n]
            away = np.linalg.norm(truth - present, axis=-1)
            distance = np.linalg.norm(episode.positions[k] - truth, axis=-1)
            sides = [np.array([name.startswith(side) for name in JOINT_NAMES]) for side in ("right", "left")]
            moving = [side for side in sides if np.nanmax(metrics.nanmean(away[:, side], 1)) > 0.03]
            if n != skip and moving:
                mean.append(np.nanmean(distance[:, np.any(moving, 0)]))
        out.append(np.mean(mean))
    return np.array(out)


def row(found: dict, name: str) -> float:
    return next(r["ade_m"]["mean"] for r in found["rows"] if r["row"] == name)


def test_episodes_to_play_told_have_the_lowest_seeds_and_go_until_their_last_main_origin(
    bench: Bench, played: list[int]
) -> None:
    told = [n for n, episode in enumerate(bench.episodes) if episode.split != "none"]
    lowest = sorted(bench.episodes[n].seed for n in told)[:3]
    assert sorted(bench.episodes[n].seed for n in played) == lowest and against_live.chosen(bench, 100) == told
    for number, until in zip(played, against_live.until_ns(bench, played), strict=True):
        last = bench.tracks.stamps_ns[bench.truth.sample[mains(bench, number)]].max()
        assert until == last + 250_000_000


def test_nothing_is_lost_where_live_is_what_lock_step_says(bench: Bench, played: list[int]) -> None:
    runs = [live_run(bench, played, guided) for guided in (True, False)]
    found = against_live.compare(bench, played, *runs)
    origins = sum(len(mains(bench, number)) for number in played)
    assert (found["episodes"], found["origins"], found["answered"]) == (3, origins, origins)
    assert found["gain_lost"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found["live_minus_offline_m"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["gain_live_m"]["mean"] == pytest.approx(found["gain_offline_m"]["mean"], abs=1e-6)
    for guided, name in ((0, "guided"), (1, "thinker silent")):
        wanted = errors(bench, runs[guided], played).mean()
        assert row(found, name) == pytest.approx(wanted, abs=1e-5)
        assert row(found, f"{name}, live") == pytest.approx(wanted, abs=1e-5)
    assert found["guided_share"] == 1 and found["guidance_age_s"]["p50"] == 0.4 and found["behind_s"]["max"] == 0
    json.dumps(found, allow_nan=False)
    against_live.show(found)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_share_that_is_lost_is_what_live_is_worse_by(bench: Bench, played: list[int], share: float) -> None:
    guided, unguided = (live_run(bench, played, one) for one in (True, False))
    at = errors(bench, guided, played), errors(bench, unguided, played)
    worse = []
    for episode, number, ours, theirs in zip(guided.episodes, played, *at, strict=True):
        off = np.float32([0, 0, ours + share * (theirs - ours)])  # every joint is wrong by this at every step
        here = mains(bench, number)
        known = np.nan_to_num(bench.truth.future[here])
        worse.append(dataclasses.replace(episode, positions=known + off))
    found = against_live.compare(bench, played, LiveRun(worse), unguided)
    assert found["gain_lost"]["mean"] == pytest.approx(share, abs=2e-3)
    wanted = share * (at[1] - at[0]).mean()
    assert found["live_minus_offline_m"]["mean"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("how", ["skipped", "a hole"])
def test_an_origin_that_live_did_not_answer_counts_for_no_row(bench: Bench, played: list[int], how: str) -> None:
    guided, unguided = (live_run(bench, played, one) for one in (True, False))
    first = unguided.episodes[0]
    gone = int(mains(bench, played[0])[-1])
    if how == "skipped":
        arrays = {name: getattr(first, name)[:-1] for name in ("stamps_ns", "positions", "sigma", "present")}
        arrays |= {name: getattr(first, name)[:-1] for name in ("weight", "age_s", "latency_s")}
    else:
        positions = first.positions.copy()
        positions[-1, 3, 5] = np.nan
        arrays = {"positions": positions}
    unguided.episodes[0] = dataclasses.replace(first, **arrays)
    found = against_live.compare(bench, played, guided, unguided)
    assert found["answered"] == found["origins"] - 1
    wanted = errors(bench, guided, played, skip=gone)
    assert not np.allclose(wanted, errors(bench, guided, played), atol=1e-6)
    for name in ("guided", "guided, live"):
        assert row(found, name) == pytest.approx(wanted.mean(), abs=1e-5)


def test_runs_that_answered_no_origin_are_refused_with_words(bench: Bench, played: list[int]) -> None:
    guided, unguided = (live_run(bench, played, one) for one in (True, False))
    late = [dataclasses.replace(e, stamps_ns=e.stamps_ns + 10_000_000_000) for e in unguided.episodes]
    with pytest.raises(LiveError, match=r"at none of the .* main origins did both runs publish a forecast"):
        against_live.compare(bench, played, guided, LiveRun(late))


def test_a_forecast_of_the_image_before_is_seen_from_the_origin(bench: Bench, played: list[int]) -> None:
    """What stands still in the world stands still, however the camera moved meanwhile."""
    where = np.concatenate([mains(bench, number) for number in played])
    asked, made, wanted = [], [], []
    for k, number in enumerate(played):
        episode, places, stamps = bench.episodes[number], [], []
        for n in mains(bench, number):
            origin = int(bench.tracks.frames[bench.truth.sample[n]])
            later = np.arange(origin, origin + 4)
            places.append(episode.points_in_camera(later, origin - 1))
            wanted.append(episode.points_in_camera(later, origin))
            stamps.append(int(episode.stamps_ns[origin - 1]))
            asked.append((k, int(episode.stamps_ns[origin])))
        n, zeros = len(places), np.zeros((len(places), 4, 24), np.float32)
        made.append(LiveEpisode(str(number), np.array(stamps), np.stack(places), zeros, zeros[:, 0], *np.zeros((3, n))))
    found = at_origins(LiveRun(made), asked, tolerance_ns=150_000_000)
    assert found.answered.all() and (found.behind_s > 0.09).all()
    moved = against_live._in_frame_of_origin(bench, where, found)
    assert np.allclose(moved, np.stack(wanted), atol=1e-5)
    assert np.abs(found.positions - np.stack(wanted)).max() > 1e-4, "the camera does move"
    none = at_origins(LiveRun(made), asked, tolerance_ns=1)
    assert np.isnan(against_live._in_frame_of_origin(bench, where, none)).all()
