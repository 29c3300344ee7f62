"""Stage `encoder`: what each recipe learns, what it leaves alone; neither a kill nor a second process matters."""

from __future__ import annotations

import csv
import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from group_kit import in_processes
from typer.testing import CliRunner

from thinkjepa_ros.commands.train_encoder import train_encoder
from thinkjepa_ros.data.episode import JOINT_NAMES, Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.encoder import EncoderConfig
from thinkjepa_ros.jepa.predictor import PredictorConfig
from thinkjepa_ros.train import clips, encoder, mini, recipes
from thinkjepa_ros.train.distributed import ALONE, Group
from thinkjepa_ros.train.run import Run

SIZE = 64
RECIPES = tuple(recipes.RECIPES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose train/ holds three short simulated episodes at 10 Hz."""
    from thinkjepa_ros.data.sim.generate import main

    out = tmp_path_factory.mktemp("data")
    assert main(out / "train", episodes=3, split="lamp", size=str(SIZE), workers=1, rate_hz=10.0, quiet=True) == 0
    return out


@pytest.fixture(scope="module")
def episodes(data: Path) -> list[Episode]:
    return clips.load_folder(data / "train")


def small_net() -> model.ForecastNet:
    torch.manual_seed(0)
    predictor = PredictorConfig(
        context=4, tubelets=3, tubelet_steps=2, width=24, depth=1, heads=2, guide_layers=2, guide_width=6
    )
    config = EncoderConfig(image_size=SIZE, width=24, depth=1, heads=2)
    return model.ForecastNet(model.ModelConfig(config, predictor, JOINT_NAMES, mini.canonical_camera(SIZE)))


def train(
    episodes: list[Episode], folder: Path, recipe: str, steps: int = 6, size: int = 4, net: Any = None
) -> tuple[model.ForecastNet, Run]:
    net = net or small_net()
    options: dict[str, Any] = {"steps": steps, "batch_size": size, "lr": 2e-3, "seed": 5, "describe": {"a": 1}}
    return net, encoder.train(episodes, net, folder, **options, recipe=recipe)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def changed(net: model.ForecastNet) -> set[str]:
    """Parts of the net that are no longer as they were drawn."""
    before = small_net().state_dict()
    return {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_where_the_hands_are(episodes: list[Episode], tmp_path: Path, recipe: str) -> None:
    net, _ = train(episodes, tmp_path, recipe, steps=100)
    early, late = rows(tmp_path)
    assert late["pose_cm"] < 0.8 * early["pose_cm"] and late["place"] < early["place"]
    assert changed(net) == ({"pose"} if recipe == "random" else {"encoder", "pose"})
    own = {"end-to-end": {"sigreg"}, "masked": {"prediction", "momentum"}, "pose": set(), "random": set()}[recipe]
    predicts = {"prediction_over_copy"} if own else set()
    assert early.keys() == {"step", "seconds", "pose_cm", "place", "grad", "spread", "rank"} | own | predicts
    if recipe == "masked":
        assert late["prediction"] < early["prediction"]
    assert late["spread"] > 0 and late["rank"] > 1


def test_recipes_see_the_same_frames_with_the_same_readout(episodes: list[Episode]) -> None:
    """Before the first update they differ in nothing but their own loss."""
    found = {}
    for recipe in RECIPES:
        net = small_net()
        torch.manual_seed(5)
        sight = recipes.sight_of(net, recipe)
        rng = np.random.default_rng(1)
        images, _, _, gap = encoder.batch(episodes, net, 4, rng)
        found[recipe] = sight(images, gap, sight.draw(4, rng, ALONE), ALONE)
    for recipe in RECIPES:
        assert torch.equal(found[recipe].joints, found["end-to-end"].joints), recipe
    assert [float(found[recipe].loss) > 0 for recipe in RECIPES] == [True, True, False, False]


def test_the_target_of_masked_follows_the_encoder(episodes: list[Episode], tmp_path: Path) -> None:
    net, run = train(episodes, tmp_path, "masked", steps=1)
    assert isinstance(run.net, recipes.Masked) and run.net.encoder is net.encoder
    for start, target, online in zip(
        small_net().encoder.parameters(), run.net.target.parameters(), net.encoder.parameters(), strict=True
    ):
        assert torch.allclose(target, 0.99 * start + 0.01 * online, atol=1e-7) and not target.requires_grad
    assert any(
        not torch.equal(start, target)
        for start, target in zip(small_net().encoder.parameters(), run.net.target.parameters(), strict=True)
    )


def test_the_target_of_masked_gives_no_gradient(episodes: list[Episode]) -> None:
    net = small_net()
    sight = recipes.sight_of(net, "masked")
    rng = np.random.default_rng(0)
    images, _, _, gap = encoder.batch(episodes, net, 4, rng)
    sight(images, gap, sight.draw(4, rng, ALONE), ALONE).loss.backward()
    assert isinstance(sight, recipes.Masked)
    assert all(p.grad is None for p in sight.target.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sight.predictor.parameters())
    assert all(p.grad is not None for p in net.encoder.parameters()), "and the encoder that sees the rest gets one"
    assert all(p.grad is None for p in net.pose.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_ends_with_the_same_weights(
    episodes: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr(encoder, "Run", functools.partial(Run, save_every_s=0.0, quiet=True))
    _, whole = train(episodes, tmp_path / "whole", recipe)

    class Killed(Exception):
        pass

    class Dying(Run):
        def update(self, loss: torch.Tensor) -> float:
            if self.step == 3:
                raise Killed
            return super().update(loss)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "Run", functools.partial(Dying, save_every_s=0.0, quiet=True))
        with pytest.raises(Killed):
            train(episodes, tmp_path / "cut", recipe)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 3
    _, again = train(episodes, tmp_path / "cut", recipe)
    state = again.net.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.net.state_dict().items())


def test_a_recipe_that_does_not_exist_is_refused(episodes: list[Episode], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe 'jepa'.*end-to-end, masked, pose, random"):
        train(episodes, tmp_path, "jepa")


def test_a_run_is_not_continued_by_another_recipe(episodes: list[Episode], tmp_path: Path) -> None:
    train(episodes, tmp_path, "pose", steps=1)
    for recipe in ("random", "end-to-end"):
        with pytest.raises(ValueError, match="other settings"):
            train(episodes, tmp_path, recipe, steps=1)


# ---------------------------------------------------------------- several processes


def work(folder: str, data: str, recipe: str, size: int, variables: dict[str, str]) -> None:
    """A process of two that train together; the first one keeps the weights."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        net, run = train(clips.load_folder(data), Path(folder), recipe, steps=6, size=size)
    except ValueError as error:
        sys.exit(0 if "cannot be shared evenly by 2 processes" in str(error) else 2)
    torch.save(net.state_dict(), Path(folder) / f"net.{run.group.rank}.pt")
    sys.exit(1)


@pytest.mark.parametrize("recipe", ["end-to-end", "masked"])
def test_two_processes_train_the_encoder_that_one_does(
    data: Path, episodes: list[Episode], tmp_path: Path, recipe: str
) -> None:
    net, _ = train(episodes, tmp_path / "one", recipe)
    (tmp_path / "two").mkdir()
    assert in_processes(2, work, str(tmp_path / "two"), str(data / "train"), recipe, 4) == [1, 1]
    ends = [torch.load(tmp_path / "two" / f"net.{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, tensor in net.state_dict().items():
        assert torch.equal(ends[0][name], ends[1][name])
        assert torch.allclose(ends[0][name], tensor, atol=2e-5), name
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        for column in ("pose_cm", "place", "grad"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-3), column


def test_pairs_that_cannot_be_shared_evenly_are_refused(data: Path, tmp_path: Path) -> None:
    assert in_processes(2, work, str(tmp_path), str(data / "train"), "pose", 3) == [0, 0]


def test_parts_of_a_batch_are_the_batch(episodes: list[Episode]) -> None:
    net = small_net()
    whole = encoder.batch(episodes, net, 6, np.random.default_rng(2))
    parts = [encoder.batch(episodes, net, 6, np.random.default_rng(2), Group(rank, 2)) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        for all_of_it, mine in zip(whole[:3], part[:3], strict=True):
            early, late = all_of_it.chunk(2)
            assert torch.equal(mine.nan_to_num(), torch.cat((early[rank::2], late[rank::2])).nan_to_num())
        assert torch.equal(part[3], whole[3][rank::2])


# ---------------------------------------------------------------- the command

app = typer.Typer()
app.command("encoder")(train_encoder)


def test_the_command_writes_what_train_forecast_takes(data: Path, tmp_path: Path) -> None:
    from thinkjepa_ros.thinker import tiny

    out = tmp_path / "encoder"
    options = ["--recipe", "masked", "--steps", "2", "--batch-size", "2", "--limit", "1", "--threads", "1"]
    command = [str(data), "--out", str(out), "--run", str(tmp_path / "run"), *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    net, manifest = model.load(out)
    assert not manifest.trained and manifest.domain == "simulation", "its predictor is as it was drawn"
    record = manifest.training
    assert record["stage"] == "encoder" and record["encoder_recipe"] == "masked" and record["encoder_steps"] == 2
    assert record["seed"] == 0 and record["processes"] == 1 and record["encoder_seconds"] >= 0
    mini.train_forecast(
        data, tmp_path / "out", init=out, run=tmp_path / "forecast", thinker=tiny.build(tmp_path / "thinker"),
        steps=1, guide_steps=1, batch_size=2, dtype="float32", threads=1, limit=1,
    )  # fmt: skip
    after, manifest = model.load(tmp_path / "out")
    assert manifest.trained and manifest.training["encoder_recipe"] == "masked"
    for part in ("encoder", "pose"):
        known = getattr(net, part).state_dict()
        assert all(torch.equal(t, known[name]) for name, t in getattr(after, part).state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "dense"], "no recipe 'dense'"),
        (["--device", "abacus"], "not a torch device"),
    ],
)
def test_the_command_refuses_what_does_not_exist(tmp_path: Path, options: list[str], words: str) -> None:
    command = [str(tmp_path), "--out", str(tmp_path / "out"), "--run", str(tmp_path / "run"), *options]
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
