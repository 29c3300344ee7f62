"""Readouts: they localise what pooling cannot, and say "nothing moves" until they are trained."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from thinkjepa_ros.jepa.attentive import AttentiveMotion, AttentivePose, place_features
from thinkjepa_ros.jepa.readout import MEDIAN_DEPTH, MotionReadout, Pointers, PoseReadout
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


def soft_motion() -> MotionReadout:
    torch.manual_seed(0)
    return MotionReadout(JOINTS, CONTEXT, TUBELETS, STEPS, SIDE**2, WIDTH, GRID, CAMERA)


def latent(batch: int = 3) -> Tensor:
    return torch.randn(batch, GRID**2, WIDTH, generator=torch.Generator().manual_seed(1))


def future(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """What a motion readout takes: predicted latents, the newest latent, poses."""
    g = torch.Generator().manual_seed(2)
    tokens = torch.randn(batch, TUBELETS, SIDE**2, WIDTH, generator=g)
    return tokens, latent(batch), torch.randn(batch, CONTEXT, JOINTS, 3, generator=g)


def test_both_kinds_of_readout_are_called_alike() -> None:
    soft = PoseReadout(JOINTS, GRID, WIDTH, CAMERA)
    for read in (soft.read, pose().read):
        joints, logits = read(latent())
        assert joints.shape == (3, JOINTS, 3) and logits.shape == (3, GRID**2, JOINTS)
    for net in (soft_motion(), motion()):
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


def made(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """An opened readout and what it takes."""
    if kind == "pose":
        return opened(pose()), (latent(),)
    return opened(motion() if kind == "motion" else soft_motion()), future()


@pytest.mark.parametrize("kind", ["pose", "motion", "soft motion"])
def test_a_sample_does_not_depend_on_its_batch_and_two_runs_agree(kind: str) -> None:
    net, inputs = made(kind)
    with torch.inference_mode():
        whole, again = net(*inputs), net(*inputs)
        alone = [net(*(x[i : i + 1] for x in inputs)) for i in range(3)]
    if kind == "pose":
        whole, again, alone = (whole,), (again,), [(x,) for x in alone]
    for part, (a, b) in enumerate(zip(whole, again, strict=True)):
        assert torch.equal(a, b)
        assert torch.allclose(a, torch.cat([x[part] for x in alone]), rtol=1e-4, atol=1e-4)
        assert a.std() > 1e-3  # it says something


@pytest.mark.parametrize("kind", ["pose", "motion", "soft motion"])
def test_gradients_reach_every_weight(kind: str) -> None:
    net, inputs = made(kind)
    out = net(*inputs) if kind == "pose" else torch.cat([x.flatten() for x in net(*inputs)])
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
    tokens, now, poses = future()
    shifted = poses + torch.tensor([0.3, -0.2, 0.5])
    with torch.no_grad():
        moved = net(tokens, now, shifted)[0] - net(tokens, now, poses)[0]
        assert moved.abs().max() > 1e-3  # latents speak of absolute places, so the place now may matter
        net.pose.weight[:, -JOINTS * 3 :] = 0
        assert torch.allclose(net(tokens, now, shifted)[0], net(tokens, now, poses)[0], atol=1e-4)
        faster = torch.cat((poses[:, :-1] + 0.1, poses[:, -1:]), 1)
        assert (net(tokens, now, faster)[0] - net(tokens, now, poses)[0]).abs().max() > 1e-3


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


# --- pointers into the newest frame ---


def in_metres(column: float, row: float) -> Tensor:
    """Place [3] of a point on the grid, at the median depth."""
    patch = CAMERA.width / GRID
    u, v = column * patch - 0.5, row * patch - 0.5  # pixel centres at whole numbers
    return MEDIAN_DEPTH * torch.tensor([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, 1.0])


def pointers() -> Pointers:
    """Pointers that look for tokens with a large first value: no votes, no places learned yet."""
    torch.manual_seed(0)
    net = Pointers(GRID, WIDTH, CAMERA, asking=8, count=2, head=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.norm.weight.fill_(1)
        net.fc.weight[:, 0] = 1
        net.key.weight.copy_(torch.eye(8))
        net.ask.bias.fill_(20)
    return net.eval()


@pytest.mark.parametrize("cell", [0, 7, 20, GRID**2 - 1])
def test_a_pointer_on_a_token_gives_its_place_in_metres(cell: int) -> None:
    now = torch.zeros(1, GRID**2, WIDTH)
    now[0, cell, 0] = 5
    row, column = divmod(cell, GRID)
    place, feature = pointers()(torch.zeros(1, TUBELETS, 8), now)
    assert place.shape == (1, TUBELETS, 2, 3) and feature.shape == (1, TUBELETS, 2, 8)
    assert torch.allclose(place, in_metres(column + 0.5, row + 0.5).expand_as(place), atol=1e-3)


def test_a_token_votes_for_a_place_beside_itself_and_for_its_depth() -> None:
    now = torch.zeros(1, GRID**2, WIDTH)
    now[0, 2 * GRID + 3, 0] = 5
    net = pointers()
    with torch.no_grad():
        net.vote.bias.copy_(torch.tensor([0.5, -1.0, 0.2] * 2))
    place = net(torch.zeros(1, 1, 8), now)[0]
    wanted = in_metres(3.5 + 0.5, 2.5 - 1.0) * torch.tensor(0.2).exp()
    assert torch.allclose(place, wanted.expand_as(place), atol=1e-3)


def test_what_is_expected_decides_where_a_pointer_looks() -> None:
    """Two bright tokens, told apart by another value; the query says which."""
    now = torch.zeros(1, GRID**2, WIDTH)
    now[0, 4, :2], now[0, 30, 0], now[0, 30, 2] = 5, 5, 5
    net = pointers()
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.weight[torch.tensor([0, 4]), 1] = 1
        net.fc.weight[torch.tensor([1, 5]), 2] = 1
        net.ask.bias.zero_()
        net.ask.weight[torch.tensor([0, 4]), 0] = 20
        net.ask.weight[torch.tensor([1, 5]), 1] = 20
    asked = torch.eye(8)[None, :2]  # two tubelets, another wish each
    place = net(asked, now)[0][0, :, 0]
    assert torch.allclose(place[0], in_metres(4.5, 0.5), atol=1e-3)
    assert torch.allclose(place[1], in_metres(0.5, 5.5), atol=1e-3)


def pointing() -> MotionReadout:
    """A readout whose free displacement is off: joints move towards places or not at all."""
    net = soft_motion().eval()
    with torch.no_grad():
        for layer in (net.share, net.out):
            layer.weight.zero_()
            layer.bias.zero_()
    return net


def test_a_share_of_zero_stays_and_a_share_of_one_goes_all_the_way() -> None:
    net, (tokens, now, poses) = pointing(), future()
    assert not net(tokens, now, poses)[0].any()
    with torch.no_grad():  # the first pointer, joint 2 alone, only in the second step of a tubelet
        net.share.bias.view(STEPS, JOINTS, net.pointers.count)[1, 2, 0] = 1
    seen: list[Tensor] = []
    net.pointers.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    moved = net(tokens, now, poses)[0].unflatten(1, (TUBELETS, STEPS))
    goal = poses[:, -1, 2][:, None] + moved[:, :, 1, 2]
    assert torch.allclose(goal, seen[0][:, :, 0], atol=1e-5), "the joint is where the pointer points"
    moved[:, :, 1, 2] = 0
    assert not moved.any()


def test_an_untrained_soft_readout_hardly_moves_anything_and_is_moderately_sure() -> None:
    tokens, now, poses = future()
    displacement, log_sigma = soft_motion()(tokens, now, 0.1 * poses + torch.tensor([0.0, 0.0, MEDIAN_DEPTH]))
    assert displacement.abs().max() < 0.05 and (log_sigma + 3).abs().max() < 0.1


def test_the_future_that_is_predicted_is_taught_by_the_motion() -> None:
    """The gradient of the displacement reaches every predicted token, the newest latent, and the poses."""
    inputs = tuple(x.requires_grad_() for x in future())
    opened(soft_motion())(*inputs)[0].square().sum().backward()
    for x in inputs:
        assert x.grad is not None and (x.grad.abs().amax(-1) > 0).all()


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
    assert learn(attentive, functools.partial(loss, lambda x, p: attentive(x, None, p)[0]), 250) < 0.25
    read = lambda x, p: mean(x).unflatten(-1, (STEPS, JOINTS, 3)).flatten(1, 2)  # noqa: E731
    assert learn(mean, functools.partial(loss, read), 250) > 0.7


def test_pointers_learn_to_go_to_the_bright_token_and_without_them_the_readout_does_not() -> None:
    """It lies in the newest frame alone: what is predicted says nothing of it."""
    unseen = torch.zeros(32, TUBELETS, SIDE**2, WIDTH)
    reach = torch.arange(1, TUBELETS * STEPS + 1) / (TUBELETS * STEPS)

    def loss(net: MotionReadout, blind: bool, g: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, _ = scene(32, GRID, g)
        cell = tokens[..., 0].argmax(1)
        goal = torch.stack([in_metres(c % GRID + 0.5, c // GRID + 0.5) for c in cell.tolist()])
        start = 0.1 * torch.randn(32, 1, JOINTS, 3, generator=g) + torch.tensor([0.0, 0.0, MEDIAN_DEPTH])
        poses = start.expand(-1, CONTEXT, -1, -1)
        wanted = reach[:, None, None] * (goal[:, None, None] - start)
        moved = net(unseen, torch.zeros_like(tokens) if blind else tokens, poses)[0]
        return (moved - wanted).norm(dim=-1), wanted.norm(dim=-1)

    seeing, blind = soft_motion(), soft_motion()
    assert learn(seeing, functools.partial(loss, seeing, False), 120) < 0.4
    assert learn(blind, functools.partial(loss, blind, True), 120) > 0.6
