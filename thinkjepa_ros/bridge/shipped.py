"""Where the models that come with the package lie: in the source tree or in its share folder."""

from __future__ import annotations

from pathlib import Path

from thinkjepa_ros import resources

SHIPPED = "mini"


def model_folder(value: str, part: str = "") -> Path:
    """The folder that the parameter `model` means: `mini` is models/mini/<part> of the package, anything else a path.

    Raises FileNotFoundError where the package's own models are missing.
    """
    if value != SHIPPED:
        return Path(value).expanduser()
    try:
        return resources.find(Path("models", SHIPPED, part))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or set the parameter model to a checkpoint folder") from None
