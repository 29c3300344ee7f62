"""The figures of a model as Markdown, so that a README says what the evaluation measured and nothing else."""

from __future__ import annotations

import math
from typing import Any

from .coverage import table


def _cm(interval: dict[str, float]) -> str:
    if math.isnan(interval["mean"]):
        return "–"
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def present_table(figures: dict[str, Any]) -> str:
    """Error of the joints now. figures: the JSON that `thinkjepa evaluate forecast --out` writes."""
    names = [n.removesuffix(", visible joints") for n in figures["present_error_m"] if n.endswith(", visible joints")]
    rows = ["| joints now | visible joints, cm | all joints, cm |", "|---|---|---|"]
    for name in names:
        cells = (_cm(figures["present_error_m"][f"{name}, {which} joints"]) for which in ("visible", "all"))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def forecast_table(figures: dict[str, Any], title: str) -> str:
    """One table of forecast errors, such as "moving hand, 32 steps"."""
    rows = [f"| {title} | ADE, cm | FDE, cm | ADE minus the model's, cm |", "|---|---|---|---|"]
    for row in figures["forecasts"][title]:
        itself = row["method"] in ("model, image only", "model, anchored")
        against = "" if itself else _cm(row["minus_model_m"])
        rows.append(f"| {row['method']} | {_cm(row['ade_m'])} | {_cm(row['fde_m'])} | {against} |")
    return "\n".join(rows)


def sigma_table(figures: dict[str, Any]) -> str:
    """Shares of the errors within one and two sigma, by step, for moving and resting hands."""
    header, *rows = table(figures["sigma"])
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]).replace(" --- ", "---")


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def answers_table(figures: dict[str, Any]) -> str:
    """Right answers of a thinker. figures: the JSON that `thinkjepa evaluate thinker --out` writes."""
    rows = ["| windows | number | right, % |", "|---|---|---|"]
    rows += [f"| {row['kind']} | {row['windows']} | {_percent(row['right'])} |" for row in figures["answers"]]
    return "\n".join(rows)


def probe_table(figures: dict[str, Any]) -> str:
    """Intent read from each layer, of the same JSON."""
    probe = figures["probe"]
    layers = [f"layer {layer}" for layer in probe["layers"]]
    rows = [f"| pooled over | weights | {' | '.join(layers)} |", "|---" * (len(layers) + 2) + "|"]
    for pool, cells in probe["trained"].items():
        for name, values in (("trained", cells), ("random", probe["random"][pool])):
            rows.append(f"| {pool} | {name} | {' | '.join(_percent(value) for value in values)} |")
    return "\n".join(rows)


#: Rows of the short table of the cue-reach benchmark, where they were measured.
MAIN_ROWS = (
    "hold",
    "constant velocity",
    "mean displacement",
    "ridge on past joints",
    "thinker only",
    "unguided",
    "guided",
    "guided, thinker silent",
    "shuffled guidance",
    "shuffled guidance, any time",
    "removed cue",
    "oracle intent",
)


def main_rows(figures: dict[str, Any]) -> str:
    """The main rows of `thinkjepa evaluate cue-reach`: image only, told, ready, reach not begun, hand that moves."""
    rows = {row["row"]: row for row in figures["rows"] if row["inputs"] == "image only"}
    last = str(figures["horizons"][-1])
    lines = [
        f"| row | ADE over {last} steps, cm | FDE at step {last}, cm | minus unguided (ADE), cm |",
        "|---|---|---|---|",
    ]
    for name in MAIN_ROWS:
        if name not in rows:
            continue
        cell = rows[name]["cells"]["ready"]["moving"][last]
        triples = [cell.get(key) for key in ("ade", "fde", "ade_minus_unguided")]
        shown = ["" if t is None else _cm(dict(zip(("mean", "low", "high"), t[:3], strict=True))) for t in triples]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def live_table(figures: dict[str, Any]) -> str:
    """The JSON of `thinkjepa evaluate cue-reach --live`."""
    lines = ["| row | ADE over 32 steps, cm | FDE at step 32, cm |", "|---|---|---|"]
    lines += [f"| {row['row']} | {_cm(row['ade_m'])} | {_cm(row['fde_m'])} |" for row in figures["rows"]]
    lost, age, latency = figures["gain_lost"], figures["guidance_age_s"], figures["latency_s"]
    lines += [
        "",
        f"{figures['episodes']} episodes, {figures['answered']} of {figures['origins']} origins answered in time. "
        f"Gain of guidance: {_cm(figures['gain_offline_m'])} cm offline, {_cm(figures['gain_live_m'])} cm live: "
        f"{100 * lost['mean']:.0f} % [{100 * lost['low']:.0f}, {100 * lost['high']:.0f}] of it is lost. Guidance was "
        f"{age['p50']:.1f} s old in the median, {age['p95']:.1f} s at the 95th percentile; a forecast came "
        f"{1000 * latency['p50']:.0f} ms after its image, {1000 * latency['p95']:.0f} ms at the 95th percentile.",
    ]
    return "\n".join(lines)


def encoders_table(figures: list[dict[str, Any]]) -> str:
    """The JSON of `thinkjepa evaluate encoder`."""
    lines = [
        "| recipe | steps | CPU minutes | visible joints, cm | cubes and trays, cm | spread | rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures:
        cost, places = f"{row['steps']} | {row['cpu_minutes']:g}", f"{_cm(row['joints'])} | {_cm(row['things'])}"
        lines.append(f"| {row['recipe']} | {cost} | {places} | {row['spread']:.2f} | {row['rank']:.1f} |")
    return "\n".join(lines)
