"""Tables for another grid: prefix rows, windows, pairs of positions, rotary angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Digit, Root
from tcompile.analysis.facts import Facts
from tcompile.passes.resize.relative import resized_pairs
from tcompile.passes.resize.rotary import PLACES, Rotary
from tcompile.passes.resize.rules import Rules, resampled
from tcompile.passes.resize.sizes import GridError, Sizes
from tcompile.passes.resize.tables import Chain, along, resized

Array = npt.NDArray[Any]
ROWS, COLUMNS = Root("rows", 8, "data"), Root("columns", 8, "data")
H, W = (Digit(root, 1, 8) for root in (ROWS, COLUMNS))
RULE = "bicubic-antialias"


def sizes(new: int) -> Sizes:
    made = Sizes(Facts(), (H, W))
    made.roots |= {ROWS: new, COLUMNS: new}
    return made


def table(axes: list[ax.Axis], new: int = 6) -> tuple[Array, Array, str]:
    """Random values of these axes, and what becomes of them."""
    values = np.random.default_rng(0).standard_normal([ax.size(a) for a in axes])
    found, words = resized(
        values, axes, sizes(new), lambda grids, first, chains: along(grids, first, chains, Rules())
    )
    return values, found, words


def on_grid(values: Array, new: int) -> Array:
    """[8, 8, …] resampled."""
    return resampled(resampled(values, 0, new, RULE), 1, new, RULE)


def test_prefix_rows_stay_and_patches_are_interpolated() -> None:
    prefix = ax.new("cls", 2, "fixed")
    values, found, words = table([ax.concat([prefix, (H, W)]), ax.new("c", 3, "untracked")])
    assert found.shape == (2 + 36, 3)
    np.testing.assert_array_equal(found[:2], values[:2])
    wanted = on_grid(values[2:].reshape(8, 8, 3), 6).reshape(36, 3)
    np.testing.assert_allclose(found[2:], wanted, atol=1e-12)
    assert words == "interpolated (bicubic-antialias)"


def test_windows_are_put_together_first() -> None:
    # [windows of rows, windows of columns, rows inside, columns inside]
    outer, inner = (
        [Digit(root, 2, 4) for root in (ROWS, COLUMNS)],
        [Digit(root, 1, 2) for root in (ROWS, COLUMNS)],
    )
    values, found, _ = table([tuple(outer), tuple(inner)])
    whole = values.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)
    wanted = on_grid(whole, 6).reshape(3, 2, 3, 2).transpose(0, 2, 1, 3).reshape(9, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_grid_must_fit_the_windows() -> None:
    digits = [Digit(root, stride, n) for stride, n in ((4, 2), (1, 4)) for root in (ROWS, COLUMNS)]
    with pytest.raises(GridError, match="6 positions do not fall into groups of 4"):
        table([tuple(digits)])


def test_a_row_for_each_window_is_refused() -> None:
    with pytest.raises(GridError, match="a row for each window of 4"):
        table([(Digit(ROWS, 4, 2),)], new=4)


def relative(size: int, values: Array) -> Array:
    """[size², size²] of a table [2·size − 1]², as models gather it."""
    place = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).reshape(2, -1)
    apart = place[:, :, None] - place[:, None, :] + size - 1
    return values[apart[0], apart[1]]  # type: ignore[no-any-return]


@pytest.mark.parametrize("new", [5, 6])
def test_a_bias_by_differences_is_the_interpolated_table(new: int) -> None:
    values = np.random.default_rng(0).standard_normal((15, 15))
    pairs = relative(8, values).reshape(8, 8, 8, 8)
    found, words = resized_pairs(pairs, 0, [new, new], "bilinear")
    small = resampled(resampled(values, 0, 2 * new - 1, "bilinear"), 1, 2 * new - 1, "bilinear")
    np.testing.assert_allclose(found.reshape(new**2, new**2), relative(new, small), atol=1e-12)
    assert words == "table of relative positions interpolated (bilinear)"


def test_another_bias_is_interpolated_along_both_grids() -> None:
    pairs = np.random.default_rng(0).standard_normal((8, 8, 8, 8))
    found, words = resized_pairs(pairs, 0, [6, 6], "bilinear")
    for axis in range(4):
        pairs = resampled(pairs, axis, 6, "bilinear")
    np.testing.assert_allclose(found, pairs, atol=1e-12)
    assert words == "interpolated pair by pair (bilinear)"


def test_masks_that_differ_are_refused() -> None:
    mask = np.zeros((8, 8))
    mask[0] = -np.inf
    with pytest.raises(GridError, match="a mask or a table of whole numbers"):
        resized(mask, [(H,), (W,)], sizes(6), lambda g, f, c: along(g, f, c, Rules()))


# ---- rotary --------------------------------------------------------------------------------------

INDEX = 10000.0 ** (-np.arange(4) / 4)
COORDINATES = {
    "index": lambda n: np.arange(n, dtype=float),
    "scaled": lambda n: np.arange(n) * (16.0 / n),
    "centred": lambda n: (np.arange(n) + 0.5) / n * 2 - 1,
    "corners": lambda n: np.linspace(-1, 1, n),
}
SPEEDS = {
    "index": INDEX,
    "scaled": INDEX,
    "centred": 2 * np.pi / 100.0 ** (np.arange(4) / 4),
    "corners": np.pi * np.array([1.0, 2.0, 3.0]),
}


def turns(rule: str, size: int) -> Array:
    """[size, size, channels] e^{iθ}: first those of rows, then those of columns."""
    angle = COORDINATES[rule](size)[:, None] * SPEEDS[rule]  # type: ignore[no-untyped-call]
    shape = (size, size, angle.shape[1])
    rows, columns = angle[:, None].repeat(size, 1), angle[None].repeat(size, 0)
    return np.exp(1j * np.concatenate([rows.reshape(shape), columns.reshape(shape)], 2))


def rotated(values: Array, new: int, rule: str | None = None) -> tuple[Array, str]:
    """A table [rows, columns, channels] as the pass has it for another grid."""
    from onnx_graphsurgeon import Graph

    made = Rotary(Graph(), {}, sizes(new), Rules(rotary=rule))
    chains = [Chain(root, (i,), len(values), new) for i, root in enumerate((ROWS, COLUMNS))]
    found, words = made._turned(values.transpose(2, 0, 1), 1, chains)
    return found.transpose(1, 2, 0), words


@pytest.mark.parametrize("rule", PLACES)
@pytest.mark.parametrize("size", [8, 9])
def test_a_rotary_table_shows_its_rule(rule: str, size: int) -> None:
    found, words = rotated(turns(rule, size).astype(np.complex64), 6)
    assert words == f"rotary table by the rule {rule}, which it shows"
    np.testing.assert_allclose(found, turns(rule, 6), atol=2e-5)


def test_a_rule_that_is_asked_for_is_taken() -> None:
    # EVA-02 at the size of its pre-training: nothing shows that it would scale.
    found, words = rotated(turns("index", 16), 8, "scaled")
    assert words == "rotary table by the rule scaled"
    np.testing.assert_allclose(found, turns("scaled", 8), atol=1e-9)


@pytest.mark.parametrize("first", [0, 1])
def test_rows_may_be_counted_from_one(first: int) -> None:
    def scaled(size: int) -> Array:
        angle = ((np.arange(size) + first) * (12 / size))[:, None] * INDEX
        return np.exp(1j * angle)[:, None, :].repeat(size, 1)

    found, words = rotated(scaled(8), 6)
    assert words == "rotary table by the rule scaled, which it shows"
    np.testing.assert_allclose(found, scaled(6), atol=1e-9)


def test_angles_of_no_rule_are_interpolated() -> None:
    angles = np.random.default_rng(0).standard_normal((8, 8, 3))
    found, words = rotated(np.exp(1j * angles), 6)
    assert words == "rotary table interpolated: it is of no known rule"
    np.testing.assert_allclose(np.abs(found), 1.0)
