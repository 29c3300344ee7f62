"""Faults inside the real model of a running thinker: each is said in ~/status, and the next thought works."""

from __future__ import annotations

import contextlib

import pytest
import torch
from ros_kit import wait_until
from thinker_node_kit import START, STEP, Watched, hosted, within_the_model

from thinkjepa_ros.bridge.messages import stamp_ns
from thinkjepa_ros.msg import NodeStatus


def raising(error: BaseException):
    def act():
        raise error

    return act


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@contextlib.contextmanager
def scaled(node, factor: float):
    """A layer whose weights have grown: they are finite, what they make of its input is not."""
    mlp = node._thinker._model.model.language_model.layers[1].mlp
    weights = {mlp.down_proj.weight: factor, mlp.up_proj.weight: 1e3}
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, by in weights.items():
            weight.mul_(by)
            assert weight.isfinite().all()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def fails_once_then_thinks(thinker: Watched, fault, words: str) -> None:
    """A thought under `fault` is reported with `words` and gives no guidance; the one after it does."""
    thinker.play(1)
    wait_until(lambda: thinker.guidance, "a thought before")
    wait_until(lambda: thinker.node.busy_s == 0, "its end")
    with fault:
        thinker.play(1, START + 5 * STEP)
        wait_until(
            lambda: thinker.camera.statuses and words in thinker.camera.status.last_error,
            lambda: f"{words!r} in {thinker.camera.statuses[-1:]}",
        )
        assert "no thought" in thinker.camera.status.last_error
        wait_until(lambda: thinker.node.busy_s == 0, "its end")
    thinker.play(1, START + 10 * STEP)
    message = wait_until(lambda: thinker.guidance[-1].sequence == 2 and thinker.guidance[-1], "a thought after")
    assert stamp_ns(message.header.stamp) == START + 10 * STEP
    wait_until(lambda: thinker.camera.status.state == NodeStatus.RUNNING, "RUNNING")
    assert thinker.node._thoughts.figures()["thoughts failed"] == "1"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")), "out of memory"),
        (raising(MemoryError()), "out of memory"),
        (allocate_too_much, "memory"),
        (raising(RuntimeError("CUDA error: an illegal memory access was encountered")), "illegal memory access"),
        (raising(KeyError("an error that nobody expects")), "nobody expects"),
    ],
    ids=["device memory", "host memory", "a real allocation", "a broken kernel", "anything else"],
)
def test_a_fault_in_the_model_is_reported_and_survived(peer, fault, words):
    thinker = Watched(peer, hosted(peer))
    fails_once_then_thinks(thinker, within_the_model(thinker.node, fault), words)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 3e37), ("float16", 2e4)])
def test_states_that_are_not_finite_are_reported_and_survived(peer, dtype, factor):
    thinker = Watched(peer, hosted(peer, dtype=dtype))
    fails_once_then_thinks(thinker, scaled(thinker.node, factor), "not finite")


def test_a_thinker_that_fails_again_and_again_is_in_the_state_error_until_it_thinks(peer):
    thinker = Watched(peer, hosted(peer))
    with within_the_model(thinker.node, raising(MemoryError())):
        for k in range(6):
            failed = thinker.node._thoughts.figures()["thoughts failed"]
            thinker.play(1, START + 3 * k * STEP)
            wait_until(lambda f=failed: thinker.node._thoughts.figures()["thoughts failed"] != f, "a failure")
        wait_until(lambda: thinker.camera.status.state == NodeStatus.ERROR, "ERROR")
    assert not thinker.guidance
    thinker.play(1, START + 30 * STEP)
    wait_until(lambda: thinker.guidance and thinker.camera.status.state == NodeStatus.RUNNING, "RUNNING")
