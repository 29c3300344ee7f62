"""Episodes in which a policy drives and an expert says what it would have done: `thinkjepa data rollouts --policy`.

A policy that learned from an expert alone has never seen where its own mistakes lead (DAgger, arXiv 1011.0686). Every
episode is a function of (kind, seed, weights), as those of `data.sim.rollouts`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..checkpoints import WEIGHTS, read_manifest
from ..control import space
from ..control.policy import KIND, Policy, load_policy
from ..data.episode import SUFFIX
from ..data.sim.generate import fill, parse_size
from ..data.sim.rollouts import WORKCELL_VERSION, make_rollout
from ..data.sim.tasks import Task, use_of

if TYPE_CHECKING:
    from ..data.sim.workcell import Workcell

BEHAVIOUR = "policy"
KINDS = ("pick_place_text", "pick_place_lamp")
#: Actions of a chunk that are done before the policy looks again, and the temperature of its proposals.
_DONE, _TEMPERATURE = 2, 1.0
#: The expert takes over for some actions, in about this share of them, so that episodes get on.
_HELPED, _HELP = 0.3, (3, 10)


class Apprentice:
    """The policy, told in words what the task asks for (also where a lamp would tell it); the expert looks on."""

    def __init__(self, task: Task, rng: np.random.Generator, policy: Policy) -> None:
        from ..data.sim.behaviour import Expert

        self._expert, self._policy, self._rng = Expert(task, rng), policy, rng
        self._words = torch.tensor([(task.cube, task.tray)])
        self._chunk: list[np.ndarray] = []
        self._helped = 0

    @property
    def phase(self) -> str:
        return self._expert.phase

    @property
    def label(self) -> np.ndarray | None:
        return self._expert.label

    def act(self, cell: Workcell) -> np.ndarray:
        """The next action, float32 [4]."""
        from ..data.sim.behaviour import bounded

        right, rng = self._expert.act(cell), self._rng
        if self._helped == 0 and rng.random() < _HELPED / np.mean(_HELP):
            self._helped = int(rng.integers(*_HELP))
        if self._helped:
            self._helped -= 1
            self._chunk = []
            return right
        if not self._chunk:
            self._chunk = list(self._propose(cell, int(rng.integers(2**31)))[:_DONE])
        action = self._chunk.pop(0)
        return bounded(action[:3], float(action[3]))

    @torch.inference_mode()
    def _propose(self, cell: Workcell, seed: int) -> np.ndarray:
        policy, pose = self._policy, cell.camera_pose()
        picture = torch.from_numpy(policy.view(cell.camera).apply(cell.image()))
        frames = picture.expand(1, policy.config.frames, *picture.shape)
        state = torch.from_numpy(space.state_to_camera(cell.state(), pose).astype(np.float32))[None]
        present = policy.remember(policy.see(frames), state, self._words)
        chunk = policy.propose(present, 1, seed, temperature=_TEMPERATURE)[0].numpy()
        return space.action_to_base(chunk, pose)


@functools.lru_cache(maxsize=1)
def _loaded(folder: str) -> Policy:
    torch.set_num_threads(1)
    policy = load_policy(folder)[0]
    if policy.config.frames > 1:
        raise ValueError(f"{folder}: a policy that looks at {policy.config.frames} frames cannot practise yet; at 1")
    return policy


def _work(path: str, words: str, seed: int, kind: str, folder: str, width: int, height: int) -> int:
    def drive(task: Task, rng: np.random.Generator) -> Apprentice:
        return Apprentice(task, rng, _loaded(folder))

    episode = make_rollout(kind, BEHAVIOUR, seed, width, height, drive=drive)
    episode.save(path)
    return len(episode)


def main(
    out: Path,
    policy: Path,
    episodes: int = 100,
    seed_start: int = 0,
    kind: str = "mix",
    size: str = "128",
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Like `data.sim.rollouts.main`, driven by the policy in the folder `policy`. kind "mix": both of pick and place.

    Raises CheckpointError, too.
    """
    if kind not in (*KINDS, "mix"):
        raise ValueError(f"a policy practises where cube and tray are told: {', '.join(KINDS)} or mix, not {kind!r}")
    if episodes < 1 or workers < 1 or seed_start < 0:
        raise ValueError("episodes and workers must be 1 or more, seed_start 0 or more")
    use_of(seed_start + episodes - 1)
    width, height = parse_size(size)
    manifest = read_manifest(policy, KIND)
    _loaded(str(policy))  # what is wrong with it is said before any process starts
    settings = {"workcell_version": WORKCELL_VERSION, "width": width, "height": height, "kind": kind,
                "behaviour": BEHAVIOUR, "policy": manifest.sha256.get(WEIGHTS, "")}  # fmt: skip
    jobs = []
    for seed in range(seed_start, seed_start + episodes):
        what = KINDS[seed % len(KINDS)] if kind == "mix" else kind
        path = str(out / f"workcell_{seed:07d}{SUFFIX}")
        jobs.append((path, f"{what} ({BEHAVIOUR})", seed, what, str(policy), width, height))
    return fill(out, settings, _work, jobs, workers, quiet)
