"""A small training in several processes, for test_distributed.py: FOLDER STEPS [key=value ...].

Every process trains `Net` on a batch that all draw alike, and writes to FOLDER/ends the weights it ends with
(weights.<rank>.pt), or the words it ended with instead (words.<rank>).

die_at: kill this process (SIGKILL) in that step. signal_at: send SIGTERM to the process of rank `who`. nan_at: make the
loss of rank `who` no number. pause_s: sleep in every step. odd: start rank 1 from other weights.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from thinkjepa_ros.train import distributed, objectives
from thinkjepa_ros.train.run import Run, Stopped

BATCH = 8


class Net(nn.Module):
    """Two layers, and a third that only every other step uses."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.first(x))
        return hidden, self.second(hidden) + (self.third(hidden) if step % 2 else 0)


def train(folder: Path, steps: int, options: dict[str, float]) -> dict[str, torch.Tensor]:
    """The weights after `steps`."""
    group = distributed.group()
    chosen = group.rank == options.get("who", 0)
    net = Net(int(options.get("odd", 0)) * group.rank)
    run = Run(folder, net, steps, 1e-2, 3, {"test": 1}, warm_up=3, save_every_s=options.get("save_s", 0.0), quiet=True)
    for step in run.steps("test", every=4):
        if step == options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == options.get("signal_at") and chosen:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(options.get("pause_s", 0.0))
        rng = run.random(step)
        x = torch.from_numpy(rng.normal(size=(BATCH, 6)).astype("float32"))
        directions = objectives.random_directions(rng, 16, 8)
        hidden, y = net(group.mine(x), step)
        error = (y - group.mine(x[:, :3].sin())).square().sum(-1)
        share = error.sum() / BATCH + objectives.sigreg(hidden, directions, group) / group.world
        if step == options.get("nan_at") and chosen:
            share = share * torch.nan
        norm = run.update(share)
        run.note(error=error.mean().item(), grad=norm)
    return net.state_dict()


def work(words: list[str], variables: dict[str, str]) -> None:
    """What a process does, in the environment `variables`."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    folder, rank = Path(words[0]), os.environ["RANK"]
    (folder / "ends").mkdir(exist_ok=True)
    options = {key: float(value) for key, value in (word.split("=") for word in words[2:])}
    try:
        torch.save(train(folder, int(words[1]), options), folder / "ends" / f"weights.{rank}.pt")
    except (Stopped, RuntimeError, ValueError) as error:
        (folder / "ends" / f"words.{rank}").write_text(str(error))
        sys.exit(1)


if __name__ == "__main__":
    work(sys.argv[1:], {})
