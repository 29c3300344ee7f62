"""forecast.rrd: the evaluation for the viewer of rerun.io, which turns it around in 3-D and scrolls through time.

rerun-sdk is an extra (`pip install thinkjepa_ros[viz]`); everything else works without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from thinkjepa_ros.evaluation import draw
from thinkjepa_ros.files import replacing

from . import scenes
from .replay import Replay
from .scenes import Frames

MISSING = "rerun-sdk is not installed; `pip install rerun-sdk` brings it (the extra viz)"
TIMELINE = "stamp"
_JPEG = 85
_GUIDED = (31, 111, 209)
_ROWS = {"guided": _GUIDED, "unguided": draw.BASELINE}


def write(replay: Replay, pictures: Frames | None, path: Path) -> str:
    """Write the recording; returns why there is none, or nothing. pictures: None leaves the images out.

    Everything lies in the optical frame of the camera at its time, below "camera/<name of the recording>".
    """
    if not len(replay):
        return "there is no forecast"
    try:
        import rerun
    except ImportError:
        return MISSING
    try:
        with replacing(path) as part:
            stream = rerun.RecordingStream("thinkjepa_evaluate_bag")
            stream.save(str(part))
            _cameras(rerun, stream, replay)
            for index in range(len(replay)):
                _forecast(rerun, stream, replay, index)
            for thought in replay.thoughts:
                _at(stream, int(thought["stamp_ns"]))
                stream.log("thoughts", rerun.TextLog(str(thought.get("text") or "(no words)")))
            if pictures is not None:
                _pictures(rerun, stream, replay, pictures)
            stream.flush()
            stream.disconnect()
    except (OSError, RuntimeError) as error:
        return f"the file for rerun could not be written: {error}"
    return ""


def _at(stream: Any, stamp_ns: int) -> None:
    stream.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))


def _place(replay: Replay, index: int) -> str:
    return f"camera/{_entity(scenes.bag_name(replay, int(replay.bag[index])))}"


def _entity(name: str) -> str:
    """A name that may be part of a path of rerun."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name) or "_"


def _cameras(rerun: Any, stream: Any, replay: Replay) -> None:
    """The pinhole cameras: images lie in their planes, and what is in front of them is drawn onto the images."""
    for bag in np.unique(replay.bag).tolist():
        camera = scenes.camera_of(replay, bag)
        if camera is None:
            continue
        pinhole = rerun.Pinhole(
            image_from_camera=camera.matrix,
            resolution=[camera.width, camera.height],
            camera_xyz=rerun.ViewCoordinates.RDF,
        )
        stream.log(f"camera/{_entity(scenes.bag_name(replay, bag))}", pinhole, static=True)


def _forecast(rerun: Any, stream: Any, replay: Replay, index: int) -> None:
    """Paths of one forecast, the truth, and the numbers beside them."""
    _at(stream, int(replay.stamp_ns[index]))
    here = _place(replay, index)
    joints = draw.path_joints(replay.joint_names)
    for name, colour in _ROWS.items():
        forecast = getattr(replay, name)
        if forecast is not None:
            stream.log(f"{here}/{name}", _paths(rerun, forecast[index][:, joints], colour))
    stream.log(f"{here}/truth", _paths(rerun, replay.truth[index][:, joints], draw.TRUE))
    known = np.isfinite(replay.present[index]).all(-1)
    names = [name for name, there in zip(replay.joint_names, known, strict=True) if there]
    now = rerun.Points3D(
        replay.present[index][known], labels=names, colors=[draw.NOW], radii=[0.006], show_labels=False
    )
    stream.log(f"{here}/now", now)
    main = replay.main
    ade = float("nan")
    if main is not None:
        with np.errstate(invalid="ignore"):
            distance = np.linalg.norm(main[index] - replay.truth[index], axis=-1)
        ade = float(distance[np.isfinite(distance)].mean()) if np.isfinite(distance).any() else ade
    numbers = {"surprise": replay.surprise, "guidance/weight": replay.weight, "guidance/age_s": replay.age_s}
    for name, value in (*((name, float(values[index])) for name, values in numbers.items()), ("error/ade_m", ade)):
        if np.isfinite(value):
            stream.log(f"plots/{name}", rerun.Scalars(value))


def _paths(rerun: Any, path: np.ndarray, colour: tuple[int, int, int]) -> Any:
    """The known parts of the paths [T, J, 3] of all joints; without any it is empty, and so clears the last."""
    strips = [joint[np.isfinite(joint).all(-1)] for joint in np.swapaxes(path, 0, 1)]
    return rerun.LineStrips3D([strip for strip in strips if len(strip) > 1], colors=[colour], radii=[0.002])


def _pictures(rerun: Any, stream: Any, replay: Replay, pictures: Frames) -> None:
    """The frames as JPEG, one by one."""
    place = scenes.index_of(replay)
    for bag, stamp, rgb in pictures(sorted(place)):
        index = place.get((int(bag), int(stamp)))
        if index is None:
            continue
        done, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG])
        if done:
            _at(stream, int(stamp))
            stream.log(_place(replay, index), rerun.EncodedImage(contents=data.tobytes(), media_type="image/jpeg"))
