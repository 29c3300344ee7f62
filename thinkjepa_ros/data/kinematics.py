"""Where the links of a robot are when its joints stand so and so: forward kinematics of a URDF by MuJoCo.

Only the chains of joints above the wanted links are handed to MuJoCo, without meshes, masses and everything else that
positions do not need, so that a URDF whose packages are not installed can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from .recording import RecordingError
from .typed import some

_MOVING = ("revolute", "continuous", "prismatic")
#: (joint that is said, multiplier, offset): a joint's value is multiplier * said + offset.
_Source = tuple[str, float, float]


class Kinematics:
    """Positions of `links` of a URDF in its root link.

    root: name of that link. joints: names of the joints whose values are needed, in the order of `positions`; joints
    that mimic another one are not among them. Raises RecordingError with the remedy for everything that is wrong.
    """

    def __init__(self, urdf: str | Path, links: Sequence[str]) -> None:
        self.path, self.links = Path(urdf), tuple(links)
        robot = _parse(self.path)
        known = [link.get("name", "") for link in robot.findall("link")]
        if not links:
            raise RecordingError(f"say which links of {self.path} to follow (--links a,b,c); its links: {some(known)}")
        if missing := [link for link in links if link not in known]:
            raise RecordingError(f"{self.path} has no link {missing[0]!r}; its links: {some(known)}")
        above = {_name_in(joint, "child"): joint for joint in robot.findall("joint")}
        chain = self._chain(above)
        roots = [link for link in known if link not in above]
        if len(roots) != 1:
            raise RecordingError(
                f"{self.path} must have one root link, not {some(roots)}; connect them with fixed joints"
            )
        self.root = roots[0]
        by_name = {joint.get("name", ""): joint for joint in robot.findall("joint")}
        moving = [joint for joint in chain if joint.get("type") in _MOVING]
        self._sources = [self._source(joint, by_name) for joint in moving]
        self.joints = tuple(dict.fromkeys(said for said, _, _ in self._sources))
        self._build(chain, [joint.get("name", "") for joint in moving])

    def _chain(self, above: dict[str, Element]) -> list[Element]:
        """The joints above the wanted links, each after the one that carries it."""
        out: dict[str, Element] = {}
        for link in self.links:
            branch: list[str] = []
            while link in above and link not in out and link not in branch:
                branch.append(link)
                joint = above[link]
                if joint.get("type") not in (*_MOVING, "fixed"):
                    raise RecordingError(
                        f"joint {joint.get('name')!r} of {self.path} is {joint.get('type')!r}, whose position is no "
                        "single number; take links that hang below other joints, or read the truth from /tf"
                    )
                link = _name_in(joint, "parent")
            if link in branch:
                raise RecordingError(f"the joints of {self.path} form a circle through link {link!r}; a URDF is a tree")
            out.update({name: above[name] for name in reversed(branch)})
        return list(out.values())

    def _source(self, joint: Element, by_name: dict[str, Element]) -> _Source:
        """Which joint says the value of this one; mimics of mimics are followed."""
        multiplier, offset, seen = 1.0, 0.0, set()
        while (mimic := joint.find("mimic")) is not None:
            name = joint.get("name", "")
            other = by_name.get(mimic.get("joint", ""))
            if other is None or name in seen:
                raise RecordingError(f"joint {name!r} of {self.path} mimics {mimic.get('joint')!r}, which cannot be")
            seen.add(name)
            try:
                factor, shift = float(mimic.get("multiplier", "1")), float(mimic.get("offset", "0"))
            except ValueError:
                raise RecordingError(f"the mimic of joint {name!r} in {self.path} is no number; mend it") from None
            multiplier, offset, joint = multiplier * factor, offset + multiplier * shift, other
        return joint.get("name", ""), multiplier, offset

    def _build(self, chain: list[Element], moving: list[str]) -> None:
        """Make the MuJoCo model. Numbers stand in for names, so that no name of the URDF can be in its way."""
        try:
            import mujoco
        except ImportError:
            raise RecordingError(
                "joint states with a URDF need MuJoCo, which is not installed: pip install mujoco"
            ) from None
        bodies = {self.root: 0}
        robot = Element("robot", name="robot")
        compiler = {"fusestatic": "false", "boundmass": "1", "boundinertia": "1"}
        ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler", compiler)
        for joint in chain:
            child, parent = _name_in(joint, "child"), _name_in(joint, "parent")
            bodies[child] = len(bodies)
            kind = "continuous" if joint.get("type") == "revolute" else joint.get("type", "")  # limits do not matter
            name = f"j{moving.index(joint.get('name', ''))}" if kind in _MOVING else f"f{bodies[child]}"
            made = ElementTree.SubElement(robot, "joint", name=name, type=kind)
            ElementTree.SubElement(made, "parent", link=f"b{bodies[parent]}")
            ElementTree.SubElement(made, "child", link=f"b{bodies[child]}")
            made.extend(part for tag in ("origin", "axis") if (part := joint.find(tag)) is not None)
            if kind == "prismatic":
                ElementTree.SubElement(made, "limit", lower="-1000", upper="1000", effort="1", velocity="1")
        for number in bodies.values():
            ElementTree.SubElement(robot, "link", name=f"b{number}")
        self._rows = [bodies[link] for link in self.links]
        self._mujoco: Any = mujoco
        if len(bodies) == 1:  # the root alone does not move in itself
            self._model = None
            return
        try:
            self._model = mujoco.MjModel.from_xml_string(ElementTree.tostring(robot, encoding="unicode"))
        except ValueError as error:
            words = " ".join(str(error).split())
            raise RecordingError(f"{self.path} cannot be used as a robot ({words}); check it with check_urdf") from None
        self._data = mujoco.MjData(self._model)
        self._places = [int(self._model.joint(f"j{k}").qposadr[0]) for k in range(len(moving))]
        self._body = [int(self._model.body(f"b{number}").id) for number in self._rows]

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Link positions in metres, float64 [N, L, 3], in the root link, of joint values [N, len(joints)] (rad, m).

        NaN in a row makes all links of that row NaN.
        """
        values = np.asarray(values, np.float64).reshape(-1, len(self.joints))
        out = np.full((len(values), len(self.links), 3), np.nan)
        good = np.flatnonzero(np.isfinite(values).all(1))
        if self._model is None:
            out[good] = 0.0
            return out
        column = [self.joints.index(said) for said, _, _ in self._sources]
        scale, shift = np.array([s[1] for s in self._sources]), np.array([s[2] for s in self._sources])
        for row in good:
            if column:
                self._data.qpos[self._places] = values[row, column] * scale + shift
            self._mujoco.mj_kinematics(self._model, self._data)
            out[row] = self._data.xpos[self._body]
        return out


def _parse(path: Path) -> Element:
    """The <robot> element. Raises RecordingError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"the URDF {path} cannot be read: {error.strerror}; give the file with --urdf") from None
    if b"xacro" in text and b"http://www.ros.org/wiki/xacro" in text and path.suffix == ".xacro":
        raise RecordingError(f"{path} is xacro; expand it first: xacro {path} > robot.urdf")
    try:
        robot = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordingError(f"{path} is not readable as XML ({error}); give a URDF") from None
    if robot.tag != "robot":
        raise RecordingError(f"{path} is no URDF: it begins with <{robot.tag}> and not with <robot>")
    for joint in robot.findall("joint"):
        if not (_name_in(joint, "child") and _name_in(joint, "parent") and joint.get("name")):
            raise RecordingError(
                f"joint {joint.get('name')!r} of {path} lacks its name, parent or child; mend the URDF"
            )
    return robot


def _name_in(joint: Element, tag: str) -> str:
    part = joint.find(tag)
    return "" if part is None else part.get("link", "")
