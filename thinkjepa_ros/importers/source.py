"""What an importer gets and gives: the tensors of a foreign checkpoint, as `Source`, and our modules, as `Part`.

A converter is a module of this package with the three names of `Converter`. Every converter that recognises a source is
asked, and each returns only the parts it understands: `vjepa2-ac-vitg.pt` gives an encoder (vjepa2) and an action
predictor (vjepa2_ac); `ckpt_best.pt` gives a guided predictor (thinkjepa) and a trajectory head (thinkjepa_head).
`thinkjepa import` writes each part with `checkpoints.save` into OUT/<part.name> and loads it back through
`BUILD[part.kind]`.

Pickles are read with `weights_only=True`, so nothing in them runs; this package is the only place that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..checkpoints import CheckpointError


class SourceError(CheckpointError):
    """A foreign checkpoint that cannot be imported; the text names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Part:
    """One of our modules, ready to be written: `BUILD[kind](config)` takes exactly the tensors of `state`."""

    kind: str  #: "encoder", "mask_predictor", "guided_predictor", "trajectory_head" or "ac_predictor"
    name: str  #: sub-folder it is written to
    config: dict[str, Any]  #: JSON values only
    state: dict[str, Tensor]
    note: str = ""  #: what a user should know, e.g. a choice that was made (one sentence)


@dataclass(frozen=True)
class Options:
    """What the user says because no file does. None: the converter decides, or raises SourceError asking for it."""

    layout: str | None = None  #: ThinkJEPA: "v1" (time, pseudo-frame), "v2" (causal) or "grid" (official)
    heads: int | None = None  #: attention heads of the predictor


@dataclass
class Source:
    """A foreign checkpoint in memory (or mapped). Prefixes of wrappers (`module.`, `backbone.`) are gone."""

    path: Path
    sections: dict[str, dict[str, Tensor]]  #: by top-level key of a .pt ("target_encoder"); "" where names are flat
    config: dict[str, Any] = field(default_factory=dict)  #: config.json of a folder
    metadata: dict[str, str] = field(default_factory=dict)  #: of a safetensors file
    args: dict[str, Any] = field(default_factory=dict)  #: plain values of a .pt; its "args" are merged into them
    sha256: dict[str, str] = field(default_factory=dict)  #: by name of the weight file

    def section(self, *keys: str) -> dict[str, Tensor] | None:
        """The first section that holds one of these tensor names, or None."""
        for state in self.sections.values():
            if any(key in state for key in keys):
                return state
        return None


class Converter(Protocol):
    """What each importer module offers."""

    TITLE: str  #: what it imports, for messages: "V-JEPA 2"
    BUILD: Mapping[str, Callable[[dict[str, Any]], nn.Module]]  #: by kind; ValueError or TypeError on a bad config

    def recognises(self, source: Source) -> bool:
        """Whether `convert` finds something here; looks at names only."""
        ...

    def convert(self, source: Source, options: Options) -> list[Part]:
        """Raises SourceError (a sentence) where tensors are missing or of a wrong shape."""
        ...
