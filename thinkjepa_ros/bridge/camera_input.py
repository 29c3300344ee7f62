"""The camera side of a node: one image subscription, whose every message is judged, counted and handed on in order.

The callback looks at the header only; pixels are touched in the worker. It runs in the executor thread, as everything
here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..stream.order import StampGate, Verdict
from ..values import Camera
from . import qos
from .images import ImageError, check_header, to_camera
from .ledger import Entry, Fate, Ledger
from .messages import stamp_ns

#: /clock may step back a little where two sources disagree; a bag that loops goes back by seconds.
_CLOCK_BACK_S, _CLOCK_AHEAD_S = 0.5, 5.0


class CameraInput:
    """Subscribes to images and CameraInfo while open.

    deliver: called with each good entry, stamps strictly ascending within an epoch. jumped(last_ns, backward): a new
    epoch has begun; last_ns is the newest stamp of the old one. noticed: something that the status should show at once.
    """

    def __init__(
        self,
        node: Node,
        ledger: Ledger,
        transport: str,
        future_tolerance_s: float,
        deliver: Callable[[Entry], None],
        jumped: Callable[[int | None, bool], None],
        noticed: Callable[[str], None],
    ) -> None:
        self._node, self._ledger = node, ledger
        self._deliver, self._jumped, self._noticed = deliver, jumped, noticed
        self._compressed = transport == "compressed"
        self._gate = StampGate(future_tolerance_s=future_tolerance_s)
        self._suspect: Entry | None = None
        self._image_sub: Any = None
        self._info_sub: Any = None
        self._info: tuple | None = None
        self._opened = time.monotonic()
        self._any: float | None = None
        self._good: float | None = None
        self._last_ns: int | None = None
        self._last_refusal = ""
        self.topic = self._image_topic()
        self.camera: Camera | None = None
        self.epoch = 0
        self.jumps = 0
        self._jump_handle = node.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=Duration(seconds=_CLOCK_AHEAD_S),
                min_backward=Duration(seconds=-_CLOCK_BACK_S),
                on_clock_change=True,
            ),
            post_callback=self._on_clock_jump,
        )

    def _image_topic(self) -> str:
        """Resolved name. As with image_transport, a remapped `image` takes its `/compressed` along.

        `image/compressed` can be remapped too.
        """
        if not self._compressed:
            return self._node.resolve_topic_name("image")
        own = self._node.resolve_topic_name("image/compressed")
        if own != self._node.resolve_topic_name("image/compressed", only_expand=True):
            return own
        return self._node.resolve_topic_name("image") + "/compressed"

    def open(self) -> None:
        """Begin to listen, with no memory of earlier frames."""
        self._gate.reset()
        self._any = self._good = self._last_ns = None
        self._opened = time.monotonic()
        self._image_sub = self._node.create_subscription(
            CompressedImage if self._compressed else Image,
            self.topic,
            self._on_image,
            qos.IMAGES,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible_qos),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._info_sub = self._node.create_subscription(CameraInfo, "camera_info", self._on_info, qos.CAMERA_INFO)

    def close(self) -> None:
        """Stop listening. A held suspect is given up."""
        for subscription in (self._image_sub, self._info_sub):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._image_sub = self._info_sub = None
        self._give_up_suspect("deactivated")

    def destroy(self) -> None:
        """Close, and let go of the clock."""
        self.close()
        self._jump_handle.unregister()

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest accepted frame of this epoch."""
        return self._last_ns

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last accepted frame; None while there has been none since `open`."""
        return None if self._good is None else time.monotonic() - self._good

    @property
    def open_s(self) -> float:
        """Seconds since `open`."""
        return time.monotonic() - self._opened

    @property
    def publishers(self) -> int:
        """How many publish on the image topic."""
        return self._node.count_publishers(self.topic)

    def trouble(self) -> str:
        """Why no frame comes, in words."""
        if self.publishers == 0:
            return f"no publisher on topic {self.topic}"
        if self._any is None or (self._good is not None and self._any <= self._good):
            since = "" if self._any is None else f" for {time.monotonic() - self._any:.1f} s"
            return f"no message on topic {self.topic}{since}"
        return f"every image on topic {self.topic} is refused: {self._last_refusal}"

    # ---- callbacks

    def _on_image(self, message: Any) -> None:
        stamp = stamp_ns(message.header.stamp)
        entry = self._ledger.receive(stamp, message, message.header.frame_id, self.epoch)
        self._any = entry.arrived
        try:
            check_header(message)
        except ImageError as error:
            return self._refuse(entry, "bad_image", str(error))
        now = self._node.get_clock().now().nanoseconds or None  # simulated time is 0 until the first /clock
        ruling = self._gate.classify(stamp, now)
        first: Entry | None = None
        if ruling.suspect is not None:
            first, self._suspect = self._suspect, None
            if ruling.suspect is Verdict.OUT_OF_ORDER and first is not None:
                self._refuse(first, Verdict.OUT_OF_ORDER.value, "an image far behind the others, once")
                first = None
        if ruling.verdict is Verdict.SUSPECT:
            self._suspect = entry
        elif ruling.verdict is Verdict.JUMP:
            self._begin_epoch(backward=first is not None, why="image stamps")
            for known in filter(None, (first, entry)):
                known.epoch = self.epoch
                self._accept(known)
        elif ruling.verdict is Verdict.OK:
            self._accept(entry)
        else:
            self._refuse(
                entry,
                ruling.verdict.value,
                f"an image stamped {stamp * 1e-9:.3f} s ({ruling.verdict.value.replace('_', ' ')})",
            )

    def _accept(self, entry: Entry) -> None:
        self._good = entry.arrived
        self._last_ns = entry.stamp_ns
        self._deliver(entry)

    def _refuse(self, entry: Entry, reason: str, words: str) -> None:
        entry.message = None
        self._ledger.settle(entry, Fate.REFUSED, reason)
        self._last_refusal = words
        self._noticed(words)

    def _give_up_suspect(self, reason: str) -> None:
        if self._suspect is not None:
            self._ledger.settle(self._suspect, Fate.REFUSED, reason)
            self._suspect = None

    def _begin_epoch(self, backward: bool, why: str) -> None:
        last, self._last_ns = self._last_ns, None
        self.epoch = (self.epoch + 1) % 2**32
        self.jumps += 1
        direction = "back" if backward else "ahead"
        self._node.get_logger().warning(
            f"the clock jumped {direction} ({why}): epoch {self.epoch} begins, history is dropped"
        )
        self._jumped(last, backward)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        """/clock jumped, or simulated time was switched on or off. Before the first frame there is nothing to drop."""
        if self._last_ns is None:
            return
        self._gate.reset()
        self._give_up_suspect(Verdict.OUT_OF_ORDER.value)
        self._begin_epoch(backward=jump.delta.nanoseconds < 0, why="/clock")

    def _on_info(self, message: CameraInfo) -> None:
        m, roi = message, message.roi
        seen: tuple = (m.width, m.height, m.distortion_model, bytes(m.k), bytes(m.d), bytes(m.p))
        seen += (m.binning_x, m.binning_y)
        seen += (roi.x_offset, roi.y_offset, roi.width, roi.height)
        if seen == self._info:  # it comes with every image and hardly ever changes
            return
        self._info = seen
        try:
            self.camera = to_camera(message, rectified="image_rect" in self.topic)  # the name that image_pipeline gives
        except ImageError as error:
            self.camera = None
            self._noticed(f"CameraInfo refused: {error}")
            self._node.get_logger().error(f"CameraInfo refused: {error}")

    def _on_incompatible_qos(self, event: QoSRequestedIncompatibleQoSInfo) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        words = (
            f"a publisher on {self.topic} offers another {policy} than this node asks for: no image of it arrives; "
            f"set the parameter qos_overrides.{self.topic}.subscription.{policy.lower()} to match"
        )
        self._node.get_logger().error(words)
        self._noticed(words)
