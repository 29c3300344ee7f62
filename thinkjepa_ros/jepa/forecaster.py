"""Streaming inference: frames in one by one, forecasts out. This is what the predictor node talks to.

Every frame is encoded once, alone, when it is first needed; its latent and its pose estimate are kept by stamp. A
forecast then runs
only the predictor over the latents of its window, so that it costs the same at any camera rate and depends on nothing
but the window.
Batches are never formed: the same window gives the same bits whatever came before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..stream.geometry import CanonicalView
from ..values import Camera, Forecast, Guidance
from . import model
from .guidance import Payload


class ForecastError(RuntimeError):
    """No forecast can be given; the text says why."""


class GuidanceError(ValueError):
    """Guidance that does not fit this predictor; the text names the field."""


@dataclass(frozen=True)
class _Seen:
    full: torch.Tensor  # [n, D]
    pooled: torch.Tensor  # [p^2, D]
    pose: torch.Tensor  # [J, 3]
    frame_id: str
    metric: bool


class Forecaster:
    """A loaded model and the latents of recent frames. One thread owns it."""

    def __init__(
        self,
        net: model.ForecastNet,
        model_id: str,
        domain: str,
        trained: bool,
        device: str = "cpu",
        remember: int = 256,
    ):
        """remember: how many frames' latents are kept; at least the context."""
        config = net.config
        self._device = model.torch_device(device)
        self._net = net.to(self._device).eval().requires_grad_(False)
        self._seen: OrderedDict[int, _Seen] = OrderedDict()
        self._expected: OrderedDict[int, torch.Tensor] = (
            OrderedDict()
        )  # stamp -> predicted latent of the tubelet that follows
        self._remember = max(remember, config.predictor.context)
        self._views: dict[Camera | None, CanonicalView] = {}
        self.step_ns = round(config.step_s * 1e9)
        self.context = config.predictor.context
        self.horizon = config.horizon
        self.joint_names = config.joint_names
        self.camera = config.camera
        self.trained = trained
        self.model_id = model_id if trained else f"{model_id} (untrained)"
        self.domain = domain

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Forecaster:
        """Load a checkpoint folder. Raises CheckpointError or ValueError (device)."""
        net, manifest = model.load(path)
        return cls(net, manifest.model_id, manifest.domain, manifest.trained, device)

    @property
    def guidance_shape(self) -> tuple[int, int] | None:
        """(layers, width) of the pyramids this predictor takes, or None if it takes none."""
        p = self._net.config.predictor
        return (p.guide_layers, p.guide_width) if p.guide_layers else None

    def warm_up(self) -> None:
        """Run everything once, so that the first frame does not pay for lazy initialisation. Leaves nothing behind."""
        size = self.camera.width
        stamps = [i * self.step_ns for i in range(self.context)]
        for stamp in stamps:
            self.observe(stamp, np.zeros((size, size, 3), np.uint8), self.camera)
        guidance = None
        if self.guidance_shape:
            layers, width = self.guidance_shape
            guidance = Guidance(np.zeros((layers, 2, width), np.float32), tuple(range(layers)), stamps[-1], 1.0)
        self.forecast(stamps, guidance, 1.0)
        self.forget()

    def check_guidance(self, guidance: Guidance) -> None:
        """Raises GuidanceError naming the field that does not fit."""
        if self.guidance_shape is None:
            raise GuidanceError(
                f"{self.model_id} was built without guidance; use a guided checkpoint or switch the thinker off"
            )
        layers, width = self.guidance_shape
        if guidance.pyramid.shape != (layers, 2, width):
            raise GuidanceError(
                f"pyramid is {list(guidance.pyramid.shape)}, {self.model_id} takes "
                f"{[layers, 2, width]} (layers, streams, width); run the thinker it was trained with"
            )
        if not np.isfinite(guidance.pyramid).all():
            raise GuidanceError("pyramid holds values that are not finite")

    def observe(self, stamp_ns: int, rgb: np.ndarray, camera: Camera | None = None, frame_id: str = "") -> None:
        """Encode one frame. rgb uint8 [H, W, 3]. camera: its intrinsics; without them the scale is a guess and
        forecasts say so.

        Raises ValueError on an image that is not one.
        """
        if not (
            isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size
        ):
            shape = getattr(rgb, "shape", None)
            raise ValueError(
                f"the image must be uint8 [H, W, 3], it is {getattr(rgb, 'dtype', type(rgb).__name__)} {shape}"
            )
        view = self._views.get(camera)
        if view is None:
            if len(self._views) > 8:  # a stream of ever-changing calibrations must not fill the memory
                self._views.clear()
            view = self._views[camera] = CanonicalView(camera, self.camera)
        image = torch.from_numpy(np.ascontiguousarray(view.apply(rgb)))[None].to(self._device)
        with torch.inference_mode():
            full = self._net.encoder.frames(image)
            self._seen[stamp_ns] = _Seen(
                full[0], self._net.predictor.pool(full)[0], self._net.pose(full)[0], frame_id, view.metric
            )
        self._seen.move_to_end(stamp_ns)
        while len(self._seen) > self._remember:
            self._seen.popitem(last=False)

    def knows(self, stamp_ns: int) -> bool:
        """Whether the latent of this frame is at hand."""
        return stamp_ns in self._seen

    def estimate(self, stamp_ns: int) -> np.ndarray:
        """Where the model sees the joints at an observed frame: float32 [J, 3], metres, in that frame's optical
        frame.
        """
        return np.asarray(self._seen[stamp_ns].pose.cpu().numpy())

    def forget(self) -> None:
        """Drop every latent, as after a clock jump."""
        self._seen.clear()
        self._expected.clear()

    def forecast(
        self,
        stamps_ns: Sequence[int],
        guidance: Guidance | None = None,
        weight: float = 0.0,
        anchor: np.ndarray | None = None,
        guidance_age_s: float = float("nan"),
    ) -> Forecast:
        """Forecast from the frames at `stamps_ns` (oldest … newest = now, one per grid step, all observed).

        weight: 0 … 1, how much of the guidance counts; at 0 the result is bit-identical to no guidance.
        anchor: observed joints now, float [J, 3] in metres in the optical frame of the newest frame; NaN joints are
        taken from the image.
        Raises ForecastError (a frame missing, output not finite), GuidanceError, ValueError (anchor).
        """
        if len(stamps_ns) != self.context:
            raise ForecastError(f"the window holds {len(stamps_ns)} frames, the model needs {self.context}")
        for stamp in stamps_ns:
            if stamp not in self._seen:
                raise ForecastError(f"the frame at {stamp} ns was not observed, or is forgotten")
        if not 0.0 <= weight <= 1.0:
            raise ForecastError(f"guidance weight is {weight}, must lie in 0 … 1")
        if weight == 0.0:
            guidance = None  # from here on None means unguided
        if guidance is not None:
            self.check_guidance(guidance)
        seen = [self._seen[s] for s in stamps_ns]
        now, newest = stamps_ns[-1], seen[-1]
        for stamp in stamps_ns:  # a window in use is not evicted before frames that nobody asks for
            self._seen.move_to_end(stamp)
        poses = torch.stack([s.pose for s in seen])
        if anchor is not None:
            # what the estimate is off by now, it is taken to be off by all along
            poses = poses + (self._anchored(anchor, newest.pose) - newest.pose)
        past = torch.stack([s.pooled for s in seen[:-1]])
        with torch.inference_mode():
            payload = None
            if guidance is not None:
                payload = Payload.pooled(
                    torch.from_numpy(np.asarray(guidance.pyramid, np.float32)).to(self._device)[None],
                    torch.tensor([guidance.present], device=self._device),
                    torch.tensor([weight], dtype=torch.float32, device=self._device),
                )
            displacement, log_sigma, future = self._net.forecast(past[None], newest.full[None], poses[None], payload)
            surprise = self._surprise(stamps_ns, seen)
            positions = (poses[-1] + displacement[0]).cpu().numpy()
            sigma = log_sigma[0].exp().cpu().numpy()
        if not (np.isfinite(positions).all() and np.isfinite(sigma).all()):
            raise ForecastError(f"{self.model_id} gave values that are not finite")
        self._expected[now] = future[0, 0]
        while len(self._expected) > self._remember:
            self._expected.popitem(last=False)
        return Forecast(
            positions=positions,
            sigma=sigma,
            present=poses[-1].cpu().numpy(),
            joint_names=self.joint_names,
            step_s=self.step_ns * 1e-9,
            stamp_ns=now,
            frame_id=newest.frame_id,
            anchored=anchor is not None,
            metric=newest.metric,
            guidance_weight=float(weight) if guidance is not None else 0.0,
            guidance_age_s=float(guidance_age_s) if guidance is not None else float("nan"),
            surprise=surprise,
            model_id=self.model_id,
            domain=self.domain,
        )

    def _anchored(self, anchor: np.ndarray, estimate: torch.Tensor) -> torch.Tensor:
        anchor = np.asarray(anchor, np.float32)
        if anchor.shape != tuple(estimate.shape):
            raise ValueError(f"anchor is {list(anchor.shape)}, {self.model_id} has joints {list(estimate.shape)}")
        observed = torch.from_numpy(anchor.copy()).to(self._device)
        return torch.where(observed.isfinite().all(-1, keepdim=True), observed, estimate)

    def _surprise(self, stamps_ns: Sequence[int], seen: Sequence[_Seen]) -> float:
        """Mean L1 between the tubelet just completed and what was predicted for it when it began; NaN without such a
        prediction.
        """
        steps = self._net.config.predictor.tubelet_steps
        if steps >= len(stamps_ns):
            return float("nan")
        expected = self._expected.get(stamps_ns[-1 - steps])
        if expected is None:
            return float("nan")
        came = torch.stack([s.pooled for s in seen[-steps:]]).mean(0)
        return float((came - expected).abs().mean())
