"""Errors that are computed while forecasts and truth come: the same as those of a recording, bounded, and in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_score import BEGIN, NS, camera_poses, make_run, seen_from, world_joints

from thinkjepa_ros.evaluation import rolling, score
from thinkjepa_ros.evaluation.rolling import Level, Rolling
from thinkjepa_ros.evaluation.sightings import SightingError, Sightings
from thinkjepa_ros.values import Forecast

EYE = np.eye(4)


def forecasts(run) -> list[Forecast]:
    return [replace(run.forecast(i), frame_id="camera") for i in range(len(run))]


def feed(live: Rolling, run, truth_frame="world", poses=True, truth=None, shift_ns=0, late_s=0.02) -> float:
    """Everything of a run in the order of time, a turn every second; the time at the end."""
    truth = run.truth if truth is None else truth
    events = [(int(at), 0, i) for i, at in enumerate(run.pose_ns)] if poses else []
    events += [(int(at), 1, i) for i, at in enumerate(run.truth_ns)]
    events += [(int(at), 2, i) for i, at in enumerate(run.receipt_ns)]
    values, due_s, now_s = forecasts(run), 1.0, 0.0
    for at, kind, i in sorted(events):
        now_s = (at - BEGIN) / NS
        while now_s >= due_s:
            live.turn(due_s)
            due_s += 1.0
        if kind == 0:
            live.sightings.pose(int(run.pose_ns[i]) + shift_ns, "world", run.pose[i])
        elif kind == 1:
            live.sightings.truth(int(run.truth_ns[i]) + shift_ns, truth_frame, truth[i])
        else:
            live.forecast(values[i], int(run.epoch[i]), late_s, now_s)
    live.turn(now_s)
    return now_s


def test_errors_are_those_of_the_whole_recording():
    run = make_run(60, 240)
    run.positions += np.random.default_rng(0).normal(0, 0.02, run.positions.shape).astype(np.float32)
    live = Rolling(Sightings(), window_s=100.0)
    now = live.snapshot(feed(live, run))
    joined = score.join(run)
    assert now.scored == live.scored_total == len(joined.index) > 40
    moving = score.moving(joined, run.joint_names)
    for name in rolling.ROWS:
        error = np.linalg.norm(joined.methods[name] - joined.truth, axis=-1)
        row = now.rows[name]
        assert row.ade == pytest.approx(error.mean(), abs=1e-5), name
        assert row.fde == pytest.approx(error[:, -1].mean(), abs=1e-5), name
        apart = np.where(moving[:, None], error, np.nan)
        assert row.ade_moving == pytest.approx(np.nanmean(np.nanmean(apart, (1, 2))), abs=1e-5), name
    assert live.total()["rows"]["hold"]["ade"] == pytest.approx(now.rows["hold"].ade)
    assert live.total()["scored"] == now.scored and not now.left_out


def test_a_step_that_travelled_as_float32_loses_no_forecast_at_a_turn():
    """The end of the horizon then lies nanoseconds behind a truth, and the next one must be awaited."""
    run = make_run(60, 240, step_s=float(np.float32(0.1)))
    run.truth_ns, run.truth, run.pose_ns, run.pose = run.truth_ns[::3], run.truth[::3], run.pose_ns[::3], run.pose[::3]
    live = Rolling(Sightings(), 100.0)
    feed(live, run)
    assert live.scored_total == len(score.join(run).index) and not live.left_out["truth or pose with gaps"]


def test_a_window_holds_what_was_scored_in_it():
    """By hand: always 3 cm wrong, then 6 cm; hold is off by 2 k cm at step k for two joints of three."""
    run = make_run(60, 240)
    run.positions[30:] += np.array([0.03, 0, 0], np.float32)
    live = Rolling(Sightings(), window_s=2.0)
    now_s = feed(live, run)
    now = live.snapshot(now_s)
    # scored between 5.97 and 7.97 s are those whose last step, 0.8 s after their stamp, lies in there
    assert now.rows["model"].ade == pytest.approx(0.06, abs=1e-4)
    assert now.rows["hold"].ade == pytest.approx(np.mean(0.02 * np.arange(1, 9)) * 2 / 3, abs=1e-4)
    assert now.rows["constant velocity"].fde == pytest.approx(0.0, abs=1e-4)
    assert now.moving == now.scored and 5 <= now.scored < 25
    assert live.total()["rows"]["model"]["ade"] == pytest.approx(0.045, abs=1e-3)
    live.turn(now_s + 3.0)
    later = live.snapshot(now_s + 3.0)
    assert later.scored == 0 and np.isnan(later.rows["model"].ade) and later.level is Level.STALE


def test_truth_in_the_frame_of_a_moving_camera_gives_the_same():
    run = make_run(40, 150)
    seen = np.array([seen_from(pose, points) for pose, points in zip(run.pose, run.truth, strict=True)])
    live, other = Rolling(Sightings(), 100.0), Rolling(Sightings(), 100.0)
    feed(live, run)
    feed(other, run, truth_frame="/camera", truth=seen)
    assert other.scored_total == live.scored_total > 25
    for name, row in live.total()["rows"].items():
        assert other.total()["rows"][name]["ade"] == pytest.approx(row["ade"], abs=1e-4)


def test_a_camera_without_a_pose_is_taken_as_if_it_stood_still():
    run = make_run(40, 150)
    at = np.arange(40) / 10
    run.positions = np.array([world_joints(s + 0.1 * np.arange(1, 9)) for s in at], np.float32) + np.float32(0.01)
    run.present = world_joints(at).astype(np.float32)
    live = Rolling(Sightings(), 100.0)
    feed(live, run, truth_frame="camera", poses=False)
    assert live.scored_total > 25
    assert live.total()["rows"]["model"]["ade"] == pytest.approx(0.01 * 3**0.5, abs=1e-4)
    astray = Rolling(Sightings(), 100.0)
    now_s = feed(astray, run, truth_frame="map", poses=False)
    now = astray.snapshot(now_s)
    assert now.level is Level.WARN and "truth is in the frame 'map', the camera is 'camera'" in now.words
    assert now.left_out["its truth cannot be used"] > 25


def test_joints_are_found_by_their_names():
    run = make_run(40, 150)
    live = Rolling(Sightings(joints=("nose", "left_wrist", "right_wrist")), 100.0)
    feed(live, run, truth=np.stack([run.truth[:, 0] * np.nan, run.truth[:, 2], run.truth[:, 0]], 1))
    assert live.scored_total > 25
    # one of two known joints moves
    assert live.total()["rows"]["hold"]["fde"] == pytest.approx(0.16 / 2, abs=1e-3)
    nobody = Rolling(Sightings(joints=("a", "b", "c")), 100.0)
    assert "no joint in common: a, b, c" in nobody.snapshot(feed(nobody, run)).words


def test_a_wrong_number_of_joints_is_said():
    run = make_run(40, 150)
    live = Rolling(Sightings(), 100.0)
    now = live.snapshot(feed(live, run, truth=run.truth[:, :2]))
    assert now.level is Level.WARN and "truth has 2 points, the model has 3 joints" in now.words and not now.scored


def test_another_clock_is_said():
    run = make_run(40, 150)
    for shift_s, words in ((-1001, "stamped 1000 s before the images"), (4999, "stamped 5000 s after the images")):
        live = Rolling(Sightings(), 100.0)
        now = live.snapshot(feed(live, run, shift_ns=shift_s * NS))
        assert now.level is Level.WARN and words in now.words and now.scored == 0
        assert "use the clock of ROS" in live.total()["not_scored"]


def test_what_can_be_no_truth_is_refused_with_words():
    sightings, points = Sightings(), np.zeros((3, 3))
    sightings.truth(1 * NS, "world", np.zeros((0, 3)))
    sightings.truth(2 * NS, "world", points)
    with pytest.raises(SightingError, match="2 points, but 3 came before"):
        sightings.truth(3 * NS, "world", points[:2])
    assert "2 points" in sightings.trouble
    for stamp, value, words in (
        (0, points, "no time"), (2 * NS, points, "same stamp twice"), (round(1.9 * NS), points, "back by 0.100 s"),
        (3 * NS, points + np.inf, "infinite"),
    ):  # fmt: skip
        with pytest.raises(SightingError, match=words):
            sightings.truth(stamp, "world", value)
    for matrix in (EYE * np.nan, np.full((4, 4), np.inf)):
        with pytest.raises(SightingError, match="no pose"):
            sightings.pose(3 * NS, "world", matrix)
    partly = points.copy()
    partly[1, 2] = np.nan
    sightings.truth(3 * NS, "world", partly)
    sightings.truth(4 * NS, "world", points[:0])
    assert sightings.trouble == "" and sum(sightings.refused.values()) == 7
    stamps, truth, _, _ = sightings.all()
    assert stamps.tolist() == [2 * NS, 3 * NS, 4 * NS]
    assert np.isnan(truth[1, 1]).all() and np.isfinite(truth[1, 0]).all() and np.isnan(truth[2]).all()


def test_unknown_joints_count_for_nothing():
    run = make_run(40, 150)
    truth = run.truth.copy()
    truth[:, 1] = np.nan
    truth[40:70] = np.nan
    live = Rolling(Sightings(), 100.0)
    now = live.snapshot(feed(live, run, truth=truth))
    assert now.rows["model"].ade == pytest.approx(0.03, abs=1e-4) and now.level is Level.OK
    assert now.left_out == {"truth or pose with gaps": 40 - now.scored - now.waiting}


def test_what_waits_for_truth_is_bounded_and_counted():
    run = make_run(60, 10)
    live = Rolling(Sightings(), 100.0, max_waiting=20)
    now = live.snapshot(feed(live, run))
    assert now.waiting == 20 and now.left_out == {"its truth did not come": 40}
    assert now.received == 60 == now.waiting + sum(now.left_out.values()) + now.scored_total
    alone = Rolling(Sightings(), 100.0)
    for forecast in forecasts(run):
        alone.forecast(forecast, 0, 0.02, 1.0)
    assert alone.snapshot(1.0).words == "not scored: no truth has come" and alone.snapshot(1.0).level is Level.OK


def test_truth_is_let_go_of():
    live = Rolling(Sightings(), 1.0)
    feed(live, make_run(600, 1800))
    assert len(live.sightings.all()[0]) < 120 and len(live.sightings.all()[2]) < 120 and len(live._past) < 30


def test_nothing_is_scored_across_a_jump_of_the_clock():
    run = make_run(40, 150)
    live = Rolling(Sightings(), 100.0)
    feed(live, run)
    first, waiting = live.scored_total, len(live._waiting)
    again = make_run(40, 150, epoch=np.ones(40, np.int64))
    feed(live, again)
    assert live.scored_total == 2 * first and waiting == 0
    for forecast in forecasts(make_run(40, 150))[:3]:
        live.forecast(forecast, 2, 0.02, 400.0)
    live.forecast(forecasts(run)[0], 3, 0.02, 401.0)
    live.forecast(forecasts(run)[0], 3, 0.02, 401.0)
    assert live.left_out["before a jump of the clock"] == 3 and live.left_out["of an image that had one"] == 1
    other = make_run(40, 150, model_id="another")
    for forecast in forecasts(other):
        live.forecast(forecast, 1, 0.02, 500.0)
    assert live.left_out["another model"] > 0


def test_late_forecasts_and_those_worse_than_hold_are_a_warning():
    run = make_run(40, 150)
    live = Rolling(Sightings(), 100.0, late_s=0.1)
    now = live.snapshot(feed(live, run))
    assert now.level is Level.OK and now.words.startswith("ADE 3.0 cm, hold 6.0 cm")
    assert now.rate_hz == pytest.approx(40 / 5, rel=0.05) and now.latency_s["p50"] == pytest.approx(0.02)
    live = Rolling(Sightings(), 100.0, late_s=0.1)
    now = live.snapshot(feed(live, run, late_s=0.3))
    assert now.level is Level.WARN and "forecasts come late: 0.30 s (p95), 0.1 s is the limit" in now.words
    bad = make_run(40, 150, offset=0.2)
    live = Rolling(Sightings(), 100.0)
    now = live.snapshot(feed(live, bad))
    assert now.level is Level.WARN and "worse than hold where something moves: ADE 20.0 cm, hold 9.0 cm" in now.words


def test_a_resting_hand_gives_no_warning():
    """Hold is perfect there; a forecast a few millimetres off it is no reason to worry."""
    run = make_run(40, 150)
    still = np.tile(world_joints([0.0])[0], (150, 1, 1))
    run.truth, run.pose = still.astype(np.float32), np.tile(EYE, (150, 1, 1))
    run.present = np.tile(still[0], (40, 1, 1)).astype(np.float32)
    run.positions = np.tile(still[0] + 0.003, (40, 8, 1, 1)).astype(np.float32)
    live = Rolling(Sightings(), 100.0)
    now = live.snapshot(feed(live, run))
    assert now.level is Level.OK and now.scored > 25 and now.moving == 0
    assert now.rows["model"].ade > now.rows["hold"].ade == pytest.approx(0.0, abs=1e-6)


def test_rounds_of_a_player_are_other_scenes():
    """Time goes on where a bag loops with clock:=wall, and the scene begins anew."""
    run = make_run(40, 150)
    live = Rolling(Sightings(begins_ns=[BEGIN, BEGIN + 2 * NS]), 100.0)
    feed(live, run)
    joined = score.join(make_run(40, 150, begins_ns=np.array([BEGIN, BEGIN + 2 * NS])))
    assert live.scored_total == len(joined.index) < 25


def test_silence_is_said():
    live = Rolling(Sightings(), 10.0)
    assert live.snapshot(5.0).level is Level.STALE and live.snapshot(5.0).words == "no forecast has come yet"
    live.forecast(forecasts(make_run(2, 4))[0], 0, 0.02, 5.0)
    live.turn(9.5)
    assert live.snapshot(9.5).words == "no forecast for 4.5 s"
    assert live.total()["rows"] == {} and live.total()["not_scored"] == "no truth has come"


def test_camera_poses_at_turns_of_the_camera_are_the_nearest():
    at = np.arange(0, 3, 0.1)
    poses = camera_poses(at)
    sightings = Sightings()
    for second, pose in zip(at, poses, strict=True):
        sightings.pose(BEGIN + round(second * NS), "world", pose)
        sightings.truth(BEGIN + round(second * NS) + 3_000_000, "camera", seen_from(pose, world_joints([second])[0]))
    sightings.truth(BEGIN + round(2.95 * NS), "camera", np.ones((3, 3)))
    stamps, truth, _, _ = sightings.placed(("a", "b", "c"), "camera", [BEGIN])
    np.testing.assert_allclose(truth[:-1], world_joints(at), atol=1e-6)
    assert len(stamps) == 31 and np.isnan(truth[-1]).all(), "no pose within 20 ms"
    assert sightings.wanted_poses([BEGIN, BEGIN + 5 * NS], "camera") == [
        BEGIN + round(2.9 * NS) + 3_000_000, BEGIN + round(2.95 * NS), BEGIN + 5 * NS,
    ]  # fmt: skip
    assert sightings.wanted_poses([BEGIN, BEGIN + 5 * NS], "other") == [BEGIN + 5 * NS]
