"""Facts that tools and people rely on: manifest, entry points, dependencies, the one command of CI."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package

ROOT = Path(__file__).resolve().parents[1]

#: Keys of package.xml that are no ROS packages; each was looked up in rosdistro's rosdep/python.yaml.
ROSDEP_KEYS = {
    "python3-hypothesis",
    "python3-numpy",
    "python3-pil",
    "python3-psutil",
    "python3-pytest",
    "python3-rich",
    "python3-scipy",
    "python3-yaml",
}
#: Released for Humble, Jazzy and Kilted (looked up in rosdistro's distribution.yaml).
ROS_PACKAGES = {
    "ament_cmake",
    "ament_cmake_pytest",
    "ament_cmake_python",
    "builtin_interfaces",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "nav_msgs",
    "rcl_interfaces",
    "rclpy",
    "ros2launch",
    "rosgraph_msgs",
    "rosidl_default_generators",
    "rosidl_default_runtime",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "trajectory_msgs",
    "visualization_msgs",
}


@pytest.fixture(scope="module")
def manifest():
    return parse_package(str(ROOT))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def entry_points() -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(re.split(r"\s*=\s*", line.strip()) for line in lines)


def requirements(name: str) -> set[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {re.split(r"[\[<>=;]", line)[0].strip().lower() for line in lines if line.strip() and line[0] != "#"}


def imported(folder: Path) -> set[str]:
    """Top-level names of all absolute imports below `folder`."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add((node.module or "").split(".")[0])
    return names


def test_manifest_is_valid_and_agrees_with_setup_cfg(manifest, setup_cfg):
    manifest.validate()
    version = importlib.import_module("thinkjepa_ros.version").__version__
    assert manifest.name == setup_cfg["metadata"]["name"] == "thinkjepa_ros"
    assert manifest.version == version
    assert setup_cfg["metadata"]["version"] == "attr: thinkjepa_ros.version.__version__"
    assert [export.content for export in manifest.exports if export.tagname == "build_type"] == ["ament_cmake"]
    assert "rosidl_interface_packages" in {group.name for group in manifest.member_of_groups}


def test_every_dependency_is_a_key_that_exists(manifest):
    named = manifest.buildtool_depends + manifest.build_depends + manifest.exec_depends + manifest.test_depends
    assert {dependency.name for dependency in named} <= ROSDEP_KEYS | ROS_PACKAGES


def test_every_message_package_in_use_is_a_dependency(manifest):
    kinds = ("_msgs", "_srvs", "_interfaces", "rclpy")
    used = {name for name in imported(ROOT / "thinkjepa_ros") if name.endswith(kinds)}
    assert used <= {dependency.name for dependency in manifest.exec_depends}
    wheels = requirements("ros-run")
    assert {f"ros-{name.replace('_', '-')}" for name in used} <= wheels


def test_every_third_party_import_is_required():
    known = {"cv2": "opencv-python-headless", "PIL": "pillow", "qwen_vl_utils": "qwen-vl-utils"}
    optional = {"matplotlib", "tensorboard", "launch", "launch_ros", "torchao", "qwen-vl-utils", "rerun", "tf2_ros"}
    declared = requirements("runtime") | requirements("sim")
    used = imported(ROOT / "thinkjepa_ros") - set(sys.stdlib_module_names) - {"thinkjepa_ros", "rclpy"}
    used = {known.get(name, name) for name in used if not name.endswith(("_msgs", "_srvs", "_interfaces"))} - optional
    assert used <= declared, f"add to requirements/: {sorted(used - declared)}"


def test_every_requirement_is_pinned():
    pinned = requirements("constraints")
    for name in ("ros-run", "ros-build", "runtime", "sim", "dev", "quantize", "viz"):
        assert requirements(name) <= pinned, f"{sorted(requirements(name) - pinned)} of {name}.txt"
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and line[0] != "#")
    assert "torchvision" not in pinned | requirements("runtime"), "the robot needs none, and it brings another torch"


@pytest.mark.parametrize(("name", "target"), entry_points().items())
def test_entry_point_can_be_called(name, target):
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", entry_points())
def test_executable_for_ros2_run_is_built(name):
    prefix = Path(os.environ.get("VIRTUAL_ENV") or sys.prefix)
    script = prefix / "lib" / "thinkjepa_ros" / name
    if not (prefix / "share" / "thinkjepa_ros").is_dir():
        pytest.skip("the package is not built into this environment (make build)")
    assert os.access(script, os.X_OK)


def test_command_line_answers_from_anywhere(tmp_path):
    script = Path(sys.prefix) / "bin" / "thinkjepa"
    if not script.exists():
        pytest.skip("the package is not built into this environment (make build)")
    answer = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 and "demo" in answer.stdout


def test_ci_runs_the_test_command_of_the_readme():
    file = ROOT / ".ci" / "run"
    commands = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
    assert commands[-1] == "exec make test"
    assert os.access(file, os.X_OK)
    assert "make test" in (ROOT / "README.md").read_text()


def test_messages_and_launch_files_are_installed_by_cmake():
    text = (ROOT / "CMakeLists.txt").read_text()
    for message in (ROOT / "msg").glob("*.msg"):
        assert f'"msg/{message.name}"' in text
    for folder in ("launch", "config", "models"):
        assert folder in text


def test_package_init_is_one_line():
    lines = (ROOT / "thinkjepa_ros" / "__init__.py").read_text().strip().splitlines()
    assert len(lines) == 1 and "extend_path" in lines[0]


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
