"""The parameters of the simulator and of the conductor; see `parameter` for how such a table works."""

from __future__ import annotations

from .common_parameters import AUTOSTART
from .parameter import Parameter

KINDS = ("reach", "pick_place_text", "pick_place_lamp")

SIMULATOR = (
    Parameter("kind", "reach", "What is asked of the robot. Takes effect at `~/reset`.", choices=KINDS, dynamic=True),
    Parameter(
        "seed",
        2_000_000,
        "Which scene and which goal: training from 0, validation from 1000000, test from 2000000. Takes effect at "
        "`~/reset`.",
        bounds=(0, 2_999_999),
        dynamic=True,
    ),
    Parameter("image_width_px", 128, "Width of the images.", bounds=(32, 1920)),
    Parameter("image_height_px", 128, "Height of the images; the field of view in y is the same for all.", (32, 1080)),
    Parameter("jpeg_quality", 90, "Quality of the images.", bounds=(1, 100), dynamic=True),
    Parameter("camera_rate_hz", 15.0, "Images per simulated second.", bounds=(0.1, 120.0)),
    Parameter(
        "state_rate_hz",
        50.0,
        "Joint states, gripper poses and ticks of the clock per simulated second.",
        bounds=(5.0, 500.0),
    ),
    Parameter(
        "command_timeout_s",
        0.25,
        "A velocity lives this long; then the arm brakes to rest by itself. A command whose stamp is older is refused.",
        bounds=(0.02, 2.0),
    ),
    Parameter(
        "future_tolerance_s",
        0.5,
        "A command stamped further ahead of the simulator's clock than this is refused.",
        bounds=(0.0, 60.0),
    ),
    Parameter(
        "real_time_factor",
        1.0,
        "Simulated seconds per second. A machine that cannot keep up falls behind; `~/status` says by how much, and "
        "the steps of the physics stay as they are.",
        bounds=(0.01, 20.0),
    ),
    Parameter(
        "publish_clock",
        False,
        "Publish the simulated time on /clock and stamp everything with it: for nodes with use_sim_time. A reset moves "
        "it ahead by 6 s, so that nodes that remember begin a new epoch.",
    ),
    Parameter("base_frame", "base_link", "Frame of the robot's base.", pattern=r"[A-Za-z0-9_/]+"),
    Parameter("camera_frame", "camera_optical", "Frame of the images.", pattern=r"[A-Za-z0-9_/]+"),
    AUTOSTART,
)

CONDUCTOR = (
    Parameter(
        "tasks",
        "reach:2000000,pick_place_text:2000000",
        "What is to be done, one after the other: kind:seed, separated by commas.",
        max_length=65536,
    ),
    Parameter("simulator", "simulator", "Name of the simulator node."),
    Parameter("controller", "controller", "Name of the controller node."),
    Parameter(
        "forgetful",
        "",
        "Names of lifecycle nodes, separated by commas, that are deactivated and activated before each task, so that "
        "they remember nothing of the one before.",
    ),
    Parameter(
        "ready_timeout_s", 120.0, "Longest wait for simulator and controller; then the run ends.", bounds=(1.0, 3600.0)
    ),
    Parameter(
        "task_timeout_s", 60.0, "A task that has not ended after this long counts as failed.", bounds=(1.0, 3600.0)
    ),
    Parameter("out", "", "Folder for live.jpg, last.png and film.mp4. Empty: no pictures.", max_length=4096),
    Parameter("picture_rate_hz", 5.0, "live.jpg is rewritten so often per second.", bounds=(0.5, 30.0)),
    Parameter("film_rate_hz", 15.0, "Frames per second of the film. 0: none.", bounds=(0.0, 60.0)),
    Parameter("note", "", "Written in large letters into every picture.", max_length=60),
)

#: What docs/parameters.md says below the table of the simulator.
SIMULATOR_NOTES = """\
**What it is.** The workcell of `thinkjepa data rollouts` (a six-joint arm with a parallel gripper, three cubes, two
trays, one camera; MuJoCo) behind the topics of a robot. It publishes `camera/image/compressed`, `camera/camera_info`,
`camera/pose` (PoseStamped of the optical frame in `base_frame`, with the stamp of the image; on /tf too where tf2_msgs
is installed), `joint_states`, `ee_pose` (the point between the finger tips; the gripper always points down),
`gripper/state` (0 open, 1 closed), `goal_image/compressed` and `instruction` (latched; a goal image without data: the
task has none), and `~/outcome` (String with JSON, latched): kind, seed, epoch (number of the reset), success, error_m
(of a reach), actions (periods of 0.2 s since the first command), most_actions, done_after (actions when it was done
first), time_s.

**What it takes.** `command/twist` (TwistStamped; the linear part counts), `command/gripper` (Float32), and
`command/trajectory` (JointTrajectory of the six arm joints, with or without the fingers): the tool follows the way that
the positions describe, no faster than 0.3 m/s along an axis, and rests at its end. A newer motion replaces the one
before; no points: stop. A velocity lives `command_timeout_s`. Refused and counted in `~/status` (reasons), and the arm
brakes to rest: what is no number, a frame other than `base_frame`, more than 1 m/s, joints out of range, missing or
twice, points of other lengths, times that do not ascend, stamps that are too old or in the future (0 means now).

**Counters.** In `~/status` received, used, superseded and refused are commands; published and rate_hz are images.
The service `~/reset` begins the task of `kind` and `seed` and answers when it has.
"""
