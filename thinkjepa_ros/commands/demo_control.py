"""`thinkjepa demo-control`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Kind(str, Enum):
    """What a robot may be asked for; the values are those of data/sim/tasks.py."""

    reach = "reach"
    pick_place_text = "pick_place_text"
    pick_place_lamp = "pick_place_lamp"


def demo_control(
    imagination: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of encoder and world model. Default: the shipped one.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of the policy. Default: the shipped one, if there is one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the live picture, the film and the results.")] = Path(
        "out/demo_control"
    ),
    kind: Annotated[
        list[Kind] | None,
        typer.Option(help="What to ask for; may be repeated. Default: a reach, then a pick-and-place."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2_999_999, help="Which scenes: test seeds begin at 2000000.")
    ] = 2_000_000,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="So many tasks of each kind, from that seed on.")] = 1,
    beside: Annotated[
        Path | None,
        typer.Option(help="Folder of thinkjepa evaluate control: say how what was done agrees with its lock step."),
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the camera's images: 128 … 640x480.")] = "256",
    thinker: Annotated[bool, typer.Option(help="Run the thinker node beside the controller.")] = True,
    thinker_model: Annotated[
        str, typer.Option(help="Checkpoint folder of the thinker, or a shipped model's name (mini, control).")
    ] = "control",
    device: Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1 …")] = "cpu",
    video: Annotated[bool, typer.Option(help="Write a film with the plans drawn in.")] = True,
) -> None:
    """Have a simulated robot do a reach and a pick-and-place under the real nodes, and watch it.

    Starts simulator, thinker and controller as separate processes. The picture `live.jpg` in the folder OUT is
    rewritten five times a second; Ctrl-C ends and keeps the film so far.
    """
    from ..demo.control import demo_control as run

    kinds = [one.value for one in kind or (Kind.reach, Kind.pick_place_text)]
    mind = thinker_model if thinker else None
    raise SystemExit(run(imagination, policy, out, kinds, seed, size, mind, device, video, seeds=seeds, beside=beside))
