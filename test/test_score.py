"""A run joined with its truth: by stamp, in the camera of each moment, never across a restart; and its files."""

import json

import numpy as np
import pytest

from thinkjepa_ros.evaluation import score
from thinkjepa_ros.evaluation.runs import Run, RunError, plain
from thinkjepa_ros.values import Camera

NS = 1_000_000_000
NAMES = ("right_wrist", "right_palm", "left_wrist")
BEGIN = 1_700_000_000 * NS


def world_joints(seconds):
    """The right hand moves along x at 0.2 m/s, the left hand rests; [n, 3, 3] metres."""
    seconds = np.asarray(seconds, np.float64)
    joints = np.tile(np.array([[0.0, 0.0, 2.0], [0.1, 0.0, 2.0], [-0.5, 0.2, 2.0]]), (len(seconds), 1, 1))
    joints[:, :2, 0] += 0.2 * seconds[:, None]
    return joints


def camera_poses(seconds):
    """The camera turns about its y axis and moves along it; [n, 4, 4] world_from_camera."""
    poses = np.tile(np.eye(4), (len(seconds), 1, 1))
    angle = 0.3 * np.asarray(seconds)
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angle)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angle), -np.sin(angle)
    poses[:, 1, 3] = 0.1 * np.asarray(seconds)
    return poses


def seen_from(pose, points):
    return (points - pose[:3, 3]) @ pose[:3, :3]


def make_run(count=30, truth_count=90, offset=0.03, steps=8, **changes):
    """Forecasts at 10 Hz that are exactly right but for `offset` metres along the camera's x; truth at 30 Hz."""
    at, truth_at = np.arange(count) / 10, np.arange(truth_count) / 30
    poses = camera_poses(truth_at)
    positions, present = [], []
    for second, pose in zip(at, camera_poses(at), strict=True):
        future = world_joints(second + 0.1 * np.arange(1, steps + 1))
        positions.append(seen_from(pose, future) + np.array([offset, 0, 0]))
        present.append(seen_from(pose, world_joints([second])[0]))
    fields = {
        "stamp_ns": BEGIN + (at * NS).round().astype(np.int64),
        "receipt_ns": BEGIN + ((at + 0.02) * NS).round().astype(np.int64),
        "positions": np.array(positions, np.float32),
        "sigma": np.full((count, steps, 3), 0.01, np.float32),
        "present": np.array(present, np.float32),
        "weight": np.zeros(count, np.float32),
        "age_s": np.full(count, np.nan, np.float32),
        "surprise": np.full(count, np.nan, np.float32),
        "epoch": np.zeros(count, np.int64),
        "truth_ns": BEGIN + (truth_at * NS).round().astype(np.int64),
        "truth": world_joints(truth_at).astype(np.float32),
        "pose_ns": BEGIN + (truth_at * NS).round().astype(np.int64),
        "pose": poses,
        "picture_ns": np.zeros(0, np.int64),
        "pictures": [],
        "begins_ns": np.array([BEGIN], np.int64),
        "joint_names": NAMES,
        "step_s": 0.1,
        "camera": Camera(640, 480, 500.0, 500.0, 319.5, 239.5, (0.1, 0.0, 0.0, 0.0, 0.0)),
        "model_id": "by hand",
        "domain": "simulation",
        "words": {"statuses": {}, "thoughts": []},
    }
    return Run(**{**fields, **changes})


def test_errors_of_a_moving_camera_by_hand():
    joined = score.join(make_run())
    rows = {row.method: row for row in score.score(joined)}
    # always 3 cm, whatever the camera does
    assert rows["model"].ade.mean == pytest.approx(0.03, abs=1e-5)
    assert rows["model"].fde.mean == pytest.approx(0.03, abs=1e-5)
    # the right hand goes 2 cm a step: hold is off by 2 k cm at step k, for two joints of three
    assert rows["hold"].ade.mean == pytest.approx(np.mean(0.02 * np.arange(1, 9)) * 2 / 3, abs=1e-4)
    assert rows["hold"].fde.mean == pytest.approx(0.16 * 2 / 3, abs=1e-4)
    # the motion is straight in the world, and the past is known from the second forecast on
    late = score.score(score.join(make_run()), steps=1)[0]
    assert late.ade.mean == pytest.approx(0.03, abs=1e-5)
    moving = score.moving(joined, NAMES)
    assert moving[:, :2].all() and not moving[:, 2].any()
    apart = {row.method: row for row in score.score(joined, moving)}
    assert apart["hold"].fde.mean == pytest.approx(0.16, abs=1e-4)
    assert apart["hold"].behind_model.mean == pytest.approx(0.09 - 0.03, abs=1e-4)
    assert score.present_error_m(joined, make_run()) == pytest.approx(0.0, abs=1e-6)


def test_constant_velocity_is_exact_where_the_past_is_seen():
    joined = score.join(make_run())
    error = np.linalg.norm(joined.methods["constant velocity"] - joined.truth, axis=-1)
    assert np.nanmax(error[3:]) < 1e-4
    assert np.nanmax(error[0]) > 0.1  # the first forecast has no past: it holds


def test_only_whole_horizons_are_scored():
    joined = score.join(make_run())
    np.testing.assert_array_equal(joined.index, [i for i in range(30) if i / 10 + 0.8 <= 89 / 30 + 1e-9])
    assert np.isfinite(joined.truth).all()


def test_nothing_is_scored_across_a_restart():
    restart = BEGIN + round(1.5 * NS)
    joined = score.join(make_run(40, 120, begins_ns=np.array([BEGIN, restart])))
    at = joined.index / 10
    assert not ((at >= 1.5 - 1e-9) & (at < 2.3 - 1e-9)).any(), "these windows hold two scenes"
    assert not ((at + 0.8 >= 1.5 - 1e-9) & (at < 1.5)).any(), "these horizons reach into the next scene"
    assert (at < 1.5).sum() == 7 and (at >= 1.5).sum() > 0
    # rounds of one recording are the same stretches
    again = score.join(make_run(40, 120, begins_ns=np.array([BEGIN, restart]))).stretch
    assert again[at >= 1.5].min() == 0


def test_a_pause_in_the_truth_begins_another_scene():
    run = make_run(40, 120)
    truth_ns = run.truth_ns.copy()
    truth_ns[45:] += 6 * NS
    stamp_ns = run.stamp_ns.copy()
    stamp_ns[15:] += 6 * NS
    joined = score.join(make_run(40, 120, truth_ns=truth_ns, pose_ns=truth_ns, stamp_ns=stamp_ns))
    np.testing.assert_array_equal(joined.index, [*range(7), *range(23, 32)])


def test_unknown_joints_count_for_nothing():
    run = make_run()
    truth = run.truth.copy()
    truth[:, 1] = np.nan
    rows = score.score(score.join(make_run(truth=truth)))
    assert rows[0].ade.mean == pytest.approx(0.03, abs=1e-5)
    assert rows[1].fde.mean == pytest.approx(0.08, abs=1e-4)  # one joint of two moves


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"truth_ns": np.zeros(0, np.int64), "truth": np.zeros((0, 0, 3))}, "no joint truth"),
        ({"truth": np.zeros((90, 12, 3), np.float32)}, "12 points, the model has 3 joints"),
        ({"pose_ns": np.zeros(0, np.int64), "pose": np.zeros((0, 4, 4))}, "no /camera/pose"),
        ({"truth_ns": np.arange(90) * NS // 30, "pose_ns": np.arange(90) * NS // 30}, "do not overlap"),
        ({"begins_ns": np.array([BEGIN]), "stamp_ns": np.full(30, BEGIN)}, "same stamps came again"),
    ],
)
def test_why_there_is_no_score(changes, words):
    with pytest.raises(score.NoTruthError, match=words):
        score.join(make_run(**changes))


def test_no_forecast_no_score():
    empty = {
        name: getattr(make_run(), name)[:0]
        for name in ("stamp_ns", "receipt_ns", "positions", "sigma", "present", "weight", "age_s", "surprise", "epoch")
    }
    with pytest.raises(score.NoTruthError, match="no forecast"):
        score.join(make_run(**empty))


def test_interpolation():
    stamps, values = np.array([0, 100, 200, 500]) * 1_000_000, np.array([[0.0], [1.0], [3.0], [9.0]])
    ask = np.array([-1, 0, 50, 100, 150, 200, 300, 500, 501]) * 1_000_000
    got = score.interpolate(stamps, values, ask, np.zeros(0, np.int64))[:, 0]
    np.testing.assert_allclose(got, [np.nan, 0, 0.5, 1, 2, 3, np.nan, 9, np.nan])
    parted = score.interpolate(stamps, values, ask, np.array([120_000_000]))[:, 0]
    np.testing.assert_allclose(parted, [np.nan, 0, 0.5, 1, np.nan, 3, np.nan, 9, np.nan])


def test_a_run_survives_its_files(tmp_path):
    run = make_run(pictures=[b"one", b"three"], picture_ns=np.array([1, 2]))
    run.save(tmp_path)
    again = Run.load(tmp_path)
    for name in Run._ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(run, name))
    for name in ("pictures", "camera", "joint_names", "step_s", "metric", "model_id", "domain", "words"):
        assert getattr(again, name) == getattr(run, name)
    assert again.picture(0) is None  # not an image
    assert again.latency_s == pytest.approx(0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.npz"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "run.json").unlink(), "run.json is missing"),
        (lambda folder: (folder / "run.npz").unlink(), "run.npz is missing"),
        (lambda folder: (folder / "run.npz").write_bytes(b"PK\x03\x04 cut"), "damaged"),
        (lambda folder: (folder / "run.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "run.json").write_text(json.dumps({"version": 9})), "version 9"),
    ],
)
def test_a_damaged_run_is_a_sentence(tmp_path, damage, words):
    make_run().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=words):
        Run.load(tmp_path)


def test_numbers_for_json():
    told = plain({"a": np.float32("nan"), "b": [np.int64(3), (1.5, float("inf"))], "c": "x", "d": None})
    assert told == {"a": None, "b": [3, [1.5, None]], "c": "x", "d": None}
