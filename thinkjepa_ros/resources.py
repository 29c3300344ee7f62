"""Files that come with the package, in the source tree or in its share folder."""

from __future__ import annotations

import os
from pathlib import Path


def find(relative: str | Path) -> Path:
    """The file or folder `relative` (such as "config/fastdds.xml") of the package.

    Raises FileNotFoundError where it is nowhere.
    """
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    roots = [Path(__file__).resolve().parents[1], *(prefix / "share" / "thinkjepa_ros" for prefix in prefixes)]
    for root in roots:
        if (root / relative).exists():
            return root / relative
    searched = ", ".join(str(root) for root in roots)
    raise FileNotFoundError(
        f"{relative} of thinkjepa_ros is in none of {searched}: source the workspace that holds the package"
    )
