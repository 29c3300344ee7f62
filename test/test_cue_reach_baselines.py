"""The rows of the cue-reach table that need no network: what they see, and what they are fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from table_kit import CONTEXT, HORIZON, STEP_S, episodes, make_scene, same, shards

from thinkjepa_ros.evaluation.cue_reach import rows
from thinkjepa_ros.evaluation.cue_reach.origins import GROUPS, choose
from thinkjepa_ros.evaluation.cue_reach.rows import IMAGE, INPUTS, POSE, Prediction, Ridge, Scene
from thinkjepa_ros.train.tracks import Tracks


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(episodes(), Tracks.of(episodes(), shards()))


def named(predictions: Sequence[Prediction], row: str, inputs: str = IMAGE) -> Prediction:
    return next(p for p in predictions if (p.row, p.inputs) == (row, inputs))


# ---------------------------------------------------------------- rows that need no training


@pytest.mark.parametrize("inputs", INPUTS)
def test_hold_and_the_velocities_go_on_from_the_joints_that_the_row_may_see(scene: Scene, inputs: str) -> None:
    made = list(rows.simple(scene))
    hold, constant, damped = (named(made, n, inputs) for n in ("hold", "constant velocity", "damped velocity"))
    ahead = STEP_S * np.arange(1, HORIZON + 1)
    for n, sample in enumerate(scene.truth.sample):
        if inputs == IMAGE:
            past = scene.tracks.poses[sample - CONTEXT + 1 : sample + 1].numpy()
        else:
            episode, frame = episodes()[scene.truth.episode[n]], int(scene.tracks.frames[sample])
            frames = scene.tracks.frames[sample - CONTEXT + 1 : sample + 1]
            past = episode.points_in_camera(frames, frame)
        recent = past[-4:].reshape(4, -1)  # 0.35 s
        slope = np.polyfit(np.arange(4) * STEP_S, recent, 1)[0].reshape(24, 3)
        assert np.allclose(hold.positions[n], past[-1], atol=1e-5)
        assert np.allclose(constant.positions[n], past[-1] + ahead[:, None, None] * slope, atol=1e-4)
        travel = 0.4 * (1 - np.exp(-ahead / 0.4))
        assert np.allclose(damped.positions[n], past[-1] + travel[:, None, None] * slope, atol=1e-4)
        if inputs == IMAGE:
            assert hold.latents is not None
            assert (hold.latents[n] == scene.tracks.pooled[sample].numpy()).all(), "copying the newest frame"
    assert hold.seed == 0 and constant.latents is damped.latents is None


# ---------------------------------------------------------------- fitted rows


FITTED = 20


def brief(scene: Scene, steps: int) -> Scene:
    """The same with a shorter horizon: every step of the ridge takes its time."""
    return dataclasses.replace(scene, truth=dataclasses.replace(scene.truth, future=scene.truth.future[:, :steps]))


@pytest.fixture(scope="module")
def fitted(scene: Scene) -> list[Prediction]:
    return list(rows.fitted(brief(scene, FITTED), scene.tracks, *choose(episodes(), scene.tracks, CONTEXT, STEP_S)))


def displacement(tracks: Tracks, sample: int) -> np.ndarray:
    """True displacements after a sample in its camera frame, [T, J, 3], with the geometry of the episode."""
    episode, frame = episodes()[tracks.episode[sample]], int(tracks.frames[sample])
    out = np.full((FITTED, 24, 3), np.nan)
    for t in range(FITTED):
        if sample + 1 + t < tracks.end[sample]:
            later = int(tracks.frames[sample + 1 + t])
            out[t] = episode.points_in_camera(later, frame) - episode.joints_in_camera(frame)
    return out


@pytest.mark.parametrize("inputs", INPUTS)
def test_mean_displacement_is_the_mean_of_what_the_training_episodes_did(
    scene: Scene, fitted: list[Prediction], inputs: str
) -> None:
    tracks, truth = scene.tracks, scene.truth
    taken = [n for n in range(len(tracks)) if n - tracks.begin[n] >= CONTEXT - 1 and n + 1 < tracks.end[n]][::3]
    everywhere = np.nanmean(np.stack([displacement(tracks, n) for n in taken]), 0)
    start = truth.present if inputs == POSE else tracks.poses[torch.from_numpy(truth.sample)].numpy()
    moved = named(fitted, "mean displacement", inputs).positions - start[:, None]
    assert np.allclose(moved, everywhere, atol=1e-4)
    moved = named(fitted, "mean displacement, same phase", inputs).positions - start[:, None]
    for group in np.unique(truth.group):
        here = truth.group == group
        whole = np.stack([displacement(tracks, int(n)) for n in truth.sample[here]])
        reached = [t for t in range(FITTED) if np.isfinite(whole[:, t]).any()]
        for t in range(FITTED):
            wanted = np.nanmean(whole[:, max(k for k in reached if k <= t)], 0)
            assert np.allclose(moved[here, t], wanted, atol=1e-4), (GROUPS[group], t)
        if GROUPS[group] == "transport":
            assert len(reached) < FITTED, "no episode goes on so long: the last mean stays"


def test_fitted_rows_never_look_at_the_future_of_the_test_episodes(scene: Scene) -> None:
    short, chosen = brief(scene, 4), choose(episodes(), scene.tracks, CONTEXT, STEP_S)
    unknown = np.full_like(short.truth.future, np.nan)
    blind = dataclasses.replace(short, truth=dataclasses.replace(short.truth, future=unknown))
    fitted, again = (list(rows.fitted(s, scene.tracks, *chosen)) for s in (short, blind))
    assert same(fitted, again)
    assert {p.row for p in again} == {"mean displacement", "mean displacement, same phase", "ridge on past joints"}


def test_a_group_that_no_training_episode_has_is_left_out_of_the_mean_that_is_told_the_phase(scene: Scene) -> None:
    samples, groups = choose(episodes(), scene.tracks, CONTEXT, STEP_S)
    kept = groups != GROUPS.index("before")
    made = list(rows.fitted(brief(scene, 1), scene.tracks, samples[kept], groups[kept]))
    positions = named(made, "mean displacement, same phase").positions
    before = scene.truth.group == GROUPS.index("before")
    assert np.isnan(positions[before]).all() and np.isfinite(positions[~before]).all()


def toy(count: int = 400, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [N, 5], targets [N, 8, 2] that are linear in them, episode [N]; some targets are not known."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, 5)) * [1, 10, 0.1, 3, 1] + 2
    targets = np.einsum("nf,tfk->ntk", features, rng.normal(size=(8, 5, 2))) + noise * rng.normal(size=(count, 8, 2))
    targets[rng.random((count, 8)) < 0.2] = np.nan
    targets[7, 3, 1] = np.nan
    return features, targets, np.repeat(np.arange(count // 20), 20)


def by_hand(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Predictions [N, T, K] for `features` by an augmented least squares fit at every step."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    x = np.concatenate((x, np.ones((len(x), 1))), 1)
    shrink = np.diag(np.sqrt(penalty * np.array([1.0] * features.shape[1] + [1e-6])))
    out = []
    for t in range(targets.shape[1]):
        known = np.isfinite(targets[:, t]).all(-1)
        augmented = np.concatenate((x[known], shrink))
        wanted = np.concatenate((targets[known, t], np.zeros((len(shrink), targets.shape[2]))))
        out.append(x @ np.linalg.lstsq(augmented, wanted, rcond=None)[0])
    return np.stack(out, 1)


def test_ridge_is_a_least_squares_fit_with_one_of_the_penalties_over_what_is_known() -> None:
    features, targets, episode = toy()
    found = Ridge.fit(features, targets, episode)(features)
    assert np.allclose(found, by_hand(features, targets, 10.0), atol=1e-6), "hardly any noise: the least penalty"
    error = np.nanmean(np.abs(found - targets))
    assert error < 0.1 * np.nanmean(np.abs(targets)), "hold would be 0 in these terms"


def test_ridge_chooses_its_penalty_on_whole_training_episodes_that_it_did_not_fit() -> None:
    """Episodes are all alike within and unlike each other: fitting them closely helps within, and nowhere else."""
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(20, 30)), 20, 0) + 0.01 * rng.normal(size=(400, 30))
    targets = np.repeat(rng.normal(size=(20, 8, 2)), 20, 0)
    episode = np.repeat(np.arange(20), 20)
    found = Ridge.fit(features, targets, episode)
    assert np.allclose(found(features), by_hand(features, targets, 1e5), atol=1e-5)
    alone = np.arange(400)  # as if each sample were an episode of its own: others tell what it will do
    assert np.allclose(Ridge.fit(features, targets, alone)(features), by_hand(features, targets, 10.0), atol=1e-5)


def test_ridge_beats_hold_where_the_past_tells_the_future(scene: Scene, fitted: list[Prediction]) -> None:
    truth, hold = scene.truth.future[:, :FITTED], named(list(rows.simple(scene)), "hold", POSE).positions[:, :FITTED]
    error = [np.nanmean(np.abs(p - truth)) for p in (named(fitted, "ridge on past joints", POSE).positions, hold)]
    assert error[0] < error[1], "fitted on the same episodes"


# ---------------------------------------------------------------- who guides
