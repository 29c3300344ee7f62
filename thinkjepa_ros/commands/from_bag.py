"""`thinkjepa data from-bag`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word for part in text.split(",") if (word := part.strip()))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a list with commas. Raises ValueError with the remedy."""
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas between them, not {text!r}") from None


def from_bag(
    bags: Annotated[list[Path], typer.Argument(help="rosbag2 folders or files (mcap, sqlite3).")],
    out: Annotated[Path, typer.Option(help="Folder for the episodes.")],
    truth: Annotated[str, typer.Option(help="Topic that says where the joints are.")],
    image_topic: Annotated[str, typer.Option(help="Camera topic, where the bag has several.")] = "",
    camera_frame: Annotated[str, typer.Option(help="Optical frame of the camera. Default: what the images say.")] = "",
    pose_topic: Annotated[str, typer.Option(help="PoseStamped topic: the pose of that frame. Default: from TF.")] = "",
    world_frame: Annotated[
        str, typer.Option(help="Frame that does not move. Default: the root of the TF tree above the truth.")
    ] = "",
    truth_frame: Annotated[str, typer.Option(help="Frame of the truth, in place of what its messages say.")] = "",
    joints: Annotated[str, typer.Option(help="Names of the joints: a,b,c. Default: what the topic calls them.")] = "",
    urdf: Annotated[Path | None, typer.Option(help="Robot description, for a truth of sensor_msgs/JointState.")] = None,
    links: Annotated[
        str, typer.Option(help="What to take: links of the URDF, child frames of TF, or markers (ns/id), as a,b,c.")
    ] = "",
    intrinsics: Annotated[str, typer.Option(help="fx,fy,cx,cy in pixels, where the bag has no CameraInfo.")] = "",
    instruction: Annotated[
        str, typer.Option(help="What the hand was told. Default: the String topic /instruction, where there is one.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of an episode.")] = 12.0,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="Leave out rests that are shorter.")] = 2.0,
    gap_s: Annotated[float, typer.Option(min=0.01, help="A longer gap between images begins an episode.")] = 1.0,
    truth_gap_s: Annotated[
        float, typer.Option(min=0.001, help="Longest gap in the truth that is interpolated; beyond it is unknown.")
    ] = 0.25,
    tf_gap_s: Annotated[float, typer.Option(min=0.001, help="The same for transforms and camera poses.")] = 1.0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of images that are no JPEG yet.")] = 92,
    domain: Annotated[str, typer.Option(help="What the data is, for `trained on …`.")] = "recordings",
    limit: Annotated[int | None, typer.Option(min=1, help="Make no more than this many episodes.")] = None,
) -> None:
    """Make training episodes of recordings of a camera with known hands.

    The truth may be PoseArray, PoseStamped, Path, MultiDOFJointTrajectory, MarkerArray (--links ns/id,…), TF (--links
    frame,…), or JointState (--urdf, --links). Camera model: CameraInfo. Camera pose: TF or --pose-topic; none is needed
    where the truth is in the camera's frame. Episodes that are there and whole are kept, so the same command goes on
    after an interruption. docs/recordings.md says what to record.

    Example: thinkjepa data from-bag my_bag --out data/mine --truth /hand_keypoints
    """
    from ..data.cutting import Settings
    from ..data.from_bag import convert as run

    settings = Settings(
        truth=truth,
        image_topic=image_topic,
        camera_frame=camera_frame,
        pose_topic=pose_topic,
        world_frame=world_frame,
        truth_frame=truth_frame,
        joints=words(joints),
        links=words(links),
        urdf="" if urdf is None else str(urdf),
        intrinsics=numbers(intrinsics, "--intrinsics"),
        instruction=instruction,
        seconds=seconds,
        min_seconds=min(min_seconds, seconds),
        gap_s=gap_s,
        truth_gap_s=truth_gap_s,
        tf_gap_s=tf_gap_s,
        quality=quality,
        domain=domain,
    )
    raise SystemExit(run(bags, out, settings, limit))
