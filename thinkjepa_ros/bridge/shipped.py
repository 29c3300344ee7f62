"""Where the models that come with the package lie: in the source tree or in its share folder."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = "mini"


def model_folder(value: str, part: str = "") -> Path:
    """The folder that the parameter `model` means: `mini` is models/mini/<part> of the package, anything else a path.

    Raises FileNotFoundError where the package's own models are missing.
    """
    if value != SHIPPED:
        return Path(value).expanduser()
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    roots = [Path(__file__).resolve().parents[2], *(prefix / "share" / "thinkjepa_ros" for prefix in prefixes)]
    for root in roots:
        if (folder := root / "models" / SHIPPED / part).is_dir():
            return folder
    searched = ", ".join(str(root) for root in roots)
    raise FileNotFoundError(
        f"models/{Path(SHIPPED, part)} of thinkjepa_ros is in none of {searched}: source the workspace that holds "
        "the package, or set the parameter model to a checkpoint folder"
    )
