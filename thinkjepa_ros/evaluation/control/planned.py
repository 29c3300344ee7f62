"""Agents with models: the controller as it ships, and the plain CEM that it is compared with."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...control import energy as terms
from ...control import space
from ...control.ahead import Ahead
from ...control.controller import Controller
from ...control.energy import Energy
from ...control.imagination import Imagination, images_of
from ...control.latent import LatentWorld
from ...control.options import Aim, Mode, Options
from ...control.planner import Planner, Problem
from ...control.policy import Policy
from ...control.score import LanguageScore
from ...data.sim.tasks import ACTION_S
from ...values import Frame, Guidance
from .agents import Answer, Seen
from .rows import Actor, Goal, Row

MODES: dict[Actor, Mode] = {"planner": "planner", "policy": "policy", "policy + planner": "both"}
AIMS: dict[Goal, Aim] = {"words": "words", "thinker": "subgoal"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows of an evaluation. energy: of our planner, a name of `imagination.ENERGIES`. dtype:
    in which worlds are imagined.
    """

    energy: str = "l1"
    dtype: str = "float32"


class Controlled:
    """`control.controller.Controller` in lock step: the first action of a plan, then a new plan. Where it has none (a
    thinker has not spoken yet) it holds. What stands between a plan and a real robot, margin and guard, is not there.
    """

    def __init__(
        self,
        net: Imagination,
        model_id: str,
        policy: Policy | None,
        row: Row,
        setting: Setting,
        seed: int,
        score: LanguageScore | None = None,
        ahead: Ahead | None = None,
    ):
        options = Options(
            mode=MODES[row.actor], aim=AIMS.get(row.goal, "image"), method=row.method,
            samples=row.samples, iterations=row.rounds, horizon=row.horizon, proposals=row.proposals,
            distance=setting.energy, seed=seed,
        )  # fmt: skip
        about = {"model_id": model_id, "dtype": setting.dtype}
        self._controller = Controller(net, options, policy, score, ahead, trained=True, **about)
        self._reads = row.goal == "thinker" and (policy is None or not policy.config.guide_layers)
        self._shown: np.ndarray | None = None
        self._closedness = 0.0  # as commanded
        self._length = 0  # of a whole plan

    def act(self, seen: Seen) -> Answer:
        controller, window = self._controller, self._controller.window
        stamps = [seen.stamp_ns - k * controller.step_ns for k in reversed(range(window))]
        for stamp in stamps:
            if stamp == seen.stamp_ns or not controller.knows(stamp):  # before the beginning stands the first frame
                controller.observe(Frame(seen.image, stamp), seen.camera)
        if seen.picture is not self._shown:
            controller.show_goal(seen.picture, seen.camera)
            self._shown = seen.picture
        self._tell(seen.instruction, seen.guidance)
        outcome = controller.plan(stamps, seen.state, seen.camera_pose, commanded=self._closedness)
        if outcome.plan is None:
            return Answer(np.array((0, 0, 0, self._closedness), np.float32), "hold", fresh=False)
        plan = outcome.plan
        self._closedness = float(plan.actions[0, 3])
        self._length = max(self._length, len(plan.actions))
        fresh = len(plan.actions) == self._length  # what is left of a plan is shorter
        return Answer(plan.actions[0], plan.source, outcome.imagined, plan.energy, plan.hold_energy, fresh)

    def _tell(self, instruction: str, guidance: Guidance | None) -> None:
        """Sub-goals, and a policy that was built without guidance, know the words of the thinker's answer and no
        others.
        """
        if self._reads:
            instruction = ""
            guidance = None if guidance is None else replace(guidance, instruction="")
        self._controller.instruct(instruction)
        self._controller.guide(guidance)


class Cem:
    """The plain CEM of V-JEPA 2-AC (arXiv 2506.09985, section 3.2): anew for every action, mean L1 to the latent of the
    picture at the last step, the first action of the mean of the last round.
    """

    def __init__(self, net: Imagination, row: Row, setting: Setting, seed: int) -> None:
        self._net = net
        self._world = LatentWorld(net.world, DTYPES[setting.dtype])
        self._planner = Planner(row.search(seed), self._world)
        self._steps = terms.final(row.horizon)
        self._past: deque[Tensor] = deque(maxlen=net.config.world.context - 1)
        self._goal: tuple[np.ndarray, Tensor] | None = None
        self._closedness = 0.0  # as commanded

    @torch.inference_mode()
    def act(self, seen: Seen) -> Answer:
        net = self._net
        latents = net.see(images_of(net, seen.image, seen.camera))
        now = net.pool(latents)
        while len(self._past) < net.config.world.context - 1:
            self._past.append(now)  # before the beginning stands the first frame
        past = torch.stack(tuple(self._past), 1) if self._past else now[:, None][:, :0]
        self._past.append(now)
        if seen.picture is None:
            return Answer(np.array((0, 0, 0, self._closedness), np.float32), "hold")
        if self._goal is None or self._goal[0] is not seen.picture:
            picture = images_of(net, seen.picture, seen.camera)
            self._goal = (seen.picture, net.pool(net.see(picture))[0])
        state = torch.from_numpy(space.state_to_camera(seen.state, seen.camera_pose))[None]
        context = net.world.remember(*(x.to(self._world.dtype) for x in (past, latents, state)))
        rotation = torch.from_numpy(seen.camera_pose[:3, :3]).float()
        problem = Problem(
            self._world.known(context, None, rotation),
            Energy((terms.toward(self._goal[1]),), self._steps),
            torch.tensor((0.0, 0.0, 0.0, self._closedness)),
        )
        found = self._planner.plan(problem, None, ACTION_S)
        self._closedness = float(found.actions[0, 3])
        return Answer(found.actions[0], found.source, found.imagined, found.energy, found.hold_energy)
