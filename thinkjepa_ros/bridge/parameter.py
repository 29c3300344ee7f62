"""One row of a table of parameters, and the parameters of a running node.

A refused update leaves every value as it was and says why. The tables are in `parameters` and `replay_parameters`.
"""

from __future__ import annotations

import array
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node

Value = bool | int | float | str | list[int]


@dataclass(frozen=True)
class Parameter:
    """One row.

    bounds: inclusive range of a number, or of each in a list of integers. choices, pattern, max_length: of a string.
    dynamic: may be set at any time.
    """

    name: str
    default: Value
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    max_length: int = 1000
    dynamic: bool = False

    def refusal(self, value: Any) -> str | None:
        """Why `value` cannot be set, in a sentence; None when it can."""
        if type(value) is not type(self.default):
            hint = f" (write {float(value)})" if isinstance(self.default, float) and type(value) is int else ""
            return f"{self.name} is of type {type(self.default).__name__}, {value!r} is {type(value).__name__}{hint}"
        if isinstance(value, str):
            if len(value) > self.max_length:
                return f"{self.name} takes at most {self.max_length} characters, got {len(value)}"
            if self.choices and value not in self.choices:
                return f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}"
            if self.pattern and not re.fullmatch(self.pattern, value):
                return f"{self.name} must look like {self.pattern}, not {value!r}"
        elif isinstance(value, list) and any(type(item) is not int for item in value):
            return f"{self.name} is a list of integers, not {value!r}"
        numbers: list[Any] = value if isinstance(value, list) else [value]
        for number in numbers if self.bounds else []:
            if self.bounds and not (math.isfinite(number) and self.bounds[0] <= number <= self.bounds[1]):
                return f"{self.name} must lie between {self.bounds[0]:g} and {self.bounds[1]:g}, not {number!r}"
        return None

    def read(self, value: Any) -> Any:
        """What rclpy hands over as a value of this row: an empty list comes as None, others as arrays."""
        if not isinstance(self.default, list):
            return value
        return [] if value is None else list(value) if isinstance(value, list | tuple | array.array) else value

    @property
    def limits(self) -> str:
        """Range or choices for people."""
        if self.choices:
            return ", ".join(self.choices)
        if self.bounds is not None:
            return f"{self.bounds[0]:g} … {self.bounds[1]:g}"
        return "true, false" if isinstance(self.default, bool) else ""

    @property
    def kind(self) -> str:
        """The name that ROS has for the type."""
        names = {float: "double", str: "string", list: "integer_array"}
        return names.get(type(self.default), type(self.default).__name__)

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        described = ParameterDescriptor(
            description=self.description,
            read_only=not self.dynamic,
            additional_constraints=self.limits if isinstance(self.default, str | list) else "",
            dynamic_typing=isinstance(self.default, list),  # ROS cannot tell of which kind an empty list is
        )
        if isinstance(self.default, list):
            return described
        if self.bounds is not None and isinstance(self.default, float):
            described.floating_point_range = [
                FloatingPointRange(from_value=float(self.bounds[0]), to_value=float(self.bounds[1]))
            ]
        elif self.bounds is not None:
            described.integer_range = [
                IntegerRange(from_value=int(self.bounds[0]), to_value=int(self.bounds[1]), step=1)
            ]
        return described


class Parameters:
    """The parameters of a running node: declared from a table, checked on every update, read without ROS calls.

    on_change: called in the executor thread with the names of the values that were just changed. What it returns is why
    they cannot be taken after all; then the old ones are back.
    Construction raises rclpy's parameter exceptions when an override (YAML, command line) is refused.
    """

    def __init__(self, node: Node, table: Iterable[Parameter], on_change: Callable[[set[str]], str | None]) -> None:
        self._rows = {row.name: row for row in table}
        self._values: dict[str, Value] = {row.name: row.default for row in self._rows.values()}
        self._on_change = on_change
        self._declared = False
        node.add_on_set_parameters_callback(self._on_set)  # before declaring: overrides are checked like updates
        for row in self._rows.values():
            node.declare_parameter(row.name, row.default, row.descriptor())
        self._declared = True

    def _on_set(self, updates: list[Any]) -> SetParametersResult:
        ours = {u.name: self._rows[u.name].read(u.value) for u in updates if u.name in self._rows}
        for name, value in ours.items():
            if (reason := self._rows[name].refusal(value)) is not None:
                return SetParametersResult(successful=False, reason=reason)
        # All are accepted, and ours is the only callback of these nodes: the values may take effect here. (The
        # callback after the fact does not exist in Humble.)
        before = self._values
        changed = {name for name, value in ours.items() if before[name] != value}
        self._values = {**before, **ours}
        if changed and self._declared and (reason := self._on_change(changed)) is not None:
            self._values = before
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def refusal(self, name: str, value: Any) -> str | None:
        """Why `value` cannot be that of parameter `name`, in a sentence; None when it can."""
        return self._rows[name].refusal(value)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]
