"""Options that say where camera, truth and pose are in a recording, for every command that reads some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..data.survey import Settings

Bags = Annotated[list[Path], typer.Argument(help="rosbag2 folders or files (mcap, sqlite3).")]
ImageTopic = Annotated[str, typer.Option(help="Camera topic, where the bag has several.")]
CameraFrame = Annotated[str, typer.Option(help="Optical frame of the camera. Default: what the images say.")]
PoseTopic = Annotated[str, typer.Option(help="PoseStamped topic: the pose of that frame. Default: from TF.")]
WorldFrame = Annotated[
    str, typer.Option(help="Frame that does not move. Default: the root of the TF tree above the truth.")
]
TruthFrame = Annotated[str, typer.Option(help="Frame of the truth, in place of what its messages say.")]
Joints = Annotated[str, typer.Option(help="Names of the joints: a,b,c. Default: what the topic calls them.")]
Urdf = Annotated[Path | None, typer.Option(help="Robot description, for a truth of sensor_msgs/JointState.")]
Links = Annotated[
    str, typer.Option(help="What to take: links of the URDF, child frames of TF, or markers (ns/id), as a,b,c.")
]
Intrinsics = Annotated[str, typer.Option(help="fx,fy,cx,cy in pixels, where the bag has no CameraInfo.")]
Instruction = Annotated[
    str, typer.Option(help="What the hand was told. Default: the String topic /instruction, where there is one.")
]
TruthGap = Annotated[
    float, typer.Option(min=0.001, help="Longest gap in the truth that is interpolated; beyond it is unknown.")
]
TfGap = Annotated[float, typer.Option(min=0.001, help="The same for transforms and camera poses.")]


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word for part in text.split(",") if (word := part.strip()))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a list with commas. Raises ValueError with the remedy."""
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas between them, not {text!r}") from None


def settings_of(*, joints: str, links: str, urdf: Path | None, intrinsics: str, **others: Any) -> Settings:
    """The options as `Settings`; those that are lists are still text. Raises ValueError with the remedy."""
    from ..data.survey import Settings

    return Settings(
        joints=words(joints),
        links=words(links),
        urdf="" if urdf is None else str(urdf),
        intrinsics=numbers(intrinsics, "--intrinsics"),
        **others,
    )
