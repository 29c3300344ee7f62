"""Fixtures for every test: where recordings lie, and (in ros_kit.py) nodes on a ROS domain of their own.

The environment is set before any ROS module is imported: messages check their fields, discovery stays on this machine,
logs go to a temporary folder, one thread per process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="thinkjepa_ros_log_")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
atexit.register(shutil.rmtree, os.environ["ROS_LOG_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nodes keep time: what starts one does not share the machine with other tests (see `make test`)."""
    for item in items:
        if "ros_domain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Commands set the threads of torch for their process, which here is that of all tests: sums would round otherwise
    in the next one.
    """
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared recordings: $THINKJEPA_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("THINKJEPA_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared recordings at {folder}; set THINKJEPA_SHARED to their folder")
    return folder


@pytest.fixture
def ros_domain():
    """A ROS domain that no other test on this machine uses, in the environment for nodes and child processes."""
    from ros_kit import reserved_domain

    with reserved_domain() as number:
        yield number


@pytest.fixture
def processes(ros_domain, tmp_path):
    """Starts nodes as processes; whatever still runs at the end is killed."""
    from ros_kit import Processes

    group = Processes(tmp_path)
    yield group
    group.close()


@pytest.fixture
def peer(ros_domain):
    """A ROS node of the test, spinning in a thread of its own."""
    from ros_kit import Peer

    with Peer() as node:
        yield node


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A small predictor with random weights and open guidance gates, made for the mini thinker's pyramids."""
    from ros_kit import build_small_model

    return build_small_model(tmp_path_factory.mktemp("models") / "small")
