"""The figures of a model as Markdown, so that a README says what the evaluation measured and nothing else."""

from __future__ import annotations

from typing import Any

from .coverage import table


def _cm(interval: dict[str, float]) -> str:
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
