"""Poses as V-JEPA 2-AC counts them, as tensor code: x, y, z in metres, extrinsic xyz Euler angles in radians, gripper.

Extrinsic xyz: R = Rz(c) Ry(b) Rx(a) for angles (a, b, c). The gripper goes from 0 (open) to 1 (closed).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: cos(b) below which a and c turn about the same axis (gimbal lock).
_LOCK = 1e-6


def matrix(euler: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of extrinsic xyz Euler angles [..., 3] in radians."""
    (sa, sb, sc), (ca, cb, cc) = euler.sin().unbind(-1), euler.cos().unbind(-1)
    rows = (
        (cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa),
        (sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa),
        (-sb, cb * sa, cb * ca),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def euler(rotation: Tensor) -> Tensor:
    """Extrinsic xyz Euler angles [..., 3] of rotation matrices: a and c in [-pi, pi], b in [-pi/2, pi/2].

    At b = +-pi/2 only a combination of a and c is defined; c is 0 there.
    """
    r = rotation
    square = r[..., 2, 1] ** 2 + r[..., 2, 2] ** 2
    locked = square < _LOCK**2
    # where locked, what is not chosen must have a finite gradient, too
    one, zero = torch.ones_like(square), torch.zeros_like(square)
    b = torch.atan2(-r[..., 2, 0], torch.where(locked, one, square).sqrt())
    b = torch.where(locked, -r[..., 2, 0].sign() * (torch.pi / 2), b)
    a = torch.atan2(torch.where(locked, -r[..., 1, 2], r[..., 2, 1]), torch.where(locked, r[..., 1, 1], r[..., 2, 2]))
    c = torch.atan2(torch.where(locked, zero, r[..., 1, 0]), torch.where(locked, one, r[..., 0, 0]))
    return torch.stack((a, b, c), -1)


def compute_new_pose(pose: Tensor, action: Tensor) -> Tensor:
    """Pose [..., 7] after an action [..., 7]: positions add, R1 = R_delta R0, the gripper stays in 0 … 1."""
    return torch.cat(
        (
            pose[..., :3] + action[..., :3],
            euler(matrix(action[..., 3:6]) @ matrix(pose[..., 3:6])),
            (pose[..., 6:] + action[..., 6:]).clamp(0, 1),
        ),
        -1,
    )


def poses_to_diff(start: Tensor, end: Tensor) -> Tensor:
    """Action [..., 7] that leads from one pose [..., 7] to another: the inverse of `compute_new_pose`."""
    return torch.cat(
        (
            end[..., :3] - start[..., :3],
            euler(matrix(end[..., 3:6]) @ matrix(start[..., 3:6]).mT),
            end[..., 6:] - start[..., 6:],
        ),
        -1,
    )
