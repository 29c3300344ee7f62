"""Where the models that come with the package lie: in the source tree or in its share folder."""

from __future__ import annotations

from pathlib import Path

from thinkjepa_ros import resources

#: Folders of models/: of forecasts, and of the controller.
SHIPPED = ("mini", "control")


def model_folder(value: str, part: str = "") -> Path:
    """The folder that a parameter such as `model` means: `mini` is models/mini/<part> of the package, `control` is
    models/control/<part>, anything else a path.

    Raises FileNotFoundError where the package's own models are missing.
    """
    if value not in SHIPPED:
        return Path(value).expanduser()
    try:
        return resources.find(Path("models", value, part))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or set the parameter to a checkpoint folder") from None
