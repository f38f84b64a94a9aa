"""Helpers that the tests of this folder share: tokens, and formulas in loops over tokens, in
float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.reducing import Array, Reduced, Tokens

#: Batch, prefix, and whether the tokens have sizes already.
CASES = pytest.mark.parametrize(
    ("batch", "prefix", "sized"), [(3, 1, False), (1, 5, True), (3, 0, True)]
)


def tokens(
    count: int, batch: int = 3, prefix: int = 1, *, sized: bool = False, seed: int = 0, **kw: Any
) -> Tokens:
    """Random ones; the score is positive, as attention is."""
    rng = np.random.default_rng(seed)
    total = prefix + count
    return Tokens(
        rng.normal(size=(batch, total, 6)).astype(np.float32),
        rng.normal(size=(batch, total, 4)).astype(np.float32),
        rng.random((batch, count), np.float32),
        rng.integers(1, 9, (batch, count)).astype(np.float32) if sized else None,
        prefix,
        **kw,
    )


def best(values: Array, count: int) -> list[int]:
    """The largest, ascending; ties to the lower index."""
    return sorted(np.argsort(-np.asarray(values), kind="stable")[:count].tolist())


def cosines(a: Array, b: Array) -> Array:
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    lengths = np.linalg.norm(a, axis=-1)[:, None] * np.linalg.norm(b, axis=-1)
    return np.asarray(a @ b.T / np.maximum(lengths, 1e-12))


def sizes_of(t: Tokens, n: int) -> Array:
    return np.ones(t.count) if t.size is None else t.size[n].astype(np.float64)


def score_of(t: Tokens, n: int) -> Array:
    assert t.score is not None
    return np.asarray(t.score[n].astype(np.float64))


def check(t: Tokens, found: Reduced, n: int, rows: Any, index: Any, owner: Any) -> None:
    """Sample n of a result: features, places, owners; the prefix as it was."""
    np.testing.assert_array_equal(found.x[n, : t.prefix], t.x[n, : t.prefix])
    np.testing.assert_allclose(found.x[n, t.prefix :], np.array(rows), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(found.index[n], index)
    np.testing.assert_array_equal(found.owner[n], owner)


def sane(t: Tokens, found: Reduced, keep: int) -> None:
    """Check what holds for every result: no NaN, no token twice, every token has an owner that is
    there, and what stayed is its own."""
    assert np.isfinite(found.x).all()
    assert found.x.shape == (len(t.x), t.prefix + keep, t.x.shape[2])
    if found.size.size:
        assert np.isfinite(found.size).all()
        assert (found.size > 0).all()
    index, owner = found.index[:, :keep], found.owner
    index, owner = (np.broadcast_to(a, (len(t.x), a.shape[1])) for a in (index, owner))
    assert owner.shape[1] == t.count
    for places, owners in zip(index.tolist(), owner.tolist(), strict=True):
        own = [i for i in places if i >= 0]
        assert len(set(own)) == len(own) >= keep - 1
        assert set(owners) == set(range(keep)) or -1 in places
        assert [owners[i] for i in own] == [k for k, i in enumerate(places) if i >= 0]
