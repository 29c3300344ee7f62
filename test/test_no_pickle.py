"""At run time nothing is unpickled: the nodes' models load and work in a process where every unpickler is watched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MINI = Path(__file__).parents[1] / "models" / "mini"

#: Whatever the pickle module, its C twin, or torch unpickles is written down with the place it was asked from. Finding
#: a class is an audit event of both unpicklers; reading without one is seen by their constructors and in torch.
WATCH = """
import _pickle, pickle, sys, traceback
seen = []

def note(what):
    seen.append(what)

def hook(event, arguments):
    if event == "pickle.find_class":
        note(f"find_class {arguments}")

def watched(function, name):
    def call(*arguments, **named):
        note(f"{name} from " + traceback.format_stack()[-2])
        return function(*arguments, **named)
    return call

def watched_class(base, name):
    class Watched(base):
        def __init__(self, *arguments, **named):
            note(f"{name} from " + traceback.format_stack()[-2])
            super().__init__(*arguments, **named)
    return Watched

sys.addaudithook(hook)
for module in (pickle, _pickle):
    for name in ("load", "loads"):
        setattr(module, name, watched(getattr(module, name), f"{module.__name__}.{name}"))
    module.Unpickler = watched_class(module.Unpickler, f"{module.__name__}.Unpickler")
pickle._Unpickler = watched_class(pickle._Unpickler, "pickle._Unpickler")

import torch
import torch._weights_only_unpickler
for module in (torch, torch.serialization, torch._weights_only_unpickler):
    module.load = watched(module.load, f"{module.__name__}.load")
"""

FORECAST = """
import numpy as np
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.values import Frame
forecaster = Forecaster.load({mini!r})
for i in range(12):
    image = np.full((128, 128, 3), 20 * i, dtype=np.uint8)
    forecaster.observe(Frame(image, i * 100_000_000, "camera"))
assert np.isfinite(forecaster.forecast().positions).all()
"""

THINK = """
import numpy as np
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.values import Frame
thinker = Thinker.load({thinker!r})
frames = [Frame(np.full((128, 128, 3), 20 * i, dtype=np.uint8), i * 300_000_000, "camera") for i in range(4)]
assert thinker.think(frames, "", max_new_tokens=2).present == (True, True)
"""

LOAD = {
    "torch.load": "torch.load({pt!r}, weights_only=False)",
    "torch.load, weights only": "torch.load({pt!r}, weights_only=True)",
    "torch.load of the legacy format": "torch.load({legacy!r}, weights_only=False)",
    "numpy": "import numpy; numpy.load({npy!r}, allow_pickle=True)",
    "pickle": "pickle.loads(pickle.dumps({{1: 2}}))",
    "the unpickler in C": "import io; pickle.Unpickler(io.BytesIO(pickle.dumps([1]))).load()",
    "the unpickler in Python": "import io; pickle._Unpickler(io.BytesIO(pickle.dumps([1]))).load()",
    "the import of a checkpoint": (
        "from thinkjepa_ros.importers.source import read; assert 'a' in read({pt!r}).sections['']"
    ),
}


def unpickled(code: str) -> str:
    """What was unpickled while `code` ran, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WATCH + code + "\nprint('UNPICKLED', seen)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rpartition("UNPICKLED ")[2].strip()


@pytest.mark.parametrize("code", [FORECAST, THINK], ids=["predictor", "thinker"])
def test_nothing_is_unpickled_at_run_time(code: str) -> None:
    assert unpickled(code.format(mini=str(MINI), thinker=str(MINI / "thinker"))) == "[]"


def test_the_watch_sees_every_way_to_unpickle(tmp_path: Path) -> None:
    """The control: without it the test above would prove nothing."""
    import numpy
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    numpy.save(tmp_path / "c.npy", numpy.array([{1: 2}], dtype=object), allow_pickle=True)
    places = {"pt": str(tmp_path / "a.pt"), "legacy": str(tmp_path / "b.pt"), "npy": str(tmp_path / "c.npy")}
    code = "\n".join(f"seen.clear()\n{line.format(**places)}\nassert seen, {name!r}" for name, line in LOAD.items())
    assert unpickled(code) != "[]"
