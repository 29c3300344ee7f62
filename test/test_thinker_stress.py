"""The thinker node under everything at once: cancels, hangs, broken images, floods of questions, clock jumps.

A camera runs at 30 Hz all the time. Every guidance must name the right model, epoch and stamp; of a sample of them the
thought is thought again by another Thinker over the images that the node had kept up to that stamp, and must be the
same to the last bit. At the end there are as many threads and objects as at the begin.
"""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from image_kit import compressed, resident_bytes
from ros_kit import LATCHED, NS, accounted, picture, wait_until
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from thinker_node_kit import START, Gate, Watched, hosted, slow, within_the_model

from thinkjepa_ros.bridge.images import to_rgb
from thinkjepa_ros.bridge.ledger import Entry, Fate
from thinkjepa_ros.bridge.messages import guidance_from_message, make_header, stamp_ns
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.bridge.task import PATIENCE, Turn
from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.nodes import thinker as thinker_module
from thinkjepa_ros.nodes.thinker import ThinkerNode
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.values import Frame

FRAME_NS = NS // 30
SLOT_NS = NS // 4
WINDOW_S = 1.0
TEMPLATES = ["", "Task: {instruction}. Which tray?"]
FILES = [cv2.imencode(".jpg", picture(k)[..., ::-1])[1].tobytes() for k in range(50)]


def file_at(ns: int) -> bytes:
    """The picture that the camera sends at this stamp."""
    return FILES[ns // FRAME_NS % len(FILES)]


class NotedThinker(ThinkerNode):
    """The real node; it notes which images it kept since its activation, as (epoch, stamp)."""

    kept: list[tuple[int, int]]

    def prepare(self) -> None:
        super().prepare()
        self.kept = []

    def on_frame(self, entry: Entry) -> None:
        super().on_frame(entry)
        if entry.fate is Fate.PENDING:
            self.kept.append((entry.epoch, entry.stamp_ns))


class Camera:
    """Sends pictures at 30 Hz in a thread, and what it is given in between; its clock can jump back."""

    def __init__(self, peer) -> None:
        self._publisher = peer.publisher(CompressedImage, "/image/compressed")
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._next_ns = START
        self.broken: set[int] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.wait(1 / 30):
            with self._lock:
                self._send(self._next_ns, compressed(file_at(self._next_ns)))
                self._next_ns += FRAME_NS

    def _send(self, ns: int, message: CompressedImage) -> None:
        message.header = make_header(ns, "camera_optical")
        self._publisher.publish(message)

    def jump(self) -> None:
        with self._lock:
            self._next_ns -= 50 * NS

    def send_broken(self, message: CompressedImage, ns: int | None = None) -> None:
        """As the first image of a sampling period, so that it would be looked at; or with a stamp that is wrong."""
        with self._lock:
            if ns is None:
                ns = self._next_ns = -(-self._next_ns // SLOT_NS) * SLOT_NS
                self._next_ns += FRAME_NS
            self.broken.add(ns)
            self._send(ns, message)

    @property
    def last_ns(self) -> int:
        with self._lock:
            return self._next_ns - FRAME_NS


def broken_images(rng: random.Random) -> list[tuple[CompressedImage, int | None]]:
    """Twenty, each with the stamp it is given (None: a right one)."""
    good, png = FILES[0], cv2.imencode(".png", picture(0))[1].tobytes()
    bomb = png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:]  # its header promises 3.6 gigapixels
    # seen by their header
    files = [b"", b"\xff", good[: len(good) // 3], good[:20], good[:-200][:400], png[:60], bomb, b"GIF89a" + bytes(50)]
    files += [bytes(30_000), rng.randbytes(5000), b"\xff\xd8\xff" + rng.randbytes(300), good[::-1]]
    # seen when they are decoded
    tables, middle = good.find(b"\xff\xc4") + 6, len(png) // 2
    files += [good[:tables] + b"\xff" * 16 + good[tables + 16 :]]
    files += [png[:middle] + bytes(n) + png[middle + n :] for n in (4, 40, 400)]
    out: list[tuple[CompressedImage, int | None]] = [(compressed(data), None) for data in files]
    out.append((compressed(good, "16UC1; compressedDepth png"), None))
    return [*out, *((compressed(good), ns) for ns in (0, time.time_ns() + 10_000 * NS, START - 90_000 * NS))]


class Stress:
    """One node under load, and the judge of what it says."""

    def __init__(self, peer, watched: Watched, camera: Camera, seed: int) -> None:
        self.peer, self.watched, self.camera, self.node = peer, watched, camera, watched.node
        self.rng = random.Random(seed)
        self.statuses = peer.collect(NodeStatus, "/thinker/status", LATCHED)
        self.templates = peer.publisher(String, "/thinker/prompt_template", LATCHED)
        self.asked = {""}
        self.judged = 0
        self.last_number: dict[int, int] = {}
        self.reference = Thinker.load(model_folder("mini", "thinker"), window=Window(WINDOW_S, 0.25))

    def instruct(self, words: str) -> None:
        self.asked.add(words)
        self.watched.instruct.publish(String(data=words))

    def count(self, name: str) -> int:
        return int(self.node._thoughts.figures()[f"thoughts {name}"])

    def next_guidance(self) -> None:
        seen = len(self.watched.guidance)
        wait_until(lambda: len(self.watched.guidance) > seen, "guidance")

    def judge(self, thought_again: int = 4) -> None:
        """Every guidance since the last time; `thought_again` of them to the last bit."""
        new, self.judged = self.watched.guidance[self.judged :], len(self.watched.guidance)
        kept = set(self.node.kept)
        for message in new:
            epoch = (message.epoch - self.node._epoch_base) % 2**32
            assert message.model_id == self.reference.model_id and message.instruction in self.asked
            assert (epoch, stamp_ns(message.header.stamp)) in kept, "the stamp of an image that it had, in this epoch"
            assert stamp_ns(message.header.stamp) not in self.camera.broken
            assert message.sequence > self.last_number.get(epoch, 0)
            self.last_number[epoch] = message.sequence
        for message in self.rng.sample(new, min(thought_again, len(new))):
            said = guidance_from_message(message)
            assert any(np.array_equal(rows, said.pyramid[:, 0]) for rows in self.think_again(said, sorted(kept)))

    def think_again(self, said, kept):
        """The prompt rows that this guidance must have, with either template."""
        epoch, begin_ns = (said.epoch - self.node._epoch_base) % 2**32, said.stamp_ns - round(WINDOW_S * NS)
        stamps = [
            ns for e, ns in kept if e == epoch and begin_ns <= ns <= said.stamp_ns and ns not in self.camera.broken
        ]
        frames = [Frame(to_rgb(compressed(file_at(ns))), ns) for ns in stamps]
        for template in TEMPLATES:
            self.reference.ask(template)
            rows = self.reference.think(frames, said.instruction, max_new_tokens=0).pyramid[:, 0]
            yield rows.astype(np.float16).astype(np.float32)

    # ---- what is done to it

    def cancel(self, count: int) -> None:
        """New questions at random moments of a thought, until so many thoughts were cut short."""
        wanted, tries = self.count("cancelled") + count, 0
        with within_the_model(self.node, slow(0.002)):
            while self.count("cancelled") < wanted:
                tries += 1
                assert tries < 6 * count, "thoughts are hardly ever cut short"
                wait_until(lambda: self.node.busy_s > 0, "a thought under way")
                time.sleep(self.rng.uniform(0.0, 0.9) * self.node._thoughts._took_s)
                ended = self.count("cancelled") + self.count("published")
                words = self.ask()
                wait_until(lambda e=ended: self.count("cancelled") + self.count("published") > e, "its end")
                if tries % PATIENCE == 0:
                    self.answered(words)
        self.answered(self.ask())

    def answered(self, words: str) -> None:
        """Wait for guidance about this instruction."""
        wait_until(
            lambda: [g.instruction for g in self.watched.guidance[-1:]] == [words], "the newest question answered"
        )

    def ask(self) -> str:
        """A new question, in one of four ways. Returns the instruction that counts now."""
        words, template = f"put it {self.rng.random():.6f}", self.rng.choice(TEMPLATES)
        self.asked.add(words)
        way = self.rng.randrange(4)
        if way == 0:
            self.templates.publish(String(data=template))
        elif way == 1:
            assert self.watched.set(prompt_template=template).successful
        if way == 2:
            self.instruct(words)
        else:
            assert self.watched.set(instruction=words).successful
        return words

    def hang(self, count: int) -> None:
        """Calls that do not return in time; meanwhile, in turn, a new question, a clock jump, or nothing."""
        node = self.node
        assert self.watched.set(think_timeout_s=0.1).successful
        for k in range(count):
            gate, before = Gate(), node.input.jumps
            with within_the_model(node, gate):
                wait_until(lambda: self.peer.call(node.picture).state == NodeStatus.HUNG, "HUNG")
                if k % 4 == 1:
                    self.instruct(f"while it hangs {k}")
                if k % 4 == 3:
                    self.camera.jump()
                    wait_until(lambda b=before: node.input.jumps > b, "the jump")
                gate.opened.set()
            assert self.watched.set(think_timeout_s=30.0).successful
            self.next_guidance()
            assert self.watched.set(think_timeout_s=0.1).successful
        assert self.watched.set(think_timeout_s=30.0).successful

    def break_images(self, count: int) -> None:
        for message, ns in broken_images(self.rng)[:count]:
            refused = self.node.ledger.counts().refused
            for _ in range(5):  # an image may be lost on its way
                self.camera.send_broken(message, ns)
                with contextlib.suppress(AssertionError):
                    wait_until(lambda n=refused: self.node.ledger.counts().refused > n, "a broken image refused", 5.0)
                    break
            else:
                raise AssertionError(f"not refused: {len(message.data)} bytes {message.format!r} at {ns}")
        self.next_guidance()

    def flood(self, seconds: float) -> None:
        """Questions, requests and refusals as fast as they can be sent; thoughts must go on meanwhile."""
        published, sent, end = self.count("published"), 0, time.monotonic() + seconds
        while (now := time.monotonic()) < end or self.count("published") < published + 2:
            assert now < end + 30.0, "thoughts came to an end during the flood"
            for _ in range(20):
                self.instruct(f"flood {sent}")
                sent += 1
            self.templates.publish(String(data="x" * 3000))
            self.watched.instruct.publish(String(data="y" * 3000))
            time.sleep(0.001)
        assert sent > 200 * seconds, "this was no flood"
        answer = self.watched.request()
        assert answer.success
        self.instruct("after the flood")
        self.answered("after the flood")

    def restart(self, count: int) -> None:
        """Deactivations in the middle of thoughts."""
        for _ in range(count):
            with within_the_model(self.node, slow(0.02)):
                time.sleep(self.rng.uniform(0.0, 0.2))
                assert self.watched.transition("deactivate")
            last = self.node._thoughts._numbered[1]
            wait_until(lambda n=last: self.watched.guidance[-1].sequence == n, "the last guidance")
            self.judge(1)
            assert self.watched.transition("activate")
            self.next_guidance()

    def round(self, cancels: int, hangs: int, images: int, flood_s: float, restarts: int) -> None:
        for act, amount in (
            (self.cancel, cancels), (self.hang, hangs), (self.break_images, images), (self.flood, flood_s),
            (self.restart, restarts),
        ):  # fmt: skip
            act(amount)
            self.judge()
        assert self.node.picture().state == NodeStatus.RUNNING
        assert all(accounted(status) for status in self.statuses)


def burden() -> Counter:
    """Threads and living objects of the kinds that a leak would be made of."""
    gc.collect()
    kinds = (Entry, Turn, Frame, torch.Tensor, threading.Event)
    found = Counter(kind.__name__ for thing in gc.get_objects() for kind in kinds if isinstance(thing, kind))
    return Counter({**found, "threads": threading.active_count()})


@pytest.fixture
def stress(peer, monkeypatch):
    monkeypatch.setattr(thinker_module, "_GRACE_S", 0.1)
    node = hosted(
        peer, NotedThinker, window_s=WINDOW_S, think_period_s=0.05, image_transport="compressed", max_new_tokens=8
    )
    watched = Watched(peer, node)
    with Camera(peer) as camera:
        wait_until(lambda: watched.guidance, "a first thought")
        yield Stress(peer, watched, camera, seed=4)


def leaks(before: Counter, after: Counter) -> dict[str, tuple[int, int]]:
    """What there is clearly more of: a window holds a few images more or less, a thought under way some tensors."""
    return {name: (before[name], after[name]) for name in after if after[name] > before[name] + 60}


@pytest.mark.slow
def test_cancels_hangs_broken_images_and_floods_leave_a_node_that_thinks(stress):
    stress.round(cancels=4, hangs=1, images=3, flood_s=0.3, restarts=1)
    before, resident = burden(), resident_bytes()
    stress.round(cancels=50, hangs=20, images=20, flood_s=2.0, restarts=3)
    after = burden()
    assert not leaks(before, after) and after["threads"] <= before["threads"], (before, after)
    grown = resident_bytes() - resident
    print(f"\n{stress.judged} guidances, {grown / 1e6:+.1f} MB, {dict(after - before)} more alive")
    assert grown < 48 << 20
    assert stress.count("cancelled") >= 54


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_grows_over_many_rounds(stress):
    amounts = {"cancels": 50, "hangs": 20, "images": 20, "flood_s": 3.0, "restarts": 5}
    stress.round(**amounts)
    before, resident = burden(), resident_bytes()
    for _ in range(5):
        stress.round(**amounts)
        for collected in (stress.watched.guidance, stress.watched.texts, stress.statuses):
            del collected[:-1]  # what the test itself collects is no leak
        stress.judged = 1
    after, grown = burden(), resident_bytes() - resident
    print(f"\n{grown / 1e6:+.1f} MB, {dict(after - before)} more alive")
    assert not leaks(before, after) and grown < 48 << 20
