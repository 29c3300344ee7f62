"""The thinker node: sparse images over a long window and an instruction in, guidance and words out, at its own pace.

Its own process, so that however long a thought takes the predictor never waits. Images keep arriving while it thinks:
the callback files one per sampling period, and the next thought takes what is there.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from std_msgs.msg import String
from std_srvs.srv import Trigger

from thinkjepa_ros.bridge import parameters, qos
from thinkjepa_ros.bridge.ledger import Entry, Fate
from thinkjepa_ros.bridge.lifecycle import run
from thinkjepa_ros.bridge.long_window import LongWindow
from thinkjepa_ros.bridge.messages import guidance_to_message
from thinkjepa_ros.bridge.node_base import CameraNode
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.bridge.task import Task, Turn
from thinkjepa_ros.bridge.thoughts import TextStream, Thoughts, refuse_expired
from thinkjepa_ros.bridge.worker import Pacer, stand_back
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.thinker.errors import Cancelled, ThinkerError
from thinkjepa_ros.thinker.window import Window

if TYPE_CHECKING:
    from thinkjepa_ros.thinker.interface import Backend

#: Beyond the deadline, which is looked at between two tokens.
_GRACE_S = 0.5


class ThinkerNode(CameraNode):
    """See docs/parameters.md for its parameters and msg/Guidance.msg for what it says."""

    table = parameters.THINKER
    task = "thought"
    explained = (ThinkerError, FileNotFoundError, ValueError)

    def __init__(self, **kwargs: Any) -> None:
        """kwargs: those of rclpy.node.Node."""
        # Other processes tell a restarted thinker by its epoch; each clock jump adds one.
        self._epoch_base = random.SystemRandom().randrange(1, 2**31)
        self._thinker: Backend | None = None
        self._thoughts = Thoughts()
        self._images: LongWindow | None = None
        self._fresh = threading.Event()  # frames that no thought has seen, a new question, or a request
        self._model_epoch = -1  # of what the model remembers
        super().__init__("thinker", **kwargs)
        self._asked = Task(self.parameters["instruction"], self.parameters["prompt_template"])
        self.create_subscription(String, "~/instruction", self._on_instruction, qos.LATCHED)
        self.create_subscription(String, "~/prompt_template", self._on_template, qos.LATCHED)
        self.create_service(Trigger, "~/think", self._on_request)

    # ---- life cycle

    @property
    def period_s(self) -> float:
        return self.parameters["think_period_s"]

    @property
    def hang_s(self) -> float:
        return self.parameters["think_timeout_s"] + _GRACE_S

    @property
    def give_up_s(self) -> float:
        return self.parameters["exit_when_hung_s"]

    def load(self) -> Backend:
        import cv2
        import torch

        from thinkjepa_ros.thinker.qwen import Thinker

        p = self.parameters
        stand_back(p["niceness"])
        torch.set_num_threads(p["cpu_threads"])
        cv2.setNumThreads(p["cpu_threads"])
        thinker = Thinker.load(
            model_folder(p["model"], "thinker"),
            p["device"],
            p["dtype"],
            p["layers"] or None,
            window=Window(p["window_s"], p["sample_period_s"]),
            pool=p["pool"],
            attention=p["attention"],
            quantization=p["quantization"],
            memory_gib=p["memory_gib"],
            subgoal=p["subgoal"] or None,
        )
        thinker.warm_up()
        return thinker

    def adopt(self, model: Backend) -> None:
        model.ask(self._asked.template)
        self._thinker = model
        self.model_id, self.trained = model.model_id, model.trained
        self.get_logger().info(f"{self.model_id} thinks on {model.words}")
        self._guidance_pub = self.advertise(GuidanceMsg, "~/guidance", qos.LATCHED)
        # not for the active state only: what was half said when the node is deactivated is taken back
        self._text_pub = text = self.create_publisher(String, "~/text", qos.LATCHED)
        self._text = TextStream(lambda words: text.publish(String(data=words)))

    def prepare(self) -> None:
        assert self._thinker is not None
        asked_for = self.parameters["think_on_request"]
        self.warming = "no thought was asked for yet" if asked_for else "the first thought has not ended"
        window = self._thinker.window
        self._images = LongWindow(window.span_ns, window.period_ns, self.ledger, self._complain)
        self._fresh = threading.Event()
        self._asked = Task(self._asked.instruction, self._asked.template)
        self._model_epoch = -1
        self._thoughts.begin()

    def stop(self) -> None:
        super().stop()
        if self._thinker is not None:
            self._text.drop()

    def release(self) -> None:
        super().release()
        if self._thinker is not None:
            self.destroy_publisher(self._text_pub)
        self._thinker = self._images = None

    def wake(self) -> None:
        self._asked.cancel()
        self._fresh.set()

    def pending(self) -> list[Entry]:
        return self._images.pending() if self._images is not None else []

    # ---- callbacks (executor thread)

    def on_frame(self, entry: Entry) -> None:
        assert self._images is not None
        if self._images.file(entry):
            self._fresh.set()

    def on_jump(self, last_ns: int | None, backward: bool) -> None:
        self._asked.cancel()
        if self._images is not None:
            self._images.clear()

    def on_parameters(self, changed: set[str]) -> str | None:
        if "prompt_template" in changed and (refusal := self._ask(self.parameters["prompt_template"])):
            return refusal
        if "instruction" in changed:
            self._change(instruction=self.parameters["instruction"])
        return None

    def _on_instruction(self, message: String) -> None:
        if refusal := self.parameters.refusal("instruction", message.data):
            self._complain(refusal)
        else:
            self._change(instruction=message.data)

    def _on_template(self, message: String) -> None:
        if refusal := self.parameters.refusal("prompt_template", message.data) or self._ask(message.data):
            self._complain(refusal)

    def _complain(self, words: str) -> None:
        self.get_logger().warning(words, throttle_duration_sec=1.0)
        self.notice(words)

    def _ask(self, template: str) -> str | None:
        """Ask this way from now on, or say why not. While no model is loaded, loading it will tell."""
        try:
            if self._thinker is not None:
                self._thinker.ask(template)
        except ThinkerError as error:
            return f"prompt_template refused: {error}"
        self._change(template=template)
        return None

    def _change(self, **question: str) -> None:
        """Think about this from now on; a thought about something else is not worth finishing."""
        if self._asked.change(**question):
            self._begin()

    def _begin(self) -> None:
        self.pacer.hurry()
        self._fresh.set()

    def _on_request(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.label != "active":
            response.message = f"the thinker is {self.label}; activate it first"
        elif self.busy_s > self.hang_s:
            response.message = f"a model call has not returned for {self.busy_s:.1f} s; no thought can begin"
        else:
            response.success = True
            idle = self._asked.request()
            seen = ", as soon as there is an image" if self._images is None or self._images.empty else ""
            response.message = f"a thought begins {'now' if idle else 'when the present one has ended'}{seen}"
            self._begin()
        return response

    # ---- worker thread

    def loop(self) -> None:
        thinker, images, worker = self._thinker, self._images, self.worker
        assert thinker is not None and images is not None and worker is not None
        pacer, fresh, asked = self.pacer, self._fresh, self._asked
        stand_back(self.parameters["niceness"])
        while pacer.wait():
            fresh.wait()
            if not pacer.wait():  # closed, or a longer period was set meanwhile
                return
            fresh.clear()
            if self.parameters["think_on_request"] and not asked.requested:
                images.take(self.input.epoch, thinker.prepare)  # small while they wait
                continue
            pacer.begin()
            turn, over = asked.begin(), True
            if pacer.closed:  # the turn began too late to be cancelled
                return
            try:
                with worker.busy():
                    over = self._turn(turn, pacer)
            except Cancelled:
                over = False
                self._thoughts.cancelled()
            except Exception as error:  # the next thought may work
                self._thoughts.failed()
                if not pacer.closed:
                    self.trouble(f"no thought: {error if isinstance(error, ThinkerError) else repr(error)}")
            self._text.drop()
            asked.end(turn, over)
            if not over:  # the period is between thoughts; this was none
                pacer.hurry()

    def _turn(self, turn: Turn, pacer: Pacer) -> bool:
        """One thought over the frames at hand; False if there was nothing to think about. Raises Cancelled."""
        thinker, images, p = self._thinker, self._images, self.parameters
        assert thinker is not None and images is not None
        began, seen_epoch = time.monotonic(), self.input.epoch
        epoch = (self._epoch_base + seen_epoch) % 2**32
        if epoch != self._model_epoch:  # after a jump the same stamps may belong to other pictures
            thinker.forget()
            self._model_epoch = epoch
        entries, frames = images.take(seen_epoch, thinker.prepare)
        if not entries:
            return False
        will_do = p["min_scene_change"] and self._thoughts.will_do(turn, frames[-1].stamp_ns, epoch, self.period_s)
        if will_do and thinker.scene_change(frames) < p["min_scene_change"]:
            self._thoughts.skipped()
            return True
        self._text.begin(turn)
        guidance = thinker.think(
            frames,
            turn.instruction,
            max_new_tokens=p["max_new_tokens"],
            think_tokens=p["think_tokens"] or None,
            deadline_s=p["think_timeout_s"],
            cancel=turn.cancel,
            on_text=lambda text: self._text.show(turn, text),
            valid_for_s=p["guidance_valid_for_s"],
            sequence=self._thoughts.next_sequence(epoch),
            epoch=epoch,
            tokens=p["publish_tokens"],
        )
        if turn.cancel.is_set() or seen_epoch != self.input.epoch or pacer.closed:
            raise Cancelled("the thought came too late")
        took_s = time.monotonic() - began
        if took_s > self.hang_s:
            self.notice(f"a thought took {took_s:.1f} s, think_timeout_s is {p['think_timeout_s']:g} s")
        refuse_expired(guidance, self.input.newest_ns or 0, took_s)
        self._guidance_pub.publish(guidance_to_message(guidance, entries[-1].frame_id, self.trained))
        self._text.finish(turn, guidance.text)
        self._thoughts.published(turn, guidance, thinker.report, took_s)
        self.ledger.publish((self.get_clock().now().nanoseconds - guidance.stamp_ns) * 1e-9)
        self.ledger.settle_pending(entries, Fate.USED)
        self.warming = ""
        self.success()
        return True

    # ---- telling

    def remark(self) -> str:
        return self._thoughts.remark(0.0 if self.parameters["think_on_request"] else self.period_s)

    def picture_extras(self) -> dict[str, Any]:
        figures = {"instruction": self._asked.instruction, "template": self._asked.template, **self._thoughts.figures()}
        return {"extra": figures}


def main(args: list[str] | None = None) -> int:
    """Run the thinker until SIGINT or SIGTERM."""
    return run(ThinkerNode, args)


if __name__ == "__main__":
    sys.exit(main())
