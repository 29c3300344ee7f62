"""Reports in a real browser, on a desk and on a phone. Screenshots are left in out/test_artefacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bag_report_kit import JOINTS, evaluation, frames_of, hostile, recording, replay
from browser_kit import Browser

from thinkjepa_ros.evaluation.bag import page
from thinkjepa_ros.evaluation.bag.compare import compare
from thinkjepa_ros.evaluation.bag.metrics import measure

SHOTS = Path(__file__).parents[1] / "out" / "test_artefacts"
#: Words of a chart that lie over one another by more than two pixels.
OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
    .filter(([, b]) => b.width > 0);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
    .filter(([, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2
                    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 2)
    .map(([b]) => a + ' | ' + b));
})
"""
#: Elements that stick out of the page on the right and do not scroll in a box of their own.
OUTSIDE = """
[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.scroll') && !e.closest('.strip')).map(e => e.outerHTML.slice(0, 80))
"""
SMALLEST = (
    "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h))"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report full of awkward words, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    bag = recording(folder / "swing")
    value = replay(bag, trained=False)
    names = (*JOINTS[:-1], "left_joint_with_a_name_that_is_far_too_long_for_a_label_" * 2)
    value = replace(hostile(value), joint_names=names)
    words = "one two three four five six seven eight nine ten " * 12 + "w" * 300
    value = replace(value, thoughts=[{**value.thoughts[0], "text": words}])
    page.write(measure(value), value, frames_of(bag), folder / "report.html")
    folders = [
        evaluation(folder / name, replay(bag, error_m=error, seed=k))
        for k, (name, error) in enumerate((("before", 0.03), ("after_" * 20, 0.01), ("third", 0.03)))
    ]
    compare(folders, folder / "compare.html")
    return {"report": folder / "report.html", "compare": folder / "compare.html"}


@pytest.mark.parametrize("width, dark", [(1280, False), (390, False), (390, True)])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_fits_its_window_and_is_still(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.requests.clear()
    browser.open(pages[name], width, dark)
    browser.shoot(SHOTS / f"{name}_{width}{'_dark' if dark else ''}.png")
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(OUTSIDE) == []
    assert browser.ask(OVERLAPS) == []
    assert browser.ask(SMALLEST) >= 10
    assert browser.ask("[...document.images].every(i => i.naturalWidth > 0)")
    back = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (not dark)
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in browser.requests) == 1
    assert browser.said == []
