"""Forecasts in the messages that RViz, Foxglove and MoveIt users already know. Made only while somebody subscribes."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Transform
from std_msgs.msg import ColorRGBA, Header
from trajectory_msgs.msg import MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from ..evaluation.draw import path_joints
from ..values import Forecast

#: Markers vanish when forecasts stop.
LIFETIME_S = 0.5
_RIGHT, _LEFT = (1.0, 0.55, 0.1), (0.1, 0.65, 1.0)


class TrajectoryMessage:
    """trajectory_msgs/MultiDOFJointTrajectory of a forecast: a transform per joint and step, rotations at identity.

    The message of 768 transforms is built once and its numbers are replaced: publishing copies it, and building it
    costs more than the model on a small machine.
    """

    def __init__(self) -> None:
        self._shape: tuple[tuple[str, ...], int, float] | None = None
        self._message = MultiDOFJointTrajectory()

    def __call__(self, header: Header, forecast: Forecast) -> MultiDOFJointTrajectory:
        """The message; it is overwritten by the next call."""
        shape = (forecast.joint_names, len(forecast.positions), forecast.step_s)
        if shape != self._shape:
            self._message = MultiDOFJointTrajectory(joint_names=list(forecast.joint_names))
            self._message.points = [
                MultiDOFJointTrajectoryPoint(
                    transforms=[Transform() for _ in forecast.joint_names],
                    time_from_start=_duration((k + 1) * forecast.step_s),
                )
                for k in range(len(forecast.positions))
            ]
            self._shape = shape
        self._message.header = header
        for point, step in zip(self._message.points, forecast.positions.tolist(), strict=True):
            for transform, (x, y, z) in zip(point.transforms, step, strict=True):
                translation = transform.translation
                translation.x, translation.y, translation.z = x, y, z
        return self._message


def _duration(seconds: float) -> Duration:
    ns = round(seconds * 1e9)
    return Duration(sec=ns // 10**9, nanosec=ns % 10**9)


def marker_message(header: Header, forecast: Forecast) -> MarkerArray:
    """Per wrist and finger tip a line along its forecast, paler with time, and a point for every joint now.

    Namespaces and ids are stable, so that each message replaces the one before.
    """
    out = MarkerArray()
    fade = np.linspace(1.0, 0.15, len(forecast.positions) + 1).tolist()
    for joint in path_joints(forecast.joint_names):
        name = forecast.joint_names[joint]
        line = _marker(header, f"path/{name}", Marker.LINE_STRIP, 0.004)
        path = np.concatenate([forecast.present[None, joint], forecast.positions[:, joint]])
        line.points = [Point(x=x, y=y, z=z) for x, y, z in path.tolist()]
        line.colors = [_color(name, alpha) for alpha in fade]
        out.markers.append(line)
    dots = _marker(header, "now", Marker.POINTS, 0.012)
    dots.points = [Point(x=x, y=y, z=z) for x, y, z in forecast.present.tolist()]
    dots.colors = [_color(name, 1.0) for name in forecast.joint_names]
    out.markers.append(dots)
    return out


def _marker(header: Header, namespace: str, kind: int, size_m: float) -> Marker:
    marker = Marker(header=header, ns=namespace, id=0, type=kind, action=Marker.ADD, lifetime=_duration(LIFETIME_S))
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = size_m
    return marker


def _color(name: str, alpha: float) -> ColorRGBA:
    r, g, b = _LEFT if name.startswith("left") else _RIGHT
    return ColorRGBA(r=r, g=g, b=b, a=alpha)
