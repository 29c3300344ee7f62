"""Reads and changes the time stamps of serialized messages, so that a recording can be played as if it happened now.

A message that begins with a std_msgs/Header has its stamp in the 8 bytes after the 4-byte CDR encapsulation; it is
patched in place and images are never decoded. Only messages with headers further inside (paths, TF) are taken apart.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from typing import Any

from rclpy.serialization import deserialize_message, serialize_message

NS = 1_000_000_000
_HEADER = "std_msgs/Header"


def message_class(name: str) -> Any:
    """The class of the message type "package/msg/Name", or None where its package is not installed."""
    package, _, short = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), short, None)
    except ImportError:
        return None


def _format(cdr: bytes) -> str:
    """struct format of the stamp: the lowest bit of the second encapsulation byte tells the byte order."""
    if len(cdr) < 12:
        raise ValueError(f"a serialized message with a header has at least 12 bytes, got {len(cdr)}")
    return "<iI" if cdr[1] & 1 else ">iI"


def read_stamp(cdr: bytes) -> int:
    """Header stamp in ns of a serialized message that begins with a header; ValueError if it is too short."""
    seconds, nanoseconds = struct.unpack_from(_format(cdr), cdr, 4)
    return seconds * NS + nanoseconds


def write_stamp(cdr: bytes, stamp_ns: int) -> bytes:
    """The same message with another header stamp."""
    data = bytearray(cdr)
    struct.pack_into(_format(cdr), data, 4, *divmod(stamp_ns, NS))
    return bytes(data)


class Restamper:
    """Applies a change of time to every header in messages of one type.

    leading: whether the type begins with a header, so that `read_stamp` holds for it.
    """

    def __init__(self, message_type: Any) -> None:
        self._type = message_type
        fields = self._type.get_fields_and_field_types()
        self.leading = next(iter(fields.values()), "") == _HEADER
        rest = list(fields.values())[1:] if self.leading else list(fields.values())
        self._inside = any(_holds_header(kind) for kind in rest)

    def __call__(self, cdr: bytes, change: Callable[[int], int]) -> bytes:
        """The message with every non-zero stamp ns replaced by change(ns); a zero stamp means "no time" and stays."""
        if self._inside:
            message = deserialize_message(cdr, self._type)
            _walk(message, change)
            return serialize_message(message)
        if self.leading and (stamp := read_stamp(cdr)):
            return write_stamp(cdr, change(stamp))
        return cdr


def _element(kind: str) -> str:
    """The type inside "pkg/Name[3]" or "sequence<pkg/Name, 5>": "pkg/Name"."""
    if kind.startswith("sequence<"):
        kind = kind[len("sequence<") : -1].partition(",")[0]
    return kind.partition("[")[0]


def _holds_header(kind: str) -> bool:
    kind = _element(kind)
    if kind == _HEADER:
        return True
    inner = message_class(kind.replace("/", "/msg/")) if "/" in kind else None
    return inner is not None and any(map(_holds_header, inner.get_fields_and_field_types().values()))


def _walk(message: Any, change: Callable[[int], int]) -> None:
    for name, kind in message.get_fields_and_field_types().items():
        if "/" not in kind:
            continue
        value = getattr(message, name)
        if _element(kind) == _HEADER:
            for header in value if isinstance(value, list) else [value]:
                stamp = header.stamp.sec * NS + header.stamp.nanosec
                if stamp:
                    header.stamp.sec, header.stamp.nanosec = divmod(change(stamp), NS)
        else:
            for part in value if isinstance(value, list) else [value]:
                _walk(part, change)
