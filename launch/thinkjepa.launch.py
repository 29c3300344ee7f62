"""Thinker and predictor on one camera.

ros2 launch thinkjepa_ros thinkjepa.launch.py image_topic:=/camera/color/image_raw
ros2 launch thinkjepa_ros thinkjepa.launch.py namespace:=robot1 params_file:=mine.yaml

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
        description="YAML file with parameters, like config/predictor.yaml. Empty: none.",
    ),
    DeclareLaunchArgument(
        "use_sim_time", default_value="false", choices=TRUE_FALSE, description="Take the time from /clock."
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="The least important messages that are logged.",
    ),
    DeclareLaunchArgument(
        "image_topic",
        default_value="image",
        description="Camera images. With image_transport:=compressed they come on <image_topic>/compressed.",
    ),
    DeclareLaunchArgument(
        "camera_info_topic",
        default_value="",
        description="Calibration of the camera. Empty: camera_info beside image_topic.",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="raw",
        choices=["raw", "compressed"],
        description="raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage.",
    ),
    DeclareLaunchArgument("model", default_value="mini", description="Checkpoint folder of the predictor, or mini."),
    DeclareLaunchArgument(
        "thinker_model", default_value="mini", description="Checkpoint folder of the thinker, or mini."
    ),
    DeclareLaunchArgument("device", default_value="cpu", description="Where the predictor runs: cpu, cuda or cuda:N."),
    DeclareLaunchArgument(
        "thinker_device", default_value="cpu", description="Where the thinker runs: cpu, cuda or cuda:N."
    ),
    DeclareLaunchArgument(
        "thinker", default_value="true", choices=TRUE_FALSE, description="false: the predictor alone, unguided."
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

#: Launch argument -> node parameter.
PREDICTOR_PARAMETERS = {
    "model": "model",
    "device": "device",
    "image_transport": "image_transport",
    "autostart": "autostart",
    "use_sim_time": "use_sim_time",
}
THINKER_PARAMETERS = {**PREDICTOR_PARAMETERS, "thinker_model": "model", "thinker_device": "device"}
del THINKER_PARAMETERS["model"], THINKER_PARAMETERS["device"]

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

    def node(name: str, parameters: dict[str, str]) -> Node:
        chosen = {
            parameter: value[argument] == "true" if value[argument] in TRUE_FALSE else value[argument]
            for argument, parameter in parameters.items()
            if argument in getattr(context.locals, GIVEN)
        }
        return Node(
            package="thinkjepa_ros",
            executable=name,
            name=name,
            namespace=value["namespace"],
            parameters=[*([value["params_file"]] if value["params_file"] else []), *([chosen] if chosen else [])],
            remappings=[("image", image), ("image/compressed", f"{image}/compressed"), ("camera_info", camera_info)],
            ros_arguments=["--log-level", value["log_level"]],
            additional_env=environment,
            respawn=value["respawn"] == "true",
            respawn_delay=2.0,
            output="both",
            emulate_tty=True,
        )

    actions: list[LaunchDescriptionEntity] = [node("predictor", PREDICTOR_PARAMETERS)]
    if value["thinker"] == "true":
        actions.append(node("thinker", THINKER_PARAMETERS))
    for variable in PROFILE_VARIABLES:
        if variable in environment and value["image_transport"] == "raw":
            hint = f"the camera driver needs {variable}={environment[variable]} too, or raw images from it are lost"
            actions.insert(0, LogInfo(msg=hint))
    return actions


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([OpaqueFunction(function=remember_given), *ARGUMENTS, OpaqueFunction(function=make_nodes)])
