"""What is asked of the robot in the workcell: drawn from (kind, seed) alone, from separate random streams.

reach: bring the gripper to where a goal image shows it. pick_place_text: an instruction names a cube and a tray.
pick_place_lamp: a lamp at the tray lights in the cube's colour during the first 0.7 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from thinkjepa_ros.data.sim.arm import Paint
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, RGB, TRAYS, Look
from thinkjepa_ros.data.sim.motion import Sway
from thinkjepa_ros.data.sim.script import (
    LAMP_INSTRUCTION,
    LAMP_RGB,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VAL_SEEDS,
    draw_cubes,
    draw_look,
    draw_trays,
    stream,
)

KINDS = ("reach", "pick_place_text", "pick_place_lamp")
#: Seconds of one action, the most it may move the gripper along an axis (metres), and actions that a kind may take.
ACTION_S, STEP_LIMIT = 0.2, 0.06
MOST_ACTIONS = {"reach": 20, "pick_place_text": 60, "pick_place_lamp": 60}
#: Where the point between the finger tips may be, metres.
WORKSPACE = np.array([[-0.30, 0.17, 0.012], [0.30, 0.58, 0.26]])
CUE_S = 0.7
REACH_INSTRUCTION = "bring the gripper to where the goal image shows it"

#: Where the tool begins. For pick and place where arm and gripper hide neither cubes nor lamps from the camera.
_REACH_START = np.array([[-0.20, 0.22, 0.10], [0.20, 0.44, 0.23]])
_PICK_START = np.array([[-0.04, 0.32, 0.13], [0.04, 0.42, 0.20]])
_GOALS = np.array([[-0.25, 0.20, 0.03], [0.25, 0.52, 0.24]])
_COVERS: tuple[RGB, ...] = ((0.82, 0.82, 0.80), (0.30, 0.32, 0.36), (0.55, 0.58, 0.62), (0.75, 0.70, 0.60))
_FINGERS: tuple[RGB, ...] = ((0.95, 0.80, 0.10), (0.95, 0.93, 0.90), (0.85, 0.35, 0.85), (0.95, 0.55, 0.10))


@dataclass(frozen=True)
class Task:
    """One task and the scene it is set in; metres, rad, colours RGB in 0..1.

    cube: index into CUBE_COLOURS; tray: 0 left, 1 right (of no meaning for reach). start: where the tool is at first
    [3]; goal: where it shall be, for reach alone. cube_xy: [3, 2]. head, gaze: the camera's place and what it looks
    at, each with its sway.
    """

    kind: str
    seed: int
    instruction: str
    cube: int
    tray: int
    start: np.ndarray
    goal: np.ndarray | None
    look: Look
    paint: Paint
    cube_xy: np.ndarray
    cube_yaw: np.ndarray
    head: np.ndarray
    gaze: np.ndarray
    head_roll: float
    head_sway: Sway
    gaze_sway: Sway

    @property
    def most_actions(self) -> int:
        """How many actions it may take."""
        return MOST_ACTIONS[self.kind]

    @property
    def lamp_rgb(self) -> RGB | None:
        """Colour of the lamp that tells the task, if one does."""
        return LAMP_RGB[CUBE_COLOURS[self.cube]] if self.kind == "pick_place_lamp" else None

    @property
    def intent(self) -> dict[str, object] | None:
        """What an Episode says of the intent; none for reach."""
        if self.kind == "reach":
            return None
        return {"cube": CUBE_COLOURS[self.cube], "tray": TRAYS[self.tray], "class": 2 * self.cube + self.tray}


def use_of(seed: int) -> str:
    """What a seed serves: "train", "val" or "test". Raises ValueError beyond those ranges."""
    for name, seeds in (("train", TRAIN_SEEDS), ("val", VAL_SEEDS), ("test", TEST_SEEDS)):
        if seed in seeds:
            return name
    raise ValueError(f"seed {seed} is in no split; take one from 0 to {TEST_SEEDS.stop - 1}")


def draw_task(kind: str, seed: int) -> Task:
    """The task of (kind, seed). Raises ValueError for an unknown kind and for a seed that is in no split."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    use_of(seed)
    intent = stream(seed, "intent")
    cube, tray = int(intent.integers(3)), int(intent.integers(2))
    layout = stream(seed, "workcell layout")
    trays, tray_half = draw_trays(layout)
    cubes = draw_cubes(layout, trays)
    look = draw_look(stream(seed, "look"), trays, tray_half, layout.uniform(0.022, 0.026))
    # A lamp that stands high makes short shadows, which show how high the gripper is.
    light = (layout.uniform(-0.35, 0.35), layout.uniform(0.0, 0.55), layout.uniform(1.5, 2.0))
    look = replace(look, lamp_height=layout.uniform(0.05, 0.08), shadows=True, light_xyz=light)
    camera = stream(seed, "workcell camera")
    sway = camera.uniform(0.1, 0.6) if camera.random() < 0.5 else 0.0
    paint = stream(seed, "workcell paint")
    start = layout.uniform(*(_REACH_START if kind == "reach" else _PICK_START))
    instruction = {
        "reach": REACH_INSTRUCTION,
        "pick_place_text": f"put the {CUBE_COLOURS[cube]} cube in the {TRAYS[tray]} tray",
        "pick_place_lamp": LAMP_INSTRUCTION,
    }[kind]
    return Task(
        kind=kind,
        seed=seed,
        instruction=instruction,
        cube=cube,
        tray=tray,
        start=start,
        goal=_draw_goal(stream(seed, "workcell goal"), start, cubes, look) if kind == "reach" else None,
        look=look,
        paint=_draw_paint(paint),
        cube_xy=cubes,
        cube_yaw=layout.uniform(-0.09, 0.09, 3),
        head=np.array([0.0, -0.10, 0.56]) + camera.uniform(-0.03, 0.03, 3),
        gaze=np.array([0.0, 0.35, 0.05]) + camera.uniform(-0.02, 0.02, 3),
        head_roll=camera.uniform(-0.04, 0.04),
        head_sway=Sway.draw(camera, 0.012 * sway, 0.5, 2.2),
        gaze_sway=Sway.draw(camera, 0.018 * sway, 0.4, 2.0),
    )


def _draw_goal(rng: np.random.Generator, start: np.ndarray, cubes: np.ndarray, look: Look) -> np.ndarray:
    """A place at least 10 cm away where the open gripper touches nothing."""
    things = np.concatenate([cubes, look.tray_xy, look.lamp_xy])
    needed = np.array([0.11] * len(cubes) + [0.17] * 2 + [0.15] * 2)
    heights = np.array([0.075] * len(cubes) + [0.05] * 2 + [look.lamp_height + 0.08] * 2)
    while True:
        goal = rng.uniform(*_GOALS)
        beside = np.abs(things - goal[:2]).max(-1) > needed
        if np.linalg.norm(goal - start) > 0.10 and np.all(beside | (goal[2] > heights)):
            return np.asarray(goal)


def _draw_paint(rng: np.random.Generator) -> Paint:
    def near(rgb: RGB) -> RGB:
        r, g, b = np.clip(np.array(rgb) + rng.uniform(-0.05, 0.05, 3), 0.02, 0.98)
        return float(r), float(g), float(b)

    cover = _COVERS[rng.integers(len(_COVERS))]
    return Paint(
        cover=near(cover),
        joint=near((0.25, 0.27, 0.30)),
        hand=near((0.18, 0.18, 0.20) if sum(cover) > 1.2 else (0.75, 0.75, 0.75)),
        finger=near(_FINGERS[rng.integers(len(_FINGERS))]),
    )
