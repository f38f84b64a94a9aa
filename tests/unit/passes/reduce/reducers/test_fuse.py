"""`fuse` and `neighbours`: one token stands for all that leave."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.reducing import problem, reduced
from tests.unit.passes.reduce.reducers.given import (
    CASES,
    Tokens,
    best,
    check,
    cosines,
    sane,
    score_of,
    sizes_of,
    tokens,
)

WEIGHTS = ("score", "normalised", "mean", "size")


@CASES
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights(weights: str, batch: int, prefix: int, sized: bool) -> None:
    t = tokens(20, batch, prefix, sized=sized)
    found = reduced("fuse", t, 8, weights=weights)
    sane(t, found, 8)
    for n in range(batch):
        kept = best(score_of(t, n), 7)
        gone = [j for j in range(20) if j not in kept]
        weight = {"mean": np.ones(20), "size": sizes_of(t, n)}.get(weights, score_of(t, n))[gone]
        rest = (weight[:, None] * t.patches[n][gone]).sum(0)
        if weights != "score":
            rest = rest / weight.sum()
        owner = [kept.index(j) if j in kept else 7 for j in range(20)]
        check(t, found, n, [*t.patches[n][kept], rest], [*kept, -1], owner)
        if t.size is not None:
            size = t.size[n]
            np.testing.assert_allclose(found.size[n], [*size[kept], size[gone].sum()])
    assert not found.local.size


@CASES
@pytest.mark.parametrize(("many", "metric"), [(5, "joined"), (32, "joined"), (3, "keys"), (3, "x")])
def test_neighbours(many: int, metric: str, batch: int, prefix: int, sized: bool) -> None:
    """`Tokens.keys` is what the attention gives for both keys and joined: it says which is read."""
    t = tokens(20, batch, prefix, sized=sized)
    found = reduced("neighbours", t, 8, neighbours=many, metric=metric)
    assert ("Reshape" in found.ops) == (metric == "joined")
    sane(t, found, 8)
    for n in range(batch):
        x, c = t.patches[n].astype(np.float64), score_of(t, n)
        kept = best(c, 7)
        gone = [j for j in range(20) if j not in kept]
        f = t.patches[n] if metric == "x" else t.metric[n]
        near = cosines(f, f)
        rows = []
        for k in kept:
            row = near[k].copy()
            row[k] = -np.inf
            around = [j for j in best(row, min(many, 19)) if j != k]
            rows.append(x[k] + (c[around, None] * x[around]).sum(0))
        rows.append((c[gone, None] * x[gone]).sum(0))
        owner = [kept.index(j) if j in kept else 7 for j in range(20)]
        check(t, found, n, rows, [*kept, -1], owner)
    assert bool(found.size.size) == sized


@pytest.mark.parametrize("weights", [*WEIGHTS, "neighbours"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_and_nothing(weights: str, value: float) -> None:
    x = np.full((2, 17, 4), value, np.float32)
    t = Tokens(x, x, np.full((2, 16), value, np.float32), prefix=1)
    found = (
        reduced("neighbours", t, 5)
        if weights == "neighbours"
        else reduced("fuse", t, 5, weights=weights)
    )
    sane(t, found, 5)
    np.testing.assert_array_equal(found.index, [[0, 1, 2, 3, -1]] * 2)


@pytest.mark.parametrize("weights", ["normalised", "mean", "size"])
def test_large_tokens_of_large_sizes(weights: str) -> None:
    """|x| = 300 at sizes of 219 and more is beyond fp16, which the rest of the graph may be in."""
    t = tokens(16, sized=True)
    assert t.size is not None
    large = Tokens(300 * np.sign(t.x), t.keys, t.score, t.size + 218, prefix=1)
    found = reduced("fuse", large, 5, half=True, weights=weights)
    sane(large, found, 5)
    whole = reduced("fuse", large, 5, weights=weights)
    np.testing.assert_allclose(found.x, whole.x, rtol=2e-3, atol=0.2)


def test_what_is_impossible() -> None:
    assert "one token kept beside it" in problem("fuse", 16, 1)
    assert "one token kept beside it" in problem("neighbours", 16, 1)
    assert problem("neighbours", 4096, 3841) == ""
    assert "4095" in problem("neighbours", 4096, 100, neighbours=4095)
