"""What the same model says about the same images without any thought, computed after a run.

A second predictor beside the first would take the processor away from what is shown, so it is not run live; since a
forecast is a function of its window alone, the one computed afterwards is what an unguided node would have published.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rosbags.typesys import Stores, get_typestore

from thinkjepa_ros.bridge.images import ImageError, to_rgb
from thinkjepa_ros.bridge.shipped import model_folder
from thinkjepa_ros.bridge.stamps import read_stamp
from thinkjepa_ros.data.recording import Recording
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.stream.frames import Gap, on_grid
from thinkjepa_ros.values import Frame

#: Pictures are worth so much waiting and no more; a large model on a processor gets to fewer of them.
BUDGET_S = 15.0


def load(model: str, device: str) -> Forecaster:
    """The predictor as its node loads it. Raises CheckpointError, FileNotFoundError or ValueError."""
    return Forecaster.load(model_folder(model), device, "auto")


def forecasts(
    forecaster: Forecaster,
    run: Run,
    bag: Path,
    topic: str,
    wanted: Sequence[Sequence[int]],
    budget_s: float = BUDGET_S,
) -> dict[int, np.ndarray]:
    """Positions [T, J, 3] by the stamp (ns, the run's clock) of their image, in its optical frame, metres.

    bag, topic: what the run was made from. wanted: groups of stamps; the first is always computed, the others while
    there is time. What does not lie on the first round of the recording or has a gap in its window is left out. Raises
    RecordingError.
    """
    found: dict[int, np.ndarray] = {}
    over = time.monotonic() + budget_s
    for number, group in enumerate(wanted):
        deadline = over if number else float("inf")
        if not _pass(forecaster, run, bag, topic, set(group) - found.keys(), found, deadline):
            break
    return found


def _pass(
    forecaster: Forecaster,
    run: Run,
    bag: Path,
    topic: str,
    wanted: set[int],
    found: dict[int, np.ndarray],
    deadline: float,
) -> bool:
    """One reading of the recording, which adds to `found`; False when the time was over."""
    if not wanted or not len(run.begins_ns):
        return True
    forecaster.reset()
    store, step_ns = get_typestore(Stores.ROS2_JAZZY), forecaster.step_ns
    span_ns = forecaster.window * step_ns
    ring: deque[tuple[int, bytes]] = deque()
    with Recording(bag) as recording:
        camera, shift = recording.camera(topic), None
        for _, _, data in recording.messages([camera]):
            if shift is None:  # the player moves all stamps alike, the first image to the beginning of the round
                shift = int(run.begins_ns[0]) - read_stamp(data)
            now = read_stamp(data) + shift
            ring.append((now, data))
            while ring[0][0] < now - span_ns:
                ring.popleft()
            if now not in wanted:
                continue
            if time.monotonic() > deadline:
                return False
            chosen = on_grid([at for at, _ in ring], now, forecaster.window, step_ns, step_ns // 2)
            if isinstance(chosen, Gap):
                continue
            window = [ring[i] for i in chosen]
            try:
                for at, message in window:
                    if not forecaster.knows(at):
                        rgb = to_rgb(store.deserialize_cdr(message, camera.type))
                        forecaster.observe(Frame(rgb, at), run.camera)
            except (ImageError, ValueError):
                continue  # the node refused it as well
            found[now] = forecaster.forecast([at for at, _ in window]).positions
    return True
