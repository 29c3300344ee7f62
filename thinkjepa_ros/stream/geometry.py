"""What another camera would have seen: any calibrated image as the image of one canonical pinhole.

The canonical camera shares place and axes with the source, so this is a change of intrinsics only: a point keeps its
metres in the optical frame, and a model sees the same field of view at the same scale from every camera. Pixel centres
lie on integers, as in OpenCV and ROS: pixel (0, 0) covers -0.5 .. 0.5.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from thinkjepa_ros.values import Camera

#: Coefficients that each distortion model of sensor_msgs/CameraInfo may come with, in the order of OpenCV.
DISTORTION_MODELS = {
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (0, 4, 5, 8),
    "equidistant": (0, 4),
    "fisheye": (0, 4),
}

#: Two names of one lens: the angle from the axis becomes a radius. It is no pinhole even with all coefficients zero.
FISHEYE = ("equidistant", "fisheye")

MAX_SIDE = 8192


def check_camera(camera: Camera) -> None:
    """ValueError with a sentence unless the values of `camera` can be those of a real one."""
    if not (0 < camera.width <= MAX_SIDE and 0 < camera.height <= MAX_SIDE):
        raise ValueError(
            f"camera size {camera.width}x{camera.height} is not within 1x1 and {MAX_SIDE}x{MAX_SIDE} pixels"
        )
    if not (math.isfinite(camera.fx) and math.isfinite(camera.fy) and camera.fx > 0 and camera.fy > 0):
        raise ValueError(f"focal lengths must be finite and above zero, not fx={camera.fx} fy={camera.fy}")
    if not (math.isfinite(camera.cx) and math.isfinite(camera.cy)):
        raise ValueError(f"the principal point must be finite, not cx={camera.cx} cy={camera.cy}")
    if camera.distortion_model not in DISTORTION_MODELS:
        raise ValueError(
            f"distortion model {camera.distortion_model!r} is not known; known are {', '.join(DISTORTION_MODELS)}"
        )
    allowed = DISTORTION_MODELS[camera.distortion_model]
    if len(camera.distortion) not in allowed:
        raise ValueError(
            f"distortion model {camera.distortion_model} takes {' or '.join(map(str, allowed))} coefficients, "
            f"not {len(camera.distortion)}"
        )
    if not all(math.isfinite(value) for value in camera.distortion):
        raise ValueError(f"distortion coefficients must be finite, not {camera.distortion}")


def distort(camera: Camera, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the lens of `camera` bends the rays (x, y, 1): x and y in the plane z = 1, any shape, in and out.

    NaN beyond the radius up to which the polynomial grows: farther out it folds back and would show the image twice.
    """
    if not _bends(camera):
        return x, y
    radius = np.hypot(x, y)
    limit = _fold_radius(camera, float(radius.max()))
    inside = np.where(radius <= limit, radius, np.nan)
    if camera.distortion_model in FISHEYE:
        scale = _radial(camera, inside)
        return x * scale, y * scale
    k = _brown(camera)
    r2, scale = inside**2, _radial(camera, inside)
    return (
        x * scale + 2 * k[2] * x * y + k[3] * (r2 + 2 * x**2),
        y * scale + k[2] * (r2 + 2 * y**2) + 2 * k[3] * x * y,
    )


def _bends(camera: Camera) -> bool:
    """Whether the lens does anything at all; no coefficients mean a pinhole for every model."""
    return any(camera.distortion) or (bool(camera.distortion) and camera.distortion_model in FISHEYE)


def _brown(camera: Camera) -> tuple[float, ...]:
    """k1 k2 p1 p2 k3 k4 k5 k6, missing ones zero."""
    return tuple(camera.distortion) + (0.0,) * (8 - len(camera.distortion))


def _radial(camera: Camera, r: np.ndarray) -> np.ndarray:
    """Factor by which the lens stretches the radius r (plane z = 1), without the tangential part."""
    if camera.distortion_model in FISHEYE:
        theta = np.arctan(r)
        t2 = theta**2
        k1, k2, k3, k4 = camera.distortion
        bent = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        return np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0)
    k1, k2, _, _, k3, k4, k5, k6 = _brown(camera)
    r2 = r**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))


def _fold_radius(camera: Camera, largest: float) -> float:
    """Largest radius (plane z = 1) up to which the distorted radius still grows, at most `largest`."""
    r = np.linspace(0.0, largest, 4096)
    bent = r * _radial(camera, r)
    shrinks = np.flatnonzero(~(np.diff(bent) > 0))
    return float(r[shrinks[0]]) if len(shrinks) else largest


class CanonicalView:
    """Turns images of one source camera into those of the canonical camera.

    Undistortion, crop and scaling are one cached lookup. Downscaling is anti-aliased: the needed part is halved while
    three or more source pixels fall on one, then sampled up to twice as dense as wanted and averaged. That is nearly a
    box filter, but exact below the pixel and 2-3 times as fast as INTER_AREA, whose quick path needs whole ratios. What
    the source did not see is black.
    """

    def __init__(self, source: Camera | None, canonical: Camera) -> None:
        """source None: nothing is known about the camera; then the centre crop of the canonical shape is scaled.

        ValueError with a sentence on impossible camera values, and when the canonical camera has lens distortion.
        """
        check_camera(canonical)
        if _bends(canonical):
            raise ValueError("the canonical camera must be a pinhole without lens distortion")
        if source is not None:
            check_camera(source)
        self.source = source
        self.canonical = canonical
        self._lookup: _Lookup | None = None

    @property
    def metric(self) -> bool:
        """Whether the result has the canonical intrinsics, so that sizes in it mean metres."""
        return self.source is not None

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """The canonical image, uint8 [canonical.height, canonical.width, 3], of an image uint8 [H, W, 3].

        ValueError when the array is no such image or has another size than the source camera.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise ValueError(f"expected an RGB image uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
        height, width = rgb.shape[:2]
        source = self.source or _centre_crop_camera(width, height, self.canonical)
        if (width, height) != (source.width, source.height):
            raise ValueError(
                f"the image is {width}x{height} but the camera is calibrated for {source.width}x{source.height}; "
                "publish a matching camera_info"
            )
        if self._lookup is None or self._lookup.source != source:
            self._lookup = _Lookup(source, self.canonical)
        return self._lookup.apply(rgb)


def _centre_crop_camera(width: int, height: int, canonical: Camera) -> Camera:
    """The camera whose largest centred crop of the canonical shape would be the canonical image."""
    scale = min(width / canonical.width, height / canonical.height)
    return Camera(
        width,
        height,
        canonical.fx * scale,
        canonical.fy * scale,
        (width - 1) / 2 + (canonical.cx - (canonical.width - 1) / 2) * scale,
        (height - 1) / 2 + (canonical.cy - (canonical.height - 1) / 2) * scale,
    )


def _source_pixels(source: Camera, canonical: Camera, dense: int) -> tuple[np.ndarray, np.ndarray]:
    """Source column and row, float64 [H * dense, W * dense], of a grid `dense` times as fine as canonical pixels."""
    fine = [(np.arange(n * dense) + 0.5) / dense - 0.5 for n in (canonical.width, canonical.height)]
    x, y = np.meshgrid((fine[0] - canonical.cx) / canonical.fx, (fine[1] - canonical.cy) / canonical.fy)
    x, y = distort(source, x, y)
    return x * source.fx + source.cx, y * source.fy + source.cy


class _Lookup:
    """The cached maps from one source size and camera to the canonical image."""

    def __init__(self, source: Camera, canonical: Camera) -> None:
        self.source = source
        self.size = (canonical.width, canonical.height)
        scale = _pixels_per_pixel(source, canonical)
        self.halvings = 0
        while scale >= 3 and min(source.width, source.height) >> (self.halvings + 1) >= 2:
            scale /= 2
            self.halvings += 1
        self.dense = min(max(math.ceil(scale / 1.5), 1), 2)
        u, v = _source_pixels(source, canonical, self.dense)
        with np.errstate(invalid="ignore"):
            seen = (u >= -0.5) & (u <= source.width - 0.5) & (v >= -0.5) & (v <= source.height - 0.5)
        self.columns, u = _part(u, seen, source.width, 1 << self.halvings)
        self.rows, v = _part(v, seen, source.height, 1 << self.halvings)
        self.maps = cv2.convertMaps(u, v, cv2.CV_16SC2)
        self.identical = not _bends(source) and _pinhole(source) == _pinhole(canonical)

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        if self.identical:
            return rgb.copy()
        part = rgb[self.rows, self.columns]
        for _ in range(self.halvings):
            part = cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
        image = cv2.remap(part, *self.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0))
        return image if self.dense == 1 else cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)


def _pinhole(camera: Camera) -> tuple[float, ...]:
    return camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy


def _part(place: np.ndarray, seen: np.ndarray, size: int, block: int) -> tuple[slice, np.ndarray]:
    """The pixels of one axis that the view needs, in whole blocks, and `place` counted in blocks of that part.

    Where nothing was seen the place lies outside (black); within half a pixel of the rim it is held on the last centre,
    so that the rim does not darken.
    """
    blocks = size // block
    if seen.any():
        first = min(max(math.floor(float(place[seen].min())) // block - 1, 0), blocks - 1)
        last = min(max(math.ceil(float(place[seen].max())) // block + 1, first), blocks - 1)
    else:
        first = last = 0
    # the centre of a block of b pixels from pixel 0 on is at (b - 1) / 2
    inside = np.clip((place - (block - 1) / 2) / block - first, 0, last - first)
    return slice(first * block, (last + 1) * block), np.where(seen, inside, -2.0).astype(np.float32)


def _pixels_per_pixel(source: Camera, canonical: Camera) -> float:
    """Source pixels per canonical pixel along the axis that is reduced more."""
    u, v = _source_pixels(source, canonical, 1)
    steps = [np.abs(np.diff(u, axis=1)), np.abs(np.diff(v, axis=0))]
    finite = [step[np.isfinite(step)] for step in steps if np.isfinite(step).any()]
    # the median, because the scale of a fisheye changes over the image and a single wild value must not blur all of it
    return max((float(np.median(step)) for step in finite), default=1.0)
