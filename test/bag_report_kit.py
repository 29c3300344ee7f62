"""A small recording and what a model might have said over it, for the tests of reports, films and comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bag_kit import BEGIN_NS, NS, camera_info
from truth_kit import bag, compressed

from thinkjepa_ros.evaluation.bag.footage import pictures
from thinkjepa_ros.evaluation.bag.ground import hash_of
from thinkjepa_ros.evaluation.bag.metrics import measure
from thinkjepa_ros.evaluation.bag.replay import Replay
from thinkjepa_ros.evaluation.bag.scenes import Frames
from thinkjepa_ros.values import Camera

WIDTH, HEIGHT, RATE_HZ, IMAGES, STEPS = 160, 120, 10, 60, 8
CAMERA = Camera(WIDTH, HEIGHT, 150.0, 150.0, 79.5, 59.5)
JOINTS = ("right_wrist", "right_index_base", "right_index_tip", "left_wrist", "left_index_base", "left_index_tip")
EVIL = "<script>alert(1)</script>"
#: Where the second unbroken piece begins.
SECOND = 40


def stamp(index: int) -> int:
    return BEGIN_NS + index * NS // RATE_HZ


def recording(folder: Path, images: int = IMAGES) -> Path:
    """A grey camera with a white bar that moves on."""
    messages: list[Any] = []
    for k in range(images):
        rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        rgb[:, (4 * k) % WIDTH : (4 * k) % WIDTH + 4] = 255
        data = cv2.imencode(".jpg", rgb)[1].tobytes()
        messages.append(("/camera/camera_info", stamp(k), camera_info(stamp(k), WIDTH, HEIGHT)))
        messages.append(("/camera/image/compressed", stamp(k), compressed(stamp(k), data)))
    return bag(folder, messages)


def frames_of(*bags: Path) -> Frames:
    """The pictures of recordings as an evaluation reads them."""
    from thinkjepa_ros.data.survey import Settings

    return lambda wanted: pictures(bags, Settings(), wanted)


def hands(seconds: np.ndarray) -> np.ndarray:
    """Where the joints are, metres [..., J, 3]: the right hand swings through the image, the left one rests."""
    base = np.array([[0.1, 0.1, 1.0], [0.08, 0.06, 1.0], [0.07, 0.0, 1.0]])
    swing = np.stack([-0.25 * np.sin(0.7 * seconds), 0.05 * np.cos(seconds), 0 * seconds], -1)
    right = base + swing[..., None, :]
    left = np.broadcast_to(base * (-1, 1, 1) - (0.05, 0, 0), right.shape)
    return np.concatenate([right, left], -2)


def replay(folder: Path, guided: bool = True, error_m: float = 0.01, seed: int = 0, **about: Any) -> Replay:
    """What a model that is `error_m` off says over `recording(folder)`; without guidance it is twice as far off."""
    random = np.random.default_rng(seed)
    at = np.arange(IMAGES) / RATE_HZ
    ahead = at[:, None] + np.arange(1, STEPS + 1) / RATE_HZ
    truth = hands(ahead)
    piece = (np.arange(IMAGES) >= SECOND).astype(np.int64)
    ends = np.where(piece == 0, at[SECOND - 1], at[-1])
    truth[ahead > ends[:, None] + 1e-9] = np.nan
    whole = hands(ahead)

    def off(scale: float) -> np.ndarray:
        return (whole + random.normal(0, scale, whole.shape)).astype(np.float32)

    present = hands(at)
    past_s = np.tile([-0.2, -0.1, 0.0], (IMAGES, 1))
    event = np.zeros(IMAGES, bool)
    event[20:24] = True
    weight = np.where(np.arange(IMAGES) >= 5, 0.8, 0.0) if guided else np.zeros(IMAGES)
    age = (
        np.where(np.arange(IMAGES) >= 5, np.arange(IMAGES) / RATE_HZ - 0.3, np.nan)
        if guided
        else np.full(IMAGES, np.nan)
    )
    surprise = 0.2 + 0.05 * random.random(IMAGES) + 0.5 * event
    surprise[0] = np.nan
    camera = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    words = {
        "command": f"thinkjepa evaluate bag {folder} --truth /hands",
        "mode": "offline",
        "rate": None,
        "model_id": "mini",
        "weights_sha256": "ab" * 32,
        "domain": "simulation",
        "trained": True,
        "thinker_id": "small thinker" if guided else None,
        "thinker_sha256": "cd" * 32 if guided else None,
        "anchored": False,
        "stride_s": 0.1,
        "horizon_s": 0.8,
        "bags": [
            {
                "name": folder.name,
                "path": str(folder),
                "sha256": hash_of(folder) if folder.exists() else "00" * 32,
                "duration_s": IMAGES / RATE_HZ,
                "images": IMAGES,
                "used": IMAGES,
                "first_ns": stamp(0),
                "camera": camera,
            }
        ],
        "truth_source": "/hands (PoseArray)",
        "image_topic": "/camera/image/compressed",
        "camera": camera,
        "left_out": {"images without a camera pose": 3},
        "notes": ["the camera is taken as if it stood still"],
        "joints_without_truth": [],
        "truth_without_joint": [],
        "speed": {"bag_s": 6.0, "wall_s": 2.0, "times_real_time": 3.0},
        "dropped": {},
    } | about  # fmt: skip
    thoughts = [{"bag": 0, "stamp_ns": stamp(3), "text": "pick the red cube", "delay_s": None}] if guided else []
    return Replay(
        bag=np.zeros(IMAGES, np.int64),
        piece=piece,
        stamp_ns=np.array([stamp(k) for k in range(IMAGES)], np.int64),
        guided=off(error_m) if guided else None,
        unguided=off(2 * error_m),
        sigma=np.full((IMAGES, STEPS, len(JOINTS)), error_m, np.float32),
        present=present.astype(np.float32),
        past=hands(at[:, None] + past_s).astype(np.float32),
        past_s=past_s,
        weight=weight.astype(np.float32),
        age_s=age.astype(np.float32),
        surprise=surprise.astype(np.float32),
        latency_s=np.full(IMAGES, 0.02, np.float32),
        truth=truth,
        truth_present=present,
        thoughts=thoughts,
        event=event,
        joint_names=JOINTS,
        step_s=1 / RATE_HZ,
        about=words,
    )


def evaluation(folder: Path, value: Replay) -> Path:
    """The files that a comparison reads, as `thinkjepa evaluate bag` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    value.save(folder)
    (folder / "metrics.json").write_text(json.dumps(measure(value), allow_nan=False))
    return folder


def hostile(value: Replay) -> Replay:
    """The same with markup in every word that comes from outside."""
    about = dict(value.about)
    for key in ("command", "model_id", "domain", "thinker_id", "truth_source", "image_topic"):
        about[key] = f"{EVIL}{about[key]}\"'>"
    about["bags"] = [{**about["bags"][0], "name": EVIL, "path": f'/a/"{EVIL}'}]
    about["notes"], about["left_out"] = [EVIL], {EVIL: 2}
    about["joints_without_truth"] = [EVIL]
    thoughts = [{**thought, "text": f'{EVIL} "><img src=x onerror=alert(1)> \x00'} for thought in value.thoughts]
    return replace(value, about=about, thoughts=thoughts, joint_names=(*JOINTS[:-1], f"left_{EVIL}"))
