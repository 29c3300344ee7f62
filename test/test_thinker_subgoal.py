"""The sub-goal head: shapes, what plays a part and what does not, its folder, and its place in a thought."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from thinker_kit import frames, fresh_thinker

from thinkjepa_ros.checkpoints import MANIFEST, CheckpointError
from thinkjepa_ros.thinker import subgoal
from thinkjepa_ros.thinker.errors import ThinkerError
from thinkjepa_ros.thinker.subgoal import SubgoalConfig, SubgoalHead, SubgoalMaker

CONFIG = SubgoalConfig((0, 1, 2, 3), 128, 16, 192, 2.5, "thinkjepa-mini-1234abcd", hidden=32)


def a_head(config: SubgoalConfig = CONFIG, seed: int = 0) -> SubgoalHead:
    torch.manual_seed(seed)
    head = SubgoalHead(config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def pyramids(batch: int = 5, config: SubgoalConfig = CONFIG, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, len(config.layers), 2, config.width, generator=g)


def there(*rows: tuple[bool, bool]) -> torch.Tensor:
    return torch.tensor(rows)


def test_a_latent_per_pyramid_whoever_else_is_in_the_batch():
    head, pyramid = a_head(), pyramids()
    present = there((True, True), (True, False), (False, True), (True, True), (False, False))
    out = head(pyramid, present)
    assert out.shape == (5, 16, 192) and out.dtype == torch.float32 and bool(out.isfinite().all())
    for i in range(5):
        torch.testing.assert_close(head(pyramid[i : i + 1], present[i : i + 1])[0], out[i], atol=1e-5, rtol=0)
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-3, "tokens differ"


def test_every_layer_and_stream_that_is_there_counts_and_no_other():
    head, pyramid = a_head(), pyramids(1)
    for present in ((True, True), (True, False), (False, True)):
        base = head(pyramid, there(present))
        for layer in range(4):
            for stream in range(2):
                other = pyramid.clone()
                other[0, layer, stream] = torch.randn(128)
                assert torch.equal(head(other, there(present)), base) != present[stream]
                other[0, layer, stream] = float("nan")
                if not present[stream]:
                    assert torch.equal(head(other, there(present)), base), "an absent row may hold anything"


def test_the_scale_of_a_layer_plays_no_part():
    """The states of a deep layer are many times larger than those of the first."""
    head, pyramid = a_head(), pyramids(1)
    scaled = pyramid * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None]
    torch.testing.assert_close(head(scaled, there((True, True))), head(pyramid, there((True, True))), atol=1e-4, rtol=0)


def test_it_learns():
    """Gradients reach every parameter, with absent streams in the batch, and a few steps fit a few latents."""
    head = a_head()
    pyramid, present = pyramids(4), there((True, True), (True, False), (False, True), (True, True))
    pyramid[1, :, 1] = float("nan")
    with torch.no_grad():
        target = a_head(seed=7)(pyramid, present)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (head(pyramid, present) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) and p.grad.any() for p in head.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_what_does_not_fit_is_refused():
    head = a_head()
    for pyramid, present in (
        (pyramids(1)[:, :3], there((True, True))),
        (pyramids(1)[..., :64], there((True, True))),
        (pyramids(2), there((True, True))),
        (pyramids(1)[0], there((True, True))),
    ):
        with pytest.raises(ValueError, match="this head takes"):
            head(pyramid, present)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (2, 1)}, "ascend"),
        ({"layers": (1, 1)}, "ascend"),
        ({"layers": (-1,)}, "layer numbers"),
        ({"layers": 4}, "layer numbers"),
        ({"layers": (0, True)}, "layer numbers"),
        ({"width": 0}, "width"),
        ({"width": 1 << 30}, "width"),
        ({"tokens": 1.5}, "tokens"),
        ({"latent_width": True}, "latent_width"),
        ({"hidden": 0}, "hidden"),
        ({"horizon_s": 0.0}, "horizon_s"),
        ({"horizon_s": math.nan}, "horizon_s"),
        ({"horizon_s": math.inf}, "horizon_s"),
        ({"horizon_s": "soon"}, "horizon_s"),
        ({"space": ""}, "space"),
        ({"space": None}, "space"),
    ],
)
def test_a_configuration_without_sense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **changes)


@pytest.fixture()
def folder(tmp_path):
    subgoal.save(tmp_path / "head", a_head(), "a-head", trained=True, domain="simulation", training={"steps": 3})
    return tmp_path / "head"


def test_a_head_survives_its_folder(folder):
    head, manifest = subgoal.load(folder)
    assert head.config == CONFIG and not head.training and not any(p.requires_grad for p in head.parameters())
    assert (manifest.kind, manifest.model_id, manifest.trained) == ("subgoal", "a-head", True)
    with torch.no_grad():
        assert torch.equal(
            head(pyramids(), there(*[(True, False)] * 5)), a_head()(pyramids(), there(*[(True, False)] * 5))
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 64}, "absent is"),
        ({"tokens": 4}, "token is"),
        ({"tokens": 65536, "hidden": 16384}, "is float32"),
        ({"surplus": 1}, "not usable"),
        ({"horizon_s": -1}, "horizon_s"),
        ({"layers": "all"}, "layer numbers"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(folder, change, words):
    record = json.loads((folder / MANIFEST).read_text())
    record["config"].update(change)
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=words):
        subgoal.load(folder)


def test_a_thought_carries_its_sub_goal(folder):
    thinker = fresh_thinker(subgoal=folder)
    g = thinker.think(frames(4), "do it", max_new_tokens=2)
    assert g.subgoal.latent.shape == (16, 192) and g.subgoal.latent.dtype == np.float32
    assert (g.subgoal.horizon_s, g.subgoal.space, g.subgoal.trained) == (2.5, "thinkjepa-mini-1234abcd", True)
    with torch.no_grad():
        wanted = a_head()(torch.from_numpy(g.pyramid)[None], there((True, True)))[0]
    assert np.array_equal(g.subgoal.latent, wanted.numpy())
    silent = thinker.think(frames(4), "do it", max_new_tokens=0)
    assert silent.present == (True, False) and not np.array_equal(silent.subgoal.latent, g.subgoal.latent)
    assert fresh_thinker().think(frames(4), "do it", max_new_tokens=0).subgoal is None


def test_a_head_that_was_not_trained_says_so(tmp_path):
    subgoal.save(tmp_path, a_head(), "a-head", trained=False, domain="none")
    assert not SubgoalMaker.load(tmp_path, CONFIG.layers, 128).make(pyramids(1)[0], (True, True)).trained


def test_a_head_for_another_thinker_is_refused(folder, tmp_path):
    with pytest.raises(ThinkerError, match=r"takes layers \[0, 1, 2, 3\] of width 128.*exports \[1, 3\] of width 128"):
        fresh_thinker(subgoal=folder, layers=(1, 3))
    with pytest.raises(ThinkerError, match="of width 64"):
        SubgoalMaker.load(folder, CONFIG.layers, 64)
    with pytest.raises(ThinkerError, match="no such folder"):
        fresh_thinker(subgoal=tmp_path / "nowhere")


def test_a_sub_goal_that_is_not_finite_is_refused_and_survived(folder):
    thinker = fresh_thinker(subgoal=folder)
    before = thinker.think(frames(4), "do it", max_new_tokens=1)
    with torch.no_grad():
        bias = thinker._subgoal._head.out.bias
        kept = bias.clone()
        bias.fill_(math.inf)
        with pytest.raises(ThinkerError, match="sub-goal holds values that are not finite"):
            thinker.think(frames(4), "do it", max_new_tokens=1)
        bias.copy_(kept)
    assert np.array_equal(thinker.think(frames(4), "do it", max_new_tokens=1).subgoal.latent, before.subgoal.latent)
