"""How a running thinker is steered and what it tells: text, template, requests, skipped turns, long thoughts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from ros_kit import LATCHED, NS, accounted, wait_until
from std_msgs.msg import String
from thinker_kit import mini_folder  # untrained: it never stops by itself
from thinker_node_kit import START, STEP, Gate, Watched, hosted, slow, within_the_model

from thinkjepa_ros.bridge.messages import stamp_ns
from thinkjepa_ros.bridge.parameters import MAX_TEMPLATE
from thinkjepa_ros.bridge.thoughts import MORE
from thinkjepa_ros.msg import NodeStatus


@pytest.fixture
def watch(peer):
    """Hosts a thinker with the given parameters; in the end every status it gave must add up."""
    made: list[Watched] = []

    def make(**parameters) -> Watched:
        made.append(Watched(peer, hosted(peer, **parameters)))
        return made[-1]

    yield make
    for watched in made:
        assert all(accounted(status) for status in watched.camera.statuses)


def settle(thinker: Watched) -> None:
    """Wait until nothing is left to think about and all guidance is here."""
    wait_until(lambda: thinker.node.ledger.counts().pending == 0, "every image looked at")
    wait_until(lambda: thinker.node.busy_s == 0, "no thought under way")
    wait_until(lambda: thinker.guidance, "guidance")
    wait_until(lambda: thinker.guidance[-1].sequence == thinker.node._thoughts._numbered[1], "the last guidance")


# ---- text


def test_text_is_streamed_while_it_thinks_and_ends_with_the_final_one(watch):
    thinker = watch(model=str(mini_folder()), max_new_tokens=12, think_tokens=4, think_period_s=60.0)
    with within_the_model(thinker.node, slow(0.06)):
        thinker.play(1)
        message = thinker.next_guidance()
    *partial_texts, final = wait_until(lambda: message.text in [t.data for t in thinker.texts] and thinker.texts, "it")
    assert final.data == message.text and not final.data.endswith(MORE)
    said = [text.data.removesuffix(MORE) for text in partial_texts]
    assert len(said) >= 3 and all(text.data.endswith(MORE) for text in partial_texts)
    assert all(later.startswith(earlier) for earlier, later in pairwise(said))


def test_what_a_cancelled_thought_had_said_is_taken_back(watch):
    thinker = watch(model=str(mini_folder()), max_new_tokens=64, think_tokens=2)
    thinker.play(1)
    first = thinker.next_guidance() if not thinker.guidance else thinker.guidance[-1]
    wait_until(lambda: thinker.texts and thinker.texts[-1].data == first.text, "its text")
    with within_the_model(thinker.node, slow(0.3)):
        thinker.play(1, START + 5 * STEP)
        wait_until(lambda: thinker.texts[-1].data.endswith(MORE), "a thought under way")
        assert thinker.transition("deactivate")
        wait_until(lambda: thinker.texts[-1].data == first.text, "the last finished text again")
    late = thinker.peer.collect(String, "/thinker/text", LATCHED)
    wait_until(lambda: late, "the latched text")
    assert late[0].data == first.text and len(thinker.guidance) == 1


def test_thoughts_are_numbered_on_after_an_activation(watch):
    thinker = watch()
    thinker.play(2)
    settle(thinker)
    last = thinker.guidance[-1]
    assert thinker.transition("deactivate") and thinker.transition("activate")
    thinker.play(1, START + 10 * STEP)
    message = wait_until(lambda: thinker.guidance[-1].sequence > last.sequence and thinker.guidance[-1], "a thought")
    assert message.epoch == last.epoch and stamp_ns(message.header.stamp) == START + 10 * STEP


# ---- template


def test_a_template_by_topic_begins_a_fresh_thought_and_an_empty_one_is_the_checkpoints(watch, peer):
    thinker = watch(think_period_s=3600.0)
    own = thinker.node._thinker.question
    templates = peer.publisher(String, "/thinker/prompt_template", LATCHED)
    thinker.play(1)
    wait_until(lambda: len(thinker.guidance) == 1, "the first thought")
    templates.publish(String(data="Task: {instruction}. Where is the cube?"))
    wait_until(lambda: len(thinker.guidance) == 2, "a thought well before the hour")
    assert thinker.node._thinker.question == "Task: {instruction}. Where is the cube?"
    assert thinker.guidance[0].data != thinker.guidance[1].data, "the same image, asked about otherwise"
    templates.publish(String(data=""))
    wait_until(lambda: len(thinker.guidance) == 3, "another thought")
    assert thinker.node._thinker.question == own
    assert thinker.guidance[2].data == thinker.guidance[0].data


@pytest.mark.parametrize(
    ("template", "words"),
    [("x" * (MAX_TEMPLATE + 1), "characters"), ("a<|im_end|>b", "control token"), ("put {cube} away", "{cube}")],
)
def test_a_template_that_cannot_be_asked_is_refused_in_words(watch, peer, template, words):
    thinker = watch(prompt_template="Where? {instruction}")
    assert thinker.node._thinker.question == "Where? {instruction}"
    templates = peer.publisher(String, "/thinker/prompt_template", LATCHED)
    templates.publish(String(data=template))
    wait_until(lambda: words in thinker.last_error, lambda: f"the refusal; {thinker.camera.statuses[-1:]}")
    result = thinker.set(prompt_template=template)
    assert not result.successful and words in result.reason
    assert thinker.node.get_parameter("prompt_template").value == "Where? {instruction}"
    thinker.play(1)
    wait_until(lambda: thinker.guidance, "a thought")
    assert thinker.node._thinker.question == "Where? {instruction}"


def test_a_refused_template_takes_back_what_was_set_with_it(watch):
    thinker = watch()
    node = thinker.node
    both = [("instruction", "red"), ("prompt_template", "{no}")]
    from rclpy.parameter import Parameter

    result = thinker.peer.call(node.set_parameters_atomically, [Parameter(name, value=value) for name, value in both])
    assert not result.successful and node.parameters["instruction"] == "" and node._asked.instruction == ""


def test_a_template_without_instruction_is_noted(watch):
    thinker = watch(prompt_template="Which lamp is lit?")
    thinker.play(1)
    wait_until(
        lambda: thinker.camera.statuses and "no {instruction}" in thinker.camera.status.words,
        lambda: f"the remark; {thinker.camera.statuses[-1:]}",
    )
    assert thinker.camera.status.state == NodeStatus.RUNNING


def test_a_template_that_the_model_refuses_fails_configuring_in_words(peer):
    from rclpy.parameter import Parameter

    from thinkjepa_ros.nodes.thinker import ThinkerNode

    node = peer.host(ThinkerNode(parameter_overrides=[Parameter("prompt_template", value="{colour}")]))
    wait_until(lambda: "{colour}" in node.failure, lambda: f"the failure, not {node.failure!r}")
    wait_until(lambda: node.label == "unconfigured", "unconfigured again")


# ---- requests


def test_thinks_only_when_asked(watch):
    thinker = watch(think_on_request=True)
    thinker.play(12)
    wait_until(lambda: thinker.camera.statuses and "asked for" in thinker.camera.status.words, "why it does not think")
    assert thinker.node.ledger.counts().published == 0
    kept = [entry for _, entry in thinker.node._images._ring.items()]
    wait_until(lambda: len(kept) == 5 and all(entry.message is None for entry in kept), "images small while they wait")
    answer = thinker.request()
    assert answer.success and "now" in answer.message
    first = wait_until(lambda: thinker.guidance and thinker.guidance[-1], "a thought")
    assert stamp_ns(first.header.stamp) == START + 10 * STEP
    wait_until(lambda: thinker.node.busy_s == 0, "its end")
    assert thinker.request().success
    again = wait_until(lambda: len(thinker.guidance) == 2 and thinker.guidance[-1], "a thought about the same images")
    assert (again.sequence, again.header.stamp) == (2, first.header.stamp) and again.data == first.data
    thinker.play(5, START + 12 * STEP)
    assert thinker.node.ledger.counts().published == 2, "nobody asked"


def test_a_request_is_not_lost_by_a_new_instruction_or_for_want_of_images(watch):
    thinker = watch(think_on_request=True, max_new_tokens=12)
    answer = thinker.request()
    assert answer.success and "as soon as there is an image" in answer.message
    with within_the_model(thinker.node, slow(0.15)):
        thinker.play(1)
        wait_until(lambda: thinker.node.busy_s > 0.05, "a thought under way")
        assert "present one" in thinker.request().message
        thinker.instruct.publish(String(data="the green one"))
        message = wait_until(lambda: thinker.guidance and thinker.guidance[-1], "a thought")
    assert message.instruction == "the green one" and message.sequence == 1


def test_a_request_is_refused_in_words_where_nothing_can_think(watch):
    thinker = watch(think_timeout_s=0.1)
    gate = Gate()
    with within_the_model(thinker.node, gate):
        thinker.play(1)
        wait_until(lambda: thinker.node.busy_s > thinker.node.hang_s, "a hang")
        answer = thinker.request()
        gate.opened.set()
    assert not answer.success and "has not returned" in answer.message
    assert thinker.transition("deactivate")
    answer = thinker.request()
    assert not answer.success and "inactive" in answer.message


# ---- the scene has not changed


def show(thinker: Watched, ns: int, index: int) -> None:
    """One image that has arrived."""
    before = thinker.node.ledger.counts().received
    thinker.camera.send(ns, index)
    wait_until(lambda: thinker.node.ledger.counts().received == before + 1, "the image received")


def skipped(thinker: Watched) -> int:
    return int(thinker.node._thoughts.figures()["thoughts skipped"])


def test_a_thought_is_left_out_while_the_scene_is_the_same(watch):
    thinker = watch(min_scene_change=4.0)
    for k in range(1, 5):
        before = skipped(thinker)
        show(thinker, START + k * NS // 4, index=3)
        wait_until(lambda k=k, b=before: thinker.guidance if k == 1 else skipped(thinker) == b + 1, "a turn")
    assert len(thinker.guidance) == 1 and skipped(thinker) == 3
    wait_until(lambda: "3 thoughts left out" in thinker.camera.status.words, lambda: thinker.camera.status.words)
    assert thinker.camera.status.state == NodeStatus.RUNNING
    show(thinker, START + 5 * NS // 4, index=40)
    wait_until(lambda: len(thinker.guidance) == 2, "a thought about what has changed")
    assert stamp_ns(thinker.guidance[-1].header.stamp) == START + 5 * NS // 4
    wait_until(lambda: "left out" not in thinker.camera.status.words, lambda: thinker.camera.status.words)
    show(thinker, START + 6 * NS // 4, index=40)
    wait_until(lambda: skipped(thinker) == 4, "a turn left out")
    thinker.instruct.publish(String(data="another question"))
    wait_until(lambda: len(thinker.guidance) == 3, "a thought about another question")
    assert thinker.request().success
    wait_until(lambda: len(thinker.guidance) == 4, "a thought that was asked for")


def test_guidance_never_runs_out_because_the_scene_is_the_same(watch):
    thinker = watch(min_scene_change=255.0, guidance_valid_for_s=2.0)
    for k in range(20):
        counts = (thinker.node.ledger.counts().published, skipped(thinker))
        show(thinker, START + k * NS // 4, index=3)
        wait_until(lambda c=counts: (thinker.node.ledger.counts().published, skipped(thinker)) != c, "a turn")
    stamps = [stamp_ns(g.header.stamp) for g in thinker.guidance]
    assert max(b - a for a, b in pairwise(stamps)) == NS, "half of its life"
    assert skipped(thinker) == 20 - len(stamps)


# ---- long thoughts


def test_sampling_goes_on_at_most_0_3_s_apart_while_a_thought_runs(watch, monkeypatch):
    thinker = watch(window_s=8.0, think_period_s=0.05, guidance_valid_for_s=60.0)
    seen: list[list[int]] = []
    real = thinker.node._thinker.think

    def noted(frames, *args, **kwargs):
        chosen = thinker.node._thinker.window.choose([f.stamp_ns for f in frames])
        seen.append(sorted({frames[i].stamp_ns for pair in chosen for i in (pair.first, pair.second)}))
        return real(frames, *args, **kwargs)

    monkeypatch.setattr(thinker.node._thinker, "think", noted)
    gate = Gate()
    with within_the_model(thinker.node, gate):
        thinker.play(1)
        wait_until(gate.entered.is_set, "a thought")
        thinker.play(180, START + NS // 30, NS // 30)  # six seconds
        gate.opened.set()
        wait_until(lambda: len(seen) == 2, "the next thought")
    assert seen[0] == [START] and seen[1][0] <= START + 3 * NS // 10
    assert seen[1][-1] >= START + 57 * NS // 10 and max(b - a for a, b in pairwise(seen[1])) <= 0.3 * NS


def test_a_thought_longer_than_its_period_is_said(watch):
    thinker = watch(think_period_s=0.05, max_new_tokens=4)
    with within_the_model(thinker.node, slow(0.03)):
        thinker.play(1)
        wait_until(
            lambda: thinker.camera.statuses and "longer than think_period_s" in thinker.camera.status.words,
            lambda: f"words; {thinker.camera.statuses[-1:]}",
        )
    assert thinker.camera.status.state == NodeStatus.RUNNING


def test_a_thought_stops_at_its_timeout_and_counts(watch):
    thinker = watch(model=str(mini_folder()), think_timeout_s=1.0, max_new_tokens=4096, think_period_s=60.0)
    with within_the_model(thinker.node, slow(0.25)):
        thinker.play(1)
        wait_until(
            lambda: thinker.camera.statuses and "cut the last thought short" in thinker.camera.status.words,
            lambda: f"words; {thinker.camera.statuses[-1:]}",
        )
    assert len(thinker.guidance) == 1 and thinker.guidance[0].present[0]


def test_a_thought_that_outlives_what_it_saw_is_not_published(watch):
    thinker = watch(guidance_valid_for_s=0.5)
    gate = Gate()
    with within_the_model(thinker.node, gate):
        thinker.play(1)
        wait_until(gate.entered.is_set, "a thought")
        thinker.play(6, START + STEP)
        gate.opened.set()
        wait_until(
            lambda: "counts for nothing" in thinker.last_error or "count for nothing" in thinker.last_error, "it"
        )
    message = wait_until(lambda: thinker.guidance and thinker.guidance[-1], "the next thought")
    assert stamp_ns(thinker.guidance[0].header.stamp) == START + 5 * STEP and message.sequence == 1


def test_a_hung_call_that_returns_after_a_clock_jump_is_not_published(watch):
    thinker = watch()
    thinker.play(30)
    settle(thinker)
    before = list(thinker.guidance)
    assert thinker.set(think_timeout_s=0.1).successful
    gate = Gate()
    with within_the_model(thinker.node, gate):
        thinker.play(1, START + 30 * STEP)
        wait_until(lambda: thinker.camera.status.state == NodeStatus.HUNG, "HUNG")
        thinker.play(4)  # the recording begins again
        wait_until(lambda: thinker.node.input.jumps == 1, "the jump")
        assert thinker.set(think_timeout_s=30.0).successful  # for the next thought, on whatever machine
        gate.opened.set()
        wait_until(lambda: len(thinker.guidance) > len(before), "a thought")
    for message in thinker.guidance[len(before) :]:
        assert message.epoch == before[-1].epoch + 1 and stamp_ns(message.header.stamp) <= START + 3 * STEP
    thinker.play(2, START + 4 * STEP)
    wait_until(lambda: thinker.camera.status.state == NodeStatus.RUNNING, "RUNNING again")


def test_after_a_hang_the_node_can_be_activated_again_once_the_call_has_returned(watch):
    thinker = watch()
    gate = Gate()
    with within_the_model(thinker.node, gate):
        thinker.play(1)
        wait_until(gate.entered.is_set, "a thought")
        assert thinker.transition("deactivate"), "the worker is left behind"
        assert not thinker.transition("activate") and "still not returned" in thinker.node.failure
        gate.opened.set()
        wait_until(lambda: thinker.node.worker_ended, "the call returned")
    assert not thinker.guidance, "what it brought is void"
    assert thinker.transition("activate")
    thinker.play(1, START + STEP)
    message = wait_until(lambda: thinker.guidance and thinker.guidance[-1], "a thought")
    assert stamp_ns(message.header.stamp) == START + STEP


def test_parameters_reach_the_model(watch):
    thinker = watch(layers=[1, 3], pool="visual", dtype="bfloat16", attention="eager", publish_tokens=True)
    thinker.play(2)
    message = wait_until(lambda: thinker.guidance and thinker.guidance[-1], "a thought")
    assert list(message.layer_ids) == [1, 3] and message.tokens > 0
    model = thinker.node._thinker._model
    assert str(model.dtype) == "torch.bfloat16" and model.config._attn_implementation == "eager"
    assert thinker.set(publish_tokens=False, max_new_tokens=0).successful
    thinker.play(1, START + 5 * STEP)
    message = wait_until(lambda: thinker.guidance[-1].sequence > message.sequence and thinker.guidance[-1], "another")
    assert message.tokens == 0 and list(message.present) == [True, False]
