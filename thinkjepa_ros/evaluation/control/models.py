"""The checkpoints of the control table: which there are, whether they are trained, and one loaded copy per process."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import checkpoints
from ...checkpoints import WEIGHTS, CheckpointError, sha256_of
from ...control import ahead, imagination
from ...control import policy as policies
from ...control import score as scores
from ...control.ahead import Ahead
from ...control.aims import check_made_for
from ...control.imagination import Imagination
from ...control.policy import Policy
from ...control.score import LanguageScore
from ...data.sim.tasks import ACTION_S
from ...thinker import folder as thinker_folder
from ...thinker.qwen import Thinker
from .rows import Need, Row

KINDS: dict[Need, str] = {
    "imagination": imagination.KIND, "patches": imagination.KIND, "policy": policies.KIND, "ahead": ahead.KIND,
    "score": scores.KIND,
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A checkpoint, not loaded. sha256: of its weights."""

    folder: Path
    model_id: str
    trained: bool
    sha256: str
    training: str = ""

    @property
    def name(self) -> str:
        """As `Manifest.name`."""
        return f"{self.model_id} {self.sha256[:8]}"


@dataclass(frozen=True)
class Sources:
    """Folders of checkpoints; None: there is none. untrained: take those that say they are untrained, too."""

    imagination: Path | None = None
    patches: Path | None = None
    policy: Path | None = None
    thinker: Path | None = None
    ahead: Path | None = None
    score: Path | None = None
    untrained: bool = False

    def known(self) -> dict[Need, Known]:
        """What is there. Raises CheckpointError or ThinkerError for a folder that cannot be used, CheckpointError for
        untrained weights.
        """
        found: dict[Need, Known] = {}
        for need, kind in KINDS.items():
            folder: Path | None = getattr(self, need)
            if folder is not None:
                m = checkpoints.read_manifest(folder, kind)
                about = f"{m.training.get('steps', '?')} steps, {m.training.get('episodes', '?')} episodes"
                found[need] = Known(folder, m.model_id, m.trained, m.sha256.get(WEIGHTS, ""), about)
        if self.thinker is not None:
            mind = thinker_folder.find(self.thinker)
            sums = "".join(sha256_of(path) for path in mind.weight_files)
            found["thinker"] = Known(self.thinker, mind.name, mind.trained, sums)
        for need, one in found.items():
            if not one.trained and not self.untrained:
                raise CheckpointError(
                    f"{one.folder}: these weights of --{need} say that they are untrained, and figures of theirs would "
                    "mean nothing; train them, or say --untrained, and every row that uses them is called so."
                )
        for need in ("score", "ahead"):
            if need in found and "imagination" in found:
                made_for = checkpoints.read_manifest(found[need].folder, KINDS[need]).config.get("imagination", "")
                check_made_for(need, made_for, found["imagination"].name)
        return found


def missing(row: Row, known: dict[Need, Known]) -> list[Need]:
    """What a row needs and is not there."""
    return [need for need in row.needs if need not in known]


class Models:
    """What a process has loaded. Nothing is loaded before it is asked for."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    @functools.cached_property
    def imagination(self) -> Imagination:
        return _imagination(self._sources.imagination)

    @functools.cached_property
    def model_id(self) -> str:
        """Of the imagination: whose latents sub-goals are."""
        assert self._sources.imagination is not None
        return checkpoints.read_manifest(self._sources.imagination, imagination.KIND).model_id

    @functools.cached_property
    def patches(self) -> Imagination:
        return _imagination(self._sources.patches)

    @functools.cached_property
    def policy(self) -> Policy:
        assert self._sources.policy is not None
        net = policies.load_policy(self._sources.policy)[0]
        _check_period(self._sources.policy, net.config.action_s)
        return net

    @functools.cached_property
    def score(self) -> LanguageScore:
        assert self._sources.score is not None
        return scores.load_score(self._sources.score)[0]

    @functools.cached_property
    def ahead(self) -> Ahead:
        assert self._sources.ahead is not None
        return ahead.load_ahead(self._sources.ahead)[0]

    @functools.cached_property
    def thinker(self) -> Thinker:
        assert self._sources.thinker is not None
        return Thinker.load(self._sources.thinker, dtype=torch.float32)


def _imagination(folder: Path | None) -> Imagination:
    assert folder is not None
    net = imagination.load_imagination(folder)[0]
    _check_period(folder, net.config.action_s)
    return net


def _check_period(folder: Path, action_s: float) -> None:
    if abs(action_s / ACTION_S - 1) > 1e-6:
        raise CheckpointError(
            f"{folder}: made for actions of {action_s:g} s, those of the workcell last {ACTION_S:g} s; train it on "
            "episodes of `thinkjepa data rollouts`."
        )
