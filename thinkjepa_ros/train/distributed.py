"""Training with several processes: `torchrun --nproc-per-node 2 -m -- thinkjepa_ros.cli train encoder DATA`.

Every process draws the same batch from (seed, step), computes its part of it (`Group.mine`), and gives `Run.update` its
share of the loss: the sum over its part, divided by the count of the whole. Gradients are summed over the processes, so
that N of them do what one does, up to rounding. All of them see the same folders; only the first one writes.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

Part = TypeVar("Part", np.ndarray, Tensor, list)
_NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")
#: One process may work alone for long while the others wait (a cache); a dead one is noticed by its closed connection.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Group:
    """The processes of a training. A group of one passes everything through unchanged."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mine(self, whole: Part) -> Part:
        """The part of this process: every `world`-th item."""
        return whole if self.world == 1 else whole[self.rank :: self.world]

    def total(self, x: Tensor) -> Tensor:
        """Sum of x over the processes, without gradient."""
        x = x.detach()
        if self.world == 1:
            return x
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Mean of x over the processes, with gradient: for a statistic of the whole batch, such as SIGReg's.

        Every process must go on with the result, and give `Run.update` its share (a `world`-th) of what comes of it.
        """
        return x if self.world == 1 else _Sum.apply(x) / self.world

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every process, by rank. For a few small things: numbers, names."""
        if self.world == 1:
            return [thing]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, thing)
        return found

    def sum_gradients(self, net: nn.Module) -> None:
        """Sum the gradients of `net` over the processes; a weight without one anywhere keeps none."""
        if self.world == 1:
            return
        weights = [p for p in net.parameters() if p.requires_grad]
        has = torch.tensor([p.grad is not None for p in weights], dtype=torch.float32)
        anywhere = self.total(has) > 0
        weights = [p for p, there in zip(weights, anywhere.tolist(), strict=True) if there]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        flat = self.total(torch.cat([g.flatten() for g in gradients])) if gradients else torch.zeros(0)
        for weight, part in zip(weights, flat.split([g.numel() for g in gradients]), strict=True):
            weight.grad = part.view_as(weight)

    def same_weights(self, net: nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        if self.world > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all processes are here: what the first one wrote before is there for all."""
        if self.world > 1:
            dist.barrier()


#: The group of a training that torchrun did not start.
ALONE = Group()


class _Sum(torch.autograd.Function):
    """Sum over the processes. Every process's loss depends on it, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def launched() -> bool:
    """Whether torchrun (or something like it) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def group() -> Group:
    """The group this process belongs to, joined on the first call; one alone where torchrun did not start it.

    Tensors in main memory go through gloo, those of a GPU through NCCL where every process has one of its own.
    Raises ValueError where the environment tells only half of it.
    """
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    if not launched():
        return ALONE
    if os.environ["WORLD_SIZE"] == "1":
        return ALONE
    wrong = [name for name in _NUMBERS if not os.environ.get(name, "").isdecimal()]
    wrong += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise ValueError(
            f"RANK and WORLD_SIZE are set, but {' and '.join(wrong)} make no sense; start the processes by torchrun"
        )
    dist.init_process_group(_backend(), timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return Group(dist.get_rank(), dist.get_world_size())


def _backend() -> str:
    """Chooses the GPU of this process, too: "cuda" then means that one."""
    local, beside = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local % gpus)
    return "cpu:gloo,cuda:nccl" if gpus >= beside else "gloo"
