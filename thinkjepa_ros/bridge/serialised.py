"""Values as the bytes that travel between processes."""

from __future__ import annotations

from rclpy.serialization import serialize_message

from ..values import Guidance
from .messages import guidance_to_message


def guidance_bytes(guidance: Guidance) -> bytes:
    """A guidance as its message, serialised. ValueError where it does not fit into one."""
    return serialize_message(guidance_to_message(guidance))
