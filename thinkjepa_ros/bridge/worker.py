"""One worker thread per node, and the pace it keeps. ROS-free."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def stand_back(niceness: int) -> None:
    """Make the calling thread, and no other of the process, at least so nice."""
    thread = threading.get_native_id()
    with suppress(OSError):  # not every system knows the niceness of a single thread
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), niceness))


class Pacer:
    """At most one turn per period, on average; a sleeping worker follows a new period at once."""

    def __init__(self, period_s: float) -> None:
        self._changed = threading.Condition()
        self._period = period_s
        self._base: float | None = None
        self._closed = False

    def set_period(self, period_s: float) -> None:
        """Change the period in seconds; whoever waits is woken and waits by the new one."""
        with self._changed:
            self._period = period_s
            self._changed.notify_all()

    def hurry(self) -> None:
        """Let the next turn begin at once."""
        with self._changed:
            self._base = None
            self._changed.notify_all()

    def wait(self) -> bool:
        """Sleep until the next turn is due. False once closed."""
        with self._changed:
            while not self._closed:
                left = 0.0 if self._base is None else self._base + self._period - time.monotonic()
                if left <= 0.0:
                    return True
                self._changed.wait(left)
            return False

    def begin(self) -> None:
        """A turn begins now.

        A late turn moves the schedule by the delay less half a period: frames that arrive with jitter at exactly the
        permitted rate would otherwise lose every second one to a wait of a millisecond.
        """
        now = time.monotonic()
        with self._changed:
            self._base = now if self._base is None else min(now, max(self._base + self._period, now - self._period / 2))

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Wake and dismiss whoever waits, for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Worker:
    """A daemon thread that runs `loop` once; it knows for how long a model call has been going on.

    loop: must return soon after whatever it waits for was closed. on_crash: told about an exception that left `loop`.
    A daemon, because a model call that never returns must not keep the process.
    """

    def __init__(self, name: str, loop: Callable[[], None], on_crash: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._on_crash = on_crash
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the thread ends here either way; the node has to learn of it
            self._on_crash(error)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; False if it has not."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark a model call, for `busy_s`."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    @property
    def busy_s(self) -> float:
        """Seconds since the present model call began, 0 between calls."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
