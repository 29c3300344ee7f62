"""The controller without ROS: what it plans from, what it says when something is missing, and that plans repeat."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import world_kit
from control_kit import CUBE, START, build_imagination, small_net

from thinkjepa_ros.bridge import control_parameters, parameters
from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control import options as option_module
from thinkjepa_ros.control import search
from thinkjepa_ros.control.controller import Controller
from thinkjepa_ros.control.imagination import ENERGIES
from thinkjepa_ros.control.options import MAX_STEP_M, Options
from thinkjepa_ros.control.outcome import Outcome
from thinkjepa_ros.control.policy import Policy, PolicyConfig
from thinkjepa_ros.control.score import LanguageScore, ScoreConfig
from thinkjepa_ros.values import Frame, Guidance, Subgoal

STEP = 200_000_000
POSE = world_kit.camera_pose()
STATE = np.array([*START, 0.3], np.float32)
QUICK = Options(samples=16, iterations=2, horizon=3)
GOAL = world_kit.picture(np.array([0.2, 0.5, 0.1]), 0.0, CUBE, POSE)


def small_policy(horizon: int = 4, seed: int = 5, std: float = 0.2, **changes: Any) -> Policy:
    net = small_net()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = PolicyConfig(
            net.config.encoder, net.config.camera, horizon=horizon, width=32, heads=2, reader_depth=1, depth=1,
            action_std=(std, std, std, 1.0), **changes,
        )  # fmt: skip
        policy = Policy(config)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
    return policy.eval()


def make(options: Options = QUICK, policy: Policy | None = None, **net: Any) -> Controller:
    return Controller(small_net(**net), options, policy, model_id="small")


def look(controller: Controller, count: int = 3, first: int = 0) -> list[int]:
    """Frames of a gripper that moves; the stamps of the last window."""
    stamps = [STEP * (k + 1) for k in range(first, first + count)]
    for k, stamp in enumerate(stamps):
        point = np.array(START) + (first + k) * np.array([0.01, 0.0, 0.0])
        controller.observe(Frame(world_kit.picture(point, 0.0, CUBE, POSE), stamp), world_kit.CAMERA)
    return stamps[-controller.window :]


def ready(controller: Controller) -> list[int]:
    controller.show_goal(GOAL, world_kit.CAMERA)
    return look(controller)


def planned(outcome: Outcome) -> np.ndarray:
    assert outcome.plan is not None, outcome.reason
    return outcome.plan.actions


def test_a_plan_beats_holding_and_is_within_the_bounds() -> None:
    controller = make()
    stamps = ready(controller)
    outcome = controller.plan(stamps, STATE, POSE)
    plan = outcome.plan
    assert plan is not None and plan.actions.shape == (3, 4) and plan.actions.dtype == np.float32
    assert plan.energy < plan.hold_energy and plan.source == "planner" and plan.stamp_ns == stamps[-1]
    assert np.abs(plan.actions[:, :3]).max() <= MAX_STEP_M and 0 <= plan.actions[:, 3].min() <= 1
    assert np.isnan(plan.guidance_age_s) and plan.step_s == pytest.approx(0.2)
    assert outcome.imagined == 2 * 17 and outcome.planning_s > 0 and "goal" in (outcome.parts or {})
    assert not outcome.asks(0.0) and outcome.asks(1e3)


def test_the_same_frames_give_the_same_plans_also_after_a_reset() -> None:
    one, two = make(), make()
    first = [planned(c.plan(ready(c), STATE, POSE)) for c in (one, two)]
    assert first[0].tobytes() == first[1].tobytes()
    again = planned(one.plan(look(one, 1, 3) and [3 * STEP, 4 * STEP], STATE, POSE))
    one.reset()
    assert planned(one.plan(look(one), STATE, POSE)).tobytes() == first[0].tobytes() != again.tobytes()


@pytest.mark.parametrize(
    ("state", "pose", "words"),
    [
        (None, POSE, "no state"),
        (STATE, None, "no camera pose"),
        (np.full(4, np.nan), POSE, "finite"),
        (np.zeros(3), POSE, "finite"),
        (STATE, np.full((4, 4), np.inf), "finite"),
    ],
)
def test_what_is_missing_is_a_reason(state: Any, pose: Any, words: str) -> None:
    controller = make()
    outcome = controller.plan(ready(controller), state, pose)
    assert outcome.plan is None and words in outcome.reason and not outcome.asks(1e9)


def test_frames_and_goals_that_are_missing_are_reasons() -> None:
    controller = make()
    stamps = look(controller)
    assert "no goal image, no sub-goal" in controller.plan(stamps, STATE, POSE).reason
    assert "1 of the 2 frames" in controller.plan([stamps[-1], 99], STATE, POSE).reason
    assert "frames" in controller.plan([], STATE, POSE).reason
    controller.show_goal(np.zeros((9, 9, 3), np.uint8), world_kit.CAMERA)
    assert "9x9" in controller.plan(stamps, STATE, POSE).reason
    controller.show_goal(GOAL, world_kit.CAMERA)
    assert controller.plan(stamps, STATE, POSE).plan is not None
    controller.show_goal(None)
    assert controller.plan(stamps, STATE, POSE).plan is None


def test_a_goal_image_is_encoded_once() -> None:
    controller = make()
    stamps = ready(controller)
    seen: list[int] = []
    controller._net.encoder.register_forward_hook(lambda *_: seen.append(1))
    frames = controller._net.encoder.frames
    controller._net.encoder.frames = lambda images: seen.append(1) or frames(images)  # type: ignore[method-assign]
    for _ in range(3):
        controller.plan(stamps, STATE, POSE)
    assert 1 <= len(seen) <= 2  # one image, whichever of the two ways was taken


def subgoal(controller: Controller, **changes: Any) -> Guidance:
    with torch.inference_mode():
        latent = controller._net.pool(controller._sight.see(GOAL, world_kit.CAMERA))[0].numpy()
    wanted = {"latent": latent, "horizon_s": 2.0, "space": "small", "trained": True, **changes}
    pyramid = np.zeros((2, 2, 8), np.float32)
    return Guidance(pyramid, (0, 1), 2 * STEP, 4.0, instruction="put it there", subgoal=Subgoal(**wanted))


def test_the_thinkers_subgoal_is_planned_for_as_a_goal_image_would_be() -> None:
    by_image, by_thought = make(), make()
    by_thought.guide(subgoal(by_thought))
    one = by_image.plan(ready(by_image), STATE, POSE).plan
    two = by_thought.plan(look(by_thought), STATE, POSE).plan
    assert one is not None and two is not None and one.actions.tobytes() == two.actions.tobytes()
    assert two.guidance_age_s == pytest.approx(0.2) and np.isnan(one.guidance_age_s)


@pytest.mark.parametrize("changes", [{"space": "another"}, {"trained": False}, {"latent": np.zeros((3, 16))}])
def test_a_subgoal_of_another_space_is_a_reason(changes: dict[str, Any]) -> None:
    controller = make()
    controller.guide(subgoal(controller, **changes))
    outcome = controller.plan(look(controller), STATE, POSE)
    assert outcome.plan is None and "sub-goal is" in outcome.reason


def test_guidance_for_other_words_does_not_count_and_neither_does_an_old_one() -> None:
    controller = make()
    guidance = subgoal(controller)
    controller.guide(guidance)
    stamps = look(controller)
    controller.instruct("  put it   there ")
    assert controller.plan(stamps, STATE, POSE).plan is not None
    controller.instruct("put it elsewhere")
    assert controller.plan(stamps, STATE, POSE).plan is None
    controller.instruct("")
    controller.guide(dataclasses.replace(guidance, stamp_ns=-10 * 1_000_000_000))
    assert controller.plan(stamps, STATE, POSE).plan is None


def test_guidance_of_another_thinker_is_refused() -> None:
    controller = make(guide=(3, 8))
    with pytest.raises(ValueError, match="pyramid is"):
        controller.guide(subgoal(controller))
    fits = Guidance(np.ones((3, 2, 8), np.float32), (0, 1, 2), 2 * STEP, 4.0)
    stamps = ready(controller)
    unguided = planned(controller.plan(stamps, STATE, POSE))
    controller.reset()
    controller.guide(fits)
    guided = controller.plan(look(controller), STATE, POSE).plan
    assert guided is not None and guided.guidance_age_s == pytest.approx(0.2) and len(unguided) == len(guided.actions)


def test_a_search_that_is_cancelled_or_out_of_time_takes_the_best_so_far() -> None:
    many = dataclasses.replace(QUICK, iterations=500)
    controller = make(many)
    stamps = ready(controller)
    assert controller.plan(stamps, STATE, POSE, cancelled=lambda: True).imagined == 17
    controller.set_options(dataclasses.replace(many, budget_s=0.05))
    outcome = controller.plan(stamps, STATE, POSE)
    assert outcome.plan is not None and 17 < outcome.imagined < 500 * 17


def test_a_policy_acts_alone_or_proposes() -> None:
    patient = make(dataclasses.replace(QUICK, mode="policy"), small_policy())
    assert "nothing is asked for" in patient.plan(look(patient), STATE, POSE).reason
    alone = make(dataclasses.replace(patient.options, act_untold=True), small_policy(std=0.005))
    plan = alone.plan(look(alone), STATE, POSE).plan
    assert plan is not None and plan.source == "policy" and plan.actions.shape == (4, 4)
    assert np.isnan(plan.energy) and np.abs(plan.actions[:, :3]).max() <= MAX_STEP_M + 1e-7
    assert len(np.unique(plan.actions)) > 4 and 0 <= plan.actions[:, 3].min() <= plan.actions[:, 3].max() <= 1


def test_proposals_enter_the_search_and_can_win() -> None:
    options = dataclasses.replace(QUICK, mode="both", proposals=8, iterations=1, trust=0.0, spread=1.0)
    sources, kept = set(), set()
    for seed in range(40):  # proposals of random weights are now and then better than random actions
        both = make(options, small_policy(seed=seed))
        both.instruct("put the red cube in the left tray")
        plan = both.plan(ready(both), STATE, POSE).plan
        assert plan is not None and plan.actions.shape == (3, 4) and plan.energy == plan.energies.min()
        assert np.abs(plan.actions[:, :3]).max() <= MAX_STEP_M + 1e-7
        sources.add(plan.source)
        kept.add(plan.energies.tobytes())
        if len(sources) == 2:
            break
    assert sources == {"policy", "planner"} and len(kept) > 1


def test_a_policy_that_is_trusted_is_departed_from_for_much_only() -> None:
    plans, costs = {}, {}
    for mode, trust in (("policy", 1.0), ("both", 0.0), ("both", 1e-3), ("both", 1e5)):
        options = dataclasses.replace(QUICK, mode=mode, proposals=8, spread=1.0, trust=trust)
        both = make(options, small_policy())
        both.instruct("put the red cube in the left tray")
        outcome = both.plan(ready(both), STATE, POSE)
        plans[trust], costs[trust] = planned(outcome), (outcome.parts or {}).get("goal")
    own = plans[1.0]
    assert np.array_equal(plans[1e5], own[:3]) and not np.array_equal(plans[0.0], own[:3])
    assert costs[0.0] <= costs[1e-3] + 1e-6 <= costs[1e5] + 2e-6  # what trust costs


def test_both_leaves_to_the_policy_what_nothing_scores() -> None:
    both = make(dataclasses.replace(QUICK, mode="both", proposals=4), small_policy())
    stamps = look(both)
    assert both.plan(stamps, STATE, POSE).plan is None
    both.instruct("do what the lamp says")
    assert both.plan(stamps, STATE, POSE).plan is None
    both.instruct("put the red cube in the left tray")
    plan = both.plan(stamps, STATE, POSE).plan
    assert plan is not None and plan.source == "policy"
    alone = make(dataclasses.replace(QUICK, mode="policy"), small_policy())
    alone.instruct("put the red cube in the left tray")
    own = alone.plan(look(alone), STATE, POSE).plan
    assert own is not None and np.array_equal(plan.actions, own.actions)
    both.show_goal(GOAL, world_kit.CAMERA)
    searched = both.plan(stamps, STATE, POSE).plan
    assert searched is not None and np.isfinite(searched.energy)
    both.show_goal(None)
    both.set_options(dataclasses.replace(QUICK, mode="both", proposals=4, aim="subgoal"))
    assert "no sub-goal" in both.plan(stamps, STATE, POSE).reason


def test_a_policy_finishes_what_it_began_before_it_looks_again() -> None:
    options = dataclasses.replace(QUICK, mode="policy", commit=2)
    controller = make(options, small_policy())
    controller.instruct("put the red cube in the left tray")
    stamps = look(controller)

    def at(step: float, words: str = "") -> np.ndarray:
        """The plan `step` actions later."""
        moved = [stamp + round(step * controller.step_ns) for stamp in stamps]
        for stamp in moved:
            controller.observe(Frame(world_kit.episode(0, 2).frames[int(step) % 2], stamp), world_kit.CAMERA)
        if words:
            controller.instruct(words)
        plan = controller.plan(moved, STATE + 0.01 * step, POSE).plan
        assert plan is not None and 0 <= moved[-1] - plan.stamp_ns < controller.step_ns  # its actions keep their times
        return plan.actions

    first, rest, third = at(0), at(1), at(2)
    np.testing.assert_array_equal(rest, first[1:])
    assert len(third) == len(first)
    for step in (3, 3.7):  # a picture that comes early ends no action
        np.testing.assert_array_equal(at(step), third[1:])
    assert len(at(4)) == len(first)
    assert len(at(5, "put the blue cube in the left tray")) == len(first), "asked for something else: at once"
    controller.reset()
    assert len(at(6)) == len(first)
    controller.set_options(dataclasses.replace(options, commit=1))
    assert len(at(7)) == len(at(8)) == len(first)
    with pytest.raises(ValueError, match="commit is 0"):
        controller.set_options(dataclasses.replace(options, commit=0))


def test_words_are_planned_for_where_a_score_knows_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, other = LanguageScore(ScoreConfig(4, 16, width=16, told_width=8)), LanguageScore(ScoreConfig(9, 16))
    controller = Controller(small_net(), QUICK, score=net, model_id="small")
    stamps = look(controller)
    assert "no words that a score knows" in controller.plan(stamps, STATE, POSE).reason
    controller.instruct("put the red cube in the left tray")
    first = controller.plan(stamps, STATE, POSE)
    assert "language" in (first.parts or {}) and first.plan is not None and first.plan.energy < first.plan.hold_energy
    # what the instruction leaves open, the thinker's answer tells
    controller.instruct("do what the lamp says")
    assert controller.plan(stamps, STATE, POSE).plan is None
    controller.guide(Guidance(np.zeros((1, 2, 8), np.float32), (0,), 2 * STEP, 4.0, text="blue cube, right tray"))
    assert controller.plan(stamps, STATE, POSE).plan is not None
    controller.show_goal(GOAL, world_kit.CAMERA)
    assert "goal" in (controller.plan(stamps, STATE, POSE).parts or {})
    controller.set_options(dataclasses.replace(QUICK, aim="words"))
    assert "language" in (controller.plan(stamps, STATE, POSE).parts or {})
    with pytest.raises(ValueError, match="the score takes latents"):
        Controller(small_net(), QUICK, score=other)


def test_what_the_thinker_said_is_kept_until_it_says_otherwise_or_something_else_is_asked_for() -> None:
    """A lamp leaves the thinker's window long before a task is done."""
    net = LanguageScore(ScoreConfig(4, 16, width=16, told_width=8))
    controller = Controller(small_net(), QUICK, score=net, model_id="small")
    stamps = look(controller)
    controller.instruct("do what the lamp says")

    def hear(text: str, instruction: str = "") -> np.ndarray | None:
        """The language term's plan after this thought, from the same beginning."""
        blank = np.zeros((1, 2, 8), np.float32)
        controller.guide(Guidance(blank, (0,), 2 * STEP, 4.0, text=text, instruction=instruction))
        controller.set_options(QUICK)
        plan = controller.plan(stamps, STATE, POSE).plan
        return None if plan is None else plan.actions

    assert hear("") is None and hear("a cube, left tray") is None
    blue = hear("blue cube, right tray")
    assert blue is not None and np.array_equal(hear(""), blue) and np.array_equal(hear("a red cube"), blue)
    assert np.array_equal(hear("green cube, left tray", instruction="something else"), blue)
    controller.guide(None)
    assert controller.plan(stamps, STATE, POSE).plan is not None
    red = hear("red cube, left tray")
    assert red is not None and not np.array_equal(red, blue)
    controller.instruct("do  what the lamp says")  # the same words
    assert controller.plan(stamps, STATE, POSE).plan is not None
    controller.instruct("do what the other lamp says")
    assert controller.plan(stamps, STATE, POSE).plan is None


def test_holding_keeps_the_grip_that_was_commanded() -> None:
    measured, commanded = make(), make()
    one = measured.plan(ready(measured), STATE, POSE).plan
    two = commanded.plan(ready(commanded), STATE, POSE, commanded=1.0).plan
    assert one is not None and two is not None and one.hold_energy != two.hold_energy


def test_what_does_not_fit_together_is_said() -> None:
    with pytest.raises(ValueError, match="mode policy needs a policy"):
        make(dataclasses.replace(QUICK, mode="policy"))
    with pytest.raises(ValueError, match=r"imagination knows 4"):
        make(dataclasses.replace(QUICK, horizon=9))
    with pytest.raises(ValueError, match=r"policy knows 2"):
        make(dataclasses.replace(QUICK, mode="both", proposals=4), small_policy(horizon=2))
    with pytest.raises(ValueError, match="lasts"):
        make(dataclasses.replace(QUICK, mode="policy"), small_policy(action_s=0.1))
    controller = make()
    for changes in ({"horizon": 9}, {"distance": "miles"}, {"mode": "policy"}, {"samples": 1}, {"method": "luck"}):
        with pytest.raises(ValueError):
            controller.set_options(dataclasses.replace(QUICK, **changes))
        assert controller.options == QUICK


def test_it_is_loaded_from_a_checkpoint_and_warm(tmp_path: Path) -> None:
    folder = build_imagination(tmp_path / "small")
    controller = Controller.load(folder, QUICK)
    controller.warm_up()
    controller.show_goal(GOAL, world_kit.CAMERA)
    assert controller.model_id == "small (untrained)" and not controller.trained and controller.domain == "test"
    fresh = Controller.load(folder, QUICK)
    assert (
        planned(controller.plan(look(controller), STATE, POSE)).tobytes()
        == planned(fresh.plan(ready(fresh), STATE, POSE)).tobytes()
    )
    with pytest.raises(CheckpointError):
        Controller.load(tmp_path, QUICK)


def test_the_table_of_parameters_offers_what_there_is() -> None:
    rows = {row.name: row for row in parameters.CONTROLLER}
    known = {"mode": option_module.MODES, "aim": option_module.AIMS, "method": search.METHODS, "distance": ENERGIES}
    for name, choices in known.items():
        assert set(rows[name].choices) == set(choices)
    defaults = {name: row.default for name, row in rows.items()}
    options, limits = control_parameters.options_of(defaults), control_parameters.limits_of(defaults)
    assert options.search(False).samples == 64 and limits.period_s == pytest.approx(0.05)
    assert control_parameters.timeouts_of(defaults).guidance_s is None
    assert control_parameters.timeouts_of({**defaults, "mode": "policy"}).margin is None
    # a plan at full stretch is one that the guard lets pass
    assert limits.max_axis_velocity_mps >= MAX_STEP_M / 0.2 - 1e-9
    most = {**defaults, "mode": "both"}
    for samples, iterations in ((16, 1), (32, 3), (64, 9), (2048, 2)):
        assert control_parameters.options_of({**most, "samples": samples, "iterations": iterations}).search(True)


@pytest.mark.parametrize("samples", [16, 24, 48, 100])
def test_every_number_of_samples_that_the_table_allows_gives_a_search(samples: int) -> None:
    for mode in ("planner", "both"):
        assert dataclasses.replace(Options(), samples=samples, proposals=8).search(mode == "both").samples == samples
