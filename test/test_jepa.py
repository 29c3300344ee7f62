"""Rotary positions and attention: the published forms, and blocks without a mask."""

import math

import pytest
import torch

from thinkjepa_ros.jepa import layers, rope

# --- rotary positions ---


def test_rotary_scores_depend_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 12, 32, dtype=torch.float64), torch.randn(1, 12, 32, dtype=torch.float64)
    positions = rope.grid(torch.arange(3), 2, 2)

    def scores(shift: torch.Tensor) -> torch.Tensor:
        cos, sin = (part.double() for part in rope.table(positions + shift, 32))
        return rope.rotate(q, (cos, sin)) @ rope.rotate(k, (cos, sin)).mT

    moved = scores(torch.tensor([5.0, -2.0, 3.0]))
    assert torch.allclose(scores(torch.zeros(3)), moved, atol=1e-5)
    assert not torch.allclose(moved, q @ k.mT, atol=1e-2)  # it does encode something


def test_rotation_equals_the_formula_of_the_paper_pair_by_pair() -> None:
    head, position = 20, torch.tensor([[2.0, 5.0, 3.0]])
    x = torch.randn(1, head)
    got = rope.rotate(x, rope.table(position, head))[0]
    pairs = head // 6
    for axis in range(3):
        for j in range(pairs):
            angle = float(position[0, axis]) * 10000 ** (-j / pairs)
            i = axis * pairs + j
            a, b = float(x[0, i]), float(x[0, i + head // 2])
            assert float(got[i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
            assert float(got[i + head // 2]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)
    assert torch.equal(got[[9, 19]], x[0, [9, 19]])  # what is left over is not turned


def test_tiled_rotation_equals_the_published_form_element_by_element() -> None:
    """In the released weights element e of an axis turns by angle e modulo pairs, so a pair turns by two angles."""
    torch.manual_seed(0)
    head, position = 20, torch.tensor([[2.0, 5.0, 3.0]])
    pairs = head // 6
    interleaved = torch.randn(head)
    order = rope.half_split_order(1, head)
    got = torch.empty(head)
    got[order] = rope.rotate(interleaved[order][None], rope.table(position, head, "tiled"))[0]
    for axis in range(3):
        for e in range(2 * pairs):
            angle = float(position[0, axis]) * 10000 ** (-(e % pairs) / pairs)
            i = axis * 2 * pairs + e
            partner = -interleaved[i + 1] if e % 2 == 0 else interleaved[i - 1]
            wanted = float(interleaved[i]) * math.cos(angle) + float(partner) * math.sin(angle)
            assert float(got[i]) == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(got[6 * pairs :], interleaved[6 * pairs :])
    with pytest.raises(ValueError, match="rope form"):
        rope.table(position, head, "other")


# --- attention ---


@pytest.mark.parametrize("window", [None, 1, 2, 9])
def test_block_causal_attention_equals_a_mask(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (12, 18, 18))
    query, key = torch.arange(6, 18)[:, None] // 3, torch.arange(18)[None] // 3
    mask = (key <= query) & (key > query - (window or 99))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(layers.block_causal(q, k, v, 3, window), wanted, atol=1e-12)
    with pytest.raises(ValueError, match="whole blocks"):
        layers.block_causal(q, k, v, 5)


def test_a_block_gives_the_same_rows_when_only_the_last_are_asked_for() -> None:
    torch.manual_seed(0)
    block, x = layers.Block(24, 2).eval(), torch.randn(2, 10, 24)
    table = rope.table(rope.grid(torch.arange(10), 1, 1), 12)
    whole, (k, v) = block(x, table)
    part, (k2, v2) = block(x, table, only_from=7)
    assert torch.allclose(whole[:, 7:], part, atol=1e-6) and torch.equal(k, k2) and torch.equal(v, v2)
