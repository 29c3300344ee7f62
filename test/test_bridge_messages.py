"""Values to messages and back; whatever a message claims, a wrong one is refused in words and never crashes."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from geometry_msgs.msg import Point, Pose, PoseArray
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message

from thinkjepa_ros.bridge import messages
from thinkjepa_ros.bridge.messages import MessageError
from thinkjepa_ros.msg import Forecast as ForecastMsg
from thinkjepa_ros.msg import Guidance as GuidanceMsg
from thinkjepa_ros.values import Forecast, Guidance

NS = 1_000_000_000


def a_guidance(peak: float = 3.0) -> Guidance:
    pyramid = np.random.default_rng(0).normal(0, 1, (3, 2, 8)).astype(np.float32)
    pyramid[0, 0, 0] = peak
    return Guidance(
        pyramid, (0, 4, 9), 5 * NS + 7, 2.5, present=(True, False), text="rot nach links → ✓", instruction="do",
        instruction_id="ab12",
        epoch=2**31 + 5, sequence=2**40, model_id="m (untrained)",
    )  # fmt: skip


def a_forecast() -> Forecast:
    rng = np.random.default_rng(1)
    return Forecast(
        rng.normal(0, 1, (4, 2, 3)).astype(np.float32), np.full((4, 2), 0.1, np.float32), np.ones((2, 3), np.float32),
        ("a", "b"), 0.1,
        3 * NS, "camera", True, False, 0.5, 1.25, 0.75, "m", "simulation",
    )  # fmt: skip


def through_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


@pytest.mark.parametrize(
    ("peak", "dtype"), [(3.0, GuidanceMsg.FLOAT16), (-65504.0, GuidanceMsg.FLOAT16), (70000.0, GuidanceMsg.FLOAT32)]
)
def test_guidance_survives_the_wire(peak, dtype):
    guidance = a_guidance(peak)
    message = through_the_wire(messages.guidance_to_message(guidance, "camera", trained=False))
    assert message.dtype == dtype and message.header.frame_id == "camera" and not message.trained
    back = messages.guidance_from_message(message)
    kept = guidance.pyramid if dtype == GuidanceMsg.FLOAT32 else guidance.pyramid.astype(np.float16).astype(np.float32)
    assert np.array_equal(back.pyramid, kept)
    for name in (
        "layers",
        "stamp_ns",
        "valid_for_s",
        "present",
        "text",
        "instruction",
        "instruction_id",
        "epoch",
        "sequence",
        "model_id",
    ):
        assert getattr(back, name) == getattr(guidance, name), name


def test_a_pyramid_of_another_shape_is_not_sent():
    with pytest.raises(ValueError, match="pyramid"):
        messages.guidance_to_message(Guidance(np.zeros((3, 8), np.float32), (0, 1, 2), NS, 1.0))


def test_forecast_survives_the_wire():
    forecast = a_forecast()
    message = through_the_wire(
        messages.forecast_to_message(forecast, guidance_sequence=9, latency_s=0.01, epoch=4, trained=True)
    )
    assert (message.guidance_sequence, message.epoch, message.trained) == (9, 4, True)
    assert message.latency_s == pytest.approx(0.01)
    back = messages.forecast_from_message(message)
    for name in ("positions", "sigma", "present"):
        assert np.array_equal(getattr(back, name), getattr(forecast, name))
    for name in (
        "joint_names",
        "stamp_ns",
        "frame_id",
        "anchored",
        "metric",
        "guidance_weight",
        "guidance_age_s",
        "surprise",
        "model_id",
        "domain",
    ):
        assert getattr(back, name) == getattr(forecast, name), name
    assert back.step_s == pytest.approx(0.1)


def change(message, **fields):
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("dtype", {"dtype": 2}),
        ("tokens", {"tokens": 2**32 - 1}),
        ("token_streams", {"tokens": 4}),
        ("streams", {"streams": 3}),
        ("layers", {"layers": 0}),
        ("layers", {"layers": 2**32 - 1}),
        ("width", {"width": 0}),
        ("width", {"width": 2**32 - 1}),
        ("data", {"width": 9}),
        ("data", {"data": array.array("B")}),
        ("data", {"dtype": 1}),
        ("layer_ids", {"layer_ids": [1, 2]}),
        ("layer_ids", {"layer_ids": [4, 4, 9]}),
        ("present", {"present": [True]}),
        ("valid_for_s", {"valid_for_s": 0.0}),
        ("valid_for_s", {"valid_for_s": math.nan}),
        ("valid_for_s", {"valid_for_s": math.inf}),
        ("text", {"text": "x" * (1 << 20) + "x"}),
        ("data", {"data": array.array("B", b"\xff\x7f" * 48)}),
    ],
)
def test_a_guidance_that_contradicts_itself_names_the_field(field, fields):
    with pytest.raises(MessageError, match=rf"^{field} "):
        messages.guidance_from_message(change(messages.guidance_to_message(a_guidance()), **fields))


def test_a_guidance_without_stamp_is_refused():
    message = messages.guidance_to_message(a_guidance())
    message.header.stamp.sec, message.header.stamp.nanosec = 0, 0
    with pytest.raises(MessageError, match=r"^header\.stamp"):
        messages.guidance_from_message(message)


_UINT32 = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))


@settings(max_examples=1500, deadline=None)
@given(
    dtype=st.sampled_from([0, 0, 0, 1, 2, 255]),
    layers=_UINT32,
    streams=st.sampled_from([2, 2, 2, 0, 1, 2**32 - 1]),
    tokens=st.sampled_from([0, 0, 0, 1, 2**32 - 1]),
    width=_UINT32,
    layer_ids=st.lists(_UINT32, max_size=6),
    present=st.lists(st.booleans(), max_size=4),
    data=st.binary(max_size=400),
    valid_for_s=st.one_of(st.floats(-1e30, 1e30), st.sampled_from([math.nan, math.inf, -math.inf])),
    sec=st.integers(-(2**31), 2**31 - 1),
)
def test_random_guidance_is_refused_in_words_or_is_sound(
    dtype, layers, streams, tokens, width, layer_ids, present, data, valid_for_s, sec
):
    message = GuidanceMsg(
        dtype=dtype, layers=layers, streams=streams, tokens=tokens, width=width, layer_ids=layer_ids, present=present,
        data=array.array("B", data), valid_for_s=valid_for_s,
    )  # fmt: skip
    message.header.stamp.sec = sec
    assert_refused_or_sound(message)


@settings(max_examples=500, deadline=None)
@given(
    field=st.sampled_from(["dtype", "layers", "streams", "tokens", "width"]),
    value=st.integers(0, 255),
    at=st.integers(0, 95),
    byte=st.integers(0, 255),
)
def test_a_sound_guidance_with_one_thing_changed_is_refused_or_sound(field, value, at, byte):
    message = messages.guidance_to_message(a_guidance())
    message.data[at] = byte
    assert_refused_or_sound(message)
    setattr(message, field, value)
    assert_refused_or_sound(message)


def assert_refused_or_sound(message: GuidanceMsg) -> None:
    try:
        guidance = messages.guidance_from_message(message)
    except MessageError as error:
        assert str(error).split()[0].split(".")[0] in GuidanceMsg.get_fields_and_field_types()
    else:
        assert guidance.pyramid.shape == (message.layers, 2, message.width) and np.isfinite(guidance.pyramid).all()
        assert len(guidance.layers) == message.layers and guidance.stamp_ns > 0 and 0 < guidance.valid_for_s < math.inf


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("steps", {"steps": 0}),
        ("steps", {"steps": 2**31}),
        ("joints", {"joints": 0}),
        ("joint_names", {"joint_names": ["a"]}),
        ("positions", {"positions": array.array("f", [0.0] * 23)}),
        ("positions", {"positions": array.array("f", [math.nan] * 24)}),
        ("sigma", {"sigma": array.array("f")}),
        ("present", {"present": array.array("f", [0.0] * 7)}),
        ("step_s", {"step_s": 0.0}),
    ],
)
def test_a_forecast_that_contradicts_itself_names_the_field(field, fields):
    message: ForecastMsg = change(messages.forecast_to_message(a_forecast()), **fields)
    with pytest.raises(MessageError, match=rf"^{field} "):
        messages.forecast_from_message(message)


def test_observed_joints():
    message = PoseArray(poses=[Pose(position=Point(x=1.0, y=2.0, z=3.0)), Pose(position=Point(x=math.nan))])
    message.header.frame_id = "camera"
    joints = messages.joints_from_poses(message, 2, "camera")
    assert joints.dtype == np.float32 and joints[0].tolist() == [1, 2, 3] and np.isnan(joints[1, 0])
    with pytest.raises(MessageError, match=r"^poses"):
        messages.joints_from_poses(message, 3, "camera")
    with pytest.raises(MessageError, match=r"^header\.frame_id"):
        messages.joints_from_poses(message, 2, "world")
    message.poses[0].position.y = math.inf
    with pytest.raises(MessageError, match=r"^poses"):
        messages.joints_from_poses(message, 2, "camera")


@pytest.mark.parametrize("ns", [0, 1, NS - 1, NS, 123 * NS + 456, -1, -5 * NS])
def test_stamps_are_exact(ns):
    assert messages.stamp_ns(messages.to_stamp(ns)) == ns


def test_a_stamp_beyond_ros_time_is_refused():
    with pytest.raises(ValueError, match="time stamp"):
        messages.to_stamp(2**31 * NS)
