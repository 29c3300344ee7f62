"""Watches a robot that is being controlled: what it sees and what is planned, as pictures and as a film."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import String

from thinkjepa_ros.msg import NodeStatus
from thinkjepa_ros.msg import Plan as PlanMsg

from ..evaluation.draw_plan import draw_control
from ..evaluation.film import Film, FilmError
from ..values import Camera, Plan
from . import qos
from .images import ImageError, to_camera, to_rgb
from .messages import MessageError, stamp_ns
from .plans import plan_from_message
from .truth import pose_matrix

#: A plan is drawn until it is so old; controllers make several a second.
_PLAN_S = 1.0
_MOST_STILL_S = 1.0  # a longer time without an image is cut to this in the film


class ControlView:
    """Subscribes to the robot and the controller; everything runs in the executor thread of `node`.

    out: folder for live.jpg, last.png and film.mp4, or None. note: for large letters in every picture.
    filming: whether what is seen now belongs into the film.
    """

    def __init__(
        self,
        node: Node,
        simulator: str,
        controller: str,
        others: Iterable[str],
        out: Path | None,
        picture_s: float,
        film_hz: float,
    ) -> None:
        """others: names of more nodes whose status is of interest."""
        self._node, self._controller, self._out = node, controller, out
        self._picture_s, self._film_hz = picture_s, film_hz
        self._film = Film(out / "film.mp4", film_hz) if out is not None and film_hz > 0 else None
        self._camera: Camera | None = None
        self._pose: np.ndarray | None = None
        self._point: np.ndarray | None = None
        self._plan: Plan | None = None
        self._plan_at = self._drawn_at = 0.0
        self._frame: np.ndarray | None = None
        self._goal: np.ndarray | None = None
        self._film_ns: int | None = None
        self._film_s = 0.0
        self.trouble = ""  # why there is no film
        self.filming = False
        self.outcome: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        self.plans = self.images = 0
        self.statuses: dict[str, NodeStatus] = {}
        self.text = self.task = self.note = ""
        for name in (simulator, controller, *others):
            node.create_subscription(
                NodeStatus,
                f"{name}/status",
                lambda status, name=name: self.statuses.update({name: status}),
                qos.LATCHED,
            )
        node.create_subscription(String, f"{simulator}/outcome", self._on_outcome, qos.LATCHED)
        node.create_subscription(PlanMsg, f"{controller}/plan", self._on_plan, qos.RESULTS)
        node.create_subscription(String, "thinker/text", self._on_text, qos.LATCHED)
        if out is not None:
            node.create_subscription(CameraInfo, "camera/camera_info", self._on_info, qos.CAMERA_INFO)
            node.create_subscription(PoseStamped, "camera/pose", self._on_pose, qos.OBSERVATIONS)
            node.create_subscription(PoseStamped, "ee_pose", self._on_tool, qos.OBSERVATIONS)
            node.create_subscription(CompressedImage, "goal_image/compressed", self._on_goal, qos.LATCHED)
            node.create_subscription(CompressedImage, "camera/image/compressed", self._on_image, qos.IMAGES)

    def begin(self, task: str) -> None:
        """Another task begins: what was planned for the one before is over."""
        self.task, self.plan, self._plan = task, {}, None

    @property
    def fresh(self) -> bool:
        """There is a plan of this moment."""
        return self._plan is not None and time.monotonic() - self._plan_at < _PLAN_S

    def _on_outcome(self, message: String) -> None:
        with suppress(ValueError):
            self.outcome = dict(json.loads(message.data))

    def _on_text(self, message: String) -> None:
        self.text = " ".join(message.data.split())

    def _on_plan(self, message: PlanMsg) -> None:
        try:
            self._plan = plan = plan_from_message(message)
        except MessageError as error:
            self._node.get_logger().warning(f"refused a plan: {error}", throttle_duration_sec=5.0)
            return
        self.plans += 1
        self._plan_at = time.monotonic()
        self.plan = {
            "source": plan.source,
            "energy": plan.energy,
            "hold_energy": plan.hold_energy,
            "planning_s": float(message.planning_s),
            "guidance_age_s": plan.guidance_age_s,
            "model_id": message.model_id,
            "domain": message.domain,
            "trained": bool(message.trained),
        }

    def _on_info(self, message: CameraInfo) -> None:
        with suppress(ImageError):
            self._camera = to_camera(message)

    def _on_pose(self, message: PoseStamped) -> None:
        p, q = message.pose.position, message.pose.orientation
        self._pose = pose_matrix((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))

    def _on_tool(self, message: PoseStamped) -> None:
        p = message.pose.position
        self._point = np.array([p.x, p.y, p.z])

    def _on_goal(self, message: CompressedImage) -> None:
        self._goal = None
        with suppress(ImageError):
            self._goal = to_rgb(message) if len(message.data) else None

    def _on_image(self, message: CompressedImage) -> None:
        self.images += 1
        now, ns = time.monotonic(), stamp_ns(message.header.stamp)
        due = now - self._drawn_at >= self._picture_s
        if self._camera is None or not (due or self._film):
            return
        try:
            rgb = to_rgb(message)
        except ImageError as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        plan = self._plan if self.fresh else None
        where = self._camera, self._pose, self._point
        self._frame = draw_control(rgb, *where, plan, ns, self._lines(), self.banner, self._stamp(), self._goal)
        if due:
            self._drawn_at = now
            self._write("live.jpg", self._frame)
        if self._film is not None and self.filming:
            self._add_to_film(self._film, self._frame, ns)

    @property
    def banner(self) -> str:
        """What must be said in large letters."""
        untrained = self.plan and not self.plan["trained"]
        return self.note or ("UNTRAINED" if untrained else "")

    def _stamp(self) -> str:
        return "done" if self.outcome.get("success") else ""

    def _lines(self) -> list[str]:
        outcome, plan = self.outcome, self.plan
        lines = [self.task]
        if outcome:
            error = outcome.get("error_m")
            away = "" if error is None else f", {error * 100:.1f} cm from the goal"
            lines.append(f"action {outcome['actions']} of {outcome['most_actions']}{away}")
        if plan and self.fresh:
            words = f"planned in {plan['planning_s'] * 1e3:.0f} ms" if np.isfinite(plan["planning_s"]) else "planned"
            if np.isfinite(plan["energy"]) and np.isfinite(plan["hold_energy"]):
                words += f", energy {plan['energy']:.3f}, of holding still {plan['hold_energy']:.3f}"
            lines.append(words + (f", trained on {plan['domain']}" if plan["domain"] and plan["trained"] else ""))
        elif self._controller in self.statuses:
            lines.append(self.statuses[self._controller].words)
        if self.text:
            lines.append(f"thought: {self.text[:80]}")
        return lines

    def _add_to_film(self, film: Film, frame: np.ndarray, ns: int) -> None:
        """As many frames as the time since the last image needs, so that the film runs at the speed it happened."""
        gap = 0.0 if self._film_ns is None else (ns - self._film_ns) * 1e-9
        self._film_ns = ns
        self._film_s += min(max(gap, 0.0), _MOST_STILL_S)
        wanted = round(self._film_s * self._film_hz) + 1 - film.frames
        try:
            if wanted > 0:
                film.add(frame, wanted)
        except FilmError as error:
            self.trouble, self._film = str(error), None
            film.discard()

    def _write(self, name: str, frame: np.ndarray) -> None:
        """Replace a picture at once: whoever looks at it never finds half of one."""
        assert self._out is not None
        part = self._out / f".part.{name}"
        if cv2.imwrite(str(part), frame[..., ::-1]):
            part.replace(self._out / name)

    def close(self) -> None:
        """Finish the film and keep the last picture. To be called when nothing is spinning any more."""
        if self._out is not None and self._frame is not None:
            self._write("last.png", self._frame)
        if self._film is not None:
            try:
                self._film.close()
            except FilmError as error:
                self.trouble = str(error)
