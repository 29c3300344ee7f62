"""ROS messages <-> the values of the core, with every dimension checked before numpy sees the bytes.

A message that contradicts itself raises MessageError, which names the field. Message setters check nothing, so every
number is cast here, and sequences are filled from array.array (the only fast way that every distribution takes).
"""

from __future__ import annotations

import array
import math
from itertools import pairwise
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseArray
from std_msgs.msg import Header

from thinkjepa_ros.msg import Forecast as ForecastMsg
from thinkjepa_ros.msg import Guidance as GuidanceMsg

from ..values import GENERATED, STREAMS, Forecast, Guidance, Subgoal

NS = 1_000_000_000
# Far above any model (Qwen3-VL-235B: 94 layers of width 4096) and far below what hurts.
_MAX_LAYERS, _MAX_WIDTH, _MAX_TOKENS = 256, 65536, 65536
_MAX_STEPS, _MAX_JOINTS = 4096, 1024
_MAX_TEXT = 1 << 20
_MAX_VALID_S = 86400.0
_SIZES = {GuidanceMsg.FLOAT16: 2, GuidanceMsg.FLOAT32: 4}
_WORDS = ("text", "thought", "instruction", "instruction_id", "model_id")
_UINT32, _UINT64 = 2**32, 2**64


class MessageError(ValueError):
    """A malformed message; the text begins with the name of the field."""


def stamp_ns(stamp: Time) -> int:
    """builtin_interfaces/Time -> ns."""
    return stamp.sec * NS + stamp.nanosec


def to_stamp(ns: int) -> Time:
    """ns -> builtin_interfaces/Time; ValueError outside what it can hold."""
    seconds, nanoseconds = divmod(int(ns), NS)
    if not -(2**31) <= seconds < 2**31:
        raise ValueError(f"{ns} ns does not fit a ROS time stamp")
    return Time(sec=seconds, nanosec=nanoseconds)


def make_header(ns: int, frame_id: str) -> Header:
    return Header(stamp=to_stamp(ns), frame_id=frame_id)


def packed(kind: str, values: np.ndarray) -> array.array:
    """A contiguous numpy array as array.array('B' or 'f'), one copy."""
    out = array.array(kind)
    out.frombytes(np.ascontiguousarray(values).tobytes())
    return out


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise MessageError(words)


def guidance_to_message(guidance: Guidance, frame_id: str = "", trained: bool = True) -> GuidanceMsg:
    """Pyramid, token states and sub-goal as float16, or float32 where a value would overflow. frame_id: of the newest
    image.

    ValueError for a pyramid that is not [L, 2, D], for token states or a sub-goal of another shape, and for values that
    are not finite.
    """
    pyramid = np.asarray(guidance.pyramid, np.float32)
    if pyramid.ndim != 3 or pyramid.shape[1] != len(STREAMS) or len(guidance.layers) != len(pyramid):
        raise ValueError(
            f"a pyramid is [layers, {len(STREAMS)}, width] with a number per layer, "
            f"not {list(pyramid.shape)} with {guidance.layers}"
        )
    states, streams = _token_form(guidance, pyramid.shape)
    message = GuidanceMsg()
    message.header = make_header(guidance.stamp_ns, frame_id)
    message.dtype = max(_dtype_for("pyramid", pyramid), _dtype_for("states", states))
    message.layers, message.streams, message.width = (int(n) for n in pyramid.shape)
    message.layer_ids = [int(n) for n in guidance.layers]
    message.present = [bool(p) for p in guidance.present]
    message.data = _packed_floats(pyramid, message.dtype)
    message.tokens = len(streams)
    message.token_streams = packed("B", streams)
    message.token_data = _packed_floats(states, message.dtype)
    for name in _WORDS:
        setattr(message, name, getattr(guidance, name))
    message.trained = bool(trained)
    message.valid_for_s = float(guidance.valid_for_s)
    message.epoch = int(guidance.epoch) % _UINT32
    message.sequence = int(guidance.sequence) % _UINT64
    if guidance.subgoal is not None:
        _pack_subgoal(guidance.subgoal, message)
    return message


def _token_form(guidance: Guidance, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """States float32 [L, S, D] and their kinds uint8 [S] of a guidance whose pyramid has this shape; S may be 0."""
    layers, _, width = shape
    if guidance.states is None and guidance.streams is None:
        return np.zeros((layers, 0, width), np.float32), np.zeros(0, np.uint8)
    states, streams = np.asarray(guidance.states, np.float32), np.asarray(guidance.streams)
    if states.ndim != 3 or (states.shape[0], states.shape[2]) != (layers, width) or streams.shape != states.shape[1:2]:
        raise ValueError(
            f"token states are [{layers}, tokens, {width}] with a kind per token, "
            f"not {list(states.shape)} with {list(streams.shape)}"
        )
    if streams.size and not 0 <= streams.min() <= streams.max() <= GENERATED:
        raise ValueError(f"kinds of token are 0 to {GENERATED}, not {streams.min()} to {streams.max()}")
    return states, streams.astype(np.uint8)


def _dtype_for(name: str, values: np.ndarray) -> int:
    """The smallest type that holds all values. ValueError where none does."""
    peak = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(peak):
        raise ValueError(f"{name} of a guidance holds values that are not finite")
    # The largest float16 is 65504; what is nearer to 65536 than to it rounds to infinity.
    return GuidanceMsg.FLOAT32 if peak >= 65520 else GuidanceMsg.FLOAT16


def _packed_floats(values: np.ndarray, dtype: int) -> array.array:
    return packed("B", values.astype("<f4" if dtype == GuidanceMsg.FLOAT32 else "<f2"))


def _pack_subgoal(subgoal: Subgoal, message: GuidanceMsg) -> None:
    latent = np.asarray(subgoal.latent, np.float32)
    if latent.ndim != 2 or not latent.size or not (math.isfinite(subgoal.horizon_s) and subgoal.horizon_s > 0):
        raise ValueError(
            f"a sub-goal is [tokens, width] at a horizon above 0 s, not {list(latent.shape)} at {subgoal.horizon_s} s"
        )
    message.subgoal_tokens, message.subgoal_width = (int(n) for n in latent.shape)
    message.subgoal_horizon_s = float(subgoal.horizon_s)
    message.subgoal_space = subgoal.space
    message.subgoal_trained = bool(subgoal.trained)
    message.subgoal_dtype = _dtype_for("sub-goal", latent)
    message.subgoal = _packed_floats(latent, message.subgoal_dtype)


def guidance_from_message(message: GuidanceMsg) -> Guidance:
    """Raises MessageError for anything whose sizes do not agree or whose values are not finite."""
    m = message
    _require(m.streams == len(STREAMS), f"streams is {m.streams}, must be {len(STREAMS)} ({', '.join(STREAMS)})")
    _require(0 < m.layers <= _MAX_LAYERS, f"layers is {m.layers}, must be 1 to {_MAX_LAYERS}")
    _require(0 < m.width <= _MAX_WIDTH, f"width is {m.width}, must be 1 to {_MAX_WIDTH}")
    _require(m.tokens <= _MAX_TOKENS, f"tokens is {m.tokens}, at most {_MAX_TOKENS} are taken")
    _require(len(m.layer_ids) == m.layers, f"layer_ids has {len(m.layer_ids)} numbers for {m.layers} layers")
    layers = tuple(int(n) for n in m.layer_ids)
    _require(all(a < b for a, b in pairwise(layers)), f"layer_ids must ascend, they are {layers}")
    _require(len(m.present) == m.streams, f"present has {len(m.present)} flags for {m.streams} streams")
    ns = stamp_ns(m.header.stamp)
    _require(ns > 0, "header.stamp is zero; it must be the stamp of the newest image that was reasoned over")
    _require(
        math.isfinite(m.valid_for_s) and 0 < m.valid_for_s <= _MAX_VALID_S,
        f"valid_for_s is {m.valid_for_s}, must be above 0 and at most a day",
    )
    for name in (*_WORDS, "subgoal_space"):
        length = len(getattr(m, name))
        _require(length <= _MAX_TEXT, f"{name} has {length} characters, at most {_MAX_TEXT} are taken")
    states, streams = _tokens_from(m)
    return Guidance(
        pyramid=_floats(m, "data", "dtype", (m.layers, m.streams, m.width)),
        layers=layers,
        stamp_ns=ns,
        valid_for_s=float(m.valid_for_s),
        present=(bool(m.present[0]), bool(m.present[1])),
        epoch=m.epoch,
        sequence=m.sequence,
        subgoal=_subgoal_from(m),
        states=states,
        streams=streams,
        **{name: getattr(m, name) for name in _WORDS},
    )


def _floats(m: GuidanceMsg, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """The field `name` as float32 of this shape; `kind` names the field with its type."""
    dtype, values = getattr(m, kind), getattr(m, name)
    _require(dtype in _SIZES, f"{kind} is {dtype}, known are 0 (float16) and 1 (float32)")
    wanted, form = math.prod(shape) * _SIZES[dtype], " x ".join(map(str, shape))
    _require(
        len(values) == wanted, f"{name} has {len(values)} bytes, {form} of {_SIZES[dtype]} bytes each need {wanted}"
    )
    floats = np.frombuffer(values, "<f2" if dtype == GuidanceMsg.FLOAT16 else "<f4").astype(np.float32)
    _require(bool(np.isfinite(floats).all()), f"{name} holds values that are not finite")
    return floats.reshape(shape)


def _tokens_from(m: GuidanceMsg) -> tuple[np.ndarray | None, np.ndarray | None]:
    _require(
        len(m.token_streams) == m.tokens, f"token_streams has {len(m.token_streams)} entries for {m.tokens} tokens"
    )
    states = _floats(m, "token_data", "dtype", (m.layers, m.tokens, m.width))
    if not m.tokens:
        return None, None
    streams = np.frombuffer(m.token_streams, np.uint8).copy()
    _require(int(streams.max()) <= GENERATED, f"token_streams holds {streams.max()}, known are 0 to {GENERATED}")
    said = streams == GENERATED
    _require(not (said[:-1] & ~said[1:]).any(), "token_streams must name the prompt's tokens before the generated ones")
    _require(
        bool(said.any()) == bool(m.present[1]),
        f"token_streams names {said.sum()} generated tokens, present says {bool(m.present[1])}",
    )
    return states, streams


def _subgoal_from(m: GuidanceMsg) -> Subgoal | None:
    if not m.subgoal_tokens:
        _require(len(m.subgoal) == 0, f"subgoal has {len(m.subgoal)} bytes, subgoal_tokens says there is none")
        return None
    for name, most in (("subgoal_tokens", _MAX_TOKENS), ("subgoal_width", _MAX_WIDTH)):
        size = getattr(m, name)
        _require(0 < size <= most, f"{name} is {size}, must be 1 to {most}")
    horizon = m.subgoal_horizon_s
    _require(
        math.isfinite(horizon) and 0 < horizon <= _MAX_VALID_S,
        f"subgoal_horizon_s is {horizon}, must be above 0 and at most a day",
    )
    latent = _floats(m, "subgoal", "subgoal_dtype", (m.subgoal_tokens, m.subgoal_width))
    return Subgoal(latent, float(horizon), m.subgoal_space, bool(m.subgoal_trained))


def forecast_to_message(
    forecast: Forecast, *, guidance_sequence: int = 0, latency_s: float = math.nan, epoch: int = 0, trained: bool = True
) -> ForecastMsg:
    """guidance_sequence: of the guidance used, 0 for none. latency_s: from the image's stamp to now."""
    steps, joints, _ = forecast.positions.shape
    message = ForecastMsg()
    message.header = make_header(forecast.stamp_ns, forecast.frame_id)
    message.step_s = float(forecast.step_s)
    message.steps, message.joints = int(steps), int(joints)
    message.joint_names = list(forecast.joint_names)
    message.positions = packed("f", forecast.positions.astype(np.float32))
    message.sigma = packed("f", forecast.sigma.astype(np.float32))
    message.present = packed("f", forecast.present.astype(np.float32))
    message.anchored = bool(forecast.anchored)
    message.metric = bool(forecast.metric)
    message.guidance_weight = float(forecast.guidance_weight)
    message.guidance_age_s = float(forecast.guidance_age_s)
    message.guidance_sequence = int(guidance_sequence)
    message.latency_s = float(latency_s)
    message.surprise = float(forecast.surprise)
    message.epoch = int(epoch) % _UINT32
    message.model_id = forecast.model_id
    message.domain = forecast.domain
    message.trained = bool(trained)
    return message


def forecast_from_message(message: ForecastMsg) -> Forecast:
    """Raises MessageError when sizes do not agree or positions are not finite."""
    m = message
    _require(0 < m.steps <= _MAX_STEPS, f"steps is {m.steps}, must be 1 to {_MAX_STEPS}")
    _require(0 < m.joints <= _MAX_JOINTS, f"joints is {m.joints}, must be 1 to {_MAX_JOINTS}")
    _require(len(m.joint_names) == m.joints, f"joint_names has {len(m.joint_names)} names for {m.joints} joints")
    _require(math.isfinite(m.step_s) and m.step_s > 0, f"step_s is {m.step_s}, must be above 0")
    return Forecast(
        positions=_array(m, "positions", (m.steps, m.joints, 3)),
        sigma=_array(m, "sigma", (m.steps, m.joints)),
        present=_array(m, "present", (m.joints, 3)),
        joint_names=tuple(m.joint_names),
        step_s=float(m.step_s),
        stamp_ns=stamp_ns(m.header.stamp),
        frame_id=m.header.frame_id,
        anchored=bool(m.anchored),
        metric=bool(m.metric),
        guidance_weight=float(m.guidance_weight),
        guidance_age_s=float(m.guidance_age_s),
        surprise=float(m.surprise),
        model_id=m.model_id,
        domain=m.domain,
    )


def _array(message: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = getattr(message, name)
    wanted = math.prod(shape)
    _require(len(values) == wanted, f"{name} has {len(values)} values, {' x '.join(map(str, shape))} need {wanted}")
    out = np.frombuffer(values, np.float32).reshape(shape).copy()
    _require(bool(np.isfinite(out).all()), f"{name} holds values that are not finite")
    return out


def joints_from_poses(message: PoseArray, joints: int, frame_id: str) -> np.ndarray:
    """Observed joints, float32 [joints, 3] in metres, NaN where unknown. frame_id: where they have to be given.

    Raises MessageError.
    """
    _require(len(message.poses) == joints, f"poses has {len(message.poses)} entries, the model has {joints} joints")
    _require(
        message.header.frame_id == frame_id,
        f"header.frame_id is {message.header.frame_id!r}, the joints must be given in the image's frame {frame_id!r}",
    )
    points = np.array([(p.position.x, p.position.y, p.position.z) for p in message.poses], np.float32)
    _require(not np.isinf(points).any(), "poses holds infinite positions; use NaN for an unknown joint")
    return points
