"""Stages `forecast` and `guide`: what they are shown and learn, and that stops and processes change nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from group_kit import in_processes
from training_kit import maker, save_every_step, saved_step, simulate, small_net, tracks_of, train, train_in_a_process

from thinkjepa_ros.data.episode import Episode
from thinkjepa_ros.jepa import model
from thinkjepa_ros.jepa.guidance import Ready, amount_of
from thinkjepa_ros.train import clips, forecast
from thinkjepa_ros.train.distributed import Group
from thinkjepa_ros.train.mini import mean_pose, settled_dtype
from thinkjepa_ros.train.run import Run
from thinkjepa_ros.train.tracks import Tracks

MANY = 1500


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("data") / "train", 2)


@pytest.fixture(scope="module")
def episodes(data: Path) -> list[Episode]:
    return clips.load_folder(data)


@pytest.fixture(scope="module")
def tracks(episodes: list[Episode]) -> Tracks:
    return tracks_of(episodes)


def drawn(
    tracks: Tracks, size: int = MANY, seed: int = 0, guided: bool = True, **options
) -> tuple[forecast.Batch, np.ndarray]:
    """A batch and the samples that are the origins of its rows."""
    net = small_net().eval()
    origins = forecast.Origins.of(tracks, net.config.predictor.latents)
    batch = forecast.batch(tracks, net, origins, size, np.random.default_rng(seed), guided, **options)
    return batch, origins.draw(size, np.random.default_rng(seed))


def opened() -> model.ForecastNet:
    """A network that listens, and whose readouts differ."""
    net = small_net().eval()
    assert net.predictor.film is not None and net.guided_motion is not None
    torch.nn.init.constant_(net.predictor.film.gate, 0.3)
    for readout, std in ((net.motion, 0.05), (net.guided_motion, 0.1)):
        torch.nn.init.normal_(readout.out.weight, std=std)
    return net


# ---------------------------------------------------------------- what it is shown


def test_stage_guide_gives_a_thought_wherever_there_is_one(tracks: Tracks) -> None:
    batch, samples = drawn(tracks)
    assert batch.payload is not None and batch.payload.weight is not None and len(batch.poses) == MANY
    weight = batch.payload.weight.numpy()
    possible = tracks.thought_before(samples, int(forecast.LATE_S[1] * 1e9)) >= 0
    assert (weight[possible] > 0).all()
    given = weight[weight > 0]
    assert (given == 1).mean() == pytest.approx(0.7, abs=0.05), "the others fade"
    assert 0.05 <= given.min() < 0.2 and given.max() == 1
    impossible = tracks.thought_before(samples, int(forecast.LATE_S[0] * 1e9)) < 0
    assert impossible.any() and not weight[impossible].any()


def test_stage_forecast_gives_none_at_the_same_origins(tracks: Tracks) -> None:
    with_thoughts, without = drawn(tracks, 6)[0], drawn(tracks, 6, guided=False)[0]
    assert without.payload is None and torch.equal(without.poses, with_thoughts.poses)
    for name, part in vars(without.window).items():
        assert torch.equal(part.nan_to_num(9.0), getattr(with_thoughts.window, name).nan_to_num(9.0)), name


def test_half_of_the_origins_are_those_at_which_something_moves(tracks: Tracks) -> None:
    moving, origins = tracks.moving(), forecast.Origins.of(tracks, 4)
    share = moving[origins.all].mean()
    assert 0.1 < share < 0.9
    samples = origins.draw(4 * MANY, np.random.default_rng(0))
    wanted = forecast.FOCUS + (1 - forecast.FOCUS) * share
    assert moving[samples].mean() == pytest.approx(wanted, abs=0.03)
    assert np.isin(samples, tracks.origins(4)).all()


def test_a_thought_is_as_old_as_one_of_a_live_thinker_or_older(tracks: Tracks) -> None:
    numbered = tracks.with_thoughts(
        torch.arange(len(tracks.thought_ns))[:, None, None, None].expand(-1, 2, 2, 6).float()
    )
    batch, samples = drawn(numbered)
    assert batch.payload is not None and batch.payload.prompt is not None and batch.payload.weight is not None
    given = batch.payload.weight.numpy() > 0
    number = batch.payload.prompt.flatten(1)[:, 0].long().numpy()[given]
    age = (tracks.stamps_ns[samples[given]] - tracks.thought_ns[number]) * 1e-9
    assert age.min() >= forecast.LATE_S[0]
    assert age.max() <= forecast.LATE_S[1] + 0.6 + 0.1, "the newest of those that are old enough"


@pytest.mark.parametrize("streams", [(True, False), (False, True)])
def test_a_stream_that_is_not_given_changes_nothing(tracks: Tracks, streams: tuple[bool, bool]) -> None:
    net = opened()
    future = forecast.Future(net)
    pyramids = tracks.pyramids.clone()
    pyramids[:, :, streams.index(False)] = 100.0
    losses = [
        forecast.losses(net, future, drawn(t, 16, streams=streams)[0])[0]
        for t in (tracks, tracks.with_thoughts(pyramids))
    ]
    assert torch.equal(*losses)
    both = forecast.losses(net, future, drawn(tracks, 16)[0])[0]
    assert not torch.equal(both, losses[0])


def test_a_third_of_the_rows_starts_from_an_observed_pose(tracks: Tracks) -> None:
    batch, _ = drawn(tracks)
    w = batch.window
    seen = w.present.isfinite().all(-1)
    anchored = torch.isclose(batch.poses[:, -1], w.present, atol=1e-6).all(-1)
    whole = (anchored | ~seen).all(1)
    assert float(whole.float().mean()) == pytest.approx(forecast.ANCHORED, abs=0.05)
    shift = batch.poses - w.poses
    assert torch.allclose(shift, shift[:, -1:].expand_as(shift), atol=1e-5), "the whole past is moved alike"
    assert not shift[~whole].any()


def test_a_joint_that_is_not_known_now_is_no_anchor_and_no_target(episodes: list[Episode]) -> None:
    joints = episodes[0].joints.copy()
    joints[:, 3] = np.nan
    tracks = tracks_of([dataclasses.replace(episodes[0], joints=joints), episodes[1]])
    batch, samples = drawn(tracks, 64)
    rows = torch.from_numpy(tracks.episode[samples] == 0)
    assert torch.equal(batch.poses[rows][:, :, 3], batch.window.poses[rows][:, :, 3])
    net = small_net().eval()
    loss, notes = forecast.losses(net, forecast.Future(net), batch)
    assert loss.isfinite() and all(np.isfinite(list(notes.values())))


def test_rows_of_weight_zero_are_those_of_a_model_without_a_thinker(tracks: Tracks) -> None:
    net = opened()
    future = forecast.Future(net)
    batch, _ = drawn(tracks, 64)
    assert batch.payload is not None and batch.payload.weight is not None
    with torch.no_grad():
        guided, alone = (future(batch.window, batch.poses, payload)[0] for payload in (batch.payload, None))
    unguided = batch.payload.weight == 0
    assert 2 <= int(unguided.sum()) < 32
    assert torch.equal(guided[unguided], alone[unguided])
    assert not torch.isclose(guided[~unguided], alone[~unguided], atol=1e-6).all()


def test_the_second_readout_counts_as_much_as_the_guidance(tracks: Tracks) -> None:
    net = opened()
    batch, _ = drawn(tracks, 16)
    assert batch.payload is not None and net.guided_motion is not None
    w, amount = batch.window, amount_of(batch.payload)
    with torch.no_grad():
        displacement, log_sigma, future = net.forecast(w.past, w.now, batch.poses, batch.payload)
        one, other = (readout(future, w.now, batch.poses) for readout in (net.motion, net.guided_motion))
    share = amount[:, None, None]
    assert torch.allclose(displacement, one[0] + share[..., None] * (other[0] - one[0]), atol=1e-6)
    assert torch.allclose(log_sigma, one[1] + share * (other[1] - one[1]), atol=1e-6)
    whole = amount == 1
    assert whole.any() and torch.equal(displacement[whole], other[0][whole])
    asked: list[torch.Tensor] = []
    net.motion.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    with torch.no_grad():
        fresh = net.read(future, w.now, batch.poses, Ready([], torch.ones(16)))
    assert torch.equal(fresh[0], other[0]) and torch.equal(fresh[1], other[1])
    assert not asked, "what would not count is not computed"


def test_the_loss_is_that_of_the_network_that_will_forecast(tracks: Tracks) -> None:
    net = opened()
    batch, _ = drawn(tracks, 8)
    with torch.no_grad():
        for one, two in zip(
            forecast.Future(net)(batch.window, batch.poses, batch.payload),
            net.forecast(batch.window.past, batch.window.now, batch.poses, batch.payload),
            strict=True,
        ):
            assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_losses_teach_every_part_of_a_stage_and_nothing_else(tracks: Tracks, tmp_path: Path, guided: bool) -> None:
    net, start = train(tracks, tmp_path, steps=2, guided=guided)[0], small_net().state_dict()
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, start[name])}
    changed -= {"predictor.film.gate"} if not guided else set()  # `train` opens it
    parts = ("predictor.film.", "guided_motion.") if guided else ("predictor.", "motion.")
    wanted = {name for name, _ in net.named_parameters() if name.startswith(parts)}
    if not guided:
        wanted = {name for name in wanted if not name.startswith("predictor.film.")}
    assert changed == wanted
    assert mean_pose(tracks).shape == (24, 3)


def test_a_thinker_takes_nothing_from_forecasts_without_one(tracks: Tracks, tmp_path: Path) -> None:
    """Stage `guide` begins where `forecast` ended, and leaves silent forecasts as they were, bit by bit."""
    net, _ = train(tracks, tmp_path / "forecast")
    batch, _ = drawn(tracks, 8)
    w = batch.window

    def both() -> list[torch.Tensor]:
        with torch.no_grad():
            return [net.forecast(w.past, w.now, batch.poses, payload)[0] for payload in (None, batch.payload)]

    before = both()
    options = {"steps": 3, "batch_size": 8, "lr": 1e-2, "seed": 5, "describe": {}}
    forecast.train(tracks, net, tmp_path / "guide", guided=True, quiet=True, **options)
    silent, guided = both()
    assert torch.equal(silent, before[0]) and not torch.equal(guided, before[1])
    with pytest.raises(ValueError, match="has no guide to train"):
        bare = type(net)(dataclasses.replace(net.config, guided_readout=False))
        forecast.train(tracks, bare, tmp_path / "bare", guided=True, quiet=True, **options)


def test_parts_of_a_batch_add_up_to_the_whole(tracks: Tracks) -> None:
    """Whatever a row knows of its future, it counts as much as in a batch of one process."""
    net = small_net().eval()
    future = forecast.Future(net)
    whole, _ = drawn(tracks, 12)
    loss, _ = forecast.losses(net, future, whole)

    class Half(Group):
        def total(self, x: torch.Tensor) -> torch.Tensor:
            return x

    shares = []
    for rank in (0, 1):
        part, _ = drawn(tracks, 12, group=Half(rank, 2))
        assert len(part.poses) == 6 and torch.equal(part.poses, whole.poses[rank::2])
        part = dataclasses.replace(part, count=whole.count, tubelets=whole.tubelets)
        shares.append(forecast.losses(net, future, part)[0])
    assert torch.allclose(shares[0] + shares[1], loss, atol=1e-4)


# ---------------------------------------------------------------- the run


@pytest.mark.parametrize("guided", [False, True])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    tracks: Tracks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    whole, _ = train(tracks, tmp_path / "whole", guided=guided)

    class Killed(Exception):
        pass

    done = 0
    real = Run.update

    def update(run: Run, loss: torch.Tensor) -> float:
        nonlocal done
        done += 1
        if done == 3:
            raise Killed
        return real(run, loss)

    save_every_step(monkeypatch)
    monkeypatch.setattr(Run, "update", update)
    with pytest.raises(Killed):
        train(tracks, tmp_path / "cut", guided=guided)
    assert saved_step(tmp_path / "cut") == 2
    monkeypatch.setattr(Run, "update", real)
    again, run = train(tracks, tmp_path / "cut", guided=guided)
    assert run.step == 4
    start = small_net().state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        part = name.split(".")[0]
        if part in ("encoder", "pose"):
            assert torch.equal(tensor, start[name]), "frozen"
    moved = "guided_motion" if guided else "motion"
    assert not torch.equal(whole.state_dict()[f"{moved}.out.weight"], start[f"{moved}.out.weight"])


def test_a_run_in_another_type_is_not_resumed(tracks: Tracks, tmp_path: Path) -> None:
    train(tracks, tmp_path, steps=1)
    with pytest.raises(ValueError, match="other settings"):
        train(tracks, tmp_path, steps=1, dtype="bfloat16")


def test_in_bfloat16_it_learns_nearly_the_same_and_weights_stay_whole(tracks: Tracks, tmp_path: Path) -> None:
    whole, _ = train(tracks, tmp_path / "float32", steps=3)
    half, _ = train(tracks, tmp_path / "bfloat16", steps=3, dtype="bfloat16")
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32 and tensor.isfinite().all(), name
    start, exact, rounded = (
        torch.cat([p.detach().flatten() for p in net.predictor.parameters()]) for net in (small_net(), whole, half)
    )
    assert torch.cosine_similarity(exact - start, rounded - start, dim=0) > 0.8


@pytest.mark.parametrize("guided", [False, True])
def test_two_processes_end_with_the_weights_of_one(data: Path, tracks: Tracks, tmp_path: Path, guided: bool) -> None:
    alone, _ = train(tracks, tmp_path / "one", guided=guided)
    folder = tmp_path / "two"
    folder.mkdir()
    assert in_processes(2, train_in_a_process, data, folder, guided) == [0, 0]
    first, second = (torch.load(folder / f"weights.{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(tensor, first[name], atol=2e-5), name


def test_episodes_that_are_too_short_are_refused_with_words(episodes: list[Episode], tmp_path: Path) -> None:
    shard = maker().make(episodes[0])
    few = dataclasses.replace(
        shard, full=shard.full[:4], pooled=shard.pooled[:4], poses=shard.poses[:4], index=shard.index[:4]
    )
    with pytest.raises(ValueError, match="no episode is longer than the 4 grid samples"):
        train(Tracks.of(episodes[:1], [few]), tmp_path)


# ---------------------------------------------------------------- its type


def test_the_type_that_was_chosen_first_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice by timing may come out differently on a machine that has other work now."""
    from thinkjepa_ros.jepa import precision

    device, file = torch.device("cpu"), tmp_path / "run" / "dtype"
    answers = [torch.bfloat16, torch.float32]
    monkeypatch.setattr(precision, "choose", lambda *_: precision.Choice(answers.pop(0), "test"))
    assert settled_dtype("auto", device, 24, file) == "bfloat16"
    assert settled_dtype("auto", device, 24, file) == "bfloat16" and len(answers) == 1
    file.write_text("nonsense")
    assert settled_dtype("auto", device, 24, file) == "float32" == file.read_text()
    assert settled_dtype("bfloat16", device, 24, file) == "bfloat16", "what is asked for is done"
