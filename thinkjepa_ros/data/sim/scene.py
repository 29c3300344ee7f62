"""The cue-reach scene in MuJoCo: place things, read the truth, render images.

Nothing is simulated dynamically: bodies are placed, kinematics are computed, an image is rendered. One `Scene` is one
`Look` (geometry and appearance of one episode), compiled anew, so that no episode can leave a trace in the next.
"""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # off-screen; must be set before mujoco is imported
# Mesa's software renderer gains nothing from a second thread; one process per core does.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco
import numpy as np

from thinkjepa_ros.data.episode import JOINT_NAMES, SIDES
from thinkjepa_ros.data.sim.mjcf import FINGER_RADIUS, FINGERS, FOVY_DEG, RGB, THUMB_RADIUS, Look, mjcf
from thinkjepa_ros.values import Camera

# Joint angles of a finger (rad), open and closed; the last fingers are curled a little more.
_FINGER_OPEN, _FINGER_CLOSED = np.array([0.10, 0.15, 0.10]), np.array([1.05, 0.85, 0.45])
_CURL = np.outer([0.0, 0.03, 0.10, 0.16], [1.0, 1.0, 0.5])
# Direction of the thumb in the hand frame, open and closed.
_THUMB_OPEN, _THUMB_CLOSED = np.array([0.62, -0.35, 0.70]), np.array([-0.02, -0.93, 0.37])
#: How far in front of a joint its own finger, palm or sleeve may begin for the joint to count as seen, metres.
_OWN_DEPTH = {"wrist": 0.06, "palm": 0.03, "base": 0.03, "tip": 0.045}
_MARGIN = 0.012  # the same for any other surface


def camera_of(width: int, height: int) -> Camera:
    """Intrinsics of the head camera at an image size: vertical field of view 62 degrees, square pixels.

    Pixel centres lie on integers, as in OpenCV and ROS, so the principal point of 128 pixels is 63.5.
    """
    focal = height / 2 / np.tan(np.radians(FOVY_DEG) / 2)
    return Camera(width, height, float(focal), float(focal), (width - 1) / 2, (height - 1) / 2)


def light_lamp(model: mujoco.MjModel, look: Look, side: str, rgb: RGB | None) -> None:
    """Light the lamp at a tray ("left", "right") in a colour, whatever the room light is; None switches it off."""
    material = model.material(f"lamp_{side}")
    material.rgba[:3] = look.lamp_off if rgb is None else rgb
    material.emission[:] = 0.0 if rgb is None else 1.0


def optical_pose(data: mujoco.MjData, camera: int) -> np.ndarray:
    """World from the optical frame of a camera (its id), float64 [4, 4]."""
    pose = np.eye(4)
    # MuJoCo cameras look along -z with y up, optical frames along z with y down
    pose[:3, :3] = data.cam_xmat[camera].reshape(3, 3) * [1.0, -1.0, -1.0]
    pose[:3, 3] = data.cam_xpos[camera]
    return pose


def _from_z(direction: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) of the shortest rotation that turns the z axis into `direction` (any length, not -z)."""
    x, y, z = direction / np.linalg.norm(direction)
    q = np.array([1 + z, -y, x, 0.0])
    return np.asarray(q / np.linalg.norm(q))


class Scene:
    """One compiled scene with its renderer. Place things, call `update`, then read or render. Not thread-safe."""

    def __init__(self, look: Look, width: int, height: int) -> None:
        self.look, self.camera = look, camera_of(width, height)
        self.model = mujoco.MjModel.from_xml_string(mjcf(look))
        self.data = mujoco.MjData(self.model)
        self._renderer: mujoco.Renderer | None = None
        model = self.model
        self._mocap = {
            model.body(b).name: model.body_mocapid[b] for b in range(model.nbody) if model.body_mocapid[b] >= 0
        }
        self._sites = np.array([model.site(name).id for name in JOINT_NAMES])
        address = {model.joint(j).name: int(model.jnt_qposadr[j]) for j in range(model.njnt)}
        self._joints = {
            side: (
                np.array([[address[f"{side}_{name}{i}"] for i in range(3)] for name in FINGERS]),
                np.array([address[f"{side}_thumb{i}"] for i in range(3)]),
            )
            for side in SIDES
        }
        self._depth = np.array([_OWN_DEPTH[name.rsplit("_", 1)[1]] for name in JOINT_NAMES])
        self._own = np.stack([self._own_geoms(name) for name in JOINT_NAMES])
        self._camera_id = model.camera("head").id

    def _own_geoms(self, joint: str) -> np.ndarray:
        """bool [geoms]: what belongs to a joint and cannot hide it: its finger, the palm, the wrist's sleeve."""
        model, (side, part) = self.model, joint.split("_", 1)
        body = model.site_bodyid[model.site(joint).id]
        own = {model.body(f"{side}_hand").id} | ({model.body(f"{side}_arm").id} if part == "wrist" else set())
        if part not in ("wrist", "palm"):
            first = model.site_bodyid[model.site(f"{side}_{part.split('_')[0]}_base").id]
            own |= {first, first + 1, first + 2}  # the three phalanges are numbered in a row
            assert body in own
        return np.isin(model.geom_bodyid, list(own))

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the renderer's memory and its GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # --- placing ---

    def place(self, body: str, position: np.ndarray, rotation: np.ndarray | None = None) -> None:
        """Put a movable body ("cube_red", "head", ...) at `position` [3] and `rotation` [3, 3] (default none)."""
        k = self._mocap[body]
        self.data.mocap_pos[k] = position
        mujoco.mju_mat2Quat(self.data.mocap_quat[k], (np.eye(3) if rotation is None else rotation).ravel())

    def pose_hand(self, side: str, position: np.ndarray, rotation: np.ndarray, grip: float, elbow: np.ndarray) -> None:
        """Put a wrist at `position`, hand frame `rotation` in the world, grip 0..1, sleeve from `elbow`."""
        self.place(f"{side}_hand", position, rotation)
        self._curl(side, grip)
        z = (position - elbow) / np.linalg.norm(position - elbow)
        flat = float(np.hypot(z[0], z[1]))  # the sleeve is round, any frame around its axis will do
        x = np.array([-z[1], z[0], 0.0]) / flat
        y = np.array([-z[2] * x[1], z[2] * x[0], flat])
        self.place(f"{side}_arm", position, np.stack([x, y, z], 1))

    def _curl(self, side: str, grip: float) -> None:
        qpos, (fingers, thumb) = self.data.qpos, self._joints[side]
        qpos[fingers] = _FINGER_OPEN + (_FINGER_CLOSED - _FINGER_OPEN) * grip + _CURL
        direction = _THUMB_OPEN + (_THUMB_CLOSED - _THUMB_OPEN) * grip
        qpos[thumb[0] : thumb[0] + 4] = _from_z(direction * [1.0 if side == "right" else -1.0, 1.0, 1.0])
        qpos[thumb[1:]] = -0.15 - 0.1 * grip, -0.1 - 0.2 * grip

    def lamp(self, side: str, rgb: RGB | None) -> None:
        """Light the lamp at a tray in a colour, whatever the room light is, or switch it off with None."""
        light_lamp(self.model, self.look, side, rgb)

    def update(self) -> None:
        """Compute where everything is after placing."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    # --- reading ---

    def pinch(self, side: str, grip: float) -> tuple[np.ndarray, np.ndarray]:
        """Thumb tip and mean of index and middle tip in the hand frame, metres, for a hand closed by `grip`."""
        self.place(f"{side}_hand", np.zeros(3))
        self._curl(side, grip)
        self.update()
        at = {f: self.data.site(f"{side}_{f}_tip").xpos.copy() for f in ("thumb", "index", "middle")}
        return at["thumb"], (at["index"] + at["middle"]) / 2

    def grasp(self, side: str) -> tuple[float, np.ndarray, np.ndarray]:
        """How a hand holds a cube: grip, the cube's centre and the direction thumb to fingers in the hand frame."""
        gap = 2 * self.look.cube_half + (FINGER_RADIUS + THUMB_RADIUS) * self.look.hand_scale
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            thumb, fingers = self.pinch(side, middle)
            low, high = (middle, high) if np.linalg.norm(fingers - thumb) > gap else (low, middle)
        thumb, fingers = self.pinch(side, low)
        return low, (thumb + fingers) / 2, (fingers - thumb) / np.linalg.norm(fingers - thumb)

    def position(self, body: str) -> np.ndarray:
        """Where a movable body is, float64 [3]."""
        return np.asarray(self.data.mocap_pos[self._mocap[body]].copy())

    def joints(self) -> np.ndarray:
        """World positions of the joints in JOINT_NAMES order, float32 [24, 3], metres."""
        return self.data.site_xpos[self._sites].astype(np.float32)

    def camera_pose(self) -> np.ndarray:
        """World from camera optical frame, float64 [4, 4]."""
        return optical_pose(self.data, self._camera_id)

    def visible(self) -> np.ndarray:
        """bool [24]: the joint lies in the image and nothing but its own finger or palm is in front of it."""
        pose, points = self.camera_pose(), self.data.site_xpos[self._sites]
        with np.errstate(invalid="ignore"):
            pixel = self.camera.project((points - pose[:3, 3]) @ pose[:3, :3])
            inside = np.all((pixel >= -0.5) & (pixel < (self.camera.width - 0.5, self.camera.height - 0.5)), axis=-1)
        rays = points - pose[:3, 3]
        distance = np.linalg.norm(rays, axis=-1)
        geom = np.zeros(1, np.int32)
        for k in np.flatnonzero(inside):
            first = mujoco.mj_ray(self.model, self.data, pose[:3, 3], rays[k] / distance[k], None, 1, -1, geom)
            inside[k] = first > distance[k] - (self._depth[k] if self._own[k, geom[0]] else _MARGIN)
        return inside

    def render(self) -> np.ndarray:
        """The head camera's image, uint8 RGB [height, width, 3]."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, self.camera.height, self.camera.width)
        self._renderer.update_scene(self.data, "head")
        return np.asarray(self._renderer.render().copy())

    def segment(self) -> np.ndarray:
        """Which body each pixel shows, object array [height, width] of names; "" where there is nothing."""
        self.render()
        assert self._renderer is not None
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(self.data, "head")
        ids = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        names = np.array(
            [self.model.body(self.model.body_rootid[b]).name for b in self.model.geom_bodyid] + [""], object
        )
        return np.asarray(names[np.where(ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), ids[..., 0], -1)])
