"""`assign`, `contextual`, `soft`: those that leave become part of those that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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


def assigned(t: Tokens, n: int, kept: list[int], metric: str) -> tuple[list[int], Array, list[int]]:
    """Return which tokens leave, how alike each is to its centre, and the owners."""
    f = t.patches[n] if metric == "x" else t.metric[n]
    gone = [j for j in range(t.count) if j not in kept]
    cos = cosines(f[gone], f[kept])
    owner = [0] * t.count
    for j, k in zip(gone, cos.argmax(1).tolist(), strict=True):
        owner[j] = k
    for k, j in enumerate(kept):
        owner[j] = k
    return gone, cos.max(1), owner


@CASES
@pytest.mark.parametrize("metric", ["x", "keys"])
@pytest.mark.parametrize("combine", ["mean", "size_mean"])
@pytest.mark.parametrize("sizes", ["similarity", "sum", "none"])
def test_assign(
    metric: str, combine: str, sizes: str, batch: int, prefix: int, sized: bool
) -> None:
    t = tokens(20, batch, prefix, sized=sized)
    found = reduced("assign", t, 7, metric=metric, combine=combine, sizes=sizes)
    sane(t, found, 7)
    for n in range(batch):
        x, s = t.patches[n].astype(np.float64), sizes_of(t, n)
        kept = best(score_of(t, n), 7)
        gone, alike, owner = assigned(t, n, kept, metric)
        weight = np.ones(20) if combine == "mean" else s
        groups = [[j for j in range(20) if owner[j] == k] for k in range(7)]
        rows = [(weight[g, None] * x[g]).sum(0) / weight[g].sum() for g in groups]
        check(t, found, n, rows, kept, owner)
        np.testing.assert_array_equal(found.local[n], kept)
        share = np.ones(20)
        share[gone] = alike
        total = [(s[g] * (share[g] if sizes == "similarity" else 1)).sum() for g in groups]
        if sizes == "none":
            assert bool(found.size.size) == sized
        else:
            np.testing.assert_allclose(found.size[n], np.maximum(total, 1e-3), rtol=1e-5)
    assert found.prop_attn == (sizes != "none")


def test_opposite_tokens_still_count() -> None:
    """Whatever is as unlike as can be would take size away: never all of it."""
    x = np.array([[[1.0, 0], [-1.0, 0], [-1.0, 0]]], np.float32)
    t = Tokens(x, x, np.array([[3.0, 2, 1]], np.float32))
    found = reduced("assign", t, 1)
    np.testing.assert_allclose(found.size, [[1e-3]])


@CASES
@pytest.mark.parametrize(("keep", "count"), [(9, 3), (12, 5), (11, 10), (19, 1)])
@pytest.mark.parametrize("metric", ["keys", "x"])
def test_contextual(
    keep: int, count: int, metric: str, batch: int, prefix: int, sized: bool
) -> None:
    t = tokens(20, batch, prefix, sized=sized)
    found = reduced("contextual", t, keep, contextual=count, metric=metric)
    sane(t, found, keep)
    for n in range(batch):
        x = t.patches[n].astype(np.float64)
        f = x if metric == "x" else t.metric[n]
        dominant = best(score_of(t, n), keep - count)
        rest = [j for j in range(20) if j not in dominant]
        step = max(1, len(rest) // count)
        targets = rest[::step][:count]
        into = {j: int(cosines(f[[j]], f[targets])[0].argmax()) for j in rest if j not in targets}
        rows = list(x[dominant])
        for k, target in enumerate(targets):
            group = [j for j, m in into.items() if m == k]
            rows.append(x[target] + x[group].sum(0) / max(1, len(group)))
        kept = [*dominant, *targets]
        owner = [kept.index(j) if j in kept else keep - count + into[j] for j in range(20)]
        check(t, found, n, rows, kept, owner)
        np.testing.assert_array_equal(found.local[n], kept)


def with_logits(t: Tokens, seed: int = 3) -> Tokens:
    rng = np.random.default_rng(seed)
    batch, total, _ = t.x.shape
    logits = rng.normal(size=(batch, 2, total, total)).astype(np.float32)
    return Tokens(t.x, t.keys, t.score, t.size, t.prefix, logits=logits)


@CASES
@pytest.mark.parametrize("targets", [1, 3])
def test_soft(targets: int, batch: int, prefix: int, sized: bool) -> None:
    t = with_logits(tokens(20, batch, prefix, sized=sized))
    found = reduced("soft", t, 14, targets=targets)
    sane(t, found, 14)
    assert t.logits is not None
    for n in range(batch):
        x = t.patches[n].astype(np.float64)
        kept = best(score_of(t, n), 14)
        logits = t.logits[n].astype(np.float64).mean(0)[prefix:, prefix:]
        total, size = x[kept], np.ones(14)
        owner = [kept.index(j) if j in kept else -1 for j in range(20)]
        for j in range(20):
            if j in kept:
                continue
            edges = logits[j][kept]
            into = np.argsort(-edges, kind="stable")[:targets]
            weight = np.exp(edges[into]) / np.exp(edges[into]).sum()
            for k, w in zip(into, weight, strict=True):
                total[k] += w * x[j]
                size[k] += w
            owner[j] = int(into[0])
        check(t, found, n, total / size[:, None], kept, owner)


ALL: dict[str, dict[str, Any]] = {
    "assign": {},
    "contextual": {"contextual": 3},
    "soft": {"targets": 2},
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_ties(name: str, value: float) -> None:
    x = np.full((2, 17, 4), value, np.float32)
    t = Tokens(x, x, np.full((2, 16), value, np.float32), prefix=1)
    t = Tokens(x, x, t.score, prefix=1, logits=np.full((2, 1, 17, 17), value, np.float32))
    found = reduced(name, t, 7, **ALL[name])
    sane(t, found, 7)
    first = [0, 1, 2, 3, 4, 8, 12] if name == "contextual" else list(range(7))
    np.testing.assert_array_equal(found.index, [first] * 2)


@pytest.mark.parametrize("name", ALL)
def test_large_tokens_of_large_sizes(name: str) -> None:
    """|x| = 300 at sizes of 219 and more is beyond fp16, which the rest of the graph may be in."""
    t = with_logits(tokens(16, sized=True))
    assert t.size is not None
    large = Tokens(300 * np.sign(t.x), t.keys, t.score, t.size + 218, 1, logits=t.logits)
    given = {"combine": "size_mean"} if name == "assign" else ALL[name]
    found = reduced(name, large, 9, half=True, **given)
    sane(large, found, 9)
    assert np.abs(found.x).max() <= 600.5
    if name == "assign":
        whole = reduced(name, large, 9, sizes="sum", combine="size_mean")
        np.testing.assert_allclose(whole.size.sum(1), (t.size + 218).sum(1))


@pytest.mark.parametrize("name", ["assign", "contextual"])
def test_in_segments(name: str) -> None:
    """Two frames of ten tokens: as if each were an image of its own."""
    t = tokens(20, prefix=0)
    apart = Tokens(*(a.reshape(6, 10, -1) for a in (t.x, t.keys)), t.score.reshape(6, 10))  # type: ignore[union-attr]
    one, two = reduced(name, apart, 5, **ALL[name]), reduced(name, t, 10, segments=2, **ALL[name])
    np.testing.assert_array_equal(two.x.reshape(one.x.shape), one.x)
    np.testing.assert_array_equal(two.owner.reshape(one.owner.shape) % 5, one.owner)


def test_prune_then_merge() -> None:
    """DiffRate: as `assign` alone among those that pruning leaves."""
    t = tokens(20)
    steps = [{"reducer": {"name": "topk"}, "keep": 12}, {"reducer": {"name": "assign"}, "keep": 7}]
    found = reduced("chain", t, 7, steps=steps)
    pruned = reduced("topk", t, 12)
    score = np.take_along_axis(t.score, pruned.index, 1)  # type: ignore[arg-type]
    alone = reduced("assign", Tokens(pruned.x, t.keys[:, :13], score, prefix=1), 7)
    np.testing.assert_allclose(found.x, alone.x, rtol=1e-6)
    np.testing.assert_allclose(found.size, alone.size, rtol=1e-6)
    np.testing.assert_array_equal(found.index, np.take_along_axis(pruned.index, alone.index, 1))
    np.testing.assert_array_equal(found.owner, np.take_along_axis(alone.owner, pruned.owner, 1))


def test_what_is_impossible() -> None:
    assert "4096" in problem("assign", 8192, 4096)
    assert "keep 11 or more" in problem("contextual", 20, 10)
    assert problem("contextual", 20, 11) == ""
    assert "more than the 3 tokens" in problem("soft", 20, 3, targets=4)
