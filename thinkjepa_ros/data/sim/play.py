"""Play a script in the scene and record it as an Episode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from thinkjepa_ros.data.episode import PHASES, Episode, JpegFrames, encode_jpeg
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, TRAYS
from thinkjepa_ros.data.sim.motion import NEUTRAL, bump, head_rotation, min_jerk, natural_yaw, rotation_z, tilt
from thinkjepa_ros.data.sim.scene import Scene
from thinkjepa_ros.data.sim.script import SCENE_VERSION, Script, draw, mixed_split

#: Stamp of the first frame. Not 0: a zero stamp means "no time" in ROS.
FIRST_STAMP_NS = 1_000_000_000
_TRAY_FLOOR = 0.008


@dataclass(frozen=True)
class _Hold:
    """How the right hand takes and leaves the cube: wrist positions [3], yaws, and the cube in the hand frame."""

    grip: float
    centre: np.ndarray
    take: np.ndarray
    take_yaw: float
    leave: np.ndarray
    leave_yaw: float


class Player:
    """Puts a scene into the state that a script describes at any time `t` in seconds."""

    def __init__(self, script: Script, scene: Scene) -> None:
        self.script, self.scene = script, scene
        self._hold = self._plan()

    def _plan(self) -> _Hold:
        s, look = self.script, self.scene.look
        grip, centre, along = self.scene.grasp("right")
        level = tilt(0.0, s.reach.pitch, s.reach.roll) @ NEUTRAL
        d = level @ along
        pinch_yaw = float(np.arctan2(-d[0], d[1]))
        cube = np.array([*s.cube_xy[s.cube], look.cube_half])
        tray = np.array([*look.tray_xy[s.tray], _TRAY_FLOOR + look.cube_half])
        wanted = natural_yaw(cube, s.elbow["right"])
        # This yaw lays the fingers flat on a face of the cube; so does every quarter turn from it.
        free = s.cube_yaw[s.cube] - pinch_yaw
        take_yaw = free + np.pi / 2 * np.round((wanted - free) / (np.pi / 2))
        leave_yaw = natural_yaw(tray, s.elbow["right"])
        return _Hold(
            grip=grip,
            centre=centre,
            take=cube - rotation_z(take_yaw) @ level @ centre,
            take_yaw=take_yaw,
            leave=tray - rotation_z(leave_yaw) @ level @ centre,
            leave_yaw=leave_yaw,
        )

    def right_hand(self, t: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Wrist position [3], rotation away from neutral [3, 3] and grip of the acting hand."""
        s, h, time = self.script, self._hold, self.script.time
        idle = s.hands["right"].at(t)
        up = min_jerk((t - time.reach) / s.reach.ready_s + 1)
        yaw = natural_yaw(idle, s.elbow["right"])
        idle = idle + np.array([0, -s.reach.ready_back, s.reach.ready_lift]) * up
        if t < time.reach:
            return idle, tilt(yaw, s.reach.rest_pitch, s.reach.rest_roll), s.reach.rest_grip * (1 - up)
        if t < time.grasp:
            u = (t - time.reach) / (time.grasp - time.reach)
            m = min_jerk(u)
            position = idle + (h.take - idle) * m + np.array([0, 0, s.reach.lift * bump(u)])
            yaw = yaw * (1 - m) + h.take_yaw * m
            pitch = s.reach.rest_pitch + (s.reach.pitch - s.reach.rest_pitch) * m
            roll = s.reach.rest_roll + (s.reach.roll - s.reach.rest_roll) * m
            return position, tilt(yaw, pitch, roll), 0.0
        if t < time.transport:
            u = (t - time.grasp) / (time.transport - time.grasp)
            return h.take, tilt(h.take_yaw, s.reach.pitch, s.reach.roll), h.grip * min_jerk(u)
        u = (t - time.transport) / (time.place - time.transport)
        m = min_jerk(u)
        position = h.take + (h.leave - h.take) * m + np.array([0, 0, s.reach.carry * bump(u)])
        yaw = h.take_yaw + (h.leave_yaw - h.take_yaw) * m
        release = min_jerk((t - time.place) / 0.3)
        return position, tilt(yaw, s.reach.pitch, s.reach.roll), h.grip * (1 - release)

    def set(self, t: float) -> np.ndarray:
        """Place everything as at time `t`; returns the state of the acting hand, float64 [7]."""
        s, scene = self.script, self.scene
        position, turn, grip = self.right_hand(t)
        scene.pose_hand("right", position, turn @ NEUTRAL, grip, s.elbow["right"])
        self._set_cubes(t, position, turn)
        left = s.hands["left"].at(t)
        pitch, roll, left_grip = s.left_pose
        scene.pose_hand(
            "left", left, tilt(natural_yaw(left, s.elbow["left"]), pitch, roll) @ NEUTRAL, left_grip, s.elbow["left"]
        )
        y, x, speed = s.ball or (0.0, 0.0, 0.0)
        away = np.array([0.0, 0.0, -0.5])  # below the table
        scene.place("ball", np.array([x + speed * t, y, scene.look.ball[0]]) if s.ball else away)
        for k, tray in enumerate(TRAYS):
            lit = [f for f in (*s.distractors, *((s.cue,) if s.cue else ())) if f.tray == k and f.on <= t < f.off]
            scene.lamp(tray, lit[-1].rgb if lit else None)
        moved = (position - s.hands["right"].at(0.0)) * [1.0, 1.0, 0.0]
        head = s.head + s.head_sway.at(t)
        gaze = s.gaze + s.gaze_sway.at(t) + s.follow * moved
        scene.place("head", head, head_rotation(head, gaze, s.head_roll))
        scene.update()
        return np.concatenate([position, Rotation.from_matrix(turn).as_euler("xyz"), [grip]])

    def _set_cubes(self, t: float, wrist: np.ndarray, turn: np.ndarray) -> None:
        s, h = self.script, self._hold
        for i, name in enumerate(CUBE_COLOURS):
            position = np.array([*s.cube_xy[i], self.scene.look.cube_half])
            yaw = s.cube_yaw[i]
            if i == s.cube and t >= s.time.transport:
                if t < s.time.place:
                    position = wrist + turn @ NEUTRAL @ h.centre
                else:
                    position = np.array([*self.scene.look.tray_xy[s.tray], _TRAY_FLOOR + self.scene.look.cube_half])
                m = min_jerk((t - s.time.transport) / (s.time.place - s.time.transport))
                yaw += (h.leave_yaw - h.take_yaw) * m
            self.scene.place(f"cube_{name}", position, rotation_z(yaw))


def frame_times(script: Script, rate_hz: float) -> np.ndarray:
    """Stamps of the frames, int64 nanoseconds from the start of the episode."""
    count = int(np.floor(script.time.end * rate_hz)) + 1
    return np.round(np.arange(count) * 1e9 / rate_hz).astype(np.int64)


def play(script: Script, scene: Scene, rate_hz: float) -> Iterator[tuple[int, np.ndarray]]:
    """Set the scene to each frame in turn; yields (time in nanoseconds, state of the acting hand)."""
    player = Player(script, scene)
    for t in frame_times(script, rate_hz):
        yield int(t), player.set(t * 1e-9)


def make_episode(
    split: str, seed: int, width: int = 128, height: int = 128, rate_hz: float = 30.0, quality: int = 92
) -> Episode:
    """Simulate one episode: a pure function of its arguments. `split` may be "mixed"; ValueError for an unknown one."""
    script = draw(mixed_split(seed) if split == "mixed" else split, seed)
    rows: list[tuple[np.ndarray, ...]] = []
    jpegs, times = [], []
    movable = [f"cube_{c}" for c in CUBE_COLOURS]
    with Scene(script.look, width, height) as scene:
        for t, state in play(script, scene, rate_hz):
            jpegs.append(encode_jpeg(scene.render(), quality))
            places = np.stack([scene.position(name) for name in movable])
            rows.append((scene.camera_pose(), scene.joints(), scene.visible(), state, places))
            times.append(t)
        camera = scene.camera
    pose, joints, visible, states, places = (np.stack(column) for column in zip(*rows, strict=True))
    stamps = np.array(times, np.int64) + FIRST_STAMP_NS
    states = states.astype(np.float32)
    objects = {name: places[:, i].astype(np.float32) for i, name in enumerate(movable)}
    for k, tray in enumerate(TRAYS):
        objects[f"tray_{tray}"] = np.tile(np.array([*script.look.tray_xy[k], 0.0], np.float32), (len(stamps), 1))
    return Episode(
        frames=JpegFrames.from_jpegs(jpegs, f"{script.split} episode {seed}"),
        stamps_ns=stamps,
        camera=camera,
        camera_pose=pose,
        joints=joints,
        visible=visible,
        states=states,
        actions=actions_of(states),
        phases=np.array([script.time.phase(t * 1e-9, script.cue is not None) for t in times], np.uint8),
        instruction=script.instruction,
        split=script.split,
        seed=seed,
        intent={"cube": CUBE_COLOURS[script.cube], "tray": TRAYS[script.tray], "class": script.intent_class},
        cue_ns=None if script.cue is None else (_stamp(script.cue.on), _stamp(script.cue.off)),
        objects=objects,
        details=_details(script, rate_hz),
    )


def actions_of(states: np.ndarray) -> np.ndarray:
    """Differences to the next state, float32 [N - 1, 7]; the rotation part is Euler_xyz(R_next R^T)."""
    turn = Rotation.from_euler("xyz", states[:, 3:6].astype(np.float64))
    change = (turn[1:] * turn[:-1].inv()).as_euler("xyz") if len(states) > 1 else np.empty((0, 3))
    step = np.diff(states, axis=0)
    step[:, 3:6] = change
    return np.asarray(step, np.float32)


def _stamp(seconds: float) -> int:
    return FIRST_STAMP_NS + round(seconds * 1e9)


def _details(script: Script, rate_hz: float) -> dict[str, object]:
    begins = {name: _stamp(getattr(script.time, name)) for name in PHASES if name != "idle"}
    return {
        "scene_version": SCENE_VERSION,
        "rate_hz": rate_hz,
        "begin_ns": begins,
        "flashes": [[_stamp(f.on), _stamp(f.off), TRAYS[f.tray], f.colour] for f in script.distractors],
        "hand_scale": script.look.hand_scale,
        "cube_half_m": script.look.cube_half,
        "shadows": script.look.shadows,
    }
