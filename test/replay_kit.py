"""What a model might have said over two recordings, in numbers alone, for the tests of figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from thinkjepa_ros.evaluation.bag.replay import Replay

STEP_S = 0.1
NS = 1_000_000_000
JOINTS = ("right_wrist", "right_tip", "left_wrist", "gripper")


def make_replay(
    count: int = 60, steps: int = 10, unknown: float = 0.15, seed: int = 0, guided: bool = True, **changes: Any
) -> Replay:
    """Two recordings, the first in two pieces. unknown: share of the entries without truth, and of the past that the
    model has no estimate of. The right hand moves, the left one rests, the gripper drifts.
    """
    random = np.random.default_rng(seed)
    bag = (np.arange(count) >= 2 * count // 3).astype(np.int64)
    piece = bag + (np.arange(count) >= count // 3)
    since = np.arange(count) * STEP_S + 30.0 * piece
    stamp_ns = 1_700_000_000 * NS + np.round(since * NS).astype(np.int64)
    stamp_ns[bag == 1] -= 5 * NS

    def joints(seconds: np.ndarray) -> np.ndarray:
        swing = 0.15 * np.sin(1.3 * seconds)
        still, drift = np.zeros_like(seconds), 0.02 * seconds % 0.3
        moved = [swing, 1.2 * swing, still, drift]
        base = np.array([[0.1, 0, 0.8], [0.15, 0, 0.8], [-0.1, 0, 0.7], [0, 0.1, 0.9]])
        return base + np.stack([np.stack([m, 0.3 * m, still], -1) for m in moved], -2)

    ahead = since[:, None] + STEP_S * np.arange(1, steps + 1)
    truth = joints(ahead)
    truth[random.random(truth.shape[:3]) < unknown] = np.nan
    last = np.array([since[piece == p].max() for p in piece])
    truth[ahead > last[:, None] + 1e-9] = np.nan  # nobody knows what is beyond the end of a piece
    now = joints(since)
    now[random.random(now.shape[:2]) < unknown / 3] = np.nan
    past_s = np.tile(-STEP_S * np.arange(5, -1, -1), (count, 1))
    past = joints(since[:, None] + past_s) + random.normal(0, 0.004, (count, 6, len(JOINTS), 3))
    past[:, :-1][random.random((count, 5, len(JOINTS))) < unknown] = np.nan
    far = random.normal(0, 1, (2, count, steps, len(JOINTS), 3)) * np.sqrt(np.arange(1, steps + 1))[:, None, None]
    fields: dict[str, Any] = {
        "bag": bag,
        "piece": piece,
        "stamp_ns": stamp_ns,
        "guided": (joints(ahead) + 0.005 * far[0]).astype(np.float32) if guided else None,
        "unguided": (joints(ahead) + 0.012 * far[1]).astype(np.float32),
        "sigma": np.full((count, steps, len(JOINTS)), 0.01, np.float32),
        "present": past[:, -1].astype(np.float32),
        "past": past.astype(np.float32),
        "past_s": past_s,
        "weight": np.full(count, 0.8 if guided else 0.0, np.float32),
        "age_s": np.full(count, 0.4 if guided else np.nan, np.float32),
        "surprise": random.random(count).astype(np.float32),
        "latency_s": random.uniform(0.01, 0.03, count).astype(np.float32),
        "truth": truth,
        "truth_present": now,
        "thoughts": [{"bag": 0, "stamp_ns": int(stamp_ns[0]) - 10, "text": "to the left", "delay_s": None}],
        "event": None,
        "joint_names": JOINTS,
        "step_s": STEP_S,
        "about": {"truth_source": "/truth", "trained": True, "anchored": False},
    }
    return Replay(**{**fields, **changes})
