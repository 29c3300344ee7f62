"""A tiny work cell without physics: a disc (the gripper) and a square (a cube) over a table, seen by a real camera."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from thinkjepa_ros.data.episode import Episode, JpegFrames
from thinkjepa_ros.values import Camera

SIZE = 64
CAMERA = Camera(SIZE, SIZE, 60.0, 60.0, (SIZE - 1) / 2, (SIZE - 1) / 2)
STEP_NS = 200_000_000


def camera_pose(turn: float = 0.0) -> np.ndarray:
    """In front of the table, looking down at its middle; turned about the vertical axis by `turn` rad."""
    forward = np.array([0.0, 0.8, -0.8]) / np.hypot(0.8, 0.8)
    right = np.array([1.0, 0.0, 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = [0.0, -0.5, 0.9]
    spin = np.eye(4)
    spin[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return np.asarray(spin @ pose)


def picture(point: np.ndarray, closed: float, cube: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]."""
    image = np.full((SIZE, SIZE, 3), (150, 130, 110), np.uint8)
    for place, colour, size in ((cube, (40, 60, 200), 0.04), (point, (230, int(220 * closed), 40), 0.05)):
        seen = (place - pose[:3, 3]) @ pose[:3, :3]
        u, v = CAMERA.project(seen)
        radius = CAMERA.fx * size / seen[2]
        draw = {"color": colour, "thickness": -1, "lineType": cv2.LINE_AA, "shift": 4}
        if place is cube:
            low, high = ((np.array([u, v]) + d * radius) * 16 for d in (-0.7, 0.7))
            cv2.rectangle(image, tuple(map(int, low)), tuple(map(int, high)), colour, -1)
            cv2.rectangle(image, tuple(int(x / 16) for x in low), tuple(int(x / 16) for x in high), colour, -1)
        else:
            cv2.circle(image, (int(u * 16), int(v * 16)), int(radius * 16), **draw)
    return image


def episode(seed: int, frames: int = 24, turn: float = 0.0, frozen: bool = False) -> Episode:
    """A smooth random walk of the gripper. frozen: every picture is the same, whatever happens."""
    rng = np.random.default_rng(seed)
    low, high = np.array([-0.25, 0.15, 0.05]), np.array([0.25, 0.55, 0.35])
    pose, cube = camera_pose(turn), np.array([rng.uniform(-0.2, 0.2), rng.uniform(0.2, 0.5), 0.02])
    point, speed, closed = rng.uniform(low, high), np.zeros(3), 0.0
    states, actions, images = [], [], []
    for _ in range(frames):
        states.append([*point, 0, 0, 0, closed])
        images.append(picture(point, closed, cube, pose) if not frozen else np.full((SIZE, SIZE, 3), 90, np.uint8))
        speed = np.clip(0.7 * speed + rng.normal(0, 0.03, 3), -0.06, 0.06)
        wanted = closed if rng.random() < 0.85 else 1.0 - closed
        moved = np.clip(point + speed, low, high) - point
        actions.append([*moved, 0, 0, 0, wanted])
        point, closed = point + moved, wanted
    n = frames
    return Episode(
        frames=JpegFrames.encode(images), stamps_ns=np.arange(n, dtype=np.int64) * STEP_NS, camera=CAMERA,
        camera_pose=np.repeat(pose[None], n, 0), joints=np.array(states, np.float32)[:, None, :3],
        visible=np.ones((n, 1), bool), states=np.array(states, np.float32),
        actions=np.array(actions[:-1], np.float32), phases=np.zeros(n, np.uint8), instruction="", split="none",
        seed=seed, joint_names=("gripper",), objects={"cube": np.repeat(cube[None].astype(np.float32), n, 0)},
    )  # fmt: skip


def write(folder: Path, count: int, first: int = 0, frames: int = 24) -> Path:
    """`folder` with `count` episodes."""
    for seed in range(first, first + count):
        episode(seed, frames).save(folder / f"none_{seed:07d}.h5")
    return folder
