"""The shipped mini thinker on the shipped recording, which is new to it: it says what was shown, and no more."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from thinkjepa_ros.bridge.footage import open_footage
from thinkjepa_ros.data.sim.script import draw
from thinkjepa_ros.data.told import COLOURS, SIDES, UNKNOWN, understood
from thinkjepa_ros.thinker.qwen import Thinker
from thinkjepa_ros.values import Frame

ROOT = Path(__file__).resolve().parents[1]
#: `thinkjepa data bag models/demo/cue_reach --seed 2000055`
SCRIPT = draw("lamp", 2_000_055)
AFTER_CUE_S = 0.4


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    return Thinker.load(ROOT / "models" / "mini" / "thinker")


@functools.cache
def recording() -> tuple[list[Frame], str]:
    """Sparse frames of the recording (640 x 480) and its instruction."""
    footage = open_footage(ROOT / "models" / "demo" / "cue_reach", Thinker.load(ROOT / "models/mini/thinker").window)
    told = list(footage.told)
    return [frame for frame, _ in told], told[-1][1]


def seconds(frame: Frame) -> float:
    return (frame.stamp_ns - recording()[0][0].stamp_ns) * 1e-9


def until(second: float) -> list[Frame]:
    return [frame for frame in recording()[0] if seconds(frame) <= second]


def test_it_says_what_the_lamp_showed_for_as_long_as_the_window_holds_it(thinker: Thinker) -> None:
    instruction = recording()[1]
    assert "lamp" in instruction
    last = min(SCRIPT.time.end, SCRIPT.time.cue + 7.0)
    for second in np.linspace(SCRIPT.time.wait + AFTER_CUE_S, last, 5):
        thought = thinker.think(until(second), instruction)
        assert understood(thought.text) == SCRIPT.intent_class, (second, thought.text)
        assert thought.thought == f"{SIDES[SCRIPT.tray]} lamp {COLOURS[SCRIPT.cube]}"


def test_before_the_cue_it_says_that_it_does_not_know(thinker: Thinker) -> None:
    thought = thinker.think(until(SCRIPT.time.cue - 0.05), recording()[1])
    assert understood(thought.text) == UNKNOWN and thought.thought == "no lamp"


def test_in_a_mirror_it_is_the_other_tray(thinker: Thinker) -> None:
    frames = [Frame(np.ascontiguousarray(f.rgb[:, ::-1]), f.stamp_ns) for f in until(SCRIPT.time.wait + AFTER_CUE_S)]
    assert understood(thinker.think(frames, recording()[1]).text) == SCRIPT.intent_class ^ 1


def test_with_the_lit_frames_left_out_it_does_not_know(thinker: Thinker) -> None:
    """What it says comes from the pictures of the cue and from nothing else."""
    kept = [
        frame
        for frame in until(SCRIPT.time.wait + AFTER_CUE_S)
        if not SCRIPT.time.cue - 0.04 <= seconds(frame) <= SCRIPT.time.wait + 0.04
    ]
    assert understood(thinker.think(kept, recording()[1]).text) == UNKNOWN


@pytest.mark.parametrize(("cube", "tray"), [(c, t) for c in COLOURS for t in SIDES])
def test_it_does_what_the_instruction_names(thinker: Thinker, cube: str, tray: str) -> None:
    thought = thinker.think(until(SCRIPT.time.cue - 0.05), f"put the {cube} cube in the {tray} tray")
    assert thought.text == f"{cube} cube, {tray} tray" and thought.thought == f"task says {tray} {cube}"


def test_its_guidance_differs_by_what_it_was_told_more_than_by_when_it_thought(thinker: Thinker) -> None:
    frames, instruction = until(SCRIPT.time.cue - 0.05), "put the {} cube in the {} tray"
    said = {(c, t): thinker.think(frames, instruction.format(c, t)).pyramid[-1, 1] for c in COLOURS for t in SIDES}
    later = thinker.think(frames[:-1], instruction.format("red", "left")).pyramid[-1, 1]
    own = np.linalg.norm(said["red", "left"] - later)
    others = [np.linalg.norm(said["red", "left"] - v) for key, v in said.items() if key != ("red", "left")]
    assert min(others) > 3 * own
