"""What an importer gets and gives: the tensors of a foreign checkpoint, as `Source`, and our modules, as `Part`.

A converter is a module of this package with the three names of `Converter`. Every converter that recognises a source is
asked, and each returns only the parts it understands: `vjepa2-ac-vitg.pt` gives an encoder (vjepa2) and an action
predictor (vjepa2_ac); `ckpt_best.pt` gives a guided predictor (thinkjepa) and a trajectory head (thinkjepa_head).
`thinkjepa import` writes each part with `checkpoints.save` into OUT/<part.name> and loads it back through
`BUILD[part.kind]`.

Pickles are read with `weights_only=True`, so nothing in them runs; this package is the only place that reads them.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import MANIFEST
from ..files import MAX_BYTES, CheckpointError, Progress, in_words, read_header, read_json, sha256_of, short

#: Of wrappers around the module that was saved: DistributedDataParallel, the multi-sequence encoder, torch.compile.
_PREFIXES = ("module.", "backbone.", "_orig_mod.")
_INDEX = "model.safetensors.index.json"
_ZIP = b"PK\x03\x04"
_PICKLES = (".pt", ".pth", ".bin", ".tar")
#: The first bytes of a file that somebody may take for weights.
_NO_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to; run `git lfs pull`",
    b"<": "a web page, most likely the error of a download; download it again",
    b"{": "JSON, not weights; give the folder it lies in, or the weight file",
    b"\x1f\x8b": "a gzip archive; unpack it first",
}
#: What a training loop leaves in a checkpoint beside tensors: numpy's numbers, nothing else.
_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(getattr(np.dtypes, f"{name}DType") for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
]


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


def read(path: str | Path, progress: Progress | None = None) -> Source:
    """A foreign checkpoint: a .pt, a .safetensors, or a folder with config.json and .safetensors (also in shards).

    Tensors are mapped from the file where its format allows, so that a large file costs memory only for what is kept.
    In a file of test vectors (`w.*` beside inputs and outputs) only the weights are taken. progress counts the bytes
    hashed. Raises SourceError.
    """
    path = Path(path)
    try:
        with in_words(path):
            if path.is_dir():
                return _folder(path, progress)
            if not path.is_file():
                raise SourceError(f"{path}: no such file or folder. Give a weight file or a Hugging Face folder.")
            return _file(path, progress)
    except CheckpointError as error:
        raise SourceError(str(error)) from None


def _folder(folder: Path, progress: Progress | None) -> Source:
    names = {p.name for p in folder.iterdir()}
    if MANIFEST in names:
        raise SourceError(f"{folder}: holds {MANIFEST}: it is a checkpoint of this package already, use it as it is.")
    weight_map: dict[str, Any] = {}
    if _INDEX in names:
        weight_map = _json(folder / _INDEX).get("weight_map") or {}
        shards = sorted({str(n) for n in weight_map.values()}) if isinstance(weight_map, dict) else []
        missing = [n for n in shards if n not in names]  # a name, never a path
        if missing or not shards:
            raise SourceError(f"{folder}: files of {_INDEX} are missing: {missing[:3] or 'all'}. Download them again.")
    else:
        shards = sorted(n for n in names if n.endswith((".safetensors", *_PICKLES)))
        if len(shards) != 1:
            raise SourceError(f"{folder}: holds {', '.join(shards[:4]) or 'no weights'}. Give the one file to import.")
    if "config.json" not in names:
        if not shards[0].endswith(_PICKLES):
            raise SourceError(f"{folder}: no config.json beside {shards[0]}. Download the whole folder again.")
        return _file(folder / shards[0], progress)
    merged = Source(folder, {"": {}}, config=_json(folder / "config.json"))
    for part in (_file(folder / name, progress) for name in shards):
        for section, state in part.sections.items():
            if twice := merged.sections.setdefault(section, {}).keys() & state.keys():
                raise SourceError(f"{folder}: {min(twice)} stands in two files. Download them again.")
            merged.sections[section].update(state)
        merged.metadata |= part.metadata
        merged.args |= part.args
        merged.sha256 |= part.sha256
    if gone := sorted(weight_map.keys() - merged.sections[""].keys()):
        raise SourceError(f"{folder}: {short(gone[:3])} of {_INDEX} stand in no file. Download them again.")
    return merged


def _file(path: Path, progress: Progress | None) -> Source:
    with path.open("rb") as file:
        start = file.read(512)
    if path.stat().st_size > MAX_BYTES:
        raise SourceError(f"{path}: larger than {MAX_BYTES >> 30} GiB.")
    if not start.strip(b"\0"):
        raise SourceError(f"{path}: {'all zeros' if start else 'empty'}, so cut in a download. Download it again.")
    if start[5:9] == b"\0\0\0{":  # first: the length of the header may begin with the byte of a pickle
        source = _safetensors(path)
    elif start[:4] == _ZIP or start[:1] == b"\x80":
        source = _pickle(path)
    elif start[257:262] == b"ustar":
        raise SourceError(f"{path}: a tar archive; unpack it first and give the weight file in it.")
    else:
        what = next((what for magic, what in _NO_WEIGHTS.items() if start.startswith(magic)), None)
        what = what or "neither safetensors nor a PyTorch file; give it as it was published"
        raise SourceError(f"{path}: {what}.")
    source.sections = {name: _unwrapped(path, state) for name, state in source.sections.items()}
    source.sha256 = {path.name: sha256_of(path, progress)}
    return source


def _safetensors(path: Path) -> Source:
    from safetensors import safe_open

    read_header(path)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        weights = [n for n in names if n.startswith("w.")]
        if not names:
            raise SourceError(f"{path}: no tensors in it. Download it again.")
        state = {n.removeprefix("w."): file.get_tensor(n) for n in weights or names}
        return Source(path, {"": state}, metadata=dict(file.metadata() or {}))


def _pickle(path: Path) -> Source:
    """A .pt: tensors by section, and the plain values beside them. What else a pickle could do is refused."""
    with path.open("rb") as file:
        zipped = file.read(4) == _ZIP
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                stored = all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            raise SourceError(f"{path}: cut, or changed. Download it again.") from None
        if not stored:
            raise SourceError(f"{path}: a compressed archive, which torch never writes. Unpack it first.")
    try:
        with torch.serialization.safe_globals(_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle's protocol
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a made-up file: torch raises whatever it stumbles over
        if type(error).__name__ == "UnpicklingError":
            wanted = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
            what = wanted[1] if wanted else "not made by torch"
            raise SourceError(
                f"{path}: a pickle that holds more than tensors and numbers ({what}); it could run code and is not "
                "read. Save its state dicts alone, or get a .safetensors."
            ) from None
        reason = (str(error).splitlines() or [repr(error)])[0][:120]
        raise SourceError(f"{path}: not readable as a PyTorch file ({reason}). Download it again.") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors.")
    source = Source(path, {})
    for name, state in [("", content), *content.items()]:
        if isinstance(state, dict):
            tensors = {k: v.detach() for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if tensors:
                source.sections[str(name)] = tensors
    if not source.sections:
        raise SourceError(f"{path}: no tensors in it (found {short(list(content)[:6])}).")
    args = content.get("args")
    values = {**content, **args} if isinstance(args, dict) else content
    plain = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    source.args = {k: v for k, v in plain.items() if isinstance(v, (str, bool, int, float, list, tuple))}
    return source


def _unwrapped(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise SourceError(f"{path}: {name} is not a plain dense tensor. Save it as one.")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, path.read_bytes())
