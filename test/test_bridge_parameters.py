"""The parameter tables: sound in themselves, and the files generated from them are current."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.bridge import parameters
from thinkjepa_ros.bridge.parameters import TABLES, Parameter

ROOT = Path(__file__).resolve().parents[1]
ROWS = [pytest.param(row, id=f"{node}-{row.name}") for node, table in TABLES.items() for row in table]


@pytest.mark.parametrize("name", parameters.generated())
def test_generated_files_are_current(name):
    assert (ROOT / name).read_text() == parameters.generated()[name], "run python -m thinkjepa_ros.bridge.parameters"


@pytest.mark.parametrize("node", TABLES)
def test_the_yaml_holds_every_default_with_its_type(node):
    values = yaml.safe_load(parameters.render_yaml(node))[f"/**/{node}"]["ros__parameters"]
    assert values == {row.name: row.default for row in TABLES[node]}
    assert all(type(values[row.name]) is type(row.default) for row in TABLES[node])


@pytest.mark.parametrize("row", ROWS)
def test_rows_are_sound(row: Parameter):
    assert row.refusal(row.default) is None and row.description.endswith(".")
    assert row.bounds is None or not isinstance(row.default, bool)
    if isinstance(row.default, float):
        assert row.bounds is not None and row.name.rsplit("_", 1)[1] in ("s", "hz", "px"), (
            "a number has a range and a unit"
        )
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
    ),
)
def test_no_value_outside_the_table_is_accepted(row: Parameter, value):
    if row.refusal(value) is None:
        assert type(value) is type(row.default)
        if row.bounds is not None:
            assert row.bounds[0] <= value <= row.bounds[1]
        if row.choices:
            assert value in row.choices
    else:
        assert row.name in row.refusal(value)
