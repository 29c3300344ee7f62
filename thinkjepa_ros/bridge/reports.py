"""What a node says about itself: NodeStatus and /diagnostics out of one picture of its state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from thinkjepa_ros.msg import NodeStatus

from .guidance import GuidanceCounts
from .ledger import Counts

_WORDS = {
    NodeStatus.UNCONFIGURED: "unconfigured",
    NodeStatus.LOADING: "loading the model",
    NodeStatus.INACTIVE: "inactive",
    NodeStatus.WAITING: "waiting for images",
    NodeStatus.WARMING: "filling the window",
    NodeStatus.RUNNING: "running",
    NodeStatus.STALE: "no usable images",
    NodeStatus.HUNG: "a model call does not return",
    NodeStatus.ERROR: "error",
    NodeStatus.FINALIZED: "finalized",
    NodeStatus.HALTED: "the robot is kept at rest",
}
_LEVELS = {
    NodeStatus.RUNNING: DiagnosticStatus.OK,
    NodeStatus.INACTIVE: DiagnosticStatus.OK,
    NodeStatus.STALE: DiagnosticStatus.STALE,
    NodeStatus.HUNG: DiagnosticStatus.ERROR,
    NodeStatus.ERROR: DiagnosticStatus.ERROR,
}


@dataclass(frozen=True)
class Picture:
    """Everything a report is made of. details: what is wrong, in words. extra: further lines for /diagnostics."""

    state: int
    details: str
    model_id: str
    trained: bool
    counts: Counts
    epoch: int
    jumps: int
    last_error: str
    guidance: GuidanceCounts | None = None
    guidance_age_s: float = math.nan
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The state for people."""
        words = _WORDS[self.state]
        return f"{words}: {self.details}" if self.details else words


def status_message(picture: Picture, stamp: Time) -> NodeStatus:
    counts, guidance = picture.counts, picture.guidance
    message = NodeStatus(
        state=picture.state, words=picture.words, model_id=picture.model_id, trained=bool(picture.trained)
    )
    message.header.stamp = stamp
    for name in ("received", "used", "superseded", "refused", "pending", "published"):
        setattr(message, name, int(getattr(counts, name)))
    message.reasons = list(counts.reasons)
    message.reason_counts = [int(n) for n in counts.reasons.values()]
    if guidance is not None:
        for name in ("received", "used", "refused", "superseded"):
            setattr(message, f"guidance_{name}", int(getattr(guidance, name)))
    message.rate_hz = float(counts.rate_hz)
    message.latency_p50_s = float(counts.latency_p50_s)
    message.latency_p99_s = float(counts.latency_p99_s)
    message.guidance_age_s = float(picture.guidance_age_s)
    message.epoch = int(picture.epoch)
    message.jumps = int(picture.jumps)
    message.last_error = picture.last_error
    return message


def diagnostics_message(picture: Picture, stamp: Time, node: str, task: str) -> DiagnosticArray:
    """One DiagnosticStatus (REP-107). node: fully qualified name without the leading slash."""
    counts = picture.counts
    values = {
        "received": counts.received,
        "used": counts.used,
        "superseded": counts.superseded,
        "refused": counts.refused,
        "pending": counts.pending,
        **{f"refused ({reason})": number for reason, number in counts.reasons.items()},
        "published": counts.published,
        "rate (Hz)": f"{counts.rate_hz:.1f}",
        "latency p50 (ms)": f"{counts.latency_p50_s * 1e3:.1f}",
        "latency p99 (ms)": f"{counts.latency_p99_s * 1e3:.1f}",
        "epoch": picture.epoch,
        "clock jumps": picture.jumps,
        "last error": picture.last_error,
        **picture.extra,
    }
    if picture.guidance is not None:
        guidance = picture.guidance
        values |= {
            "guidance received": guidance.received,
            "guidance used": guidance.used,
            "guidance superseded": guidance.superseded,
            **{f"guidance refused ({reason})": number for reason, number in guidance.reasons.items()},
            "guidance age (s)": f"{picture.guidance_age_s:.2f}",
        }
    status = DiagnosticStatus(
        level=_LEVELS.get(picture.state, DiagnosticStatus.WARN),
        name=f"{node}: {task}",
        message=picture.words,
        hardware_id=picture.model_id,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp
    return message
