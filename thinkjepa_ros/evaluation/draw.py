"""Draws a forecast onto the camera image: the hands now, and where they will be.

Predicted paths are orange, true ones green, those of a baseline thin and grey; they fade with the time ahead, and hands
stand at their ends. Whatever a viewer must know to judge the picture (untrained model, trained on simulation, no camera
calibration) is stamped on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thinkjepa_ros.values import Camera, Forecast

PREDICTED = (255, 140, 0)
TRUE = (60, 220, 90)
BASELINE = (196, 200, 210)
NOW = (255, 255, 255)
SHADE = (16, 18, 24)
WARN = (255, 196, 0)
ALARM = (235, 60, 50)

#: Bones of one hand, as pairs of joint names without the side.
BONES = (
    *(("wrist", f"{finger}_base") for finger in ("thumb", "index", "middle", "ring", "pinky")),
    *((f"{finger}_base", f"{finger}_tip") for finger in ("thumb", "index", "middle", "ring", "pinky")),
    ("index_base", "middle_base"),
    ("middle_base", "ring_base"),
    ("ring_base", "pinky_base"),
)
_SHIFT = 4  # OpenCV draws at 1/16 pixel


def bones(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of joint indices to connect; none where the names are not those of our hands."""
    index = {name: i for i, name in enumerate(names)}
    return [
        (index[f"{side}_{a}"], index[f"{side}_{b}"])
        for side in ("right", "left")
        for a, b in BONES
        if f"{side}_{a}" in index and f"{side}_{b}" in index
    ]


def path_joints(names: Sequence[str]) -> list[int]:
    """The joints whose paths are drawn: wrists and finger tips of our hands, of any other set all."""
    if not bones(names):
        return list(range(len(names)))
    return [i for i, name in enumerate(names) if name.endswith(("_wrist", "_tip"))]


def assumed_camera(canonical: Camera, width: int, height: int) -> Camera:
    """The camera an uncalibrated image of this size is taken for: the canonical one, over the central square."""
    side = min(width, height)
    scale = side / canonical.width
    return Camera(
        width,
        height,
        canonical.fx * scale,
        canonical.fy * scale,
        canonical.cx * scale + (width - side) / 2,
        canonical.cy * scale + (height - side) / 2,
    )


def draw_forecast(
    rgb: np.ndarray,
    camera: Camera,
    forecast: Forecast,
    truth: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    text: str = "",
    baseline_name: str = "baseline",
) -> np.ndarray:
    """A copy of `rgb` (uint8 [H, W, 3]) with the forecast drawn on it.

    camera: intrinsics of this image (lens distortion is not drawn); for other image sizes they are scaled.
    truth, baseline: [T, J, 3] in metres in the forecast's frame, NaN where unknown. text: a caption, e.g. the thought.
    """
    canvas = Canvas(np.array(rgb[..., :3], np.uint8, order="C"), camera)
    joints, pairs = path_joints(forecast.joint_names), bones(forecast.joint_names)
    if baseline is not None:
        canvas.paths(_with_present(forecast.present, baseline)[:, joints], BASELINE, canvas.line * 0.55)
        canvas.end(baseline[-1], pairs, BASELINE)
    if truth is not None:
        canvas.paths(_with_present(forecast.present, truth, start=False)[:, joints], TRUE, canvas.line)
        canvas.end(truth[-1], pairs, TRUE)
    canvas.paths(_with_present(forecast.present, forecast.positions)[:, joints], PREDICTED, canvas.line)
    canvas.skeleton(forecast.present, pairs)
    canvas.end(forecast.positions[-1], pairs, PREDICTED)

    seconds = forecast.step_s * len(forecast.positions)
    entries = [("now", NOW), (f"predicted, {seconds:.1f} s ahead", PREDICTED)]
    entries += [("true", TRUE)] if truth is not None else []
    entries += [(baseline_name, BASELINE)] if baseline is not None else []
    canvas.legend(entries, [*_caption(text, canvas), _guidance(forecast)])
    top = canvas.margin
    for words, colour in warnings(forecast):
        top = canvas.pill(words, colour, top)
    return canvas.rgb


def _caption(text: str, canvas: Canvas) -> list[str]:
    """The text in at most two lines, one on a small image; what is too long ends in dots."""
    allowed = 2 if canvas.width >= 480 else 1
    lines = _wrap(text, canvas.font, canvas.width - 2 * canvas.margin - canvas.font)
    if len(lines) > allowed:
        lines = [*lines[: allowed - 1], lines[allowed - 1] + " ..."]
    return lines


def warnings(forecast: Forecast) -> list[tuple[str, tuple[int, int, int]]]:
    """What must be said wherever this forecast is shown, with the colour to say it in."""
    words = []
    if "(untrained)" in forecast.model_id:
        words.append(("untrained", ALARM))
    elif forecast.domain:
        words.append((f"trained on {forecast.domain}", WARN))
    if not forecast.metric:
        words.append(("camera not calibrated: scale assumed", WARN))
    return words


def _guidance(forecast: Forecast) -> str:
    if not forecast.guidance_weight > 0:
        return "unguided"
    return f"guided {forecast.guidance_weight:.0%} by a thought {forecast.guidance_age_s:.1f} s old"


def _with_present(present: np.ndarray, path: np.ndarray, start: bool = True) -> np.ndarray:
    """[T + 1, J, 3]: the path from the present on; the truth does not begin at the model's idea of the present."""
    first = np.asarray(present)[None] if start else np.full((1, *np.shape(path)[1:]), np.nan)
    return np.concatenate([first, path])


class Canvas:
    """An image being drawn on; all sizes follow its width."""

    def __init__(self, rgb: np.ndarray, camera: Camera) -> None:
        self.rgb = rgb
        self.height, self.width = rgb.shape[:2]
        scale = np.clip(min(self.width, self.height * 4 / 3) / 640, 0.35, 4.0)
        self.line = 2.2 * scale
        self.font = max(10, round(15 * scale))
        self.margin = max(4, round(10 * scale))
        self._camera = camera
        self._stretch = np.array([self.width / camera.width, self.height / camera.height])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels of points [..., 3]; NaN behind the camera and far outside of the image."""
        pixels = (self._camera.project(points) + 0.5) * self._stretch - 0.5
        far = np.abs(pixels) > 8 * max(self.width, self.height)
        return np.where(far.any(-1, keepdims=True), np.nan, pixels)

    def paths(self, points: np.ndarray, colour: tuple[int, int, int], thickness: float) -> None:
        """Fading paths [T, J, 3], with a dot at their end."""
        pixels = self.project(points)
        steps = len(points)
        ink, halo = np.zeros((2, self.height, self.width), np.uint8)
        known = np.isfinite(pixels).all(-1)
        fixed = np.round(np.nan_to_num(pixels) * (1 << _SHIFT)).astype(np.int32)
        for k in range(steps - 1, 0, -1):  # from the far end, so that what is near in time lies on top
            alpha = 255 * (1.0 - 0.8 * (k / steps))
            joints = np.flatnonzero(known[k - 1] & known[k])
            segments = list(np.stack([fixed[k - 1, joints], fixed[k, joints]], 1))
            for canvas, value, wide in ((halo, 0.5 * alpha, thickness * 2), (ink, alpha, thickness)):
                cv2.polylines(canvas, segments, False, value, max(1, round(wide)), cv2.LINE_AA, _SHIFT)
        for joint in range(points.shape[1]):
            at = np.flatnonzero(known[:, joint])
            if len(at) > 1:
                _dot(halo, pixels[at[-1], joint], 130, thickness * 2.0)
                _dot(ink, pixels[at[-1], joint], 235, thickness * 1.5)
        self._blend(halo, SHADE)
        self._blend(ink, colour)

    def end(self, points: np.ndarray, pairs: Sequence[tuple[int, int]], colour: tuple[int, int, int]) -> None:
        """The bones of the joints [J, 3] at the end of their paths, in outline."""
        pixels = self.project(np.asarray(points, np.float64))
        known = np.isfinite(pixels).all(-1)
        ink, halo = np.zeros((2, self.height, self.width), np.uint8)
        for a, b in pairs:
            if known[a] and known[b]:
                _line(halo, pixels[a], pixels[b], 70, self.line * 1.2)
                _line(ink, pixels[a], pixels[b], 190, self.line * 0.6)
        self._blend(halo, SHADE)
        self._blend(ink, colour)

    def skeleton(self, present: np.ndarray, pairs: Sequence[tuple[int, int]]) -> None:
        """The joints [J, 3] now."""
        pixels = self.project(np.asarray(present, np.float64))
        known = np.isfinite(pixels).all(-1)
        ink, halo = np.zeros((2, self.height, self.width), np.uint8)
        for a, b in pairs:
            if known[a] and known[b]:
                _line(halo, pixels[a], pixels[b], 130, self.line * 1.8)
                _line(ink, pixels[a], pixels[b], 215, self.line * 0.7)
        for joint in np.flatnonzero(known):
            _dot(halo, pixels[joint], 170, self.line * 1.8)
            _dot(ink, pixels[joint], 255, self.line * 1.3)
        self._blend(halo, SHADE)
        self._blend(ink, NOW)

    def legend(self, entries: Sequence[tuple[str, tuple[int, int, int]]], lines: Sequence[str]) -> None:
        """A dark band at the lower edge: coloured entries in a row (more where they do not fit), then lines of text."""
        pitch, gap = round(self.font * 1.35), round(self.font * 0.9)
        swatch = round(self.font * 1.4)
        rows: list[list[tuple[str, tuple[int, int, int]]]] = [[]]
        used = 0
        for entry in entries:
            needed = swatch + self.font // 2 + _text(entry[0], self.font).shape[1] + gap
            if rows[-1] and used + needed > self.width - 2 * self.margin:
                rows.append([])
                used = 0
            rows[-1].append(entry)
            used += needed
        lines = [line for line in lines if line]
        top = max(0, self.height - (len(rows) + len(lines)) * pitch - self.margin)
        band = self.rgb[top:]
        band[:] = (band * 0.32 + np.array(SHADE) * 0.68).astype(np.uint8)
        y = top + self.margin // 2
        for row in rows:
            x = self.margin
            for words, colour in row:
                middle = y + pitch / 2
                _line(self.rgb, (x, middle), (x + swatch, middle), colour, max(2.0, self.line * 1.2))
                x += swatch + self.font // 2
                x += self._write(words, x, y, NOW) + gap
            y += pitch
        for line in lines:
            self._write(line, self.margin, y, (214, 218, 226))
            y += pitch

    def pill(self, words: str, colour: tuple[int, int, int], top: int) -> int:
        """A stamp at the upper right edge; returns where the next one may begin."""
        size = self.font
        mask = _text(words, size)
        pad = max(3, size // 2)
        tall = round(size * 1.6)
        left = max(0, self.width - self.margin - mask.shape[1] - 2 * pad)
        radius, right = tall / 2, left + mask.shape[1] + 2 * pad
        middle = top + radius
        _line(self.rgb, (left + radius, middle), (max(left + radius, right - radius), middle), colour, tall)
        self._write(words, left + pad, top + (tall - round(size * 1.35)) // 2, SHADE if colour != ALARM else NOW)
        return top + tall + self.margin // 2

    def banner(self, words: str, colour: tuple[int, int, int]) -> None:
        """Words across the upper part, as large as they fit."""
        size = 3 * self.font
        while (mask := _text(words, size)).shape[1] > self.width - 4 * self.margin and size > self.font:
            size -= 2
        tall, wide = mask.shape
        top, left = round(0.3 * self.height), (self.width - wide) // 2
        band = self.rgb[top - self.margin // 2 : top + tall + self.margin // 2]
        band[:] = (band * 0.45 + np.array(SHADE) * 0.55).astype(np.uint8)
        part = self.rgb[top : top + tall, left : left + wide]
        ink = mask[: part.shape[0], : part.shape[1], None].astype(np.float32) / 255
        part[:] = (part * (1 - ink) + np.array(colour, np.float32) * ink).astype(np.uint8)

    def _write(self, words: str, x: int, y: int, colour: tuple[int, int, int]) -> int:
        """Write at the upper left corner (x, y), cut off at the image's edge; returns the width."""
        mask = _text(words, self.font)
        part = self.rgb[max(y, 0) : y + mask.shape[0], x : x + mask.shape[1]]
        ink = mask[: part.shape[0], : part.shape[1], None].astype(np.float32) / 255
        part[:] = (part * (1 - ink) + np.array(colour, np.float32) * ink).astype(np.uint8)
        return mask.shape[1]

    def _blend(self, ink: np.ndarray, colour: tuple[int, int, int]) -> None:
        """Lay `colour` over the image where there is ink (uint8 [H, W], 255 = opaque)."""
        inked = np.flatnonzero(ink)
        pixels = self.rgb.reshape(-1, 3)  # a view: the image is contiguous
        alpha = ink.reshape(-1)[inked, None].astype(np.uint16)
        pixels[inked] = (pixels[inked] * (255 - alpha) + np.array(colour, np.uint16) * alpha) // 255


def _at(point: Sequence[float] | np.ndarray) -> tuple[int, int]:
    return round(float(point[0]) * (1 << _SHIFT)), round(float(point[1]) * (1 << _SHIFT))


def _line(
    image: np.ndarray, a: Sequence[float], b: Sequence[float], value: float | tuple[int, int, int], thickness: float
) -> None:
    cv2.line(image, _at(a), _at(b), value, max(1, round(thickness)), cv2.LINE_AA, _SHIFT)


def _dot(ink: np.ndarray, centre: np.ndarray, value: float, radius: float) -> None:
    cv2.circle(ink, _at(centre), max(1 << _SHIFT, round(radius * (1 << _SHIFT))), float(value), -1, cv2.LINE_AA, _SHIFT)


@lru_cache(maxsize=512)
def _text(words: str, size: int) -> np.ndarray:
    """The words as a mask uint8 [~1.35 size, w], 255 = ink. The font knows Latin letters only."""
    words = words.encode("latin-1", "replace").decode("latin-1")
    height = round(size * 1.35)
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has no scalable font of its own
        scale = size / 30
        (width, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        mask = np.zeros((height, width + 2), np.uint8)
        cv2.putText(mask, words, (0, size), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, max(1, size // 12), cv2.LINE_AA)
        return mask
    image = Image.new("L", (int(np.ceil(font.getlength(words))) + 2, height))
    ImageDraw.Draw(image).text((0, round(size * 0.08)), words, fill=255, font=font)
    return np.asarray(image)


def _wrap(words: str, size: int, width: int) -> list[str]:
    """Lines that fit into `width` pixels."""
    lines: list[str] = []
    for word in " ".join(words.split()).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text(longer, size).shape[1] <= width:
            lines[-1] = longer
        elif word:
            lines.append(word)
    return lines
