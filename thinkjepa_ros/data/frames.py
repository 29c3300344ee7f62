"""The transforms of a recording (TFMessage, camera poses), asked at any time, without tf2.

Positions are interpolated linearly, rotations by slerp. What was never said is NaN: nothing is extrapolated, and
nothing is interpolated over a gap longer than `max_age_s`. What is wrong with a link is told when that link is needed,
so that a broken frame somewhere else on the robot disturbs nobody.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from .recording import Recording, RecordingError, Topic
from .typed import NS, frame_name, read, required_topic, some, stamp_ns

TF = "tf2_msgs/msg/TFMessage"
POSE_STAMPED = "geometry_msgs/msg/PoseStamped"
#: Publishers take turns on /tf, so stamps may come a little late; a step back beyond this is a clock that was reset.
_LATE_NS = NS
_SAME = 1e-6


@dataclass
class _Link:
    """What is known of one frame in its parent; 7 values a stamp: position, quaternion x y z w (64 bytes in all)."""

    parent: str
    static: bool
    stamps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    newest_ns: int = 0
    problem: str = ""


@dataclass(frozen=True, eq=False)
class _Track:
    """A link ready for questions: stamps int64 [K] ascending, position [K, 3], unit quaternion [K, 4]."""

    stamps: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray
    static: bool

    def known(self, stamps_ns: np.ndarray, max_age_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(before the first or after the last, in a gap that is too long): bool [N] each; the gap around each in ns."""
        if self.static:
            nothing = np.zeros(len(stamps_ns), bool)
            return nothing, nothing, np.zeros(len(stamps_ns), np.int64)
        left, right = self._around(stamps_ns)
        outside = (stamps_ns < self.stamps[0]) | (stamps_ns > self.stamps[-1])
        gap = np.where(self.stamps[left] == stamps_ns, 0, self.stamps[right] - self.stamps[left])
        return outside, ~outside & (gap > max_age_ns), gap

    def _around(self, stamps_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left = np.clip(np.searchsorted(self.stamps, stamps_ns, side="right") - 1, 0, len(self.stamps) - 1)
        return left, np.minimum(left + 1, len(self.stamps) - 1)

    def matrices(self, stamps_ns: np.ndarray, max_age_ns: int) -> np.ndarray:
        """Parent from child, float64 [N, 4, 4], NaN where unknown."""
        out = np.full((len(stamps_ns), 4, 4), np.nan)
        if self.static:
            out[:] = _matrix(self.position[-1:], self.quaternion[-1:])
            return out
        outside, gap, _ = self.known(stamps_ns, max_age_ns)
        good = ~(outside | gap)
        left, right = self._around(stamps_ns[good])
        length = self.stamps[right] - self.stamps[left]
        share = ((stamps_ns[good] - self.stamps[left]) / np.maximum(length, 1))[:, None]
        position = self.position[left] + share * (self.position[right] - self.position[left])
        out[good] = _matrix(position, slerp(self.quaternion[left], self.quaternion[right], share))
        return out


def slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Between unit quaternions a and b [N, 4], the short way round; share [N, 1], 0 = a."""
    b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
    # half the angle from sums and differences: exact where the arc cosine of the product is not
    angle = 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))[:, None]
    sine = np.sin(angle)
    near = sine < 1e-9
    safe = np.where(near, 1.0, sine)
    out = np.where(
        near, (1 - share) * a + share * b, (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / safe
    )
    return np.asarray(out / np.linalg.norm(out, axis=-1, keepdims=True))


def _matrix(position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    out = np.tile(np.eye(4), (len(position), 1, 1))
    if len(position):
        out[:, :3, :3] = Rotation.from_quat(quaternion).as_matrix()
        out[:, :3, 3] = position
    return out


class Frames:
    """The tree of frames of one recording. where: its name in sentences. max_age_s: longest gap that is bridged."""

    def __init__(self, where: str = "the recording", max_age_s: float = 1.0) -> None:
        self.where, self.max_age_s = where, max_age_s
        self._links: dict[str, _Link] = {}
        self._tracks: dict[str, _Track] = {}

    @classmethod
    def of(cls, recording: Recording, topics: Sequence[str] = (), max_age_s: float = 1.0) -> Frames:
        """All transforms of a recording: of `topics`, else of /tf and /tf_static, else of every TFMessage topic.

        A topic whose last word is tf_static holds for all times. Raises RecordingError.
        """
        out, chosen = cls(str(recording.path), max_age_s), tf_topics(recording, topics)
        for topic, _, message in read(recording, chosen) if chosen else ():
            static = is_static(topic)
            for one in message.transforms:
                move, turn = one.transform.translation, one.transform.rotation
                position, quaternion = (move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w)
                out.add(one.header.frame_id, one.child_frame_id, stamp_ns(one.header), position, quaternion, static)
        return out

    def add_poses(self, recording: Recording, topic: str, child: str) -> str:
        """Take the PoseStamped topic as the pose of `child`, in place of what was known of it; returns its parent."""
        self._links.pop(child := frame_name(child), None)
        self._tracks.pop(child, None)
        for _, _, message in read(recording, [required_topic(recording, topic, POSE_STAMPED)]):
            if not message.header.frame_id:
                raise RecordingError(f"{topic} of {self.where} does not say its frame; fill header.frame_id")
            p, q = message.pose.position, message.pose.orientation
            self.add(message.header.frame_id, child, stamp_ns(message.header), (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        return self._links[child].parent

    def add(
        self,
        parent: str,
        child: str,
        stamp: int,
        position: Sequence[float],
        quaternion: Sequence[float],
        static: bool = False,
    ) -> None:
        """One transform: `child` in `parent` at `stamp` (ns), metres, quaternion x y z w. Problems are told later."""
        parent, child = frame_name(parent), frame_name(child)
        link = self._links.get(child)
        if link is None:
            link = self._links[child] = _Link(parent, static)
        self._tracks.pop(child, None)
        if link.problem:
            return
        values = (*map(float, position), *map(float, quaternion))
        link.problem = self._wrong(link, parent, child, stamp, values, static)
        if link.problem or (static and link.stamps):  # a static transform is the same as its first
            return
        size = float(np.linalg.norm(values[3:]))
        link.stamps.append(stamp)
        link.values.extend((*values[:3], *(v / size for v in values[3:])))
        link.newest_ns = max(link.newest_ns, stamp)

    def _wrong(self, link: _Link, parent: str, child: str, stamp: int, values: tuple[float, ...], static: bool) -> str:
        """What is wrong with a transform, as a sentence, or nothing."""
        name = f"{parent} -> {child}"
        if not parent or not child:
            return f"a transform of {self.where} does not name its frames ({name}); fill frame_id and child_frame_id"
        if link.parent != parent:
            return (
                f"{child} has two parents in {self.where}, {link.parent} and {parent}; leave out one of their "
                "publishers, or record the namespaces of two robots apart"
            )
        if link.static != static:
            return f"{name} is on /tf and on /tf_static of {self.where}; leave out one of the two publishers"
        if not np.isfinite(values).all() or not 0.5 < np.linalg.norm(values[3:]) < 2.0:
            return f"{name} of {self.where} is no transform: position {values[:3]}, quaternion {values[3:]}"
        if static:
            if link.stamps:
                known = np.array(link.values)
                turned = 1 - abs(float(known[3:] @ values[3:])) / float(np.linalg.norm(values[3:]))
                if np.abs(known[:3] - values[:3]).max() > _SAME or turned > _SAME**2:
                    return (
                        f"{name} is static in {self.where} but changes; publish it on /tf, or cut the recording there"
                    )
        elif stamp <= 0:
            return f"{name} of {self.where} has no time (stamp 0); fill header.stamp at its publisher"
        elif stamp < link.newest_ns - _LATE_NS:
            return (
                f"the stamps of {name} in {self.where} go back by {(link.newest_ns - stamp) / NS:.1f} s (a loop, or a "
                "reset clock); cut the recording there"
            )
        return ""

    # --- questions ---

    @property
    def names(self) -> tuple[str, ...]:
        """All frames, sorted."""
        return tuple(sorted({*self._links, *(link.parent for link in self._links.values())} - {""}))

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on up to the root. Raises RecordingError for a circle or an unknown frame."""
        chain = [frame_name(frame)]
        if chain[0] not in self.names:
            raise RecordingError(
                f"{self.where} has no transform of the frame {chain[0]!r}; take another name, or record its publisher; "
                f"frames: {some(self.names)}"
            )
        while (link := self._links.get(chain[-1])) is not None:
            if not link.parent:
                raise RecordingError(link.problem)
            if link.parent in chain:
                circle = " -> ".join([*chain[chain.index(link.parent) :][::-1], link.parent][:6])
                raise RecordingError(f"the transforms of {self.where} form a circle: {circle}; fix their publishers")
            chain.append(link.parent)
        return chain

    def common(self, frames: Sequence[str]) -> str:
        """The nearest frame that all of them hang below (or are). Raises RecordingError where there is none."""
        chains = [self.ancestors(frame) for frame in frames]
        for candidate in chains[0]:
            if all(candidate in chain for chain in chains):
                return candidate
        roots = " and ".join(sorted({chain[-1] for chain in chains}))
        names = " and ".join(dict.fromkeys(map(frame_name, frames)))
        raise RecordingError(
            f"{self.where} has no transform between {names}: they hang below "
            f"{roots}, which nothing connects; record the missing transform (ros2 run tf2_tools view_frames shows it)"
        )

    def _links_between(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Children whose links lead from `target` up to the common frame, and from `source` up to it."""
        up_target, up_source = self.ancestors(target), self.ancestors(source)
        top = self.common([target, source])
        return up_target[: up_target.index(top)], up_source[: up_source.index(top)]

    def _track(self, child: str) -> _Track:
        if child not in self._tracks:
            link = self._links[child]
            if link.problem:
                raise RecordingError(link.problem)
            stamps, values = np.array(link.stamps, np.int64), np.array(link.values).reshape(-1, 7)
            order = np.argsort(stamps, kind="stable")
            stamps, values = stamps[order], values[order]
            last = np.append(np.diff(stamps) > 0, True)  # of several at one stamp, the one recorded last
            self._tracks[child] = _Track(stamps[last], values[last, :3], values[last, 3:], link.static)
        return self._tracks[child]

    def lookup(self, target: str, source: str, stamps_ns: np.ndarray) -> np.ndarray:
        """Target from source at each stamp, float64 [N, 4, 4]: x_target = out @ x_source. NaN where not known.

        Raises RecordingError for frames that are unknown or not connected, circles, and links that cannot be used.
        """
        stamps_ns = np.asarray(stamps_ns, np.int64)
        out = np.tile(np.eye(4), (len(stamps_ns), 1, 1))
        if frame_name(target) == frame_name(source):
            return out
        down, up = self._links_between(target, source)
        age = round(self.max_age_s * NS)
        for child in up:
            out = self._track(child).matrices(stamps_ns, age) @ out
        back = np.tile(np.eye(4), (len(stamps_ns), 1, 1))
        for child in down:
            back = self._track(child).matrices(stamps_ns, age) @ back
        return np.asarray(_inverse(back) @ out)

    def stamps_between(self, target: str, source: str) -> np.ndarray:
        """Every stamp at which something between the two was said, int64 [K], ascending; static links say none."""
        down, up = self._links_between(target, source)
        moving = [track.stamps for child in (*down, *up) if not (track := self._track(child)).static]
        return np.unique(np.concatenate(moving)) if moving else np.zeros(0, np.int64)

    def told(self, target: str, source: str, stamps_ns: np.ndarray) -> list[str]:
        """A sentence for each link between the two that is not known at all of the stamps; none where all is well."""
        if frame_name(target) == frame_name(source):
            return []
        stamps_ns, age, words = np.asarray(stamps_ns, np.int64), round(self.max_age_s * NS), []
        for child in (part for side in self._links_between(target, source) for part in side):
            outside, gap, length = self._track(child).known(stamps_ns, age)
            if not (outside | gap).any():
                continue
            reasons = [f"{int(outside.sum())} before its first or after its last"] if outside.any() else []
            if gap.any():
                longest = float(length[gap].max()) / NS
                reasons.append(
                    f"{int(gap.sum())} in gaps of more than {self.max_age_s:g} s, the longest {longest:.1f} s"
                )
            count = int((outside | gap).sum())
            parent = self._links[child].parent
            words.append(
                f"{parent} -> {child} is unknown at {count} of {len(stamps_ns)} times: {' and '.join(reasons)}"
            )
        return words


def _inverse(rigid: np.ndarray) -> np.ndarray:
    """Inverse of rigid transforms [N, 4, 4]; NaN stays NaN, which a general inverse may refuse."""
    out, turn = rigid.copy(), rigid[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, :3] = turn
    out[:, :3, 3] = -(turn @ rigid[:, :3, 3:])[..., 0]
    return out


def is_static(topic: Topic) -> bool:
    """Whether the transforms on this topic hold for all times."""
    return topic.name.rpartition("/")[2] == "tf_static"


def tf_topics(recording: Recording, wanted: Sequence[str] = ()) -> list[Topic]:
    """TFMessage topics: those wanted (each must be there), else /tf and /tf_static, else all. Raises RecordingError."""
    if wanted:
        return [required_topic(recording, name, TF) for name in wanted]
    found = [topic for topic in recording.topics if topic.type == TF and topic.count]
    return [topic for topic in found if topic.name in ("/tf", "/tf_static")] or found
