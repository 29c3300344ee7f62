"""`make` on a machine where something is missing: a sentence that names it and the remedy, never a traceback."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bootstrap(tmp_path, monkeypatch) -> ModuleType:
    """scripts/bootstrap.py for a repository in an empty folder."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name, folder in (("ROOT", ""), ("VENV", ".venv"), ("CACHE", ".cache"), ("BUILD", "build/ros")):
        monkeypatch.setattr(module, name, tmp_path / folder)
    monkeypatch.setattr(module, "LOG", tmp_path / ".cache" / "setup.log")
    monkeypatch.setattr(module, "STAMPS", tmp_path / ".venv" / "stamps.json")
    (tmp_path / ".cache").mkdir()
    for name in ("TORCH", "TORCH_INDEX", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_old_python(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "sys", SimpleNamespace(version_info=(3, 8, 0)))
    with pytest.raises(bootstrap.SetupError, match=r"3\.11 to 3\.14 is needed and this is python3\.8.*PYTHON="):
        bootstrap.check_python()


def test_no_venv_module(bootstrap, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(bootstrap.SetupError, match=r"no venv module.*apt-get install python3\.\d+-venv"):
        bootstrap.check_python()


def test_no_python_headers(bootstrap, monkeypatch, tmp_path):
    headers = SimpleNamespace(get_paths=lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(bootstrap, "sysconfig", headers)
    with pytest.raises(bootstrap.SetupError, match=r"header files.*apt-get install python3\.\d+-dev"):
        bootstrap.check_python()


def test_no_compiler(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match=r"compiler was found.*apt-get install g\+\+"):
        bootstrap.check_compiler()


def test_full_disk(bootstrap, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**10, 10**10, 5 * 10**8)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(bootstrap.SetupError, match=r"3 GB of disk space are needed in .*, 0\.5 GB are free"):
        bootstrap.check_space("cpu")


@pytest.mark.parametrize(("wanted", "offered"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_index_without_the_wanted_torch(bootstrap, monkeypatch, wanted, offered):
    monkeypatch.setenv("TORCH", wanted)
    monkeypatch.setattr(bootstrap, "torch_build", lambda *index: offered)
    with pytest.raises(bootstrap.SetupError, match=f"TORCH={wanted} was asked for.*TORCH_INDEX.*TORCH={offered}"):
        bootstrap.choose_torch(None)


def test_unknown_torch(bootstrap, monkeypatch):
    monkeypatch.setenv("TORCH", "tpu")
    with pytest.raises(bootstrap.SetupError, match="TORCH=cpu or TORCH=cuda"):
        bootstrap.choose_torch(None)


def test_torch_index_is_used_and_an_installed_build_is_kept(bootstrap, monkeypatch):
    asked = []
    monkeypatch.setattr(bootstrap, "torch_build", lambda *index: asked.append(index) or "cpu")
    monkeypatch.setenv("TORCH_INDEX", "file:///somewhere")
    assert bootstrap.choose_torch(None) == ("cpu", ("--index-url", "file:///somewhere"))
    assert bootstrap.choose_torch("cuda") == ("cuda", ())  # without TORCH= nothing is exchanged
    assert asked == [("--index-url", "file:///somewhere")]


def answer_of_pip(version: str, *needs: str) -> str:
    return json.dumps({"install": [{"metadata": {"version": version, "requires_dist": list(needs)}}]})


@pytest.mark.parametrize(
    ("version", "needs", "build"),
    [
        ("2.13.0+cpu", [], "cpu"),
        ("2.13.0+cu130", [], "cuda"),
        ("2.13.0", ["filelock", 'nvidia-cublas==13.1; platform_system == "Linux"'], "cuda"),
        ("2.13.0", ["filelock"], "cpu"),
    ],
)
def test_build_of_torch_is_told_by_its_metadata(bootstrap, monkeypatch, version, needs, build):
    done = subprocess.CompletedProcess([], 0, answer_of_pip(version, *needs), "")
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *args, **kwargs: done)
    assert bootstrap.torch_build() == build


def test_failed_command_shows_its_last_lines_and_the_remedy(bootstrap, capsys):
    code = "import sys; print('first'); print('the reason'); sys.exit(3)"
    with pytest.raises(
        bootstrap.SetupError, match=r"the reason\n.*Check the network\. The whole output is in .*setup\.log"
    ):
        bootstrap.run("packages", [sys.executable, "-c", code], remedy="Check the network.")
    assert "packages: failed" in capsys.readouterr().out
    assert "the reason" in bootstrap.LOG.read_text()


def test_nothing_is_done_twice(bootstrap, monkeypatch):
    """With every stamp right, no command runs; a changed requirement or message asks for its step again."""
    for name in ("CMakeLists.txt", "package.xml", "setup.cfg"):
        shutil.copy(ROOT / name, bootstrap.ROOT)
    for name in ("cmake", "msg"):
        shutil.copytree(ROOT / name, bootstrap.ROOT / name)
    (bootstrap.VENV / "bin").mkdir(parents=True)
    for name in ("python", "thinkjepa"):
        (bootstrap.VENV / "bin" / name).touch()
    ran = []
    monkeypatch.setattr(bootstrap, "run", lambda title, *commands, **kwargs: ran.append(title))
    monkeypatch.setattr(bootstrap, "torch_build", lambda *index: "cpu")
    monkeypatch.setattr(bootstrap, "renders", lambda: True)
    monkeypatch.setattr(bootstrap, "make_venv", lambda stamps: None)
    bootstrap.main()
    assert ran == ["packages", "ROS messages"]
    bootstrap.main()
    assert len(ran) == 2
    with (bootstrap.ROOT / "msg" / "Forecast.msg").open("a") as message:
        message.write("# more\n")
    bootstrap.main()
    assert ran[2:] == ["ROS messages"]
    with (bootstrap.ROOT / "requirements" / "dev.txt").open("a") as more:
        more.write("# more\n")
    bootstrap.main()
    assert ran[3:] == ["packages"]


def test_folder_that_was_moved_is_set_up_anew(bootstrap):
    bootstrap.VENV.mkdir()
    bootstrap.write_stamps({"root": "/elsewhere", "torch": "cpu"})
    assert bootstrap.read_stamps() == {}


def test_make_without_python_says_so():
    if shutil.which("make") is None:
        pytest.skip("there is no make on this machine")
    answer = subprocess.run(["make", "build", "PYTHON="], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode != 0
    assert "needs Python 3.11 to 3.14" in answer.stdout and "apt-get install python3" in answer.stdout
