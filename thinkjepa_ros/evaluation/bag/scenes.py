"""Moments of a replay as pictures: which ones to show, and what is drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from thinkjepa_ros.evaluation.draw import draw_forecast
from thinkjepa_ros.values import Camera, Forecast

from .metrics import times_s
from .replay import Replay

#: Asked for (bag, stamp in ns), gives (bag, stamp, uint8 RGB [H, W, 3]) in the order of recording; those that cannot be
#: read are missing. See footage.py.
Frames = Callable[[list[tuple[int, int]]], Iterator[tuple[int, int, np.ndarray]]]
NS = 1_000_000_000
#: Forecasts that are looked at together.
_BLOCK = 256


def camera_of(replay: Replay, bag: int = 0) -> Camera | None:
    """The camera of the pictures of a recording, None where it is not known."""
    bags = replay.about.get("bags") or []
    about = (bags[bag].get("camera") if 0 <= bag < len(bags) else None) or replay.about.get("camera") or {}
    try:
        fx, fy, cx, cy = (float(about[key]) for key in ("fx", "fy", "cx", "cy"))
        return Camera(int(about["width"]), int(about["height"]), fx, fy, cx, cy)
    except (KeyError, TypeError, ValueError):
        return None


def index_of(replay: Replay) -> dict[tuple[int, int], int]:
    """Forecasts by (bag, stamp in ns); of several with one stamp (its clock was set back) the first."""
    keys = zip(replay.bag.tolist(), replay.stamp_ns.tolist(), range(len(replay)), strict=True)
    return {(bag, stamp): i for bag, stamp, i in reversed(list(keys))}


def obstacle(replay: Replay) -> str:
    """Why no forecast of the replay can be drawn on its pictures; empty where they can."""
    if not len(replay):
        return "there is no forecast"
    if replay.main is None:
        return (
            "the model shares no joint with the truth, so there is no forecast to draw; name the joints of the truth "
            "as the model does (--joints, --match), or leave --truth out to see the model's own joints"
        )
    unknown = [bag for bag in np.unique(replay.bag).tolist() if camera_of(replay, bag) is None]
    return (
        f"the camera of {bag_name(replay, unknown[0])} (width, height, fx, fy, cx, cy) is not known" if unknown else ""
    )


def forecast_of(replay: Replay, index: int) -> Forecast:
    """Forecast number `index` of the main row as the value that `draw` knows. Raises ValueError where there is none."""
    if replay.main is None:
        raise ValueError(obstacle(replay))
    about = replay.about
    weight, surprise = float(replay.weight[index]), float(replay.surprise[index])
    return Forecast(
        positions=replay.main[index],
        sigma=replay.sigma[index],
        present=replay.present[index],
        joint_names=replay.joint_names,
        step_s=replay.step_s,
        stamp_ns=int(replay.stamp_ns[index]),
        anchored=replay.anchored,
        guidance_weight=weight if np.isfinite(weight) and replay.guided is not None else 0.0,
        guidance_age_s=float(replay.age_s[index]),
        surprise=surprise,
        model_id=f"{about.get('model_id', '')}{'' if about.get('trained', True) else ' (untrained)'}",
        domain=str(about.get("domain") or ""),
    )


def draw(replay: Replay, index: int, rgb: np.ndarray, text: str = "", width: int | None = None) -> np.ndarray:
    """The picture of forecast `index` with everything drawn on it, uint8 RGB [H, W, 3], of an even `width` if given.

    Raises ValueError where nothing can be drawn, see `obstacle`.
    """
    camera = camera_of(replay, int(replay.bag[index]))
    if camera is None:
        raise ValueError(obstacle(replay))
    height, old = rgb.shape[:2]
    if width is not None and width != old:
        size = (width, round(height * width / old / 2) * 2)
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if width < old else cv2.INTER_CUBIC)
    truth = replay.truth[index]
    both = replay.guided is not None and replay.unguided is not None
    return draw_forecast(
        rgb,
        camera,
        forecast_of(replay, index),
        truth=truth if np.isfinite(truth).any() else None,
        baseline=replay.unguided[index] if both and replay.unguided is not None else None,
        text=text,
        baseline_name="without any thought",
    )


def thought_at(replay: Replay, index: int) -> str:
    """What the thought said that guides forecast `index`, in one line; empty where none counts."""
    age_s = float(replay.age_s[index])
    if not (replay.weight[index] > 0 and np.isfinite(age_s)):
        return ""
    latest = int(replay.stamp_ns[index]) - round(age_s * NS) + 1_000_000  # float32 does not know nanoseconds
    mine = [t for t in replay.thoughts if int(t["bag"]) == replay.bag[index] and int(t["stamp_ns"]) <= latest]
    if not mine:
        return ""
    newest = max(mine, key=lambda thought: int(thought["stamp_ns"]))
    return " ".join(str(newest.get("text") or "").split()) or "(no words)"


def bag_name(replay: Replay, bag: int) -> str:
    bags = replay.about.get("bags") or []
    return str(bags[bag].get("name", bag)) if 0 <= bag < len(bags) else str(bag)


def label(replay: Replay, index: int) -> str:
    """Where a forecast lies: seconds since the first image, and the recording where there are several."""
    words = f"{times_s(replay)[index]:.1f} s"
    bags = replay.about.get("bags") or []
    return f"{words} of {bag_name(replay, int(replay.bag[index]))}" if len(bags) > 1 else words


def ways(replay: Replay) -> np.ndarray:
    """How far the joints really move within the horizon, metres [N]; NaN where the truth is not known to its end."""
    out = np.full(len(replay), np.nan)
    for first in range(0, len(replay), _BLOCK):  # an hour at once would take a gigabyte
        part = slice(first, first + _BLOCK)
        distance = np.linalg.norm(replay.truth[part] - replay.truth_present[part, None], axis=-1)
        known = np.isfinite(distance)
        mean = np.where(known, distance, 0.0).sum(-1) / np.maximum(known.sum(-1), 1)
        out[part] = np.where(known[:, -1].any(-1), mean.max(1, initial=0.0), np.nan)
    return out


def choose(replay: Replay, count: int) -> list[int]:
    """Forecasts to show: spread evenly over those where the joints have the longest way before them, in their order.

    Without truth: evenly over all.
    """
    far = ways(replay)
    candidates = np.flatnonzero(np.isfinite(far))
    if len(candidates) > count:
        least = np.quantile(far[candidates], max(0.0, 0.5 - count / len(candidates)))
        candidates = candidates[far[candidates] >= least]
    if not len(candidates):
        candidates = np.arange(len(replay))
    places = np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int))
    return [int(candidates[place]) for place in places]


def pictures_of(replay: Replay, frames: Frames, chosen: Sequence[int], width: int) -> dict[int, np.ndarray]:
    """Drawn pictures of the chosen forecasts, by index; those whose frame cannot be read are missing."""
    wanted = {int(i) for i in chosen}
    by_stamp = {key: index for key, index in index_of(replay).items() if index in wanted}
    made = {}
    for bag, stamp, rgb in frames(sorted(by_stamp)):
        index = by_stamp.get((int(bag), int(stamp)))
        if index is not None:
            made[index] = draw(replay, index, rgb, width=width)  # what was thought stands beside it
    return made
