"""What the nodes published while test episodes were played to them at real speed, read at the fixed origins.

A live forecast is about the image whose stamp it carries. At an origin we take the forecast of that very image; where
the predictor skipped it for a newer one, the newest forecast before it counts, if its image is at most `TOLERANCE_NS`
older: that is what a robot would have at hand. Everything else is "no forecast": NaN, never an older one in disguise.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.evaluation.runs import plain
from thinkjepa_ros.files import replacing, write_atomically

#: One image at 20 Hz, or one that was skipped at 30 Hz and the jitter of its stamps.
TOLERANCE_NS = 50_000_000
VERSION = 1
_ARRAYS = ("stamps_ns", "positions", "sigma", "present", "weight", "age_s", "latency_s")


class LiveError(RuntimeError):
    """Live forecasts can not be had or not be read; the text says why and what to do."""


@dataclass(frozen=True, eq=False)
class LiveEpisode:
    """The n forecasts that were published while one episode was played. T steps, J joints.

    name: of the episode's file. stamps_ns [n]: of the image each is about, on the episode's own time line, ascending.
    positions [n, T, J, 3], sigma [n, T, J], present [n, J, 3]: metres, in the optical frame of that image. weight,
    age_s [n]: of the guidance (0 and NaN: unguided). latency_s [n]: from the image's publication to the forecast's
    receipt.
    thoughts: what the thinker said, {"stamp_ns": newest image it saw, "heard_ns": when it arrived, "text": ...}.
    """

    name: str
    stamps_ns: np.ndarray
    positions: np.ndarray
    sigma: np.ndarray
    present: np.ndarray
    weight: np.ndarray
    age_s: np.ndarray
    latency_s: np.ndarray
    thoughts: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stamps_ns)


@dataclass(frozen=True, eq=False)
class LiveRun:
    """All episodes of a run, in the order they were asked for. words: models, whether guided, counters of the nodes."""

    episodes: list[LiveEpisode]
    words: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write `path`.npz and then `path`.json, each whole or not at all; the second one says that both are there."""
        sizes = np.array([len(episode) for episode in self.episodes], np.int64)
        arrays = {name: np.concatenate([getattr(e, name) for e in self.episodes]) for name in _ARRAYS}
        with replacing(path.with_suffix(".npz")) as part, part.open("wb") as file:
            np.savez(file, **{"sizes": sizes, **arrays})  # type: ignore[arg-type]
        told = [{"name": e.name, "thoughts": e.thoughts} for e in self.episodes]
        text = json.dumps(plain({"version": VERSION, "words": self.words, "episodes": told}), indent=1)
        write_atomically(path.with_suffix(".json"), text.encode())

    @classmethod
    def load(cls, path: Path) -> LiveRun:
        """Read what `save` wrote. Raises LiveError where it is missing or damaged."""
        try:
            told = json.loads(path.with_suffix(".json").read_text())
            if told["version"] != VERSION:
                raise LiveError(f"{path}.json has version {told['version']}, this program reads {VERSION}; remove it")
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as data:
                ends = np.cumsum(data["sizes"])[:-1]
                parts = {name: np.split(data[name], ends) for name in _ARRAYS}
            episodes = [
                cls._episode(words, {name: parts[name][i] for name in _ARRAYS})
                for i, words in enumerate(told["episodes"])
            ]
            return cls(episodes, told["words"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
            raise LiveError(f"{path}.json and .npz hold no live run ({error}); remove them and play again") from error

    @staticmethod
    def _episode(words: dict[str, Any], arrays: dict[str, np.ndarray]) -> LiveEpisode:
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError("the arrays of an episode differ in length")
        return LiveEpisode(name=str(words["name"]), thoughts=list(words["thoughts"]), **arrays)


@dataclass(frozen=True, eq=False)
class AtOrigins:
    """What the nodes had to say at N origins; NaN (stamp -1) where no forecast of that image or just before it came.

    stamp_ns [N]: of the image the forecast is about; its optical frame is that of `positions` [N, T, J, 3]. behind_s
    [N]: how much older that image is than the origin's, 0 where it is the same. The rest as in LiveEpisode.
    """

    stamp_ns: np.ndarray
    behind_s: np.ndarray
    positions: np.ndarray
    sigma: np.ndarray
    weight: np.ndarray
    age_s: np.ndarray
    latency_s: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """bool [N]: there was a forecast."""
        return self.stamp_ns >= 0


def at_origins(
    run: LiveRun, origins: Sequence[tuple[int, int]] | np.ndarray, tolerance_ns: int = TOLERANCE_NS
) -> AtOrigins:
    """The forecasts at the origins: (index of the episode in the run, stamp of the frame on the episode's own time
    line in ns).

    Raises LiveError for an episode the run does not have, and where it holds no forecast at all.
    """
    answered = [episode for episode in run.episodes if len(episode)]
    if not answered:
        raise LiveError("the nodes published no forecast in any episode; look at the logs in the run's folder")
    steps, joints = answered[0].positions.shape[1:3]
    count = len(origins)
    stamps, rows = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    asked = np.asarray(origins, np.int64).reshape(count, 2)
    wrong = (asked[:, 0] < 0) | (asked[:, 0] >= len(run.episodes))
    if wrong.any():
        raise LiveError(f"there is no episode {asked[wrong][0, 0]}; {len(run.episodes)} were played")
    for i, (number, at) in enumerate(asked):
        known = run.episodes[number].stamps_ns
        row = int(np.searchsorted(known, at, "right")) - 1
        if row >= 0 and at - known[row] <= tolerance_ns:
            stamps[i], rows[i] = known[row], row
    taken = AtOrigins(
        stamp_ns=stamps,
        behind_s=np.where(stamps >= 0, (asked[:, 1] - stamps) * 1e-9, np.nan),
        positions=np.full((count, steps, joints, 3), np.nan, np.float32),
        sigma=np.full((count, steps, joints), np.nan, np.float32),
        weight=np.full(count, np.nan),
        age_s=np.full(count, np.nan),
        latency_s=np.full(count, np.nan),
    )
    for n in np.flatnonzero(rows >= 0).tolist():
        episode = run.episodes[asked[n, 0]]
        for name in ("positions", "sigma", "weight", "age_s", "latency_s"):
            getattr(taken, name)[n] = getattr(episode, name)[rows[n]]
    return taken
