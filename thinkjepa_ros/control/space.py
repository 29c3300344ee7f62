"""States and actions as the world model knows them: in the orientation of the camera.

A model that sees through a camera would have to guess from the picture where the axes of the robot's base point. So it
is told everything in the optical frame (x right, y down, z forward):

    state  = (R^T (x - t), closedness)        action = (R^T delta, closedness)

with [R t] the pose of the camera in the base frame. x, t and delta are in metres; closedness runs from 0 (open) to 1.
Limits belong to the base frame: `clipped` turns there and back.

Every function takes numpy arrays or torch tensors [..., 4] with a pose [4, 4] or [..., 4, 4] of the same kind, and
keeps the type of the former.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

#: Columns of an episode's 7-wide states and actions that are used: x, y, z and the closedness of the gripper.
COLUMNS = (0, 1, 2, 6)
DIM = len(COLUMNS)

Array = TypeVar("Array", np.ndarray, Tensor)


def chosen(rows: np.ndarray) -> np.ndarray:
    """x, y, z and closedness, float32 [..., 4], of an episode's states or actions [..., 7]. Raises ValueError."""
    if rows.shape[-1] != 7:
        raise ValueError(f"states and actions of an episode have 7 columns, these have {rows.shape[-1]}")
    return np.asarray(rows[..., list(COLUMNS)], np.float32)


def state_to_camera(state: Array, pose: Array) -> Array:
    """State in the base frame -> in the optical frame of the camera at `pose` (base from camera)."""
    rotation, place = _parts(state, pose)
    return _with_closedness(_rows(state[..., :3] - place, rotation), state)


def state_to_base(state: Array, pose: Array) -> Array:
    """State in the optical frame -> in the base frame."""
    rotation, place = _parts(state, pose)
    return _with_closedness(_rows(state[..., :3], rotation.swapaxes(-1, -2)) + place, state)


def action_to_camera(action: Array, pose: Array) -> Array:
    """Action in the base frame -> in the optical frame: a displacement is turned, not moved."""
    rotation, _ = _parts(action, pose)
    return _with_closedness(_rows(action[..., :3], rotation), action)


def action_to_base(action: Array, pose: Array) -> Array:
    """Action in the optical frame -> in the base frame."""
    rotation, _ = _parts(action, pose)
    return _with_closedness(_rows(action[..., :3], rotation.swapaxes(-1, -2)), action)


def clipped(action: Array, pose: Array, most: float) -> Array:
    """Action in the optical frame whose displacement is at most `most` metres along every axis of the base frame, and
    whose closedness lies in 0 ... 1.
    """
    base = action_to_base(action, pose)
    inside = base[..., :3].clip(-most, most)
    return action_to_camera(_joined(inside, base[..., 3:].clip(0.0, 1.0)), pose)


def _parts(values: Array, pose: Array) -> tuple[Array, Array]:
    """Rotation [..., 3, 3] and place [..., 3] of a pose, in the type of `values`. Raises ValueError."""
    if values.shape[-1] != DIM or tuple(pose.shape[-2:]) != (4, 4):
        raise ValueError(
            f"a state or action has {DIM} numbers and a pose is 4x4; these are {tuple(values.shape)} and "
            f"{tuple(pose.shape)}"
        )
    if isinstance(values, Tensor):
        turned: Any = pose.to(values)
    else:
        turned = np.asarray(pose, values.dtype)
    return turned[..., :3, :3], turned[..., :3, 3]


def _rows(points: Array, matrix: Array) -> Array:
    """points [..., 3] as rows times matrix [..., 3, 3]: with the rotation of a pose that is R^T applied to each."""
    turned: Array = (points[..., None, :] @ matrix)[..., 0, :]
    return turned


def _with_closedness(points: Array, like: Array) -> Array:
    return _joined(points, like[..., 3:])


def _joined(points: Any, rest: Any) -> Any:
    if isinstance(points, Tensor):
        return torch.cat((points, rest.expand(*points.shape[:-1], 1)), -1)
    return np.concatenate((points, np.broadcast_to(rest, (*points.shape[:-1], 1))), -1)
