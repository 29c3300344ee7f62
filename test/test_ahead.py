"""Sub-goals from words and what is seen now: learned from experts, and headed for by a planner."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import policy_kit
import pytest
import torch
import world_kit
from control_kit import small_net
from training_kit import save_every_step, saved_step

from thinkjepa_ros.checkpoints import CheckpointError, read_manifest
from thinkjepa_ros.control import imagination
from thinkjepa_ros.control.ahead import Ahead, AheadConfig, load_ahead
from thinkjepa_ros.control.controller import Controller
from thinkjepa_ros.control.options import Options
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.train import ahead as stage
from thinkjepa_ros.train.run import Run, Stopped
from thinkjepa_ros.values import Frame, Guidance

QUICK = Options(samples=16, iterations=2, horizon=3, aim="subgoal")
STATE, POSE = np.array([0.3, 0.0, 0.2, 0.3], np.float32), world_kit.episode(0, 2).camera_pose[0]


def net_for(seer: imagination.Imagination, seed: int = 0, **changes: int) -> Ahead:
    w = seer.config.world
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Ahead(AheadConfig(w.tokens, w.latent_width, width=16, told_width=4, **changes)).eval()
        torch.nn.init.normal_(net.last.weight, std=0.3)
    return net


def lessons(count: int = 40) -> stage.Lessons:
    """Made up: what comes is told by the words."""
    rng = torch.Generator().manual_seed(0)
    latents, words = torch.randn(2 * count, 4, 16, generator=rng), torch.randint(0, 2, (count, 2), generator=rng)
    latents[count:] = latents[:count] + words.sum(1)[:, None, None]
    frames = torch.arange(count)
    return stage.Lessons(latents, frames, frames + count, torch.zeros(count, 4), words)


def small() -> Ahead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Ahead(AheadConfig(4, 16, width=32, told_width=8))


def run(folder: Path, steps: int = 200) -> tuple[Ahead, Run]:
    net = small()
    return net, stage.train(
        lessons(), net, folder, steps=steps, batch_size=16, lr=3e-3, seed=0, describe={}, quiet=True
    )


def test_it_begins_with_as_now_and_learns_what_the_words_change(tmp_path: Path) -> None:
    made = lessons()
    fresh = small()
    now = made.latents[made.now]
    assert torch.equal(fresh(now, made.states, made.words), now)
    net, _ = run(tmp_path)
    with torch.no_grad():
        off = (net(now, made.states, made.words) - made.latents[made.later]).abs().mean()
        swapped = (net(now, made.states, 1 - made.words) - made.latents[made.later]).abs().mean()
        copied = (now - made.latents[made.later]).abs().mean()
    assert off < 0.3 * copied and swapped > 2 * off


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "whole", 6)
    save_every_step(monkeypatch)
    real, done = Run.update, 0

    def update(self: Run, loss: torch.Tensor) -> float:
        nonlocal done
        done += 1
        if done == 4:
            raise Stopped("cut off")
        return real(self, loss)

    monkeypatch.setattr(Run, "update", update)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", 6)
    assert saved_step(tmp_path / "cut") == 3
    monkeypatch.setattr(Run, "update", real)
    again, _ = run(tmp_path / "cut", 6)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_stage_learns_from_experts_alone_and_names_whose_latents_they_are(tmp_path: Path) -> None:
    data = policy_kit.write(tmp_path / "data" / "train", 3).parent
    seer = small_net()
    imagination.save(tmp_path / "world", seer, "w", trained=True, domain="none")
    options: dict = {"world": tmp_path / "world", "run": tmp_path / "run", "steps": 2, "batch_size": 4, "threads": 1}
    stage.train_ahead(data, tmp_path / "out", **options)
    net, manifest = load_ahead(tmp_path / "out")
    assert net.config.imagination == read_manifest(tmp_path / "world", imagination.KIND).name
    assert manifest.training["command"] == "thinkjepa train ahead" and manifest.training["moments"] > 0
    with pytest.raises(EpisodeError, match="expert who picks and places"):
        stage.train_ahead(world_kit.write(tmp_path / "none", 2), tmp_path / "x", **options)
    # for another imagination they mean nothing
    other = tmp_path / "other"
    imagination.save(other, seer, "other", trained=True, domain="none")
    with pytest.raises(ValueError, match=r"--ahead: it was trained with the latents of w .*train ahead"):
        Controller.load(other, dataclasses.replace(QUICK, horizon=2), ahead=tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_ahead(tmp_path / "out")


def test_a_planner_heads_for_what_the_words_or_the_thinker_want() -> None:
    seer = small_net()
    controller = Controller(seer, QUICK, ahead=net_for(seer), model_id="small")
    step = controller.step_ns
    stamps = [(1 + k) * step for k in range(controller.window)]
    for stamp in stamps:
        controller.observe(Frame(world_kit.episode(0, 2).frames[0], stamp), world_kit.CAMERA)
    assert "no sub-goal" in controller.plan(stamps, STATE, POSE).reason
    controller.instruct("put the red cube in the left tray")
    red = controller.plan(stamps, STATE, POSE)
    assert red.plan is not None and red.plan.source == "planner" and "goal" in (red.parts or {})
    controller.instruct("put the blue cube in the right tray")
    blue = controller.plan(stamps, STATE, POSE).plan
    assert blue is not None and blue.energy != red.plan.energy
    controller.instruct("do what the lamp says")
    assert controller.plan(stamps, STATE, POSE).plan is None
    blank = np.zeros((1, 2, 8), np.float32)
    controller.guide(Guidance(blank, (0,), stamps[-1], 4.0, text="blue cube, right tray"))
    told = controller.plan(stamps, STATE, POSE).plan
    assert told is not None and told.hold_energy == blue.hold_energy


def test_sub_goals_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="sub-goal model takes latents"):
        Controller(small_net(), QUICK, ahead=Ahead(AheadConfig(9, 16)))
    with pytest.raises(ValueError, match="steps is 0"):
        AheadConfig(4, 16, steps=0)
