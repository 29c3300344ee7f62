"""What a planner is made of: the rounds of a search, coloured noise, and the terms of an energy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from planner_kit import GOAL, START, H, Table, Watched, config, problem

from thinkjepa_ros.control import energy as terms
from thinkjepa_ros.control import search
from thinkjepa_ros.control.energy import Energy
from thinkjepa_ros.control.noise import amplitudes, coloured
from thinkjepa_ros.control.planner import Planner
from thinkjepa_ros.control.search import State

# --- the parts of a search ---


def test_elites_are_kept_and_count_again() -> None:
    seen = Watched()
    planner = Planner(config(elites=4, kept=1.0, samples=16), seen)
    planner.begin(problem())
    planner.iterate()
    kept = planner._state.elites.clone()
    energies = planner._state.energies.clone()
    planner.iterate()
    tried = torch.from_numpy(seen.seen[1][:-1])
    fresh = planner.score(problem(), tried)
    union = torch.cat((energies, fresh)).sort().values[:4]
    torch.testing.assert_close(planner._state.energies, union)
    assert not any((row == tried).all((1, 2)).any() for row in kept), "kept candidates were imagined again"
    left = planner._state.elites.clone()
    planner.begin(problem(), elapsed_s=0.2, step_s=0.2)
    planner.iterate()
    for row in left:  # and tried again, shifted, in the next plan
        shifted = torch.cat((row[1:], torch.cat((torch.zeros(3), row[-1, 3:]))[None]))
        assert (torch.from_numpy(seen.seen[-1]) - shifted).abs().amax((1, 2)).min() < 1e-7


def test_mppi_weighs_the_better_more() -> None:
    c = config(method="mppi", elites=3, refined=1, samples=8, momentum_mean=(0.0,) * 4, momentum_std=(0.0,) * 4)
    actions = torch.arange(3.0)[:, None, None].expand(3, H, 4) * 0.01
    blank = State(
        torch.zeros(H, 4), torch.ones(H, 4), torch.zeros(3, H, 4), torch.full((3,), torch.inf), torch.zeros(3, 1),
        torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    rates = search.Rates(torch.zeros(4), torch.zeros(4), torch.zeros(4))
    energies = torch.tensor([1.0, 2.0, 4.0])
    after = search.update(blank, actions, energies, energies[:, None], torch.zeros(3, dtype=torch.int64), rates, c)
    spread = math.sqrt((1 + 9) / 3)
    weights = np.exp(-np.array([0.0, 1.0, 3.0]) / (0.5 * spread))
    weights /= weights.sum()
    want = (weights * [0, 0.01, 0.02]).sum()
    torch.testing.assert_close(after.mean, torch.full((H, 4), want, dtype=torch.float32))
    want = math.sqrt((weights * (np.array([0, 0.01, 0.02]) - want) ** 2).sum())
    torch.testing.assert_close(after.std, torch.full((H, 4), want, dtype=torch.float32))


@pytest.mark.parametrize(("steps", "want"), [
    (0.0, [1, 2, 4, 8]), (1.0, [2, 4, 8, 0]), (0.5, [1.5, 3, 6, 4]), (2.25, [5, 6, 0, 0]),
    (4.0, [0] * 4), (9.0, [0] * 4),
])  # fmt: skip
def test_a_plan_is_shifted_by_the_time_that_passed(steps: float, want: list[float]) -> None:
    plan = torch.tensor([[1.0], [2], [4], [8]]).expand(H, 2)
    got = search.shift(plan, steps, torch.tensor([0.0, 1.0]))
    assert got[:, 0].tolist() == want
    assert got[-1, 1] == 8  # a commanded place stays


@pytest.mark.parametrize(("steps", "beta"), [(16, 0.0), (16, 1.0), (16, 2.5), (9, 2.0)])
def test_noise_has_the_colour_that_was_asked_for(steps: int, beta: float) -> None:
    noise = coloured((8000, steps, 2), beta, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(noise.var((0, 2)), torch.ones(steps, dtype=torch.float64), atol=0.06, rtol=0)
    assert noise.mean((0, 2)).abs().max() < 0.05
    power = torch.fft.rfft(noise, dim=1).abs().square().mean((0, 2))
    frequency = torch.arange(1, steps // 2 + 1).double()
    slope = np.polyfit(frequency.log(), power[1:].log(), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.05)
    assert power[0] / power[1] == pytest.approx(1.0, abs=0.06)
    assert abs(float((noise[..., 0] * noise[..., 1]).mean())) < 0.03  # entries of an action are independent
    assert float((amplitudes(steps, beta)).square()[1:-1].sum()) > 0


def test_a_longer_window_makes_short_sequences_go_somewhere() -> None:
    def covered(window: int) -> float:
        return float(coloured((4000, 4, 1), 2.0, torch.Generator().manual_seed(0), window=window).sum(1).std())

    assert coloured((2, 4, 1), 2.0, torch.Generator().manual_seed(0), window=16).shape == (2, 4, 1)
    assert covered(16) > 1.2 * covered(4) > 2.4  # white noise of four steps covers 2


# --- energies ---


def test_terms_add_up() -> None:
    g = torch.Generator().manual_seed(0)
    latents, actions = torch.randn(5, 2, 3, 6, generator=g), torch.randn(5, H, 4, generator=g) * 0.05
    goal, subgoal = torch.randn(3, 6, generator=g), torch.randn(2, 3, 6, generator=g)
    scale, before = torch.tensor([0.06, 0.06, 0.06, torch.inf]), torch.tensor([0.01, 0.0, 0.0, 0.3])
    low, high, point = torch.tensor([0.0, 0, 0]), torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.05, 0.05, 0.02])
    score = lambda z: z.mean((1, 2, 3))  # noqa: E731 - its identity is what is asked for
    e = Energy((
        terms.toward(goal, [0.0, 2.0]), terms.toward(subgoal, [1.0, 3.0], 0.5, "subgoal"),
        terms.language(score, 0.3), terms.effort(scale, 0.1), terms.smoothness(scale, before, 0.2),
        terms.workspace(point, low, high, 7.0),
    ), (1, 3))  # fmt: skip
    total, parts = e.evaluate(latents, actions, e.pack(torch.device("cpu")))
    for s in range(5):
        z, a = latents[s].numpy(), actions[s].numpy()
        near = [np.abs(z[k] - goal.numpy()).mean() for k in range(2)]
        sub = [np.abs(z[k] - subgoal[k].numpy()).mean() for k in range(2)]
        effort = np.mean([[(a[h, i] / 0.06) ** 2 if i < 3 else 0 for i in range(4)] for h in range(H)])
        change, last = 0.0, before.numpy()
        for h in range(H):
            change += sum(((a[h, i] - last[i]) / 0.06) ** 2 for i in range(3)) / (4 * H)
            last = a[h]
        outside, where = 0.0, point.numpy().copy()
        for h in range(H):
            where = where + a[h, :3]
            outside += sum(max(0.0 - x, 0) + max(x - 0.1, 0) for x in where) / H
        want = [near[1], 0.5 * (sub[0] + 3 * sub[1]) / 4, -0.3 * z.mean(), 0.1 * effort, 0.2 * change, 7 * outside]
        np.testing.assert_allclose(parts[s], want, rtol=2e-5, atol=1e-6)
        assert float(total[s]) == pytest.approx(sum(want), rel=2e-5)
    assert e.key == dataclasses.replace(e).key
    assert e.key != Energy(e.terms, (0, 3)).key != Energy(e.terms[1:], (0, 3)).key


def test_a_prior_costs_a_deviation_squared() -> None:
    mean, deviation = torch.zeros(H, 4), torch.full((H, 4), 0.5)
    term = terms.prior(mean, deviation, 3.0)
    actions = torch.stack((mean, mean + 0.5, mean - 1.0))
    energy = Energy((term,), (0,))
    total, _ = energy.evaluate(torch.zeros(3, 1, 1, 1), actions, energy.pack(torch.device("cpu")))
    assert total.tolist() == pytest.approx([0.0, 3.0, 12.0])


def test_the_way_counts_where_it_is_asked_to() -> None:
    """With the end alone the point may dawdle; with all steps it goes as fast as it may."""
    goal = START + torch.tensor([0.12, 0.0, 0.0, 0.25])
    found = Planner(config(refine=30), Table()).plan(problem(goal, steps=terms.every(H)))
    assert found.actions[:2, 0] == pytest.approx([0.06, 0.06], abs=0.003)
    assert np.abs(found.actions[2:, 0]).max() < 0.006


def test_limits_keep_the_point_inside() -> None:
    wall = terms.workspace(START[:3], torch.tensor([-1.0, -1, -1]), torch.tensor([0.15, 1, 1]), 50.0)
    found = Planner(config(iterations=8), Table()).plan(problem(GOAL, START, terms.final(H), wall))
    reached = START[:3].numpy() + found.actions[:, :3].cumsum(0)
    assert 0.14 < reached[-1, 0] < 0.1505 and found.parts["limits"] < 0.02
