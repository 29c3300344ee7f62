"""The launch files: every argument is described and has the default of the node's own parameter; where ROS launch is
installed, they start the nodes with what was given and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from thinkjepa_ros.bridge.control_parameters import CONTROLLER
from thinkjepa_ros.bridge.parameters import PREDICTOR, THINKER
from thinkjepa_ros.bridge.replay_parameters import EVALUATOR, PLAYER
from thinkjepa_ros.bridge.simulator_parameters import SIMULATOR

FOLDER = Path(__file__).resolve().parents[1] / "launch"
FILES = sorted(FOLDER.glob("*.launch.py"))

#: Launch argument -> table and name of the node parameter it stands for.
SAME = {
    "thinkjepa.launch.py": {
        "model": (PREDICTOR, "model"),
        "device": (PREDICTOR, "device"),
        "image_transport": (PREDICTOR, "image_transport"),
        "autostart": (PREDICTOR, "autostart"),
        "thinker_model": (THINKER, "model"),
        "thinker_device": (THINKER, "device"),
    },
    "replay.launch.py": {
        "rate": (PLAYER, "rate"),
        "loop": (PLAYER, "loop"),
        "clock": (PLAYER, "clock"),
        "bag_image_topic": (PLAYER, "image_topic"),
    },
    "evaluate.launch.py": {
        name: (EVALUATOR, name)
        for name in ("truth_topic", "truth_type", "truth_joints", "truth_frame", "camera_pose_from", "pose_topic")
        + ("world_frame", "late_s")
    },
    "control.launch.py": {
        "imagination": (CONTROLLER, "model"),
        "policy": (CONTROLLER, "policy"),
        "mode": (CONTROLLER, "mode"),
        "device": (CONTROLLER, "device"),
        "autostart": (CONTROLLER, "autostart"),
        "thinker_device": (THINKER, "device"),
        "kind": (SIMULATOR, "kind"),
        "seed": (SIMULATOR, "seed"),
        "real_time_factor": (SIMULATOR, "real_time_factor"),
    },
}
REQUIRED = {
    "thinkjepa.launch.py": "namespace params_file use_sim_time log_level image_topic image_transport model device "
    "thinker autostart respawn",
    "replay.launch.py": "bag rate loop",
    "evaluate.launch.py": "bag truth_topic truth_type truth_joints pose_topic window_s out clock namespace",
    "control.launch.py": "namespace params_file use_sim_time log_level simulator thinker kind seed imagination policy "
    "mode image_topic camera_pose_topic ee_pose_topic twist_topic gripper_topic trajectory_topic autostart respawn",
}


def declared(file: Path) -> dict[str, dict]:
    """Name -> keyword arguments of every DeclareLaunchArgument, read without importing launch."""
    tree = ast.parse(file.read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
        and all(isinstance(item, ast.Constant) for item in node.value.elts)
    }  # fmt: skip
    calls = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "DeclareLaunchArgument"
    ]

    def value(node: ast.expr):
        return constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    return {value(call.args[0]): {k.arg: value(k.value) for k in call.keywords} for call in calls}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_argument_is_described(file):
    arguments = declared(file)
    assert set(REQUIRED[file.name].split()) <= set(arguments)
    for name, keywords in arguments.items():
        assert len(keywords.get("description", "")) > 15, f"{name} of {file.name} needs a description"


@pytest.mark.parametrize(
    ("file", "argument"), [(file, argument) for file in SAME for argument in SAME[file]], ids=lambda part: str(part)
)
def test_default_is_that_of_the_node(file, argument):
    table, name = SAME[file][argument]
    parameter = next(parameter for parameter in table if parameter.name == name)
    default = parameter.default
    keywords = declared(FOLDER / file)[argument]
    assert keywords["default_value"] == (str(default).lower() if isinstance(default, bool) else str(default))
    if parameter.choices:
        assert tuple(keywords["choices"]) == parameter.choices


def test_both_nodes_share_what_one_argument_sets():
    defaults = [{p.name: p.default for p in table} for table in (PREDICTOR, THINKER)]
    for name in ("image_transport", "autostart"):
        assert defaults[0][name] == defaults[1][name]


# -- with ROS launch (an installed ROS 2; it does not come as a wheel) ------------------------------------------------


def started(name: str, tmp_path, monkeypatch, **given: str) -> dict[str, dict]:
    """Evaluate a launch file without starting its nodes: their parameters and remappings, by node name."""
    pytest.importorskip("launch_ros", reason="ROS launch comes with an installed ROS 2")
    import yaml
    from launch import LaunchContext
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch_ros.actions import Node

    found: dict[str, dict] = {}
    context = LaunchContext()
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))

    def note(node: Node) -> None:
        node._perform_substitutions(context)
        values: dict = {}
        for file, is_file in node._Node__expanded_parameter_arguments or []:
            assert is_file
            loaded = yaml.safe_load(Path(file).read_text())
            values.update(next(iter(loaded.values()))["ros__parameters"])
        found[node.node_name] = {"parameters": values, "remaps": dict(node.expanded_remapping_rules or [])}

    def visit(entity) -> None:
        if isinstance(entity, Node):
            note(entity)
        else:
            for child in entity.visit(context) or []:
                visit(child)

    source = PythonLaunchDescriptionSource(str(FOLDER / name))
    visit(IncludeLaunchDescription(source, launch_arguments=given.items()))
    return found


def test_without_arguments_the_nodes_keep_their_own_defaults(tmp_path, monkeypatch):
    nodes = started("thinkjepa.launch.py", tmp_path, monkeypatch)
    assert set(nodes) == {"/predictor", "/thinker"}
    assert nodes["/predictor"]["parameters"] == nodes["/thinker"]["parameters"] == {}


def test_an_argument_wins_over_the_parameter_file(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("/**:\n  ros__parameters:\n    autostart: false\n    device: cuda\n")
    nodes = started(
        "thinkjepa.launch.py", tmp_path, monkeypatch,
        namespace="robot1", params_file=str(file), device="cpu", image_topic="/camera/color/image_raw", thinker="false",
    )  # fmt: skip
    assert set(nodes) == {"/robot1/predictor"}
    assert nodes["/robot1/predictor"]["parameters"] == {"autostart": False, "device": "cpu"}
    assert nodes["/robot1/predictor"]["remaps"] == {
        "image": "/camera/color/image_raw",
        "image/compressed": "/camera/color/image_raw/compressed",
        "camera_info": "/camera/color/camera_info",
    }


def test_replay_takes_the_transport_from_the_bag(tmp_path, monkeypatch):
    bag = FOLDER.parent / "models" / "demo" / "cue_reach"
    nodes = started("replay.launch.py", tmp_path, monkeypatch, bag=str(bag), rate="2", clock="bag")
    assert set(nodes) == {"/predictor", "/thinker", "/player"}
    assert nodes["/predictor"]["parameters"] == {"image_transport": "compressed", "use_sim_time": True}
    player = nodes["/player"]["parameters"]
    assert player["rate"] == 2.0 and isinstance(player["rate"], float)
    assert player["bag"] == str(bag) and player["wait_for_subscribers"] == 2


def test_beside_a_running_robot_only_the_evaluator_is_started(tmp_path, monkeypatch):
    nodes = started(
        "evaluate.launch.py", tmp_path, monkeypatch, truth_topic="/hand", namespace="robot1", out=str(tmp_path / "o")
    )
    assert set(nodes) == {"/robot1/evaluator"}
    own = {parameter.name: parameter for parameter in EVALUATOR}
    found = nodes["/robot1/evaluator"]["parameters"]
    for name, value in found.items():
        assert name == "use_sim_time" or own[name].refusal(value) is None, name
    assert found["truth_topic"] == "/hand" and found["out"] == str(tmp_path / "o") and found["window_s"] == 10.0
    assert found["use_sim_time"] is False


def test_with_a_bag_everything_is_started_on_its_clock(tmp_path, monkeypatch):
    bag = FOLDER.parent / "models" / "demo" / "cue_reach"
    nodes = started(
        "evaluate.launch.py", tmp_path, monkeypatch, bag=str(bag), thinker="false", rate="0.5", out=str(tmp_path)
    )
    assert set(nodes) == {"/evaluator", "/predictor", "/player"}
    assert all(nodes[name]["parameters"]["use_sim_time"] for name in ("/evaluator", "/predictor"))
    player = nodes["/player"]["parameters"]
    assert player["clock"] == "bag" and player["rate"] == 0.5 and player["wait_for_subscribers"] == 1
    assert nodes["/evaluator"]["parameters"]["picture_rate_hz"] == 0.0, "the player waits for those who work"


def test_control_without_arguments_is_a_simulated_robot_on_compressed_images(tmp_path, monkeypatch):
    nodes = started("control.launch.py", tmp_path, monkeypatch)
    assert set(nodes) == {"/simulator", "/controller", "/thinker"}
    assert nodes["/simulator"]["parameters"] == {} and not nodes["/simulator"]["remaps"]
    for name in ("/controller", "/thinker"):
        more = {"model": "control"} if name == "/thinker" else {}  # the one that learned to look at the workcell
        assert nodes[name]["parameters"] == {"image_transport": "compressed"} | more
        assert nodes[name]["remaps"]["image/compressed"] == "camera/image/compressed"
        assert nodes[name]["remaps"]["camera_info"] == "camera/camera_info"
    assert nodes["/controller"]["remaps"]["camera_pose"] == "camera/pose"
    assert nodes["/controller"]["remaps"]["guidance"] == "thinker/guidance"
    assert nodes["/thinker"]["remaps"]["~/instruction"] == "instruction"


def test_control_of_a_real_robot_has_its_topics_and_no_simulator(tmp_path, monkeypatch):
    nodes = started(
        "control.launch.py", tmp_path, monkeypatch,
        simulator="false", thinker="false", namespace="robot1", image_transport="raw", mode="both", imagination="/m",
        policy="/p", image_topic="/head/image", camera_pose_topic="/head/pose", twist_topic="/arm/twist", device="cuda",
    )  # fmt: skip
    assert set(nodes) == {"/robot1/controller"}
    own = {parameter.name: parameter for parameter in CONTROLLER}
    found = nodes["/robot1/controller"]["parameters"]
    assert found == {"model": "/m", "policy": "/p", "mode": "both", "device": "cuda", "image_transport": "raw"}
    assert all(own[name].refusal(value) is None for name, value in found.items())
    remaps = nodes["/robot1/controller"]["remaps"]
    assert remaps["image"] == "/head/image" and remaps["camera_info"] == "/head/camera_info"
    assert remaps["camera_pose"] == "/head/pose" and remaps["command/twist"] == "/arm/twist"


def test_control_on_simulated_time_has_a_clock(tmp_path, monkeypatch):
    nodes = started(
        "control.launch.py", tmp_path, monkeypatch, use_sim_time="true", kind="pick_place_lamp", seed="7",
        real_time_factor="0.5",
    )  # fmt: skip
    simulator = nodes["/simulator"]["parameters"]
    assert simulator == {"publish_clock": True, "kind": "pick_place_lamp", "seed": 7, "real_time_factor": 0.5}
    assert isinstance(simulator["real_time_factor"], float)
    assert nodes["/controller"]["parameters"]["use_sim_time"] is nodes["/thinker"]["parameters"]["use_sim_time"] is True
