"""The parameters of the nodes: one table each, from which they are declared, checked and documented.

`python -m thinkjepa_ros.bridge.parameters` writes docs/parameters.md and config/*.yaml from the tables.
Units are part of the names (`_s`, `_hz`, `_px`).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from .common_parameters import AUTOSTART, INPUT, MAX_INSTRUCTION, model_rows
from .control_parameters import CONTROLLER, CONTROLLER_NOTES
from .parameter import Parameter, Value
from .simulator_parameters import CONDUCTOR, SIMULATOR, SIMULATOR_NOTES

#: What the thinker takes (thinker/inputs.py, without importing it): more would only crowd out the images.
MAX_TEMPLATE = 2000


PREDICTOR = (
    *model_rows("predictor"),
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
    *INPUT,
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
    AUTOSTART,
)

THINKER = (
    *model_rows("thinker"),
    Parameter(
        "dtype",
        "auto",
        "What the model computes in. auto: bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "float16", "bfloat16"),
    ),
    Parameter(
        "attention",
        "sdpa",
        "How attention is computed. flash_attention_2 needs CUDA and the package flash-attn.",
        choices=("sdpa", "eager", "flash_attention_2"),
    ),
    Parameter(
        "quantization",
        "none",
        "int8: the weights of the linear layers are kept in 8 bits; needs the package torchao.",
        choices=("none", "int8"),
    ),
    Parameter(
        "memory_gib",
        0.0,
        "The most device memory that model and thoughts may take. 0: no cap.",
        bounds=(0.0, 4096.0),
    ),
    Parameter(
        "layers",
        [],
        "Decoder layers whose states are handed out, ascending, counted from 0. Empty: those of the reference on 28 "
        "layers, else eight spread evenly. The predictor must have been trained with the same.",
        bounds=(0, 255),
    ),
    Parameter(
        "pool",
        "all",
        "Which prompt tokens the prompt row averages: all, those of the text, or those of the images.",
        choices=("all", "text", "visual"),
    ),
    Parameter(
        "publish_tokens",
        False,
        "Add the state of every token to the guidance. Many megabytes per thought with a large model.",
        dynamic=True,
    ),
    Parameter("subgoal", "", "Folder of a head that turns the states into a sub-goal. Empty: none.", max_length=4096),
    Parameter(
        "niceness",
        5,
        "How far loading and thinking stand back where processes compete for the processor: a thought must not delay "
        "a forecast.",
        bounds=(0, 19),
    ),
    *INPUT,
    Parameter(
        "think_period_s",
        1.0,
        "A thought begins this long after the one before began, or as soon as that ended.",
        bounds=(0.05, 3600.0),
        dynamic=True,
    ),
    Parameter(
        "think_on_request",
        False,
        "Think only when the service `~/think` is called.",
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
        "min_scene_change",
        0.0,
        "A thought is left out while the newest image differs from that of the last thought by less than this (mean "
        "over the pixels, 0 to 255) and the question is the same, as long as the last guidance has more than half of "
        "its life before it. 0: never.",
        bounds=(0.0, 255.0),
        dynamic=True,
    ),
    Parameter(
        "max_new_tokens",
        16,
        "Length of a thought in tokens; 0 exports the states of the prompt only.",
        bounds=(0, 4096),
        dynamic=True,
    ),
    Parameter(
        "think_tokens",
        0,
        "So many of them may be spent inside <think>; then </think> is forced and the answer follows. 0: no limit.",
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
        "exit_when_hung_s",
        0.0,
        "A model call that still has not returned after this long cannot be ended; the process ends instead, with "
        "status 3, for whoever restarts it (launch: respawn:=true). 0: never.",
        bounds=(0.0, 86400.0),
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
    Parameter(
        "prompt_template",
        "",
        "The question, with {instruction} where the instruction goes, until one comes on `~/prompt_template`. Setting "
        "it begins a fresh thought. Empty: the question of the checkpoint, which is the one it was trained with.",
        max_length=MAX_TEMPLATE,
        dynamic=True,
    ),
    AUTOSTART,
)

#: What docs/parameters.md says below the table of a node.
NOTES: Mapping[str, str] = {
    "thinker": """\
**Steering a running thinker.** A new instruction (topic `~/instruction` or parameter) or question (`~/prompt_template`,
std_msgs/String, latched, at most 2000 characters; empty: the checkpoint's own) ends the thought under way between two
tokens and begins a fresh one. After three thoughts in a row that were ended so, thoughts are carried to their end until
one answers the newest question: a flood of questions cannot keep guidance away, and each guidance names the instruction
it was thought for. What cannot be asked is refused with words in `~/status` (last_error) and the old question stays.
The service `~/think` (std_srvs/Trigger) begins a thought now, over the images at hand; `success` is false, with the
reason, while the node is not active or a model call does not return.

**What it says.** `~/text` (std_msgs/String, latched) grows while a thought is written, at most every 50 ms; such a
message ends with a space and `…`. The final text has no such end. A thought that is cancelled or fails takes its words
back: the last final text is published again. A thought that lasted until its guidance counts for nothing is not
published but reported. `~/status` says when thoughts take longer than their period, when `think_timeout_s` cut one
short, when turns are left out because the scene is the same, and why a thought failed (memory that ran out, states
that are not finite, ...); the next thought begins as ever. `/diagnostics` counts them.

**A model call that does not return** is the state HUNG. Images are still filed. When the call returns after all, its
result counts only if no clock jump, deactivation or new question came meanwhile. Nothing but the end of the process
can end such a call: `exit_when_hung_s` does that, and launch's `respawn:=true` starts the node again.
""",
    "simulator": SIMULATOR_NOTES,
    "controller": CONTROLLER_NOTES,
}

TABLES: Mapping[str, tuple[Parameter, ...]] = {
    "predictor": PREDICTOR,
    "thinker": THINKER,
    "controller": CONTROLLER,
    "simulator": SIMULATOR,
}


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
        # Not every distribution reads an empty list in a parameter file: there it is left out, which is the same.
        left_out = "# " if row.default == [] else ""
        lines.append(f"    {left_out}{row.name}: {_literal(row.default)}")
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
    for node, table in {**TABLES, "player": PLAYER, "evaluator": EVALUATOR, "conductor": CONDUCTOR}.items():
        lines += [
            "",
            f"## {node}",
            "",
            "| name | type | default | range | dynamic | what it does |",
            "|---|---|---|---|---|---|",
        ]
        for row in table:
            lines.append(
                f"| `{row.name}` | {row.kind} | `{_literal(row.default)}` | {row.limits} "
                f"| {'yes' if row.dynamic else 'no'} | {row.description} |"
            )
        if node in NOTES:
            lines += ["", NOTES[node].rstrip()]
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
