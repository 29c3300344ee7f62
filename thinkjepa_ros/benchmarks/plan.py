"""`thinkjepa bench plan`: a plan of ours beside the plain CEM of V-JEPA 2-AC on a world model of patch tokens.

Random weights: how long a plan takes does not depend on them. How many samples a plan needs does, and is not asked
here: success beside samples is in the table of `thinkjepa evaluate control`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..control import energy
from ..control.energy import Energy
from ..control.latent import LatentWorld
from ..control.planner import Planner, Problem
from ..control.search import Method, SearchConfig
from ..jepa import model
from ..jepa.ac import ACConfig, ACPredictor
from ..jepa.world_model import WorldModel, WorldModelConfig
from . import roofline, running
from .jepa import DTYPES, kinds
from .roofline import Peak, Work
from .timing import Group, Target, Variant

SIZES = ("mini", "full")
#: Samples, rounds, actions.
Row = tuple[int, int, int]
#: V-JEPA 2-AC on the robot (its section 4).
PUBLISHED: Row = (800, 10, 1)
#: The row that ours is judged by.
JUDGED: dict[str, Row] = {"mini": (64, 3, 4), "full": (256, 3, 3)}
ROWS: dict[str, tuple[Row, ...]] = {
    "mini": ((32, 2, 4), (64, 3, 4), (128, 3, 4), (64, 3, 8)),
    "full": ((64, 3, 3), (256, 3, 3), (256, 3, 8)),
}
#: How many times faster than the published way, and milliseconds: half a period of 5 Hz on a core, a GPU at 30 Hz.
RATIO, LIMIT = 10.0, {"mini": 100.0, "full": 15.0}
LOW, HIGH, SIGMA = (-0.06, -0.06, -0.06, 0.0), (0.06, 0.06, 0.06, 1.0), (0.03, 0.03, 0.03, 0.3)


def bench(
    size: str = "mini",
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 3.0,
    dtype: str = "both",
    share: float | None = None,
    out: Path | None = None,
) -> list[Group]:
    """Measure, print, and write JSON to `out`. What was measured before Ctrl-C is printed and written too.

    share: of the samples of V-JEPA 2-AC; default: a tenth on a processor, all on a GPU. Raises ValueError naming the
    option that makes no sense.
    """
    for name, value, known in (("size", size, SIZES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"--{name} {value}: must be one of {', '.join(known)}")
    where = model.torch_device(device)
    share = share or (0.1 if where.type == "cpu" else 1.0)
    if not 0.02 <= share <= 1:
        raise ValueError(f"--share {share}: must lie in 0.02 … 1")
    torch.set_num_threads(threads)
    console = running.console()
    machine = running.introduce(where, threads, console)
    console.print("untrained weights: time does not depend on them, success is in `thinkjepa evaluate control`")
    peaks = running.peaks(where, kinds(dtype, where, console), seconds, console)
    return running.run(_groups(size, where, share, peaks), seconds, machine, out, console)


def _groups(
    size: str, device: torch.device, share: float, peaks: dict[torch.dtype, Peak]
) -> Iterator[Callable[[], Group]]:
    for dtype, peak in peaks.items():
        yield functools.partial(compare, SHAPES[size], size, device, dtype, peak, share)


@dataclass(frozen=True)
class Shape:
    """Both world models: as wide, as deep, and of the same latents. mini is that of models/control."""

    latent: int
    side: int  #: tokens per side of an image
    width: int
    depth: int
    heads: int
    context: int  #: latents of the past that ours sees

    def patches(self) -> ACPredictor:
        config = ACConfig(self.latent, self.width, self.depth, self.heads, self.side, self.side)
        return ACPredictor(config).eval().requires_grad_(False)

    def ours(self, horizon: int) -> WorldModel:
        config = WorldModelConfig(
            latent_width=self.latent, grid=self.side, pooled=4, context=self.context, horizon=horizon,
            width=self.width, depth=self.depth, heads=self.heads, action_dim=4, state_dim=4, sight="actions",
        )  # fmt: skip
        return WorldModel(config)


SHAPES = {"mini": Shape(48, 8, 128, 3, 4, 2), "full": Shape(1024, 16, 512, 8, 8, 2)}


class PatchWorld:
    """V-JEPA 2-AC's way to imagine: every patch of every step, step by step, earlier steps remembered."""

    def __init__(self, net: ACPredictor, dtype: torch.dtype) -> None:
        self.net, self.dtype = net.to(dtype), dtype

    def imagine(self, actions: Tensor, steps: tuple[int, ...], *known: Tensor) -> Tensor:
        z, state = known
        whole = torch.cat((actions[..., :3], torch.zeros_like(actions[..., :3]), actions[..., 3:]), -1)
        return self.net.rollout(z, whole.to(self.dtype), state).latents[:, list(steps)].float()


def compare(shape: Shape, size: str, device: torch.device, dtype: torch.dtype, peak: Peak, share: float) -> Group:
    """Whole plans, the context of ours included, warm from the plan before."""
    torch.manual_seed(0)
    patches = PatchWorld(shape.patches().to(device), dtype)
    worlds = {h: LatentWorld(shape.ours(h).to(device), dtype) for _, _, h in ROWS[size]}
    n = shape.side**2
    now = torch.randn(1, n, shape.latent).to(device, dtype)
    past = torch.randn(1, shape.context - 1, 16, shape.latent).to(device, dtype)
    pose = torch.zeros(1, 7).to(device, dtype)

    def seen() -> tuple[Tensor, ...]:
        return now, pose

    def remembered(world: LatentWorld) -> tuple[Tensor, ...]:
        return world.known(world.net.remember(past, now, pose[:, :4]))

    def of_patches(row: Row) -> Variant:
        goal = torch.zeros(n, shape.latent, device=device)
        return _variant(_name("patch tokens, CEM", row), "cem", row, patches, seen, goal)

    def of_ours(row: Row, what: str = "ours", method: Method = "icem", every: bool = False) -> Variant:
        world, goal = worlds[row[2]], torch.zeros(16, shape.latent, device=device)
        name = _name(what, row) + (", all steps scored" if every else "")
        return _variant(name, method, row, world, functools.partial(remembered, world), goal, every)

    samples, rounds, horizon = PUBLISHED
    published = (max(20, round(share * samples)), rounds, horizon)
    judged = JUDGED[size]
    variants = [of_patches(published), of_patches(judged), of_ours(judged, "ours, CEM", "cem")]
    if share < 1:
        variants[0].note = f"V-JEPA 2-AC takes {_name('', PUBLISHED).strip()}: {1 / share:.3g} times this"
    variants += [*map(of_ours, ROWS[size]), of_ours(judged, every=True)]
    best = _name("ours", judged)
    slow = [variant.name for variant in variants[:3]]
    targets = [Target(best, RATIO, beside=slow[0])]
    if (device.type == "cpu") == (size == "mini") and dtype == torch.bfloat16:
        targets.append(Target(best, LIMIT[size]))
    title = f"plans, {size}: width {shape.width}, {shape.depth} blocks; samples x rounds x actions"
    return Group(title, dtype, variants, peak, device, [(name, best) for name in slow], targets)


def _name(what: str, row: Row) -> str:
    return f"{what} {'x'.join(map(str, row))}"


def _variant(
    name: str,
    method: Method,
    row: Row,
    world: LatentWorld | PatchWorld,
    known: Callable[[], tuple[Tensor, ...]],
    goal: Tensor,
    every: bool = False,
) -> Variant:
    """A whole plan, what is `known` included. every: all steps are scored, not the last alone."""
    samples, rounds, horizon = row
    elites = min(10, samples // 3) if method == "cem" else 6
    config = SearchConfig(LOW, HIGH, SIGMA, (False, False, False, True), horizon, method, samples, rounds, elites)
    planner = Planner(config, world, goal.device)
    scored = energy.every(horizon) if every else energy.final(horizon)
    aim = Energy((energy.toward(goal, [1.0] * len(scored)),), scored)
    hold = torch.zeros(4, device=goal.device)

    def plan() -> Tensor:
        return torch.from_numpy(planner.plan(Problem(known(), aim, hold), 0.2, 0.2).actions)

    with torch.inference_mode():
        present, batch = known(), torch.zeros(samples + 1, horizon, 4, device=goal.device)
        once = roofline.counted(lambda: world.imagine(batch, scored, *present))
        work = Work(rounds * once + roofline.counted(known), rounds * roofline.moved(world.net))
    return Variant(name, plan, work)
