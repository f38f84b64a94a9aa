"""`pool`, `lines`, `windows`: what the grid of the tokens says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.passes.reduce.reducers import find_reducer
from tests.support.reducing import Reduced, ask_of, problem, reduced
from tests.unit.passes.reduce.reducers.given import (
    CASES,
    Array,
    Tokens,
    best,
    check,
    cosines,
    sane,
    sizes_of,
    tokens,
)

Groups = list[list[int]]


def pooled(grid: tuple[int, ...], side: int) -> Groups:
    """Cells in raster order, in every frame."""
    places = np.arange(int(np.prod(grid))).reshape(-1, *grid[-2:])
    return [
        frame[y : y + side, x : x + side].reshape(-1).tolist()
        for frame in places
        for y in range(0, grid[-2], side)
        for x in range(0, grid[-1], side)
    ]


def joined_lines(x: Array, grid: tuple[int, ...], keep: int, axis: str) -> Groups:
    """The r most alike pairs of lines become one line, at the place of the first."""
    places = np.arange(len(x)).reshape(-1, *grid[-2:])
    if axis == "columns":
        places = places.transpose(0, 2, 1)
    count = places.shape[1]
    r = count - keep * count // len(x)
    cos = cosines(x, x)
    alike = [
        cos[places[:, i].reshape(-1), places[:, i + 1].reshape(-1)].mean()
        for i in range(0, count - 1, 2)
    ]
    merged = [2 * p for p in best(np.array(alike), r)]
    found: list[tuple[int, list[int]]] = []
    for i in range(count):
        if i - 1 in merged:
            continue
        for frame in places:
            for k in range(places.shape[2]):
                more = [int(frame[i + 1, k])] if i in merged else []
                found.append((int(frame[i, k]), [int(frame[i, k]), *more]))
    return [group for _, group in sorted(found)]


def alike_windows(x: Array, grid: tuple[int, ...], keep: int, side: int) -> Groups:
    """The r most alike windows, each as its last member; then all other tokens."""
    places = np.arange(len(x)).reshape(-1, *grid[-2:])
    h, w = grid[-2] // side * side, grid[-1] // side * side
    whole = [
        frame[i : i + side, j : j + side].reshape(-1).tolist()
        for frame in places
        for i in range(0, h, side)
        for j in range(0, w, side)
    ]
    off = ~np.eye(side * side, dtype=bool)
    alike = [cosines(x[m], x[m])[off].mean() for m in whole]
    merged = [whole[i] for i in best(np.array(alike), (len(x) - keep) // (side * side - 1))]
    taken = {j for m in merged for j in m}
    return [m[::-1] for m in merged] + [[j] for j in range(len(x)) if j not in taken]


def compare(t: Tokens, found: Reduced, n: int, groups: Groups, *, sizes: bool = True) -> None:
    """Groups of places, the one whose place it is first: means by size, and sums of sizes."""
    x, s = t.patches[n].astype(np.float64), sizes_of(t, n)
    rows = [(s[g, None] * x[g]).sum(0) / s[g].sum() for g in groups]
    index = np.broadcast_to(found.index, (len(t.x), len(groups)))[n]
    owner = np.broadcast_to(found.owner, (len(t.x), t.count))[n]
    same = Reduced(found.x, index[None], found.size, owner[None], found.local, found.prop_attn)
    check(
        Tokens(t.x[n : n + 1], t.keys, prefix=t.prefix),
        Reduced(found.x[n : n + 1], same.index, same.size, same.owner, same.local, False),
        0,
        rows,
        [g[0] for g in groups],
        [next(k for k, g in enumerate(groups) if j in g) for j in range(t.count)],
    )
    if sizes:
        np.testing.assert_allclose(found.size[n], [s[g].sum() for g in groups])
    assert not found.prop_attn


@CASES
@pytest.mark.parametrize(
    ("grid", "side", "keep"),
    [((4, 6), 2, 6), ((4, 6), 3, 4), ((3, 8), 2, 8), ((2, 4, 3), 2, 8), ((2, 12), 5, 3)],
)
def test_pool(
    grid: tuple[int, ...], side: int, keep: int, batch: int, prefix: int, sized: bool
) -> None:
    t = tokens(24, batch, prefix, sized=sized, grid=grid)
    found = reduced("pool", t, keep, side=side)
    sane(t, found, keep)
    for n in range(batch):
        compare(t, found, n, pooled(grid, side))
    left = find_reducer("pool").grid(ask_of(24, keep, {"side": side}, grid))
    assert np.prod(left) == keep
    assert len(left) == len(grid)


@CASES
@pytest.mark.parametrize(
    ("grid", "keep", "axis", "now"),
    [
        ((4, 6), 12, "columns", (4, 3)),
        ((4, 6), 20, "auto", (4, 5)),
        ((4, 6), 18, "rows", (3, 6)),
        ((8, 3), 15, "auto", (5, 3)),
        ((2, 3, 4), 18, "auto", (2, 3, 3)),
        ((2, 3, 4), 16, "rows", (2, 2, 4)),
    ],
)
def test_lines(
    grid: tuple[int, ...],
    keep: int,
    axis: str,
    now: tuple[int, ...],
    batch: int,
    prefix: int,
    sized: bool,
) -> None:
    t = tokens(24, batch, prefix, sized=sized, grid=grid)
    found = reduced("lines", t, keep, axis=axis)
    sane(t, found, keep)
    assert find_reducer("lines").grid(ask_of(24, keep, {"axis": axis}, grid)) == now
    which = "columns" if now[-1] < grid[-1] else "rows"
    for n in range(batch):
        compare(t, found, n, joined_lines(t.patches[n], grid, keep, which))
    np.testing.assert_allclose(found.size.sum(1), 24 if t.size is None else t.size.sum(1))


def test_columns_then_rows() -> None:
    """What is left is a grid for the next step."""
    t = tokens(24, grid=(4, 6))
    first = reduced("lines", t, 16, axis="columns")
    again = Tokens(first.x, t.keys, None, first.size, 1, 0, (4, 4), first.index, first.owner)
    found = reduced("lines", again, 12, axis="rows")
    assert found.x.shape[1] == 13
    np.testing.assert_allclose(found.size.sum(1), 24)
    steps = [
        {"reducer": {"name": "lines", "axis": "columns"}, "keep": 16},
        {"reducer": {"name": "lines", "axis": "rows"}, "keep": 12},
    ]
    both = reduced("chain", t, 12, steps=steps)
    np.testing.assert_array_equal(both.owner, found.owner)
    np.testing.assert_array_equal(both.x, found.x)
    for n in range(3):
        means = [t.patches[n][both.owner[n] == k].mean(0) for k in range(12)]
        np.testing.assert_allclose(both.x[n, 1:], means, atol=1e-5)


@CASES
@pytest.mark.parametrize(
    ("grid", "side", "keep"),
    [((4, 6), 2, 18), ((4, 6), 2, 6), ((3, 8), 2, 15), ((4, 6), 3, 16), ((2, 4, 3), 2, 18)],
)
@pytest.mark.parametrize("sizes", [True, False])
def test_windows(
    grid: tuple[int, ...], side: int, keep: int, sizes: bool, batch: int, prefix: int, sized: bool
) -> None:
    t = tokens(24, batch, prefix, sized=sized, grid=grid)
    found = reduced("windows", t, keep, side=side, sizes=sizes)
    sane(t, found, keep)
    for n in range(batch):
        groups = alike_windows(t.patches[n], grid, keep, side)
        compare(t, found, n, groups, sizes=sizes)
        if t.size is not None and not sizes:
            np.testing.assert_array_equal(found.size[n], t.size[n][[g[0] for g in groups]])
    assert bool(found.size.size) == (sizes or sized)


def test_windows_by_keys() -> None:
    t = tokens(24, grid=(4, 6))
    found = reduced("windows", t, 18, metric="keys")
    for n in range(3):
        groups = alike_windows(t.metric[n], (4, 6), 18, 2)
        compare(t, found, n, groups)


STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "pool": (6, {}),
    "lines": (16, {}),
    "windows": (18, {}),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_ties(name: str, value: float) -> None:
    x = np.full((2, 25, 4), value, np.float32)
    t = Tokens(x, x, prefix=1, grid=(4, 6))
    keep, given = STEPS[name]
    found = reduced(name, t, keep, **given)
    sane(t, found, keep)
    np.testing.assert_allclose(found.x, value, rtol=1e-6)
    np.testing.assert_array_equal(np.broadcast_to(found.size, (2, keep)).sum(1), [24, 24])


@pytest.mark.parametrize("name", STEPS)
def test_large_tokens_of_large_sizes(name: str) -> None:
    """|x| = 300 at sizes of 219 and more is beyond fp16, which the rest of the graph may be in."""
    t = tokens(24, sized=True, grid=(4, 6))
    assert t.size is not None
    large = Tokens(300 * np.sign(t.x), t.keys, t.score, t.size + 218, 1, grid=(4, 6))
    keep, given = STEPS[name]
    found = reduced(name, large, keep, half=True, **given)
    sane(large, found, keep)
    assert np.abs(found.x).max() <= 300.5
    np.testing.assert_allclose(found.size.sum(1), (t.size + 218).sum(1))


@pytest.mark.parametrize("name", STEPS)
def test_after_others(name: str) -> None:
    """Index and owner go back to the first tokens: 30 of which 24 are left, still a grid."""
    rng = np.random.default_rng(5)
    index = np.stack([np.sort(rng.permutation(30)[:24]) for _ in range(3)])
    owner = rng.integers(0, 24, (3, 30))
    for n in range(3):
        owner[n, index[n]] = np.arange(24)
    t = tokens(24, sized=True, grid=(4, 6))
    keep, given = STEPS[name]
    alone = reduced(name, t, keep, **given)
    again = Tokens(t.x, t.keys, t.score, t.size, 1, 0, (4, 6), index, owner)
    found = reduced(name, again, keep, **given)
    places = np.broadcast_to(alone.index, (3, keep))
    np.testing.assert_array_equal(found.index, np.take_along_axis(index, places, 1))
    owners = np.broadcast_to(alone.owner, (3, 24))
    np.testing.assert_array_equal(found.owner, np.take_along_axis(owners, owner, 1))


@pytest.mark.parametrize(
    ("name", "grid", "keep", "given", "words"),
    [
        ("pool", (4, 6), 7, {}, "leave 6 tokens, not 7; sides of 2 or more can leave 6"),
        ("pool", (), 6, {}, "a grid"),
        ("pool", (4, 6), 1, {"side": 7}, "larger than the grid"),
        ("lines", (4, 6), 17, {}, "16 or 18 of 24 can stay, not 17"),
        ("lines", (4, 6), 18, {"axis": "columns"}, "whole columns"),
        ("lines", (4, 6), 6, {}, "12 of 24 can stay"),
        ("lines", (), 12, {}, "a grid"),
        ("windows", (4, 6), 20, {}, "18 or 21 of 24 tokens can stay"),
        ("windows", (4, 6), 3, {}, "up to 6 windows of 2 x 2"),
        ("windows", (1, 24), 21, {}, "no other count"),
        ("windows", (), 18, {}, "a grid"),
    ],
)
def test_what_is_impossible(
    name: str, grid: tuple[int, ...], keep: int, given: dict[str, Any], words: str
) -> None:
    assert words in problem(name, 24, keep, grid, **given)
