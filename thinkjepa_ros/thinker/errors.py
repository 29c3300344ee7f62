"""What can go wrong in a thought. Every text is a sentence that names the thing and the remedy."""

from __future__ import annotations


class ThinkerError(RuntimeError):
    """The thinker cannot be loaded, or this thought failed; the next thought may work."""


class Cancelled(ThinkerError):
    """The thought was cancelled before it ended. Nothing of it is published."""


class TimedOut(ThinkerError):
    """The deadline passed before the prompt was read, so there is nothing to export."""
