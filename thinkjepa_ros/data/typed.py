"""Messages of a recording as objects, by the definitions that the bag itself carries.

A definition in the bag wins over the one of the typestore: message packages change between ROS distributions, and bytes
of one read by the definition of another are nonsense or an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from rosbags.interfaces import MessageDefinitionFormat as Format
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from .recording import Recording, RecordingError, Topic

NS = 1_000_000_000
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*")


@cache
def known_types() -> Typestore:
    """The messages of ROS 2 Jazzy; never changed, so that one bag's definitions do not reach the next bag."""
    return get_typestore(Stores.ROS2_JAZZY)


def store_for(recording: Recording, topic: Topic) -> Typestore:
    """A typestore that can decode `topic`. Raises RecordingError where neither it nor the bag defines the type."""
    plain = known_types()
    # Recording hands out bytes and no definitions; its reader has them per connection
    for connection in recording._reader.connections:
        if connection.topic != topic.name or connection.msgdef.format == Format.NONE or not connection.msgdef.data:
            continue
        idl = connection.msgdef.format == Format.IDL
        try:
            text = connection.msgdef.data
            types = _checked(get_types_from_idl(text) if idl else get_types_from_msg(text, connection.msgtype))
            if all(name in plain.fielddefs and plain.fielddefs[name][1] == types[name][1] for name in types):
                return plain
            own = get_typestore(Stores.EMPTY)
            own.register(types)
            own.get_msgdef(topic.type)
            return own
        except Exception as error:  # the parser fails on damaged definitions in every way there is
            if topic.type not in plain.fielddefs:
                raise RecordingError(
                    f"{topic.name} of {recording.path}: the definition of {topic.type} in the bag cannot be used "
                    f"({_line(error)}); record it again with the message package installed"
                ) from error
    if topic.type not in plain.fielddefs:
        raise RecordingError(
            f"{topic.name} of {recording.path} has the unknown type {topic.type}, and the bag does not define it; "
            "record it with storage mcap, which writes definitions, or republish it as a standard message"
        )
    return plain


def _checked(types: Mapping[str, Any]) -> dict[str, Any]:
    """Definitions that may be registered: rosbags makes Python code of them, so nothing but names may be in them.

    Constants are left out, since nobody asks for them. Raises ValueError.
    """

    def look(part: Any) -> None:
        if isinstance(part, tuple | list):
            for inner in part:
                look(inner)
        elif isinstance(part, str) and part and not _NAME.fullmatch(part):
            raise ValueError(f"{part[:60]!r} is no name")

    for name, (_, fields) in types.items():
        look((name, fields))
    return {name: ([], fields) for name, (_, fields) in types.items()}


def read(
    recording: Recording, topics: Sequence[Topic], start_offset_s: float = 0.0
) -> Iterator[tuple[Topic, int, Any]]:
    """Decoded messages in the order of recording: (topic, recording time in ns, message). Raises RecordingError."""
    stores = {topic.name: store_for(recording, topic) for topic in topics}
    for topic, recorded_ns, data in recording.messages(topics, start_offset_s):
        yield topic, recorded_ns, decode(stores[topic.name], recording, topic, data)


def decode(store: Typestore, recording: Recording, topic: Topic, data: bytes) -> Any:
    """One message. Raises RecordingError."""
    try:
        return store.deserialize_cdr(data, topic.type)
    except Exception as error:  # damaged bytes make the generated decoders fail in every way there is
        raise RecordingError(
            f"a message on {topic.name} of {recording.path} is damaged or not of type {topic.type} ({_line(error)}); "
            "copy the recording again, or leave this topic out"
        ) from error


def required_topic(recording: Recording, name: str, kind: str = "") -> Topic:
    """The topic called `name`, which must hold messages (of type `kind` where given). Raises RecordingError."""
    topic = recording.topic(name)
    if topic is None:
        raise RecordingError(f"{recording.path} has no topic {name}; {recording.describe()}")
    if not topic.count:
        raise RecordingError(f"{name} of {recording.path} holds no message; was its publisher running while recording?")
    if kind and topic.type != kind:
        raise RecordingError(f"{name} of {recording.path} is {topic.type} and not {kind}; {recording.describe()}")
    return topic


def stamp_ns(header: Any) -> int:
    """Time of a std_msgs/Header in ns."""
    return int(header.stamp.sec) * NS + int(header.stamp.nanosec)


def frame_name(text: str) -> str:
    """A frame id without the leading slash that ROS 1 wrote."""
    return text.lstrip("/")


def some(names: Sequence[str], most: int = 20) -> str:
    """Names for a sentence, not all of very many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
