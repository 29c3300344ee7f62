"""The parameter tables: sound in themselves, and the files generated from them are current."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import rclpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node

from thinkjepa_ros.bridge import parameters
from thinkjepa_ros.bridge.parameter import Parameter, Parameters
from thinkjepa_ros.bridge.parameters import TABLES

#: A name ends with its unit (`change`: grey levels).
UNITS = ("s", "hz", "px", "gib", "change", "m", "mps", "mps2", "rate", "factor")
#: Of the planner's and the policy's own scale.
UNITLESS = ("margin", "spread", "trust", "prior_weight", "policy_temperature")
ROOT = Path(__file__).resolve().parents[1]
ROWS = [pytest.param(row, id=f"{node}-{row.name}") for node, table in TABLES.items() for row in table]


@pytest.mark.parametrize("name", parameters.generated())
def test_generated_files_are_current(name):
    assert (ROOT / name).read_text() == parameters.generated()[name], "run python -m thinkjepa_ros.bridge.parameters"


@pytest.mark.parametrize("node", TABLES)
def test_the_yaml_holds_every_default_with_its_type(node):
    values = yaml.safe_load(parameters.render_yaml(node))[f"/**/{node}"]["ros__parameters"]
    empty = {row.name for row in TABLES[node] if row.default == []}  # not every distribution reads an empty list
    assert values == {row.name: row.default for row in TABLES[node] if row.name not in empty}
    assert all(type(values[row.name]) is type(row.default) for row in TABLES[node] if row.name not in empty)


@pytest.mark.parametrize("row", ROWS)
def test_rows_are_sound(row: Parameter):
    assert row.refusal(row.default) is None and row.description.endswith(".")
    assert row.bounds is None or not isinstance(row.default, bool)
    if isinstance(row.default, float):
        assert row.bounds is not None, "a number has a range"
        assert row.name in UNITLESS or row.name.rsplit("_", 1)[1] in UNITS, "a number has a unit"
        for wrong in (
            math.nan,
            math.inf,
            -math.inf,
            row.bounds[0] - 1,
            row.bounds[1] * 2,
            int(row.default),
            "1.0",
            None,
        ):
            assert row.refusal(wrong), wrong
        assert row.refusal(float(row.bounds[0])) is None and row.refusal(float(row.bounds[1])) is None


def test_strings_are_bounded_and_checked():
    rows = {row.name: row for row in TABLES["thinker"]}
    assert (
        rows["device"].refusal("cuda:1") is None
        and rows["device"].refusal("cuda:1; rm")
        and rows["device"].refusal("tpu")
    )
    assert rows["image_transport"].refusal("theora") and "raw, compressed" in rows["image_transport"].refusal("theora")
    assert rows["instruction"].refusal("x" * parameters.MAX_INSTRUCTION) is None
    assert "characters" in rows["instruction"].refusal("x" * (parameters.MAX_INSTRUCTION + 1))


def test_a_list_holds_integers_in_range_and_may_be_empty():
    row = next(row for row in TABLES["thinker"] if row.name == "layers")
    assert row.refusal([]) is None and row.refusal([0, 4, 27]) is None
    for wrong in ([0.5], [True], ["1"], [-1], [256], 3, (0, 1), None, "0 4"):
        assert "layers" in (row.refusal(wrong) or ""), wrong


@pytest.mark.parametrize("given", [[], [1, 3]])
def test_a_list_can_be_given_on_the_command_line(ros_domain, given):
    """An empty list has no type in ROS, and rclpy hands it over as nothing at all."""
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-p", f"layers:={given}"])
    try:
        node = Node("thinker", context=context)
        assert Parameters(node, TABLES["thinker"], lambda changed: None)["layers"] == given
    finally:
        rclpy.shutdown(context=context)


@pytest.mark.parametrize("given", ["[0.5]", "[true]", "3", "[a]", "[256]"])
def test_a_wrong_list_on_the_command_line_is_refused(ros_domain, given):
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-p", f"layers:={given}"])
    try:
        with pytest.raises(InvalidParameterValueException, match="layers"):
            Parameters(Node("thinker", context=context), TABLES["thinker"], lambda changed: None)
    finally:
        rclpy.shutdown(context=context)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([row for table in TABLES.values() for row in table]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=3000),
        st.binary(max_size=10),
        st.lists(st.floats(), max_size=3),
        st.lists(st.integers(), max_size=3),
    ),
)
def test_no_value_outside_the_table_is_accepted(row: Parameter, value):
    if row.refusal(value) is None:
        assert type(value) is type(row.default)
        if row.bounds is not None:
            numbers = value if isinstance(value, list) else [value]
            assert all(row.bounds[0] <= number <= row.bounds[1] for number in numbers)
        if row.choices:
            assert value in row.choices
    else:
        assert row.name in row.refusal(value)
