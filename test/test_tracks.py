"""Windows of many episodes are those that one would take by hand, one by one; no thought comes from the future."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training_kit import maker, simulate

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.train import clips
from thinkjepa_ros.train.cache import Shard
from thinkjepa_ros.train.tracks import Tracks

CONTEXT, TUBELETS, STEPS = 4, 3, 2
HORIZON = TUBELETS * STEPS


def with_gaps(episode: Episode) -> Episode:
    """Some joints are not known at some times."""
    joints = episode.joints.copy()
    joints[10:14, 3] = np.nan
    joints[20, :] = np.nan
    return dataclasses.replace(episode, joints=joints)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    return [with_gaps(e) for e in clips.load_folder(simulate(tmp_path_factory.mktemp("data"), 2))]


@pytest.fixture(scope="module")
def shards(episodes: list[Episode]) -> list[Shard]:
    return [maker().make(e) for e in episodes]


@pytest.fixture(scope="module")
def tracks(episodes: list[Episode], shards: list[Shard]) -> Tracks:
    return Tracks.of(episodes, shards)


def samples_of(shards: list[Shard]) -> list[tuple[int, int]]:
    """Episode and grid sample of every number."""
    return [(e, g) for e, shard in enumerate(shards) for g in range(len(shard.index))]


def seen_from(episode: Episode, frame: int, reference: int) -> np.ndarray:
    """Joints at `frame` in the camera of `reference`, with 4 x 4 matrices, float64 [J, 3]."""
    points = np.concatenate((episode.joints[frame], np.ones((len(episode.joint_names), 1))), 1)
    return (points @ np.linalg.inv(episode.camera_pose[reference]).T)[:, :3]


def close(one: torch.Tensor, other: np.ndarray | torch.Tensor) -> bool:
    return np.allclose(np.asarray(one), np.asarray(other), atol=1e-5, equal_nan=True)


def test_a_window_is_what_one_would_take_by_hand(episodes: list[Episode], shards: list[Shard], tracks: Tracks) -> None:
    origins = tracks.origins(CONTEXT)
    w = tracks.window(origins, CONTEXT, TUBELETS, STEPS)
    past = tracks.true_past(origins, CONTEXT)
    numbers = samples_of(shards)
    for row, origin in enumerate(origins):
        e, g = numbers[origin]
        episode, shard = episodes[e], shards[e]
        frame = int(shard.index[g])
        behind = range(g + 1 - CONTEXT, g + 1)
        assert torch.equal(w.past[row], torch.stack([shard.pooled[k] for k in behind][:-1]).float())
        assert torch.equal(w.now[row], shard.full[g].float())
        assert torch.equal(w.poses[row], torch.stack([shard.poses[k] for k in behind]))
        assert close(w.present[row], seen_from(episode, frame, frame))
        assert close(past[row], np.stack([seen_from(episode, int(shard.index[k]), frame) for k in behind]))
        for t in range(HORIZON):
            after = g + 1 + t >= len(shard.index)
            truth = np.nan if after else seen_from(episode, int(shard.index[g + 1 + t]), frame)
            assert close(w.future[row, t], np.broadcast_to(truth, w.future[row, t].shape)), (origin, t)
        for n in range(TUBELETS):
            parts = [k for k in range(g + 1 + n * STEPS, g + 1 + (n + 1) * STEPS) if k < len(shard.index)]
            assert bool(w.latents_known[row, n]) == (len(parts) == STEPS)
            if len(parts) == STEPS:
                assert close(w.latents[row, n], torch.stack([shard.pooled[k].float() for k in parts]).mean(0))
            else:
                assert not w.latents[row, n].any()


def test_after_the_end_of_an_episode_nothing_is_known_and_the_next_one_is_not_looked_at(tracks: Tracks) -> None:
    last = int(tracks.end[0]) - 2
    w = tracks.window(np.array([last]), CONTEXT, TUBELETS, STEPS)
    assert w.future[0, 0].isfinite().any() and w.future[0, 1:].isnan().all()
    assert not w.latents_known.any() and not w.latents.any()
    other = dataclasses.replace(tracks, joints=tracks.joints.clone(), pooled=tracks.pooled.clone())
    other.joints[last + 2 :] = 7.0
    other.pooled[last + 2 :] = 7.0
    again = other.window(np.array([last]), CONTEXT, TUBELETS, STEPS)
    for one, two in zip(vars(w).values(), vars(again).values(), strict=True):
        assert torch.equal(one.nan_to_num(9.0), two.nan_to_num(9.0))


def test_origins_have_a_whole_context_behind_them_and_something_ahead(shards: list[Shard], tracks: Tracks) -> None:
    wanted = [n for n, (e, g) in enumerate(samples_of(shards)) if g >= CONTEXT - 1 and g + 1 < len(shards[e].index)]
    assert tracks.origins(CONTEXT).tolist() == wanted
    assert not len(tracks.origins(10_000))


def test_samples_know_their_episode_and_frame(episodes: list[Episode], shards: list[Shard], tracks: Tracks) -> None:
    assert len(tracks) == sum(len(s.index) for s in shards)
    for n, (e, g) in enumerate(samples_of(shards)):
        frame = int(shards[e].index[g])
        assert (tracks.episode[n], tracks.frames[n]) == (e, frame)
        assert tracks.stamps_ns[n] == episodes[e].stamps_ns[frame]
        assert tracks.phases[n] == episodes[e].phases[frame]


@pytest.mark.parametrize("age_ms", [0, 200, 333, 1200, 60_000])
def test_a_thought_is_never_younger_than_asked_and_the_newest_of_those(
    shards: list[Shard], tracks: Tracks, age_ms: int
) -> None:
    rng = np.random.default_rng(age_ms)
    everything = np.arange(len(tracks))
    ages = age_ms * 1_000_000 + rng.integers(0, 50_000_000, len(tracks))
    for age in (age_ms * 1_000_000, ages):
        found = tracks.thought_before(everything, age)
        each = np.broadcast_to(age, everything.shape)
        for n, (e, _) in enumerate(samples_of(shards)):
            begin = sum(len(s.thought_ns) for s in shards[:e])
            old_enough = [
                begin + k
                for k, stamp in enumerate(shards[e].thought_ns.tolist())
                if tracks.stamps_ns[n] - stamp >= each[n]
            ]
            assert found[n] == (old_enough[-1] if old_enough else -1)


def test_thoughts_keep_their_states_and_words(shards: list[Shard], tracks: Tracks) -> None:
    assert torch.equal(tracks.pyramids, torch.cat([s.pyramids for s in shards]))
    assert tracks.texts == sum((s.texts for s in shards), ())
    other = tracks.with_thoughts(torch.zeros(len(tracks.texts), 1, 2, 6))
    assert other.pyramids.shape[1] == 1 and other.full is tracks.full


def test_an_episode_without_a_thought_borrows_none(episodes: list[Episode], shards: list[Shard]) -> None:
    silent = dataclasses.replace(
        shards[0], thought_ns=torch.zeros(0, dtype=torch.int64), pyramids=torch.zeros(0, 1, 2, 1), texts=()
    )
    tracks = Tracks.of(episodes, [silent, shards[1]])
    first = tracks.thought_before(np.arange(len(tracks)), 0)
    assert (first[: len(silent.index)] == -1).all() and first[-1] == len(shards[1].thought_ns) - 1
    assert torch.equal(tracks.pyramids, shards[1].pyramids)


def test_a_cache_without_any_thought_is_refused(tracks: Tracks) -> None:
    silent = dataclasses.replace(tracks, thought_ns=tracks.thought_ns[:0], pyramids=tracks.pyramids[:0])
    with pytest.raises(ValueError, match="holds no thoughts"):
        silent.thought_before(np.arange(8, 10), 0)
