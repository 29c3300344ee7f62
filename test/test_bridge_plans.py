"""Plans over the wire: what is sent arrives bit by bit, and what is no plan is refused with the name of the field."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rclpy.serialization import deserialize_message, serialize_message

from thinkjepa_ros.bridge.messages import MessageError
from thinkjepa_ros.bridge.plans import SOURCES, plan_from_message, plan_to_message
from thinkjepa_ros.msg import Plan as PlanMsg
from thinkjepa_ros.values import Plan

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
ANY = st.one_of(FLOATS, st.sampled_from([math.nan, math.inf, -math.inf]))
MAYBE = st.one_of(FLOATS, st.just(math.nan))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 7)))
    return Plan(
        actions=draw(arrays.arrays(np.float32, shape, elements=FLOATS)),
        energy=draw(MAYBE),
        hold_energy=draw(MAYBE),
        energies=np.sort(draw(arrays.arrays(np.float32, st.integers(0, 9), elements=FLOATS))),
        source=draw(st.sampled_from(SOURCES)),
        stamp_ns=draw(st.integers(1, 2**31 * 1_000_000_000 - 1)),
        step_s=draw(st.floats(2.0**-10, 100, width=32)),
        guidance_age_s=draw(MAYBE),
    )


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "actions": np.arange(12, dtype=np.float32).reshape(3, 4) / 100,
        "energy": 0.5,
        "hold_energy": 0.75,
        "energies": np.array([0.5, 0.6], np.float32),
        "source": "planner",
        "stamp_ns": 3_000_000_007,
        "step_s": 0.2,
        "guidance_age_s": math.nan,
    }
    return Plan(**{**fields, **changes})


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_a_plan_arrives_as_it_was_sent(sent: Plan) -> None:
    wire = serialize_message(plan_to_message(sent, "base_link", planning_s=0.03, model_id="m", domain="simulation"))
    message = deserialize_message(wire, PlanMsg)
    got = plan_from_message(message)
    assert got.actions.tobytes() == sent.actions.tobytes() and got.actions.shape == sent.actions.shape
    assert got.energies.tobytes() == sent.energies.tobytes()
    assert (got.source, got.stamp_ns) == (sent.source, sent.stamp_ns)
    assert same(got.energy, sent.energy) and same(got.hold_energy, sent.hold_energy)
    assert got.step_s == sent.step_s and same(got.guidance_age_s, sent.guidance_age_s)
    assert (message.header.frame_id, message.model_id, message.domain, message.trained) == (
        "base_link", "m", "simulation", True,
    )  # fmt: skip


BAD = {
    "steps": [("steps", 0), ("steps", 5000), ("steps", 2)],
    "width": [("width", 0), ("width", 1000)],
    "actions": [("actions", array("f", [0.0] * 11)), ("actions", array("f", [math.nan] * 12)),
                ("actions", array("f", [0.0] * 11 + [math.inf])), ("actions", array("f"))],
    "step_s": [("step_s", 0.0), ("step_s", -0.2), ("step_s", math.nan), ("step_s", math.inf)],
    "source": [("source", ""), ("source", "Planner"), ("source", "x" * 5000)],
    "energy": [("energy", math.inf), ("energy", -math.inf)],
    "hold_energy": [("hold_energy", math.inf)],
    "guidance_age_s": [("guidance_age_s", math.inf)],
    "energies": [("energies", array("f", [math.nan])), ("energies", array("f", [2.0, 1.0])),
                 ("energies", array("f", [0.0] * 70000))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field", "value"), [(n, f, v) for n, cases in BAD.items() for f, v in cases], ids=lambda x: str(x)[:20]
)
def test_what_is_no_plan_is_refused_by_name(name: str, field: str, value: Any) -> None:
    message = plan_to_message(plan(), "base_link")
    setattr(message, field, value)
    with pytest.raises(MessageError, match="actions|steps" if field == "steps" else name) as caught:
        plan_from_message(message)
    assert len(str(caught.value)) < 200


def test_a_stamp_of_zero_is_refused() -> None:
    message = plan_to_message(plan(), "base_link")
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    with pytest.raises(MessageError, match=r"header\.stamp"):
        plan_from_message(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": np.zeros(4, np.float32)},
        {"actions": np.full((2, 4), np.nan, np.float32)},
        {"actions": np.zeros((0, 4), np.float32)},
        {"energies": np.zeros((2, 2), np.float32)},
        {"energy": 1e39},
        {"source": "guess"},
        {"step_s": 0.0},
        {"stamp_ns": 2**31 * 1_000_000_000},
    ],
)
def test_nothing_is_sent_that_the_other_side_would_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        plan_to_message(plan(**changes), "base_link")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_message_brings_anything_but_a_plan_or_a_sentence(data: st.DataObject) -> None:
    """Whatever the fields hold: a sound plan, or MessageError."""
    message = PlanMsg()
    for name in ("steps", "width"):
        setattr(message, name, data.draw(st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))))
    numbers = st.lists(ANY, max_size=16)
    message.actions, message.energies = array("f", data.draw(numbers)), array("f", data.draw(numbers))
    for name in ("step_s", "energy", "hold_energy", "guidance_age_s"):
        setattr(message, name, data.draw(ANY))
    message.source = data.draw(st.one_of(st.sampled_from(SOURCES), st.text(max_size=10)))
    message.header.stamp.sec = data.draw(st.integers(-(2**31), 2**31 - 1))
    try:
        got = plan_from_message(message)
    except MessageError as error:
        assert str(error)
    else:
        assert np.isfinite(got.actions).all() and got.actions.shape == (message.steps, message.width)
        assert got.source in SOURCES and got.stamp_ns > 0 and got.step_s > 0
