"""Where the joints truly were: positions over time out of one topic of a recording, without any ROS installation.

    geometry_msgs/PoseArray                    its poses
    geometry_msgs/PoseStamped                  one joint
    nav_msgs/Path                              its last pose, at the stamp of that pose
    trajectory_msgs/MultiDOFJointTrajectory    its first point
    visualization_msgs/MarkerArray             the markers named "ns/id"
    tf2_msgs/TFMessage                         the named child frames, dynamic and static
    sensor_msgs/JointState                     the named links of a URDF, by forward kinematics
    thinkjepa_ros/Forecast                     its joints at the stamp of the image

NaN means unknown, never 0. An empty message means that all is unknown at its stamp. Times are header stamps.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frames import TF, Frames, is_static, tf_topics
from .kinematics import Kinematics
from .recording import Recording, RecordingError, Topic
from .typed import NS, frame_name, read, required_topic, some, stamp_ns

#: A joint state older than this is not combined with newer ones of other joints.
JOINT_STATE_AGE_S = 0.5
#: Stamps that are interpolated at once.
_BLOCK = 4096
#: (stamp in ns, frame, names of the points or none, points float64 [J, 3])
_Row = tuple[int, str, tuple[str, ...], np.ndarray]


@dataclass(frozen=True, eq=False)
class Truth:
    """Joint positions over time. N stamps, J joints.

    stamps_ns: int64 [N], strictly increasing, header stamps. joints: float64 [N, J, 3], metres in the frame `frame_id`,
    NaN = unknown. source: topic and type it comes from.
    """

    stamps_ns: np.ndarray
    joints: np.ndarray
    frame_id: str
    joint_names: tuple[str, ...]
    source: str = ""

    def at(self, stamps_ns: np.ndarray, max_gap_s: float) -> np.ndarray:
        """The joints at other stamps, float64 [K, J, 3], interpolated linearly.

        NaN before the first and after the last, where a joint is unknown on either side, and between two that are more
        than `max_gap_s` apart. At a stamp of the truth it is the truth, bit for bit.
        """
        return interpolate(self.stamps_ns, self.joints, stamps_ns, max_gap_s)


def interpolate(stamps_ns: np.ndarray, values: np.ndarray, wanted_ns: np.ndarray, max_gap_s: float) -> np.ndarray:
    """Values [N, ...] of ascending stamps [N] at wanted stamps [K], by the rules of `Truth.at`."""
    wanted = np.asarray(wanted_ns, np.int64)
    if len(wanted) > _BLOCK:  # the temporaries of an hour at once would be larger than everything else
        out = np.empty((len(wanted), *values.shape[1:]))
        for k in range(0, len(wanted), _BLOCK):
            out[k : k + _BLOCK] = interpolate(stamps_ns, values, wanted[k : k + _BLOCK], max_gap_s)
        return out
    left = np.clip(np.searchsorted(stamps_ns, wanted, side="right") - 1, 0, len(stamps_ns) - 1)
    right = np.minimum(left + 1, len(stamps_ns) - 1)
    length = stamps_ns[right] - stamps_ns[left]
    tail = (1,) * (values.ndim - 1)
    share = ((wanted - stamps_ns[left]) / np.maximum(length, 1)).reshape(-1, *tail)
    out = values[left] + share * (values[right] - values[left])
    same = stamps_ns[left] == wanted
    out[same] = values[left[same]]  # a neighbour that is NaN must not reach a stamp that is known
    out[~same & ((wanted < stamps_ns[0]) | (wanted > stamps_ns[-1]) | (length > round(max_gap_s * NS)))] = np.nan
    return np.asarray(out)


def read_truth(
    recording: Recording,
    topic: str,
    *,
    links: Sequence[str] = (),
    joint_names: Sequence[str] = (),
    urdf: str | Path | None = None,
    frame_id: str = "",
    max_age_s: float = 1.0,
) -> Truth:
    """Read the truth from `topic` of a recording.

    links: which links of the URDF, child frames or markers ("ns/id") to take, where the type has such. joint_names:
    what to call the joints; default what the messages call them, the links, or joint_00, joint_01, … frame_id: takes
    the place of the frame in the headers; for TF the frame in which positions are wanted (default the root of the
    tree, which does not move). max_age_s: longest gap that is bridged in TF. Raises RecordingError with the remedy.
    """
    found = required_topic(recording, topic)
    links, frame_id = tuple(links), frame_name(frame_id)
    if found.type == TF:
        truth = _from_frames(recording, found, links, frame_id, max_age_s)
    elif found.type == "sensor_msgs/msg/JointState":
        truth = _from_joint_states(recording, found, links, urdf, frame_id)
    else:
        truth = _from_messages(recording, found, links, frame_id)
    return _named(truth, joint_names, recording, found)


def _named(truth: Truth, names: Sequence[str], recording: Recording, topic: Topic) -> Truth:
    """The same truth with the names asked for, after the last checks."""
    where, count = f"{topic.name} of {recording.path}", truth.joints.shape[1]
    if not np.isfinite(truth.joints).any():
        raise RecordingError(
            f"{where} knows no joint at any time (all NaN or empty); record it while the truth is seen"
        )
    chosen = tuple(names) or truth.joint_names or tuple(f"joint_{k:02d}" for k in range(count))
    if len(chosen) != count:
        raise RecordingError(f"{len(chosen)} joint names are given, but {where} has {count} joints; name all or none")
    if len(set(chosen)) != count or not all(chosen):
        raise RecordingError(
            f"the joint names of {where} are not different words: {some(chosen)}; give others (--joints)"
        )
    return Truth(truth.stamps_ns, truth.joints, truth.frame_id, chosen, f"{topic.name} ({topic.type})")


# --- messages that hold positions ---


class _Rows:
    """Collects one row of points per message and refuses what can be no truth."""

    def __init__(self, where: str, frame_id: str) -> None:
        self.where, self.given_frame, self.frame, self.count = where, frame_id, frame_id, 0
        self.names: tuple[str, ...] = ()
        self.stamps, self.values, self.empty = array("q"), array("d"), bytearray()

    def add(self, row: _Row) -> None:
        """One message. Raises RecordingError."""
        stamp, frame, names, points = row
        number, here = len(self.stamps), f"message {len(self.stamps)} on {self.where}"
        self._check_stamp(stamp, here)
        frame = frame_name(frame)
        if not self.given_frame and len(points):
            if not frame:
                raise RecordingError(f"{here} does not say its frame; fill header.frame_id, or give it (--truth-frame)")
            if self.frame and frame != self.frame:
                raise RecordingError(
                    f"the frame of {self.where} changes from {self.frame} to {frame}; publish it in one"
                )
            self.frame = frame
        if len(points):
            if self.count and (len(points), names) != (self.count, self.names):
                kind = f"{len(points)} joints after {self.count}" if len(points) != self.count else "other joint names"
                raise RecordingError(f"{here} has {kind}; publish always the same joints, NaN where one is unknown")
            self.count, self.names = len(points), names
            self._check_points(points, here)
        if number and stamp == self.stamps[-1]:
            self._merge(points, here)
            return
        self.stamps.append(stamp)
        self.empty.append(not len(points))
        self.values.extend(points.ravel())

    def _check_stamp(self, stamp: int, here: str) -> None:
        if stamp <= 0:
            raise RecordingError(f"{here} has no time (stamp 0); fill header.stamp at its publisher and record again")
        if self.stamps and stamp < self.stamps[-1]:
            back = (self.stamps[-1] - stamp) / NS
            raise RecordingError(
                f"the stamps of {self.where} go back by {back:.3f} s at {here.split(' on ')[0]} (a loop, a reset "
                "clock, or two publishers); cut the recording there, or record one publisher"
            )

    def _check_points(self, points: np.ndarray, here: str) -> None:
        if np.isinf(points).any():
            raise RecordingError(f"{here} holds an infinite position; write NaN for a joint that is unknown")
        known = np.isfinite(points)
        if (known.any(1) != known.all(1)).any():
            raise RecordingError(
                f"{here} holds NaN in a part of a position; write NaN in x, y and z where it is unknown"
            )

    def _merge(self, points: np.ndarray, here: str) -> None:
        """A second message of one stamp: it may repeat the first, or say what that left open."""
        if not len(points):
            return
        if self.empty[-1]:
            self.empty[-1] = False
            self.values.extend(points.ravel())
            return
        old, new = np.array(self.values[-points.size :]), points.ravel()
        both = np.isfinite(old) & np.isfinite(new)
        if not np.array_equal(old[both], new[both]):
            raise RecordingError(
                f"{here} has the stamp of the one before but other positions; record one publisher only"
            )
        self.values[-points.size :] = array("d", np.where(np.isfinite(old), old, new))

    def truth(self, names: tuple[str, ...] = ()) -> Truth:
        joints = np.full((len(self.stamps), self.count, 3), np.nan)
        if self.count:
            joints[~np.frombuffer(self.empty, bool)] = np.frombuffer(self.values).reshape(-1, self.count, 3)
        return Truth(np.array(self.stamps, np.int64), joints, self.frame, self.names or names)


def _from_messages(recording: Recording, topic: Topic, links: tuple[str, ...], frame_id: str) -> Truth:
    markers = topic.type == "visualization_msgs/msg/MarkerArray"
    row = _READERS.get(topic.type)
    if row is None and topic.type.endswith("/Forecast"):
        row = _forecast
    if row is None and not markers:
        kinds = ", ".join(kind.replace("/msg", "") for kind in (*_READERS, *_NAMED))
        raise RecordingError(
            f"{topic.name} is {topic.type}, which holds no truth that can be read; readable are {kinds}"
        )
    where = f"{topic.name} of {recording.path}"
    rows = _Rows(where, frame_id)
    if markers and not links:
        raise RecordingError(
            f"say which markers of {where} are the joints (--links ns/id,…); it has {_marker_names(recording, topic)}"
        )
    if links and not markers:
        raise RecordingError(f"{where} has no named parts to choose by --links; call its joints with --joints")
    for _, _, message in read(recording, [topic]):
        found = _markers(message, links, where) if row is None else row(message, where)
        if found is not None:
            rows.add(found)
    if not rows.stamps and markers:
        raise RecordingError(f"{where} has none of {some(links)}; it has {_marker_names(recording, topic)}")
    return rows.truth(links)


def _points(positions: Iterable[Any]) -> np.ndarray:
    return np.array([(p.x, p.y, p.z) for p in positions], np.float64).reshape(-1, 3)


def _pose_array(message: Any, _: str) -> _Row:
    return stamp_ns(message.header), message.header.frame_id, (), _points(p.position for p in message.poses)


def _pose_stamped(message: Any, _: str) -> _Row:
    return stamp_ns(message.header), message.header.frame_id, (), _points([message.pose.position])


def _path(message: Any, _: str) -> _Row:
    if not message.poses:
        return stamp_ns(message.header), message.header.frame_id, (), np.zeros((0, 3))
    last = message.poses[-1]
    stamp, frame = stamp_ns(last.header) or stamp_ns(message.header), last.header.frame_id or message.header.frame_id
    return stamp, frame, (), _points([last.pose.position])


def _trajectory(message: Any, where: str) -> _Row:
    header, names = message.header, tuple(message.joint_names)
    if not message.points:
        return stamp_ns(header), header.frame_id, (), np.zeros((0, 3))
    first = message.points[0]
    if names and len(first.transforms) != len(names):
        raise RecordingError(f"{where} names {len(names)} joints but holds {len(first.transforms)} transforms; mend it")
    after = int(first.time_from_start.sec) * NS + int(first.time_from_start.nanosec)
    stamp = stamp_ns(header)
    return stamp and stamp + after, header.frame_id, names, _points(t.translation for t in first.transforms)


def _forecast(message: Any, where: str) -> _Row:
    try:
        names, present = tuple(message.joint_names), np.asarray(message.present, np.float64)
        return stamp_ns(message.header), message.header.frame_id, names, present.reshape(len(names), 3)
    except (AttributeError, ValueError):
        raise RecordingError(f"{where} is no thinkjepa_ros/Forecast: joint_names and present do not fit") from None


_READERS: dict[str, Callable[[Any, str], _Row]] = {
    "geometry_msgs/msg/PoseArray": _pose_array,
    "geometry_msgs/msg/PoseStamped": _pose_stamped,
    "nav_msgs/msg/Path": _path,
    "trajectory_msgs/msg/MultiDOFJointTrajectory": _trajectory,
}
_NAMED = ("visualization_msgs/msg/MarkerArray", TF, "sensor_msgs/msg/JointState", "thinkjepa_ros/msg/Forecast")
_ADD, _DELETE_ALL = 0, 3


def _markers(message: Any, links: tuple[str, ...], where: str) -> _Row | None:
    """The named markers of one message, None where it says nothing of them; those that were deleted are unknown."""
    points, headers, told = np.full((len(links), 3), np.nan), [], False
    for marker in message.markers:
        name = f"{marker.ns}/{marker.id}"
        if marker.action == _DELETE_ALL:
            points[:], told = np.nan, True
            headers = [marker.header]
        elif name in links:
            told = True
            headers.append(marker.header)
            if marker.action == _ADD:
                points[links.index(name)] = _points([marker.pose.position])[0]
    if not told:
        return None
    stamps, frames = {stamp_ns(h) for h in headers}, {h.frame_id for h in headers if h.frame_id}
    if stamps == {0} and not np.isfinite(points).any():
        return None  # deletions often come without a time; what is not said again becomes unknown after the longest gap
    if len(stamps) > 1 or len(frames) > 1:
        raise RecordingError(f"the markers of one message on {where} differ in stamp or frame; publish them with one")
    empty = not np.isfinite(points).any()
    return stamps.pop(), "".join(frames), (), points[:0] if empty else points


def _marker_names(recording: Recording, topic: Topic) -> str:
    found: dict[str, None] = {}
    for _, _, message in read(recording, [topic]):
        found.update(dict.fromkeys(f"{marker.ns}/{marker.id}" for marker in message.markers))
    return some(list(found))


# --- frames ---


def _from_frames(recording: Recording, topic: Topic, links: tuple[str, ...], frame_id: str, max_age_s: float) -> Truth:
    """Child frames of `topic`, with the static transforms of the recording, at every stamp that moves one of them."""
    static = [t.name for t in tf_topics(recording) if is_static(t) and t != topic]
    frames = Frames.of(recording, [topic.name, *static], max_age_s)
    if not links:
        raise RecordingError(
            f"say which frames on {topic.name} of {recording.path} are the joints (--links a,b,c); frames: "
            f"{some(frames.names)}"
        )
    frame_id = frame_id or frames.ancestors(frames.common(links))[-1]
    stamps = np.unique(np.concatenate([frames.stamps_between(frame_id, link) for link in links]))
    if not len(stamps):
        raise RecordingError(
            f"nothing moves between {frame_id} and {some(links)} in {recording.path}: only static transforms; give the "
            "frame that they move in (--truth-frame)"
        )
    joints = np.stack([frames.lookup(frame_id, link, stamps)[:, :3, 3] for link in links], 1)
    return Truth(stamps, joints, frame_id, links)


# --- joint states ---


class _Values:
    """The values of one joint over time."""

    def __init__(self) -> None:
        self.stamps, self.values = array("q"), array("d")

    def add(self, stamp: int, value: float, name: str, where: str) -> None:
        if self.stamps and stamp < self.stamps[-1]:
            back = (self.stamps[-1] - stamp) / NS
            raise RecordingError(
                f"the stamps of joint {name} in {where} go back by {back:.3f} s (a loop, a reset clock, or two "
                "publishers); cut the recording there, or record one publisher"
            )
        if self.stamps and stamp == self.stamps[-1]:
            self.values[-1] = value
            return
        self.stamps.append(stamp)
        self.values.append(value)


def _from_joint_states(
    recording: Recording, topic: Topic, links: tuple[str, ...], urdf: str | Path | None, frame_id: str
) -> Truth:
    """Links of a robot in its root link. Joints may come in several messages: arm and gripper often publish apart."""
    where = f"{topic.name} of {recording.path}"
    if urdf is None:
        raise RecordingError(f"{where} holds joint angles; give the robot's URDF (--urdf FILE) and its --links")
    robot = Kinematics(urdf, links)
    values: dict[str, _Values] = {name: _Values() for name in robot.joints}
    others: dict[str, None] = {}
    for _, _, message in read(recording, [topic]):
        stamp = stamp_ns(message.header)
        if len(message.position) not in (0, len(message.name)):
            raise RecordingError(
                f"a message on {where} names {len(message.name)} joints but has {len(message.position)} positions"
            )
        for name, value in zip(message.name, message.position, strict=False):
            others[name] = None
            if name not in values:
                continue
            if stamp <= 0:
                raise RecordingError(f"a message on {where} has no time (stamp 0); fill header.stamp at its publisher")
            if np.isinf(value):
                raise RecordingError(f"joint {name} in {where} is infinite; write NaN where it is unknown")
            values[name].add(stamp, float(value), name, where)
    for name, track in values.items():
        if not track.stamps:
            raise RecordingError(f"joint {name} of {urdf} is not on {where}; its joints: {some(list(others))}")
    if not values:
        raise RecordingError(f"{some(links)} of {urdf} never move in its root link; take links that joints move")
    stamps = np.unique(np.concatenate([np.array(track.stamps, np.int64) for track in values.values()]))
    columns = [
        interpolate(np.array(t.stamps, np.int64), np.array(t.values), stamps, JOINT_STATE_AGE_S)
        for t in values.values()
    ]
    return Truth(stamps, robot.positions(np.stack(columns, 1)), frame_id or robot.root, links)
