"""What a model said over recordings, and what was true: the one value that metrics, report, video and tables read.

Shapes: N forecasts, T steps, J joints, P past poses. Everything is in metres in the optical frame that the camera had
at the stamp of the forecast. NaN is unknown.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.files import replacing, write_atomically

FORMAT = 1
ARRAYS, WORDS = "replay.npz", "replay.json"


class ReplayError(RuntimeError):
    """A replay that cannot be used; the text names the file or the field, and the remedy."""


@dataclass(frozen=True, eq=False)
class Replay:
    """N forecasts of one evaluation, in the order of recording; J are the scored joints: those of the truth that the
    model has too, all of the model's where there is no truth, and all of the truth's where none is shared.

    bag, piece int64 [N]: number of the recording; number of the unbroken stretch (no gap, no clock jump) over all of
    them, across which nothing is scored. stamp_ns int64 [N]: of the newest image. guided, unguided float32
    [N, T, J, 3] or None: step k is at stamp + (k + 1) * step_s; guided is None without a thinker, unguided in a live
    run that was guided, both where the model shares no joint with the truth. sigma float32 [N, T, J]: of guided where
    there is one, else of unguided. present float32 [N, J, 3]: the joints now as the model sees them, or the anchor.
    past float32 [N, P, J, 3]: what baselines may see, oldest first, up to now: the model's estimates, or the true
    joints where it is anchored. past_s float64 [N, P]: seconds relative to the stamp, ascending, at most 0.
    weight, age_s, surprise float32 [N]: weight and age of the guidance (NaN: none), surprise (NaN: none).
    latency_s float32 [N]: live, from stamp to receipt; offline, seconds of computing. truth float64 [N, T, J, 3] and
    truth_present [N, J, 3]: NaN unknown. thoughts: {"bag", "stamp_ns", "text", "delay_s"}, the delay None offline.
    event bool [N] or None: surprising moments, where somebody labelled them. about: what was run. ridge float32
    [N, T, J, 3] or None: forecasts of ridge regression on past joints, where it was fitted. pose float64 [N, 4, 4] or
    None: of the camera at the stamp, in a frame that does not move; None means that it stood still.
    """

    bag: np.ndarray
    piece: np.ndarray
    stamp_ns: np.ndarray
    guided: np.ndarray | None
    unguided: np.ndarray | None
    sigma: np.ndarray
    present: np.ndarray
    past: np.ndarray
    past_s: np.ndarray
    weight: np.ndarray
    age_s: np.ndarray
    surprise: np.ndarray
    latency_s: np.ndarray
    truth: np.ndarray
    truth_present: np.ndarray
    thoughts: list[dict[str, Any]]
    event: np.ndarray | None
    joint_names: tuple[str, ...]
    step_s: float
    about: dict[str, Any] = field(default_factory=dict)
    ridge: np.ndarray | None = None
    pose: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises ReplayError where an array does not have the shape that the others ask for."""
        n, t, j = self.truth.shape[:3] if self.truth.ndim == 4 else (-1, -1, -1)
        p = self.past.shape[1] if self.past.ndim == 4 else -1
        shapes = {
            "truth": (n, t, j, 3), "guided": (n, t, j, 3), "unguided": (n, t, j, 3), "ridge": (n, t, j, 3),
            "sigma": (n, t, j), "present": (n, j, 3), "truth_present": (n, j, 3), "past": (n, p, j, 3),
            "past_s": (n, p), "pose": (n, 4, 4),
        }  # fmt: skip
        for name in _LISTS:
            value = getattr(self, name)
            if value is not None and value.shape != (want := shapes.get(name, (n,))):
                raise ReplayError(f"{name} of a replay is {value.shape}, by the truth it must be {want}; make it again")
        if len(self.joint_names) != j:
            raise ReplayError(f"a replay of {j} joints has {len(self.joint_names)} joint names; make it again")
        if not self.step_s > 0:
            raise ReplayError(f"step_s of a replay is {self.step_s}; it must be above 0 s")

    def __len__(self) -> int:
        return len(self.stamp_ns)

    @property
    def main(self) -> np.ndarray | None:
        """The forecasts of the main row, guided where there are such; None where the model cannot be scored."""
        return self.guided if self.guided is not None else self.unguided

    @property
    def anchored(self) -> bool:
        """Whether the true joints now were given to the model."""
        return bool(self.about.get("anchored", False))

    def only(self, chosen: np.ndarray) -> Replay:
        """The forecasts at these places (bool or int64), in that order."""
        arrays = {name: value[chosen] for name in _LISTS if (value := getattr(self, name)) is not None}
        return replace(self, **arrays)

    def save(self, folder: str | Path) -> None:
        """Write replay.npz and replay.json into `folder`; each file is whole or as it was before."""
        folder = Path(folder)
        words = {
            "format": FORMAT,
            "joint_names": list(self.joint_names),
            "step_s": self.step_s,
            "thoughts": self.thoughts,
            "about": self.about,
        }
        text = json.dumps(words, indent=1, allow_nan=False)
        with replacing(folder / ARRAYS) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: value for name in _LISTS if (value := getattr(self, name)) is not None})
        write_atomically(folder / WORDS, text.encode() + b"\n")

    @classmethod
    def load(cls, folder: str | Path) -> Replay:
        """Read what `save` wrote. Raises ReplayError with the remedy where it is missing, damaged or of another
        version.
        """
        folder = Path(folder)
        remedy = "run `thinkjepa evaluate bag` again with this folder as --out"
        try:
            words = json.loads((folder / WORDS).read_text())
            if not isinstance(words, dict) or words.get("format") != FORMAT:
                raise ReplayError(f"{folder / WORDS} is of another version of the format; {remedy}")
            with np.load(folder / ARRAYS, allow_pickle=False) as data:
                arrays = {name: data[name] if name in data.files else None for name in _LISTS}
            missing = [name for name, value in arrays.items() if value is None and name not in _MAY_BE_NONE]
            if missing:
                raise ReplayError(f"{folder / ARRAYS} lacks {', '.join(missing)}; {remedy}")
            return cls(
                **arrays,  # type: ignore[arg-type]
                thoughts=list(words["thoughts"]),
                joint_names=tuple(words["joint_names"]),
                step_s=float(words["step_s"]),
                about=dict(words["about"]),
            )
        except FileNotFoundError as error:
            raise ReplayError(f"{folder} holds no replay ({Path(error.filename).name} is missing); {remedy}") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ReplayError(f"the replay in {folder} is damaged ({error}); {remedy}") from None


_MAY_BE_NONE = ("guided", "unguided", "event", "ridge", "pose")
_WORDY = ("thoughts", "joint_names", "step_s", "about")
#: Fields with one entry per forecast.
_LISTS = tuple(f.name for f in fields(Replay) if f.name not in _WORDY)
