"""One checkpoint format, one loader: a folder with `model.json` and `model.safetensors`.

`model.json` holds the configuration (architecture, time base, joints, camera), the SHA-256 of every weight file, the
licence, where the weights come from ("domain", "trained", "source") and the training record. Weights are data: only
safetensors is read, never a pickle.

`load_module` verifies before it allocates: place and size of the file, SHA-256, then names, shapes and types in the
file's header against the module that the configuration describes, built on torch's meta device. What does not fit is
refused in one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .files import (
    MAX_BYTES,
    CheckpointError,
    Entry,
    Progress,
    in_words,
    read_header,
    read_json,
    refuse_pickle,
    replacing,
    sha256_of,
    short,
    write_atomically,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    Module = TypeVar("Module", bound=nn.Module)

FORMAT = "thinkjepa_ros/1"
MANIFEST = "model.json"
WEIGHTS = "model.safetensors"
_MAX_MANIFEST_BYTES = 4 * 1024**2
#: No size in a configuration is larger. It keeps loops over "depth" short; memory is bounded by the weight file.
_MAX_NUMBER = 10**7
#: Tables that a module computes for itself (positions, masks), beside its weights.
_MAX_BUFFER_BYTES = 2 * 1024**3
_ID = re.compile(r"[\w .:/@+()\-]{1,200}")
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"model_id": str, "trained": bool, "domain": str, "config": dict, "training": dict, "sha256": dict}
_LATER_FIELDS: dict[str, type] = {"licence": str, "source": dict}  #: absent in checkpoints of 0.1


@dataclass(frozen=True)
class Manifest:
    """The contents of `model.json`."""

    kind: str
    model_id: str
    config: dict[str, Any]
    trained: bool
    domain: str
    training: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    source: dict[str, Any] = field(default_factory=dict)  #: what it was imported from: file names, SHA-256

    @property
    def name(self) -> str:
        """Model id and the beginning of the weights' hash: tells two trainings of one kind apart."""
        return f"{self.model_id} {self.sha256.get(WEIGHTS, '')[:8]}".strip()


def save(
    folder: str | Path, manifest: Manifest, state: dict[str, torch.Tensor], progress: Progress | None = None
) -> None:
    """Write a checkpoint folder. The manifest is written last: a folder without a matching one does not load.

    progress counts the bytes hashed after they were written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)
        digest = sha256_of(temporary, progress)
    record = {
        "format": FORMAT,
        "kind": manifest.kind,
        "model_id": manifest.model_id,
        "trained": manifest.trained,
        "domain": manifest.domain,
        "config": manifest.config,
        "training": manifest.training,
        "sha256": {**manifest.sha256, WEIGHTS: digest},
    }
    record |= {name: value for name in _LATER_FIELDS if (value := getattr(manifest, name))}
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / MANIFEST, (text + "\n").encode())


def read_manifest(folder: str | Path, kind: str) -> Manifest:
    """Read and check `model.json`. Raises CheckpointError."""
    folder = Path(folder)
    path = folder / MANIFEST
    with in_words(folder):
        if not folder.exists():
            raise CheckpointError(
                f"{folder}: no such folder. Give the path of a checkpoint folder, such as models/mini."
            )
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "a file"
            raise CheckpointError(
                f"{folder}: no {MANIFEST} in it (found: {found or 'nothing'}). "
                "A checkpoint of this package is made by `thinkjepa train`, or by `thinkjepa import` from another's."
            )
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_MANIFEST_BYTES >> 20} MiB, which no manifest is.")
        record = read_json(path, path.read_bytes())
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format is {short(record.get('format'))}, this version reads {FORMAT!r}.")
    if record.get("kind") != kind:
        raise CheckpointError(f"{path}: holds a {short(record.get('kind'))}, a {kind!r} is needed here.")
    for name, want in _LATER_FIELDS.items():
        record.setdefault(name, want())
    for name, want in (_FIELDS | _LATER_FIELDS).items():
        if not isinstance(record.get(name), want):
            raise CheckpointError(
                f"{path}: field {name!r} must be of type {want.__name__}, is {short(record.get(name))}."
            )
    if not _ID.fullmatch(record["model_id"]):
        raise CheckpointError(
            f"{path}: model_id {short(record['model_id'])} is not a plain name of at most 200 characters."
        )
    for name in ("domain", "licence"):
        if len(record[name]) > 500 or not record[name].isprintable():
            raise CheckpointError(f"{path}: {name} {short(record[name])} is not one line of plain text.")
    return Manifest(kind, **{name: record[name] for name in (*_FIELDS, *_LATER_FIELDS)})


def verified_file(folder: str | Path, name: str, manifest: Manifest) -> Path:
    """Path of a weight file after its place, size and SHA-256 were checked. Raises CheckpointError."""
    folder = Path(folder)
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise CheckpointError(f"{folder / MANIFEST}: names the file {short(name)}, which points outside its folder.")
    path = folder / name
    with in_words(path):
        if path.is_dir():
            raise CheckpointError(f"{path}: a folder, where a file should be. Restore the checkpoint folder.")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing. Restore the checkpoint folder.")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{path}: points outside its folder ({path.resolve()}). Copy the file into the folder."
            )
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_BYTES >> 30} GiB.")
        refuse_pickle(path)
        have = sha256_of(path)
    want = manifest.sha256.get(name)
    if not isinstance(want, str) or not _HASH.fullmatch(want):
        raise CheckpointError(f"{folder / MANIFEST}: no SHA-256 of {name} ({short(want)}). Restore the file.")
    if have != want:
        raise CheckpointError(
            f"{path}: SHA-256 is {have[:12]}…, {MANIFEST} says {want[:12]}…. "
            "The file was changed or cut; restore it, train it or import it again."
        )
    return path


def save_module(
    kind: str,
    folder: str | Path,
    net: Any,
    model_id: str,
    *,
    trained: bool,
    domain: str,
    training: dict[str, Any] | None = None,
    licence: str = "",
) -> None:
    """Write a checkpoint folder of a module whose `config` is a dataclass, for `load_module`."""
    config = dataclasses.asdict(net.config)
    save(folder, Manifest(kind, model_id, config, trained, domain, training or {}, licence=licence), net.state_dict())


def load_module(folder: str | Path, kind: str, build: Callable[[dict[str, Any]], Module]) -> tuple[Module, Manifest]:
    """The module of a checkpoint folder, on the CPU, in evaluation mode, without gradients. Raises CheckpointError.

    build makes the module from the manifest's `config`; it is called on the meta device first. Its parameters and
    persistent buffers must be exactly the tensors of the file; what else it computes for itself is kept as built.
    """
    import torch
    from safetensors.torch import load_file

    manifest = read_manifest(folder, kind)
    source = Path(folder) / MANIFEST
    if (largest := _largest(manifest.config)) > _MAX_NUMBER:
        raise CheckpointError(f"{source}: the configuration is not usable ({largest:g} is larger than any size).")
    path = verified_file(folder, WEIGHTS, manifest)
    header = read_header(path)
    most = 2 * len(header) + 100  # some tensors may be missing, which is said by name; thousands are a wrong "depth"
    try:
        with torch.device("meta"), _parameters_on_meta(most):
            plan = build(manifest.config)
    except Exception as error:  # whatever a constructor says to sizes that do not fit together
        raise CheckpointError(f"{source}: the configuration is not usable ({error}).") from error
    _compare(plan, header, path)
    tables = sum(b.nbytes for b in plan.buffers())
    if tables > _MAX_BUFFER_BYTES + path.stat().st_size:
        raise CheckpointError(f"{source}: the configuration asks for {tables >> 30} GiB of tables. Restore the file.")
    with _parameters_on_meta(most):
        module = build(manifest.config)
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not a view of a file that may change
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite. Train or import it again.")
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False), manifest


@contextmanager
def _parameters_on_meta(most: int) -> Iterator[None]:
    """Modules built in this block, in this thread, get parameters without memory, and no more of them than `most`."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, count = threading.get_ident(), 0

    def hook(module: nn.Module, name: str, parameter: torch.Tensor | None) -> torch.Tensor | None:
        nonlocal count
        if parameter is None or threading.get_ident() != thread:
            return None
        count += 1
        if count > most:
            raise ValueError("it describes many more tensors than the file holds")
        return None if parameter.is_meta else torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]  # its type forgets the result
    try:
        yield
    finally:
        handle.remove()


def _compare(plan: nn.Module, header: dict[str, Entry], path: Path) -> None:
    """Names, shapes and types of the file must be those of the module."""
    own = plan.state_dict()
    missing, extra = sorted(own.keys() - header.keys()), sorted(header.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path}: its tensors are not those of the configuration (missing {short(missing[:3])}, "
            f"not expected {short(extra[:3])}). Restore {MANIFEST} and {WEIGHTS} together."
        )
    for name, entry in header.items():
        want = Entry(str(own[name].dtype).removeprefix("torch."), tuple(own[name].shape), own[name].nbytes)
        if entry != want:
            raise CheckpointError(
                f"{path}: {name} is {entry.dtype} {list(entry.shape)}, the configuration asks for "
                f"{want.dtype} {list(want.shape)}. Restore {MANIFEST} and {WEIGHTS} together."
            )


def _largest(value: Any) -> float:
    """The largest magnitude of a number anywhere in JSON values."""
    if isinstance(value, dict):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, (int, float)) else 0
