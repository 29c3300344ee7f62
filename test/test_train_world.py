"""Training of the world model: resumable to the bit, watched for collapse, and without a look into the future."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import training_kit
import world_kit
from safetensors.torch import load_file
from training_kit import save_every_step, saved_step

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control import imagination, space
from thinkjepa_ros.control.imagination import Imagination, load_imagination
from thinkjepa_ros.data.episode import EpisodeError
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.train import cache, world
from thinkjepa_ros.train.cache import CacheError
from thinkjepa_ros.train.clips import load_folder
from thinkjepa_ros.train.objectives import CollapseGauge, random_directions
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.world import Collapsed, train_world
from thinkjepa_ros.train.world_data import THINGS, Origin, Track, draw, moment
from thinkjepa_ros.train.world_guidance import Thoughts, drop
from thinkjepa_ros.train.world_objective import Learner, Recipe, recipe_of
from thinkjepa_ros.train.world_points import teach

ENCODER = EncoderConfig(image_size=32, patch_size=8, width=24, depth=1, heads=2)
RECIPE = Recipe()
EPISODES = [world_kit.episode(seed, 16) for seed in range(3)]


def small(recipe: Recipe = RECIPE, episodes: list = EPISODES, **changes: int) -> tuple[Learner, list[Track]]:
    torch.manual_seed(3)
    options: dict = {"latent": 12, "pooled": 2, "horizon": 4, "width": 24, "depth": 1, "points": (3, 4), **changes}
    config, tracks = world.configuration(episodes, dataclasses.replace(ENCODER), **options)
    return Learner(Imagination(config), recipe), tracks


def run(folder: Path, recipe: Recipe = RECIPE, steps: int = 6, episodes: list = EPISODES, **options: object):
    learner, tracks = small(recipe, episodes)
    settings: dict = {"batch_size": 8, "lr": 1e-3, "seed": 5, "describe": {"a": 1}, "quiet": True, **options}
    return learner, *world.train(tracks, learner, folder, steps=steps, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cell")
    world_kit.write(folder / "train", 3, frames=16)
    return folder


# --- samples ---


def test_a_moment_is_what_the_episode_says() -> None:
    track = small()[1][1]
    context, state, before, known_before, actions, states, targets, known, *_ = moment(track, 5, 3, 4, np.array([0, 2]))
    np.testing.assert_array_equal(context, track.images([3, 4, 5]))
    np.testing.assert_array_equal(targets, track.images([6, 8]))
    np.testing.assert_array_equal(state, track.states[5])
    np.testing.assert_array_equal(before, track.actions(5, np.array([4]))[0])
    np.testing.assert_array_equal(actions, track.actions(5, np.arange(5, 9)))
    np.testing.assert_array_equal(states, track.states[6:10])
    assert known_before and known.all()
    pose = track.episode.camera_pose[0]
    there = space.state_to_base(state, pose)
    np.testing.assert_allclose(there, track.episode.states[5][[0, 1, 2, 6]], atol=1e-5)


def test_things_are_told_in_the_frame_of_the_camera_and_what_is_not_recorded_is_unknown() -> None:
    track = small()[1][1]
    e = track.episode
    pose = e.camera_pose[5]
    objects = {"tray_left": np.tile(pose[:3, 3] + pose[:3, 2] * 0.5, (len(track), 1)).astype(np.float32)}
    places, known = dataclasses.replace(track, episode=dataclasses.replace(e, objects=objects)).things(5)
    assert [name for name, there in zip(THINGS, known, strict=True) if there] == ["tray_left"]
    np.testing.assert_allclose(places[THINGS.index("tray_left")], [0, 0, 0.5], atol=1e-5)  # straight ahead


def test_before_the_beginning_the_first_frame_stands_and_beyond_the_end_nothing_counts() -> None:
    track = small()[1][0]
    context, _, _, known_before, *_ = moment(track, 0, 3, 4, np.array([0]))
    np.testing.assert_array_equal(context, track.images([0, 0, 0]))
    assert not known_before
    *_, actions, _, _, known, _, _ = moment(track, len(track) - 2, 2, 4, np.array([0, 1, 3]))
    assert known.tolist() == [True, False, False]
    assert (actions[1:, :3] == 0).all() and np.array_equal(actions[0], track.actions(len(track) - 2, np.array([-1]))[0])
    assert (actions[1:, 3] == actions[0, 3]).all()


def test_what_is_unknown_changes_no_loss() -> None:
    learner, tracks = small()
    m, _ = draw(tracks, 32, 2, 4, 3, np.random.default_rng(0))
    assert not bool(m.known.all())
    directions = random_directions(np.random.default_rng(1), 12)
    one = learner(m, directions, torch.float32)
    hidden = torch.where(m.known[..., None, None, None], m.targets, 255 - m.targets)
    other = learner(dataclasses.replace(m, targets=hidden), directions, torch.float32)
    assert not torch.equal(hidden, m.targets) and torch.equal(one.total, other.total)


def test_episodes_on_another_time_grid_are_refused() -> None:
    episode = world_kit.episode(0, 6)
    fast = dataclasses.replace(episode, stamps_ns=episode.stamps_ns // 2)
    with pytest.raises(EpisodeError, match=r"every 0\.1 s, a world model needs one every 0\.2 s"):
        small(episodes=[fast])


# --- no look into the future ---


def test_later_frames_leave_the_latents_of_now_as_they_are_and_later_actions_the_predictions() -> None:
    learner, tracks = small()
    net = learner.net.eval()
    pictures = torch.from_numpy(tracks[0].images(range(8)))
    changed = pictures.clone()
    changed[5:] = 255 - changed[5:]
    with torch.no_grad():
        one, other = net.see(pictures), net.see(changed)
        assert torch.equal(one[:5], other[:5]) and not torch.equal(one[5:], other[5:])
        present = net.pool(one[3:4])[None], one[4:5], torch.from_numpy(tracks[0].states[4:5])
        actions = torch.from_numpy(tracks[0].actions(4, np.arange(4, 8)))[None]
        ahead = net.world(*present, actions)
        actions[:, 2:] += 0.05
        later = net.world(*present, actions)
    assert torch.equal(ahead[:, :2], later[:, :2]) and not torch.equal(ahead[:, 2], later[:, 2])


def test_no_gradient_flows_into_a_target() -> None:
    """A target is where to go: were it trained too, it would come to meet the prediction."""
    learner, tracks = small(Recipe(sigreg=0, inverse=0, place=0, rollout=0))
    m, _ = draw(tracks, 4, 2, 4, 3, np.random.default_rng(0))
    seen: list[torch.Tensor] = []
    learner.net.project.register_forward_hook(lambda _m, _i, out: seen.append(out))
    learner(m, random_directions(np.random.default_rng(1), 12), torch.float32)
    assert [x.requires_grad for x in seen] == [True, False]


# --- the run ---


@pytest.mark.parametrize("target", ["online", "moving"])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(target=target)
    whole, _, _ = run(tmp_path / "whole", recipe)
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
    again, _, _ = run(tmp_path / "cut", recipe)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_every_line_of_the_log_has_the_gauges(tmp_path: Path) -> None:
    _, _, reading = run(tmp_path)
    header, row = (line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines())
    for name in ("loss", "spread", "rank", "sigreg", "prediction_over_copy", "rollout_over_one_pass", "place"):
        assert np.isfinite(float(row[header.index(name)])), name
    assert reading is not None and not reading.collapsed


def test_a_collapse_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    """Pictures that are all the same give latents that are all the same, whatever the weights."""
    frozen = [world_kit.episode(seed, 16, frozen=True) for seed in range(2)]
    with pytest.raises(Collapsed, match=r"latents collapse.*give SIGReg more weight"):
        run(tmp_path, Recipe(sigreg=0), steps=200, episodes=frozen)


def test_without_sigreg_prediction_alone_collapses_and_the_gauge_sees_it(tmp_path: Path) -> None:
    """Large steps and nothing but the prediction: the latents shrink until the spread is below the bound."""
    recipe = Recipe(sigreg=0, inverse=0, place=0, rollout=0)
    with pytest.raises(Collapsed):
        run(tmp_path, recipe, steps=400, lr=1e-2, gauge=CollapseGauge(least_spread=0.05))


def test_points_find_the_robot_and_the_place_is_read_from_them(tmp_path: Path) -> None:
    learner, tracks = small()
    net = learner.net
    pictures = torch.from_numpy(tracks[0].images(range(16)))
    before = net.project(net.encoder.frames(pictures))
    done = teach(tracks, net, tmp_path / "a", steps=150, seed=0, describe={}, quiet=True)
    rows = [line.split(",") for line in (tmp_path / "a" / "log.csv").read_text().splitlines()]
    told = [float(row[rows[0].index("gripper_m")]) for row in rows[1:]]
    assert told[-1] < 0.8 * told[0] and done.step == 150
    assert net.points is not None
    with torch.no_grad():
        seen = net.see(pictures)
        assert torch.equal(seen[..., :8], before) and torch.equal(seen[:, 0, 8:], seen[:, 5, 8:])
        assert 0.1 < seen[..., 8:].std() < 10
        off = (net.read_state(net.pool(seen))[:, :3] - torch.from_numpy(tracks[0].states[:16, :3])).norm(dim=1).mean()
    assert off < 1.2 * told[-1]
    again = small()[0].net
    teach(tracks, again, tmp_path / "a", steps=150, seed=0, describe={}, quiet=True)  # done already: the same weights
    assert again.points is not None
    for name, tensor in net.points.state_dict().items():
        assert torch.equal(tensor, again.points.state_dict()[name]), name
    with pytest.raises(ValueError, match="no points"):
        teach(tracks, small(points=(0, 0))[0].net, tmp_path / "b", steps=1, seed=0, describe={}, quiet=True)


def test_an_encoder_that_shall_stay_stays(data: Path, tmp_path: Path) -> None:
    options: dict = {"steps": 2, "batch_size": 4, "threads": 1, "latent": 12, "pooled": 2, "horizon": 4, "see_steps": 2}
    options |= {"points": 3, "points_width": 4}
    sizes = {"image_size": 32, "encoder_depth": 1, "dtype": "float32"}
    train_world(data, tmp_path / "one", run=tmp_path / "run", **options, **sizes)  # type: ignore[arg-type]
    train_world(
        data, tmp_path / "two", run=tmp_path / "run2", init=tmp_path / "one", encoder_rate=0.0, dtype="float32",
        **options,
    )  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert all(name in same for name in one if name.startswith("encoder."))
    assert not any(name in same for name in ("project.weight", "place.weight", "points.last.weight"))


def test_it_learns_what_actions_do(tmp_path: Path) -> None:
    """After some steps the prediction beats "nothing changes" on the few pictures it was trained on."""
    run(tmp_path, steps=100, lr=3e-3)
    log = (tmp_path / "log.csv").read_text().splitlines()
    ratio = log[0].split(",").index("prediction_over_copy")
    first, last = (float(line.split(",")[ratio]) for line in (log[1], log[-1]))
    assert last < first and last < 1.0


def test_guidance_changes_guided_rows_only(tmp_path: Path) -> None:
    learner, tracks = small(guide=(2, 6))  # type: ignore[arg-type]
    net = learner.net.eval()
    assert net.world.film is not None
    torch.nn.init.constant_(net.world.film.gate, 0.5)
    for part in net.world.film.parameters():
        if part.dim() > 1:
            torch.nn.init.normal_(part, std=0.3)
    m, _ = draw(tracks, 4, 2, 4, 3, np.random.default_rng(0))
    payload = Payload.pooled(torch.randn(4, 2, 2, 6), torch.ones(4, 2, dtype=torch.bool), torch.tensor([0, 1.0, 0, 1]))
    with torch.no_grad():
        latents = net.see(m.context.flatten(0, 1)).unflatten(0, (4, -1))
        present = net.pool(latents[:, :-1]), latents[:, -1], m.state, m.actions
        plain, guided = net.world(*present), net.world(*present, payload)
    assert torch.equal(plain[::2], guided[::2]) and not torch.equal(plain[1::2], guided[1::2])


def test_a_moment_gets_the_newest_thought_that_was_known_by_then(data: Path, tmp_path: Path) -> None:
    episodes = load_folder(data / "train")
    cache.fill(episodes, training_kit.maker(), tmp_path / "cache")
    thoughts = Thoughts.load(tmp_path / "cache", episodes)
    assert thoughts.shape == (2, 6)
    rng = np.random.default_rng(0)
    for number, episode in enumerate(episodes):
        said = training_kit.think(episode)
        for stamp in episode.stamps_ns:
            payload = thoughts.payload([Origin(number, int(stamp))], rng)
            assert payload.weight is not None and payload.prompt is not None
            early = [t for t in said if t.stamp_ns <= stamp - 0.2e9]
            sure = [t for t in said if t.stamp_ns <= stamp - 1.2e9]
            if not early:
                assert payload.weight.item() == 0
            if sure:
                assert payload.weight.item() == 1
                assert any(np.array_equal(payload.prompt[0, :, 0], t.pyramid[:, 0]) for t in early[len(sure) - 1 :])
    dropped = drop(thoughts.payload([Origin(0, int(episodes[0].stamps_ns[-1]))] * 200, rng), 0.3, rng)
    assert dropped.weight is not None and 40 < int((dropped.weight == 0).sum()) < 80
    with pytest.raises(CacheError, match="is missing"):
        Thoughts.load(tmp_path / "nothing", episodes)
    out, guided = tmp_path / "out", {"thoughts": tmp_path / "cache", "run": tmp_path / "run", "threads": 1}
    sizes = {"image_size": 32, "encoder_depth": 1, "latent": 12, "pooled": 2, "horizon": 4, "points": 0}
    train_world(data, out, steps=2, batch_size=4, dtype="float32", **guided, **sizes)  # type: ignore[arg-type]
    net, manifest = load_imagination(out)
    assert net.world.film is not None and manifest.training["thoughts"] == thoughts.made_by
    assert net.config.world.guide_layers == 2 and net.config.world.guide_width == 6


# --- the checkpoint ---


def test_the_stage_writes_a_checkpoint_that_loads_and_is_checked(data: Path, tmp_path: Path) -> None:
    options: dict = {"run": tmp_path / "run", "steps": 3, "batch_size": 4, "threads": 1, "dtype": "float32"}
    options |= {"see_steps": 2, "points": 3, "points_width": 4}
    out = tmp_path / "world"
    train_world(data, out, image_size=32, encoder_depth=1, latent=16, pooled=2, horizon=4, **options)
    net, manifest = load_imagination(out)
    assert manifest.kind == "imagination" and manifest.training["command"] == "thinkjepa train world"
    assert (net.likelihood_scale > 0).all() and not (net.likelihood_scale == 1).all()
    assert net.config.world.action_std != () and net.config.camera.fx == pytest.approx(30.0)
    picture = imagination.images_of(net, world_kit.episode(0, 2).frames[0], world_kit.CAMERA)
    assert net.see(picture).shape == (1, 4, 16)
    further = tmp_path / "further"
    train_world(data, further, init=out, latent=16, pooled=2, horizon=4, **{**options, "run": tmp_path / "run2"})
    assert load_imagination(further)[1].training["init"].startswith(manifest.model_id)
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_imagination(out)
    assert len(load_file(further / "model.safetensors")) > 10


def test_an_imagined_latent_is_near_a_goal_by_every_energy_if_it_is_the_goal() -> None:
    net = small()[0].net.eval()
    goal, other = torch.randn(2, 4, 12)
    for kind in imagination.ENERGIES:
        energies = net.energy(torch.stack((goal, other)), goal, kind)
        assert energies[0] < 1e-5 and energies[1] > 0.1
    with pytest.raises(ValueError, match="no energy 'cosine'"):
        net.energy(goal, goal, "cosine")
    assert torch.equal(net.pool(net.unpool(goal)), goal)


def test_a_recipe_says_what_it_does_not_know() -> None:
    assert recipe_of(sigreg=None, target="moving") == Recipe(target="moving")
    with pytest.raises(ValueError, match="online, moving"):
        Recipe(target="frozen")
