"""Nothing but the cue tells the intent before the reach: probes look for a leak, and find one when it is there.

Origins are those of the benchmark's main rows: the cue has been off for more than the short window, the reach has not
begun. test_sim.py holds the exact form for single episodes (swap the intent, compare every pixel); here statistics look
for what that cannot see, a dependence between the random draws.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from scipy.stats import binom

if find_spec("mujoco") is None:
    pytest.skip("the simulator needs mujoco: pip install mujoco", allow_module_level=True)

from thinkjepa_ros.data.sim.play import Player
from thinkjepa_ros.data.sim.scene import Scene
from thinkjepa_ros.data.sim.script import draw

WINDOW_S = 0.7
CLASSES = 6


@dataclass
class Sample:
    window: np.ndarray  # what the short window shows
    cue: np.ndarray  # what the moment of the cue shows
    intent: int


def _sample(seed: int, pixels: bool) -> Sample:
    """The short window before a random main-row origin of a distractor episode, and the view at the time of the cue."""
    script = draw("distractor", seed)
    assert script.cue is not None
    script = replace(script, look=replace(script.look, shadows=False))  # only to save time
    rng = np.random.default_rng([seed, 1])
    origin = rng.uniform(script.cue.off + WINDOW_S + 0.05, script.time.reach)
    with Scene(script.look, 48, 48) as scene:
        player = Player(script, scene)

        def view(t: float) -> np.ndarray:
            state = player.set(t)
            lamps = [scene.model.material(f"lamp_{side}").rgba[:3] for side in ("left", "right")]
            cubes = [scene.position(f"cube_{c}") for c in ("red", "green", "blue")]
            parts = [state, scene.joints().ravel(), scene.camera_pose()[:3].ravel(), *cubes, *script.look.tray_xy]
            if not pixels:
                return np.concatenate([*parts, *lamps])
            image = cv2.resize(scene.render(), (16, 16), interpolation=cv2.INTER_AREA) / 255
            return np.concatenate([*parts, image.ravel()])

        window = [view(t) for t in np.linspace(origin - WINDOW_S, origin, 3)]
        before, during = view(script.cue.on - 0.05), view((script.cue.on + script.cue.off) / 2)
    return Sample(np.concatenate(window), during - before, script.intent_class)


def _probe(features: np.ndarray, labels: np.ndarray, train: int, strength: float) -> int:
    """How many of the samples after `train` ridge regression on one-hot labels gets right (dual form, standardised)."""
    x = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-3)
    x /= np.sqrt(x.shape[1])
    y = np.eye(CLASSES)[labels] - 1 / CLASSES
    kernel = x @ x[:train].T
    weights = np.linalg.solve(kernel[:train] + strength * np.eye(train), y[:train])
    return int((np.argmax(kernel[train:] @ weights, 1) == labels[train:]).sum())


def _check(samples: list[Sample], train: int) -> None:
    labels = np.array([s.intent for s in samples])
    window = np.stack([s.window for s in samples])
    cue = np.stack([s.cue for s in samples])
    test = len(samples) - train
    strengths = (1e-3, 1e-2, 1e-1, 1.0)
    # every strength must stay at chance, so the level is shared among them
    low, high = binom.interval(1 - 0.002 / len(strengths), test, 1 / CLASSES)
    for strength in strengths:
        right = _probe(window, labels, train, strength)
        assert low <= right <= high, f"{right} of {test} from the short window: chance is {low:.0f} to {high:.0f}"
    found = max(_probe(np.hstack([window, 3 * cue]), labels, train, strength) for strength in strengths)
    assert found > 2 * high, f"{found} of {test} with the cue: the probe is too weak to find a leak"


def test_poses_and_lamps_do_not_tell_the_intent() -> None:
    _check([_sample(seed, pixels=False) for seed in range(360)], train=240)


@pytest.mark.slow
def test_pixels_do_not_tell_the_intent() -> None:
    _check([_sample(seed, pixels=True) for seed in range(500)], train=330)
