"""The figures of metrics.json are what docs/evaluate_bag.md says, by a second computation that shares no code."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_kit import NS, make_replay

from thinkjepa_ros.evaluation.bag import metrics, rows
from thinkjepa_ros.evaluation.bag.metrics import measure, measure_each
from thinkjepa_ros.evaluation.bag.replay import Replay, ReplayError
from thinkjepa_ros.evaluation.bootstrap import bootstrap_mean

Point = tuple[float, float, float]


# --- the same once more, in loops ---


def slope(points: list[tuple[float, Any]]) -> list[float]:
    """Least squares of what is known of the last 0.35 s; the newest two count in any case."""
    known = [(t, p) for t, p in points if not math.isnan(p[0])]
    used = [(t, p) for k, (t, p) in enumerate(known) if t >= -0.35 - 1e-9 or k >= len(known) - 2]
    if len(used) < 2:
        return [0.0, 0.0, 0.0]
    return [float(np.polyfit([t for t, _ in used], [p[a] for _, p in used], 1)[0]) for a in range(3)]


def said_by(replay: Replay, row: str, n: int, k: int, j: int) -> list[float]:
    """The position that a row forecasts."""
    if row in ("guided", "unguided"):
        return [float(v) for v in getattr(replay, row)[n, k, j]]
    now = [float(v) for v in replay.past[n, -1, j]]
    points = [(float(t), p[j].astype(float)) for t, p in zip(replay.past_s[n], replay.past[n], strict=True)]
    after = (k + 1) * replay.step_s
    travel = {"hold": 0.0, "constant velocity": after, "damped velocity": 0.4 * (1 - math.exp(-after / 0.4))}[row]
    speed = slope(points)
    return [now[a] + travel * speed[a] for a in range(3)]


@cache
def moves(replay: Replay, n: int, j: int, steps: int) -> bool | None:
    """Whether the group of a joint moves more than 3 cm; None where nobody knows."""

    def side(name: str) -> str:
        return name.split("_")[0] if name.startswith(("right", "left")) else "other"

    hand = [i for i, name in enumerate(replay.joint_names) if side(name) == side(replay.joint_names[j])]
    furthest, told = 0.0, False
    for k in range(steps):
        far = [float(np.linalg.norm(replay.truth[n, k, i] - replay.truth_present[n, i])) for i in hand]
        far = [d for d in far if not math.isnan(d)]
        if far:
            told = True
            furthest = max(furthest, sum(far) / len(far))
    return furthest > 0.03 if told else None


def by_hand(replay: Replay, row: str, steps: int, group: str) -> dict[str, float]:
    """ADE, FDE, share within 5 cm, velocity error and jerk of one row."""
    stretches: dict[tuple[int, int, int], list[dict[str, float]]] = {}
    first = {int(p): int(replay.stamp_ns[replay.piece == p].min()) for p in replay.piece}
    for n in range(len(replay)):
        at = {
            (k, j): said_by(replay, row, n, k, j)
            for k in range(steps)
            for j in range(len(replay.joint_names))
            if not math.isnan(replay.truth[n, k, j, 0])
        }
        if not any(k == steps - 1 for k, _ in at):
            continue
        wanted = {"moving": True, "resting": False}.get(group)
        at = {e: p for e, p in at.items() if wanted is None or moves(replay, n, e[1], steps) is wanted}
        far = {e: math.dist(p, replay.truth[n, e[0], e[1]]) for e, p in at.items()}
        if not far:
            continue
        last = [d for (k, _), d in far.items() if k == steps - 1]
        speeds = [
            math.dist(np.subtract(p, at[k - 1, j]), replay.truth[n, k, j] - replay.truth[n, k - 1, j]) / replay.step_s
            for (k, j), p in at.items()
            if (k - 1, j) in at
        ]
        jerks = [
            math.hypot(*(p[a] - 3 * at[k - 1, j][a] + 3 * at[k - 2, j][a] - at[k - 3, j][a] for a in range(3)))
            for (k, j), p in at.items()
            if all((k - back, j) in at for back in (1, 2, 3))
        ]
        one = {"ade": sum(far.values()) / len(far), "acc_5cm": sum(d <= 0.05 for d in far.values()) / len(far)}
        if last:
            one["fde"] = sum(last) / len(last)
        if speeds:
            one["velocity"] = sum(speeds) / len(speeds)
        if jerks:
            one["jerk"] = sum(jerks) / len(jerks) / replay.step_s**3
        piece = int(replay.piece[n])
        stretches.setdefault(
            (int(replay.bag[n]), piece, int(replay.stamp_ns[n] - first[piece]) // (2 * NS)), []
        ).append(one)
    out = {}
    for name in ("ade", "fde", "acc_5cm", "velocity", "jerk"):
        means = [
            sum(values) / len(values)
            for key in sorted(stretches)
            if (values := [one[name] for one in stretches[key] if name in one])
        ]
        out[name] = sum(means) / len(means) if means else float("nan")
        if name == "ade":
            out["interval"] = bootstrap_mean(np.array(means))  # type: ignore[assignment]
    return out


def test_every_figure_is_what_a_second_computation_gives() -> None:
    replay = make_replay(count=36)
    found = measure(replay)
    assert found["rows"] == ["hold", "constant velocity", "damped velocity", "unguided", "guided"]
    assert found["horizons"] == [{"steps": 8, "s": 0.8}, {"steps": 10, "s": 1.0}]
    checked = 0
    for group in ("moving", "resting", "all"):
        for row in found["rows"]:
            for steps in (8, 10):
                if (cell := found["tables"].get(group, {}).get(str(steps), {}).get(row)) is None:
                    continue
                expected = by_hand(replay, row, steps, group)
                for name in ("ade", "fde"):
                    assert cell[name][0] == pytest.approx(expected[name], abs=1e-6), (group, row, steps, name)
                assert np.allclose(cell["ade"], expected["interval"], rtol=0, atol=1e-6)
                for name, close in (("acc_5cm", 1e-6), ("velocity", 1e-6), ("jerk", 1e-3)):
                    assert cell[name] == pytest.approx(expected[name], abs=close, rel=1e-6), (group, row, steps, name)
                checked += 1
    assert checked == 30, "every group, row and horizon has figures"
    cells = found["tables"]["moving"]["8"]
    assert cells["guided"]["minus_hold"][0] == pytest.approx(cells["guided"]["ade"][0] - cells["hold"]["ade"][0])
    assert cells["guided"]["minus_unguided"][2] < 0 < cells["hold"]["ade"][0], "less noise was put into guided"
    assert "better than hold" in found["summary"] and "better than the same model unguided" in found["summary"]


def test_who_does_not_beat_constant_velocity_is_not_called_better() -> None:
    """Joints that move evenly, seen without error: better than hold is not enough."""
    replay = make_replay(guided=False, unknown=0.0)
    whole = np.isfinite(replay.truth[:, -1]).all((1, 2))
    speed = (replay.truth[:, :1] - replay.truth_present[:, None]) / replay.step_s
    past = replay.truth_present[:, None] + speed * replay.past_s[..., None, None]
    ahead = replay.step_s * np.arange(1, 11)[:, None, None]
    even = replace(replay, past=past.astype(np.float32), truth=replay.truth_present[:, None] + speed * ahead)
    found = measure(even.only(whole))
    assert "does not beat constant velocity" in found["summary"] and "better" not in found["summary"]


def test_entries_that_a_row_does_not_answer_count_for_no_row() -> None:
    replay = make_replay(unknown=0.0)
    ridge = np.array(replay.guided)
    ridge[:, :, 1] = np.nan
    with_ridge, without = measure(replace(replay, ridge=ridge)), measure(replay)
    assert with_ridge["rows"][3] == "ridge on past joints" and with_ridge["by_joint"]["hold"]["right_tip"] is None
    assert without["by_joint"]["hold"]["right_tip"] > 0
    cells = with_ridge["tables"]["all"]["10"]
    assert (
        cells["ridge on past joints"]["ade"]
        == cells["guided"]["ade"]
        != without["tables"]["all"]["10"]["guided"]["ade"]
    )


def test_calibration_steps_and_times_are_counted() -> None:
    replay = make_replay(count=40, unknown=0.1)
    found = measure(replay)
    inside = []
    for k in range(10):
        near = [
            abs(float(replay.guided[n, k, j, a]) - replay.truth[n, k, j, a]) <= float(replay.sigma[n, k, j])
            for n in range(40)
            if np.isfinite(replay.truth[n, 9]).any()
            for j in range(4)
            for a in range(3)
            if not math.isnan(replay.truth[n, k, j, a])
        ]
        inside.append(sum(near) / len(near))
    assert np.allclose(found["calibration"]["within_1_sigma"], inside, rtol=0, atol=1e-9)
    assert found["calibration"]["steps"] == list(range(1, 11)) and inside[0] > inside[-1]
    assert len(found["by_step"]["hold"]) == 10 and found["by_step"]["hold"][0] < found["by_step"]["hold"][-1]
    assert found["rate_hz"] == pytest.approx(10.0) and found["weight_mean"] == pytest.approx(0.8)
    assert found["age_s"]["max"] == pytest.approx(0.4) and found["latency_s"]["p50"] <= found["latency_s"]["p99"]
    assert found["counts"]["pieces"] == 3 and found["counts"]["forecasts"] == 40
    wrong = np.linalg.norm(replay.present - replay.truth_present, axis=-1)
    assert found["present_error"][0] == pytest.approx(np.nanmean(wrong), rel=0.05)
    worst = found["moments"]["worst"][0]
    assert worst["ade"] == max(m["ade"] for m in found["moments"]["worst"]) and worst["stamp_ns"] in replay.stamp_ns
    times = [m["time_s"] for m in found["moments"]["worst"] if m["bag"] == 0]
    assert all(abs(a - b) >= 2.0 for i, a in enumerate(times) for b in times[:i]), "not the same moment again and again"


def test_steady_is_who_says_the_same_again() -> None:
    """A forecast of a place in the world, seen from a camera that moves: its frame must not count as unsteadiness."""
    replay = make_replay(count=30, unknown=0.0)
    pose = np.tile(np.eye(4), (30, 1, 1))
    pose[:, :3, 3] = np.linspace(0, 0.5, 30)[:, None] * (1.0, 0.2, -0.1)
    place = np.random.default_rng(1).normal(0, 1, (4, 3))
    seen = np.repeat((place - pose[:, None, :3, 3])[:, None], 10, 1).astype(np.float32)
    moving = replace(replay, unguided=seen, pose=pose)
    assert (
        measure(moving)["stability"]["unguided"] < 1e-6 < measure(replace(moving, pose=None))["stability"]["unguided"]
    )
    lazy = rows.stability(replay)
    apart = [
        math.dist(replay.guided[n, k + 1, j], replay.guided[n + 1, k, j])
        for n in range(29)
        if replay.piece[n] == replay.piece[n + 1]
        for k in range(9)
        for j in range(4)
    ]
    assert lazy["guided"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)


def test_labelled_moments_are_told_from_others_by_surprise() -> None:
    values, event = np.array([0.9, 0.8, 0.1, 0.8, np.nan], np.float32), np.array([True, True, False, False, True])
    assert metrics.auroc(values, event) == pytest.approx((2 + 1 + 0.5) / 4)
    assert math.isnan(metrics.auroc(values, None)) and math.isnan(metrics.auroc(values, np.zeros(5, bool)))


def test_without_truth_the_rest_is_there() -> None:
    replay = make_replay()
    blind = replace(
        replay,
        truth=np.full_like(replay.truth, np.nan),
        truth_present=np.full_like(replay.truth_present, np.nan),
        about={"truth_source": None},
    )
    found = measure(blind)
    assert found["tables"] == {} and found["by_step"] == {} and found["moments"] == {"worst": [], "best": []}
    assert found["counts"]["scored"] == 0 and found["present_error"] == [None, None, None]
    assert "there is no truth" in found["summary"] and found["surprise"]["values"][0] is not None
    assert found["stability"]["guided"] > 0 and found["latency_s"]["p50"] > 0
    nothing = measure(replay.only(np.zeros(len(replay), bool)))
    assert nothing["counts"]["forecasts"] == 0 and nothing["tables"] == {} and nothing["rate_hz"] is None


def test_a_model_without_the_joints_of_the_truth_leaves_the_baselines() -> None:
    found = measure(make_replay(guided=False, unguided=None))
    assert found["rows"] == ["hold", "constant velocity", "damped velocity"]
    assert "none of the joints" in found["summary"] and found["calibration"]["steps"] == []
    assert found["tables"]["moving"]["8"]["hold"]["ade"][0] > 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), unknown=st.sampled_from([0.0, 0.3, 0.9, 1.0]), count=st.integers(1, 25))
def test_whatever_is_unknown_the_figures_are_strict_json(seed: int, unknown: float, count: int) -> None:
    random = np.random.default_rng(seed)
    replay = make_replay(count, unknown=unknown, seed=seed)
    hole = random.random(len(replay)) < 0.3
    surprise = np.where(hole, np.nan, replay.surprise).astype(np.float32)
    past = np.where(random.random(replay.past.shape[:3])[..., None] < unknown / 2, np.nan, replay.past)
    found = measure(replace(replay, surprise=surprise, past=past.astype(np.float32)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for tables in found["tables"].values():
        for cells in tables.values():
            ades = [cell["ade"][0] for cell in cells.values()]
            assert all(a is not None and a >= 0 for a in ades), "all rows answer, or the table is left out"
    scored = found["counts"]["scored"]
    assert 0 <= scored <= count and (scored > 0) == bool(found["tables"])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = make_replay(count=40)
    whole = measure(replay)
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    parts = measure(replay)
    assert parts["tables"] == whole["tables"] and parts["moments"] == whole["moments"]
    assert rows.stability(replay, 7) == pytest.approx(whole["stability"], rel=1e-12)


def test_one_line_per_forecast(tmp_path: Path) -> None:
    replay = make_replay(count=20)
    found = measure_each(replay)
    metrics.write_per_frame(replay, found, tmp_path / "per_frame.csv")
    with (tmp_path / "per_frame.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 20 and int(lines[7]["stamp_ns"]) == replay.stamp_ns[7]
    ade = found.one["all"][8]["constant velocity"]["ade"]
    for line, value in zip(lines, ade, strict=True):
        assert (line["constant_velocity_ade_8"] == "") == math.isnan(value)
        assert math.isnan(value) or float(line["constant_velocity_ade_8"]) == pytest.approx(value, rel=1e-5)


# --- the value itself ---


def test_a_replay_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    replay = make_replay(unguided=None)
    replay.save(tmp_path)
    back = Replay.load(tmp_path)
    assert back.unguided is None and back.event is None and back.about == replay.about
    assert back.joint_names == replay.joint_names and back.thoughts == replay.thoughts
    for name in ("guided", "truth", "past", "stamp_ns"):
        assert np.array_equal(getattr(back, name), getattr(replay, name), equal_nan=True)
    assert not list(tmp_path.glob(".*")), "nothing half written is left"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: (f / "replay.npz").unlink(),
            "holds no replay .replay.npz is missing.; run `thinkjepa evaluate bag`",
        ),
        (lambda f: (f / "replay.npz").write_bytes((f / "replay.npz").read_bytes()[:999]), "is damaged"),
        (lambda f: (f / "replay.json").write_text("{"), "is damaged"),
        (lambda f: (f / "replay.json").write_text('{"format": 99}'), "another version"),
    ],
)
def test_a_damaged_replay_is_refused_with_the_remedy(tmp_path: Path, damage: Any, words: str) -> None:
    make_replay(count=5).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ReplayError, match=words):
        Replay.load(tmp_path)


def test_arrays_that_do_not_fit_are_refused() -> None:
    replay = make_replay(count=5)
    with pytest.raises(ReplayError, match=r"sigma of a replay is .* it must be \(5, 10, 4\)"):
        replace(replay, sigma=replay.sigma[:, :3])
    with pytest.raises(ReplayError, match="4 joints has 2 joint names"):
        replace(replay, joint_names=("a", "b"))
