"""Masked pretraining: resumable to the bit, learns, keeps its target out of the gradient, and notices a collapse."""

import copy
import logging
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from training_kit import save_every_step, saved_step

from thinkjepa_ros import checkpoints
from thinkjepa_ros.data.episode import JOINT_NAMES, Episode, EpisodeError, JpegFrames
from thinkjepa_ros.jepa.encoder import Encoder, EncoderConfig
from thinkjepa_ros.jepa.guided import GuidedConfig, GuidedPredictor
from thinkjepa_ros.jepa.masking import Masks, TubeMask
from thinkjepa_ros.train import pretrain
from thinkjepa_ros.train.objectives import Reading, normalised, random_directions
from thinkjepa_ros.train.pretrain import RECIPES, Clip, Pretraining, Recipe, recipe_of
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.values import Camera

TINY = EncoderConfig(image_size=32, patch_size=8, width=48, depth=2, heads=2, tubelet=2, attention="full")
CLIP = Clip(frames=4)


def episode(seed: int, count: int = 24) -> Episode:
    """A disc that crosses a soft background, 30 Hz, 32 x 32; seeds differ in colours, place and speed."""
    rng = np.random.default_rng(seed)
    back = cv2.resize(rng.uniform(0, 255, (4, 4, 3)).astype(np.float32), (32, 32), interpolation=cv2.INTER_LINEAR)
    place, speed, colour = rng.uniform(6, 26, 2), rng.uniform(-1.5, 1.5, 2), rng.uniform(0, 255, 3).tolist()
    images = []
    for i in range(count):
        centre = (place + speed * i) % 32
        images.append(cv2.circle(back.astype(np.uint8), (int(centre[0]), int(centre[1])), 5, colour, -1))
    joints = np.zeros((count, len(JOINT_NAMES), 3), np.float32)
    return Episode(
        frames=JpegFrames.encode(images),
        stamps_ns=np.arange(count, dtype=np.int64) * 33_333_333,
        camera=Camera(32, 32, 30.0, 30.0, 15.5, 15.5),
        camera_pose=np.tile(np.eye(4), (count, 1, 1)),
        joints=joints,
        visible=np.ones(joints.shape[:2], bool),
        states=np.zeros((count, 7), np.float32),
        actions=np.zeros((count - 1, 7), np.float32),
        phases=np.zeros(count, np.uint8),
        instruction="",
        split="none",
        seed=seed,
    )


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [episode(seed) for seed in range(8)]


def fresh(recipe: Recipe = RECIPES["masked"], config: EncoderConfig = TINY) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(config, recipe, CLIP)


def run(episodes: list[Episode], net: Pretraining, folder: Path, steps: int, lr: float = 2e-3) -> Reading:
    return pretrain.train(
        episodes, net, CLIP, folder, steps=steps, batch_size=4, lr=lr, seed=1, describe={"steps": steps}
    )[1]


def one_batch(net: Pretraining, episodes: list[Episode]) -> tuple[torch.Tensor, list[Masks], torch.Tensor]:
    rng = np.random.default_rng(4)
    return CLIP.batch(episodes, 4, 32, rng), net.draw(4, rng), random_directions(rng, 48)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    recipe: str, episodes: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(RECIPES[recipe])
    reading = run(episodes, whole, tmp_path / "whole", 6)

    class Killed(Exception):
        pass

    left = 4
    real = Run.update

    def update(self: Run, loss: torch.Tensor) -> float:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return real(self, loss)

    save_every_step(monkeypatch)
    monkeypatch.setattr(Run, "update", update)
    with pytest.raises(Killed):
        run(episodes, fresh(RECIPES[recipe]), tmp_path / "cut", 6)
    assert saved_step(tmp_path / "cut") == 3
    monkeypatch.setattr(Run, "update", real)
    again = fresh(RECIPES[recipe])
    assert run(episodes, again, tmp_path / "cut", 6) == reading
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    head, *rows = (tmp_path / "cut" / "log.csv").read_text().splitlines()
    assert head == "step,seconds,loss,prediction_over_copy,spread,rank,momentum,lr,grad"
    assert [row.split(",")[0] for row in rows] == ["6"]


def test_the_loss_falls_and_beats_copying(episodes: list[Episode], tmp_path: Path) -> None:
    few, masks = episodes[:2], (TubeMask(2, (0.2, 0.2)),)
    net = fresh(replace(RECIPES["masked"], masks=masks, momentum=1.0, momentum_end=1.0))  # a target that stands still
    batch = one_batch(net, few)
    with torch.no_grad():
        before = net(*batch)
    assert not run(few, net, tmp_path, 120, lr=3e-3).collapsed
    with torch.no_grad():
        after = net(*batch)
    assert after.prediction < 0.93 * before.prediction and after.prediction < after.copy
    assert torch.equal(after.copy, before.copy)  # the target did stand still


def test_the_target_gets_no_gradient_and_follows_the_encoder(episodes: list[Episode], tmp_path: Path) -> None:
    net = fresh()
    assert net.target is not None and net.result is net.target
    start = net.encoder.patch_embed.weight.detach().clone()
    net(*one_batch(net, episodes)).total.backward()
    assert all(p.grad is None for p in net.target.parameters())
    assert all(p.grad is not None for part in (net.encoder, net.predictor) for p in part.parameters())
    run(episodes, net, tmp_path, 5)
    online, target = net.encoder.patch_embed.weight, net.target.patch_embed.weight
    assert 0 < (target - start).norm() < (online - start).norm()
    video = one_batch(net, episodes)[0]
    with torch.no_grad():  # what the encoder prepares once per weights is prepared again when they move
        assert torch.equal(net.target(video), copy.deepcopy(net.target)(video))


def test_the_encoder_sees_the_context_and_nothing_else(episodes: list[Episode]) -> None:
    """Hidden pixels change the target, never the prediction."""
    net = fresh().eval()
    video, masks, _ = one_batch(net, episodes)
    mask = masks[0]
    hidden = torch.zeros(4, 2 * 4 * 4, dtype=torch.bool).scatter(1, mask.target, True)
    pixels = hidden.view(4, 2, 1, 4, 1, 4, 1).expand(-1, -1, 2, -1, 8, -1, 8).reshape(4, 4, 32, 32, 1)
    noisy = torch.where(pixels, torch.randint(0, 256, video.shape, dtype=torch.uint8), video)
    with torch.no_grad():
        one, two = (net.predictor(net.encoder(v, keep=mask.context), mask)[1] for v in (video, noisy))
        assert torch.equal(one, two)
        assert not torch.equal(net.encoder(video), net.encoder(noisy))


def test_the_loss_is_the_mean_over_masks_of_l1_on_normed_targets(episodes: list[Episode]) -> None:
    net = fresh().eval()
    video, masks, directions = one_batch(net, episodes)
    assert net.target is not None
    with torch.no_grad():
        found = net(video, masks, directions)
        target = normalised(net.target(video).flatten(1, 2))
        per_mask = []
        for mask in masks:
            predicted = net.predictor(net.encoder(video, keep=mask.context), mask)[1]
            wanted = torch.stack([target[b, mask.target[b]] for b in range(4)])
            per_mask.append((predicted - wanted).abs().mean())
        assert found.total.item() == pytest.approx(sum(per_mask).item() / 2, rel=1e-5)
        assert found.prediction == found.total
        dense = net(video, masks, directions, context=0.5)
        assert dense.prediction == found.prediction and dense.total > found.total


def test_the_predictor_does_not_care_in_which_order_tokens_come(episodes: list[Episode]) -> None:
    net = fresh().eval()
    for name, parameter in net.predictor.named_parameters():  # as after training: attention looks at places
        if name.endswith(("qkv.weight", "mask_token")):
            torch.nn.init.normal_(parameter, std=0.2)
    mask = one_batch(net, episodes)[1][0]
    context = torch.randn(4, mask.context.shape[1], 48)
    seen, hidden = torch.randperm(mask.context.shape[1]), torch.randperm(mask.target.shape[1])
    with torch.no_grad():
        visible, filled = net.predictor(context, mask)
        turned = net.predictor(context[:, seen], Masks(mask.context[:, seen], mask.target[:, hidden]))
    assert torch.allclose(visible[:, seen], turned[0], atol=1e-5)
    assert torch.allclose(filled[:, hidden], turned[1], atol=1e-5)
    assert not torch.allclose(filled[:, 0], filled[:, 1], atol=1e-4)  # places differ


def test_the_predictor_is_the_unguided_predictor_of_the_package(episodes: list[Episode]) -> None:
    """Same names, same numbers; this one also gives the visible tokens, and keeps its rotary tables."""
    net = fresh().eval()
    mask = one_batch(net, episodes)[1][0]
    config = GuidedConfig(
        latent_width=48, width=96, depth=3, heads=4, tokens=16, rows=4, columns=4, positions="interleaved"
    )
    other = GuidedPredictor(config).eval()
    state = {n: t.normal_(std=0.2) for n, t in net.predictor.state_dict().items()}
    state["queries"] = state.pop("mask_token")[None]
    other.load_state_dict(state)
    context = torch.randn(4, mask.context.shape[1], 48)
    with torch.no_grad():
        filled = net.predictor(context, mask)[1]
        assert torch.allclose(other(context, mask.context, mask.target), filled, atol=1e-5 * filled.abs().max())


def test_without_a_regulariser_end_to_end_training_collapses_and_the_gauge_says_so(
    episodes: list[Episode], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The control: the encoder predicts its own raw latents. The loss of the collapsed run is the better one."""
    bare = fresh(replace(RECIPES["end-to-end"], sigreg=0.0))
    regular = fresh(RECIPES["end-to-end"])
    with caplog.at_level(logging.WARNING):
        healthy = run(episodes, regular, tmp_path / "sigreg", 80, lr=3e-3)
    assert not healthy.collapsed and not caplog.records
    with caplog.at_level(logging.WARNING):
        collapsed = run(episodes, bare, tmp_path / "bare", 80, lr=3e-3)
    assert collapsed.collapsed and len(caplog.records) == 1 and "collapse" in caplog.text
    losses = [float((tmp_path / n / "log.csv").read_text().splitlines()[-1].split(",")[2]) for n in ("sigreg", "bare")]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("attention", "tubelet"), [("frame", 1), ("causal", 2)])
def test_other_kinds_of_encoder_are_pretrained_too(
    attention: str, tubelet: int, episodes: list[Episode], tmp_path: Path
) -> None:
    net = fresh(config=replace(TINY, attention=attention, tubelet=tubelet))  # type: ignore[arg-type]
    assert np.isfinite(run(episodes, net, tmp_path, 2).prediction_over_copy)


def test_clips_are_on_the_time_grid_within_one_episode_and_cropped_as_one() -> None:
    """Frames of the test episode hold their number and place as colour: red = number, green = column."""
    count = 40
    base = episode(0, count)
    column = np.broadcast_to(np.linspace(0, 255, 32)[None, :], (32, 32))
    images = [
        np.stack((np.full((32, 32), 6 * i), column, np.zeros((32, 32))), -1).astype(np.uint8) for i in range(count)
    ]
    numbered = replace(base, frames=JpegFrames.encode(images, quality=100))
    batch = Clip(frames=5, step_s=0.1).batch([numbered, episode(1, 3)], 12, 16, np.random.default_rng(0)).float()
    assert batch.shape == (12, 5, 16, 16, 3)
    number = batch[..., 0].mean((2, 3)) / 6
    assert torch.allclose(number.diff(dim=1), torch.full((12, 4), 3.0), atol=1.01)  # 0.1 s at 30 Hz
    assert number[:, 0].unique().numel() > 4
    assert (batch[..., 1] - batch[:, :1, ..., 1]).abs().max() < 8  # same crop and flip in all frames
    rising = batch[:, 0, 8, -1, 1] > batch[:, 0, 8, 0, 1]
    assert rising.any() and not rising.all()  # some are flipped
    with pytest.raises(EpisodeError, match="no episode is as long"):
        Clip(frames=20, step_s=0.1).batch([numbered], 1, 16, np.random.default_rng(0))


def test_recipes_take_other_numbers_and_unknown_names_are_refused() -> None:
    assert recipe_of("masked") == RECIPES["masked"]
    assert recipe_of("dense", variance=0.5, momentum=None) == replace(RECIPES["dense"], variance=0.5)
    with pytest.raises(ValueError, match="masked, dense, end-to-end"):
        recipe_of("magic")


def test_the_command_writes_an_encoder_that_loads_again(episodes: list[Episode], tmp_path: Path) -> None:
    for one in episodes[:3]:
        one.save(tmp_path / "data" / "train" / f"none_{one.seed:07d}.h5")
    recipe = Recipe(masks=(TubeMask(2, (0.3, 0.3)),), variance=0.1, covariance=0.1, sigreg=0.01)
    settings = {"run": tmp_path / "run", "recipe": recipe, "steps": 3, "batch_size": 2, "config": TINY, "clip": CLIP}
    reading = pretrain.pretrain(tmp_path / "data", tmp_path / "m", threads=1, **settings)
    encoder, manifest = checkpoints.load_module(tmp_path / "m", pretrain.KIND, lambda c: Encoder(EncoderConfig(**c)))
    assert manifest.trained and manifest.config == asdict(TINY) and manifest.domain == "simulation"
    assert manifest.training["gauge"] == asdict(reading) and manifest.training["steps"] == 3
    assert encoder(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).shape == (1, 2, 16, 48)
    again = pretrain.pretrain(tmp_path / "data", tmp_path / "m2", threads=1, **settings)  # nothing left to do
    same = checkpoints.read_manifest(tmp_path / "m2", pretrain.KIND)
    assert again == reading and same.sha256 == manifest.sha256
