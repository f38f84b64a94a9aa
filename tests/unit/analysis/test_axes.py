"""The algebra of axes, by examples from real exports."""

from __future__ import annotations

import pytest

from tcompile.analysis import axes as ax

B = ax.new("batch", 3, "batch")
H, W = ax.new("h", 14, "data"), ax.new("w", 14, "data")
C = ax.new("c", 192, "untracked")
CLS = ax.new("cls", 1, "fixed")
REGS = ax.new("regs", 4, "fixed")


def test_flatten_and_unflatten_a_grid() -> None:
    assert ax.regroup((B, C, H, W), (3, 192, 196)) == (B, C, H + W)
    assert ax.regroup((B, C, H + W), (3, 192, 14, 14)) == (B, C, H, W)


def test_windows_split_and_rejoin() -> None:
    split = ax.regroup((H, W), (2, 7, 2, 7))
    assert split is not None
    assert ax.regroup(split, (14, 14)) == (H, W)
    # Two windows of seven rows in the other order are no longer the grid.
    swapped = (split[1], split[0], *split[2:])
    assert ax.regroup(swapped, (14, 14)) != (H, W)


def test_heads_split_off_features_and_join_again() -> None:
    heads = ax.regroup((B, H + W, C), (3, 196, 3, 64))
    assert heads is not None
    assert ax.regroup(heads, (3, 196, 192)) == (B, H + W, C)


def test_a_dim_that_cuts_across_factors_is_refused() -> None:
    assert ax.regroup((ax.new("n", 6, "data"), ax.new("m", 4, "data")), (8, 3)) is None


def test_what_holds_nothing_is_not_followed() -> None:
    assert ax.regroup((B, C, ax.new("none", 0, "data")), (3, 192, 0)) is None
    assert ax.regroup((B, C), (0, 192)) is None


def test_batch_merges_with_tokens_and_comes_back() -> None:
    merged = ax.regroup((B, H + W, C), (3 * 196, 192))
    assert merged == (B + H + W, C)
    assert ax.regroup(merged, (3, 196, 192)) == (B, H + W, C)


def test_concat_and_slice_are_inverse() -> None:
    tokens = ax.concat([CLS, H + W])
    assert ax.size(tokens) == 197
    assert ax.sliced(tokens, 1, 197) == H + W
    assert ax.sliced(tokens, 0, 1) == CLS
    # DINOv2 with registers, as transformers writes it.
    with_registers = ax.concat([ax.sliced(tokens, 0, 1), REGS, ax.sliced(tokens, 1, 197)])
    assert [p.size for p in ax.pieces(with_registers)] == [1, 4, 196]
    assert [p.fixed for p in ax.pieces(with_registers)] == [True, True, False]
    # Rotary embedding leaves the prefix out and joins it again: the same axis.
    again = ax.concat([ax.sliced(with_registers, 0, 5), ax.sliced(with_registers, 5, 201)])
    assert again == with_registers


def test_slices_in_the_wrong_order_are_another_axis() -> None:
    tokens = H + W
    rolled = ax.concat([ax.sliced(tokens, 7, 196), ax.sliced(tokens, 0, 7)])
    assert rolled != tokens
    assert ax.size(rolled) == 196


def test_unify_prefers_what_is_known_and_reports_contradictions() -> None:
    untracked = ax.new("table", 196, "untracked")
    assert ax.unify(untracked, H + W) == (H + W, False)
    assert ax.unify(ax.ONE, H + W) == (H + W, False)
    assert ax.unify(H + W, W + H)[1]


def test_unify_does_not_care_for_the_names_of_heads() -> None:
    one, other = ax.new("q/heads", 2, "untracked"), ax.new("k/heads", 2, "untracked")
    assert ax.unify(B + one, B + other) == (B + one, False)
    assert ax.unify(B + one, other + B)[1]


@pytest.mark.parametrize("dims", [(3, 196, 192), (3, 14, 14, 192), (3 * 14, 14, 2, 96), (112896,)])
def test_regroup_there_and_back(dims: tuple[int, ...]) -> None:
    start = (B, H + W, C)
    there = ax.regroup(start, dims)
    assert there is not None
    assert ax.regroup(there, (3, 196, 192)) == start
