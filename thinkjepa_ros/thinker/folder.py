"""Finding and verifying a checkpoint folder before a framework touches it.

Nothing is downloaded and no pickle is read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoints
from .errors import ThinkerError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
#: Image size (height, width) for a checkpoint that names none: 64 tokens per pair, as the reference has it.
_DEFAULT_IMAGE_SIZE = (256, 256)
#: What of a picture is looked at: all of it, or its central part. A checkpoint is trained on one of them.
VIEWS = ("whole", "centre")
_DEFAULT_PROMPT = "Task: {instruction}\nWhat happens next?"


@dataclass(frozen=True)
class Checkpoint:
    """A verified folder: where it is, what it calls itself, and what it wants to be shown.

    image_size: (height, width) in pixels. prompt: the question, with {instruction} in it. view: what of a picture of
    another aspect is looked at: "whole" (grey bars fill the rest) or "centre" (the central part that fills the image).
    """

    folder: Path
    name: str
    trained: bool
    image_size: tuple[int, int]
    prompt: str
    view: str = "whole"

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files that hold the weights: one, or the shards that the index names."""
        if (self.folder / _WEIGHTS).is_file():
            return [self.folder / _WEIGHTS]
        return [self.folder / name for name in sorted(_shards(self.folder))]


def find(path: str | Path) -> Checkpoint:
    """Verify the folder `path`, or the local copy of the hub id `path` ("owner/name" or "owner/name@revision").

    A folder with `model.json` (ours) is checked against its SHA-256 sums; one without is taken as a released one.
    Raises ThinkerError with the remedy.
    """
    given = Path(path)
    folder = given if given.exists() else _from_hub_cache(str(path))
    if not folder.is_dir():
        raise ThinkerError(f"{folder}: a file; give the folder that holds config.json and {_WEIGHTS}.")
    _check_files(folder)
    if (folder / checkpoints.MANIFEST).exists():
        return _ours(folder)
    return Checkpoint(folder, _public_name(path, folder), True, _DEFAULT_IMAGE_SIZE, _DEFAULT_PROMPT)


def _from_hub_cache(name: str) -> Path:
    repository, _, revision = name.partition("@")
    if not _HUB_ID.fullmatch(repository):
        raise ThinkerError(f"{name}: no such folder. Give the path of a checkpoint folder, like models/mini/thinker.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        raise ThinkerError(
            f"{name}: neither a folder here nor in the local Hugging Face cache, and nothing is downloaded at run time "
            "(as with HF_HUB_OFFLINE=1). Download it once on a machine with access and give the path of the folder."
        ) from None


def _public_name(path: str | Path, folder: Path) -> str:
    # A snapshot folder of the hub cache is named after its commit; a plain folder has only its own name.
    if Path(path).exists():
        return folder.resolve().name
    return f"{str(path).partition('@')[0]}@{folder.name[:8]}"


def _check_files(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ThinkerError(
                f"{folder}: no {name} in it, so it is no Qwen3-VL checkpoint. Restore or import it again."
            )
    kind = _json(folder / "config.json").get("model_type")
    if kind != "qwen3_vl":
        raise ThinkerError(f"{folder}: config.json describes a {kind!r} model; the thinker needs a 'qwen3_vl' one.")
    if (folder / _WEIGHTS).is_file():
        return
    if (folder / _INDEX).is_file():
        shards = _shards(folder)
        missing = sorted(s for s in shards if Path(s).name != s or not (folder / s).is_file())
        if missing or not shards:
            raise ThinkerError(
                f"{folder}: weight files are missing: {', '.join(missing[:3]) or 'all'}. Import it again."
            )
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise ThinkerError(
            f"{folder}: only pickled weights ({pickles[0]}), which can run code and are never read. "
            f"Convert them to {_WEIGHTS} on the machine where they were made."
        )
    raise ThinkerError(
        f"{folder}: no {_WEIGHTS} in it. Restore the file, or write an untrained mini with "
        "`thinkjepa train thinker --steps 0`."
    )


def _shards(folder: Path) -> set[str]:
    names = _json(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ThinkerError(f"{folder / _INDEX}: its weight_map does not name files. Import it again.")
    return set(names.values())


def _ours(folder: Path) -> Checkpoint:
    try:
        manifest = checkpoints.read_manifest(folder, "thinker")
        if checkpoints.WEIGHTS not in manifest.sha256:
            raise ThinkerError(
                f"{folder / checkpoints.MANIFEST}: no SHA-256 of {checkpoints.WEIGHTS}. Restore the file."
            )
        for name in manifest.sha256:
            checkpoints.verified_file(folder, name, manifest)
    except checkpoints.CheckpointError as error:
        raise ThinkerError(str(error)) from error
    source = folder / checkpoints.MANIFEST
    size = manifest.config.get("image_size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(s, int) and 32 <= s <= 4096 for s in size)):
        raise ThinkerError(f"{source}: image_size must be two whole numbers of pixels, is {size!r}.")
    prompt = manifest.config.get("prompt", _DEFAULT_PROMPT)
    if not isinstance(prompt, str):
        raise ThinkerError(f"{source}: prompt must be text, is {prompt!r}.")
    view = manifest.config.get("view", VIEWS[0])
    if view not in VIEWS:
        raise ThinkerError(f"{source}: view must be one of {', '.join(VIEWS)}, is {view!r}.")
    # The first digits of the weights' hash tell two checkpoints of one name apart, in every message and every cache.
    name = f"{manifest.model_id}-{manifest.sha256[checkpoints.WEIGHTS][:8]}"
    return Checkpoint(folder, name, manifest.trained, (size[0], size[1]), prompt, view)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ThinkerError(f"{path}: not readable as JSON ({error}). Restore the file.") from None
    if not isinstance(value, dict):
        raise ThinkerError(f"{path}: holds no JSON object. Restore the file.")
    return value
