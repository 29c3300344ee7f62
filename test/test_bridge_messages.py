"""Values to messages and back; whatever a message claims, a wrong one is refused in words and never crashes."""

from __future__ import annotations

import array
import dataclasses
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
from thinkjepa_ros.values import GENERATED, PROMPT_TEXT, PROMPT_VISUAL, Forecast, Guidance, Subgoal

NS = 1_000_000_000


def a_guidance(peak: float = 3.0) -> Guidance:
    pyramid = np.random.default_rng(0).normal(0, 1, (3, 2, 8)).astype(np.float32)
    pyramid[0, 0, 0] = peak
    return Guidance(
        pyramid, (0, 4, 9), 5 * NS + 7, 2.5, present=(True, False), text="rot nach links → ✓", instruction="do",
        instruction_id="ab12",
        epoch=2**31 + 5, sequence=2**40, model_id="m (untrained)",
    )  # fmt: skip


def a_full_guidance(peak: float = 3.0, subgoal_peak: float = 3.0) -> Guidance:
    """With the states of its tokens, none of them as large as the peak of the pyramid, and a sub-goal."""
    rng = np.random.default_rng(2)
    states, latent = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((3, 5, 8), (4, 6)))
    states[1, 4, 2], latent[3, 5] = peak, subgoal_peak
    return dataclasses.replace(
        a_guidance(),
        present=(True, True),
        thought="left lamp red",
        states=states,
        streams=np.array([PROMPT_TEXT, PROMPT_VISUAL, PROMPT_TEXT, GENERATED, GENERATED], np.uint8),
        subgoal=Subgoal(latent, 2.5, "encoder-1234", True),
    )


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


@pytest.mark.parametrize(
    ("peak", "subgoal_peak", "dtypes"),
    [
        (3.0, 3.0, (0, 0)),
        (65519.0, -65519.0, (0, 0)),
        (65520.0, 3.0, (1, 0)),
        (3.0, -1e30, (0, 1)),
        (1e38, 1e38, (1, 1)),
    ],
)
def test_tokens_and_sub_goal_survive_the_wire(peak, subgoal_peak, dtypes):
    """Each in the smaller type where it fits: one state beyond float16 makes pyramid and states float32."""
    guidance = a_full_guidance(peak, subgoal_peak)
    message = through_the_wire(messages.guidance_to_message(guidance))
    assert (message.dtype, message.subgoal_dtype) == dtypes and message.tokens == 5
    back = messages.guidance_from_message(message)
    for ours, theirs, dtype in (
        (guidance.pyramid, back.pyramid, dtypes[0]),
        (guidance.states, back.states, dtypes[0]),
        (guidance.subgoal.latent, back.subgoal.latent, dtypes[1]),
    ):
        assert np.isfinite(theirs).all() and theirs.dtype == np.float32
        assert np.array_equal(theirs, ours.astype(np.float32 if dtype else np.float16).astype(np.float32))
    assert np.array_equal(back.streams, guidance.streams) and back.streams.dtype == np.uint8
    assert (back.thought, back.text) == ("left lamp red", guidance.text)
    assert (back.subgoal.horizon_s, back.subgoal.space, back.subgoal.trained) == (2.5, "encoder-1234", True)


def test_the_pooled_form_has_neither_tokens_nor_sub_goal():
    back = messages.guidance_from_message(through_the_wire(messages.guidance_to_message(a_guidance())))
    assert back.states is back.streams is back.subgoal is None and back.thought == ""


def test_a_pooled_thought_of_the_2b_is_at_most_100_kib():
    """Eight layers of width 2048, and as many words as a thinker writes."""
    pyramid = np.random.default_rng(0).normal(0, 30, (8, 2, 2048)).astype(np.float32)
    layers = (0, 4, 8, 12, 16, 20, 24, 27)
    guidance = Guidance(pyramid, layers, NS, 10.0, text="x" * 500, thought="y" * 500, instruction="z" * 500)
    wire = serialize_message(messages.guidance_to_message(guidance, "camera_optical"))
    assert 8 * 2 * 2048 * 2 < len(wire) <= 68 * 1024
    goal = Subgoal(np.zeros((64, 192), np.float32), 2.5, "mini", False)
    wire = serialize_message(messages.guidance_to_message(dataclasses.replace(guidance, subgoal=goal)))
    assert len(wire) <= 100 * 1024


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pyramid": np.zeros((3, 8), np.float32)}, "pyramid"),
        ({"pyramid": np.full((3, 2, 8), np.nan, np.float32)}, "pyramid of a guidance holds values that are not finite"),
        ({"layers": (0, 1)}, "pyramid"),
        ({"states": np.zeros((2, 5, 8), np.float32)}, "token states"),
        ({"states": np.zeros((3, 5, 9), np.float32)}, "token states"),
        ({"states": np.zeros((3, 8), np.float32)}, "token states"),
        ({"states": np.full((3, 5, 8), np.inf, np.float32)}, "states of a guidance"),
        ({"states": None}, "token states"),
        ({"streams": None}, "token states"),
        ({"streams": np.zeros(4, np.uint8)}, "token states"),
        ({"streams": np.array([0, 1, 0, 2, 300])}, "kinds of token"),
        ({"streams": np.array([0, 1, 0, 2, -1])}, "kinds of token"),
        ({"subgoal": Subgoal(np.zeros(6, np.float32), 1.0, "e", True)}, "sub-goal"),
        ({"subgoal": Subgoal(np.zeros((0, 6), np.float32), 1.0, "e", True)}, "sub-goal"),
        ({"subgoal": Subgoal(np.zeros((4, 6), np.float32), 0.0, "e", True)}, "sub-goal"),
        ({"subgoal": Subgoal(np.zeros((4, 6), np.float32), math.nan, "e", True)}, "sub-goal"),
        ({"subgoal": Subgoal(np.full((4, 6), np.nan, np.float32), 1.0, "e", True)}, "sub-goal"),
    ],
)
def test_a_guidance_that_contradicts_itself_is_not_sent(changes, words):
    with pytest.raises(ValueError, match=words):
        messages.guidance_to_message(dataclasses.replace(a_full_guidance(), **changes))


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


NANS = array.array("B", b"\xff\x7f")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tokens", {"tokens": 65537}),
        ("token_streams", {"tokens": 4}),
        ("token_streams", {"tokens": 0}),
        ("token_streams", {"token_streams": [0, 1, 0, 2, 3]}),
        ("token_streams", {"token_streams": [0, 2, 0, 2, 2]}),
        ("token_streams", {"token_streams": [0, 1, 0, 0, 1]}),
        ("token_streams", {"present": [True, False]}),
        ("token_data", {"token_data": array.array("B", bytes(239))}),
        ("token_data", {"token_data": array.array("B")}),
        ("token_data", {"tokens": 0, "token_streams": []}),
        ("token_data", {"token_data": NANS * 120}),
        ("token_data", {"dtype": 1}),
        ("thought", {"thought": "x" * (1 << 20) + "x"}),
        ("subgoal", {"subgoal_tokens": 0}),
        ("subgoal", {"subgoal": array.array("B")}),
        ("subgoal", {"subgoal_dtype": 1}),
        ("subgoal", {"subgoal": NANS * 24}),
        ("subgoal_dtype", {"subgoal_dtype": 7}),
        ("subgoal_tokens", {"subgoal_tokens": 2**32 - 1}),
        ("subgoal_width", {"subgoal_width": 0}),
        ("subgoal_width", {"subgoal_width": 2**32 - 1}),
        ("subgoal_horizon_s", {"subgoal_horizon_s": 0.0}),
        ("subgoal_horizon_s", {"subgoal_horizon_s": -1.0}),
        ("subgoal_horizon_s", {"subgoal_horizon_s": math.nan}),
        ("subgoal_horizon_s", {"subgoal_horizon_s": math.inf}),
        ("subgoal_horizon_s", {"subgoal_horizon_s": 1e9}),
        ("subgoal_space", {"subgoal_space": "x" * (1 << 20) + "x"}),
    ],
)
def test_tokens_and_sub_goal_that_contradict_themselves_name_the_field(field, fields):
    with pytest.raises(MessageError, match=rf"^{field} "):
        messages.guidance_from_message(change(messages.guidance_to_message(a_full_guidance()), **fields))


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


finite16 = st.floats(-65504, 65504, width=16)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(0, 6), st.integers(0, 4), st.booleans())
def test_any_guidance_survives_the_wire(data, layers, width, prompt, said, with_goal):
    """All that float16 holds comes back as it was, and so does every word."""

    def floats(*shape: int) -> np.ndarray:
        values = data.draw(st.lists(finite16, min_size=math.prod(shape), max_size=math.prod(shape)))
        return np.array(values, np.float32).reshape(shape)

    kinds = data.draw(st.lists(st.sampled_from([PROMPT_TEXT, PROMPT_VISUAL]), min_size=prompt, max_size=prompt))
    streams = np.array(kinds + [GENERATED] * said, np.uint8)
    words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    guidance = Guidance(
        floats(layers, 2, width),
        tuple(sorted(data.draw(st.sets(st.integers(0, 99), min_size=layers, max_size=layers)))),
        data.draw(st.integers(1, 2**31 * NS - 1)),
        data.draw(st.floats(2**-10, 86400, width=32)),
        present=(data.draw(st.booleans()), said > 0),
        text=data.draw(words),
        thought=data.draw(words),
        states=floats(layers, prompt + said, width) if prompt + said else None,
        streams=streams if prompt + said else None,
        subgoal=Subgoal(floats(2, width), data.draw(st.floats(2**-10, 86400, width=32)), data.draw(words), True)
        if with_goal
        else None,
    )
    message = through_the_wire(messages.guidance_to_message(guidance))
    assert message.dtype == GuidanceMsg.FLOAT16
    back = messages.guidance_from_message(message)
    for field in dataclasses.fields(Guidance):
        ours, theirs = getattr(guidance, field.name), getattr(back, field.name)
        if field.name == "subgoal" and ours is not None:
            assert np.array_equal(ours.latent, theirs.latent)
            assert (ours.horizon_s, ours.space, ours.trained) == (theirs.horizon_s, theirs.space, theirs.trained)
        elif isinstance(ours, np.ndarray):
            assert np.array_equal(ours, theirs)
        else:
            assert ours == theirs, field.name


@settings(max_examples=300, deadline=None)
@given(
    field=st.sampled_from(
        ["tokens", "layers", "width", "dtype", "subgoal_tokens", "subgoal_width", "subgoal_dtype", "subgoal_horizon_s"]
    ),
    value=st.one_of(st.integers(0, 12), st.integers(0, 255)),
    at=st.integers(0, 47),
    byte=st.integers(0, 255),
    kind=st.integers(0, 255),
)
def test_a_full_guidance_with_one_thing_changed_is_refused_or_sound(field, value, at, byte, kind):
    message = messages.guidance_to_message(a_full_guidance())
    message.token_data[at], message.subgoal[at], message.token_streams[at % 5] = byte, byte, kind
    assert_refused_or_sound(message)
    setattr(message, field, float(value) if field.endswith("_s") else value)
    assert_refused_or_sound(message)


def assert_refused_or_sound(message: GuidanceMsg) -> None:
    try:
        guidance = messages.guidance_from_message(message)
    except MessageError as error:
        assert str(error).split()[0].split(".")[0] in GuidanceMsg.get_fields_and_field_types()
    else:
        assert guidance.pyramid.shape == (message.layers, 2, message.width) and np.isfinite(guidance.pyramid).all()
        if guidance.states is not None:
            assert guidance.states.shape == (message.layers, message.tokens, message.width)
            assert np.isfinite(guidance.states).all() and guidance.streams.max() <= GENERATED
        if guidance.subgoal is not None:
            assert np.isfinite(guidance.subgoal.latent).all() and 0 < guidance.subgoal.horizon_s < math.inf
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
