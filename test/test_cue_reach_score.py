"""Figures of the cue-reach table beside plain loops over small made-up truths, and verdicts that follow the numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cue_reach_kit import NAMES, make_prediction, make_truth
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.evaluation.bootstrap import bootstrap_mean
from thinkjepa_ros.evaluation.cue_reach import claims, origins
from thinkjepa_ros.evaluation.cue_reach.groups import GROUPS
from thinkjepa_ros.evaluation.cue_reach.intervals import intervals, ratio
from thinkjepa_ros.evaluation.cue_reach.rows import IMAGE, POSE
from thinkjepa_ros.evaluation.cue_reach.score import HANDS, METRICS, score

NAN = float("nan")
HORIZONS = (2, 5, 8)


def distance(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def mean(values):
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else NAN


def known(point):
    return all(math.isfinite(x) for x in point)


def moves(truth, n, j):
    """Whether the hand of joint j goes further than 3 cm, all its known joints together, at any step."""
    side = [k for k, name in enumerate(NAMES) if name.split("_")[0] == NAMES[j].split("_")[0]]
    for step in truth.future[n]:
        away = mean([distance(step[k], truth.present[n, k]) for k in side if known(step[k])])
        if away > 0.03:
            return True
    return False


def plain(truth, prediction, group, hand, horizon):
    """Every metric of one place, one number per episode, by loops alone."""
    phase, told = GROUPS[group]
    result = {metric: [] for metric in METRICS}
    for episode in sorted(set(truth.episode)):
        of_origins = {metric: [] for metric in METRICS}
        for n in np.flatnonzero(truth.episode == episode):
            if origins.GROUPS[truth.group[n]] != phase or told not in (None, bool(truth.told[n])):
                continue
            found = {metric: [] for metric in METRICS}
            for j in range(len(NAMES)):
                if hand != "all" and moves(truth, n, j) != (hand == "moving"):
                    continue
                for t in range(horizon):
                    true, ours = truth.future[n, t, j], prediction.positions[n, t, j]
                    if not known(true):
                        continue
                    error = distance(true, ours)
                    found["ade"].append(error)
                    if t == horizon - 1:
                        found["fde"].append(error)
                    for cm in (2, 5, 10):
                        found[f"within_{cm}"].append(float(error <= cm / 100))
                    for x in range(3):
                        score_x = abs(float(true[x]) - float(ours[x])) / float(prediction.sigma[n, t, j])
                        found["sigma_1"].append(float(score_x <= 1))
                        found["sigma_2"].append(float(score_x <= 2))
                    if t and known(truth.future[n, t - 1, j]):
                        fast = [true[x] - truth.future[n, t - 1, j, x] for x in range(3)]
                        found["velocity"].append(distance(fast, ours - prediction.positions[n, t - 1, j]) / 0.1)
            for metric, values in found.items():
                of_origins[metric].append(mean(values))
        for metric, values in of_origins.items():
            result[metric].append(mean(values))
    return result


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_every_metric_is_what_plain_loops_say(seed):
    truth = make_truth(episodes=5, seed=seed)
    prediction = make_prediction(truth, error_m=0.04, seed=seed)
    row = score(truth, [prediction], HORIZONS).rows["guided", IMAGE]
    for g, group in enumerate(GROUPS):
        for h, hand in enumerate(HANDS):
            for k, horizon in enumerate(HORIZONS):
                for metric, expected in plain(truth, prediction, group, hand, horizon).items():
                    got = row.hands[g, :, h, k, METRICS.index(metric)]
                    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-6, err_msg=f"{group} {hand} {metric}")


def test_latents_are_compared_where_they_are_known_and_up_to_the_horizon():
    truth = make_truth(episodes=6, seed=3)
    prediction = make_prediction(truth)
    row = score(truth, [prediction], HORIZONS).rows["guided", IMAGE]
    for k, horizon in enumerate(HORIZONS):
        for e in range(6):
            l1, cosine = [], []
            for n in np.flatnonzero((truth.episode == e) & (truth.group == origins.GROUPS.index("ready")) & truth.told):
                each = [], []
                for tubelet in range(horizon // 2):
                    if truth.latents_known[n, tubelet]:
                        a, b = (x[n, tubelet].astype(np.float64) for x in (prediction.latents, truth.latents))
                        each[0].append(np.abs(a - b).mean())
                        each[1].append(np.mean([u @ v / np.sqrt(u @ u * (v @ v)) for u, v in zip(a, b, strict=True)]))
                l1.append(mean(each[0]))
                cosine.append(mean(each[1]))
            ours = row.latents[list(GROUPS).index("ready"), e, k]
            np.testing.assert_allclose(ours, [mean(l1), mean(cosine)], rtol=1e-4)


def test_the_error_at_each_step_is_that_of_the_moving_hand_in_the_main_group():
    truth = make_truth(seed=5)
    prediction = make_prediction(truth)
    row = score(truth, [prediction], tuple(range(1, 9))).rows["guided", IMAGE]
    place = list(GROUPS).index("ready"), HANDS.index("moving"), METRICS.index("fde")
    np.testing.assert_array_equal(row.steps, row.hands[place[0], :, place[1], :, place[2]])


def test_what_is_unknown_is_never_counted_as_0():
    """Wrong numbers under unknown truth change nothing, and nothing known is no figure at all."""
    truth = make_truth(seed=1)
    prediction = make_prediction(truth)
    wild = replace(prediction, positions=prediction.positions.copy(), sigma=prediction.sigma.copy())
    unknown = ~np.isfinite(truth.future).all(-1)
    wild.positions[unknown] = 1e6
    wild.sigma[unknown] = np.nan
    one, other = (score(truth, [p], HORIZONS).as_dict() for p in (prediction, wild))
    assert one == other

    nothing = replace(truth, future=np.full_like(truth.future, np.nan), latents_known=truth.latents_known & False)
    figures = score(nothing, [prediction], HORIZONS).as_dict()
    assert figures["rows"][0]["cells"] == {} and "latents" not in figures["rows"][0]
    assert figures["rows"][0]["steps"] == [[None] * 3] * 8


def test_intervals_are_over_episodes_not_origins():
    """An origin that stands there twenty times makes nobody surer."""
    truth = make_truth(seed=2)
    again = np.repeat(np.arange(len(truth.sample)), 20)
    many = replace(
        truth,
        **{name: getattr(truth, name)[again] for name in ("sample", "episode", "group", "told", "split", "present")},
        **{name: getattr(truth, name)[again] for name in ("future", "latents", "latents_known")},
    )
    prediction = make_prediction(truth)
    copies = {name: getattr(prediction, name)[again] for name in ("positions", "sigma", "latents")}
    once, often = (score(truth, [prediction], (8,)), score(many, [replace(prediction, **copies)], (8,)))
    few, lots = (figures.as_dict()["rows"][0]["cells"]["ready"]["moving"]["8"] for figures in (once, often))
    for metric, value in few.items():
        np.testing.assert_allclose(value, lots[metric], rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), episodes=st.integers(1, 30))
def test_many_intervals_are_those_of_the_bootstrap(data, episodes):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    values = 5 + rng.normal(size=(episodes, 7))
    values[rng.random(values.shape) < 0.3] = NAN
    values[:, 6] = NAN
    values[: episodes - 1, 5] = NAN
    for column, found in zip(values.T, intervals(values), strict=True):
        np.testing.assert_allclose(found, bootstrap_mean(column), rtol=1e-6)


def test_seeds_are_averaged_and_their_spread_is_told():
    truth = make_truth(seed=4)
    seeds = [make_prediction(truth, error_m=size, seed=i) for i, size in enumerate((0.02, 0.03, 0.07))]
    alone = [score(truth, [one], (8,)) for one in seeds]
    together = score(truth, seeds, (8,))
    cell = together.as_dict()["rows"][0]["cells"]["ready"]["moving"]["8"]
    each = np.stack([figures.together(("guided",), IMAGE, 8)[0] for figures in alone])
    expected = bootstrap_mean(each.mean(0))
    means = np.nanmean(each, 1)
    np.testing.assert_allclose(cell["ade"], [*expected, means.min(), means.max()], rtol=1e-4)
    assert together.as_dict()["rows"][0]["seeds"] == [0, 1, 2]
    assert len(alone[0].as_dict()["rows"][0]["cells"]["ready"]["moving"]["8"]["ade"]) == 3


def test_rows_are_compared_on_the_origins_that_both_answer():
    """A row that speaks about the easy origins only gains nothing from that."""
    truth = make_truth(episodes=20, seed=6, holes=False)
    rng = np.random.default_rng(0)
    hard = rng.random(len(truth.sample)) < 0.5
    base = make_prediction(truth, "unguided", 0.02)
    base.positions[hard, :, :, 0] += 0.5
    copies = {name: getattr(base, name).copy() for name in ("positions", "sigma", "latents")}
    same = replace(base, row="removed cue", **copies)
    same.positions[hard], same.sigma[hard], same.latents[hard] = NAN, NAN, NAN
    figures = score(truth, [same, base], (8,))
    row, other = figures.as_dict()["rows"]
    cell = row["cells"]["ready"]["moving"]["8"]
    assert cell["ade_minus_unguided"] == [0, 0, 0] and cell["ade"][0] < other["cells"]["ready"]["moving"]["8"]["ade"][0]
    counted = ((truth.group == origins.GROUPS.index("ready")) & truth.told & ~hard).sum()
    assert row["answered"]["ready"] == counted < other["answered"]["ready"] == figures.sizes["ready"]["origins"]
    np.testing.assert_array_equal(*figures.together(("unguided", "removed cue"), IMAGE, 8))


def test_difference_to_unguided_is_of_the_same_inputs():
    truth = make_truth(seed=7)
    rows = [
        make_prediction(truth, "unguided", 0.05),
        make_prediction(truth, "guided", 0.02),
        make_prediction(truth, "unguided", 0.01, POSE),
        make_prediction(truth, "guided", 0.02, POSE),
    ]
    found = {
        (r["row"], r["inputs"]): r["cells"]["ready"]["moving"]["8"] for r in score(truth, rows, (8,)).as_dict()["rows"]
    }
    assert found["guided", IMAGE]["ade_minus_unguided"][2] < 0 < found["guided", POSE]["ade_minus_unguided"][1]
    assert "ade_minus_unguided" not in found["unguided", IMAGE]


def test_sizes_say_where_the_truth_ends():
    truth = make_truth(seed=8)
    sizes = score(truth, [], HORIZONS).sizes
    wait = (truth.group == origins.GROUPS.index("ready")) & truth.told
    assert sizes["ready"]["origins"] == wait.sum() and sizes["ready"]["episodes"] == len(set(truth.episode[wait]))
    ends = np.isfinite(truth.future[wait, 7]).all(-1).any(-1).sum()
    assert sizes["ready"]["with_truth_at_step"]["8"] == ends < wait.sum()
    assert sizes["before"]["origins"] == (truth.group == 0).sum()  # told or not


def broken(truth, **changes):
    prediction = make_prediction(truth)
    return replace(prediction, **{name: change(getattr(prediction, name).copy()) for name, change in changes.items()})


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"positions": lambda a: a[:-1]}, r'row "guided" \(image only, seed 0\): positions must be'),
        ({"positions": put((5, 2, 1), NAN)}, "not finite where there is truth .origin 5, step 2, joint 1"),
        ({"sigma": put((5, 2, 1), 0)}, "sigma is not a positive, finite number"),
        ({"sigma": put((5, 2, 1), NAN)}, "sigma is not a positive, finite number"),
        ({"sigma": lambda a: a[..., None]}, "sigma must be"),
        ({"latents": put((5, 0), np.inf)}, "a latent is not finite"),
        ({"latents": lambda a: a[:, :2]}, "latents must be"),
    ],
)
def test_a_bad_prediction_is_refused_by_name(changes, words):
    truth = make_truth(seed=9, holes=False)
    with pytest.raises(ValueError, match=words):
        score(replace(truth, latents_known=truth.latents_known | True), [broken(truth, **changes)], HORIZONS)


def test_a_row_may_not_come_twice_with_the_same_seed():
    truth = make_truth()
    with pytest.raises(ValueError, match="it came twice"):
        score(truth, [make_prediction(truth)] * 2, HORIZONS)


@pytest.mark.parametrize("horizons", [(), (0, 8), (9,), (8, 2), (2, 2)])
def test_horizons_out_of_range(horizons):
    with pytest.raises(ValueError, match="horizons must ascend between 1 and 8"):
        score(make_truth(), [], horizons)


# ---------------------------------------------------------------- claims

GOOD = {
    "unguided": 0.06,
    "guided": 0.03,
    "oracle intent": 0.025,
    "shuffled guidance": 0.061,
    "shuffled guidance, any time": 0.0605,
    "guided, thinker silent": 0.0595,
    "hold": 0.1,
    "constant velocity": 0.11,
    "mean displacement": 0.09,
    "ridge on past joints": 0.08,
}
LONG_TRUTH = make_truth(episodes=15, steps=32, seed=11, holes=False)


def judge(leave_out=(), no_cue_m=0.06, horizons=(8, 16, 32), truth=LONG_TRUTH, **changes):
    errors = {**GOOD, **{name.replace("_", " "): value for name, value in changes.items()}}
    rows = [
        make_prediction(truth, row, error, no_cue_m=0.06 if row == "unguided" else no_cue_m, full=False)
        for row, error in errors.items()
        if row not in leave_out
    ]
    figures = score(truth, rows, horizons)
    return figures, claims.verdicts(figures)


def test_good_figures_hold_every_claim():
    figures, found = judge()
    assert [v.held for v in found] == [True] * 7 and {v.inputs for v in found} == {IMAGE}
    share = claims.gap_closed(figures, IMAGE)
    assert share.low < share.mean < share.high and share.mean == pytest.approx(0.03 / 0.035, rel=0.05)
    assert "FDE" in found[0].measured and f"{100 * share.mean:.0f} %" in found[1].measured


@pytest.mark.parametrize(
    "changes, refuted",
    [
        ({"guided": 0.0598}, [0, 1]),
        ({"guided": 0.045}, [1]),
        ({"guided": 0.07}, [0, 1]),
        ({"shuffled_guidance": 0.05}, [2]),
        ({"shuffled_guidance": 0.08}, []),
        ({"shuffled_guidance,_any_time": 0.05}, [3]),
        ({"no_cue_m": 0.066}, [4]),
        ({"no_cue_m": 0.054}, [4]),
        ({"no_cue_m": 0.062}, []),
        ({"hold": 0.02}, [5]),
        ({"ridge_on_past_joints": 0.03}, [5]),
        ({"constant_velocity": 0.01}, [5]),
        ({"mean_displacement": 0.029}, [5]),
        ({"guided,_thinker_silent": 0.07}, [6]),
        ({"guided,_thinker_silent": 0.05}, []),
        ({"oracle_intent": 0.07}, [1]),
    ],
)
def test_verdicts_follow_the_numbers(changes, refuted):
    found = judge(**changes)[1]
    assert [i for i, v in enumerate(found) if v.held is False] == refuted
    assert all(v.held is not None for v in found)


@pytest.mark.parametrize(
    "row, silent_about",
    [
        ("guided", [0, 1, 4, 5]),
        ("oracle intent", [1]),
        ("shuffled guidance", [2]),
        ("shuffled guidance, any time", [3]),
        ("hold", [5]),
        ("ridge on past joints", [5]),
        ("guided, thinker silent", [6]),
        ("unguided", [0, 1, 2, 3, 4, 6]),
    ],
)
def test_a_claim_without_its_row_is_not_measured(row, silent_about):
    found = judge(leave_out=[row])[1]
    assert [i for i, v in enumerate(found) if v.held is None] == silent_about
    assert all(f'not measured: there is no row "{row}"' in found[i].measured for i in silent_about)


def test_a_claim_about_a_horizon_that_was_not_scored_is_not_measured():
    found = judge(horizons=(8, 16))[1]
    assert [v.held for v in found] == [None] * 7
    assert "no horizon of 32 steps" in found[0].measured


def test_one_episode_decides_nothing():
    truth = make_truth(episodes=1, steps=32, holes=False)
    assert [v.held for v in judge(truth=truth)[1]] == [None] * 7


def test_both_kinds_of_inputs_are_judged_apart():
    rows = [make_prediction(LONG_TRUTH, row, error, no_cue_m=0.06, full=False) for row, error in GOOD.items()]
    rows += [make_prediction(LONG_TRUTH, row, 0.05, POSE, full=False) for row in GOOD]
    found = claims.verdicts(score(LONG_TRUTH, rows))
    assert [v.held for v in found if v.inputs == IMAGE] == [True] * 7
    assert not any(v.held for v in found[7:9]) and {v.inputs for v in found[7:]} == {POSE}


def test_a_share_of_nothing_has_no_interval():
    assert np.isnan(ratio(np.ones(5), np.zeros(5))).all() and np.isnan(ratio(np.ones(5), -np.ones(5))).all()
    unsure = ratio(np.ones(4), np.array([-1.0, -1.0, 3.0, 3.0]))
    assert unsure.mean == 1 and np.isnan(unsure.low)
    assert ratio(np.array([1.0, NAN, 1.0]), np.array([2.0, 2.0, 2.0])) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same episodes"):
        ratio(np.ones(4), np.ones(3))
