"""The workcell: a simulated arm on a table, commanded by gripper velocities, seen by the head camera.

One `Workcell` is one `Task`. Physics runs in steps of 2 ms; nothing depends on the wall clock, so that the same
task and the same commands give bit-identical states however time is cut into calls of `advance`.
"""

from __future__ import annotations

import mujoco
import numpy as np

from thinkjepa_ros.data.sim.arm import ARM_JOINTS, FINGER_JOINTS, FINGER_TRAVEL, HOME, KEYPOINTS, TOOL
from thinkjepa_ros.data.sim.cell import TIMESTEP_S, cell_mjcf
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, TRAYS
from thinkjepa_ros.data.sim.motion import head_rotation, rotation_z
from thinkjepa_ros.data.sim.resolved_rate import ResolvedRate
from thinkjepa_ros.data.sim.scene import camera_of, light_lamp, optical_pose
from thinkjepa_ros.data.sim.tasks import ACTION_S, CUE_S, STEP_LIMIT, WORKSPACE, Task

#: Most speed along an axis, m/s, and how fast it changes, m/s2.
SPEED_LIMIT, ACCELERATION = STEP_LIMIT / ACTION_S, 5.0
REACHED_M = 0.04
_SERVO_STEPS = 5  # physics steps between two solutions of the inverse kinematics
_GRIP_RATE = 4.0  # closedness per second
_LEASH = 0.02  # how far the commanded point may run ahead of a gripper that something holds up, metres
_TRAY_FLOOR = 0.008
_OWN_DEPTH, _MARGIN = 0.035, 0.012  # how far in front of a keypoint the arm's end, anything else may be, metres


class Workcell:
    """The arm, the table and the camera of one task. Not thread-safe.

    timeout_s: how long a commanded velocity lives; after it the gripper stops by itself, and keeps its grip.
    """

    def __init__(self, task: Task, width: int = 128, height: int = 128, timeout_s: float = 0.3) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; take a positive number of seconds")
        self.task, self.camera, self.timeout_s = task, camera_of(width, height), timeout_s
        model = mujoco.MjModel.from_xml_string(cell_mjcf(task.look, task.paint))
        self._model, self._data = model, mujoco.MjData(model)
        self._inverse = ResolvedRate(model)
        self._renderer: mujoco.Renderer | None = None
        self._arm = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._cubes = [int(model.joint(f"cube_{name}").qposadr[0]) for name in CUBE_COLOURS]
        self._cube_dofs = [int(model.joint(f"cube_{name}").dofadr[0]) for name in CUBE_COLOURS]
        self._sites = np.array([model.site(name).id for name, _, _ in KEYPOINTS])
        self._tool = model.site(TOOL).id
        self._camera_id = model.camera("head").id
        # A servo that damps its joint lags behind a moving command by this many seconds; commands run ahead by it.
        self._lag = -model.actuator_biasprm[: len(ARM_JOINTS), 2] / model.actuator_gainprm[: len(ARM_JOINTS), 0]
        gripper = [model.body(name).id for name in ("lower_forearm", "wrist", "hand", "left_finger", "right_finger")]
        self._owner = model.geom_bodyid
        self._own, self._hand = np.isin(self._owner, gripper), set(gripper[2:])
        self.reset()

    def __enter__(self) -> Workcell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the renderer's memory and its GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # --- acting ---

    def reset(self) -> None:
        """Everything as at the beginning of the task."""
        mujoco.mj_resetData(self._model, self._data)
        self._angles = self._inverse.solve(np.array(HOME), self.task.start)
        self._point, self._velocity = self.task.start.copy(), np.zeros(3)
        self._wanted, self._grip_wanted, self._grip = np.zeros(3), 0.0, 0.0
        self._steps = self._stops_at = 0
        self._owed = 0.0
        self._errors: list[float] = []
        qpos, half = self._data.qpos, self.task.look.cube_half
        qpos[self._arm], qpos[self._fingers] = self._angles, FINGER_TRAVEL
        for k, at in enumerate(self._cubes):
            qpos[at : at + 3] = *self.task.cube_xy[k], half
            mujoco.mju_mat2Quat(qpos[at + 3 : at + 7], rotation_z(self.task.cube_yaw[k]).ravel())
        self._data.ctrl[: len(ARM_JOINTS)] = self._angles
        self._data.ctrl[len(ARM_JOINTS) :] = FINGER_TRAVEL
        self._look(self._data)

    def apply(self, velocity: np.ndarray, closedness: float) -> None:
        """Command a velocity [3] of the gripper (m/s, base frame) for the next `timeout_s`, and its closedness 0..1.

        Both are clipped to what the arm can do. Raises ValueError for numbers that are none.
        """
        velocity = np.asarray(velocity, np.float64)
        if velocity.shape != (3,) or not np.isfinite(velocity).all() or not np.isfinite(closedness):
            raise ValueError(f"a command is three finite velocities and a closedness, not {velocity}, {closedness}")
        self._wanted = np.clip(velocity, -SPEED_LIMIT, SPEED_LIMIT)
        self._grip_wanted = float(np.clip(closedness, 0.0, 1.0))
        self._stops_at = self._steps + round(self.timeout_s / TIMESTEP_S)

    def act(self, action: np.ndarray) -> None:
        """One action [4] as a controller sends it: metres along x, y, z over ACTION_S, and closedness."""
        self.apply(np.asarray(action[:3], np.float64) / ACTION_S, float(action[3]))
        self.advance(ACTION_S)

    def advance(self, seconds: float) -> None:
        """Let time pass. What is less than a physics step is kept for the next call."""
        self._owed += seconds
        count = int(self._owed / TIMESTEP_S + 1e-6)
        self._owed -= count * TIMESTEP_S
        end, grid = self._steps + count, round(ACTION_S / TIMESTEP_S)
        while self._steps < end:
            if self._steps % _SERVO_STEPS == 0:
                self._servo()
            run = min(end, self._steps - self._steps % _SERVO_STEPS + _SERVO_STEPS) - self._steps
            mujoco.mj_step(self._model, self._data, run)
            self._steps += run
            if self._steps % grid == 0:
                self._look(self._data)
                self._errors = [*self._errors[-1:], self.reached_error()]
        self._look(self._data)

    def _servo(self) -> None:
        """Move the commanded point, and what the servos are told, by one tick."""
        tick = _SERVO_STEPS * TIMESTEP_S
        wanted = self._wanted if self._steps < self._stops_at else np.zeros(3)
        self._velocity += np.clip(wanted - self._velocity, -ACCELERATION * tick, ACCELERATION * tick)
        here = self._data.site_xpos[self._tool]
        point = np.clip(self._point + self._velocity * tick, here - _LEASH, here + _LEASH)
        self._point = np.clip(point, *WORKSPACE)
        angles = self._inverse.step(self._angles, self._point)
        self._data.ctrl[: len(angles)] = angles + self._lag * (angles - self._angles) / tick
        self._angles = angles
        self._grip += float(np.clip(self._grip_wanted - self._grip, -_GRIP_RATE * tick, _GRIP_RATE * tick))
        self._data.ctrl[len(angles) :] = FINGER_TRAVEL * (1 - self._grip)

    def _look(self, data: mujoco.MjData) -> None:
        """Put the camera where it is now, and compute where everything is. The dynamics do not notice."""
        task, t = self.task, self.time
        place = task.head + task.head_sway.at(t)
        data.mocap_pos[0] = place
        turn = head_rotation(place, task.gaze + task.gaze_sway.at(t), task.head_roll)
        mujoco.mju_mat2Quat(data.mocap_quat[0], turn.ravel())
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_camlight(self._model, data)

    # --- sensing ---

    @property
    def time(self) -> float:
        """Simulated seconds since the reset."""
        return self._steps * TIMESTEP_S

    def state(self) -> np.ndarray:
        """float32 [4]: the point between the finger tips in the base frame (metres), closedness 0..1."""
        closed = 1 - self._data.qpos[self._fingers].sum() / (2 * FINGER_TRAVEL)
        return np.array([*self._data.site_xpos[self._tool], np.clip(closed, 0, 1)], np.float32)

    def joint_names(self) -> tuple[str, ...]:
        """The arm's joints, then the fingers': the names of the URDF of arm.py."""
        return (*ARM_JOINTS, *FINGER_JOINTS)

    def joint_positions(self) -> np.ndarray:
        """float64 [8] in the order of `joint_names`: rad, and metres for the fingers."""
        return np.asarray(self._data.qpos[[*self._arm, *self._fingers]])

    def keypoints(self) -> np.ndarray:
        """World positions of the gripper's KEYPOINTS, float32 [6, 3], metres."""
        return self._data.site_xpos[self._sites].astype(np.float32)

    def visible(self) -> np.ndarray:
        """bool [6]: the keypoint lies in the image, and nothing but the arm's own end is in front of it."""
        pose, points = self.camera_pose(), self._data.site_xpos[self._sites]
        rays = points - pose[:3, 3]
        pixel = self.camera.project(rays @ pose[:3, :3])
        seen = np.all((pixel >= -0.5) & (pixel < (self.camera.width - 0.5, self.camera.height - 0.5)), axis=-1)
        distance, geom = np.linalg.norm(rays, axis=-1), np.zeros(1, np.int32)
        for k in np.flatnonzero(seen):
            ray = rays[k] / distance[k]
            first = mujoco.mj_ray(self._model, self._data, pose[:3, 3], ray, None, 1, -1, geom)
            seen[k] = first > distance[k] - (_OWN_DEPTH if self._own[geom[0]] else _MARGIN)
        return np.asarray(seen)

    def camera_pose(self) -> np.ndarray:
        """Base frame from camera optical frame, float64 [4, 4]."""
        return optical_pose(self._data, self._camera_id)

    def image(self) -> np.ndarray:
        """What the head camera sees, uint8 RGB [height, width, 3]."""
        lit = self.task.lamp_rgb if self.time < CUE_S else None
        for k, side in enumerate(TRAYS):
            light_lamp(self._model, self.task.look, side, lit if k == self.task.tray else None)
        return self._render(self._data)

    def goal_image(self) -> np.ndarray:
        """The same with the gripper at the goal of a reach, open. The simulation itself is not touched."""
        if self.task.goal is None:
            raise ValueError(f"a task of kind {self.task.kind!r} has no goal image; its instruction says what to do")
        data = mujoco.MjData(self._model)
        data.qpos[:] = self._data.qpos
        data.qpos[self._arm] = self._inverse.solve(self._angles, self.task.goal)
        data.qpos[self._fingers] = FINGER_TRAVEL
        self._look(data)
        return self._render(data)

    def _render(self, data: mujoco.MjData) -> np.ndarray:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, self.camera.height, self.camera.width)
        self._renderer.update_scene(data, "head")
        return np.asarray(self._renderer.render().copy())

    # --- what only a simulation knows ---

    def cube_position(self, cube: int | None = None) -> np.ndarray:
        """Where a cube is (index into CUBE_COLOURS; default: the task's), float64 [3]."""
        at = self._cubes[self.task.cube if cube is None else cube]
        return np.asarray(self._data.qpos[at : at + 3].copy())

    def touched(self, cube: int | None = None) -> bool:
        """Whether hand or fingers touch a cube (default: the task's)."""
        body = self._model.body(f"cube_{CUBE_COLOURS[self.task.cube if cube is None else cube]}").id
        for a, b in self._data.contact.geom:
            pair = {int(self._owner[a]), int(self._owner[b])}
            if body in pair and pair & self._hand:
                return True
        return False

    def in_tray(self) -> bool:
        """Whether the task's cube lies on the floor of the task's tray, at rest."""
        cube, look, dof = self.cube_position(), self.task.look, self._cube_dofs[self.task.cube]
        aside = np.abs(cube[:2] - look.tray_xy[self.task.tray]).max()
        still = np.linalg.norm(self._data.qvel[dof : dof + 3]) < 0.03
        return bool(aside < look.tray_half and cube[2] < _TRAY_FLOOR + 1.5 * look.cube_half and still)

    def reached_error(self) -> float:
        """Distance from the goal of a reach, metres; NaN for other tasks."""
        if self.task.goal is None:
            return float("nan")
        return float(np.linalg.norm(self._data.site_xpos[self._tool] - self.task.goal))

    def success(self) -> bool:
        """Whether the task is done now.

        reach: the gripper was within 4 cm of the goal at the end of the last two actions (of 0.2 s since the reset).
        pick and place: the cube rests in its tray and the gripper has let go.
        """
        if self.task.goal is not None:
            return len(self._errors) == 2 and max(self._errors) < REACHED_M
        return self.in_tray() and not self.touched()
