"""What docs/control_protocol.md calls success, judged on the figures: held, not held, or not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: Rows that are compared on the same seeds, first minus second.
PAIRS = (
    ("planner: pictures", "random"),
    ("planner: pictures", "planner: shuffled pictures"),
    ("planner: pictures", "cem: pictures"),
    ("planner: pictures", "cem, patch tokens: pictures"),
    ("planner: pictures", "planner, mppi: pictures"),
    ("planner: thinker", "planner: shuffled thinker"),
    ("policy: words", "policy: shuffled words"),
    ("policy: thinker", "policy: words"),
    ("policy: thinker", "policy: shuffled thinker"),
    ("policy + planner: pictures", "policy: words"),
    ("policy + planner: pictures", "planner: pictures"),
    ("policy + planner: words", "policy + planner: shuffled words"),
    ("policy + planner: words", "policy: words"),
    ("policy + planner: words", "planner: words"),
    ("policy + planner: thinker", "policy + planner: shuffled thinker"),
    ("policy + planner: thinker", "policy: thinker"),
    ("policy + planner: thinker", "planner: thinker"),
)
REACH, PLACE = 0.95, 0.70
#: A policy and a planner that work together, and each alone, by kind.
TOGETHER = (
    ("pick_place_text", "policy + planner: pictures", "policy: words", "planner: pictures"),
    ("pick_place_text", "policy + planner: words", "policy: words", "planner: words"),
    ("pick_place_text", "policy + planner: thinker", "policy: thinker", "planner: thinker"),
    ("pick_place_lamp", "policy + planner: thinker", "policy: thinker", "planner: thinker"),
)
#: Who works on all kinds of tasks, by the row that stands for it in each: told by a picture, by words, by the thinker.
EVERYTHING = "all kinds"
EVERYWHERE = {
    who: {"reach": f"{who}: {shown}", "pick_place_text": f"{who}: words", "pick_place_lamp": f"{who}: thinker"}
    for who, shown in (("policy + planner", "pictures"), ("policy", "words"), ("planner", "pictures"))
}
FASTER, NO_WORSE = 10.0, -0.03
PLACING = ("pick_place_text", "pick_place_lamp")


@dataclass(frozen=True)
class Verdict:
    """held: None where it was not measured."""

    claim: str
    held: bool | None
    measured: str


def verdicts(whole: dict[str, Any]) -> list[Verdict]:
    """All claims. whole: `report.contents` without them. Untrained rows are never judged."""
    cells = {(c["kind"], c["row"]): c for c in whole["cells"] if not c["untrained"]}
    pairs = {(p["kind"], p["a"], p["b"]): p for p in whole["pairs"]}
    return [*_sane(cells), *_shares(cells), *_together(cells, pairs), *_faster(whole, cells), *_thinker(cells, pairs)]


def _sane(cells: dict[tuple[str, str], Any]) -> Iterator[Verdict]:
    for row, good in (("hold", lambda share: share == 0), ("expert", lambda share: share >= 0.95)):
        found = [(kind, cell["success"][0]) for (kind, name), cell in cells.items() if name == row]
        words = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in found)
        claim = "the bench is sane: hold never succeeds" if row == "hold" else "… and the expert does in 95 % or more"
        yield Verdict(claim, all(good(share) for _, share in found) if found else None, words)


def _shares(cells: dict[tuple[str, str], Any]) -> Iterator[Verdict]:
    for kind, least in (("reach", REACH), *((kind, PLACE) for kind in PLACING)):
        ours = {
            name: cell for (k, name), cell in cells.items()
            if k == kind and name.startswith(("planner", "policy")) and "shuffled" not in name
            and (kind == "reach" or "pictures" not in name)
        }  # fmt: skip
        best = max(ours, key=lambda name: ours[name]["success"][0], default=None)
        claim = f"{kind}: our best row reaches {100 * least:.0f} %"
        if best is None:
            yield Verdict(claim, None, "")
        else:
            share, low, high = ours[best]["success"]
            measured = f"{best}: {100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}] %"
            yield Verdict(claim, share >= least, measured)


def _together(cells: dict[tuple[str, str], Any], pairs: dict[tuple[str, str, str], Any]) -> Iterator[Verdict]:
    for kind, both, *alone in TOGETHER:
        found = [pairs.get((kind, both, one)) for one in alone] if (kind, both) in cells else []
        yield _better(f"{kind}: {both!r} beats each alone", found)
    both, *alone = EVERYWHERE
    untrained = any((kind, row) not in cells for rows in EVERYWHERE.values() for kind, row in rows.items())
    found = [] if untrained else [pairs.get((EVERYTHING, both, one)) for one in alone]
    yield _better("all kinds of tasks together: policy + planner beats each alone", found)


def _better(claim: str, pairs: Sequence[dict[str, Any] | None]) -> Verdict:
    """Whether the first row of the pairs beats all second ones."""
    found = [pair for pair in pairs if pair is not None]
    if len(found) < max(1, len(pairs)):
        return Verdict(claim, None, "")
    lows = [pair["difference"][1] for pair in found]
    words = ", ".join(f"{100 * p['difference'][0]:+.0f} points over {p['b']}" for p in found)
    return Verdict(claim, all(low is not None and low > 0 for low in lows), words)


def _faster(whole: dict[str, Any], cells: dict[tuple[str, str], Any]) -> Iterator[Verdict]:
    """Ours at any budget that is no worse, beside the CEM on patch tokens at any budget: see the protocol."""
    times = {(t["kind"], t["row"]): t["wall_ms"][0] for t in whole["times"]}
    claim = f"reach: a plan takes a {FASTER:.0f}th of the time of the CEM on patch tokens, at equal success"
    cheap = {}
    for who in ("planner: pictures", "cem, patch tokens: pictures"):
        found = {
            name: cell["success"][0] for (kind, name), cell in cells.items()
            if kind == "reach" and name.partition(" @")[0] == who and ("reach", name) in times
        }  # fmt: skip
        enough = [name for name, share in found.items() if share >= max(found.values()) + NO_WORSE]
        if enough:
            cheap[who] = min(enough, key=lambda name: times["reach", name])
    if len(cheap) < 2:
        yield Verdict(claim, None, "")
        return
    ours, theirs = (cheap[who] for who in ("planner: pictures", "cem, patch tokens: pictures"))
    share = [cells["reach", name]["success"][0] for name in (ours, theirs)]
    ratio = times["reach", theirs] / times["reach", ours]
    equal = share[0] - share[1] >= NO_WORSE
    words = f"{ratio:.1f} times ({ours!r} {100 * share[0]:.0f} %, {theirs!r} {100 * share[1]:.0f} %)"
    usual = theirs.partition(" @")[0]
    if usual != theirs:
        words += f"; {times['reach', usual] / times['reach', ours]:.1f} times that of {usual!r}"
    yield Verdict(claim, bool(equal and ratio >= FASTER), words)


def _thinker(cells: dict[tuple[str, str], Any], pairs: dict[tuple[str, str, str], Any]) -> Iterator[Verdict]:
    pair = pairs.get(("pick_place_lamp", "policy: thinker", "policy: words"))
    claim = "pick_place_lamp: with a thinker the policy is better than without"
    if pair is None or ("pick_place_lamp", "policy: thinker") not in cells:
        yield Verdict(claim, None, "")
    else:
        mean, low, _ = pair["difference"]
        yield Verdict(claim, low is not None and low > 0, f"{100 * mean:+.0f} points, p {pair['p']:.2g}")
