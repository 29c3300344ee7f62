"""What `evaluate world` says, where the answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import world_kit

from thinkjepa_ros.control import imagination
from thinkjepa_ros.control.imagination import Imagination
from thinkjepa_ros.evaluation import world as evaluation
from thinkjepa_ros.evaluation.linear import Ridge
from thinkjepa_ros.evaluation.world import Seen, fit_linear, look, probe, score
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.world_model import Context
from thinkjepa_ros.train import world
from thinkjepa_ros.train.world_data import Track

ENCODER = EncoderConfig(image_size=32, patch_size=8, width=24, depth=1, heads=2)
EPISODES = [world_kit.episode(seed, 26) for seed in range(6)]
HORIZON = 4


def small() -> tuple[Imagination, list[Track]]:
    torch.manual_seed(0)
    config, tracks = world.configuration(EPISODES, ENCODER, latent=8, pooled=1, horizon=HORIZON, width=24, depth=1)
    return Imagination(config).eval().requires_grad_(False), tracks


class Ideal(torch.nn.Module):
    """A world in which the latent is the place of the gripper itself: it moves as it is told, or the other way."""

    def __init__(self, net: Imagination, sign: float) -> None:
        super().__init__()
        self.net, self.sign = net.world, sign
        self.config = net.world.config

    def remember(self, past: torch.Tensor, now: torch.Tensor, state: torch.Tensor) -> Context:
        memory = tuple((state[:, None, None], state[:, None, None]) for _ in range(self.config.depth))
        return Context(memory, now.mean(1, keepdim=True))

    def pool(self, latents: torch.Tensor) -> torch.Tensor:
        return self.net.pool(latents)

    def imagine(self, context: Context, actions: torch.Tensor) -> torch.Tensor:
        way = self.sign * actions[..., :3].cumsum(1)
        return context.now[:, None] + torch.nn.functional.pad(way, (0, 5))[:, :, None]


def ideal(sign: float) -> tuple[Any, list[Seen]]:
    """The ideal world and its episodes: eight numbers, of which the first three are the place in base orientation."""
    net, tracks = small()
    net.world = Ideal(net, sign)  # type: ignore[assignment]
    seen = []
    for one in tracks:
        place = torch.from_numpy(one.states[:, :3])
        pooled = torch.nn.functional.pad(place, (0, 5))[:, None]
        seen.append(Seen(one, pooled.expand(-1, 16, -1), pooled))
    return net, seen


def test_a_world_that_knows_what_actions_do_has_every_sign_right_and_chooses_well() -> None:
    net, seen = ideal(1.0)
    cells = score(net, seen, fit_linear(net, seen))
    for name in (f"sign_{HORIZON}", f"order_{HORIZON}", f"sign_{HORIZON}_x", f"order_{HORIZON}_z"):
        assert cells.interval(name).mean > 0.9, name
    assert cells.interval(f"model_{HORIZON}").mean < 0.3 * cells.interval(f"copy_{HORIZON}").mean
    assert cells.interval("chosen_m").mean < 1.3 * cells.interval("best_m").mean + 0.005
    assert cells.interval("rank_correlation").mean > 0.9
    assert cells.interval("shuffled_over_right").mean > 2 and cells.interval("sensitivity").mean > 0.5


def test_a_world_that_moves_the_other_way_has_every_sign_wrong() -> None:
    net, seen = ideal(-1.0)
    cells = score(net, seen, fit_linear(net, seen))
    assert cells.interval(f"sign_{HORIZON}").mean < 0.1
    assert cells.interval("rank_correlation").mean < -0.3
    assert cells.interval("chosen_m").mean > cells.interval("stay_m").mean


def test_a_world_that_ignores_actions_is_not_sensitive_and_chooses_nothing() -> None:
    net, seen = ideal(0.0)
    cells = score(net, seen, fit_linear(net, seen))
    assert cells.interval("sensitivity").mean == 0 and cells.interval("shuffled_over_right").mean == pytest.approx(1)
    assert cells.interval(f"sign_{HORIZON}").mean == 0  # a tie is not right
    assert cells.interval(f"model_{HORIZON}").mean == pytest.approx(cells.interval(f"copy_{HORIZON}").mean)


def test_ridge_finds_a_linear_world_by_itself() -> None:
    net, seen = ideal(0.0)
    cells = score(net, seen, fit_linear(net, seen))
    assert cells.interval("ridge_1").mean < 0.5 * cells.interval("copy_1").mean


def test_the_probe_reads_what_is_there_and_nothing_that_is_not() -> None:
    _, seen = ideal(1.0)
    told = probe(seen[:4], seen[4:])
    assert min(told["gripper"]) > 0.95 and told["gripper_cm"] < 1.0
    rng = np.random.default_rng(0)
    blind = [
        Seen(s.track, s.latents, torch.from_numpy(rng.normal(size=s.pooled.shape).astype(np.float32))) for s in seen
    ]
    assert max(probe(blind[:4], blind[4:])["gripper"]) < 0.3


def test_ridge_is_the_solution_of_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(200, 5)), rng.normal(size=(5, 2))
    found = Ridge.fit(x, x @ weights + 3, np.arange(200) // 10)
    np.testing.assert_allclose(found.predict(x), x @ weights + 3, atol=2e-3)
    with pytest.raises(ValueError, match="nothing to fit"):
        Ridge.fit(x[:0], x[:0], np.arange(0))


def test_an_episode_that_is_too_short_for_the_horizon_is_said() -> None:
    net, seen = ideal(1.0)
    linear = fit_linear(net, seen)
    short = Track.of(world_kit.episode(0, 4), net.config.camera, 0.2)
    with pytest.raises(ValueError, match="longer than the 4 actions"):
        score(net, look_at(net, [short]), linear)


def look_at(net: Imagination, tracks: list[Track]) -> list[Seen]:
    return look(net, tracks, "test")


def test_the_command_writes_all_figures_and_says_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, _ = small()
    imagination.save(tmp_path / "world", net, "test-world", trained=False, domain="test")
    world_kit.write(tmp_path / "train", 4, frames=16)
    world_kit.write(tmp_path / "val", 2, 1_000_000, frames=16)
    runs = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.json"
        evaluation.evaluate(tmp_path / "world", tmp_path / "val", tmp_path / "train", out=out)
        runs.append(out.read_text())
    assert runs[0] == runs[1]
    figures = json.loads(runs[0])
    for name in (
        "model_1",
        "copy_4",
        "ridge_4",
        "model_minus_ridge_4",
        "sign_4",
        "order_2_x",
        "sensitivity",
        "chosen_m",
    ):
        assert set(figures[name]) == {"mean", "low", "high"}, name
    assert len(figures["probe"]["gripper"]) == len(figures["probe_random"]["gripper"]) == 3
    assert "true < none < opposite" in capsys.readouterr().out
