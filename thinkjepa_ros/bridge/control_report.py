"""What the controller says of itself beside the state: why the robot rests, and figures for /diagnostics. ROS-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..control.drive import Report

if TYPE_CHECKING:
    from ..control.outcome import Outcome


def remark(report: Report | None, reasons: tuple[str, ...]) -> str:
    """What is worth saying while the robot may move. reasons: why its joints do not do all of it."""
    if report is None:
        return ""
    words = f"moving at {report.speed_mps:.2f} m/s" if report.speed_mps else "at rest, as planned"
    limits = [reason.value for reason in report.command.reasons] + list(reasons)
    if limits:
        words += f"; limited by {', '.join(limits)}"
    return f"{words}; {report.trouble}" if report.trouble else words


def figures(report: Report | None, outcome: Outcome | None, asked: int) -> dict[str, str]:
    """Lines for /diagnostics."""
    lines = {"thinker asked": str(asked)}
    if report is not None:
        lines |= {
            "stopped because": report.stopped or "it may move",
            "commands": "sent" if report.sent else "silent",
            "speed (m/s)": f"{report.speed_mps:.3f}",
            "limited by": ", ".join(reason.value for reason in report.command.reasons) or "nothing",
            "cycle late (ms)": f"{report.late_s * 1e3:.1f}",
            **{f"age of {what.value} (s)": f"{age:.2f}" for what, age in report.verdict.ages_s.items()},
        }
    if outcome is not None:
        lines["planning (ms)"] = f"{outcome.planning_s * 1e3:.0f}"
        lines["imagined"] = str(outcome.imagined)
        plan = outcome.plan
        if plan is not None:
            lines |= {
                "source": plan.source,
                "energy": f"{plan.energy:.4g}",
                "energy of holding": f"{plan.hold_energy:.4g}",
            }
        lines |= {f"energy: {name}": f"{value:.4g}" for name, value in (outcome.parts or {}).items()}
    return lines
