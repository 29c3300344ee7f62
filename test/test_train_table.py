"""The trainings behind the table: each is what its name says, done once, and never half done by two."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from group_kit import _CONTEXT
from table_kit import (
    HORIZON,
    STEPS,
    TUBELETS,
    episodes,
    pack,
    shards,
    small_net,
    train_table_in_a_process,
    train_trials,
)
from training_kit import think

from thinkjepa_ros import checkpoints
from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.jepa import model, precision
from thinkjepa_ros.train import cache, forecast, table
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.table import TRIALS, Lessons, StatesConfig, StatesToMotion, Trial
from thinkjepa_ros.train.tracks import Tracks

UNGUIDED, ORACLE = Trial("unguided", 0, "none"), Trial("oracle intent", 0, "oracle")
PATIENCE_S = 100


@pytest.fixture(scope="module")
def tracks() -> Tracks:
    return Tracks.of(episodes(), shards())


@pytest.fixture(scope="module")
def told(tracks: Tracks) -> Tracks:
    return tracks.with_thoughts(table.oracle_states(episodes(), tracks))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the trainings, and have tests of their own."""
    monkeypatch.setattr(Run, "_draw", lambda _: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return model.load(folder)[0].state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- the oracle


def test_the_oracle_says_cube_and_tray_once_they_were_told_and_nothing_before(tracks: Tracks) -> None:
    words = table.oracle_states(episodes(), tracks)
    assert words.shape == (len(tracks.thought_ns), 1, 2, 6)
    said: dict[str, list[str]] = {}
    for number, episode in enumerate(episodes()):
        for k in range(tracks.thoughts[number], tracks.thoughts[number + 1]):
            assert torch.equal(words[k, 0, 0], words[k, 0, 1])
            word = (words[k, 0, 0] / table.ORACLE_SCALE).tolist()
            told = episode.split == "text"
            if episode.cue_ns is not None:
                told = bool(tracks.thought_ns[k] >= episode.cue_ns[0])
            wanted = [0.0] * 6
            if told:
                assert episode.intent is not None
                wanted[["red", "green", "blue"].index(episode.intent["cube"])] = 1.0
                wanted[3 + ["left", "right"].index(episode.intent["tray"])] = 1.0
            else:
                wanted[5] = 1.0
            assert word == wanted
            said.setdefault(episode.split, []).append("told" if told else "-")
    assert set(said["lamp"]) == set(said["distractor"]) == {"told", "-"}
    assert set(said["text"]) == {"told"} and set(said["none"]) == {"-"}


def test_an_episode_without_a_known_intent_is_told_nothing(tracks: Tracks) -> None:
    unknown = [dataclasses.replace(e, intent=None) for e in episodes()]
    words = table.oracle_states(unknown, tracks)
    assert (words[..., -1] == table.ORACLE_SCALE).all() and not words[..., :-1].any()


def test_every_intent_has_a_word_of_its_own() -> None:
    words = [tuple(table.intent_word(i).tolist()) for i in range(6)]
    assert len(set(words)) == 6 and all(sum(word) == 2 and not word[5] for word in words)


# ---------------------------------------------------------------- the list


def test_every_trial_has_a_folder_of_its_own_that_any_disk_takes() -> None:
    folders = [trial.folder for trial in TRIALS]
    assert len(set(folders)) == len(folders)
    assert all(re.fullmatch(r"[a-z0-9_]+", folder) for folder in folders)
    assert "guided_0" not in folders, "that is the shipped model"


@pytest.mark.parametrize("trial", [t for t in TRIALS if t.source != "states"], ids=lambda t: t.folder)
def test_every_trial_builds_a_network_over_the_shipped_encoder(trial: Trial, tracks: Tracks, told: Tracks) -> None:
    base = small_net()
    scaled = dataclasses.replace(base.config, sigma_scale="stale")  # type: ignore[arg-type]
    its = told if trial.source == "oracle" else tracks
    config = table.configure(scaled, trial, its)
    assert config.sigma_scale is None, "that was calibrated for another network"
    net = model.ForecastNet(config)
    net.encoder.load_state_dict(base.encoder.state_dict())
    net.pose.load_state_dict(base.pose.state_dict())
    assert (net.predictor.guide is None) == (trial.source == "none")
    assert model.ModelConfig.from_dict(config.as_dict()) == config
    w = its.window(its.origins(8)[:3], 8, TUBELETS, STEPS)
    payload = None
    if net.predictor.guide is not None:
        torch.nn.init.constant_(net.predictor.guide.gate, 0.5)
        payload = forecast.thoughts(its, its.origins(8)[-3:], 0, 1.0, trial.streams)
    with torch.no_grad():
        displacement, _, future = net.forecast(w.past, w.now, w.poses, payload)
        alone = net.forecast(w.past, w.now, w.poses)[2]
    assert displacement.shape == (3, HORIZON, 24, 3)
    assert torch.equal(future, alone) == (trial.source == "none"), "who has a guide is guided"


def test_a_guided_trial_keeps_the_predictor_that_was_trained_without_a_thinker(tracks: Tracks, tmp_path: Path) -> None:
    """The shipped one for seed 0, that of the unguided trial of its seed else, which is trained first."""
    assert Trial("guided").over is None and Trial("unguided", 1, "none").over is None
    one, other = Trial("guided", 0), Trial("guided", 1)
    train_trials(tmp_path, tracks, [one, other], 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guided_0", "guided_1", "unguided_1"]
    for folder, base in (("guided_0", small_net().state_dict()), ("guided_1", weights(tmp_path / "unguided_1"))):
        mine = weights(tmp_path / folder)
        kept = [name for name in base if not name.startswith(("predictor.film.", "guided_motion."))]
        assert all(torch.equal(mine[name], base[name]) for name in kept)
        assert not torch.equal(mine["guided_motion.out.weight"], mine["motion.out.weight"])
    train_trials(tmp_path, tracks, [dataclasses.replace(one, seed=1)], 2)  # nothing is done again
    with pytest.raises(CheckpointError, match="other settings"):
        shutil.rmtree(tmp_path / "unguided_1")
        train_trials(tmp_path, tracks, [other], 2, lr=5e-3)


def test_seeds_of_a_trial_begin_with_other_weights(tracks: Tracks, tmp_path: Path) -> None:
    train_trials(tmp_path, tracks, [UNGUIDED, dataclasses.replace(UNGUIDED, seed=1)], 1)
    one, other = (weights(tmp_path / f"unguided_{seed}") for seed in (0, 1))
    start = small_net().state_dict()
    for name in one:
        frozen = name.split(".")[0] in ("encoder", "pose")
        assert (
            torch.equal(one[name], start[name]) == torch.equal(one[name], other[name]) == frozen or one[name].ndim < 2
        )


# ---------------------------------------------------------------- training one


def test_a_trial_with_a_comma_in_its_name_can_be_read_again(tracks: Tracks, tmp_path: Path) -> None:
    trial = next(t for t in TRIALS if "," in t.name)
    train_trials(tmp_path, tracks, [trial], 1)
    assert model.load(tmp_path / trial.folder)[1].model_id == f"cue-reach-{trial.folder}"


def test_a_trial_that_is_done_is_not_done_again_and_not_with_other_settings(told: Tracks, tmp_path: Path) -> None:
    train_trials(tmp_path, told, [ORACLE], 2)
    folder = tmp_path / "oracle_intent_0"
    net, manifest = model.load(folder)
    assert manifest.trained and net.config.predictor.guide_layers == 1 and net.config.predictor.guide_width == 6
    assert manifest.training["describe"]["trial"]["source"] == "oracle"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"}
    began = time.monotonic()
    train_trials(tmp_path, told, [ORACLE], 2)
    assert time.monotonic() - began < 2
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"}
    for changes in ({"batch_size": 6}, {"guide_lr": 1e-4}, {"describe": {"data": "y"}}):
        with pytest.raises(CheckpointError, match="oracle_intent_0 holds a trial with other settings; choose another"):
            train_trials(tmp_path, told, [ORACLE], 2, **changes)
    with pytest.raises(CheckpointError, match="other settings"):
        train_trials(tmp_path, told, [dataclasses.replace(ORACLE, mode="adaln")], 2)


def test_a_type_that_was_chosen_by_timing_holds_when_the_trial_goes_on(
    tracks: Tracks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has the other core now, and the choice comes out differently."""
    real, answers = precision.choose, [torch.float32, torch.bfloat16]

    def choose(device: object, want: str, width: int) -> precision.Choice:
        return precision.Choice(answers.pop(0), "test") if want == "auto" else real(device, want, width)  # type: ignore[arg-type]

    monkeypatch.setattr(precision, "choose", choose)

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    save = model.save
    monkeypatch.setattr(model, "save", killed)
    with pytest.raises(Killed):
        train_trials(tmp_path, tracks, [UNGUIDED], 1, dtype="auto")
    monkeypatch.setattr(model, "save", save)
    train_trials(tmp_path, tracks, [UNGUIDED], 1, dtype="auto")
    assert (tmp_path / "unguided_0" / checkpoints.MANIFEST).exists() and len(answers) == 1


# ---------------------------------------------------------------- several processes, and stops


@contextlib.contextmanager
def other_process(work: Callable[[], None]) -> Iterator[Any]:
    process = _CONTEXT.Process(target=work)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PATIENCE_S)


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        state = folder / "run" / "state.pt"
        if state.exists() and torch.load(state, weights_only=True)["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} never came to step {step}")


def test_two_processes_share_the_trials_and_what_a_killed_one_left_is_gone_on_with(
    tracks: Tracks, tmp_path: Path
) -> None:
    trials, steps = [UNGUIDED, dataclasses.replace(UNGUIDED, seed=1)], 40
    train_trials(tmp_path / "alone", tracks, trials, steps)
    out = tmp_path / "table"
    first, second = (out / trial.folder for trial in trials)
    work = functools.partial(train_table_in_a_process, out, pack(tracks), trials, steps, 0.6)
    with other_process(work) as other:
        wait_for_step(first, 2)
        with table.claimed(first) as mine:
            assert not mine
        train_trials(out, tracks, trials, steps)
        assert (second / checkpoints.MANIFEST).exists(), "the one that nobody had"
        assert not (first / checkpoints.MANIFEST).exists() and other.is_alive()
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join(PATIENCE_S)
    with table.claimed(first) as mine:
        assert mine, "a lock ends with its process"
    train_trials(out, tracks, trials, steps)
    for trial in trials:
        assert equal(weights(out / trial.folder), weights(tmp_path / "alone" / trial.folder)), trial


@pytest.mark.slow
def test_a_trial_that_was_asked_to_stop_goes_on_to_the_same_weights(tracks: Tracks, tmp_path: Path) -> None:
    trial, steps = Trial("guided", 1), 40
    train_trials(tmp_path / "alone", tracks, [trial], steps)
    out = tmp_path / "table"
    folder = out / trial.folder
    work = functools.partial(train_table_in_a_process, out, pack(tracks), [trial], steps, 0.25)
    with other_process(work) as other:
        wait_for_step(folder, 2)
        assert other.pid is not None
        os.kill(other.pid, signal.SIGTERM)
        other.join(PATIENCE_S)
        assert other.exitcode == 3
    assert not (folder / checkpoints.MANIFEST).exists()
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        train_trials(out, tracks, [trial], steps, guide_steps=steps + 1)
    train_trials(out, tracks, [trial], steps)
    assert equal(weights(folder), weights(tmp_path / "alone" / trial.folder))


def test_what_all_need_is_waited_for(tmp_path: Path) -> None:
    """The pose readout over the random encoder is trained by one process while the others wait for it."""
    waited: list[bool] = []

    def other() -> None:
        with table.claimed(tmp_path, wait=True) as mine:
            waited.append(mine)

    thread = threading.Thread(target=other)
    with table.claimed(tmp_path) as mine:
        assert mine
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not waited
    thread.join(10)
    assert waited == [True]


def test_the_random_encoder_comes_last_and_each_encoder_is_asked_for_once(
    tracks: Tracks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    done: list[tuple[str, str, int]] = []

    def lessons(encoder: str) -> Lessons:
        asked.append(encoder)
        return Lessons(small_net(), tracks, tracks.with_thoughts(tracks.pyramids[:, :1]))

    def train_trial(trial: Trial, base: object, its: Tracks, *_: object, **__: object) -> None:
        done.append((trial.folder, asked[-1], its.pyramids.shape[1]))

    monkeypatch.setattr(table, "train_trial", train_trial)
    monkeypatch.setattr(model, "load", lambda _: (small_net(), None))
    options = {"steps": 1, "guide_steps": 1, "batch_size": 2, "lr": 1e-3, "guide_lr": 1e-3}
    table.train_table(lessons, tmp_path, TRIALS[::-1], **options, describe={})
    assert asked == ["shipped", "random"]
    assert {folder for folder, _, _ in done} == {t.folder for t in TRIALS}
    by_folder = {t.folder: t for t in TRIALS}
    for folder, encoder, layers in done:
        assert encoder == by_folder[folder].encoder
        assert layers == (1 if by_folder[folder].source == "oracle" else 2), "the oracle's words for the oracle"


# ---------------------------------------------------------------- the model without JEPA


def test_states_alone_teach_a_model_that_learns_from_them(tracks: Tracks, tmp_path: Path) -> None:
    trial = next(t for t in TRIALS if t.source == "states")
    train_trials(tmp_path, tracks, [trial], 160, lr=3e-3)
    states = table.load_states(tmp_path / trial.folder)
    torch.manual_seed(0)
    fresh = StatesToMotion(states.config).eval()
    samples = np.flatnonzero(tracks.thought_before(np.arange(len(tracks)), 600_000_000) >= 0)
    samples = samples[np.isin(samples, tracks.origins(1))]
    pyramid, poses, future = table.states_of(tracks, samples, 600_000_000, HORIZON)

    def error(net: StatesToMotion, said: torch.Tensor) -> float:
        with torch.no_grad():
            moved, log_sigma = net(said, poses)
        assert log_sigma.isfinite().all()
        return float((poses[:, None] + moved - future).norm(dim=-1).nanmean())

    assert error(states, pyramid) < 0.3 * error(fresh, pyramid)
    assert error(states, pyramid) < 0.9 * error(states, pyramid.roll(len(samples) // 2, 0)), "it heard the thoughts"


def test_a_thought_that_is_absent_says_nothing(tracks: Tracks) -> None:
    samples = tracks.begin[tracks.origins(1)]  # the very first of each: nobody has said anything
    loud = tracks.with_thoughts(tracks.pyramids * 100 + 7)
    net = StatesToMotion(StatesConfig(2, 6, 24, HORIZON, hidden=16)).eval()
    said = [table.states_of(t, samples, 200_000_000, HORIZON) for t in (tracks, loud)]
    for pyramid, poses, future in said:
        assert not pyramid.any() and pyramid.shape == (len(samples), 2, 2, 6)
        assert torch.equal(poses, tracks.poses[samples]) and future.shape == (len(samples), HORIZON, 24, 3)
    one, two = (net(pyramid, poses)[0] for pyramid, poses, _ in said)
    assert torch.equal(one, two)
    late = tracks.origins(1)[-1:]
    assert table.states_of(tracks, late, 200_000_000, 4)[0].any()


# ---------------------------------------------------------------- the control


def test_the_random_encoder_s_cache_has_the_thoughts_of_the_other(tmp_path: Path) -> None:
    some = episodes(2)
    first = cache.Maker(small_net(), think, "noise")
    cache.fill(some, first, tmp_path / "shipped")
    other = cache.Maker(small_net(7), thoughts=(tmp_path / "shipped", first.made_by))
    assert other.made_by not in (first.made_by, cache.Maker(small_net(7)).made_by)
    assert cache.fill(some, other, tmp_path / "random") == 2
    shipped = cache.load(some, tmp_path / "shipped", first.made_by)
    for one, two in zip(shipped, cache.load(some, tmp_path / "random", other.made_by), strict=True):
        assert torch.equal(one.pyramids, two.pyramids) and torch.equal(one.thought_ns, two.thought_ns)
        assert one.texts == two.texts and len(one.texts) and torch.equal(one.index, two.index)
        assert not torch.equal(one.full, two.full)
    with pytest.raises(cache.CacheError, match="is missing"):
        cache.fill(some, cache.Maker(small_net(7), thoughts=(tmp_path / "no", first.made_by)), tmp_path / "nothing")
