"""What docs/world_models.md says a plan costs is what the models compute, and its examples run."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa_ros.jepa.ac import ACConfig, ACPredictor
from thinkjepa_ros.jepa.world_model import WorldModel, WorldModelConfig, energy

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "world_models.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| (\d+) x (\d+) x (\d+) \| ([\d.]+) \| ([\d.]+) (s|ms) (GPU|CPU) \|$", TEXT, re.M)
TFLOP_S = {"GPU": 790.0, "CPU": 0.3}
OURS = {
    "ours, mini": WorldModelConfig(),
    "ours, width 512": WorldModelConfig(latent_width=1024, grid=16, context=1, width=512, depth=8, heads=8),
}


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def published() -> Callable[[int, bool], int]:
    """FLOPs of one candidate's step k (from 1), with the cache or all recomputed."""
    with torch.device("meta"):
        net = ACPredictor(ACConfig())

        @functools.cache
        def count(k: int, cached: bool) -> int:
            with torch.device("meta"):
                z, a = torch.empty(1, k, 256, 1408), torch.empty(1, k, 7)
                if not cached or k == 1:
                    return flops(lambda: net(z, a, a))
                cache = net.start(z[:, 1:], a[:, 1:], a[:, 1:])
                return flops(lambda: net.step(z[:, -1], a[:, -1], a[:, -1], cache))

        return count


def of_ours(config: WorldModelConfig, samples: int, rounds: int, horizon: int) -> int:
    with torch.device("meta"):
        net = WorldModel(config)
        past = torch.empty(1, config.context - 1, config.tokens, config.latent_width)
        now, state = torch.empty(1, config.grid**2, config.latent_width), torch.empty(1, config.state_dim)
        context = net.remember(past, now, state)
        actions = torch.empty(samples, horizon, config.action_dim)
        return flops(lambda: net.remember(past, now, state)) + rounds * flops(lambda: net.imagine(context, actions))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]}x{row[2]}x{row[3]}")
def test_the_costs_are_those_of_the_models(row: tuple[str, ...], published: Callable[[int, bool], int]) -> None:
    name, tflop, least = row[0], float(row[4]), float(row[5])
    samples, rounds, horizon = (int(x) for x in row[1:4])
    if name.startswith("V-JEPA 2-AC"):
        steps = [published(k, "recomputed" not in name) for k in range(1, horizon + 1)]
        total = samples * rounds * sum(steps) / 1e12
    else:
        config = next(config for start, config in OURS.items() if name.startswith(start))
        total = of_ours(config, samples, rounds, horizon) / 1e12
    assert tflop == pytest.approx(total, rel=0.02)
    assert least * (0.001 if row[6] == "ms" else 1) == pytest.approx(total / TFLOP_S[row[7]], rel=0.04)


def test_the_table_is_read() -> None:
    assert len(ROWS) == 10


def test_the_examples_run() -> None:
    of_ac, of_world_model = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    torch.manual_seed(0)
    predictor = ACPredictor(ACConfig(latent_width=16, width=12, depth=1, heads=1)).eval()
    names: dict[str, Any] = {
        "encoder": SimpleNamespace(frames=lambda images: torch.randn(len(images), 256, 16)),
        "predictor": predictor,
        "energy": energy,
        "width": 16,
        "image": torch.zeros(1, 256, 256, 3),
        "goal": torch.zeros(1, 256, 256, 3),
        "actions": torch.randn(5, 2, 7) * 0.05,
        "pose": torch.zeros(1, 7),
    }
    exec(of_ac, names)
    assert names["best"].shape == (2, 7) and names["cost"].shape == (5,)

    net = WorldModel(WorldModelConfig()).eval()
    names |= {
        "net": net,
        "past": torch.randn(1, 7, 16, 128),
        "now": torch.randn(1, 64, 128),
        "goal": torch.randn(64, 128),
        "state": torch.zeros(1, 7),
        "guidance": None,
    }
    exec(of_world_model, names)
    assert names["imagined"].shape == (5, 2, 16, 128) and names["best"].shape == (2, 7)
