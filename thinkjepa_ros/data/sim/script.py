"""What happens in an episode: drawn from (split, seed) alone, from separate random streams.

Fairness rests on the streams: the intent has a stream of its own, and nothing that is seen before the reach is drawn
from it or depends on it, except the cue itself. What a model knows of the intent between cue and reach, it remembers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from thinkjepa_ros.data.episode import PHASES
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, RGB, TRAYS, Look
from thinkjepa_ros.data.sim.motion import Sway, Wander

#: Raise it with every change that alters images or motion of a seed; data of different versions do not mix.
SCENE_VERSION = 2
SIM_SPLITS = ("lamp", "text", "distractor", "none")
#: Seeds by use. Test seeds serve the final figures and the shipped demo, never a choice.
TRAIN_SEEDS, VAL_SEEDS, TEST_SEEDS = range(0, 1_000_000), range(1_000_000, 2_000_000), range(2_000_000, 3_000_000)
#: Shares of the split "mixed".
MIX = {"lamp": 0.40, "distractor": 0.25, "text": 0.20, "none": 0.15}
LAMP_RGB: dict[str, RGB] = {"red": (1.0, 0.08, 0.05), "green": (0.08, 0.95, 0.15), "blue": (0.10, 0.22, 1.0)}
DISTRACTOR_RGB: dict[str, RGB] = {
    "yellow": (1.0, 0.92, 0.1), "purple": (0.65, 0.1, 0.85), "cyan": (0.1, 0.9, 0.95), "white": (1.0, 1.0, 1.0),
}  # fmt: skip
LAMP_INSTRUCTION = "put the cube of the lamp's colour in the tray beside that lamp"
NONE_INSTRUCTION = "put one of the cubes in one of the trays"

_CUBE_RGB = ((0.80, 0.12, 0.10), (0.10, 0.60, 0.18), (0.12, 0.25, 0.80))
_SKINS = ((0.93, 0.76, 0.66), (0.83, 0.62, 0.50), (0.72, 0.50, 0.38), (0.52, 0.35, 0.25), (0.36, 0.24, 0.17))
_ELBOW = {"right": np.array([0.27, -0.46, 0.15]), "left": np.array([-0.27, -0.46, 0.15])}
_REST = {"right": np.array([0.17, -0.05, 0.095]), "left": np.array([-0.17, -0.05, 0.095])}
_REST_SPREAD = np.array([0.08, 0.08, 0.055])


@dataclass(frozen=True)
class Flash:
    """A lamp lit from `on` to `off` (seconds) at tray 0 (left) or 1 (right)."""

    on: float
    off: float
    tray: int
    colour: str

    @property
    def rgb(self) -> RGB:
        return LAMP_RGB.get(self.colour) or DISTRACTOR_RGB[self.colour]


@dataclass(frozen=True)
class Timeline:
    """Begin of each phase in seconds; the episode ends at `end`."""

    cue: float
    wait: float
    reach: float
    grasp: float
    transport: float
    place: float
    end: float

    def phase(self, t: float, cued: bool) -> int:
        """Index into PHASES at time `t`. Without a cue the time of the cue still counts as idle."""
        begins = (0.0, self.cue, self.wait, self.reach, self.grasp, self.transport, self.place)
        index = int(np.searchsorted(begins, t + 1e-9, side="right")) - 1
        return PHASES.index("idle") if PHASES[index] == "cue" and not cued else index


@dataclass(frozen=True)
class Reach:
    """Style of the reach and the transport: angles in rad, lifts in metres, grips 0..1.

    Within the last `ready_s` of the wait the hand gets ready: it opens, rises by `ready_lift` and draws back by
    `ready_back` (or it would cover what it is about to take), whatever the intent. Like the go signal of a
    delayed-reach task it tells when, and not where to.
    """

    pitch: float
    roll: float
    rest_pitch: float
    rest_roll: float
    rest_grip: float
    lift: float
    carry: float
    ready_s: float
    ready_lift: float
    ready_back: float


@dataclass(frozen=True)
class Script:
    """Everything that decides an episode.

    cube: index into CUBE_COLOURS. tray: 0 left, 1 right. cube_xy: [3, 2] metres. cube_yaw: [3] rad. left_pose: pitch,
    roll (rad) and grip. ball: y, x at time 0 (metres) and speed along x (m/s), or None.
    """

    split: str
    seed: int
    cube: int
    tray: int
    instruction: str
    time: Timeline
    cue: Flash | None
    distractors: tuple[Flash, ...]
    look: Look
    cube_xy: np.ndarray
    cube_yaw: np.ndarray
    hands: dict[str, Wander]
    elbow: dict[str, np.ndarray]
    reach: Reach
    left_pose: tuple[float, float, float]
    head: np.ndarray
    gaze: np.ndarray
    head_roll: float
    follow: float
    head_sway: Sway
    gaze_sway: Sway
    ball: tuple[float, float, float] | None

    @property
    def intent_class(self) -> int:
        """0..5: two classes per cube, left tray first."""
        return 2 * self.cube + self.tray


def mixed_split(seed: int) -> str:
    """The split that the split "mixed" takes for `seed`, by the shares in MIX."""
    return str(stream(seed, "mix").choice(list(MIX), p=list(MIX.values())))


def stream(seed: int, topic: str) -> np.random.Generator:
    """The random stream of one topic of a seed."""
    return np.random.default_rng([seed, zlib.crc32(topic.encode())])


def draw(split: str, seed: int) -> Script:
    """The script of one episode. Raises ValueError for an unknown split or a negative seed."""
    if split not in SIM_SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SIM_SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; take 0 or more")
    intent = stream(seed, "intent")
    cube, tray = int(intent.integers(3)), int(intent.integers(2))
    time = _draw_time(stream(seed, "time"))
    colour = CUBE_COLOURS[cube]
    cued = split in ("lamp", "distractor")
    rng = stream(seed, "layout")
    cube_half = rng.uniform(0.029, 0.036)
    trays, tray_half = draw_trays(rng)
    cubes = draw_cubes(rng, trays)
    look = draw_look(stream(seed, "look"), trays, tray_half, cube_half)
    moves = stream(seed, "moves")
    odds = {
        "right": (0.5, 0.35, 0.15),
        "left": (0.4, 0.1, 0.15, 0.15, 0.2),
    }  # of 0, 1, 2, ... hops to another resting place
    hops = {side: int(moves.choice(len(p), p=p)) for side, p in odds.items()}
    hands = {}
    ready = stream(seed, "ready")
    ready_s = ready.uniform(0.5, 0.8)
    for side, until in (("right", time.reach - ready_s), ("left", time.end)):
        fidget = moves.uniform(0.003, 0.012)
        hands[side] = Wander.draw(moves, _REST[side], _REST_SPREAD, hops[side], until, fidget)
    style = Reach(
        pitch=moves.uniform(-0.45, -0.25),
        roll=moves.uniform(0.35, 0.65),
        rest_pitch=moves.uniform(-0.1, 0.3),
        rest_roll=moves.uniform(-0.1, 0.35),
        rest_grip=moves.uniform(0.0, 0.3),
        lift=moves.uniform(0.02, 0.07),
        carry=moves.uniform(0.07, 0.13),
        ready_s=ready_s,
        ready_lift=ready.uniform(0.03, 0.05),
        ready_back=ready.uniform(0.04, 0.06),
    )
    camera = stream(seed, "camera")
    ball_moves = camera.random() < 0.3
    sway = camera.uniform(0.3, 1.3)
    return Script(
        split=split,
        seed=seed,
        cube=cube,
        tray=tray,
        instruction={
            "text": f"put the {colour} cube in the {TRAYS[tray]} tray",
            "none": NONE_INSTRUCTION,
        }.get(split, LAMP_INSTRUCTION),
        time=time,
        cue=Flash(time.cue, time.wait, tray, colour) if cued else None,
        distractors=_draw_distractors(stream(seed, "distractors"), time) if split == "distractor" else (),
        look=look,
        cube_xy=cubes,
        cube_yaw=rng.uniform(-0.7, 0.7, 3),
        hands=hands,
        elbow={side: _ELBOW[side] + moves.uniform(-0.04, 0.04, 3) for side in _ELBOW},
        reach=style,
        left_pose=(moves.uniform(-0.1, 0.3), moves.uniform(-0.35, 0.1), moves.uniform(0.0, 0.35)),
        head=np.array([0.0, -0.25, 0.51]) + camera.uniform(-0.025, 0.025, 3),
        gaze=np.array([0.0, 0.265, 0.03]) + camera.uniform(-0.02, 0.02, 3),
        head_roll=camera.uniform(-0.04, 0.04),
        follow=camera.uniform(0.0, 0.15),
        head_sway=Sway.draw(camera, 0.012 * sway, 0.5, 2.2),
        gaze_sway=Sway.draw(camera, 0.018 * sway, 0.4, 2.0),
        ball=_draw_ball(camera) if ball_moves else None,
    )


def _draw_time(rng: np.random.Generator) -> Timeline:
    lengths = [rng.uniform(a, b) for a, b in ((0.3, 1.5), (0.4, 0.9), (1.5, 4.5), (1.0, 1.8), (0.3, 0.5), (1.2, 2.0))]
    cue, wait, reach, grasp, transport, place = np.cumsum(lengths).tolist()
    return Timeline(cue, wait, reach, grasp, transport, place, end=place + 0.1)


def draw_trays(rng: np.random.Generator) -> tuple[tuple[tuple[float, float], tuple[float, float]], float]:
    """Places of the left and the right tray, and half their edge; metres."""
    (xl, xr), (yl, yr) = rng.uniform(0.17, 0.25, 2), rng.uniform(0.46, 0.53, 2)
    return ((-xl, yl), (xr, yr)), rng.uniform(0.054, 0.062)


def draw_cubes(rng: np.random.Generator, trays: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Places of the cubes [3, 2], metres, apart from one another and from the trays."""
    while True:
        xy = rng.uniform((-0.22, 0.20), (0.22, 0.39), (3, 2))
        apart = [np.linalg.norm(xy[i] - xy[j]) > 0.12 for i in range(3) for j in range(i)]
        clear = [np.abs(xy - np.array(t)).max(-1).min() > 0.11 for t in trays]
        if all(apart) and all(clear):
            return np.asarray(xy)


def _draw_ball(rng: np.random.Generator) -> tuple[float, float, float]:
    direction = rng.choice((-1.0, 1.0))
    return rng.uniform(0.71, 0.76), -direction * rng.uniform(0.2, 0.9), direction * rng.uniform(0.08, 0.3)


def _draw_distractors(rng: np.random.Generator, time: Timeline) -> tuple[Flash, ...]:
    """At least one flash, none during the cue on either lamp: sparing only the cue's own lamp would betray its side."""
    while True:
        flashes = _draw_flashes(rng, time)
        if flashes:
            return flashes


def _draw_flashes(rng: np.random.Generator, time: Timeline) -> tuple[Flash, ...]:
    spans: list[tuple[float, float]] = []
    for _ in range(int(rng.integers(1, 4))):
        on = rng.uniform(0.0, time.reach - 0.2)
        spans.append((on, on + rng.uniform(0.3, 0.8)))
    if rng.random() < 0.6:  # late: ends within the predictor's short window before the reach
        off = time.reach - rng.uniform(0.0, 0.65)
        spans.append((off - rng.uniform(0.3, 0.8), off))
    flashes: list[Flash] = []
    for on, off in spans:
        flash = Flash(on, off, int(rng.integers(2)), str(rng.choice(list(DISTRACTOR_RGB))))
        clashes = any(f.tray == flash.tray and on < f.off and f.on < off for f in flashes)
        if (off < time.cue - 0.1 or on > time.wait + 0.1) and not clashes:
            flashes.append(flash)
    return tuple(sorted(flashes, key=lambda f: f.on))


def draw_look(
    rng: np.random.Generator, trays: tuple[tuple[float, float], tuple[float, float]], tray_half: float, cube_half: float
) -> Look:
    """Colours, textures, lamps and light of a scene whose trays and cubes stand already."""

    def near(rgb: RGB, spread: float) -> RGB:
        r, g, b = np.clip(
            np.array(rgb) + rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) * 0.6, 0.02, 0.98
        )
        return float(r), float(g), float(b)

    def surface(base: RGB, spread: float, repeat: tuple[float, float]) -> tuple[str, RGB, RGB, float]:
        first = near(base, spread)
        r, g, b = np.clip(np.array(first) * rng.uniform(0.78, 1.0), 0, 1)
        return (
            str(rng.choice(("flat", "checker", "gradient"))),
            first,
            (float(r), float(g), float(b)),
            rng.uniform(*repeat),
        )

    beside = rng.random() < 0.5
    lamps = [(x + np.sign(x) * (tray_half + 0.06), y + rng.uniform(-0.01, 0.05)) if beside else
             (x + rng.uniform(-0.02, 0.02), y + tray_half + rng.uniform(0.05, 0.08)) for x, y in trays]  # fmt: skip
    table: RGB = ((0.60, 0.47, 0.34), (0.72, 0.68, 0.62), (0.45, 0.42, 0.40), (0.38, 0.28, 0.22), (0.55, 0.57, 0.60))[
        rng.integers(5)
    ]
    clutter = []
    for _ in range(int(rng.integers(3))):
        x = rng.choice((-1.0, 1.0)) * rng.uniform(0.42, 0.58)
        clutter.append(
            (x, rng.uniform(0.2, 0.6), rng.uniform(0.02, 0.04), rng.uniform(0.04, 0.12), near((0.5, 0.48, 0.45), 0.25))
        )
    return Look(
        hand_scale=rng.uniform(0.85, 1.15),
        skin=near(_SKINS[rng.integers(len(_SKINS))], 0.04),
        sleeve=near(
            ((0.2, 0.24, 0.36), (0.25, 0.25, 0.25), (0.6, 0.6, 0.58), (0.4, 0.25, 0.25), (0.25, 0.35, 0.28))[
                rng.integers(5)
            ],
            0.08,
        ),
        cube_half=cube_half,
        cube_rgb=(near(_CUBE_RGB[0], 0.06), near(_CUBE_RGB[1], 0.06), near(_CUBE_RGB[2], 0.06)),
        tray_xy=trays,
        tray_half=tray_half,
        tray_rgb=(near((0.5, 0.5, 0.48), 0.3), near((0.5, 0.5, 0.48), 0.3)),
        lamp_xy=(lamps[0], lamps[1]),
        lamp_height=rng.uniform(0.05, 0.13),
        lamp_off=near((0.28, 0.28, 0.28), 0.08),
        table=surface(table, 0.08, (1.0, 4.0)),
        wall=surface((0.70, 0.69, 0.66), 0.18, (2.0, 8.0)),
        floor=near((0.40, 0.38, 0.36), 0.12),
        light_xyz=(rng.uniform(-0.7, 0.7), rng.uniform(-0.4, 0.5), rng.uniform(1.2, 2.0)),
        light=rng.uniform(0.40, 0.75),
        ambient=rng.uniform(0.22, 0.42),
        shadows=bool(rng.random() < 0.2),
        ball=(rng.uniform(0.02, 0.035), near((0.75, 0.62, 0.45), 0.2)),
        clutter=tuple(clutter),
    )
