"""The encoder: V-JEPA 2's numbers at every size, every kind of attention, and prepared weights that never go stale."""

import copy
import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thinkjepa_ros.benchmarks import roofline
from thinkjepa_ros.jepa import model, rope
from thinkjepa_ros.jepa.encoder import MEAN, STD, Encoder, EncoderConfig, pool

ROOT = Path(__file__).resolve().parents[1]


def small(seed: int = 0, **config: object) -> Encoder:
    """A small encoder with weights large enough to be seen, frozen."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(**{"image_size": 64, "width": 48, "depth": 2, "heads": 2, **config}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return encoder.eval().requires_grad_(False)


def video(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def embedded(encoder: Encoder, clip: Tensor) -> Tensor:
    """Patch tokens [B, N, D] by a convolution of normalised pixels, float64."""
    c = encoder.config
    x = ((clip.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    weight = encoder.patch_embed.weight.double().view(c.width, 3, c.tubelet, c.patch_size, c.patch_size)
    stride = (c.tubelet, c.patch_size, c.patch_size)
    return torch.nn.functional.conv3d(x, weight, encoder.patch_embed.bias.double(), stride=stride).flatten(2).mT


def plain(encoder: Encoder, clip: Tensor, keep: Tensor | None = None) -> Tensor:
    """The encoder written from its formulas: all tokens of all tubelets, one mask, float64. [B, N or K, D]."""
    c = encoder.config
    frames, height, width = clip.shape[1:4]
    positions = rope.grid(torch.arange(frames // c.tubelet), height // c.patch_size, width // c.patch_size)
    time = positions[:, 0]
    if c.attention == "frame":
        mask = time[:, None] == time
    else:
        mask = (c.attention == "full") | (time[:, None] >= time) & (time[:, None] - time < (c.window or 10**9))
    x = embedded(encoder, clip)
    norm = lambda x, m: torch.nn.functional.layer_norm(  # noqa: E731
        x, (c.width,), m.weight.double(), m.bias.double(), c.norm_eps
    )
    linear = lambda x, m: torch.nn.functional.linear(x, m.weight.double(), m.bias.double())  # noqa: E731
    cos, sin = (part.double() for part in rope.table(positions, c.width // c.heads, c.rope))
    out = []
    for i, sample in enumerate(x):
        chosen = torch.arange(len(mask)) if keep is None else keep[i]
        h, table, seen = sample[chosen], (cos[chosen], sin[chosen]), mask[chosen][:, chosen]
        for b in encoder.blocks:
            q, k, v = linear(norm(h, b.norm1), b.qkv).view(len(h), 3, c.heads, -1).permute(1, 2, 0, 3)
            scores = rope.rotate(q, table) @ rope.rotate(k, table).mT * (c.width // c.heads) ** -0.5
            y = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
            h = h + linear(y.transpose(0, 1).flatten(1), b.proj)
            h = h + linear(torch.nn.functional.gelu(linear(norm(h, b.norm2), b.fc1)), b.fc2)
        out.append(norm(h, encoder.norm))
    return torch.stack(out)


def close(got: Tensor, wanted: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(got.double().view(wanted.shape), wanted.double(), atol=atol, rtol=0)


# --- what it computes ---


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_patch_embedding_equals_a_convolution_of_normalised_pixels(tubelet: int) -> None:
    encoder, clip = small(tubelet=tubelet), video(2, 2 * tubelet, 48, 80)
    tokens, *grid = encoder.embed(clip)
    assert grid == [2, 3, 5]
    close(tokens, embedded(encoder, clip), 1e-5)
    close(encoder.embed(clip.float() + 0.25)[0], embedded(encoder, clip.float() + 0.25), 1e-5)  # float: 8-bit units


@pytest.mark.parametrize(
    "config",
    [
        {"attention": "frame"},
        {"attention": "full", "rope": "tiled", "tubelet": 2},
        {"attention": "full", "norm_eps": 1e-2},
        {"attention": "causal"},
        {"attention": "causal", "window": 2, "heads": 3, "rope": "tiled"},
        {"attention": "causal", "window": 1},
    ],
    ids=str,
)
def test_every_attention_equals_one_masked_attention_over_all_tokens(config: dict) -> None:
    encoder = small(**config)
    clip = video(2, 4 * encoder.config.tubelet, 48, 80)
    close(encoder(clip), plain(encoder, clip))


@pytest.mark.parametrize("config", [{"attention": a} for a in ("frame", "full", "causal")], ids=str)
def test_kept_tokens_are_all_that_is_seen_and_stay_at_their_places(config: dict) -> None:
    encoder, clip = small(**config), video(2, 3, 48, 80)
    tube = torch.tensor([[0, 4, 7, 14], [3, 2, 9, 11]])  # of 15 tokens per tubelet, another tube per sample
    keep = (torch.arange(3)[:, None] * 15 + tube[:, None]).flatten(1)
    got = encoder(clip, keep)
    assert got.shape == (2, 12, 48)
    close(got, plain(encoder, clip, keep))
    hidden = clip.clone()
    hidden[0, :, :16, 16:32] = 0  # token 1 of every tubelet
    assert torch.equal(encoder(hidden, keep), got)
    close(encoder(clip, torch.arange(45).expand(2, -1)), encoder(clip).flatten(1, 2))
    if config["attention"] == "full":
        odd = torch.tensor([[44, 0, 3], [7, 8, 40]])
        close(encoder(clip, odd), plain(encoder, clip, odd))
    else:
        for wrong in (torch.tensor([[0, 15, 16]] * 2), torch.tensor([[0, 1]] * 2)):
            with pytest.raises(ValueError, match="kept tokens"):
                encoder(clip, wrong)


@pytest.mark.parametrize("attention", ["frame", "full", "causal"])
def test_a_frame_alone_is_a_still_clip_in_every_mode(attention: str) -> None:
    encoder, image = small(attention=attention, tubelet=2), video(3, 48, 80)
    got = encoder.frames(image)
    assert got.shape == (3, 15, 48)
    assert torch.equal(got, encoder(image[:, None])[:, 0])
    close(got, encoder(image[:, None].expand(-1, 2, -1, -1, -1))[:, 0])


def test_rows_and_columns_are_stretched_onto_the_grid_of_training() -> None:
    """V-JEPA 2.1: row r of H becomes r * (16 - 1) / (H - 1); the time is left alone."""
    encoder = small(rope_grid=16)
    got = encoder.positions(torch.arange(3), 4, 24)
    for i, (t, row, column) in enumerate((t, r, c) for t in range(3) for r in range(4) for c in range(24)):
        assert got[i].tolist() == pytest.approx([t, row * 15 / 3, column * 15 / 23])
    assert encoder.positions(torch.arange(1), 1, 1).tolist() == [[0, 0, 0]]
    square = small(rope_grid=16, attention="full")
    clip = video(1, 2, 256, 256)
    assert torch.equal(square(clip), small(attention="full")(clip))  # on its own grid nothing is stretched
    assert not torch.allclose(square(clip[:, :, :128]), small(attention="full")(clip[:, :, :128]), atol=1e-3)


def test_the_shipped_encoder_gives_the_numbers_of_its_formulas() -> None:
    net, _ = model.load(ROOT / "models" / "mini")
    images = video(2, 128, 128)
    with torch.inference_mode():
        close(net.encoder.frames(images), plain(net.encoder, images[:, None]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), st.sampled_from(["frame", "full", "causal"]))
def test_every_size_that_is_whole_patches_is_encoded_and_no_other(h: int, w: int, frames: int, attention: str) -> None:
    encoder = small(attention=attention, tubelet=2, patch_size=8, depth=1)
    clip = video(1, frames, h, w)
    if h % 8 or w % 8 or (frames % 2 and frames > 1):
        with pytest.raises(ValueError, match="whole"):
            encoder(clip)
    else:
        assert encoder(clip).shape == (1, max(1, frames // 2), h * w // 64, 48)


# --- properties ---


def test_a_later_frame_changes_no_bit_of_an_earlier_latent() -> None:
    clip = video(1, 6, 32, 32)
    later = clip.clone()
    later[:, 4:] = 255 - later[:, 4:]
    for config in ({"attention": "causal", "window": 2}, {"attention": "causal"}, {"attention": "frame"}):
        encoder = small(**config)
        assert torch.equal(encoder(clip)[:, :4], encoder(later)[:, :4])
        assert not torch.equal(encoder(clip)[:, 4:], encoder(later)[:, 4:])
    full = small(attention="full")
    assert not torch.equal(full(clip)[:, :4], full(later)[:, :4])


def test_a_frame_of_frame_attention_depends_on_nothing_else() -> None:
    encoder, clip = small(), video(2, 3, 32, 32)
    got = encoder(clip)
    for i in range(3):
        close(got[:, i], encoder.frames(clip[:, i]), 1e-6)


def test_outputs_do_not_depend_on_the_batch_and_repeat_bit_by_bit() -> None:
    encoder, clip = small(attention="causal", window=2), video(3, 4, 32, 32)
    whole = encoder(clip)
    assert torch.equal(whole, encoder(clip))
    close(whole, torch.cat([encoder(sample[None]) for sample in clip]), 1e-6)


def test_half_precision_stays_close_and_late_positions_exact() -> None:
    encoder, clip = small(attention="full", tubelet=2), video(1, 64, 32, 32)
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    got, wanted = half(clip), encoder(clip)
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.double(), wanted.double(), dim=-1).min() > 0.999
    cos, _ = half.table(32, 2, 2, got)
    exact, _ = rope.table(half.positions(torch.arange(32), 2, 2), 24)
    assert torch.equal(cos, exact.bfloat16())  # rounded once, at the end


def test_pixels_cost_half_precision_nothing() -> None:
    """The folded embedding is as close as the unfolded one in the same type: 0 ... 255 are exact and the sums small."""
    encoder, clip = small(width=96, heads=4), video(2, 1, 128, 128)
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    exact = embedded(half, clip)
    x = ((clip.double() - torch.tensor(MEAN)) / torch.tensor(STD)).bfloat16()
    x = x.view(2, 8, 16, 8, 16, 3).permute(0, 1, 3, 5, 2, 4).reshape(2, 64, -1)
    error = lambda y: (y.double() - exact).square().mean().sqrt()  # noqa: E731
    assert error(half.embed(clip)[0]) < 1.1 * error(half.patch_embed(x))


# --- prepared weights ---


def fresh(encoder: Encoder) -> Encoder:
    """The same weights in a module that has prepared nothing yet."""
    other = Encoder(encoder.config)
    other.load_state_dict(encoder.state_dict())
    return other.to(encoder.norm.weight.dtype).eval().requires_grad_(False)


def test_frozen_weights_are_prepared_once() -> None:
    encoder, images = small(), video(1, 64, 64)
    first = encoder.frames(images)
    held = [x.data_ptr() for x in (*encoder._patch_weights(False), *encoder.table(1, 4, 4, first))]
    assert torch.equal(encoder.frames(images), first)
    assert [x.data_ptr() for x in (*encoder._patch_weights(False), *encoder.table(1, 4, 4, first))] == held
    assert set(encoder.state_dict()) == set(Encoder(encoder.config).state_dict())  # nothing of it is saved


def test_prepared_weights_never_go_stale() -> None:
    """However weights are changed, the next call sees it."""
    images = video(1, 64, 64)

    def in_place(e: Encoder) -> None:
        with torch.no_grad():
            e.patch_embed.weight.mul_(1.5)

    def bias(e: Encoder) -> None:
        with torch.no_grad():
            e.patch_embed.bias.add_(1)

    def swapped(e: Encoder) -> None:
        e.patch_embed.weight = torch.nn.Parameter(e.patch_embed.weight * 2, requires_grad=False)

    def assigned(e: Encoder) -> None:
        e.load_state_dict({k: v * 1.1 for k, v in e.state_dict().items()}, assign=True)
        e.requires_grad_(False)

    def trained(e: Encoder) -> None:
        e.requires_grad_(True)
        optimiser = torch.optim.SGD(e.parameters(), lr=1e-2)
        e.frames(images).square().sum().backward()
        optimiser.step()
        e.requires_grad_(False)

    changes = {
        "in place": in_place,
        "bias": bias,
        "swapped": swapped,
        "loaded": lambda e: e.load_state_dict({k: v * 1.1 for k, v in e.state_dict().items()}),
        "assigned": assigned,
        "trained": trained,
        "there and back": lambda e: e.to(torch.bfloat16).to(torch.float32),
        "data": lambda e: setattr(e.patch_embed.weight, "data", e.patch_embed.weight.data * 2),
    }
    for name, change in changes.items():
        encoder = small(tubelet=2)
        before = encoder.frames(images)
        change(encoder)
        with torch.inference_mode():
            after = encoder.frames(images)
        assert not torch.equal(after, before), name
        assert torch.equal(after, fresh(encoder).frames(images)), name


def test_a_copy_that_is_averaged_into_prepares_its_own_weights() -> None:
    student, other, images = small(), small(1), video(1, 64, 64)
    for _ in range(3):
        with torch.no_grad():
            student.patch_embed.weight.add_(0.01)
            student.patch_embed.bias.add_(0.01)
    student.frames(images)
    stored = io.BytesIO()
    torch.save(student, stored)

    def loaded() -> Encoder:
        stored.seek(0)
        return torch.load(stored, weights_only=False)

    for copied in (lambda: copy.deepcopy(student), loaded):
        assert torch.equal(copied().frames(images), student.frames(images))
        for changes in range(student.patch_embed.weight._version + 3):  # one is as many as the original has seen
            teacher = copied()
            with torch.no_grad():
                for _ in range(changes):
                    teacher.patch_embed.weight.lerp_(other.patch_embed.weight, 0.5)
                    teacher.patch_embed.bias.lerp_(other.patch_embed.bias, 0.5)
            assert torch.equal(teacher.frames(images), fresh(teacher).frames(images))


def test_gradients_are_those_of_the_embedding_before_folding() -> None:
    encoder, images = small(), video(2, 64, 64)
    with torch.inference_mode():
        encoder.frames(images)  # tables made here must serve training too
    encoder.requires_grad_(True)
    encoder.embed(images[:, None])[0].square().sum().backward()
    got = encoder.patch_embed.weight.grad.clone(), encoder.patch_embed.bias.grad.clone()
    encoder.zero_grad()
    embedded(encoder, images[:, None]).square().sum().backward()
    for a, b in zip(got, (encoder.patch_embed.weight.grad, encoder.patch_embed.bias.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)
    encoder.frames(images).sum().backward()


def test_a_compiled_encoder_is_one_graph_and_sees_changed_weights() -> None:
    encoder, clip = small(attention="causal", window=2, depth=1), video(1, 3, 32, 32)
    compiled = torch.compile(encoder, fullgraph=True, dynamic=False, backend="eager")
    for _ in range(2):
        with torch.inference_mode():
            got = compiled(clip)
        assert torch.equal(got, fresh(encoder)(clip))
        with torch.no_grad():
            encoder.patch_embed.weight.mul_(1.5)
    encoder.requires_grad_(True)
    encoder(clip).sum().backward()  # its tables serve training too


def test_tables_of_many_shapes_are_not_all_kept() -> None:
    encoder = small(depth=1)
    for side in range(1, 60):
        encoder.frames(video(1, 16, 16 * side))
    assert len(encoder._tables) <= 16


# --- configuration ---


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope": "other"}, "encoder rope is 'other'"),
        ({"attention": "none"}, "encoder attention is 'none'"),
        ({"tubelet": 0}, "encoder tubelet is 0"),
        ({"tubelet": 2.0}, "encoder tubelet is 2.0"),
        ({"rope_grid": -1}, "encoder rope_grid is -1"),
        ({"window": True, "attention": "causal"}, "encoder window is True"),
        ({"window": 3}, "needs attention 'causal'"),
        ({"norm_eps": float("nan")}, "encoder norm_eps is nan"),
        ({"heads": 5}, "not a multiple of heads 5"),
        ({"heads": 16}, "not a multiple of heads 16"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**config)


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 2, 64, 64, 1), (1, 0, 64, 64, 3), (0, 2, 64, 64, 3)])
def test_what_is_no_video_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, T, H, W, 3\]"):
        small()(torch.zeros(shape, dtype=torch.uint8))


def test_pooling_averages_neighbours_and_keeps_their_order() -> None:
    x = torch.arange(16.0)[:, None]
    assert pool(x, 4, 2)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_costs_in_the_document_are_those_of_the_formula() -> None:
    sizes = {
        "mini, 128 px": (64, 8, 128, 6, 4.0, 768, 768),
        "ViT-L, 256 px": (256, 16, 1024, 24, 4.0, 768, 1536),
        "ViT-H, 256 px": (256, 16, 1280, 32, 4.0, 768, 1536),
        "ViT-g, 256 px": (256, 16, 1408, 40, 48 / 11, 768, 1536),
    }
    text = (ROOT / "docs" / "encoders.md").read_text()
    for name, (n, tubelets, width, depth, ratio, still, patch) in sizes.items():
        costs = [
            roofline.encoder(n, n, width, depth, ratio, still),
            roofline.encoder(n, tubelets * n, width, depth, ratio, patch),
            roofline.encoder(tubelets * n, tubelets * n, width, depth, ratio, patch),
        ]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        written = [cell.split() for cell in row.split("|")[3:7]]
        assert [unit for _, unit in written] == ["GFLOP"] * 3 + ["MB"]
        for (number, _), cost in zip(written, [c / 1e9 for c in costs], strict=False):
            assert float(number) == pytest.approx(cost, rel=5e-3)
        assert float(written[3][0]) == pytest.approx(4 * depth * (tubelets - 1) * n * width / 1e6, rel=0.03)
