"""The parameters of the nodes: one table each, from which they are declared, checked and documented.

`python -m thinkjepa_ros.bridge.parameters` writes docs/parameters.md and config/*.yaml from the tables.
A refused update leaves every value as it was and says why. Units are part of the names (`_s`, `_hz`, `_px`).
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node

Value = bool | int | float | str

#: An instruction is a sentence or a paragraph; more would only crowd out the images in the thinker's context.
MAX_INSTRUCTION = 2000


@dataclass(frozen=True)
class Parameter:
    """One row. bounds: inclusive range of a number; choices, pattern: of a string. dynamic: may be set at any time."""

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
        elif self.bounds is not None and not (math.isfinite(value) and self.bounds[0] <= value <= self.bounds[1]):
            return f"{self.name} must lie between {self.bounds[0]:g} and {self.bounds[1]:g}, not {value!r}"
        return None

    @property
    def limits(self) -> str:
        """Range or choices for people."""
        if self.choices:
            return ", ".join(self.choices)
        if self.bounds is not None:
            return f"{self.bounds[0]:g} … {self.bounds[1]:g}"
        return "true, false" if isinstance(self.default, bool) else ""

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        described = ParameterDescriptor(
            description=self.description,
            read_only=not self.dynamic,
            additional_constraints=self.limits if isinstance(self.default, str) else "",
        )
        if self.bounds is not None and isinstance(self.default, float):
            described.floating_point_range = [
                FloatingPointRange(from_value=float(self.bounds[0]), to_value=float(self.bounds[1]))
            ]
        elif self.bounds is not None:
            described.integer_range = [
                IntegerRange(from_value=int(self.bounds[0]), to_value=int(self.bounds[1]), step=1)
            ]
        return described


def _model(what: str) -> tuple[Parameter, ...]:
    return (
        Parameter(
            "model",
            "mini",
            f"Checkpoint folder of the {what}. `mini` is the one that comes with the package; anything else is a path. "
            "Nothing is ever downloaded.",
        ),
        Parameter("device", "cpu", "Where the model runs: cpu, cuda or cuda:N.", pattern=r"cpu|cuda(:\d+)?"),
        Parameter(
            "cpu_threads",
            1,
            "Threads of torch. More than one makes two nodes on a small machine spin against each other.",
            bounds=(1, 64),
        ),
    )


_INPUT = (
    Parameter(
        "image_transport",
        "raw",
        "raw subscribes to `image` (sensor_msgs/Image), compressed to `image/compressed` (sensor_msgs/CompressedImage, "
        "jpeg or png).",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "input_timeout_s",
        0.5,
        "Without a usable image for this long the state is STALE and nothing is published.",
        bounds=(0.05, 60.0),
        dynamic=True,
    ),
    Parameter(
        "future_tolerance_s",
        1.0,
        "An image stamped further ahead of the node's clock than this is refused.",
        bounds=(0.0, 3600.0),
    ),
)
_AUTOSTART = Parameter(
    "autostart", True, "Configure and activate at start, so that a respawned node comes back by itself."
)

PREDICTOR = (
    *_model("predictor"),
    Parameter(
        "dtype",
        "auto",
        "What encoder and predictor compute in. auto: bfloat16 where the device has instructions for it and a probe at "
        "configure finds them faster, else float32; the choice and its reason are logged. Only float32 gives the same "
        "bits on every processor of a kind.",
        choices=("auto", "float32", "bfloat16"),
    ),
    Parameter(
        "compile",
        False,
        "Use torch.compile. Configuring then takes a minute or more and needs a compiler; without one it says so and "
        "goes on as it is.",
    ),
    *_INPUT,
    Parameter(
        "max_rate_hz",
        30.0,
        "At most this many forecasts per second, from the newest image each time.",
        bounds=(0.1, 240.0),
        dynamic=True,
    ),
    Parameter(
        "hang_timeout_s",
        5.0,
        "A model call longer than this is reported as state HUNG.",
        bounds=(0.1, 600.0),
        dynamic=True,
    ),
    Parameter(
        "anchor_topic_timeout_s",
        0.1,
        "A pose on `joints_observed` anchors the forecast if its stamp is at most this far from the image's; "
        "0 ignores the topic.",
        bounds=(0.0, 10.0),
        dynamic=True,
    ),
    Parameter(
        "camera_fx_px",
        0.0,
        "Focal length in x for images of the size received; used with the next three when no CameraInfo comes. "
        "0: unknown.",
        bounds=(0.0, 1e5),
        dynamic=True,
    ),
    Parameter("camera_fy_px", 0.0, "Focal length in y. 0: as camera_fx_px.", bounds=(0.0, 1e5), dynamic=True),
    Parameter(
        "camera_cx_px", 0.0, "Principal point in x. 0: the middle of the image.", bounds=(0.0, 1e5), dynamic=True
    ),
    Parameter(
        "camera_cy_px", 0.0, "Principal point in y. 0: the middle of the image.", bounds=(0.0, 1e5), dynamic=True
    ),
    Parameter(
        "overlay_max_rate_hz",
        10.0,
        "At most this many pictures per second on `~/overlay`.",
        bounds=(0.1, 240.0),
        dynamic=True,
    ),
    _AUTOSTART,
)

THINKER = (
    *_model("thinker"),
    Parameter(
        "niceness",
        5,
        "How far loading and thinking stand back where processes compete for the processor: a thought must not delay "
        "a forecast.",
        bounds=(0, 19),
    ),
    *_INPUT,
    Parameter(
        "think_period_s",
        1.0,
        "A thought begins this long after the one before began, or as soon as that ended.",
        bounds=(0.05, 3600.0),
        dynamic=True,
    ),
    Parameter("window_s", 8.0, "How far back a thought looks.", bounds=(0.6, 120.0)),
    Parameter(
        "sample_period_s",
        0.25,
        "One image of each such period is looked at; a cue that lasts one camera period more is seen for certain.",
        bounds=(0.05, 0.3),
    ),
    Parameter(
        "max_new_tokens",
        8,
        "Length of a thought in tokens; 0 exports the states of the prompt only.",
        bounds=(0, 4096),
        dynamic=True,
    ),
    Parameter(
        "think_timeout_s",
        30.0,
        "A thought is ended here; a model call that does not return by then is reported as state HUNG.",
        bounds=(0.1, 3600.0),
        dynamic=True,
    ),
    Parameter(
        "guidance_valid_for_s",
        4.0,
        "Guidance counts fully for half of this time after its newest image and fades to nothing at its end.",
        bounds=(0.1, 600.0),
        dynamic=True,
    ),
    Parameter(
        "instruction",
        "",
        "The task in words, until one comes on `~/instruction`. Setting it begins a fresh thought.",
        max_length=MAX_INSTRUCTION,
        dynamic=True,
    ),
    _AUTOSTART,
)

TABLES: Mapping[str, tuple[Parameter, ...]] = {"predictor": PREDICTOR, "thinker": THINKER}


class Parameters:
    """The parameters of a running node: declared from a table, checked on every update, read without ROS calls.

    on_change: called in the executor thread with the names of the values that were just changed.
    Construction raises rclpy's parameter exceptions when an override (YAML, command line) is refused.
    """

    def __init__(self, node: Node, table: Iterable[Parameter], on_change: Callable[[set[str]], None]) -> None:
        self._rows = {row.name: row for row in table}
        self._values: dict[str, Value] = {row.name: row.default for row in self._rows.values()}
        self._on_change = on_change
        self._declared = False
        node.add_on_set_parameters_callback(self._on_set)  # before declaring: overrides are checked like updates
        for row in self._rows.values():
            node.declare_parameter(row.name, row.default, row.descriptor())
        self._declared = True

    def _on_set(self, updates: list[Any]) -> SetParametersResult:
        ours = [update for update in updates if update.name in self._rows]
        for update in ours:
            if (reason := self._rows[update.name].refusal(update.value)) is not None:
                return SetParametersResult(successful=False, reason=reason)
        # All are accepted, and ours is the only callback of these nodes: the values may take effect here. (The
        # callback after the fact does not exist in Humble.)
        changed = {update.name for update in ours if self._values[update.name] != update.value}
        self._values.update({update.name: update.value for update in ours})
        if changed and self._declared:
            self._on_change(changed)
        return SetParametersResult(successful=True)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def render_yaml(node: str) -> str:
    """The parameter file of one node with every default, for `--params-file` and launch."""
    lines = [
        f"# Parameters of the {node} with their defaults. Generated: python -m thinkjepa_ros.bridge.parameters",
        f"/**/{node}:",
        "  ros__parameters:",
    ]
    for row in TABLES[node]:
        notes = [
            row.description,
            f"[{row.limits}]" if row.limits else "",
            "Can be set while running." if row.dynamic else "",
        ]
        lines += [f"    # {line}" for line in textwrap.wrap(" ".join(filter(None, notes)), 110)]
        lines.append(f"    {row.name}: {_literal(row.default)}")
    return "\n".join(lines) + "\n"


def render_docs() -> str:
    """docs/parameters.md."""
    from thinkjepa_ros.bridge.replay_parameters import EVALUATOR, PLAYER  # here: those tables are made of our rows

    lines = [
        "# Parameters",
        "",
        "Generated by `python -m thinkjepa_ros.bridge.parameters` from the tables of the nodes.",
        "*Dynamic* parameters can be set while the node runs and take effect at once (`ros2 param set /predictor",
        "max_rate_hz 10.0`);",
        "the others are read at start. A value outside its range is refused, with the reason, and the old one stays.",
        "Every node also has ROS's own `use_sim_time` and `qos_overrides.<topic>.subscription.*` for its image topic.",
    ]
    for node, table in {**TABLES, "player": PLAYER, "evaluator": EVALUATOR}.items():
        lines += [
            "",
            f"## {node}",
            "",
            "| name | type | default | range | dynamic | what it does |",
            "|---|---|---|---|---|---|",
        ]
        for row in table:
            kind = {"float": "double", "str": "string"}.get(type(row.default).__name__, type(row.default).__name__)
            lines.append(
                f"| `{row.name}` | {kind} | `{_literal(row.default)}` | {row.limits} "
                f"| {'yes' if row.dynamic else 'no'} | {row.description} |"
            )
    return "\n".join(lines) + "\n"


def generated() -> dict[str, str]:
    """Every generated file: path relative to the root of the repository -> text."""
    return {"docs/parameters.md": render_docs(), **{f"config/{node}.yaml": render_yaml(node) for node in TABLES}}


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    for name, text in generated().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
