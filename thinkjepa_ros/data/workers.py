"""What every process of a pool does first."""

from __future__ import annotations

import os
import signal
import threading
import time


def guard_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it: a killed parent cannot tell its workers to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
