"""The parameters of the player and of the evaluator; see `parameter` for how such a table works."""

from __future__ import annotations

from .parameter import Parameter

PLAYER = (
    Parameter("bag", "", "The recording: a rosbag2 folder, or one of its .mcap or .db3 files.", max_length=4096),
    Parameter(
        "rate",
        1.0,
        "Speed. With clock:=wall a rate other than 1 really makes the motion faster or slower.",
        bounds=(0.01, 100),
    ),
    Parameter("loop", False, "Begin again at the end."),
    Parameter(
        "clock",
        "wall",
        "wall: stamps are shifted so that the recording happens now; bag: original stamps and /clock.",
        choices=("wall", "bag"),
    ),
    Parameter("clock_rate_hz", 200.0, "Rate of /clock: timers on ROS time tick no faster.", bounds=(100, 1000)),
    Parameter("start_offset_s", 0.0, "How much of the beginning is left out.", bounds=(0, 1e6)),
    Parameter(
        "topics",
        "",
        "Topics to play besides the camera and its calibration, separated by commas. "
        "Empty: all whose message type is installed.",
        max_length=65536,
    ),
    Parameter("image_topic", "", "The camera topic in the bag. Empty: the only one there is."),
    Parameter("image_to", "", "Name to publish the images under. Empty: `image` or `image/compressed`."),
    Parameter("camera_info_to", "camera_info", "Name to publish the calibration of the camera under."),
    Parameter(
        "image_reliability", "best_effort", "Quality of service of the images.", choices=("best_effort", "reliable")
    ),
    Parameter("wait_for_subscribers", 0, "Begin when so many subscribers have found the images.", bounds=(0, 100)),
    Parameter("wait_timeout_s", 60.0, "Longest wait for subscribers; then begin anyway.", bounds=(0, 3600)),
    Parameter(
        "lockstep",
        False,
        "Publish an image only when the predictor has answered the one before, so that a replay repeats bit for bit.",
    ),
    Parameter("lockstep_timeout_s", 5.0, "Longest wait for an answer; then go on, and count it.", bounds=(0.1, 600)),
    Parameter("predictor", "predictor", "Name of the predictor node whose answers are awaited."),
)

EVALUATOR = (
    Parameter("out", "", "Folder the results are written into at the end.", max_length=4096),
    Parameter("predictor", "predictor", "Name of the predictor node."),
    Parameter("thinker", "thinker", "Name of the thinker node."),
    Parameter("player", "player", "Name of the player node; where it loops, no error is computed across the seam."),
    Parameter(
        "image_transport",
        "raw",
        "raw subscribes to `image`, compressed to `image/compressed`.",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "truth_topic",
        "truth/joints",
        "True joints (NaN = unknown), stamped by the clock of the images. In the frame of the camera, or in one that "
        "does not move; then the camera's pose is needed too.",
    ),
    Parameter(
        "truth_type",
        "geometry_msgs/PoseArray",
        "Type of that topic; of a trajectory its first point counts.",
        choices=("geometry_msgs/PoseArray", "geometry_msgs/PoseStamped", "trajectory_msgs/MultiDOFJointTrajectory"),
    ),
    Parameter(
        "truth_joints",
        "",
        "Names of the points of the truth, separated by commas; those that the model knows too are scored. Empty: as "
        "the messages say, else the joints of the model in its order.",
        max_length=65536,
    ),
    Parameter("truth_frame", "", "Frame of the truth, in place of what its messages say."),
    Parameter(
        "camera_pose_from",
        "topic",
        "topic: from pose_topic; tf: from TF, which needs tf2_ros.",
        choices=("topic", "tf"),
    ),
    Parameter(
        "pose_topic",
        "camera/pose",
        "Pose of the optical frame in the frame of the truth (geometry_msgs/PoseStamped). None is needed where the "
        "truth is in the frame of a camera that stands still.",
    ),
    Parameter(
        "world_frame",
        "",
        "With camera_pose_from:=tf a frame that does not move. Empty: the frame of the truth, unless that is the "
        "camera's; then the camera is taken as if it stood still.",
    ),
    Parameter(
        "window_s",
        0.0,
        "Errors are computed as the truth comes and told once a second, over so many last seconds, on `~/metrics` and "
        "/diagnostics. 0: not at all.",
        (0, 3600),
    ),
    Parameter(
        "late_s", 0.25, "A warning is told when forecasts come later than this after their image (p95).", (0.001, 60)
    ),
    Parameter(
        "record_s", 120.0, "Forecasts, truth and pictures are kept for so long; rates and latencies always.", (1, 3600)
    ),
    Parameter(
        "picture_rate_hz",
        15.0,
        "At most this many images per second are kept for pictures. 0: none, and no image is received.",
        (0, 60),
    ),
    Parameter("live", False, "Write one line of JSON per second to the standard output."),
)
