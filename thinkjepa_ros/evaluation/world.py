"""`thinkjepa evaluate world`: what a world model is worth on episodes it was not trained on, before anything acts.

- Error of the imagined latents by step, beside "no change" (copy) and ridge regression from the pooled latents of now
  and the actions. A model that beats neither knows nothing of actions.
- How much its predictions change with the action: with the actions of another moment instead of the true ones.
- The energy (V-JEPA 2-AC, arXiv 2506.09985, section 3.2): the goal is what is truly seen after h steps. The true
  actions should have less energy than doing nothing, and that less than the opposite; by axis of the base frame, too.
  Among random sequences of actions the one of least energy should end near the goal.
- What a linear probe reads from the latents: the gripper, and the things on the table; beside an encoder that was
  never trained.

Everything is a mean over the moments of an episode, then over episodes, with 95 % intervals.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ..checkpoints import WEIGHTS, write_atomically
from ..control import space
from ..control.imagination import Imagination, load_imagination
from ..jepa.world_model import Context
from ..train.clips import load_folder
from ..train.world_data import Track
from .bootstrap import Interval, bootstrap_mean, paired_bootstrap
from .linear import Ridge

#: Every so many frames of an episode a moment begins.
STRIDE = 4
#: An axis counts in a moment if the true motion along it is at least so long, metres.
LEAST_M = 0.03
#: Random sequences of actions among which the energy chooses, and their largest step, metres.
RANDOM, MOST_M = 128, 0.06
AXES = ("x", "y", "z")
_TOGETHER = 64


@dataclass(frozen=True)
class Seen:
    """One episode through the encoder: latents [N, n, Z], pooled [N, M, Z]."""

    track: Track
    latents: Tensor
    pooled: Tensor

    def things(self, names: Sequence[str]) -> np.ndarray:
        """Places of things in the optical frame, float [N, 3 K]."""
        pose = self.track.episode.camera_pose
        places = [
            np.einsum("nk,nkl->nl", self.track.episode.objects[name] - pose[:, :3, 3], pose[:, :3, :3])
            for name in names
        ]
        return np.concatenate([*places, np.zeros((len(pose), 0))], 1)


@dataclass
class Cells:
    """Figures by name, one value per episode each."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: np.ndarray | Tensor) -> None:
        """The mean of `values`, NaN where there are none."""
        found = np.asarray(values, np.float64)
        self.values.setdefault(name, []).append(float(found.mean()) if found.size else float("nan"))

    def interval(self, name: str) -> Interval:
        return bootstrap_mean(np.array(self.values[name]))


@torch.inference_mode()
def look(net: Imagination, tracks: Sequence[Track], title: str) -> list[Seen]:
    """Every frame of every episode, encoded alone."""
    out = []
    for one in track(tracks, title, transient=True):
        images = torch.from_numpy(one.images(np.arange(len(one))))
        latents = torch.cat([net.see(part) for part in images.split(_TOGETHER)])
        out.append(Seen(one, latents, net.pool(latents)))
    return out


def origins(length: int, horizon: int) -> np.ndarray:
    """Frames at which a moment with a whole horizon ahead begins; empty for an episode that is too short."""
    return np.arange(1, length - horizon, STRIDE)


@torch.inference_mode()
def score(
    net: Imagination, episodes: Sequence[Seen], linear: Sequence[Ridge], energy: str = "l1", seed: int = 0
) -> Cells:
    """All figures of moments. linear: by step, of pooled latents and actions up to there. Raises ValueError."""
    w, cells = net.config.world, Cells()
    for number, seen in enumerate(track(episodes, "Imagining", transient=True)):
        at = origins(len(seen.track), w.horizon)
        if not len(at):
            continue
        rng = np.random.default_rng((seed, number))
        now, past = seen.latents[at], seen.pooled[np.maximum(at[:, None] + np.arange(1 - w.context, 0), 0)]
        context = net.world.remember(past, now, torch.from_numpy(seen.track.states[at]))
        ahead = at[:, None] + np.arange(w.horizon)
        actions = torch.from_numpy(np.stack([seen.track.actions(i, which) for i, which in zip(at, ahead, strict=True)]))
        true, here = seen.pooled[ahead + 1], seen.pooled[at]
        imagined = net.world.imagine(context, actions)
        _errors(cells, imagined, true, here, actions, linear)
        other = actions[torch.from_numpy(np.roll(np.arange(len(at)), max(1, len(at) // 2)))]
        shuffled = net.world.imagine(context, other)
        end = _off(imagined[:, -1], true[:, -1]).mean(), _off(here, true[:, -1]).mean()
        cells.add("sensitivity", (_off(shuffled[:, -1], imagined[:, -1]).mean() / end[1])[None])
        cells.add("shuffled_over_right", (_off(shuffled[:, -1], true[:, -1]).mean() / end[0])[None])
        for steps in sorted({w.horizon // 2, w.horizon}):
            _signs(cells, net, context, seen, at, actions[:, :steps], true[:, steps - 1], energy)
        _choice(cells, net, context, seen, at, true[:, -1], energy, rng)
    if not cells.values:
        raise ValueError(f"no episode is longer than the {w.horizon} actions that the model imagines")
    return cells


def _off(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of latents [..., M, Z]."""
    return (a - b).abs().mean((-2, -1))


def _errors(
    cells: Cells, imagined: Tensor, true: Tensor, here: Tensor, actions: Tensor, linear: Sequence[Ridge]
) -> None:
    flat = here.flatten(1).double().numpy()
    for h in range(imagined.shape[1]):
        done = actions[:, : h + 1].flatten(1).double().numpy()
        foretold = here + torch.from_numpy(linear[h].predict(np.concatenate((flat, done), 1))).view_as(here).float()
        for name, guess in (("model", imagined[:, h]), ("copy", here), ("ridge", foretold)):
            cells.add(f"{name}_{h + 1}", _off(guess, true[:, h]))


def _signs(
    cells: Cells,
    net: Imagination,
    context: Context,
    seen: Seen,
    at: np.ndarray,
    actions: Tensor,
    goal: Tensor,
    energy: str,
) -> None:
    """Order of the energies of the true actions, of none, and of the opposite."""
    steps = actions.shape[1]
    poses = torch.from_numpy(seen.track.episode.camera_pose[at])[:, None]
    base = space.action_to_base(actions, poses)

    def changed(factor: list[float]) -> Tensor:
        turned = torch.cat((base[..., :3] * torch.tensor(factor), base[..., 3:]), -1)
        imagined = net.world.imagine(context, space.action_to_camera(turned, poses))[:, -1]
        return net.energy(imagined, goal, energy)

    way = base[..., :3].sum(1).abs()
    right = changed([1, 1, 1])
    far = way.max(1).values >= LEAST_M
    nothing, opposite = changed([0, 0, 0]), changed([-1, -1, -1])
    cells.add(f"sign_{steps}", (right < opposite)[far])
    cells.add(f"order_{steps}", ((right < nothing) & (nothing < opposite))[far])
    for axis, name in enumerate(AXES):
        some = way[:, axis] >= LEAST_M
        flip, still = ([f if i == axis else 1.0 for i in range(3)] for f in (-1.0, 0.0))
        less, more = changed(still), changed(flip)
        cells.add(f"sign_{steps}_{name}", (right < more)[some])
        cells.add(f"order_{steps}_{name}", ((right < less) & (less < more))[some])


def _choice(
    cells: Cells,
    net: Imagination,
    context: Context,
    seen: Seen,
    at: np.ndarray,
    goal: Tensor,
    energy: str,
    rng: np.random.Generator,
) -> None:
    """Where the sequence of least energy among random ones would bring the gripper, if commands were obeyed: distance
    from where it truly was after the horizon, in metres, beside staying, the best of them and a random one.
    """
    horizon = net.config.world.horizon
    for row, frame in enumerate(at):
        states = seen.track.episode.states
        way = (states[frame + horizon, :3] - states[frame, :3]) @ seen.track.episode.camera_pose[frame, :3, :3]
        if np.linalg.norm(way) < LEAST_M:
            continue
        base = rng.uniform(-MOST_M, MOST_M, (RANDOM, 1, 3)) * rng.uniform(0, 1, (RANDOM, horizon, 1))
        closed = np.broadcast_to(seen.track.states[frame, 3], (RANDOM, horizon, 1))
        pose = seen.track.episode.camera_pose[frame]
        tries = space.action_to_camera(np.concatenate((base, closed), 2).astype(np.float32), pose)
        one = type(context)(
            tuple((k[row : row + 1], v[row : row + 1]) for k, v in context.memory), context.now[row : row + 1]
        )
        energies = net.energy(net.world.imagine(one, torch.from_numpy(tries))[:, -1], goal[row], energy).numpy()
        ends = np.linalg.norm(tries[:, :, :3].sum(1) - way, axis=1)
        cells.values.setdefault("choice_moments", []).append(1.0)
        cells.add("chosen_m", ends[[int(energies.argmin())]])
        cells.add("stay_m", np.array([np.linalg.norm(way)]))
        cells.add("best_m", ends[[int(ends.argmin())]])
        cells.add("random_m", ends)
        rank = float(np.corrcoef(energies.argsort().argsort(), ends.argsort().argsort())[0, 1])
        cells.add("rank_correlation", np.array([rank]))


def fit_linear(net: Imagination, episodes: Sequence[Seen]) -> list[Ridge]:
    """By step: the change of the pooled latents from those of now and the actions up to there."""
    w, out = net.config.world, []
    at = [origins(len(s.track), w.horizon) for s in episodes]
    flat = np.concatenate([s.pooled[i].flatten(1).numpy() for s, i in zip(episodes, at, strict=True)])
    groups = np.repeat(np.arange(len(at)), [len(i) for i in at])
    for h in range(w.horizon):
        done = [s.track.actions(k, k + np.arange(h + 1)).ravel() for s, i in zip(episodes, at, strict=True) for k in i]
        later = np.concatenate([s.pooled[i + h + 1].flatten(1).numpy() for s, i in zip(episodes, at, strict=True)])
        out.append(Ridge.fit(np.concatenate((flat, np.array(done)), 1), later - flat, groups))
    return out


def probe(learned: Sequence[Seen], scored: Sequence[Seen]) -> dict[str, Any]:
    """R² of a linear readout of pooled latents: the robot's state, and each thing's place (mean over axes)."""
    names = sorted(set(learned[0].track.episode.objects) & set(scored[0].track.episode.objects))
    parts = []
    for episodes in (learned, scored):
        x = np.concatenate([s.pooled[::STRIDE].flatten(1).numpy() for s in episodes])
        y = np.concatenate([np.concatenate((s.track.states, s.things(names)), 1)[::STRIDE] for s in episodes])
        groups = np.repeat(np.arange(len(episodes)), [len(s.pooled[::STRIDE]) for s in episodes])
        parts.append((x, y, groups))
    (x, y, groups), (unseen, truth, _) = parts
    spread = y.std(0) + 1e-9
    guess = Ridge.fit(x, y / spread, groups).predict(unseen) * spread
    rest = ((guess - truth) ** 2).mean(0)
    r2 = 1 - rest / np.maximum(truth.var(0), 1e-12)
    out = {"gripper": r2[:3].tolist(), "gripper_cm": float(100 * np.sqrt(rest[:3].sum())), "closedness": float(r2[3])}
    for i, name in enumerate(names):
        columns = slice(4 + 3 * i, 7 + 3 * i)
        if truth[:, columns].var(0).max() > 1e-6:  # what never moves cannot be told apart
            moves = truth[:, columns].var(0) > 1e-6
            out[name] = float(r2[columns][moves].mean())
    return out


def untrained(net: Imagination, seed: int = 1) -> Imagination:
    """The same with random weights: an encoder of this shape keeps something of a picture without any training."""
    torch.manual_seed(seed)
    return Imagination(net.config).eval().requires_grad_(False)


def evaluate(
    folder: Path,
    test: Path,
    train: Path,
    *,
    energy: str = "l1",
    limit: int = 60,
    train_limit: int = 150,
    out: Path | None = None,
) -> dict[str, Any]:
    """Score the imagination in `folder` on the episodes of `test`; ridge and probes are fitted on those of `train`.

    Raises CheckpointError, EpisodeError, ValueError.
    """
    from . import world_report

    net, manifest = load_imagination(folder)
    c = net.config
    tracks = [
        [Track.of(e, c.camera, c.action_s) for e in load_folder(part, most)]
        for part, most in ((train, train_limit), (test, limit))
    ]
    learned, scored = (look(net, t, f"Encoding {name}") for t, name in zip(tracks, ("train", "test"), strict=True))
    control = untrained(net)
    blind = (look(control, t, f"Untrained, {name}") for t, name in zip(tracks, ("train", "test"), strict=True))
    figures: dict[str, Any] = {
        "model": str(folder),
        "weights": manifest.sha256[WEIGHTS][:8],
        "steps": manifest.training.get("steps", 0),
        "cpu_minutes": round(manifest.training.get("cpu_seconds", 0) / 60, 1),
        "energy": energy,
        "episodes": len(scored),
        "horizon": c.world.horizon,
        "probe": probe(learned, scored),
        "probe_random": probe(*blind),
    }
    cells = score(net, scored, fit_linear(net, learned), energy)
    figures |= {name: cells.interval(name)._asdict() for name in cells.values if name != "choice_moments"}
    for other in ("copy", "ridge"):
        for h in range(1, c.world.horizon + 1):
            pair = paired_bootstrap(np.array(cells.values[f"model_{h}"]), np.array(cells.values[f"{other}_{h}"]))
            figures[f"model_minus_{other}_{h}"] = pair._asdict()
    world_report.show(figures)
    if out:
        write_atomically(out, (json.dumps(figures, indent=1) + "\n").encode())
    return figures
