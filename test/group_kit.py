"""Runs a function in several processes that are set up as torchrun sets them up."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120

#: Its processes are forked off one that has imported torch already: that takes longer than the tests.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["thinkjepa_ros.train.encoder", "torch.utils.tensorboard", "matplotlib.backends.backend_agg"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_processes(world: int, work: Callable[..., Any], *arguments: Any) -> list[int]:
    """Exit codes of `world` processes that call work(*arguments, variables): the environment they are to set."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(world):
        variables = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        started.append(_CONTEXT.Process(target=work, args=(*arguments, variables)))
        started[-1].start()
    try:
        for process in started:
            process.join(PATIENCE_S)
        return [process.exitcode if process.exitcode is not None else 999 for process in started]
    finally:
        for process in started:
            process.kill()
