"""Record the workcell's arm as episodes, in parallel: `thinkjepa data rollouts`.

Every episode is a pure function of (kind, behaviour, seed, size), one frame per action, so that the number of workers,
the order and an interruption change nothing in the files. States and actions keep the 7-wide layout of V-JEPA 2-AC:
(x, y, z, 0, 0, 0, closedness); actions are what was commanded, not what became of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thinkjepa_ros.data.episode import PHASES, SUFFIX, Episode, JpegFrames, encode_jpeg
from thinkjepa_ros.data.sim.arm import KEYPOINTS
from thinkjepa_ros.data.sim.generate import fill, parse_size
from thinkjepa_ros.data.sim.mjcf import CUBE_COLOURS, TRAYS
from thinkjepa_ros.data.sim.script import stream
from thinkjepa_ros.data.sim.tasks import ACTION_S, CUE_S, KINDS, Task, draw_task, use_of

if TYPE_CHECKING:
    from thinkjepa_ros.data.sim.behaviour import Behaviour

#: Raise it with every change that alters images or motion of a seed; data of different versions do not mix.
WORKCELL_VERSION = 1
#: Shares of "mix", and of the kinds in it.
SHARES = {"expert": 0.40, "perturbed": 0.35, "random": 0.25}
KIND_SHARES = {"reach": 0.24, "pick_place_text": 0.38, "pick_place_lamp": 0.38}
#: Stamp of the first frame. Not 0: a zero stamp means "no time" in ROS.
FIRST_STAMP_NS = 1_000_000_000
#: Name of the details that hold what an expert would have done.
EXPERT = "expert_actions"
_RANDOM_ACTIONS = 40
_ACTIONS_AFTER = 4  # a cube's episode ends this many actions after success; a reach goes on


def mixed(seed: int, kind: str = "mix", behaviour: str = "mix") -> tuple[str, str]:
    """(kind, behaviour) of a seed, where "mix" leaves it to the seed. Raises ValueError for other words."""
    rng = stream(seed, "workcell mix")
    drawn = [str(rng.choice(list(shares), p=list(shares.values()))) for shares in (KIND_SHARES, SHARES)]
    for word, known in ((kind, KINDS), (behaviour, tuple(SHARES))):
        if word not in (*known, "mix"):
            raise ValueError(f"{word!r} is none of {', '.join(known)}, mix")
    return drawn[0] if kind == "mix" else kind, drawn[1] if behaviour == "mix" else behaviour


def make_rollout(
    kind: str,
    behaviour: str,
    seed: int,
    width: int = 128,
    height: int = 128,
    quality: int = 92,
    drive: Callable[[Task, np.random.Generator], Behaviour] | None = None,
) -> Episode:
    """One episode of a task, driven by a behaviour ("expert", "perturbed", "random"), with a style of its own.

    drive: makes the driver of a behaviour of another name. What an expert would have done at every step is in
    details["expert_actions"], [N - 1, 4], of drivers that know.

    It ends when the time for the task is up, or some actions after a cube is where it belongs.
    """
    from thinkjepa_ros.data.sim.behaviour import Expert, Perturbed, Random
    from thinkjepa_ros.data.sim.workcell import Workcell

    task, rng = draw_task(kind, seed), stream(seed, f"workcell {behaviour}")
    makers: dict[str, Callable[..., Behaviour]] = {"expert": Expert, "perturbed": Perturbed, "random": Random}
    driver = (drive or makers[behaviour])(task, rng)
    most = _RANDOM_ACTIONS if behaviour == "random" else task.most_actions
    after = most if kind == "reach" else _ACTIONS_AFTER
    jpegs: list[bytes] = []
    rows: list[tuple[np.ndarray, ...]] = []
    actions: list[np.ndarray] = []
    phases: list[str] = []
    labels: list[np.ndarray] = []
    done_after: int | None = None
    with Workcell(task, width, height) as cell:
        while True:
            jpegs.append(encode_jpeg(cell.image(), quality))
            cubes = np.stack([cell.cube_position(k) for k in range(len(CUBE_COLOURS))]).astype(np.float32)
            rows.append((cell.camera_pose(), cell.keypoints(), cell.visible(), _wide(cell.state()), cubes))
            if done_after is None and cell.success():
                done_after = len(actions)
            if len(actions) == min(most, most if done_after is None else done_after + after):
                break
            actions.append(driver.act(cell))
            if driver.label is not None:
                labels.append(driver.label)
            phases.append("cue" if task.lamp_rgb and cell.time < CUE_S else driver.phase)
            cell.act(actions[-1])
        camera = cell.camera
    pose, joints, visible, states, cubes = (np.stack(column) for column in zip(*rows, strict=True))
    objects = {f"cube_{name}": cubes[:, k] for k, name in enumerate(CUBE_COLOURS)}
    for k, tray in enumerate(TRAYS):
        objects[f"tray_{tray}"] = np.tile(np.array([*task.look.tray_xy[k], 0.0], np.float32), (len(rows), 1))
    return Episode(
        frames=JpegFrames.from_jpegs(jpegs, f"{kind} episode {seed}"),
        stamps_ns=FIRST_STAMP_NS + np.arange(len(rows), dtype=np.int64) * round(ACTION_S * 1e9),
        camera=camera,
        camera_pose=pose,
        joints=joints,
        visible=visible,
        states=states,
        actions=np.stack([_wide(action) for action in actions]),
        phases=np.array([PHASES.index(word) for word in (*phases, phases[-1])], np.uint8),
        instruction=task.instruction,
        split="workcell",
        seed=seed,
        intent=task.intent,
        cue_ns=(FIRST_STAMP_NS, FIRST_STAMP_NS + round(CUE_S * 1e9)) if task.lamp_rgb else None,
        joint_names=tuple(name for name, _, _ in KEYPOINTS),
        objects=objects,
        details=_details(task, behaviour, done_after)
        | ({EXPERT: np.stack(labels).astype(float).round(5).tolist()} if labels else {}),
    )


def _wide(row: np.ndarray) -> np.ndarray:
    """float32 [7] of [4]: x, y, z, no rotation, closedness."""
    return np.array([*row[:3], 0.0, 0.0, 0.0, row[3]], np.float32)


def _details(task: Task, behaviour: str, done_after: int | None) -> dict[str, object]:
    return {
        "workcell_version": WORKCELL_VERSION,
        "kind": task.kind,
        "behaviour": behaviour,
        "use": use_of(task.seed),
        "action_s": ACTION_S,
        "success": done_after is not None,
        "done_after": done_after,  # actions until it was done first, or None
        "goal": None if task.goal is None else task.goal.tolist(),
        "cube_half_m": task.look.cube_half,
        "tray_half_m": task.look.tray_half,
    }


def _work(path: str, words: str, seed: int, kind: str, behaviour: str, width: int, height: int) -> int:
    episode = make_rollout(kind, behaviour, seed, width, height)
    episode.save(path)
    return len(episode)


def main(
    out: Path,
    episodes: int = 100,
    seed_start: int = 0,
    kind: str = "mix",
    behaviour: str = "mix",
    size: str = "128",
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Make episodes of the workcell with the seeds seed_start, seed_start + 1, ... in the folder OUT.

    Seeds: training from 0, validation from 1000000, test from 2000000. Episodes that are there already are kept, so
    the same command goes on after an interruption.

    Returns the exit code: 0 done, 130 interrupted. Raises ValueError for wrong options, EpisodeError when an episode
    fails or the simulator is not installed.
    """
    if episodes < 1 or workers < 1 or seed_start < 0:
        raise ValueError("episodes and workers must be 1 or more, seed_start 0 or more")
    use_of(seed_start + episodes - 1)
    width, height = parse_size(size)
    settings = {"workcell_version": WORKCELL_VERSION, "width": width, "height": height, "kind": kind,
                "behaviour": behaviour}  # fmt: skip
    jobs = []
    for seed in range(seed_start, seed_start + episodes):
        what, how = mixed(seed, kind, behaviour)
        path = str(Path(out) / f"workcell_{seed:07d}{SUFFIX}")
        jobs.append((path, f"{what} ({how})", seed, what, how, width, height))
    return fill(Path(out), settings, _work, jobs, workers, quiet)
