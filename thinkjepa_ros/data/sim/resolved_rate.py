"""Inverse kinematics of the arm: damped least squares with MuJoCo's Jacobian (Wampler 1986), gripper kept upright."""

from __future__ import annotations

import mujoco
import numpy as np

from thinkjepa_ros.data.sim.arm import ARM_JOINTS, TOOL

_DAMPING = 1e-4  # squared, metres per rad
_FARTHEST = 0.35  # rad that one iteration may turn a joint


class ResolvedRate:
    """Joint angles [6] (rad) that bring the tool to a point, with kinematics of its own beside the simulation's."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        joints = [model.joint(name) for name in ARM_JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._range = np.array([joint.range for joint in joints])
        self._tool, self._hand = model.site(TOOL).id, model.body("hand").id
        self._jacobian = np.zeros((6, model.nv))

    def step(self, angles: np.ndarray, target: np.ndarray) -> np.ndarray:
        """One iteration from `angles` toward the tool at `target` [3], metres in the world."""
        data = self._data
        data.qpos[self._qpos] = angles
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._tool)
        turned = data.xmat[self._hand].reshape(3, 3)
        tilt = 0.5 * np.array([turned[1, 2] - turned[2, 1], turned[2, 0] - turned[0, 2], turned[0, 1] - turned[1, 0]])
        error = np.concatenate([target - data.site_xpos[self._tool], tilt])
        j = self._jacobian[:, self._dofs]
        change = j.T @ np.linalg.solve(j @ j.T + _DAMPING * np.eye(6), error)
        change *= min(1.0, _FARTHEST / max(float(np.abs(change).max()), 1e-12))
        return np.asarray(np.clip(angles + change, self._range[:, 0], self._range[:, 1]))

    def solve(self, angles: np.ndarray, target: np.ndarray, iterations: int = 100) -> np.ndarray:
        """The angles for `target`, from `angles` on."""
        for _ in range(iterations):
            angles = self.step(angles, target)
        return angles
