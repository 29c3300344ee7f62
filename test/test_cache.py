"""The cache of latents and thoughts: made once, shared by processes, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jepa_kit import config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_kit import maker, simulate, small_net, think

from thinkjepa_ros.commands.train_cache import part_of
from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.train import cache, clips
from thinkjepa_ros.train.cache import CacheError
from thinkjepa_ros.values import Guidance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("data") / "train", 3)


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return clips.load_folder(folder)


@pytest.fixture(scope="module")
def whole(episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that nothing happened to."""
    out = tmp_path_factory.mktemp("cache")
    assert cache.fill(episodes, maker(), out) == 3
    return out


def contents(folder: Path) -> dict[str, tuple[dict[str, str], dict[str, bytes]]]:
    """Header and numbers of every shard. The entries of a header have no order."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            found[path.name] = file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    return found


# ---------------------------------------------------------------- what is in it


def test_a_shard_holds_what_the_network_sees_and_the_thinker_says(episodes: list[Episode], whole: Path) -> None:
    net, episode = small_net().eval(), episodes[1]
    shard = cache.load(episodes, whole, maker().made_by)[1]
    assert shard.index[0] == 0 and (np.diff(shard.index) == 1).all() and len(shard.index) >= len(episode) - 1
    for k in (0, 17, len(shard.index) - 1):
        image = clips.canonical_images(episode, [int(shard.index[k])], net.config.camera)
        with torch.inference_mode():
            latent = net.encoder.frames(torch.from_numpy(image))
            pooled, pose = net.look(latent)
        assert torch.allclose(shard.full[k].float(), latent[0], atol=5e-3)
        assert torch.allclose(shard.pooled[k].float(), pooled[0], atol=5e-3)
        assert torch.allclose(shard.poses[k], pose[0], atol=1e-4)
    said = think(episode)
    assert shard.thought_ns.tolist() == [t.stamp_ns for t in said] and shard.texts == tuple(t.text for t in said)
    assert np.array_equal(shard.pyramids.numpy(), np.stack([t.pyramid for t in said]))


def test_without_a_thinker_there_are_no_thoughts(episodes: list[Episode], tmp_path: Path) -> None:
    alone = cache.Maker(small_net().eval())
    cache.fill(episodes[:1], alone, tmp_path)
    shard = cache.load(episodes[:1], tmp_path, alone.made_by)[0]
    assert not len(shard.thought_ns) and not len(shard.pyramids) and shard.texts == () and len(shard.full)


def test_what_decides_the_numbers_decides_the_name_of_the_maker() -> None:
    names = {maker().made_by, maker(words="another thinker").made_by}
    for part in ("encoder", "pose"):
        net = small_net()
        with torch.no_grad():
            next(getattr(net, part).parameters()).mul_(1.01)
        names.add(maker(net).made_by)
    assert len(names) == 4
    net = small_net()
    with torch.no_grad():  # neither of them has a say in what is cached
        net.predictor.query.mul_(2)
        next(net.motion.parameters()).mul_(2)
    assert maker(net).made_by == maker().made_by


@pytest.mark.parametrize("shape", ["clip", "stream"])
def test_a_model_that_sees_more_than_single_frames_is_refused(shape: str) -> None:
    made_as = (
        config(encoder={"tubelet": 2}, predictor={"context_steps": 2}, clip=True)
        if shape == "clip"
        else config(encoder={"tubelet": 2, "attention": "causal", "window": 2}, predictor={"context_steps": 2})
    )
    with pytest.raises(CacheError, match="frame by frame"):
        cache.Maker(model.ForecastNet(made_as))


# ---------------------------------------------------------------- made once


def test_what_is_there_is_kept(episodes: list[Episode], whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert cache.fill(episodes, maker(), whole) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_several_processes_share_the_work_and_leave_what_one_does(
    episodes: list[Episode], whole: Path, tmp_path: Path
) -> None:
    assert [cache.fill(episodes, maker(), tmp_path, rank=rank, world=2) for rank in (1, 0)] == [1, 2]
    assert contents(tmp_path) == contents(whole)
    assert cache.fill(episodes, maker(), tmp_path, rank=6, world=7) == 0, "more processes than episodes"


def _filling(data: Path, out: Path, when: str) -> None:
    """Fill, and be killed in the middle: while the second episode is thought about, or before its file has its name."""
    started: list[int] = []

    def thinking(episode: Episode) -> list[Guidance]:
        started.append(episode.seed)
        if len(started) == 2 and when == "thinking":
            os.kill(os.getpid(), signal.SIGKILL)
        return think(episode)

    if when == "writing":
        real = os.replace

        def rename(source: str, target: str) -> None:
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = rename  # type: ignore[assignment]
        Path.replace = lambda self, target: rename(self, target)  # type: ignore[assignment,method-assign]
    torch.set_num_threads(1)
    cache.fill(clips.load_folder(data), cache.Maker(small_net().eval(), thinking, "noise"), out)


@pytest.mark.parametrize("when", ["thinking", "writing"])
def test_a_killed_process_goes_on_and_leaves_nothing_half(
    folder: Path, episodes: list[Episode], whole: Path, tmp_path: Path, when: str
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_filling, args=(folder, tmp_path, when))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(contents(tmp_path)) == 1
    assert cache.fill(episodes, maker(), tmp_path) == 2
    assert contents(tmp_path) == contents(whole)


# ---------------------------------------------------------------- nothing else is taken for it


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-4000] ^= 0x10
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_text("not a shard")


def of_another_episode(path: Path) -> None:
    other = next(p for p in sorted(path.parent.iterdir()) if p != path)
    shutil.copy(other, path)


def without_a_header(path: Path) -> None:
    save_file(load_file(path), path)


def without_poses(path: Path) -> None:
    tensors = load_file(path)
    del tensors["poses"]
    save_file(tensors, path, {"texts": "[]"})


DAMAGES = [
    (cut, "is damaged"),
    (flipped, "its checksum does not match"),
    (emptied, "is damaged"),
    (overwritten, "is damaged"),
    (of_another_episode, "another encoder, thinker or episode"),
    (without_a_header, "is damaged"),
    (without_poses, "is damaged"),
    (Path.unlink, "is missing"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=lambda x: getattr(x, "__name__", None))
def test_a_shard_that_is_not_right_is_refused_with_the_remedy_and_made_again(
    episodes: list[Episode], whole: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(whole, out)
    path = cache.shard_path(out, episodes[0])
    damage(path)
    with pytest.raises(CacheError, match=rf"{path.name}.*{words}.*`thinkjepa train cache` makes it"):
        cache.load(episodes, out, maker().made_by)
    assert cache.fill(episodes, maker(), out) == 1
    assert contents(out) == contents(whole)


def test_latents_of_another_encoder_are_refused_and_made_again(
    episodes: list[Episode], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(whole, out)
    changed = small_net()
    with torch.no_grad():
        changed.encoder.norm.weight.mul_(2)
    other = maker(changed)
    with pytest.raises(CacheError, match="another encoder, thinker or episode"):
        cache.load(episodes, out, other.made_by)
    assert cache.fill(episodes, other, out) == 3
    assert contents(out) != contents(whole) and len(cache.load(episodes, out, other.made_by)) == 3


def test_an_episode_that_was_made_anew_is_not_given_the_old_latents(episodes: list[Episode], whole: Path) -> None:
    told = dataclasses.replace(episodes[0], instruction="Put the red cube on the left tray.")
    with pytest.raises(CacheError, match="another encoder, thinker or episode"):
        cache.load([told], whole, maker().made_by)


# ---------------------------------------------------------------- whose part


@pytest.mark.parametrize(
    ("given", "environment", "part"),
    [
        ((None, None), {}, (0, 1)),
        ((2, 3), {"RANK": "0", "WORLD_SIZE": "2"}, (2, 3)),
        ((None, None), {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        (
            (None, None),
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1",
             "SLURM_ARRAY_TASK_STEP": "2"},
            (2, 3),
        ),
    ],
)  # fmt: skip
def test_a_process_knows_its_part(
    given: tuple[int | None, int | None], environment: dict[str, str], part: tuple[int, int]
) -> None:
    assert part_of(*given, environment) == part


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        ((1, None), {}, "belong together"),
        ((None, 4), {"RANK": "0", "WORLD_SIZE": "2"}, "belong together"),
        ((3, 3), {}, "--rank is 3 of --world-size 3"),
        ((None, None), {"RANK": "1"}, "RANK is '1' and WORLD_SIZE is ''"),
        ((None, None), {"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ((None, None), {"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ((None, None), {"SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID is ''"),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID is 4"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(
    given: tuple[int | None, int | None], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        part_of(*given, environment)
