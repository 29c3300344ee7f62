"""The folder that an evaluation leaves: figures, page, film."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from thinkjepa_ros.data.survey import Settings
from thinkjepa_ros.files import write_atomically

from . import metrics, words
from .footage import pictures
from .replay import Replay
from .scenes import index_of

METRICS, PER_FRAME, PAGE, FILM, RERUN = "metrics.json", "per_frame.csv", "report.html", "forecast.mp4", "forecast.rrd"


def check_folder(out: Path) -> None:
    """Raises ValueError where nothing can be written there: better before the work than after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{out} cannot be used as a folder: {error.strerror}; take another (--out)") from None


def write(
    replay: Replay, out: Path, bags: Sequence[Path], settings: Settings, console: Console, *, report: bool = True,
    video: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write everything into `out` and print it; returns the metrics. Raises OSError.

    bags: by the number of the recording, where the pictures are. Page and film are last, so that an interruption
    leaves the figures.
    """
    found = metrics.measure_each(replay)
    measured = metrics.measure(replay, found)
    replay.save(out)
    write_atomically(out / METRICS, (json.dumps(measured, indent=1, allow_nan=False) + "\n").encode())
    metrics.write_per_frame(replay, found, out / PER_FRAME)
    for name, wanted in ((PAGE, report), (FILM, video), (RERUN, video)):
        if not wanted:  # what an earlier run left is not of these figures
            (out / name).unlink(missing_ok=True)
    words.show(measured, console)

    def frames(wanted: list[tuple[int, int]]) -> Any:
        return pictures(bags, settings, wanted)

    said = [f"{out / METRICS}", f"{out / PER_FRAME}"]
    if report:
        from . import page

        page.write(measured, replay, frames, out / PAGE)
        said.append(f"{out / PAGE}")
    if video and len(replay):
        from . import rerun, run
        from . import video as film

        with run.Bar(console).task(f"drawing {FILM}", len(index_of(replay))) as advance:
            no_film = film.write(replay, frames, out / FILM, advance)
        for name, trouble in ((FILM, no_film), (RERUN, rerun.write(replay, frames, out / RERUN))):
            if trouble:
                (out / name).unlink(missing_ok=True)
                console.print(f"no {name}: {trouble}", soft_wrap=True, highlight=False, markup=False)
            else:
                said.append(f"{out / name}")
    console.print("wrote " + ", ".join(said), soft_wrap=True, highlight=False, markup=False)
    return measured
