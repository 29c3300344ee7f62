"""What a thinker is worth on cue-reach: how often its answers are right, and how much of the intent its layers carry.

Answers are read as words from the real `Thinker`, over windows as a live node has them: any time in the episode, slots
at any phase to the camera, in some windows frames missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import checkpoints
from ..data.episode import Episode
from ..data.told import SAMPLE_S, UNKNOWN, WINDOW_S, Sample, arrived, cut, understood
from ..thinker.qwen import Thinker
from ..thinker.window import Window
from ..train.clips import data_hash, load_folder
from ..values import Frame, Guidance
from .bootstrap import Interval, bootstrap_mean

WINDOWS_PER_EPISODE = 8
MAX_NEW_TOKENS = 16
CUED = ("lamp", "distractor")
MOVING = ("reach", "grasp", "transport", "place")
_WINDOW = Window(WINDOW_S, SAMPLE_S)


@dataclass(frozen=True)
class Row:
    """Share of right answers in one kind of window, over episodes, with its 95 % interval."""

    kind: str
    windows: int
    episodes: int
    right: Interval


@dataclass(frozen=True)
class Judged:
    """One window, what the thinker said, and the class of its answer (None: no answer in the expected words)."""

    sample: Sample
    seed: int
    split: str
    phase: str
    said: str
    answer: int | None

    @property
    def right(self) -> bool:
        return self.answer == self.sample.intent


def windows(episode: Episode, number: int, count: int) -> list[Sample]:
    """`count` windows of an episode, drawn from its seed."""
    rng = np.random.default_rng((episode.seed, 4711))
    found = []
    for _ in range(count):
        end = int(rng.integers(len(episode)))
        phase_ns, keep = int(rng.integers(1_000_000_000)), arrived(episode, end, rng)
        found.append(cut(episode, number, end, _WINDOW, phase_ns=phase_ns, keep=keep))
    return found


def frames_of(episode: Episode, sample: Sample) -> list[Frame]:
    """The frames of a window with the stamps it was cut on."""
    return [Frame(episode.frames[int(i)], int(t)) for i, t in zip(sample.frames, sample.stamps_ns, strict=True)]


def ask(thinker: Thinker, episodes: Sequence[Episode], per_episode: int, title: str = "Thinking") -> list[Judged]:
    """Every window of every episode, thought about anew."""
    judged = []
    for number, episode in enumerate(track(episodes, title, transient=True)):
        thinker.forget()
        for sample in windows(episode, number, per_episode):
            thought = thinker.think(frames_of(episode, sample), sample.instruction, max_new_tokens=MAX_NEW_TOKENS)
            phase = episode.phase(int(sample.frames[-1]))
            judged.append(Judged(sample, episode.seed, episode.split, phase, words(thought), understood(thought.text)))
    return judged


def words(thought: Guidance) -> str:
    """Thought and answer in one line."""
    return f"{thought.thought} -> {thought.text}" if thought.thought else thought.text


def rows(judged: Sequence[Judged]) -> list[Row]:
    """Right answers by what told the intent, by split and by phase of the newest frame."""
    kinds: list[tuple[str, Callable[[Judged], bool]]] = [
        ("all windows", lambda j: True),
        ("told by the lamp", lambda j: j.sample.told == "lamp"),
        ("  cube alone", lambda j: j.sample.told == "lamp"),
        ("  tray alone", lambda j: j.sample.told == "lamp"),
        ("  without distractor lamps", lambda j: j.sample.told == "lamp" and j.split == "lamp"),
        ("  with distractor lamps", lambda j: j.sample.told == "lamp" and j.split == "distractor"),
    ]
    kinds += [
        (f"  newest frame in {name}", lambda j, p=name: j.sample.told == "lamp" and j.phase == p)  # type: ignore[misc]
        for name in ("cue", "wait", "reach", "grasp", "transport", "place")
    ]
    kinds += [
        ("told by the instruction", lambda j: j.sample.told == "task"),
        ("told by nothing", lambda j: j.sample.told == "none"),
        ("  though other lamps were lit", lambda j: j.sample.told == "none" and bool(j.sample.lamps.any())),
        ("  cue long gone", lambda j: j.sample.told == "none" and j.split in CUED and j.phase in MOVING),
    ]
    parts = {"  cube alone": lambda c: c // 2, "  tray alone": lambda c: c % 2}
    return [r for kind, chosen in kinds if (r := _row(kind, [j for j in judged if chosen(j)], parts.get(kind)))]


def _row(kind: str, judged: list[Judged], part: Callable[[int], int] | None) -> Row | None:
    if not judged:
        return None
    by_episode: dict[int, list[bool]] = {}
    for j in judged:
        good = j.right
        if part is not None:
            good = j.answer is not None and j.answer != UNKNOWN and part(j.answer) == part(j.sample.intent)
        by_episode.setdefault(j.seed, []).append(good)
    shares = np.array([np.mean(v) for v in by_episode.values()])
    return Row(kind, len(judged), len(by_episode), sure(shares))


def sure(shares: np.ndarray) -> Interval:
    """Mean share over episodes with its 95 % interval: by bootstrap, and by the rule of three where all are alike.

    Where every episode is right (or wrong) there is nothing to draw, but of E episodes without one failure up to 3 / E
    may still fail.
    """
    found = bootstrap_mean(shares)
    if shares.min() == shares.max() and shares[0] in (0.0, 1.0):
        return Interval(found.mean, max(0.0, found.mean - 3 / len(shares)), min(1.0, found.mean + 3 / len(shares)))
    return found


def show(found: Sequence[Row], title: str) -> None:
    """Print the table of answers."""
    table = Table(title=title)
    for column in ("window", "windows", "episodes", "right, %"):
        table.add_column(column, justify="left" if column == "window" else "right")
    for row in found:
        table.add_row(row.kind, str(row.windows), str(row.episodes), percent(row.right))
    Console().print(table)


def percent(i: Interval) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * i.mean:.1f} [{100 * i.low:.1f}, {100 * i.high:.1f}]"


def evaluate(
    model: Path,
    data: Path,
    *,
    probe: Path | None = None,
    limit: int | None = None,
    per_episode: int = WINDOWS_PER_EPISODE,
    out: Path | None = None,
) -> dict[str, Any]:
    """`thinkjepa evaluate thinker`: answers on `data`, and with `probe` (other episodes) what each layer carries.

    Prints tables, writes JSON to `out` when given. Raises ThinkerError, EpisodeError.
    """
    from . import probe as probes

    thinker, episodes = Thinker.load(model, window=_WINDOW), load_folder(data, limit)
    judged = ask(thinker, episodes, per_episode)
    found = rows(judged)
    show(found, f"{thinker.model_id} on {len(episodes)} episodes of {data.name}: right answers, 95 % intervals")
    wrong = [j for j in judged if not j.right][:5]
    for j in wrong:
        print(f"wrong: {j.split} {j.seed}, {j.phase}, {j.sample.told}: {j.said!r}, not class {j.sample.intent}")
    figures: dict[str, Any] = {
        "model": thinker.model_id,
        "data": data.name,
        "data_sha256": data_hash(data, limit),
        "windows_per_episode": per_episode,
        "answers": [{**asdict(r), "kind": r.kind.strip(), "right": r.right._asdict()} for r in found],
    }
    if probe is not None:
        fitting = load_folder(probe, limit)
        figures["probe"] = probes.run(thinker, fitting, episodes, per_episode, data_hash(probe, limit))
        probes.show(figures["probe"])
    if out:
        checkpoints.write_atomically(out, (json.dumps(figures, indent=1) + "\n").encode())
    return figures
