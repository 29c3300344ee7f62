"""Recordings are evaluated as a robot would have forecast over them: the same numbers, repeatable, never the future."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_kit import NS
from evaluate_kit import HORIZON, NAMES, SETTINGS, STEP_NS, WINDOW, every, hands, images, recording, same, truth
from jepa_kit import config, small_net
from thinker_kit import fresh_thinker
from truth_kit import bag, compressed, jpeg, markers, ns

from thinkjepa_ros.data.from_bag import convert
from thinkjepa_ros.data.recording import Recording, RecordingError
from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.evaluation.bag import offline as run_offline
from thinkjepa_ros.evaluation.bag.footage import pictures, rgb_of
from thinkjepa_ros.evaluation.bag.ground import match_joints, open_ground
from thinkjepa_ros.evaluation.bag.metrics import measure
from thinkjepa_ros.evaluation.bag.run import Models, offline
from thinkjepa_ros.evaluation.bag.twin import Paired
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.stream.frames import on_grid
from thinkjepa_ros.values import Frame, Guidance


@pytest.fixture(scope="module")
def thinker() -> Any:
    return fresh_thinker()


@pytest.fixture(scope="module")
def guided(thinker: Any) -> Models:
    net = small_net(made_as=config(predictor={"guide_layers": len(thinker.layers), "guide_width": thinker.width}))
    return Models(Paired(net, "small", "test", True), thinker, {"model": "m", "thinker": "t"})


@pytest.fixture(scope="module")
def plain() -> Models:
    return Models(Paired(small_net(), "small", "test", True), None, {"model": "m", "thinker": None})


# --- what is said ---


def in_loops(folder: Path, thinker: Any, net: Any) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
    """Forecasts with and without guidance and the surprise by stamp, made with the robot's own parts one by one."""
    with Recording(folder) as opened:
        stamps = [m[1] for m in images(every(30, 3.0)) if "compressed" in m[0]]
        size = opened.camera().count
    assert size == len(stamps) == 90
    shots = {stamp: rgb for _, stamp, rgb in pictures([folder], Settings(), [(0, s) for s in stamps])}
    k = open_ground(folder, Settings()).course.camera
    thinker.forget()
    slots: dict[int, int] = {}
    for stamp in stamps:
        slots.setdefault(thinker.window.slot(stamp), stamp)
    said: list[Guidance] = []
    due = stamps[0] + NS // 2
    for stamp in slots.values():
        if stamp >= due:
            due += NS
            seen = [Frame(shots[s], s) for s in slots.values() if s <= stamp]
            said.append(thinker.think(seen, "", max_new_tokens=16, valid_for_s=4.0))
    out: dict[int, list[Any]] = {}
    for guide in (True, False):
        f = Forecaster(net, "small", "test", True)
        for number in range(9, 90, 3):
            window = [stamps[i] for i in on_grid(stamps, stamps[number], WINDOW, STEP_NS, STEP_NS // 2)]
            for stamp in window:
                if not f.knows(stamp):
                    f.observe(Frame(shots[stamp], stamp), k)
            fresh = [g for g in said if g.stamp_ns + NS // 5 <= window[-1]]
            f.guide(fresh[-1] if fresh and guide else None)
            forecast = f.forecast(window)
            out.setdefault(window[-1], []).extend([forecast.positions, forecast.surprise])
    return {stamp: (with_[0], with_[2], with_[1]) for stamp, with_ in out.items()}


def test_forecasts_are_those_of_the_parts_of_a_robot(tmp_path: Path, guided: Models) -> None:
    folder = recording(tmp_path / "bag")
    result = offline([folder], SETTINGS, guided)
    replay, expected = result.replay, in_loops(folder, guided.thinker, guided.forecaster._net)
    assert not result.failed and replay.stamp_ns.tolist() == sorted(expected)
    chosen = [guided.forecaster.joint_names.index(name) for name in NAMES]
    assert replay.joint_names == NAMES and replay.guided is not None and replay.unguided is not None
    for n, stamp in enumerate(replay.stamp_ns.tolist()):
        with_, without, surprise = expected[stamp]
        assert np.array_equal(replay.guided[n], with_[:, chosen]), n
        assert np.array_equal(replay.unguided[n], without[:, chosen]), n
        assert np.array_equal(replay.surprise[n], np.float32(surprise), equal_nan=True), "its own expectations"
    assert replay.weight[0] == 0 and replay.weight[-1] == 1 and np.nanmin(replay.age_s) >= 0.2
    assert not np.array_equal(replay.guided[-1], replay.unguided[-1])
    assert [t["delay_s"] for t in replay.thoughts] == [None] * 3 and len({t["stamp_ns"] for t in replay.thoughts}) == 3
    at = (replay.stamp_ns - ns(0)) / NS
    ahead = at[:, None] + 0.1 * np.arange(1, HORIZON + 1)
    inside = ahead <= 89 / 30 + 1e-9
    assert np.allclose(replay.truth[inside], hands(ahead)[inside], rtol=0, atol=1e-6)
    assert np.isnan(replay.truth[~inside]).all() and not inside.all(), "nothing is known beyond the end of a piece"
    assert np.allclose(replay.truth_present, hands(at), rtol=0, atol=1e-6)
    assert np.array_equal(replay.past[:, -1], replay.present), "baselines start where the model does"
    assert replay.about["joints_without_truth"] == ["right_0", "right_2", "right_4"]
    assert replay.about["bags"][0]["used"] < 60, "only images on the grid and of the long window are decoded"


def test_it_is_repeatable_and_no_later_image_changes_an_earlier_forecast(tmp_path: Path, guided: Models) -> None:
    first, again, changed = (
        offline([recording(tmp_path / name, other=other)], SETTINGS, guided).replay
        for name, other in (("a", 9e9), ("b", 9e9), ("c", 2.0))
    )
    assert same(first, again) == []
    before = int((first.stamp_ns < ns(2.0)).sum())
    assert same(first, changed, before) == [] and 10 < before < len(first)
    assert {"guided", "unguided", "present"} <= set(same(first, changed))


def test_nothing_reaches_across_a_gap_or_a_jump_of_the_clock(tmp_path: Path, guided: Models) -> None:
    at = np.concatenate([every(30, 1.5), every(30, 1.5, 4.0)])
    folder = bag(tmp_path / "bag", images(at), truth(every(50, 6.0)))
    replay = offline([folder], SETTINGS, guided).replay
    assert np.unique(replay.piece).tolist() == [0, 1] and measure(replay)["counts"]["pieces"] == 2
    second = replay.piece == 1
    assert replay.stamp_ns[second].min() == ns(4.3), "the first whole window of the piece"
    assert replay.weight[second][0] == 0, "what was thought before the gap does not count after it"
    assert np.isnan(replay.truth[~second][-1]).all(), "the truth goes on in the gap, the piece does not"
    turned = [("/camera/image/compressed", ns(2 + k / 30), compressed(ns(k / 30 - 1.0), jpeg(k))) for k in range(45)]
    reset = [(name, at + 2 * NS, message) for name, at, message in truth(every(50, 1.5, -1.0))]
    back = bag(tmp_path / "back", images(every(30, 1.5)), turned, truth(every(50, 1.5)), reset)
    with pytest.raises(RecordingError, match=r"go back by|cut the recording"):
        offline([back], SETTINGS, guided)
    blind = offline([back], Settings(), guided).replay
    assert np.unique(blind.piece).tolist() == [0, 1] and blind.truth.shape[2] == 5


def test_an_anchored_model_starts_where_the_joints_truly_are(tmp_path: Path, plain: Models) -> None:
    replay = offline([recording(tmp_path / "bag")], SETTINGS, plain, anchor=True).replay
    assert np.allclose(replay.present, replay.truth_present, rtol=0, atol=1e-6) and replay.anchored
    assert replay.guided is None and replay.unguided is not None
    found = measure(replay)
    # the joints move evenly: who goes on from the true ones makes no error
    assert (
        found["tables"]["all"]["6"]["constant velocity"]["ade"][0]
        < 1e-6
        < found["tables"]["all"]["6"]["hold"]["ade"][0]
    )
    image_only = offline([tmp_path / "bag"], SETTINGS, plain).replay
    assert not np.allclose(image_only.present, replay.present, atol=1e-3)
    with pytest.raises(ValueError, match="--anchor needs a truth"):
        offline([tmp_path / "bag"], Settings(), plain, anchor=True)


def test_without_truth_there_is_all_but_errors_and_a_hint(tmp_path: Path, plain: Models) -> None:
    extra = [("/markers", ns(0.5), markers())]
    folder = bag(tmp_path / "bag", images(every(30, 1.0)), truth(every(50, 1.0)), extra)
    replay = offline([folder], Settings(), plain).replay
    assert replay.joint_names == plain.forecaster.joint_names and np.isnan(replay.truth).all()
    (note,) = [n for n in replay.about["notes"] if "there is no truth" in n]
    assert "/truth (geometry_msgs/msg/PoseArray)" in note and "/markers (visualization_msgs/msg/MarkerArray)" in note
    found = measure(replay)
    assert found["tables"] == {} and "no truth" in found["summary"] and found["latency_s"]["p50"] > 0


def test_a_truth_of_other_joints_scores_the_baselines_and_says_what_to_do(tmp_path: Path, plain: Models) -> None:
    folder = recording(tmp_path / "bag", 2.0)
    replay = offline([folder], replace(SETTINGS, joints=("wrist", "finger")), plain).replay
    assert replay.main is None and replay.joint_names == ("wrist", "finger")
    assert np.allclose(replay.present, replay.truth_present, atol=1e-6) and np.isfinite(replay.past).all()
    (note,) = replay.about["notes"]
    assert "right_0" in note and "wrist" in note and "train fine-tune" in note and "--match" in note
    assert measure(replay)["rows"] == ["hold", "constant velocity", "damped velocity"]
    renamed = offline(
        [folder], replace(SETTINGS, joints=("wrist", "finger")), plain, renamed={"wrist": "right_0"}
    ).replay
    assert renamed.joint_names == ("right_0",) and renamed.about["truth_without_joint"] == ["finger"]
    assert renamed.main is not None


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, plain: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recording of any length only the pictures that are decoded ahead are there at once."""
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def counted(message: Any) -> np.ndarray:
        rgb = rgb_of(message)
        made.append(weakref.ref(rgb))
        alive.append(sum(one() is not None for one in made))
        return rgb

    monkeypatch.setattr(run_offline, "rgb_of", counted)
    offline([recording(tmp_path / "bag", 6.0)], SETTINGS, plain)
    assert len(made) == 60 and max(alive) <= 3


def test_joints_are_matched_by_name_else_by_order_where_they_have_none() -> None:
    model = ("a", "b", "c")
    found = match_joints(("c", "x", "a"), model, {})
    assert found.names == ("a", "c") and found.in_truth.tolist() == [2, 0] and found.in_model.tolist() == [0, 2]
    ordered = match_joints(("joint_00", "joint_01", "joint_02"), model, {})
    assert ordered.names == model and "in the order" in ordered.notes[0]
    assert match_joints(("joint_00", "joint_01"), model, {}).in_model is None, "fewer joints: nobody knows which"
    assert match_joints(("p", "q", "r"), model, {}).in_model is None, "other names are other joints"
    for renamed, words in (({"y": "a"}, "the truth does not have"), ({"x": "d"}, "the model does not have")):
        with pytest.raises(ValueError, match=words):
            match_joints(("c", "x"), model, renamed)
    with pytest.raises(ValueError, match="makes two joints"):
        match_joints(("c", "x"), model, {"x": "c"})


def test_ridge_learns_from_episodes_of_the_same_joints(tmp_path: Path, plain: Models) -> None:
    folder, data = recording(tmp_path / "bag"), tmp_path / "data"
    assert convert([folder], data, replace(SETTINGS, seconds=1.5, min_seconds=1.0), quiet=True) == 0
    replay = offline([folder], SETTINGS, plain, anchor=True, ridge=data).replay
    cells = measure(replay)["tables"]["all"]["6"]
    assert cells["ridge on past joints"]["ade"][0] < 0.2 * cells["hold"]["ade"][0], "an even motion is linear"
    assert offline([folder], SETTINGS, plain, ridge=data).replay.ridge is not None, "on what the model sees, too"
    with pytest.raises(ValueError, match="do not have the joint 'right_0'"):
        offline([folder], replace(SETTINGS, joints=("right_0", "right_3")), plain, anchor=True, ridge=data)
