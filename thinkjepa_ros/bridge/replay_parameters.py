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
    Parameter("truth_topic", "truth/joints", "True joints in the world (geometry_msgs/PoseArray, NaN = unknown)."),
    Parameter("pose_topic", "camera/pose", "Pose of the optical frame in the world (geometry_msgs/PoseStamped)."),
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
