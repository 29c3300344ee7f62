"""A recording instead of a camera: player, thinker and predictor; ends with the recording.

ros2 launch thinkjepa_ros replay.launch.py bag:=my_recording
ros2 launch thinkjepa_ros replay.launch.py bag:=my_recording loop:=true thinker:=false

Takes the arguments of thinkjepa.launch.py too.
"""

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, IncludeLaunchDescription, OpaqueFunction
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from thinkjepa_ros.transport import added_environment

ARGUMENTS = [
    DeclareLaunchArgument("bag", description="The recording: a rosbag2 folder, or one of its .mcap or .db3 files."),
    DeclareLaunchArgument("rate", default_value="1.0", description="Speed: 2.0 plays twice as fast."),
    DeclareLaunchArgument(
        "loop", default_value="false", choices=["true", "false"], description="Begin again at the end."
    ),
    DeclareLaunchArgument(
        "clock",
        default_value="wall",
        choices=["wall", "bag"],
        description="wall: stamps are shifted so that the recording happens now; bag: original stamps and /clock.",
    ),
    DeclareLaunchArgument(
        "bag_image_topic", default_value="", description="The camera topic in the bag. Empty: the only one there is."
    ),
]


def image_transport(bag: Path, topic: str) -> str | None:
    """raw or compressed, from the bag's metadata.yaml; None where there is none or it names no such camera topic."""
    folder = bag if bag.is_dir() else bag.parent
    try:
        information = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        topics = [entry["topic_metadata"] for entry in information["topics_with_message_count"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    transports = {"sensor_msgs/msg/Image": "raw", "sensor_msgs/msg/CompressedImage": "compressed"}
    found = [
        transports[entry["type"]] for entry in topics if entry["type"] in transports and topic in ("", entry["name"])
    ]
    return found[0] if len(set(found)) == 1 else None


def make_actions(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The actions, once the arguments are known."""
    value = dict(context.launch_configurations)
    transport = value.get("image_transport") or image_transport(Path(value["bag"]), value["bag_image_topic"])
    shared = {
        "image_topic": "image",
        "camera_info_topic": "camera_info",
        "use_sim_time": "true" if value["clock"] == "bag" else "false",
        **({"image_transport": transport} if transport else {}),
    }
    nodes = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "thinkjepa.launch.py")),
        launch_arguments=shared.items(),
    )
    player = Node(
        package="thinkjepa_ros",
        executable="player",
        name="player",
        namespace=value.get("namespace", ""),
        parameters=[
            {
                "bag": value["bag"],
                "rate": float(value["rate"]),
                "loop": value["loop"] == "true",
                "clock": value["clock"],
                "image_topic": value["bag_image_topic"],
                "wait_for_subscribers": 1 if value.get("thinker") == "false" else 2,
            }
        ],
        remappings=[("/instruction", "thinker/instruction")],
        additional_env=added_environment(context.environment),
        output="both",
        on_exit=[EmitEvent(event=Shutdown(reason="the recording has ended"))],
    )
    return [nodes, player]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_actions)])
