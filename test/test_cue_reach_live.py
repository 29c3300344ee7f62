"""Episodes through the real nodes: forecasts at their very images, scenes that know nothing of each other, and results
that outlive an interruption.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_score import make_run

from thinkjepa_ros.data.bag import IMAGE_TOPIC, INSTRUCTION_TOPIC
from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.data.recording import Recording
from thinkjepa_ros.demo.live import LiveStopped, _Slipped, by_episode, run_live
from thinkjepa_ros.demo.scenes import BACK_NS, PAUSE_NS, Scene, cut, write_scenes
from thinkjepa_ros.evaluation.cue_reach.live import LiveEpisode, LiveError, LiveRun, at_origins
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.stream.order import StampGate, Verdict
from thinkjepa_ros.values import Frame

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[1]
NS = 1_000_000_000
PLAYED_S = 2.0


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> list[Path]:
    """Two short episodes of the simulation, told by instruction."""
    pytest.importorskip("mujoco")
    from thinkjepa_ros.data.sim.play import make_episode

    folder, files = tmp_path_factory.mktemp("episodes"), []
    for seed in (3, 4):
        whole = make_episode("text", seed, 128, 128, 30.0)
        files.append(folder / f"text_{seed}.h5")
        cut(whole, int(whole.stamps_ns[0]) + 3 * NS).save(files[-1])
    return files


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """The shipped pair, as it is when the tests begin."""
    return Path(shutil.copytree(ROOT / "models" / "mini", tmp_path_factory.mktemp("models") / "mini"))


def ends(files: list[Path]) -> list[int]:
    return [int(Episode.load(file).stamps_ns[0] + PLAYED_S * NS) for file in files]


def stop_when(path: Path) -> None:
    """Ctrl-C as soon as a file is there."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.slow
def test_unguided_forecasts_are_those_of_the_model_and_an_interrupted_run_goes_on(tmp_path, episodes, mini):
    arguments = {"model": mini, "guided": False, "dtype": "float32", "until_ns": ends(episodes), "chunk": 1}
    stop_when(tmp_path / "chunk_000.json")
    with pytest.raises(LiveStopped, match="stopped after 1 of 2 episodes; the same command goes on"):
        run_live(episodes, tmp_path, **arguments)
    first = (tmp_path / "chunk_000.npz").stat()
    run = run_live(episodes, tmp_path, **arguments)
    assert (tmp_path / "chunk_000.npz").stat().st_mtime_ns == first.st_mtime_ns, "it is not played again"
    assert [e.name for e in run.episodes] == [file.name for file in episodes]
    assert not (tmp_path / "nodes" / "recording").exists()

    forecaster = Forecaster.load(mini)
    loaded = [Episode.load(file) for file in episodes]
    # a busy machine leaves images out, so that only what was published says which origins have a forecast
    origins = [(k, int(live.stamps_ns[i])) for k, live in enumerate(run.episodes) for i in (0, len(live) // 2, -1)]
    got = at_origins(run, origins)
    assert got.answered.all() and (got.behind_s == 0).all()
    assert (got.weight == 0).all() and np.isnan(got.age_s).all()
    assert (got.latency_s > 0).all() and np.median(got.latency_s) < 1.0
    for n, (k, _) in enumerate(origins):
        episode = loaded[k]
        last = int(np.searchsorted(episode.stamps_ns, got.stamp_ns[n]))
        forecaster.reset()
        for i in range(max(0, last - 22), last + 1):
            forecaster.observe(Frame(episode.frames[i], int(episode.stamps_ns[i])), episode.camera)
        offline = forecaster.forecast()
        np.testing.assert_allclose(got.positions[n], offline.positions, atol=1e-3)
        np.testing.assert_allclose(got.sigma[n], offline.sigma, rtol=0.02)

    with pytest.raises(LiveError, match="other episodes, models or settings"):
        run_live(episodes, tmp_path, **{**arguments, "guided": True})


@pytest.mark.slow
def test_thoughts_guide_only_the_episode_they_are_about(tmp_path, episodes, mini):
    loaded = [Episode.load(file) for file in episodes]
    assert loaded[0].instruction != loaded[1].instruction
    run = run_live(episodes, tmp_path, model=mini, thinker=mini / "thinker", until_ns=ends(episodes))
    for live, episode in zip(run.episodes, loaded, strict=True):
        begin = int(episode.stamps_ns[0])
        assert live.stamps_ns[0] - begin > 0.6 * NS, "the window begins with the episode"
        assert np.isin(live.stamps_ns, episode.stamps_ns).all()
        guided = live.weight > 0
        assert guided.any()
        assert (live.stamps_ns[guided] - live.age_s[guided] * 1e9 >= begin - 1e6).all()
        # the next instruction comes a moment before the next image: what is thought then comes too late to guide
        in_time = [t for t in live.thoughts if t["heard_ns"] <= live.stamps_ns[-1]]
        assert in_time and {t["instruction"] for t in in_time} == {episode.instruction}
        assert all(begin <= t["stamp_ns"] < t["heard_ns"] < begin + 10 * NS for t in live.thoughts)


@pytest.mark.parametrize(
    ("broken", "guided"), [("model", False), pytest.param("thinker", True, marks=pytest.mark.slow)]
)
def test_a_node_that_can_not_work_ends_it_with_a_sentence(tmp_path, episodes, broken, guided):
    name = "predictor" if broken == "model" else "thinker"
    with pytest.raises(LiveError, match=f"the {name} does not work: .*no_model.*the logs are in"):
        run_live(episodes[:1], tmp_path, guided=guided, **{broken: tmp_path / "no_model"})
    assert not list(tmp_path.glob("chunk_*"))


def test_what_can_not_be_played_is_refused(tmp_path, episodes):
    with pytest.raises(LiveError, match="there is no episode"):
        run_live([], tmp_path)
    with pytest.raises(LiveError, match=r"gone\.h5 does not exist"):
        run_live([tmp_path / "gone.h5"], tmp_path)
    with pytest.raises(LiveError, match="same file name"):
        run_live([episodes[0], episodes[0]], tmp_path)
    with pytest.raises(LiveError, match="1 ends for 2 episodes"):
        run_live(episodes, tmp_path, until_ns=[1])
    with pytest.raises(LiveError, match="at least one episode"):
        run_live(episodes, tmp_path, chunk=0)
    assert not list(tmp_path.iterdir())


# ---- scenes


def test_the_stamps_of_every_scene_lie_before_those_of_the_one_played_before(tmp_path, episodes):
    loaded = [cut(Episode.load(file), end) for file, end in zip(episodes, ends(episodes), strict=True)]
    loaded.append(replace(loaded[0], instruction="again"))
    scenes = write_scenes(tmp_path / "bag", ["a", "b", "c"], loaded)
    gate, verdicts, images, said = StampGate(), [], [], []
    with Recording(tmp_path / "bag") as recording:
        for topic, at, data in recording.messages():
            if topic.name == INSTRUCTION_TOPIC:
                said.append((len(images), data))
            if topic.name == IMAGE_TOPIC:
                stamp = int.from_bytes(data[4:8], "little") * NS + int.from_bytes(data[8:12], "little")
                images.append((at, stamp, data))
                verdicts.append(gate.classify(stamp, at).verdict)
    lengths = [len(e) for e in loaded]
    begins = np.cumsum([0, *lengths])[:-1]
    assert [n for n, _ in said] == begins.tolist(), "every instruction comes before its first image"
    assert [verdicts[n] for n in begins] == [Verdict.OK, Verdict.SUSPECT, Verdict.SUSPECT]
    assert [verdicts[n + 1] for n in begins] == [Verdict.OK, Verdict.JUMP, Verdict.JUMP]
    assert verdicts.count(Verdict.OK) == len(images) - 4
    times = np.array([at for at, _, _ in images])
    assert times[begins[1]] - times[begins[1] - 1] == PAUSE_NS, "no real time is lost"
    for k, (scene, begin) in enumerate(zip(scenes, begins, strict=True)):
        for i in range(len(loaded[k])):
            at, stamp, data = images[begin + i]
            assert scene.own(stamp) == loaded[k].stamps_ns[i] and at - stamp == scene.behind_ns
            assert loaded[k].frames.jpeg(i) in data
        if k:
            assert scenes[k - 1].first_ns - scene.last_ns == BACK_NS


def scenes_of(run):
    """The run's stamps as two scenes, played without a pause; returns them and the run as a player would make it."""
    at = run.stamp_ns - run.stamp_ns[0]
    first = Scene("a.h5", at[:15] + 7, 0, 0)
    second = Scene("b.h5", at[15:] - at[15] + 9, -100 * NS, int(at[15]) + 100 * NS)
    moved = np.where(np.arange(len(at)) < 15, at, at - second.behind_ns) + 5000 * NS
    run.receipt_ns = at + 5000 * NS + 20_000_000
    run.stamp_ns, run.begins_ns = moved, np.array([5000 * NS])
    run.words = {"thoughts": [{"stamp_ns": int(moved[20]), "delay_s": 100 + 1.7, "text": "t", "instruction": "i"}]}
    return [first, second]


def test_forecasts_go_to_the_scene_of_their_stamps():
    run = make_run()
    scenes = scenes_of(run)
    a, b = by_episode(run, scenes)
    np.testing.assert_array_equal(a.stamps_ns, scenes[0].stamps_ns)
    np.testing.assert_array_equal(b.stamps_ns, scenes[1].stamps_ns)
    np.testing.assert_array_equal(b.positions, run.positions[15:])
    np.testing.assert_allclose(np.concatenate([a.latency_s, b.latency_s]), 0.02)
    assert a.thoughts == [] and b.thoughts[0]["stamp_ns"] == b.stamps_ns[5]
    assert b.thoughts[0]["heard_ns"] - b.thoughts[0]["stamp_ns"] == pytest.approx(0.2 * NS, abs=2)
    run.age_s[17], run.weight[17] = 0.1, 1.0
    by_episode(run, scenes)  # 0.2 s after the beginning of its episode
    run.age_s[17] = 0.3
    with pytest.raises(LiveError, match=r"b.h5 was guided by a thought from before its beginning"):
        by_episode(run, scenes)


def test_a_player_that_fell_behind_is_noticed():
    for late_from in (3, 20):
        run = make_run()
        scenes = scenes_of(run)
        run.stamp_ns[late_from:] += 612_345_678
        with pytest.raises(_Slipped):
            by_episode(run, scenes)


# ---- results and origins


def live_episode(name: str, stamps: list[int], steps: int = 4, joints: int = 3) -> LiveEpisode:
    n, rng = len(stamps), np.random.default_rng(len(name))
    return LiveEpisode(
        name=name, stamps_ns=np.array(stamps, np.int64), positions=rng.normal(size=(n, steps, joints, 3)).astype("f4"),
        sigma=np.ones((n, steps, joints), "f4"), present=np.zeros((n, joints, 3), "f4"), weight=np.linspace(0, 1, n),
        age_s=np.full(n, np.nan), latency_s=np.full(n, 0.02), thoughts=[{"stamp_ns": 1, "heard_ns": 2, "text": "x"}],
    )  # fmt: skip


def test_only_the_forecast_of_the_image_or_one_just_before_counts():
    ms = 1_000_000
    run = LiveRun([live_episode("a", [0, 100 * ms, 133 * ms]), live_episode("bb", []), live_episode("ccc", [500 * ms])])
    origins = [(0, 133 * ms), (0, 132 * ms), (0, 183 * ms), (0, 184 * ms), (0, 60 * ms), (1, 0), (2, 500 * ms), (2, 0)]
    got = at_origins(run, origins)
    assert got.stamp_ns.tolist() == [133 * ms, 100 * ms, 133 * ms, -1, -1, -1, 500 * ms, -1]
    np.testing.assert_allclose(got.behind_s[[0, 1, 2, 6]], [0, 0.032, 0.05, 0])
    np.testing.assert_array_equal(got.positions[1], run.episodes[0].positions[1])
    assert np.isnan(got.positions[~got.answered]).all() and np.isnan(got.behind_s[3])
    assert at_origins(run, []).positions.shape == (0, 4, 3, 3)
    with pytest.raises(LiveError, match="no episode 3; 3 were played"):
        at_origins(run, [(3, 0)])
    with pytest.raises(LiveError, match="no forecast in any episode"):
        at_origins(LiveRun([live_episode("bb", [])]), [(0, 0)])


def test_results_survive_on_disk_or_are_refused(tmp_path):
    run = LiveRun([live_episode("a", [1, 2]), live_episode("bb", []), live_episode("ccc", [3])], {"settings": {"x": 1}})
    run.save(tmp_path / "chunk_000")
    again = LiveRun.load(tmp_path / "chunk_000")
    assert again.words == run.words and [e.name for e in again.episodes] == ["a", "bb", "ccc"]
    for one, other in zip(run.episodes, again.episodes, strict=True):
        assert one.thoughts == other.thoughts
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.stamps_ns, other.stamps_ns)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chunk_000.json", "chunk_000.npz"]
    words = json.loads((tmp_path / "chunk_000.json").read_text())
    for damage in (
        lambda: (tmp_path / "chunk_000.json").write_text(json.dumps({**words, "version": 99})),
        lambda: (tmp_path / "chunk_000.json").write_text(json.dumps({**words, "episodes": words["episodes"] * 2})),
        lambda: (tmp_path / "chunk_000.json").write_text("{"),
        lambda: (tmp_path / "chunk_000.npz").write_bytes(b"PK no"),
        lambda: (tmp_path / "chunk_000.npz").unlink(),
    ):
        run.save(tmp_path / "chunk_000")
        damage()
        with pytest.raises(LiveError, match="remove"):
            LiveRun.load(tmp_path / "chunk_000")
