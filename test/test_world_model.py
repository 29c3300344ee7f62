"""Our world model: plans see the present and their own past, one context serves all, and actions are learned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from thinkjepa_ros import checkpoints
from thinkjepa_ros.benchmarks import roofline
from thinkjepa_ros.jepa import layers, world_model
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.jepa.world_model import WorldModel, WorldModelConfig, energy

MINI = Path(__file__).resolve().parents[1] / "models" / "mini" / "model.json"
SMALL = WorldModelConfig(
    latent_width=20, grid=4, pooled=2, context=3, horizon=4, width=36, depth=3, heads=3, action_dim=3, state_dim=2,
    guide_layers=2, guide_width=10,
)  # fmt: skip


def model(seed: int = 0, gate: float = 0.7, **changes: object) -> WorldModel:
    """A small one with weights large enough that every part matters, and open gates."""
    torch.manual_seed(seed)
    net = WorldModel(dataclasses.replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if net.film is not None:
            net.film.gate.fill_(gate)
    return net.eval().requires_grad_(False)


def present(net: WorldModel, batch: int = 1, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    c = net.config
    return (
        torch.randn(batch, c.context - 1, c.tokens, c.latent_width, generator=g),
        torch.randn(batch, c.grid**2, c.latent_width, generator=g),
        torch.randn(batch, c.state_dim, generator=g),
    )


def candidates(net: WorldModel, samples: int = 5, seed: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(samples, net.config.horizon, net.config.action_dim, generator=g)


def payload(rows: int, seed: int = 3) -> Payload:
    g = torch.Generator().manual_seed(seed)
    pyramid = torch.randn(rows, SMALL.guide_layers, 2, SMALL.guide_width, generator=g)
    return Payload.pooled(pyramid, torch.ones(rows, 2, dtype=torch.bool), torch.ones(rows))


# --- the same as one plain sequence with a mask ---


def turned(x: torch.Tensor, places: list[tuple[float, float, float]]) -> torch.Tensor:
    """x [n, heads, d] rotated pair by pair; pair j of d/2 is (x_j, x_{j + d/2})."""
    out = x.clone()
    half = x.shape[-1] // 2
    per_axis = x.shape[-1] // 6
    for token, place in enumerate(places):
        for j in range(3 * per_axis):
            angle = torch.tensor(place[j // per_axis] * 10000.0 ** (-(j % per_axis) / per_axis), dtype=x.dtype)
            a, b = x[token, :, j], x[token, :, j + half]
            out[token, :, j] = a * angle.cos() - b * angle.sin()
            out[token, :, j + half] = b * angle.cos() + a * angle.sin()
    return out


def oracle(net: WorldModel, past: torch.Tensor, now: torch.Tensor, state: torch.Tensor, actions: torch.Tensor):
    """One candidate, one sequence, one mask: past [K-1, M, D], now [n, D], state [A'], actions [H, A] -> [H, M, D]."""
    c = net.config
    cell = c.grid // c.pooled
    middle = (c.grid - 1) / 2
    coarse = [(cell * r + (cell - 1) / 2, cell * q + (cell - 1) / 2) for r in range(c.pooled) for q in range(c.pooled)]
    tokens, places, when = [], [], []

    def add(token: torch.Tensor, place: tuple[float, float, float], step: int) -> None:
        tokens.append(token)
        places.append(place)
        when.append(step)

    for k in range(c.context - 1):
        for m, (row, column) in enumerate(coarse):
            add(net.embed(past[k, m]), ((k + 1 - c.context) * c.context_steps, row, column), 0)
    for i in range(c.grid**2):
        add(net.embed(now[i]), (0, i // c.grid, i % c.grid), 0)
    add(net.state((state - net.state_mean) / net.state_std), (0, middle, middle), 0)
    image = now.view(c.grid, c.grid, -1)
    pooled = [
        image[r * cell : (r + 1) * cell, q * cell : (q + 1) * cell].mean((0, 1))
        for r in range(c.pooled)
        for q in range(c.pooled)
    ]
    for h in range(c.horizon):
        time = (h + 1) * c.action_steps
        add(net.action((actions[h] - net.action_mean) / net.action_std) + net.step[h], (time, middle, middle), h + 1)
        for m, (row, column) in enumerate(coarse):
            add(net.embed(pooled[m]) + net.query + net.step[h], (time, row, column), h + 1)
    x = torch.stack(tokens)
    steps = torch.tensor(when)
    mask = steps[:, None] >= steps[None]
    if c.sight == "actions":
        for h in range(1, c.horizon + 1):
            ours = [i for i, step in enumerate(when) if step == h]
            for j in ours[1:]:  # the first token of a step is its action; queries see those of their own step
                mask[[i for i in range(len(when)) if i not in ours[1:]], j] = False
    for block in net.blocks:
        q, k, v = block.qkv(block.norm1(x)).view(len(x), 3, c.heads, -1).unbind(1)
        q, k = turned(q, places), turned(k, places)
        score = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weight = score.masked_fill(~mask, float("-inf")).softmax(-1)
        x = x + block.proj(torch.einsum("hqk,khd->qhd", weight, v).flatten(1))
        x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
    out = [torch.stack(pooled) + net.out(net.norm(x[(steps == h + 1).nonzero()[1:, 0]])) for h in range(c.horizon)]
    return torch.stack(out)


@pytest.mark.parametrize("changes", [
    {}, {"context": 1, "action_steps": 4}, {"context_steps": 2, "pooled": 4}, {"sight": "actions"},
])  # fmt: skip
def test_it_equals_one_plain_sequence_with_a_mask(changes: dict) -> None:
    net = model(
        action_mean=(0.1, 0.0, -0.2), action_std=(0.5, 1.0, 2.0), state_mean=(0.3, 0.0), state_std=(1.0, 3.0), **changes
    )
    past, now, state = present(net)
    actions = candidates(net, 2)
    got = net(past, now, state, actions)
    for i in range(2):
        torch.testing.assert_close(got[i], oracle(net, past[0], now[0], state[0], actions[i]), atol=2e-5, rtol=1e-5)
    assert (got - net.pool(now)[:, None]).std() > 0.3


# --- what depends on what ---


@pytest.mark.parametrize("sight", ["plan", "actions"])
@pytest.mark.parametrize("h", [1, 3])
def test_an_action_never_changes_an_earlier_prediction_nor_the_context(h: int, sight: str) -> None:
    net = model(sight=sight)
    context = net.remember(*present(net))
    kept = [part.clone() for kv in context.memory for part in kv]
    actions = candidates(net)
    before = net.imagine(context, actions)
    other = actions.clone()
    other[:, h] += 1.0
    after = net.imagine(context, other)
    assert torch.equal(before[:, :h], after[:, :h])
    assert ((before[:, h:] - after[:, h:]).abs().amax((-1, -2)) > 1e-4).all()
    assert all(torch.equal(a, b) for a, b in zip(kept, (p for kv in context.memory for p in kv), strict=True))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_everything_that_is_known_counts(which: int) -> None:
    net = model()
    known = list(present(net))
    before = net(*known, candidates(net))
    known[which] = known[which] + 1.0
    assert ((before - net(*known, candidates(net))).abs().amax((-1, -2)) > 1e-4).all()


@pytest.mark.parametrize("sight", ["plan", "actions"])
def test_step_by_step_gives_what_one_pass_gives(sight: str) -> None:
    net = model(sight=sight)
    context, actions, said = net.remember(*present(net)), candidates(net), payload(1)
    whole = net.imagine(context, actions, said)
    plan, parts = None, []
    for span in (slice(0, 1), slice(1, 3), slice(3, 4)):
        part, plan = net.extend(context, actions[:, span], said, plan)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("sight", ["plan", "actions"])
@pytest.mark.parametrize("samples", [1, 5])
def test_some_steps_of_the_plan_are_those_of_all_of_it(sight: str, samples: int) -> None:
    net = model(sight=sight)
    context, actions, said = net.remember(*present(net)), candidates(net, samples), payload(1)
    copies = net.remember(*(part.expand(samples, *part.shape[1:]) for part in present(net)))
    whole = net.imagine(context, actions, said)
    for steps in ((3,), (0,), (1, 2), (0, 3), (0, 1, 2, 3)):
        for known in (context, copies):
            torch.testing.assert_close(net.imagine(known, actions, said, steps), whole[:, steps], atol=2e-6, rtol=1e-5)
    _, plan = net.extend(context, actions[:, :1], said)
    later, _ = net.extend(context, actions[:, 1:], said, plan, (0, 2))
    torch.testing.assert_close(later, whole[:, [1, 3]], atol=2e-6, rtol=1e-5)
    for steps in ((), (1, 0), (4,), (-1,)):
        with pytest.raises(ValueError, match="must rise"):
            net.extend(context, actions, said, steps=steps)


def test_what_only_other_steps_need_is_not_computed() -> None:
    def flops(sight: str, steps: tuple[int, ...] | None) -> float:
        net = model(sight=sight, guide_layers=0, guide_width=0)
        context, actions = net.remember(*present(net)), candidates(net)
        return roofline.counted(lambda: net.imagine(context, actions, None, steps))

    assert flops("plan", (3,)) < 0.9 * flops("plan", None)
    assert flops("actions", (3,)) < 0.5 * flops("actions", None)
    assert flops("plan", (0,)) < 0.4 * flops("plan", None)


def test_a_shorter_plan_is_the_beginning_of_a_longer_one() -> None:
    net = model()
    context, actions = net.remember(*present(net)), candidates(net)
    torch.testing.assert_close(net.imagine(context, actions[:, :2]), net.imagine(context, actions)[:, :2])


def test_one_context_serves_all_candidates_as_it_serves_each() -> None:
    net = model()
    known, actions = present(net), candidates(net)
    context = net.remember(*known)
    together = net.imagine(context, actions)
    assert torch.equal(together, net.imagine(context, actions))
    for i in range(len(actions)):
        torch.testing.assert_close(net.imagine(context, actions[i : i + 1])[0], together[i], atol=2e-6, rtol=1e-5)
    copies = net(*(part.expand(5, *part.shape[1:]).clone() for part in known), actions)
    torch.testing.assert_close(copies, together, atol=2e-6, rtol=1e-5)
    k, _ = world_model._expanded(context.memory[0], 5)
    assert k.data_ptr() == context.memory[0][0].data_ptr() and k.stride(0) == 0


def test_candidates_are_attended_to_a_few_at_a_time_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    context, actions = net.remember(*present(net)), candidates(net, 7)
    whole = net.imagine(context, actions)
    tokens, seen = 4 * 5, 2 * 4 + 16 + 1 + 4 * 5
    monkeypatch.setattr(layers, "_MANY", 3 * SMALL.heads * tokens * seen)  # three at a time, and one left over
    torch.testing.assert_close(net.imagine(context, actions), whole, atol=2e-6, rtol=1e-5)


def test_rows_of_a_training_batch_do_not_meet() -> None:
    net = model()
    known, actions, said = present(net, batch=3), candidates(net, 3), payload(3)
    together = net(*known, actions, said)
    for i in range(3):
        row = slice(i, i + 1)
        said_alone = Payload(*(None if part is None else part[row] for part in said))
        alone = net(*(part[row] for part in known), actions[row], said_alone)
        torch.testing.assert_close(alone[0], together[i], atol=2e-6, rtol=1e-5)


# --- guidance ---


def test_guidance_changes_what_is_imagined_and_its_absence_changes_nothing() -> None:
    net = model()
    context, actions = net.remember(*present(net)), candidates(net, 3)
    plain = net.imagine(context, actions)
    said = payload(3)
    pyramid = torch.cat((said.prompt, said.generated), 2)  # type: ignore[arg-type]
    there, one = torch.ones(3, 2, dtype=torch.bool), torch.ones(3)
    assert torch.equal(net.imagine(context, actions, Payload(None, None)), plain)
    assert torch.equal(net.imagine(context, actions, Payload.pooled(pyramid, there & False, one)), plain)
    assert torch.equal(net.imagine(context, actions, Payload.pooled(pyramid * float("nan"), there, one * 0)), plain)
    half = net.imagine(context, actions, Payload.pooled(pyramid, there, torch.tensor([1.0, 0.0, 0.5])))
    full = net.imagine(context, actions, said)
    assert torch.equal(half[1], plain[1])
    assert not torch.equal(half[0], plain[0]) and torch.allclose(half[0], full[0], atol=1e-5)
    assert not torch.allclose(half[2], full[2], atol=1e-3) and not torch.allclose(half[2], plain[2], atol=1e-3)
    closed = model(gate=0.0)
    context = closed.remember(*present(closed))
    assert torch.equal(closed.imagine(context, actions, said), closed.imagine(context, actions))


def test_one_instruction_serves_all_candidates() -> None:
    net = model()
    context, actions, said = net.remember(*present(net)), candidates(net, 3), payload(1)
    copies = Payload(*(None if part is None else part.expand(3, *part.shape[1:]) for part in said))
    assert torch.allclose(net.imagine(context, actions, said), net.imagine(context, actions, copies), atol=1e-6)


# --- for planners ---


def test_gradients_reach_the_actions_up_to_a_step_and_no_later_ones() -> None:
    net = model()
    with torch.inference_mode():
        context = net.remember(*present(net))
    actions = candidates(net).requires_grad_()
    goal = torch.randn(SMALL.tokens, SMALL.latent_width)
    energy(net.imagine(context, actions), goal)[:, 2].sum().backward()
    assert actions.grad is not None
    assert (actions.grad[:, :3].abs().amax(-1) > 0).all() and (actions.grad[:, 3] == 0).all()


def test_energy_is_the_mean_distance_per_step() -> None:
    predicted = torch.zeros(2, 3, 4, 5)
    predicted[1, 2, 0, 0] = 2.0
    assert torch.equal(energy(predicted, torch.zeros(4, 5)), torch.tensor([[0.0, 0, 0], [0, 0, 0.1]]))
    assert torch.equal(energy(predicted, predicted[1]), torch.tensor([[0.0, 0, 0.1], [0, 0, 0]]))


def test_it_learns_what_actions_do() -> None:
    """Toy dynamics: every action pushes the latent along a direction of its own. A few seconds on one core."""
    torch.manual_seed(0)
    net = WorldModel(
        WorldModelConfig(
            latent_width=8,
            grid=2,
            pooled=2,
            context=2,
            horizon=3,
            width=32,
            depth=2,
            heads=2,
            action_dim=2,
            state_dim=2,
        )
    )
    push = torch.randn(2, 8)

    def batch(rows: int) -> tuple[torch.Tensor, ...]:
        now, actions = torch.randn(rows, 4, 8), torch.randn(rows, 3, 2)
        future = now[:, None] + 0.5 * (actions.cumsum(1) @ push)[:, :, None]
        return now[:, None], now, torch.zeros(rows, 2), actions, future

    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        past, now, state, actions, future = batch(64)
        loss = energy(net(past, now, state, actions), future).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    past, now, state, actions, future = batch(256)
    with torch.no_grad():
        learned = energy(net(past, now, state, actions), future).mean()
        shuffled = energy(net(past, now, state, actions.flip(0)), future).mean()
    copied = energy(now[:, None].expand_as(future), future).mean()
    assert learned < 0.3 * copied < shuffled


# --- sizes, types, files ---


def test_the_defaults_fit_the_mini() -> None:
    mini, config = json.loads(MINI.read_text())["config"], WorldModelConfig()
    encoder, predictor = mini["encoder"], mini["predictor"]
    assert config.latent_width == encoder["width"]
    assert config.grid == encoder["image_size"] // encoder["patch_size"]
    assert (config.pooled, config.context) == (predictor["pooled"], predictor["context"])


def test_it_runs_in_bfloat16() -> None:
    net = model()
    wanted = net(*present(net), candidates(net), payload(1))
    net = net.bfloat16()
    said = Payload(*(p.bfloat16() if p is not None and p.is_floating_point() else p for p in payload(1)))
    got = net(*(part.bfloat16() for part in present(net)), candidates(net).bfloat16(), said)
    assert got.dtype == torch.bfloat16
    assert F.cosine_similarity(got.float().flatten(), wanted.flatten(), 0) > 0.999


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    net = model(action_mean=(0.1, 0.2, 0.3), action_std=(1.0, 2.0, 3.0))
    world_model.save(tmp_path, net, "small", trained=False, domain="test")
    again, manifest = world_model.load(tmp_path)
    assert again.config == net.config and manifest.kind == "world_model"
    assert torch.equal(again(*present(net), candidates(net)), net(*present(net), candidates(net)))
    record = json.loads((tmp_path / "model.json").read_text())
    record["config"]["depth"] = 2
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(checkpoints.CheckpointError, match=r"blocks\.2"):
        world_model.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooled": 3}, "pooled"),
        ({"heads": 5}, "heads"),
        ({"horizon": 0}, "horizon"),
        ({"depth": True}, "depth"),
        ({"guide_width": 0}, "go together"),
        ({"action_std": (1.0, 0.0, 1.0)}, "greater than 0"),
        ({"action_mean": (1.0,)}, "3 finite numbers"),
        ({"state_mean": (float("nan"), 0.0)}, "2 finite numbers"),
        ({"mlp_ratio": "4"}, "mlp_ratio"),
        ({"sight": "all"}, "sight"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    net = model()
    past, now, state = present(net)
    context = net.remember(past, now, state)
    with pytest.raises(ValueError, match="this world model needs"):
        net.remember(past, now[:, 1:], state)
    with pytest.raises(ValueError, match="at most 4"):
        net.imagine(context, torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="1 or S rows"):
        net.imagine(net.remember(*present(net, batch=3)), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="without guidance"):
        plain = model(guide_layers=0, guide_width=0)
        plain(past, now, state, torch.zeros(1, 4, 3), payload(1))
