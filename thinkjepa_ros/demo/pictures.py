"""Pictures and a short film of a run: what was predicted, with and without a thought, and what came true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from thinkjepa_ros.demo.thought import beginning_ns, main_thought
from thinkjepa_ros.evaluation.draw import assumed_camera, draw_forecast
from thinkjepa_ros.evaluation.film import Film, FilmError
from thinkjepa_ros.evaluation.runs import Run
from thinkjepa_ros.evaluation.score import Joined
from thinkjepa_ros.values import Camera

#: Frames are shown at least this wide, so that paths and words can be read.
WIDTH = 640
MAX_FILM_S = 60.0
#: Moments on a sheet.
SHEET = 6
#: What is computed for a few images of the film first is spread evenly over it.
SAMPLED = 4
_GAP = 8


class Album:
    """Draws the kept frames of a run. canonical: the model's own camera, for images without calibration.

    unguided: positions [T, J, 3] without any thought by stamp; may be filled after the moments were chosen.
    """

    def __init__(
        self,
        run: Run,
        joined: Joined | None,
        canonical: Camera | None,
        unguided: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self._run, self._joined, self._canonical = run, joined, canonical
        self._unguided = {} if unguided is None else unguided
        self._main = main_thought(run)
        rows = {int(stamp): i for i, stamp in enumerate(run.stamp_ns)}
        pairs = [(rows[int(at)], k) for k, at in enumerate(run.picture_ns) if int(at) in rows]
        #: (index of the forecast, index of the picture), in the order of time
        self.moments = pairs
        self._scored = {int(i): n for n, i in enumerate(joined.index)} if joined is not None else {}

    def frame(self, forecast: int, picture: int, width: int = WIDTH) -> np.ndarray | None:
        """One frame with everything drawn on it, uint8 RGB [H, W, 3] of this width (even); None if it is broken."""
        rgb = self._run.picture(picture)
        if rgb is None:
            return None
        camera = self._run.camera
        if camera is None or not self._run.metric:
            if self._canonical is None:
                return None
            camera = assumed_camera(self._canonical, rgb.shape[1], rgb.shape[0])
        height = round(rgb.shape[0] * width / rgb.shape[1] / 2) * 2
        shrinking = width < rgb.shape[1]
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
        row = self._scored.get(forecast)
        truth = self._joined.truth[row] if self._joined is not None and row is not None else None
        return draw_forecast(
            rgb,
            camera,
            self._run.forecast(forecast),
            truth=truth,
            baseline=self._unguided.get(int(self._run.stamp_ns[forecast])),
            text=self._thought(forecast),
            baseline_name="without any thought",
        )

    def _thought(self, forecast: int) -> str:
        """The newest thought that had arrived by then."""
        at = int(self._run.receipt_ns[forecast])
        known = [t for t in self._run.words.get("thoughts", []) if t["stamp_ns"] + t["delay_s"] * 1e9 <= at]
        if not known:
            return ""
        said = " ".join(known[-1]["text"].split())
        return f"thought{'' if known[-1]['trained'] else ' (untrained thinker)'}: {said or '(no words)'}"

    def choose(self, count: int) -> list[tuple[int, int]]:
        """Moments for a sheet: the last one before the thought that held longest and the first one it guided, then
        others spread evenly over those from then on where the hands have the longest way before them.

        Without truth: evenly over all. Without a thought: over the whole run.
        """
        first = self._around_thought() if count > 2 else []
        candidates = [m for m in self.moments if not first or m[0] > first[-1][0]]
        if self._joined is not None:
            known = [m for m in candidates if m[0] in self._scored]
            ways = np.array([self._way(forecast) for forecast, _ in known])
            if len(known) > count:
                far = ways >= np.quantile(ways, max(0.0, 0.5 - count / len(known)))
                known = [moment for moment, is_far in zip(known, far, strict=True) if is_far]
            candidates = known or candidates
        if not candidates:
            return first
        places = np.linspace(0, len(candidates) - 1, min(count - len(first), len(candidates)))
        return [*first, *(candidates[i] for i in np.unique(places.round().astype(int)))]

    def _around_thought(self) -> list[tuple[int, int]]:
        """The moment before the main thought (none if there is no forecast) and the first that it guided."""
        if self._main is None:
            return []
        begin = int(self._main.guided[0])
        before = [m for m in self.moments if m[0] < begin]
        after = [m for m in self.moments if m[0] >= begin]
        return [*before[-1:], *after[:1]] if after else []

    def _label(self, forecast: int) -> str:
        """Seconds since the beginning of the recording, and how that lies to the main thought."""
        seconds = (int(self._run.stamp_ns[forecast]) - beginning_ns(self._run)) * 1e-9
        if self._main is None:
            return f"{seconds:.1f} s"
        since = (int(self._run.stamp_ns[forecast]) - int(self._run.stamp_ns[self._main.guided[0]])) * 1e-9
        if since < 0:
            return f"{seconds:.1f} s: before the thought"
        return f"{seconds:.1f} s: the thought is here" if since < 0.3 else f"{seconds:.1f} s: {since:.1f} s later"

    def _way(self, forecast: int) -> float:
        """How far the joints really move within the horizon, metres (the mean joint at the farthest step)."""
        assert self._joined is not None
        row = self._scored[forecast]
        way = np.linalg.norm(self._joined.truth[row] - self._joined.truth_present[row], axis=-1)
        return float(np.nanmax(np.nan_to_num(way, nan=0.0).mean(-1)))

    def sheet(self, path: Path, count: int = SHEET) -> bool:
        """Write a sheet of several moments as PNG; False when there is nothing to show."""
        tiles = []
        for forecast, picture in self.choose(count):
            frame = self.frame(forecast, picture)
            if frame is not None:
                label = self._label(forecast)
                cv2.putText(frame, label, (12, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 5, cv2.LINE_AA)
                cv2.putText(frame, label, (12, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
                tiles.append(frame)
        if not tiles:
            return False
        columns = min(3, len(tiles))
        rows = -(-len(tiles) // columns)
        height, width = tiles[0].shape[:2]
        page = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 245, np.uint8)
        for i, tile in enumerate(tiles):
            y, x = divmod(i, columns)
            top, left = _GAP + y * (height + _GAP), _GAP + x * (width + _GAP)
            page[top : top + height, left : left + width] = tile[:height, :width]
        return bool(cv2.imwrite(str(path), page[..., ::-1]))

    def film_moments(self) -> Iterator[tuple[int, int]]:
        """The first round of the recording, at most a minute."""
        end = int(self._run.stamp_ns[0]) + round(MAX_FILM_S * 1e9) if len(self._run) else 0
        restarts = self._run.begins_ns[self._run.begins_ns > self._run.stamp_ns[0]] if len(self._run) else []
        if len(restarts):
            end = min(end, int(restarts[0]))
        return (moment for moment in self.moments if self._run.stamp_ns[moment[0]] < end)

    def stamps(self) -> list[list[int]]:
        """Of the images that will be shown: those of the sheet, every `SAMPLED`-th of the film, then the others."""
        film = list(self.film_moments())
        groups = (self.choose(SHEET), film[::SAMPLED], film)
        return [[int(self._run.stamp_ns[forecast]) for forecast, _ in moments] for moments in groups]

    def film(self, path: Path) -> str:
        """Write an mp4 at the speed it happened; returns why there is none, or nothing."""
        moments = list(self.film_moments())
        if len(moments) < 10:
            return "too few frames for a film"
        stamps = self._run.picture_ns[[picture for _, picture in moments]]
        rate = float(np.clip(1e9 / np.median(np.diff(stamps)), 1.0, 60.0))
        film = Film(path, rate)
        try:
            for forecast, picture in moments:
                frame = self.frame(forecast, picture)
                if frame is not None:
                    film.add(frame)
            film.close()
        except FilmError as error:
            return str(error)
        except cv2.error as error:
            return f"the film could not be written: {error}"
        finally:
            film.discard()
        return ""
