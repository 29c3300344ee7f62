"""How good the forecasts are, live: the evaluator beside a running robot, or beside a recording that is played.

ros2 launch thinkjepa_ros evaluate.launch.py truth_topic:=/hand_keypoints
ros2 launch thinkjepa_ros evaluate.launch.py truth_topic:=/hand_keypoints bag:=my_recording out:=results

Without a bag only the evaluator is started. With one, player, predictor and thinker are too, and it ends with the
recording; takes the arguments of replay.launch.py and thinkjepa.launch.py then. docs/evaluate_live.md says more.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from thinkjepa_ros.transport import added_environment

TRUE_FALSE = ["true", "false"]

ARGUMENTS = [
    DeclareLaunchArgument(
        "bag", default_value="", description="A recording to play: a rosbag2 folder or file. Empty: a running robot."
    ),
    DeclareLaunchArgument(
        "truth_topic", default_value="truth/joints", description="Where the joints truly are; NaN is unknown."
    ),
    DeclareLaunchArgument(
        "truth_type",
        default_value="geometry_msgs/PoseArray",
        choices=["geometry_msgs/PoseArray", "geometry_msgs/PoseStamped", "trajectory_msgs/MultiDOFJointTrajectory"],
        description="Message type of the truth.",
    ),
    DeclareLaunchArgument(
        "truth_joints",
        default_value="",
        description="Names of the points of the truth: a,b,c. Empty: the joints of the model in its order.",
    ),
    DeclareLaunchArgument(
        "truth_frame", default_value="", description="Frame of the truth, in place of what its messages say."
    ),
    DeclareLaunchArgument(
        "camera_pose_from",
        default_value="topic",
        choices=["topic", "tf"],
        description="Where the pose of the camera is told: topic or tf (needs tf2_ros).",
    ),
    DeclareLaunchArgument(
        "pose_topic", default_value="camera/pose", description="PoseStamped of the optical frame in the truth's frame."
    ),
    DeclareLaunchArgument(
        "world_frame", default_value="", description="With camera_pose_from:=tf: a frame that does not move."
    ),
    DeclareLaunchArgument("window_s", default_value="10.0", description="Errors are told over so many last seconds."),
    DeclareLaunchArgument(
        "late_s", default_value="0.25", description="Forecasts that come later than this (p95) are a warning."
    ),
    DeclareLaunchArgument(
        "out", default_value="evaluation_live", description="Folder the results are written into at the end."
    ),
    DeclareLaunchArgument(
        "record_s", default_value="600.0", description="Forecasts and truth of so many seconds are kept for it."
    ),
    DeclareLaunchArgument(
        "clock",
        default_value="bag",
        choices=["wall", "bag"],
        description="With a bag: its own stamps and /clock, or stamps as if it happened now.",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the nodes and topics."),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=TRUE_FALSE,
        description="Without a bag: take the time from /clock.",
    ),
]

#: Parameters of the evaluator that have the names of arguments; numbers apart, since ROS tells them from words.
WORDS = ["truth_topic", "truth_type", "truth_joints", "truth_frame", "camera_pose_from", "pose_topic", "world_frame"]
NUMBERS = ["window_s", "late_s", "record_s"]


def make_actions(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The actions, once the arguments are known."""
    value = dict(context.launch_configurations)
    sim_time = value["clock"] == "bag" if value["bag"] else value["use_sim_time"] == "true"
    evaluator = Node(
        package="thinkjepa_ros",
        executable="evaluator",
        name="evaluator",
        namespace=value["namespace"],
        parameters=[
            {
                **{name: value[name] for name in WORDS},
                **{name: float(value[name]) for name in NUMBERS},
                "out": str(Path(value["out"]).expanduser().resolve()) if value["out"] else "",
                # an image subscription of the evaluator would begin the recording before the predictor is ready
                "picture_rate_hz": 0.0,
                "use_sim_time": sim_time,
            }
        ],
        additional_env=added_environment(context.environment),
        output="both",
        # it writes its results when it is told to end
        sigterm_timeout="30",
        sigkill_timeout="30",
    )
    told = LogInfo(msg=f"the results will be in {value['out']} at the end (Ctrl-C); `ros2 topic echo /diagnostics` now")
    if not value["bag"]:
        return [evaluator, told]
    replay = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "replay.launch.py")),
        launch_arguments={"bag": value["bag"], "clock": value["clock"]}.items(),
    )
    return [evaluator, replay]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_actions)])
