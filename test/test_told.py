"""What is right to say about a window of cue-reach, and that nothing but the window decides it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.data.episode import PHASES, Episode, EpisodeError, JpegFrames
from thinkjepa_ros.data.sim.play import actions_of
from thinkjepa_ros.data.sim.scene import camera_of
from thinkjepa_ros.data.sim.script import SCENE_VERSION, draw
from thinkjepa_ros.data.told import (
    LAMP_STATES,
    SIDES,
    UNKNOWN,
    answer,
    arrived,
    cut,
    mirror_words,
    shares,
    understood,
)
from thinkjepa_ros.data.told import draw as draw_window
from thinkjepa_ros.thinker.window import Window

LIVE = Window(8.0, 0.25)
GREY = JpegFrames.encode([np.full((16, 16, 3), 127, np.uint8)])
FIRST_NS = 1_000_000_000


@functools.cache
def made(split: str, seed: int) -> Episode:
    """The episode of (split, seed) with grey pictures: everything but the images is the real one, and quick."""
    script = draw(split, seed)
    times = np.arange(int(script.time.end * 30)) / 30
    count = len(times)
    at = lambda t: FIRST_NS + round(t * 1e9)  # noqa: E731
    return Episode(
        frames=JpegFrames(np.tile(GREY.blobs, count), np.arange(count + 1) * len(GREY.blobs)),
        stamps_ns=np.array([at(t) for t in times]),
        camera=camera_of(16, 16),
        camera_pose=np.tile(np.eye(4), (count, 1, 1)),
        joints=np.zeros((count, 24, 3), np.float32),
        visible=np.zeros((count, 24), bool),
        states=np.zeros((count, 7), np.float32),
        actions=actions_of(np.zeros((count, 7), np.float32)),
        phases=np.array([script.time.phase(t, script.cue is not None) for t in times], np.uint8),
        instruction=script.instruction,
        split=split,
        seed=seed,
        intent={
            "cube": ("red", "green", "blue")[script.cube],
            "tray": SIDES[script.tray],
            "class": script.intent_class,
        },
        cue_ns=None if script.cue is None else (at(script.cue.on), at(script.cue.off)),
        details={
            "scene_version": SCENE_VERSION,
            "begin_ns": {name: at(getattr(script.time, name)) for name in PHASES if name != "idle"},
            "flashes": [[at(f.on), at(f.off), SIDES[f.tray], f.colour] for f in script.distractors],
        },
    )


def frame_at(episode: Episode, stamp_ns: int) -> int:
    return int(np.searchsorted(episode.stamps_ns, stamp_ns))


@pytest.mark.parametrize("intent", range(UNKNOWN))
@pytest.mark.parametrize("told", ["lamp", "task"])
def test_every_answer_is_understood_again(intent: int, told: str) -> None:
    thought, _, said = answer(intent, told).partition("\n</think>\n\n")
    assert understood(said) == intent and thought and "think" not in thought
    assert understood(answer(UNKNOWN, "none").partition("\n</think>\n\n")[2]) == UNKNOWN


@pytest.mark.parametrize(
    "words",
    [
        "",
        "red",
        "red cube",
        "red cube, tray left",
        "pink cube, left tray",
        "red cube, left tray, or so",
        "unknown cube",
    ],
)
def test_other_words_are_no_answer(words: str) -> None:
    assert understood(words) is None


def test_before_the_cue_nothing_is_known_and_after_it_the_lamp_has_told() -> None:
    episode = made("lamp", 3)
    on, off = episode.cue_ns
    before = cut(episode, 0, frame_at(episode, on) - 1, LIVE)
    assert (
        (before.told, before.intent) == ("none", UNKNOWN) and not before.lamps.any() and set(before.so_far) == {UNKNOWN}
    )
    after = cut(episode, 0, frame_at(episode, off) + 15, LIVE)
    assert (after.told, after.intent) == ("lamp", episode.intent["class"])
    side = SIDES.index(episode.intent["tray"])
    assert (
        set(after.lamps[:, side]) == {0, LAMP_STATES.index(episode.intent["cube"])}
        and not after.lamps[:, 1 - side].any()
    )
    assert after.so_far[-1] == after.intent and after.so_far[0] in (UNKNOWN, after.intent)


def test_a_cue_that_fell_between_the_frames_that_arrived_has_told_nothing() -> None:
    episode = made("lamp", 3)
    on, off = episode.cue_ns
    lit = (episode.stamps_ns >= on) & (episode.stamps_ns < off)
    sample = cut(episode, 0, frame_at(episode, off) + 15, LIVE, keep=~lit)
    assert (sample.told, sample.intent) == ("none", UNKNOWN)


def test_a_window_that_has_lost_the_cue_knows_nothing_whatever_the_hand_does() -> None:
    episode = made("lamp", 5)
    short = Window(1.0, 0.25)
    for phase in ("wait", "reach", "transport", "place"):
        end = min(frame_at(episode, episode.details["begin_ns"][phase]) + 2, len(episode) - 1)
        sample = cut(episode, 0, end, short)
        off = episode.cue_ns[1]
        wanted = "lamp" if episode.stamps_ns[sample.frames[0]] < off else "none"
        assert sample.told == wanted, phase
    assert (sample.told, sample.intent) == ("none", UNKNOWN)


def test_a_window_without_a_frame_is_refused() -> None:
    episode = made("lamp", 5)
    with pytest.raises(ValueError, match="no frame arrived up to frame 4"):
        cut(episode, 0, 4, LIVE, keep=np.arange(len(episode)) > 4)
    for seed in range(200):
        keep = arrived(episode, 7, np.random.default_rng(seed))
        assert keep is None or keep[7]


def test_an_instruction_tells_from_the_first_frame_on() -> None:
    episode = made("text", 7)
    sample = cut(episode, 0, 0, LIVE)
    assert (sample.told, sample.intent, len(sample.pairs)) == ("task", episode.intent["class"], 1)


def test_distractor_lamps_tell_nothing() -> None:
    for seed in range(40):
        episode = made("distractor", seed)
        first = min(f[0] for f in episode.details["flashes"])
        if first < episode.cue_ns[0] - 200_000_000:
            sample = cut(episode, 0, frame_at(episode, episode.cue_ns[0]) - 1, LIVE)
            assert sample.lamps.any() and (sample.told, sample.intent) == ("none", UNKNOWN)
            return
    pytest.fail("no episode with a distractor before the cue")


@settings(max_examples=30, deadline=None)
@given(
    split=st.sampled_from(["lamp", "text", "distractor", "none"]),
    seed=st.integers(0, 30),
    place=st.floats(0, 1),
    phase_ns=st.integers(0, 10**9),
    drop=st.integers(0, 2**32),
)
def test_a_mirrored_window_is_the_same_window_with_the_sides_swapped(split, seed, place, phase_ns, drop) -> None:
    episode = made(split, seed)
    end = int(place * (len(episode) - 1))
    keep = np.random.default_rng(drop).random(len(episode)) < 0.7
    keep[end] = True
    plain = cut(episode, 0, end, LIVE, phase_ns=phase_ns, keep=keep)
    mirrored = cut(episode, 0, end, LIVE, phase_ns=phase_ns, keep=keep, mirrored=True)
    assert np.array_equal(plain.frames, mirrored.frames) and plain.times_s == mirrored.times_s
    assert np.array_equal(plain.lamps, mirrored.lamps[:, ::-1])
    assert mirrored.intent == (plain.intent if plain.intent == UNKNOWN else plain.intent ^ 1)
    assert mirror_words(mirrored.instruction) == plain.instruction
    # never later than the newest frame, only frames that arrived, and times ascend from the first pair
    assert plain.frames.max() <= end and keep[plain.frames].all()
    assert all(a < b for a, b in zip(plain.times_s, plain.times_s[1:], strict=False)) and plain.times_s[0] >= 0


def test_a_later_frame_changes_no_earlier_answer() -> None:
    episode = made("lamp", 9)
    end = frame_at(episode, episode.cue_ns[0]) - 1
    other = made.__wrapped__("lamp", 9)
    other.phases[end + 1 :] = PHASES.index("place")
    a, b = cut(episode, 0, end, LIVE), cut(other, 0, end, LIVE)
    assert (a.told, a.intent) == (b.told, b.intent) and np.array_equal(a.lamps, b.lamps)


def test_shares_do_not_depend_on_how_many_episodes_a_split_has() -> None:
    episodes = [made("lamp", s) for s in range(6)] + [made("none", 1)]
    found = shares(episodes)
    assert found.sum() == pytest.approx(1) and found[0] == pytest.approx(found[5])
    assert found[:6].sum() / found[6] == pytest.approx(0.4 / 0.18)
    assert all(len(draw_window(episodes, found, 0.0, np.random.default_rng(k)).pairs) for k in range(20))


def test_recorded_episodes_alone_cannot_be_learned_from() -> None:
    episode = made.__wrapped__("lamp", 1)
    object.__setattr__(episode, "split", "recorded")
    with pytest.raises(EpisodeError, match=r"none of the episodes.*recorded"):
        shares([episode])
