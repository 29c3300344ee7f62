"""Recordings of a simulated robot that is not the one of cue-reach: another arm, another camera from another place.

Three joints swing the arm over a table; a camera at its side makes JPEG images of 160 x 120, its calibration and place
are in the recording, and the truth are the arm's elbow, wrist and tip in the frame of the table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from bag_kit import header, make
from scipy.spatial.transform import Rotation
from truth_kit import Message, bag, compressed, ns, pose_array, tf

os.environ.setdefault("MUJOCO_GL", "egl")

JOINTS = ("elbow", "wrist", "tip")
WIDTH, HEIGHT, FOVY = 160, 120, 55.0
FOCAL = HEIGHT / 2 / math.tan(math.radians(FOVY) / 2)
FRAME = "side_camera_optical"
RATE_HZ = 15.0
MJCF = f"""
<mujoco>
  <visual>
    <global offwidth="{WIDTH}" offheight="{HEIGHT}"/>
    <quality shadowsize="256" numslices="10" numstacks="6" offsamples="0"/>
  </visual>
  <worldbody>
    <light pos="0.2 -0.6 1.6" dir="0 0.4 -1"/>
    <geom type="plane" size="2 2 0.1" rgba="0.45 0.5 0.55 1"/>
    <geom type="cylinder" pos="0 0 0.1" size="0.05 0.1" rgba="0.2 0.2 0.2 1"/>
    <body name="middle" pos="0.15 0 0.25"/>
    <body pos="0 0 0.25">
      <joint name="pan" axis="0 0 1"/>
      <joint name="shoulder" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0.25 0 0" size="0.03" rgba="0.9 0.4 0.1 1"/>
      <body pos="0.25 0 0">
        <joint name="elbow" axis="0 1 0"/>
        <site name="elbow"/>
        <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.022" rgba="0.1 0.5 0.9 1"/>
        <site name="wrist" pos="0.17 0 0"/>
        <site name="tip" pos="0.22 0 0"/>
      </body>
    </body>
    <camera name="side" pos="0.35 -0.85 0.6" mode="targetbody" target="middle" fovy="{FOVY}"/>
  </worldbody>
</mujoco>
"""


def record(folder: Path, number: int, seconds: float = 4.0) -> Path:
    """Recording `number` of the arm: it swings as `number` says."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(MJCF)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(number)
    phase, period = rng.uniform(0, 2 * math.pi, 3), rng.uniform(1.8, 2.4)
    middle, swing = np.array([0.0, -0.3, 0.5]), np.array([0.8, 0.3, 0.5]) * rng.uniform(0.8, 1.0, 3)
    messages: list[Message] = []
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for k in range(round(seconds * RATE_HZ)):
            stamp = ns(k / RATE_HZ + 100 * number)
            data.qpos[:] = middle + swing * np.sin(2 * math.pi * k / RATE_HZ / period + phase)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera="side")
            image = cv2.cvtColor(renderer.render(), cv2.COLOR_RGB2BGR)
            jpeg = bytes(cv2.imencode(".jpg", image)[1].tobytes())
            messages.append(("/side/camera_info", stamp, _calibration(stamp)))
            messages.append(("/side/image/compressed", stamp, compressed(stamp, jpeg, FRAME)))
            messages.append(("/arm/points", stamp, pose_array(stamp, data.site_xpos, "table")))
        turn = Rotation.from_matrix(data.cam_xmat[0].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])).as_quat()
    first = messages[0][1]
    messages.append(("/tf_static", first, tf((first, "table", FRAME, data.cam_xpos[0], turn))))
    return bag(folder, messages)


def _calibration(stamp: int) -> object:
    k = np.array([FOCAL, 0, (WIDTH - 1) / 2, 0, FOCAL, (HEIGHT - 1) / 2, 0, 0, 1])
    region = make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    return make(
        "sensor_msgs/msg/CameraInfo", header(stamp, FRAME), HEIGHT, WIDTH, "plumb_bob", np.zeros(5), k,
        np.eye(3).ravel(), np.array([*k[:3], 0, *k[3:6], 0, *k[6:], 0]), 0, 0, region,
    )  # fmt: skip


def episodes(folder: Path, numbers: Sequence[int], seconds: float = 4.0) -> Path:
    """`folder`/episodes, converted from recordings of these numbers, one episode each."""
    from thinkjepa_ros.data.cutting import Settings
    from thinkjepa_ros.data.from_bag import convert

    bags = [record(folder / f"arm_{number}", number, seconds) for number in numbers]
    settings = Settings(truth="/arm/points", joints=JOINTS, seconds=60.0)
    assert convert(bags, folder / "episodes", settings, quiet=True) == 0
    return folder / "episodes"
