"""Files from outside are read strictly, and files of ours written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

#: Nothing that this package loads at run time is larger; a bigger file is a mistake or an attack.
MAX_BYTES = 64 * 1024**3
_MAX_HEADER_BYTES = 16 * 1024**2
_MAX_DEPTH = 64
#: safetensors' names of the types that are read.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

#: Called with (bytes done, bytes in all).
Progress = Callable[[int, int], None]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the text names the file, the reason and the remedy."""


class Entry(NamedTuple):
    """A tensor as the header of a safetensors file describes it."""

    dtype: str  #: torch's name, such as "float32"
    shape: tuple[int, ...]
    nbytes: int


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Errors of the file system as CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Check its place and rights.") from None


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            if progress:
                progress(done, total)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader (or a power cut) sees the old file or the new one, never half."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends, and is gone when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: no NaN or infinity, no key twice, text that can be encoded. Raises CheckpointError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(items) != len(dict(items)):
            raise ValueError("a key stands in it twice")
        return dict(items)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:20]} is not a finite number")
        return value

    try:
        record = json.loads(data.decode(), object_pairs_hook=pairs, parse_float=number, parse_constant=number)
        json.dumps(record, ensure_ascii=False).encode()
        _check_depth(record, _MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}). Restore the file.") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: holds no JSON object. Restore the file.")
    return record


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError, naming the remedy, where a PyTorch file stands in the place of safetensors."""
    with path.open("rb") as file:
        start = file.read(9)
    # The length of a good header may begin with the byte of a pickle; its JSON begins with a brace.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise CheckpointError(
            f"{path}: a pickle (PyTorch .pt) and not safetensors; it could run code and is never read here. "
            "Turn it into a checkpoint with `thinkjepa import`."
        )


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, from its header alone, which must describe every byte. Raises CheckpointError.

    Format: 8 bytes little-endian length, that much JSON, then the data.
    """

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: not readable as safetensors ({why}). Restore the file.")

    with in_words(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if not start:
            raise refuse("it is empty")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise refuse("it is cut, or something else")
        if length > _MAX_HEADER_BYTES:
            raise refuse(f"its header is larger than {_MAX_HEADER_BYTES >> 20} MiB")
        text = file.read(length)
    record = read_json(path, text)
    record.pop("__metadata__", None)
    entries, spans = {}, []
    for name, value in record.items():
        entry, span = _entry(value)
        if entry is None:
            raise refuse(f"its header describes {short(name)} as {short(value)}")
        entries[name] = entry
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise refuse("its tensors overlap or leave holes")
        end = last
    if end != size - 8 - length:
        raise refuse(f"its tensors take {end} bytes, the file holds {size - 8 - length}")
    return entries


def _entry(value: Any) -> tuple[Entry | None, tuple[int, int]]:
    """One tensor of a header and its place, or None where the description is not a sane one."""

    def sizes(numbers: Any, most: int) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= most for n in numbers)

    nothing = None, (0, 0)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return nothing
    dtype, shape, place = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES or not sizes(shape, MAX_BYTES) or not sizes(place, MAX_BYTES):
        return nothing
    nbytes = math.prod(shape) * _BYTES[dtype]
    if len(shape) > 8 or len(place) != 2 or place[1] - place[0] != nbytes:
        return nothing
    return Entry(_DTYPES[dtype], tuple(shape), nbytes), (place[0], place[1])
