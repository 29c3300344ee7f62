"""Training with several processes: N of them do what one does, stop together, and go on where they were."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import group_worker
import pytest
import torch
from group_kit import free_port, in_processes

from thinkjepa_ros.train import distributed
from thinkjepa_ros.train.distributed import ALONE, Group

STEPS = 10


def two_processes(folder: Path, *options: str) -> list[int]:
    """Exit codes of a training in two processes."""
    return in_processes(2, group_worker.work, [str(folder), str(STEPS), *options])


def end(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / "ends" / f"weights.{rank}.pt", weights_only=True)


def words(folder: Path) -> list[str]:
    return [(folder / "ends" / f"words.{rank}").read_text() for rank in (0, 1)]


def saved_step(folder: Path) -> int:
    return int(torch.load(folder / "state.pt", weights_only=True)["step"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed; the second one had begun from other weights."""
    folder = tmp_path_factory.mktemp("two")
    assert two_processes(folder, "odd=1") == [0, 0]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    """The same in this process alone: its weights and its folder."""
    folder = tmp_path_factory.mktemp("one")
    return group_worker.train(folder, STEPS, {}), folder


def test_two_processes_end_with_the_weights_of_one(two: Path, one: tuple[dict[str, torch.Tensor], Path]) -> None:
    assert equal(end(two, 0), end(two, 1)) and near(end(two), one[0])
    start = group_worker.Net().state_dict()
    assert all((tensor - start[name]).abs().max() > 1e-3 for name, tensor in one[0].items()), "every layer was trained"


def test_the_log_of_two_processes_is_that_of_one(two: Path, one: tuple[dict[str, torch.Tensor], Path]) -> None:
    assert [row["step"] for row in rows(two)] == [4, 8, 10]
    for mine, theirs in zip(rows(two), rows(one[1]), strict=True):
        del mine["seconds"], theirs["seconds"]
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_only_the_first_process_writes(two: Path) -> None:
    assert {path.name for path in two.iterdir()} <= {"ends", "log.csv", "log.png", "state.pt", "tensorboard"}
    assert len(list((two / "tensorboard").glob("*"))) <= 1


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(two: Path, tmp_path: Path, who: int) -> None:
    assert two_processes(tmp_path, "save_s=99", "signal_at=5", f"who={who}") == [1, 1]
    assert all("stopped at step 6 of 10" in said for said in words(tmp_path)) and saved_step(tmp_path) == 6
    assert two_processes(tmp_path) == [0, 0]
    assert equal(end(tmp_path, 0), end(two)) and equal(end(tmp_path, 1), end(two))
    assert [row["error"] for row in rows(tmp_path)] == [row["error"] for row in rows(two)]


def test_processes_that_were_killed_go_on_with_the_same_result(two: Path, tmp_path: Path) -> None:
    assert two_processes(tmp_path, "die_at=5") == [-signal.SIGKILL] * 2
    assert saved_step(tmp_path) == 5
    assert two_processes(tmp_path) == [0, 0]
    assert equal(end(tmp_path), end(two))


def test_one_process_goes_on_where_two_were_stopped(
    two: Path, one: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    two_processes(tmp_path, "die_at=5")
    assert near(group_worker.train(tmp_path, STEPS, {}), one[0])


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path: Path) -> None:
    assert two_processes(tmp_path, "nan_at=3", "who=1") == [1, 1]
    assert all("the loss is not finite at step 3" in said for said in words(tmp_path)) and saved_step(tmp_path) == 3


@pytest.mark.slow
def test_ctrl_c_to_torchrun_saves_before_it_ends(tmp_path: Path) -> None:
    """The terminal signals the whole group, and torchrun passes the signal on: its processes get it twice."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, group_worker.__file__, str(tmp_path), "100000", "save_s=99", "pause_s=0.02"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    agent = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "log.csv").exists() and time.monotonic() < deadline:
            assert agent.poll() is None, "torchrun ended by itself"
            time.sleep(0.05)
        os.killpg(agent.pid, signal.SIGINT)
        assert agent.wait(60) != 0
    finally:
        agent.kill()
    step = saved_step(tmp_path)
    assert step >= 4 and all(f"stopped at step {step} of 100000" in said for said in words(tmp_path))


# ---------------------------------------------------------------- without other processes


def test_alone_everything_passes_through_unchanged() -> None:
    x = torch.randn(4, requires_grad=True)
    assert ALONE.first and ALONE.mine(x) is x and ALONE.mean(x) is x and ALONE.gather("a") == ["a"]
    assert torch.equal(ALONE.total(x), x) and not ALONE.total(x).requires_grad
    ALONE.wait()


def test_parts_are_disjoint_and_whole() -> None:
    whole = list(range(7))
    assert sorted(Group(0, 3).mine(whole) + Group(1, 3).mine(whole) + Group(2, 3).mine(whole)) == whole
    assert Group(1, 2).mine(torch.arange(5)).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("variables", "culprit"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_PORT and MASTER_ADDR"),
        ({"RANK": "zero", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "-2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "WORLD_SIZE"),
    ],
)
def test_half_an_environment_is_refused(
    variables: dict[str, str], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"but {culprit} make no sense; start the processes by torchrun"):
        distributed.group()


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.group() is ALONE
