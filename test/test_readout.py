"""Readouts: the attentive ones localise what pooling cannot, and say "nothing moves" until they are trained."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from thinkjepa_ros.jepa.attentive import AttentiveMotion, AttentivePose, place_features
from thinkjepa_ros.jepa.readout import MotionReadout, PoseReadout
from thinkjepa_ros.values import Camera

JOINTS, GRID, WIDTH = 5, 6, 24
CONTEXT, TUBELETS, STEPS, SIDE = 4, 3, 2, 4
CAMERA = Camera(96, 96, 80.0, 80.0, 47.5, 47.5)


def opened(net: nn.Module, seed: int = 0) -> nn.Module:
    """The module with no zero-initialised end: every path counts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net.eval()


def pose() -> AttentivePose:
    torch.manual_seed(0)
    return AttentivePose(JOINTS, GRID, WIDTH, heads=2, width=32)


def motion(width: int = 32) -> AttentiveMotion:
    torch.manual_seed(0)
    return AttentiveMotion(JOINTS, CONTEXT, TUBELETS, STEPS, SIDE**2, WIDTH, heads=2, width=width)


def latent(batch: int = 3) -> Tensor:
    return torch.randn(batch, GRID**2, WIDTH, generator=torch.Generator().manual_seed(1))


def future(batch: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(batch, TUBELETS, SIDE**2, WIDTH, generator=g), torch.randn(
        batch, CONTEXT, JOINTS, 3, generator=g
    )


def test_both_kinds_of_readout_are_called_alike() -> None:
    soft = PoseReadout(JOINTS, GRID, WIDTH, CAMERA)
    plain = MotionReadout(JOINTS, CONTEXT, TUBELETS, STEPS, SIDE**2, WIDTH)
    for read in (soft.read, pose().read):
        joints, logits = read(latent())
        assert joints.shape == (3, JOINTS, 3) and logits.shape == (3, GRID**2, JOINTS)
    for net in (plain, motion()):
        displacement, log_sigma = net(*future())
        assert displacement.shape == (3, TUBELETS * STEPS, JOINTS, 3)
        assert log_sigma.shape == (3, TUBELETS * STEPS, JOINTS)


def test_an_untrained_head_says_that_nothing_moves() -> None:
    displacement, log_sigma = motion()(*future())
    assert not displacement.any() and torch.equal(log_sigma, torch.full_like(log_sigma, -3.0))
    assert torch.equal(pose()(latent()), torch.tensor([0.0, 0.0, 0.6]).expand(3, JOINTS, 3))


def test_log_sigma_is_bounded_whatever_comes_in() -> None:
    net = opened(motion())
    with torch.no_grad():
        net.out.weight.mul_(1e4)
        _, log_sigma = net(*future())
    assert log_sigma.min() == -10 and log_sigma.max() == -1


@pytest.mark.parametrize("kind", ["pose", "motion"])
def test_a_sample_does_not_depend_on_its_batch_and_two_runs_agree(kind: str) -> None:
    net: nn.Module = opened(pose() if kind == "pose" else motion())
    inputs = (latent(),) if kind == "pose" else future()
    with torch.inference_mode():
        whole, again = net(*inputs), net(*inputs)
        alone = [net(*(x[i : i + 1] for x in inputs)) for i in range(3)]
    if kind == "pose":
        whole, again, alone = (whole,), (again,), [(x,) for x in alone]
    for part, (a, b) in enumerate(zip(whole, again, strict=True)):
        assert torch.equal(a, b)
        assert torch.allclose(a, torch.cat([x[part] for x in alone]), atol=1e-5)
        assert a.std() > 1e-3  # it says something


@pytest.mark.parametrize("kind", ["pose", "motion"])
def test_gradients_reach_every_weight(kind: str) -> None:
    net: nn.Module = opened(pose() if kind == "pose" else motion())
    out = net(latent()) if kind == "pose" else torch.cat([x.flatten() for x in net(*future())])
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_supervised_logits_are_those_the_readout_attends_by() -> None:
    """With one head the softmax over the logits is the attention."""
    torch.manual_seed(3)
    net = opened(AttentivePose(JOINTS, GRID, WIDTH, heads=1, width=32))
    x = latent(1).requires_grad_()
    q, k, v = net.pool._attention(x)
    by_hand = (net.pool.logits(x).softmax(1).mT[:, None] @ v)[:, 0]
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
    assert torch.allclose(by_hand, attended, atol=1e-5)


def test_shifting_every_pose_leaves_the_motion_part_alone() -> None:
    """Where the joints are now is an input of its own; what they did up to now is seen relative to now."""
    net = opened(motion())
    tokens, poses = future()
    shifted = poses + torch.tensor([0.3, -0.2, 0.5])
    with torch.no_grad():
        moved = net(tokens, shifted)[0] - net(tokens, poses)[0]
        assert moved.abs().max() > 1e-3  # latents speak of absolute places, so the place now may matter
        net.pose.weight[:, -JOINTS * 3 :] = 0
        assert torch.allclose(net(tokens, shifted)[0], net(tokens, poses)[0], atol=1e-4)
        faster = torch.cat((poses[:, :-1] + 0.1, poses[:, -1:]), 1)
        assert (net(tokens, faster)[0] - net(tokens, poses)[0]).abs().max() > 1e-3


def test_places_of_tokens_are_all_different_and_sizes_that_do_not_fit_are_refused() -> None:
    for rows, columns in ((1, 1), (4, 4), (16, 16), (3, 7)):
        places = place_features(rows, columns)
        assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.1
        assert places[:, :2].abs().max() < 1
    with pytest.raises(ValueError, match="square grid"):
        AttentiveMotion(JOINTS, CONTEXT, TUBELETS, STEPS, 12, WIDTH)
    with pytest.raises(ValueError, match="multiple of heads"):
        AttentivePose(JOINTS, GRID, WIDTH, heads=3, width=32)
    with pytest.raises(ValueError, match="25 tokens"):
        pose()(latent()[:, :25])


# --- learning: a bright token among noise tells where ---


def scene(batch: int, side: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [B, side^2, WIDTH] of which one is bright, and its place (column, row) in -1 … 1, [B, 2]."""
    tokens = 0.5 * torch.randn(batch, side**2, WIDTH, generator=g)
    cell = torch.randint(side**2, (batch,), generator=g)
    tokens[torch.arange(batch), cell, 0] += 4
    place = torch.stack((cell % side, cell.div(side, rounding_mode="floor")), 1).float()
    return tokens, (2 * place + 1) / side - 1


class Mean(nn.Module):
    """What plain pooling gives: the control that the same training must not teach."""

    def __init__(self, out: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, out))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens.mean(-2))


def learn(net: nn.Module, loss: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int) -> float:
    """Error after training, as a share of the error of the best constant (0)."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        error, _ = loss(g)
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()
    with torch.no_grad():
        error, nothing = loss(torch.Generator().manual_seed(99))
    return float(error.mean() / nothing.mean())


def test_pose_learns_where_the_bright_token_is_and_mean_pooling_does_not() -> None:
    """Each joint sits at a fixed offset from the bright token, one metre away."""
    offsets = 0.2 * torch.randn(JOINTS, 2, generator=torch.Generator().manual_seed(8))

    def loss(net: Callable[[Tensor], Tensor], g: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, place = scene(64, GRID, g)
        wanted = torch.nn.functional.pad(0.5 * place[:, None] + offsets, (0, 1), value=1.0)
        constant = torch.nn.functional.pad(offsets, (0, 1), value=1.0)
        return (net(tokens) - wanted).norm(dim=-1), (constant - wanted).norm(dim=-1)

    attentive, mean = pose(), nn.Sequential(Mean(JOINTS * 3), nn.Unflatten(1, (JOINTS, 3)))
    assert learn(attentive, functools.partial(loss, attentive), 300) < 0.25
    assert learn(mean, functools.partial(loss, mean), 300) > 0.7


def test_motion_learns_place_times_time_and_mean_pooling_does_not() -> None:
    """Joints move away from the pose they are given, towards the bright token, farther in every tubelet."""
    ahead = torch.arange(1, TUBELETS * STEPS + 1) / (TUBELETS * STEPS)

    def loss(net: Callable[[Tensor, Tensor], Tensor], g: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, place = scene(32, SIDE, g)
        poses = 0.2 * torch.randn(32, CONTEXT, JOINTS, 3, generator=g)
        goal = torch.nn.functional.pad(0.3 * place, (0, 1))
        wanted = (ahead[:, None] * goal[:, None])[:, :, None].expand(-1, -1, JOINTS, -1)
        return (net(tokens[:, None].expand(-1, TUBELETS, -1, -1), poses) - wanted).norm(dim=-1), wanted.norm(dim=-1)

    attentive, mean = motion(64), Mean(STEPS * JOINTS * 3)
    assert learn(attentive, functools.partial(loss, lambda x, p: attentive(x, p)[0]), 250) < 0.25
    read = lambda x, p: mean(x).unflatten(-1, (STEPS, JOINTS, 3)).flatten(1, 2)  # noqa: E731
    assert learn(mean, functools.partial(loss, read), 250) > 0.7
