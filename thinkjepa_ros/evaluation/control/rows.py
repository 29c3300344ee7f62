"""The rows of the control table: who acts, what it is told, and how much it may imagine. See docs/control_protocol.md.

planner: shuffled pictures @32x2
who      what it is told   samples x rounds, where not the usual
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...control.search import METHODS, SearchConfig
from ...data.sim.tasks import KINDS, STEP_LIMIT

Actor = Literal["hold", "random", "expert", "policy", "planner", "policy + planner"]
Goal = Literal["nothing", "words", "pictures", "thinker"]
#: What a row needs a checkpoint of, and the option that names it.
Need = Literal["imagination", "patches", "policy", "thinker", "ahead", "score"]

#: Kinds of tasks. Pictures are the same whether a task is told by words or by a lamp, so that one of the two is enough.
PICTURED, PLACING = ("reach", "pick_place_text"), ("pick_place_text", "pick_place_lamp")
_LOW, _HIGH = (-STEP_LIMIT,) * 3 + (0.0,), (STEP_LIMIT,) * 3 + (1.0,)


@dataclass(frozen=True)
class Row:
    """cem: the settings of V-JEPA 2-AC in place of ours. patches: in the world model of patch tokens. shuffled: told
    what belongs to another task. samples, rounds, horizon: of a plan. kinds: of the tasks that it is run on. curve:
    whether it is also run at other budgets, on the first of its kinds.
    """

    name: str
    actor: Actor
    goal: Goal = "nothing"
    shuffled: bool = False
    method: Literal["icem", "mppi", "cem"] = "icem"
    patches: bool = False
    samples: int = 64
    rounds: int = 3
    horizon: int = 4
    kinds: tuple[str, ...] = KINDS
    curve: bool = False

    def __post_init__(self) -> None:
        assert self.method in METHODS

    @property
    def plans(self) -> bool:
        return self.actor in ("planner", "policy + planner")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Checkpoints without which it cannot be run."""
        found: list[Need] = []
        if self.plans or self.actor == "policy":  # the controller has one in every mode
            found.append("patches" if self.patches else "imagination")
        if "policy" in self.actor:
            found.append("policy")
        if self.goal == "thinker":
            found += ["thinker", "ahead"] if self.plans else ["thinker"]
        if self.goal == "words" and self.plans:
            found.append("score")
        return tuple(found)

    def fits(self, kind: str) -> bool:
        """Whether it is run on tasks of this kind."""
        return kind in self.kinds

    @property
    def family(self) -> str:
        """Its name without its budget."""
        return self.name.partition(" @")[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from another row, for hashes and reports."""
        return asdict(self)

    def search(self, seed: int) -> SearchConfig:
        """Of the CEM as V-JEPA 2-AC has it; that of the others is `control.options`."""
        return SearchConfig(
            _LOW, _HIGH, (STEP_LIMIT,) * 3 + (1.0,), (False, False, False, True), self.horizon, "cem", self.samples,
            self.rounds, min(10, self.samples // 2), momentum_mean=(0.15,) * 4, momentum_std=(0.15,) * 4, seed=seed,
        )  # fmt: skip

    @property
    def proposals(self) -> int:
        """Of the policy, that are among the samples of the first round."""
        return max(1, self.samples // 4) if self.actor == "policy + planner" else 0


#: A tenth of the 800 samples of V-JEPA 2-AC on the robot (arXiv 2506.09985, section 4).
CEM_SAMPLES, CEM_ROUNDS = 80, 10


def table(horizon: int = 4) -> list[Row]:
    """All rows, at their usual budgets."""
    cem: dict[str, Any] = {"method": "cem", "samples": CEM_SAMPLES, "rounds": CEM_ROUNDS, "horizon": 1}
    text, lamp = PLACING
    both: Actor = "policy + planner"
    rows = [
        Row("hold", "hold"),
        Row("random", "random"),
        Row("expert", "expert"),
        Row("cem: pictures", "planner", "pictures", kinds=PICTURED, curve=True, **cem),
        Row("cem, patch tokens: pictures", "planner", "pictures", kinds=("reach",), curve=True, patches=True, **cem),
        Row("planner: pictures", "planner", "pictures", kinds=PICTURED, curve=True),
        Row("planner: shuffled pictures", "planner", "pictures", shuffled=True, kinds=("reach",)),
        Row("planner, mppi: pictures", "planner", "pictures", method="mppi", kinds=("reach",)),
        Row("planner: words", "planner", "words", kinds=(text,)),
        Row("planner: thinker", "planner", "thinker", kinds=PLACING),
        Row("planner: shuffled thinker", "planner", "thinker", shuffled=True, kinds=(lamp,)),
        Row("policy: words", "policy", "words"),
        Row("policy: shuffled words", "policy", "words", shuffled=True, kinds=(text,)),
        Row("policy: thinker", "policy", "thinker", kinds=PLACING),
        Row("policy: shuffled thinker", "policy", "thinker", shuffled=True, kinds=PLACING),
        Row("policy + planner: pictures", both, "pictures", kinds=PICTURED),
        Row("policy + planner: words", both, "words", kinds=(text,), curve=True),
        Row("policy + planner: shuffled words", both, "words", shuffled=True, kinds=(text,)),
        Row("policy + planner: thinker", both, "thinker", kinds=PLACING),
        Row("policy + planner: shuffled thinker", both, "thinker", shuffled=True, kinds=(lamp,)),
    ]
    return [replace(row, horizon=horizon) if row.plans and row.method != "cem" else row for row in rows]


def choose(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Those whose name fits one of the patterns (such as "planner: *"), in the order of the table. Raises ValueError
    naming a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in rows):
            known = "; ".join(row.name for row in rows)
            raise ValueError(f"no row is called {pattern!r}; there are: {known}")
    return [row for row in rows if any(fnmatch.fnmatchcase(row.name, p) for p in patterns)]


def budgets_of(words: str) -> list[tuple[int, int]]:
    """ "32x2 64x3" -> samples and rounds. Raises ValueError."""
    found = []
    for word in words.replace(",", " ").split():
        parts = word.lower().split("x")
        if len(parts) != 2 or not all(p.isdecimal() for p in parts) or int(parts[0]) < 8 or int(parts[1]) < 1:
            raise ValueError(f"{word!r} is no budget; write samples x rounds, such as 32x2 (8 samples or more)")
        found.append((int(parts[0]), int(parts[1])))
    return found


def with_budgets(rows: Sequence[Row], budgets: Sequence[tuple[int, int]]) -> list[Row]:
    """The rows, and behind every one that a curve is drawn of the same at other budgets, on the first of its kinds."""
    out: list[Row] = []
    for row in rows:
        out.append(row)
        if row.curve:
            for samples, rounds in budgets:
                if (samples, rounds) != (row.samples, row.rounds):
                    name = f"{row.name} @{samples}x{rounds}"
                    out.append(replace(row, name=name, samples=samples, rounds=rounds, kinds=row.kinds[:1]))
    return out
