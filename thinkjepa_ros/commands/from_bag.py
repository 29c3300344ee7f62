"""`thinkjepa data from-bag`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import bag_options as options


def from_bag(
    bags: options.Bags,
    out: Annotated[Path, typer.Option(help="Folder for the episodes.")],
    truth: Annotated[str, typer.Option(help="Topic that says where the joints are.")],
    image_topic: options.ImageTopic = "",
    camera_frame: options.CameraFrame = "",
    pose_topic: options.PoseTopic = "",
    world_frame: options.WorldFrame = "",
    truth_frame: options.TruthFrame = "",
    joints: options.Joints = "",
    urdf: options.Urdf = None,
    links: options.Links = "",
    intrinsics: options.Intrinsics = "",
    instruction: options.Instruction = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of an episode.")] = 12.0,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="Leave out rests that are shorter.")] = 2.0,
    gap_s: Annotated[float, typer.Option(min=0.01, help="A longer gap between images begins an episode.")] = 1.0,
    truth_gap_s: options.TruthGap = 0.25,
    tf_gap_s: options.TfGap = 1.0,
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
    from ..data.from_bag import convert as run

    settings = options.settings_of(
        truth=truth,
        image_topic=image_topic,
        camera_frame=camera_frame,
        pose_topic=pose_topic,
        world_frame=world_frame,
        truth_frame=truth_frame,
        joints=joints,
        links=links,
        urdf=urdf,
        intrinsics=intrinsics,
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
