"""The values that travel between the slow path, the fast path and ROS.

Every layer may import this module; it imports nothing of the package and no framework but numpy.
Times are integer nanoseconds of the ROS clock; lengths are metres; images are RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Streams of a pooled pyramid, in order: mean state of the prompt tokens, mean state of the generated tokens.
STREAMS = ("prompt", "generated")
#: Kinds of token in a token pyramid (`Guidance.streams`).
PROMPT_TEXT, PROMPT_VISUAL, GENERATED = 0, 1, 2
#: Where the actions of a plan come from: proposed by the policy and chosen as they are, found by the planner, kept of
#: the plan before and moved on by the time that passed, or none of them: stay where you are.
Source = Literal["policy", "planner", "shifted", "hold"]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with lens distortion (sensor_msgs/CameraInfo without ROS).

    width, height: image size in pixels the intrinsics hold for. fx, fy, cx, cy: pixels.
    distortion: coefficients in OpenCV order for `distortion_model` ("plumb_bob", "rational_polynomial",
    "equidistant"); empty means none.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    distortion_model: str = "plumb_bob"

    @property
    def matrix(self) -> np.ndarray:
        """K, float64 [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of points [..., 3] in metres (optical frame: x right, y down, z forward), lens distortion
        ignored.

        Points at or behind the camera give NaN.
        """
        points = np.asarray(points, np.float64)
        z = np.where(points[..., 2] > 1e-6, points[..., 2], np.nan)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.stack([self.fx * points[..., 0] / z + self.cx, self.fy * points[..., 1] / z + self.cy], -1)


@dataclass(frozen=True)
class Frame:
    """One camera image: rgb uint8 [H, W, 3], its stamp and the optical frame it was taken in."""

    rgb: np.ndarray
    stamp_ns: int
    frame_id: str = ""


@dataclass(frozen=True)
class Subgoal:
    """The latent that the thinker wants to be seen `horizon_s` seconds after the stamp of its guidance.

    latent: float32 [n, D] in the space of the encoder whose model id is `space`. trained: False while the head that
    made it is not, so that the latent means nothing.
    """

    latent: np.ndarray
    horizon_s: float
    space: str
    trained: bool


@dataclass(frozen=True)
class Guidance:
    """What the thinker hands to the predictor.

    pyramid: float32 [L, 2, D], the mean hidden state of the prompt tokens (0) and of the generated tokens (1) after
    each exported decoder layer. present: which of the two streams holds tokens. layers: decoder layer numbers [L].
    stamp_ns: stamp of the newest frame reasoned over. epoch changes when the thinker restarts or its clock jumps.
    text: the answer, in words; thought: what was written between <think> and </think> before it.

    Token form, on request only: states float32 [L, S, D], each token of the prompt in order and then each generated
    one; streams uint8 [S], the kind of each (PROMPT_TEXT, PROMPT_VISUAL, GENERATED). None in the pooled form.
    """

    pyramid: np.ndarray
    layers: tuple[int, ...]
    stamp_ns: int
    valid_for_s: float
    present: tuple[bool, bool] = (True, True)
    text: str = ""
    instruction: str = ""
    instruction_id: str = ""
    epoch: int = 0
    sequence: int = 0
    model_id: str = ""
    thought: str = ""
    states: np.ndarray | None = None
    streams: np.ndarray | None = None
    subgoal: Subgoal | None = None

    def weight(self, now_ns: int) -> float:
        """How much of this guidance still counts at `now_ns`: 1 while fresh, 0 from `valid_for_s` on.

        Full weight for the first half of its life, then a straight fade, so that a forecast never jumps when a
        thought expires.
        A guidance from the future of `now_ns` has no weight.
        """
        age = (now_ns - self.stamp_ns) * 1e-9
        if age < 0 or not self.valid_for_s > 0:
            return 0.0
        return float(np.clip(2.0 * (1.0 - age / self.valid_for_s), 0.0, 1.0))


@dataclass(frozen=True)
class Forecast:
    """Where the joints are now and where they will be.

    positions: float32 [T, J, 3] in metres in the optical frame `frame_id` of the camera at `stamp_ns`; step k is at
    stamp + (k + 1) * step_s. present: float32 [J, 3], the joints at the stamp (the model's estimate, or the anchor).
    sigma: float32 [T, J], standard deviation per axis in metres. metric: False when no camera intrinsics were known,
    so that the scale rests on the canonical camera. guidance_weight 0 means unguided; guidance_age_s NaN likewise.
    surprise: latent prediction error of the newest observation (NaN until there is one to compare).
    """

    positions: np.ndarray
    sigma: np.ndarray
    present: np.ndarray
    joint_names: tuple[str, ...]
    step_s: float
    stamp_ns: int
    frame_id: str = ""
    anchored: bool = False
    metric: bool = True
    guidance_weight: float = 0.0
    guidance_age_s: float = float("nan")
    surprise: float = float("nan")
    model_id: str = ""
    domain: str = ""


@dataclass(frozen=True)
class Plan:
    """What the robot should do next, and why that is believed to be better than doing nothing.

    actions: float32 [H, A], one per step of step_s seconds: (dx, dy, dz) as commanded over the step, metres in the
    robot's base frame, and the commanded closedness of the gripper, 0 … 1. energy: of these actions as imagined;
    hold_energy: of staying where the robot is, imagined in the same pass, both lower is better; NaN where nothing was
    imagined. energies: float32 [K], of the best candidates that the planner kept, lowest first. stamp_ns: of the image
    that the plan rests on. guidance_age_s: NaN when unguided.
    """

    actions: np.ndarray
    energy: float
    hold_energy: float
    energies: np.ndarray
    source: Source
    stamp_ns: int
    step_s: float
    guidance_age_s: float = float("nan")

    @property
    def gain(self) -> float:
        """By how much the actions beat staying where the robot is; NaN where that is not known."""
        return self.hold_energy - self.energy
