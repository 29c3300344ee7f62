"""The environment of our processes: room for camera images in Fast DDS, a quiet allocator, one torch thread.

All of it has to be in place before a process starts, so launch files, `make demo` and the benchmarks ask here.
No ROS needed.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path

from thinkjepa_ros import resources

#: The name that Kilted and later read, and the older one, which Humble and Jazzy read and Kilted warns about.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_OLDER = ("humble", "iron", "jazzy")

#: glibc gives every image-sized buffer back to the kernel and fetches it again, page by page; keeping them halves the
#: latency of a raw image.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(16 << 20),
}

#: Two processes whose OpenMP threads spin for the same two cores stop each other.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

_FASTDDS = ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp")


def profile_path() -> Path:
    """config/fastdds.xml. Raises FileNotFoundError where it is neither in the source tree nor installed."""
    return resources.find("config/fastdds.xml")


def transport_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Variables that make Fast DDS carry raw images; none if a profile or another RMW is chosen in `base`."""
    if (base.get("RMW_IMPLEMENTATION") or _FASTDDS[0]) not in _FASTDDS:
        return {}
    if any(base.get(name) for name in PROFILE_VARIABLES):
        return {}
    return {PROFILE_VARIABLES[base.get("ROS_DISTRO") in _OLDER]: str(profile_path())}


def added_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """What `child_environment` adds to `base` (default: the environment here); nothing that is set is replaced."""
    base = os.environ if base is None else base
    tuning = {name: value for name, value in {**MALLOC, **THREADS}.items() if not base.get(name)}
    return {**transport_environment(base), **tuning}


def child_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a process of ours, made from `base` (default: this process's environment).

    Adds the Fast DDS profile (unless a profile or another RMW is chosen), allocator settings and one OpenMP thread.
    """
    base = os.environ if base is None else base
    return {**base, **added_environment(base)}


def free_domain() -> int:
    """A ROS domain that nobody on this machine uses: the port of its first participant is free.

    Raises RuntimeError where there is none.
    """
    for domain in random.sample(range(1, 100), 99):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise RuntimeError("every ROS domain from 1 to 99 is in use on this machine; end some of the nodes that run here")
