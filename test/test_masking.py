"""Multi-block tube masks: what is promised for every grid and seed, and the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa_ros.jepa import masking
from thinkjepa_ros.jepa.masking import LONG_RANGE, SHORT_RANGE, Masks, TubeMask

GRIDS = st.tuples(st.integers(1, 8), st.integers(4, 12), st.integers(4, 12))
FAMILIES = st.sampled_from([SHORT_RANGE, LONG_RANGE])
SEEDS = st.integers(0, 2**32)


def draw(mask: TubeMask, grid: masking.Grid, seed: int, batch: int = 5) -> Masks:
    return mask.draw(batch, grid, np.random.default_rng(seed))


def check(masks: Masks, grid: masking.Grid, batch: int) -> None:
    """What holds for every mask: rectangular, ascending, within the grid, never empty, disjoint."""
    for index in masks:
        assert index.dtype == torch.int64 and index.shape[0] == batch and index.shape[1] > 0
        assert index.min() >= 0 and index.max() < math.prod(grid)
        assert bool((index.diff(dim=1) > 0).all())
    for context, target in zip(masks.context.tolist(), masks.target.tolist(), strict=True):
        assert not set(context) & set(target)


def cells(index: torch.Tensor, grid: masking.Grid) -> np.ndarray:
    """bool [B, tubelets, cells]: which tokens are in the index."""
    chosen = np.zeros((len(index), math.prod(grid)), bool)
    np.put_along_axis(chosen, index.numpy(), True, axis=1)
    return chosen.reshape(len(index), grid[0], -1)


@given(FAMILIES, GRIDS, SEEDS, st.integers(1, 9))
def test_masks_are_disjoint_rectangular_and_whole_tubes(
    mask: TubeMask, grid: masking.Grid, seed: int, batch: int
) -> None:
    masks = draw(mask, grid, seed, batch)
    check(masks, grid, batch)
    for index in masks:
        chosen = cells(index, grid)
        assert (chosen == chosen[:, :1]).all()


MASKS = st.builds(
    TubeMask,
    blocks=st.integers(1, 4),
    spatial_share=st.sampled_from([(0.15, 0.15), (0.05, 0.3)]),
    temporal_share=st.sampled_from([(1.0, 1.0), (0.3, 0.8)]),
    context_duration=st.sampled_from([1.0, 0.5, 0.1]),
    max_context=st.sampled_from([None, 1, 7]),
    leave_out=st.sampled_from(["tubes", "last"]),
    complete=st.sampled_from(["none", "target", "context"]),
    swapped=st.booleans(),
)


@given(MASKS, GRIDS, SEEDS)
def test_every_option_keeps_the_promises(mask: TubeMask, grid: masking.Grid, seed: int) -> None:
    masks = draw(mask, grid, seed)
    check(masks, grid, 5)
    context, target = (masks.target, masks.context) if mask.swapped else masks
    tokens = context.shape[1] + target.shape[1]
    assert tokens == math.prod(grid) if mask.complete != "none" else tokens <= math.prod(grid)
    if mask.complete != "context":
        assert context.shape[1] <= (mask.max_context or math.prod(grid))
        allowed = max(1, int(grid[0] * mask.context_duration))
        assert not cells(context, grid)[:, allowed:].any()


@given(MASKS, GRIDS, SEEDS)
def test_the_same_seed_gives_the_same_masks(mask: TubeMask, grid: masking.Grid, seed: int) -> None:
    for one, two in zip(draw(mask, grid, seed), draw(mask, grid, seed), strict=True):
        assert torch.equal(one, two)


def test_another_seed_and_another_clip_give_other_masks() -> None:
    grid = (4, 16, 16)
    first, second = draw(SHORT_RANGE, grid, 0, 2), draw(SHORT_RANGE, grid, 1, 2)
    assert first.target.shape != second.target.shape or not torch.equal(first.target, second.target)
    assert not torch.equal(first.target[0], first.target[1])


@pytest.mark.parametrize(("aspect", "rows", "columns"), [(0.75, 5, 7), (1.0, 6, 6), (1.5, 8, 5)])
def test_the_size_of_a_block_follows_the_formula(aspect: float, rows: int, columns: int) -> None:
    """A share of 0.15 of 16x16 cells is 38: sqrt(38 * 0.75) = 5.3, sqrt(38 / 0.75) = 7.1, and so on."""
    mask = TubeMask(blocks=8, spatial_share=(0.15, 0.15), aspect=(aspect, aspect))
    assert mask.block_size((8, 16, 16), np.random.default_rng(0)) == (8, rows, columns)


@given(FAMILIES, GRIDS, SEEDS)
def test_a_block_lies_within_the_grid_and_within_its_aspects(mask: TubeMask, grid: masking.Grid, seed: int) -> None:
    duration, rows, columns = mask.block_size(grid, np.random.default_rng(seed))
    count = int(grid[1] * grid[2] * mask.spatial_share[0])
    assert duration == grid[0] and 1 <= rows <= grid[1] and 1 <= columns <= grid[2]
    for found, length, ratios in ((rows, grid[1], (0.75, 1.5)), (columns, grid[2], (1 / 1.5, 1 / 0.75))):
        low, high = (round(math.sqrt(count * r)) for r in ratios)
        assert min(max(low, 1), length) <= found <= min(max(high, 1), length)


@pytest.mark.parametrize("mask", [SHORT_RANGE, LONG_RANGE], ids=["short", "long"])
def test_coverage_is_what_independent_blocks_give(mask: TubeMask) -> None:
    """A cell is hidden unless all blocks miss it; each covers it in as many of its places as the geometry says."""
    square = TubeMask(mask.blocks, mask.spatial_share, aspect=(1.0, 1.0))
    grid, draws = (2, 16, 16), 400
    _, rows, columns = square.block_size(grid, np.random.default_rng(0))

    def covered(length: int, block: int) -> np.ndarray:
        first = np.arange(length - block + 1)[:, None]
        return ((np.arange(length) >= first) & (np.arange(length) < first + block)).mean(0)

    expected = 1 - (1 - covered(16, rows)[:, None] * covered(16, columns)) ** mask.blocks
    rng = np.random.default_rng(3)
    hidden = np.mean([cells(square.draw(1, grid, rng).target, grid)[0, 0] for _ in range(draws)], 0)
    assert abs(hidden.mean() - expected.mean()) < 0.015
    assert np.abs(hidden - expected.ravel()).max() < 4.5 * math.sqrt(0.25 / draws)


def test_the_two_masks_of_v_jepa_2_hide_most_of_a_clip() -> None:
    rng = np.random.default_rng(0)
    shares = {
        name: np.mean([mask.draw(1, (8, 16, 16), rng).target.shape[1] / 2048 for _ in range(200)])
        for name, mask in (("short", SHORT_RANGE), ("long", LONG_RANGE))
    }
    assert 0.6 < shares["short"] < 0.8 < shares["long"] < 0.95


def test_published_truncation_takes_from_the_last_tubelets() -> None:
    mask = TubeMask(2, (0.3, 0.3), leave_out="last")
    grid = (4, 8, 8)
    masks = draw(mask, grid, 0, 16)
    partial = cells(masks.target, grid)
    assert (partial[:, 0] | ~partial[:, -1]).all()  # what the last tubelet hides the first one hides too
    assert (partial[:, 0].sum(1) > partial[:, -1].sum(1)).any()


def test_a_grid_that_the_blocks_always_fill_is_refused_with_words() -> None:
    with pytest.raises(ValueError, match="leave no context in a grid of 1x1"):
        draw(LONG_RANGE, (2, 1, 1), 0)
    with pytest.raises(ValueError, match="leave no context"):
        draw(TubeMask(1, (1.0, 1.0), aspect=(1.0, 1.0)), (2, 6, 6), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spatial_share": (0.0, 0.5)}, {"spatial_share": (0.5, 0.2)}, {"temporal_share": (0.5, 1.5)},
        {"aspect": (1.5, 0.75)}, {"blocks": 0}, {"context_duration": 0.0}, {"max_context": -1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_mask_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"share|aspect|at least one"):
        TubeMask(**{"blocks": 2, "spatial_share": (0.2, 0.2), **wrong})


def test_positions_count_columns_first() -> None:
    grid = (2, 3, 4)
    index = torch.tensor([[0, 1, 4, 12, 23]])
    assert masking.positions(index, grid).tolist() == [[[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 2, 3]]]


def test_visible_tokens_weigh_less_the_farther_they_are_from_a_masked_one() -> None:
    grid = (2, 3, 4)
    # Row 0 of the first tubelet: column 0 is masked, columns 1 and 3 and the same cell of the next tubelet are seen.
    masks = Masks(context=torch.tensor([[1, 3, 12, 17]]), target=torch.tensor([[0, 2]]))
    weights = masking.context_weights(masks, grid)[0]
    assert torch.allclose(weights, torch.tensor([1.0, 1.0, 1.0, 3**-0.25]))  # the last is at (1, 1, 1)
    assert torch.allclose(masking.context_weights(masks, grid, unit=2.0)[0], weights * math.sqrt(2))


@settings(max_examples=30)
@given(GRIDS, SEEDS)
def test_the_nearest_token_is_the_nearest(grid: masking.Grid, seed: int) -> None:
    masks = draw(LONG_RANGE, grid, seed, 2)
    found, which = masking.nearest(masks.target, masks.context, grid)
    rows, columns = grid[1:]
    for b in range(2):
        for k, token in enumerate(masks.target[b].tolist()):
            here = np.array([token // (rows * columns), token // columns % rows, token % columns])
            others = masks.context[b].numpy()
            there = np.stack([others // (rows * columns), others // columns % rows, others % columns], 1)
            distance = np.linalg.norm(there - here, axis=1)
            assert distance.min() == pytest.approx(found[b, k].item(), abs=1e-4)
            assert distance[which[b, k]] == pytest.approx(distance.min(), abs=1e-4)
            if k > 12:
                break


def test_the_weight_of_visible_tokens_ramps_as_published() -> None:
    assert [masking.context_ramp(s) for s in (0, 15_000, 22_500, 30_000, 300_000)] == [0, 0, 0.25, 0.5, 0.5]
    assert masking.context_ramp(5, 5, 5, 1.0) == 0 and masking.context_ramp(6, 5, 5, 1.0) == 1
