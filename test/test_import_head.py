"""The importer of ThinkJEPA's trajectory head: equal to formulas and published vectors; bad files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from thinkjepa_ros.importers import thinkjepa_head
from thinkjepa_ros.importers.source import Options, Source, SourceError, read
from thinkjepa_ros.jepa.published_head import HeadConfig, LearnedPool, TrajectoryHead

State = dict[str, Tensor]


def random_state(width: int, hidden: int, joints: int, pooled: bool = True, seed: int = 0) -> State:
    """Weights under the published names."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"mlp_in.0": (hidden, width), "temporal_mlp.0": (hidden, hidden), "temporal_mlp.3": (hidden, hidden)}
    sizes |= {"fc_out": (3 * joints, hidden), "ln_in": (width,), "ln_out": (hidden,)}
    if pooled:
        sizes |= {"token_attn.out_proj": (width, width)}
    state = {}
    for name, size in sizes.items():
        state[f"{name}.weight"] = torch.randn(size, generator=g) * size[-1] ** -0.5 + (len(size) == 1)
        state[f"{name}.bias"] = 0.3 * torch.randn(size[0], generator=g)
    if pooled:
        state["token_query"] = torch.randn(1, 1, width, generator=g)
        state["token_attn.in_proj_weight"] = 2 * torch.randn(3 * width, width, generator=g) * width**-0.5
        state["token_attn.in_proj_bias"] = torch.randn(3 * width, generator=g)
    return state


def formulas(w: State, heads: int, x: Tensor, downsample: bool) -> Tensor:
    """The head as the paper's code has it, slow and plain: x [B, T, n, D] -> [B, T', 3 J]."""
    if heads:
        frames = x.flatten(0, 1)
        y, _ = F.multi_head_attention_forward(
            w["token_query"].expand(1, len(frames), -1), frames.transpose(0, 1), frames.transpose(0, 1),
            x.shape[-1], heads, w["token_attn.in_proj_weight"], w["token_attn.in_proj_bias"], None, None, False, 0.0,
            w["token_attn.out_proj.weight"], w["token_attn.out_proj.bias"], training=False,
        )  # fmt: skip
        y = y[0].view(*x.shape[:2], -1)
    else:
        y = x.mean(2)

    def linear(name: str, v: Tensor) -> Tensor:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, v: Tensor) -> Tensor:
        v = (v - v.mean(-1, keepdim=True)) / (v.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return v * w[f"{name}.weight"] + w[f"{name}.bias"]

    y = F.gelu(linear("mlp_in.0", norm("ln_in", y)))
    y = y + F.gelu(linear("temporal_mlp.3", F.gelu(linear("temporal_mlp.0", y))))
    if downsample:
        y = y[:, : y.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(2)
    return linear("fc_out", norm("ln_out", y))


def imported(source: Source, **options: int) -> TrajectoryHead:
    (part,) = thinkjepa_head.convert(source, Options(**options))
    net = thinkjepa_head.BUILD[part.kind](part.config)
    net.load_state_dict(part.state)
    assert isinstance(net, TrajectoryHead)
    return net.eval().requires_grad_(False)


def source(state: State, **args: object) -> Source:
    return Source(Path("ckpt_best.pt"), {"cls_model": state}, args=args)


def test_the_published_vectors_come_out(shared: Path) -> None:
    path = shared / "golden" / "head.safetensors"
    if not path.is_file():
        pytest.skip(f"no test vectors at {path}")
    vectors = load_file(path)
    y = imported(read(path), heads=4)(vectors["x"])
    assert y.shape == (2, 4, 5, 3)
    torch.testing.assert_close(y.flatten(2), vectors["y"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("width", "hidden", "joints", "heads", "downsample"),
    [(64, 32, 5, 4, False), (40, 56, 3, 8, True), (24, 24, 1, 1, False), (32, 48, 52, 0, True), (20, 8, 2, 5, True)],
)
def test_the_head_equals_its_formulas(width: int, hidden: int, joints: int, heads: int, downsample: bool) -> None:
    state = random_state(width, hidden, joints, heads > 0)
    net = imported(source(state, nhead=heads or 8, joint_pred=downsample))
    assert net.config == HeadConfig(width, hidden, joints, heads, downsample)
    x = 3 * torch.randn(2, 7, 6, width, generator=torch.Generator().manual_seed(4))
    want = formulas(state, heads, x, downsample)
    torch.testing.assert_close(net(x).flatten(2), want, atol=1e-5, rtol=1e-5)
    assert want.shape[1] == (3 if downsample else 7) and want.std() > 0.3


def test_a_frame_depends_on_itself_alone_and_a_sample_on_no_other() -> None:
    """What the published code calls a temporal MLP mixes nothing over time."""
    net = imported(source(random_state(16, 24, 4)), heads=2)
    x = torch.randn(3, 4, 5, 16, generator=torch.Generator().manual_seed(1))
    whole = net(x)
    assert torch.equal(whole, net(x))
    for b in range(3):
        torch.testing.assert_close(whole[b : b + 1], net(x[b : b + 1]), atol=1e-6, rtol=0)
    changed = x.clone()
    changed[1, 2] += 1
    moved = (net(changed) != whole).any(-1).any(-1)
    assert moved.nonzero().tolist() == [[1, 2]]


def test_the_published_size_has_its_parameters_and_needs_no_option() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in TrajectoryHead(HeadConfig()).parameters()) == 7_512_220
    state = {name: t.expand(t.shape) for name, t in random_state(1024, 1024, 52).items()}
    (part,) = thinkjepa_head.convert(source(state, joint_pred=True), Options())
    assert part.config == {"width": 1024, "hidden": 1024, "joints": 52, "heads": 8, "downsample": True}
    assert sum(t.numel() for t in part.state.values()) == 7_512_220
    assert "8 heads" in part.note and "pairs of steps" in part.note


def test_learned_pool_equals_torchs_attention_also_in_gradients() -> None:
    """One query put through the key weights once is the same function, and learns the same."""
    torch.manual_seed(0)
    ours, theirs = LearnedPool(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        for layer, weight, bias in zip(
            (ours.query, ours.key, ours.value),
            theirs.in_proj_weight.chunk(3),
            theirs.in_proj_bias.chunk(3),
            strict=True,
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ours.proj.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(4, 9, 24)
    a, b = ours(x), theirs(ours.token.expand(4, 1, -1), x, x)[0][:, 0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    a.square().sum().backward()
    b.square().sum().backward()
    assert theirs.in_proj_weight.grad is not None
    grads = [layer.weight.grad for layer in (ours.query, ours.key, ours.value)]
    torch.testing.assert_close(torch.cat(grads), theirs.in_proj_weight.grad, atol=1e-4, rtol=1e-4)


def test_the_heads_of_a_predictor_in_the_same_file_are_not_those_of_the_head() -> None:
    both = Source(Path("ckpt_best.pt"), {
        "cls_model": random_state(16, 24, 4), "predictor": {"context_adapter.weight": torch.zeros(1)},
    })  # fmt: skip
    (part,) = thinkjepa_head.convert(both, Options(heads=6))
    assert part.config["heads"] == 8


def test_a_checkpoint_as_published_is_read(tmp_path: Path) -> None:
    state = random_state(16, 24, 4)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(
        {"epoch": 3, "cls_model": wrapped, "args": {"joint_pred": True, "past_T": 32}}, tmp_path / "ckpt_best.pt"
    )
    found = read(tmp_path / "ckpt_best.pt")
    assert thinkjepa_head.recognises(found)
    x = torch.randn(1, 4, 5, 16)
    torch.testing.assert_close(imported(found)(x).flatten(2), formulas(state, 8, x, True), atol=1e-5, rtol=1e-5)
    assert not thinkjepa_head.recognises(Source(Path("x"), {"": {"output_adapter.weight": torch.zeros(1)}}))
    assert thinkjepa_head.convert(Source(Path("x"), {}), Options()) == []


@pytest.mark.parametrize(
    ("change", "args", "words"),
    [
        ({"ln_out.bias": None}, {}, "no tensor ln_out.bias"),
        ({"token_attn.in_proj_bias": None}, {}, "no tensor token_attn.in_proj_bias"),
        ({"extra.weight": torch.zeros(2)}, {}, "extra.weight"),
        ({"fc_out.weight": torch.zeros(10, 24)}, {}, "three for every joint"),
        ({"fc_out.bias": torch.zeros(9)}, {}, r"out.bias \(our name\) is \[9\]"),
        ({"token_attn.in_proj_weight": torch.zeros(47, 16)}, {}, "must have 48 rows"),
        ({"mlp_in.0.weight": torch.zeros(24)}, {}, "a matrix is needed"),
        ({}, {"nhead": 3}, "not a multiple of its 3 heads.*--heads"),
        ({}, {"nhead": "many"}, "positive whole number"),
        ({}, {"joint_pred": "perhaps"}, "True or False"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict, args: dict, words: str) -> None:
    state = {k: v for k, v in {**random_state(16, 24, 4), **change}.items() if v is not None}
    with pytest.raises(SourceError, match=words):
        thinkjepa_head.convert(source(state, **args), Options())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(random_state(16, 24, 4))),
    shape=st.lists(st.integers(0, 3), max_size=3),
    nhead=st.one_of(st.integers(-2, 20), st.text(max_size=4), st.booleans(), st.floats(), st.lists(st.integers())),
)
def test_nothing_else_than_a_sentence_comes_of_a_damaged_file(name: str, shape: list[int], nhead: object) -> None:
    state = {**random_state(16, 24, 4), name: torch.zeros(shape)}
    with pytest.raises(SourceError):
        thinkjepa_head.convert(source(state, nhead=nhead), Options())


@pytest.mark.parametrize("change", [{"heads": 7}, {"width": 0}, {"joints": True}, {"downsample": 1}, {"heads": -1}])
def test_a_configuration_that_makes_no_sense_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change)) if change != {"heads": 7} else "multiple"):
        thinkjepa_head.BUILD["trajectory_head"]({**change})
