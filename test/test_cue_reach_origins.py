"""Origins lie where the protocol says, whatever a model thinks, and their truth is that of the episode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from table_kit import CONTEXT, HORIZON, STEP_S, STEPS, episodes, make_truth, shards

from thinkjepa_ros.data.episode import PHASES, Episode
from thinkjepa_ros.evaluation.cue_reach.origins import GROUPS, MAIN, Truth, choose
from thinkjepa_ros.train.tracks import Tracks

REACH, TRANSPORT = PHASES.index("reach"), PHASES.index("transport")
SPLITS = ("lamp", "distractor", "text", "none")


@pytest.fixture(scope="module")
def tracks() -> Tracks:
    return Tracks.of(episodes(), shards())


@pytest.fixture(scope="module")
def truth(tracks: Tracks) -> Truth:
    return make_truth(episodes(), tracks)


def samples(tracks: Tracks, number: int, chosen: tuple[np.ndarray, np.ndarray], group: str) -> list[int]:
    """Origins of one group in one episode, in order of time."""
    at = chosen[0][(chosen[1] == GROUPS.index(group)) & (tracks.episode[chosen[0]] == number)]
    return sorted(int(sample) for sample in at)


def one(episode: Episode, which: int = 0) -> tuple[Tracks, dict[str, list[int]]]:
    """Tracks of a changed episode over the shard of an unchanged one, and its origins."""
    tracks = Tracks.of([episode], shards()[which : which + 1])
    chosen = choose([episode], tracks, CONTEXT, STEP_S)
    return tracks, {name: samples(tracks, 0, chosen, name) for name in GROUPS}


# ---------------------------------------------------------------- where they lie


@pytest.mark.parametrize("number", range(4), ids=SPLITS)
def test_origins_lie_so_many_seconds_before_and_after_the_phases_begin(tracks: Tracks, number: int) -> None:
    episode, chosen = episodes()[number], choose(episodes(), tracks, CONTEXT, STEP_S)
    of = np.flatnonzero(tracks.episode == number)
    stamps, phases = tracks.stamps_ns[of], tracks.phases[of]

    def at(seconds: float) -> int:
        """The grid sample at this time of the episode."""
        nearest = int(np.abs(stamps * 1e-9 - seconds).argmin())
        assert abs(stamps[nearest] * 1e-9 - seconds) < 0.01
        return int(of[nearest])

    begin, carried = (stamps[np.flatnonzero(phases == phase)[0]] * 1e-9 for phase in (REACH, TRANSPORT))
    last = begin - STEP_S
    wanted = {
        "wait": [at(last - 1.5), at(last - 1.0)],
        "ready": [at(last - 0.2), at(last)],
        "reach": [at(begin + 0.3), at(begin + 0.8)],
        "transport": [at(carried + 0.3), at(carried + 0.8)],
        "before": [],
    }
    if episode.cue_ns is not None:
        gone = int(of[np.flatnonzero(stamps >= episode.cue_ns[1])[0]])
        for name in ("wait", "ready"):
            wanted[name] = [sample for sample in wanted[name] if sample - CONTEXT + 1 >= gone]
        wanted["before"] = [int(of[np.flatnonzero(stamps < episode.cue_ns[0])[-1]])]
    assert len(wanted["ready"]) == 2
    for name, samples_ in wanted.items():
        assert samples(tracks, number, chosen, name) == samples_, name
    for name, phase in (("reach", REACH), ("transport", TRANSPORT)):
        assert (tracks.phases[samples(tracks, number, chosen, name)] == phase).all()
    for name in ("before", "wait", "ready"):
        assert (tracks.phases[samples(tracks, number, chosen, name)] < REACH).all()


def test_the_main_rows_begin_when_the_hand_is_ready() -> None:
    assert MAIN == "ready" and GROUPS == ("before", "wait", "ready", "reach", "transport")


def test_only_an_episode_with_a_cue_has_an_origin_before_it(tracks: Tracks, truth: Truth) -> None:
    before = truth.group == GROUPS.index("before")
    assert truth.split[before].tolist() == ["lamp", "distractor"]
    for number, sample in zip(truth.episode[before], truth.sample[before], strict=True):
        cue = episodes()[number].cue_ns
        assert cue is not None and tracks.stamps_ns[sample] < cue[0] <= tracks.stamps_ns[sample + 1]


def test_no_frame_of_the_dense_window_shows_the_cue_at_the_origins_after_it(tracks: Tracks, truth: Truth) -> None:
    for name in ("wait", "ready", "reach", "transport"):
        for n in np.flatnonzero(truth.group == GROUPS.index(name)):
            episode, sample = episodes()[truth.episode[n]], truth.sample[n]
            if episode.cue_ns is None:
                continue
            seen = episode.stamps_ns[tracks.frames[sample - CONTEXT + 1] : tracks.frames[sample] + 1]
            assert seen[0] >= episode.cue_ns[1], name


@pytest.mark.parametrize("left_s", [0.0, 0.55, 0.7, 0.75, 0.95, 1.6, 1.75, 2.35])
def test_an_origin_whose_window_still_holds_the_cue_is_left_out(left_s: float) -> None:
    """left_s: from the end of the cue to the last sample before the reach."""
    lamp = episodes()[0]
    tracks, all_of = one(lamp)
    last = all_of["ready"][-1]
    assert lamp.cue_ns is not None
    cue = (lamp.cue_ns[0], int(tracks.stamps_ns[last] - left_s * 1e9))
    _, found = one(dataclasses.replace(lamp, cue_ns=cue))
    for name, backs in (("wait", (1.5, 1.0)), ("ready", (0.2, 0.0))):
        oldest = [back + (CONTEXT - 1) * STEP_S for back in backs]
        assert len(found[name]) == sum(left_s > one_ - 0.01 for one_ in oldest), name
        assert set(found[name]) <= set(all_of[name])
    assert found["before"] == all_of["before"] and found["reach"] == all_of["reach"]


def test_an_origin_has_its_whole_context_and_its_future_in_its_own_episode(tracks: Tracks) -> None:
    every = choose(episodes(), tracks, 2, STEP_S)
    for context in (2, 8, 14, 25):
        chosen, groups = choose(episodes(), tracks, context, STEP_S)
        assert (chosen - tracks.begin[chosen] >= context - 1).all() and (tracks.end[chosen] - chosen > 1).all()
        assert np.isin(chosen, every[0]).all() and len(chosen) == len(groups)
    assert not samples(tracks, 0, choose(episodes(), tracks, 14, STEP_S), "before"), "the cue lights too early for that"
    assert not len(choose(episodes(), tracks, 10_000, STEP_S)[0])


@pytest.mark.parametrize("number", range(4), ids=SPLITS)
def test_an_episode_in_which_nothing_moves_has_no_origin(number: int) -> None:
    still = dataclasses.replace(
        episodes()[number], phases=np.minimum(episodes()[number].phases, PHASES.index("wait")).astype(np.uint8)
    )
    assert not any(one(still, number)[1].values())


def test_an_episode_that_ends_in_the_reach_has_no_origin_in_the_transport() -> None:
    lamp = episodes()[0]
    _, whole = one(lamp)
    _, found = one(dataclasses.replace(lamp, phases=np.minimum(lamp.phases, REACH).astype(np.uint8)))
    assert found == {**whole, "transport": []}


def test_an_episode_that_begins_in_the_reach_has_no_origin_before_it() -> None:
    lamp = episodes()[0]
    late = dataclasses.replace(lamp, phases=np.maximum(lamp.phases, REACH).astype(np.uint8), cue_ns=None)
    _, found = one(late)
    assert not (found["before"] or found["wait"] or found["ready"] or found["reach"]) and len(found["transport"]) == 2


# ---------------------------------------------------------------- chosen by nothing else


def test_choosing_looks_at_no_latent_no_pose_and_no_thought(tracks: Tracks) -> None:
    chosen = choose(episodes(), tracks, CONTEXT, STEP_S)
    again = choose(episodes(), tracks, CONTEXT, STEP_S)
    nothing = {name: torch.full_like(getattr(tracks, name), torch.nan) for name in ("full", "pooled", "poses")}
    blind = dataclasses.replace(tracks, **nothing, pyramids=tracks.pyramids * torch.nan, texts=())
    blind = dataclasses.replace(blind, joints=tracks.joints * torch.nan)
    for other in (again, choose(episodes(), blind, CONTEXT, STEP_S)):
        assert np.array_equal(chosen[0], other[0]) and np.array_equal(chosen[1], other[1])


def test_an_episode_has_the_same_origins_alone_and_among_others(tracks: Tracks) -> None:
    chosen = choose(episodes(), tracks, CONTEXT, STEP_S)
    for number in range(4):
        offset = int(np.flatnonzero(tracks.episode == number)[0])
        alone = one(episodes()[number], number)[1]
        for name in GROUPS:
            assert [sample + offset for sample in alone[name]] == samples(tracks, number, chosen, name)
    assert (np.diff(tracks.episode[chosen[0]]) >= 0).all(), "in order of the episodes"


# ---------------------------------------------------------------- what is true there


def test_truth_is_that_of_the_episode_seen_from_the_origin(tracks: Tracks, truth: Truth) -> None:
    assert truth.future.shape == (len(truth.sample), HORIZON, 24, 3)
    unknown = 0
    for n, (number, sample) in enumerate(zip(truth.episode, truth.sample, strict=True)):
        episode, frame = episodes()[number], int(tracks.frames[sample])
        assert np.allclose(truth.present[n], episode.joints_in_camera(frame), atol=1e-5)
        for t in range(HORIZON):
            later = sample + 1 + t
            if later >= tracks.end[sample]:
                assert np.isnan(truth.future[n, t]).all()
                unknown += 1
            else:
                wanted = episode.points_in_camera(int(tracks.frames[later]), frame)
                assert np.allclose(truth.future[n, t], wanted, atol=1e-5, equal_nan=True)
    assert unknown, "some episodes end within the horizon"


def test_latents_ahead_are_means_over_whole_tubelets_of_the_same_episode(tracks: Tracks, truth: Truth) -> None:
    assert truth.steps_per_tubelet == STEPS and truth.latents.dtype == np.float16
    for n, sample in enumerate(truth.sample):
        for k, known in enumerate(truth.latents_known[n]):
            first = sample + 1 + k * STEPS
            assert known == (first + STEPS <= tracks.end[sample])
            if known:
                wanted = tracks.pooled[first : first + STEPS].float().mean(0).numpy()
                assert np.allclose(truth.latents[n, k].astype(np.float32), wanted, atol=5e-3)


def test_the_intent_was_told_in_every_split_but_none(truth: Truth) -> None:
    assert set(truth.split) == set(SPLITS)
    assert (truth.told == (truth.split != "none")).all()
    assert (truth.split == np.array([e.split for e in episodes()])[truth.episode]).all()


def test_a_joint_that_is_not_known_stays_unknown(tracks: Tracks) -> None:
    joints = tracks.joints.clone()
    joints[:, 5] = torch.nan
    other = make_truth(episodes(), dataclasses.replace(tracks, joints=joints))
    assert np.isnan(other.present[:, 5]).all() and np.isfinite(other.present[:, :5]).all()
    assert np.isnan(other.future[:, :, 5]).all() and np.isfinite(other.future[:, 0, 6:]).all()
