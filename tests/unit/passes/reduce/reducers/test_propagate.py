"""`propagate`: GTP's graph, made once and sliced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.core.schedule import Spec
from tcompile.passes.reduce.reducers import traits_of
from tests.support.reducing import problem, reduced
from tests.unit.passes.reduce.reducers.given import (
    CASES,
    Array,
    Tokens,
    best,
    check,
    cosines,
    sane,
    score_of,
    sizes_of,
    tokens,
)


def graph(x: Array, grid: tuple[int, ...], given: dict[str, Any]) -> Array:
    """D^-½ G D^-½ of all tokens."""
    places = [divmod(i, grid[-1]) for i in range(len(x))]
    found = np.zeros((len(x), len(x)))
    near = cosines(x, x)
    np.fill_diagonal(near, -np.inf)
    for i, (y, z) in enumerate(places):
        for j, (v, w) in enumerate(places):
            same = y // grid[-2] == v // grid[-2]
            down, across = abs(y - v), abs(z - w)
            far = down + across if given.get("neighbours") == 4 else max(down, across)
            found[i, j] = same and far == 1
        found[i, best(near[i], min(given.get("semantic", 8), len(x) - 1))] = 1
    degree = found.sum(1)
    return np.asarray(found / np.sqrt(degree[:, None] * degree))


def propagated(
    x: Array, scales: Array, links: Array, kept: list[int], alpha: float
) -> tuple[Array, Array, list[int]]:
    gone = [j for j in range(len(x)) if j not in kept]
    between = alpha * links[np.ix_(kept, gone)]
    owner = cosines(x, x[kept]).argmax(1)
    owner[kept] = np.arange(len(kept))
    return (x[kept] + between @ x[gone], scales[kept] + between @ scales[gone], owner.tolist())


@CASES
@pytest.mark.parametrize(
    ("grid", "given"),
    [
        ((4, 5), {}),
        ((4, 5), {"neighbours": 4, "semantic": 3, "sizes": True}),
        ((2, 2, 5), {"alpha": 1.0, "semantic": 1}),
        ((4, 5), {"semantic": 30, "sizes": True}),
    ],
)
def test_formula(
    grid: tuple[int, ...], given: dict[str, Any], batch: int, prefix: int, sized: bool
) -> None:
    t = tokens(20, batch, prefix, sized=sized, grid=grid)
    found = reduced("propagate", t, 13, **given)
    sane(t, found, 13)
    for n in range(batch):
        x = t.patches[n].astype(np.float64)
        kept, links = best(score_of(t, n), 13), graph(x, grid, given)
        out = propagated(x, sizes_of(t, n), links, kept, given.get("alpha", 0.2))
        check(t, found, n, out[0], kept, out[2])
        np.testing.assert_array_equal(found.local[n], kept)
        if given.get("sizes"):
            np.testing.assert_allclose(found.size[n], out[1], rtol=1e-5)
        else:
            assert bool(found.size.size) == sized
    assert found.prop_attn == given.get("sizes", False)


def test_the_graph_is_sliced_not_made_again() -> None:
    t = tokens(20, grid=(4, 5))
    steps = [{"reducer": {"name": "propagate"}, "keep": keep} for keep in (16, 11, 7)]
    found = reduced("chain", t, 7, steps=steps)
    for n in range(3):
        x, score = t.patches[n].astype(np.float64), score_of(t, n)
        links, index, owner = graph(x, (4, 5), {}), list(range(20)), list(range(20))
        for keep in (16, 11, 7):
            kept = best(score, keep)
            x, _, step = propagated(x, np.ones(len(x)), links, kept, 0.2)
            links, score = links[np.ix_(kept, kept)], score[kept]
            index, owner = [index[k] for k in kept], [step[o] for o in owner]
        check(t, found, n, x, index, owner)


def test_the_graph_is_that_of_the_input() -> None:
    """What is left of the patches has its rows and columns, whichever reducer left it."""
    t, rng = tokens(12, grid=()), np.random.default_rng(7)
    index = np.stack([np.sort(rng.permutation(20)[:12]) for _ in range(3)])
    owner = np.stack([np.searchsorted(i, np.arange(20)).clip(max=11) for i in index])
    entered = rng.normal(size=(3, 21, 6)).astype(np.float32)
    now = Tokens(t.x, t.keys, t.score, None, 1, 0, (), index, owner, None, entered, (4, 5))
    found = reduced("propagate", now, 9)
    for n in range(3):
        links = graph(entered[n, 1:], (4, 5), {})[np.ix_(index[n], index[n])]
        kept = best(score_of(t, n), 9)
        x = t.patches[n].astype(np.float64)
        out = propagated(x, np.ones(12), links, kept, 0.2)
        np.testing.assert_allclose(found.x[n, 1:], out[0], atol=2e-5)
        np.testing.assert_array_equal(found.index[n], index[n][kept])


def test_after_another_reducer() -> None:
    t = tokens(20, grid=(4, 5))
    steps = [
        {"reducer": {"name": "topk"}, "keep": 15},
        {"reducer": {"name": "propagate", "semantic": 2}, "keep": 9},
    ]
    found = reduced("chain", t, 9, steps=steps)
    for n in range(3):
        first = best(score_of(t, n), 15)
        x, score = t.patches[n].astype(np.float64), score_of(t, n)[first]
        links = graph(x, (4, 5), {"semantic": 2})[np.ix_(first, first)]
        kept = best(score, 9)
        out = propagated(x[first], np.ones(15), links, kept, 0.2)
        np.testing.assert_allclose(found.x[n, 1:], out[0], atol=2e-5)
        np.testing.assert_array_equal(found.index[n], [first[k] for k in kept])


@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("half", [False, True])
def test_ties(value: float, half: bool) -> None:
    x = np.full((2, 21, 4), value, np.float32)
    t = Tokens(x, x, np.full((2, 20), value, np.float32), prefix=1, grid=(4, 5))
    found = reduced("propagate", t, 13, half=half, sizes=True)
    sane(t, found, 13)
    np.testing.assert_array_equal(found.index, [list(range(13))] * 2)


def test_what_it_says_of_itself() -> None:
    assert "grid" in problem("propagate", 20, 13)
    assert problem("propagate", 20, 13, (4, 5)) == ""
    assert traits_of(Spec("propagate")) == frozenset()
    assert traits_of(Spec("propagate", {"sizes": True})) == {"merge"}
