"""The stage that trains the mini thinker: it is shown what is there, and a run that was cut off loses nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from group_kit import in_processes
from training_kit import save_every_step, saved_step
from transformers import AutoTokenizer

from thinkjepa_ros.data.episode import Episode, EpisodeError
from thinkjepa_ros.data.told import LAMP_STATES, UNKNOWN, Sample, cut, draw, shares
from thinkjepa_ros.thinker import tiny
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.train import clips
from thinkjepa_ros.train import thinker as stage
from thinkjepa_ros.train.pupil import Pupil
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.views import NO_LAMP, View, lamp_tokens, pictures
from thinkjepa_ros.values import Frame

GRID = 4
LIVE = Window(8.0, 0.25)
#: The strongest channel of a lit lamp.
CHANNEL = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/train with two simulated episodes at 10 Hz."""
    from thinkjepa_ros.data.sim.generate import main

    out = tmp_path_factory.mktemp("data")
    assert main(out / "train", episodes=2, split="distractor", workers=1, rate_hz=10.0, quiet=True) == 0
    return out


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return clips.load_folder(folder / "train")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(out)
    return out


def fresh_pupil(folder: Path) -> Pupil:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.get_added_vocab()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pupil(tiny.model(ids, 0), tokenizer).requires_grad_(True)


def cue_window(episode: Episode, mirrored: bool = False) -> Sample:
    """The window that ends while the cue is lit."""
    middle = int(np.searchsorted(episode.stamps_ns, sum(episode.cue_ns) // 2))
    sample = cut(episode, 0, middle, LIVE, mirrored=mirrored)
    assert sample.told == "lamp"
    return sample


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("varied", [False, True])
def test_the_token_that_is_labelled_as_the_cue_shows_its_colour(
    episodes: list[Episode], mirrored: bool, varied: bool
) -> None:
    found = 0
    for seed, episode in enumerate(episodes):
        sample = cue_window(episode, mirrored)
        view = View.draw(np.random.default_rng(seed), 128) if varied else None
        images, tokens = pictures(episode, sample, view), lamp_tokens(episode, sample, view, GRID)
        side, colour = sample.intent % 2, episode.intent["cube"]
        wanted = 1 + side * len(LAMP_STATES) + LAMP_STATES.index(colour)
        place = np.flatnonzero(tokens[-1] == wanted)
        if not len(place):  # the view moved the lamp out of the picture
            continue
        found += 1
        row, column = divmod(int(place[0]), GRID)
        patch = images[sample.pairs[-1].first][row * 32 : row * 32 + 32, column * 32 : column * 32 + 32].astype(int)
        others = [c for c in range(3) if c != CHANNEL[colour]]
        assert (patch[..., CHANNEL[colour]] - patch[..., others].max(-1)).max() > 60, (seed, colour, row, column)
    assert found


def test_at_most_two_tokens_of_a_pair_are_lamps_and_the_left_one_is_left(episodes: list[Episode]) -> None:
    for episode in episodes:
        for mirrored in (False, True):
            tokens = lamp_tokens(episode, cue_window(episode, mirrored), None, GRID)
            for row in tokens:
                places = np.flatnonzero(row != NO_LAMP)
                assert len(places) <= 2
                sides = {int((row[p] - 1) // len(LAMP_STATES)): int(p % GRID) for p in places}
                if len(sides) == 2:
                    assert sides[0] < sides[1]


def test_pictures_that_are_not_square_and_scenes_of_another_version_are_refused(episodes: list[Episode]) -> None:
    from dataclasses import replace

    from thinkjepa_ros.data.episode import JpegFrames

    episode = episodes[0]
    sample = cue_window(episode)
    wide = JpegFrames.encode([np.zeros((48, 64, 3), np.uint8)] * len(episode))
    with pytest.raises(EpisodeError, match=r"square pictures.*64 x 48"):
        pictures(replace(episode, frames=wide), sample, None)
    with pytest.raises(EpisodeError, match="version"):
        lamp_tokens(replace(episode, details={**episode.details, "scene_version": 0}), sample, None, GRID)


def test_a_batch_asks_what_the_live_thinker_asks(
    episodes: list[Episode], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """The same prompt ids, pictures and positions: what is learned is what will be asked."""
    pupil = fresh_pupil(tokenizer_folder).eval()
    sample = cue_window(episodes[0])
    batch = pupil.collate([sample], episodes, None)
    tiny.write_tokenizer(tmp_path)
    tiny.save(tmp_path, pupil.model, trained=False, domain="none", training={})
    thinker = Thinker.load(tmp_path, window=LIVE)
    frames = [Frame(episodes[0].frames[int(i)], int(t)) for i, t in zip(sample.frames, sample.stamps_ns, strict=True)]
    thought = thinker.think(frames, sample.instruction, max_new_tokens=0, tokens=True)
    prompt = int((batch.labels[0] == -100).sum())
    with torch.no_grad():
        features, _ = pupil._see(batch.seen)
        taken = []
        layer = pupil.model.model.language_model.layers[-1]
        handle = layer.register_forward_hook(lambda _m, _a, out: taken.append(out))
        pupil._answer(batch, features, torch.tensor(0.0))
        handle.remove()
    assert thought.states is not None and thought.states.shape[1] == prompt
    assert np.abs(taken[0][0, :prompt].numpy() - thought.states[-1]).max() < 1e-4


def test_a_row_of_a_batch_does_not_depend_on_the_others(episodes: list[Episode], tokenizer_folder: Path) -> None:
    pupil = fresh_pupil(tokenizer_folder).eval()
    rng = np.random.default_rng(0)
    samples = [draw(episodes, shares(episodes), 1.0, rng) for _ in range(3)]
    with torch.no_grad():
        together = pupil(pupil.collate(samples, episodes, None))
        alone = [pupil(pupil.collate([s], episodes, None)) for s in samples]
    assert together["right"].tolist() == [bool(one["right"]) for one in alone]
    pairs = torch.tensor([len(s.pairs) for s in samples], dtype=torch.float32)
    mean = sum(n * one["lamps"] for n, one in zip(pairs, alone, strict=True)) / pairs.sum()
    assert float(together["lamps"]) == pytest.approx(float(mean), abs=1e-4)


def fit(pupil: Pupil, episodes: list[Episode], folder: Path, **changes: int) -> tuple[Run, Run]:
    options = {"see_steps": 2, "steps": 4, "batch_size": 2, "lr": 1e-3, "seed": 5, **changes}
    return stage.fit(pupil, episodes, folder, describe={"a": 1}, quiet=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("killed_at", [2, 4])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    episodes: list[Episode], tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    whole = fresh_pupil(tokenizer_folder)
    fit(whole, episodes, tmp_path / "whole")

    class Killed(Exception):
        pass

    done, real = 0, Run.update

    def update(run: Run, loss: torch.Tensor) -> float:
        nonlocal done
        done += 1
        if done == killed_at:
            raise Killed
        return real(run, loss)

    with monkeypatch.context() as patch:
        save_every_step(patch)
        patch.setattr(Run, "update", update)
        with pytest.raises(Killed):
            fit(fresh_pupil(tokenizer_folder), episodes, tmp_path / "cut")
    assert saved_step(tmp_path / "cut" / ("see" if killed_at == 2 else "answer")) == 1
    resumed = fresh_pupil(tokenizer_folder)
    fit(resumed, episodes, tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def fit_in_a_process(data: Path, tokenizer: Path, folder: Path, variables: dict[str, str]) -> None:
    """`fit` as one of several processes; the weights it ends with go to weights.<rank>.pt."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    pupil = fresh_pupil(tokenizer)
    fit(pupil, clips.load_folder(data / "train"), folder, see_steps=1, steps=2)
    torch.save(pupil.state_dict(), folder / f"weights.{os.environ['RANK']}.pt")


def test_two_processes_end_with_the_weights_of_one(
    folder: Path, episodes: list[Episode], tokenizer_folder: Path, tmp_path: Path
) -> None:
    alone = fresh_pupil(tokenizer_folder)
    fit(alone, episodes, tmp_path / "one", see_steps=1, steps=2)
    two = tmp_path / "two"
    two.mkdir()
    assert in_processes(2, fit_in_a_process, folder, tokenizer_folder, two) == [0, 0]
    first, second = (torch.load(two / f"weights.{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]) and torch.allclose(tensor, first[name], atol=1e-5), name


def test_the_heads_learn_to_see_and_the_answer_gets_likelier(
    episodes: list[Episode], tokenizer_folder: Path, tmp_path: Path
) -> None:
    pupil = fresh_pupil(tokenizer_folder)
    rng = np.random.default_rng(1)
    batch = pupil.collate([draw(episodes, shares(episodes), 0.0, rng) for _ in range(6)], episodes, None)
    with torch.no_grad():
        before = pupil(batch)
    fit(pupil, episodes, tmp_path, see_steps=6, steps=14)
    with torch.no_grad():
        after = pupil(batch)
    assert float(after["tokens"]) < 0.8 * float(before["tokens"])
    assert float(after["words"]) < 0.8 * float(before["words"])


def test_training_writes_a_checkpoint_that_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "thinker"
    stage.train(folder, out, run=tmp_path / "run", steps=2, see_steps=1, batch_size=2, threads=1)
    thinker = Thinker.load(out)
    assert thinker.trained and "untrained" not in thinker.model_id
    record = json.loads((out / "model.json").read_text())
    assert record["domain"] == "simulation" and record["config"]["view"] == "centre"
    told = record["training"]
    assert (told["steps"], told["see_steps"], told["episodes"], told["seed"]) == (2, 1, 2, 0)
    assert told["data_sha256"] == clips.data_hash(folder / "train", None) and told["parameters"] > 1_000_000


@pytest.mark.parametrize(
    ("kind", "told"), [("pick_place_lamp", "lamp"), ("pick_place_text", "task"), ("reach", "none")]
)
def test_the_workcell_teaches_it_too(kind: str, told: str) -> None:
    """A lamp there is where the simulator says, and shows the colour of the cube that is asked for."""
    from thinkjepa_ros.data.sim.rollouts import make_rollout

    episode = make_rollout(kind, "expert", 5)
    sample = cut(episode, 0, 3, LIVE)
    assert sample.told == told and shares([episode]).tolist() == [1.0]
    tokens = lamp_tokens(episode, sample, None, GRID)
    lit = {(t - 1) % len(LAMP_STATES) for t in tokens[tokens > NO_LAMP]} - {0}
    if told != "lamp":
        assert not lit and (sample.intent == UNKNOWN) == (told == "none")
        return
    colour = str(episode.intent["cube"])  # type: ignore[index]
    assert lit == {LAMP_STATES.index(colour)}
    late = cut(episode, 0, len(episode) - 1, LIVE)
    assert late.told == ("lamp" if len(episode) <= 42 else "none")
    # the token that is labelled shows it: brightest there in the channel of that colour
    images = pictures(episode, sample, None).astype(int)[-1]
    where = np.flatnonzero((tokens[-1] - 1) % len(LAMP_STATES) == LAMP_STATES.index(colour))[0]
    side = images.shape[0] // GRID
    row, column = divmod(int(where), GRID)
    patch = images[row * side : (row + 1) * side, column * side : (column + 1) * side]
    own = patch[..., CHANNEL[colour]] - np.delete(patch, CHANNEL[colour], -1).max(-1)
    assert own.max() > 60


def test_it_goes_on_from_another_thinker(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    options: dict = {"see_steps": 1, "batch_size": 2, "threads": 1}
    stage.train(folder, first, run=tmp_path / "run", steps=1, **options)
    stage.train(folder, tmp_path / "second", run=tmp_path / "run2", steps=1, lr=0.0, start=first, **options)
    assert json.loads((tmp_path / "second" / "model.json").read_text())["training"]["start"].startswith(tiny.NAME)
    with pytest.raises(ThinkerError, match="no such folder"):
        stage.train(folder, tmp_path / "third", run=tmp_path / "run3", steps=1, start=tmp_path / "none", **options)
    words = json.loads((first / "tokenizer.json").read_text())
    (first / "tokenizer.json").write_text(json.dumps(words))  # another spelling: not the file that the manifest names
    with pytest.raises(ThinkerError):
        stage.train(folder, tmp_path / "third", run=tmp_path / "run3", steps=1, start=first, **options)
    assert not (tmp_path / "third").exists()


def test_without_steps_the_mini_is_written_untrained_and_with_steps_data_are_needed(tmp_path: Path) -> None:
    stage.train(None, tmp_path / "mini", run=tmp_path / "run", steps=0)
    assert Thinker.load(tmp_path / "mini").model_id.endswith(" (untrained)")
    with pytest.raises(ValueError, match="needs episodes"):
        stage.train(None, tmp_path / "x", run=tmp_path / "run", steps=5)
    with pytest.raises(EpisodeError, match="no folder"):
        stage.train(tmp_path / "nowhere", tmp_path / "x", run=tmp_path / "run", steps=5)
    assert not (tmp_path / "x").exists()


def test_classes_of_the_heads_cover_every_window(episodes: list[Episode]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        sample = draw(episodes, shares(episodes), float(rng.random()), rng)
        assert 0 <= sample.intent <= UNKNOWN and sample.so_far.min() >= 0 and sample.so_far.max() <= UNKNOWN
        assert sample.lamps.min() >= 0 and sample.lamps.max() < len(LAMP_STATES)
        assert len(sample.lamps) == len(sample.so_far) == len(sample.pairs) <= LIVE.max_pairs
