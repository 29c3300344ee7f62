"""What an evaluator saw during one run of the nodes, as one folder: numbers in run.npz, words in run.json."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from thinkjepa_ros.values import Camera, Forecast

VERSION = 1


class RunError(RuntimeError):
    """A run can not be read; the text names the file and what is wrong."""


@dataclass
class Run:
    """N forecasts of T steps and J joints, M truths, P camera poses, F pictures. Times are ns on the nodes' clock.

    stamp_ns, receipt_ns [N]: of the image a forecast is about, and when the forecast arrived. positions [N, T, J, 3],
    sigma [N, T, J], present [N, J, 3]: metres in the optical frame at the stamp. weight, age_s, surprise [N]: of the
    guidance and the surprise. epoch [N]. truth [M, J', 3] at truth_ns, world metres, NaN = unknown. pose [P, 4, 4] at
    pose_ns: world_from_camera. pictures: JPEG or PNG files at picture_ns [F]. begins_ns: stamps at which the scene
    (re)started. words: everything else (see the evaluator).
    """

    stamp_ns: np.ndarray
    receipt_ns: np.ndarray
    positions: np.ndarray
    sigma: np.ndarray
    present: np.ndarray
    weight: np.ndarray
    age_s: np.ndarray
    surprise: np.ndarray
    epoch: np.ndarray
    truth_ns: np.ndarray
    truth: np.ndarray
    pose_ns: np.ndarray
    pose: np.ndarray
    picture_ns: np.ndarray
    pictures: list[bytes]
    begins_ns: np.ndarray
    joint_names: tuple[str, ...] = ()
    step_s: float = 0.0
    camera: Camera | None = None
    metric: bool = True
    model_id: str = ""
    domain: str = ""
    words: dict[str, Any] = field(default_factory=dict)

    _ARRAYS = (
        "stamp_ns", "receipt_ns", "positions", "sigma", "present", "weight", "age_s", "surprise", "epoch",
        "truth_ns", "truth", "pose_ns", "pose", "picture_ns", "begins_ns",
    )  # fmt: skip
    _WORDS = ("joint_names", "step_s", "metric", "model_id", "domain", "words")

    def save(self, folder: Path) -> None:
        """Write run.npz and run.json; each is complete or absent."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        arrays["picture_bytes"] = np.frombuffer(b"".join(self.pictures), np.uint8)
        arrays["picture_sizes"] = np.array([len(picture) for picture in self.pictures], np.int64)
        partial = folder / "run.partial.npz"
        np.savez(partial, **arrays)
        partial.replace(folder / "run.npz")
        words = {"version": VERSION, **{name: getattr(self, name) for name in self._WORDS}}
        words["camera"] = None if self.camera is None else self.camera.__dict__
        partial = folder / "run.partial.json"
        partial.write_text(json.dumps(words, indent=1))
        partial.replace(folder / "run.json")

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a run; RunError when it is missing or damaged."""
        try:
            words = json.loads((folder / "run.json").read_text())
            if words["version"] != VERSION:
                raise RunError(f"{folder} was written in version {words['version']} of the format, known is {VERSION}")
            with np.load(folder / "run.npz", allow_pickle=False) as data:
                arrays = {name: data[name] for name in cls._ARRAYS}
                blob, ends = data["picture_bytes"].tobytes(), np.cumsum(data["picture_sizes"])
        except FileNotFoundError as error:
            raise RunError(f"{folder} holds no complete run ({Path(error.filename).name} is missing)") from error
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RunError(f"the run in {folder} is damaged: {error}") from error
        camera = words["camera"]
        if camera is not None:
            camera = Camera(**{**camera, "distortion": tuple(camera["distortion"])})
        fields = {name: words[name] for name in cls._WORDS} | {"joint_names": tuple(words["joint_names"])}
        begins = [0, *ends[:-1].tolist()][: len(ends)]
        pictures = [blob[a:b] for a, b in zip(begins, ends.tolist(), strict=True)]
        return cls(**arrays, **fields, pictures=pictures, camera=camera)

    def __len__(self) -> int:
        return len(self.stamp_ns)

    @property
    def latency_s(self) -> np.ndarray:
        """From the stamp of the image to the receipt of its forecast, [N] seconds."""
        return (self.receipt_ns - self.stamp_ns) * 1e-9

    def forecast(self, index: int) -> Forecast:
        """One of the forecasts."""
        return Forecast(
            positions=self.positions[index],
            sigma=self.sigma[index],
            present=self.present[index],
            joint_names=self.joint_names,
            step_s=self.step_s,
            stamp_ns=int(self.stamp_ns[index]),
            metric=self.metric,
            guidance_weight=float(self.weight[index]),
            guidance_age_s=float(self.age_s[index]),
            surprise=float(self.surprise[index]),
            model_id=self.model_id,
            domain=self.domain,
        )

    def picture(self, index: int) -> np.ndarray | None:
        """One of the pictures, uint8 RGB [H, W, 3]; None if it can not be decoded."""
        image = cv2.imdecode(np.frombuffer(self.pictures[index], np.uint8), cv2.IMREAD_COLOR)
        return None if image is None else np.ascontiguousarray(image[..., ::-1])


def plain(value: Any) -> Any:
    """For JSON: numpy numbers become Python's, NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
