"""The planner in the world model itself, small and with random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from planner_kit import HOLD, H, Table, config
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from thinkjepa_ros.control import energy as terms
from thinkjepa_ros.control import planner as planner_module
from thinkjepa_ros.control.energy import Energy
from thinkjepa_ros.control.latent import LatentWorld
from thinkjepa_ros.control.planner import Planner, Problem
from thinkjepa_ros.jepa.compiled import Prepared
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.jepa.world_model import WorldModel, WorldModelConfig

# --- the world model ---

SMALL = WorldModelConfig(
    latent_width=12, grid=4, pooled=2, context=2, horizon=H, width=24, depth=2, heads=2, action_dim=4, state_dim=4
)


def small(**changes) -> tuple[LatentWorld, tuple[Tensor, Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    net = WorldModel(dataclasses.replace(SMALL, **changes))
    with torch.no_grad():
        for p in net.parameters():
            p += 0.15 * torch.randn_like(p)
        net.action.weight *= 10
    present = (torch.randn(1, 1, 4, 12), torch.randn(1, 16, 12), torch.randn(1, 4))
    return LatentWorld(net), present, torch.randn(4, 12)


@pytest.mark.parametrize("sight", ["plan", "actions"])
def test_it_plans_in_the_world_model_with_fixed_shapes(sight: str) -> None:
    world, present, goal = small(sight=sight)
    shapes = set()
    inner = world.imagine

    def watched(actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        out = inner(actions, steps, *known)
        shapes.add((actions.shape, out.shape, out.dtype))
        return out

    world.imagine = watched  # type: ignore[method-assign]
    with torch.inference_mode():
        known = world.known(world.net.remember(*present))
    asked = Problem(known, Energy((terms.toward(goal),), (H - 1,)), HOLD)
    planner = Planner(config(samples=48, iterations=4), world)
    found = planner.plan(asked)
    assert shapes == {(torch.Size([49, H, 4]), torch.Size([49, 1, 4, 12]), torch.float32)}
    assert found.energy < found.hold_energy and planner.words == "eager"
    again = planner.plan(asked, 0.1, 0.2)
    assert len(shapes) == 1 and again.imagined == 4 * 49 and len(planner._prepared) == 1
    # the energy is that of the whole imagination at the last step
    with torch.no_grad():
        context = world.net.remember(*present)
        whole = world.net.imagine(context, torch.from_numpy(found.candidates))[:, -1]
    np.testing.assert_allclose((whole - goal).abs().mean((1, 2)), found.energies, rtol=1e-5)


def test_a_context_of_one_row_serves_as_copies_would() -> None:
    world, present, _ = small()
    with torch.no_grad():
        one = world.net.remember(*present)
        many = world.net.remember(*(x.expand(7, *x.shape[1:]) for x in present))
        actions = torch.randn(7, H, 4) * 0.05
        got = world.imagine(actions, (1, 3), *world.known(one))
        want = world.net.imagine(many, actions)[:, [1, 3]]
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="one present"):
        world.known(many)


def test_gradients_lower_the_energy_in_the_world_model() -> None:
    world, present, goal = small()
    with torch.inference_mode():
        known = world.known(world.net.remember(*present))
    asked = Problem(known, Energy((terms.toward(goal, [1.0] * H),), terms.every(H)), HOLD)
    without = Planner(config(iterations=2), world).plan(asked)
    refined = Planner(config(iterations=2, refine=10), world).plan(asked)
    assert refined.energy < without.energy - 0.02 * (without.hold_energy - without.energy)
    assert refined.imagined == without.imagined + 4 * 11
    again = Planner(config(), world).score(asked, torch.from_numpy(refined.actions)[None])
    assert float(again) == pytest.approx(refined.energy, rel=1e-5)


def test_actions_are_turned_into_the_orientation_of_the_camera() -> None:
    world, present, _ = small()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    actions = torch.randn(3, H, 4) * 0.05
    with torch.no_grad():
        context = world.net.remember(*present)
        turned = torch.cat((torch.einsum("ji,shj->shi", turn, actions[..., :3]), actions[..., 3:]), -1)
        want = world.net.imagine(context, turned)
        got = world.imagine(actions, terms.every(H), *world.known(context, rotation=turn))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_guidance_reaches_what_is_imagined_and_none_is_none() -> None:
    world, present, _ = small(guide_layers=2, guide_width=10)
    world.net.film.gate.fill_(0.7)  # type: ignore[union-attr]
    said = Payload.pooled(torch.randn(1, 2, 2, 10), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    actions = torch.randn(3, H, 4) * 0.05
    with torch.no_grad():
        context = world.net.remember(*present)
        plain = world.imagine(actions, terms.every(H), *world.known(context))
        assert torch.equal(plain, world.net.imagine(context, actions))
        guided = world.imagine(actions, terms.every(H), *world.known(context, said))
        assert torch.equal(guided, world.net.imagine(context, actions, said)) and not torch.allclose(guided, plain)
    with pytest.raises(ValueError, match="without guidance"):
        other, present, _ = small()
        other.known(other.net.remember(*present), said)


@pytest.mark.parametrize("sight", ["plan", "actions"])
def test_a_round_asks_nothing_back_of_the_device(sight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph needs: traced with tensors without numbers, it does on other numbers what the round does."""
    world, present, goal = small(sight=sight)
    asked = []

    def prepare(function, inputs) -> Prepared:
        asked.append((function, inputs))
        return Prepared(function, "eager")

    monkeypatch.setattr(planner_module, "prepare", prepare)
    known = world.known(world.net.remember(*present))
    aim = Energy((terms.toward(goal), terms.effort(torch.ones(4), 0.1)), (H - 1,))
    Planner(config(proposals=2), world).plan(Problem(known, aim, HOLD))
    (function, inputs) = asked[0]
    inputs = [x.clone() for x in inputs]
    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    inputs[0] = inputs[0] + 0.01
    for got, want in zip(traced(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
def test_a_round_is_captured_on_a_gpu_and_gives_the_same_plan() -> None:
    world, present, goal = small()
    here = Problem(world.known(world.net.remember(*present)), Energy((terms.toward(goal),), (H - 1,)), HOLD)
    want = Planner(config(), world).plan(here)
    world.net.to("cuda")
    known = world.known(world.net.remember(*(x.cuda() for x in present)))
    there = Problem(known, Energy((terms.toward(goal.cuda()),), (H - 1,)), HOLD)
    planner = Planner(config(), world, "cuda")
    planner._pool = Planner(config(), Table())._pool.cuda()
    found = planner.plan(there)
    assert planner.words == "CUDA graph"
    np.testing.assert_allclose(found.actions, want.actions, atol=1e-4)
