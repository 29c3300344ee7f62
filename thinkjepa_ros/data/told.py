"""What the mini thinker learns from: windows of cue-reach or the workcell as a live thinker would see them, and what it
should say about them.

A window ends at any frame of the episode, the slots of `thinker.window.Window` lie at any phase to the camera, and
frames may be missing. The answer is what the window itself shows: a cue that was lit in a sampled frame, an instruction
that names cube and tray. Where neither is there the right answer is that it is unknown, before the cue as well as after
it has left the window: a thinker says what it was told and does not guess from what the hand is doing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..thinker.window import Pair, Window
from .episode import Episode, EpisodeError

COLOURS = ("red", "green", "blue")
SIDES = ("left", "right")
#: What a lamp shows: off, the colours of the cubes, the colours of distractors.
LAMP_STATES = ("off", *COLOURS, "yellow", "purple", "cyan", "white")
#: Class of a window in which nothing told the intent; below it 2 * cube + tray.
UNKNOWN = 6
#: The window of the live thinker and its sampling.
WINDOW_S, SAMPLE_S = 8.0, 0.25
#: Share of the training with short windows.
EARLY = 0.35
#: Share of each split among the windows of the training.
_TAKEN = {"lamp": 0.4, "distractor": 0.3, "none": 0.18, "text": 0.12}
#: What kinds of tasks of the workcell are told like.
_LIKE = {"pick_place_lamp": "lamp", "pick_place_text": "text"}
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Sample:
    """One window of one episode: which frames, when, and what is right to say.

    pairs: of `frames`. stamps_ns: of the frames, on the shifted clock that the window was cut on. told: how the intent
    is known ("lamp", "task" or "none"). lamps int [P, 2]: index into LAMP_STATES per pair and side. so_far
    int [P]: class told by the lamps up to each pair.
    """

    episode: int
    frames: np.ndarray
    pairs: tuple[Pair, ...]
    stamps_ns: np.ndarray
    mirrored: bool
    instruction: str
    intent: int
    told: str
    lamps: np.ndarray
    so_far: np.ndarray

    @property
    def times_s(self) -> list[float]:
        """Seconds of each pair since the first frame, as the prompt says them."""
        s = self.stamps_ns
        origin = s[self.pairs[0].first]
        return [float((s[p.first] - origin) + (s[p.second] - origin)) * 0.5e-9 for p in self.pairs]


def way(episode: Episode) -> str:
    """How an episode tells what to do: its split in cue-reach, or the like of it in the workcell."""
    if episode.split != "workcell":
        return episode.split
    return _LIKE.get(str(episode.details.get("kind")), "none")


def answer(intent: int, told: str) -> str:
    """What to write after the prompt: a short thought, then the answer in words."""
    if intent == UNKNOWN:
        return "no lamp\n</think>\n\nunknown"
    colour, side = COLOURS[intent // 2], SIDES[intent % 2]
    thought = f"{side} lamp {colour}" if told == "lamp" else f"task says {side} {colour}"
    return f"{thought}\n</think>\n\n{colour} cube, {side} tray"


def understood(text: str) -> int | None:
    """Class of an answer in words (0 to 5, or UNKNOWN); None for anything else."""
    words = text.replace(",", " ").split()
    if words == ["unknown"]:
        return UNKNOWN
    if len(words) == 4 and words[0] in COLOURS and words[2] in SIDES and (words[1], words[3]) == ("cube", "tray"):
        return 2 * COLOURS.index(words[0]) + SIDES.index(words[2])
    return None


def mirror_words(text: str) -> str:
    """The instruction as it is right for a mirrored picture."""
    return " ".join(_OTHER_SIDE.get(word, word) for word in text.split(" "))


def cut(
    episode: Episode,
    number: int,
    end: int,
    window: Window,
    *,
    phase_ns: int = 0,
    mirrored: bool = False,
    keep: np.ndarray | None = None,
) -> Sample:
    """The window that ends at frame `end`, with the slots moved by `phase_ns`.

    keep: bool [N], frames that arrived (default all). ValueError if none did up to `end`.
    """
    there = np.arange(end + 1) if keep is None else np.flatnonzero(keep[: end + 1])
    if not len(there):
        raise ValueError(f"no frame arrived up to frame {end}")
    stamps = episode.stamps_ns[there] + phase_ns
    pairs = window.choose(stamps.tolist())
    used = sorted({i for p in pairs for i in (p.first, p.second)})
    place = {old: new for new, old in enumerate(used)}
    pairs = [Pair(p.number, place[p.first], place[p.second]) for p in pairs]
    frames, true_stamps = there[used], episode.stamps_ns[there[used]]
    flashes = _flashes(episode)
    lamps = np.zeros((len(pairs), 2), np.int64)
    cue_seen = np.zeros(len(pairs), bool)
    for k, pair in enumerate(pairs):
        for stamp in {int(true_stamps[pair.first]), int(true_stamps[pair.second])}:
            for on, off, side, colour in flashes:
                if on <= stamp < off:
                    lamps[k, side] = LAMP_STATES.index(colour)
            cue_seen[k] |= episode.cue_ns is not None and episode.cue_ns[0] <= stamp < episode.cue_ns[1]
    cue_seen = np.logical_or.accumulate(cue_seen)
    intent = int(episode.intent["class"]) if episode.intent else UNKNOWN
    told = "lamp" if cue_seen[-1] else "task" if way(episode) == "text" else "none"
    so_far = np.where(cue_seen, intent, UNKNOWN)
    instruction = episode.instruction
    if mirrored:
        lamps = lamps[:, ::-1].copy()
        so_far = np.where(so_far < UNKNOWN, so_far ^ 1, so_far)
        intent, instruction = intent ^ 1, mirror_words(instruction)
    return Sample(
        episode=number,
        frames=frames,
        pairs=tuple(pairs),
        stamps_ns=stamps[used],
        mirrored=mirrored,
        instruction=instruction,
        intent=UNKNOWN if told == "none" else intent,
        told=told,
        lamps=lamps,
        so_far=so_far,
    )


def _flashes(episode: Episode) -> list[tuple[int, int, int, str]]:
    """Every time a lamp is lit: (on, off) in ns, side, colour."""
    found = [(on, off, SIDES.index(side), colour) for on, off, side, colour in episode.details.get("flashes", [])]
    if episode.cue_ns is not None and episode.intent is not None:
        found.append((*episode.cue_ns, SIDES.index(episode.intent["tray"]), episode.intent["cube"]))
    return found


def shares(episodes: Sequence[Episode]) -> np.ndarray:
    """How often each episode is taken in training, float64 [N]: by its way, whatever the shares in the folder are."""
    counts = Counter(map(way, episodes))
    weight = np.array([_TAKEN.get(way(e), 0.0) / counts[way(e)] for e in episodes])
    if not weight.sum() > 0:
        raise EpisodeError(f"none of the episodes is of a split that tells something: {', '.join(sorted(counts))}")
    return weight / weight.sum()


def draw(episodes: Sequence[Episode], shares: np.ndarray, progress: float, rng: np.random.Generator) -> Sample:
    """A random window. shares [N]: how often each episode is taken. progress: 0 to 1 of the training.

    Short windows around a lit lamp come first, since in a long one nearly all pairs show lamps that are off.
    """
    number = int(rng.choice(len(episodes), p=shares))
    episode = episodes[number]
    early = progress < EARLY
    span = float(rng.uniform(0.6, 2.5 if early else WINDOW_S))
    if not early and rng.random() < 0.5:
        span = WINDOW_S
    end = int(rng.integers(len(episode)))
    flashes = _flashes(episode)
    if flashes and rng.random() < (0.75 if early else 0.15):
        on, off, *_ = flashes[rng.integers(len(flashes))]
        end = int(np.searchsorted(episode.stamps_ns, rng.uniform(on, off + 0.5e9)).clip(0, len(episode) - 1))
    return cut(
        episode,
        number,
        end,
        Window(span, SAMPLE_S),
        phase_ns=int(rng.integers(1_000_000_000)),
        mirrored=bool(rng.random() < 0.5),
        keep=arrived(episode, end, rng),
    )


def arrived(episode: Episode, end: int, rng: np.random.Generator) -> np.ndarray | None:
    """bool [N]: in three of ten windows frames are missing, up to half of them, but never the newest; else None."""
    if rng.random() > 0.3:
        return None
    keep = rng.random(len(episode)) < rng.uniform(0.5, 1.0)
    keep[end] = True
    return keep
