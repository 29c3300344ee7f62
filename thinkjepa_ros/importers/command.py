"""`thinkjepa import`: a foreign checkpoint becomes folders of our own format, one per part, all or nothing."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from .. import checkpoints
from ..checkpoints import Manifest
from ..files import CheckpointError
from ..files import Progress as Count
from ..version import __version__
from .source import Options, Part, Source, SourceError, read

#: Modules of this package that are `source.Converter`s; a source is offered to all of them.
CONVERTERS = ("vjepa2", "vjepa2_ac", "thinkjepa", "thinkjepa_head")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]
_NOT_IN_AN_ID = re.compile(r"[^\w .:/@+()\-]")

#: Gives a callback for the bytes of a named stage of the work.
Show = Callable[[str], Count]


def run(
    source: str,
    out: Path,
    options: Options,
    *,
    kind: str | None = None,
    revision: str | None = None,
    model_id: str | None = None,
    licence: str = "",
    force: bool = False,
) -> list[Path]:
    """Import `source` (a path or a Hugging Face id) into OUT/<part> for each part; returns these folders.

    The parts are written beside OUT, loaded back and compared, and only then moved to their place. Raises SourceError.
    """
    _clean_up(out)
    _check_place(out, force)
    with _terminable(), _progress() as show:
        path, name, origin = _locate(source, revision)
        foreign = read(path, show("reading"))
        parts = convert(foreign, options, kind)
        origin |= {"sha256": foreign.sha256, "imported_by": f"thinkjepa_ros {__version__}"}
        try:
            with _workshop(out, force) as folder:
                for module, part in parts:
                    manifest = Manifest(
                        part.kind,
                        f"{model_id or _NOT_IN_AN_ID.sub('_', name)[:150]}/{part.name}",
                        part.config,
                        True,
                        f"as published ({module.TITLE})",
                        licence=licence,
                        source={**origin, **({"note": part.note} if part.note else {})},
                    )
                    _write(folder / part.name, manifest, part, module.BUILD[part.kind], show)
        except CheckpointError as error:  # what was written does not load: say it of the place it was meant for
            raise SourceError(re.sub(r"/[^/]*\.import-\d+(?=/)", f"/{out.name}", str(error))) from error
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{out}: cannot be written ({error}). Check its place, rights and free space.") from error
    folders = [out / part.name for _, part in parts]
    for (_, part), place in zip(parts, folders, strict=True):
        _say(part, place)
    print(f"licence: {licence or 'not given; find it out where the weights come from, and say it with --licence'}")
    return folders


def converters() -> list[ModuleType]:
    return [importlib.import_module(f".{name}", __package__) for name in CONVERTERS]


def convert(source: Source, options: Options, kind: str | None = None) -> list[tuple[ModuleType, Part]]:
    """All parts that the converters find in a source, or those of one kind. Raises SourceError."""
    kinds = sorted({k for c in converters() for k in c.BUILD})
    if kind is not None and kind not in kinds:
        raise SourceError(f"--as {kind}: no such kind; there are {', '.join(kinds)}.")
    parts: list[tuple[ModuleType, Part]] = []
    asked = [c for c in converters() if (kind is None or kind in c.BUILD) and c.recognises(source)]
    for converter in asked:
        others = sorted({k for c in asked if c is not converter for k in c.BUILD})
        hint = f" The rest can be had with {' or '.join(f'--as {k}' for k in others)}." if others and not kind else ""
        try:
            found = converter.convert(source, options)
        except CheckpointError as error:
            raise SourceError(f"{error}{hint}") from error
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
            raise SourceError(f"{source.path}: not {converter.TITLE} as published ({error!r:.200}).{hint}") from error
        parts += [(converter, part) for part in found if kind in (None, part.kind)]
    if not parts:
        some = [name for state in source.sections.values() for name in list(state)[:3]]
        raise SourceError(
            f"{source.path}: holds nothing that can be imported{f' as {kind}' if kind else ''} "
            f"(its tensors are called {', '.join(some[:6])} …). `thinkjepa import --help` lists what can be."
        )
    names = [part.name for _, part in parts]
    if len(names) != len(set(names)):
        raise SourceError(f"{source.path}: two parts are called {max(names, key=names.count)}. Take one with --as.")
    for _, part in parts:
        for name, tensor in part.state.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise SourceError(f"{source.path}: {name} of the {part.kind} holds values that are not finite.")
    return [(converter, _in_float32(part)) for converter, part in parts]


def _in_float32(part: Part) -> Part:
    """Modules are built in float32; half precision is a choice of the machine that runs them."""
    state = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in part.state.items()}
    return Part(part.kind, part.name, part.config, state, part.note)


def _write(folder: Path, manifest: Manifest, part: Part, build: Callable[[dict[str, Any]], Any], show: Show) -> None:
    """Write a part, load it as it will be loaded, and compare."""
    checkpoints.save(folder, manifest, part.state, show(f"writing {part.name}"))
    module, _ = checkpoints.load_module(folder, part.kind, build)
    for name, tensor in module.state_dict().items():
        if not torch.equal(tensor, part.state[name]):
            raise SourceError(f"{folder}: {name} is not what was written. Is the disk sound?")


def _say(part: Part, place: Path) -> None:
    parameters = sum(t.numel() for t in part.state.values())
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in part.state.values()}))
    print(f"{part.kind}: {parameters:,} parameters, {types}, in {place}")
    print(f"  sha256 {checkpoints.read_manifest(place, part.kind).sha256[checkpoints.WEIGHTS]}")
    if part.note:
        print(f"  {part.note}")


def _locate(source: str, revision: str | None) -> tuple[Path, str, dict[str, Any]]:
    """Path of the source, its name, and what model.json says about where it is from."""
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source):
        if revision:
            raise SourceError(f"{source}: is not a Hugging Face id, so it has no --revision.")
        called = path if path.is_file() else path.resolve()  # a link to a file has the better name, "." has none
        return path, called.stem if path.is_file() else called.name, {"name": called.name}
    folder = _from_hub(source, revision)
    return folder, source, {"name": source, "revision": folder.name}


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{name}@{revision}" if revision else name
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except GatedRepoError:
        raise SourceError(
            f"{what}: asks for a licence to be accepted; do so on its page, then `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise SourceError(f"{what}: no such file, folder or public Hugging Face repository. Check the name.") from None
    except Exception as error:  # offline and not in the cache, no network, a proxy …
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise SourceError(
            f"{what}: no such file or folder, not in the local Hugging Face cache, and it cannot be downloaded "
            f"({reason}). Download it where there is access (`hf download {name}`) and give the folder."
        ) from None
    if not any(folder.glob("*.safetensors")):
        raise SourceError(f"{what}: the copy in the local Hugging Face cache, or the repository, has no .safetensors.")
    return folder


def _check_place(out: Path, force: bool) -> None:
    """OUT must be free, or (with force) hold nothing but imported parts."""
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise SourceError(
            f"{out}: is there already and is left as it is. Give another folder, or --force to replace it."
        )
    inside = list(out.iterdir()) if out.is_dir() and not out.is_symlink() else [out]
    if odd := [p.name for p in inside if not (p / checkpoints.MANIFEST).is_file()]:
        raise SourceError(
            f"{out}: holds more than imported parts ({odd[0]}), so it is not replaced. Give another folder."
        )


@contextlib.contextmanager
def _workshop(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside OUT that becomes OUT when the block ends, and is gone when it fails."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{out.name}.import-{os.getpid()}"
    folder.mkdir()
    before = parent / f".{out.name}.before-{os.getpid()}"
    try:
        yield folder
        _check_place(out, force)
        if out.exists():
            out.rename(before)
        folder.rename(out)
    except BaseException:
        if before.exists() and not out.exists():
            before.rename(out)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _clean_up(out: Path) -> None:
    """Undo what an import to OUT left that was killed: half of the new, or the old between the two renames."""
    parent = out.absolute().parent
    for left in [*parent.glob(f".{out.name}.before-*"), *parent.glob(f".{out.name}.import-*")]:
        if _alive(left.name.rpartition("-")[2]):
            continue
        if ".before-" in left.name and not out.exists():
            left.rename(out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress() -> Iterator[Show]:
    """Bars on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(stage: str) -> Count:
            task = bars.add_task(stage, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield show
