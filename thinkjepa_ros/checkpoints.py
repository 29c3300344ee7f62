"""One checkpoint format, one loader: a folder with `model.json` and `model.safetensors`.

`model.json` holds the configuration, the SHA-256 of every weight file, where the weights come from ("domain",
"trained")
and the training record. Weights are data: only safetensors is read, never a pickle, and nothing is read whose hash
differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FORMAT = "thinkjepa_ros/1"
MANIFEST = "model.json"
WEIGHTS = "model.safetensors"
#: Nothing that this package loads at run time is larger; a bigger file is a mistake or an attack.
MAX_BYTES = 64 * 1024**3
_MAX_MANIFEST_BYTES = 4 * 1024**2
_ID = re.compile(r"[\w .:/@+()\-]{1,200}")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the text names the file, the reason and the remedy."""


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


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader (or a power cut) sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(folder: str | Path, manifest: Manifest, state: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint folder. The manifest is written last: a folder without a matching one does not load."""
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    blob = to_bytes({k: v.detach().cpu().contiguous() for k, v in state.items()})
    write_atomically(folder / WEIGHTS, blob)
    record = {
        "format": FORMAT,
        "kind": manifest.kind,
        "model_id": manifest.model_id,
        "trained": manifest.trained,
        "domain": manifest.domain,
        "config": manifest.config,
        "training": manifest.training,
        "sha256": {**manifest.sha256, WEIGHTS: hashlib.sha256(blob).hexdigest()},
    }
    write_atomically(folder / MANIFEST, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def read_manifest(folder: str | Path, kind: str) -> Manifest:
    """Read and check `model.json`. Raises CheckpointError."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder. Give the path of a checkpoint folder, such as models/mini.")
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "a file"
        raise CheckpointError(
            f"{folder}: no {MANIFEST} in it (found: {found or 'nothing'}). "
            "A checkpoint of this package is made by `thinkjepa train`."
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path}: larger than {_MAX_MANIFEST_BYTES >> 20} MiB, which no manifest is.")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}). Restore the file.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format is {record.get('format') if isinstance(record, dict) else None!r}, "
            f"this version reads {FORMAT!r}."
        )
    if record.get("kind") != kind:
        raise CheckpointError(f"{path}: holds a {record.get('kind')!r}, a {kind!r} is needed here.")
    for name, want in (
        ("model_id", str),
        ("trained", bool),
        ("domain", str),
        ("config", dict),
        ("training", dict),
        ("sha256", dict),
    ):
        if not isinstance(record.get(name), want):
            raise CheckpointError(f"{path}: field {name!r} must be of type {want.__name__}, is {record.get(name)!r}.")
    if not _ID.fullmatch(record["model_id"]):
        raise CheckpointError(f"{path}: model_id {record['model_id']!r} is not a plain name of at most 200 characters.")
    return Manifest(**{k: record[k] for k in ("kind", "model_id", "config", "trained", "domain", "training", "sha256")})


def verified_file(folder: str | Path, name: str, manifest: Manifest) -> Path:
    """Path of a weight file after its place, size and SHA-256 were checked. Raises CheckpointError."""
    folder = Path(folder)
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: missing. Restore the checkpoint folder.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path}: points outside its folder ({path.resolve()}). Copy the file into the folder.")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_BYTES >> 30} GiB.")
    want = manifest.sha256.get(name)
    have = sha256_of(path)
    if have != want:
        raise CheckpointError(
            f"{path}: SHA-256 is {have[:12]}…, {MANIFEST} says {str(want)[:12]}…. "
            "The file was changed or cut; restore it, or train it again."
        )
    return path


def load_state(folder: str | Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Tensors of a verified checkpoint, on the CPU. Raises CheckpointError."""
    from safetensors.torch import load_file

    path = verified_file(folder, WEIGHTS, manifest)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own SafetensorError, OSError or ValueError
        raise CheckpointError(f"{path}: not readable as safetensors ({error}).") from None


def fill(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load `state` into `module`, exactly: same names, same shapes, all finite. Raises CheckpointError."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{source}: tensors do not match the configuration (missing {missing[:3]}, not expected {extra[:3]})."
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {list(tensor.shape)}, the configuration asks for {list(own[name].shape)}."
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds values that are not finite.")
    module.load_state_dict(state)
