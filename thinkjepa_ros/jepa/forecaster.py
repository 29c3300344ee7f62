"""Streaming inference: frames and guidance in, forecasts out. This is what the predictor node talks to.

A frame is kept by stamp: its latent, where the model sees frames one by one, else its image. A forecast takes the
window of frames that it is asked for and depends on nothing else but the guidance, whatever came before. Only rounding
may differ where frames of a window were encoded together or one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..stream.frames import Gap, on_grid
from ..stream.geometry import CanonicalView
from ..values import GENERATED, Camera, Forecast, Frame, Guidance
from . import model, precision
from .compiled import Prepared, prepare
from .guidance import Payload
from .sight import sight_of
from .step import Foresee, Numbers

#: Tokens of prompt and thought that a predictor with cross-attention looks at: the last ones of a longer prompt.
GUIDE_TOKENS = (448, 64)


class ForecastError(RuntimeError):
    """No forecast can be given; the text says why."""


class GuidanceError(ValueError):
    """Guidance that does not fit this predictor; the text names the field."""


@dataclass(frozen=True)
class _Kept:
    seen: Any  # what the sight keeps of a frame
    frame_id: str
    metric: bool


class Forecaster:
    """A loaded model, the frames of the last seconds and the guidance in force. One thread owns it."""

    def __init__(
        self,
        net: model.ForecastNet,
        model_id: str,
        domain: str,
        trained: bool,
        device: str = "cpu",
        remember: int = 256,
        choice: precision.Choice | None = None,
        compile: bool = False,
    ):
        """remember: how many frames are kept; at least a window. choice: the type to compute in, float32 if None; the
        readouts stay in float32. compile: use torch.compile, from `warm_up` on.
        """
        config = net.config
        self.choice = choice or precision.Choice(torch.float32, "the default")
        self._device = model.torch_device(device)
        self._net = net.to(self._device).eval().requires_grad_(False).compute_in(self.choice.dtype)
        self._compile = compile
        self._sight = sight_of(self._net)
        self._step = Foresee(self._net)
        self._foresee = self._foresee_tokens = Prepared(self._step, "eager")  # pooled guidance or none; token form
        self._frames: OrderedDict[int, _Kept] = OrderedDict()
        self._estimates: dict[int, np.ndarray] = {}  # stamp -> joints [J, 3], of the newest window
        # stamp -> predicted latent of the tubelet that follows
        self._expected: OrderedDict[int, Tensor] = OrderedDict()
        self._guidance: Guidance | None = None
        self._payload: Payload | None = None  # of the guidance, on the device
        self._by_token = False  # whether that is the token form
        self._ready: tuple[float, tuple[Tensor, ...]] = (0.0, ())  # a weight, and the guidance prepared for it
        width, p = config.encoder.width, config.predictor
        self._no_anchor = self._nan(len(config.joint_names), 3)
        self._no_expectation = self._nan(p.pooled**2, width)
        self._no_guidance: tuple[Tensor, ...] = ()
        if p.guide_layers:
            states = torch.zeros(1, p.guide_layers, 2, p.guide_width)
            nobody = Payload.pooled(states, torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1))
            with torch.inference_mode():
                self._no_guidance = self._step.ready(nobody.to(self._device, self.choice.dtype))
        self._remember = max(remember, config.frames)
        self._views: dict[Camera | None, CanonicalView] = {}
        self.step_ns = round(config.step_s * 1e9)
        self.window = config.frames  #: frames of a window, one per grid step
        per_latent = config.frames_per_latent
        #: the frames of a window that have an estimate of the joints: those that end a latent of the context
        self.estimated = slice(self.window - p.context + per_latent - 1, None, per_latent)
        self.horizon = config.horizon
        self.joint_names = config.joint_names
        self.camera = config.camera
        self.trained = trained
        self.model_id = model_id if trained else f"{model_id} (untrained)"
        self.domain = domain
        self.thinker = ""  #: whose guidance it was trained with; "" if nobody said

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: str = "float32", compile: bool = False) -> Forecaster:
        """Load a checkpoint folder. dtype: see `precision.choose`.

        Raises CheckpointError or ValueError (device, dtype)."""
        net, manifest = model.load(path)
        choice = precision.choose(model.torch_device(device), dtype, net.config.encoder.width)
        made = cls(net, manifest.model_id, manifest.domain, manifest.trained, device, choice=choice, compile=compile)
        made.thinker = str(manifest.training.get("thinker", ""))
        return made

    def knows_thinker(self, model_id: str) -> bool:
        """Whether it was trained with guidance of this thinker, or nobody said with whose."""
        return self.thinker in ("", model_id)

    @property
    def words(self) -> str:
        """How it computes, for a log."""
        return (
            f"{self._device}, {self.choice.name} ({self.choice.reason}); "
            f"seeing {self._sight.look.words}, forecasting {self._foresee.words}"
        )

    @property
    def guidance_shape(self) -> tuple[int, int] | None:
        """(layers, width) of the pyramids this predictor takes, or None if it takes none."""
        p = self._net.config.predictor
        return (p.guide_layers, p.guide_width) if p.guide_layers else None

    @property
    def takes_tokens(self) -> bool:
        """Whether the states of single tokens, where a guidance has them, are used: by cross-attention only."""
        return self._net.predictor.cross is not None

    @property
    def guidance(self) -> Guidance | None:
        """The guidance held, whatever its age."""
        return self._guidance

    def warm_up(self) -> None:
        """Capture or compile the two halves of a step and run everything once, so that the first frame does not pay for
        it. Leaves nothing behind.
        """
        self.reset()
        self._sight.prepare(self._device, self._compile)
        self._foresee = prepare(self._step, (*self._blank(), *self._no_guidance), self._compile)
        if self.takes_tokens:
            nothing = Payload.of_tokens(*self._no_tokens(), GUIDE_TOKENS)
            with torch.inference_mode():
                signals = self._step.ready(nothing.to(self._device, self.choice.dtype))
            self._foresee_tokens = prepare(self._step, (*self._blank(), *signals), self._compile)
        size = self.camera.width
        stamps = [i * self.step_ns for i in range(self.window)]
        for stamp in stamps:
            self.observe(Frame(np.zeros((size, size, 3), np.uint8), stamp), self.camera)
        self.forecast(stamps)
        if self.guidance_shape:
            layers, width = self.guidance_shape
            said = Guidance(np.zeros((layers, 2, width), np.float32), tuple(range(layers)), stamps[-1], 1.0)
            self.guide(said)
            self.forecast(stamps)
            states, streams = self._no_tokens()
            self.guide(replace(said, states=states, streams=streams))
            self.forecast(stamps)
        self.reset()

    def _no_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """One token that says nothing, as in the token form of a guidance."""
        p = self._net.config.predictor
        return np.zeros((p.guide_layers, 1, p.guide_width), np.float32), np.zeros(1, np.uint8)

    def _blank(self) -> tuple[Tensor, ...]:
        """Inputs of `Foresee` that mean nothing, in their shapes and types, guidance apart."""
        e, p = self._net.config.encoder, self._net.config.predictor
        now = torch.zeros(e.grid**2, e.width, dtype=self.choice.dtype, device=self._device)
        pooled = now.new_zeros(p.latents, p.pooled**2, e.width)
        seen = self._no_anchor.expand(p.latents, -1, -1)
        return (now, pooled, seen, self._no_anchor, self._no_expectation)

    def observe(self, frame: Frame, camera: Camera | None = None) -> None:
        """Take in one frame; in any order. camera: its intrinsics; without them the scale is a guess and forecasts say
        so.

        Raises ValueError on an image that is not one.
        """
        rgb = frame.rgb
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
        image = self._to_device(view.apply(rgb))
        if frame.stamp_ns in self._frames:
            self._sight.forget()
        with torch.inference_mode():
            self._frames[frame.stamp_ns] = _Kept(self._sight.take(image), frame.frame_id, view.metric)
        self._frames.move_to_end(frame.stamp_ns)
        while len(self._frames) > self._remember:
            self._frames.popitem(last=False)

    def knows(self, stamp_ns: int) -> bool:
        """Whether this frame was observed and is not forgotten."""
        return stamp_ns in self._frames

    def estimate(self, stamp_ns: int) -> np.ndarray:
        """Where the model sees the joints at a frame of the newest window, float32 [J, 3], metres, in that frame's
        optical frame. Which frames have one says `estimated`.

        Raises ForecastError for another frame.
        """
        if stamp_ns not in self._estimates:
            raise ForecastError(f"the newest window has no estimate of the joints at {stamp_ns} ns")
        return self._estimates[stamp_ns]

    def check_guidance(self, guidance: Guidance) -> None:
        """Raises GuidanceError naming the field that does not fit. May be called from any thread."""
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
        if self.takes_tokens and guidance.states is not None:
            self._check_tokens(guidance.states, guidance.streams)

    def _check_tokens(self, states: np.ndarray, streams: np.ndarray | None) -> None:
        layers, width = self.guidance_shape or (0, 0)
        if states.ndim != 3 or (states.shape[0], states.shape[2]) != (layers, width) or not states.shape[1]:
            raise GuidanceError(
                f"states is {list(states.shape)}, {self.model_id} takes [{layers}, tokens, {width}] "
                "(layers, tokens, width); run the thinker it was trained with"
            )
        if streams is None or streams.shape != states.shape[1:2] or streams.dtype != np.uint8:
            raise GuidanceError(f"streams must be uint8 [{states.shape[1]}], the kind of each token of states")
        if streams.max() > GENERATED:
            raise GuidanceError(f"streams holds {streams.max()}, known are 0 to {GENERATED}")
        if not np.isfinite(states).all():
            raise GuidanceError("states holds values that are not finite")

    def guide(self, guidance: Guidance | None) -> None:
        """Be guided by this from now on, instead of what was held; None drops it.

        Cross-attention looks at the last `GUIDE_TOKENS` of its tokens where it has any; all else at its means.
        Its weight follows from the end of each window (`Guidance.weight`): it fades, expires, and does not count for
        windows that end before its stamp. Raises GuidanceError, and then keeps what was held.
        """
        if guidance is self._guidance:
            return
        if guidance is None:
            self._guidance, self._payload, self._ready = None, None, (0.0, ())
            return
        self.check_guidance(guidance)
        self._by_token = self.takes_tokens and guidance.states is not None
        if self._by_token:
            assert guidance.states is not None and guidance.streams is not None, "they were checked"
            payload = Payload.of_tokens(guidance.states, guidance.streams, GUIDE_TOKENS)
        else:
            pyramid = torch.from_numpy(np.asarray(guidance.pyramid, np.float32)[None])
            payload = Payload.pooled(pyramid, torch.tensor([guidance.present]), torch.ones(1))
        self._guidance, self._payload = guidance, payload.to(self._device, self.choice.dtype)
        self._ready = (0.0, ())

    def reset(self) -> None:
        """Drop frames, expectations and guidance, as after a clock jump."""
        self._frames.clear()
        self._estimates = {}
        self._expected.clear()
        self._sight.forget()
        self.guide(None)

    def forecast(self, stamps_ns: Sequence[int] | None = None, anchor: np.ndarray | None = None) -> Forecast:
        """Forecast from the frames at `stamps_ns` (oldest … newest = now, one per grid step, all observed); without
        them from the frames on the grid that ends at the newest one.

        anchor: observed joints now, float [J, 3] in metres in the optical frame of the newest frame; NaN joints are
        taken from the image.
        Raises ForecastError (a frame missing, output not finite), ValueError (anchor).
        """
        stamps = self._newest_window() if stamps_ns is None else list(stamps_ns)
        if len(stamps) != self.window:
            raise ForecastError(f"the window holds {len(stamps)} frames, the model needs {self.window}")
        for stamp in stamps:
            if stamp not in self._frames:
                raise ForecastError(f"the frame at {stamp} ns was not observed, or is forgotten")
            self._frames.move_to_end(stamp)  # a window in use is not evicted before frames that nobody asks for
        kept, now = [self._frames[stamp] for stamp in stamps], stamps[-1]
        weight = 0.0 if self._guidance is None else self._guidance.weight(now)
        tokens = (
            weight != 0.0 and self._guidance is not None and self.takes_tokens and self._guidance.states is not None
        )
        foresee = self._foresee_tokens if tokens else self._foresee
        with torch.inference_mode():
            flat, follows = foresee.call(
                *self._sight.window(stamps, [frame.seen for frame in kept]),
                self._no_anchor if anchor is None else self._observed(anchor),
                self._expectation(stamps),
                *self._signals(weight),
            )
            numbers = Numbers.of(flat.cpu(), self.horizon, len(self.joint_names))
        if not (numbers.positions.isfinite().all() and numbers.sigma.isfinite().all()):
            raise ForecastError(f"{self.model_id} gave values that are not finite")
        self._estimates = dict(zip(stamps[self.estimated], numbers.seen.numpy(), strict=True))
        self._expected[now] = follows
        while len(self._expected) > self._remember:
            self._expected.popitem(last=False)
        return Forecast(
            positions=numbers.positions.numpy(),
            sigma=numbers.sigma.numpy(),
            present=numbers.present.numpy(),
            joint_names=self.joint_names,
            step_s=self.step_ns * 1e-9,
            stamp_ns=now,
            frame_id=kept[-1].frame_id,
            anchored=anchor is not None,
            metric=kept[-1].metric,
            guidance_weight=weight,
            guidance_age_s=(now - self._guidance.stamp_ns) * 1e-9 if self._guidance and weight else float("nan"),
            surprise=float(numbers.surprise),
            model_id=self.model_id,
            domain=self.domain,
        )

    def _newest_window(self) -> list[int]:
        observed = sorted(self._frames)
        if not observed:
            raise ForecastError("no frame was observed yet")
        chosen = on_grid(observed, observed[-1], self.window, self.step_ns, self.step_ns // 2)
        if isinstance(chosen, Gap):
            raise ForecastError(chosen.reason)
        return [observed[index] for index in chosen]

    def _observed(self, anchor: np.ndarray) -> Tensor:
        anchor = np.asarray(anchor, np.float32)
        if anchor.shape != self._no_anchor.shape:
            raise ValueError(
                f"anchor is {list(anchor.shape)}, {self.model_id} has joints {list(self._no_anchor.shape)}"
            )
        return self._to_device(anchor.copy())

    def _signals(self, weight: float) -> tuple[Tensor, ...]:
        """Guidance for `Foresee`, prepared once while its weight stays; nothing where zero need not be computed."""
        if weight == 0.0:
            return self._no_guidance if self._foresee.captured else ()
        if weight != self._ready[0]:
            assert self._payload is not None, "without guidance its weight is 0"
            amount = torch.tensor([weight], dtype=self.choice.dtype).to(self._device)
            self._ready = (weight, self._step.ready(self._payload._replace(weight=amount)))
        return self._ready[1]

    def _expectation(self, stamps: Sequence[int]) -> Tensor:
        """What was predicted for the tubelet just completed when it began, or NaN."""
        steps = self._net.config.predictor.tubelet_steps
        if steps >= len(stamps):
            return self._no_expectation
        return self._expected.get(stamps[-1 - steps], self._no_expectation)

    def _nan(self, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"), device=self._device)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":  # pinned: the copy runs beside what the GPU still does
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
