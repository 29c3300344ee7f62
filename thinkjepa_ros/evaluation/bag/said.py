"""Room for what a model says at the images of recordings, and how that becomes a `Replay` beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa_ros.values import Forecast

from .ground import Ground, Match, into_camera, into_world
from .replay import Replay
from .room import Room

#: Forecasts whose past is moved into another frame at once.
_BLOCK = 1024


class Said:
    """N forecasts to be, of T steps and J scored joints (0 where the model has none of the truth's), and where each is.

    bag, piece, image int64 [N]: numbers of the recording, of the piece in it, and of the image. past_image int64
    [N, P]: at which the model has estimates of the joints, oldest first, the last one is `image`. anchor float32
    [N, J of the model, 3]: the true joints that are given to the model, or None. done bool [N]: whether all is there.
    estimates float32 [N, P, J, 3]: in the frame of each of those images. The rest as in `Replay`.
    """

    def __init__(
        self, count: int, past: int, horizon: int, joints: int, guided: bool, unguided: bool = True,
        anchored: int = 0, room: Room | None = None, fresh: bool = True,
    ) -> None:  # fmt: skip
        """anchored: joints of the model, where they are anchored. fresh: False opens what another process has made."""
        self.room = room = room or Room()

        def make(name: str, *shape: int, dtype: Any = np.float32, fill: float = np.nan) -> np.ndarray:
            if not fresh:
                return room.open(name, (count, *shape), dtype)
            return room.array(name, (count, *shape), dtype, fill)

        self.sizes = (count, past, horizon, joints, guided, unguided, anchored)
        self.next = 0  #: the first row of the recording that comes next
        self.bag, self.piece, self.image = (make(n, dtype=np.int64, fill=0) for n in ("bag", "piece", "image"))
        self.past_image = make("past_image", past, dtype=np.int64, fill=0)
        self.done = make("done", dtype=np.bool_, fill=0)
        self.guided = make("guided", horizon, joints, 3) if guided else None
        self.unguided = make("unguided", horizon, joints, 3) if unguided else None
        self.anchor = make("anchor", anchored, 3) if anchored else None
        self.sigma, self.present = make("sigma", horizon, joints), make("present", joints, 3)
        self.estimates = make("estimates", past, joints, 3)
        self.weight, self.age_s, self.surprise, self.latency_s = map(make, ("weight", "age_s", "surprise", "latency_s"))
        self.thoughts: list[dict[str, Any]] = []

    @classmethod
    def opened(cls, folder: Path, sizes: tuple[Any, ...]) -> Said:
        """The same arrays in another process. sizes: as the one that made them has them."""
        count, past, horizon, joints, guided, unguided, anchored = sizes
        room = Room(folder)
        return cls(count, past, horizon, joints, guided, unguided, anchored, room, fresh=False)

    def place(self, number: int, images: np.ndarray, pieces: np.ndarray, past_images: np.ndarray) -> slice:
        """The next rows are these images of recording `number`, int64 [n], with their past [n, P]. Returns which."""
        rows = slice(self.next, self.next + len(images))
        self.bag[rows], self.image[rows], self.piece[rows] = number, images, pieces
        self.past_image[rows] = past_images
        return rows

    def file(self, row: int, forecast: Forecast, estimates: np.ndarray, joints: np.ndarray) -> None:
        """The main forecast of a row. estimates [P, J of the model, 3]; joints int64 [J]: the scored ones."""
        main = self.guided if self.guided is not None else self.unguided
        assert main is not None
        main[row], self.sigma[row] = forecast.positions[:, joints], forecast.sigma[:, joints]
        self.present[row], self.estimates[row] = forecast.present[joints], estimates[:, joints]

    def file_unguided(self, row: int, positions: np.ndarray, joints: np.ndarray) -> None:
        """The forecast without guidance beside it, [T, J of the model, 3]."""
        assert self.unguided is not None
        self.unguided[row] = positions[:, joints]

    def replay(
        self, grounds: Sequence[Ground], match: Match, anchored: bool, step_s: float, about: dict[str, Any]
    ) -> Replay:
        """The rows that are done, beside the truth. grounds: by the number of the recording."""
        rows = np.flatnonzero(self.done)

        def done(name: str) -> np.ndarray:
            return self.room.rows(f"done_{name}", getattr(self, name), rows)

        bag, image, piece, past_image = map(done, ("bag", "image", "piece", "past_image"))
        joints = len(match.names)
        truth_joints = np.arange(joints) if match.in_truth is None else match.in_truth
        horizon = self.sigma.shape[1]
        n, p = past_image.shape
        make = self.room.array
        out: dict[str, np.ndarray] = {
            "truth": make("truth", (n, horizon, joints, 3), np.float64),
            "truth_present": make("truth_present", (n, joints, 3), np.float64),
            "past": make("past", (n, p, joints, 3)),
            "past_s": np.zeros((n, p)),
            "stamp_ns": np.zeros(n, np.int64),
            "pose": np.tile(np.eye(4), (n, 1, 1)),
        }
        unbroken, before = np.zeros(n, np.int64), 0
        for number, ground in enumerate(grounds):
            mine = np.flatnonzero(bag == number)
            stamps = ground.course.stamps_ns
            unbroken[mine] = piece[mine] + before
            before += len(ground.pieces)
            out["stamp_ns"][mine] = stamps[image[mine]]
            out["past_s"][mine] = (stamps[past_image[mine]] - stamps[image[mine], None]) * 1e-9
            out["pose"][mine] = ground.course.pose[image[mine]]
            for first in range(0, len(mine), _BLOCK):
                part = mine[first : first + _BLOCK]
                out["truth"][part] = ground.ahead(image[part], piece[part], horizon, step_s, truth_joints)
                out["truth_present"][part] = ground.now(image[part], truth_joints)
                out["past"][part] = self._past(ground, rows[part], match, anchored)
        known = match.in_model is not None
        present = done("present") if known else out["truth_present"].astype(np.float32)
        sigma = done("sigma") if known else make("unknown", (n, horizon, joints))
        return Replay(
            bag=bag,
            piece=unbroken,
            guided=done("guided") if known and self.guided is not None else None,
            unguided=done("unguided") if known and self.unguided is not None else None,
            sigma=sigma,
            present=present,
            weight=done("weight"),
            age_s=done("age_s"),
            surprise=done("surprise"),
            latency_s=done("latency_s"),
            thoughts=self.thoughts,
            event=None,
            joint_names=match.names,
            step_s=step_s,
            about=about,
            **out,
        )

    def _past(self, ground: Ground, rows: np.ndarray, match: Match, anchored: bool) -> np.ndarray:
        """What baselines may see, [n, P, J, 3], in the frame of the newest image.

        The model's estimates. Anchored: the true joints, but of a joint that is not known now, for which the model
        falls back on the image, too, its estimates. The true ones where the model knows none of the joints.
        """
        image, past_image = self.image[rows], self.past_image[rows]
        estimated = None
        if match.in_model is not None:
            pose, there = ground.course.pose, past_image.ravel()
            world = into_world(pose[there], self.estimates[rows].reshape(len(there), -1, 3).astype(np.float64))
            estimated = into_camera(pose[image], world.reshape(*past_image.shape, -1, 3))
            if not anchored:
                return estimated
        assert match.in_truth is not None
        true = ground.now(past_image, match.in_truth, image)
        if estimated is None:
            return true
        known = np.isfinite(true[:, -1:]).all(-1, keepdims=True)
        return np.where(known, true, estimated)
