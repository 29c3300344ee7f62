"""The parameters of the controller, and what is made of them; see `parameter` for how such a table works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..control.limits import Limits
from ..control.watch import Timeouts
from .common_parameters import AUTOSTART, INPUT, model_rows
from .parameter import Parameter

if TYPE_CHECKING:
    from ..control.options import Options

_MODEL = (
    *model_rows("imagination (encoder and world model)", "control"),
    Parameter(
        "policy",
        "",
        "Checkpoint folder of the policy; `control` is the one that comes with the package. Empty: none.",
        max_length=4096,
    ),
    Parameter(
        "score",
        "",
        "Checkpoint folder of the score that tells how well what is imagined fits the words; `control` is the one that "
        "comes with the package. Empty: none.",
        max_length=4096,
    ),
    Parameter(
        "ahead",
        "",
        "Checkpoint folder of the sub-goals that are made of what the words or the thinker's answer name; `control` is "
        "the one that comes with the package. Empty: none.",
        max_length=4096,
    ),
    Parameter(
        "dtype",
        "auto",
        "What the world model imagines in. auto: bfloat16 where the device has instructions for it and a probe finds "
        "them faster, else float32.",
        choices=("auto", "float32", "bfloat16"),
    ),
)
_PLANNING = (
    Parameter(
        "mode",
        "planner",
        "planner: search in the imagined world. policy: what the policy proposes; nothing is imagined, so that margin "
        "does not apply. both: the search begins with the proposals of the policy.",
        choices=("planner", "policy", "both"),
    ),
    Parameter(
        "aim",
        "auto",
        "What a search goes for: the goal image, a sub-goal (of thinker or of ahead), what the words ask for (needs "
        "score), or (auto) the first of these that there is.",
        choices=("auto", "image", "subgoal", "words"),
        dynamic=True,
    ),
    Parameter("method", "icem", "How it searches.", choices=("icem", "mppi", "cem"), dynamic=True),
    Parameter("samples", 64, "Action sequences that are imagined per round.", bounds=(16, 65536), dynamic=True),
    Parameter("iterations", 3, "Rounds of a plan.", bounds=(1, 1000), dynamic=True),
    Parameter("horizon", 4, "Actions of a plan; at most what the model knows.", bounds=(1, 256), dynamic=True),
    Parameter(
        "planning_budget_s",
        0.0,
        "No new round begins when a search has taken this long; the best so far is taken. 0: all rounds are made.",
        bounds=(0.0, 60.0),
        dynamic=True,
    ),
    Parameter(
        "distance",
        "l1",
        "How far an imagined latent is from the wanted one: mean absolute difference (l1), mean squared (l2), in units "
        "of what the model is usually wrong by (likelihood), or of where the gripper is seen (place).",
        choices=("l1", "l2", "likelihood", "place"),
        dynamic=True,
    ),
    Parameter(
        "proposals",
        12,
        "Mode both: so many chunks of the policy enter the search.",
        bounds=(1, 1024),
        dynamic=True,
    ),
    Parameter(
        "prior_weight",
        1.0,
        "Mode both: how far their mean draws the mean that the search begins with.",
        bounds=(0.0, 1.0),
        dynamic=True,
    ),
    Parameter(
        "trust",
        1.0,
        "Mode both: by how much a plan a standard deviation of the proposals away from the policy's own must be "
        "imagined to be better, to be preferred.",
        bounds=(0.0, 1e6),
        dynamic=True,
    ),
    Parameter(
        "spread",
        0.02,
        "Mode both: how wide the search begins, as a share of what it does without a policy.",
        bounds=(0.001, 1.0),
        dynamic=True,
    ),
    Parameter(
        "policy_temperature",
        0.0,
        "Mode policy: how far a chunk is drawn at random. 0: about the mean.",
        bounds=(0.0, 2.0),
        dynamic=True,
    ),
    Parameter(
        "act_untold",
        False,
        "Mode policy: act although nothing is asked for. Else the robot holds until words or a thought name something.",
        dynamic=True,
    ),
    Parameter(
        "commit",
        2,
        "Actions that are done of a plan in which the policy has a part, before the next. Asked after every one, a "
        "policy forgets what it was about.",
        bounds=(1, 256),
        dynamic=True,
    ),
    Parameter(
        "margin",
        0.0,
        "By how much the imagined energy of a plan must be below that of staying; else the robot holds and the thinker "
        "is asked.",
        bounds=(0.0, 1e6),
        dynamic=True,
    ),
    Parameter("control_rate_hz", 5.0, "At most this many plans per second.", bounds=(0.1, 60.0)),
    Parameter(
        "hang_timeout_s",
        5.0,
        "A plan that takes longer than this is reported as state HUNG; the robot has stopped at plan_timeout_s.",
        bounds=(0.1, 600.0),
        dynamic=True,
    ),
)
_ROBOT = (
    Parameter(
        "base_frame",
        "base_link",
        "The robot's base: frame of `ee_pose` and `camera_pose`, of plans and of commands.",
        pattern=r"[A-Za-z0-9_/]+",
    ),
    Parameter(
        "state_source",
        "ee_pose",
        "Where the gripper is: `ee_pose` (geometry_msgs/PoseStamped, the point between the finger tips), or "
        "`joint_states` (sensor_msgs/JointState; needs urdf and tip_link).",
        choices=("ee_pose", "joint_states"),
    ),
    Parameter("urdf", "", "File with the URDF of the arm. Needed for joint states and trajectories.", max_length=4096),
    Parameter("tip_link", "", "Link of the URDF whose origin is the point between the finger tips.", max_length=200),
    Parameter(
        "command_type",
        "twist",
        "twist: `command/twist` (geometry_msgs/TwistStamped). trajectory: `command/trajectory` "
        "(trajectory_msgs/JointTrajectory); needs state_source joint_states.",
        choices=("twist", "trajectory"),
    ),
    Parameter(
        "camera_pose_from",
        "topic",
        "Where the camera is: topic `camera_pose` (geometry_msgs/PoseStamped of the optical frame in base_frame), tf, "
        "or the parameter camera_pose.",
        choices=("topic", "tf", "parameter"),
    ),
    Parameter(
        "camera_pose",
        "",
        "Seven numbers x y z qx qy qz qw: the camera's optical frame in base_frame, metres.",
        max_length=400,
    ),
)
_WATCHED = (
    Parameter("state_timeout_s", 0.2, "A state older than this stops the robot.", bounds=(0.01, 10.0), dynamic=True),
    Parameter(
        "plan_timeout_s",
        0.6,
        "A plan whose image is older than this stops the robot.",
        bounds=(0.05, 60.0),
        dynamic=True,
    ),
    Parameter(
        "guidance_timeout_s",
        0.0,
        "Guidance whose newest image is older than this stops the robot. 0: the robot needs no thinker.",
        bounds=(0.0, 600.0),
        dynamic=True,
    ),
    Parameter(
        "ask_period_s",
        1.0,
        "The thinker is asked (service `thinker/think`) at most this often.",
        bounds=(0.05, 3600.0),
        dynamic=True,
    ),
)


def _box() -> tuple[Parameter, ...]:
    """The workspace of the simulated table, as six parameters."""
    corners = {"x": (-0.30, 0.30), "y": (0.17, 0.58), "z": (0.012, 0.26)}
    return tuple(
        Parameter(f"workspace_{axis}_{end}_m", value, f"{text} {axis} of the gripper in base_frame.", (-100.0, 100.0))
        for axis, values in corners.items()
        for end, text, value in zip(("min", "max"), ("Smallest", "Largest"), values, strict=True)
    )


_LIMITS = (
    *_box(),
    Parameter("max_axis_velocity_mps", 0.3, "Along each axis of base_frame.", bounds=(0.001, 10.0)),
    Parameter("max_speed_mps", 0.5, "In all.", bounds=(0.001, 10.0)),
    Parameter("max_acceleration_mps2", 2.5, "Speeding up and braking.", bounds=(0.01, 100.0)),
    Parameter("max_step_m", 0.2, "What one command may move the gripper, until it rests.", bounds=(0.0001, 10.0)),
    Parameter("return_speed_mps", 0.05, "Outside the workspace, on the way back.", bounds=(0.0001, 10.0)),
    Parameter("max_closedness_rate", 5.0, "Of the gripper, per second.", bounds=(0.01, 100.0)),
    Parameter(
        "guard_rate_hz",
        20.0,
        "Commands per second, from a thread of its own on steady time.",
        bounds=(2.0, 500.0),
    ),
    Parameter(
        "command_lifetime_s",
        0.25,
        "How long a command counts; then it goes to rest. The robot's own timeout of twists must not be longer.",
        bounds=(0.01, 10.0),
    ),
    Parameter(
        "stop_timeout_s",
        0.5,
        "Whatever happens, the robot rests so long after the last command, or after something to stop for was seen.",
        bounds=(0.02, 10.0),
    ),
    Parameter("arm_lag_s", 0.0, "How far the arm is behind its commands.", bounds=(0.0, 10.0)),
)

CONTROLLER = (*_MODEL, *INPUT, *_PLANNING, *_ROBOT, *_WATCHED, *_LIMITS, AUTOSTART)


def limits_of(values: Any) -> Limits:
    """values: the parameters of a running controller. Raises ValueError with the remedy where they contradict."""
    low, high = ([values[f"workspace_{axis}_{end}_m"] for axis in "xyz"] for end in ("min", "max"))
    names = [
        *("max_axis_velocity_mps", "max_speed_mps", "max_acceleration_mps2", "max_step_m", "return_speed_mps"),
        *("max_closedness_rate", "stop_timeout_s", "arm_lag_s"),
    ]
    return Limits(
        (low[0], low[1], low[2]),
        (high[0], high[1], high[2]),
        period_s=1.0 / values["guard_rate_hz"],
        lifetime_s=values["command_lifetime_s"],
        **{name: values[name] for name in names},
    )


def timeouts_of(values: Any) -> Timeouts:
    """Up to which age inputs are good enough to move on."""
    return Timeouts(
        image_s=values["input_timeout_s"],
        state_s=values["state_timeout_s"],
        guidance_s=values["guidance_timeout_s"] or None,
        plan_s=values["plan_timeout_s"],
        margin=None if values["mode"] == "policy" else values["margin"],
    )


def options_of(values: Any) -> Options:
    """How plans are made. Raises ValueError where the limits contradict."""
    from ..control.options import Options  # torch, which a node imports when it is configured

    limits = limits_of(values)
    names = (
        "mode",
        "aim",
        "method",
        "samples",
        "iterations",
        "horizon",
        "distance",
        "proposals",
        "prior_weight",
        "trust",
        "spread",
        "act_untold",
        "commit",
    )
    return Options(
        budget_s=values["planning_budget_s"],
        temperature=values["policy_temperature"],
        workspace=(limits.workspace_min_m, limits.workspace_max_m),
        **{name: values[name] for name in names},
    )


CONTROLLER_NOTES = """\
[controller.md](controller.md) has the topics, and what stops the robot and when. Limits and the box are read at start;
they must fit together (`stop_timeout_s` above `command_lifetime_s` plus the time that braking takes), else the node
says which one to change and does not configure.
"""
