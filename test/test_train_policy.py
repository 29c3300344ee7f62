"""Training of the policy: right labels, no look into the future, resumable to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import policy_kit
import pytest
import torch
import world_kit
from policy_kit import CONFIG, demonstration, demonstrations
from training_kit import save_every_step, saved_step

from thinkjepa_ros.control import imagination, space
from thinkjepa_ros.control.policy import Policy, load_policy
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.train import policy, world
from thinkjepa_ros.train.policy_data import DISTURBED, Demonstration, Mixture, sample
from thinkjepa_ros.train.policy_objective import PolicyLearner, Recipe, times
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.world_data import Origin
from thinkjepa_ros.train.world_guidance import Thoughts

PLAIN = Recipe(world=0.0)


def imagine() -> imagination.Imagination:
    torch.manual_seed(4)
    config, _ = world.configuration(
        [demonstration(0)], policy_kit.ENCODER, latent=12, pooled=2, horizon=4, width=24, depth=1
    )
    return imagination.Imagination(config)


def learner(recipe: Recipe = PLAIN, **changes: object) -> PolicyLearner:
    torch.manual_seed(3)
    net = Policy(dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]
    return PolicyLearner(net, recipe, imagine() if recipe.world else None)


def run(folder: Path, recipe: Recipe = PLAIN, steps: int = 6, **options: object) -> PolicyLearner:
    made = learner(recipe)
    settings: dict = {"batch_size": 6, "lr": 1e-3, "seed": 5, "describe": {"a": 1}, "quiet": True, **options}
    policy.train(Mixture(demonstrations()), made, folder, steps=steps, **settings)
    return made


# --- samples ---


def test_a_sample_is_what_the_demonstration_says() -> None:
    one = demonstrations(2)[1]
    found = sample(one, 5, one.intent, 2, 4, np.array([1, 3]))
    np.testing.assert_array_equal(found.frames, one.track.images([4, 5]))
    np.testing.assert_array_equal(found.future, one.track.images([7, 9]))
    np.testing.assert_array_equal(found.state, one.track.states[5])
    np.testing.assert_allclose(found.actions, one.track.actions(5, np.arange(5, 9)), atol=1e-6)
    assert found.words.tolist() == [2, 0] and found.weight.tolist() == [1.0] * 4 and found.placed.tolist() == [1, 1]
    episode = one.track.episode
    there = found.places @ episode.camera_pose[5][:3, :3].T + episode.states[5][:3]
    np.testing.assert_allclose(there, [episode.objects["cube_blue"][5], episode.objects["tray_left"][5]], atol=1e-5)


def test_beyond_the_end_there_is_nothing_to_learn() -> None:
    one = demonstrations(1)[0]
    found = sample(one, 9, (0, 1), 1, 4, np.array([0, 2]))
    assert found.weight.tolist() == [1, 1, 0, 0] and found.known.tolist() == [True, False]
    assert sample(one, 9, (0, 1), 1, 4, np.array([0]), act=False).weight.tolist() == [0] * 4


def test_what_is_not_in_the_scene_or_not_named_has_no_place() -> None:
    one = demonstrations(1)[0]
    assert sample(one, 3, (1, 2), 1, 4, np.array([], int)).placed.tolist() == [0, 0]


def test_a_turned_camera_sees_states_actions_and_places_turned() -> None:
    """Lengths and angles stay; a point of the scene is seen where the turned picture shows it."""
    one = demonstrations(1)[0]
    plain = sample(one, 4, (0, 0), 1, 4, np.array([1]))
    turned = sample(one, 4, (0, 0), 1, 4, np.array([1]), np.random.default_rng(2))
    assert not np.allclose(plain.state, turned.state)
    for a, b in ((plain.actions[:, :3], turned.actions[:, :3]), (plain.places, turned.places)):
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(a @ plain.state[:3], b @ turned.state[:3], atol=1e-6)
    camera = policy_kit.CAMERA
    for found in (plain, turned):  # the cube is the only blue thing
        u, v = camera.project((found.places[0] + found.state[:3]).astype(np.float64))
        blue = found.frames[0].astype(int)
        where = np.argwhere(blue[..., 2] - blue[..., 0] > 60)
        np.testing.assert_allclose(where.mean(0), [v, u], atol=2.0)


def test_the_experts_labels_stand_for_disturbed_actions() -> None:
    labels = np.full((11, 4), 0.01).tolist()
    kinds = {
        "expert": ({}, 1.0),
        "perturbed": ({"behaviour": "perturbed"}, DISTURBED),
        "failed": ({"success": False}, 0.0),
        "random": ({"behaviour": "random"}, 0.0),
        "labelled": ({"behaviour": "perturbed", "success": False, "expert_actions": labels}, 1.0),
    }
    for name, (details, weight) in kinds.items():
        one = demonstrations(1, **details)[0]
        assert one.weight == weight, name
        if name == "labelled":
            pose = one.track.episode.camera_pose[2]
            wanted = space.action_to_camera(np.full((4, 4), 0.01, np.float32), pose)
            np.testing.assert_allclose(sample(one, 2, one.intent, 1, 4, np.array([], int)).actions, wanted, atol=1e-7)
    with pytest.raises(EpisodeError, match="must be one per action"):
        demonstrations(1, expert_actions=labels[:-1])
    with pytest.raises(EpisodeError, match="no demonstration among the episodes"):
        Mixture(demonstrations(2, success=False))


def test_some_samples_are_told_nothing_and_some_only_show_where_things_are() -> None:
    mixture = Mixture([*demonstrations(2), *demonstrations(1, behaviour="random")], shown=0.5, untold=0.5)
    batch = mixture.draw(200, 1, 4, 0, np.random.default_rng(0))
    shown, silent = batch.weight.sum(1) == 0, (batch.words == torch.tensor([3, 2])).all(1)
    assert 70 < int(shown.sum()) < 130 and 30 < int(silent.sum()) < 75 and not bool((shown & silent).any())
    assert bool((batch.placed[silent] == 0).all()) and len(batch.words[shown].unique(dim=0)) == 6
    assert batch.future.shape[1] == 0


def test_a_sample_with_a_thought_may_be_told_by_it_alone() -> None:
    thoughts = Thoughts("noise", (np.array([0]), np.array([], np.int64)), (torch.ones(1, 2, 2, 6), torch.ones(0)))
    mixture = Mixture(demonstrations(2), shown=0.0, untold=0.0, thoughts=thoughts)
    batch = mixture.draw(200, 1, 4, 0, np.random.default_rng(0))
    assert batch.payload is not None and batch.payload.weight is not None
    guided, silent = batch.payload.weight > 0, (batch.words == torch.tensor([3, 2])).all(1)
    assert torch.equal(guided, silent) and 20 < int(guided.sum()) < 80
    assert Origin(0, 5).episode == 0


# --- what is learned ---


def test_later_frames_do_not_change_what_the_policy_sees_or_proposes() -> None:
    """They are targets of the world model's loss and of nothing else."""
    made = learner(Recipe(world=1.0, place=0.3))
    batch = Mixture(demonstrations()).draw(4, 1, 4, 2, np.random.default_rng(0))
    changed = dataclasses.replace(batch, future=255 - batch.future)
    noise, when = torch.randn(4, 4, 4, 4), times(torch.rand(4, 4))
    (one, a), (other, b) = (made(x, noise, when) for x in (batch, changed))
    assert a["action"] == b["action"] and a["place_m"] == b["place_m"] and a["world"] != b["world"]
    assert not torch.equal(one, other)


def test_the_worlds_loss_reaches_the_policy_through_its_latent_actions() -> None:
    made = learner(Recipe(world=1.0, place=0.0))
    assert made.target is not None and made.ahead is not None
    batch = Mixture(demonstrations(), shown=1.0).draw(4, 1, 4, 2, np.random.default_rng(0))  # no action is learned
    torch.nn.init.normal_(made.ahead.out.weight)
    loss, _ = made(batch, torch.randn(4, 4, 4, 4), times(torch.rand(4, 4)))
    loss.backward()
    assert made.policy.query.grad is not None and made.policy.query.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.target.parameters())
    with pytest.raises(ValueError, match="needs an imagination"):
        PolicyLearner(made.policy, Recipe())


def test_a_query_should_look_at_the_cell_where_the_thing_is() -> None:
    made = learner()
    batch = Mixture(demonstrations(), shown=1.0, augment=False).draw(6, 1, 4, 0, np.random.default_rng(1))
    with torch.no_grad():
        now = made.policy.remember(made.policy.see(batch.frames), batch.state, batch.words)
        there = (batch.places + batch.state[:, None, :3]).double().numpy()
        right = torch.zeros(6, 2, 16 + 64)
        for row in range(6):
            for thing in range(2):
                u, v = policy_kit.CAMERA.project(there[row, thing])
                if 0 <= u < 32 and 0 <= v < 32:
                    right[row, thing, 16 + int((v + 0.5) // 4) * 8 + int((u + 0.5) // 4)] = 2.5
        wrong = torch.cat((right[..., :16], right[..., 16:].flip(-1)), -1)
        losses = [float(made._look(batch, now._replace(looks=(x,)))) for x in (right, torch.zeros_like(right), wrong)]
    assert losses[0] < losses[1] - 0.2 and losses[2] > losses[1]


def test_it_learns_what_is_shown(tmp_path: Path) -> None:
    run(tmp_path, steps=150, lr=3e-3, batch_size=24)
    log = (tmp_path / "log.csv").read_text().splitlines()
    for name, share in (("action", 0.8), ("place_m", 0.85)):
        column = log[0].split(",").index(name)
        first, last = (float(line.split(",")[column]) for line in (log[1], log[-1]))
        assert last < share * first, name


@pytest.mark.parametrize("recipe", [PLAIN, Recipe()])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", recipe)
    save_every_step(monkeypatch)
    real, done = Run.update, 0

    class Killed(Exception):
        pass

    def update(self: Run, loss: torch.Tensor) -> float:
        nonlocal done
        done += 1
        if done == 4:
            raise Killed
        return real(self, loss)

    monkeypatch.setattr(Run, "update", update)
    with pytest.raises(Killed):
        run(tmp_path / "cut", recipe)
    assert saved_step(tmp_path / "cut") == 3
    monkeypatch.setattr(Run, "update", real)
    again = run(tmp_path / "cut", recipe)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(("rate", "moves"), [(0.0, False), (0.5, True)])
def test_the_encoder_stays_unless_it_is_asked_to_move(rate: float, moves: bool, tmp_path: Path) -> None:
    before = learner().policy.encoder.state_dict()
    after = run(tmp_path, steps=2, encoder_rate=rate).policy.encoder.state_dict()
    assert any(not torch.equal(after[name], x) for name, x in before.items()) == moves


# --- the stage ---


def test_the_stage_writes_a_policy_that_loads(tmp_path: Path) -> None:
    data = policy_kit.write(tmp_path / "data" / "train", 3).parent
    imagination.save(tmp_path / "world", imagine(), "w", trained=True, domain="none")
    options: dict = {"steps": 3, "batch_size": 4, "threads": 1, "dtype": "float32", "width": 24, "detail": 6}
    out = tmp_path / "policy"
    policy.train_policy(data, out, run=tmp_path / "run", world=tmp_path / "world", horizon=4, **options)
    net, manifest = load_policy(out)
    assert manifest.training["command"] == "thinkjepa train policy" and manifest.training["demonstrations"] == 3
    assert net.config.action_std != () and torch.equal(
        net.encoder.patch_embed.weight, imagine().encoder.patch_embed.weight
    )
    policy.train_policy(data, tmp_path / "further", run=tmp_path / "run2", start=out, **options)
    assert load_policy(tmp_path / "further")[1].training["init"].startswith(manifest.model_id)
    with pytest.raises(EpisodeError, match="no demonstration"):
        policy.train_policy(
            world_kit.write(tmp_path / "none", 2), tmp_path / "x", run=tmp_path / "run3", image_size=64, **options
        )


def test_a_policy_can_learn_to_be_guided_later() -> None:
    plain = policy_kit.policy()
    said = Thoughts("noise", (np.array([0]),), (torch.ones(1, 2, 2, 6),))
    wider = policy.guidable(plain, said).eval()
    batch = Mixture(demonstrations()).draw(1, 1, 4, 0, np.random.default_rng(0))
    one, other = (net.propose(net.remember(net.see(batch.frames), batch.state), 2, 0) for net in (plain, wider))
    assert torch.equal(one, other) and wider.film is not None and policy.guidable(wider, said) is wider
    with pytest.raises(ValueError, match="guided by other thoughts than 3 layers"):
        policy.guidable(wider, Thoughts("noise", (np.array([0]),), (torch.ones(1, 3, 2, 6),)))


def test_a_demonstration_on_another_time_grid_is_refused() -> None:
    one = demonstration(0)
    with pytest.raises(EpisodeError, match="one per action"):
        Demonstration.of(dataclasses.replace(one, stamps_ns=one.stamps_ns // 2), policy_kit.CAMERA, 0.2)
