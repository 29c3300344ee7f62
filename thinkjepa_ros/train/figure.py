"""The log of a training run as a picture: one small panel per column over the steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path

LOG, PICTURE = "log.csv", "log.png"
COLUMNS = 3  #: panels side by side
#: Columns known by another name in the picture.
TITLES = {
    "pose_cm": "pose error (cm)",
    "ade_cm": "forecast error (cm)",
    "place": "place of the joints (cross-entropy)",
    "prediction_over_copy": "prediction error / copy error",
    "sigreg": "SIGReg statistic",
    "spread": "spread of the latents",
    "rank": "effective rank of the latents",
    "over_hold": "forecast error / holding still",
    "grad": "gradient norm",
    "norm": "gradient norm",
    "lr": "learning rate",
    "seconds": "time (s)",
}
#: Ratios in which 1 divides better from worse; a line is drawn there.
RATIOS = ("prediction_over_copy", "over_hold")


def read(path: Path) -> dict[str, list[float]]:
    """Columns of a log by name. A cell that is empty or missing is NaN. Raises FileNotFoundError, ValueError."""
    rows = list(csv.reader(path.read_text().splitlines()))
    if len(rows) < 2 or rows[0][:1] != ["step"]:
        raise ValueError(f"{path} is not the log of a run with at least one row")
    names = rows[0]
    try:
        table = [[float(cell) if cell else math.nan for cell in row] for row in rows[1:]]
    except ValueError as error:
        raise ValueError(f"{path} holds something that is not a number ({error})") from None
    return {name: [row[i] if i < len(row) else math.nan for row in table] for i, name in enumerate(names)}


def draw(folder: Path) -> Path:
    """Draw `log.csv` of a run folder to `log.png` in it. Raises FileNotFoundError, ValueError, ImportError."""
    log = read(folder / LOG)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; `pip install matplotlib` brings it (requirements/train.txt)"
        ) from None
    steps = log.pop("step")
    rows = math.ceil(len(log) / COLUMNS)
    picture = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows), layout="constrained")
    panels = picture.subplots(rows, COLUMNS, squeeze=False).flat
    for (name, values), panel in zip(log.items(), panels, strict=False):
        panel.plot(steps, values, color="tab:blue", marker="." if len(steps) < 20 else "")
        panel.set_title(TITLES.get(name, name.replace("_", " ")), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        if name in RATIOS:
            panel.axhline(1, color="tab:red", linewidth=1, linestyle=":")
    for panel in panels:
        panel.set_axis_off()
    picture.suptitle(folder.resolve().name, fontsize=11)
    out = folder / PICTURE
    part = folder / f".{PICTURE}.part"
    picture.savefig(part, format="png", dpi=110)
    part.replace(out)
    return out
