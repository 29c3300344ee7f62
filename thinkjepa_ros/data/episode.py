"""One recorded or simulated manipulation episode, and its file.

File format (version 1): HDF5 behind a 512-byte user block. The user block is one line of text that names the format and
the SHA-256 of everything after it, so a damaged file is refused before the HDF5 library parses a byte of it. A file is
read at once (about 6 KB a frame at 128 x 128); images stay JPEG blobs in memory and are decoded when asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import cv2
import h5py
import numpy as np

from thinkjepa_ros.values import Camera

FORMAT_VERSION = 1
SUFFIX = ".h5"
SIDES = ("right", "left")
HAND_JOINTS = (
    "wrist", "palm", "thumb_base", "index_base", "middle_base", "ring_base", "pinky_base",
    "thumb_tip", "index_tip", "middle_tip", "ring_tip", "pinky_tip",
)  # fmt: skip
#: Order of the joint axis everywhere in this package: the right hand, then the left.
JOINT_NAMES = tuple(f"{side}_{joint}" for side in SIDES for joint in HAND_JOINTS)
#: What the acting hand is doing; `Episode.phases` holds indices into this tuple.
PHASES = ("idle", "cue", "wait", "reach", "grasp", "transport", "place")
SPLITS = ("lamp", "text", "distractor", "none", "recorded", "workcell")

_USER_BLOCK = 512
_MAGIC = "thinkjepa-episode"
_MAX_FRAMES = 1_000_000
_MAX_JOINTS = 512
_MAX_OBJECTS = 64


class EpisodeError(RuntimeError):
    """An episode is malformed or its file cannot be read; the text names the file, the field and what is wrong."""


class JpegFrames(Sequence[np.ndarray]):
    """The images of an episode: uint8 RGB [H, W, 3] each, decoded from memory at every access (0.2 ms at 128 x 128)."""

    def __init__(self, blobs: np.ndarray, offsets: np.ndarray, name: str = "episode") -> None:
        """blobs: uint8, JPEG files in a row. offsets: int64 [N + 1], frame i is blobs[offsets[i]:offsets[i + 1]]."""
        self._blobs, self._offsets, self._name = blobs, offsets, name

    @classmethod
    def encode(cls, images: Sequence[np.ndarray], quality: int = 92, name: str = "episode") -> JpegFrames:
        """Encode uint8 RGB images [H, W, 3]. Colour is not subsampled: the cue is the colour of a few pixels."""
        return cls.from_jpegs([encode_jpeg(image, quality) for image in images], name)

    @classmethod
    def from_jpegs(cls, jpegs: Sequence[bytes], name: str = "episode") -> JpegFrames:
        """Take images that are JPEG files already, e.g. from a bag."""
        offsets = np.cumsum([0, *map(len, jpegs)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(jpegs), np.uint8), offsets, name)

    @property
    def blobs(self) -> np.ndarray:
        return self._blobs

    @property
    def offsets(self) -> np.ndarray:
        return self._offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def jpeg(self, index: int) -> bytes:
        """The JPEG file of frame `index`."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"frame {index} of {self._name}, which has {count}")
        index %= count
        return self._blobs[self._offsets[index] : self._offsets[index + 1]].tobytes()

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = cv2.imdecode(np.frombuffer(self.jpeg(int(index)), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise EpisodeError(f"{self._name}: frame {index} cannot be decoded as JPEG; make the episode again")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def encode_jpeg(image: np.ndarray, quality: int = 92, subsample: bool = False) -> bytes:
    """JPEG file of a uint8 RGB image [H, W, 3]; `subsample` halves the colour resolution (4:2:0) for smaller files."""
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsample else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    ok, blob = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), flags)
    if not ok:
        raise EpisodeError(f"An image of shape {image.shape} cannot be encoded as JPEG.")
    return bytes(blob.tobytes())


@dataclass(frozen=True, eq=False)
class Episode:
    """Images, camera, hands and intent of one episode. N frames, J joints.

    frames: N images, uint8 RGB [H, W, 3]. stamps_ns: int64 [N], ascending. camera: intrinsics of the images.
    camera_pose: float64 [N, 4, 4], world from camera optical frame (x right, y down, z forward), metres.
    joints: float32 [N, J, 3], world, metres, NaN = unknown. visible: bool [N, J], in the image and not occluded.
    states: float32 [N, 7], the acting hand: x, y, z in metres, extrinsic-xyz Euler angles in rad (0 = palm down,
    fingers along world y), closedness 0 (open) to 1. actions: float32 [N - 1, 7], difference to the next state,
    rotation as Euler_xyz(R_next R^T). phases: uint8 [N], index into PHASES.
    intent: {"cube": colour, "tray": "left" | "right" as seen, "class": 0..5} or None when unknown. cue_ns: (on, off)
    of the true cue lamp or None. objects: name -> float32 [N, 3], world position, metres. details: what else the
    maker wants to say, as JSON values.

    Arrays of an inconsistent shape or type are refused with EpisodeError when the episode is made.
    """

    frames: JpegFrames
    stamps_ns: np.ndarray
    camera: Camera
    camera_pose: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    phases: np.ndarray
    instruction: str
    split: str
    seed: int
    intent: dict[str, Any] | None = None
    cue_ns: tuple[int, int] | None = None
    joint_names: tuple[str, ...] = JOINT_NAMES
    objects: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    domain: str = "simulation"

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __post_init__(self) -> None:
        _check(self)

    # --- geometry ---

    def points_in_camera(self, k: int | slice | np.ndarray, reference_frame: int) -> np.ndarray:
        """Joints at frame(s) `k` in the optical frame of frame `reference_frame`, metres.

        float32 [J, 3] for one frame, [K, J, 3] for several.
        """
        pose = self.camera_pose[reference_frame]
        return np.asarray((self.joints[k].astype(np.float64) - pose[:3, 3]) @ pose[:3, :3], np.float32)

    def joints_in_camera(self, i: int) -> np.ndarray:
        """Joints at frame `i` in that frame's own optical frame, float32 [J, 3], metres."""
        return self.points_in_camera(i, i)

    def phase(self, i: int) -> str:
        """Name of the phase at frame `i`."""
        return PHASES[int(self.phases[i])]

    # --- file ---

    def save(self, path: str | Path) -> None:
        """Write the episode to `path` (HDF5), all or nothing: a reader never sees half a file, also after a kill."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(part, "w", userblock_size=_USER_BLOCK) as file:
                for name, array in self._arrays().items():
                    file.create_dataset(name, data=array, track_times=False)
                file.attrs["meta"] = json.dumps(self._meta(), sort_keys=True)
            with part.open("r+b") as raw:
                raw.seek(_USER_BLOCK)
                head = f"{_MAGIC} {FORMAT_VERSION} sha256 {hashlib.sha256(raw.read()).hexdigest()}\n"
                raw.seek(0)
                raw.write(head.encode().ljust(_USER_BLOCK, b"\0"))
                raw.flush()
                os.fsync(raw.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Episode:
        """Read an episode. Raises EpisodeError if the file is missing, damaged, of another version or inconsistent."""
        path = Path(path)
        _verify(path)
        try:
            with h5py.File(path, "r") as file:
                meta = json.loads(file.attrs["meta"])
                arrays = {name: _read(file, name) for name in _names(file)}
            objects = {name.removeprefix("objects/"): a for name, a in arrays.items() if name.startswith("objects/")}
            cue, camera = meta["cue_ns"], meta["camera"]
            values: dict[str, Any] = {name: arrays[name] for name in _FIELDS}
            values |= {name: meta[name] for name in ("instruction", "split", "seed", "intent", "details", "domain")}
            return cls(
                frames=JpegFrames(arrays["jpeg"], arrays["jpeg_offsets"], str(path)),
                camera=Camera(**{**camera, "distortion": tuple(camera["distortion"])}),
                objects=objects,
                cue_ns=None if cue is None else (int(cue[0]), int(cue[1])),
                joint_names=tuple(meta["joint_names"]),
                **values,
            )
        except EpisodeError as error:
            raise EpisodeError(f"{path}: {error}") from None
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError, RuntimeError) as error:
            raise EpisodeError(
                f"{path} is no complete episode ({type(error).__name__}: {error}); make it again."
            ) from error

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(getattr(self, name)) for name in _FIELDS}
        arrays |= {"jpeg": self.frames.blobs, "jpeg_offsets": self.frames.offsets}
        return arrays | {f"objects/{name}": array for name, array in self.objects.items()}

    def _meta(self) -> dict[str, Any]:
        camera = {name: getattr(self.camera, name) for name in Camera.__dataclass_fields__}
        plain = ("instruction", "split", "seed", "intent", "cue_ns", "joint_names", "details", "domain")
        return {"camera": camera} | {name: getattr(self, name) for name in plain}


_FIELDS = {
    "stamps_ns": np.int64, "camera_pose": np.float64, "joints": np.float32, "visible": np.bool_,
    "states": np.float32, "actions": np.float32, "phases": np.uint8,
}  # fmt: skip


def _verify(path: Path) -> None:
    try:
        with path.open("rb") as raw:
            head = raw.read(_USER_BLOCK).split(b"\n", 1)[0].decode("ascii", "replace").split(" ")
            if len(head) != 4 or (head[0], head[2]) != (_MAGIC, "sha256"):
                raise EpisodeError(f"{path} is not an episode file of this package.")
            if head[1] != str(FORMAT_VERSION):
                raise EpisodeError(
                    f"{path} has format {head[1]}, this program reads {FORMAT_VERSION}; make the data again."
                )
            digest = hashlib.sha256(raw.read())
    except OSError as error:
        raise EpisodeError(f"{path} cannot be read: {error.strerror or error}.") from error
    if digest.hexdigest() != head[3]:
        raise EpisodeError(f"{path} is damaged: its checksum does not match; make the episode again.")


def _names(file: h5py.File) -> Iterator[str]:
    yield from (*_FIELDS, "jpeg", "jpeg_offsets")
    if "objects" in file:
        if len(file["objects"]) > _MAX_OBJECTS:
            raise EpisodeError(f"it holds {len(file['objects'])} objects; at most {_MAX_OBJECTS} are allowed")
        yield from (f"objects/{name}" for name in file["objects"])


def _read(file: h5py.File, name: str) -> np.ndarray:
    if name not in file:
        raise EpisodeError(f"the dataset {name!r} is missing")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.nbytes > 8 << 30:
        raise EpisodeError(f"{name!r} is not a dataset of a sensible size")
    return np.asarray(data[()])


def _check(e: Episode) -> None:
    """Raise EpisodeError for the first thing in `e` that is inconsistent."""

    def need(ok: Any, words: str) -> None:
        if not bool(ok):
            raise EpisodeError(words)

    n, j = len(e.stamps_ns), len(e.joint_names)
    need(1 <= n <= _MAX_FRAMES, f"an episode has 1 to {_MAX_FRAMES} frames, this one {n}")
    need(1 <= j <= _MAX_JOINTS and len(set(e.joint_names)) == j, "joint names must be different words, at least one")
    shapes: dict[str, tuple[int, ...]] = {
        "stamps_ns": (n,), "camera_pose": (n, 4, 4), "joints": (n, j, 3), "visible": (n, j),
        "states": (n, 7), "actions": (n - 1, 7), "phases": (n,),
    }  # fmt: skip
    for name, dtype in _FIELDS.items():
        array, wanted = getattr(e, name), f"{np.dtype(dtype).name} {list(shapes[name])}"
        need(array.shape == shapes[name] and array.dtype == dtype, f"{name} must be {wanted}, not {_kind(array)}")
    for name, array in e.objects.items():
        fine = array.shape == (n, 3) and array.dtype == np.float32
        need(fine, f"object {name!r} must be float32 [{n}, 3], not {_kind(array)}")
    need(e.stamps_ns[0] >= 0 and np.all(np.diff(e.stamps_ns) > 0), "stamps_ns must ascend from 0 or later")
    need(np.isfinite(e.camera_pose).all(), "camera_pose must be finite")
    rotation = e.camera_pose[:, :3, :3]
    rigid = np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-5)
    need(rigid and np.allclose(e.camera_pose[:, 3], (0, 0, 0, 1)), "camera_pose must hold rigid transforms")
    need(np.isfinite(e.states).all() and np.isfinite(e.actions).all(), "states and actions must be finite")
    need(not np.isinf(e.joints).any(), "joints must be finite, or NaN where unknown")
    need(e.phases.max() < len(PHASES), f"phases must be indices below {len(PHASES)}")
    camera = (e.camera.width, e.camera.height, e.camera.fx, e.camera.fy)
    fine = bool(np.isfinite((*camera, e.camera.cx, e.camera.cy)).all()) and min(camera) > 0
    need(fine, "the camera's size and focal length must be finite and positive")
    offsets, blobs = e.frames.offsets, e.frames.blobs
    fine = offsets.dtype == np.int64 and offsets.shape == (n + 1,) and blobs.dtype == np.uint8 and blobs.ndim == 1
    need(fine, f"there must be {n} JPEG blobs, one per stamp")
    need(offsets[0] == 0 and offsets[-1] == len(blobs) and np.all(np.diff(offsets) > 0), "the JPEG offsets are wrong")
    fine = isinstance(e.instruction, str) and isinstance(e.details, dict) and isinstance(e.seed, int)
    need(fine, "the instruction must be text, the seed a number and the details a dictionary")
    need(e.split in SPLITS, f"split {e.split!r} is none of {', '.join(SPLITS)}")
    need(e.cue_ns is None or e.cue_ns[0] < e.cue_ns[1], "the cue must end after it begins")
    if e.intent is not None:
        fine = {"cube", "tray", "class"} <= set(e.intent) and e.intent["tray"] in ("left", "right")
        need(fine, "the intent must name cube, tray (left or right) and class")


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def list_episodes(folder: str | Path, split: str | None = None, limit: int | None = None) -> list[Path]:
    """Episode files in `folder`, sorted by name; only those of `split` when it is given (names are split_seed.h5).

    limit: only those with the lowest seeds, so that a part of mixed episodes is mixed, too. Raises EpisodeError when
    the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EpisodeError(f"There is no folder {folder}; make episodes with `thinkjepa data sim {folder}`.")
    pattern = f"{split}_*{SUFFIX}" if split else f"*{SUFFIX}"
    paths = [p for p in folder.glob(pattern) if not p.name.startswith(".")]
    paths.sort(key=lambda p: (p.stem.rpartition("_")[2].zfill(20), p.name))
    return sorted(paths[:limit])
