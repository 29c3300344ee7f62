"""The planner on a world with a known best plan: every method finds it, whatever it is given."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from planner_kit import CONFIG, GOAL, HOLD, SCALE, START, H, Table, Watched, config, problem
from torch import Tensor

from thinkjepa_ros.control import energy as terms
from thinkjepa_ros.control import search
from thinkjepa_ros.control.energy import Energy
from thinkjepa_ros.control.planner import Planner
from thinkjepa_ros.control.search import SearchConfig


class Walled(Table):
    """Nothing can be said of what moves right at once."""

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        seen = super().imagine(actions, steps, *known)
        return torch.where((actions[:, 0, 0] > 0)[:, None, None, None], torch.nan, seen)


class Nothing(Table):
    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        return super().imagine(actions, steps, *known) * torch.nan


def off(actions: np.ndarray, goal: Tensor = GOAL) -> float:
    """Metres from the goal after these actions."""
    return float(np.abs(START[:3].numpy() + actions[:, :3].sum(0) - goal[:3].numpy()).max())


# --- every method finds what there is to find ---


@pytest.mark.parametrize("changes", [
    {"method": "cem", "samples": 200, "iterations": 10, "elites": 10},
    {"method": "icem", "iterations": 8}, {"method": "icem", "iterations": 8, "samples": 128, "decay": 1.25},
    {"method": "mppi", "iterations": 8, "samples": 96, "elites": 16},
    {"method": "icem", "iterations": 2, "refine": 30}, {"method": "cem", "iterations": 2, "refine": 30},
], ids=str)  # fmt: skip
def test_each_method_reaches_the_goal(changes: dict) -> None:
    found = Planner(config(**changes), Table()).plan(problem())
    assert off(found.actions) < 0.01 and abs(found.actions[-1, 3] - 0.9) < 0.05
    assert found.source == "planner" and found.energy < 0.1 * found.hold_energy
    assert found.hold_energy == pytest.approx(
        float(((GOAL - torch.cat((START[:3], HOLD[3:]))) * SCALE).abs().mean()), rel=1e-5
    )
    assert np.all(np.diff(found.energies) >= 0) and found.energies.shape == (len(found.candidates),)
    assert found.parts.keys() == {"goal"} and found.parts["goal"] == pytest.approx(found.energy, rel=1e-5)


def test_few_samples_do_more_in_icem_than_in_cem() -> None:
    """Over seeds and goals, at equal numbers of samples and elites."""
    g = torch.Generator().manual_seed(0)
    wins, ratios = 0, []
    for seed in range(60):
        goal = START + (torch.rand(4, generator=g) - 0.5) * torch.tensor([0.4, 0.4, 0.4, 0.0])
        same = {"samples": 32, "iterations": 3, "elites": 5, "seed": seed}
        ours, plain = (Planner(config(method=m, **same), Table()).plan(problem(goal)) for m in ("icem", "cem"))
        wins += ours.energy < plain.energy
        ratios.append(ours.energy / plain.energy)
    assert wins >= 42  # by chance: 1 in 700
    assert np.median(ratios) < 0.75


def test_a_warm_start_helps() -> None:
    gains = []
    for seed in range(24):
        planner = Planner(config(samples=32, iterations=2, elites=6, seed=seed), Table())
        first = planner.plan(problem())
        moved = START + torch.from_numpy(first.actions[0]) * torch.tensor([1.0, 1, 1, 0])
        warm = planner.plan(problem(start=moved), elapsed_s=0.2, step_s=0.2)
        planner.reset(seed=1000 + seed)
        cold = planner.plan(problem(start=moved))
        gains.append(cold.energy - warm.energy)
    assert np.mean(gains) > 3 * np.std(gains, ddof=1) / math.sqrt(len(gains))


def test_a_plan_that_nothing_betters_is_the_shifted_one() -> None:
    best = torch.zeros(1, H, 4) + torch.tensor([0.03, -0.025, -0.0125, 0.9])
    planner = Planner(config(iterations=1, samples=20, elites=4, proposals=1), Table())
    assert planner.plan(problem(), proposals=best).source == "policy"
    there = START + torch.tensor([0.03, -0.025, -0.0125, 0.0])
    goal = there + 3 * torch.tensor([0.03, -0.025, -0.0125, 0.0])
    goal[3] = 0.9
    again = planner.plan(problem(goal, start=there), elapsed_s=0.2, step_s=0.2)
    assert again.source == "shifted"
    np.testing.assert_allclose(again.actions[:3], best[0, 1:], atol=1e-7)
    np.testing.assert_allclose(again.actions[3], [0, 0, 0, 0.9], atol=1e-7)


# --- proposals ---


def test_what_is_proposed_is_tried_and_helps() -> None:
    g = torch.Generator().manual_seed(1)
    perfect = torch.tensor([0.03, -0.025, -0.0125, 0.9]).expand(H, 4)
    energies: dict[str, list[float]] = {"alone": [], "told": [], "drawn": []}
    for seed in range(20):
        hints = perfect + torch.randn(4, H, 4, generator=g) * torch.tensor([0.02, 0.02, 0.02, 0.1])
        same = config(samples=24, iterations=2, elites=5, seed=seed)
        told = dataclasses.replace(same, proposals=4)
        energies["alone"].append(Planner(same, Table()).plan(problem()).energy)
        energies["told"].append(Planner(told, Table()).plan(problem(), proposals=hints).energy)
        drawn = dataclasses.replace(told, prior_weight=1.0)
        energies["drawn"].append(Planner(drawn, Table()).plan(problem(), proposals=hints).energy)
    alone, told_, drawn_ = (np.array(energies[name]) for name in energies)
    assert (told_ < alone).sum() >= 15 and np.median(told_) < 0.8 * np.median(alone)
    assert (drawn_ < alone).sum() >= 15 and np.median(drawn_) < 0.8 * np.median(alone)


def test_a_perfect_proposal_wins_and_a_broken_one_does_not() -> None:
    perfect = torch.tensor([0.03, -0.025, -0.0125, 0.9]).expand(1, H, 4)
    broken = torch.full((1, H, 4), float("nan"))
    planner = Planner(config(proposals=3, iterations=2, prior_weight=0.5), Table())
    found = planner.plan(problem(), proposals=torch.cat((broken, perfect)))
    assert found.source == "policy" and off(found.actions) < 1e-6
    only_broken = planner.plan(problem(), proposals=broken)
    assert only_broken.source == "planner" and np.isfinite(only_broken.energy)


# --- bad numbers ---


@pytest.mark.parametrize("method", search.METHODS)
@pytest.mark.parametrize("refine", [0, 3])
def test_what_is_not_a_number_never_wins(method: search.Method, refine: int) -> None:
    found = Planner(config(method=method, refine=refine, iterations=4), Walled()).plan(problem())
    assert found.source == "planner" and math.isfinite(found.energy) and np.isfinite(found.candidates).all()
    assert (found.candidates[:, 0, 0] <= 0).all() and found.energy < found.hold_energy


@pytest.mark.parametrize("method", search.METHODS)
@pytest.mark.parametrize("refine", [0, 2])
def test_where_nothing_is_a_number_the_answer_is_hold(method: search.Method, refine: int) -> None:
    planner = Planner(config(method=method, refine=refine), Nothing())
    found = planner.plan(problem())
    assert found.source == "hold" and math.isnan(found.energy) and math.isnan(found.hold_energy)
    np.testing.assert_array_equal(found.actions, np.tile(HOLD, (H, 1)))
    assert len(found.energies) == 0
    sent = found.plan(5, 0.2)
    assert sent.source == "hold" and not sent.gain > 0
    planner.world = Table()
    assert planner.plan(problem(), elapsed_s=0.2, step_s=0.2).source == "planner"  # it left nothing behind


@pytest.mark.parametrize("method", search.METHODS)
def test_bounds_are_never_exceeded(method: search.Method) -> None:
    """However far away the goal is, whatever is proposed, refined or shifted by uneven times."""
    tight = config(method=method, proposals=2, refine=2, rate=0.5, sigma=(1.0, 1.0, 1.0, 5.0))
    planner, seen = Planner(tight, Watched()), []
    for i in range(6):
        wild = torch.randn(2, H, 4, generator=torch.Generator().manual_seed(i))
        found = planner.plan(problem(GOAL * 100 * (-1) ** i), 0.07 * i, 0.2, proposals=wild)
        seen += [found.actions, found.candidates]
    low, high = np.float32(CONFIG.low), np.float32(CONFIG.high)
    for actions in (*seen, *planner.world.seen):
        assert (actions >= low).all() and (actions <= high).all()


# --- the same every time ---


def test_equal_seeds_give_equal_plans_bit_for_bit() -> None:
    def three(planner: Planner) -> list[np.ndarray]:
        return [planner.plan(problem(GOAL + 0.01 * i), 0.1 * i, 0.2).actions for i in range(3)]

    planner = Planner(config(refine=2), Table())
    first = three(planner)
    planner.reset()
    for a, b, c in zip(first, three(planner), three(Planner(config(refine=2), Table())), strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    planner.reset(seed=1)
    assert not np.array_equal(first[0], three(planner)[0])


def test_rounds_one_by_one_are_a_plan_and_more_of_them_are_no_worse() -> None:
    whole = Planner(config(), Table()).plan(problem())
    planner = Planner(config(), Table())
    planner.begin(problem())
    assert planner.result().source == "hold"
    energies = []
    for i in range(8):
        planner.iterate(last=i == 2)
        energies.append(planner.result().energy)
        if i == 2:
            assert np.array_equal(planner.result().actions, whole.actions)
            assert (planner.result().rounds, planner.result().imagined) == (3, 3 * 65)
    assert np.all(np.diff(energies) <= 0) and energies[-1] < energies[0]


# --- CEM, written again ---


def plain_cem(c: SearchConfig, pool: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, float]:
    """Loops only: V-JEPA 2-AC's cem (gaussian, clip per entry, best k by the last step, mean and deviation blended)."""
    mean = np.tile(HOLD.numpy().astype(np.float64), (H, 1))
    std = np.tile(np.array(c.sigma), (H, 1))
    m_mean, m_std = np.array(c.momentum_mean), np.array(c.momentum_std)

    def cost(actions: np.ndarray) -> float:
        point = START[:3].numpy().astype(np.float64).copy()
        for action in actions:
            point = point + action[:3]
        return float(np.abs((np.append(point, actions[-1, 3]) - goal) * [10, 10, 10, 1]).mean())

    for i in range(c.iterations):
        tried = []
        for s in range(c.samples):
            actions = np.empty((H, 4))
            for h in range(H):
                for a in range(4):
                    actions[h, a] = min(max(mean[h, a] + std[h, a] * pool[i, s, h, a], c.low[a]), c.high[a])
            tried.append((cost(actions), s, actions))
        tried.sort(key=lambda t: t[:2])
        best = np.stack([actions for _, _, actions in tried[: c.elites]])
        mean = (1 - m_mean) * best.mean(0) + m_mean * mean
        std = (1 - m_std) * best.std(0, ddof=1) + m_std * std
    return mean, cost(mean)


def test_cem_equals_a_plain_loop() -> None:
    c = config(
        method="cem", samples=40, iterations=5, elites=7, momentum_mean=(0.15, 0.15, 0.15, 0.3),
        momentum_std=(0.75, 0.75, 0.75, 0.15),
    )  # fmt: skip
    planner = Planner(c, Table())
    for i in range(2):  # the second starts anew, too
        found = planner.plan(problem(), elapsed_s=0.2, step_s=0.2)
        noise = planner._pool[5 * i : 5 * i + 5].double().numpy()
        mean, cost = plain_cem(c, noise, GOAL.double().numpy())
        np.testing.assert_allclose(found.actions, mean, atol=1e-6)
        assert found.energy == pytest.approx(cost, abs=1e-6) and found.source == "planner"


# --- refusals ---


@pytest.mark.parametrize(("changes", "words"), [
    ({"low": (0.1, 0, 0, 0)}, "below high"), ({"sigma": (1.0,)}, "sigma has 1"),
    ({"sigma": (0.0,) * 4}, "greater than 0"),
    ({"method": "pso"}, "one of cem, icem, mppi"), ({"samples": 1}, "samples"), ({"elites": 65}, "cannot hold"),
    ({"proposals": 70}, "more than the 64"), ({"prior_weight": 1.5}, "prior_weight"), ({"decay": 0.5}, "decay"),
    ({"refined": 9}, "refined"), ({"iterations": 0}, "iterations"), ({"horizon": 2.5}, "horizon"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_problems_that_do_not_fit_are_refused() -> None:
    planner = Planner(config(proposals=2), Table())
    with pytest.raises(RuntimeError, match="begin"):
        planner.result()
    with pytest.raises(ValueError, match="at most 2"):
        planner.plan(problem(), proposals=torch.zeros(3, H, 4))
    with pytest.raises(ValueError, match="step 4 is scored"):
        planner.plan(problem(steps=(4,)))
    with pytest.raises(ValueError, match="4 finite numbers"):
        planner.plan(dataclasses.replace(problem(), hold=torch.full((4,), float("nan"))))
    with pytest.raises(ValueError, match="must be on cpu"):
        planner.plan(dataclasses.replace(problem(), known=(START.to("meta"),)))
    with pytest.raises(ValueError, match="names of their own"):
        Energy((terms.toward(GOAL), terms.toward(GOAL)), (0,))
    with pytest.raises(ValueError, match="must rise"):
        Energy((terms.toward(GOAL),), (1, 0))
    with pytest.raises(ValueError, match="not all 0"):
        terms.toward(GOAL, [0.0])
