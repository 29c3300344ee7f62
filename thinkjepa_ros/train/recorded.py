"""Episodes of recordings as data for fine-tuning: which are learnt from and which are held out, their joints, and how
much of them a model's canonical camera sees. What cannot be learnt from is refused before anything is computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.episode import Episode, EpisodeError
from ..jepa.model import ModelConfig
from ..values import Camera
from .clips import Grid, data_hash, load_folder

#: A canonical camera that sees less of the joints in the images than this is refused.
LEAST_SEEN = 0.5
#: Images may come so much slower than the model's grid, as a share of its step.
_SLACK = 1.25
#: Tangent of the widest half angle of a pinhole that is made from data (120 degrees in all).
_WIDEST = 1.732


@dataclass(frozen=True)
class Recorded:
    """Episodes to learn from and episodes that are held out, of the same joints."""

    train: list[Episode]
    held: list[Episode]
    joint_names: tuple[str, ...]
    domain: str
    sha256: str  #: short hash of all files
    notes: tuple[str, ...]  #: what a user should know

    @property
    def held_names(self) -> list[str]:
        """Recordings that are held out, or the numbers of their episodes."""
        return list(dict.fromkeys(_recording(e) for e in self.held))


def load(
    data: Path,
    val: Path | None,
    share: float,
    config: ModelConfig,
    joints: Sequence[str] = (),
    limit: int | None = None,
) -> Recorded:
    """Episodes of `data` (its folder train/, where there is one), held out: those of `val`, of `data`/val, or a share.

    joints: the ones that are wanted, in this order; all that are ever known if empty. Raises EpisodeError in a
    sentence for data that a model of `config` cannot learn from.
    """
    source = data / "train" if (data / "train").is_dir() else data
    if val is None and source != data and (data / "val").is_dir():
        val = data / "val"
    every = _read(source, limit)
    digest = data_hash(source, limit)
    if val is None:
        train, held = split(every, share, source)
    else:
        train, held = every, _read(val, None)
        _strangers(train, held, val)
        digest = hashlib.sha256(f"{digest} {data_hash(val, None)}".encode()).hexdigest()[:16]
    names, notes = _joints([*train, *held], joints, data)
    train, held = ([_only(e, names) for e in part] for part in (train, held))
    for part, where in ((train, source), (held, val or source)):
        _check_rate(part, config, where)
    if not _reached(train, config, 1).all():
        raise EpisodeError(_short(source, "learn from", config))
    if not _reached(held, config, every=5).all():
        raise EpisodeError(_short(val or source, "calibrate on", config))
    return Recorded(train, held, names, _domain([*train, *held], data), digest, notes)


def _read(folder: Path, limit: int | None) -> list[Episode]:
    if not folder.is_dir() or not any(folder.glob("*.h5")):
        raise EpisodeError(
            f"there are no episodes in {folder}; make some of your recordings with "
            f"`thinkjepa data from-bag BAG --truth TOPIC --out {folder}`"
        )
    return load_folder(folder, limit)


def _recording(episode: Episode) -> str:
    about = episode.details.get("recording")
    name = about.get("name") if isinstance(about, dict) else None
    return str(name) if name else f"{episode.split}_{episode.seed:07d}"


def split(episodes: list[Episode], share: float, where: Path) -> tuple[list[Episode], list[Episode]]:
    """Episodes to learn from, and a share that is held out: the last recordings, or of a single one its last episodes.

    Raises EpisodeError for a single episode, ValueError for a share outside of 0 … 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out is {share}; give a number between 0 and 1")
    if len(episodes) < 2:
        raise EpisodeError(
            f"{where} holds one episode; one to learn from and one to hold out are needed: record more, convert it "
            "into shorter ones (--seconds), or give --val"
        )
    recordings = list(dict.fromkeys(map(_recording, episodes)))
    units = recordings if len(recordings) > 1 else [str(e.seed) for e in episodes]
    named = [_recording(e) if len(recordings) > 1 else str(e.seed) for e in episodes]
    held = set(units[-min(len(units) - 1, max(1, round(share * len(units)))) :])
    return (
        [e for e, name in zip(episodes, named, strict=True) if name not in held],
        [e for e, name in zip(episodes, named, strict=True) if name in held],
    )


def _strangers(train: list[Episode], held: list[Episode], val: Path) -> None:
    """Raises EpisodeError where an episode is in both."""
    known = {(int(e.stamps_ns[0]), e.frames.jpeg(0)) for e in train}
    if any((int(e.stamps_ns[0]), e.frames.jpeg(0)) in known for e in held):
        raise EpisodeError(f"{val} holds an episode that is learnt from, too; hold out other recordings")


def _joints(episodes: list[Episode], wanted: Sequence[str], data: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the joints to learn, and what to say about it."""
    names = episodes[0].joint_names
    for e in episodes:
        if e.joint_names != names:
            raise EpisodeError(
                f"the episodes of {data} differ in their joints ({_list(names)} in {_recording(episodes[0])}, "
                f"{_list(e.joint_names)} in {_recording(e)}); convert them with the same --joints, or apart"
            )
    if strange := [name for name in wanted if name not in names]:
        raise EpisodeError(f"{data} has no joint {strange[0]!r}; it has {_list(names)}")
    if len(set(wanted)) < len(wanted):
        raise EpisodeError("--joints names a joint twice; name each once")
    known = np.any([np.isfinite(e.joints).all(-1).any(0) for e in episodes], 0)
    chosen = tuple(wanted) or tuple(name for name, there in zip(names, known, strict=True) if there)
    blind = [name for name, there in zip(names, known, strict=True) if not there]
    if not known.any() or set(blind) & set(wanted):
        who = f"{_list(blind)} is never known" if known.any() else "no joint is ever known"
        raise EpisodeError(f"{who} in {data}: the truth is NaN everywhere; look at what the truth topic says")
    return chosen, (f"left out, because they are never known: {_list(blind)}",) if blind and not wanted else ()


def _only(episode: Episode, names: tuple[str, ...]) -> Episode:
    if episode.joint_names == names:
        return episode
    pick = [episode.joint_names.index(name) for name in names]
    return dataclasses.replace(
        episode, joints=episode.joints[:, pick], visible=episode.visible[:, pick], joint_names=names
    )


def _check_rate(episodes: list[Episode], config: ModelConfig, where: Path) -> None:
    for e in episodes:
        step = float(np.median(np.diff(e.stamps_ns))) * 1e-9 if len(e) > 1 else np.inf
        if step > _SLACK * config.step_s:
            raise EpisodeError(
                f"the images of {_recording(e)} in {where} come every {step:.2g} s, the model takes a step of "
                f"{config.step_s:g} s; record at {1 / config.step_s:g} Hz or more, or start from a model of that step"
            )


def _reached(episodes: list[Episode], config: ModelConfig, every: int) -> np.ndarray:
    """Steps at which the forecast of some origin has a truth, bool [T]. every: grid steps from origin to origin."""
    found = np.zeros(config.horizon, bool)
    for e in episodes:
        index = Grid.of(e.stamps_ns, round(config.step_s * 1e9)).index
        known = np.isfinite(e.joints[index]).all(-1).any(1)
        for origin in range(config.frames - 1, len(index) - 1, every):
            ahead = known[origin + 1 : origin + 1 + config.horizon]
            found[: len(ahead)] |= ahead
    return found


def _short(where: Path, what: str, config: ModelConfig) -> str:
    window, horizon = (config.frames - 1) * config.step_s, config.horizon * config.step_s
    return (
        f"no episode to {what} in {where} is long enough: a forecast takes {window:.1f} s of images and "
        f"{horizon:.1f} s of known joints after them; record longer stretches, or convert with longer --seconds"
    )


def _domain(episodes: list[Episode], data: Path) -> str:
    """What a model that learnt from these was trained on, in words."""
    said = list(dict.fromkeys(e.domain for e in episodes))
    if said == ["recordings"]:  # what from-bag writes if it is not told more
        return f"recordings: {data.resolve().name}"
    return ", ".join(said)[:500]


def _list(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- the camera ---


def seen_by(episodes: list[Episode], camera: Camera) -> float:
    """Share of the joints in the recorded images that the canonical `camera` sees, too.

    Raises EpisodeError where no joint is ever in an image.
    """
    there = inside = 0
    for e in episodes:
        local = np.einsum("njk,nkl->njl", e.joints - e.camera_pose[:, None, :3, 3], e.camera_pose[:, :3, :3])
        pixel = camera.project(local)
        with np.errstate(invalid="ignore"):
            within = ((pixel > -0.5) & (pixel < (camera.width - 0.5, camera.height - 0.5))).all(-1)
        in_image = e.visible & np.isfinite(local).all(-1)
        there, inside = there + int(in_image.sum()), inside + int((in_image & within).sum())
    if not there:
        raise EpisodeError(
            "no joint ever lies in its image: are the frames of camera and truth right? `thinkjepa data sheet` shows it"
        )
    return inside / there


def camera_for(episodes: list[Episode], size: int) -> Camera:
    """A square pinhole of `size` pixels, as wide as the widest image of the data: nothing that was seen is lost."""
    half = 0.0
    for camera in {e.camera for e in episodes}:
        across = max(camera.cx + 0.5, camera.width - 0.5 - camera.cx) / camera.fx
        down = max(camera.cy + 0.5, camera.height - 0.5 - camera.cy) / camera.fy
        half = max(half, across, down)
    focal = size / 2 / min(half, _WIDEST)
    return Camera(size, size, focal, focal, (size - 1) / 2, (size - 1) / 2)
