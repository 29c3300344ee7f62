"""A recording that is evaluated in parts and by several processes: the same figures bit by bit, and nothing is lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_kit import SETTINGS, every, images, recording, same, truth
from jepa_kit import config, small_net
from thinker_kit import mini_folder
from truth_kit import bag, compressed, ns

from thinkjepa_ros.evaluation.bag import run
from thinkjepa_ros.evaluation.bag.origins import Origins, parts_of
from thinkjepa_ros.evaluation.bag.room import Room, scratch_folder
from thinkjepa_ros.evaluation.bag.run import Models, load_models, offline
from thinkjepa_ros.jepa import model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Guided models that other processes can load, too."""
    thinker = load_models_thinker()
    net = small_net(made_as=config(predictor={"guide_layers": thinker[0], "guide_width": thinker[1]}))
    folder = tmp_path_factory.mktemp("model")
    model.save(folder, net, "small", trained=True, domain="test")
    return load_models(folder, mini_folder())


def load_models_thinker() -> tuple[int, int]:
    """Layers and width of the pyramids of the small thinker."""
    from thinker_kit import fresh_thinker

    thinker = fresh_thinker()
    return len(thinker.layers), thinker.width


def broken(folder: Path) -> Path:
    """Two pieces of 4 and 3 s, some images of which are damaged."""
    lost = {ns(t) for t in (1.0, 1.1, 3.0, 6.3)}
    shots = [
        (topic, at, compressed(at, b"\xff\xd8 no picture") if at in lost and "compressed" in topic else message)
        for topic, at, message in images(np.concatenate([every(30, 4.0), every(30, 3.0, 6.0)]))
    ]
    return bag(folder, shots, truth(every(50, 9.0)))


def told(replay: Any) -> list[Any]:
    """What else must not depend on who did it."""
    return [replay.thoughts, replay.about["left_out"], [b["used"] for b in replay.about["bags"]], replay.about["notes"]]


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 8, 41])
def test_parts_of_any_size_say_what_the_whole_says(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    bags = [broken(tmp_path / "broken"), recording(tmp_path / "whole", 2.0)]
    whole = offline(bags, SETTINGS, models, anchor=size == 8).replay
    assert (whole.weight > 0).any() and whole.about["left_out"]["images that cannot be decoded"] > 0
    cut: list[int] = []

    def smaller(number: int, ground: Any, found: Origins, first: int, _: int, reach_ns: int) -> Any:
        made = list(parts_of(number, ground, found, first, size, reach_ns))
        cut.append(len(made))
        return made

    monkeypatch.setattr(run, "parts_of", smaller)
    parts = offline(bags, SETTINGS, models, anchor=size == 8, scratch=tmp_path).replay
    assert max(cut) > 1 and same(whole, parts) == [] and told(whole) == told(parts)
    assert not list(tmp_path.glob(".arrays-*")), "the files of the arrays are gone, the arrays are not"


def on_progress(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Do something once, when the first forecasts are done."""

    @contextmanager
    def task(self: Any, words: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        left = [1]

        def advance(count: int) -> None:
            if words == "forecasts" and count and left:
                left.pop()
                do()

        yield advance

    monkeypatch.setattr(run.Bar, "task", task)


def test_processes_share_the_work_and_change_no_figure(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PART", (10, 12))
    bags = [broken(tmp_path / "broken"), recording(tmp_path / "whole", 2.0)]
    alone, shared = (offline(bags, SETTINGS, models, workers=count).replay for count in (1, 3))
    assert same(alone, shared) == [] and told(alone) == told(shared)
    assert (alone.about["speed"]["workers"], shared.about["speed"]["workers"]) == (1, 3)


@pytest.mark.slow
def test_a_killed_process_costs_what_it_had_not_done_and_is_told(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PART", (10, 12))
    folder = recording(tmp_path / "bag", 8.0)
    whole = offline([folder], SETTINGS, models).replay
    on_progress(monkeypatch, lambda: multiprocessing.active_children()[0].kill())
    result = offline([folder], SETTINGS, models, workers=2)
    assert "a process of the evaluation died" in result.failed[0] and "--workers 1" in result.failed[0]
    assert 0 < len(result.replay) <= len(whole)
    rows = np.searchsorted(whole.stamp_ns, result.replay.stamp_ns)
    assert whole.guided is not None and np.array_equal(whole.guided[rows], result.replay.guided)


@pytest.mark.slow
def test_ctrl_c_keeps_what_all_processes_have_done(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PART", (10, 12))
    folder = recording(tmp_path / "bag", 8.0)

    def interrupt() -> None:
        raise KeyboardInterrupt

    on_progress(monkeypatch, interrupt)
    result = offline([folder], SETTINGS, models, workers=2)
    assert result.interrupted and result.replay.about["partial"]
    assert 0 < len(result.replay) < 77 and not multiprocessing.active_children()


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".arrays-old").mkdir()
    (tmp_path / ".arrays-old" / "guided.raw").write_bytes(b"0")
    with scratch_folder(tmp_path, needed=False) as folder:
        assert folder is not None and not (tmp_path / ".arrays-old").exists()
        array = Room(folder).array("x", (5000, 2))
        array[:] = 1
        some = Room(folder).rows("y", array, np.array([0, 4999]))
    assert array.sum() == 10_000 and some.tolist() == [[1, 1], [1, 1]] and not folder.exists()
    with scratch_folder(None, needed=False) as nothing:
        assert nothing is None
