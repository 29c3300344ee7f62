"""Controller, thinker and, in place of a robot, the simulator.

ros2 launch thinkjepa_ros control.launch.py kind:=pick_place_text policy:=control mode:=both
ros2 launch thinkjepa_ros control.launch.py simulator:=false image_topic:=/camera/image_raw image_transport:=raw ...
ros2 service call /controller/enable std_srvs/srv/SetBool "{data: true}"     # nothing moves before

What counts: an argument that is given, then params_file, then the default of the node (docs/parameters.md).
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch_ros.actions import Node

from thinkjepa_ros.transport import PROFILE_VARIABLES, added_environment

TRUE_FALSE = ["true", "false"]

ARGUMENTS = [
    DeclareLaunchArgument(
        "namespace", default_value="", description="Namespace of nodes and topics, for several robots."
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value="",
        description="YAML file with parameters, like config/controller.yaml. Empty: none.",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=TRUE_FALSE,
        description="Take the time from /clock; the simulator then publishes it.",
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="The least important messages that are logged.",
    ),
    DeclareLaunchArgument(
        "simulator", default_value="true", choices=TRUE_FALSE, description="false: there is a real robot."
    ),
    DeclareLaunchArgument(
        "thinker",
        default_value="true",
        choices=TRUE_FALSE,
        description="false: no thoughts, the controller alone.",
    ),
    DeclareLaunchArgument(
        "kind",
        default_value="reach",
        choices=["reach", "pick_place_text", "pick_place_lamp"],
        description="What is asked of the simulated robot.",
    ),
    DeclareLaunchArgument("seed", default_value="2000000", description="Which simulated scene and goal."),
    DeclareLaunchArgument(
        "real_time_factor", default_value="1.0", description="Simulated seconds per second: 0.5 is half as fast."
    ),
    DeclareLaunchArgument(
        "imagination", default_value="control", description="Checkpoint folder of encoder and world model, or control."
    ),
    DeclareLaunchArgument(
        "policy", default_value="", description="Checkpoint folder of the policy, or control. Empty: none."
    ),
    DeclareLaunchArgument(
        "mode",
        default_value="planner",
        choices=["planner", "policy", "both"],
        description="Where actions come from: a search, the policy, or a search that begins with its proposals.",
    ),
    DeclareLaunchArgument(
        "thinker_model", default_value="control", description="Checkpoint folder of the thinker, or mini, or control."
    ),
    DeclareLaunchArgument("device", default_value="cpu", description="Where the controller runs: cpu, cuda or cuda:N."),
    DeclareLaunchArgument(
        "thinker_device", default_value="cpu", description="Where the thinker runs: cpu, cuda or cuda:N."
    ),
    DeclareLaunchArgument(
        "image_topic",
        default_value="camera/image",
        description="Camera images. With image_transport:=compressed they come on <image_topic>/compressed.",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="compressed",
        choices=["raw", "compressed"],
        description="raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage, as the simulator publishes.",
    ),
    DeclareLaunchArgument(
        "camera_info_topic",
        default_value="",
        description="Calibration of the camera. Empty: camera_info beside image_topic.",
    ),
    DeclareLaunchArgument(
        "camera_pose_topic",
        default_value="camera/pose",
        description="PoseStamped of the optical frame in the base frame (parameter camera_pose_from of the controller: "
        "also tf or a fixed pose).",
    ),
    DeclareLaunchArgument(
        "ee_pose_topic", default_value="ee_pose", description="PoseStamped of the point between the finger tips."
    ),
    DeclareLaunchArgument(
        "joint_states_topic",
        default_value="joint_states",
        description="Joint states of the robot, for state_source:=joint_states of the controller.",
    ),
    DeclareLaunchArgument(
        "twist_topic",
        default_value="command/twist",
        description="Where commands go to: TwistStamped in the base frame.",
    ),
    DeclareLaunchArgument(
        "gripper_topic", default_value="command/gripper", description="Where gripper commands go to: Float32, 0 to 1."
    ),
    DeclareLaunchArgument(
        "trajectory_topic",
        default_value="command/trajectory",
        description="Where commands go to with command_type:=trajectory: JointTrajectory.",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=TRUE_FALSE,
        description="false: the nodes stay unconfigured until `ros2 lifecycle set`.",
    ),
    DeclareLaunchArgument(
        "respawn", default_value="false", choices=TRUE_FALSE, description="Start a node again that died, after 2 s."
    ),
]

#: Launch argument -> node parameter. A controller that comes back is disabled until somebody enables it.
SHARED = {"autostart": "autostart", "use_sim_time": "use_sim_time"}
CONTROLLER_PARAMETERS = {
    **SHARED,
    "imagination": "model",
    "policy": "policy",
    "mode": "mode",
    "device": "device",
    "image_transport": "image_transport",
}
THINKER_PARAMETERS = {
    **SHARED,
    "thinker_model": "model",
    "thinker_device": "device",
    "image_transport": "image_transport",
}
SIMULATOR_PARAMETERS = {
    "autostart": "autostart",
    "use_sim_time": "publish_clock",
    "kind": "kind",
    "seed": "seed",
    "real_time_factor": "real_time_factor",
}
#: The defaults of these differ from those of the nodes: they always count.
ALWAYS = ("image_transport", "thinker_model")
#: What ROS must not take for words.
TYPES = {"seed": int, "real_time_factor": float}

#: Which arguments were given, by name; the others leave params_file and the nodes' defaults alone.
GIVEN = "thinkjepa_given_arguments"


def remember_given(context: LaunchContext) -> None:
    """Before the arguments are declared, the context holds only those that were given."""
    given = [argument.name for argument in ARGUMENTS if argument.name in context.launch_configurations]
    context.extend_locals({GIVEN: given})


def make_nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The actions, once the arguments are known."""
    value = dict(context.launch_configurations)
    image = value["image_topic"]
    camera_info = value["camera_info_topic"] or "/".join([*image.split("/")[:-1], "camera_info"])
    environment = added_environment(context.environment)

    def typed(argument: str) -> bool | int | float | str:
        word = value[argument]
        return word == "true" if word in TRUE_FALSE else TYPES.get(argument, str)(word)

    def node(name: str, parameters: dict[str, str], remappings: list[tuple[str, str]]) -> Node:
        given = getattr(context.locals, GIVEN)
        chosen = {
            parameter: typed(argument)
            for argument, parameter in parameters.items()
            if argument in given or argument in ALWAYS
        }
        return Node(
            package="thinkjepa_ros",
            executable=name,
            name=name,
            namespace=value["namespace"],
            parameters=[*([value["params_file"]] if value["params_file"] else []), *([chosen] if chosen else [])],
            remappings=remappings,
            ros_arguments=["--log-level", value["log_level"]],
            additional_env=environment,
            respawn=value["respawn"] == "true",
            respawn_delay=2.0,
            output="both",
            emulate_tty=True,
        )

    camera = [("image", image), ("image/compressed", f"{image}/compressed"), ("camera_info", camera_info)]
    controlled = [
        ("camera_pose", value["camera_pose_topic"]),
        ("ee_pose", value["ee_pose_topic"]),
        ("joint_states", value["joint_states_topic"]),
        ("guidance", "thinker/guidance"),
        ("command/twist", value["twist_topic"]),
        ("command/gripper", value["gripper_topic"]),
        ("command/trajectory", value["trajectory_topic"]),
    ]
    actions: list[LaunchDescriptionEntity] = [node("controller", CONTROLLER_PARAMETERS, [*camera, *controlled])]
    if value["thinker"] == "true":
        actions.append(node("thinker", THINKER_PARAMETERS, [*camera, ("~/instruction", "instruction")]))
    if value["simulator"] == "true":
        actions.insert(0, node("simulator", SIMULATOR_PARAMETERS, []))
    for variable in PROFILE_VARIABLES:
        if variable in environment and value["image_transport"] == "raw":
            hint = f"the camera driver needs {variable}={environment[variable]} too, or raw images from it are lost"
            actions.insert(0, LogInfo(msg=hint))
    name = "/".join(["", *filter(None, [value["namespace"].strip("/"), "controller"])])
    actions.append(
        LogInfo(msg=f"nothing moves until: ros2 service call {name}/enable std_srvs/srv/SetBool '{{data: true}}'")
    )
    return actions


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([OpaqueFunction(function=remember_given), *ARGUMENTS, OpaqueFunction(function=make_nodes)])
