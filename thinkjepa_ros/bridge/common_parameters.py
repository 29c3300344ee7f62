"""Rows that several nodes have; see `parameter` for how a table of them works."""

from __future__ import annotations

from .parameter import Parameter

#: What the thinker takes (thinker/inputs.py, without importing it): more would only crowd out the images.
MAX_INSTRUCTION = 500


def model_rows(what: str, shipped: str = "mini") -> tuple[Parameter, ...]:
    """Rows of a node that runs a model. what: the model, in words. shipped: see `bridge.shipped`."""
    return (
        Parameter(
            "model",
            shipped,
            f"Checkpoint folder of the {what}. `{shipped}` is the one that comes with the package; anything else is a "
            "path. Nothing is ever downloaded.",
        ),
        Parameter("device", "cpu", "Where the model runs: cpu, cuda or cuda:N.", pattern=r"cpu|cuda(:\d+)?"),
        Parameter(
            "cpu_threads",
            1,
            "Threads of torch. More than one makes two nodes on a small machine spin against each other.",
            bounds=(1, 64),
        ),
    )


INPUT = (
    Parameter(
        "image_transport",
        "raw",
        "raw subscribes to `image` (sensor_msgs/Image), compressed to `image/compressed` (sensor_msgs/CompressedImage, "
        "jpeg or png).",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "input_timeout_s",
        0.5,
        "Without a usable image for this long the state is STALE and nothing is published.",
        bounds=(0.05, 60.0),
        dynamic=True,
    ),
    Parameter(
        "future_tolerance_s",
        1.0,
        "An image stamped further ahead of the node's clock than this is refused.",
        bounds=(0.0, 3600.0),
    ),
)
AUTOSTART = Parameter(
    "autostart", True, "Configure and activate at start, so that a respawned node comes back by itself."
)
