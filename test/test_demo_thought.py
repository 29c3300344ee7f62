"""What a thought did to the forecasts of a run: found, measured and shown beside forecasts without any thought."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_score import BEGIN, NS, make_run

from thinkjepa_ros.data.bag import IMAGE_TOPIC, write_bag
from thinkjepa_ros.data.episode import JpegFrames
from thinkjepa_ros.demo import unguided
from thinkjepa_ros.demo.pictures import SHEET, Album
from thinkjepa_ros.demo.report import make_report
from thinkjepa_ros.demo.thought import effect, main_thought, sentence
from thinkjepa_ros.evaluation import score
from thinkjepa_ros.jepa.forecaster import Forecaster
from thinkjepa_ros.train.mini import canonical_camera
from thinkjepa_ros.values import Frame

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[1]


def thinking(texts, begin_s=0.0, every_s=0.5, delay_s=0.2):
    """A run in which a thought begins every half second; forecasts are wrong by 10 cm until "red" is said."""
    run = make_run()
    run.words["thoughts"] = [
        {
            "stamp_ns": BEGIN + round((begin_s + every_s * k) * NS), "delay_s": delay_s, "text": text, "epoch": 1,
            "trained": True, "sequence": k,
        }
        for k, text in enumerate(texts)
    ]  # fmt: skip
    run.receipt_ns = run.stamp_ns + 1000
    for i, at in enumerate(run.stamp_ns):
        heard = [t for t in run.words["thoughts"] if t["stamp_ns"] + t["delay_s"] * NS <= at]
        if heard:
            run.weight[i], run.age_s[i] = 1.0, (int(at) - heard[-1]["stamp_ns"]) * 1e-9
        if not heard or "red" not in heard[-1]["text"]:
            run.positions[i, ..., 0] += 0.07  # beside the 3 cm of make_run
    return run


def test_the_thought_that_held_longest_and_what_it_did():
    run = thinking(["unknown", "unknown", "red  cube", "red  cube", "red  cube", "unknown"])
    thought = main_thought(run)
    assert thought.text == "red cube" and thought.heard_ns == BEGIN + round(1.2 * NS)
    assert thought.guided.tolist() == list(range(12, 27)) and thought.before == 11
    joined = score.join(run)
    wrong = {int(at): run.positions[i] + np.float32([0, 0.2, 0]) for i, at in enumerate(run.stamp_ns)}
    result = effect(run, joined, thought, wrong)
    assert result.hand == "right hand"
    assert result.before_m == pytest.approx(0.10, abs=1e-4) and result.after_m == pytest.approx(0.03, abs=1e-4)
    assert result.guided_m == pytest.approx(0.03, abs=1e-4)
    assert result.unguided_m == pytest.approx(np.hypot(0.03, 0.2), abs=1e-4)
    assert result.count == len(set(thought.guided) & set(joined.index.tolist())) > 5
    words = sentence(run, thought, result)
    assert words.startswith(
        'the thought "red cube" came after 1.2 s: the forecast of the right hand ended (0.8 s ahead)'
    )
    assert "10.0 cm just before it and 3.0 cm just after" in words
    assert f"over {result.count} forecasts it guided, 3.0 cm from the truth with it and 20.2 cm without" in words


def test_what_is_not_there_is_not_told():
    assert main_thought(make_run()) is None
    assert main_thought(thinking(["late"], begin_s=60.0)) is None, "it guided nothing"
    first = thinking(["red"] * 6, begin_s=-2.0)
    thought = main_thought(first)
    assert thought.before == -1
    result = effect(first, score.join(first), thought, {})
    assert np.isnan(result.before_m) and np.isnan(result.guided_m) and result.count == 0
    assert sentence(first, thought, result).endswith("ended (0.8 s ahead) 3.0 cm just after")
    assert sentence(first, thought, None) == 'the thought "red" came after -1.8 s'
    changing = thinking(["a", "b", "c"])
    assert main_thought(changing).text == "a", "the first of equals"


def pictured(run):
    jpeg = cv2.imencode(".jpg", np.full((240, 320, 3), 120, np.uint8))[1].tobytes()
    run.pictures, run.picture_ns = [jpeg] * len(run), run.stamp_ns
    run.words |= {
        "forecasts": len(run),
        "images": 90,
        "rate_hz": 10.0,
        "latency_s": {"p50": 0.1, "p99": 0.1, "max": 0.1},
    }
    return run


def test_the_sheet_shows_the_thought_arrive():
    run = pictured(thinking(["unknown", "unknown", "red", "red", "red"]))
    album = Album(run, score.join(run), None)
    chosen = [forecast for forecast, _ in album.choose(SHEET)]
    assert chosen[:2] == [11, 12] and len(chosen) == SHEET and chosen == sorted(set(chosen))
    labels = [album._label(forecast) for forecast in chosen]
    assert labels[0] == "1.1 s: before the thought" and labels[1] == "1.2 s: the thought is here"
    assert labels[-1].endswith("s later")
    plain = pictured(make_run())
    assert Album(plain, score.join(plain), None)._label(5) == "0.5 s"
    assert len(Album(plain, None, None).choose(SHEET)) == SHEET
    run.pictures, run.picture_ns = run.pictures[:1], run.picture_ns[:1]
    assert [forecast for forecast, _ in Album(run, None, None).choose(SHEET)] == [0]


def test_the_report_says_and_draws_both(tmp_path):
    run, asked = pictured(thinking(["unknown", "unknown", "red", "red", "red"])), []

    def without(groups):
        asked.extend(groups)
        return {at: run.positions[0] + np.float32([0.3, 0.3, 0]) for group in groups for at in group}

    report = make_report(run, tmp_path / "both", film=False, unguided=without)
    assert any(line.startswith('the thought "red" came after 1.2 s') for line in report.lines)
    told = json.loads((tmp_path / "both" / "report.json").read_text())["thought"]
    assert told["text"] == "red" and told["count"] > 0 and told["unguided_m"] > told["guided_m"]
    assert len(asked[0]) == SHEET and set(asked[1]) <= set(asked[2])
    make_report(run, tmp_path / "one", film=False)
    both, one = (cv2.imread(str(tmp_path / name / "forecast.png")) for name in ("both", "one"))
    assert both.shape == one.shape and (both != one).any()

    silent = pictured(make_run())
    report = make_report(silent, tmp_path / "none", film=False, unguided=lambda groups: 1 / 0)
    assert "thought" not in report.numbers, "nobody asks for forecasts without thoughts where there are none"


@pytest.fixture
def recording(tmp_path):
    """A recording of 1.5 s and the run of it as the player restamps it: (bag, run, episode)."""
    from test_evaluate_forecast import episode

    e = episode(0, 1.5)
    rng = np.random.default_rng(0)
    shades = [cv2.resize(rng.integers(0, 255, (6, 6, 3), np.uint8), (128, 128)) for _ in range(len(e))]
    e = replace(e, frames=JpegFrames.encode(shades), camera=canonical_camera(128))
    write_bag(tmp_path / "bag", [e])
    run = make_run(camera=e.camera)
    run.begins_ns = np.array([77 * NS])
    return tmp_path / "bag", run, e


def test_forecasts_without_thoughts_are_those_of_the_model_on_the_same_images(recording):
    bag, run, e = recording
    forecaster = Forecaster.load(ROOT / "models" / "mini")
    stamps = (77 * NS + e.stamps_ns - e.stamps_ns[0]).tolist()
    found = unguided.forecasts(forecaster, run, bag, IMAGE_TOPIC, [[stamps[20]], stamps, [5 * NS]])
    assert sorted(found) == [at for at in stamps if at - stamps[0] >= 700_000_000], "all that have a whole window"
    forecaster.reset()
    for i in range(10, 26):
        forecaster.observe(Frame(e.frames[i], stamps[i]), e.camera)
    np.testing.assert_allclose(found[stamps[25]], forecaster.forecast().positions, atol=1e-5)
    hasty = unguided.forecasts(forecaster, run, bag, IMAGE_TOPIC, [[stamps[20]], stamps], budget_s=-1.0)
    assert list(hasty) == [stamps[20]], "the first group, and then the time is over"
    run.begins_ns = run.begins_ns[:0]
    assert unguided.forecasts(forecaster, run, bag, IMAGE_TOPIC, [stamps]) == {}
