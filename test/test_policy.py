"""The policy: deterministic proposals from the present alone, told by words or by guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import policy_kit
import pytest
import torch
from policy_kit import CONFIG, policy
from torch import Tensor

from thinkjepa_ros.checkpoints import CheckpointError
from thinkjepa_ros.control.eye import Seen, rays
from thinkjepa_ros.control.policy import Policy, PolicyConfig, Present, flow_loss, load_policy, save, words_of
from thinkjepa_ros.jepa.guidance import Payload
from thinkjepa_ros.train.policy_objective import times
from thinkjepa_ros.values import Camera

STATE = torch.tensor([[0.05, -0.02, 0.7, 0.2]])


def frames(batch: int = 1, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def present(net: Policy, **told: object) -> Present:
    with torch.no_grad():
        return net.remember(net.see(frames(count=net.config.frames)), STATE, **told)  # type: ignore[arg-type]


def guidance(weight: float, seed: int = 1) -> Payload:
    pyramid = torch.randn(1, 2, 2, 6, generator=torch.Generator().manual_seed(seed))
    return Payload.pooled(pyramid, torch.ones(1, 2, dtype=torch.bool), torch.tensor([weight]))


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("put the red cube in the left tray", (0, 0)),
        ("Put the BLUE cube, please, in the right tray.", (2, 1)),
        ("do what the lamp asks for", (3, 2)),
        ("put the red or the green cube in the right tray", (3, 1)),
        ("", (3, 2)),
    ],
)
def test_words_are_read_from_an_instruction_that_names_one_thing(instruction: str, words: tuple[int, int]) -> None:
    assert words_of(instruction) == words


@pytest.mark.parametrize("count", [1, 5])
def test_proposals_have_their_shape_and_depend_on_the_seed_alone(count: int) -> None:
    net = policy()
    now = present(net)
    one, again, other = (net.propose(now, count, seed) for seed in (1, 1, 2))
    assert one.shape == (count, 4, 4) and torch.equal(one, again) and not torch.equal(one, other)
    assert ((one[..., 3] >= 0) & (one[..., 3] <= 1)).all()
    if count > 1:
        assert len({tuple(row.flatten().tolist()) for row in one}) == count


def test_without_noise_there_is_one_proposal() -> None:
    net = policy()
    now = present(net)
    cold = net.propose(now, 3, 7, temperature=0.0)
    torch.testing.assert_close(cold[0], cold[2])
    torch.testing.assert_close(cold, net.propose(now, 3, 8, temperature=0.0))


def test_many_proposals_share_one_present_and_are_what_single_ones_would_be() -> None:
    net = policy()
    now = present(net)
    noisy = torch.randn(6, 4, 4)
    when = torch.rand(6)
    with torch.no_grad():
        together = net.velocity(now, noisy, when)
        alone = torch.cat([net.velocity(now, noisy[i : i + 1], when[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_proposals_are_made_for_one_present() -> None:
    net = policy()
    with torch.no_grad():
        two = net.remember(net.see(frames(2)), STATE.expand(2, -1))
    with pytest.raises(ValueError, match="for one present"):
        net.propose(two, 4, 0)


def test_words_and_state_and_picture_change_what_is_proposed() -> None:
    net = policy()
    plain = net.propose(present(net), 1, 0)
    told = net.propose(present(net, words=torch.tensor([[0, 1]])), 1, 0)
    silent = net.propose(present(net, words=torch.tensor([[3, 2]])), 1, 0)
    assert not torch.equal(plain, told) and torch.equal(plain, silent)
    with torch.no_grad():
        elsewhere = net.remember(net.see(frames()), STATE + 0.1)
        otherwise = net.remember(net.see(frames(seed=3)), STATE)
    assert not torch.equal(plain, net.propose(elsewhere, 1, 0))
    assert not torch.equal(plain, net.propose(otherwise, 1, 0))


def test_guidance_of_weight_0_is_no_guidance_bit_for_bit() -> None:
    net = policy(guide_layers=2, guide_width=6)
    plain, closed, full = (net.propose(present(net, payload=p), 3, 0) for p in (None, guidance(0.0), guidance(1.0)))
    assert torch.equal(plain, closed) and not torch.equal(plain, full)
    other = net.propose(present(net, payload=guidance(1.0, seed=2)), 3, 0)
    assert not torch.equal(full, other)
    with pytest.raises(ValueError, match="built without guidance"):
        present(policy(), payload=guidance(1.0))


def test_each_row_is_told_by_its_own_guidance() -> None:
    net = policy(guide_layers=2, guide_width=6)
    both = Payload.pooled(
        torch.cat((guidance(1.0).prompt, guidance(1.0).generated), 2).expand(2, -1, -1, -1),  # type: ignore[arg-type]
        torch.ones(2, 2, dtype=torch.bool),
        torch.tensor([0.0, 1.0]),
    )
    with torch.no_grad():
        seen = net.see(frames().expand(2, -1, -1, -1, -1))
        rows = net.remember(seen, STATE.expand(2, -1), payload=both).latent_actions
    torch.testing.assert_close(rows[0], present(net).latent_actions[0])
    assert not torch.allclose(rows[0], rows[1])


@pytest.mark.parametrize("count", [1, 3])
def test_latents_that_are_known_need_not_be_computed_again(count: int) -> None:
    net = policy(frames=count, pooled=2)
    pictures = frames(count=count)
    with torch.no_grad():
        latents = net.encoder.frames(pictures[0])[None]
        one, other = net.see(pictures), net.see(pictures, latents)
    assert torch.equal(one.features, other.features)
    assert len(one.rays) == one.features.shape[1] == 16 + 4 * (count - 1) + 64
    with pytest.raises(ValueError, match=f"looks at {count} frames"):
        net.see(frames(count=count + 1))


def test_an_older_frame_is_told_from_a_newer_one() -> None:
    net = policy(frames=2, pooled=2)
    pictures = frames(count=2)
    with torch.no_grad():
        one, other = (net.remember(net.see(x), STATE).latent_actions for x in (pictures, pictures.flip(1)))
    assert not torch.allclose(one, other)


def test_without_the_fine_map_there_are_the_encoder_tokens_alone() -> None:
    net = policy(detail=0)
    with torch.no_grad():
        assert net.see(frames()).features.shape == (1, 16, 16)


def test_the_eye_may_see_finer_pictures_than_the_encoder() -> None:
    camera = Camera(64, 64, 60.0, 60.0, 31.5, 31.5)
    net = policy(camera=camera)
    pictures = torch.randint(0, 256, (1, 1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        seen = net.see(pictures)
        small = pictures[0].view(1, 32, 2, 32, 2, 3).float().mean((2, 4)).round().byte()
        same = net.see(pictures, net.encoder.frames(small)[None])
    assert seen.features.shape == (1, 16 + 256, 16) and torch.equal(seen.features, same.features)
    torch.testing.assert_close(rays(camera, 4), rays(policy_kit.CAMERA, 4))  # both see the same


def test_a_query_that_finds_something_reads_its_ray() -> None:
    """One place looks like the query, all others do not: what comes back is where it is."""
    where = rays(CONFIG.camera, 8)
    np.testing.assert_allclose(where[0], [(1.5 - 15.5) / 30] * 2, atol=1e-6)
    net = policy()
    look = net.looks[0]
    features = torch.zeros(1, 64, 16)
    features[0, 37, 5] = 8.0
    with torch.no_grad():
        k = look.kv(look.norm_seen(features))[0, :, :16].view(64, 2, 8)
        look.q.weight.zero_()
        look.q.bias.copy_((40 * (k[37] - k[0]) / (k[37] - k[0]).norm(dim=-1, keepdim=True)).flatten())
        look.out.weight.zero_()
        look.out.weight[:4, 16:] = torch.eye(4)
        look.out.bias.zero_()
        found, logits = look(torch.zeros(1, 1, 24), Seen(features, where))
    np.testing.assert_allclose(found[0, 0, :4], where[37].repeat(2), atol=1e-2)
    assert logits.argmax(-1).item() == 37


def test_flow_matching_learns_two_ways_to_do_it() -> None:
    """Half of the demonstrations go left, half go right: proposals go left or right, none of them straight on."""
    net = policy(detail=0)
    net.requires_grad_(True)
    with torch.no_grad():
        seen = net.see(frames())
    seen = Seen(seen.features.expand(8, -1, -1), seen.rays)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    sides = torch.tensor([-1.0, 1.0]).repeat(4)
    actions = torch.zeros(8, 4, 4)
    actions[..., 0] = sides[:, None]
    for _ in range(200):
        now = net.remember(seen, STATE.expand(8, -1))
        loss = flow_loss(net, now, actions, torch.ones(8, 4), torch.randn(8, 8, 4, 4), times(torch.rand(8, 8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chunks = net.propose(present(net), 64, 0, steps=8)
    way = chunks[..., 0].mean(1)
    assert ((way.abs() - 1).abs() < 0.6).float().mean() > 0.9
    assert 0.25 < (way > 0).float().mean() < 0.75
    assert chunks[..., 1:3].abs().mean() < 0.15


def test_actions_without_weight_teach_nothing() -> None:
    net = policy()
    now = net.remember(net.see(frames(2)), STATE.expand(2, -1))
    actions, noise, when = torch.randn(2, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(2, 3)
    weight = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]])
    one = flow_loss(net, now, actions, weight, noise, when)
    actions[0, 2:] += 5.0
    actions[1] -= 5.0
    assert not torch.equal(one, one * 0)
    # what is learned from hangs on the actions that count; the noised others are seen by the decoder, as at inference
    assert torch.equal(flow_loss(net, now, actions, weight * 0, noise, when), one * 0)


def test_times_follow_their_distribution() -> None:
    """1 - 0.999 b with b from Beta(1.5, 1), whose mean is 0.6."""
    found = times(torch.from_numpy(np.linspace(0, 1, 20001)))
    assert found.min() >= 1e-3 - 1e-9 and found.max() <= 1
    assert float(found.mean()) == pytest.approx(1 - 0.999 * 0.6, abs=1e-3)


def test_a_checkpoint_comes_back_as_it_was_and_nonsense_is_refused(tmp_path: Path) -> None:
    net = policy(action_mean=(0.0,) * 4, action_std=(0.02, 0.02, 0.02, 0.5))
    save(tmp_path / "p", net, "test", trained=False, domain="none")
    again, manifest = load_policy(tmp_path / "p")
    assert again.config == net.config and manifest.kind == "policy"
    assert torch.equal(again.propose(present(again), 2, 3), net.propose(present(net), 2, 3))
    weights = tmp_path / "p" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_policy(tmp_path / "p")
    for wrong, words in (
        ({"horizon": 0}, "horizon is 0"),
        ({"width": 26, "heads": 4}, "do not give 4 heads"),
        ({"guide_layers": 2}, "go together"),
        ({"action_std": (1.0, 0.0, 1.0, 1.0)}, "action_std must be"),
        ({"pooled": 3}, "cannot be pooled to 3"),
        ({"action_s": 0.0}, "action_s is 0.0"),
        ({"camera": dataclasses.replace(policy_kit.CAMERA, width=64)}, "square pinhole"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]
    assert PolicyConfig.from_dict(CONFIG.as_dict()) == CONFIG
