"""What to do next: from the latest frames, the robot's state, and what is wanted, a plan. Knows nothing of ROS.

    frames -> `observe` -> latents by stamp ----.
    goal image, sub-goal of the thinker, words -+-> `plan` -> Outcome: a values.Plan, or the reason why there is none
    state, pose of the camera ------------------'

Modes: "planner" searches in the imagined world, "policy" takes what the policy proposes, "both" lets the search begin
with the policy's proposals and pick among all; where nothing can be searched for (words that no score knows), it takes
what the policy proposes. A plan says what staying costs; whether it is worth moving is for
`watch` to say, and whether it may leave for `guard`.

One thread observes and plans; `show_goal` and `instruct` may come from any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..jepa.guidance import Payload
from ..jepa.model import torch_device
from ..jepa.precision import choose
from ..values import Camera, Frame, Guidance, Plan
from . import energy as terms
from . import space
from .ahead import Ahead, load_ahead
from .aims import Aims, Distance, check_made_for
from .energy import Energy, Term
from .imagination import ENERGIES, Imagination, load_imagination
from .latent import LatentWorld
from .options import AIMS, LEAST_DEVIATION, MAX_STEP_M, MODES, Options
from .outcome import UNASKED, Outcome, Scene, missing
from .planner import Planner, Problem
from .policy import UNTOLD, Policy, load_policy, named, words_of
from .score import LanguageScore, load_score
from .sight import Sight


class Controller:
    """See the head of this file. Plans are deterministic: they follow from frames, states and goals since `reset`."""

    def __init__(
        self,
        net: Imagination,
        options: Options,
        policy: Policy | None = None,
        score: LanguageScore | None = None,
        ahead: Ahead | None = None,
        *,
        model_id: str = "",
        domain: str = "",
        trained: bool = False,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """model_id, domain, trained: of the imagination. Raises ValueError where the parts do not fit together."""
        if options.mode not in MODES or options.aim not in AIMS:
            raise ValueError(f"mode is one of {', '.join(MODES)} and aim of {', '.join(AIMS)}, not {options.mode!r}")
        if policy is None and options.mode != "planner":
            raise ValueError(f"mode {options.mode} needs a policy; name its checkpoint, or use mode planner")
        self.model_id, self.domain, self.trained = model_id, domain, trained
        self._device = torch_device(device)
        self._choice = choose(self._device, dtype, net.config.world.width)
        self._net = net.to(self._device).eval().requires_grad_(False)
        self._world = LatentWorld(self._net.world, self._choice.dtype)
        self._policy = None if options.mode == "planner" else policy
        if self._policy is not None:
            self._policy = self._policy.to(self._device).eval().requires_grad_(False)
            if self._policy.config.action_s != net.config.action_s:
                raise ValueError(
                    f"an action of the policy lasts {self._policy.config.action_s:g} s, one of the imagination "
                    f"{net.config.action_s:g} s; use a pair that was trained on the same episodes"
                )
        self.action_s = net.config.action_s
        self.step_ns = round(self.action_s * 1e9)
        self._sight = Sight(self._net if options.mode != "policy" else None, self._policy, self._device)
        for part in (score, ahead):
            if part is not None:
                part.to(self._device).eval().requires_grad_(False)
        self._aims = Aims(self._net, self._sight, score, ahead, model_id, self._device)
        self.instruction = ""
        self.options = options
        self.set_options(options)
        self.reset()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        options: Options,
        policy: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        score: str | Path | None = None,
        ahead: str | Path | None = None,
    ) -> Controller:
        """From checkpoint folders. dtype: see `precision.choose`. Raises CheckpointError, ValueError."""
        net, manifest = load_imagination(folder)
        proposer = load_policy(policy)[0] if policy is not None else None
        language = load_score(score)[0] if score is not None else None
        wanted = load_ahead(ahead)[0] if ahead is not None else None
        for stage, part in (("score", language), ("ahead", wanted)):
            if part is not None:
                check_made_for(stage, part.config.imagination, manifest.name)
        trained = manifest.trained
        name = manifest.model_id if trained else f"{manifest.model_id} (untrained)"
        about = {"model_id": name, "domain": manifest.domain, "device": device, "dtype": dtype}
        return cls(net, options, proposer, language, wanted, trained=trained, **about)

    def check_options(self, options: Options) -> None:
        """Raises ValueError where the controller cannot plan this way. Any thread."""
        if options.mode != self.options.mode:
            raise ValueError("the mode cannot be changed while the controller runs; start it anew")
        if options.commit < 1:
            raise ValueError(f"commit is {options.commit} actions, must be at least 1")
        if options.mode == "policy":
            return
        horizons = {"imagination": self._net.config.world.horizon}
        if self._policy is not None:
            horizons["policy"] = self._policy.config.horizon
        for name, most in horizons.items():
            if options.horizon > most:
                raise ValueError(f"horizon is {options.horizon} actions, this {name} knows {most}; lower it")
        if options.distance not in ENERGIES:
            raise ValueError(f"there is no distance {options.distance!r}; choose one of {', '.join(ENERGIES)}")
        _ = options.search(False), options.search(options.mode == "both")

    def set_options(self, options: Options) -> None:
        """Plan this way from the next plan on. Raises ValueError, see `check_options`, and then nothing changes."""
        self.check_options(options)
        self.options = options
        kinds = {"planner": (False,), "policy": (), "both": (False, True)}[options.mode]
        #: By whether the policy, told what is asked for, takes part.
        self._planners = {told: Planner(options.search(told), self._world, self._device) for told in kinds}
        self._distance = Distance(self._net, options.distance)
        self._planned: tuple[int, object] | None = None
        self._begun: tuple[object, Plan] | None = None  # what was asked for, and a plan that the policy had a part in

    @property
    def window(self) -> int:
        """Frames, action_s apart, that a plan rests on."""
        frames = 1 if self._policy is None else self._policy.config.frames
        return frames if self.options.mode == "policy" else max(frames, self._net.config.world.context)

    @property
    def words(self) -> str:
        """How it computes, for a log."""
        return f"{self._device}, {self._choice.name} ({self._choice.reason}), mode {self.options.mode}"

    # ------------------------------------------------------------------ what is known

    def reset(self) -> None:
        """Forget frames, guidance and the last plan, as after a jump of the clock. The goal and the words stay."""
        self._sight.forget()
        self._guidance: Guidance | None = None
        self._intent = UNTOLD
        self._begun = self._planned = None
        for planner in self._planners.values():
            planner.reset()

    def observe(self, frame: Frame, camera: Camera | None = None) -> None:
        """Take in a frame. camera: its intrinsics; None: unknown. Raises ValueError on an image that is none."""
        self._sight.observe(frame, camera)

    def knows(self, stamp_ns: int) -> bool:
        """Whether this frame was observed and is not forgotten."""
        return self._sight.knows(stamp_ns)

    def show_goal(self, rgb: np.ndarray | None, camera: Camera | None = None) -> None:
        """What the scene shall look like, uint8 [H, W, 3]; None takes it back. It is encoded once, by the next plan."""
        self._aims.show(rgb, camera)

    def instruct(self, instruction: str) -> None:
        """What is asked for. Guidance that was thought for other words does not count."""
        if instruction.split() != self.instruction.split():
            self._intent = UNTOLD
        self.instruction = instruction

    def check_guidance(self, guidance: Guidance) -> None:
        """Raises ValueError naming the field that does not fit. May be called from any thread."""
        for name, config in self._guided():
            shape = (config[0], 2, config[1])
            if guidance.pyramid.shape != shape:
                raise ValueError(
                    f"pyramid is {list(guidance.pyramid.shape)}, the {name} takes {list(shape)} (layers, streams, "
                    "width); run the thinker it was trained with"
                )
        if not np.isfinite(guidance.pyramid).all():
            raise ValueError("pyramid holds values that are not finite")

    def guide(self, guidance: Guidance | None) -> None:
        """Be guided by this from now on. Raises ValueError, see `check_guidance`, and keeps what was held.

        What a thought says of cube and tray is kept beyond it: what told the thinker (a lamp that was lit) leaves its
        window long before the task is done. A later thought that names both replaces it, and so does another
        instruction.
        """
        if guidance is not None:
            self.check_guidance(guidance)
            told = words_of(guidance.text)
            if named(told) and self.heeds(guidance):
                self._intent = told
        self._guidance = guidance

    def heeds(self, guidance: Guidance) -> bool:
        """Whether this was thought for what is asked for now."""
        asked, thought = (" ".join(words.split()) for words in (self.instruction, guidance.instruction))
        return not asked or thought in ("", asked)

    def _guided(self) -> list[tuple[str, tuple[int, int]]]:
        """What takes guidance, and of how many layers and which width."""
        parts = [("imagination", self._net.config.world), ("policy", self._policy.config if self._policy else None)]
        return [(n, (c.guide_layers, c.guide_width)) for n, c in parts if c is not None and c.guide_layers]

    # ------------------------------------------------------------------ plans

    def plan(
        self,
        stamps_ns: Sequence[int],
        state: np.ndarray | None,
        pose: np.ndarray | None,
        cancelled: Callable[[], bool] = lambda: False,
        commanded: float | None = None,
    ) -> Outcome:
        """A plan from the frames at `stamps_ns` (oldest … newest = now, `window` of them, action_s apart, observed).

        state: float [4] in the base frame, see `space`. pose: base from camera [4, 4] at the newest frame. What is
        missing is the reason in the Outcome. cancelled: asked between two rounds; then the best so far is taken.
        commanded: closedness that the gripper was told last, which holding keeps (closed on a thing, it measures less);
        None: the measured one.
        """
        began = time.perf_counter()
        stamps = list(stamps_ns)
        there = sum(map(self._sight.knows, stamps)) if len(stamps) == self.window else 0
        if reason := missing(there, self.window, state, pose):
            return Outcome(None, reason)
        guidance = self._guidance
        weight = guidance.weight(stamps[-1]) if guidance is not None and self.heeds(guidance) else 0.0
        place = torch.as_tensor(np.asarray(state, np.float32), device=self._device)[None]
        grip = place[0, 3:] if commanded is None else place.new_tensor([commanded])
        base_from_camera = torch.as_tensor(np.asarray(pose, np.float32), device=self._device)
        scene = Scene(stamps, place, base_from_camera, grip, weight)
        told = self._policy is not None and self._told(scene)
        try:
            rest = self._rest(scene)
            outcome = rest or (self._search(scene, told, cancelled) if self._planners else self._alone(scene, told))
        except ValueError as error:  # a goal image that fits no camera, guidance that does not fit
            rest, outcome = None, Outcome(None, str(error))
        if rest is None and outcome.plan is not None and (told or not self._planners):
            self._begun = (self._asked, outcome.plan)
        return replace(outcome, planning_s=time.perf_counter() - began)

    def _age(self, scene: Scene) -> float:
        if self._guidance is None or not scene.weight:
            return float("nan")
        return (scene.stamps[-1] - self._guidance.stamp_ns) * 1e-9

    @property
    def _asked(self) -> object:
        """Tells one thing that is asked for from another."""
        return self._words(answers=True), self._aims.goal

    def _rest(self, scene: Scene) -> Outcome | None:
        """What is left of a plan that the policy had a part in. Asked anew after every action, a policy forgets what it
        was about: a gripper that is half closed may be closing or opening.
        """
        if self._begun is None or self._begun[0] != self._asked:
            return None
        plan, elapsed = self._begun[1], scene.stamps[-1] - self._begun[1].stamp_ns
        done = elapsed // self.step_ns  # whole actions: a camera's pictures come sooner and later
        if elapsed <= 0 or done >= min(self.options.commit, len(plan.actions)):
            return None
        stamp = plan.stamp_ns + done * self.step_ns
        return Outcome(replace(plan, actions=plan.actions[done:], stamp_ns=stamp, guidance_age_s=self._age(scene)))

    @torch.inference_mode()
    def _alone(self, scene: Scene, told: bool) -> Outcome:
        """What the policy would do, without anything imagined."""
        if not (told or self.options.act_untold):
            return Outcome(None, UNASKED)
        actions = self._propose(scene, 1, self.options.temperature)[0].cpu().numpy()
        if not np.isfinite(actions).all():
            return Outcome(None, "the policy proposes what is not finite")
        nan, none = float("nan"), np.zeros(0, np.float32)
        return Outcome(Plan(actions, nan, nan, none, "policy", scene.stamps[-1], self.action_s, self._age(scene)))

    def _search(self, scene: Scene, told: bool, cancelled: Callable[[], bool]) -> Outcome:
        planner, options = self._planners[told], self.options
        began = time.perf_counter()
        with torch.inference_mode():
            wanted = self._guidance.subgoal if self._guidance is not None and scene.weight else None
            words, look = self._words(answers=True), lambda: self._now(scene)
            target = self._aims.target(options.aim, self._distance, wanted, words, look)
            if target.term is None:
                return self._alone(scene, told) if told and options.aim == "auto" else Outcome(None, target.reason)
            parts, proposals = [target.term], None
            if told:
                proposals, prior = self._offer(scene)
                parts.append(prior)
            problem = self._problem(scene, parts)
        stamp, elapsed = scene.stamps[-1], None
        if self._planned is not None and target.same(self._planned[1]) and stamp > self._planned[0]:
            elapsed = (stamp - self._planned[0]) * 1e-9
        planner.begin(problem, elapsed, self.action_s, proposals)
        for index in range(options.iterations):
            spent = time.perf_counter() - began
            if index and (cancelled() or (options.budget_s and spent > options.budget_s)):
                break
            planner.iterate(last=index + 1 == options.iterations)
        if options.refine and not cancelled():
            planner.refine()
        result = planner.result()
        self._planned = (stamp, target.key)
        plan = result.plan(stamp, self.action_s, self._age(scene))
        return Outcome(plan, imagined=result.imagined, parts=result.parts)

    def _told(self, scene: Scene) -> bool:
        """Whether the policy knows what is asked for, by words or by a thought."""
        policy = self._policy
        guided = policy is not None and policy.config.guide_layers > 0 and scene.weight > 0
        return guided or named(self._words(answers=True))

    def _words(self, answers: bool) -> tuple[int, int]:
        """Cube and tray that are asked for. answers: what the instruction leaves open, the thinker's answer tells."""
        words = words_of(self.instruction)
        return (min(words[0], self._intent[0]), min(words[1], self._intent[1])) if answers else words

    def _now(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Pooled latent [1, M, Z], and state [1, 4] in standard deviations."""
        world = self._net.world
        state = space.state_to_camera(scene.state, scene.pose)
        return self._net.pool(self._sight.latents(scene.stamps[-1:])[:, 0]), (
            state - world.state_mean
        ) / world.state_std

    def _offer(self, scene: Scene) -> tuple[Tensor, Term]:
        """What the policy proposes [N, H, 4], its mean first, and how likely it finds anything else."""
        options = self.options
        heat = torch.ones(max(3, options.proposals))  # two that are drawn have a deviation
        heat[0] = 0.0
        chunks = self._propose(scene, len(heat), heat)[:, : options.horizon]
        deviation = chunks[1:].std(0).clamp(min=LEAST_DEVIATION)
        return chunks[: options.proposals], terms.prior(chunks[0], deviation, options.trust)

    def _problem(self, scene: Scene, wanted: list[Term]) -> Problem:
        w, kind = self._net.config.world, self._choice.dtype
        seen = self._sight.latents(scene.stamps[-w.context :])
        state = space.state_to_camera(scene.state, scene.pose)
        past, now = self._net.pool(seen[:, :-1]), seen[:, -1]
        context = self._world.net.remember(past.to(kind), now.to(kind), state.to(kind))
        known = self._world.known(context, self._payload(scene, bool(w.guide_layers)), scene.pose[:3, :3])
        parts = list(wanted)
        if self.options.workspace is not None:
            low, high = (torch.tensor(corner, device=self._device) for corner in self.options.workspace)
            parts.append(terms.workspace(scene.state[0, :3], low, high))
        hold = torch.cat((scene.state.new_zeros(3), scene.closedness.clamp(0.0, 1.0)))
        return Problem(known, Energy(tuple(parts), terms.final(self.options.horizon)), hold)

    def _propose(self, scene: Scene, count: int, temperature: float | Tensor) -> Tensor:
        """Chunks [N, H, 4] of the policy in the base frame, within the bounds."""
        policy = self._policy
        assert policy is not None
        frames = self._sight.pictures(scene.stamps[-policy.config.frames :])
        state = space.state_to_camera(scene.state, scene.pose)
        words = torch.tensor([self._words(not policy.config.guide_layers)], device=self._device)
        payload = self._payload(scene, bool(policy.config.guide_layers))
        present = policy.remember(policy.see(frames), state, words, payload)
        # other noise for every moment: what is offered once and thrown away need not be offered again
        seed = self.options.seed + scene.stamps[-1] // self.step_ns
        chunks = policy.propose(present, count, seed, temperature=temperature)
        base = space.action_to_base(chunks, scene.pose)
        return torch.cat((base[..., :3].clamp(-MAX_STEP_M, MAX_STEP_M), base[..., 3:].clamp(0.0, 1.0)), -1)

    def _payload(self, scene: Scene, taken: bool) -> Payload | None:
        if self._guidance is None or not taken or not scene.weight:
            return None
        pyramid = torch.from_numpy(np.asarray(self._guidance.pyramid, np.float32)[None])
        present, weight = torch.tensor([self._guidance.present]), torch.tensor([scene.weight])
        return Payload.pooled(pyramid, present, weight).to(self._device, torch.float32)

    def warm_up(self) -> None:
        """Plan once for nothing, so that the first plan does not pay for what is made once. To be called before
        there is a goal; leaves nothing behind."""
        size = self._net.config.camera.width
        blank = np.zeros((size, size, 3), np.uint8)
        stamps = [(1 + k) * self.step_ns for k in range(self.window)]
        for stamp in stamps:
            self.observe(Frame(blank, stamp))
        pose = np.eye(4)
        pose[2, 3] = -1.0  # the robot is in front of the camera
        self.show_goal(blank)
        self.plan(stamps, np.zeros(space.DIM, np.float32), pose)
        self.show_goal(None)
        self.reset()
