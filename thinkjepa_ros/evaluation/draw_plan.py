"""Draws a plan of the controller onto the camera image: the way that the gripper is meant to take.

A plan that moves is orange, one that stays (hold) grey; a goal image stands in the upper left corner, framed green.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from thinkjepa_ros.evaluation.draw import ALARM, BASELINE, NOW, PREDICTED, TRUE, Canvas
from thinkjepa_ros.values import Camera, Plan

#: Pictures are shown this wide, so that ways and words can be read.
WIDTH = 640


def way(plan: Plan, point: np.ndarray, now_ns: int) -> np.ndarray:
    """Where the gripper is meant to be, float64 [n + 1, 3] in the base frame: from `point` [3], where it is at
    `now_ns`, through what is left of the actions then.
    """
    done = max(0.0, (now_ns - plan.stamp_ns) * 1e-9 / plan.step_s)
    share = np.clip(np.arange(1, len(plan.actions) + 1) - done, 0.0, 1.0)  # of each action that is left
    steps = plan.actions[:, :3].astype(np.float64) * share[:, None]
    return point + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])


def draw_control(
    rgb: np.ndarray,
    camera: Camera,
    pose: np.ndarray | None,
    point: np.ndarray | None,
    plan: Plan | None,
    now_ns: int,
    lines: Sequence[str] = (),
    banner: str = "",
    stamp: str = "",
    goal: np.ndarray | None = None,
    width: int = WIDTH,
) -> np.ndarray:
    """uint8 RGB [H, width, 3] (even): the image with the plan drawn on it.

    rgb: uint8 [H, W, 3] as taken by `camera` (without lens distortion), which stands at `pose` [4, 4] (base from
    optical frame). point: of the gripper now, [3] in the base frame. lines: text below. banner: in large letters.
    stamp: in the upper right corner. goal: picture uint8 [h, w, 3] of what is wanted.
    """
    height = round(rgb.shape[0] * width / rgb.shape[1] / 2) * 2
    shrinking = width < rgb.shape[1]
    shown = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    canvas = Canvas(np.ascontiguousarray(shown, np.uint8), camera)
    entries = [("gripper", NOW)]
    if pose is not None and point is not None:
        if plan is not None:
            colour = BASELINE if plan.source == "hold" else PREDICTED
            seen = (way(plan, point, now_ns) - pose[:3, 3]) @ pose[:3, :3]
            canvas.paths(seen[:, None], colour, 1.6 * canvas.line)
            entries.append((f"plan ({plan.source}), {plan.step_s * len(plan.actions):.1f} s ahead", colour))
        canvas.skeleton(((point - pose[:3, 3]) @ pose[:3, :3])[None], [])
    if goal is not None:
        _inset(canvas.rgb, goal, canvas.margin)
    canvas.legend(entries, lines)
    if stamp:
        canvas.pill(stamp, TRUE, canvas.margin)
    if banner:
        canvas.banner(banner, ALARM)
    return canvas.rgb


def _inset(canvas: np.ndarray, goal: np.ndarray, margin: int) -> None:
    """Put a small copy of `goal` with a frame into the upper left corner."""
    wide = canvas.shape[1] // 4
    small = cv2.resize(goal, (wide, round(goal.shape[0] * wide / goal.shape[1])), interpolation=cv2.INTER_AREA)
    edge = 2
    canvas[margin : margin + small.shape[0] + 2 * edge, margin : margin + wide + 2 * edge] = TRUE
    canvas[margin + edge : margin + edge + small.shape[0], margin + edge : margin + edge + wide] = small
