"""The thinker node: sparse images over a long window and an instruction in, guidance and words out, at its own pace.

Its own process, so that however long a thought takes the predictor never waits. Images keep arriving while it thinks:
the callback files one per sampling period, and the next thought takes what is there.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from std_msgs.msg import String

from thinkjepa_ros.bridge import parameters, qos
from thinkjepa_ros.bridge.images import ImageError, to_rgb
from thinkjepa_ros.bridge.ledger import Entry, Fate
from thinkjepa_ros.bridge.lifecycle import run
from thinkjepa_ros.bridge.messages import guidance_to_message
from thinkjepa_ros.bridge.node_base import CameraNode
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.stream.frames import FrameRing, SparseSampler
from thinkjepa_ros.thinker.errors import Cancelled, ThinkerError
from thinkjepa_ros.thinker.window import Window
from thinkjepa_ros.values import Frame, Guidance

if TYPE_CHECKING:
    from thinkjepa_ros.thinker.qwen import Thinker

#: Beyond the deadline, which is looked at between two tokens.
_GRACE_S = 0.5
_MAX_FRAMES = 4096


class ThinkerNode(CameraNode):
    """See docs/parameters.md for its parameters and msg/Guidance.msg for what it says."""

    table = parameters.THINKER
    task = "thought"
    explained = (ThinkerError, FileNotFoundError, ValueError)

    def __init__(self, **kwargs: Any) -> None:
        """kwargs: those of rclpy.node.Node."""
        # Other processes tell a restarted thinker by its epoch; each clock jump adds one.
        self._epoch_base = random.SystemRandom().randrange(1, 2**31)
        self._instruction = ""
        self._thinker: Thinker | None = None
        self._cancel = threading.Event()
        self._ring: FrameRing[Entry] = FrameRing(0, 1)
        self._sampler = SparseSampler(1)
        self._waiting: deque[Entry] = deque()
        self._fresh = threading.Event()  # frames that no thought has seen, or a new instruction
        self._counted = (0, 0)  # epoch and sequence of the last thought published
        self._model_epoch = -1  # of what the model remembers
        super().__init__("thinker", **kwargs)
        self._instruction = self.parameters["instruction"]
        self.create_subscription(String, "~/instruction", self._on_instruction, qos.LATCHED)

    # ---- life cycle

    @property
    def period_s(self) -> float:
        return self.parameters["think_period_s"]

    @property
    def hang_s(self) -> float:
        return self.parameters["think_timeout_s"] + _GRACE_S

    @property
    def epoch(self) -> int:
        """Epoch of the guidance that is made now."""
        return (self._epoch_base + self.input.epoch) % 2**32

    def load(self) -> Thinker:
        import cv2
        import torch

        from thinkjepa_ros.thinker.qwen import Thinker

        self._stand_back()
        torch.set_num_threads(self.parameters["cpu_threads"])
        cv2.setNumThreads(self.parameters["cpu_threads"])
        window = Window(self.parameters["window_s"], self.parameters["sample_period_s"])
        thinker = Thinker.load(
            model_folder(self.parameters["model"], "thinker"), self.parameters["device"], window=window
        )
        thinker.warm_up()
        return thinker

    def _stand_back(self) -> None:
        """Make the calling thread, and none that answers the graph, as nice as the parameter says."""
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # not every system knows the niceness of a single thread
            present = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(present, self.parameters["niceness"]))

    def adopt(self, model: Thinker) -> None:
        self._thinker = model
        self.model_id, self.trained = model.model_id, model.trained
        self._guidance_pub = self.advertise(GuidanceMsg, "~/guidance", qos.LATCHED)
        self._text_pub = self.advertise(String, "~/text", qos.LATCHED)

    def prepare(self) -> None:
        assert self._thinker is not None
        self.warming = "the first thought has not ended"
        window = self._thinker.window
        self._ring = FrameRing(window.span_ns, _MAX_FRAMES)
        self._sampler = SparseSampler(window.period_ns)
        self._waiting.clear()
        self._fresh = threading.Event()
        self._model_epoch = -1

    def release(self) -> None:
        super().release()
        self._thinker = None
        self._ring.clear()

    def wake(self) -> None:
        self._cancel.set()
        self._fresh.set()

    def pending(self) -> list[Entry]:
        return list(self._waiting)

    # ---- callbacks (executor thread)

    def on_frame(self, entry: Entry) -> None:
        if not self._sampler.keep(entry.stamp_ns):
            entry.message = None
            self.ledger.settle(entry, Fate.SUPERSEDED)
            return
        self._ring.append(entry.stamp_ns, entry)
        self._waiting.append(entry)
        # What slides out of the window before any thought took it will never be looked at.
        while self._waiting and (
            self._waiting[0].fate is not Fate.PENDING or self._waiting[0].stamp_ns < entry.stamp_ns - self._ring.span_ns
        ):
            self.ledger.settle_pending([self._waiting.popleft()], Fate.SUPERSEDED)
        self._fresh.set()

    def on_jump(self, last_ns: int | None, backward: bool) -> None:
        self._cancel.set()
        self._ring.clear()
        self._sampler.reset()
        self.ledger.settle_pending(list(self._waiting), Fate.SUPERSEDED)
        self._waiting.clear()

    def on_parameters(self, changed: set[str]) -> None:
        if "instruction" in changed:
            self._instruct(self.parameters["instruction"])

    def _on_instruction(self, message: String) -> None:
        if len(message.data) > parameters.MAX_INSTRUCTION:
            most = parameters.MAX_INSTRUCTION
            words = f"an instruction of {len(message.data)} characters is refused, {most} are the most"
            self.get_logger().warning(words)
            self.notice(words)
            return
        self._instruct(message.data)

    def _instruct(self, instruction: str) -> None:
        """Think about this from now on; a thought about something else is not worth finishing."""
        if instruction == self._instruction:
            return
        self._instruction = instruction
        self._cancel.set()
        self.pacer.hurry()
        self._fresh.set()

    # ---- worker thread

    def loop(self) -> None:
        assert self.worker is not None
        fresh, pacer = self._fresh, self.pacer
        self._stand_back()
        while pacer.wait():
            fresh.wait()
            if not pacer.wait():  # closed, or a longer period was set meanwhile
                return
            fresh.clear()
            pacer.begin()
            try:
                with self.worker.busy():
                    thought = self._turn()
            except Cancelled:
                thought = False
            except Exception as error:  # the next thought may work
                thought = True
                if not pacer.closed:
                    self.trouble(f"no thought: {error if isinstance(error, ThinkerError) else repr(error)}")
            if not thought:  # the period is between thoughts; this was none
                pacer.hurry()

    def _turn(self) -> bool:
        """One thought over the frames at hand; False if there was nothing to think about, or the result is void."""
        assert self._thinker is not None
        cancel = self._cancel = threading.Event()
        if self.pacer.closed:  # stopped before the event could be seen
            return False
        instruction, epoch, seen_epoch = self._instruction, self.epoch, self.input.epoch
        if epoch != self._model_epoch:  # after a jump the same stamps may belong to other pictures
            self._thinker.forget()
            self._model_epoch = epoch
        entries = [entry for _, entry in self._ring.items() if entry.epoch == seen_epoch and self._ready(entry)]
        if not entries:
            return False
        guidance = self._thinker.think(
            [Frame(entry.rgb, entry.stamp_ns, entry.frame_id) for entry in entries if entry.rgb is not None],
            instruction,
            max_new_tokens=self.parameters["max_new_tokens"],
            deadline_s=self.parameters["think_timeout_s"],
            cancel=cancel,
            valid_for_s=self.parameters["guidance_valid_for_s"],
            sequence=self._counted[1] + 1 if self._counted[0] == epoch else 1,
            epoch=epoch,
        )
        if cancel.is_set() or epoch != self.epoch or self.pacer.closed:
            return False
        self._publish(guidance, entries[-1].frame_id)
        self.ledger.settle_pending(entries, Fate.USED)
        return True

    def _ready(self, entry: Entry) -> bool:
        """Make a frame small, once. False for one that turns out to be broken; it is refused."""
        assert self._thinker is not None
        if entry.rgb is not None:
            return True
        try:
            entry.rgb = self._thinker.prepare(Frame(to_rgb(entry.message), entry.stamp_ns, entry.frame_id)).rgb
        except (ImageError, ThinkerError) as error:
            self._ring.remove(entry.stamp_ns)
            self.ledger.settle_pending([entry], Fate.REFUSED, "bad_image")
            self.get_logger().warning(f"image refused: {error}", throttle_duration_sec=1.0)
            self.notice(f"image refused: {error}")
            return False
        finally:
            entry.message = None
        return True

    def _publish(self, guidance: Guidance, frame_id: str) -> None:
        self._counted = (guidance.epoch, guidance.sequence)
        self._guidance_pub.publish(guidance_to_message(guidance, frame_id, self.trained))
        self._text_pub.publish(String(data=guidance.text))
        self.ledger.publish((self.get_clock().now().nanoseconds - guidance.stamp_ns) * 1e-9)
        self.warming = ""
        self.success()

    def picture_extras(self) -> dict[str, Any]:
        return {"extra": {"instruction": self._instruction}}


def main(args: list[str] | None = None) -> int:
    """Run the thinker until SIGINT or SIGTERM."""
    return run(ThinkerNode, args)


if __name__ == "__main__":
    sys.exit(main())
