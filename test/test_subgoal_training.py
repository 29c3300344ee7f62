"""Stage `subgoal`: the target is what is seen a horizon later, and the reading says how little a head may know."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import save_every_step, simulate, tracks_of

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.thinker.subgoal import SubgoalConfig, SubgoalHead
from thinkjepa_ros.train import clips
from thinkjepa_ros.train.mini import untrained
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.subgoal import Lessons, read, train, train_subgoal
from thinkjepa_ros.train.tracks import Tracks
from thinkjepa_ros.values import Frame

HORIZON_S = 1.5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    simulate(out / "val", 2, 1_000_000)
    simulate(out / "train", 2)
    return out


@pytest.fixture(scope="module")
def episodes(data: Path) -> list[Episode]:
    return clips.load_folder(data / "train")


@pytest.fixture(scope="module")
def tracks(episodes: list[Episode]) -> Tracks:
    return tracks_of(episodes)


def a_head(seed: int = 0, tokens: int = 4, width: int = 5) -> SubgoalHead:
    torch.manual_seed(seed)
    return SubgoalHead(SubgoalConfig((0, 1), 6, tokens, width, HORIZON_S, "test", hidden=32))


def made_up(count: int, seed: int = 0) -> Lessons:
    """Thoughts that tell all of their target but for some noise, and latents of now that tell nothing."""
    g = torch.Generator().manual_seed(seed)
    pyramids = torch.randn(count, 2, 2, 6, generator=g)
    into = torch.randn(6, 20, generator=torch.Generator().manual_seed(77))
    said = torch.nn.functional.layer_norm(pyramids[:, 1, 0], (6,))
    later = (said @ into).view(count, 4, 5) + 0.05 * torch.randn(count, 4, 5, generator=g)
    return Lessons(
        pyramids, torch.ones(count, 2, dtype=torch.bool), torch.randn(count, 4, 5, generator=g), later,
        torch.arange(count).roll(1),
    )  # fmt: skip


def fit(lessons: Lessons, folder: Path, steps: int = 300, **changes) -> tuple[SubgoalHead, Run]:
    head = a_head()
    options = {"steps": steps, "batch_size": 32, "lr": 3e-3, "seed": 1, "describe": {"a": 1}, **changes}
    return head, train(lessons, head, folder, quiet=True, **options)


# ---------------------------------------------------------------- the target


def test_the_target_is_the_latent_a_horizon_after_the_thought_or_the_last(tracks: Tracks) -> None:
    lessons = Lessons.of(tracks, HORIZON_S)
    assert len(lessons) == len(tracks.thought_ns) == len(lessons.now) == len(lessons.later)
    ended = 0
    for k, stamp in enumerate(tracks.thought_ns):
        e = int(np.searchsorted(tracks.thoughts, k, side="right")) - 1
        numbers = np.flatnonzero(tracks.episode == e)
        times = tracks.stamps_ns[numbers]
        seen = numbers[times <= stamp][-1] if (times <= stamp).any() else numbers[0]
        assert torch.equal(lessons.now[k], tracks.pooled[seen].float())
        wanted = stamp + HORIZON_S * 1e9
        later = numbers[np.abs(times - wanted).argmin()]
        assert torch.equal(lessons.later[k], tracks.pooled[later].float())
        if wanted <= times[-1]:
            assert abs(tracks.stamps_ns[later] - wanted) <= 0.051e9
        else:
            ended += 1
            assert later == numbers[-1], "the finished scene"
    assert 0 < ended < len(lessons)


def test_the_other_thought_is_of_another_episode_and_as_far_into_it(tracks: Tracks) -> None:
    other = Lessons.of(tracks, HORIZON_S).other.numpy()
    of = lambda k: np.searchsorted(tracks.thoughts, k, side="right") - 1  # noqa: E731
    for k, n in enumerate(other):
        assert of(k) != of(n)
        counts = np.diff(tracks.thoughts)
        assert n - tracks.thoughts[of(n)] == min(k - tracks.thoughts[of(k)], counts[of(n)] - 1)


def test_an_episode_without_thoughts_is_left_out_and_none_at_all_is_refused(
    episodes: list[Episode], tracks: Tracks
) -> None:
    count = int(tracks.thoughts[1])
    later = dataclasses.replace(
        tracks,
        thought_ns=tracks.thought_ns[count:],
        pyramids=tracks.pyramids[count:],
        thoughts=np.array([0, 0, len(tracks.thought_ns) - count]),
    )
    whole, part = Lessons.of(tracks, HORIZON_S), Lessons.of(later, HORIZON_S)
    assert torch.equal(part.later, whole.later[count:])
    silent = dataclasses.replace(
        tracks, thought_ns=tracks.thought_ns[:0], pyramids=tracks.pyramids[:0], thoughts=np.zeros(3, np.int64)
    )
    with pytest.raises(ValueError, match="no thoughts to learn sub-goals from"):
        Lessons.of(silent, HORIZON_S)


def test_a_stream_of_nothing_but_zeros_is_absent(tracks: Tracks) -> None:
    pyramids = tracks.pyramids.clone()
    pyramids[1, :, 1] = 0
    assert Lessons.of(tracks.with_thoughts(pyramids), HORIZON_S).present[:3].tolist() == [
        [True, True],
        [True, False],
        [True, True],
    ]


# ---------------------------------------------------------------- learning


def test_a_head_learns_what_thoughts_tell_and_the_reading_shows_it(tmp_path: Path) -> None:
    lessons = made_up(512)
    head, _ = fit(lessons, tmp_path)
    mean = lessons.later.mean(0)
    reading = read(head, made_up(128, seed=9), mean, 3)
    assert reading.head < 0.4 * reading.mean < reading.copy
    assert reading.other > 2.5 * reading.head, "the thought of another episode leads it astray"
    assert reading.thoughts == 128 and "128 thoughts of 3 episodes" in reading.sentence
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert log[0] == "step,seconds,l1,over_copy,over_mean,grad"
    first, last = (dict(zip(log[0].split(","), map(float, row.split(",")), strict=True)) for row in (log[1], log[-1]))
    assert last["over_mean"] < 0.5 < first["over_mean"] and last["over_copy"] < last["over_mean"]


def test_where_thoughts_tell_nothing_the_head_is_no_better_than_the_mean(tmp_path: Path) -> None:
    lessons = made_up(512)
    deaf = dataclasses.replace(lessons, later=lessons.later[torch.randperm(512)])
    head, _ = fit(deaf, tmp_path, 100)
    shown = made_up(256, seed=9)
    reading = read(head, dataclasses.replace(shown, later=shown.later.roll(1, 0)), lessons.later.mean(0), 3)
    assert reading.head > 0.97 * reading.mean and abs(reading.other / reading.head - 1) < 0.1


def test_a_head_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = made_up(64)
    whole, _ = fit(lessons, tmp_path / "whole", 6)
    real, done = Run.update, []

    def update(run: Run, loss: torch.Tensor) -> float:
        done.append(run.step)
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(run, loss)

    save_every_step(monkeypatch)
    monkeypatch.setattr(Run, "update", update)
    with pytest.raises(KeyboardInterrupt):
        fit(lessons, tmp_path / "cut", 6)
    again, _ = fit(lessons, tmp_path / "cut", 6)
    assert done == [0, 1, 2, 3, 3, 4, 5]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


# ---------------------------------------------------------------- the whole stage


def test_the_stage_leaves_a_head_that_a_thought_carries(data: Path, tmp_path: Path) -> None:
    thinker = tiny.build(tmp_path / "thinker")
    untrained(tmp_path / "model")
    made = train_subgoal(
        data, tmp_path / "head", init=tmp_path / "model", run=tmp_path / "run", thinker=thinker, steps=3, batch_size=4,
        limit=1, val_limit=1, threads=1,
    )  # fmt: skip
    assert made.episodes == 1 and made.thoughts > 3
    assert len(list((tmp_path / "run" / "cache").iterdir())) == 2, "one of train, one of val"
    net, manifest = model.load(tmp_path / "model")
    mind = Thinker.load(thinker, subgoal=tmp_path / "head")
    size = mind.image_size
    picture = np.zeros((*size, 3), np.uint8)
    thought = mind.think([Frame(picture, k * 250_000_000) for k in range(3)], "", max_new_tokens=2)
    assert thought.subgoal is not None and thought.subgoal.space == manifest.model_id
    assert thought.subgoal.horizon_s == pytest.approx(3.2) and thought.subgoal.trained
    assert thought.subgoal.latent.shape == (net.config.predictor.pooled**2, net.config.encoder.width)
