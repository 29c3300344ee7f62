"""A mailbox for one: the newest item wins, and whoever loses is handed back so that it can be counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class NewestWins(Generic[T]):
    """One-deep hand-over from a callback to a worker thread.

    No item vanishes: put() returns what it displaced, clear() returns what was waiting, everything else comes out of
    get().
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False

    def put(self, item: T) -> T | None:
        """Leave `item` for the worker. Returns the item that nobody fetched in time, or `item` itself once closed.

        ValueError for None, which get() uses for "nothing came".
        """
        if item is None:
            raise ValueError("None cannot be handed over: get() returns None when nothing came")
        with self._changed:
            if self._closed:
                return item
            superseded, self._item = self._item, item
            self._changed.notify()
            return superseded

    def get(self, timeout: float | None = None) -> T | None:
        """The newest item as soon as there is one; None after `timeout` seconds or once closed.

        timeout None waits without limit. An item that still waits when the slot closes stays there for clear().
        """
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed, timeout)
            if self._closed:
                return None
            item, self._item = self._item, None
            return item

    def clear(self) -> list[T]:
        """Empty the slot; returns what was in it (none or one item)."""
        with self._changed:
            item, self._item = self._item, None
            return [] if item is None else [item]

    def close(self) -> None:
        """Wake every waiting get() and let nothing through any more. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        """1 while an item waits, else 0."""
        with self._changed:
            return int(self._item is not None)
