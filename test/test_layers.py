"""The shape of the package, read from its sources: who may import whom, how long a file is, and what never appears."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "thinkjepa_ros"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

#: A folder (or module of the root) may import those of a lower number, and its peers as long as no circle arises.
LAYERS = [
    ["values", "files", "checkpoints", "version", "transport", "resources"],
    ["jepa", "thinker", "stream"],
    ["control", "evaluation", "train", "data", "importers", "benchmarks"],
    ["bridge"],
    ["nodes"],
    ["demo"],
    ["commands", "cli"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

#: The only folders that know ROS.
ROS_FOLDERS = ("bridge", "nodes")

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def part_of(path: Path) -> str:
    """Folder of a module below the package, or the name of a module in its root."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imported(path: Path, tree: ast.AST) -> set[str]:
    """Full dotted names that the module at `path` (relative to the package) imports, anywhere in it."""
    own = ["thinkjepa_ros", *path.with_suffix("").parts]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = own[: -node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            names.update(".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in ("importlib.import_module", "import_module"):
            names.update(arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return names


def _name(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def ros_names(names: set[str]) -> set[str]:
    """Those of the imported names that belong to ROS."""
    return {
        name
        for name in names
        if (root := name.split(".")[0]).startswith(("rclpy", "rosidl", "launch_ros", "ament"))
        or root.endswith(("_msgs", "_srvs", "_interfaces"))
        or name.startswith("thinkjepa_ros.msg")
    }


def unsafe(path: Path, tree: ast.AST) -> list[str]:
    """What could run code out of a file of weights or data, as sentences."""
    found = [f"imports {n}" for n in imported(path, tree) if n.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: word.value for word in node.keywords}
        for option in ("trust_remote_code", "allow_pickle"):
            if option in options and not _is(options[option], False):
                found.append(f"line {node.lineno}: {option} is not False")
        called = _name(node.func)
        # a trainer may read back the state that it wrote itself, `thinkjepa import` what was published; no one else
        own_state = part_of(path) in ("train", "importers") and _is(options.get("weights_only"), True)
        if called in ("torch.load", "torch.jit.load", "torch.hub.load") and not own_state:
            found.append(f"line {node.lineno}: {called}")
        if called in ("eval", "exec", "os.system"):
            found.append(f"line {node.lineno}: {called}")
        if "shell" in options and not _is(options["shell"], False):
            found.append(f"line {node.lineno}: shell is not False")
    return found


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def parse(path: Path) -> ast.AST:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def parts_imported(path: Path, tree: ast.AST) -> set[str]:
    """Folders and root modules of the package that the module imports, without its own."""
    names = (name.split(".") for name in imported(path, tree) if name.startswith("thinkjepa_ros."))
    return {parts[1] for parts in names} - {part_of(path), "msg"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_bridge_and_nodes_know_ros(path):
    if part_of(path) not in ROS_FOLDERS:
        assert not ros_names(imported(path, parse(path)))


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=str)
def test_arrows_run_one_way(path):
    part = part_of(path)
    assert part in LEVEL, f"say in test_layers.py which layer {part} belongs to"
    upward = {name for name in parts_imported(path, parse(path)) if LEVEL.get(name, 99) > LEVEL[part]}
    assert not upward, f"{part} must not import {', '.join(sorted(upward))}"


def test_no_circle_of_folders():
    graph = {name: set() for name in LEVEL}
    for path in FILES:
        if path != Path("__init__.py"):
            graph[part_of(path)] |= parts_imported(path, parse(path)) & LEVEL.keys()
    while free := [name for name, needs in graph.items() if not needs]:
        for name in free:
            del graph[name]
        for needs in graph.values():
            needs.difference_update(free)
    assert not graph, f"these import each other in a circle: {graph}"


def test_the_predictor_and_the_thinker_meet_only_in_values():
    for path in FILES:
        if part_of(path) == "jepa":
            assert "thinker" not in parts_imported(path, parse(path)), path
        if part_of(path) == "thinker":
            assert "jepa" not in parts_imported(path, parse(path)), path
        if part_of(path) == "stream":
            assert parts_imported(path, parse(path)) <= {"values"}, path


def test_the_package_itself_holds_nothing():
    """The generated messages bring an __init__.py of their own, which may be the one that is found."""
    tree = parse(Path("__init__.py"))
    assert [ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)] == ["__path__"]
    assert all(isinstance(node, ast.Assign | ast.Import | ast.ImportFrom | ast.Expr) for node in tree.body)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_too_long(path):
    lines = len((PACKAGE / path).read_text(encoding="utf-8").splitlines())
    assert lines <= (300 if part_of(path) == "nodes" else 400), f"{lines} lines: it wants to be two files"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_weights_and_data_never_run_code(path):
    assert not unsafe(path, parse(path))


# ---------------------------------------------------------------- the checks themselves can fail


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import rclpy.node", {"rclpy.node"}),
        ("from sensor_msgs.msg import Image", {"sensor_msgs.msg.Image"}),
        (
            "def f():\n    from std_srvs.srv import Trigger\n    import geometry_msgs",
            {"std_srvs.srv.Trigger", "geometry_msgs"},
        ),
        ("from thinkjepa_ros.msg import Forecast", {"thinkjepa_ros.msg.Forecast"}),
        ("from ..msg import Forecast", {"thinkjepa_ros.msg.Forecast"}),
        ("from .. import msg", {"thinkjepa_ros.msg"}),
        ("import importlib\nimportlib.import_module('rclpy')", {"rclpy"}),
        ("from thinkjepa_ros.bridge import messages\nimport numpy", set()),
    ],
)
def test_ros_is_found_wherever_it_hides(source, expected):
    assert ros_names(imported(Path("jepa/model.py"), ast.parse(source))) == expected


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from ..thinker import qwen", {"thinker"}),
        ("from .. import values, checkpoints", {"values", "checkpoints"}),
        ("from ..values import Camera", {"values"}),
        ("from . import model", set()),
        ("from .model import Net", set()),
        ("import thinkjepa_ros.thinker.qwen as q", {"thinker"}),
        ("def f():\n    from thinkjepa_ros.nodes import player", {"nodes"}),
    ],
)
def test_imports_are_resolved(source, expected):
    assert parts_imported(Path("jepa/forecaster.py"), ast.parse(source)) == expected


def test_imports_are_resolved_in_folders_below_folders():
    path = Path("data/sim/play.py")
    assert parts_imported(path, ast.parse("from ..episode import Episode\nfrom ...values import Camera")) == {"values"}


@pytest.mark.parametrize(
    "path, source, bad",
    [
        ("jepa/a.py", "import pickle", True),
        ("jepa/a.py", "from joblib import load", True),
        ("jepa/a.py", "torch.load(f, weights_only=True)", True),
        ("train/a.py", "torch.load(f)", True),
        ("train/a.py", "torch.load(f, weights_only=False)", True),
        ("train/a.py", "torch.load(f, weights_only=True)", False),
        ("importers/a.py", "torch.load(f, weights_only=True)", False),
        ("importers/a.py", "torch.load(f)", True),
        ("data/a.py", "np.load(f, allow_pickle=True)", True),
        ("data/a.py", "np.load(f, allow_pickle=flag)", True),
        ("data/a.py", "np.load(f, allow_pickle=False)", False),
        ("thinker/a.py", "M.from_pretrained(f, trust_remote_code=True)", True),
        ("thinker/a.py", "M.from_pretrained(f, trust_remote_code=False)", False),
        ("cli.py", "eval('1')", True),
        ("cli.py", "model.eval()", False),
        ("cli.py", "subprocess.run(c, shell=True)", True),
    ],
)
def test_unsafe_calls_are_found(path, source, bad):
    assert bool(unsafe(Path(path), ast.parse(source))) == bad
