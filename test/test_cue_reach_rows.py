"""Rows of the cue-reach table: each is what its name says, sees what it may see, and nothing of the future."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cue_reach_kit import make_truth as made_up
from table_kit import HORIZON, episodes, make_scene, same, shards, small_net, with_tracks

from thinkjepa_ros.evaluation.cue_reach import rows
from thinkjepa_ros.evaluation.cue_reach.origins import Truth
from thinkjepa_ros.evaluation.cue_reach.removed import without_cue
from thinkjepa_ros.evaluation.cue_reach.rows import AGE_NS, IMAGE, INPUTS, Guide, Prediction, Scene
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.train.forecast import thoughts
from thinkjepa_ros.train.mini import thinker_over
from thinkjepa_ros.train.table import ORACLE_SCALE, StatesConfig, StatesToMotion, intent_word, oracle_states
from thinkjepa_ros.train.tracks import Tracks
from thinkjepa_ros.values import Frame, Guidance

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(episodes(), Tracks.of(episodes(), shards()))


net = functools.cache(small_net)


# ---------------------------------------------------------------- rows that need no training


def test_a_shuffled_thought_is_of_another_episode_and_an_origin_of_the_same_kind() -> None:
    truth = made_up(24)
    other = rows.shuffled(Scene(None, truth, 8))  # type: ignore[arg-type]
    assert sorted(other) == list(range(len(other))), "every thought is used once"
    assert (truth.episode[other] != truth.episode).all()
    assert (truth.group[other] == truth.group).all() and (truth.told[other] == truth.told).all()
    assert np.array_equal(other, rows.shuffled(Scene(None, truth, 8)))  # type: ignore[arg-type]
    assert not np.array_equal(other, rows.shuffled(Scene(None, truth, 8), seed=1))  # type: ignore[arg-type]


def repeated(truth: Truth, times: int) -> Truth:
    """Every origin so many times."""
    count = len(truth.sample)
    arrays = {n: v.repeat(times, 0) for n, v in vars(truth).items() if isinstance(v, np.ndarray) and len(v) == count}
    return dataclasses.replace(truth, **arrays)


def test_a_thought_of_any_time_is_of_another_episode_and_of_all_its_phases(scene: Scene) -> None:
    many = dataclasses.replace(scene, truth=repeated(scene.truth, 60))
    drawn = rows.anytime(many)
    assert (many.tracks.episode[drawn] != many.truth.episode).all()
    assert (many.tracks.thought_before(drawn, AGE_NS) >= 0).all(), "there is a thought by then"
    assert len(np.unique(many.tracks.phases[drawn])) == len(np.unique(many.tracks.phases)), "no phase is left out"
    assert (many.tracks.phases[drawn] != many.tracks.phases[many.truth.sample]).any(), "the time is not told"
    assert np.array_equal(drawn, rows.anytime(many)) and not np.array_equal(drawn, rows.anytime(many, seed=1))
    alone = dataclasses.replace(scene.tracks, episode=np.zeros_like(scene.tracks.episode))
    truth = dataclasses.replace(scene.truth, episode=np.zeros_like(scene.truth.episode))
    with pytest.raises(ValueError, match="no other episode has a thought"):
        rows.anytime(Scene(alone, truth, scene.context))


def numbered(scene: Scene) -> Scene:
    """Thoughts that say their own numbers."""
    count = len(scene.tracks.thought_ns)
    return with_tracks(scene, pyramids=torch.arange(count)[:, None, None, None].expand(-1, 2, 2, 6).float())


def said_to(scene: Scene, guide: Callable[[Scene], Guide]) -> np.ndarray:
    """Number of the thought that guides each origin, -1 where none does."""
    payload = guide(numbered(scene))(np.arange(len(scene.truth.sample)))
    assert payload is not None and payload.prompt is not None and payload.weight is not None
    found = payload.prompt.flatten(1)[:, 0].long().numpy()
    assert set(payload.weight.tolist()) <= {0.0, 1.0}
    return np.where(payload.weight.numpy() > 0, found, -1)


def newest(scene: Scene, age_s: float) -> np.ndarray:
    """By hand: the newest thought about the episode over frames at least so much older than each origin."""
    tracks, out = scene.tracks, []
    for number, sample in zip(scene.truth.episode, scene.truth.sample, strict=True):
        of = range(tracks.thoughts[number], tracks.thoughts[number + 1])
        old = [k for k in of if tracks.stamps_ns[sample] - tracks.thought_ns[k] >= round(age_s * 1e9)]
        out.append(max(old, default=-1))
    return np.array(out)


def test_a_thought_is_the_newest_that_a_live_thinker_could_have_finished(scene: Scene) -> None:
    found = said_to(scene, rows.by_thinker)
    assert AGE_NS == 200_000_000 and np.array_equal(found, newest(scene, 0.2)) and (found >= 0).any()


@pytest.mark.parametrize("age_s", [0.0, *rows.STALE_S])
def test_a_stale_thought_is_the_newest_that_is_so_old(scene: Scene, age_s: float) -> None:
    found = said_to(scene, lambda s: rows.by_thinker(s, age_s=age_s))
    assert np.array_equal(found, newest(scene, max(0.2, age_s)))
    if age_s >= 4:
        assert (found < 0).any(), "early origins have no thought so old: they are unguided"


def test_another_s_thought_is_the_one_that_would_have_guided_the_other(scene: Scene) -> None:
    other = rows.shuffled(scene)
    samples = scene.truth.sample[other]
    assert np.array_equal(said_to(scene, lambda s: rows.by_another(s, samples)), newest(scene, 0.2)[other])
    told = scene.truth.told
    assert (scene.truth.episode[other] != scene.truth.episode)[told & (scene.truth.group > 0)].all()


def test_a_word_of_the_oracle_is_said_to_everybody(scene: Scene) -> None:
    for intent in range(6):
        payload = rows.by_word(scene, intent)(np.arange(3))
        assert payload is not None and payload.prompt is not None and payload.generated is not None
        for stream in (payload.prompt, payload.generated):
            assert torch.equal(stream, ORACLE_SCALE * intent_word(intent).expand(3, 1, 1, -1))
        assert payload.weight is not None and (payload.weight == 1).all()
    words = oracle_states(episodes(), scene.tracks)
    text = range(scene.tracks.thoughts[2], scene.tracks.thoughts[3])
    intent = episodes()[2].intent
    assert intent is not None
    for k in text:
        assert torch.equal(words[k], ORACLE_SCALE * intent_word(intent["class"]).expand(1, 2, -1)), "as it is trained"


@pytest.mark.parametrize("guided", [True, False])
def test_nothing_of_the_future_changes_a_forecast(scene: Scene, guided: bool) -> None:
    """Latents, poses and joints after an origin, and thoughts that are not finished then, may be anything."""
    guide = rows.by_thinker if guided else (lambda _: rows.nobody)
    tracks, truth = scene.tracks, scene.truth
    for n in range(0, len(truth.sample), 2):
        at, stamp = int(truth.sample[n]), tracks.stamps_ns[truth.sample[n]]
        first, last = tracks.thoughts[truth.episode[n]], tracks.thoughts[truth.episode[n] + 1]
        unknown = np.ones(len(tracks.thought_ns), bool)
        unknown[first:last] = tracks.thought_ns[first:last] > stamp - AGE_NS
        changed = {name: getattr(tracks, name).clone() for name in ("full", "pooled", "poses", "joints", "pyramids")}
        for name, values in changed.items():
            values[torch.from_numpy(unknown) if name == "pyramids" else slice(at + 1, None)] = 7.0
        other, where = with_tracks(scene, **changed), np.array([n])
        one, two = (rows.forecasts(s, net(), "", 0, guide(s), where) for s in (scene, other))
        assert same(one, two)


# ---------------------------------------------------------------- forecasts


def test_a_row_of_a_batch_does_not_depend_on_the_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows.forecasts(scene, net(), "guided", 3, rows.by_thinker(scene))
    own = torch.from_numpy(scene.tracks.episode == 0)
    mine = scene.truth.episode == 0
    changed = {name: getattr(scene.tracks, name).clone() for name in ("full", "pooled", "poses", "joints")}
    for values in changed.values():
        values[~own] = 9.0
    other = with_tracks(scene, **changed)
    again = rows.forecasts(other, net(), "guided", 3, rows.by_thinker(other))
    assert same(whole, again, mine) and not same(whole, again, ~mine)
    monkeypatch.setattr(rows, "_TOGETHER", 3)
    few = rows.forecasts(scene, net(), "guided", 3, rows.by_thinker(scene))
    for a, b in zip(whole, few, strict=True):
        assert np.allclose(a.positions, b.positions, atol=1e-5) and (a.row, a.seed) == ("guided", 3)


@pytest.mark.parametrize("seed", range(2))
def test_elsewhere_nothing_is_said(scene: Scene, seed: int) -> None:
    where = np.random.default_rng(seed).permutation(len(scene.truth.sample))[:5]
    for p in rows.forecasts(scene, net(), "", 0, rows.nobody, where):
        there = np.isin(np.arange(len(p.positions)), where)
        for values in (p.positions, p.sigma, p.latents):
            if values is not None:
                assert np.isnan(values[~there]).all() and np.isfinite(values[there]).all()
        assert (p.latents is not None) == (p.inputs == IMAGE)
    empty = rows.forecasts(scene, net(), "", 0, rows.nobody, np.array([], np.int64))
    assert np.isnan(empty[0].positions).all()


def test_an_observed_pose_is_where_the_forecast_begins(scene: Scene) -> None:
    """A network whose hands never move says where it believes them to be."""
    joints = scene.tracks.joints.clone()
    joints[:, 4] = torch.nan
    some = make_scene(episodes(), dataclasses.replace(scene.tracks, joints=joints))
    still = copy.deepcopy(net())
    for layer in (still.motion.share, still.motion.out):
        torch.nn.init.zeros_(layer.weight)
    still.sigma_scale[1] = 2.0
    image, pose = rows.forecasts(some, still, "", 0, rows.nobody)
    believed = some.tracks.poses[torch.from_numpy(some.truth.sample)].numpy()
    assert np.allclose(image.positions, believed[:, None], atol=1e-6)
    begin = np.where(np.isfinite(some.truth.present), some.truth.present, believed)
    assert np.allclose(pose.positions, begin[:, None], atol=1e-6)
    assert np.isfinite(pose.positions).all() and np.abs(pose.positions - image.positions)[:, :, :4].max() > 0.01
    assert image.sigma is not None and pose.sigma is not None
    ratio = pose.sigma / image.sigma
    seen = np.arange(24) != 4
    assert np.allclose(ratio[:, :, seen], 2.0) and np.allclose(ratio[:, :, 4], 1.0), "calibrated for what is known"


def test_a_guided_network_to_which_nobody_speaks_is_unguided(scene: Scene) -> None:
    silent = rows.forecasts(scene, net(), "", 0, rows.nobody)
    faded = rows.forecasts(scene, net(), "", 0, lambda n: thoughts(scene.tracks, scene.truth.sample[n], AGE_NS, 0.0))
    assert same(silent, faded)
    spoken = rows.forecasts(scene, net(), "", 0, rows.by_thinker(scene))
    none = newest(scene, 0.2) < 0
    assert same(silent, spoken, none)
    for a, b in zip(silent, spoken, strict=True):
        assert (a.positions != b.positions).any((1, 2, 3))[~none].all(), "it listens"


# ---------------------------------------------------------------- rollout, best of


def test_a_rollout_begins_as_the_forecast_and_goes_on_from_there(scene: Scene) -> None:
    where, guide = scene.group("ready"), rows.by_thinker(scene)
    made = rows.rollout(scene, net(), "rollout", 2, guide, where)
    for whole, rolled in zip(rows.forecasts(scene, net(), "", 2, guide, where), made, strict=True):
        assert np.array_equal(whole.positions[where, :8], rolled.positions[where, :8])
        assert np.isfinite(rolled.positions[where]).all()
        assert not np.allclose(whole.positions[where, 8:], rolled.positions[where, 8:], atol=1e-3)
        there = np.isin(np.arange(len(rolled.positions)), where)
        assert np.isnan(rolled.positions[~there]).all() and rolled.sigma is rolled.latents is None
        assert (rolled.row, rolled.seed, rolled.inputs) == ("rollout", 2, whole.inputs)


@pytest.mark.parametrize(
    "sizes",
    [
        {"context": 4},
        {"context": 16},
        {"tubelet_steps": 3},
        {"tubelet_steps": 16, "tubelets": 2},
        {"pooled": 3},
    ],
    ids=str,
)
def test_a_network_that_can_not_be_fed_its_own_forecast_is_refused(scene: Scene, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a rollout needs as many steps"):
        rows.rollout(scene, small_net(**sizes), "", 0, rows.nobody, scene.group("ready"))


def error_of(scene: Scene, prediction: Prediction) -> np.ndarray:
    """Mean error at every origin over what is known, [N]."""
    distance = np.linalg.norm(prediction.positions - scene.truth.future, axis=-1)
    return np.array([one[np.isfinite(one)].mean() if np.isfinite(one).any() else np.nan for one in distance])


def test_the_best_of_some_guesses_is_no_worse_than_any_and_is_one_of_them(
    scene: Scene, recwarn: pytest.WarningsRecorder
) -> None:
    where = scene.group("ready")
    nets = [small_net(seed) for seed in range(3)]
    guesses = [rows.forecasts(scene, one, "", 4, rows.nobody, where) for one in nets]
    best = rows.best_of(scene, guesses, "best")
    for k, prediction in enumerate(best):
        assert (prediction.row, prediction.inputs, prediction.seed) == ("best", INPUTS[k], 4)
        errors = np.stack([error_of(scene, g[k]) for g in guesses])[:, where]
        assert np.allclose(error_of(scene, prediction)[where], errors.min(0), atol=1e-6)
        for n in where:
            assert any(np.array_equal(prediction.positions[n], g[k].positions[n]) for g in guesses)
        there = np.isin(np.arange(len(prediction.positions)), where)
        assert np.isnan(prediction.positions[~there]).all()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_the_row_without_jepa_sees_states_and_joints_now(scene: Scene) -> None:
    torch.manual_seed(0)
    states = StatesToMotion(StatesConfig(2, 6, 24, HORIZON, hidden=16)).eval()
    torch.nn.init.normal_(states.out.weight, std=0.1)
    image, pose = rows.states_only(scene, states, 0)
    assert (image.row, image.inputs, pose.inputs) == ("thinker only", *INPUTS)
    found = newest(scene, 0.2)
    for n, k in enumerate(found):
        pyramid = scene.tracks.pyramids[k] if k >= 0 else torch.zeros(2, 2, 6)
        for prediction, present in (
            (image, scene.tracks.poses[scene.truth.sample[n]]),
            (pose, torch.from_numpy(scene.truth.present[n])),
        ):
            with torch.no_grad():
                moved, log_sigma = states(pyramid[None], present[None])
            assert np.allclose(prediction.positions[n], (present + moved[0]).numpy(), atol=1e-5)
            assert prediction.sigma is not None and np.allclose(prediction.sigma[n], log_sigma[0].exp(), atol=1e-5)


# ---------------------------------------------------------------- the cue removed


class Recorder:
    """Stands for the thinker: keeps what it was shown."""

    def __init__(self) -> None:
        self.window = Window()
        self.shown: list[tuple[list[int], str]] = []
        self.forgot: list[int] = []

    def forget(self) -> None:
        self.forgot.append(len(self.shown))

    def think(self, frames: Sequence[Frame], instruction: str, *, max_new_tokens: int) -> Guidance:
        self.shown.append(([f.stamp_ns for f in frames], instruction))
        return Guidance(np.full((2, 2, 6), 5.0, np.float32), (0, 1), frames[-1].stamp_ns, 9.0)


def test_no_lit_frame_is_shown_and_only_the_needed_thoughts_change(scene: Scene) -> None:
    tracks, thinker = scene.tracks, Recorder()
    needed = np.arange(0, len(tracks.thought_ns), 2)
    other, changed = without_cue(episodes(), tracks, thinker, needed)  # type: ignore[arg-type]
    lamps = [number for number, e in enumerate(episodes()) if e.cue_ns is not None]
    wanted = [k for n in lamps for k in needed if tracks.thoughts[n] <= k < tracks.thoughts[n + 1]]
    assert lamps == [0, 1] and np.flatnonzero(changed).tolist() == wanted
    assert (other.pyramids[wanted] == 5).all() and torch.equal(other.pyramids[~changed], tracks.pyramids[~changed])
    assert other.pyramids is not tracks.pyramids and not (tracks.pyramids == 5).any()
    assert len(thinker.shown) == len(wanted)
    parts = [sum(tracks.thoughts[n] <= k < tracks.thoughts[n + 1] for k in wanted) for n in lamps]
    assert thinker.forgot == [0, parts[0]], "nothing is kept from one episode to the next"
    for k, (stamps, instruction) in zip(wanted, thinker.shown, strict=True):
        episode = episodes()[int(np.searchsorted(tracks.thoughts, k, side="right")) - 1]
        assert episode.cue_ns is not None and instruction == episode.instruction
        on, off = episode.cue_ns
        assert not any(on <= stamp < off for stamp in stamps)
        assert max(stamps) <= tracks.thought_ns[k] and set(stamps) <= set(episode.stamps_ns.tolist())
        slots = [thinker.window.slot(stamp) for stamp in stamps]
        assert len(set(slots)) == len(slots)
        could = {
            thinker.window.slot(int(s)) for s in episode.stamps_ns if s <= tracks.thought_ns[k] and not on <= s < off
        }
        assert set(slots) == could, "everything else is shown"


def test_a_thought_that_was_never_shown_anything_but_the_cue_is_kept(scene: Scene) -> None:
    lamp, thinker = episodes()[0], Recorder()
    lit = dataclasses.replace(lamp, cue_ns=(int(lamp.stamps_ns[0]), int(lamp.stamps_ns[-1]) + 1))
    other, changed = without_cue([lit, *episodes()[1:]], scene.tracks, thinker, np.array([0, 1]))  # type: ignore[arg-type]
    assert not changed.any() and not thinker.shown and torch.equal(other.pyramids, scene.tracks.pyramids)


def test_the_shipped_thinker_says_the_same_before_the_cue_and_something_else_after_it() -> None:
    thinker, lamp = Thinker.load(ROOT / "models" / "mini" / "thinker"), episodes()[0]
    said = thinker_over(thinker)(lamp)
    noise = shards(1)[0]
    pyramids = torch.from_numpy(np.stack([g.pyramid for g in said]))
    stamps = torch.tensor([g.stamp_ns for g in said])
    tracks = Tracks.of([lamp], [dataclasses.replace(noise, pyramids=pyramids, thought_ns=stamps)])
    other, changed = without_cue([lamp], tracks, thinker, np.arange(len(said)))
    assert changed.all() and lamp.cue_ns is not None
    away = (other.pyramids - pyramids).abs().amax((1, 2, 3))
    before = stamps.numpy() < lamp.cue_ns[0]
    assert before.any() and away[before].max() < 1e-3
    assert away[~before].min() > 0.1
