"""The thinker node on real topics with the real Qwen3-VL of the package, hosted in the test's process."""

from __future__ import annotations

import threading
import time
from functools import partial

import cv2
import numpy as np
import pytest
from rclpy.parameter import Parameter
from ros_kit import LATCHED, SOON_S, accounted, picture, wait_until
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from thinker_node_kit import START, STEP, Watched, hosted

from thinkjepa_ros.bridge.messages import guidance_from_message, make_header, packed, stamp_ns
from thinkjepa_ros.bridge.parameters import MAX_INSTRUCTION, MAX_TEMPLATE
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.thinker import inputs
from thinkjepa_ros.thinker.errors import Cancelled, ThinkerError


@pytest.fixture
def host(peer):
    return partial(hosted, peer)


@pytest.fixture
def thinker(peer, host):
    watched = Watched(peer, host())
    yield watched
    assert all(accounted(status) for status in watched.camera.statuses)


def test_guidance_is_a_whole_pyramid_with_text_and_stamp(thinker):
    thinker.play(12)
    message = wait_until(
        lambda: [g for g in thinker.guidance if stamp_ns(g.header.stamp) == START + 10 * STEP], "a thought"
    )[-1]
    guidance = guidance_from_message(message)
    assert (
        guidance.pyramid.shape == (4, 2, 128)
        and guidance.present == (True, True)
        and np.abs(guidance.pyramid).max() > 0
    )
    assert message.header.frame_id == "camera_optical" and message.trained == thinker.node.trained
    assert message.model_id.endswith("(untrained)") != message.trained and message.valid_for_s == pytest.approx(4.0)
    wait_until(lambda: thinker.texts and thinker.texts[-1].data == message.text, "the text")
    assert thinker.camera.status.model_id == message.model_id


def test_a_late_subscriber_gets_the_last_guidance(thinker):
    thinker.play(6)
    wait_until(lambda: thinker.guidance, "a thought")
    quiet = wait_until(lambda: thinker.node.ledger.counts().pending == 0 and len(thinker.guidance), "rest")
    late = thinker.peer.collect(GuidanceMsg, "/thinker/guidance", LATCHED)
    wait_until(lambda: late, "the latched one")
    assert late[0].sequence == thinker.guidance[-1].sequence and quiet


def test_no_thought_without_new_images(thinker):
    thinker.play(5)
    wait_until(
        lambda: thinker.guidance and stamp_ns(thinker.guidance[-1].header.stamp) == START + 3 * STEP, "a thought"
    )
    count, since = thinker.node.ledger.counts().published, time.monotonic()
    wait_until(lambda: time.monotonic() - since > 0.5, "ten periods")
    assert thinker.node.ledger.counts().published == count


def test_images_are_filed_while_it_thinks(thinker, monkeypatch):
    gate, entered, seen = threading.Event(), threading.Event(), []
    real = thinker.node._thinker.think

    def slow(frames, *args, **kwargs):
        seen.append([f.stamp_ns for f in frames])
        entered.set()
        gate.wait(SOON_S)
        return real(frames, *args, **kwargs)

    monkeypatch.setattr(thinker.node._thinker, "think", slow)
    thinker.play(1)
    wait_until(entered.is_set, "a thought begun")
    thinker.play(15, START + STEP)
    gate.set()
    wait_until(lambda: seen[-1][-1] == START + 15 * STEP, "a thought about the images that came meanwhile")
    assert len(seen[-1]) == 7 and len(seen) == 2, "one image per quarter of a second, and no thought in between"
    wait_until(lambda: thinker.node.ledger.counts().pending == 0, "all settled")
    counts = thinker.node.ledger.counts()
    assert (counts.received, counts.used, counts.superseded) == (16, 7, 9)


def test_a_new_instruction_cancels_the_thought_and_begins_a_fresh_one(thinker, monkeypatch):
    began, cancelled = [], []
    real = thinker.node._thinker.think

    def slow(frames, instruction, *, cancel, **kwargs):
        began.append(instruction)
        if instruction == "first":
            assert cancel.wait(SOON_S)
            cancelled.append(instruction)
            raise Cancelled("as asked")
        return real(frames, instruction, cancel=cancel, **kwargs)

    monkeypatch.setattr(thinker.node._thinker, "think", slow)
    assert thinker.peer.call(thinker.node.set_parameters, [Parameter("think_period_s", value=3600.0)])[0].successful
    thinker.instruct.publish(String(data="first"))
    wait_until(lambda: thinker.node._asked.instruction == "first", "the instruction")
    thinker.play(3)
    wait_until(lambda: began == ["first"], "a thought about it")
    thinker.instruct.publish(String(data="second"))
    guidance = thinker.next_guidance()
    assert cancelled == ["first"] and guidance.instruction == "second" and began == ["first", "second"]
    assert guidance.instruction_id and thinker.node.ledger.counts().published == 1


def test_the_limits_are_those_of_the_model():
    """The node refuses before the thinker would; the two must agree, and the node does not import the model's side."""
    assert (MAX_INSTRUCTION, MAX_TEMPLATE) == (inputs.MAX_INSTRUCTION_CHARS, inputs.MAX_QUESTION_CHARS)


def test_an_endless_instruction_is_refused(thinker):
    thinker.instruct.publish(String(data="x" * (MAX_INSTRUCTION + 1)))
    wait_until(
        lambda: "characters" in thinker.camera.status.last_error if thinker.camera.statuses else False, "the refusal"
    )
    assert thinker.node._asked.instruction == ""


def test_think_period_takes_effect_at_once(thinker):
    assert thinker.peer.call(thinker.node.set_parameters, [Parameter("think_period_s", value=3600.0)])[0].successful
    thinker.play(4)
    wait_until(lambda: thinker.guidance, "the first thought")
    seen = len(thinker.guidance)
    thinker.play(8, START + 4 * STEP)
    assert len(thinker.guidance) == seen
    assert thinker.peer.call(thinker.node.set_parameters, [Parameter("think_period_s", value=0.05)])[0].successful
    wait_until(lambda: len(thinker.guidance) > seen, "a thought well before the hour", 10.0)


def test_a_thought_that_fails_is_reported_and_survived(thinker, monkeypatch):
    real, calls = thinker.node._thinker.think, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) <= 2:
            raise ThinkerError("the model gave nonsense") if len(calls) == 1 else RuntimeError("CUDA error")
        return real(*args, **kwargs)

    monkeypatch.setattr(thinker.node._thinker, "think", failing)
    thinker.play(1)
    wait_until(lambda: thinker.camera.statuses and "nonsense" in thinker.camera.status.last_error, "the first report")
    thinker.play(1, START + 3 * STEP)
    wait_until(lambda: "CUDA error" in thinker.camera.status.last_error, "the second report")
    thinker.play(1, START + 6 * STEP)
    wait_until(
        lambda: thinker.guidance and stamp_ns(thinker.guidance[-1].header.stamp) == START + 6 * STEP, "a thought"
    )


def test_guidance_of_a_past_epoch_is_never_published(thinker, monkeypatch):
    gate, entered = threading.Event(), threading.Event()
    real = thinker.node._thinker.think

    def slow(frames, instruction, *, cancel, **kwargs):
        """A model that does not look at the cancel event."""
        entered.set()
        gate.wait(SOON_S)
        return real(frames, instruction, cancel=None, **kwargs)

    thinker.play(30)
    epoch = wait_until(lambda: thinker.guidance, "a thought")[-1].epoch
    wait_until(lambda: thinker.node.ledger.counts().pending == 0, "rest")
    monkeypatch.setattr(thinker.node._thinker, "think", slow)
    thinker.play(1, START + 30 * STEP)
    wait_until(entered.is_set, "a thought begun")
    published = thinker.node.ledger.counts().published
    thinker.play(4)  # the recording begins again
    wait_until(lambda: thinker.node.input.jumps == 1, "the jump")
    gate.set()
    guidance = wait_until(
        lambda: thinker.node.ledger.counts().published == published + 1 and thinker.guidance[-1], "a thought"
    )
    wait_until(lambda: stamp_ns(thinker.guidance[-1].header.stamp) <= START + 3 * STEP, "it is about the new epoch")
    assert thinker.guidance[-1].epoch == epoch + 1 and guidance


def test_a_model_call_that_does_not_return_is_hung(peer, host, monkeypatch):
    watched = Watched(peer, host(think_timeout_s=0.1))
    gate = threading.Event()
    real = watched.node._thinker.think
    monkeypatch.setattr(watched.node._thinker, "think", lambda *a, **k: (gate.wait(SOON_S), real(*a, **k))[1])
    watched.play(2)
    wait_until(lambda: watched.camera.statuses and watched.camera.status.state == NodeStatus.HUNG, "HUNG")
    assert watched.set(think_timeout_s=30.0).successful  # for the next thought, on whatever machine
    gate.set()
    watched.play(2, START + 5 * STEP)
    wait_until(lambda: watched.camera.status.state == NodeStatus.RUNNING, "RUNNING again")


def test_compressed_images_are_decoded_by_the_worker_and_broken_ones_refused(peer, host):
    node = host(image_transport="compressed")
    statuses = peer.collect(NodeStatus, "/thinker/status", LATCHED)
    images = peer.publisher(CompressedImage, "/image/compressed")
    jpeg = cv2.imencode(".jpg", picture(1))[1].ravel()
    cut = np.concatenate([jpeg[: len(jpeg) // 3], np.zeros(20, np.uint8)])
    for k, data in enumerate((jpeg, cut, jpeg[:40], jpeg)):
        message = CompressedImage(
            header=make_header(START + 3 * k * STEP, "camera_optical"), format="jpeg", data=packed("B", data)
        )
        images.publish(message)
        wait_until(lambda k=k: node.ledger.counts().received == k + 1, "the image received")
    wait_until(lambda: statuses and statuses[-1].used == 2 and statuses[-1].pending == 0, "two used")
    assert statuses[-1].refused == 2 and list(statuses[-1].reasons) == ["bad_image"] and accounted(statuses[-1])
    assert statuses[-1].published >= 1
